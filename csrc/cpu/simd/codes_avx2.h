// Unsigned codes of four or eight bits as floats, on 256-bit registers; lanes are output channels.
#pragma once

#include <immintrin.h>

#include "vec_avx2.h"

namespace {

struct Codes256 {
    static Vec::I load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    template <int bits>
    static Vec::I shift(Vec::I words) {
        return _mm256_srli_epi32(words, bits);
    }
    static constexpr bool has_table = false;
    // The masked bits as part of a mantissa: (words & mask) | exponent.
    static Vec::F place(Vec::I words, int32_t mask, int32_t exponent) {
        return _mm256_castsi256_ps(
            _mm256_or_si256(_mm256_and_si256(words, _mm256_set1_epi32(mask)), _mm256_set1_epi32(exponent)));
    }
    static Vec::F multiply_add(Vec::F a, Vec::F b, Vec::F c) { return _mm256_fmadd_ps(a, b, c); }
    static Vec::F load_bytes(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
};

}  // namespace
