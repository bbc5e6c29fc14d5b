// u8 x s8 -> s32 GEMM over n16k4 panels (kernels.h), written once over a Dot and compiled per ISA.
//
// A Dot says how four-byte groups are multiplied:
//   Dot::lanes               int32 lanes of one accumulator; a 16-channel panel is 16 / lanes of them
//   Dot::B, Dot::load_b      one accumulator's worth of weights (4 * lanes bytes), prepared once, used for every row
//   Dot::A, Dot::broadcast   four activations of one row, prepared once, used for every weight vector
//   Dot::dot(acc, a, b)      acc[l] += sum_i a[i] * b[l][i], exact
//
// The tile keeps MR rows x NV vectors of accumulators in registers for a span of K; spans are sized for L1. The small loops are unrolled by
// pragma: without it g++ moves the accumulators through memory.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::GemmBlock;
using fastcompress::kPanel;

// A part of the reduction: quads [q0, q1) of each of the segments [s0, s1).
struct Span {
    int64_t s0, s1, q0, q1;
    bool first;  // overwrite C; later spans add to it
};

// Weights of 64 channels x 128 quads are 32 KiB: a span's share of B stays in L1 while the rows pass by.
constexpr int64_t kSpanQuads = 128;

template <class Dot, int MR, int NV>
inline void gemm_tile(const GemmBlock& g, const Span& span, const uint8_t* const* rows, const int8_t* b, int32_t* c) {
    constexpr int per_panel = kPanel / Dot::lanes;
    typename Dot::Acc acc[MR][NV];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[m][v] = span.first ? Dot::zero() : Dot::load(c + m * g.ldc + v * Dot::lanes);

    const int64_t panel_stride = g.panel_stride;
    b += (span.s0 * g.segment_quads + span.q0) * 64;
    for (int64_t s = span.s0; s < span.s1; ++s) {
        const int64_t offset = (g.segment_offset ? g.segment_offset[s] : 0) + 4 * span.q0;
        const uint8_t* a[MR];
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) a[m] = rows[m] + offset;
        for (int64_t k = 0; k < span.q1 - span.q0; ++k, b += 64) {
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
        for (int v = 0; v < NV; ++v) Dot::store(c + m * g.ldc + v * Dot::lanes, acc[m][v]);
}

// Rows left over after the last full tile: one instantiation for each count.
template <class Dot, int MR, int NV>
inline void gemm_tail(const GemmBlock& g, const Span& span, int64_t count, const uint8_t* const* rows, const int8_t* b,
                      int32_t* c) {
    if constexpr (MR > 0) {
        if (count == MR) return gemm_tile<Dot, MR, NV>(g, span, rows, b, c);
        gemm_tail<Dot, MR - 1, NV>(g, span, count, rows, b, c);
    }
}

// All rows of NV vectors, one span of the reduction.
template <class Dot, int MR, int NV>
inline void gemm_span(const GemmBlock& g, const Span& span, const int8_t* b, int32_t* c) {
    for (int64_t m = 0; m < g.rows; m += MR) {
        const int64_t count = g.rows - m < MR ? g.rows - m : MR;
        const uint8_t* rows[MR];
        for (int64_t i = 0; i < count; ++i) rows[i] = g.a + (g.row_offset ? g.row_offset[m + i] : (m + i) * g.a_stride);
        if (count == MR) {
            gemm_tile<Dot, MR, NV>(g, span, rows, b, c + m * g.ldc);
        } else {
            gemm_tail<Dot, MR - 1, NV>(g, span, count, rows, b, c + m * g.ldc);
        }
    }
}

// All rows of NV vectors: whole segments together while they are short, long segments in parts. A single tile of rows
// gains nothing from the cut.
template <class Dot, int MR, int NV>
inline void gemm_columns(const GemmBlock& g, const int8_t* b, int32_t* c) {
    const int64_t quads = g.segment_quads;
    if (g.rows <= MR || quads * g.segments <= kSpanQuads)
        return gemm_span<Dot, MR, NV>(g, {0, g.segments, 0, quads, true}, b, c);
    if (quads <= kSpanQuads) {
        const int64_t step = kSpanQuads / quads;
        for (int64_t s = 0; s < g.segments; s += step)
            gemm_span<Dot, MR, NV>(g, {s, s + step < g.segments ? s + step : g.segments, 0, quads, s == 0}, b, c);
        return;
    }
    for (int64_t s = 0; s < g.segments; ++s)
        for (int64_t q = 0; q < quads; q += kSpanQuads)
            gemm_span<Dot, MR, NV>(g, {s, s + 1, q, q + kSpanQuads < quads ? q + kSpanQuads : quads, s + q == 0}, b, c);
}

// Panels in groups of NP, then one at a time.
template <class Dot, int MR, int NP>
void gemm(const GemmBlock& g) {
    constexpr int per_panel = kPanel / Dot::lanes;
    int64_t p = 0;
    for (; p + NP <= g.panels; p += NP)
        gemm_columns<Dot, MR, NP * per_panel>(g, g.b + p * g.panel_stride, g.c + p * kPanel);
    if constexpr (NP > 1) {
        for (; p < g.panels; ++p)
            gemm_columns<Dot, MR*(NP > 2 ? 2 : 1), per_panel>(g, g.b + p * g.panel_stride, g.c + p * kPanel);
    }
}

}  // namespace
