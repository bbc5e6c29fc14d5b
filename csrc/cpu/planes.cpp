#include "planes.h"

#include <algorithm>
#include <cstring>

#include "quantize.h"
#include "transpose.h"

namespace fastcompress {
namespace {

constexpr int64_t kLineWords = 16;

// One direction: rows or columns.
struct Axis {
    int64_t in, out, kernel, stride, dilation, before;
};

std::vector<int64_t> used_phases(const Axis& a) {
    std::vector<int64_t> phases;
    for (int64_t i = 0; i < a.kernel; ++i) {
        const int64_t phase = i * a.dilation % a.stride;
        if (std::find(phases.begin(), phases.end(), phase) == phases.end()) phases.push_back(phase);
    }
    return phases;
}

// Padding in front of the source in a phase.
int64_t zeros_before(const Axis& a, int64_t phase) {
    return a.before <= phase ? 0 : ceil_div(a.before - phase, a.stride);
}

// Places of a phase that are not behind the source.
int64_t places(const Axis& a, int64_t phase) {
    return a.in + a.before <= phase ? 0 : ceil_div(a.in + a.before - phase, a.stride);
}

struct Extent {
    int64_t size, shared;
};

Extent extent(const Axis& a, const std::vector<int64_t>& phases) {
    const int64_t reach = (a.kernel - 1) * a.dilation / a.stride;
    Extent e{a.out + reach, reach};
    for (int64_t phase : phases) {
        const int64_t behind = std::max<int64_t>(0, e.size - places(a, phase));
        e.shared = std::min({e.shared, zeros_before(a, phase), behind});
    }
    return e;
}

Axis rows_of(const BlobHeader& b, const ConvCall& c, int64_t out) {
    return {c.height, out, b.kernel_h, c.stride_h, c.dilation_h, c.pad_top};
}
Axis columns_of(const BlobHeader& b, const ConvCall& c, int64_t out) {
    return {c.width, out, b.kernel_w, c.stride_w, c.dilation_w, c.pad_left};
}

int64_t number_of(const std::vector<int64_t>& phases, int64_t phase) {
    return std::find(phases.begin(), phases.end(), phase) - phases.begin();
}

}  // namespace

int64_t PlaneLayout::plane_words(int64_t images) const {
    return (ceil_div(total_rows(images) * pitch, kLineWords) | 1) * kLineWords;
}

PlaneLayout plane_layout(const BlobHeader& b, const ConvCall& c, int64_t out_h, int64_t out_w, const OutputPart& part) {
    PlaneLayout l{};
    const Axis rows = rows_of(b, c, part.rows), columns = columns_of(b, c, out_w);
    l.first_row = part.row;
    l.out_h = part.rows;
    l.out_w = out_w;
    l.phases_h = used_phases(rows);
    l.phases_w = used_phases(columns);
    const Extent high = extent(rows, l.phases_h), wide = extent(columns, l.phases_w);
    l.pitch = wide.size - wide.shared;
    // Shared columns of the last row lie in one more.
    l.rows = high.size + (wide.shared > 0 ? 1 : 0);
    l.image_rows = part.rows == out_h ? high.size - high.shared : l.rows;
    l.words = has_real_weights(b) ? b.in_channels : b.in_channels / 4;
    return l;
}

std::vector<int64_t> plane_offsets(const BlobHeader& b, const ConvCall& c, const PlaneLayout& l, int64_t images) {
    const int64_t plane = l.plane_words(images), words_per_block = has_real_weights(b) ? b.block_w : 1;
    const int64_t phases_w = static_cast<int64_t>(l.phases_w.size());
    std::vector<int64_t> offsets;
    offsets.reserve(static_cast<size_t>(b.k_pad / b.block_w));
    for (int64_t i = 0; i < b.kernel_h; ++i)
        for (int64_t j = 0; j < b.kernel_w; ++j) {
            const int64_t y = i * c.dilation_h, x = j * c.dilation_w;
            const int64_t phase =
                number_of(l.phases_h, y % c.stride_h) * phases_w + number_of(l.phases_w, x % c.stride_w);
            const int64_t tap = phase * plane + y / c.stride_h * l.pitch + x / c.stride_w;
            for (int64_t word = 0; word < l.words; word += words_per_block)
                offsets.push_back(4 * (word * l.phases() * plane + tap));
        }
    return offsets;
}

PlaneBuilder::PlaneBuilder(const KernelTable& table, const BlobHeader& blob, const ConvCall& call,
                           const PlaneLayout& layout, const OutputPart& part)
    : table_(table),
      call_(call),
      layout_(layout),
      part_(part),
      real_(has_real_weights(blob)),
      plane_(layout.plane_words(part.images)),
      word_step_(layout.phases() * plane_),
      channels_(blob.in_channels),
      inverse_scale_(1.0f / blob.input_scale),
      zero_point_(blob.input_zero_point) {
    const int64_t first = part.row * call.stride_h - call.pad_top;
    source0_ = std::clamp<int64_t>(first, 0, call.height);
    source1_ = std::clamp<int64_t>(first + layout.rows * call.stride_h, source0_, call.height);
}

int64_t PlaneBuilder::scratch_bytes(const BlobHeader& blob, const ConvCall& call) {
    const bool real = has_real_weights(blob);
    const int64_t elements =
        call.channels_last ? call.width * blob.in_channels : (real ? 1 : 4) * call.height * call.width;
    return elements * (real ? 4 : 1) + 64;
}

void PlaneBuilder::build(uint8_t* planes, uint8_t* scratch) const {
    call_.channels_last ? build_channels_last(planes, scratch) : build_channels_first(planes, scratch);
}

PlaneBuilder::Span PlaneBuilder::span(int64_t phase) const {
    const Axis a{call_.width, layout_.out_w, 1, call_.stride_w, 1, call_.pad_left};
    Span s{};
    s.left = std::min(layout_.pitch, zeros_before(a, phase));
    s.count = std::max<int64_t>(0, std::min(layout_.pitch, places(a, phase)) - s.left);
    s.source = s.left * call_.stride_w + phase - call_.pad_left;
    return s;
}

int64_t PlaneBuilder::source_row(int64_t row, int64_t phase) const {
    const int64_t y = (row + layout_.first_row) * call_.stride_h + phase - call_.pad_top;
    return y >= source0_ && y < source1_ ? y : -1;
}

void PlaneBuilder::fill(uint32_t* to, int64_t count) const {
    const uint32_t zero = real_ ? 0 : static_cast<uint32_t>(zero_point_) * 0x01010101u;
    std::fill_n(to, count, zero);
}

const uint8_t* PlaneBuilder::prepared(int64_t element, int64_t count, uint8_t* scratch) const {
    const void* x = row_at(call_.x, call_.x_dtype, element);
    if (call_.x_dtype == (real_ ? DType::f32 : DType::u8)) return static_cast<const uint8_t*>(x);
    if (real_) {
        table_.widen(x, call_.x_dtype, count, reinterpret_cast<float*>(scratch));
    } else {
        table_.quantize(x, call_.x_dtype, count, inverse_scale_, zero_point_, false, scratch);
    }
    return scratch;
}

void PlaneBuilder::build_channels_last(uint8_t* planes, uint8_t* scratch) const {
    const int64_t pixel_bytes = channels_ * (real_ ? 4 : 1), line = call_.width * channels_;
    for (int64_t row = 0; row < layout_.total_rows(part_.images); ++row) {
        const int64_t image = std::min(row / layout_.image_rows, part_.images - 1);
        int64_t phase = 0;
        for (int64_t phase_h : layout_.phases_h) {
            const int64_t y = source_row(row - image * layout_.image_rows, phase_h);
            const uint8_t* from = nullptr;
            if (y >= 0) from = prepared(((part_.image + image) * call_.height + y) * line, line, scratch);
            for (int64_t phase_w : layout_.phases_w) {
                uint32_t* to = reinterpret_cast<uint32_t*>(planes) + phase++ * plane_ + row * layout_.pitch;
                Span s = span(phase_w);
                if (y < 0) s = {layout_.pitch, 0, 0};
                const int64_t right = layout_.pitch - s.left - s.count;
                for (int64_t w = 0; w < layout_.words; ++w) {
                    fill(to + w * word_step_, s.left);
                    fill(to + w * word_step_ + s.left + s.count, right);
                }
                if (s.count > 0)
                    table_.sparse.interleave(from + s.source * pixel_bytes, call_.stride_w * pixel_bytes, s.count,
                                             layout_.words, word_step_, reinterpret_cast<uint8_t*>(to + s.left));
            }
        }
    }
}

void PlaneBuilder::build_channels_first(uint8_t* planes, uint8_t* scratch) const {
    for (int64_t image = 0; image < part_.images; ++image)
        for (int64_t word = 0; word < layout_.words; ++word) build_word(image, word, planes, scratch);
}

void PlaneBuilder::build_word(int64_t image, int64_t word, uint8_t* planes, uint8_t* scratch) const {
    const int64_t source_plane = call_.height * call_.width, channels = real_ ? 1 : 4;
    const int64_t element = ((part_.image + image) * channels_ + word * channels) * source_plane;
    const int64_t offset = source0_ * call_.width, needed = (source1_ - source0_) * call_.width;
    const int64_t size = real_ ? 4 : 1;
    // The channels' rows that are needed, `step` elements apart.
    int64_t step = source_plane;
    const uint8_t* source = prepared(element + offset, needed, scratch);
    if (!real_ && source == scratch) {
        step = needed;
        for (int64_t c = 1; c < channels; ++c)
            prepared(element + c * source_plane + offset, needed, scratch + c * needed);
    }
    const int64_t rows = image == part_.images - 1 ? layout_.rows : layout_.image_rows;
    uint32_t* plane =
        reinterpret_cast<uint32_t*>(planes) + word * word_step_ + image * layout_.image_rows * layout_.pitch;
    for (int64_t phase_h : layout_.phases_h)
        for (int64_t phase_w : layout_.phases_w) {
            const Span s = span(phase_w);
            for (int64_t row = 0; row < rows; ++row) {
                const int64_t y = source_row(row, phase_h);
                uint32_t* to = plane + row * layout_.pitch;
                if (y < 0) {
                    fill(to, layout_.pitch);
                } else {
                    build_row(s, source + ((y - source0_) * call_.width + s.source) * size, step * size, to);
                }
            }
            plane += plane_;
        }
}

void PlaneBuilder::build_row(const Span& s, const uint8_t* from, int64_t channel_step, uint32_t* to) const {
    const int64_t step = call_.stride_w;
    fill(to, s.left);
    fill(to + s.left + s.count, layout_.pitch - s.left - s.count);
    to += s.left;
    if (real_) {
        if (step == 1) {
            std::memcpy(to, from, static_cast<size_t>(s.count) * 4);
        } else {
            for (int64_t x = 0; x < s.count; ++x) std::memcpy(to + x, from + 4 * x * step, 4);
        }
    } else if (step == 1) {
        interleave_4(from, channel_step, s.count, reinterpret_cast<uint8_t*>(to));
    } else {
        for (int64_t x = 0; x < s.count; ++x) {
            const uint8_t* p = from + x * step;
            const uint8_t four[4] = {p[0], p[channel_step], p[2 * channel_step], p[3 * channel_step]};
            std::memcpy(to + x, four, 4);
        }
    }
}

}  // namespace fastcompress
