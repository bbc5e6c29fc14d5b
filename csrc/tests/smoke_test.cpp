// The kernels without torch or Python, for sanitizers: every supported ISA against a loop over the definition.
//
//     cmake -S . -B ../fastcompress-tests -G Ninja -DFASTCOMPRESS_TESTS=ON -DCMAKE_BUILD_TYPE=None
//           -DCMAKE_CXX_FLAGS="-O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
//     cmake --build ../fastcompress-tests && ../fastcompress-tests/fastcompress_tests
//
// Every buffer is a heap block of exactly the size that the interface asks for: an access beyond it is caught.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/features.h"
#include "fastcompress/w8a8.h"
#include "testing.h"

namespace fc = fastcompress;

namespace {

struct Layer {
    int out, in, groups, kh, kw, rank;  // in: channels of one group
    std::vector<int8_t> weight;
    std::vector<float> scale;
    std::vector<uint8_t> blob;

    Layer(int out_, int in_, int groups_, int kh_, int kw_, int rank_, int zero_point, int bits = 8)
        : out(out_),
          in(in_),
          groups(groups_),
          kh(kh_),
          kw(kw_),
          rank(rank_),
          weight(out * in * kh * kw),
          scale(out, 1.0f) {
        const int low = -(1 << (bits - 1));
        for (int8_t& w : weight) w = static_cast<int8_t>(random_int(low, -1 - low));
        fc::LayerSpec spec;
        spec.weight = weight.data();
        spec.weight_scale = scale.data();
        spec.out_channels = out;
        spec.in_channels = in;
        spec.groups = groups;
        spec.kernel_h = kh;
        spec.kernel_w = kw;
        spec.weight_rank = rank;
        spec.weight_bits = bits;
        spec.input_zero_point = zero_point;
        blob.resize(static_cast<size_t>(fc::plan_blob(spec).total_bytes));
        fc::pack_blob(spec, blob.data(), static_cast<int64_t>(blob.size()));
    }

    const fc::BlobHeader& header() const { return fc::open_blob(blob.data(), static_cast<int64_t>(blob.size())); }
    int at(int n, int c, int r, int s) const { return weight[((n * in + c) * kh + r) * kw + s]; }
};

void check_packing(const char* isa, const Layer& layer) {
    std::vector<int8_t> weight(layer.weight.size());
    fc::unpack_weight(layer.blob.data(), weight.data());
    expect(weight == layer.weight, isa, "unpack(pack(weight)) == weight");
    fc::verify_blob(layer.blob.data(), static_cast<int64_t>(layer.blob.size()));
}

void check_linear(const char* isa, int rows, int k, int n, int threads) {
    const int zero_point = random_int(0, 255);
    const Layer layer(n, k, 1, 1, 1, 2, zero_point);
    check_packing(isa, layer);
    const std::vector<uint8_t> x = random_bytes(static_cast<size_t>(rows) * k);
    std::vector<int32_t> expected(static_cast<size_t>(rows) * n), out(expected.size(), -1);
    for (int m = 0; m < rows; ++m)
        for (int j = 0; j < n; ++j) {
            int32_t sum = 0;
            for (int i = 0; i < k; ++i) sum += (x[m * k + i] - zero_point) * layer.at(j, i, 0, 0);
            expected[m * n + j] = sum;
        }

    fc::LinearCall call;
    call.x = x.data();
    call.x_dtype = fc::DType::u8;
    call.rows = rows;
    call.out.data = out.data();
    call.out.dtype = fc::DType::i32;
    call.threads.exactly = threads;
    fc::linear_w8a8(layer.header(), call);
    expect(out == expected, isa, "linear, u8 to i32");

    // The same numbers as floats, through the quantizer (scale 1) and the float epilogue, plus a residual.
    std::vector<float> xf(x.size()), residual(out.size(), 0.5f), outf(out.size());
    for (size_t i = 0; i < x.size(); ++i) xf[i] = static_cast<float>(x[i] - zero_point);
    call.x = xf.data();
    call.x_dtype = fc::DType::f32;
    call.out.data = outf.data();
    call.out.dtype = fc::DType::f32;
    call.out.residual = residual.data();
    fc::linear_w8a8(layer.header(), call);
    bool same = true;
    for (size_t i = 0; i < out.size(); ++i) same = same && outf[i] == static_cast<float>(expected[i]) + 0.5f;
    expect(same, isa, "linear, f32 to f32 with residual");
}

struct Shape {
    int batch, channels, height, width, out, groups, kernel_h, kernel_w, stride, dilation, pad;
    bool channels_last;
};

void check_conv(const char* isa, const Shape& s, int threads, int bits = 8) {
    const int zero_point = random_int(0, 255), in = s.channels / s.groups;
    const Layer layer(s.out, in, s.groups, s.kernel_h, s.kernel_w, 4, zero_point, bits);
    check_packing(isa, layer);
    const std::vector<uint8_t> x = random_bytes(static_cast<size_t>(s.batch) * s.channels * s.height * s.width);
    fc::ConvCall call;
    call.x = x.data();
    call.x_dtype = fc::DType::u8;
    call.channels_last = s.channels_last;
    call.batch = s.batch;
    call.height = s.height;
    call.width = s.width;
    call.stride_h = call.stride_w = s.stride;
    call.dilation_h = call.dilation_w = s.dilation;
    call.pad_top = call.pad_bottom = call.pad_left = call.pad_right = s.pad;
    call.threads.exactly = threads;
    const int oh = static_cast<int>(fc::conv_out_height(layer.header(), call));
    const int ow = static_cast<int>(fc::conv_out_width(layer.header(), call));
    const auto index = [&](int b, int c, int y, int z, int channels, int height, int width) {
        return s.channels_last ? ((b * height + y) * width + z) * channels + c
                               : ((b * channels + c) * height + y) * width + z;
    };
    std::vector<int32_t> expected(static_cast<size_t>(s.batch) * s.out * oh * ow), out(expected.size(), -1);
    for (int b = 0; b < s.batch; ++b)
        for (int n = 0; n < s.out; ++n)
            for (int y = 0; y < oh; ++y)
                for (int z = 0; z < ow; ++z) {
                    int32_t sum = 0;
                    for (int c = 0; c < in; ++c)
                        for (int r = 0; r < s.kernel_h; ++r)
                            for (int t = 0; t < s.kernel_w; ++t) {
                                const int iy = y * s.stride - s.pad + r * s.dilation;
                                const int iz = z * s.stride - s.pad + t * s.dilation;
                                if (iy < 0 || iy >= s.height || iz < 0 || iz >= s.width) continue;
                                const int channel = n / (s.out / s.groups) * in + c;
                                sum += (x[index(b, channel, iy, iz, s.channels, s.height, s.width)] - zero_point) *
                                       layer.at(n, c, r, t);
                            }
                    expected[index(b, n, y, z, s.out, oh, ow)] = sum;
                }
    call.out.data = out.data();
    call.out.dtype = fc::DType::i32;
    fc::conv2d_w8a8(layer.header(), call);
    expect(out == expected, isa, bits == 4 ? "conv2d with four-bit weights, u8 to i32" : "conv2d, u8 to i32");
}

void check_isa(const char* isa) {
    fc::set_isa(isa);
    for (int threads : {1, 2}) {
        for (int rows : {1, 3, 17, 50})
            for (int k : {1, 63, 64, 200})
                for (int n : {1, 16, 70}) check_linear(isa, rows, k, n, threads);
        check_block_sparse(isa, threads);
        check_chain(isa, threads);
        check_grouped(isa, threads);
        for (bool last : {true, false}) {
            check_conv(isa, {2, 5, 9, 7, 18, 1, 3, 3, 1, 1, 1, last}, threads);     // channels to pad
            check_conv(isa, {1, 64, 6, 6, 33, 1, 1, 1, 1, 1, 0, last}, threads);    // pointwise
            check_conv(isa, {1, 12, 11, 8, 16, 2, 3, 2, 2, 2, 2, last}, threads);   // grouped, strided, dilated
            check_conv(isa, {1, 37, 9, 10, 37, 37, 3, 3, 1, 1, 1, last}, threads);  // depthwise
            check_conv(isa, {2, 16, 9, 9, 16, 16, 5, 5, 2, 1, 2, last}, threads);
            check_conv(isa, {1, 20, 8, 8, 20, 20, 2, 4, 1, 2, 0, last}, threads);
            check_conv(isa, {2, 5, 9, 7, 18, 1, 3, 3, 1, 1, 1, last}, threads, 4);    // an odd number of lines
            check_conv(isa, {1, 64, 6, 6, 33, 1, 1, 1, 1, 1, 0, last}, threads, 4);   // pointwise
            check_conv(isa, {1, 12, 11, 8, 40, 2, 3, 2, 2, 2, 2, last}, threads, 4);  // grouped, strided, dilated
        }
    }
}

}  // namespace

int main() {
    for (fc::Isa isa : fc::compiled_isas()) {
        if (!fc::isa_supported(isa)) {
            std::printf("%s: not supported by this CPU\n", fc::isa_name(isa));
            continue;
        }
        const int before = failures();
        check_isa(fc::isa_name(isa));
        std::printf("%s: %s\n", fc::isa_name(isa), failures() == before ? "ok" : "FAILED");
    }
    return failures() == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
