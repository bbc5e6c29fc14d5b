// What the block-sparse kernels share (kernels.h, SparseProduct): where blocks and their inputs are, and the end of a panel.
#pragma once

#include "fastcompress/kernels.h"

namespace {

using fastcompress::kPanel;
using fastcompress::SparseProduct;

// Where a column's inputs begin, in bytes.
struct EvenPlaces {
    int64_t step;
    int64_t operator()(int64_t column) const { return column * step; }
};
struct ListedPlaces {
    const int64_t* offset;
    int64_t operator()(int64_t column) const { return offset[column]; }
};

// Calls f(places) with the kind that the product has.
template <class F>
inline void with_places(const SparseProduct& s, const F& f) {
    s.column_offset ? f(ListedPlaces{s.column_offset}) : f(EvenPlaces{s.column_step});
}

// Several panels are finished together: a row of the output is then written in a run of eight lines. Rows are often a multiple of
// 4096 bytes apart, and short runs of more than 12 such rows evict each other from L1 before they are written (4x4 blocks, 128 x
// 768 x 3072: 94 us with runs of four, 56 us).
constexpr int64_t kPanelsTogether = 8;
// The sums of a token lie so many words apart: not a multiple of 512 bytes.
constexpr int64_t kTileLd = kPanelsTogether * kPanel + 16;
// Behind them, the sums of one panel, channel by channel.
constexpr int64_t kByChannel = kTileLd * fastcompress::kWidestTile;
static_assert(kByChannel + kPanel * fastcompress::kWidestTile <= fastcompress::kSparseScratchElements, "both fit");

// Calls multiply(panel, c) for the panels of `s`, c[token * kTileLd + channel], and the epilogue for each group of them.
template <class Multiply>
inline void bsr_panels(const SparseProduct& s, const Multiply& multiply) {
    for (int64_t p = s.panel0; p < s.panel1; p += kPanelsTogether) {
        const int64_t count = s.panel1 - p < kPanelsTogether ? s.panel1 - p : kPanelsTogether;
        const int64_t left = s.channels - p * kPanel, channels = left < count * kPanel ? left : count * kPanel;
        for (int64_t i = 0; i < count; ++i) multiply(p + i, s.c + i * kPanel);
        for (int64_t i = 0; i < s.run_count; ++i) {
            const fastcompress::RowRun& run = s.runs[i];
            s.finish(*s.epilogue, s.c + run.token * kTileLd, kTileLd, run.row, run.count, p * kPanel, channels);
        }
    }
}

// A Dot (gemm_impl.h) whose words hold the weights of several inputs (`parts`) says which it wants.
template <class Dot>
inline auto load_block(const int8_t* w, [[maybe_unused]] int part) {
    if constexpr (Dot::parts == 1) {
        return Dot::load_b(w);
    } else {
        return Dot::load_b(w, part);
    }
}
template <class Dot>
inline auto broadcast_weight(const int8_t* w, [[maybe_unused]] int part) {
    if constexpr (Dot::parts == 1) {
        return Dot::broadcast_b(w);
    } else {
        return Dot::broadcast_b(w, part);
    }
}

}  // namespace
