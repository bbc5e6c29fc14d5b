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

// Of four-bit weights: the byte that holds the weight which unpacks to `position`, and the shift of its nibble.
struct NibblePlace {
    int64_t byte;
    int shift;
};
NibblePlace nibble_place(int64_t position) {
    constexpr int64_t kHalf = kLineBytes / 2;
    return {position / kLineBytes * kHalf + position % kHalf, position % kLineBytes < kHalf ? 0 : 4};
}

// Calls f(position in the n16k4 panels, index in the canonical weight, padded output channel) for every weight.
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

void pack_panels(const LayerSpec& s, const BlobHeader& h, uint8_t* panels, int32_t* sums) {
    constexpr int kMiddle = 8, kTwoZeros = kMiddle << 4 | kMiddle;
    const bool nibbles = has_packed_panels(h);
    if (nibbles) std::memset(panels, kTwoZeros, static_cast<size_t>(h.column_sum_offset - h.panels_offset));
    for_each_weight(h, [&](int64_t to, int64_t from, int64_t channel) {
        if (nibbles) {
            const NibblePlace p = nibble_place(to);
            const int others = panels[p.byte] & ~(15 << p.shift);
            panels[p.byte] = static_cast<uint8_t>(others | (s.weight[from] + kMiddle) << p.shift);
        } else {
            panels[to] = static_cast<uint8_t>(s.weight[from]);
        }
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
        pack_panels(s, h, blob + h.panels_offset, sums);
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
    for_each_weight(h, [&](int64_t from, int64_t to, int64_t) {
        if (!has_packed_panels(h)) {
            weight[to] = panels[from];
            return;
        }
        const NibblePlace p = nibble_place(from);
        weight[to] = static_cast<int8_t>((panels[p.byte] >> p.shift & 15) - 8);
    });
}

}  // namespace fastcompress
