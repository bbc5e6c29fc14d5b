// Block-sparse linear layers of either kind: called by linear_w8a8 and linear_bsr when they have checked the call.
#pragma once

#include "fastcompress/epilogue.h"
#include "linear_input.h"

namespace fastcompress {

void run_linear_bsr(const LinearInput& input, const Epilogue& epilogue);

}  // namespace fastcompress
