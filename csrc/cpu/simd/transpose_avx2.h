// 16 x 16 transposition of 32-bit words by 256-bit registers, eight rows and columns at a time.
#pragma once

#include <immintrin.h>

#include "transpose_part.h"

namespace {

inline void transpose_8x8(const int32_t* src, int64_t src_ld, int32_t* dst, int64_t dst_ld) {
    __m256i r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i * src_ld));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Half h of r[4 g + j] holds rows 4g .. 4g+3 of column 4h + j.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const auto to = [&](int column) { return reinterpret_cast<__m256i*>(dst + column * dst_ld); };
        _mm256_storeu_si256(to(j), _mm256_permute2x128_si256(r[j], r[4 + j], 0x20));
        _mm256_storeu_si256(to(4 + j), _mm256_permute2x128_si256(r[j], r[4 + j], 0x31));
    }
}

// dst[j][i] = src[i][j]; leading dimensions in elements.
inline void transpose_16x16(const int32_t* src, int64_t src_ld, int32_t* dst, int64_t dst_ld) {
    for (int64_t i = 0; i < 16; i += 8)
        for (int64_t j = 0; j < 16; j += 8) transpose_8x8(src + i * src_ld + j, src_ld, dst + j * dst_ld + i, dst_ld);
}

}  // namespace
