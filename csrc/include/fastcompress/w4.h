// Entry points for weights in groups on raw memory; as w8a8.h.
#pragma once

#include "fastcompress/w8a8.h"

namespace fastcompress {

// Input: f32, bf16 or f16. The blob's input mode says how it is quantized: to 8 bits row by row, or to 16 bits group by group (a value is
// then off by at most 1/65278 of the largest magnitude in its group). Integer sums of groups are exact, float32 sums of them are in the
// order that kernels.h says, so the output is the same on every ISA and number of threads. A row that holds NaN or infinity gives NaN.
void linear_w4(const BlobHeader& blob, const LinearCall& call);

// Eight-bit weights, activations of 16 bits.
void linear_w8(const BlobHeader& blob, const LinearCall& call);

struct EmbeddingCall {
    const void* indices = nullptr;  // [count] int64, or int32
    bool wide = true;               // int64
    int64_t count = 0;
    void* out = nullptr;  // [count, in_channels] of out_dtype: f32, bf16 or f16
    DType out_dtype = DType::f32;
    Threads threads;
};

// Rows of weights in groups as floats: dequantized in float32, each operation rounded, then rounded to out_dtype. Every index is checked
// before anything is written.
void embedding_packed(const BlobHeader& blob, const EmbeddingCall& call);

}  // namespace fastcompress
