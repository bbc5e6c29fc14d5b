// The one epilogue: what happens to an accumulator on its way to memory. Every kernel family ends here;
// a new fusion is a new field, never a new kernel.
//
//   acc'      = acc - zero_point[m] * column_sum[n]                      (int32, wraps; the true value fits)
//   v         = float(acc') * (row_scale[m] * weight_scale[n])
//             acc, where accumulators are float32 (`real`)
//   v         = v + bias[n]            if bias
//   v         = v + residual[m, n]     if residual
//   v         = activation(v)
//   out[m, n] = convert(v), or clamp(rint(v * out_inverse_scale) + out_zero_point), or acc' itself (i32)
//
// Every operation is one IEEE float32 operation, rounded to nearest even, in this order on every ISA.
#pragma once

#include "fastcompress/types.h"

namespace fastcompress {

struct Epilogue {
    // Accumulators are float32 and neither scaled nor compensated: the next seven fields but `bias` are not used.
    bool real;

    // Per output channel, padded to a multiple of kPanel (the padding is readable, its values do not matter).
    const float* weight_scale;
    const int32_t* column_sum;
    const float* bias;  // null: none

    // Per row; when null the two scalars below hold for every row.
    const float* row_scale;
    const int32_t* row_zero_point;
    float scale;
    int32_t zero_point;

    // Row m, channel n at residual + (m * residual_ld + n) elements of residual_dtype (f32, bf16 or f16). Null: none.
    const void* residual;
    int64_t residual_ld;
    DType residual_dtype;

    Activation activation;

    // Row m, channel n at out + (m * out_ld + n) elements of out_dtype.
    DType out_dtype;
    void* out;
    int64_t out_ld;
    float out_inverse_scale;  // u8 and s8 only
    int32_t out_zero_point;   // u8 and s8 only
};

}  // namespace fastcompress
