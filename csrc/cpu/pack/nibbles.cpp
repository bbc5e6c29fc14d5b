#include "nibbles.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace fastcompress {
namespace {

constexpr int64_t kOctet = 8, kOctetBytes = 64;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("pack_w4: " + what); }

// Where input k of channel n lies: the byte, and the shift of its nibble.
struct Place {
    int64_t byte;
    int shift;
};
Place place_of(const BlobHeader& h, int64_t n, int64_t k) {
    const int64_t in_octet = k % kOctet;
    const int64_t byte =
        n / kPanel * (h.k_pad / kOctet * kOctetBytes) + k / kOctet * kOctetBytes + n % kPanel * 4 + in_octet % 4;
    return {byte, in_octet < 4 ? 0 : 4};
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

}  // namespace

void check_nibbles(const LayerSpec& s) {
    const NibbleSpec& n = *s.nibbles;
    if (s.weight_rank != 2) refuse("four-bit weights are [out, in]");
    if (n.group_size < 1 || n.group_size > s.in_channels ||
        (n.group_size % kOctet != 0 && n.group_size != s.in_channels))
        refuse("group_size is " + std::to_string(n.group_size) + ", it must be a multiple of 8, or all " +
               std::to_string(s.in_channels) + " inputs");
    if (s.input_mode != InputMode::per_token_symmetric) refuse("activations are quantized by token, symmetric");
    if (n.row_bytes < ceil_div(s.in_channels, 2)) refuse("rows are too short for their inputs");
    if (!is_scale_type(static_cast<int32_t>(n.scale_dtype))) refuse("scales are f32, bf16 or f16");
    if (n.zero_point && n.minimum) refuse("zero points and minima exclude each other");
    const int64_t count = s.out_channels * ceil_div(s.in_channels, n.group_size);
    for (int64_t i = 0; n.zero_point && i < count; ++i)
        if (n.zero_point[i] > 15) refuse("zero_point[" + std::to_string(i) + "] is above 15");
    for (int64_t i = 0; n.minimum && i < count; ++i)
        if (!std::isfinite(n.minimum[i])) refuse("minimum[" + std::to_string(i) + "] is not finite");
}

void plan_nibbles(const NibbleSpec& n, BlobHeader& h) {
    h.value_bits = 4;
    h.group_size = n.group_size;
    h.scale_dtype = static_cast<int32_t>(n.scale_dtype);
    h.zero_kind = static_cast<int32_t>(n.zero_point ? ZeroKind::zero_point
                                       : n.minimum  ? ZeroKind::minimum
                                                    : ZeroKind::eight);
}

void lay_out_nibbles(BlobHeader& h) {
    const int64_t padded = round_up(h.out_channels, kPanel), groups = group_count(h);
    h.family = static_cast<int32_t>(Family::linear_w4);
    h.channel_pad = round_up(h.in_channels, kOctet);
    h.k_pad = h.channel_pad;
    h.panels = padded / kPanel;
    h.panels_offset = kHeaderBytes;
    h.scale_offset = h.panels_offset + padded * h.k_pad / 2;
    h.column_sum_offset = h.scale_offset;  // there are none
    h.zero_offset = h.scale_offset + padded * groups * dtype_bytes(static_cast<DType>(h.scale_dtype));
    const int64_t zero_bytes[] = {0, 1, 4};
    h.bias_offset = h.zero_offset + padded * groups * zero_bytes[h.zero_kind];
    h.total_bytes = h.bias_offset + (h.has_bias ? padded * static_cast<int64_t>(sizeof(float)) : 0);
}

bool consistent_nibbles(const BlobHeader& h) {
    return h.weight_rank == 2 && h.group_size >= 1 && h.group_size <= h.in_channels &&
           (h.group_size % kOctet == 0 || h.group_size == h.in_channels) && is_scale_type(h.scale_dtype) &&
           h.zero_kind >= 0 && h.zero_kind <= 2 && h.input_mode == static_cast<int32_t>(InputMode::per_token_symmetric);
}

void pack_nibbles(const NibbleSpec& s, const BlobHeader& h, uint8_t* blob) {
    uint8_t* panels = blob + h.panels_offset;
    for (int64_t n = 0; n < h.out_channels; ++n) {
        const uint8_t* row = s.words + n * s.row_bytes;
        for (int64_t k = 0; k < h.in_channels; ++k) {
            const Place p = place_of(h, n, k);
            panels[p.byte] = static_cast<uint8_t>(panels[p.byte] | ((row[k / 2] >> (k % 2 * 4)) & 15) << p.shift);
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

void unpack_nibbles(const BlobHeader& h, uint8_t* words, int64_t row_bytes, void* scale, uint8_t* zero_point,
                    float* minimum) {
    const auto* blob = reinterpret_cast<const uint8_t*>(&h);
    const uint8_t* panels = blob + h.panels_offset;
    for (int64_t n = 0; n < h.out_channels; ++n)
        for (int64_t k = 0; k < h.in_channels; ++k) {
            const Place p = place_of(h, n, k);
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

}  // namespace fastcompress
