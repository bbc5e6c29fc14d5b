// Weight-only products of include/fastcompress/kernels.h, WeightOnlyProduct, written over a class of vector operations.
//
// A code becomes a float without a conversion. Left where it lies in its word and put under the exponent that gives its lowest bit the
// value 1, it is 2^e + q, exactly; taking off 2^e + zero leaves q - zero, exactly:
//
//     word      | n7 | n6 | n5 | n4 | n3 | n2 | n1 | n0 |      n0..n4 lie in the 23 bits of a mantissa, n5..n7 after a shift by 20
//     & mask    |                   | n2 |              |
//     | 2^15    | sign, exponent | mantissa: n2 << 8    |      = 2^15 + n2, as 2^15's last place is 2^-8
//
// Where a register holds sixteen floats, a table of the q - zero is faster for four bits: a shift, and a permutation that reads the low
// four bits of each word. (Zen 4, one row: 13.6 cycles for 128 weights, against 16.6.)
//
// A tile is MR rows times NV vectors of channels; each of its weights is made once. Each sum is one chain of additions, so one row
// alone needs many channels side by side.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::DType;
using fastcompress::kPanel;
using fastcompress::WeightOnlyProduct;

constexpr int64_t kLineBytes = 64;    // one word of each channel of a panel
constexpr int64_t kLineFetch = 1024;  // bytes ahead of the reads
constexpr int kVectorsPerPanel = static_cast<int>(kPanel) / Vec::width;
constexpr int kMantissaBits = 23;

// Where codes of `bits` bits lie.
template <int bits>
struct CodeLayout {
    static constexpr int per_word = 32 / bits;
    static constexpr int lines = 8 / per_word;           // an octet of inputs
    static constexpr int places = kMantissaBits / bits;  // codes of a word that fit in a mantissa
    static constexpr int shift = places * bits;          // brings the next ones there
    static constexpr int input(int j) { return bits == 4 ? j % 2 * 4 + j / 2 : j; }
    static constexpr int32_t mask(int place) { return ((1 << bits) - 1) << (bits * place); }
    // A float whose last place is the code's lowest bit: its bits, its value.
    static constexpr int32_t exponent(int place) { return (127 + kMantissaBits - bits * place) << kMantissaBits; }
    static constexpr float value(int place) { return static_cast<float>(1 << (kMantissaBits - bits * place)); }
};

inline Vec::F load_scale(const void* base, DType dtype, int64_t element) {
    if (dtype == DType::f32) return Vec::load(static_cast<const float*>(base) + element);
    const uint16_t* half = static_cast<const uint16_t*>(base) + element;
    return dtype == DType::bf16 ? Vec::load_bf16(half) : Vec::load_f16(half);
}

// The float sums of a tile at the end of group `g`.
template <class C, int MR, int NV>
__attribute__((always_inline)) inline void close_group(const WeightOnlyProduct& p, int64_t panel, int64_t row,
                                                       int64_t g, const Vec::F (&sum)[MR][NV]) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
        const int64_t at = ((panel + v / kVectorsPerPanel) * p.groups + g) * kPanel + v % kVectorsPerPanel * Vec::width;
        const Vec::F scale = load_scale(p.scale, p.scale_dtype, at);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            float* c = p.c + (m * NV + v) * Vec::width;
            Vec::F total = g == 0 ? Vec::set(0.0f) : Vec::load(c), part = sum[m][v];
            if (p.zero_point) {
                const Vec::F off = Vec::sub(Vec::set(p.zero), C::load_bytes(p.zero_point + at));
                part = C::multiply_add(off, Vec::set(p.sums[(row + m) * p.groups + g]), part);
            }
            total = C::multiply_add(part, scale, total);
            if (p.minimum)
                total = C::multiply_add(Vec::set(p.sums[(row + m) * p.groups + g]), Vec::load(p.minimum + at), total);
            Vec::store(c, total);
        }
    }
}

// The codes of a word as floats, less p.zero.
template <class C, int bits>
struct Expand {
    using L = CodeLayout<bits>;
    explicit Expand(float zero) {
#pragma GCC unroll 8
        for (int i = 0; i < L::places; ++i) off[i] = Vec::set(L::value(i) + zero);
    }
    template <int j>
    __attribute__((always_inline)) Vec::F get(Vec::I words) const {
        constexpr int place = j % L::places, shift = j / L::places * L::shift;
        const Vec::I there = shift ? C::template shift<shift>(words) : words;
        return Vec::sub(C::place(there, L::mask(place), L::exponent(place)), off[place]);
    }
    Vec::F off[L::places];
};

template <class C, int bits>
struct LookUp {
    explicit LookUp(float zero) : table(C::table(zero)) {}
    template <int j>
    __attribute__((always_inline)) Vec::F get(Vec::I words) const {
        return C::look_up(table, j ? C::template shift<bits * j>(words) : words);
    }
    typename C::Table table;
};

template <bool look_up, class C, int bits>
struct Codes {
    using type = Expand<C, bits>;
};
template <class C, int bits>
struct Codes<true, C, bits> {
    using type = LookUp<C, bits>;
};

// Products of the codes j .. of a line of words. a: the first of the line's inputs.
template <class E, class C, int bits, int j, int MR, int NV>
__attribute__((always_inline)) inline void multiply_line(const E& codes, const Vec::I (&words)[NV], const float* a,
                                                         int64_t a_stride, Vec::F (&sum)[MR][NV]) {
    Vec::F weights[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) weights[v] = codes.template get<j>(words[v]);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
        const Vec::F x = Vec::set(a[m * a_stride + CodeLayout<bits>::input(j)]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[m][v] = C::multiply_add(x, weights[v], sum[m][v]);
    }
    if constexpr (j + 1 < CodeLayout<bits>::per_word)
        multiply_line<E, C, bits, j + 1, MR, NV>(codes, words, a, a_stride, sum);
}

// One tile: its sums to p.c, a row's vectors side by side.
template <class C, int bits, int MR, int NV>
void weight_only_tile(const WeightOnlyProduct& p, int64_t panel, int64_t row) {
    using L = CodeLayout<bits>;
    using E = typename Codes<C::has_table && bits == 4, C, bits>::type;
    const int64_t panel_bytes = p.octets * L::lines * kLineBytes;
    const uint8_t* const w = p.w + panel * panel_bytes;
    const float* const a = p.a + row * p.a_stride;
    const E codes(p.zero);
    for (int64_t g = 0, line = 0; g < p.groups; ++g) {
        const int64_t octet = (g + 1) * p.group_octets, end = L::lines * (octet < p.octets ? octet : p.octets);
        Vec::F sum[MR][NV];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sum[m][v] = Vec::set(0.0f);
        for (; line < end; ++line) {
            Vec::I words[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                const uint8_t* from =
                    w + v / kVectorsPerPanel * panel_bytes + line * kLineBytes + v % kVectorsPerPanel * 4 * Vec::width;
                words[v] = C::load(from);
                if (v % kVectorsPerPanel == 0) C::fetch(from + kLineFetch);
            }
            multiply_line<E, C, bits, 0, MR, NV>(codes, words, a + line * L::per_word, p.a_stride, sum);
        }
        close_group<C, MR, NV>(p, panel, row, g, sum);
    }
}

template <class C, int bits, int MR, int NP>
void weight_only_rows(const WeightOnlyProduct& p, int64_t panel, int64_t row) {
    constexpr int NV = NP * kVectorsPerPanel;
    weight_only_tile<C, bits, MR, NV>(p, panel, row);
    const int64_t first = panel * kPanel, left = p.channels - first;
    p.finish(*p.epilogue, reinterpret_cast<const int32_t*>(p.c), NP * kPanel, p.row0 + row, MR, first,
             left < NP * kPanel ? left : NP * kPanel);
}

// `count` rows, at most MR.
template <class C, int bits, int MR, int NP>
void weight_only_some(const WeightOnlyProduct& p, int64_t panel, int64_t row, int64_t count) {
    if (count == MR) return weight_only_rows<C, bits, MR, NP>(p, panel, row);
    if constexpr (MR > 1) weight_only_some<C, bits, MR - 1, NP>(p, panel, row, count);
}

// Rows are shared out evenly: a tile of one row takes nearly as long as one of six.
template <class C, int bits, int MR, int NP>
void weight_only_panels(const WeightOnlyProduct& p, int64_t panel) {
    const int64_t tiles = (p.rows + MR - 1) / MR;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = p.rows * tile / tiles, end = p.rows * (tile + 1) / tiles;
        weight_only_some<C, bits, MR, NP>(p, panel, row, end - row);
    }
}

// MR rows and NP panels a tile, ALONE panels with a single row.
template <class C, int bits, int MR, int NP, int ALONE>
void weight_only_product(const WeightOnlyProduct& p) {
    int64_t panel = p.panel0;
    if (p.rows == 1)
        for (; panel + ALONE <= p.panel1; panel += ALONE) weight_only_rows<C, bits, 1, ALONE>(p, panel, 0);
    for (; panel + NP <= p.panel1; panel += NP) weight_only_panels<C, bits, MR, NP>(p, panel);
    for (; panel < p.panel1; ++panel) weight_only_panels<C, bits, MR, 1>(p, panel);
}

template <class C, int MR, int NP, int ALONE>
constexpr fastcompress::WeightOnlyTable weight_only_kernels(const char* name) {
    return {weight_only_product<C, 4, MR, NP, ALONE>, weight_only_product<C, 8, MR, NP, ALONE>, name, MR, NP, ALONE};
}

}  // namespace
