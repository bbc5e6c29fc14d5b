// linear_w8a8: quantize the rows (or take them as they are), then one GEMM with epilogue, in one parallel region.
//
// Few rows, or weights larger than the cache: all rows are quantized first, then threads share out weight panels.
// Many rows and small weights: each thread quantizes a block of rows and takes it through all weights while it is warm.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "epilogue_setup.h"
#include "fastcompress/w8a8.h"
#include "gemm_driver.h"
#include "quantize.h"
#include "workspace.h"

namespace fastcompress {
namespace {

// Quantized rows and, for dynamic activations, their parameters.
struct Rows {
    uint8_t* q;  // [count, stride]; null: the caller's u8 rows are used where they lie
    float* scale;
    int32_t* zero_point;
};

// What does not change during a call.
struct Linear {
    const KernelTable& table;
    const BlobHeader& blob;
    const LinearCall& call;
    InputMode mode;
    int64_t k, stride;
    bool in_place, dynamic;

    size_t rows_bytes(int64_t count) const {
        const size_t q = in_place ? 0 : static_cast<size_t>(count * stride);
        const size_t tokens = dynamic ? static_cast<size_t>(count) * sizeof(float) : 0;
        return Workspace::size(q) + 2 * Workspace::size(tokens);
    }
    Rows take_rows(Workspace& workspace, int64_t count) const {
        Rows r{};
        if (!in_place) r.q = workspace.take_array<uint8_t>(count * stride);
        if (dynamic) {
            r.scale = workspace.take_array<float>(count);
            r.zero_point = workspace.take_array<int32_t>(count);
        }
        return r;
    }

    // Row `row` of the input to place `slot`.
    void quantize_row(const Rows& rows, int64_t row, int64_t slot) const {
        uint8_t* out = rows.q + slot * stride;
        const void* x = row_at(call.x, call.x_dtype, row * k);
        if (call.x_dtype == DType::u8) {
            std::memcpy(out, x, static_cast<size_t>(k));
        } else if (mode == InputMode::per_tensor) {
            table.quantize(x, call.x_dtype, k, 1.0f / blob.input_scale, blob.input_zero_point, false, out);
        } else {
            quantize_token(table, x, call.x_dtype, k, mode == InputMode::per_token_symmetric, out, rows.scale + slot,
                           rows.zero_point + slot);
        }
        std::memset(out + k, 0, static_cast<size_t>(stride - k));
    }

    // The product of input rows first .. first + count - 1, which lie in `rows` from its start.
    GemmProblem problem(const Rows& rows, Epilogue e, int64_t first, int64_t count) const {
        GemmProblem p{};
        p.table = &table;
        p.rows = count;
        p.columns = blob.out_channels;
        p.a = in_place ? static_cast<const uint8_t*>(call.x) + first * k : rows.q;
        p.a_stride = stride;
        p.segments = 1;
        p.segment_quads = blob.k_pad / 4;
        p.b = blob_panels(blob);
        p.panel_stride = blob.k_pad * kPanel;
        e.out = static_cast<uint8_t*>(e.out) + first * e.out_ld * dtype_bytes(e.out_dtype);
        if (e.residual)
            e.residual =
                static_cast<const uint8_t*>(e.residual) + first * e.residual_ld * dtype_bytes(e.residual_dtype);
        if (dynamic) {
            e.row_scale = rows.scale;
            e.row_zero_point = rows.zero_point;
        } else if (call.row_scale) {
            e.row_scale = call.row_scale + first;
            e.row_zero_point = call.row_zero_point + first;
        }
        p.epilogue = e;
        return p;
    }
};

constexpr int64_t kCacheLine = 64;

// Tile loads read 16 rows at once: with rows a multiple of 512 bytes apart they fall into a few sets of L1 and evict each
// other (measured 46 against 31 ns a step at 4096). One line more between rows is worth a copy when the rows are reused.
bool rows_conflict(const KernelTable& table, int64_t rows, const BlobHeader& blob) {
    return table.uniform_rows && rows > table.small_rows && blob.k_pad % 512 == 0 && blob.out_channels >= 256;
}

constexpr int64_t kMaxBlockRows = 128;
constexpr int64_t kResidentWeights = 1 << 20;  // bytes: half of L2

// Rows of a block when each thread takes blocks of rows through all weights; 0 when columns are to be shared out instead:
// too few rows, weights that would be read from memory again for each block, or an uneven division.
int64_t block_rows(const Linear& l, int threads) {
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

void run_row_blocks(const Linear& l, const Epilogue& epilogue, int64_t rows_per_block, int threads,
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
                for (int64_t i = 0; i < count; ++i) l.quantize_row(mine, first + i, i);
            const GemmProblem problem = l.problem(mine, epilogue, first, count);
            const GemmPlan plan = plan_gemm(l.table, count, l.blob.out_channels, l.blob.k_pad, 1);
            for (int64_t task = 0; task < plan.tasks(); ++task)
                run_gemm_task(problem, plan, task, thread_scratch(scratch, team));
        }
    });
}

void run_columns(const Linear& l, const Epilogue& epilogue, int threads, Workspace& workspace) {
    const Rows rows = l.take_rows(workspace, l.call.rows);
    uint8_t* scratch = workspace.take_array<uint8_t>(static_cast<int64_t>(kScratchBytes) * threads);
    const GemmProblem problem = l.problem(rows, epilogue, 0, l.call.rows);
    const GemmPlan plan = plan_gemm(l.table, l.call.rows, l.blob.out_channels, l.blob.k_pad, threads);
    TaskQueue quantize(l.in_place ? 0 : l.call.rows, threads), tasks(plan.tasks(), threads);
    parallel(threads, [&](Team& team) {
        if (!l.in_place) {
            for (int64_t row; quantize.next(team, &row);) l.quantize_row(rows, row, row);
            team.barrier();
        }
        for (int64_t task; tasks.next(team, &task);) run_gemm_task(problem, plan, task, thread_scratch(scratch, team));
    });
}

}  // namespace

void linear_w8a8(const BlobHeader& blob, const LinearCall& call) {
    if (blob.family != static_cast<int32_t>(Family::linear))
        throw std::invalid_argument("linear_w8a8: the packed weights belong to a convolution; use conv2d_w8a8");
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
    const Linear linear{table, blob, call, mode, k, stride, in_place, dynamic};

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
