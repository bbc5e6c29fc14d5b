// torch.ops.fastcompress.*: schemas and CPU kernels, in the stable ABI.
// Here tensors are checked and outputs allocated; everything else happens behind fastcompress/w8a8.h and bsr.h.
#include "fastcompress/bsr.h"
#include "fastcompress/chain.h"
#include "fastcompress/w4.h"

#include "../cpu/parallel.h"
#include "families.h"
#include "tensors.h"

namespace fastcompress::bindings {
namespace {

using std::optional;

DType input_dtype(const Tensor& input, const BlobHeader& blob, const char* op) {
    check_cpu(input, op, "input");
    if (has_real_weights(blob) || is_grouped(blob))
        return kernel_dtype(input.scalar_type(), {DType::f32, DType::bf16, DType::f16}, op, "input");
    return kernel_dtype(input.scalar_type(), {DType::f32, DType::bf16, DType::f16, DType::u8}, op, "input");
}

DType float_dtype(const Tensor& t, const char* op, const char* argument) {
    check_cpu(t, op, argument);
    return kernel_dtype(t.scalar_type(), {DType::f32, DType::bf16, DType::f16}, op, argument);
}

int threads() { return in_forked_child() ? 1 : torch_threads(); }

DType output_dtype(DType input, const optional<ScalarType>& wanted, const char* op) {
    if (wanted)
        return kernel_dtype(*wanted, {DType::f32, DType::bf16, DType::f16, DType::u8, DType::s8, DType::i32}, op,
                            "out_dtype");
    return input == DType::u8 ? DType::f32 : input;
}

// Checked while it is still 64 bits wide. Unused, and 0, unless the type is u8 or s8.
int32_t zero_point_of(int64_t zero_point, DType dtype, const char* op, const char* argument) {
    if (dtype != DType::u8 && dtype != DType::s8) return 0;
    const int64_t low = dtype == DType::u8 ? 0 : -128, high = low + 255;
    if (zero_point < low || zero_point > high)
        refuse(op, argument, " ", zero_point, " is outside the output type's range [", low, ", ", high, "]");
    return static_cast<int32_t>(zero_point);
}

OutputSpec output_spec(const Tensor& out, DType dtype, double scale, int64_t zero_point, const char* op) {
    OutputSpec spec;
    spec.data = out.data_ptr();
    spec.dtype = dtype;
    spec.scale = static_cast<float>(scale);
    spec.zero_point = zero_point_of(zero_point, dtype, op, "out_zero_point");
    return spec;
}

// Before anything looks at the residual's memory: `sizes` are the output's.
DType check_residual(const Tensor& residual, const std::vector<int64_t>& sizes, const char* op) {
    const DType dtype = float_dtype(residual, op, "residual");
    if (sizes_of(residual) != sizes)
        refuse(op, "residual has shape ", shape_text(residual), ", the output has ", shape_text(sizes));
    return dtype;
}

Tensor quantize_per_tensor_op(const Tensor& input, double scale, int64_t zero_point, ScalarType dtype) {
    const char* op = "quantize_per_tensor";
    const DType from = float_dtype(input, op, "input");
    const DType to = kernel_dtype(dtype, {DType::u8, DType::s8}, op, "dtype");
    const int32_t zero = zero_point_of(zero_point, to, op, "zero_point");
    const Tensor x = row_major(input);
    Tensor out = empty(sizes_of(x), to);
    quantize_per_tensor(x.data_ptr(), from, x.numel(), static_cast<float>(scale), zero, to,
                        static_cast<uint8_t*>(out.data_ptr()), threads());
    return out;
}

std::tuple<Tensor, Tensor, Tensor> quantize_per_token_op(const Tensor& input, bool symmetric) {
    const char* op = "quantize_per_token";
    const DType from = float_dtype(input, op, "input");
    if (input.dim() < 1) refuse(op, "input is a scalar, it must have at least one dimension");
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

Tensor linear(const char* op, const Tensor& input, const Tensor& packed, int64_t out_features,
              const optional<Tensor>& residual, optional<ScalarType> out_dtype, double out_scale,
              int64_t out_zero_point, const optional<Tensor>& input_scale, const optional<Tensor>& input_zero_point) {
    check_packed(packed, op);
    const BlobHeader& blob = open_for(op, packed.data_ptr(), packed.numel());
    if (out_features != blob.out_channels)
        refuse(op, "out_features is ", out_features, ", the packed weights have ", blob.out_channels);
    LinearCall call;
    call.x_dtype = input_dtype(input, blob, op);
    if (input.dim() < 1 || input.size(input.dim() - 1) != blob.in_channels)
        refuse(op, "input has shape ", shape_text(input),
               ", its last dimension must be in_features = ", blob.in_channels);
    const Tensor x = row_major(input);
    std::vector<int64_t> sizes = sizes_of(x);
    sizes.back() = blob.out_channels;
    call.x = x.data_ptr();
    call.rows = x.numel() / blob.in_channels;
    const DType to = output_dtype(call.x_dtype, out_dtype, op);
    Tensor out = empty(sizes, to);
    call.out = output_spec(out, to, out_scale, out_zero_point, op);
    optional<Tensor> kept;
    if (residual) {
        call.out.residual_dtype = check_residual(*residual, sizes, op);
        kept = row_major(*residual);
        call.out.residual = kept->data_ptr();
    }
    if (input_scale.has_value() != input_zero_point.has_value())
        refuse(op, input_scale ? "input_scale" : "input_zero_point", " came without ",
               input_scale ? "input_zero_point" : "input_scale", "; pass both or neither");
    optional<Tensor> scale, zero;
    if (input_scale) {
        check_cpu(*input_scale, op, "input_scale");
        check_cpu(*input_zero_point, op, "input_zero_point");
        if (call.x_dtype != DType::u8)
            refuse(op, "input_scale and input_zero_point describe uint8 input, but input has dtype ",
                   dtype_text(input.scalar_type()), "; leave them out");
        kernel_dtype(input_scale->scalar_type(), {DType::f32}, op, "input_scale");
        kernel_dtype(input_zero_point->scalar_type(), {DType::i32}, op, "input_zero_point");
        if (input_scale->numel() != call.rows || input_zero_point->numel() != call.rows)
            refuse(op, "input_scale has shape ", shape_text(*input_scale), " and input_zero_point ",
                   shape_text(*input_zero_point), ", they need one value per row of input (", call.rows, ")");
        scale = row_major(*input_scale);
        zero = row_major(*input_zero_point);
        call.row_scale = static_cast<const float*>(scale->data_ptr());
        call.row_zero_point = static_cast<const int32_t*>(zero->data_ptr());
    }
    call.threads.limit = threads();
    const auto run = is_four_bit(blob)        ? linear_w4
                     : is_grouped(blob)       ? linear_w8
                     : has_real_weights(blob) ? linear_bsr
                                              : linear_w8a8;
    run(blob, call);
    return out;
}

Tensor linear_w8a8_op(const Tensor& input, const Tensor& packed, int64_t out_features, const optional<Tensor>& residual,
                      optional<ScalarType> out_dtype, double out_scale, int64_t out_zero_point,
                      const optional<Tensor>& input_scale, const optional<Tensor>& input_zero_point) {
    return linear("linear_w8a8", input, packed, out_features, residual, out_dtype, out_scale, out_zero_point,
                  input_scale, input_zero_point);
}

Tensor linear_bsr_op(const Tensor& input, const Tensor& packed, int64_t out_features, const optional<Tensor>& residual,
                     optional<ScalarType> out_dtype, double out_scale, int64_t out_zero_point) {
    return linear("linear_bsr", input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, {}, {});
}

Tensor linear_w4_op(const Tensor& input, const Tensor& packed, int64_t out_features, const optional<Tensor>& residual,
                    optional<ScalarType> out_dtype, double out_scale, int64_t out_zero_point) {
    return linear("linear_w4", input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, {}, {});
}

Tensor linear_w8_op(const Tensor& input, const Tensor& packed, int64_t out_features, const optional<Tensor>& residual,
                    optional<ScalarType> out_dtype, double out_scale, int64_t out_zero_point) {
    return linear("linear_w8", input, packed, out_features, residual, out_dtype, out_scale, out_zero_point, {}, {});
}

// Whether a 4-D tensor lies in channels-last order. Where both orders fit (one channel, one pixel), the strides of the
// dimensions of size 1 decide, as in torch: those of a tensor that was made channels-last grow from C to N.
bool is_channels_last(const Tensor& t) {
    int64_t expected = 1, least = 0;
    bool growing = true;
    for (int dim : {1, 3, 2, 0}) {
        if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
        expected *= t.size(dim);
        growing = growing && t.stride(dim) >= least && !(dim == 0 && least == t.stride(1));
        least = t.stride(dim) * t.size(dim);
    }
    return growing || !t.is_contiguous();
}

// As torch guesses the format of a dense tensor that is neither: channels innermost means channels-last.
Tensor in_format(const Tensor& t, bool channels_last) {
    if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
    return torch::stable::contiguous(
        t, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

void check_length(const std::vector<int64_t>& values, size_t length, const char* op, const char* argument) {
    if (values.size() != length) refuse(op, argument, " takes ", length, " numbers, got ", shape_text(values));
}

Tensor conv2d(const char* op, const Tensor& input, const Tensor& packed, int64_t out_channels,
              const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
              const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
              const optional<Tensor>& residual, optional<ScalarType> out_dtype, double out_scale,
              int64_t out_zero_point) {
    check_packed(packed, op);
    const BlobHeader& blob = open_for(op, packed.data_ptr(), packed.numel());
    check_length(kernel_size, 2, op, "kernel_size");
    check_length(stride, 2, op, "stride");
    check_length(padding, 4, op, "padding (top, bottom, left, right)");
    check_length(dilation, 2, op, "dilation");
    if (out_channels != blob.out_channels || kernel_size[0] != blob.kernel_h || kernel_size[1] != blob.kernel_w)
        refuse(op, "out_channels is ", out_channels, " and kernel_size ", shape_text(kernel_size),
               ", the packed weights have ", blob.out_channels, " and [", blob.kernel_h, ", ", blob.kernel_w, "]");
    ConvCall call;
    call.x_dtype = input_dtype(input, blob, op);
    const bool single = input.dim() == 3;
    if (!single && input.dim() != 4) refuse(op, "input must be [N, C, H, W] or [C, H, W], got ", shape_text(input));
    const Tensor batch = single ? torch::stable::unsqueeze(input, 0) : input;
    if (batch.size(1) != blob.in_channels * blob.groups)
        refuse(op, "input has ", batch.size(1), " channels (shape ", shape_text(input), "), the layer takes ",
               blob.in_channels * blob.groups);
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
    if (stride[0] < 1 || stride[1] < 1 || dilation[0] < 1 || dilation[1] < 1)
        refuse(op, "stride ", shape_text(stride), " and dilation ", shape_text(dilation), " must be positive");
    const DType to = output_dtype(call.x_dtype, out_dtype, op);
    const std::vector<int64_t> sizes{call.batch, out_channels, conv_out_height(blob, call), conv_out_width(blob, call)};
    if (sizes[2] < 1 || sizes[3] < 1)
        refuse(op, "input of shape ", shape_text(input), " is smaller than the kernel: kernel_size ",
               shape_text(kernel_size), ", padding ", shape_text(padding), ", dilation ", shape_text(dilation));
    Tensor out = call.channels_last ? empty_channels_last(sizes, to) : empty(sizes, to);
    call.out = output_spec(out, to, out_scale, out_zero_point, op);
    optional<Tensor> kept;
    if (residual) {
        const std::vector<int64_t> wanted(sizes.begin() + (single ? 1 : 0), sizes.end());
        call.out.residual_dtype = check_residual(*residual, wanted, op);
        kept = in_format(single ? torch::stable::unsqueeze(*residual, 0) : *residual, call.channels_last);
        call.out.residual = kept->data_ptr();
    }
    call.threads.limit = threads();
    has_real_weights(blob) ? conv2d_bsr(blob, call) : conv2d_w8a8(blob, call);
    return single ? torch::stable::squeeze(out, 0) : out;
}

Tensor conv2d_w8a8_op(const Tensor& input, const Tensor& packed, int64_t out_channels,
                      const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                      const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                      const optional<Tensor>& residual, optional<ScalarType> out_dtype, double out_scale,
                      int64_t out_zero_point) {
    return conv2d("conv2d_w8a8", input, packed, out_channels, kernel_size, stride, padding, dilation, residual,
                  out_dtype, out_scale, out_zero_point);
}

Tensor conv2d_bsr_op(const Tensor& input, const Tensor& packed, int64_t out_channels,
                     const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                     const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                     const optional<Tensor>& residual, optional<ScalarType> out_dtype, double out_scale,
                     int64_t out_zero_point) {
    return conv2d("conv2d_bsr", input, packed, out_channels, kernel_size, stride, padding, dilation, residual,
                  out_dtype, out_scale, out_zero_point);
}

Tensor conv2d_chain_op(const Tensor& input, const Tensor& program, int64_t out_channels,
                       const std::vector<int64_t>& height, const std::vector<int64_t>& width, ScalarType out_dtype) {
    const char* op = "conv2d_chain";
    check_cpu(program, op, "program");
    kernel_dtype(program.scalar_type(), {DType::u8}, op, "program");
    if (program.dim() != 1 || !program.is_contiguous())
        refuse(op, "program has shape ", shape_text(program),
               ", it must be 1-D and contiguous; freeze the model again");
    const DType from = kernel_dtype(input.scalar_type(), {DType::f32, DType::bf16, DType::f16, DType::u8}, op, "input");
    const bool single = input.dim() == 3;
    if (!single && input.dim() != 4) refuse(op, "input must be [N, C, H, W] or [C, H, W], got ", shape_text(input));
    const Tensor batch = single ? torch::stable::unsqueeze(input, 0) : input;
    const bool channels_last = is_channels_last(batch);
    const Tensor x = in_format(batch, true);
    const Chain chain(static_cast<const uint8_t*>(program.data_ptr()), program.numel(),
                      {x.size(1), x.size(2), x.size(3), from});
    const ImageType& to = chain.output();
    check_length(height, 2, op, "height");
    check_length(width, 2, op, "width");
    const auto size = [](int64_t n, const std::vector<int64_t>& window) {
        constexpr int64_t kFar = int64_t{1} << 60;
        return window[1] < 1 || window[0] < -kFar || window[0] > kFar ? -1 : (n + window[0]) / window[1];
    };
    if (to.channels != out_channels || to.height != size(x.size(2), height) || to.width != size(x.size(3), width) ||
        torch_dtype(to.dtype) != out_dtype)
        refuse(op, "out_channels ", out_channels, ", height ", shape_text(height), ", width ", shape_text(width),
               " and out_dtype ", dtype_text(out_dtype), " are not the program's, which gives [", to.channels, ", ",
               to.height, ", ", to.width, "] of ", dtype_text(torch_dtype(to.dtype)));
    Tensor out = empty_channels_last({x.size(0), to.channels, to.height, to.width}, to.dtype);
    Threads limit;
    limit.limit = threads();
    chain.run(x.data_ptr(), out.data_ptr(), x.size(0), limit);
    if (!channels_last) {
        Tensor plain = empty(sizes_of(out), to.dtype);
        torch::stable::copy_(plain, out);
        out = plain;
    }
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
    for (const char* name : {"linear_w4", "linear_w8", "linear_bsr"})
        m.def((std::string(name) + "(Tensor input, Tensor packed, int out_features, Tensor? residual=None, "
                                   "ScalarType? out_dtype=None, float out_scale=1.0, int out_zero_point=0) -> Tensor")
                  .c_str());
    for (const char* name : {"conv2d_w8a8", "conv2d_bsr"})
        m.def((std::string(name) +
               "(Tensor input, Tensor packed, int out_channels, int[] kernel_size, int[] stride, int[] padding, "
               "int[] dilation, Tensor? residual=None, ScalarType? out_dtype=None, float out_scale=1.0, "
               "int out_zero_point=0) -> Tensor")
                  .c_str());
    m.def(
        "embedding_packed(Tensor indices, Tensor packed, int num_embeddings, int embedding_dim, "
        "ScalarType out_dtype) -> Tensor");
    m.def(
        "conv2d_chain(Tensor input, Tensor program, int out_channels, int[] height, int[] width, "
        "ScalarType out_dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcompress, CPU, m) {
    m.impl("quantize_per_tensor", TORCH_BOX(&quantize_per_tensor_op));
    m.impl("quantize_per_token", TORCH_BOX(&quantize_per_token_op));
    m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8_op));
    m.impl("linear_w4", TORCH_BOX(&linear_w4_op));
    m.impl("linear_w8", TORCH_BOX(&linear_w8_op));
    m.impl("linear_bsr", TORCH_BOX(&linear_bsr_op));
    m.impl("conv2d_w8a8", TORCH_BOX(&conv2d_w8a8_op));
    m.impl("conv2d_bsr", TORCH_BOX(&conv2d_bsr_op));
    m.impl("conv2d_chain", TORCH_BOX(&conv2d_chain_op));
}

}  // namespace fastcompress::bindings
