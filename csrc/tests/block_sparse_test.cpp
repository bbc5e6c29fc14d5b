// Block-sparse layers, every kind of block, against a loop over the definition. Float layers get small integers, whose sums are
// exact in any order.
#include <cstring>

#include "../cpu/simd/half.h"
#include "fastcompress/bsr.h"
#include "testing.h"

namespace fc = fastcompress;

namespace {

struct Form {
    fc::DType value;
    int block_h, block_w;
};

constexpr Form kForms[] = {{fc::DType::s8, 16, 4},  {fc::DType::s8, 4, 4},  {fc::DType::s8, 1, 4},
                           {fc::DType::f32, 16, 1}, {fc::DType::f32, 4, 1}, {fc::DType::f32, 1, 1},
                           {fc::DType::bf16, 16, 2}};

struct Layer {
    Form form;
    int out, in, kernel_h, kernel_w, rank;
    int zero_point = 0;
    std::vector<int> dense;  // [out, kernel_h, kernel_w, in]
    std::vector<int32_t> crow{0}, col;
    std::vector<uint8_t> values, blob;
    std::vector<float> scale, bias;

    bool real() const { return form.value != fc::DType::s8; }
    int k() const { return kernel_h * kernel_w * in; }
    const fc::BlobHeader& header() const { return fc::open_blob(blob.data(), static_cast<int64_t>(blob.size())); }

    // About `percent` of the blocks are there.
    Layer(const Form& f, int block_rows, int block_columns, int kh, int kw, int rank_, int percent)
        : form(f), out(block_rows * f.block_h), in(block_columns * f.block_w), kernel_h(kh), kernel_w(kw), rank(rank_) {
        dense.assign(static_cast<size_t>(out) * k(), 0);
        for (int r = 0; r < block_rows; ++r) {
            for (int c = 0; c < k() / form.block_w; ++c)
                if (random_int(0, 99) < percent) add_block(r, c);
            crow.push_back(static_cast<int32_t>(col.size()));
        }
        if (!real()) {
            zero_point = random_int(0, 255);
            scale.assign(static_cast<size_t>(out), 1.0f);
        }
        for (int n = 0; n < out; ++n) bias.push_back(static_cast<float>(random_int(-100, 100)));
        pack();
    }

    void add_block(int row, int column) {
        col.push_back(column);
        for (int n = 0; n < form.block_h; ++n)
            for (int i = 0; i < form.block_w; ++i) {
                const int value = real() ? random_int(-9, 9) : random_int(-128, 127);
                dense[static_cast<size_t>(row * form.block_h + n) * k() + column * form.block_w + i] = value;
                append(value);
            }
    }

    void append(int value) {
        const float number = static_cast<float>(value);
        const uint16_t half = float_to_bf16(number);
        const int8_t byte = static_cast<int8_t>(value);
        const void* from = &byte;
        if (form.value == fc::DType::f32) from = &number;
        if (form.value == fc::DType::bf16) from = &half;
        const size_t at = values.size();
        values.resize(at + static_cast<size_t>(fc::dtype_bytes(form.value)));
        std::memcpy(values.data() + at, from, values.size() - at);
    }

    void pack() {
        fc::BlockIndex index;
        index.crow = crow.data();
        index.col = col.data();
        index.values = values.data();
        index.value = form.value;
        index.blocks = static_cast<int64_t>(col.size());
        index.block_h = form.block_h;
        index.block_w = form.block_w;
        fc::LayerSpec spec;
        spec.sparse = &index;
        spec.weight_scale = real() ? nullptr : scale.data();
        spec.bias = bias.data();
        spec.out_channels = out;
        spec.in_channels = in;
        spec.kernel_h = kernel_h;
        spec.kernel_w = kernel_w;
        spec.weight_rank = rank;
        spec.input_zero_point = zero_point;
        blob.resize(static_cast<size_t>(fc::plan_blob(spec).total_bytes));
        fc::pack_blob(spec, blob.data(), static_cast<int64_t>(blob.size()));
    }
};

void check_packing(const char* isa, const Layer& layer) {
    fc::verify_blob(layer.blob.data(), static_cast<int64_t>(layer.blob.size()));
    std::vector<int32_t> crow(layer.crow.size()), col(layer.col.size());
    std::vector<uint8_t> values(layer.values.size());
    fc::unpack_blocks(layer.header(), crow.data(), col.data(), values.data());
    expect(crow == layer.crow && col == layer.col && values == layer.values, isa, "unpack(pack(blocks)) == blocks");
}

// Integers that a layer takes: bytes, or small ones as float32; `numbers` are what they count for.
struct Input {
    std::vector<uint8_t> bytes;
    std::vector<int> numbers;

    Input(const Layer& layer, size_t count) {
        if (!layer.real()) bytes = random_bytes(count);
        for (size_t i = 0; i < count; ++i)
            numbers.push_back(layer.real() ? random_int(-9, 9) : bytes[i] - layer.zero_point);
        if (!layer.real()) return;
        bytes.resize(count * sizeof(float));
        for (size_t i = 0; i < count; ++i) {
            const float number = static_cast<float>(numbers[i]);
            std::memcpy(bytes.data() + i * sizeof(float), &number, sizeof number);
        }
    }
    fc::DType dtype(const Layer& layer) const { return layer.real() ? fc::DType::f32 : fc::DType::u8; }
};

void compare(const char* isa, const std::vector<int>& expected, const std::vector<float>& out, const char* what) {
    bool same = true;
    for (size_t i = 0; i < out.size(); ++i) same = same && out[i] == static_cast<float>(expected[i]);
    expect(same, isa, what);
}

void check_linear(const char* isa, const Form& form, int rows, int block_rows, int block_columns, int percent,
                  int threads) {
    const Layer layer(form, block_rows, block_columns, 1, 1, 2, percent);
    check_packing(isa, layer);
    const Input x(layer, static_cast<size_t>(rows) * layer.in);
    std::vector<int> expected(static_cast<size_t>(rows) * layer.out);
    std::vector<float> out(expected.size(), -1.0f), residual(expected.size(), 3.0f);
    for (int m = 0; m < rows; ++m)
        for (int n = 0; n < layer.out; ++n) {
            int sum = static_cast<int>(layer.bias[static_cast<size_t>(n)]) + 3;
            for (int i = 0; i < layer.in; ++i) sum += x.numbers[m * layer.in + i] * layer.dense[n * layer.in + i];
            expected[m * layer.out + n] = sum;
        }
    fc::LinearCall call;
    call.x = x.bytes.data();
    call.x_dtype = x.dtype(layer);
    call.rows = rows;
    call.out.data = out.data();
    call.out.residual = residual.data();
    call.threads.exactly = threads;
    layer.real() ? fc::linear_bsr(layer.header(), call) : fc::linear_w8a8(layer.header(), call);
    compare(isa, expected, out, "block-sparse linear");
}

struct Geometry {
    int batch, height, width, kernel_h, kernel_w, stride_h, stride_w, dilation, top, bottom, left, right;
    bool channels_last;
};

void check_conv(const char* isa, const Form& form, const Geometry& g, int block_rows, int block_columns, int percent,
                int threads) {
    const Layer layer(form, block_rows, block_columns, g.kernel_h, g.kernel_w, 4, percent);
    check_packing(isa, layer);
    const Input x(layer, static_cast<size_t>(g.batch) * g.height * g.width * layer.in);
    fc::ConvCall call;
    call.x = x.bytes.data();
    call.x_dtype = x.dtype(layer);
    call.channels_last = g.channels_last;
    call.batch = g.batch;
    call.height = g.height;
    call.width = g.width;
    call.stride_h = g.stride_h;
    call.stride_w = g.stride_w;
    call.dilation_h = call.dilation_w = g.dilation;
    call.pad_top = g.top;
    call.pad_bottom = g.bottom;
    call.pad_left = g.left;
    call.pad_right = g.right;
    call.threads.exactly = threads;
    const int oh = static_cast<int>(fc::conv_out_height(layer.header(), call));
    const int ow = static_cast<int>(fc::conv_out_width(layer.header(), call));
    const auto index = [&](int b, int c, int y, int z, int channels, int height, int width) {
        return g.channels_last ? ((b * height + y) * width + z) * channels + c
                               : ((b * channels + c) * height + y) * width + z;
    };
    std::vector<int> expected(static_cast<size_t>(g.batch) * layer.out * oh * ow);
    std::vector<float> out(expected.size(), -1.0f);
    for (int b = 0; b < g.batch; ++b)
        for (int n = 0; n < layer.out; ++n)
            for (int y = 0; y < oh; ++y)
                for (int z = 0; z < ow; ++z) {
                    int sum = static_cast<int>(layer.bias[static_cast<size_t>(n)]);
                    for (int r = 0; r < g.kernel_h; ++r)
                        for (int t = 0; t < g.kernel_w; ++t) {
                            const int iy = y * g.stride_h - g.top + r * g.dilation;
                            const int iz = z * g.stride_w - g.left + t * g.dilation;
                            if (iy < 0 || iy >= g.height || iz < 0 || iz >= g.width) continue;
                            for (int c = 0; c < layer.in; ++c)
                                sum += x.numbers[index(b, c, iy, iz, layer.in, g.height, g.width)] *
                                       layer.dense[((n * g.kernel_h + r) * g.kernel_w + t) * layer.in + c];
                        }
                    expected[index(b, n, y, z, layer.out, oh, ow)] = sum;
                }
    call.out.data = out.data();
    layer.real() ? fc::conv2d_bsr(layer.header(), call) : fc::conv2d_w8a8(layer.header(), call);
    compare(isa, expected, out, "block-sparse conv2d");
}

}  // namespace

void check_block_sparse(const char* isa, int threads) {
    for (const Form& form : kForms) {
        const int panels = 16 / form.block_h;
        for (int rows : {1, 3, 4, 5, 17, 33, 130})
            for (int percent : {0, 20, 100}) {
                check_linear(isa, form, rows, 5 * panels + (form.block_h < 16 ? 1 : 0), 19, percent, threads);
                check_linear(isa, form, rows, 1, 1, percent, threads);
            }
        check_linear(isa, form, 19, 2, 800, 1, threads);  // distances that a byte cannot hold
        for (bool last : {true, false}) {
            check_conv(isa, form, {2, 7, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, last}, 3, 5, 30, threads);
            check_conv(isa, form, {1, 6, 11, 1, 1, 1, 1, 1, 0, 0, 0, 0, last}, 5, 17, 30, threads);
            check_conv(isa, form, {3, 8, 7, 3, 2, 2, 3, 2, 0, 3, 2, 1, last}, 2, 3, 60, threads);  // dilated
            check_conv(isa, form, {1, 12, 13, 2, 2, 5, 4, 1, 3, 0, 0, 2, last}, 1, 4, 60, threads);
            check_conv(isa, form, {2, 3, 3, 5, 5, 1, 1, 1, 4, 4, 4, 4, last}, 1, 21, 2, threads);
        }
    }
}
