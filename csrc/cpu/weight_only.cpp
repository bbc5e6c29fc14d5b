// Weight-only layers: widen the rows to float32, then products of codes (kernels.h, WeightOnlyProduct).
//
// Threads share out panels, each runs through all rows: weights are read from memory once.
#include "weight_only.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "dispatch.h"
#include "epilogue_setup.h"
#include "gemm_driver.h"
#include "quantize.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kTasksPerThread = 8;
constexpr size_t kScratch = static_cast<size_t>(kNibbleScratchElements) * sizeof(float);
constexpr int64_t kRealMultiplies = 4;  // a float product takes as long as so many s8 ones
constexpr int64_t kStagger = 16;        // elements: rows a power of two apart would meet in the same sets of L1
constexpr int64_t kOctet = 8;

// The rows of a call as float32 and, where weights have zero points or minima, the sums of their groups.
struct RealRows {
    RealRows(const BlobHeader& blob, int64_t rows, Workspace& w)
        : stride(blob.k_pad + kStagger), k_pad(blob.k_pad), groups(sum_count(blob)), group_size(blob.group_size) {
        values = w.take_array<float>(rows * stride);
        sums = w.take_array<float>(rows * groups);
    }
    static int64_t sum_count(const BlobHeader& blob) {
        return static_cast<ZeroKind>(blob.zero_kind) == ZeroKind::middle ? 0 : group_count(blob);
    }
    static size_t bytes(const BlobHeader& blob, int64_t rows) {
        const auto size = [rows](int64_t each) { return Workspace::size(static_cast<size_t>(rows * each) * 4); };
        return size(blob.k_pad + kStagger) + size(sum_count(blob));
    }

    void prepare(const KernelTable& table, const LinearCall& call, int64_t k, int64_t row) const {
        float* out = values + row * stride;
        const void* x = row_at(call.x, call.x_dtype, row * k);
        if (call.x_dtype == DType::f32)
            std::memcpy(out, x, static_cast<size_t>(k) * sizeof(float));
        else
            table.widen(x, call.x_dtype, k, out);
        std::fill(out + k, out + k_pad, 0.0f);
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t begin = g * group_size;
            sums[row * groups + g] = sum(out + begin, out + std::min(k_pad, begin + group_size));
        }
    }

    // Eight sums side by side, then in pairs. Whole octets: behind the last input lie zeros.
    static float sum(const float* x, const float* end) {
        float lane[kOctet] = {};
        for (; x < end; x += kOctet)
            for (int64_t i = 0; i < kOctet; ++i) lane[i] += x[i];
        return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    }

    int64_t stride, k_pad, groups, group_size;
    float *values, *sums;
};

WeightOnlyProduct product_of(const KernelTable& table, const BlobHeader& h, const RealRows& rows, int64_t count,
                             const Epilogue& epilogue) {
    const auto* blob = reinterpret_cast<const uint8_t*>(&h);
    WeightOnlyProduct p{};
    p.a = rows.values;
    p.rows = count;
    p.a_stride = rows.stride;
    p.sums = rows.sums;
    p.w = blob + h.panels_offset;
    p.scale = blob + h.scale_offset;
    p.scale_dtype = static_cast<DType>(h.scale_dtype);
    p.zero = is_four_bit(h) ? 8.0f : 128.0f;
    const auto kind = static_cast<ZeroKind>(h.zero_kind);
    if (kind == ZeroKind::zero_point) p.zero_point = blob + h.zero_offset;
    if (kind == ZeroKind::minimum) {
        p.zero = 0.0f;
        p.minimum = reinterpret_cast<const float*>(blob + h.zero_offset);
    }
    p.octets = h.k_pad / kOctet;
    p.group_octets = ceil_div(h.group_size, kOctet);
    p.groups = group_count(h);
    p.channels = h.out_channels;
    p.finish = table.epilogue;
    p.epilogue = &epilogue;
    return p;
}

}  // namespace

void run_weight_only(const BlobHeader& blob, const LinearCall& call, const Epilogue& epilogue) {
    const KernelTable& table = table_for(static_cast<Isa>(blob.isa));
    Work work;
    const int64_t weights = blob.panels * kPanel * blob.k_pad;
    work.weight_bytes = weights * blob.value_bits / 8;
    work.multiply_adds = kRealMultiplies * call.rows * weights;
    work.inputs = call.rows * blob.in_channels;
    work.outputs = call.rows * blob.out_channels;
    const int threads = worthwhile_threads(table, call.threads, work);
    const WeightOnlyTable& kernels = table.weight_only;
    const int64_t together = call.rows == 1 ? kernels.panels_alone : kernels.panels;
    const int64_t units = ceil_div(blob.panels, together), tasks = std::min(units, threads * kTasksPerThread);
    Workspace& workspace = Workspace::local();
    workspace.reset(RealRows::bytes(blob, call.rows) + Workspace::size(kScratch * static_cast<size_t>(threads)));
    const RealRows rows(blob, call.rows, workspace);
    auto* scratch = workspace.take_array<float>(kNibbleScratchElements * threads);
    TaskQueue prepare(call.rows, threads), products(tasks, threads);
    parallel(threads, [&](Team& team) {
        for (int64_t row; prepare.next(team, &row);) rows.prepare(table, call, blob.in_channels, row);
        team.barrier();
        WeightOnlyProduct p = product_of(table, blob, rows, call.rows, epilogue);
        p.c = scratch + kNibbleScratchElements * team.thread();
        for (int64_t task; products.next(team, &task);) {
            p.panel0 = units * task / tasks * together;
            p.panel1 = std::min(blob.panels, units * (task + 1) / tasks * together);
            (is_four_bit(blob) ? kernels.four : kernels.eight)(p);
        }
    });
    workspace.trim();
}

void linear_w8(const BlobHeader& blob, const LinearCall& call) {
    if (!is_grouped(blob) || is_four_bit(blob))
        throw std::invalid_argument("linear_w8: the packed weights are not eight-bit ones in groups");
    if (call.x_dtype != DType::f32 && call.x_dtype != DType::bf16 && call.x_dtype != DType::f16)
        throw std::invalid_argument("linear_w8: input must be f32, bf16 or f16");
    const Epilogue epilogue = make_epilogue(blob, call.out, "linear_w8");
    if (call.rows > 0) run_weight_only(blob, call, epilogue);
}

}  // namespace fastcompress
