// Block-sparse convolutions of either kind: called by conv2d_w8a8 and conv2d_bsr.
#pragma once

#include "fastcompress/w8a8.h"

namespace fastcompress {

// `op`: who asks, for messages.
void run_conv2d_bsr(const BlobHeader& blob, const ConvCall& call, const char* op);

}  // namespace fastcompress
