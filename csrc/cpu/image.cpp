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
        table.quantize(x, s.dtype, count, s.inverse_scale, s.zero_point, false, out);
    }
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
constexpr uint32_t kThreeBytes = 0xffffff00u;
#else
constexpr uint32_t kThreeBytes = 0x00ffffffu;
#endif

// [width][channels] -> [width][pitch], group by group.
void spread(const uint8_t* from, const ImageLayout& l, int64_t pixels, int64_t step, int64_t channels, uint8_t* to) {
    if (l.groups == 1 && channels == 3 && l.pitch == 4) {  // colour images: by far the most common padding
        // A word at a time; the last pixel alone has no byte behind it.
        for (int64_t x = 0; x + 1 < pixels; ++x, from += 3 * step, to += 4) {
            uint32_t word;
            std::memcpy(&word, from, 4);
            word &= kThreeBytes;
            std::memcpy(to, &word, 4);
        }
        if (pixels > 0) {
            std::memcpy(to, from, 3);
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

// Source rows [row0, row1) of one image to consecutive rows of the layout; `pixels` of each are taken.
void build_channels_last(const KernelTable& table, const ImageSource& s, const ImageLayout& l, int64_t image,
                         int64_t row0, int64_t row1, int64_t pixels, uint8_t* out, uint8_t* scratch) {
    const int64_t line = s.width * s.channels;
    const int64_t first = (image * s.height + row0) * line;
    if (l.pitch == s.channels && l.width == s.width && s.step_w == 1 && s.step_h == 1)
        return quantize_run(table, s, first, (row1 - row0) * line, out);
    for (int64_t row = row0; row < row1; row += s.step_h, out += l.row_bytes()) {
        const int64_t element = (image * s.height + row) * line;
        if (l.pitch == s.channels && s.step_w == 1) {
            quantize_run(table, s, element, pixels * s.channels, out);
        } else if (l.pitch == s.channels) {
            for (int64_t x = 0; x < pixels; ++x)
                quantize_run(table, s, element + x * s.step_w * s.channels, s.channels, out + x * l.pitch);
        } else {
            quantize_run(table, s, element, line, scratch);
            spread(scratch, l, pixels, s.step_w, s.channels, out);
        }
    }
}

void build_channels_first(const KernelTable& table, const ImageSource& s, const ImageLayout& l, int64_t image,
                          int64_t row0, int64_t row1, int64_t pixels, uint8_t* out, uint8_t* scratch) {
    const int64_t plane = s.height * s.width, run = (row1 - row0) * s.width;
    for (int64_t c = 0; c < s.channels; ++c) {
        uint8_t* lines = scratch + c * run;
        quantize_run(table, s, (image * s.channels + c) * plane + row0 * s.width, run, lines);
        if (s.step_w > 1)
            for (int64_t row = row0; row < row1; row += s.step_h)
                for (int64_t x = 0, at = (row - row0) * s.width; x < pixels; ++x)
                    lines[at + x] = lines[at + x * s.step_w];
    }
    for (int64_t row = row0; row < row1; row += s.step_h, out += l.row_bytes()) {
        if (l.pitch != s.channels) std::memset(out, 0, static_cast<size_t>(pixels * l.pitch));
        for (int64_t g = 0; g < l.groups; ++g)
            transpose_1(scratch + g * l.group_channels * run + (row - row0) * s.width, run, l.group_channels, pixels,
                        out + g * l.group_pad, l.pitch);
    }
}

}  // namespace

int64_t image_rows_per_task(const ImageSource& s, const ImageLayout& l) {
    constexpr int64_t kPixels = 128;
    return std::min(l.height, std::max<int64_t>(1, kPixels / (s.width * s.step_h)));
}

int64_t image_scratch_bytes(const ImageSource& s, int64_t rows) {
    return s.channels * s.width * std::min(rows * s.step_h, s.height);
}

void build_image_rows(const KernelTable& table, const ImageSource& s, const ImageLayout& l, int64_t image, int64_t y0,
                      int64_t y1, uint8_t* out, uint8_t* scratch) {
    const int64_t zero = s.zero_point, bytes = l.row_bytes();
    const auto border = [&](uint8_t* to, int64_t count) {
        std::memset(to, static_cast<int>(zero), static_cast<size_t>(count));
    };
    const int64_t inside0 = std::max(y0, l.top);
    const int64_t inside1 = std::max(inside0, std::min(y1, l.top + ceil_div(s.height, s.step_h)));
    border(out, (std::min(inside0, y1) - y0) * bytes);
    if (inside1 < y1) border(out + (inside1 - y0) * bytes, (y1 - inside1) * bytes);
    if (inside0 >= inside1) return;
    const int64_t pixels = std::min(ceil_div(s.width, s.step_w), l.width - l.left);
    const int64_t right = l.width - l.left - pixels;
    for (int64_t y = inside0; y < inside1; ++y) {
        uint8_t* row = out + (y - y0) * bytes;
        border(row, l.left * l.pitch);
        border(row + (l.left + pixels) * l.pitch, right * l.pitch);
    }
    const int64_t row0 = (inside0 - l.top) * s.step_h;
    const int64_t row1 = std::min(s.height, (inside1 - l.top) * s.step_h);
    uint8_t* first = out + (inside0 - y0) * bytes + l.left * l.pitch;
    const auto build = s.channels_last ? build_channels_last : build_channels_first;
    build(table, s, l, image, row0, row1, pixels, first, scratch);
}

}  // namespace fastcompress
