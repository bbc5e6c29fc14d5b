#include "blob_header.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../dispatch.h"
#include "blocks.h"
#include "grouped.h"

namespace fastcompress {
namespace {

uint64_t header_checksum(const BlobHeader& h) {
    return blob_checksum(reinterpret_cast<const uint8_t*>(&h), kHeaderBytes - 8);
}

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
}

// Whether channels do not mix at all: each kernel sees the one channel that it makes.
bool is_depthwise_shape(int64_t in_channels, int64_t groups, int64_t out_channels) {
    return in_channels == 1 && groups == out_channels && groups > 1;
}

void check_four_bits(const LayerSpec& s) {
    require(s.weight_rank == 4 && s.weight && !is_depthwise_shape(s.in_channels, s.groups, s.out_channels),
            "pack_w8a8: weight_bits 4 is for dense convolutions that are not depthwise; use 8, or pack_w4 for a linear "
            "layer");
    const int64_t each = s.in_channels * s.kernel_h * s.kernel_w;
    for (int64_t i = 0; i < s.out_channels * each; ++i) {
        if (s.weight[i] >= -8 && s.weight[i] <= 7) continue;
        require(false, "pack_w8a8: weight holds " + std::to_string(s.weight[i]) + " in output channel " +
                           std::to_string(i / each) + ", four bits hold -8 to 7; use weight_bits 8");
    }
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
    for (int64_t n = 0; s.weight_scale && n < s.out_channels; ++n)
        require(std::isfinite(s.weight_scale[n]) && s.weight_scale[n] > 0,
                "pack_w8a8: weight_scale[" + std::to_string(n) + "] is not a positive finite number");
    require(s.weight_rank == 2 || s.weight_rank == 4, "pack_w8a8: weight must have 2 or 4 dimensions");
    require(s.weight_rank == 2 || s.input_mode == InputMode::per_tensor,
            "pack_w8a8: convolutions take static activations (input_mode 0) only");
    require(s.grouped || s.input_mode != InputMode::per_group_16bit,
            "pack_w8a8: activations of 16 bits (input_mode 3) are for weights in groups (pack_w4, pack_w8)");
    require(s.weight_bits == 8 || s.weight_bits == 4,
            "pack_w8a8: weight_bits is " + std::to_string(s.weight_bits) + ", allowed: 4 and 8");
    if (s.weight_bits == 4) check_four_bits(s);
}

// Without column sums and scales, float weights need no room for them.
void lay_out_channels(BlobHeader& h, int64_t padded_channels) {
    const int64_t each = has_real_weights(h) ? 0 : padded_channels * 4;
    h.scale_offset = h.column_sum_offset + each;
    h.bias_offset = h.scale_offset + each;
    h.total_bytes = h.bias_offset + (h.has_bias ? padded_channels * 4 : 0);
}

// Everything that follows from the dimensions, the ISA and whether there is a bias.
void lay_out(BlobHeader& h) {
    if (is_grouped(h)) return lay_out_grouped(h);
    if (is_block_sparse(h)) {
        lay_out_blocks(h);
        lay_out_channels(h, h.panels * kPanel);
        return;
    }
    const bool depthwise = h.weight_rank == 4 && is_depthwise_shape(h.in_channels, h.groups, h.out_channels);
    h.family = static_cast<int32_t>(depthwise            ? Family::depthwise
                                    : h.weight_rank == 2 ? Family::linear
                                                         : Family::conv2d);
    h.channel_pad = depthwise ? 1 : round_up(h.in_channels, 4);
    h.k_pad = depthwise ? h.kernel_w * round_up(h.kernel_h, 4)
                        : round_up(h.kernel_h * h.kernel_w * h.channel_pad, table_for(static_cast<Isa>(h.isa)).k_unit);
    const int64_t sets = panel_sets(h);
    h.panels = ceil_div(h.out_channels / sets, kPanel);
    const int64_t padded_channels = sets * h.panels * kPanel;
    h.panels_offset = kHeaderBytes;
    h.column_sum_offset = h.panels_offset + sets * h.panels * panel_bytes(h);
    lay_out_channels(h, padded_channels);
}

bool compiled(int32_t isa) {
    for (Isa each : compiled_isas())
        if (static_cast<int32_t>(each) == isa) return true;
    return false;
}

// Whether a header with a right checksum describes a layer: a forged one must not make kernels read elsewhere.
bool consistent(const BlobHeader& h, int64_t bytes) {
    const auto between = [](int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; };
    const bool dims = between(h.out_channels, 1, bytes) && between(h.groups, 1, h.out_channels) &&
                      between(h.in_channels, 1, kMaxK) && between(h.kernel_h, 1, kMaxK) &&
                      between(h.kernel_w, 1, kMaxK) && h.out_channels % h.groups == 0;
    if (!dims || h.in_channels * h.kernel_h > kMaxK || h.in_channels * h.kernel_h * h.kernel_w > kMaxK) return false;
    if (h.weight_rank != 4 && !(h.weight_rank == 2 && h.kernel_h == 1 && h.kernel_w == 1 && h.groups == 1))
        return false;
    if (!between(h.has_bias, 0, 1) || !between(h.input_mode, 0, kInputModeCount - 1) ||
        !between(h.activation, 0, kActivationCount - 1) || !between(h.input_zero_point, 0, 255) ||
        !(std::isnormal(h.input_scale) && h.input_scale > 0) || (h.weight_rank == 4 && h.input_mode != 0))
        return false;
    if (h.value_bits != 0 && h.value_bits != 4 && h.value_bits != 8) return false;
    if (is_grouped(h) ? !consistent_grouped(h)
                      : h.input_mode == static_cast<int32_t>(InputMode::per_group_16bit) || h.group_size != 0 ||
                            h.scale_dtype != 0 || h.zero_kind != 0 || h.zero_offset != 0)
        return false;
    if ((is_grouped(h) || is_four_bit(h)) && (is_block_sparse(h) || has_real_weights(h))) return false;
    if (!is_grouped(h) && h.value_bits != 0 &&
        !(is_four_bit(h) && h.weight_rank == 4 && !is_depthwise_shape(h.in_channels, h.groups, h.out_channels)))
        return false;
    if (is_block_sparse(h) ? !consistent_blocks(h)
                           : h.block_h != 0 || h.block_w != 0 || h.blocks != 0 || h.entries != 0)
        return false;
    if (!is_block_sparse(h) && has_real_weights(h)) return false;
    BlobHeader expected = h;
    lay_out(expected);
    return std::memcmp(&expected, &h, sizeof h) == 0;
}

[[noreturn]] void corrupt(const std::string& what) {
    throw BlobError("packed weights: " + what + "; load the layer's state_dict or checkpoint again");
}

[[noreturn]] void foreign(int32_t isa) {
    throw BlobError(std::string("packed weights: made for ISA '") + isa_name(isa) + "', this process runs '" +
                    current_table().name +
                    "'; pack the layer again (layer.repack(), or fastcompress.load on this machine)");
}

}  // namespace

// 64 bits of a multiply-and-rotate mix over eight-byte words: any single flipped bit changes the result.
uint64_t blob_checksum(const uint8_t* data, int64_t bytes) {
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

void seal_header(BlobHeader& h) { h.header_checksum = header_checksum(h); }

BlobHeader plan_blob(const LayerSpec& s) {
    check_spec(s);
    if (s.sparse) check_blocks(s);
    if (s.grouped) check_grouped(s);
    BlobHeader h;
    std::memset(&h, 0, sizeof h);
    h.magic = kBlobMagic;
    h.version = kBlobVersion;
    h.isa = static_cast<int32_t>(current_table().isa);
    h.out_channels = s.out_channels;
    h.in_channels = s.in_channels;
    h.groups = s.groups;
    h.kernel_h = s.kernel_h;
    h.kernel_w = s.kernel_w;
    h.weight_rank = s.weight_rank;
    h.has_bias = s.bias != nullptr;
    h.input_mode = static_cast<int32_t>(s.input_mode);
    h.input_scale = s.input_scale;
    h.input_zero_point = s.input_zero_point;
    h.activation = static_cast<int32_t>(s.activation);
    h.value_dtype = static_cast<int32_t>(DType::s8);
    if (s.weight_bits == 4) h.value_bits = 4;
    if (s.sparse) plan_blocks(*s.sparse, h);
    if (s.grouped) plan_grouped(*s.grouped, h);
    lay_out(h);
    return h;
}

const BlobHeader& open_blob(const uint8_t* blob, int64_t bytes, bool any_isa) {
    if (bytes < kHeaderBytes) corrupt(std::to_string(bytes) + " bytes are too few for a header");
    if (reinterpret_cast<uintptr_t>(blob) % alignof(BlobHeader) != 0)
        throw BlobError("packed weights: the memory is not aligned to 8 bytes; clone the tensor");
    const BlobHeader& h = *reinterpret_cast<const BlobHeader*>(blob);
    if (h.magic != kBlobMagic) corrupt("not a fastcompress blob (wrong magic)");
    if (h.version != kBlobVersion)
        corrupt("layout version " + std::to_string(h.version) + ", this library reads version " +
                std::to_string(kBlobVersion));
    if (h.header_checksum != header_checksum(h)) corrupt("the header is corrupt (checksum mismatch)");
    if (h.total_bytes != bytes)
        corrupt("truncated or extended: " + std::to_string(bytes) + " bytes, the header says " +
                std::to_string(h.total_bytes));
    const bool current = h.isa == static_cast<int32_t>(current_table().isa);
    if (!current && (!any_isa || !compiled(h.isa))) foreign(h.isa);
    if (!consistent(h, bytes)) corrupt("the header does not describe a layer (inconsistent fields)");
    return h;
}

}  // namespace fastcompress
