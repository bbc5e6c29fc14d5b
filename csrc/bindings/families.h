// Blobs opened for the family that is going to use them: the first thing a caller hears about a blob of another family
// is that, and not that some shape differs.
#pragma once

#include <stdexcept>

#include "fastcompress/blob.h"

namespace fastcompress::bindings {

inline const BlobHeader& open_linear(const void* blob, int64_t bytes) {
    const BlobHeader& header = open_blob(static_cast<const uint8_t*>(blob), bytes);
    if (header.family != static_cast<int32_t>(Family::linear) && !is_block_sparse(header))
        throw std::invalid_argument("linear_w8a8: the packed weights belong to a convolution; use conv2d_w8a8");
    return header;
}

inline const BlobHeader& open_conv2d(const void* blob, int64_t bytes) {
    const BlobHeader& header = open_blob(static_cast<const uint8_t*>(blob), bytes);
    if (header.family == static_cast<int32_t>(Family::linear) || is_block_sparse(header))
        throw std::invalid_argument("conv2d_w8a8: the packed weights belong to a linear layer; use linear_w8a8");
    return header;
}

}  // namespace fastcompress::bindings
