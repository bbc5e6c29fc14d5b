// Unsigned codes of four or eight bits as floats, on 512-bit registers; lanes are output channels.
#pragma once

#include <immintrin.h>

#include "vec_avx512.h"

namespace {

struct Codes512 {
    static Vec::I load(const uint8_t* p) { return _mm512_loadu_si512(p); }
    template <int bits>
    static Vec::I shift(Vec::I words) {
        return _mm512_srli_epi32(words, bits);
    }
    // The masked bits as part of a mantissa: (words & mask) | exponent.
    static Vec::F place(Vec::I words, int32_t mask, int32_t exponent) {
        constexpr int kAndOr = 0xea;
        return _mm512_castsi512_ps(
            _mm512_ternarylogic_epi32(words, _mm512_set1_epi32(mask), _mm512_set1_epi32(exponent), kAndOr));
    }
    static Vec::F multiply_add(Vec::F a, Vec::F b, Vec::F c) { return _mm512_fmadd_ps(a, b, c); }
    // q - zero of the sixteen codes q of four bits; look_up reads the low four bits of each word.
    static constexpr bool has_table = true;
    using Table = Vec::F;
    static Table table(float zero) {
        const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_sub_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(zero));
    }
    static Vec::F look_up(Table t, Vec::I words) { return _mm512_permutexvar_ps(words, t); }
    static Vec::F load_bytes(const uint8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
};

}  // namespace
