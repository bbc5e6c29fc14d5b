// Layers with weights in groups against the formula of kernels.h (GroupedProduct), one float32 operation at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "fastcompress/w4.h"
#include "testing.h"

namespace fc = fastcompress;

namespace {

struct Layer {
    int bits, out, in, group, groups, row_bytes;
    fc::ZeroKind kind;
    std::vector<uint8_t> words, zero, blob;
    std::vector<float> scale, low, bias;

    Layer(int bits_, fc::InputMode mode, int out_, int in_, int group_, fc::ZeroKind kind_)
        : bits(bits_),
          out(out_),
          in(in_),
          group(group_),
          groups((in + group - 1) / group),
          row_bytes(bits == 8 ? in : (in + 7) / 8 * 4),
          kind(kind_),
          words(random_bytes(static_cast<size_t>(out * row_bytes))) {
        for (int i = 0; i < out * groups; ++i) {
            scale.push_back(0.01f * static_cast<float>(random_int(1, 100)));
            zero.push_back(static_cast<uint8_t>(random_int(0, 15)));
            low.push_back(0.01f * static_cast<float>(random_int(-100, 100)));
        }
        for (int n = 0; n < out; ++n) bias.push_back(static_cast<float>(random_int(-9, 9)));
        fc::GroupedSpec nibbles;
        nibbles.bits = bits;
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
        spec.input_mode = mode;
        blob.resize(static_cast<size_t>(fc::plan_blob(spec).total_bytes));
        fc::pack_blob(spec, blob.data(), static_cast<int64_t>(blob.size()));
    }

    const fc::BlobHeader& header() const { return fc::open_blob(blob.data(), static_cast<int64_t>(blob.size())); }
    int value(int n, int k) const {
        if (bits == 8) return static_cast<int8_t>(words[static_cast<size_t>(n * row_bytes + k)]);
        return words[static_cast<size_t>(n * row_bytes + k / 2)] >> (k % 2 * 4) & 15;
    }
    int off(size_t at) const {
        if (kind == fc::ZeroKind::zero_point) return zero[at];
        return kind == fc::ZeroKind::middle && bits == 4 ? 8 : 0;
    }

    float sum(int n, const std::vector<int>& a, float row_scale) const {
        float total = 0, minima = 0;
        std::vector<float> parts;
        for (int g = 0; g < groups; ++g) {
            const size_t at = static_cast<size_t>(n * groups + g);
            int exact = 0, inputs = 0;
            for (int k = g * group; k < std::min(in, (g + 1) * group); ++k) {
                exact += (value(n, k) - off(at)) * a[static_cast<size_t>(k)];
                inputs += a[static_cast<size_t>(k)];
            }
            parts.push_back(static_cast<float>(exact) * scale[at]);
            const float more = static_cast<float>(inputs) * low[at];
            if (kind == fc::ZeroKind::minimum) minima = minima + more;
        }
        total = minima;
        for (float part : parts) total = total + part;
        const float scaled = total * row_scale;
        return scaled + bias[static_cast<size_t>(n)];
    }
    float wide_sum(int n, const float* x) const {
        float total = 0, minima = 0;
        std::vector<float> parts;
        for (int g = 0; g < groups; ++g) {
            const int begin = g * group, end = std::min(in, begin + group);
            const size_t at = static_cast<size_t>(n * groups + g);
            float largest = 0;
            for (int k = begin; k < end; ++k) largest = std::max(largest, std::fabs(x[k]));
            const float share = 1.0f / 32639.0f, step = std::max(largest * share, 0x1p-100f), inverse = 1.0f / step;
            int sums[2] = {0, 0}, inputs[2] = {0, 0};
            for (int k = begin; k < end; ++k) {
                const float scaled = x[k] * inverse;
                const int a = static_cast<int>(std::nearbyint(scaled)), high = (a + 128) >> 8;
                const int bytes[2] = {high, a - 256 * high};
                for (int i = 0; i < 2; ++i) {
                    sums[i] += (value(n, k) - off(at)) * bytes[i];
                    inputs[i] += bytes[i];
                }
            }
            const auto joined = [](const int* s) {
                const float high = static_cast<float>(s[0]) * 256.0f;
                return high + static_cast<float>(s[1]);
            };
            const float scaled = joined(sums) * scale[at];
            parts.push_back(scaled * step);
            const float input_sum = joined(inputs) * step, more = input_sum * low[at];
            if (kind == fc::ZeroKind::minimum) minima = minima + more;
        }
        total = minima;
        for (float part : parts) total = total + part;
        return total + bias[static_cast<size_t>(n)];
    }
};

void check_layer(const char* isa, int rows, int out, int in, int group, fc::ZeroKind kind, int threads) {
    const Layer layer(4, fc::InputMode::per_token_symmetric, out, in, group, kind);
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

// Sixteen-bit activations in two float types, against the formula one float32 operation at a time.
void check_sixteen_bits(const char* isa, int bits, int rows, int out, int in, int group, fc::ZeroKind kind,
                        int threads) {
    const Layer layer(bits, fc::InputMode::per_group_16bit, out, in, group, kind);
    fc::verify_blob(layer.blob.data(), static_cast<int64_t>(layer.blob.size()));
    std::vector<float> y(static_cast<size_t>(rows * out), -1.0f), x;
    std::vector<uint16_t> bf16;
    for (int i = 0; i < rows * in; ++i) {
        x.push_back(static_cast<float>(random_int(-127, 127)));  // exact in bfloat16
        uint32_t word;
        std::memcpy(&word, &x.back(), 4);
        bf16.push_back(static_cast<uint16_t>(word >> 16));
    }
    for (int type = 0; type < 2; ++type) {
        fc::LinearCall call;
        call.x = type == 0 ? static_cast<const void*>(x.data()) : bf16.data();
        call.x_dtype = type == 0 ? fc::DType::f32 : fc::DType::bf16;
        call.rows = rows;
        call.out.data = y.data();
        call.threads.exactly = threads;
        (bits == 4 ? fc::linear_w4 : fc::linear_w8)(layer.header(), call);
        bool exact = true;
        for (int m = 0; m < rows; ++m)
            for (int n = 0; n < out; ++n)
                exact = exact && y[static_cast<size_t>(m * out + n)] == layer.wide_sum(n, x.data() + m * in);
        expect(exact, isa, bits == 4 ? "linear_w4 in 16 bits is the formula" : "linear_w8 is the formula");
    }
    std::vector<float> weight(static_cast<size_t>(in));
    std::vector<float> looked_up(static_cast<size_t>(2 * in), -1.0f);
    const int64_t places[] = {out - 1, 0};
    fc::EmbeddingCall call;
    call.indices = places;
    call.count = 2;
    call.out = looked_up.data();
    call.threads.exactly = threads;
    fc::embedding_packed(layer.header(), call);
    fc::dequantize_row(layer.header(), out - 1, weight.data());
    expect(std::equal(weight.begin(), weight.end(), looked_up.begin()), isa, "embedding_packed gives rows");
}

}  // namespace

void check_grouped(const char* isa, int threads) {
    for (fc::ZeroKind kind : {fc::ZeroKind::middle, fc::ZeroKind::zero_point, fc::ZeroKind::minimum})
        for (int rows : {1, 2, 3, 5, 6, 7, 13})
            for (int in : {1, 8, 31, 40, 200}) {
                check_layer(isa, rows, 17, in, in, kind, threads);
                for (int bits : {4, 8}) {
                    if (bits == 8 && kind != fc::ZeroKind::middle) continue;
                    check_sixteen_bits(isa, bits, rows, 17, in, in, kind, threads);
                    if (in > 8) check_sixteen_bits(isa, bits, rows, 65, in, 8, kind, threads);
                    if (in > 32) check_sixteen_bits(isa, bits, rows, 130, in, 32, kind, threads);
                }
                if (in > 8) check_layer(isa, rows, 65, in, 8, kind, threads);
                if (in > 32) check_layer(isa, rows, 130, in, 32, kind, threads);
            }
}
