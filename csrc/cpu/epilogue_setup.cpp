#include "epilogue_setup.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace fastcompress {

Epilogue make_epilogue(const BlobHeader& blob, const OutputSpec& out, const char* op) {
    Epilogue e{};
    e.real = has_real_weights(blob) || is_grouped(blob);
    e.weight_scale = blob_scales(blob);
    e.column_sum = blob_column_sums(blob);
    e.bias = blob_bias(blob);
    e.scale = blob.input_scale;
    e.zero_point = blob.input_zero_point;
    e.residual = out.residual;
    e.residual_ld = blob.out_channels;
    e.residual_dtype = out.residual_dtype;
    e.activation = static_cast<Activation>(blob.activation);
    e.out_dtype = out.dtype;
    e.out = out.data;
    e.out_ld = blob.out_channels;
    e.out_inverse_scale = 1.0f;
    if (out.dtype == DType::i32 && e.real)
        throw std::invalid_argument(std::string(op) + ": float weights have no int32 output; ask for float32");
    if (out.dtype == DType::i32 && out.residual)
        throw std::invalid_argument(std::string(op) +
                                    ": int32 output is the raw accumulator and takes no residual; leave residual out");
    if (out.dtype == DType::u8 || out.dtype == DType::s8) {
        const int32_t low = out.dtype == DType::u8 ? 0 : -128;
        if (!(std::isnormal(out.scale) && out.scale > 0))
            throw std::invalid_argument(std::string(op) + ": out_scale is " + std::to_string(out.scale) +
                                        ", it must be a positive, normal, finite float32");
        if (out.zero_point < low || out.zero_point > low + 255)
            throw std::invalid_argument(std::string(op) + ": out_zero_point " + std::to_string(out.zero_point) +
                                        " is outside the output type's range [" + std::to_string(low) + ", " +
                                        std::to_string(low + 255) + "]");
        e.out_inverse_scale = 1.0f / out.scale;
        e.out_zero_point = out.zero_point;
    }
    return e;
}

}  // namespace fastcompress
