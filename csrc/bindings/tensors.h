// torch tensors through the stable ABI only (torch 2.10 and later): one build serves every torch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastcompress/types.h"

namespace fastcompress::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// How operators refuse arguments: the text is put together only when it is needed.
template <class... Parts>
std::string text_of(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return text.str();
}
// ValueError in Python.
template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
    throw std::invalid_argument(text_of(op, ": ", parts...));
}
// RuntimeError in Python, as no C++ exception becomes TypeError there; layers explain it as that (nn/).
template <class... Parts>
[[noreturn]] void refuse_type(const char* op, const Parts&... parts) {
    throw std::runtime_error(text_of(op, ": ", parts...));
}

DType kernel_dtype(ScalarType type, std::initializer_list<DType> allowed, const char* op, const char* argument);
ScalarType torch_dtype(DType type);
std::string dtype_text(ScalarType type);  // "float32", as Python says

void check_cpu(const Tensor& t, const char* op, const char* argument);
// A blob's tensor: uint8, 1-D, contiguous.
void check_packed(const Tensor& packed, const char* op);

// Row-major, copied if it is not.
Tensor row_major(const Tensor& t);

Tensor empty(const std::vector<int64_t>& sizes, DType dtype);
Tensor empty_channels_last(const std::vector<int64_t>& sizes, DType dtype);  // 4-D

std::vector<int64_t> sizes_of(const Tensor& t);
std::string shape_text(const Tensor& t);
std::string shape_text(const std::vector<int64_t>& sizes);

// Threads that torch.set_num_threads allows.
int torch_threads();

}  // namespace fastcompress::bindings
