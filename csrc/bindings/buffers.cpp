#include "buffers.h"

#include <algorithm>

namespace fastcompress::bindings {
namespace {

constexpr const char* kNames[] = {"f32", "bf16", "f16", "u8", "s8", "i32"};

bool holds(const py::array& a, DType dtype) {
    const py::dtype d = a.dtype();
    const bool native = d.byteorder() != '>' && d.byteorder() != '!';  // all supported machines are little-endian
    const auto is = [&](char kind, py::ssize_t size) { return native && d.kind() == kind && d.itemsize() == size; };
    switch (dtype) {
        case DType::f32:
            return is('f', 4);
        case DType::bf16:
            return is('u', 2);
        case DType::f16:
            return is('f', 2);
        case DType::u8:
            return is('u', 1);
        case DType::s8:
            return is('i', 1);
        case DType::i32:
            return is('i', 4);
    }
    return false;
}

std::string shape_of(const py::array& a) { return py::str(a.attr("shape")); }

}  // namespace

const char* dtype_name(DType dtype) { return kNames[static_cast<int>(dtype)]; }

DType parse_dtype(const std::string& name, const char* function, const char* argument,
                  const std::vector<DType>& allowed) {
    std::string choices;
    for (DType d : allowed) {
        if (name == dtype_name(d)) return d;
        choices += (choices.empty() ? "'" : ", '") + std::string(dtype_name(d)) + "'";
    }
    throw py::value_error(std::string(function) + ": " + argument + " is '" + name + "'; allowed: " + choices);
}

Buffer input(const py::object& object, DType dtype, const char* function, const char* argument) {
    py::object source = object;
    if (!py::isinstance<py::array>(source) && py::hasattr(source, "__dlpack__"))
        source = py::module_::import("numpy").attr("from_dlpack")(source);
    py::array array = py::array::ensure(source);
    if (!array) {
        PyErr_Clear();
        throw py::type_error(std::string(function) + ": " + argument + " is not an array");
    }
    if (!holds(array, dtype))
        throw py::type_error(std::string(function) + ": " + argument + " has elements of type " +
                             std::string(py::str(array.dtype())) + ", expected " + dtype_name(dtype) +
                             (dtype == DType::bf16 ? " (as uint16)" : ""));
    if (!(array.flags() & py::array::c_style))
        throw py::value_error(std::string(function) + ": " + argument + " of shape " + shape_of(array) +
                              " is not C-contiguous; pass numpy.ascontiguousarray(" + argument + ")");
    return {array, dtype};
}

Buffer output(const py::object& object, DType dtype, const char* function, const char* argument) {
    const bool array = py::isinstance<py::array>(object);
    Buffer b = input(object, dtype, function, argument);
    if (array && !b.array.writeable()) throw py::value_error(std::string(function) + ": " + argument + " is read-only");
    if (!array && !py::hasattr(object, "__dlpack__"))
        throw py::type_error(std::string(function) + ": " + argument +
                             " must be an array to be written to (numpy or DLPack)");
    return b;
}

void bad_shape(const char* function, const char* argument, const Buffer& got, const std::string& wanted) {
    throw py::value_error(std::string(function) + ": " + argument + " has shape " + shape_of(got.array) +
                          ", expected " + wanted);
}

}  // namespace fastcompress::bindings
