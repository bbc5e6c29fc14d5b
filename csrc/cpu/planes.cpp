#include "planes.h"

#include <algorithm>
#include <cstring>

#include "quantize.h"
#include "transpose.h"

namespace fastcompress {
namespace {

constexpr int64_t kLineWords = 16;
constexpr int64_t kRowsElements = 1 << 14;   // a task of whole rows prepares about so many
constexpr int64_t kWordsElements = 1 << 12;  // a task of channels

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

PlaneLayout plane_layout(const BlobHeader& b, const ConvCall& c, int64_t out_h, int64_t out_w) {
    PlaneLayout l{};
    const Axis rows = rows_of(b, c, out_h), columns = columns_of(b, c, out_w);
    l.out_h = out_h;
    l.out_w = out_w;
    l.phases_h = used_phases(rows);
    l.phases_w = used_phases(columns);
    const Extent high = extent(rows, l.phases_h), wide = extent(columns, l.phases_w);
    l.pitch = wide.size - wide.shared;
    // Shared columns of the last row lie in one more.
    l.rows = high.size + (wide.shared > 0 ? 1 : 0);
    l.image_rows = high.size - high.shared;
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
                           const PlaneLayout& layout)
    : table_(table),
      call_(call),
      layout_(layout),
      real_(has_real_weights(blob)),
      channels_(blob.in_channels),
      inverse_scale_(1.0f / blob.input_scale),
      zero_point_(blob.input_zero_point) {}

int64_t PlaneBuilder::scratch_bytes() const {
    const int64_t elements =
        call_.channels_last ? call_.width * channels_ : (real_ ? call_.width : 4 * call_.height * call_.width);
    return elements * (real_ ? 4 : 1) + 64;
}

// Channels-last: tasks are rows of the planes. Channels-first: images times groups of words.
int64_t PlaneBuilder::tasks(int64_t images) const {
    if (call_.channels_last)
        return ceil_div(layout_.total_rows(images),
                        std::max<int64_t>(1, kRowsElements / (call_.width * channels_ * call_.stride_h)));
    const int64_t word_elements = call_.height * call_.width * (real_ ? 1 : 4);
    return images * ceil_div(layout_.words, std::max<int64_t>(1, kWordsElements / word_elements));
}

void PlaneBuilder::build(int64_t first, int64_t images, int64_t task, uint8_t* planes, uint8_t* scratch) const {
    const int64_t count = tasks(images);
    if (call_.channels_last) {
        const int64_t rows = layout_.total_rows(images), each = ceil_div(rows, count);
        return build_rows(first, images, std::min(rows, task * each), std::min(rows, (task + 1) * each), planes,
                          scratch);
    }
    const int64_t per_image = count / images, each = ceil_div(layout_.words, per_image);
    const int64_t part = task % per_image;
    build_words(first, images, task / per_image, std::min(layout_.words, part * each),
                std::min(layout_.words, (part + 1) * each), planes, scratch);
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
    const int64_t y = row * call_.stride_h + phase - call_.pad_top;
    return y >= 0 && y < call_.height ? y : -1;
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

void PlaneBuilder::build_rows(int64_t first, int64_t images, int64_t row0, int64_t row1, uint8_t* planes,
                              uint8_t* scratch) const {
    const int64_t plane = layout_.plane_words(images), word_step = layout_.phases() * plane;
    const int64_t pixel_bytes = channels_ * (real_ ? 4 : 1), line = call_.width * channels_;
    for (int64_t row = row0; row < row1; ++row) {
        const int64_t image = std::min(row / layout_.image_rows, images - 1);
        int64_t phase = 0;
        for (int64_t phase_h : layout_.phases_h) {
            const int64_t y = source_row(row - image * layout_.image_rows, phase_h);
            const uint8_t* from = nullptr;
            if (y >= 0) from = prepared(((first + image) * call_.height + y) * line, line, scratch);
            for (int64_t phase_w : layout_.phases_w) {
                uint32_t* to = reinterpret_cast<uint32_t*>(planes) + phase++ * plane + row * layout_.pitch;
                Span s = span(phase_w);
                if (y < 0) s = {layout_.pitch, 0, 0};
                const int64_t right = layout_.pitch - s.left - s.count;
                for (int64_t w = 0; w < layout_.words; ++w) {
                    fill(to + w * word_step, s.left);
                    fill(to + w * word_step + s.left + s.count, right);
                }
                if (s.count > 0)
                    table_.sparse.interleave(from + s.source * pixel_bytes, call_.stride_w * pixel_bytes, s.count,
                                             layout_.words, word_step, reinterpret_cast<uint8_t*>(to + s.left));
            }
        }
    }
}

void PlaneBuilder::build_words(int64_t first, int64_t images, int64_t image, int64_t word0, int64_t word1,
                               uint8_t* planes, uint8_t* scratch) const {
    const int64_t plane = layout_.plane_words(images), source_plane = call_.height * call_.width;
    const int64_t rows = image == images - 1 ? layout_.rows : layout_.image_rows;
    const int64_t per_word = real_ ? 1 : 4, step = call_.stride_w;
    for (int64_t word = word0; word < word1; ++word) {
        const int64_t element = ((first + image) * channels_ + word * per_word) * source_plane;
        const uint8_t* bytes = real_ ? nullptr : prepared(element, 4 * source_plane, scratch);
        int64_t phase = word * layout_.phases();
        for (int64_t phase_h : layout_.phases_h)
            for (int64_t phase_w : layout_.phases_w) {
                uint32_t* to =
                    reinterpret_cast<uint32_t*>(planes) + phase++ * plane + image * layout_.image_rows * layout_.pitch;
                const Span s = span(phase_w);
                for (int64_t row = 0; row < rows; ++row, to += layout_.pitch) {
                    const int64_t y = source_row(row, phase_h);
                    if (y < 0) {
                        fill(to, layout_.pitch);
                        continue;
                    }
                    fill(to, s.left);
                    fill(to + s.left + s.count, layout_.pitch - s.left - s.count);
                    if (s.count == 0) continue;
                    const int64_t at = y * call_.width + s.source;
                    if (real_) {
                        const float* from =
                            reinterpret_cast<const float*>(prepared(element + at, (s.count - 1) * step + 1, scratch));
                        if (step == 1) {
                            std::memcpy(to + s.left, from, static_cast<size_t>(s.count) * 4);
                        } else {
                            for (int64_t x = 0; x < s.count; ++x) std::memcpy(to + s.left + x, from + x * step, 4);
                        }
                    } else if (step == 1) {
                        interleave_4(bytes + at, source_plane, s.count, reinterpret_cast<uint8_t*>(to + s.left));
                    } else {
                        for (int64_t x = 0; x < s.count; ++x) {
                            const uint8_t* p = bytes + at + x * step;
                            const uint8_t four[4] = {p[0], p[source_plane], p[2 * source_plane], p[3 * source_plane]};
                            std::memcpy(to + s.left + x, four, 4);
                        }
                    }
                }
            }
    }
}

}  // namespace fastcompress
