// Codes of four or eight bits times s8 activations with 512-bit registers; lanes are output channels.
#pragma once

#include <immintrin.h>

#include "vec_avx512.h"

namespace {

struct Codes512Base {
    using Weights = __m512i;
    using Inputs = __m512i;
    static Weights mask(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    static Weights low(const uint8_t* p) { return mask(_mm512_loadu_si512(p)); }
    static Weights high(const uint8_t* p) { return mask(_mm512_srli_epi16(_mm512_loadu_si512(p), 4)); }
    static Weights whole(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static Inputs broadcast(const int8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, 4);
        return _mm512_set1_epi32(quad);
    }
    static Vec::I quad_sums(const int8_t* p) {
        const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), _mm512_loadu_si512(p));
        return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    }
    static Vec::I load_bytes(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
};

// vpmaddubsw does not saturate here: 15 * 128 * 2 is far below 2^15.
struct CodesMadd512 : Codes512Base {
    static Vec::I dot(Vec::I acc, Weights w, Inputs a) {
        return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1)));
    }
    // Codes of eight bits would saturate: their nibbles one after the other.
    static Vec::I dot_bytes(Vec::I acc, Weights w, Inputs a) {
        const Weights high = mask(_mm512_srli_epi16(w, 4));
        return _mm512_add_epi32(dot(acc, mask(w), a),
                                _mm512_madd_epi16(_mm512_maddubs_epi16(high, a), _mm512_set1_epi16(16)));
    }
};

}  // namespace
