// The four-bit part of a blob: checks, layout, packing.
#pragma once

#include "fastcompress/blob.h"

namespace fastcompress {

// Throws std::invalid_argument unless the weights can be packed.
void check_nibbles(const LayerSpec& spec);

// The header's fields about groups, then the offsets up to the bias.
void plan_nibbles(const NibbleSpec& nibbles, BlobHeader& header);
void lay_out_nibbles(BlobHeader& header);

// Whether the fields about groups can be true.
bool consistent_nibbles(const BlobHeader& header);

void pack_nibbles(const NibbleSpec& nibbles, const BlobHeader& header, uint8_t* blob);

}  // namespace fastcompress
