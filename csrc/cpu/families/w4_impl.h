// Four-bit products of include/fastcompress/kernels.h, NibbleProduct, written over a class of weight operands.
//
// A tile is MR rows times NV vectors of channels. Its integer sums of one group stay in registers; at the end of a group they
// join the float sums, which lie in L1. Raw nibbles are the unsigned operand: splitting a byte costs two shifts' and masks' time
// on ports that products do not use. Many rows share that: w4_block_impl.h.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::DType;
using fastcompress::kPanel;
using fastcompress::NibbleProduct;

constexpr int64_t kOctetBytes = 64;     // eight inputs of a panel
constexpr int64_t kNibbleFetch = 1024;  // bytes ahead of the reads
constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / Vec::width;
constexpr int kEnoughChains = 8;  // of dependent products: with fewer, low and high nibbles get sums of their own

inline Vec::F load_scale(const void* base, DType dtype, int64_t element) {
    if (dtype == DType::f32) return Vec::load(static_cast<const float*>(base) + element);
    const uint16_t* half = static_cast<const uint16_t*>(base) + element;
    return dtype == DType::bf16 ? Vec::load_bf16(half) : Vec::load_f16(half);
}

// What the sums of a group start from, in row `row`: zero points are taken off here where they are all the same.
inline Vec::I first_sum(const NibbleProduct& p, int64_t row, int64_t g) {
    return Vec::seti(p.zero_point || p.minimum ? 0 : -8 * p.sums[row * p.groups + g]);
}

// Adds the sums of group `g` to the float sums of a tile, at `sums`, a row's vectors side by side.
template <class N, int MR, int NV>
__attribute__((always_inline)) inline void close_group(const NibbleProduct& p, int64_t panel, int64_t row, int64_t g,
                                                       const Vec::I (&sum)[MR][NV], float* sums) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
        const int64_t at = ((panel + v / kVectorsPerPanel) * p.groups + g) * kPanel + v % kVectorsPerPanel * Vec::width;
        const Vec::F scale = load_scale(p.scale, p.scale_dtype, at);
        if (!p.zero_point && !p.minimum) {
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
                float* c = sums + (m * NV + v) * Vec::width;
                Vec::store(c, Vec::add(Vec::load(c), Vec::mul(Vec::to_float(sum[m][v]), scale)));
            }
            continue;
        }
        const Vec::I zero = p.zero_point ? N::load_bytes(p.zero_point + at) : Vec::seti(0);
        for (int m = 0; m < MR; ++m) {
            const int32_t inputs = p.sums[(row + m) * p.groups + g];
            float* c = sums + (m * NV + v) * Vec::width;
            const Vec::I exact = Vec::subi(sum[m][v], Vec::muli(zero, Vec::seti(inputs)));
            Vec::F total = Vec::add(Vec::load(c), Vec::mul(Vec::to_float(exact), scale));
            if (p.minimum)
                total = Vec::add(total, Vec::mul(Vec::set(static_cast<float>(inputs)), Vec::load(p.minimum + at)));
            Vec::store(c, total);
        }
    }
}

// Sets the float sums of `rows` rows to zero.
template <int NV>
void clear_sums(float* sums, int64_t rows) {
    for (int64_t i = 0; i < rows * NV; ++i) Vec::store(sums + i * Vec::width, Vec::set(0.0f));
}

// One tile: its sums to p.c, a row's vectors side by side.
template <class N, int MR, int NV>
void nibble_tile(const NibbleProduct& p, int64_t panel, int64_t row) {
    constexpr bool two = MR * NV < kEnoughChains;
    const int64_t panel_bytes = p.octets * kOctetBytes;
    const uint8_t* const w = p.w + panel * panel_bytes;
    const int8_t* const a = p.a + row * p.a_stride;
    clear_sums<NV>(p.c, MR);
    for (int64_t g = 0, octet = 0; g < p.groups; ++g) {
        const int64_t end = octet + p.group_octets < p.octets ? octet + p.group_octets : p.octets;
        Vec::I sum[MR][NV], other[MR][NV];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                sum[m][v] = first_sum(p, row + m, g);
                other[m][v] = Vec::seti(0);
            }
        for (; octet < end; ++octet) {
            const uint8_t* from[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                from[v] = w + v / kVectorsPerPanel * panel_bytes + octet * kOctetBytes +
                          v % kVectorsPerPanel * 4 * Vec::width;
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
        close_group<N, MR, NV>(p, panel, row, g, sum, p.c);
    }
}

// The epilogue of `rows` rows whose sums lie in p.c.
template <int NP>
void finish_rows(const NibbleProduct& p, int64_t panel, int64_t row, int64_t rows) {
    constexpr int NV = NP * kVectorsPerPanel;
    for (int64_t m = 0; m < rows; ++m) {
        const Vec::F scale = Vec::set(p.row_scale[row + m]);
        for (int v = 0; v < NV; ++v) {
            float* c = p.c + (m * NV + v) * Vec::width;
            Vec::store(c, Vec::mul(Vec::load(c), scale));
        }
    }
    const int64_t first = panel * kPanel, left = p.channels - first;
    p.finish(*p.epilogue, reinterpret_cast<const int32_t*>(p.c), NP * kPanel, p.row0 + row, rows, first,
             left < NP * kPanel ? left : NP * kPanel);
}

template <int M>
struct Count {
    static constexpr int value = M;
};

// Calls f(Count<M>, row) for tiles of MR rows, then for what is left over, in the largest tiles that fit.
template <int MR, class F>
__attribute__((always_inline)) inline void for_each_tile(int64_t row, int64_t end, const F& f) {
    for (; row + MR <= end; row += MR) f(Count<MR>(), row);
    if constexpr (MR > 4)
        for (; row + 4 <= end; row += 4) f(Count<4>(), row);
    if constexpr (MR > 2)
        for (; row + 2 <= end; row += 2) f(Count<2>(), row);
    if constexpr (MR > 1)
        for (; row < end; ++row) f(Count<1>(), row);
}

}  // namespace

#include "w4_block_impl.h"

namespace {

template <class N, int MR, int NP>
void nibble_panels(const NibbleProduct& p, int64_t panel) {
    if (p.rows >= kManyRows && p.group_octets <= kBlockOctets) {
        nibble_block<N, MR, NP>(p, panel);
        return;
    }
    for_each_tile<MR>(0, p.rows, [&](auto count, int64_t row) {
        constexpr int M = decltype(count)::value;
        nibble_tile<N, M, NP * kVectorsPerPanel>(p, panel, row);
        finish_rows<NP>(p, panel, row, M);
    });
}

template <class N, int MR, int NP>
void nibble_product(const NibbleProduct& p) {
    int64_t panel = p.panel0;
    for (; panel + NP <= p.panel1; panel += NP) nibble_panels<N, MR, NP>(p, panel);
    for (; panel < p.panel1; ++panel) nibble_panels<N, MR, 1>(p, panel);
}

}  // namespace
