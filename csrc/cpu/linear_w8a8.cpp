// linear_w8a8: quantize the rows (or take them as they are), then one GEMM with epilogue, in one parallel region.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "dispatch.h"
#include "epilogue_setup.h"
#include "fastcompress/w8a8.h"
#include "gemm_driver.h"
#include "quantize.h"
#include "workspace.h"

namespace fastcompress {
namespace {

// Everything the threads share.
struct Linear {
    const KernelTable& table;
    const BlobHeader& blob;
    const LinearCall& call;
    InputMode mode;
    int64_t k, stride;
    uint8_t* quantized;  // [rows, stride]; null: the caller's u8 rows are used where they lie
    float* scale;
    int32_t* zero_point;

    void quantize_row(int64_t row) const {
        uint8_t* out = quantized + row * stride;
        const void* x = row_at(call.x, call.x_dtype, row * k);
        if (call.x_dtype == DType::u8) {
            std::memcpy(out, x, static_cast<size_t>(k));
        } else if (mode == InputMode::per_tensor) {
            table.quantize(x, call.x_dtype, k, 1.0f / blob.input_scale, blob.input_zero_point, 0, 255, out);
        } else {
            quantize_token(table, x, call.x_dtype, k, mode == InputMode::per_token_symmetric, out, scale + row,
                           zero_point + row);
        }
        std::memset(out + k, 0, static_cast<size_t>(stride - k));
    }
};

constexpr int64_t kCacheLine = 64;

// Tile loads read 16 rows at once: with rows a multiple of 512 bytes apart they fall into a few sets of L1 and evict each
// other (measured 46 against 31 ns a step at 4096). One line more between rows is worth a copy when the rows are reused.
bool rows_conflict(const KernelTable& table, int64_t rows, const BlobHeader& blob) {
    return table.uniform_rows && rows > table.small_rows && blob.k_pad % 512 == 0 && blob.out_channels >= 256;
}

GemmProblem make_problem(const Linear& l) {
    GemmProblem p{};
    p.table = &l.table;
    p.rows = l.call.rows;
    p.columns = l.blob.out_channels;
    p.panels = l.blob.panels;
    p.a = l.quantized ? l.quantized : static_cast<const uint8_t*>(l.call.x);
    p.a_stride = l.stride;
    p.segments = 1;
    p.segment_quads = l.blob.k_pad / 4;
    p.b = blob_panels(l.blob);
    p.panel_stride = l.blob.k_pad * kPanel;
    p.epilogue = make_epilogue(l.blob, l.call.out, "linear_w8a8");
    p.epilogue.row_scale = l.scale ? l.scale : l.call.row_scale;
    p.epilogue.row_zero_point = l.zero_point ? l.zero_point : l.call.row_zero_point;
    return p;
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
    const int64_t k = blob.in_channels;
    const int64_t rows = call.rows;
    const bool conflicts = rows_conflict(table, rows, blob);
    const bool in_place = call.x_dtype == DType::u8 && k == blob.k_pad && !conflicts;
    const int64_t stride = conflicts ? blob.k_pad + kCacheLine : blob.k_pad;
    const int threads = gemm_threads(call.threads, rows * blob.k_pad * blob.out_channels);

    Workspace& workspace = Workspace::local();
    const size_t quantized_bytes = in_place ? 0 : static_cast<size_t>(rows * stride);
    const size_t token_bytes = dynamic ? static_cast<size_t>(rows) * 4 : 0;
    workspace.reset(Workspace::size(quantized_bytes) + 2 * Workspace::size(token_bytes) +
                    Workspace::size(kScratchBytes * static_cast<size_t>(threads)));
    Linear linear{table, blob, call, mode, k, stride, nullptr, nullptr, nullptr};
    if (!in_place) linear.quantized = workspace.take_array<uint8_t>(rows * stride);
    if (dynamic) {
        linear.scale = workspace.take_array<float>(rows);
        linear.zero_point = workspace.take_array<int32_t>(rows);
    }
    uint8_t* scratch = workspace.take_array<uint8_t>(static_cast<int64_t>(kScratchBytes) * threads);

    const GemmProblem problem = make_problem(linear);
    if (rows == 0) return;
    const GemmPlan plan = plan_gemm(linear.table, rows, blob.out_channels, threads);
    TaskQueue rows_queue(in_place ? 0 : rows, threads), tasks(plan.tasks(), threads);
    parallel(threads, [&](Team& team) {
        if (!in_place) {
            for (int64_t row; rows_queue.next(team, &row);) linear.quantize_row(row);
            team.barrier();
        }
        int32_t* mine = reinterpret_cast<int32_t*>(scratch + kScratchBytes * static_cast<size_t>(team.thread()));
        for (int64_t task; tasks.next(team, &task);) run_gemm_task(problem, plan, task, mine);
    });
    workspace.trim();
}

}  // namespace fastcompress
