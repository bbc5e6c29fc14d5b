#include "gemm_driver.h"

#include <algorithm>

namespace fastcompress {
namespace {

// A second thread has to be told, reads what the first one wrote from the other core's cache, and is waited for. Between
// two cores of one cache complex that costs 2 us, between complexes (where a virtual machine may find itself) 15 us:
// depthwise 960 x 7 x 7 takes 16 us on one thread and 14 or 29 on two. So: two threads from 12 us of work on.
constexpr double kSerialNs = 12000;
// Of one core: weights from the last level of cache, quantizing an input, the epilogue of an output.
constexpr double kWeightByteNs = 0.02, kInputNs = 0.03, kOutputNs = 0.1;
constexpr int64_t kRowBlock = 192;  // activations of a task stay in L2 beside a weight panel
constexpr int64_t kTasksPerThread = 4;
// Tiles of 64 columns reuse weights best. With a short reduction the output's way to memory counts more, and tiles of
// 256 columns write it in longer runs.
constexpr int64_t kColumns = 64, kWideColumns = 256, kShortReduction = 96;
constexpr int64_t kCachedWeights = 4 << 20;  // more than this is not found in L2 again by the next call

}  // namespace

double estimated_ns(const KernelTable& table, const Work& work) {
    return static_cast<double>(work.multiply_adds) / static_cast<double>(table.multiply_adds_per_ns) +
           kWeightByteNs * static_cast<double>(work.weight_bytes) + kInputNs * static_cast<double>(work.inputs) +
           kOutputNs * static_cast<double>(work.outputs);
}

int worthwhile_threads(const KernelTable& table, const Threads& threads, const Work& work, double more_ns) {
    if (threads.exactly > 0) return std::min(threads.exactly, kMaxThreads);
    if (estimated_ns(table, work) + more_ns < kSerialNs) return 1;
    return std::min(threads.limit > 0 ? threads.limit : max_threads(), kMaxThreads);
}

GemmPlan plan_gemm(const KernelTable& table, int64_t rows, int64_t columns, int64_t k_pad, int threads) {
    GemmPlan plan;
    const int64_t wide_rows = table.call_rows > 0 ? table.call_rows * kColumns / kWideColumns : 4 * table.tile_rows;
    const bool wide = k_pad <= kShortReduction && columns > kColumns && rows > wide_rows;
    plan.tile_columns = wide ? kWideColumns : kColumns;
    plan.column_tasks = ceil_div(columns, plan.tile_columns);
    int64_t block = kRowBlock;
    if (threads > 1) {
        const int64_t wanted = ceil_div(threads * kTasksPerThread, plan.column_tasks);
        block = std::min(block, ceil_div(rows, wanted));
    }
    plan.row_block = round_up(block, table.tile_rows);
    plan.row_tasks = std::max<int64_t>(1, ceil_div(rows, plan.row_block));
    plan.call_rows = wide ? wide_rows : table.call_rows > 0 ? table.call_rows : plan.row_block;
    return plan;
}

void run_gemm_task(const GemmProblem& p, const GemmPlan& plan, int64_t task, int32_t* scratch) {
    const KernelTable& table = *p.table;
    // Neighbouring tasks share weights: a thread keeps to few panels.
    const int64_t column = task / plan.row_tasks * plan.tile_columns;
    const int64_t begin = task % plan.row_tasks * plan.row_block;
    const int64_t end = std::min(p.rows, begin + plan.row_block);
    const auto gemm = p.rows <= table.small_rows ? table.gemm_small : table.gemm;
    GemmBlock block;
    block.a_stride = p.a_stride;
    block.segment_offset = p.segment_offset;
    block.segments = p.segments;
    block.segment_quads = p.segment_quads;
    block.b = p.b + column / kPanel * p.panel_stride;
    block.panel_stride = p.panel_stride;
    block.columns = std::min(plan.tile_columns, p.columns - column);
    block.c = scratch;
    block.finish = table.epilogue;
    block.epilogue = &p.epilogue;
    block.col0 = column;
    const int64_t columns_left = std::min(kColumns, p.columns - column - block.columns);
    block.next_bytes = ceil_div(columns_left, kPanel) * p.panel_stride;
    block.fetch_ahead = ceil_div(p.columns, kPanel) * p.panel_stride > kCachedWeights;
    for (int64_t row = begin; row < end; row += plan.call_rows) {
        block.rows = std::min(plan.call_rows, end - row);
        block.row0 = row;
        block.a = p.a + (p.row_offset ? 0 : row * p.a_stride);
        block.row_offset = p.row_offset ? p.row_offset + row : nullptr;
        gemm(block);
    }
}

}  // namespace fastcompress
