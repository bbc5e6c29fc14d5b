#include <pybind11/stl.h>

#include <array>

#include "buffers.h"
#include "families.h"
#include "fastcompress/bsr.h"
#include "module.h"

namespace fastcompress::bindings {
namespace {

const std::vector<DType> kFloats{DType::f32, DType::bf16, DType::f16};
const std::vector<DType> kInputs{DType::f32, DType::bf16, DType::f16, DType::u8};
const std::vector<DType> kOutputs{DType::f32, DType::bf16, DType::f16, DType::u8, DType::s8, DType::i32};

struct Output {
    Buffer out, residual;
    OutputSpec spec;
};

Output make_output(const char* op, const py::object& out, const std::string& out_dtype, const py::object& residual,
                   float scale, int zero_point) {
    Output o;
    o.spec.dtype = parse_dtype(out_dtype, op, "out_dtype", kOutputs);
    o.out = output(out, {o.spec.dtype}, op, "out");
    o.spec.data = o.out.mutable_data();
    o.spec.scale = scale;
    o.spec.zero_point = zero_point;
    if (!residual.is_none()) {
        o.residual = input(residual, {DType::f32, DType::bf16, DType::f16}, op, "residual");
        o.spec.residual_dtype = o.residual.dtype;
        if (!o.residual.array.attr("shape").equal(o.out.array.attr("shape")))
            bad_shape(op, "residual", o.residual,
                      "the shape of out, " + std::string(py::str(o.out.array.attr("shape"))));
        o.spec.residual = o.residual.data();
    }
    return o;
}

const std::vector<DType>& inputs_of(const char* op) {
    return std::string(op).find("w8a8") == std::string::npos ? kFloats : kInputs;
}

void linear(const char* op, const py::object& x, const py::object& packed, const py::object& out,
            const py::object& residual, const py::object& input_scale, const py::object& input_zero_point,
            float out_scale, int out_zero_point, const std::string& dtype, const std::string& out_dtype, int threads) {
    LinearCall call;
    call.x_dtype = parse_dtype(dtype, op, "dtype", inputs_of(op));
    const Buffer xb = input(x, {call.x_dtype}, op, "x");
    const Buffer blob = input(packed, {DType::u8}, op, "packed");
    const BlobHeader& header = open_for(op, blob.data(), blob.size());
    if (xb.rank() != 2 || xb.dim(1) != header.in_channels)
        bad_shape(op, "x", xb, "[rows, " + std::to_string(header.in_channels) + "]");
    call.x = xb.data();
    call.rows = xb.dim(0);
    Output o = make_output(op, out, out_dtype, residual, out_scale, out_zero_point);
    if (o.out.rank() != 2 || o.out.dim(0) != call.rows || o.out.dim(1) != header.out_channels)
        bad_shape(op, "out", o.out, "[" + std::to_string(call.rows) + ", " + std::to_string(header.out_channels) + "]");
    call.out = o.spec;
    Buffer scale, zero;
    if (input_scale.is_none() != input_zero_point.is_none())
        throw py::value_error(std::string(op) + ": input_scale and input_zero_point go together");
    if (!input_scale.is_none()) {
        if (call.x_dtype != DType::u8)
            throw py::value_error(std::string(op) + ": input_scale and input_zero_point describe u8 input; x is " +
                                  dtype);
        scale = input(input_scale, {DType::f32}, op, "input_scale");
        zero = input(input_zero_point, {DType::i32}, op, "input_zero_point");
        const std::string wanted = "[" + std::to_string(call.rows) + "], one per row";
        if (scale.rank() != 1 || scale.size() != call.rows) bad_shape(op, "input_scale", scale, wanted);
        if (zero.rank() != 1 || zero.size() != call.rows) bad_shape(op, "input_zero_point", zero, wanted);
        call.row_scale = static_cast<const float*>(scale.data());
        call.row_zero_point = static_cast<const int32_t*>(zero.data());
    }
    check_disjoint(
        op, {{"out", o.out}},
        {{"x", xb}, {"packed", blob}, {"residual", o.residual}, {"input_scale", scale}, {"input_zero_point", zero}});
    call.threads.exactly = checked_threads(threads, op);
    py::gil_scoped_release release;
    has_real_weights(header) ? linear_bsr(header, call) : linear_w8a8(header, call);
}

std::string pair(const std::array<int64_t, 2>& p) {
    return "(" + std::to_string(p[0]) + ", " + std::to_string(p[1]) + ")";
}

void linear_real(const py::object& x, const py::object& packed, const py::object& out, const py::object& residual,
                 float out_scale, int out_zero_point, const std::string& dtype, const std::string& out_dtype,
                 int threads) {
    linear("linear_bsr", x, packed, out, residual, py::none(), py::none(), out_scale, out_zero_point, dtype, out_dtype,
           threads);
}

void conv2d(const char* op, const py::object& x, const py::object& packed, const py::object& out,
            const std::array<int64_t, 2>& stride, const std::array<int64_t, 4>& padding,
            const std::array<int64_t, 2>& dilation, const py::object& residual, float out_scale, int out_zero_point,
            const std::string& dtype, const std::string& out_dtype, const std::string& layout, int threads) {
    if (layout != "nhwc" && layout != "nchw")
        throw py::value_error(std::string(op) + ": layout is '" + layout + "'; allowed: 'nhwc', 'nchw'");
    ConvCall call;
    call.channels_last = layout == "nhwc";
    call.x_dtype = parse_dtype(dtype, op, "dtype", inputs_of(op));
    const Buffer xb = input(x, {call.x_dtype}, op, "x");
    const Buffer blob = input(packed, {DType::u8}, op, "packed");
    const BlobHeader& header = open_for(op, blob.data(), blob.size());
    const int64_t channels = header.in_channels * header.groups;
    const int c = call.channels_last ? 3 : 1, h = call.channels_last ? 1 : 2, w = call.channels_last ? 2 : 3;
    if (xb.rank() != 4 || xb.dim(c) != channels)
        bad_shape(op, "x", xb, "4 dimensions (" + layout + ") with " + std::to_string(channels) + " channels");
    call.x = xb.data();
    call.batch = xb.dim(0);
    call.height = xb.dim(h);
    call.width = xb.dim(w);
    call.stride_h = stride[0];
    call.stride_w = stride[1];
    call.pad_top = padding[0];
    call.pad_bottom = padding[1];
    call.pad_left = padding[2];
    call.pad_right = padding[3];
    call.dilation_h = dilation[0];
    call.dilation_w = dilation[1];
    if (stride[0] < 1 || stride[1] < 1 || dilation[0] < 1 || dilation[1] < 1)
        throw py::value_error(std::string(op) + ": stride " + pair(stride) + " and dilation " + pair(dilation) +
                              " must be positive");
    const Output o = make_output(op, out, out_dtype, residual, out_scale, out_zero_point);
    const int64_t oh = conv_out_height(header, call), ow = conv_out_width(header, call);
    if (o.out.rank() != 4 || o.out.dim(0) != call.batch || o.out.dim(c) != header.out_channels || o.out.dim(h) != oh ||
        o.out.dim(w) != ow)
        bad_shape(op, "out", o.out,
                  "batch " + std::to_string(call.batch) + ", channels " + std::to_string(header.out_channels) +
                      ", height " + std::to_string(oh) + ", width " + std::to_string(ow) + " in " + layout + " order");
    call.out = o.spec;
    check_disjoint(op, {{"out", o.out}}, {{"x", xb}, {"packed", blob}, {"residual", o.residual}});
    call.threads.exactly = checked_threads(threads, op);
    py::gil_scoped_release release;
    has_real_weights(header) ? conv2d_bsr(header, call) : conv2d_w8a8(header, call);
}

void per_tensor(const py::object& x, const py::object& out, float scale, int zero_point, const std::string& dtype,
                int threads) {
    const char* op = "quantize_per_tensor";
    const DType from = parse_dtype(dtype, op, "dtype", kFloats);
    const Buffer xb = input(x, {from}, op, "x");
    const Buffer ob = output(out, {DType::u8, DType::s8}, op, "out");
    if (ob.size() != xb.size()) bad_shape(op, "out", ob, "as many elements as x");
    check_disjoint(op, {{"out", ob}}, {{"x", xb}});
    checked_threads(threads, op);
    const void* from_data = xb.data();
    uint8_t* to_data = static_cast<uint8_t*>(ob.mutable_data());
    const int64_t count = xb.size();
    py::gil_scoped_release release;
    quantize_per_tensor(from_data, from, count, scale, zero_point, ob.dtype, to_data, threads);
}

void per_token(const py::object& x, const py::object& out, const py::object& scale, const py::object& zero_point,
               bool symmetric, const std::string& dtype, int threads) {
    const char* op = "quantize_per_token";
    const DType from = parse_dtype(dtype, op, "dtype", kFloats);
    const Buffer xb = input(x, {from}, op, "x");
    if (xb.rank() != 2) bad_shape(op, "x", xb, "[rows, columns]");
    const Buffer ob = output(out, {DType::u8}, op, "out_q");
    const Buffer sb = output(scale, {DType::f32}, op, "out_scale");
    const Buffer zb = output(zero_point, {DType::i32}, op, "out_zero_point");
    const int64_t rows = xb.dim(0), columns = xb.dim(1);
    if (ob.rank() != 2 || ob.dim(0) != rows || ob.dim(1) != columns) bad_shape(op, "out_q", ob, "the shape of x");
    if (sb.rank() != 1 || sb.size() != rows) bad_shape(op, "out_scale", sb, "[rows]");
    if (zb.rank() != 1 || zb.size() != rows) bad_shape(op, "out_zero_point", zb, "[rows]");
    check_disjoint(op, {{"out_q", ob}, {"out_scale", sb}, {"out_zero_point", zb}}, {{"x", xb}});
    checked_threads(threads, op);
    const void* data = xb.data();
    uint8_t* q = static_cast<uint8_t*>(ob.mutable_data());
    float* s = static_cast<float*>(sb.mutable_data());
    int32_t* z = static_cast<int32_t*>(zb.mutable_data());
    py::gil_scoped_release release;
    quantize_per_token(data, from, rows, columns, symmetric, q, s, z, threads);
}

}  // namespace

void add_quantizers(py::module_& m) {
    m.def("quantize_per_tensor", &per_tensor, py::arg("x"), py::arg("out"), py::arg("scale"), py::arg("zero_point"),
          py::arg("dtype") = "f32", py::arg("threads") = 0,
          "Quantize x into out (uint8 or int8, as many elements). docs/architecture.md, section 1.");
    m.def("quantize_per_token", &per_token, py::arg("x"), py::arg("out_q"), py::arg("out_scale"),
          py::arg("out_zero_point"), py::arg("symmetric") = false, py::arg("dtype") = "f32", py::arg("threads") = 0,
          "Quantize each row of x [rows, columns] by its own range.");
}

void add_layers(py::module_& m) {
    using namespace py::literals;
    m.def(
        "linear_w8a8",
        [](const py::object& x, const py::object& packed, const py::object& out, const py::object& residual,
           const py::object& input_scale, const py::object& input_zero_point, float out_scale, int out_zero_point,
           const std::string& dtype, const std::string& out_dtype, int threads) {
            linear("linear_w8a8", x, packed, out, residual, input_scale, input_zero_point, out_scale, out_zero_point,
                   dtype, out_dtype, threads);
        },
        "x"_a, "packed"_a, "out"_a, "residual"_a = py::none(), "input_scale"_a = py::none(),
        "input_zero_point"_a = py::none(), "out_scale"_a = 1.0f, "out_zero_point"_a = 0, "dtype"_a = "f32",
        "out_dtype"_a = "f32", "threads"_a = 0, "out [M, N] = epilogue(x [M, K] * weight); writes out.");
    m.def("linear_bsr", &linear_real, "x"_a, "packed"_a, "out"_a, "residual"_a = py::none(), "out_scale"_a = 1.0f,
          "out_zero_point"_a = 0, "dtype"_a = "f32", "out_dtype"_a = "f32", "threads"_a = 0,
          "linear_w8a8 for block-sparse float weights; writes out.");
    for (const char* op : {"conv2d_w8a8", "conv2d_bsr"})
        m.def(
            op,
            [op](const py::object& x, const py::object& packed, const py::object& out,
                 const std::array<int64_t, 2>& stride, const std::array<int64_t, 4>& padding,
                 const std::array<int64_t, 2>& dilation, const py::object& residual, float out_scale,
                 int out_zero_point, const std::string& dtype, const std::string& out_dtype, const std::string& layout,
                 int threads) {
                conv2d(op, x, packed, out, stride, padding, dilation, residual, out_scale, out_zero_point, dtype,
                       out_dtype, layout, threads);
            },
            "x"_a, "packed"_a, "out"_a, "stride"_a, "padding"_a, "dilation"_a, "residual"_a = py::none(),
            "out_scale"_a = 1.0f, "out_zero_point"_a = 0, "dtype"_a = "f32", "out_dtype"_a = "f32", "layout"_a = "nhwc",
            "threads"_a = 0, "out = epilogue(conv2d(x, weight)); padding is (top, bottom, left, right); writes out.");
}

}  // namespace fastcompress::bindings
