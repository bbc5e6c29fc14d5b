#include "image.h"

#include <algorithm>
#include <cstring>

#include "quantize.h"
#include "transpose.h"

namespace fastcompress {
namespace {

void quantize_run(const KernelTable& table, const ImageSource& s, int64_t element, int64_t count, uint8_t* out) {
    const void* x = row_at(s.x, s.dtype, element);
    if (s.dtype == DType::u8) {
        std::memcpy(out, x, static_cast<size_t>(count));
    } else {
        table.quantize(x, s.dtype, count, s.inverse_scale, s.zero_point, 0, 255, out);
    }
}

// [width][channels] -> [width][pitch], group by group.
void spread(const uint8_t* from, const ImageLayout& l, int64_t pixels, int64_t step, int64_t channels, uint8_t* to) {
    if (l.groups == 1 && channels == 3 && l.pitch == 4) {  // colour images: by far the most common padding
        for (int64_t x = 0; x < pixels; ++x, from += 3 * step, to += 4) {
            to[0] = from[0];
            to[1] = from[1];
            to[2] = from[2];
            to[3] = 0;
        }
        return;
    }
    for (int64_t x = 0; x < pixels; ++x, from += channels * step, to += l.pitch) {
        std::memset(to, 0, static_cast<size_t>(l.pitch));
        for (int64_t g = 0; g < l.groups; ++g)
            std::memcpy(to + g * l.group_pad, from + g * l.group_channels, static_cast<size_t>(l.group_channels));
    }
}

void build_channels_last(const KernelTable& table, const ImageSource& s, const ImageLayout& l, int64_t row,
                         int64_t pixels, uint8_t* out, uint8_t* scratch) {
    const int64_t element = row * s.width * s.channels;
    if (l.pitch == s.channels && s.step_w == 1) {
        quantize_run(table, s, element, pixels * s.channels, out);
    } else if (l.pitch == s.channels) {
        for (int64_t x = 0; x < pixels; ++x)
            quantize_run(table, s, element + x * s.step_w * s.channels, s.channels, out + x * l.pitch);
    } else {
        quantize_run(table, s, element, s.width * s.channels, scratch);
        spread(scratch, l, pixels, s.step_w, s.channels, out);
    }
}

void build_channels_first(const KernelTable& table, const ImageSource& s, const ImageLayout& l, int64_t image,
                          int64_t row, int64_t pixels, uint8_t* out, uint8_t* scratch) {
    const int64_t plane = s.height * s.width;
    for (int64_t c = 0; c < s.channels; ++c) {
        uint8_t* line = scratch + c * s.width;
        quantize_run(table, s, (image * s.channels + c) * plane + row * s.width, s.width, line);
        if (s.step_w > 1)
            for (int64_t x = 0; x < pixels; ++x) line[x] = line[x * s.step_w];
    }
    if (l.pitch != s.channels) std::memset(out, 0, static_cast<size_t>(pixels * l.pitch));
    for (int64_t g = 0; g < l.groups; ++g)
        transpose_1(scratch + g * l.group_channels * s.width, s.width, l.group_channels, pixels, out + g * l.group_pad,
                    l.pitch);
}

}  // namespace

int64_t image_row_scratch(const ImageSource& s) { return s.channels * s.width; }

void build_image_row(const KernelTable& table, const ImageSource& s, const ImageLayout& l, int64_t image, int64_t y,
                     uint8_t* out, uint8_t* scratch) {
    const int64_t source_y = (y - l.top) * s.step_h;
    if (y < l.top || source_y >= s.height) {
        std::memset(out, s.zero_point, static_cast<size_t>(l.row_bytes()));
        return;
    }
    const int64_t pixels = std::min(ceil_div(s.width, s.step_w), l.width - l.left);
    std::memset(out, s.zero_point, static_cast<size_t>(l.left * l.pitch));
    uint8_t* inside = out + l.left * l.pitch;
    if (s.channels_last) {
        build_channels_last(table, s, l, image * s.height + source_y, pixels, inside, scratch);
    } else {
        build_channels_first(table, s, l, image, source_y, pixels, inside, scratch);
    }
    const int64_t right = l.width - l.left - pixels;
    std::memset(inside + pixels * l.pitch, s.zero_point, static_cast<size_t>(right * l.pitch));
}

}  // namespace fastcompress
