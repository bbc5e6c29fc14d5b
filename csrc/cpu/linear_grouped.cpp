// linear_w4, linear_w8: quantize the rows to 8 bits by row or to 16 by group, then products of weights in groups (kernels.h,
// GroupedProduct).
//
// Threads share out panels, each runs through all rows: weights are read from memory once.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "dispatch.h"
#include "epilogue_setup.h"
#include "fastcompress/w4.h"
#include "gemm_driver.h"
#include "quantize.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kTasksPerThread = 16;
constexpr int64_t kRowsOfTiles = 12;  // a multiple of every kernel's rows
constexpr int64_t kRowsPerPart = 24;  // of activations: each part reads all of its weights
constexpr float kSmallestScale = 0x1p-100f;
constexpr float kLargest16 = 127 * 257;  // high and low bytes of it and of all below are in [-128, 127]
constexpr int64_t kStagger = 64;         // bytes: rows a power of two apart would meet in the same sets of L1

bool is_16bit(const BlobHeader& h) { return static_cast<InputMode>(h.input_mode) == InputMode::per_group_16bit; }

bool has_minima(const BlobHeader& h) { return static_cast<ZeroKind>(h.zero_kind) == ZeroKind::minimum; }

// The rows of a call as s8, one each or two (high and low bytes), with their scales and the sums of their groups.
struct SignedRows {
    SignedRows(const BlobHeader& h, int64_t count, Workspace& w)
        : wide(is_16bit(h)),
          each(wide ? 2 : 1),
          inputs(h.in_channels),
          stride(h.k_pad + kStagger),
          groups(group_count(h)),
          group_size(h.group_size) {
        if (static_cast<ZeroKind>(h.zero_kind) == ZeroKind::middle) zero = is_four_bit(h) ? 8 : 128;
        values = w.take_array<int8_t>(count * each * stride);
        scale = w.take_array<float>(count * (wide ? groups : 1));
        sums = w.take_array<int32_t>(count * each * groups);
        if (has_minima(h)) input_sum = w.take_array<float>(count * groups);
    }
    static size_t bytes(const BlobHeader& h, int64_t count) {
        const int64_t each = is_16bit(h) ? 2 : 1, groups = group_count(h);
        const auto size = [count](int64_t one) { return Workspace::size(static_cast<size_t>(count * one)); };
        return size(each * (h.k_pad + kStagger)) + size(4 * (is_16bit(h) ? groups : 1)) + size(4 * each * groups) +
               size(has_minima(h) ? 4 * groups : 0);
    }

    void prepare(const KernelTable& table, const LinearCall& call, int64_t row) const {
        const void* x = row_at(call.x, call.x_dtype, row * inputs);
        wide ? split(table, x, call.x_dtype, row) : quantize(table, x, call.x_dtype, row);
        for (int64_t r = row * each; r < (row + 1) * each; ++r) {
            int8_t* out = values + r * stride;
            std::fill(out + inputs, out + stride, int8_t{0});
            int32_t* const of_row = sums + r * groups;
            table.grouped.group_sums(out, inputs, ceil_div(group_size, 4), of_row);
            for (int64_t g = 0; zero && g < groups; ++g) of_row[g] *= -zero;
        }
        for (int64_t g = 0; input_sum && g < groups; ++g) {
            const int32_t* of_row = sums + row * each * groups + g;
            const float first = static_cast<float>(of_row[0]);
            float* to = input_sum + row * groups + g;
            *to = first;
            if (!wide) continue;
            const float high = first * 256.0f;
            *to = (high + static_cast<float>(of_row[groups])) * scale[row * groups + g];
        }
    }

    // The rows of one of `parts` parts of a product; whole tiles but for the last.
    GroupedProduct part(GroupedProduct p, int64_t count, int64_t index, int64_t parts) const {
        const int64_t per = round_up(ceil_div(count, parts), kRowsOfTiles);
        const int64_t begin = std::min(count, per * index), end = std::min(count, begin + per);
        p.rows = (end - begin) * each;
        p.row0 = begin;
        p.a += begin * each * stride;
        if (p.start) p.start += begin * each * groups;
        if (p.sums) p.sums += begin * each * groups;
        p.a_scale += begin * (wide ? groups : 1);
        if (p.input_sum) p.input_sum += begin * groups;
        return p;
    }

    void quantize(const KernelTable& table, const void* x, DType dtype, int64_t row) const {
        auto* out = reinterpret_cast<uint8_t*>(values + row * stride);
        const TokenParameters p = token_parameters(table, x, dtype, inputs, true);
        scale[row] = p.scale;
        if (p.finite)
            table.quantize(x, dtype, inputs, p.inverse_scale, 0, true, out);
        else
            std::memset(out, 0, static_cast<size_t>(inputs));
    }

    void split(const KernelTable& table, const void* x, DType dtype, int64_t row) const {
        int8_t *high = values + 2 * row * stride, *low = high + stride;
        float* scales = scale + row * groups;
        bool finite = true;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t begin = g * group_size, count = std::min(group_size, inputs - begin);
            const void* from = row_at(x, dtype, begin);
            float lo = 0.0f, hi = 0.0f;
            finite = finite && table.range(from, dtype, count, &lo, &hi);
            if (!finite) break;
            scales[g] = std::max(std::max(hi, -lo) * (1.0f / kLargest16), kSmallestScale);
            table.split(from, dtype, count, 1.0f / scales[g], high + begin, low + begin);
        }
        if (finite) return;
        std::fill(scales, scales + groups, std::numeric_limits<float>::quiet_NaN());
        std::memset(high, 0, static_cast<size_t>(2 * stride));
    }

    bool wide;
    int64_t each, inputs, stride, groups, group_size;
    int8_t* values;
    float* scale;
    int32_t* sums;     // of a group's activations; where codes have one zero (then there are no minima), times -zero
    int32_t zero = 0;  // 0: none, or one of each group
    float* input_sum = nullptr;
};

GroupedProduct product_of(const KernelTable& table, const BlobHeader& h, const SignedRows& rows, int64_t count,
                          const Epilogue& epilogue) {
    const auto* blob = reinterpret_cast<const uint8_t*>(&h);
    GroupedProduct p{};
    p.a = rows.values;
    p.rows = count * rows.each;
    p.a_stride = rows.stride;
    if (rows.zero) p.start = rows.sums;
    p.a_scale = rows.scale;
    p.input_sum = rows.input_sum;
    p.w = blob + h.panels_offset;
    p.scale = blob + h.scale_offset;
    p.scale_dtype = static_cast<DType>(h.scale_dtype);
    const auto kind = static_cast<ZeroKind>(h.zero_kind);
    if (kind == ZeroKind::zero_point) {
        p.zero_point = blob + h.zero_offset;
        p.sums = rows.sums;
    }
    if (kind == ZeroKind::minimum) p.minimum = reinterpret_cast<const float*>(blob + h.zero_offset);
    p.octets = h.k_pad / 8;
    p.group_octets = ceil_div(h.group_size, 8);
    p.groups = rows.groups;
    p.channels = h.out_channels;
    p.finish = table.epilogue;
    p.epilogue = &epilogue;
    return p;
}

// How many parts the rows are dealt out in: one, unless there are too few panels to keep all threads busy to the end.
int64_t row_parts(int64_t rows, int64_t units, int threads) {
    if (threads == 1 || units >= threads * kTasksPerThread) return 1;
    return std::max<int64_t>(1, std::min(rows / kRowsPerPart, ceil_div(threads * kTasksPerThread, units)));
}

Work work_of(const BlobHeader& h, int64_t rows) {
    const int64_t weights = h.panels * kPanel * h.k_pad;
    Work work;
    work.weight_bytes = weights * h.value_bits / 8;
    work.multiply_adds = rows * weights * (is_16bit(h) ? 2 : 1);
    work.inputs = rows * h.in_channels;
    work.outputs = rows * h.out_channels;
    return work;
}

void run(const char* op, const BlobHeader& blob, const LinearCall& call) {
    if (call.x_dtype != DType::f32 && call.x_dtype != DType::bf16 && call.x_dtype != DType::f16)
        throw std::invalid_argument(std::string(op) + ": input must be f32, bf16 or f16");
    const Epilogue epilogue = make_epilogue(blob, call.out, op);
    if (call.rows == 0) return;
    const KernelTable& table = table_for(static_cast<Isa>(blob.isa));
    const GroupedTable& kernels = table.grouped;
    const auto product = !is_four_bit(blob) ? kernels.w8a16 : is_16bit(blob) ? kernels.w4a16 : kernels.w4a8;
    const int threads = worthwhile_threads(table, call.threads, work_of(blob, call.rows));
    const int64_t together = kernels.panels, units = ceil_div(blob.panels, together);
    const int64_t parts = row_parts(call.rows, units, threads), tasks = std::min(units, threads * kTasksPerThread);
    Workspace& workspace = Workspace::local();
    const int64_t scratch_elements = kGroupedScratchElements * threads;
    workspace.reset(SignedRows::bytes(blob, call.rows) + Workspace::size(4 * static_cast<size_t>(scratch_elements)));
    const SignedRows rows(blob, call.rows, workspace);
    auto* scratch = workspace.take_array<float>(scratch_elements);
    TaskQueue quantize(call.rows, threads), products(tasks * parts, threads);
    parallel(threads, [&](Team& team) {
        for (int64_t row; quantize.next(team, &row);) rows.prepare(table, call, row);
        team.barrier();
        GroupedProduct p = product_of(table, blob, rows, call.rows, epilogue);
        p.c = scratch + kGroupedScratchElements * team.thread();
        for (int64_t task; products.next(team, &task);) {
            GroupedProduct part = rows.part(p, call.rows, task % parts, parts);
            const int64_t unit = task / parts;
            part.panel0 = units * unit / tasks * together;
            part.panel1 = std::min(blob.panels, units * (unit + 1) / tasks * together);
            product(part);
        }
    });
    workspace.trim();
}

}  // namespace

void linear_w4(const BlobHeader& blob, const LinearCall& call) {
    if (!is_grouped(blob) || !is_four_bit(blob))
        throw std::invalid_argument("linear_w4: the packed weights are not four-bit ones in groups");
    run("linear_w4", blob, call);
}

void linear_w8(const BlobHeader& blob, const LinearCall& call) {
    if (!is_grouped(blob) || is_four_bit(blob))
        throw std::invalid_argument("linear_w8: the packed weights are not eight-bit ones in groups");
    run("linear_w8", blob, call);
}

}  // namespace fastcompress
