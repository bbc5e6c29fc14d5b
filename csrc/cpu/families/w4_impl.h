// Four-bit products of include/fastcompress/kernels.h, NibbleProduct, written over a class of weight operands.
//
// A tile is MR rows times NV vectors of channels. Its integer sums of one group stay in registers; at the end of a group they
// join the float sums, which lie in L1. Raw nibbles are the unsigned operand: splitting a byte costs two shifts' and masks' time
// on ports that products do not use.
#pragma once

#include "fastcompress/kernels.h"
#include "panel_lines.h"

namespace {

using fastcompress::DType;
using fastcompress::kPanel;
using fastcompress::NibbleProduct;

constexpr int64_t kNibbleFetch = 1024;  // bytes ahead of the reads
constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / Vec::width;
constexpr int kEnoughChains = 8;  // of dependent products: with fewer, low and high nibbles get sums of their own

inline Vec::F load_scale(const void* base, DType dtype, int64_t element) {
    if (dtype == DType::f32) return Vec::load(static_cast<const float*>(base) + element);
    const uint16_t* half = static_cast<const uint16_t*>(base) + element;
    return dtype == DType::bf16 ? Vec::load_bf16(half) : Vec::load_f16(half);
}

// The float sums of a tile at the end of group `g`.
template <class N, int MR, int NV>
__attribute__((always_inline)) inline void close_group(const NibbleProduct& p, int64_t panel, int64_t row, int64_t g,
                                                       const Vec::I (&sum)[MR][NV]) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
        const int64_t at = ((panel + v / kVectorsPerPanel) * p.groups + g) * kPanel + v % kVectorsPerPanel * Vec::width;
        const Vec::F scale = load_scale(p.scale, p.scale_dtype, at);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const int32_t inputs = p.sums[(row + m) * p.groups + g];
            float* c = p.c + (m * NV + v) * Vec::width;
            Vec::I exact = sum[m][v];
            if (p.zero_point) {
                exact = Vec::subi(exact, Vec::muli(N::load_bytes(p.zero_point + at), Vec::seti(inputs)));
            } else if (!p.minimum) {
                exact = Vec::subi(exact, Vec::seti(8 * inputs));
            }
            const Vec::F part = Vec::mul(Vec::to_float(exact), scale);
            Vec::F total = g == 0 ? Vec::add(Vec::set(0.0f), part) : Vec::add(Vec::load(c), part);
            if (p.minimum)
                total = Vec::add(total, Vec::mul(Vec::set(static_cast<float>(inputs)), Vec::load(p.minimum + at)));
            Vec::store(c, total);
        }
    }
}

// One tile: its sums to p.c, a row's vectors side by side.
template <class N, int MR, int NV>
void nibble_tile(const NibbleProduct& p, int64_t panel, int64_t row) {
    constexpr bool two = MR * NV < kEnoughChains;
    const PanelLines lines(p.w, p.panels, p.octets, panel);
    const int8_t* const a = p.a + row * p.a_stride;
    for (int64_t g = 0, octet = 0; g < p.groups; ++g) {
        const int64_t end = octet + p.group_octets < p.octets ? octet + p.group_octets : p.octets;
        Vec::I sum[MR][NV], other[MR][NV];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sum[m][v] = other[m][v] = Vec::seti(0);
        for (; octet < end; ++octet) {
            const uint8_t* from[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                from[v] = lines.at(octet, v / kVectorsPerPanel) + v % kVectorsPerPanel * 4 * Vec::width;
                if (v % kVectorsPerPanel == 0) N::fetch(from[v] + kNibbleFetch);
            }
            // All weights, then one row's inputs at a time: with sums and weights in registers there is room for no more.
            typename N::Weights weights[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) weights[v] = N::low(from[v]);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
                const typename N::Inputs inputs = N::broadcast(a + m * p.a_stride + 8 * octet);
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) sum[m][v] = N::dot(sum[m][v], weights[v], inputs);
            }
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) weights[v] = N::high(from[v]);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
                const typename N::Inputs inputs = N::broadcast(a + m * p.a_stride + 8 * octet + 4);
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) {
                    if constexpr (two)
                        other[m][v] = N::dot(other[m][v], weights[v], inputs);
                    else
                        sum[m][v] = N::dot(sum[m][v], weights[v], inputs);
                }
            }
        }
        if constexpr (two) {
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) sum[m][v] = Vec::addi(sum[m][v], other[m][v]);
        }
        close_group<N, MR, NV>(p, panel, row, g, sum);
    }
}

template <class N, int MR, int NP>
void nibble_rows(const NibbleProduct& p, int64_t panel, int64_t row) {
    constexpr int NV = NP * kVectorsPerPanel;
    nibble_tile<N, MR, NV>(p, panel, row);
    for (int m = 0; m < MR; ++m) {
        const Vec::F scale = Vec::set(p.row_scale[row + m]);
        for (int v = 0; v < NV; ++v) {
            float* c = p.c + (m * NV + v) * Vec::width;
            Vec::store(c, Vec::mul(Vec::load(c), scale));
        }
    }
    const int64_t first = panel * kPanel, left = p.channels - first;
    p.finish(*p.epilogue, reinterpret_cast<const int32_t*>(p.c), NP * kPanel, p.row0 + row, MR, first,
             left < NP * kPanel ? left : NP * kPanel);
}

// Rows that are left over take the largest tiles that fit.
template <class N, int MR, int NP>
void nibble_panels(const NibbleProduct& p, int64_t panel) {
    int64_t row = 0;
    for (; row + MR <= p.rows; row += MR) nibble_rows<N, MR, NP>(p, panel, row);
    if constexpr (MR > 4)
        for (; row + 4 <= p.rows; row += 4) nibble_rows<N, 4, NP>(p, panel, row);
    if constexpr (MR > 2)
        for (; row + 2 <= p.rows; row += 2) nibble_rows<N, 2, NP>(p, panel, row);
    if constexpr (MR > 1)
        for (; row < p.rows; ++row) nibble_rows<N, 1, NP>(p, panel, row);
}

template <class N, int MR, int NP>
void nibble_product(const NibbleProduct& p) {
    int64_t panel = p.panel0;
    for (; panel + NP <= p.panel1; panel += NP) nibble_panels<N, MR, NP>(p, panel);
    for (; panel < p.panel1; ++panel) nibble_panels<N, MR, 1>(p, panel);
}

}  // namespace
