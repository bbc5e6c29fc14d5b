// Entry points for block-sparse float weights on raw memory; as w8a8.h, whose operators run block-sparse s8 weights themselves.
#pragma once

#include "fastcompress/w8a8.h"

namespace fastcompress {

// Input: f32, bf16 or f16, widened to f32; sums are float32.
void linear_bsr(const BlobHeader& blob, const LinearCall& call);
void conv2d_bsr(const BlobHeader& blob, const ConvCall& call);

}  // namespace fastcompress
