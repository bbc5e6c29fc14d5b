// 16 x 16 transposition of 32-bit elements in registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// dst[j][i] = src[i][j]; leading dimensions in elements.
inline void transpose_16x16(const int32_t* src, int64_t src_ld, int32_t* dst, int64_t dst_ld) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(src + i * src_ld);
    // Pairs, then quadruples of rows inside each 128-bit lane.
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Now lane l of r[4 g + j] holds rows 4g .. 4g+3 of column 4l + j: lanes are a 4 x 4 transposition.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even_low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const __m512i even_high = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        _mm512_storeu_si512(dst + j * dst_ld, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        _mm512_storeu_si512(dst + (4 + j) * dst_ld, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        _mm512_storeu_si512(dst + (8 + j) * dst_ld, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        _mm512_storeu_si512(dst + (12 + j) * dst_ld, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

}  // namespace
