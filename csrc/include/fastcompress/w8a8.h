// Entry points of the w8a8 family on raw memory. Arguments are checked against the blob; std::invalid_argument says what
// is wrong. Buffers must not overlap. Any thread may call.
#pragma once

#include "fastcompress/blob.h"

namespace fastcompress {

// How many threads share a call: exactly so many, or as many as are worth starting for it, at most `limit` (0: all).
struct Threads {
    int exactly = 0;  // 0: as many as are worthwhile
    int limit = 0;
};

struct OutputSpec {
    void* data = nullptr;
    DType dtype = DType::f32;
    float scale = 1.0f;  // u8 and s8
    int32_t zero_point = 0;
    const void* residual = nullptr;  // same shape as the output
    DType residual_dtype = DType::f32;
};

struct LinearCall {
    const void* x = nullptr;  // [rows, K] contiguous: f32, bf16, f16, or u8 (already quantized)
    DType x_dtype = DType::f32;
    int64_t rows = 0;
    // For u8 input, per row; null: the blob's input scale and zero point.
    const float* row_scale = nullptr;
    const int32_t* row_zero_point = nullptr;
    OutputSpec out;  // [rows, out_channels] contiguous
    Threads threads;
};

// blob: opened (open_blob) for the current ISA.
void linear_w8a8(const BlobHeader& blob, const LinearCall& call);

struct ConvCall {
    const void* x = nullptr;
    DType x_dtype = DType::f32;
    bool channels_last = true;  // x and out are [N,H,W,C]; otherwise [N,C,H,W]
    int64_t batch = 0, height = 0, width = 0;
    int64_t stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
    int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
    OutputSpec out;
    Threads threads;
};

int64_t conv_out_height(const BlobHeader& blob, const ConvCall& call);
int64_t conv_out_width(const BlobHeader& blob, const ConvCall& call);
void conv2d_w8a8(const BlobHeader& blob, const ConvCall& call);

// out[i] = clamp(rint(x[i] / scale) + zero_point), u8 or s8.
void quantize_per_tensor(const void* x, DType x_dtype, int64_t count, float scale, int32_t zero_point, DType out_dtype,
                         uint8_t* out, int threads);
void quantize_per_token(const void* x, DType x_dtype, int64_t rows, int64_t columns, bool symmetric, uint8_t* out,
                        float* scale, int32_t* zero_point, int threads);

}  // namespace fastcompress
