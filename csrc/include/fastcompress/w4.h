// Entry points for weights in groups on raw memory; as w8a8.h.
#pragma once

#include "fastcompress/w8a8.h"

namespace fastcompress {

// Input: f32, bf16 or f16. Where the blob's input mode is `real` it is widened to f32 and all sums are float32, in an order that is
// kernels.h's (WeightOnlyProduct): the same for every number of rows and threads, not for every ISA. Else it is quantized to s8 row by row. Integer sums of groups are exact, float32 sums of them are in the order
// that kernels.h says, so the output is the same on every ISA and number of threads.
void linear_w4(const BlobHeader& blob, const LinearCall& call);

// Eight-bit weights; input mode `real` only.
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
