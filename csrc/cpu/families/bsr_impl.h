// u8 x block-sparse s8 -> s32 with 16x4 blocks (kernels.h, SparseProduct), written once over a Dot and compiled per ISA.
//
// A block is 16 channels x 4 inputs, 64 bytes. Its outer product with the four inputs of some tokens goes into accumulators that
// stay in registers for a whole panel, so the cost of a panel is that of its blocks: no masks, no gathers, no decoding.
//
//     channels in lanes   acc[token]      += broadcast(token's 4 inputs) . block           1 + T loads for T products
//     tokens in lanes     acc[channel][v] += 16 tokens' inputs . broadcast(channel's 4)    8 + 2 loads for 16 products
//
// Two loads a cycle bound the first form (0.80 of the ceiling at 16 tokens on Zen 5); the second one reuses each
// broadcast for 32 tokens (0.95) and pays with a transposition at the end of a panel. (A product with a broadcast memory
// operand would save an instruction and runs at half speed there.)
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::kPanel;
using fastcompress::SparseProduct;

constexpr int64_t kBlockBytes = 64;
constexpr int64_t kAheadBytes = 4096;  // a few rows are bound by memory: blocks are fetched so far ahead

// Panels are finished four at a time: a row of the output then gets a run of 256 bytes instead of one line, of which 32
// rows would fall into one set of the cache.
constexpr int64_t kPanelsTogether = 4, kTileLd = kPanelsTogether * kPanel;

// Calls multiply(panel, c) for the panels of `s`, c[token * kTileLd + channel], and the epilogue for each group.
template <class Multiply>
inline void bsr_panels(const SparseProduct& s, const Multiply& multiply) {
    for (int64_t p = s.panel0; p < s.panel1; p += kPanelsTogether) {
        const int64_t count = s.panel1 - p < kPanelsTogether ? s.panel1 - p : kPanelsTogether;
        for (int64_t i = 0; i < count; ++i) multiply(p + i, s.c + i * kPanel);
        s.finish(*s.epilogue, s.c, kTileLd, s.row0, s.rows, p * kPanel, count * kPanel);
    }
}

struct PanelBlocks {
    const uint16_t* quad;
    const int8_t* w;
    int64_t count;

    PanelBlocks(const SparseProduct& s, int64_t panel)
        : quad(s.quad + s.pointer[panel]),
          w(s.w + s.pointer[panel] * kBlockBytes),
          count(s.pointer[panel + 1] - s.pointer[panel]) {}
};

// Rows as they lie: quad q of token t.
struct PlainRows {
    const uint8_t* a;
    int64_t stride;
    const uint8_t* token(int t) const { return a + t * stride; }
    static int64_t offset(uint16_t quad) { return static_cast<int64_t>(quad) << 2; }
};

// A tile of 16 tokens: one pointer serves them all.
struct Tile16 {
    const uint8_t* a;
    const uint8_t* token(int t) const { return a + 4 * t; }
    static int64_t offset(uint16_t quad) { return static_cast<int64_t>(quad) << 6; }
};

// Channels in lanes: T tokens.
template <class Dot, int T, class Tokens>
__attribute__((noinline)) void bsr_channels(const PanelBlocks& blocks, Tokens tokens, int32_t* c) {
    constexpr int per_panel = kPanel / Dot::lanes;
    // A few tokens alone cannot cover the latency of a product: further chains take every other block.
    constexpr int chains = T * per_panel >= 8 ? 1 : T * per_panel >= 4 ? 2 : 4;
    typename Dot::Acc acc[chains][T][per_panel];
#pragma GCC unroll 16
    for (int u = 0; u < chains; ++u)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (int v = 0; v < per_panel; ++v) acc[u][t][v] = Dot::zero();
    const uint8_t* a[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) a[t] = tokens.token(t);
    const uint16_t* quad = blocks.quad;
    const int8_t* w = blocks.w;
    int64_t i = 0;
    for (; i + chains <= blocks.count; i += chains) {
#pragma GCC unroll 16
        for (int u = 0; u < chains; ++u, w += kBlockBytes) {
            const int64_t offset = Tokens::offset(quad[i + u]);
            if constexpr (T <= 4) __builtin_prefetch(w + kAheadBytes, 0, 2);
            typename Dot::B b[per_panel];
#pragma GCC unroll 16
            for (int v = 0; v < per_panel; ++v) b[v] = Dot::load_b(w + v * 4 * Dot::lanes);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                const typename Dot::A x = Dot::broadcast(a[t] + offset);
#pragma GCC unroll 16
                for (int v = 0; v < per_panel; ++v) acc[u][t][v] = Dot::dot(acc[u][t][v], x, b[v]);
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
            const int64_t offset = Tokens::offset(quad[i]);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
                for (int v = 0; v < per_panel; ++v) {
                    acc[0][t][v] =
                        Dot::dot(acc[0][t][v], Dot::broadcast(a[t] + offset), Dot::load_b(w + v * 4 * Dot::lanes));
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
    const PlainRows rows{s.a, s.row_stride};
    bsr_panels(s, [&](int64_t p, int32_t* c) { bsr_channels<Dot, T>(PanelBlocks(s, p), rows, c); });
}

template <class Dot>
void bsr_rows(const SparseProduct& s) {
    if (s.rows == 1) return bsr_few<Dot, 1>(s);
    if (s.rows == 2) return bsr_few<Dot, 2>(s);
    if (s.rows == 3) return bsr_few<Dot, 3>(s);
    bsr_few<Dot, 4>(s);
}

// A tile of 16 interleaved tokens, T at a time.
template <class Dot, int T>
void bsr_tile16(const SparseProduct& s) {
    bsr_panels(s, [&](int64_t p, int32_t* c) {
        for (int64_t t = 0; t < s.rows; t += T)
            bsr_channels<Dot, T>(PanelBlocks(s, p), Tile16{s.a + 4 * t}, c + t * kTileLd);
    });
}

// Words of tokens [t0, t1) and quads [quad0, quad1) to their places in a tile; rows beyond `rows` are zeros.
inline void interleave_words(const uint8_t* from, int64_t stride, int64_t rows, int64_t width, int64_t t0, int64_t t1,
                             int64_t quad0, int64_t quad1, uint8_t* out) {
    for (int64_t q = quad0; q < quad1; ++q)
        for (int64_t t = t0; t < t1; ++t) {
            uint32_t word = 0;
            if (t < rows) __builtin_memcpy(&word, from + t * stride + 4 * q, 4);
            __builtin_memcpy(out + (q * width + t) * 4, &word, 4);
        }
}

inline void interleave_plain(const uint8_t* from, int64_t stride, int64_t rows, int64_t width, int64_t quad0,
                             int64_t quad1, uint8_t* out) {
    interleave_words(from, stride, rows, width, 0, width, quad0, quad1, out);
}

}  // namespace
