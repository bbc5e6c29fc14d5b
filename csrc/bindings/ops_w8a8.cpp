// torch.ops.fastcompress.*: schemas and CPU kernels of the w8a8 family, in the stable ABI.
// Here tensors are checked and outputs allocated; everything else happens behind fastcompress/w8a8.h.
#include "fastcompress/w8a8.h"

#include <stdexcept>

#include "../cpu/parallel.h"
#include "tensors.h"

namespace fastcompress::bindings {
namespace {

using std::optional;

void require(bool ok, const std::string& message) {
    if (!ok) throw std::runtime_error(message);
}

const BlobHeader& open(const Tensor& packed, const char* op) {
    check_cpu(packed, op, "packed");
    require(packed.dim() == 1 && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(),
            std::string(op) + ": packed must be a contiguous 1-D uint8 tensor made by fastcompress.ops.pack");
    return open_blob(static_cast<const uint8_t*>(packed.data_ptr()), packed.numel());
}

DType input_dtype(const Tensor& input, const char* op) {
    check_cpu(input, op, "input");
    const DType dtype = kernel_dtype(input.scalar_type(), op, "input");
    require(dtype != DType::s8 && dtype != DType::i32,
            std::string(op) + ": input must be float32, bfloat16, float16 or uint8");
    return dtype;
}

// One thread in a forked child, else what torch allows.
int threads() { return max_threads() == 1 ? 1 : torch_threads(); }

DType output_dtype(DType input, const optional<ScalarType>& wanted, const char* op) {
    if (wanted) return kernel_dtype(*wanted, op, "out_dtype");
    return input == DType::u8 ? DType::f32 : input;
}

// `keep` holds a residual's copy if one had to be made.
OutputSpec output_spec(const Tensor& out, DType dtype, double scale, int64_t zero_point) {
    OutputSpec spec;
    spec.data = out.data_ptr();
    spec.dtype = dtype;
    spec.scale = static_cast<float>(scale);
    spec.zero_point = static_cast<int32_t>(zero_point);
    return spec;
}

void set_residual(OutputSpec& spec, const Tensor& residual, const Tensor& out, const char* op) {
    check_cpu(residual, op, "residual");
    spec.residual_dtype = kernel_dtype(residual.scalar_type(), op, "residual");
    require(
        spec.residual_dtype == DType::f32 || spec.residual_dtype == DType::bf16 || spec.residual_dtype == DType::f16,
        std::string(op) + ": residual must be float32, bfloat16 or float16");
    require(sizes_of(residual) == sizes_of(out),
            std::string(op) + ": residual has shape " + shape_text(residual) + ", the output has " + shape_text(out));
    spec.residual = residual.data_ptr();
}

Tensor quantize_per_tensor_op(const Tensor& input, double scale, int64_t zero_point, ScalarType dtype) {
    const char* op = "quantize_per_tensor";
    const DType from = input_dtype(input, op), to = kernel_dtype(dtype, op, "dtype");
    require(from != DType::u8, "quantize_per_tensor: input must be float32, bfloat16 or float16");
    require(to == DType::u8 || to == DType::s8, "quantize_per_tensor: dtype must be uint8 or int8");
    const Tensor x = row_major(input);
    Tensor out = empty(sizes_of(x), to);
    quantize_per_tensor(x.data_ptr(), from, x.numel(), static_cast<float>(scale), static_cast<int32_t>(zero_point), to,
                        static_cast<uint8_t*>(out.data_ptr()), threads());
    return out;
}

std::tuple<Tensor, Tensor, Tensor> quantize_per_token_op(const Tensor& input, bool symmetric) {
    const char* op = "quantize_per_token";
    const DType from = input_dtype(input, op);
    require(from != DType::u8, "quantize_per_token: input must be float32, bfloat16 or float16");
    require(input.dim() >= 1, "quantize_per_token: input must have at least one dimension");
    const Tensor x = row_major(input);
    std::vector<int64_t> sizes = sizes_of(x);
    const int64_t columns = sizes.back();
    Tensor q = empty(sizes, DType::u8);
    sizes.pop_back();
    Tensor scale = empty(sizes, DType::f32), zero = empty(sizes, DType::i32);
    quantize_per_token(x.data_ptr(), from, scale.numel(), columns, symmetric, static_cast<uint8_t*>(q.data_ptr()),
                       static_cast<float*>(scale.data_ptr()), static_cast<int32_t*>(zero.data_ptr()), threads());
    return {q, scale, zero};
}

Tensor linear_w8a8_op(const Tensor& input, const Tensor& packed, int64_t out_features, const optional<Tensor>& residual,
                      optional<ScalarType> out_dtype, double out_scale, int64_t out_zero_point,
                      const optional<Tensor>& input_scale, const optional<Tensor>& input_zero_point) {
    const char* op = "linear_w8a8";
    const BlobHeader& blob = open(packed, op);
    require(out_features == blob.out_channels, "linear_w8a8: out_features is " + std::to_string(out_features) +
                                                   ", the packed weights have " + std::to_string(blob.out_channels));
    LinearCall call;
    call.x_dtype = input_dtype(input, op);
    require(input.dim() >= 1 && input.size(input.dim() - 1) == blob.in_channels,
            "linear_w8a8: input has shape " + shape_text(input) +
                ", its last dimension must be in_features = " + std::to_string(blob.in_channels));
    const Tensor x = row_major(input);
    std::vector<int64_t> sizes = sizes_of(x);
    sizes.back() = blob.out_channels;
    call.x = x.data_ptr();
    call.rows = x.numel() / blob.in_channels;
    const DType to = output_dtype(call.x_dtype, out_dtype, op);
    Tensor out = empty(sizes, to);
    call.out = output_spec(out, to, out_scale, out_zero_point);
    optional<Tensor> kept;
    if (residual) {
        kept = row_major(*residual);
        set_residual(call.out, *kept, out, op);
    }
    require(input_scale.has_value() == input_zero_point.has_value(),
            "linear_w8a8: input_scale and input_zero_point go together");
    optional<Tensor> scale, zero;
    if (input_scale) {
        check_cpu(*input_scale, op, "input_scale");
        check_cpu(*input_zero_point, op, "input_zero_point");
        require(call.x_dtype == DType::u8, "linear_w8a8: input_scale describes uint8 input; input is not uint8");
        require(input_scale->scalar_type() == ScalarType::Float && input_zero_point->scalar_type() == ScalarType::Int,
                "linear_w8a8: input_scale must be float32 and input_zero_point int32");
        require(
            input_scale->numel() == call.rows && input_zero_point->numel() == call.rows,
            "linear_w8a8: input_scale and input_zero_point need one value per row (" + std::to_string(call.rows) + ")");
        scale = row_major(*input_scale);
        zero = row_major(*input_zero_point);
        call.row_scale = static_cast<const float*>(scale->data_ptr());
        call.row_zero_point = static_cast<const int32_t*>(zero->data_ptr());
    }
    call.threads = threads();
    linear_w8a8(blob, call);
    return out;
}

// Whether a 4-D tensor lies in channels-last order (and not, ambiguously, in row-major order as well).
bool is_channels_last(const Tensor& t) {
    if (t.is_contiguous()) return false;
    int64_t expected = 1;
    for (int dim : {1, 3, 2, 0}) {
        if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
        expected *= t.size(dim);
    }
    return true;
}

// As torch guesses the format of a dense tensor that is neither: channels innermost means channels-last.
Tensor in_format(const Tensor& t, bool channels_last) {
    if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
    return torch::stable::contiguous(
        t, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

Tensor conv2d_w8a8_op(const Tensor& input, const Tensor& packed, int64_t out_channels,
                      const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                      const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                      const optional<Tensor>& residual, optional<ScalarType> out_dtype, double out_scale,
                      int64_t out_zero_point) {
    const char* op = "conv2d_w8a8";
    const BlobHeader& blob = open(packed, op);
    require(kernel_size.size() == 2 && stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
            "conv2d_w8a8: kernel_size, stride and dilation take 2 numbers, padding 4 (top, bottom, left, right)");
    require(out_channels == blob.out_channels && kernel_size[0] == blob.kernel_h && kernel_size[1] == blob.kernel_w,
            "conv2d_w8a8: out_channels or kernel_size differ from the packed weights");
    ConvCall call;
    call.x_dtype = input_dtype(input, op);
    const bool single = input.dim() == 3;
    require(single || input.dim() == 4,
            "conv2d_w8a8: input must be [N, C, H, W] or [C, H, W], got " + shape_text(input));
    const Tensor batch = single ? torch::stable::unsqueeze(input, 0) : input;
    require(batch.size(1) == blob.in_channels * blob.groups,
            "conv2d_w8a8: input has " + std::to_string(batch.size(1)) + " channels (shape " + shape_text(input) +
                "), the layer takes " + std::to_string(blob.in_channels * blob.groups));
    call.channels_last = is_channels_last(batch);
    const Tensor x = in_format(batch, call.channels_last);
    call.x = x.data_ptr();
    call.batch = x.size(0);
    call.height = x.size(2);
    call.width = x.size(3);
    call.stride_h = stride[0];
    call.stride_w = stride[1];
    call.pad_top = padding[0];
    call.pad_bottom = padding[1];
    call.pad_left = padding[2];
    call.pad_right = padding[3];
    call.dilation_h = dilation[0];
    call.dilation_w = dilation[1];
    require(stride[0] > 0 && stride[1] > 0 && dilation[0] > 0 && dilation[1] > 0,
            "conv2d_w8a8: stride and dilation must be positive");
    const DType to = output_dtype(call.x_dtype, out_dtype, op);
    const std::vector<int64_t> sizes{call.batch, out_channels, conv_out_height(blob, call), conv_out_width(blob, call)};
    require(sizes[2] > 0 && sizes[3] > 0,
            "conv2d_w8a8: the kernel does not fit the padded input of shape " + shape_text(input));
    Tensor out = call.channels_last ? empty_channels_last(sizes, to) : empty(sizes, to);
    call.out = output_spec(out, to, out_scale, out_zero_point);
    optional<Tensor> kept;
    if (residual) {
        kept = in_format(single ? torch::stable::unsqueeze(*residual, 0) : *residual, call.channels_last);
        set_residual(call.out, *kept, out, op);
    }
    call.threads = threads();
    conv2d_w8a8(blob, call);
    return single ? torch::stable::squeeze(out, 0) : out;
}

}  // namespace

STABLE_TORCH_LIBRARY(fastcompress, m) {
    m.def("quantize_per_tensor(Tensor input, float scale, int zero_point, ScalarType dtype) -> Tensor");
    m.def("quantize_per_token(Tensor input, bool symmetric=False) -> (Tensor, Tensor, Tensor)");
    m.def(
        "linear_w8a8(Tensor input, Tensor packed, int out_features, Tensor? residual=None, "
        "ScalarType? out_dtype=None, float out_scale=1.0, int out_zero_point=0, Tensor? input_scale=None, "
        "Tensor? input_zero_point=None) -> Tensor");
    m.def(
        "conv2d_w8a8(Tensor input, Tensor packed, int out_channels, int[] kernel_size, int[] stride, int[] padding, "
        "int[] dilation, Tensor? residual=None, ScalarType? out_dtype=None, float out_scale=1.0, "
        "int out_zero_point=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcompress, CPU, m) {
    m.impl("quantize_per_tensor", TORCH_BOX(&quantize_per_tensor_op));
    m.impl("quantize_per_token", TORCH_BOX(&quantize_per_token_op));
    m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8_op));
    m.impl("conv2d_w8a8", TORCH_BOX(&conv2d_w8a8_op));
}

}  // namespace fastcompress::bindings
