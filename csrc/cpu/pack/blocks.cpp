#include "blocks.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../dispatch.h"
#include "fastcompress/kernels.h"

namespace fastcompress {
namespace {

constexpr int64_t kColumnLimit = 65536;  // a column's number is stored in two bytes
constexpr int64_t kAlign = 64;
static_assert(kMaxK / 4 < kColumnLimit, "columns of the longest s8 reduction can be numbered");

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument("pack_bsr: " + message);
}

// What unpacking reads from a blob must not lead it out of the blob, nor out of the arrays that it fills.
void require_intact(bool ok) {
    if (!ok)
        throw BlobError(
            "packed weights: the index of blocks is corrupt; load the layer's state_dict or checkpoint again");
}

std::string shape_text(const BlockIndex& b) { return std::to_string(b.block_h) + "x" + std::to_string(b.block_w); }

void check_shape(const LayerSpec& s) {
    const BlockIndex& b = *s.sparse;
    if (!find_sparse_kernel(current_table(), b.value, b.block_h, b.block_w))
        require(false, "blocks of " + shape_text(b) +
                           " have no kernel, allowed: 16x4, 4x4, 1x4 (s8), 16x1, 4x1, 1x1 "
                           "(f32), 16x2 (bf16)");
    require(s.groups == 1, "convolutions with groups have no block-sparse kernel");
    require(s.out_channels % b.block_h == 0 && s.in_channels % b.block_w == 0,
            "a weight of " + std::to_string(s.out_channels) + " outputs and " + std::to_string(s.in_channels) +
                " inputs cannot be cut into blocks of " + shape_text(b));
    require(s.in_channels * s.kernel_h * s.kernel_w / b.block_w <= kColumnLimit,
            "more than 65536 columns of blocks; split the layer along its input channels");
    require((b.value == DType::s8) == (s.weight_scale != nullptr), "s8 values, and no others, have a weight_scale");
}

// Calls f(block, distance from the block before it in its row, or from column 0).
template <class F>
void for_each_step(const BlockIndex& b, int64_t row, const F& f) {
    for (int64_t i = b.crow[row]; i < b.crow[row + 1]; ++i) f(i, i == b.crow[row] ? b.col[i] : b.col[i] - b.col[i - 1]);
}

// The blocks in front of one that is so far away.
int64_t bridges(const BlobHeader& h, int64_t distance) { return index_bytes(h) == 2 ? 0 : distance / kFarBlock; }

int64_t block_columns(const BlobHeader& h) { return h.in_channels * h.kernel_h * h.kernel_w / h.block_w; }

int64_t block_rows(const BlobHeader& h) { return h.panels * kPanel / h.block_h; }

template <class T>
T* at(uint8_t* blob, int64_t offset) {
    return reinterpret_cast<T*>(blob + offset);
}

void add_sums(const BlobHeader& h, const int8_t* block, int32_t* sums) {
    for (int64_t n = 0; n < h.block_h; ++n)
        for (int64_t k = 0; k < h.block_w; ++k) sums[n] += block[n * h.block_w + k];
}

}  // namespace

void check_blocks(const LayerSpec& s) {
    check_shape(s);
    const BlockIndex& b = *s.sparse;
    const int64_t rows = s.out_channels / b.block_h;
    const int64_t columns = s.in_channels * s.kernel_h * s.kernel_w / b.block_w;
    require(b.crow[0] == 0 && b.crow[rows] == b.blocks,
            "crow must begin with 0 and end with the number of blocks, " + std::to_string(b.blocks));
    for (int64_t r = 0; r < rows; ++r) {
        if (b.crow[r] > b.crow[r + 1] || b.crow[r + 1] > b.blocks)
            require(false, "crow decreases, or exceeds the number of blocks, at block row " + std::to_string(r));
        for (int64_t i = b.crow[r]; i < b.crow[r + 1]; ++i)
            if (b.col[i] < 0 || b.col[i] >= columns || (i != b.crow[r] && b.col[i - 1] >= b.col[i]))
                require(false, "col[" + std::to_string(i) + "] is " + std::to_string(b.col[i]) + ", allowed: 0 to " +
                                   std::to_string(columns - 1) + ", ascending within a block row");
    }
}

void plan_blocks(const BlockIndex& b, BlobHeader& h) {
    h.blocks = h.entries = b.blocks;
    h.block_h = b.block_h;
    h.block_w = b.block_w;
    h.value_dtype = static_cast<int32_t>(b.value);
    for (int64_t r = 0; r < h.out_channels / h.block_h; ++r)
        for_each_step(b, r, [&](int64_t, int64_t distance) { h.entries += bridges(h, distance); });
    require(h.entries <= 2147483647, "more than 2147483647 blocks; split the layer");
}

void lay_out_blocks(BlobHeader& h) {
    h.family = static_cast<int32_t>(is_linear(h) ? Family::linear_bsr : Family::conv2d_bsr);
    h.channel_pad = h.in_channels;
    h.k_pad = h.in_channels * h.kernel_h * h.kernel_w;
    h.panels = ceil_div(h.out_channels, kPanel);
    h.pointer_offset = kHeaderBytes;
    h.index_offset = round_up(h.pointer_offset + (block_rows(h) + 1) * 4, kAlign);
    h.panels_offset = round_up(h.index_offset + h.entries * index_bytes(h), kAlign);
    h.column_sum_offset = round_up(h.panels_offset + h.entries * block_bytes(h), kAlign);
}

bool consistent_blocks(const BlobHeader& h) {
    const DType value = static_cast<DType>(h.value_dtype);
    if (!find_sparse_kernel(current_table(), value, h.block_h, h.block_w) || h.groups != 1) return false;
    if (h.out_channels % h.block_h != 0 || h.in_channels % h.block_w != 0) return false;
    if (has_real_weights(h) && h.input_mode != static_cast<int32_t>(InputMode::per_tensor)) return false;
    const int64_t rows = h.out_channels / h.block_h, columns = block_columns(h);
    return columns <= kColumnLimit && h.blocks >= 0 && h.blocks <= rows * columns && h.entries >= h.blocks &&
           h.entries - h.blocks <= rows * bridges(h, columns - 1) && h.entries <= 2147483647;
}

void pack_blocks(const BlockIndex& b, const BlobHeader& h, uint8_t* blob, int32_t* sums) {
    int32_t* pointer = at<int32_t>(blob, h.pointer_offset);
    const int64_t bytes = block_bytes(h), rows = h.out_channels / h.block_h;
    const uint8_t* values = static_cast<const uint8_t*>(b.values);
    uint8_t* index = blob + h.index_offset;
    uint8_t* to = blob + h.panels_offset;
    for (int64_t r = 0; r < block_rows(h); ++r) {  // rows beyond the last channel are empty
        pointer[r + 1] = pointer[r];
        if (r >= rows) continue;
        for_each_step(b, r, [&](int64_t i, int64_t distance) {
            if (index_bytes(h) == 2) {
                const uint16_t column = static_cast<uint16_t>(b.col[i]);
                std::memcpy(index, &column, 2);
                index += 2;
            } else {
                for (int64_t n = bridges(h, distance); n > 0; --n, to += bytes, ++pointer[r + 1])
                    *index++ = static_cast<uint8_t>(kFarBlock);  // its weights are zero already
                *index++ = static_cast<uint8_t>(distance % kFarBlock);
            }
            std::memcpy(to, values + i * bytes, static_cast<size_t>(bytes));
            to += bytes;
            ++pointer[r + 1];
            if (!has_real_weights(h))
                add_sums(h, reinterpret_cast<const int8_t*>(values + i * bytes), sums + r * h.block_h);
        });
    }
}

void unpack_blocks(const BlobHeader& h, int32_t* crow, int32_t* col, void* values) {
    const int32_t* pointer = blob_pointers(h);
    const uint8_t* from = reinterpret_cast<const uint8_t*>(blob_panels(h));
    const int64_t bytes = block_bytes(h), columns = block_columns(h);
    int64_t blocks = 0;
    crow[0] = 0;
    for (int64_t r = 0; r < h.out_channels / h.block_h; ++r) {
        require_intact(pointer[r] >= 0 && pointer[r + 1] >= pointer[r] && pointer[r + 1] <= h.entries);
        int32_t column = 0;
        for (int64_t i = pointer[r]; i < pointer[r + 1]; ++i) {
            const uint8_t* index = blob_index(h) + i * index_bytes(h);
            uint16_t number = *index;
            if (index_bytes(h) == 2) {
                std::memcpy(&number, index, 2);
                column = number;
            } else {
                column += number;
            }
            require_intact(column < columns);
            if (index_bytes(h) == 1 && number == kFarBlock) continue;
            require_intact(blocks < h.blocks);
            col[blocks] = column;
            std::memcpy(static_cast<uint8_t*>(values) + blocks * bytes, from + i * bytes, static_cast<size_t>(bytes));
            ++blocks;
        }
        crow[r + 1] = static_cast<int32_t>(blocks);
    }
    require_intact(blocks == h.blocks);
}

}  // namespace fastcompress
