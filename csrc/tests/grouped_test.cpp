// Four-bit layers against the formula of kernels.h (NibbleProduct), one float32 operation at a time.
#include <algorithm>
#include <cmath>

#include "fastcompress/w4.h"
#include "testing.h"

namespace fc = fastcompress;

namespace {

struct Layer {
    int out, in, group, groups, row_bytes;
    fc::ZeroKind kind;
    std::vector<uint8_t> words, zero, blob;
    std::vector<float> scale, low, bias;

    Layer(int out_, int in_, int group_, fc::ZeroKind kind_)
        : out(out_),
          in(in_),
          group(group_),
          groups((in + group - 1) / group),
          row_bytes((in + 7) / 8 * 4),
          kind(kind_),
          words(random_bytes(static_cast<size_t>(out * row_bytes))) {
        for (int i = 0; i < out * groups; ++i) {
            scale.push_back(0.01f * static_cast<float>(random_int(1, 100)));
            zero.push_back(static_cast<uint8_t>(random_int(0, 15)));
            low.push_back(0.01f * static_cast<float>(random_int(-100, 100)));
        }
        for (int n = 0; n < out; ++n) bias.push_back(static_cast<float>(random_int(-9, 9)));
        fc::GroupedSpec nibbles;
        nibbles.words = words.data();
        nibbles.row_bytes = row_bytes;
        nibbles.scale = scale.data();
        nibbles.group_size = group;
        if (kind == fc::ZeroKind::zero_point) nibbles.zero_point = zero.data();
        if (kind == fc::ZeroKind::minimum) nibbles.minimum = low.data();
        fc::LayerSpec spec;
        spec.grouped = &nibbles;
        spec.bias = bias.data();
        spec.out_channels = out;
        spec.in_channels = in;
        spec.input_mode = fc::InputMode::per_token_symmetric;
        blob.resize(static_cast<size_t>(fc::plan_blob(spec).total_bytes));
        fc::pack_blob(spec, blob.data(), static_cast<int64_t>(blob.size()));
    }

    const fc::BlobHeader& header() const { return fc::open_blob(blob.data(), static_cast<int64_t>(blob.size())); }
    int value(int n, int k) const { return words[static_cast<size_t>(n * row_bytes + k / 2)] >> (k % 2 * 4) & 15; }

    float sum(int n, const std::vector<int>& a, float row_scale) const {
        float total = 0;
        for (int g = 0; g < groups; ++g) {
            const size_t at = static_cast<size_t>(n * groups + g);
            const int off = kind == fc::ZeroKind::eight ? 8 : kind == fc::ZeroKind::zero_point ? zero[at] : 0;
            int exact = 0, inputs = 0;
            for (int k = g * group; k < std::min(in, (g + 1) * group); ++k) {
                exact += (value(n, k) - off) * a[static_cast<size_t>(k)];
                inputs += a[static_cast<size_t>(k)];
            }
            const float part = static_cast<float>(exact) * scale[at];
            total = total + part;
            if (kind == fc::ZeroKind::minimum) {
                const float more = static_cast<float>(inputs) * low[at];
                total = total + more;
            }
        }
        const float scaled = total * row_scale;
        return scaled + bias[static_cast<size_t>(n)];
    }
};

void check_layer(const char* isa, int rows, int out, int in, int group, fc::ZeroKind kind, int threads) {
    const Layer layer(out, in, group, kind);
    std::vector<uint8_t> words(layer.words.size());
    std::vector<float> scale(layer.scale.size());
    fc::unpack_grouped(layer.header(), words.data(), layer.row_bytes, scale.data(), nullptr, nullptr);
    bool same = scale == layer.scale;
    for (int n = 0; n < out; ++n)
        for (int k = 0; k < in; ++k)
            same = same &&
                   (words[static_cast<size_t>(n * layer.row_bytes + k / 2)] >> (k % 2 * 4) & 15) == layer.value(n, k);
    expect(same, isa, "unpack_grouped(pack_grouped(weight)) == weight");

    // Integers with a largest magnitude of 127: their quantization is exact, with a scale near 1.
    std::vector<float> x(static_cast<size_t>(rows * in)), y(static_cast<size_t>(rows * out), -1.0f);
    for (float& v : x) v = static_cast<float>(random_int(-127, 127));
    for (int m = 0; m < rows; ++m) x[static_cast<size_t>(m * in)] = m % 2 ? 127.0f : -127.0f;
    fc::LinearCall call;
    call.x = x.data();
    call.rows = rows;
    call.out.data = y.data();
    call.threads.exactly = threads;
    fc::linear_w4(layer.header(), call);
    const float third = 1.0f / 127.0f, row_scale = 127.0f * third;
    bool exact = true;
    for (int m = 0; m < rows; ++m) {
        std::vector<int> a;
        for (int k = 0; k < in; ++k) a.push_back(static_cast<int>(x[static_cast<size_t>(m * in + k)]));
        for (int n = 0; n < out; ++n)
            exact = exact && y[static_cast<size_t>(m * out + n)] == layer.sum(n, a, row_scale);
    }
    expect(exact, isa, "linear_w4 is the formula");
}

}  // namespace

void check_grouped(const char* isa, int threads) {
    for (fc::ZeroKind kind : {fc::ZeroKind::eight, fc::ZeroKind::zero_point, fc::ZeroKind::minimum})
        for (int rows : {1, 2, 3, 5, 6, 7, 13})
            for (int in : {1, 8, 31, 40, 200}) {
                check_layer(isa, rows, 17, in, in, kind, threads);
                if (in > 8) check_layer(isa, rows, 65, in, 8, kind, threads);
                if (in > 32) check_layer(isa, rows, 130, in, 32, kind, threads);
            }
}
