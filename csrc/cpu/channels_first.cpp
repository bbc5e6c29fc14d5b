#include "channels_first.h"

#include <algorithm>

#include "transpose.h"

namespace fastcompress {

ChannelsFirst::ChannelsFirst(const ConvCall& call, int64_t channels, int64_t pixels)
    : call_(call), channels_(channels), pixels_(pixels), needed_(!call.channels_last) {}

int64_t ChannelsFirst::out_bytes(int64_t images) const {
    return needed_ ? images * pixels_ * channels_ * dtype_bytes(call_.out.dtype) : 0;
}

int64_t ChannelsFirst::residual_bytes(int64_t images) const {
    return has_residual() ? images * pixels_ * channels_ * dtype_bytes(call_.out.residual_dtype) : 0;
}

size_t ChannelsFirst::bytes(int64_t images) const {
    return Workspace::size(static_cast<size_t>(out_bytes(images))) +
           Workspace::size(static_cast<size_t>(residual_bytes(images)));
}

void ChannelsFirst::take(Workspace& workspace, int64_t images) {
    out_ = workspace.take_array<uint8_t>(out_bytes(images));
    residual_ = workspace.take_array<uint8_t>(residual_bytes(images));
}

// A few images per thread at most: a rare combination, kept simple.
void ChannelsFirst::load_residual(int64_t first, int64_t images, const Team& team) const {
    const int64_t element = dtype_bytes(call_.out.residual_dtype), image = pixels_ * channels_ * element;
    for (int64_t i = team.thread(); i < images; i += team.threads())
        transpose(element, static_cast<const uint8_t*>(call_.out.residual) + (first + i) * image, pixels_, channels_,
                  pixels_, residual_ + i * image, channels_);
}

Epilogue ChannelsFirst::chunk_epilogue(Epilogue e, int64_t first) const {
    if (needed_) {
        e.out = out_;
        if (e.residual) e.residual = residual_;
        return e;
    }
    const int64_t elements = first * pixels_ * channels_;
    e.out = static_cast<uint8_t*>(e.out) + elements * dtype_bytes(e.out_dtype);
    if (e.residual) e.residual = static_cast<const uint8_t*>(e.residual) + elements * dtype_bytes(e.residual_dtype);
    return e;
}

int64_t ChannelsFirst::store_tasks(int64_t images) const { return needed_ ? images * ceil_div(channels_, kPanel) : 0; }

// Task: sixteen channels of one image.
void ChannelsFirst::store(int64_t first, int64_t task) const {
    const int64_t groups = ceil_div(channels_, kPanel);
    const int64_t image = task / groups, channel = task % groups * kPanel;
    const int64_t count = std::min(kPanel, channels_ - channel);
    const int64_t element = dtype_bytes(call_.out.dtype);
    const uint8_t* from = out_ + (image * pixels_ * channels_ + channel) * element;
    uint8_t* to = static_cast<uint8_t*>(call_.out.data) + ((first + image) * channels_ + channel) * pixels_ * element;
    transpose(element, from, channels_, pixels_, count, to, pixels_);
}

}  // namespace fastcompress
