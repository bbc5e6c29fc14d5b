// 16 x 16 transposition of 32-bit elements in registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// Load(i) gives row i of the source, Store(j, x) takes row j of the result.
// They are inlined: stores could alias whatever a call would read their operands from.
template <class Load, class Store>
__attribute__((always_inline)) inline void transpose_registers(Load load, Store store) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = load(i);
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
        store(j, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        store(4 + j, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        store(8 + j, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        store(12 + j, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

// dst[j][i] = src[i][j]; leading dimensions in elements.
inline void transpose_16x16(const int32_t* src, int64_t src_ld, int32_t* dst, int64_t dst_ld) {
    transpose_registers([=](int i) { return _mm512_loadu_si512(src + i * src_ld); },
                        [=](int j, __m512i x) { _mm512_storeu_si512(dst + j * dst_ld, x); });
}

// The same of up to 16 rows and columns; nothing else is read or written.
inline void transpose_part(const int32_t* src, int64_t src_ld, int64_t rows, int64_t columns, int32_t* dst,
                           int64_t dst_ld) {
    const auto first = [](int64_t count) { return static_cast<__mmask16>((1u << count) - 1); };
    const __mmask16 in_row = first(columns), in_column = first(rows);
    transpose_registers(
        [=](int i) { return i < rows ? _mm512_maskz_loadu_epi32(in_row, src + i * src_ld) : _mm512_setzero_si512(); },
        [=](int j, __m512i x) {
            if (j < columns) _mm512_mask_storeu_epi32(dst + j * dst_ld, in_column, x);
        });
}

}  // namespace
