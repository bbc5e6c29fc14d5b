// Shapes of a convolution and the byte offsets by which its kernels walk the quantized image. Pure arithmetic.
#pragma once

#include <vector>

#include "fastcompress/w8a8.h"
#include "image.h"

namespace fastcompress {

struct ConvGeometry {
    int64_t out_h, out_w;
    int64_t pixels() const { return out_h * out_w; }  // of one image
    ImageLayout image;
    int64_t source_step_h, source_step_w;  // how the source is subsampled while it is quantized
    int64_t step_h, step_w;                // strides left for the kernel to take
    bool uniform;                          // pixels of an image lie `pitch` apart: a plain matrix
    // Reduction: runs of segment_bytes at these offsets from a pixel's first tap (kernels.h, GemmBlock); for depthwise
    // convolutions the tap offsets of DepthwiseRow.
    std::vector<int64_t> segments;
    int64_t segment_bytes;

    // First tap of output pixel (y, x) of one image.
    int64_t pixel_offset(int64_t y, int64_t x) const { return (y * step_h * image.width + x * step_w) * image.pitch; }
};

// Throws std::invalid_argument when strides, dilations or padding are out of range or the output is empty.
ConvGeometry conv_geometry(const BlobHeader& blob, const ConvCall& call);

}  // namespace fastcompress
