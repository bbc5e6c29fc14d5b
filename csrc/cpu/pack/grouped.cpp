#include "grouped.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../simd/half.h"

namespace fastcompress {
namespace {

constexpr int64_t kOctet = 8;
constexpr uint8_t kSignBit = 0x80;  // s8 value ^ kSignBit = value + 128

[[noreturn]] void refuse(const GroupedSpec& s, const std::string& what) {
    throw std::invalid_argument("pack_w" + std::to_string(s.bits) + ": " + what);
}

// Where input k of channel n lies: the byte, and the shift of its nibble.
struct Place {
    int64_t byte;
    int shift;
};
Place place_of(const BlobHeader& h, int64_t n, int64_t k) {
    const int64_t per_line = 32 / h.value_bits, line = n / kPanel * (h.k_pad / per_line) + k / per_line;
    return {line * kLineBytes + n % kPanel * 4 + k % 4, k % per_line < 4 ? 0 : 4};
}

// Where the group's value of channel n lies among [panel][group][16].
int64_t group_place(const BlobHeader& h, int64_t n, int64_t g) {
    return (n / kPanel * group_count(h) + g) * kPanel + n % kPanel;
}

// Calls f(place in the blob, place in the canonical arrays) for every group of every channel.
template <class F>
void for_each_group(const BlobHeader& h, const F& f) {
    const int64_t groups = group_count(h);
    for (int64_t n = 0; n < h.out_channels; ++n)
        for (int64_t g = 0; g < groups; ++g) f(group_place(h, n, g), n * groups + g);
}

bool is_scale_type(int32_t dtype) {
    return dtype == static_cast<int32_t>(DType::f32) || dtype == static_cast<int32_t>(DType::bf16) ||
           dtype == static_cast<int32_t>(DType::f16);
}

bool is_group_size(int64_t size, int64_t inputs) {
    return size >= 1 && size <= inputs && (size % kOctet == 0 || size == inputs);
}

// Eight-bit weights are for activations of sixteen bits.
bool is_mode(int32_t mode, int32_t bits) {
    return mode == static_cast<int32_t>(InputMode::per_group_16bit) ||
           (bits == 4 && mode == static_cast<int32_t>(InputMode::per_token_symmetric));
}

float scale_at(const BlobHeader& h, int64_t place) {
    const uint8_t* base = reinterpret_cast<const uint8_t*>(&h) + h.scale_offset;
    if (h.scale_dtype == static_cast<int32_t>(DType::f32)) {
        float scale;
        std::memcpy(&scale, base + 4 * place, 4);
        return scale;
    }
    uint16_t half;
    std::memcpy(&half, base + 2 * place, 2);
    return h.scale_dtype == static_cast<int32_t>(DType::bf16) ? bf16_to_float(half) : f16_to_float(half);
}

}  // namespace

void check_grouped(const LayerSpec& s) {
    const GroupedSpec& n = *s.grouped;
    if (n.bits != 4 && n.bits != 8) refuse(n, "weights have 4 or 8 bits");
    if (s.weight_rank != 2) refuse(n, "weights in groups are [out, in]");
    if (!is_group_size(n.group_size, s.in_channels))
        refuse(n, "group_size is " + std::to_string(n.group_size) + ", it must be a multiple of 8, or all " +
                      std::to_string(s.in_channels) + " inputs");
    if (!is_mode(static_cast<int32_t>(s.input_mode), n.bits))
        refuse(n, n.bits == 4
                      ? "activations are quantized by token, symmetric (input_mode 2), or by group in 16 bits (3)"
                      : "activations are quantized by group in 16 bits (input_mode 3)");
    if (n.row_bytes < ceil_div(s.in_channels * n.bits, 8)) refuse(n, "rows are too short for their inputs");
    if (!is_scale_type(static_cast<int32_t>(n.scale_dtype))) refuse(n, "scales are f32, bf16 or f16");
    if (n.zero_point && n.minimum) refuse(n, "zero points and minima exclude each other");
    if (n.bits == 8 && (n.zero_point || n.minimum)) refuse(n, "s8 weights have neither zero points nor minima");
    const int64_t count = s.out_channels * ceil_div(s.in_channels, n.group_size);
    for (int64_t i = 0; n.zero_point && i < count; ++i)
        if (n.zero_point[i] > 15) refuse(n, "zero_point[" + std::to_string(i) + "] is above 15");
    for (int64_t i = 0; n.minimum && i < count; ++i)
        if (!std::isfinite(n.minimum[i])) refuse(n, "minimum[" + std::to_string(i) + "] is not finite");
}

void plan_grouped(const GroupedSpec& n, BlobHeader& h) {
    h.value_bits = n.bits;
    h.group_size = n.group_size;
    h.scale_dtype = static_cast<int32_t>(n.scale_dtype);
    h.zero_kind = static_cast<int32_t>(n.zero_point ? ZeroKind::zero_point
                                       : n.minimum  ? ZeroKind::minimum
                                                    : ZeroKind::middle);
}

void lay_out_grouped(BlobHeader& h) {
    const int64_t padded = round_up(h.out_channels, kPanel), groups = group_count(h);
    h.family = static_cast<int32_t>(is_four_bit(h) ? Family::linear_w4 : Family::linear_w8);
    h.channel_pad = round_up(h.in_channels, kOctet);
    h.k_pad = h.channel_pad;
    h.panels = padded / kPanel;
    h.panels_offset = kHeaderBytes;
    h.scale_offset = h.panels_offset + padded * h.k_pad * h.value_bits / 8;
    h.column_sum_offset = h.scale_offset;  // there are none
    h.zero_offset = h.scale_offset + padded * groups * dtype_bytes(static_cast<DType>(h.scale_dtype));
    const int64_t zero_bytes[] = {0, 1, 4};
    h.bias_offset = h.zero_offset + padded * groups * zero_bytes[h.zero_kind];
    h.total_bytes = h.bias_offset + (h.has_bias ? padded * static_cast<int64_t>(sizeof(float)) : 0);
}

bool consistent_grouped(const BlobHeader& h) {
    return h.value_bits != 0 && h.weight_rank == 2 && is_group_size(h.group_size, h.in_channels) &&
           is_scale_type(h.scale_dtype) && h.zero_kind >= 0 && h.zero_kind <= (is_four_bit(h) ? 2 : 0) &&
           is_mode(h.input_mode, h.value_bits);
}

void pack_grouped(const GroupedSpec& s, const BlobHeader& h, uint8_t* blob) {
    uint8_t* panels = blob + h.panels_offset;
    for (int64_t n = 0; n < h.out_channels; ++n) {
        const uint8_t* row = s.words + n * s.row_bytes;
        for (int64_t k = 0; k < h.in_channels; ++k) {
            const Place p = place_of(h, n, k);
            const int code = s.bits == 8 ? row[k] ^ kSignBit : (row[k / 2] >> (k % 2 * 4)) & 15;
            panels[p.byte] = static_cast<uint8_t>(panels[p.byte] | code << p.shift);
        }
    }
    const int64_t bytes = dtype_bytes(s.scale_dtype);
    const auto* scale = static_cast<const uint8_t*>(s.scale);
    for_each_group(h, [&](int64_t to, int64_t from) {
        std::memcpy(blob + h.scale_offset + to * bytes, scale + from * bytes, static_cast<size_t>(bytes));
        if (s.zero_point) blob[h.zero_offset + to] = s.zero_point[from];
        if (s.minimum) std::memcpy(blob + h.zero_offset + to * 4, s.minimum + from, 4);
    });
}

void unpack_grouped(const BlobHeader& h, uint8_t* words, int64_t row_bytes, void* scale, uint8_t* zero_point,
                    float* minimum) {
    const auto* blob = reinterpret_cast<const uint8_t*>(&h);
    const uint8_t* panels = blob + h.panels_offset;
    for (int64_t n = 0; n < h.out_channels; ++n)
        for (int64_t k = 0; k < h.in_channels; ++k) {
            const Place p = place_of(h, n, k);
            if (!is_four_bit(h)) {
                words[n * row_bytes + k] = panels[p.byte] ^ kSignBit;
                continue;
            }
            uint8_t& byte = words[n * row_bytes + k / 2];
            byte = static_cast<uint8_t>(byte | ((panels[p.byte] >> p.shift) & 15) << (k % 2 * 4));
        }
    const int64_t bytes = dtype_bytes(static_cast<DType>(h.scale_dtype));
    for_each_group(h, [&](int64_t from, int64_t to) {
        std::memcpy(static_cast<uint8_t*>(scale) + to * bytes, blob + h.scale_offset + from * bytes,
                    static_cast<size_t>(bytes));
        if (zero_point) zero_point[to] = blob[h.zero_offset + from];
        if (minimum) std::memcpy(minimum + to, blob + h.zero_offset + from * 4, 4);
    });
}

void dequantize_row(const BlobHeader& h, int64_t n, float* out) {
    const auto* blob = reinterpret_cast<const uint8_t*>(&h);
    const uint8_t* panels = blob + h.panels_offset;
    const auto kind = static_cast<ZeroKind>(h.zero_kind);
    const int64_t per_word = 32 / h.value_bits;
    const uint32_t mask = is_four_bit(h) ? 15 : 255;
    for (int64_t g = 0, k = 0; k < h.in_channels; ++g) {
        const int64_t end = std::min(h.in_channels, k + h.group_size), at = group_place(h, n, g);
        const float scale = scale_at(h, at);
        float zero = is_four_bit(h) ? 8.0f : 128.0f, minimum = 0.0f;
        if (kind == ZeroKind::zero_point) zero = static_cast<float>(blob[h.zero_offset + at]);
        if (kind == ZeroKind::minimum) {
            zero = 0.0f;
            std::memcpy(&minimum, blob + h.zero_offset + 4 * at, 4);
        }
        for (; k < end; k += std::min(end - k, per_word)) {
            uint32_t word;  // groups begin with a word
            std::memcpy(&word, panels + place_of(h, n, k).byte, 4);
            for (int64_t i = 0; i < std::min(end - k, per_word); ++i) {
                const int64_t shift = i % 4 * 8 + i / 4 * 4;
                const float product = (static_cast<float>(word >> shift & mask) - zero) * scale;
                out[k + i] = kind == ZeroKind::minimum ? product + minimum : product;
            }
        }
    }
}

}  // namespace fastcompress
