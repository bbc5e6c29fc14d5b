// Depthwise convolution over one row of pixels, written once over a Dot and compiled per ISA: sixteen channels at a time,
// four taps gathered into groups of four bytes, so that the GEMM's dot product does the work (as FBGEMM packs its taps).
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::DepthwiseRow;

// Gather::interleave(p0, p1, p2, p3, v): accumulator vector v of the 64 bytes { p0[c], p1[c], p2[c], p3[c] : c in 0..15 }.
template <class Dot, class Gather>
void depthwise(const DepthwiseRow& d) {
    constexpr int per_panel = fastcompress::kPanel / Dot::lanes;
    const int64_t panel_stride = d.tap_quads * 64;
    for (int64_t c = 0; c < d.channels; c += fastcompress::kPanel) {
        const int8_t* w = d.w + c / fastcompress::kPanel * panel_stride;
        const uint8_t* a = d.a + c;
        for (int64_t x = 0; x < d.pixels; ++x, a += d.pixel_step) {
            typename Dot::Acc acc[per_panel];
#pragma GCC unroll 16
            for (int v = 0; v < per_panel; ++v) acc[v] = Dot::zero();
            for (int64_t q = 0; q < d.tap_quads; ++q) {
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

}  // namespace
