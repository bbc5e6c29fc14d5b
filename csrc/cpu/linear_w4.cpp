// linear_w4: quantize the rows to s8 by their own scales, then products of four-bit weights (kernels.h, NibbleProduct).
//
// Threads share out panels, each runs through all rows: weights are read from memory once.
#include <algorithm>
#include <stdexcept>

#include "dispatch.h"
#include "epilogue_setup.h"
#include "fastcompress/w4.h"
#include "gemm_driver.h"
#include "quantize.h"
#include "weight_only.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kTasksPerThread = 8;
constexpr size_t kScratch = static_cast<size_t>(kNibbleScratchElements) * sizeof(float) + kNibbleScratchBytes;
constexpr uint8_t kSignBit = 0x80;

// The rows of a call as s8, with their scales and the sums of their groups.
struct SignedRows {
    SignedRows(const BlobHeader& blob, int64_t rows, Workspace& w)
        : stride(blob.k_pad), groups(group_count(blob)), group_size(blob.group_size) {
        values = w.take_array<int8_t>(rows * stride);
        scale = w.take_array<float>(rows);
        sums = w.take_array<int32_t>(rows * groups);
    }
    static size_t bytes(const BlobHeader& blob, int64_t rows) {
        const auto size = [rows](int64_t each) { return Workspace::size(static_cast<size_t>(rows * each)); };
        return size(blob.k_pad) + size(4) + size(4 * group_count(blob));
    }

    void prepare(const KernelTable& table, const LinearCall& call, int64_t k, int64_t row) const {
        int8_t* out = values + row * stride;
        auto* bytes = reinterpret_cast<uint8_t*>(out);
        int32_t zero_point;
        quantize_token(table, row_at(call.x, call.x_dtype, row * k), call.x_dtype, k, true, bytes, scale + row,
                       &zero_point);
        for (int64_t i = 0; i < k; ++i) bytes[i] ^= kSignBit;  // q - 128
        std::fill(out + k, out + stride, int8_t{0});
        for (int64_t g = 0; g < groups; ++g) {
            int32_t sum = 0;
            for (int64_t i = g * group_size, end = std::min(k, i + group_size); i < end; ++i) sum += out[i];
            sums[row * groups + g] = sum;
        }
    }

    int64_t stride, groups, group_size;
    int8_t* values;
    float* scale;
    int32_t* sums;
};

NibbleProduct product_of(const KernelTable& table, const BlobHeader& h, const SignedRows& rows, int64_t count,
                         const Epilogue& epilogue) {
    const auto* blob = reinterpret_cast<const uint8_t*>(&h);
    NibbleProduct p{};
    p.a = rows.values;
    p.rows = count;
    p.a_stride = rows.stride;
    p.sums = rows.sums;
    p.row_scale = rows.scale;
    p.w = blob + h.panels_offset;
    p.scale = blob + h.scale_offset;
    p.scale_dtype = static_cast<DType>(h.scale_dtype);
    const auto kind = static_cast<ZeroKind>(h.zero_kind);
    if (kind == ZeroKind::zero_point) p.zero_point = blob + h.zero_offset;
    if (kind == ZeroKind::minimum) p.minimum = reinterpret_cast<const float*>(blob + h.zero_offset);
    p.octets = h.k_pad / 8;
    p.group_octets = ceil_div(h.group_size, 8);
    p.groups = rows.groups;
    p.channels = h.out_channels;
    p.finish = table.epilogue;
    p.epilogue = &epilogue;
    return p;
}

}  // namespace

void linear_w4(const BlobHeader& blob, const LinearCall& call) {
    if (!is_four_bit(blob)) throw std::invalid_argument("linear_w4: the packed weights are not four-bit ones");
    if (call.x_dtype != DType::f32 && call.x_dtype != DType::bf16 && call.x_dtype != DType::f16)
        throw std::invalid_argument("linear_w4: input must be f32, bf16 or f16");
    const Epilogue epilogue = make_epilogue(blob, call.out, "linear_w4");
    if (call.rows == 0) return;
    if (static_cast<InputMode>(blob.input_mode) == InputMode::real) return run_weight_only(blob, call, epilogue);
    const KernelTable& table = table_for(static_cast<Isa>(blob.isa));
    Work work;
    work.weight_bytes = blob.panels * kPanel * blob.k_pad / 2;
    work.multiply_adds = 2 * call.rows * work.weight_bytes;
    work.inputs = call.rows * blob.in_channels;
    work.outputs = call.rows * blob.out_channels;
    const int threads = worthwhile_threads(table, call.threads, work);
    const int64_t together = table.nibbles.panels, units = ceil_div(blob.panels, together);
    const int64_t tasks = std::min(units, threads * kTasksPerThread);
    Workspace& workspace = Workspace::local();
    workspace.reset(SignedRows::bytes(blob, call.rows) + Workspace::size(kScratch * static_cast<size_t>(threads)));
    const SignedRows rows(blob, call.rows, workspace);
    auto* scratch = workspace.take_array<uint8_t>(static_cast<int64_t>(kScratch) * threads);
    TaskQueue quantize(call.rows, threads), products(tasks, threads);
    parallel(threads, [&](Team& team) {
        for (int64_t row; quantize.next(team, &row);) rows.prepare(table, call, blob.in_channels, row);
        team.barrier();
        NibbleProduct p = product_of(table, blob, rows, call.rows, epilogue);
        p.bytes = scratch + static_cast<int64_t>(kScratch) * team.thread();
        p.c = reinterpret_cast<float*>(p.bytes + kNibbleScratchBytes);
        for (int64_t task; products.next(team, &task);) {
            p.panel0 = units * task / tasks * together;
            p.panel1 = std::min(blob.panels, units * (task + 1) / tasks * together);
            table.nibbles.product(p);
        }
    });
    workspace.trim();
}

}  // namespace fastcompress
