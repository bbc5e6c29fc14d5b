// u8 x s8 -> s32 GEMM over n16k4 panels (kernels.h), written once over a Dot and compiled per ISA.
//
// A Dot says how four-byte groups are multiplied:
//   Dot::lanes               int32 lanes of one accumulator; a 16-channel panel is 16 / lanes of them
//   Dot::B, Dot::load_b      one accumulator's worth of weights (4 * lanes bytes), prepared once, used for every row
//   Dot::A, Dot::broadcast   four activations of one row, prepared once, used for every weight vector
//   Dot::dot(acc, a, b)      acc[l] += sum_i a[i] * b[l][i], exact
//
// A tile keeps MR rows x NV vectors of accumulators in registers for the whole reduction; weights stream from L2, which gives
// twice the bytes that a tile needs. The small loops are unrolled by pragma: without it g++ moves the accumulators through
// memory.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::GemmBlock;
using fastcompress::kPanel;

// A few rows are bound by reading the weights: each panel is fetched so many bytes ahead, and near its end the next one.
constexpr int64_t kAhead = 1024, kFewRows = 4;

// Weights that are needed next, fetched into L2 a little with every step of the reduction: from memory or L3 they would
// come too late for the first rows that need them (128 x 768 x 768 with weights in memory: 92 -> 80 us; prefetches in
// bursts, between tiles, cost more than they save).
struct Fetch {
    const char* from;
    int64_t per_tile, per_step;

    Fetch(const int8_t* weights, int64_t bytes, int64_t tiles, int64_t steps)
        : from(reinterpret_cast<const char*>(weights)),
          per_tile(bytes / tiles),
          per_step(steps > 0 ? per_tile / steps : 0) {}
    void step() {
        __builtin_prefetch(from, 0, 2);
        from += per_step;
    }
};

template <class Dot, int MR, int NV>
inline void gemm_tile(const GemmBlock& g, const uint8_t* const* rows, const int8_t* b, Fetch next, int32_t* c) {
    constexpr int per_panel = kPanel / Dot::lanes;
    typename Dot::Acc acc[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[m][v] = Dot::zero();

    const int64_t panel_stride = g.panel_stride, quads = g.segment_quads, panel_bytes = quads * g.segments * 64;
    [[maybe_unused]] const int8_t* near_end = b + panel_bytes - kAhead;
    [[maybe_unused]] const int64_t to_next_panels = NV / per_panel * panel_stride - panel_bytes;
    for (int64_t s = 0; s < g.segments; ++s) {
        const int64_t offset = g.segment_offset ? g.segment_offset[s] : 0;
        const uint8_t* a[MR];
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) a[m] = rows[m] + offset;
        for (int64_t k = 0; k < quads; ++k, b += 64) {
            if constexpr (MR <= kFewRows) {
                const int8_t* ahead = b + kAhead + (b < near_end ? 0 : to_next_panels);
#pragma GCC unroll 16
                for (int v = 0; v < NV; v += per_panel) __builtin_prefetch(ahead + v / per_panel * panel_stride, 0, 2);
            } else {
                next.step();
            }
            typename Dot::B w[NV];
#pragma GCC unroll 16
            for (int v = 0; v < NV; ++v)
                w[v] = Dot::load_b(b + (v / per_panel) * panel_stride + (v % per_panel) * (4 * Dot::lanes));
#pragma GCC unroll 16
            for (int m = 0; m < MR; ++m) {
                const typename Dot::A x = Dot::broadcast(a[m] + 4 * k);
#pragma GCC unroll 16
                for (int v = 0; v < NV; ++v) acc[m][v] = Dot::dot(acc[m][v], x, w[v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) Dot::store(c + (m * NV + v) * Dot::lanes, acc[m][v]);
}

// A tile of `count` <= MR rows: one instantiation for each count.
template <class Dot, int MR, int NV>
inline void gemm_rows(const GemmBlock& g, int64_t count, const uint8_t* const* rows, const int8_t* b, Fetch next,
                      int32_t* c) {
    if constexpr (MR > 0) {
        if (count == MR) return gemm_tile<Dot, MR, NV>(g, rows, b, next, c);
        return gemm_rows<Dot, MR - 1, NV>(g, count, rows, b, next, c);
    }
}

// With a short reduction the epilogue's constants are loaded for several tiles at a time.
constexpr int64_t kShortQuads = 96, kTilesTogether = 4;

// All rows of the NV vectors from panel p on, in tiles of nearly equal height: a last tile of one or two rows would be
// bound by its loads.
template <class Dot, int MR, int NV>
inline void gemm_columns(const GemmBlock& g, int64_t p) {
    constexpr int64_t width = NV * Dot::lanes;
    const int8_t* b = g.b + p * g.panel_stride;
    const int64_t columns = g.columns - p * kPanel < width ? g.columns - p * kPanel : width;
    const int64_t quads = g.segment_quads * g.segments;
    const int32_t tiles = static_cast<int32_t>((g.rows + MR - 1) / MR);
    const int32_t height = static_cast<int32_t>(g.rows) / tiles, taller = static_cast<int32_t>(g.rows) % tiles;
    const int64_t together = quads <= kShortQuads ? kTilesTogether : 1;
    const int64_t panel_bytes = width / kPanel * g.panel_stride;
    const int64_t next_bytes =
        columns < g.columns - p * kPanel || g.next_bytes > panel_bytes ? panel_bytes : g.next_bytes;
    Fetch next(b + panel_bytes, next_bytes, tiles, quads);
    int64_t m = 0, done = 0;
    for (int32_t t = 0; t < tiles; ++t) {
        const int64_t count = height + (t < taller);
        const uint8_t* rows[MR];
        for (int64_t i = 0; i < count; ++i) rows[i] = g.a + (g.row_offset ? g.row_offset[m + i] : (m + i) * g.a_stride);
        gemm_rows<Dot, MR, NV>(g, count, rows, b, next, g.c + (m - done) * width);
        next.from += next.per_tile;
        m += count;
        if ((t + 1) % together == 0 || t + 1 == tiles) {
            g.finish(*g.epilogue, g.c, width, g.row0 + done, m - done, g.col0 + p * kPanel, columns);
            done = m;
        }
    }
}

// Panels in groups of NP; those that are left together, in a tile with as many accumulators.
template <class Dot, int MR, int NP>
void gemm(const GemmBlock& g) {
    constexpr int per_panel = kPanel / Dot::lanes;
    const int64_t panels = (g.columns + kPanel - 1) / kPanel;
    int64_t p = 0;
    for (; p + NP <= panels; p += NP) gemm_columns<Dot, MR, NP * per_panel>(g, p);
    if constexpr (NP == 4) {
        const int64_t left = panels - p;
        if (left == 3) gemm_columns<Dot, MR * 4 / 3, 3 * per_panel>(g, p);
        if (left == 2) gemm_columns<Dot, MR * 2, 2 * per_panel>(g, p);
        if (left == 1) gemm_columns<Dot, MR * 2, per_panel>(g, p);
    } else {
        static_assert(NP == 1, "panels that are left over need tiles of their own");
    }
}

}  // namespace
