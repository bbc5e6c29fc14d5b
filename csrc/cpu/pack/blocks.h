// The block-sparse part of a blob: checks, layout, packing.
#pragma once

#include "fastcompress/blob.h"

namespace fastcompress {

// Throws std::invalid_argument unless there is a kernel for these blocks and every index is right.
void check_blocks(const LayerSpec& spec);

// The header's fields about blocks, then the offsets up to the column sums.
void plan_blocks(const BlockIndex& blocks, BlobHeader& header);
void lay_out_blocks(BlobHeader& header);

// Whether the fields about blocks can be true.
bool consistent_blocks(const BlobHeader& header);

// Pointers, index and blocks to their places; channels' sums of s8 weights are added to `sums`.
void pack_blocks(const BlockIndex& blocks, const BlobHeader& header, uint8_t* blob, int32_t* sums);

}  // namespace fastcompress
