// The header of packed blobs: its layout arithmetic and its checks.
#pragma once

#include "fastcompress/blob.h"

namespace fastcompress {

inline bool is_depthwise(const BlobHeader& h) { return h.family == static_cast<int32_t>(Family::depthwise); }

// Groups of panels: one for each group of channels, but depthwise channels share theirs.
inline int64_t panel_sets(const BlobHeader& h) { return is_depthwise(h) ? 1 : h.groups; }

uint64_t blob_checksum(const uint8_t* data, int64_t bytes);

void seal_header(BlobHeader& h);  // sets its checksum, last of all

}  // namespace fastcompress
