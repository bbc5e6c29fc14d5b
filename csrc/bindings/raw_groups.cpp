// Packing of weights in groups on raw buffers.
#include <pybind11/stl.h>

#include <string>

#include "module.h"
#include "raw_packing.h"

namespace fastcompress::bindings {
namespace {

constexpr std::initializer_list<DType> kScaleTypes = {DType::f32, DType::bf16, DType::f16};

// Reads arrays [out, groups], with the buffers that `grouped` points to.
class GroupReader {
   public:
    GroupReader(const char* op, int64_t out, int64_t inputs, int64_t group_size, GroupedSpec& grouped)
        : op_(op), out_(out), grouped_(grouped) {
        if (group_size < 1 || group_size > inputs)
            throw py::value_error(std::string(op) + ": group_size is " + std::to_string(group_size) +
                                  ", allowed: 1 to in_features = " + std::to_string(inputs));
        groups_ = ceil_div(inputs, group_size);
        grouped.group_size = group_size;
    }
    void scales(const py::object& scale, const std::string& dtype) {
        grouped_.scale_dtype = parse_dtype(dtype, op_, "scale_dtype", kScaleTypes);
        grouped_.scale = read(scale_, scale, grouped_.scale_dtype, "weight_scale");
    }
    void zeros(const py::object& zero_point, const py::object& minimum) {
        if (!zero_point.is_none())
            grouped_.zero_point = static_cast<const uint8_t*>(read(zero_, zero_point, DType::u8, "zero_point"));
        if (!minimum.is_none())
            grouped_.minimum = static_cast<const float*>(read(minimum_, minimum, DType::f32, "minimum"));
    }

   private:
    const void* read(Buffer& buffer, const py::object& array, DType dtype, const char* name) {
        buffer = input(array, {dtype}, op_, name);
        if (buffer.rank() != 2 || buffer.dim(0) != out_ || buffer.dim(1) != groups_)
            bad_shape(op_, name, buffer,
                      "[" + std::to_string(out_) + ", " + std::to_string(groups_) + "], one per group");
        return buffer.data();
    }

    const char* op_;
    int64_t out_, groups_;
    GroupedSpec& grouped_;
    Buffer scale_, zero_, minimum_;
};

py::array pack_groups(const char* op, GroupedSpec& grouped, int64_t out, int64_t inputs, const py::object& bias,
                      int input_mode, int activation) {
    LayerSpec spec;
    const Channels channels = read_channels(op, py::none(), bias, out, spec);
    spec.grouped = &grouped;
    spec.in_channels = inputs;
    read_input(input_mode, 1.0f, 0, activation, spec);
    return packed(spec);
}

py::array pack_w4(const py::object& weight_packed, int64_t in_features, const py::object& weight_scale,
                  const std::string& scale_dtype, const py::object& zero_point, const py::object& minimum,
                  const py::object& bias, int64_t group_size, int input_mode, int activation) {
    const char* op = "pack_w4";
    const Buffer words = input(weight_packed, {DType::i32}, op, "weight_packed");
    if (in_features < 1 || in_features > kMaxK)
        throw py::value_error("pack_w4: in_features is " + std::to_string(in_features) + ", allowed: 1 to " +
                              std::to_string(kMaxK));
    if (words.rank() != 2 || words.dim(1) != ceil_div(in_features, 8))
        bad_shape(op, "weight_packed", words, "[out, ceil(in / 8)]");
    GroupedSpec grouped;
    grouped.words = static_cast<const uint8_t*>(words.data());
    grouped.row_bytes = words.dim(1) * 4;
    GroupReader reader(op, words.dim(0), in_features, group_size, grouped);
    reader.scales(weight_scale, scale_dtype);
    reader.zeros(zero_point, minimum);
    return pack_groups(op, grouped, words.dim(0), in_features, bias, input_mode, activation);
}

py::array pack_w8(const py::object& weight, const py::object& weight_scale, const std::string& scale_dtype,
                  const py::object& bias, int64_t group_size, int input_mode, int activation) {
    const char* op = "pack_w8";
    const Buffer values = input(weight, {DType::s8}, op, "weight");
    if (values.rank() != 2) bad_shape(op, "weight", values, "[out, in]");
    GroupedSpec grouped;
    grouped.bits = 8;
    grouped.words = static_cast<const uint8_t*>(values.data());
    grouped.row_bytes = values.dim(1);
    GroupReader reader(op, values.dim(0), values.dim(1), group_size, grouped);
    reader.scales(weight_scale, scale_dtype);
    return pack_groups(op, grouped, values.dim(0), values.dim(1), bias, input_mode, activation);
}

// Zero-filled.
template <class T>
py::array_t<T> zeros(int64_t rows, int64_t columns) {
    py::array_t<T> a({rows, columns});
    std::fill_n(a.mutable_data(), a.size(), T{});
    return a;
}

py::dict unpack_groups(const char* op, const py::object& packed, int bits) {
    const Buffer blob = input(packed, {DType::u8}, op, "packed");
    const BlobHeader& h = open_any(blob);
    if (!is_grouped(h) || h.value_bits != bits)
        throw py::value_error(std::string(op) + ": the packed weights are not " + std::to_string(bits) +
                              "-bit ones in groups");
    const int64_t out = h.out_channels, groups = group_count(h);
    const int64_t row_bytes = bits == 4 ? ceil_div(h.in_channels, 8) * 4 : h.in_channels;
    auto words = zeros<int32_t>(bits == 4 ? out : 0, row_bytes / 4);
    auto values = zeros<int8_t>(bits == 4 ? 0 : out, row_bytes);
    const bool wide = static_cast<DType>(h.scale_dtype) == DType::f32;
    auto scale = zeros<float>(wide ? out : 0, groups);
    auto half_scale = zeros<uint16_t>(wide ? 0 : out, groups);
    const auto kind = static_cast<ZeroKind>(h.zero_kind);
    const bool has_zero = kind == ZeroKind::zero_point, has_minimum = kind == ZeroKind::minimum;
    auto zero = zeros<uint8_t>(has_zero ? out : 0, groups);
    auto minimum = zeros<float>(has_minimum ? out : 0, groups);
    unpack_grouped(h,
                   bits == 4 ? reinterpret_cast<uint8_t*>(words.mutable_data())
                             : reinterpret_cast<uint8_t*>(values.mutable_data()),
                   row_bytes,
                   wide ? static_cast<void*>(scale.mutable_data()) : static_cast<void*>(half_scale.mutable_data()),
                   has_zero ? zero.mutable_data() : nullptr, has_minimum ? minimum.mutable_data() : nullptr);
    py::array_t<float> bias(h.has_bias ? out : 0);
    if (h.has_bias) unpack_channels(h, blob_bias(h), bias.mutable_data());
    py::dict d;
    if (bits == 4) {
        d["weight_packed"] = words;
        d["in_features"] = h.in_channels;
        d["zero_point"] = has_zero ? py::object(zero) : py::none();
        d["minimum"] = has_minimum ? py::object(minimum) : py::none();
    } else {
        d["weight"] = values;
    }
    d["weight_scale"] = wide ? py::object(scale) : py::object(half_scale);
    d["scale_dtype"] = dtype_name(static_cast<DType>(h.scale_dtype));
    d["bias"] = h.has_bias ? py::object(bias) : py::none();
    d["group_size"] = h.group_size;
    d["input_mode"] = h.input_mode;
    d["activation"] = h.activation;
    return d;
}

}  // namespace

void add_groups(py::module_& m) {
    m.def("pack_w4", &pack_w4, py::arg("weight_packed"), py::arg("in_features"), py::arg("weight_scale"),
          py::arg("scale_dtype"), py::arg("zero_point"), py::arg("minimum"), py::arg("bias"), py::arg("group_size"),
          py::arg("input_mode"), py::arg("activation"),
          "Pack four-bit weights, int32 [out, ceil(in / 8)] with eight values a word, lowest bits first.");
    m.def(
        "unpack_w4", [](const py::object& packed) { return unpack_groups("unpack_w4", packed, 4); }, py::arg("packed"),
        "The exact inverse of pack_w4, as a dict.");
    m.def(
        "pack_w8", &pack_w8, py::arg("weight"), py::arg("weight_scale"), py::arg("scale_dtype"), py::arg("bias"),
        py::arg("group_size"), py::arg("input_mode"), py::arg("activation"),
        "Pack s8 weights [out, in] with a scale for each group of inputs, for activations of 16 bits (input_mode 3).");
    m.def(
        "unpack_w8", [](const py::object& packed) { return unpack_groups("unpack_w8", packed, 8); }, py::arg("packed"),
        "The exact inverse of pack_w8, as a dict.");
}

}  // namespace fastcompress::bindings
