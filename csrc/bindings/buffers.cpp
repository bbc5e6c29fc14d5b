#include "buffers.h"

#include <algorithm>
#include <cstdint>
#include <functional>

#include "../cpu/parallel.h"

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

// A numpy array over the object's own memory. DLPack comes first: numpy would ask other libraries' tensors for a copy.
py::array as_array(const py::object& object, const char* function, const char* argument) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
    const bool dlpack = py::hasattr(object, "__dlpack__");
    try {
        return py::module_::import("numpy").attr(dlpack ? "from_dlpack" : "asarray")(object);
    } catch (const py::error_already_set& error) {
        if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
        throw py::type_error(std::string(function) + ": " + argument + " (" + Py_TYPE(object.ptr())->tp_name +
                             ") cannot be read as an array: " + std::string(py::str(error.value())) +
                             (dlpack ? "; pass a detached CPU tensor, bfloat16 as x.view(torch.uint16)" : ""));
    }
}

// The beginning of DLPack's DLManagedTensorVersioned, which since version 1.0 says whether its memory may be written.
struct DLPackHeader {
    uint32_t major, minor;
    void* context;
    void (*deleter)(void*);
    uint64_t flags;
};

// Older exporters say nothing; numpy then marks the array read-only to be safe, which proves nothing either.
bool dlpack_says_read_only(const py::object& object) {
    try {
        const py::object capsule = object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
        if (!PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) return false;
        const auto* header =
            static_cast<const DLPackHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        return header->major == 1 && (header->flags & 1);
    } catch (const py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;  // an exporter without the keyword
        return false;
    }
}

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

Buffer input(const py::object& object, std::initializer_list<DType> allowed, const char* function,
             const char* argument) {
    const py::array array = as_array(object, function, argument);
    const auto found = std::find_if(allowed.begin(), allowed.end(), [&](DType dtype) { return holds(array, dtype); });
    if (found == allowed.end()) {
        std::string names;
        for (DType dtype : allowed)
            names += (names.empty() ? "" : ", ") + std::string(dtype_name(dtype)) +
                     (dtype == DType::bf16 ? " (as uint16)" : "");
        throw py::type_error(std::string(function) + ": " + argument + " has elements of type " +
                             std::string(py::str(array.dtype())) + ", expected " + names);
    }
    if (!(array.flags() & py::array::c_style))
        throw py::value_error(std::string(function) + ": " + argument + " of shape " + shape_of(array) +
                              " is not C-contiguous; pass numpy.ascontiguousarray(" + argument + ")");
    return {array, *found};
}

Buffer output(const py::object& object, std::initializer_list<DType> allowed, const char* function,
              const char* argument) {
    const bool numpy = py::isinstance<py::array>(object);
    if (!numpy && !py::hasattr(object, "__dlpack__"))
        throw py::type_error(std::string(function) + ": " + argument +
                             " must be an array to be written to (numpy or DLPack), got " +
                             Py_TYPE(object.ptr())->tp_name);
    const Buffer b = input(object, allowed, function, argument);
    if (!b.array.writeable() && (numpy || dlpack_says_read_only(object)))
        throw py::value_error(std::string(function) + ": " + argument + " is read-only");
    return b;
}

void check_disjoint(const char* function, std::initializer_list<Named> written, std::initializer_list<Named> read) {
    const auto check = [&](const Named& a, const Named& b) {
        const auto* a0 = static_cast<const uint8_t*>(a.buffer.data());
        const auto* b0 = static_cast<const uint8_t*>(b.buffer.data());
        const size_t a_bytes = a.buffer.bytes(), b_bytes = b.buffer.bytes();
        const std::less<> before;  // unlike <, defined for unrelated pointers
        if (a_bytes && b_bytes && before(a0, b0 + b_bytes) && before(b0, a0 + a_bytes))
            throw py::value_error(std::string(function) + ": " + a.argument + " and " + b.argument +
                                  " share memory; pass a buffer of its own as " + a.argument);
    };
    for (const Named* a = written.begin(); a != written.end(); ++a) {
        for (const Named* b = a + 1; b != written.end(); ++b) check(*a, *b);
        for (const Named& b : read) check(*a, b);
    }
}

int checked_threads(int threads, const char* function) {
    if (threads < 0 || threads > kMaxThreads)
        throw py::value_error(std::string(function) + ": threads is " + std::to_string(threads) +
                              ", allowed: 0 (all) to " + std::to_string(kMaxThreads));
    return threads;
}

void bad_shape(const char* function, const char* argument, const Buffer& got, const std::string& wanted) {
    throw py::value_error(std::string(function) + ": " + argument + " has shape " + shape_of(got.array) +
                          ", expected " + wanted);
}

}  // namespace fastcompress::bindings
