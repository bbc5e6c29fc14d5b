// Where the lines of a panel of weights in groups lie (include/fastcompress/blob.h): shared by the kernels of such weights.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t kPanelLineBytes = 64, kPanelBlock = 4;  // blob.h: kLineBytes, kPanelsTogether

// The lines of panels `panel` ..; several of them only where `panel` is the first of those that lie together.
struct PanelLines {
    PanelLines(const uint8_t* weights, int64_t panels, int64_t lines, int64_t panel) {
        const int64_t block = panel / kPanelBlock * kPanelBlock, left = panels - block;
        together = left < kPanelBlock ? left : kPanelBlock;
        first = weights + (block * lines + panel - block) * kPanelLineBytes;
        line_step = together * kPanelLineBytes;
        block_step = kPanelBlock * lines * kPanelLineBytes;
    }
    // Line `line` of the i-th of the panels.
    const uint8_t* at(int64_t line, int i) const {
        return first + line * line_step + i / kPanelBlock * block_step + i % kPanelBlock * kPanelLineBytes;
    }
    const uint8_t* first;
    int64_t together, line_step, block_step;
};

}  // namespace
