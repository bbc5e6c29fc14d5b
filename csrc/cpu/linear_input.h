// The input of a linear layer on its way to a product: rows quantized or widened to float32 (or taken as they are), with their
// parameters.
#pragma once

#include <cstring>

#include "dispatch.h"
#include "fastcompress/w8a8.h"
#include "quantize.h"
#include "workspace.h"

namespace fastcompress {

// Prepared rows and, for dynamic activations, their parameters.
struct Rows {
    uint8_t* q;  // [count, stride] bytes; null: the caller's rows are used where they lie
    float* scale;
    int32_t* zero_point;
};

// Rows that are pixels of an NHWC image, taken with strides.
struct PixelRows {
    int64_t height, width, out_h, out_w, stride_h, stride_w;

    // The pixel, of all images, that is row `row`.
    int64_t operator()(int64_t row) const {
        const int64_t x = row % out_w, y = row / out_w % out_h, image = row / (out_w * out_h);
        return (image * height + y * stride_h) * width + x * stride_w;
    }
};

// What does not change during a call.
struct LinearInput {
    const KernelTable& table;
    const BlobHeader& blob;
    const LinearCall& call;
    InputMode mode;
    int64_t k, stride;  // stride: bytes
    bool in_place, dynamic;
    bool real;                          // for float weights
    const PixelRows* pixels = nullptr;  // null: row r of the input is row r

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
    void prepare_row(const Rows& rows, int64_t row, int64_t slot) const {
        uint8_t* out = rows.q + slot * stride;
        const void* x = row_at(call.x, call.x_dtype, (pixels ? (*pixels)(row) : row) * k);
        if (real) {
            if (call.x_dtype != DType::f32) return table.widen(x, call.x_dtype, k, reinterpret_cast<float*>(out));
            std::memcpy(out, x, static_cast<size_t>(stride));
            return;
        }
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

    // `e` for input rows first .., whose prepared form lies in `rows` from its start.
    Epilogue epilogue_of(const Rows& rows, Epilogue e, int64_t first) const {
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
        return e;
    }

    // Where prepared row 0 of `rows`, which is input row `first`, lies.
    const uint8_t* prepared(const Rows& rows, int64_t first) const {
        return in_place ? static_cast<const uint8_t*>(call.x) + first * stride : rows.q;
    }
};

// The input of float weights.
inline LinearInput real_input(const KernelTable& table, const BlobHeader& blob, const LinearCall& call) {
    const int64_t k = blob.in_channels, stride = k * static_cast<int64_t>(sizeof(float));
    return {table, blob, call, InputMode::per_tensor, k, stride, call.x_dtype == DType::f32, false, true};
}

}  // namespace fastcompress
