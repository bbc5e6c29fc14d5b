#include "tensors.h"

#include <algorithm>

namespace fastcompress::bindings {
namespace {

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, DType dtype) {
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                    static_cast<int32_t>(torch_dtype(dtype)),
                                                    aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
}

}  // namespace

DType kernel_dtype(ScalarType type, std::initializer_list<DType> allowed, const char* op, const char* argument) {
    const auto found =
        std::find_if(allowed.begin(), allowed.end(), [&](DType dtype) { return torch_dtype(dtype) == type; });
    if (found != allowed.end()) return *found;
    std::string names;
    for (DType dtype : allowed) names += (names.empty() ? "" : ", ") + dtype_text(torch_dtype(dtype));
    refuse_type(op, argument, " has dtype ", dtype_text(type), ", allowed: ", names);
}

ScalarType torch_dtype(DType type) {
    constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half,
                                     ScalarType::Byte,  ScalarType::Char,     ScalarType::Int};
    return kTypes[static_cast<int>(type)];
}

std::string dtype_text(ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return "float32";
        case ScalarType::BFloat16:
            return "bfloat16";
        case ScalarType::Half:
            return "float16";
        case ScalarType::Byte:
            return "uint8";
        case ScalarType::Char:
            return "int8";
        case ScalarType::Int:
            return "int32";
        case ScalarType::Double:
            return "float64";
        case ScalarType::Short:
            return "int16";
        case ScalarType::Long:
            return "int64";
        case ScalarType::Bool:
            return "bool";
        default:
            return torch::headeronly::toString(type);
    }
}

void check_cpu(const Tensor& t, const char* op, const char* argument) {
    if (!t.is_cpu()) refuse(op, argument, " is not a CPU tensor; move it with .cpu()");
}

void check_packed(const Tensor& packed, const char* op) {
    check_cpu(packed, op, "packed");
    if (packed.scalar_type() != ScalarType::Byte)
        refuse_type(op, "packed has dtype ", dtype_text(packed.scalar_type()),
                    ", allowed: uint8; pass what fastcompress.ops.pack returned");
    if (packed.dim() != 1 || !packed.is_contiguous())
        refuse(op, "packed has shape ", shape_text(packed), packed.is_contiguous() ? "" : " and gaps in memory",
               ", it must be 1-D and contiguous; pass what fastcompress.ops.pack returned");
}

Tensor row_major(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Tensor empty(const std::vector<int64_t>& sizes, DType dtype) {
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = stride;
        stride *= sizes[i] > 0 ? sizes[i] : 1;
    }
    return empty_strided(sizes, strides, dtype);
}

Tensor empty_channels_last(const std::vector<int64_t>& s, DType dtype) {
    return empty_strided(s, {s[1] * s[2] * s[3], 1, s[1] * s[3], s[1]}, dtype);
}

std::vector<int64_t> sizes_of(const Tensor& t) {
    const auto sizes = t.sizes();
    return std::vector<int64_t>(sizes.begin(), sizes.end());
}

std::string shape_text(const std::vector<int64_t>& sizes) {
    std::string text = "[";
    for (int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
}

std::string shape_text(const Tensor& t) { return shape_text(sizes_of(t)); }

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace fastcompress::bindings
