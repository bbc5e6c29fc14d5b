// The quantized image that convolutions read: [images][height][width][pitch] u8, borders and channel padding included,
// so that kernels never test for borders.
#pragma once

#include "fastcompress/kernels.h"

namespace fastcompress {

struct ImageSource {
    const void* x;
    DType dtype;  // f32, bf16, f16; u8 is copied
    bool channels_last;
    int64_t channels, height, width;
    // Pixels are taken every step_h rows and step_w columns (1x1 convolutions with a stride need no others).
    int64_t step_h, step_w;
    float inverse_scale;
    int32_t zero_point;
};

struct ImageLayout {
    int64_t height, width, pitch;  // with borders
    int64_t top, left;             // border before the first source pixel
    // Channels of a group lie together, group_pad bytes apart; group_channels of them are real.
    int64_t groups, group_channels, group_pad;
    int64_t row_bytes() const { return width * pitch; }
    int64_t image_bytes() const { return height * row_bytes(); }
};

// Rows of the layout that are worth building together, so that short rows do not end every vector loop early.
int64_t image_rows_per_task(const ImageSource& source, const ImageLayout& layout);

// Scratch bytes that build_image_rows needs for so many rows.
int64_t image_scratch_bytes(const ImageSource& source, int64_t rows);

// Writes rows [y0, y1) (of 0 .. layout.height) of image `image` to out, which is where row y0 begins.
void build_image_rows(const KernelTable& table, const ImageSource& source, const ImageLayout& layout, int64_t image,
                      int64_t y0, int64_t y1, uint8_t* out, uint8_t* scratch);

}  // namespace fastcompress
