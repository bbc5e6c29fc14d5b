// linear_w8a8 with block-sparse weights; linear_w8a8 calls it with checked arguments.
#pragma once

#include "fastcompress/kernels.h"
#include "fastcompress/w8a8.h"

namespace fastcompress {

struct LinearInput;

void linear_bsr_w8a8(const LinearInput& input, const Epilogue& epilogue);

}  // namespace fastcompress
