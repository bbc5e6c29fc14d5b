#include "fastcompress/chain.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "conv2d_geometry.h"
#include "dispatch.h"
#include "gemm_driver.h"
#include "pack/blob_header.h"
#include "parallel.h"
#include "sparse_driver.h"
#include "workspace.h"

namespace fastcompress {
namespace {

// Images that a thread takes through the chain at once: what lies between two convolutions should stay in L2, but each
// convolution has some microseconds of its own a call.
constexpr int64_t kGroupBytes = 1 << 19;
constexpr int64_t kGroupImages = 8;
constexpr double kMaxElements = 1e12;  // of one image: far above memory, and products with a batch's size fit int64
constexpr int64_t kMaxBatch = 1 << 20;
// With so many images a thread, one more or less does not matter; with fewer, all threads share the odd ones.
constexpr int64_t kUnevenImages = 8;

[[noreturn]] void corrupt(const std::string& what) {
    throw BlobError("packed weights: chain: " + what + "; freeze the model again");
}

[[noreturn]] void refuse(size_t step, const std::string& what) {
    throw std::invalid_argument("conv2d_chain: convolution " + std::to_string(step) + " " + what);
}

uint64_t program_checksum(const uint8_t* program, int64_t steps) {
    constexpr int64_t kBefore = sizeof(ChainHeader) - sizeof(uint64_t);
    std::vector<uint8_t> text(static_cast<size_t>(kBefore + steps * static_cast<int64_t>(sizeof(ChainStep))));
    std::memcpy(text.data(), program, kBefore);
    std::memcpy(text.data() + kBefore, program + sizeof(ChainHeader), text.size() - kBefore);
    return blob_checksum(text.data(), static_cast<int64_t>(text.size()));
}

int64_t table_end(int64_t steps) {
    return static_cast<int64_t>(sizeof(ChainHeader)) + steps * static_cast<int64_t>(sizeof(ChainStep));
}

const ChainHeader& open_header(const uint8_t* program, int64_t bytes) {
    if (bytes < static_cast<int64_t>(sizeof(ChainHeader))) corrupt("shorter than its header");
    if (reinterpret_cast<uintptr_t>(program) % alignof(ChainHeader) != 0) corrupt("not aligned to 8 bytes");
    const auto& h = *reinterpret_cast<const ChainHeader*>(program);
    if (h.magic != kChainMagic) corrupt("not the program of a chain");
    if (h.version != kChainVersion) corrupt("layout version " + std::to_string(h.version) + " is not this build's");
    if (h.total_bytes != bytes || h.steps < 1 || h.steps > kMaxChainSteps || bytes < table_end(h.steps))
        corrupt("its sizes are not those of the buffer");
    if (h.checksum != program_checksum(program, h.steps)) corrupt("checksum mismatch");
    return h;
}

bool is_float(DType type) { return type == DType::f32 || type == DType::bf16 || type == DType::f16; }

// Keeps the first exception of a parallel region for the thread that started it.
class FirstError {
   public:
    template <class F>
    void guard(const F& f) {
        try {
            f();
        } catch (...) {
            if (!taken_.exchange(true)) error_ = std::current_exception();
        }
    }
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

   private:
    std::atomic<bool> taken_{false};
    std::exception_ptr error_;
};

// Values of this thread's images. Not Workspace::local(), which the convolutions use meanwhile.
Workspace& values() {
    thread_local Workspace workspace;
    return workspace;
}

}  // namespace

Chain::Chain(const uint8_t* program, int64_t bytes, const ImageType& input) : input_(input) {
    const ChainHeader& header = open_header(program, bytes);
    const auto* data = reinterpret_cast<const ChainStep*>(program + sizeof(ChainHeader));
    steps_.reserve(static_cast<size_t>(header.steps));
    for (int64_t i = 0; i < header.steps; ++i) {
        const ChainStep& s = data[i];
        if (s.blob_offset < table_end(header.steps) || s.blob_offset % 8 != 0 || s.blob_bytes < 0 ||
            s.blob_offset > bytes || s.blob_bytes > bytes - s.blob_offset)
            corrupt("weights outside of the buffer");
        open_step(program, s);
    }
    assign_buffers();
}

const ImageType& Chain::type_of(int64_t value) const {
    return value == kChainInput ? input_ : steps_[static_cast<size_t>(value)].type;
}

void Chain::open_step(const uint8_t* program, const ChainStep& data) {
    const auto index = static_cast<int64_t>(steps_.size());
    if (data.input < kChainInput || data.input >= index || data.residual < kNoValue || data.residual >= index)
        corrupt("a convolution reads what comes after it");
    if (data.out_dtype < 0 || data.out_dtype > static_cast<int32_t>(DType::s8)) corrupt("no such output type");
    const BlobHeader& blob = open_blob(program + data.blob_offset, data.blob_bytes);
    if (is_linear(blob) || has_real_weights(blob)) corrupt("a layer in it is no int8 convolution");
    const auto type = static_cast<DType>(data.out_dtype);
    const int32_t low = type == DType::s8 ? -128 : 0;
    if (!is_float(type) && (!(std::isnormal(data.out_scale) && data.out_scale > 0) || data.out_zero_point < low ||
                            data.out_zero_point > low + 255))
        corrupt("an output's scale or zero point is out of range");

    const ImageType& from = type_of(data.input);
    if (from.channels != blob.in_channels * blob.groups)
        refuse(steps_.size(), "takes " + std::to_string(blob.in_channels * blob.groups) + " channels, gets " +
                                  std::to_string(from.channels));
    if (from.dtype == DType::s8) refuse(steps_.size(), "gets int8 images, it takes floats or uint8");
    Step step{&blob, &data, {}, {}, index, -1};
    ConvCall& c = step.call;
    c.x_dtype = from.dtype;
    c.batch = 1;
    c.height = from.height;
    c.width = from.width;
    c.stride_h = data.stride_h;
    c.stride_w = data.stride_w;
    c.dilation_h = data.dilation_h;
    c.dilation_w = data.dilation_w;
    c.pad_top = data.pad_top;
    c.pad_bottom = data.pad_bottom;
    c.pad_left = data.pad_left;
    c.pad_right = data.pad_right;
    c.out.dtype = type;
    c.out.scale = data.out_scale;
    c.out.zero_point = data.out_zero_point;
    step.type = {blob.out_channels, conv_out_height(blob, c), conv_out_width(blob, c), type};
    if (step.type.height < 1 || step.type.width < 1) refuse(steps_.size(), "is larger than its padded input");
    if (!(static_cast<double>(step.type.height) * static_cast<double>(step.type.width) *
              static_cast<double>(step.type.channels) <
          kMaxElements))
        refuse(steps_.size(), "has an output that is too large to address; check its padding");
    if (data.residual != kNoValue) {
        const ImageType& added = type_of(data.residual);
        if (!is_float(added.dtype) || added.channels != step.type.channels || added.height != step.type.height ||
            added.width != step.type.width)
            refuse(steps_.size(), "adds a value of another shape, or one of integers");
        c.out.residual_dtype = added.dtype;
    }
    for (int64_t read : {data.input, data.residual})
        if (read >= 0) steps_[static_cast<size_t>(read)].last_use = index;
    steps_.push_back(step);
}

// A value's memory is free again behind the last step that reads it.
void Chain::assign_buffers() {
    std::vector<int64_t> busy_until;
    for (size_t i = 0; i + 1 < steps_.size(); ++i) {
        Step& step = steps_[i];
        const auto now = static_cast<int64_t>(i);
        const auto found = std::find_if(busy_until.begin(), busy_until.end(), [&](int64_t end) { return end < now; });
        step.buffer = static_cast<int>(found - busy_until.begin());
        if (found == busy_until.end()) {
            busy_until.push_back(0);
            buffer_bytes_.push_back(0);
        }
        const auto buffer = static_cast<size_t>(step.buffer);
        busy_until[buffer] = step.last_use;
        buffer_bytes_[buffer] = std::max(buffer_bytes_[buffer], step.type.bytes());
    }
}

int64_t Chain::image_bytes() const {
    int64_t sum = input_.bytes() + output().bytes();
    for (int64_t bytes : buffer_bytes_) sum += bytes;
    return sum;
}

int Chain::threads_for(int64_t batch, const Threads& threads) const {
    Work work;
    for (const Step& step : steps_) {
        const BlobHeader& b = *step.blob;
        const int64_t pixels = batch * step.type.height * step.type.width;
        work.multiply_adds += is_block_sparse(b) ? sparse_work(b, pixels).multiply_adds
                                                 : pixels * b.panels * kPanel * panel_sets(b) * b.k_pad;
        work.outputs += pixels * step.type.channels;
    }
    return worthwhile_threads(current_table(), threads, work);
}

void Chain::run_images(const uint8_t* x, uint8_t* out, int64_t images, const Threads& threads) const {
    Workspace& memory = values();
    size_t total = 0;
    for (int64_t bytes : buffer_bytes_) total += Workspace::size(static_cast<size_t>(bytes * images));
    memory.reset(total);
    std::vector<uint8_t*> buffers;
    buffers.reserve(buffer_bytes_.size());
    for (int64_t bytes : buffer_bytes_) buffers.push_back(memory.take_array<uint8_t>(bytes * images));
    const auto at = [&](int64_t value) -> const uint8_t* {
        return value == kChainInput ? x : buffers[static_cast<size_t>(steps_[static_cast<size_t>(value)].buffer)];
    };
    for (const Step& step : steps_) {
        ConvCall call = step.call;
        call.batch = images;
        call.threads = threads;
        call.x = at(step.data->input);
        if (step.data->residual != kNoValue) call.out.residual = at(step.data->residual);
        call.out.data = step.buffer < 0 ? out : buffers[static_cast<size_t>(step.buffer)];
        conv2d_w8a8(*step.blob, call);
    }
    memory.trim();
}

void Chain::run(const void* x, void* out, int64_t batch, const Threads& threads) const {
    if (batch > kMaxBatch) throw std::invalid_argument("conv2d_chain: more than 1048576 images; call it in parts");
    const auto* from = static_cast<const uint8_t*>(x);
    auto* to = static_cast<uint8_t*>(out);
    const int64_t in_bytes = input_.bytes(), out_bytes = output().bytes();
    const int64_t team = threads_for(batch, threads);
    const int64_t by_images = team == 1 || batch >= team * kUnevenImages ? batch : batch / team * team;
    if (by_images > 0) {
        const int64_t fit = std::max(kGroupImages, kGroupBytes / image_bytes());
        const int64_t groups = std::min(by_images, round_up(ceil_div(by_images, fit), team));
        TaskQueue queue(groups, static_cast<int>(team));
        FirstError error;
        parallel(static_cast<int>(team), [&](Team& member) {
            for (int64_t t; queue.next(member, &t);) {
                const int64_t begin = by_images * t / groups, end = by_images * (t + 1) / groups;
                error.guard([&] { run_images(from + begin * in_bytes, to + begin * out_bytes, end - begin, {1, 0}); });
            }
        });
        error.rethrow();
    }
    if (by_images < batch)
        run_images(from + by_images * in_bytes, to + by_images * out_bytes, batch - by_images, threads);
}

}  // namespace fastcompress
