// Depthwise convolution over one row of pixels, written once over a Dot and compiled per ISA: sixteen channels at a time,
// four taps of a kernel column gathered into groups of four bytes, so that the GEMM's dot product does the work.
//
// Gather::interleave(p0, p1, p2, p3) returns the 64 bytes { p0[c], p1[c], p2[c], p3[c] : c in 0..15 };
// Gather::part(bytes, v) is accumulator vector v of them.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::DepthwiseRow;
using fastcompress::kPanel;

// Pixels x .. x+P-1 of sixteen channels. Every gathered column serves all pixels that it is a tap of: with stride S,
// P pixels have (P - 1) * S + KW columns instead of P * KW.
template <class Dot, class Gather, int KW, int QUADS, int S, int P>
inline void depthwise_pixels(const DepthwiseRow& d, const uint8_t* a, const int8_t* w, int32_t* acc_out) {
    constexpr int per_panel = kPanel / Dot::lanes;
    typename Dot::Acc acc[P][per_panel];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < per_panel; ++v) acc[p][v] = Dot::zero();
#pragma GCC unroll 16
    for (int column = 0; column < (P - 1) * S + KW; ++column) {
        const uint8_t* base = a + column * d.column_step;
#pragma GCC unroll 2
        for (int q = 0; q < QUADS; ++q) {
            const int64_t* t = d.tap_offset + 4 * q;
            const auto bytes = Gather::interleave(base + t[0], base + t[1], base + t[2], base + t[3]);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                const int j = column - p * S;
                if (j < 0 || j >= KW) continue;
#pragma GCC unroll 8
                for (int v = 0; v < per_panel; ++v)
                    acc[p][v] = Dot::dot(acc[p][v], Gather::part(bytes, v),
                                         Dot::load_b(w + (j * QUADS + q) * 64 + v * 4 * Dot::lanes));
            }
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < per_panel; ++v) Dot::store(acc_out + p * d.acc_ld + v * Dot::lanes, acc[p][v]);
}

// From pixel x on, P at a time, then half as many.
template <class Dot, class Gather, int KW, int QUADS, int S, int P>
inline void depthwise_run(const DepthwiseRow& d, int64_t x, const uint8_t* a, const int8_t* w, int32_t* acc) {
    for (; x + P <= d.pixels; x += P)
        depthwise_pixels<Dot, Gather, KW, QUADS, S, P>(d, a + x * d.pixel_step, w, acc + x * d.acc_ld);
    if constexpr (P > 1) depthwise_run<Dot, Gather, KW, QUADS, S, P / 2>(d, x, a, w, acc);
}

template <class Dot, class Gather, int KW, int QUADS, int S>
void depthwise_square(const DepthwiseRow& d) {
    constexpr int most = KW == 3 && S == 1 && Dot::lanes == kPanel ? 8 : 4;  // accumulators that fit the registers
    for (int64_t c = 0; c < d.channels; c += kPanel)
        depthwise_run<Dot, Gather, KW, QUADS, S, most>(d, 0, d.a + c, d.w + c / kPanel * (KW * QUADS * 64), d.acc + c);
}

// Any kernel size, stride and dilation.
template <class Dot, class Gather>
void depthwise_any(const DepthwiseRow& d) {
    constexpr int per_panel = kPanel / Dot::lanes;
    const int64_t quads = d.kernel_w * d.column_quads;
    for (int64_t c = 0; c < d.channels; c += kPanel) {
        const int8_t* w = d.w + c / kPanel * (quads * 64);
        const uint8_t* a = d.a + c;
        for (int64_t x = 0; x < d.pixels; ++x, a += d.pixel_step) {
            typename Dot::Acc acc[per_panel];
#pragma GCC unroll 16
            for (int v = 0; v < per_panel; ++v) acc[v] = Dot::zero();
            for (int64_t q = 0; q < quads; ++q) {
                const int64_t* t = d.tap_offset + 4 * q;
                const auto bytes = Gather::interleave(a + t[0], a + t[1], a + t[2], a + t[3]);
#pragma GCC unroll 16
                for (int v = 0; v < per_panel; ++v)
                    acc[v] = Dot::dot(acc[v], Gather::part(bytes, v), Dot::load_b(w + q * 64 + v * 4 * Dot::lanes));
            }
#pragma GCC unroll 16
            for (int v = 0; v < per_panel; ++v) Dot::store(d.acc + x * d.acc_ld + c + v * Dot::lanes, acc[v]);
        }
    }
}

template <class Dot, class Gather>
void depthwise(const DepthwiseRow& d) {
    const bool s1 = d.pixel_step == d.column_step, s2 = d.pixel_step == 2 * d.column_step;
    if (d.kernel_w == 3 && d.column_quads == 1 && s1) return depthwise_square<Dot, Gather, 3, 1, 1>(d);
    if (d.kernel_w == 3 && d.column_quads == 1 && s2) return depthwise_square<Dot, Gather, 3, 1, 2>(d);
    if (d.kernel_w == 5 && d.column_quads == 2 && s1) return depthwise_square<Dot, Gather, 5, 2, 1>(d);
    if (d.kernel_w == 5 && d.column_quads == 2 && s2) return depthwise_square<Dot, Gather, 5, 2, 2>(d);
    depthwise_any<Dot, Gather>(d);
}

}  // namespace
