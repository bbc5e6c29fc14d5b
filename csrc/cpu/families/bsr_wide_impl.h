// Block-sparse products with tokens in lanes (bsr_impl.h), for 512-bit registers: tiles of 32 tokens, eight channels at a time.
#pragma once

#include "../simd/transpose_avx512.h"
#include "bsr_impl.h"

namespace {

constexpr int64_t kWideTokens = 32;

// Channels [first, first + 8) of a panel: c[channel][token].
template <class Dot>
__attribute__((noinline)) void bsr_wide_half(const PanelBlocks& blocks, const uint8_t* a, int first, int32_t* c) {
    constexpr int channels = 8, vectors = 2;
    typename Dot::Acc acc[channels][vectors];
#pragma GCC unroll 16
    for (int n = 0; n < channels; ++n)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) acc[n][v] = Dot::zero();
    const int8_t* w = blocks.w + 4 * first;
    for (int64_t i = 0; i < blocks.count; ++i, w += kBlockBytes) {
        const uint8_t* x = a + (static_cast<int64_t>(blocks.quad[i]) << 7);  // 32 tokens x 4 bytes
        typename Dot::A tokens[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) tokens[v] = Dot::load_a(x + 64 * v);
#pragma GCC unroll 16
        for (int n = 0; n < channels; ++n) {
            const typename Dot::B b = Dot::broadcast_b(w + 4 * n);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) acc[n][v] = Dot::dot(acc[n][v], tokens[v], b);
        }
#pragma GCC unroll 16
        for (int n = 0; n < channels; ++n)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; ++v) Dot::pin(acc[n][v]);
    }
#pragma GCC unroll 16
    for (int n = 0; n < channels; ++n)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) Dot::store(c + n * kWideTokens + v * Dot::lanes, acc[n][v]);
}

template <class Dot>
void bsr_tile32(const SparseProduct& s) {
    alignas(64) int32_t by_channel[kPanel * kWideTokens];
    bsr_panels(s, [&](int64_t p, int32_t* c) {
        const PanelBlocks blocks(s, p);
        bsr_wide_half<Dot>(blocks, s.a, 0, by_channel);
        bsr_wide_half<Dot>(blocks, s.a, 8, by_channel + 8 * kWideTokens);
        transpose_16x16(by_channel, kWideTokens, c, kTileLd);
        if (s.rows > 16) transpose_16x16(by_channel + 16, kWideTokens, c + 16 * kTileLd, kTileLd);
    });
}

template <class Dot>
void bsr_tile(const SparseProduct& s) {
    if (s.width == kWideTokens) return bsr_tile32<Dot>(s);
    bsr_tile16<Dot, 16>(s);
}

// Sixteen rows and quads at a time; the ends word by word.
inline void interleave_wide(const uint8_t* from, int64_t stride, int64_t rows, int64_t width, int64_t quad0,
                            int64_t quad1, uint8_t* out) {
    constexpr int64_t kSide = 16;
    int64_t q = quad0;
    for (; q + kSide <= quad1; q += kSide)
        for (int64_t t = 0; t < width; t += kSide) {
            if (t + kSide <= rows) {
                transpose_16x16(reinterpret_cast<const int32_t*>(from + t * stride + 4 * q), stride / 4,
                                reinterpret_cast<int32_t*>(out + (q * width + t) * 4), width);
            } else {
                interleave_words(from, stride, rows, width, t, t + kSide, q, q + kSide, out);
            }
        }
    interleave_words(from, stride, rows, width, 0, width, q, quad1, out);
}

}  // namespace
