// Scalar side of activation quantization, shared by the drivers.
#pragma once

#include "fastcompress/kernels.h"

namespace fastcompress {

struct TokenParameters {
    float scale;
    float inverse_scale;
    int32_t zero_point;
    bool finite;  // false: the row holds NaN or infinity; q is 0 and scale is NaN
};

// docs/architecture.md, section 1.
TokenParameters token_parameters(const KernelTable& table, const void* row, DType dtype, int64_t columns,
                                 bool symmetric);

// Quantizes one row by its own parameters; writes `columns` bytes.
void quantize_token(const KernelTable& table, const void* row, DType dtype, int64_t columns, bool symmetric,
                    uint8_t* out, float* scale, int32_t* zero_point);

inline const void* row_at(const void* base, DType dtype, int64_t element) {
    return static_cast<const uint8_t*>(base) + element * dtype_bytes(dtype);
}

}  // namespace fastcompress
