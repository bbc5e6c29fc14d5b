#include "conv2d_geometry.h"

#include <initializer_list>
#include <stdexcept>
#include <string>

namespace fastcompress {
namespace {

// Messages are made only to be thrown: building them for every check took half of a small call's time.
[[noreturn]] void refuse(const BlobHeader& b, const std::string& message) {
    throw std::invalid_argument((has_real_weights(b) ? "conv2d_bsr: " : "conv2d_w8a8: ") + message);
}

constexpr int64_t kMaxExtent = 2147483647;  // of any size, stride, dilation or padding: products of two fit int64

int64_t out_size(int64_t in, int64_t before, int64_t after, int64_t kernel, int64_t dilation, int64_t stride) {
    const int64_t span = dilation * (kernel - 1) + 1;
    return in + before + after < span ? 0 : (in + before + after - span) / stride + 1;
}

void check_extents(const BlobHeader& b, const ConvCall& c) {
    const auto within = [&](int64_t value, int64_t least, const char* what) {
        if (value < least || value > kMaxExtent)
            refuse(b, std::string(what) + " is " + std::to_string(value) + ", allowed: " + std::to_string(least) +
                          " to 2147483647");
    };
    within(c.batch, 0, "batch");
    within(c.height, 1, "input height");
    within(c.width, 1, "input width");
    within(c.stride_h, 1, "stride");
    within(c.stride_w, 1, "stride");
    within(c.dilation_h, 1, "dilation");
    within(c.dilation_w, 1, "dilation");
    for (int64_t pad : {c.pad_top, c.pad_bottom, c.pad_left, c.pad_right}) within(pad, 0, "padding");
}

// The largest buffer any step makes: bytes per image pixel, gathered row or output row, times how many there are.
void check_total(const ConvGeometry& g, const BlobHeader& b, const ConvCall& c) {
    constexpr double kMaxBytes = 1e15;  // far above memory, far below overflow
    const double image =
        static_cast<double>(g.image.height) * static_cast<double>(g.image.width) * static_cast<double>(g.image.pitch);
    const double row =
        static_cast<double>(b.k_pad) * static_cast<double>(b.groups) + 4.0 * static_cast<double>(b.out_channels);
    const double out = static_cast<double>(g.out_h) * static_cast<double>(g.out_w) * row;
    if (!(static_cast<double>(c.batch) * (image + out) < kMaxBytes))
        refuse(b, "the padded input or the output is too large to address; check padding and dilation");
}

}  // namespace

int64_t conv_out_height(const BlobHeader& b, const ConvCall& c) {
    check_extents(b, c);
    return out_size(c.height, c.pad_top, c.pad_bottom, b.kernel_h, c.dilation_h, c.stride_h);
}

int64_t conv_out_width(const BlobHeader& b, const ConvCall& c) {
    check_extents(b, c);
    return out_size(c.width, c.pad_left, c.pad_right, b.kernel_w, c.dilation_w, c.stride_w);
}

ConvGeometry conv_geometry(const BlobHeader& b, const ConvCall& c) {
    ConvGeometry g{};
    g.out_h = conv_out_height(b, c);
    g.out_w = conv_out_width(b, c);
    if (g.out_h < 1 || g.out_w < 1)
        refuse(b, "the kernel (" + std::to_string(b.kernel_h) + "x" + std::to_string(b.kernel_w) +
                      ") does not fit the padded " + std::to_string(c.height) + "x" + std::to_string(c.width) +
                      " input");

    const bool depthwise = b.family == static_cast<int32_t>(Family::depthwise);
    const bool no_padding = !c.pad_top && !c.pad_bottom && !c.pad_left && !c.pad_right;
    const bool pointwise = b.kernel_h == 1 && b.kernel_w == 1 && no_padding;
    g.source_step_h = pointwise ? c.stride_h : 1;
    g.source_step_w = pointwise ? c.stride_w : 1;
    g.step_h = pointwise ? 1 : c.stride_h;
    g.step_w = pointwise ? 1 : c.stride_w;

    ImageLayout& l = g.image;
    l.top = c.pad_top;
    l.left = c.pad_left;
    l.height = pointwise ? g.out_h : c.height + c.pad_top + c.pad_bottom;
    l.width = pointwise ? g.out_w : c.width + c.pad_left + c.pad_right;
    const int64_t channels = b.in_channels * b.groups;
    if (depthwise) {
        l.groups = 1;
        l.group_channels = channels;
        l.group_pad = l.pitch = round_up(channels, kPanel);
    } else {
        l.groups = b.groups;
        l.group_channels = b.in_channels;
        l.group_pad = b.channel_pad;
        l.pitch = b.groups * b.channel_pad;
    }
    check_total(g, b, c);
    g.uniform = pointwise && b.groups == 1 && !depthwise;

    // A kernel row's taps are neighbours in memory when nothing lies between them.
    const bool rows_contiguous = !depthwise && b.groups == 1 && c.dilation_w == 1;
    const int64_t per_row = rows_contiguous ? 1 : b.kernel_w;
    g.segment_bytes = b.channel_pad * (rows_contiguous ? b.kernel_w : 1);
    const auto offset = [&](int64_t i, int64_t j) { return (i * c.dilation_h * l.width + j * c.dilation_w) * l.pitch; };
    if (depthwise) {  // by columns, padded with a tap that exists
        for (int64_t j = 0; j < b.kernel_w; ++j)
            for (int64_t i = 0; i < round_up(b.kernel_h, 4); ++i)
                g.segments.push_back(offset(i < b.kernel_h ? i : 0, j));
        return g;
    }
    for (int64_t i = 0; i < b.kernel_h; ++i)
        for (int64_t j = 0; j < per_row; ++j) g.segments.push_back(offset(i, j));
    return g;
}

}  // namespace fastcompress
