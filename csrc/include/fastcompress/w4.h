// Entry points for four-bit weights on raw memory; as w8a8.h.
#pragma once

#include "fastcompress/w8a8.h"

namespace fastcompress {

// Input: f32, bf16 or f16, quantized to s8 row by row. Integer sums of groups are exact, float32 sums of them are in the order
// that kernels.h says, so the output is the same on every ISA and number of threads.
void linear_w4(const BlobHeader& blob, const LinearCall& call);

}  // namespace fastcompress
