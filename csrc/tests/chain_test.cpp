// Chains against their convolutions called one by one, and how images are shared out.
#include <cstring>

#include "../cpu/chain_split.h"
#include "../cpu/pack/blob_header.h"
#include "fastcompress/chain.h"
#include "testing.h"

namespace fc = fastcompress;

namespace {

constexpr int kChannels = 5, kSteps = 4;

std::vector<uint8_t> packed_weights(int out, int in, int kernel) {
    std::vector<int8_t> weight(static_cast<size_t>(out) * in * kernel * kernel);
    for (int8_t& w : weight) w = static_cast<int8_t>(random_int(-128, 127));
    const std::vector<float> scale(static_cast<size_t>(out), 0.01f);
    fc::LayerSpec spec;
    spec.weight = weight.data();
    spec.weight_scale = scale.data();
    spec.out_channels = out;
    spec.in_channels = in;
    spec.kernel_h = spec.kernel_w = kernel;
    spec.weight_rank = 4;
    spec.input_scale = 0.05f;
    spec.input_zero_point = 101;
    std::vector<uint8_t> blob(static_cast<size_t>(fc::plan_blob(spec).total_bytes));
    fc::pack_blob(spec, blob.data(), static_cast<int64_t>(blob.size()));
    return blob;
}

fc::ChainStep step_of(int64_t input, int64_t residual, int stride, int pad, fc::DType out) {
    fc::ChainStep s{};
    s.input = input;
    s.residual = residual;
    s.stride_h = s.stride_w = stride;
    s.pad_top = s.pad_bottom = s.pad_left = s.pad_right = pad;
    s.dilation_h = s.dilation_w = 1;
    s.out_dtype = static_cast<int32_t>(out);
    s.out_scale = 0.05f;
    s.out_zero_point = 101;
    return s;
}

// Two convolutions and a shortcut around them, then one more.
struct Program {
    std::vector<fc::ChainStep> steps{step_of(fc::kChainInput, fc::kNoValue, 1, 1, fc::DType::u8),
                                     step_of(fc::kChainInput, fc::kNoValue, 2, 0, fc::DType::f32),
                                     step_of(0, 1, 2, 1, fc::DType::u8),
                                     step_of(2, fc::kNoValue, 1, 1, fc::DType::f32)};
    std::vector<std::vector<uint8_t>> weights{packed_weights(7, kChannels, 3), packed_weights(9, kChannels, 1),
                                              packed_weights(9, 7, 3), packed_weights(20, 9, 3)};
    std::vector<uint8_t> bytes;

    Program() {
        size_t place = sizeof(fc::ChainHeader) + kSteps * sizeof(fc::ChainStep);
        for (size_t i = 0; i < kSteps; ++i) {
            place = static_cast<size_t>(fc::round_up(static_cast<int64_t>(place), 64));
            steps[i].blob_offset = static_cast<int64_t>(place);
            steps[i].blob_bytes = static_cast<int64_t>(weights[i].size());
            place += weights[i].size();
        }
        bytes.resize(place);
        for (size_t i = 0; i < kSteps; ++i)
            std::memcpy(bytes.data() + steps[i].blob_offset, weights[i].data(), weights[i].size());
        seal();
    }

    void seal() {
        const size_t table = kSteps * sizeof(fc::ChainStep);
        std::memcpy(bytes.data() + sizeof(fc::ChainHeader), steps.data(), table);
        fc::ChainHeader h{};
        h.magic = fc::kChainMagic;
        h.version = fc::kChainVersion;
        h.total_bytes = static_cast<int64_t>(bytes.size());
        h.steps = kSteps;
        std::memcpy(bytes.data(), &h, sizeof h);
        const uint64_t rest = fc::blob_checksum(bytes.data() + sizeof h, static_cast<int64_t>(table));
        h.checksum = fc::blob_checksum(bytes.data(), sizeof h - sizeof h.checksum) ^ (rest << 1 | rest >> 63);
        std::memcpy(bytes.data(), &h, sizeof h);
    }
};

// The value of each step for `batch` images of 9 x 8 pixels.
std::vector<uint8_t> one_by_one(const Program& p, const std::vector<uint8_t>& x, int64_t batch) {
    std::vector<std::vector<uint8_t>> values;
    std::vector<fc::ConvCall> calls;
    for (size_t i = 0; i < kSteps; ++i) {
        const fc::ChainStep& s = p.steps[i];
        const std::vector<uint8_t>& weights = p.weights[i];
        const fc::BlobHeader& blob = fc::open_blob(weights.data(), static_cast<int64_t>(weights.size()));
        fc::ConvCall c;
        const bool first = s.input == fc::kChainInput;
        c.x = first ? x.data() : values[static_cast<size_t>(s.input)].data();
        c.x_dtype = fc::DType::u8;
        c.batch = batch;
        c.height = 9;
        c.width = 8;
        if (!first) {
            const fc::ConvCall& before = calls[static_cast<size_t>(s.input)];
            const std::vector<uint8_t>& w = p.weights[static_cast<size_t>(s.input)];
            const fc::BlobHeader& b = fc::open_blob(w.data(), static_cast<int64_t>(w.size()));
            c.height = fc::conv_out_height(b, before);
            c.width = fc::conv_out_width(b, before);
        }
        c.stride_h = c.stride_w = s.stride_h;
        c.pad_top = c.pad_bottom = c.pad_left = c.pad_right = s.pad_top;
        c.out.dtype = static_cast<fc::DType>(s.out_dtype);
        c.out.scale = s.out_scale;
        c.out.zero_point = s.out_zero_point;
        if (s.residual != fc::kNoValue) c.out.residual = values[static_cast<size_t>(s.residual)].data();
        c.threads.exactly = 1;
        values.emplace_back(static_cast<size_t>(batch * fc::conv_out_height(blob, c) * fc::conv_out_width(blob, c) *
                                                blob.out_channels * fc::dtype_bytes(c.out.dtype)));
        c.out.data = values.back().data();
        fc::conv2d_w8a8(blob, c);
        calls.push_back(c);
    }
    return values.back();
}

bool refused(const Program& p, const fc::ImageType& type) {
    try {
        fc::Chain(p.bytes.data(), static_cast<int64_t>(p.bytes.size()), type);
    } catch (const std::exception&) {
        return true;
    }
    return false;
}

void check_forged(const char* isa, const Program& good, const fc::ImageType& type) {
    const int64_t far[] = {-1000, -3, 4, 1 << 20, int64_t{1} << 62, -(int64_t{1} << 62)};
    for (int64_t value : far)
        for (size_t field = 0; field < 12; ++field) {
            Program p = good;
            std::memcpy(reinterpret_cast<uint8_t*>(&p.steps[2]) + 8 * field, &value, 8);
            const bool harmless = field >= 4 && value > 0 && value <= 4;  // another geometry
            p.seal();
            expect(refused(p, type) || harmless, isa, "a forged chain is refused");
        }
}

void check_split(int64_t batch, int64_t threads, int64_t bytes, double ns) {
    const fc::ChainSplit s = fc::split_images(batch, threads, bytes, ns, 7);
    const bool sums =
        s.by_images >= 0 && s.by_images <= batch && s.groups <= s.by_images && (s.groups > 0) == (s.by_images > 0);
    expect(sums, "chain", "groups have at least one image each");
    expect(batch - s.by_images <= threads / 2, "chain", "no more than half as many odd images as threads");
}

}  // namespace

void check_chain(const char* isa, int threads) {
    const Program p;
    const fc::ImageType type{kChannels, 9, 8, fc::DType::u8};
    for (int64_t batch : {0, 1, 2, 3, 9, 40}) {
        const std::vector<uint8_t> x = random_bytes(static_cast<size_t>(batch * type.bytes()));
        const fc::Chain chain(p.bytes.data(), static_cast<int64_t>(p.bytes.size()), type);
        std::vector<uint8_t> out(static_cast<size_t>(batch * chain.output().bytes()));
        fc::Threads team;
        team.exactly = threads;
        chain.run(x.data(), out.data(), batch, team);
        expect(batch == 0 || out == one_by_one(p, x, batch), isa, "a chain gives what its convolutions give");
    }
    check_forged(isa, p, type);
    for (int64_t batch : {1, 2, 3, 7, 15, 64, 100, 1 << 20})
        for (int64_t team : {1, 2, 3, 8, 64})
            for (int64_t bytes : {1, 25000, 1 << 22})
                for (double ns : {10.0, 38000.0, 1e8}) check_split(batch, team, bytes, ns);
}
