// Sparse products with tokens in lanes, for blocks of a few channels; written once over a Dot and compiled per ISA. Include a
// simd/transpose_*.h first.
//
//     acc[channel][v] += a vector of tokens' inputs . broadcast(channel's weights)           BH + V loads for BH * V products
//
// Each vector of inputs serves the channels of a block, each broadcast V vectors of tokens. The sums lie channel by channel, and
// are transposed at the end of a panel.
#pragma once

#include "bsr_blocks.h"

namespace {

// acc += a block's channels from `w` on times V vectors of tokens.
template <class Dot, int BH, int V>
__attribute__((always_inline)) inline void bsr_block_tokens(typename Dot::Acc (&acc)[BH][V], const uint8_t* x,
                                                            int64_t part_step, const int8_t* w) {
#pragma GCC unroll 2
    for (int part = 0; part < Dot::parts; ++part, x += part_step) {
        decltype(Dot::load_a(x)) tokens[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) tokens[v] = Dot::load_a(x + v * 4 * Dot::lanes);
#pragma GCC unroll 16
        for (int n = 0; n < BH; ++n) {
            const auto b = broadcast_weight<Dot>(w + 4 * n, part);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) acc[n][v] = Dot::dot(acc[n][v], tokens[v], b);
        }
    }
}

// Columns of the blocks of rows, one after the other (kernels.h, kFarBlock).
struct NumberedColumns {
    const uint16_t* at;
    NumberedColumns(const void* index, int64_t entry) : at(static_cast<const uint16_t*>(index) + entry) {}
    void begin_row() {}
    int64_t next() { return *at++; }
};
struct SteppedColumns {
    const uint8_t* at;
    int64_t column = 0;
    SteppedColumns(const void* index, int64_t entry) : at(static_cast<const uint8_t*>(index) + entry) {}
    void begin_row() { column = 0; }
    int64_t next() { return column += *at++; }
};

// The rows of blocks of one panel times V vectors of tokens: c[channel * ld + token]. All of them in one call: a call for each cost a
// third of the time of 1x4 blocks.
//
// Small blocks reuse a load of tokens little and are bound by L2, where the tile lies. Taking columns by slabs that fit L1 costs as much
// again in sums that are loaded and stored for each slab (docs/decisions.md).
template <class Dot, class Columns, int BH, int V, class Places>
__attribute__((noinline)) void bsr_tokens(const SparseProduct& s, int64_t panel, const uint8_t* a, Places places,
                                          int32_t* c, int64_t ld) {
    constexpr int64_t rows = kPanel / BH, block_bytes = 4 * BH;
    const int64_t part_step = s.part_step;
    const int32_t* pointer = s.pointer + panel * rows;
    Columns columns(s.index, pointer[0]);
    const int8_t* w = reinterpret_cast<const int8_t*>(s.w) + pointer[0] * block_bytes;
    for (int64_t r = 0; r < rows; ++r, c += BH * ld) {
        typename Dot::Acc acc[BH][V];
#pragma GCC unroll 16
        for (int n = 0; n < BH; ++n)
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) acc[n][v] = Dot::zero();
        columns.begin_row();
        for (int64_t i = pointer[r + 1] - pointer[r]; i > 0; --i, w += block_bytes) {
            bsr_block_tokens<Dot, BH, V>(acc, a + places(columns.next()), part_step, w);
#pragma GCC unroll 16
            for (int n = 0; n < BH; ++n)
#pragma GCC unroll 16
                for (int v = 0; v < V; ++v) Dot::pin(acc[n][v]);
        }
#pragma GCC unroll 16
        for (int n = 0; n < BH; ++n)
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) Dot::store(c + n * ld + v * Dot::lanes, acc[n][v]);
    }
}

// Tokens [token, s.width) of one panel, in chunks of V vectors, then of half as many.
template <class Dot, class Columns, int BH, int V, class Places>
inline void bsr_panel_tokens(const SparseProduct& s, int64_t panel, int64_t token, Places places, int32_t* c) {
    constexpr int64_t chunk = V * Dot::lanes;
    for (; token + chunk <= s.width; token += chunk)
        bsr_tokens<Dot, Columns, BH, V>(s, panel, s.a + 4 * token, places, c + token, s.width);
    if constexpr (chunk > 16)
        if (token < s.width) bsr_panel_tokens<Dot, Columns, BH, V / 2>(s, panel, token, places, c);
}

template <class Dot, class Columns, int BH, int V>
void bsr_tile_tokens(const SparseProduct& s) {
    int32_t* by_channel = s.c + kByChannel;
    with_places(s, [&](auto places) {
        bsr_panels(s, [&](int64_t p, int32_t* c) {
            bsr_panel_tokens<Dot, Columns, BH, V>(s, p, 0, places, by_channel);
            for (int64_t t = 0; t < s.width; t += 16)
                transpose_16x16(by_channel + t, s.width, c + t * kTileLd, kTileLd);
        });
    });
}

// Sixteen rows and words at a time; transpose_part takes the ends.
inline void bsr_interleave(const uint8_t* from, int64_t stride, int64_t rows, int64_t words, int64_t width,
                           uint8_t* out) {
    constexpr int64_t kSide = 16;
    for (int64_t w = 0; w < words; w += kSide)
        for (int64_t t = 0; t < rows; t += kSide) {
            const int32_t* src = reinterpret_cast<const int32_t*>(from + t * stride) + w;
            int32_t* dst = reinterpret_cast<int32_t*>(out) + w * width + t;
            const int64_t rows_left = rows - t, words_left = words - w;
            if (rows_left >= kSide && words_left >= kSide) {
                transpose_16x16(src, stride / 4, dst, width);
            } else {
                transpose_part(src, stride / 4, rows_left < kSide ? rows_left : kSide,
                               words_left < kSide ? words_left : kSide, dst, width);
            }
        }
}

}  // namespace
