#include "sparse_driver.h"

#include <algorithm>
#include <stdexcept>

namespace fastcompress {
namespace {

constexpr int64_t kNarrow = 16;         // tokens of the narrowest tile
constexpr int64_t kWideEnough = 32;     // tokens: narrower tiles are slower
constexpr int64_t kRealMultiplies = 4;  // a float product takes as long as so many s8 ones

}  // namespace

const SparseKernel& sparse_kernel(const KernelTable& table, const BlobHeader& blob) {
    const SparseKernel* kernel =
        find_sparse_kernel(table, static_cast<DType>(blob.value_dtype), blob.block_h, blob.block_w);
    if (!kernel) throw std::logic_error("fastcompress: an opened blob has blocks without a kernel");
    return *kernel;
}

int64_t column_words(const BlobHeader& blob) { return has_real_weights(blob) ? blob.block_w : 1; }

SparseProduct sparse_product(const KernelTable& table, const BlobHeader& blob, const Epilogue& epilogue) {
    SparseProduct s{};
    s.pointer = blob_pointers(blob);
    s.index = blob_index(blob);
    s.w = reinterpret_cast<const uint8_t*>(blob_panels(blob));
    s.channels = blob.out_channels;
    s.finish = table.epilogue;
    s.epilogue = &epilogue;
    return s;
}

std::vector<int64_t> cut_panels(const BlobHeader& blob, int64_t runs) {
    std::vector<int64_t> cuts{0};
    const int32_t* pointer = blob_pointers(blob);
    const int64_t rows_per_panel = kPanel / blob.block_h, rows = blob.panels * rows_per_panel;
    for (int64_t i = 1; i < runs; ++i) {
        const int64_t entries = blob.entries * i / runs;
        const int64_t row = std::lower_bound(pointer, pointer + rows, entries) - pointer;
        // Whole groups of panels, so that rows of the output are written in long runs.
        const int64_t cut = round_up(ceil_div(row, rows_per_panel), 4);
        if (cut > cuts.back() && cut < blob.panels) cuts.push_back(cut);
    }
    cuts.push_back(blob.panels);
    return cuts;
}

int64_t tile_width(const SparseKernel& kernel, int64_t tokens, int threads) {
    int64_t tiles = ceil_div(tokens, kernel.widest);
    tiles = std::max(tiles, std::min<int64_t>(threads, tokens / kWideEnough));
    return round_up(ceil_div(tokens, tiles), kNarrow);
}

Work sparse_work(const BlobHeader& blob, int64_t tokens) {
    Work work;
    work.weight_bytes = blob.entries * (block_bytes(blob) + index_bytes(blob));
    work.multiply_adds =
        tokens * blob.entries * blob.block_h * blob.block_w * (has_real_weights(blob) ? kRealMultiplies : 1);
    return work;
}

}  // namespace fastcompress
