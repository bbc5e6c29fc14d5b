// Blobs opened for the operator that is going to use them: the first thing a caller hears about a blob of another family
// is that, and not that some shape differs.
#pragma once

#include <stdexcept>
#include <string>

#include "fastcompress/blob.h"

namespace fastcompress::bindings {

// The operator that runs a blob's weights.
inline const char* operator_of(const BlobHeader& h) {
    if (is_grouped(h)) return is_four_bit(h) ? "linear_w4" : "linear_w8";
    if (has_real_weights(h)) return is_linear(h) ? "linear_bsr" : "conv2d_bsr";
    return is_linear(h) ? "linear_w8a8" : "conv2d_w8a8";
}

inline const BlobHeader& open_for(const char* op, const void* blob, int64_t bytes) {
    const BlobHeader& header = open_blob(static_cast<const uint8_t*>(blob), bytes);
    if (std::string(op) != operator_of(header))
        throw std::invalid_argument(std::string(op) + ": the packed weights belong to a " +
                                    (is_four_bit(header)        ? "four-bit "
                                     : is_grouped(header)       ? "weight-only int8 "
                                     : has_real_weights(header) ? "block-sparse float "
                                                                : "") +
                                    (is_linear(header) ? "linear layer" : "convolution") + "; use " +
                                    operator_of(header));
    return header;
}

}  // namespace fastcompress::bindings
