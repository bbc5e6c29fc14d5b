#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/pages.h"
#include "buffers.h"
#include "families.h"
#include "fastcompress/blob.h"
#include "module.h"
#include "raw_packing.h"

namespace fastcompress::bindings {
namespace {

template <class T>
T checked_code(int code, int count, const char* argument) {
    if (code < 0 || code >= count)
        throw py::value_error(std::string("pack_w8a8: ") + argument + " is " + std::to_string(code) +
                              ", allowed: 0 to " + std::to_string(count - 1));
    return static_cast<T>(code);
}

// numpy aligns to 16 bytes; panels should not straddle cache lines.
py::array_t<uint8_t> aligned_array(int64_t bytes) {
    struct Owned {
        void* memory;
        size_t bytes;
        ~Owned() { release_weights(memory, bytes); }
    };
    const size_t size = static_cast<size_t>(bytes);
    std::unique_ptr<Owned> owned(new Owned{allocate_weights(size), size});
    auto* const memory = static_cast<uint8_t*>(owned->memory);
    py::capsule owner(owned.get(), [](void* p) { delete static_cast<Owned*>(p); });
    owned.release();
    return py::array_t<uint8_t>(bytes, memory, owner);
}

}  // namespace

const BlobHeader& open_any(const Buffer& packed) {
    return open_blob(static_cast<const uint8_t*>(packed.data()), packed.size(), true);
}

Channels read_channels(const char* op, const py::object& weight_scale, const py::object& bias, int64_t channels,
                       LayerSpec& spec) {
    Channels c;
    const std::string per_channel = "[" + std::to_string(channels) + "], one per output channel";
    if (!weight_scale.is_none()) {
        c.scale = input(weight_scale, {DType::f32}, op, "weight_scale");
        if (c.scale.rank() != 1 || c.scale.size() != channels) bad_shape(op, "weight_scale", c.scale, per_channel);
        spec.weight_scale = static_cast<const float*>(c.scale.data());
    }
    if (!bias.is_none()) {
        c.bias = input(bias, {DType::f32}, op, "bias");
        if (c.bias.rank() != 1 || c.bias.size() != channels) bad_shape(op, "bias", c.bias, per_channel);
        spec.bias = static_cast<const float*>(c.bias.data());
    }
    spec.out_channels = channels;
    return c;
}

void read_input(int input_mode, float input_scale, int input_zero_point, int activation, LayerSpec& spec) {
    spec.input_mode = checked_code<InputMode>(input_mode, kInputModeCount, "input_mode");
    spec.input_scale = input_scale;
    spec.input_zero_point = input_zero_point;
    spec.activation = checked_code<Activation>(activation, kActivationCount, "activation");
}

py::array packed(const LayerSpec& spec) {
    const int64_t bytes = plan_blob(spec).total_bytes;
    const py::array_t<uint8_t> blob = aligned_array(bytes);
    uint8_t* data = const_cast<uint8_t*>(blob.data());
    {
        py::gil_scoped_release release;
        pack_blob(spec, data, bytes);
    }
    return blob;
}

namespace {

int weight_bits(const BlobHeader& h) { return h.value_bits ? h.value_bits : 8; }

std::vector<py::ssize_t> weight_shape(const BlobHeader& h) {
    std::vector<py::ssize_t> shape{h.out_channels, h.in_channels};
    if (h.weight_rank == 4) shape.insert(shape.end(), {h.kernel_h, h.kernel_w});
    return shape;
}

py::array pack(const py::object& weight, const py::object& weight_scale, const py::object& bias, int input_mode,
               float input_scale, int input_zero_point, int activation, int64_t groups, int weight_bits) {
    const char* op = "pack_w8a8";
    const Buffer w = input(weight, {DType::s8}, op, "weight");
    if (w.rank() != 2 && w.rank() != 4) bad_shape(op, "weight", w, "[out, in] or [out, in/groups, kh, kw]");
    if (groups < 1 || (w.rank() == 2 && groups != 1))
        throw py::value_error("pack_w8a8: groups is " + std::to_string(groups) + "; a 2-D weight has exactly 1");
    if (weight_scale.is_none()) throw py::type_error("pack_w8a8: weight_scale is None; s8 weights need one");
    LayerSpec spec;
    const Channels channels = read_channels(op, weight_scale, bias, w.dim(0), spec);
    spec.weight = static_cast<const int8_t*>(w.data());
    spec.in_channels = w.dim(1);
    spec.groups = groups;
    spec.weight_rank = static_cast<int32_t>(w.rank());
    spec.weight_bits = weight_bits;
    if (w.rank() == 4) {
        spec.kernel_h = w.dim(2);
        spec.kernel_w = w.dim(3);
    }
    read_input(input_mode, input_scale, input_zero_point, activation, spec);
    return packed(spec);
}

// Blocks of a matrix [out, in] or of [out, kh * kw * in], with the buffers that they point to.
struct Blocks {
    Buffer crow, col, values;
    BlockIndex index;
};

void read_blocks(const char* op, const py::object& crow, const py::object& col, const py::object& values, Blocks& b) {
    b.crow = input(crow, {DType::i32}, op, "crow");
    b.col = input(col, {DType::i32}, op, "col");
    b.values = input(values, {DType::s8, DType::f32, DType::bf16}, op, "values");
    const Buffer& v = b.values;
    if (v.rank() != 3 || v.dim(1) < 1 || v.dim(2) < 1) bad_shape(op, "values", v, "[blocks, block_h, block_w]");
    if (b.col.rank() != 1 || b.col.size() != v.dim(0))
        bad_shape(op, "col", b.col, "[" + std::to_string(v.dim(0)) + "], one per block");
    if (b.crow.rank() != 1 || b.crow.size() < 2) bad_shape(op, "crow", b.crow, "[block rows + 1]");
    constexpr int64_t kMaxBlocks = 2147483647;
    if (v.dim(0) > kMaxBlocks || v.dim(1) > kMaxK || v.dim(2) > kMaxK)
        throw py::value_error("pack_bsr: values of shape " + std::string(py::str(v.array.attr("shape"))) +
                              " are too many to be indexed with 32 bits");
    b.index.crow = static_cast<const int32_t*>(b.crow.data());
    b.index.col = static_cast<const int32_t*>(b.col.data());
    b.index.values = v.data();
    b.index.value = v.dtype;
    b.index.blocks = v.dim(0);
    b.index.block_h = static_cast<int32_t>(v.dim(1));
    b.index.block_w = static_cast<int32_t>(v.dim(2));
}

py::array pack_bsr(const py::object& crow, const py::object& col, const py::object& values,
                   const std::vector<int64_t>& weight_shape, const py::object& weight_scale, const py::object& bias,
                   int input_mode, float input_scale, int input_zero_point, int activation) {
    const char* op = "pack_bsr";
    Blocks blocks;
    read_blocks(op, crow, col, values, blocks);
    const auto fits = [](int64_t size) { return size >= 1 && size <= 2147483647; };
    if ((weight_shape.size() != 2 && weight_shape.size() != 4) ||
        !std::all_of(weight_shape.begin(), weight_shape.end(), fits))
        throw py::value_error("pack_bsr: weight_shape must be [out, in] or [out, in, kh, kw], of positive sizes");
    if ((blocks.crow.size() - 1) * blocks.index.block_h != weight_shape[0])
        bad_shape(op, "crow", blocks.crow, "[out / block_h + 1]");
    LayerSpec spec;
    const Channels channels = read_channels(op, weight_scale, bias, weight_shape[0], spec);
    spec.sparse = &blocks.index;
    spec.in_channels = weight_shape[1];
    spec.weight_rank = static_cast<int32_t>(weight_shape.size());
    if (weight_shape.size() == 4) {
        spec.kernel_h = weight_shape[2];
        spec.kernel_w = weight_shape[3];
        if (spec.kernel_h > kMaxK || spec.kernel_w > kMaxK || spec.in_channels > kMaxK)
            throw py::value_error("pack_bsr: weight_shape has a dimension above " + std::to_string(kMaxK));
    }
    read_input(input_mode, input_scale, input_zero_point, activation, spec);
    return packed(spec);
}

// Everything but the weight.
void add_parameters(const BlobHeader& h, py::dict& d) {
    py::array_t<float> scale(has_real_weights(h) ? 0 : h.out_channels), bias(h.has_bias ? h.out_channels : 0);
    if (!has_real_weights(h)) unpack_channels(h, blob_scales(h), scale.mutable_data());
    if (h.has_bias) unpack_channels(h, blob_bias(h), bias.mutable_data());
    d["weight_scale"] = has_real_weights(h) ? py::object(py::none()) : py::object(scale);
    d["bias"] = h.has_bias ? py::object(bias) : py::none();
    d["input_mode"] = h.input_mode;
    d["input_scale"] = h.input_scale;
    d["input_zero_point"] = h.input_zero_point;
    d["activation"] = h.activation;
}

py::array values_array(const BlobHeader& h) {
    const std::vector<py::ssize_t> shape{h.blocks, h.block_h, h.block_w};
    if (!has_real_weights(h)) return py::array_t<int8_t>(shape);
    if (static_cast<DType>(h.value_dtype) == DType::bf16) return py::array_t<uint16_t>(shape);
    return py::array_t<float>(shape);
}

py::dict unpack_bsr(const py::object& packed) {
    const Buffer blob = input(packed, {DType::u8}, "unpack_bsr", "packed");
    const BlobHeader& h = open_any(blob);
    if (!is_block_sparse(h)) throw py::value_error("unpack_bsr: the packed weights are dense; use unpack_w8a8");
    py::array_t<int32_t> crow(h.out_channels / h.block_h + 1), col(h.blocks);
    py::array values = values_array(h);
    unpack_blocks(h, crow.mutable_data(), col.mutable_data(), values.mutable_data());
    py::dict d;
    d["crow"] = crow;
    d["col"] = col;
    d["values"] = values;
    d["weight_shape"] = py::tuple(py::cast(weight_shape(h)));
    add_parameters(h, d);
    return d;
}

py::dict unpack(const py::object& packed) {
    const Buffer blob = input(packed, {DType::u8}, "unpack_w8a8", "packed");
    const BlobHeader& h = open_any(blob);
    if (is_block_sparse(h)) throw py::value_error("unpack_w8a8: the packed weights are block-sparse; use unpack_bsr");
    if (is_grouped(h))
        throw py::value_error("unpack_w8a8: the packed weights are in groups; use unpack_w4 or unpack_w8");
    py::array_t<int8_t> weight(weight_shape(h));
    const uint8_t* data = static_cast<const uint8_t*>(blob.data());
    int8_t* weight_data = weight.mutable_data();
    {
        py::gil_scoped_release release;
        unpack_weight(data, weight_data);
    }
    py::dict d;
    d["weight"] = weight;
    add_parameters(h, d);
    d["groups"] = h.groups;
    d["weight_bits"] = weight_bits(h);
    return d;
}

py::dict info(const py::object& packed) {
    const Buffer blob = input(packed, {DType::u8}, "blob_info", "packed");
    const BlobHeader& h = open_any(blob);
    py::dict d;
    d["layout_version"] = h.version;
    d["family"] = operator_of(h);
    d["depthwise"] = h.family == static_cast<int32_t>(Family::depthwise);
    d["isa"] = isa_name(h.isa);
    d["n"] = h.out_channels;
    d["k"] = h.in_channels * h.kernel_h * h.kernel_w;
    d["groups"] = h.groups;
    if (!has_real_weights(h)) d["weight_bits"] = weight_bits(h);
    d["kernel_size"] = py::make_tuple(h.kernel_h, h.kernel_w);
    d["bytes"] = h.total_bytes;
    d["has_bias"] = h.has_bias != 0;
    d["input_mode"] = h.input_mode;
    d["input_scale"] = h.input_scale;
    d["input_zero_point"] = h.input_zero_point;
    d["activation"] = h.activation;
    if (is_grouped(h)) {
        d["group_size"] = h.group_size;
        d["scale_dtype"] = dtype_name(static_cast<DType>(h.scale_dtype));
    }
    if (is_block_sparse(h)) {
        d["block_size"] = py::make_tuple(h.block_h, h.block_w);
        d["blocks"] = h.blocks;
        d["value_dtype"] = dtype_name(static_cast<DType>(h.value_dtype));
    }
    return d;
}

void check(const py::object& packed) {
    const Buffer blob = input(packed, {DType::u8}, "blob_check", "packed");
    const uint8_t* data = static_cast<const uint8_t*>(blob.data());
    const int64_t bytes = blob.size();
    py::gil_scoped_release release;
    verify_blob(data, bytes);
}

}  // namespace

void add_packing(py::module_& m) {
    py::dict activations, modes;
    const char* names[kActivationCount] = {"none",      "relu", "relu6",     "gelu",
                                           "gelu_tanh", "silu", "hardswish", "hardsigmoid"};
    for (int i = 0; i < kActivationCount; ++i) activations[names[i]] = i;
    const char* mode_names[kInputModeCount] = {"static", "dynamic", "dynamic_symmetric", "dynamic_16bit"};
    for (int i = 0; i < kInputModeCount; ++i) modes[mode_names[i]] = i;
    m.attr("ACTIVATIONS") = activations;
    m.attr("INPUT_MODES") = modes;
    m.attr("MAX_K") = kMaxK;
    m.def("pack_w8a8", &pack, py::arg("weight"), py::arg("weight_scale"), py::arg("bias"), py::arg("input_mode"),
          py::arg("input_scale"), py::arg("input_zero_point"), py::arg("activation"), py::arg("groups") = 1,
          py::arg("weight_bits") = 8,
          "Pack s8 weights [out, in] or [out, in/groups, kh, kw] for the ISA in use; returns a uint8 array. "
          "weight_bits 4: of "
          "a convolution that is not depthwise, all in -8 .. 7.");
    m.def(
        "pack_bsr", &pack_bsr, py::arg("crow"), py::arg("col"), py::arg("values"), py::arg("weight_shape"),
        py::arg("weight_scale"), py::arg("bias"), py::arg("input_mode") = 0, py::arg("input_scale") = 1.0f,
        py::arg("input_zero_point") = 0, py::arg("activation") = 0,
        "Pack block-CSR weights: crow [out / bh + 1], col [blocks] int32, values [blocks, bh, bw] of the matrix [out, "
        "kh * kw * in]: int8 (with weight_scale), float32 or bfloat16 (as uint16). Every index is checked.");
    m.def("unpack_bsr", &unpack_bsr, py::arg("packed"), "The exact inverse of pack_bsr, as a dict.");
    m.def("unpack_w8a8", &unpack, py::arg("packed"), "The exact inverse of pack_w8a8, as a dict.");
    m.def("blob_info", &info, py::arg("packed"), "What a blob's header says.");
    m.def("blob_check", &check, py::arg("packed"), "Compare the checksums; RuntimeError when a bit has changed.");
}

}  // namespace fastcompress::bindings
