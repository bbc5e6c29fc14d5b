#include "gemm_driver.h"

#include <algorithm>

namespace fastcompress {
namespace {

// Waking a second thread costs 1-2 us: worth it from about a quarter of a million multiply-adds (0.3 us of VNNI,
// but mostly weights to be read).
constexpr int64_t kSerialMultiplyAdds = 1 << 18;
constexpr int64_t kRowBlock = 192;  // activations of a task stay in L2 beside a weight panel
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kCachedWeights = 4 << 20;  // more than this is not found in L2 again by the next call

}  // namespace

int gemm_threads(int requested, int64_t multiply_adds) {
    const int threads = requested > 0 ? requested : max_threads();
    return multiply_adds < kSerialMultiplyAdds ? 1 : std::min(threads, kMaxThreads);
}

GemmPlan plan_gemm(const KernelTable& table, int64_t rows, int64_t columns, int threads) {
    GemmPlan plan;
    plan.column_tasks = ceil_div(columns, kTileColumns);
    int64_t block = kRowBlock;
    if (threads > 1) {
        const int64_t wanted = ceil_div(threads * kTasksPerThread, plan.column_tasks);
        block = std::min(block, ceil_div(rows, wanted));
    }
    plan.row_block = std::max(table.tile_rows, round_up(block, table.tile_rows));
    plan.row_tasks = std::max<int64_t>(1, ceil_div(rows, plan.row_block));
    return plan;
}

void run_gemm_task(const GemmProblem& p, const GemmPlan& plan, int64_t task, int32_t* scratch) {
    const KernelTable& table = *p.table;
    // Neighbouring tasks share weights: a thread keeps to few panels.
    const int64_t column = task / plan.row_tasks * kTileColumns;
    const int64_t begin = task % plan.row_tasks * plan.row_block;
    const int64_t end = std::min(p.rows, begin + plan.row_block);
    const int64_t columns = std::min(kTileColumns, p.columns - column);
    const auto gemm = p.rows <= table.small_rows ? table.gemm_small : table.gemm;
    GemmBlock block;
    block.a_stride = p.a_stride;
    block.segment_offset = p.segment_offset;
    block.segments = p.segments;
    block.segment_quads = p.segment_quads;
    block.b = p.b + column / kPanel * p.panel_stride;
    block.panel_stride = p.panel_stride;
    block.c = scratch;
    block.ldc = kTileColumns;
    block.panels = ceil_div(columns, kPanel);
    block.fetch_ahead = ceil_div(p.columns, kPanel) * p.panel_stride > kCachedWeights;
    for (int64_t row = begin; row < end; row += table.tile_rows) {
        block.rows = std::min(table.tile_rows, end - row);
        block.a = p.a + (p.row_offset ? 0 : row * p.a_stride);
        block.row_offset = p.row_offset ? p.row_offset + row : nullptr;
        gemm(block);
        table.epilogue(p.epilogue, scratch, kTileColumns, p.row0 + row, block.rows, column, columns);
    }
}

}  // namespace fastcompress
