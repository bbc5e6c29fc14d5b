// Packing and unpacking: the loops over weights. The header is blob_header.cpp's.
#include "fastcompress/blob.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "blob_header.h"
#include "blocks.h"
#include "grouped.h"

namespace fastcompress {
namespace {

// Output channel n among the panels: every group begins a panel of its own.
int64_t padded_channel(const BlobHeader& h, int64_t n) {
    const int64_t per_set = h.out_channels / panel_sets(h);
    return n / per_set * h.panels * kPanel + n % per_set;
}

// Where weight (n within its group, channel c, tap t = row * kernel_w + column) lies in its group's panels.
int64_t position(const BlobHeader& h, int64_t n, int64_t c, int64_t t) {
    const int64_t k =
        is_depthwise(h) ? t % h.kernel_w * round_up(h.kernel_h, 4) + t / h.kernel_w : t * h.channel_pad + c;
    return (n / kPanel) * (h.k_pad * kPanel) + (k / 4) * 64 + (n % kPanel) * 4 + k % 4;
}

// Calls f(position in blob, index in the canonical weight, padded output channel) for every weight.
template <class F>
void for_each_weight(const BlobHeader& h, F&& f) {
    const int64_t sets = panel_sets(h);
    const int64_t per_set = h.out_channels / sets;
    const int64_t taps = h.kernel_h * h.kernel_w;
    for (int64_t g = 0; g < sets; ++g)
        for (int64_t n = 0; n < per_set; ++n)
            for (int64_t c = 0; c < h.in_channels; ++c)
                for (int64_t t = 0; t < taps; ++t)
                    f(g * h.panels * kPanel * h.k_pad + position(h, n, c, t),
                      ((g * per_set + n) * h.in_channels + c) * taps + t, g * h.panels * kPanel + n);
}

void pack_panels(const LayerSpec& s, const BlobHeader& h, int8_t* panels, int32_t* sums) {
    for_each_weight(h, [&](int64_t to, int64_t from, int64_t channel) {
        panels[to] = s.weight[from];
        sums[channel] += s.weight[from];
    });
}

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

}  // namespace

void unpack_channels(const BlobHeader& h, const float* padded, float* out) {
    for (int64_t n = 0; n < h.out_channels; ++n) out[n] = padded[padded_channel(h, n)];
}

void pack_blob(const LayerSpec& s, uint8_t* blob, int64_t bytes) {
    BlobHeader h = plan_blob(s);
    require(bytes == h.total_bytes,
            "pack_w8a8: the buffer has " + std::to_string(bytes) + " bytes, needs " + std::to_string(h.total_bytes));
    std::memset(blob, 0, static_cast<size_t>(bytes));
    int32_t* sums = reinterpret_cast<int32_t*>(blob + h.column_sum_offset);
    if (s.grouped) {
        pack_grouped(*s.grouped, h, blob);
    } else if (s.sparse) {
        pack_blocks(*s.sparse, h, blob, sums);
    } else {
        pack_panels(s, h, reinterpret_cast<int8_t*>(blob + h.panels_offset), sums);
    }
    float* scales = reinterpret_cast<float*>(blob + h.scale_offset);  // of channels: weights in groups have their own
    float* bias = reinterpret_cast<float*>(blob + h.bias_offset);
    for (int64_t n = 0; n < h.out_channels; ++n) {
        if (s.weight_scale) scales[padded_channel(h, n)] = s.weight_scale[n];
        if (s.bias) bias[padded_channel(h, n)] = s.bias[n];
    }
    h.payload_checksum = blob_checksum(blob + kHeaderBytes, bytes - kHeaderBytes);
    seal_header(h);
    std::memcpy(blob, &h, sizeof h);
}

void verify_blob(const uint8_t* blob, int64_t bytes) {
    const BlobHeader& h = open_blob(blob, bytes, true);
    if (blob_checksum(blob + kHeaderBytes, bytes - kHeaderBytes) != h.payload_checksum)
        throw BlobError(
            "packed weights: the payload is corrupt (checksum mismatch); load the layer's "
            "state_dict or checkpoint again");
}

void unpack_weight(const uint8_t* blob, int8_t* weight) {
    const BlobHeader& h = *reinterpret_cast<const BlobHeader*>(blob);
    const int8_t* panels = blob_panels(h);
    for_each_weight(h, [&](int64_t from, int64_t to, int64_t) { weight[to] = panels[from]; });
}

}  // namespace fastcompress
