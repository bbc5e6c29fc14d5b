// Weights in groups: checks, layout, packing.
#pragma once

#include "fastcompress/blob.h"

namespace fastcompress {

// Throws std::invalid_argument unless the weights can be packed.
void check_grouped(const LayerSpec& spec);

// The header's fields about groups, then the offsets up to the bias.
void plan_grouped(const GroupedSpec& grouped, BlobHeader& header);
void lay_out_grouped(BlobHeader& header);

// Whether the fields about groups can be true.
bool consistent_grouped(const BlobHeader& header);

void pack_grouped(const GroupedSpec& grouped, const BlobHeader& header, uint8_t* blob);

}  // namespace fastcompress
