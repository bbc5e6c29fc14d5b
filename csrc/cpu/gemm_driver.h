// Splits a GEMM with epilogue over threads: shared by linear and convolution.
#pragma once

#include "fastcompress/kernels.h"
#include "fastcompress/w8a8.h"
#include "parallel.h"

namespace fastcompress {

// GemmBlock::c of one thread.
constexpr size_t kScratchBytes = static_cast<size_t>(kScratchElements) * sizeof(int32_t);

struct GemmProblem {
    const KernelTable* table;
    Epilogue epilogue;
    int64_t rows, columns;
    // As in GemmBlock.
    const uint8_t* a;
    const int64_t* row_offset;
    int64_t a_stride;
    const int64_t* segment_offset;
    int64_t segments, segment_quads;
    const int8_t* b;
    int64_t panel_stride;
};

// How the output is cut into tasks, and tasks into calls of the kernel; pure arithmetic.
struct GemmPlan {
    int64_t call_rows, tile_columns;
    int64_t row_block, row_tasks, column_tasks;
    int64_t tasks() const { return row_tasks * column_tasks; }
};
GemmPlan plan_gemm(const KernelTable& table, int64_t rows, int64_t columns, int64_t k_pad, int threads);

// Task `task` of the plan, on this thread's scratch.
void run_gemm_task(const GemmProblem& problem, const GemmPlan& plan, int64_t task, int32_t* scratch);

// What a call has to do, in the units that its time depends on.
struct Work {
    int64_t multiply_adds = 0, weight_bytes = 0, inputs = 0, outputs = 0;  // inputs, outputs: elements
};
// Roughly how long one thread takes.
double estimated_ns(const KernelTable& table, const Work& work);
// Threads worth starting for it: one while a second would wait for the first one's data longer than it computes.
// `more_ns`: work that is known by its time.
int worthwhile_threads(const KernelTable& table, const Threads& threads, const Work& work, double more_ns = 0);

}  // namespace fastcompress
