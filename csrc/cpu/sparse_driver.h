// What the drivers of block-sparse products share: filling in a product, cutting its panels, judging its work.
#pragma once

#include <vector>

#include "dispatch.h"
#include "fastcompress/blob.h"
#include "fastcompress/kernels.h"
#include "gemm_driver.h"

namespace fastcompress {

constexpr size_t kSparseScratchBytes = static_cast<size_t>(kSparseScratchElements) * sizeof(int32_t);

const SparseKernel& sparse_kernel(const KernelTable& table, const BlobHeader& blob);

// Words (4 bytes) of a token's inputs in a column of blocks.
int64_t column_words(const BlobHeader& blob);

// All that follows from the weights; the caller adds inputs, panels, runs of rows and scratch.
SparseProduct sparse_product(const KernelTable& table, const BlobHeader& blob, const Epilogue& epilogue);

// Bounds of `runs` or fewer runs of panels with about equally many blocks.
std::vector<int64_t> cut_panels(const BlobHeader& blob, int64_t runs);

// Tokens of a tile when `tokens` are cut evenly into as few tiles as the kernel's width allows, but into one for each thread
// while that leaves them wide.
int64_t tile_width(const SparseKernel& kernel, int64_t tokens, int threads);

// What `tokens` tokens cost; inputs and outputs are the caller's to add.
Work sparse_work(const BlobHeader& blob, int64_t tokens);

}  // namespace fastcompress
