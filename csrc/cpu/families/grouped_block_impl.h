// Four-bit products of many rows: each group's nibbles become bytes once, then all rows run over them.
//
//     for each block of rows:  for each group:  nibbles of NP panels to bytes [quad][NV vectors], in L1
//                                               for each tile of MR rows: products, then its float sums
//
// The float sums of a block lie in L1: 48 rows of 64 channels take 12 KiB, a group of 128 inputs 8 KiB of bytes.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::kGroupedBlockOctets;
using fastcompress::kGroupedBlockRows;

constexpr int64_t kManyRows = 12;  // from here on, tiles enough share the bytes

// Octets [octet, end) of NP panels to p.bytes.
template <class N, int NP>
void expand_group(const GroupedProduct& p, int64_t panel, int64_t octet, int64_t end) {
    constexpr int NV = NP * kVectorsPerPanel, kBytes = 4 * Vec::width;
    const int64_t panel_bytes = p.octets * kLineBytes;
    const uint8_t* const w = p.w + panel * panel_bytes;
    uint8_t* out = p.bytes;
    for (; octet < end; ++octet, out += 2 * NV * kBytes) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
            const uint8_t* from =
                w + v / kVectorsPerPanel * panel_bytes + octet * kLineBytes + v % kVectorsPerPanel * kBytes;
            if (v % kVectorsPerPanel == 0) N::fetch(from + kLineFetch);
            N::store(out + v * kBytes, N::low(from));
            N::store(out + (NV + v) * kBytes, N::high(from));
        }
    }
}

// MR rows times the bytes of one group.
template <class N, int rows_each, int MR, int NV>
void expanded_tile(const GroupedProduct& p, int64_t panel, int64_t row, int64_t g, int64_t octets, float* sums) {
    constexpr int kBytes = 4 * Vec::width;
    const int8_t* a = p.a + row * p.a_stride + g * p.group_octets * 8;
    const uint8_t* w = p.bytes;
    Vec::I sum[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[m][v] = first_sum(p, row + m, g);
    for (int64_t quad = 0; quad < 2 * octets; ++quad, a += 4, w += NV * kBytes) {
        typename N::Weights weights[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) weights[v] = N::whole(w + v * kBytes);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const typename N::Inputs inputs = N::broadcast(a + m * p.a_stride);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sum[m][v] = N::dot(sum[m][v], weights[v], inputs);
        }
    }
    close_group<N, rows_each, MR, NV>(p, panel, row, g, sum, sums);
}

template <class N, int rows_each, int MR, int NP>
void grouped_block(const GroupedProduct& p, int64_t panel) {
    constexpr int NV = NP * kVectorsPerPanel;
    for (int64_t row0 = 0; row0 < p.rows; row0 += kGroupedBlockRows) {
        const int64_t end = row0 + kGroupedBlockRows < p.rows ? row0 + kGroupedBlockRows : p.rows;
        for_each_tile<rows_each, MR>(row0, end, [&](auto count, int64_t row) {
            start_sums<rows_each, decltype(count)::value, NV>(p, panel, row,
                                                              p.c + (row - row0) / rows_each * NV * Vec::width);
        });
        for (int64_t g = 0, octet = 0; g < p.groups; ++g, octet += p.group_octets) {
            const int64_t last = octet + p.group_octets < p.octets ? octet + p.group_octets : p.octets;
            expand_group<N, NP>(p, panel, octet, last);
            for_each_tile<rows_each, MR>(row0, end, [&](auto count, int64_t row) {
                float* sums = p.c + (row - row0) / rows_each * NV * Vec::width;
                expanded_tile<N, rows_each, decltype(count)::value, NV>(p, panel, row, g, last - octet, sums);
            });
        }
        finish_rows<rows_each, NP>(p, panel, row0, end - row0);
    }
}

}  // namespace
