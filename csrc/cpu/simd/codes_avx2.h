// Codes of four or eight bits times s8 activations with 256-bit registers; lanes are output channels.
#pragma once

#include <immintrin.h>

#include "vec_avx2.h"

namespace {

struct Codes256Base {
    using Weights = __m256i;
    using Inputs = __m256i;
    static Weights mask(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static Weights low(const uint8_t* p) { return mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static Weights high(const uint8_t* p) {
        return mask(_mm256_srli_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 4));
    }
    static Weights whole(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Inputs broadcast(const int8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, 4);
        return _mm256_set1_epi32(quad);
    }
    static Vec::I quad_sums(const int8_t* p) {
        const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), values), _mm256_set1_epi16(1));
    }
    static Vec::I load_bytes(const uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    static void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
};

// vpmaddubsw does not saturate here: 15 * 128 * 2 is far below 2^15.
struct CodesMadd256 : Codes256Base {
    static Vec::I dot(Vec::I acc, Weights w, Inputs a) {
        return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
    }
    // Codes of eight bits would saturate: their nibbles one after the other.
    static Vec::I dot_bytes(Vec::I acc, Weights w, Inputs a) {
        const Weights high = mask(_mm256_srli_epi16(w, 4));
        return _mm256_add_epi32(dot(acc, mask(w), a),
                                _mm256_madd_epi16(_mm256_maddubs_epi16(high, a), _mm256_set1_epi16(16)));
    }
};

}  // namespace
