// linear_w8a8: quantize the rows (or take them as they are), then one GEMM with epilogue, in one parallel region.
//
// Few rows, or weights larger than the cache: all rows are quantized first, then threads share out weight panels.
// Many rows and small weights: each thread quantizes a block of rows and takes it through all weights while it is warm.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "epilogue_setup.h"
#include "fastcompress/w8a8.h"
#include "gemm_driver.h"
#include "linear_bsr.h"
#include "linear_input.h"

namespace fastcompress {
namespace {

// The product of input rows first .. first + count - 1, which lie in `rows` from its start.
GemmProblem problem(const LinearInput& l, const Rows& rows, const Epilogue& e, int64_t first, int64_t count) {
    GemmProblem p{};
    p.table = &l.table;
    p.rows = count;
    p.columns = l.blob.out_channels;
    p.a = l.prepared(rows, first);
    p.a_stride = l.stride;
    p.segments = 1;
    p.segment_quads = l.blob.k_pad / 4;
    p.b = blob_panels(l.blob);
    p.panel_stride = l.blob.k_pad * kPanel;
    p.epilogue = l.epilogue_of(rows, e, first);
    return p;
}

constexpr int64_t kCacheLine = 64;

// Tile loads read 16 rows at once: with rows a multiple of 512 bytes apart they fall into a few sets of L1 and evict each
// other (measured 46 against 31 ns a step at 4096). One line more between rows is worth a copy when the rows are reused.
bool rows_conflict(const KernelTable& table, int64_t rows, const BlobHeader& blob) {
    return table.uniform_rows && !is_block_sparse(blob) && rows > table.small_rows && blob.k_pad % 512 == 0 &&
           blob.out_channels >= 256;
}

constexpr int64_t kMaxBlockRows = 128;
constexpr int64_t kResidentWeights = 1 << 20;  // bytes: half of L2

// Rows of a block when each thread takes blocks of rows through all weights; 0 when columns are to be shared out instead:
// too few rows, weights that would be read from memory again for each block, or an uneven division.
int64_t block_rows(const LinearInput& l, int threads) {
    const int64_t rows = l.call.rows;
    if (rows < 32 * threads || l.blob.panels * kPanel * l.blob.k_pad > kResidentWeights) return 0;
    const int64_t rounds = ceil_div(rows, threads * kMaxBlockRows);
    if (rounds == 1 && l.in_place) return 0;  // nothing to keep warm
    const int64_t block = round_up(ceil_div(rows, threads * rounds), 16);
    return 8 * block * rounds * threads <= 9 * rows ? block : 0;
}

int32_t* thread_scratch(uint8_t* scratch, const Team& team) {
    return reinterpret_cast<int32_t*>(scratch + kScratchBytes * static_cast<size_t>(team.thread()));
}

void run_row_blocks(const LinearInput& l, const Epilogue& epilogue, int64_t rows_per_block, int threads,
                    Workspace& workspace) {
    std::vector<Rows> rows(static_cast<size_t>(threads));
    for (Rows& each : rows) each = l.take_rows(workspace, rows_per_block);
    uint8_t* scratch = workspace.take_array<uint8_t>(static_cast<int64_t>(kScratchBytes) * threads);
    TaskQueue blocks(ceil_div(l.call.rows, rows_per_block), threads);
    parallel(threads, [&](Team& team) {
        const Rows& mine = rows[static_cast<size_t>(team.thread())];
        for (int64_t block; blocks.next(team, &block);) {
            const int64_t first = block * rows_per_block, count = std::min(rows_per_block, l.call.rows - first);
            if (!l.in_place)
                for (int64_t i = 0; i < count; ++i) l.prepare_row(mine, first + i, i);
            const GemmProblem product = problem(l, mine, epilogue, first, count);
            const GemmPlan plan = plan_gemm(l.table, count, l.blob.out_channels, l.blob.k_pad, 1);
            for (int64_t task = 0; task < plan.tasks(); ++task)
                run_gemm_task(product, plan, task, thread_scratch(scratch, team));
        }
    });
}

void run_columns(const LinearInput& l, const Epilogue& epilogue, int threads, Workspace& workspace) {
    const Rows rows = l.take_rows(workspace, l.call.rows);
    uint8_t* scratch = workspace.take_array<uint8_t>(static_cast<int64_t>(kScratchBytes) * threads);
    const GemmProblem product = problem(l, rows, epilogue, 0, l.call.rows);
    const GemmPlan plan = plan_gemm(l.table, l.call.rows, l.blob.out_channels, l.blob.k_pad, threads);
    TaskQueue quantize(l.in_place ? 0 : l.call.rows, threads), tasks(plan.tasks(), threads);
    parallel(threads, [&](Team& team) {
        if (!l.in_place) {
            for (int64_t row; quantize.next(team, &row);) l.prepare_row(rows, row, row);
            team.barrier();
        }
        for (int64_t task; tasks.next(team, &task);) run_gemm_task(product, plan, task, thread_scratch(scratch, team));
    });
}

}  // namespace

void linear_w8a8(const BlobHeader& blob, const LinearCall& call) {
    if (!is_linear(blob))
        throw std::invalid_argument("linear_w8a8: the packed weights belong to a convolution; use conv2d_w8a8");
    if (is_grouped(blob))
        throw std::invalid_argument("linear_w8a8: the packed weights are in groups; use linear_w4 or linear_w8");
    if (has_real_weights(blob))
        throw std::invalid_argument("linear_w8a8: the packed weights are floats; use linear_bsr");
    if (call.x_dtype == DType::s8 || call.x_dtype == DType::i32)
        throw std::invalid_argument("linear_w8a8: input must be f32, bf16, f16 or u8");
    if (!call.row_scale != !call.row_zero_point)
        throw std::invalid_argument("linear_w8a8: input_scale and input_zero_point go together");
    const InputMode mode = static_cast<InputMode>(blob.input_mode);
    const KernelTable& table = table_for(static_cast<Isa>(blob.isa));
    const bool dynamic = mode != InputMode::per_tensor && call.x_dtype != DType::u8;
    if (call.x_dtype == DType::u8 && mode != InputMode::per_tensor && !call.row_scale)
        throw std::invalid_argument(
            "linear_w8a8: u8 input to a layer with dynamic activations needs input_scale and input_zero_point per row");
    const Epilogue epilogue = make_epilogue(blob, call.out, "linear_w8a8");
    if (call.rows == 0) return;
    const int64_t k = blob.in_channels;
    const bool conflicts = rows_conflict(table, call.rows, blob);
    const bool in_place = call.x_dtype == DType::u8 && k == blob.k_pad && !conflicts;
    const int64_t stride = conflicts ? blob.k_pad + kCacheLine : blob.k_pad;
    const LinearInput linear{table, blob, call, mode, k, stride, in_place, dynamic, false};
    if (is_block_sparse(blob)) return run_linear_bsr(linear, epilogue);

    Work work;
    work.weight_bytes = blob.panels * kPanel * blob.k_pad;
    work.multiply_adds = call.rows * work.weight_bytes;
    work.inputs = in_place ? 0 : call.rows * k;
    work.outputs = call.rows * blob.out_channels;
    const int threads = worthwhile_threads(table, call.threads, work);
    const int64_t block = block_rows(linear, threads);
    const size_t rows_bytes =
        block ? linear.rows_bytes(block) * static_cast<size_t>(threads) : linear.rows_bytes(call.rows);
    Workspace& workspace = Workspace::local();
    workspace.reset(rows_bytes + Workspace::size(kScratchBytes * static_cast<size_t>(threads)));
    if (block > 0) {
        run_row_blocks(linear, epilogue, block, threads, workspace);
    } else {
        run_columns(linear, epilogue, threads, workspace);
    }
    workspace.trim();
}

}  // namespace fastcompress
