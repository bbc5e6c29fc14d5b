// Raw buffers from Python: numpy arrays, or anything that exports DLPack or the buffer protocol. Shapes, element types
// and contiguity are checked here, so the functions behind see plain pointers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "fastcompress/types.h"

namespace fastcompress::bindings {

namespace py = pybind11;

struct Buffer {
    py::array array;  // keeps the memory alive
    DType dtype{};
    const void* data() const { return array.data(); }
    void* mutable_data() const { return const_cast<void*>(array.data()); }
    int64_t size() const { return array.size(); }
    int64_t dim(int i) const { return array.shape(i); }
    int64_t rank() const { return array.ndim(); }
};

// "f32", "bf16", "f16", "u8", "s8", "i32"; ValueError otherwise. `allowed` names the choices in the message.
DType parse_dtype(const std::string& name, const char* function, const char* argument,
                  const std::vector<DType>& allowed);
const char* dtype_name(DType dtype);

// TypeError when the elements are not `dtype` (bf16: uint16), ValueError when not C-contiguous or, for outputs,
// read-only.
Buffer input(const py::object& object, DType dtype, const char* function, const char* argument);
Buffer output(const py::object& object, DType dtype, const char* function, const char* argument);

[[noreturn]] void bad_shape(const char* function, const char* argument, const Buffer& got, const std::string& wanted);

}  // namespace fastcompress::bindings
