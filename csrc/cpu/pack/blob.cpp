#include "fastcompress/blob.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../dispatch.h"

namespace fastcompress {
namespace {

// 64 bits of a multiply-and-rotate mix over eight-byte words: any single flipped bit changes the result.
uint64_t checksum(const uint8_t* data, int64_t bytes) {
    uint64_t h = 0x9e3779b97f4a7c15ull ^ static_cast<uint64_t>(bytes);
    auto mix = [&h](uint64_t word) {
        h = (h ^ word) * 0xff51afd7ed558ccdull;
        h = (h << 29) | (h >> 35);
    };
    int64_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t word;
        std::memcpy(&word, data + i, 8);
        mix(word);
    }
    uint64_t last = 0;
    std::memcpy(&last, data + i, static_cast<size_t>(bytes - i));
    mix(last);
    return h ^ (h >> 32);
}

uint64_t header_checksum(const BlobHeader& h) {
    return checksum(reinterpret_cast<const uint8_t*>(&h), kHeaderBytes - 8);
}

bool is_depthwise(const BlobHeader& h) { return h.family == static_cast<int32_t>(Family::depthwise); }

// Where weight (n within its group, channel c, tap t = row * kernel_w + column) lies in its group's panels.
int64_t position(const BlobHeader& h, int64_t n, int64_t c, int64_t t) {
    const int64_t k =
        is_depthwise(h) ? t % h.kernel_w * round_up(h.kernel_h, 4) + t / h.kernel_w : t * h.channel_pad + c;
    return (n / kPanel) * (h.k_pad * kPanel) + (k / 4) * 64 + (n % kPanel) * 4 + k % 4;
}

// Calls f(position in blob, index in the canonical weight, padded output channel) for every weight.
template <class F>
void for_each_weight(const BlobHeader& h, F&& f) {
    const int64_t sets = is_depthwise(h) ? 1 : h.groups;
    const int64_t per_set = h.out_channels / sets;
    const int64_t taps = h.kernel_h * h.kernel_w;
    for (int64_t g = 0; g < sets; ++g)
        for (int64_t n = 0; n < per_set; ++n)
            for (int64_t c = 0; c < h.in_channels; ++c)
                for (int64_t t = 0; t < taps; ++t)
                    f(g * h.panels * kPanel * h.k_pad + position(h, n, c, t),
                      ((g * per_set + n) * h.in_channels + c) * taps + t, g * h.panels * kPanel + n);
}

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

void check_spec(const LayerSpec& s) {
    require(s.out_channels > 0 && s.in_channels > 0 && s.kernel_h > 0 && s.kernel_w > 0 && s.groups > 0,
            "pack_w8a8: weight has an empty dimension");
    require(s.out_channels % s.groups == 0, "pack_w8a8: out channels (" + std::to_string(s.out_channels) +
                                                ") are not a multiple of groups (" + std::to_string(s.groups) + ")");
    const int64_t k = s.in_channels * s.kernel_h * s.kernel_w;
    require(k <= kMaxK, "pack_w8a8: reduction length " + std::to_string(k) + " exceeds " + std::to_string(kMaxK) +
                            ", the largest that cannot overflow int32; split the layer along its input channels");
    require(std::isnormal(s.input_scale) && s.input_scale > 0,
            "pack_w8a8: input_scale must be a positive, normal, finite float32");
    require(s.input_zero_point >= 0 && s.input_zero_point <= 255, "pack_w8a8: input_zero_point must lie in [0, 255]");
    for (int64_t n = 0; n < s.out_channels; ++n)
        require(std::isfinite(s.weight_scale[n]) && s.weight_scale[n] > 0,
                "pack_w8a8: weight_scale[" + std::to_string(n) + "] is not a positive finite number");
    require(s.weight_rank == 4 || s.input_mode == InputMode::per_tensor || s.weight_rank == 2,
            "pack_w8a8: weight must have 2 or 4 dimensions");
    require(s.weight_rank == 2 || s.input_mode == InputMode::per_tensor,
            "pack_w8a8: convolutions take static activations (input_mode 0) only");
}

}  // namespace

BlobHeader plan_blob(const LayerSpec& s) {
    check_spec(s);
    const KernelTable& table = current_table();
    BlobHeader h;
    std::memset(&h, 0, sizeof h);
    h.magic = kBlobMagic;
    h.version = kBlobVersion;
    const bool depthwise = s.weight_rank == 4 && s.in_channels == 1 && s.groups == s.out_channels && s.groups > 1;
    h.family = static_cast<int32_t>(depthwise            ? Family::depthwise
                                    : s.weight_rank == 2 ? Family::linear
                                                         : Family::conv2d);
    h.isa = static_cast<int32_t>(table.isa);
    h.out_channels = s.out_channels;
    h.in_channels = s.in_channels;
    h.groups = s.groups;
    h.kernel_h = s.kernel_h;
    h.kernel_w = s.kernel_w;
    h.channel_pad = depthwise ? 1 : round_up(s.in_channels, 4);
    h.k_pad = depthwise ? s.kernel_w * round_up(s.kernel_h, 4)
                        : round_up(s.kernel_h * s.kernel_w * h.channel_pad, table.k_unit);
    const int64_t sets = depthwise ? 1 : s.groups;
    h.panels = ceil_div(s.out_channels / sets, kPanel);
    const int64_t padded_channels = sets * h.panels * kPanel;
    h.panels_offset = kHeaderBytes;
    h.column_sum_offset = h.panels_offset + padded_channels * h.k_pad;
    h.scale_offset = h.column_sum_offset + padded_channels * 4;
    h.bias_offset = h.scale_offset + padded_channels * 4;
    h.has_bias = s.bias != nullptr;
    h.total_bytes = h.bias_offset + (s.bias ? padded_channels * 4 : 0);
    h.input_mode = static_cast<int32_t>(s.input_mode);
    h.input_scale = s.input_scale;
    h.input_zero_point = s.input_zero_point;
    h.activation = static_cast<int32_t>(s.activation);
    h.weight_rank = s.weight_rank;
    return h;
}

void pack_blob(const LayerSpec& s, uint8_t* blob, int64_t bytes) {
    BlobHeader h = plan_blob(s);
    require(bytes == h.total_bytes,
            "pack_w8a8: the buffer has " + std::to_string(bytes) + " bytes, needs " + std::to_string(h.total_bytes));
    std::memset(blob, 0, static_cast<size_t>(bytes));
    int8_t* panels = reinterpret_cast<int8_t*>(blob + h.panels_offset);
    int32_t* sums = reinterpret_cast<int32_t*>(blob + h.column_sum_offset);
    for_each_weight(h, [&](int64_t to, int64_t from, int64_t channel) {
        panels[to] = s.weight[from];
        sums[channel] += s.weight[from];
    });
    float* scales = reinterpret_cast<float*>(blob + h.scale_offset);
    float* bias = reinterpret_cast<float*>(blob + h.bias_offset);
    const int64_t sets = is_depthwise(h) ? 1 : h.groups;
    const int64_t per_set = h.out_channels / sets;
    for (int64_t n = 0; n < h.out_channels; ++n) {
        const int64_t to = n / per_set * h.panels * kPanel + n % per_set;
        scales[to] = s.weight_scale[n];
        if (s.bias) bias[to] = s.bias[n];
    }
    h.payload_checksum = checksum(blob + kHeaderBytes, bytes - kHeaderBytes);
    h.header_checksum = header_checksum(h);
    std::memcpy(blob, &h, sizeof h);
}

const BlobHeader& open_blob(const uint8_t* blob, int64_t bytes, bool any_isa) {
    const std::string again = "; pack the layer again (layer.repack(), or fastcompress.load on this machine)";
    if (bytes < kHeaderBytes)
        throw BlobError("packed weights: " + std::to_string(bytes) + " bytes are too few for a header" + again);
    const BlobHeader& h = *reinterpret_cast<const BlobHeader*>(blob);
    if (h.magic != kBlobMagic) throw BlobError("packed weights: not a fastcompress blob (wrong magic)" + again);
    if (h.version != kBlobVersion)
        throw BlobError("packed weights: layout version " + std::to_string(h.version) +
                        ", this library reads version " + std::to_string(kBlobVersion) + again);
    if (h.header_checksum != header_checksum(h))
        throw BlobError("packed weights: the header is corrupt (checksum mismatch)" + again);
    if (h.total_bytes != bytes)
        throw BlobError("packed weights: truncated or extended: " + std::to_string(bytes) + " bytes, the header says " +
                        std::to_string(h.total_bytes) + again);
    if (!any_isa && h.isa != static_cast<int32_t>(current_table().isa))
        throw BlobError(std::string("packed weights: made for ISA '") + isa_name(h.isa) + "', this process runs '" +
                        current_table().name + "'" + again);
    return h;
}

void verify_blob(const uint8_t* blob, int64_t bytes) {
    const BlobHeader& h = open_blob(blob, bytes, true);
    if (checksum(blob + kHeaderBytes, bytes - kHeaderBytes) != h.payload_checksum)
        throw BlobError("packed weights: the payload is corrupt (checksum mismatch); load the layer's weights again");
}

void unpack_weight(const uint8_t* blob, int8_t* weight) {
    const BlobHeader& h = *reinterpret_cast<const BlobHeader*>(blob);
    const int8_t* panels = blob_panels(h);
    for_each_weight(h, [&](int64_t from, int64_t to, int64_t) { weight[to] = panels[from]; });
}

}  // namespace fastcompress
