// Packed weights: one buffer that holds everything a layer needs, made for one ISA.
//
//     | header 256 | panels | column sums | weight scales | bias |
//
// Panels are n16k4 (kernels.h), one set per group. The reduction runs over (kernel row, kernel column, channel), with
// channels padded to a multiple of four (not for depthwise: one channel a group, the reduction runs over taps alone):
//
//     linear     K = in_features                      channel_pad = round_up(K, 4)
//     conv2d     K = kh * kw * channel_pad            channel_pad = round_up(C / groups, 4)
//     depthwise  K = kw * round_up(kh, 4), the C channels are n; taps ordered as in kernels.h, DepthwiseRow
//
// and is then padded to k_pad, a multiple of the ISA's k_unit. Padding holds zero weights.
//
// Convolutions (but not depthwise ones) may hold weights of -8 .. 7 in four bits, as codes: the value plus 8. A line of a panel, four
// inputs of 16 channels, takes 32 bytes, and a call unpacks the panels before it multiplies (kernels.h, UnpackFunction):
//
//     low nibble of byte  4n + i  of a line:  input i of channel n,  n in 0..7
//     high nibble                             input i of channel n + 8
//
// Block-sparse weights, of linear layers and of convolutions without groups, keep the blocks that are not zero:
//
//     | header 256 | first block of each row of blocks | column of each block  | blocks      | sums | scales | bias |
//                    int32 [rows of whole panels + 1]    1 or 2 bytes an entry   value bytes
//
// They are blocks of the matrix [out, kernel row, kernel column, in]; kernels.h (SparseProduct, SparseKernel) says what lies in a
// block and what a column's number means. Sums and scales are there for s8 only.
//
// Weights in groups, of linear layers, have a scale for each group of neighbouring inputs:
//
//     | header 256 | codes | scales | zero points or minima | bias |
//
// k is padded to a multiple of eight. A code of four bits is the value, one of eight bits the value plus 128. Panel p holds output
// channels 16p .. 16p+15 in lines of 64 bytes, a word for each channel. A line of four bits has eight inputs ("n16k8"):
//
//     low nibble of byte  4n + i  of a line:  input i      of channel n     i in 0..3
//     high nibble                             input i + 4
//
// and one of eight bits four ("n16k4"): byte 4n + i is input i of channel n.
//
// Scales, zero points (u8) and minima (f32) are [panel][group][16].
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "fastcompress/types.h"

namespace fastcompress {

enum class Family : int32_t {
    linear = 0,
    conv2d = 1,
    depthwise = 2,
    linear_bsr = 3,
    conv2d_bsr = 4,
    linear_w4 = 5,
    linear_w8 = 6
};

constexpr uint32_t kBlobMagic = 0x4b504346u;  // "FCPK"
constexpr int32_t kBlobVersion = 2;
constexpr int64_t kHeaderBytes = 256;

struct BlobHeader {
    uint32_t magic;
    int32_t version;
    int32_t family;
    int32_t isa;
    int64_t total_bytes;
    int64_t out_channels;
    int64_t in_channels;  // per group
    int64_t groups;
    int64_t kernel_h, kernel_w;
    int64_t channel_pad;
    int64_t k_pad;
    int64_t panels;                                                       // per group
    int64_t panels_offset, column_sum_offset, scale_offset, bias_offset;  // bytes from the start
    int32_t has_bias;
    int32_t input_mode;
    float input_scale;
    int32_t input_zero_point;
    int32_t activation;
    int32_t weight_rank;  // 2 or 4
    uint64_t payload_checksum;
    int64_t blocks;                        // block-sparse weights only, like the following
    int64_t entries;                       // blocks and those that bridge distances (kernels.h, kFarBlock)
    int64_t pointer_offset, index_offset;  // bytes from the start
    int32_t block_h, block_w;              // 0: dense
    int32_t value_dtype;                   // s8, f32 or bf16
    int32_t value_bits;   // of weights in groups: 4 or 8; of a convolution's: 4; 0: what value_dtype says
    int64_t group_size;   // weights in groups only, like the following: inputs a group, the last may have fewer
    int32_t scale_dtype;  // f32, bf16 or f16
    int32_t zero_kind;    // ZeroKind
    int64_t zero_offset;  // bytes from the start
    uint8_t reserved[24];
    uint64_t header_checksum;  // of the bytes before it
};
static_assert(sizeof(BlobHeader) == kHeaderBytes, "the header is part of the format");

// Block-CSR: block row r holds blocks crow[r] .. crow[r+1]-1, block i of them columns col[i]*block_w .. of the matrix.
struct BlockIndex {
    const int32_t* crow = nullptr;  // [out / block_h + 1]
    const int32_t* col = nullptr;   // [blocks], ascending within a block row
    const void* values = nullptr;   // [blocks, block_h, block_w] of `value`: s8, f32 or bf16
    DType value = DType::s8;
    int64_t blocks = 0;
    int32_t block_h = 0, block_w = 0;
};

// What is taken off a code q: w = scale * (q - middle), scale * (q - zero point), or scale * q + minimum. Eight bits have `middle` only.
enum class ZeroKind : int32_t { middle = 0, zero_point = 1, minimum = 2 };

// Weights with a scale for each group.
struct GroupedSpec {
    int32_t bits = 4;
    // [out, row_bytes]. Four bits: input k of a row in byte k / 2, even inputs in the low nibble. Eight: s8 values.
    const uint8_t* words = nullptr;
    int64_t row_bytes = 0;
    const void* scale = nullptr;  // [out, groups] of scale_dtype
    DType scale_dtype = DType::f32;
    const uint8_t* zero_point = nullptr;  // [out, groups], 0 to 15; or:
    const float* minimum = nullptr;       // [out, groups]; or neither: the middle, 8 or (s8) 0
    int64_t group_size = 0;
};

// Canonical description of a layer; pointers are borrowed.
struct LayerSpec {
    const int8_t* weight = nullptr;        // [out, in_channels, kernel_h, kernel_w], C-contiguous; or:
    const BlockIndex* sparse = nullptr;    // blocks of [out, kernel_h * kernel_w * in_channels]; or:
    const GroupedSpec* grouped = nullptr;  // of [out, in_channels]
    const float* weight_scale = nullptr;   // null for float values
    const float* bias = nullptr;
    int64_t out_channels = 0, in_channels = 0, groups = 1, kernel_h = 1, kernel_w = 1;
    int32_t weight_rank = 2;
    int32_t weight_bits = 8;  // of a convolution's s8 weights: 8, or 4 where all are -8 .. 7
    InputMode input_mode = InputMode::per_tensor;
    float input_scale = 1.0f;
    int32_t input_zero_point = 0;
    Activation activation = Activation::none;
};

// All throw std::invalid_argument (bad layer) or BlobError (bad blob).
struct BlobError : std::exception {
    explicit BlobError(std::string text) : text_(std::move(text)) {}
    const char* what() const noexcept override { return text_.c_str(); }

   private:
    std::string text_;
};

// Header for a layer on the current ISA, checksums not yet set; total_bytes says how much memory pack needs.
BlobHeader plan_blob(const LayerSpec& spec);
void pack_blob(const LayerSpec& spec, uint8_t* blob, int64_t bytes);

// O(1): magic, version, size, header checksum, and (unless any_isa) that the blob was made for the current ISA.
const BlobHeader& open_blob(const uint8_t* blob, int64_t bytes, bool any_isa = false);
// Payload checksum as well.
void verify_blob(const uint8_t* blob, int64_t bytes);
// The weights of an opened dense blob, [out, in_channels, kernel_h, kernel_w].
void unpack_weight(const uint8_t* blob, int8_t* weight);
// The weights of an opened block-sparse blob: crow [out / block_h + 1], col [blocks], values [blocks, block_h, block_w].
void unpack_blocks(const BlobHeader& h, int32_t* crow, int32_t* col, void* values);
// The weights of an opened blob with groups; arrays as in GroupedSpec, but zero-filled, and null where there are none.
void unpack_grouped(const BlobHeader& h, uint8_t* words, int64_t row_bytes, void* scale, uint8_t* zero_point,
                    float* minimum);
// Row n of them as float32, [in_channels]: (q - z) * scale, or q * scale + minimum.
void dequantize_row(const BlobHeader& h, int64_t n, float* out);
// Per-channel values (blob_scales, blob_bias) of an opened blob without their padding: out [out_channels].
void unpack_channels(const BlobHeader& h, const float* padded, float* out);

inline const int8_t* blob_panels(const BlobHeader& h) { return reinterpret_cast<const int8_t*>(&h) + h.panels_offset; }
inline const int32_t* blob_column_sums(const BlobHeader& h) {
    return reinterpret_cast<const int32_t*>(reinterpret_cast<const uint8_t*>(&h) + h.column_sum_offset);
}
inline bool is_block_sparse(const BlobHeader& h) { return h.block_h > 0; }
inline const int32_t* blob_pointers(const BlobHeader& h) {
    return reinterpret_cast<const int32_t*>(reinterpret_cast<const uint8_t*>(&h) + h.pointer_offset);
}
inline const uint8_t* blob_index(const BlobHeader& h) { return reinterpret_cast<const uint8_t*>(&h) + h.index_offset; }
inline bool is_linear(const BlobHeader& h) { return h.weight_rank == 2; }
inline bool is_grouped(const BlobHeader& h) { return h.group_size != 0; }
inline bool is_four_bit(const BlobHeader& h) { return h.value_bits == 4; }
// Whether the panels of a dense layer must be unpacked to n16k4 before a product.
inline bool has_packed_panels(const BlobHeader& h) { return is_four_bit(h) && !is_grouped(h); }
constexpr int64_t kLineBytes = 64;
// Of one panel of a dense layer, as it is stored.
inline int64_t panel_bytes(const BlobHeader& h) { return h.k_pad * kPanel / (has_packed_panels(h) ? 2 : 1); }
inline int64_t group_count(const BlobHeader& h) { return ceil_div(h.in_channels, h.group_size); }
inline bool has_real_weights(const BlobHeader& h) { return h.value_dtype != static_cast<int32_t>(DType::s8); }
// Bytes of a stored block, and of an entry of the index.
inline int64_t block_bytes(const BlobHeader& h) {
    return h.block_h * h.block_w * dtype_bytes(static_cast<DType>(h.value_dtype));
}
inline int64_t index_bytes(const BlobHeader& h) { return h.block_h == kPanel || has_real_weights(h) ? 2 : 1; }
inline const float* blob_scales(const BlobHeader& h) {
    return reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(&h) + h.scale_offset);
}
inline const float* blob_bias(const BlobHeader& h) {
    return h.has_bias ? reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(&h) + h.bias_offset) : nullptr;
}

}  // namespace fastcompress
