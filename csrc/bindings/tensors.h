// torch tensors through the stable ABI only (torch 2.10 and later): one build serves every torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "fastcompress/types.h"

namespace fastcompress::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Errors become RuntimeError in Python; layers explain them as TypeError or ValueError (nn/).
DType kernel_dtype(ScalarType type, const char* op, const char* argument);
ScalarType torch_dtype(DType type);

void check_cpu(const Tensor& t, const char* op, const char* argument);

// Row-major, copied if it is not.
Tensor row_major(const Tensor& t);

Tensor empty(const std::vector<int64_t>& sizes, DType dtype);
Tensor empty_channels_last(const std::vector<int64_t>& sizes, DType dtype);  // 4-D

std::vector<int64_t> sizes_of(const Tensor& t);
std::string shape_text(const Tensor& t);

// Threads that torch.set_num_threads allows.
int torch_threads();

}  // namespace fastcompress::bindings
