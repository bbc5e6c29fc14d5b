// Products of weights in groups, of include/fastcompress/kernels.h, GroupedProduct, written over a class of codes.
//
// A tile is MR rows of s8 times NV vectors of channels over all inputs. Where there are 32 registers, its integer sums of one group and
// its float sums stay in them; where a group ends, the former join the latter. Codes are the unsigned operand: splitting a byte into nibbles costs a shift
// and two masks, which a tile's rows share, in units that are not busy with products. Activations of 16 bits are two rows each, high and
// low bytes, that meet when a group ends: twice the products of s8 activations, and nothing else.
//
//     for each block of panels, which L2 holds:  for each tile of rows:  for each NP panels of the block
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::DType;
using fastcompress::GroupedProduct;
using fastcompress::kGroupedScratchElements;
using fastcompress::kPanel;

constexpr int64_t kLineBytes = 64;  // a word of each channel of a panel
// Bytes ahead of the reads in each panel, as measured: 512 in each of four panels, 2048 in each of two (docs/decisions.md).
constexpr int64_t line_fetch(int rows) { return rows > 2 ? 2048 : 512; }
constexpr int64_t kGroupsAhead = 2;  // whose scales are asked for: a miss there would hold up the codes behind it
constexpr int64_t kBlockBytes = 256 * 1024;  // of codes, in L2 while all rows run over them
constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / Vec::width;
constexpr int kEnoughChains = 8;  // of dependent products: with fewer, low and high nibbles get sums of their own

inline Vec::F load_scale(const void* base, DType dtype, int64_t element) {
    if (dtype == DType::f32) return Vec::load(static_cast<const float*>(base) + element);
    const uint16_t* half = static_cast<const uint16_t*>(base) + element;
    return dtype == DType::bf16 ? Vec::load_bf16(half) : Vec::load_f16(half);
}

// What the sums of a group start from, in row `row`.
inline Vec::I first_sum(const GroupedProduct& p, int64_t row, int64_t g) {
    return Vec::seti(p.start ? p.start[row * p.groups + g] : 0);
}

// What a row of activations gives, from the sums of its one row of s8 or of its high and its low bytes.
template <int rows_each>
__attribute__((always_inline)) inline Vec::F joined(const Vec::I* sum, int next) {
    if constexpr (rows_each == 1) return Vec::to_float(sum[0]);
    return Vec::add(Vec::mul(Vec::to_float(sum[0]), Vec::set(256.0f)), Vec::to_float(sum[next]));
}

// Asks for what group `g` of NP panels needs besides its codes; g may lie behind the last one.
template <class N, int NP>
__attribute__((always_inline)) inline void fetch_group(const GroupedProduct& p, int64_t panel, int64_t g) {
    const int64_t bytes = p.scale_dtype == DType::f32 ? 4 : 2;
#pragma GCC unroll 8
    for (int i = 0; i < NP; ++i) {
        const int64_t at = ((panel + i) * p.groups + g) * kPanel;
        N::fetch(static_cast<const uint8_t*>(p.scale) + at * bytes);
        if (p.zero_point) N::fetch(p.zero_point + at);
        if (p.minimum) N::fetch(reinterpret_cast<const uint8_t*>(p.minimum + at));
    }
}

// Adds the sums of group `g` to the float sums of a tile.
template <class N, int rows_each, int MR, int NV>
__attribute__((always_inline)) inline void close_group(const GroupedProduct& p, int64_t panel, int64_t row, int64_t g,
                                                       Vec::I (&sum)[MR][NV], Vec::F (&c)[MR / rows_each][NV]) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
        const int64_t at = ((panel + v / kVectorsPerPanel) * p.groups + g) * kPanel + v % kVectorsPerPanel * Vec::width;
        const Vec::F scale = load_scale(p.scale, p.scale_dtype, at);
        if (p.zero_point) {
            const Vec::I zero = N::load_bytes(p.zero_point + at);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m)
                sum[m][v] = Vec::subi(sum[m][v], Vec::muli(zero, Vec::seti(p.sums[(row + m) * p.groups + g])));
        }
#pragma GCC unroll 8
        for (int m = 0; m < MR; m += rows_each) {
            Vec::F part = Vec::mul(joined<rows_each>(&sum[m][v], NV), scale);
            if constexpr (rows_each == 2) part = Vec::mul(part, Vec::set(p.a_scale[(row + m) / 2 * p.groups + g]));
            c[m / rows_each][v] = Vec::add(c[m / rows_each][v], part);
        }
    }
}

// The float sums of a tile before the first group: what minima give, or zero.
template <int rows_each, int R, int NV>
__attribute__((always_inline)) inline void start_sums(const GroupedProduct& p, int64_t panel, int64_t row,
                                                      Vec::F (&c)[R][NV]) {
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) c[m][v] = Vec::set(0.0f);
    if (!p.minimum) return;
    const float* const inputs = p.input_sum + row / rows_each * p.groups;
    for (int64_t g = 0; g < p.groups; ++g) {
        Vec::F minimum[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v)
            minimum[v] = Vec::load(p.minimum + ((panel + v / kVectorsPerPanel) * p.groups + g) * kPanel +
                                   v % kVectorsPerPanel * Vec::width);
#pragma GCC unroll 8
        for (int m = 0; m < R; ++m) {
            const Vec::F sum = Vec::set(inputs[m * p.groups + g]);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) c[m][v] = Vec::add(c[m][v], Vec::mul(sum, minimum[v]));
        }
    }
}

// MR rows times one line of four-bit codes: eight inputs.
template <class N, int MR, int NV, bool two>
__attribute__((always_inline)) inline void nibble_line(const int8_t* a, int64_t stride,
                                                       const uint8_t* const (&from)[NV], Vec::I (&sum)[MR][NV],
                                                       Vec::I (&other)[MR][NV]) {
    // All weights, then one row's inputs at a time: with sums and weights in registers there is room for no more.
    typename N::Weights weights[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) weights[v] = N::low(from[v]);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
        const typename N::Inputs inputs = N::broadcast(a + m * stride);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[m][v] = N::dot(sum[m][v], weights[v], inputs);
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) weights[v] = N::high(from[v]);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
        const typename N::Inputs inputs = N::broadcast(a + m * stride + 4);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
            Vec::I& to = two ? other[m][v] : sum[m][v];
            to = N::dot(to, weights[v], inputs);
        }
    }
}

// MR rows times one line of eight-bit codes: four inputs.
template <class N, int MR, int NV>
__attribute__((always_inline)) inline void byte_line(const int8_t* a, int64_t stride, const uint8_t* const (&from)[NV],
                                                     Vec::I (&sum)[MR][NV]) {
    typename N::Weights weights[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) weights[v] = N::whole(from[v]);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
        const typename N::Inputs inputs = N::broadcast(a + m * stride);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[m][v] = N::dot_bytes(sum[m][v], weights[v], inputs);
    }
}

// One tile: its sums to p.c, a row's vectors side by side.
template <class N, int bits, int rows_each, int MR, int NV>
void grouped_tile(const GroupedProduct& p, int64_t panel, int64_t row) {
    constexpr bool two = bits == 4 && MR * NV < kEnoughChains;
    constexpr int64_t inputs = 32 / bits, lines_each = 8 / inputs;  // of a line; of eight inputs
    const int64_t panel_bytes = p.octets * lines_each * kLineBytes;
    const uint8_t* const w = p.w + panel * panel_bytes;
    const int8_t* const a = p.a + row * p.a_stride;
    Vec::F c[MR / rows_each][NV];
    constexpr int NP = NV / kVectorsPerPanel;
    constexpr int64_t ahead = line_fetch(MR) / kLineBytes;
    for (int64_t g = 0; g < kGroupsAhead; ++g) fetch_group<N, NP>(p, panel, g);
    start_sums<rows_each>(p, panel, row, c);
    for (int64_t g = 0, line = 0; g < p.groups; ++g) {
        fetch_group<N, NP>(p, panel, g + kGroupsAhead);
        fetch_group<N, NP>(p, panel + NP, g);
        const int64_t all = p.octets * lines_each, next = line + p.group_octets * lines_each;
        const int64_t end = next < all ? next : all;
        Vec::I sum[MR][NV], other[MR][NV];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                sum[m][v] = first_sum(p, row + m, g);
                other[m][v] = Vec::seti(0);
            }
        for (; line < end; ++line) {
            // Behind a panel's last line comes the panel that the next tile starts with.
            const int64_t fetch = line_fetch(MR) + (line + ahead < all ? 0 : (NP - 1) * panel_bytes);
            const uint8_t* from[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                from[v] =
                    w + v / kVectorsPerPanel * panel_bytes + line * kLineBytes + v % kVectorsPerPanel * 4 * Vec::width;
                if (v % kVectorsPerPanel == 0) N::fetch(from[v] + fetch);
            }
            if constexpr (bits == 4)
                nibble_line<N, MR, NV, two>(a + inputs * line, p.a_stride, from, sum, other);
            else
                byte_line<N, MR, NV>(a + inputs * line, p.a_stride, from, sum);
        }
        if constexpr (two) {
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) sum[m][v] = Vec::addi(sum[m][v], other[m][v]);
        }
        close_group<N, rows_each>(p, panel, row, g, sum, c);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR / rows_each; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) Vec::store(p.c + (m * NV + v) * Vec::width, c[m][v]);
}

// The epilogue of `rows` rows of s8 whose sums lie in p.c.
template <int rows_each, int NP>
void finish_rows(const GroupedProduct& p, int64_t panel, int64_t row, int64_t rows) {
    constexpr int NV = NP * kVectorsPerPanel;
    row /= rows_each;
    rows /= rows_each;
    for (int64_t m = 0; rows_each == 1 && m < rows; ++m) {
        const Vec::F scale = Vec::set(p.a_scale[row + m]);
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
template <int rows_each, int MR, class F>
__attribute__((always_inline)) inline void for_each_tile(int64_t row, int64_t end, const F& f) {
    for (; row + MR <= end; row += MR) f(Count<MR>(), row);
    if constexpr (MR > 4)
        for (; row + 4 <= end; row += 4) f(Count<4>(), row);
    if constexpr (MR > 2)
        for (; row + 2 <= end; row += 2) f(Count<2>(), row);
    if constexpr (MR > 1 && rows_each == 1)
        for (; row < end; ++row) f(Count<1>(), row);
}

// All rows times panels [panel0, panel1), NP of them at a time.
template <class N, int bits, int rows_each, int MR, int NP>
void grouped_panels(const GroupedProduct& p, int64_t panel0, int64_t panel1) {
    for_each_tile<rows_each, MR>(0, p.rows, [&](auto count, int64_t row) {
        constexpr int M = decltype(count)::value;
        int64_t panel = panel0;
        const auto tile = [&](auto panels) {
            constexpr int P = decltype(panels)::value;
            grouped_tile<N, bits, rows_each, M, P * kVectorsPerPanel>(p, panel, row);
            finish_rows<rows_each, P>(p, panel, row, M);
            panel += P;
        };
        while (panel + NP <= panel1) tile(Count<NP>());
        while (panel < panel1) tile(Count<1>());
    });
}

// GroupedTable::group_sums: groups of whole vectors, groups of which a vector holds several, and all others.
template <class N>
void group_sums(const int8_t* values, int64_t count, int64_t quads, int32_t* sums) {
    constexpr int64_t kBytes = 4 * Vec::width;
    const int8_t* const end = values + count;
    if (quads % Vec::width == 0) {
        while (values < end) {
            const int8_t* const next = end - values < 4 * quads ? end : values + 4 * quads;
            Vec::I sum = Vec::seti(0);
            for (; values < next; values += kBytes) sum = Vec::addi(sum, N::quad_sums(values));
            *sums++ = Vec::sumi(sum);
            values = next;
        }
        return;
    }
    alignas(64) int32_t of_quads[Vec::width];
    if (Vec::width % quads == 0) {
        for (; values < end; values += kBytes) {
            Vec::storei(of_quads, N::quad_sums(values));
            for (int64_t first = 0; first < Vec::width && values + 4 * first < end; first += quads) {
                int32_t sum = 0;
                for (int64_t q = first; q < first + quads; ++q) sum += of_quads[q];
                *sums++ = sum;
            }
        }
        return;
    }
    int64_t left = quads;
    int32_t sum = 0;
    for (; values < end; values += kBytes) {
        Vec::storei(of_quads, N::quad_sums(values));
        const int64_t quads_left = (end - values + 3) / 4, here = quads_left < Vec::width ? quads_left : Vec::width;
        for (int64_t q = 0; q < here; ++q) {
            sum += of_quads[q];
            if (--left > 0) continue;
            *sums++ = sum;
            sum = 0;
            left = quads;
        }
    }
    if (left < quads) *sums = sum;
}

// bits: of a code. rows_each: rows of s8 that make one row of activations, 1 or 2. Tiles are MR rows times NP panels; where there are at
// most two rows, Few panels, for more chains of products.
template <class N, int bits, int rows_each, int MR, int NP, int Few>
void grouped_product(const GroupedProduct& p) {
    static_assert(MR % rows_each == 0, "a row's bytes are in one tile");
    static_assert(MR / rows_each * NP * kPanel <= kGroupedScratchElements, "the scratch holds a tile");
    static_assert(2 / rows_each * Few * kPanel <= kGroupedScratchElements, "the scratch holds a tile of few rows");
    if (p.rows <= 2) {
        grouped_panels<N, bits, rows_each, 2, Few>(p, p.panel0, p.panel1);
        return;
    }
    const int64_t panel_bytes = p.octets * bits / 4 * kLineBytes;
    const int64_t fit = kBlockBytes / panel_bytes / NP * NP, block = fit > NP ? fit : NP;
    for (int64_t panel = p.panel0; panel < p.panel1; panel += block)
        grouped_panels<N, bits, rows_each, MR, NP>(p, panel, panel + block < p.panel1 ? panel + block : p.panel1);
}

}  // namespace
