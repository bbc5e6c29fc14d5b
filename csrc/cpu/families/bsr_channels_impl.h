// Sparse products with channels in lanes, for blocks of 16 channels; written once over a Dot and compiled per ISA.
//
//     acc[token] += broadcast(token's inputs) . block           1 + T loads for T products
//
// The outer product of a block with the inputs of some tokens goes into accumulators that stay in registers for a whole panel, so
// the cost of a panel is that of its blocks: no masks, no gathers, no decoding. Broadcasts from memory alone would bound it (17 loads
// for 16 products: 11 cycles on Zen 5, where the products take 8), so half of the tokens come by fours. (A product with a broadcast
// memory operand would save an instruction and runs at half speed there. Tokens in lanes, eight channels at a time, reach the same rate
// and pay with a transposition.)
#pragma once

#include "bsr_blocks.h"

namespace {

constexpr int64_t kAheadBytes = 4096;  // a few rows are bound by memory: blocks are fetched so far ahead

constexpr int64_t kBlockBytes = 4 * kPanel;

// The blocks of one panel.
struct PanelBlocks {
    const uint16_t* column;
    const int8_t* w;
    int64_t count;

    PanelBlocks(const SparseProduct& s, int64_t panel)
        : column(static_cast<const uint16_t*>(s.index) + s.pointer[panel]),
          w(reinterpret_cast<const int8_t*>(s.w) + s.pointer[panel] * kBlockBytes),
          count(s.pointer[panel + 1] - s.pointer[panel]) {}
};

// The inputs of T tokens, token_step bytes apart.
template <class Dot, int T, class Places>
__attribute__((noinline)) void bsr_channels(const PanelBlocks& blocks, const uint8_t* a, int64_t token_step,
                                            int64_t part_step, Places places, int32_t* c) {
    constexpr int per_panel = kPanel / Dot::lanes, parts = Dot::parts;
    // In a tile, half of the tokens are loaded by fours and broadcast by shuffles, which have ports of their own.
    constexpr int single = Dot::has_four && T == 16 ? T / 2 : T;
    // A few tokens alone cannot cover the latency of a product: further chains take every other block.
    constexpr int chains = T * per_panel >= 8 ? 1 : T * per_panel >= 4 ? 2 : 4;
    typename Dot::Acc acc[chains][T][per_panel];
#pragma GCC unroll 16
    for (int u = 0; u < chains; ++u)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (int v = 0; v < per_panel; ++v) acc[u][t][v] = Dot::zero();
    const uint8_t* token[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) token[t] = a + t * token_step;
    const uint16_t* column = blocks.column;
    const int8_t* w = blocks.w;
    int64_t i = 0;
    for (; i + chains <= blocks.count; i += chains) {
#pragma GCC unroll 16
        for (int u = 0; u < chains; ++u, w += kBlockBytes) {
            const int64_t offset = places(*column++);
            if constexpr (T <= 4) __builtin_prefetch(w + kAheadBytes, 0, 2);
#pragma GCC unroll 2
            for (int part = 0; part < parts; ++part) {
                typename Dot::B b[per_panel];
#pragma GCC unroll 16
                for (int v = 0; v < per_panel; ++v) b[v] = load_block<Dot>(w + v * 4 * Dot::lanes, part);
#pragma GCC unroll 16
                for (int t = 0; t < single; ++t) {
                    const typename Dot::A x = Dot::broadcast(token[t] + offset + part * part_step);
#pragma GCC unroll 16
                    for (int v = 0; v < per_panel; ++v) acc[u][t][v] = Dot::dot(acc[u][t][v], x, b[v]);
                }
                if constexpr (single < T) {
#pragma GCC unroll 16
                    for (int t = single; t < T; t += 4) {
                        const typename Dot::Four four = Dot::load_four(token[t] + offset + part * part_step);
                        acc[u][t][0] = Dot::dot(acc[u][t][0], Dot::template one_of<0>(four), b[0]);
                        acc[u][t + 1][0] = Dot::dot(acc[u][t + 1][0], Dot::template one_of<1>(four), b[0]);
                        acc[u][t + 2][0] = Dot::dot(acc[u][t + 2][0], Dot::template one_of<2>(four), b[0]);
                        acc[u][t + 3][0] = Dot::dot(acc[u][t + 3][0], Dot::template one_of<3>(four), b[0]);
                    }
                }
            }
        }
#pragma GCC unroll 16
        for (int u = 0; u < chains; ++u)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
                for (int v = 0; v < per_panel; ++v) Dot::pin(acc[u][t][v]);
    }
    if constexpr (chains > 1) {
        for (; i < blocks.count; ++i, w += kBlockBytes) {
            const int64_t offset = places(*column++);
#pragma GCC unroll 2
            for (int part = 0; part < parts; ++part)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
                    for (int v = 0; v < per_panel; ++v) {
                        acc[0][t][v] = Dot::dot(acc[0][t][v], Dot::broadcast(token[t] + offset + part * part_step),
                                                load_block<Dot>(w + v * 4 * Dot::lanes, part));
                        Dot::pin(acc[0][t][v]);
                    }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
        for (int v = 0; v < per_panel; ++v) {
            typename Dot::Acc sum = acc[0][t][v];
#pragma GCC unroll 16
            for (int u = 1; u < chains; ++u) sum = Dot::add(sum, acc[u][t][v]);
            Dot::store(c + t * kTileLd + v * Dot::lanes, sum);
        }
}

// Up to four rows as they lie.
template <class Dot, int T>
inline void bsr_few(const SparseProduct& s) {
    bsr_panels(s, [&](int64_t p, int32_t* c) {
        bsr_channels<Dot, T>(PanelBlocks(s, p), s.a, s.row_stride, s.part_step, EvenPlaces{s.column_step}, c);
    });
}

template <class Dot>
void bsr_few_rows(const SparseProduct& s) {
    if (s.rows == 1) return bsr_few<Dot, 1>(s);
    if (s.rows == 2) return bsr_few<Dot, 2>(s);
    if (s.rows == 3) return bsr_few<Dot, 3>(s);
    bsr_few<Dot, 4>(s);
}

// A tile, T tokens at a time; T divides 16.
template <class Dot, int T>
void bsr_tile_channels(const SparseProduct& s) {
    constexpr int64_t kTokenBytes = 4;
    with_places(s, [&](auto places) {
        bsr_panels(s, [&](int64_t p, int32_t* c) {
            for (int64_t t = 0; t < s.width; t += T)
                bsr_channels<Dot, T>(PanelBlocks(s, p), s.a + kTokenBytes * t, kTokenBytes, s.part_step, places,
                                     c + t * kTileLd);
        });
    });
}

}  // namespace
