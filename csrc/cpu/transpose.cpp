#include "transpose.h"

#include <algorithm>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastcompress {
namespace {

template <class T>
void plain(const T* src, int64_t src_ld, int64_t rows, int64_t columns, T* dst, int64_t dst_ld) {
    constexpr int64_t kBlock = 16;
    for (int64_t i0 = 0; i0 < rows; i0 += kBlock)
        for (int64_t j = 0; j < columns; ++j)
            for (int64_t i = i0; i < std::min(rows, i0 + kBlock); ++i) dst[j * dst_ld + i] = src[i * src_ld + j];
}

#if defined(__SSE2__)
inline __m128i load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }

// 16 x 16 bytes: four rounds of interleaving register i with register i + 8 are a transposition.
void block_16x16(const uint8_t* src, int64_t src_ld, uint8_t* dst, int64_t dst_ld) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = load(src + i * src_ld);
    for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; ++i) a[i] = b[i];
    }
    for (int i = 0; i < 16; ++i) store(dst + i * dst_ld, a[i]);
}

void block_4x4(const uint32_t* src, int64_t src_ld, uint32_t* dst, int64_t dst_ld) {
    const __m128i r0 = load(src), r1 = load(src + src_ld), r2 = load(src + 2 * src_ld), r3 = load(src + 3 * src_ld);
    const __m128i l01 = _mm_unpacklo_epi32(r0, r1), h01 = _mm_unpackhi_epi32(r0, r1);
    const __m128i l23 = _mm_unpacklo_epi32(r2, r3), h23 = _mm_unpackhi_epi32(r2, r3);
    store(dst, _mm_unpacklo_epi64(l01, l23));
    store(dst + dst_ld, _mm_unpackhi_epi64(l01, l23));
    store(dst + 2 * dst_ld, _mm_unpacklo_epi64(h01, h23));
    store(dst + 3 * dst_ld, _mm_unpackhi_epi64(h01, h23));
}
#endif

// Full blocks through `block`, the rest element by element.
template <int64_t B, class T, class Block>
void blocked(const T* src, int64_t src_ld, int64_t rows, int64_t columns, T* dst, int64_t dst_ld, Block block) {
    const int64_t full_rows = rows / B * B, full_columns = columns / B * B;
    for (int64_t j = 0; j < full_columns; j += B)
        for (int64_t i = 0; i < full_rows; i += B) block(src + i * src_ld + j, src_ld, dst + j * dst_ld + i, dst_ld);
    plain(src + full_columns, src_ld, full_rows, columns - full_columns, dst + full_columns * dst_ld, dst_ld);
    plain(src + full_rows * src_ld, src_ld, rows - full_rows, columns, dst + full_rows, dst_ld);
}

}  // namespace

void transpose_1(const uint8_t* src, int64_t src_ld, int64_t rows, int64_t columns, uint8_t* dst, int64_t dst_ld) {
#if defined(__SSE2__)
    blocked<16>(src, src_ld, rows, columns, dst, dst_ld, block_16x16);
#else
    plain(src, src_ld, rows, columns, dst, dst_ld);
#endif
}

void interleave_4(const uint8_t* src, int64_t src_ld, int64_t columns, uint8_t* dst) {
    int64_t j = 0;
#if defined(__SSE2__)
    for (; j + 16 <= columns; j += 16) {
        const __m128i r0 = load(src + j), r1 = load(src + src_ld + j);
        const __m128i r2 = load(src + 2 * src_ld + j), r3 = load(src + 3 * src_ld + j);
        const __m128i l01 = _mm_unpacklo_epi8(r0, r1), h01 = _mm_unpackhi_epi8(r0, r1);
        const __m128i l23 = _mm_unpacklo_epi8(r2, r3), h23 = _mm_unpackhi_epi8(r2, r3);
        store(dst + 4 * j, _mm_unpacklo_epi16(l01, l23));
        store(dst + 4 * j + 16, _mm_unpackhi_epi16(l01, l23));
        store(dst + 4 * j + 32, _mm_unpacklo_epi16(h01, h23));
        store(dst + 4 * j + 48, _mm_unpackhi_epi16(h01, h23));
    }
#endif
    plain(src + j, src_ld, 4, columns - j, dst + 4 * j, 4);
}

void transpose_2(const uint16_t* src, int64_t src_ld, int64_t rows, int64_t columns, uint16_t* dst, int64_t dst_ld) {
    plain(src, src_ld, rows, columns, dst, dst_ld);
}

void transpose_4(const uint32_t* src, int64_t src_ld, int64_t rows, int64_t columns, uint32_t* dst, int64_t dst_ld) {
#if defined(__SSE2__)
    blocked<4>(src, src_ld, rows, columns, dst, dst_ld, block_4x4);
#else
    plain(src, src_ld, rows, columns, dst, dst_ld);
#endif
}

void transpose(int64_t element_bytes, const void* src, int64_t src_ld, int64_t rows, int64_t columns, void* dst,
               int64_t dst_ld) {
    if (element_bytes == 1) {
        transpose_1(static_cast<const uint8_t*>(src), src_ld, rows, columns, static_cast<uint8_t*>(dst), dst_ld);
    } else if (element_bytes == 2) {
        transpose_2(static_cast<const uint16_t*>(src), src_ld, rows, columns, static_cast<uint16_t*>(dst), dst_ld);
    } else {
        transpose_4(static_cast<const uint32_t*>(src), src_ld, rows, columns, static_cast<uint32_t*>(dst), dst_ld);
    }
}

}  // namespace fastcompress
