// Raw buffers from Python: numpy arrays, or anything that exports DLPack or the buffer protocol. Shapes, element types
// and contiguity are checked here, so the functions behind see plain pointers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
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
    size_t bytes() const { return static_cast<size_t>(array.nbytes()); }
    int64_t dim(int i) const { return array.shape(i); }
    int64_t rank() const { return array.ndim(); }
};

// "f32", "bf16", "f16", "u8", "s8", "i32"; ValueError otherwise. `allowed` names the choices in the message.
DType parse_dtype(const std::string& name, const char* function, const char* argument,
                  const std::vector<DType>& allowed);
const char* dtype_name(DType dtype);

// TypeError when the object is no array or its elements are of none of the types `allowed` (bf16: uint16), ValueError when
// it is not C-contiguous or, for outputs, read-only. The buffer's dtype is the first of `allowed` that fits.
Buffer input(const py::object& object, std::initializer_list<DType> allowed, const char* function,
             const char* argument);
Buffer output(const py::object& object, std::initializer_list<DType> allowed, const char* function,
              const char* argument);

// A buffer with the name of its argument. Optional arguments that were left out are empty buffers.
struct Named {
    const char* argument;
    const Buffer& buffer;
};
// ValueError when two of `written`, or one of them and one of `read`, share memory.
void check_disjoint(const char* function, std::initializer_list<Named> written, std::initializer_list<Named> read);

// ValueError outside [0, kMaxThreads]; 0 means all.
int checked_threads(int threads, const char* function);

[[noreturn]] void bad_shape(const char* function, const char* argument, const Buffer& got, const std::string& wanted);

}  // namespace fastcompress::bindings
