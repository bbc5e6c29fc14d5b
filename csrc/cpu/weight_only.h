// Layers with weights in groups whose activations stay float.
#pragma once

#include "fastcompress/epilogue.h"
#include "fastcompress/w4.h"

namespace fastcompress {

// `blob` has groups and input mode `real`, the call has rows and a float input.
void run_weight_only(const BlobHeader& blob, const LinearCall& call, const Epilogue& epilogue);

}  // namespace fastcompress
