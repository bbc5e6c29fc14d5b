#include "fastcompress/chain.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "chain_split.h"
#include "dispatch.h"
#include "gemm_driver.h"
#include "pack/blob_header.h"
#include "parallel.h"
#include "sparse_driver.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr double kMaxElements = 1e12;   // of an image: far above memory, and bytes of so many fit int64
constexpr int64_t kMaxBatch = 1 << 20;  // of a pass; more take several

[[noreturn]] void corrupt(const std::string& what) {
    throw BlobError("packed weights: chain: " + what + "; freeze the model again");
}

[[noreturn]] void refuse(size_t step, const std::string& what) {
    throw std::invalid_argument("conv2d_chain: convolution " + std::to_string(step) + " " + what);
}

// Of the header up to its checksum, and of the steps.
uint64_t program_checksum(const uint8_t* program, int64_t steps) {
    const uint64_t first = blob_checksum(program, sizeof(ChainHeader) - sizeof(uint64_t));
    const uint64_t rest = blob_checksum(program + sizeof(ChainHeader), steps * static_cast<int64_t>(sizeof(ChainStep)));
    return first ^ (rest << 1 | rest >> 63);
}

const BlobHeader& open_weights(const uint8_t* blob, int64_t bytes, int64_t step) {
    try {
        return open_blob(blob, bytes);
    } catch (const BlobError& error) {  // its remedies are a layer's
        const std::string text = error.what();
        corrupt("convolution " + std::to_string(step) + ": " + text.substr(0, text.find(';')));
    }
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

bool is_too_large(const ImageType& type) {
    return !(static_cast<double>(type.height) * static_cast<double>(type.width) * static_cast<double>(type.channels) <
             kMaxElements);
}

// Values of the images that are in a chain. Not Workspace::local(), which the convolutions use meanwhile.
Workspace& value_memory() {
    thread_local Workspace workspace;
    return workspace;
}

}  // namespace

Chain::Chain(const uint8_t* program, int64_t bytes, const ImageType& input) : input_(input) {
    const ChainHeader& header = open_header(program, bytes);
    const auto* data = reinterpret_cast<const ChainStep*>(program + sizeof(ChainHeader));
    if (is_too_large(input)) throw std::invalid_argument("conv2d_chain: an image is too large to address");
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
    const BlobHeader& blob = open_weights(program + data.blob_offset, data.blob_bytes, index);
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
    if (step.type.height < 1 || step.type.width < 1)
        refuse(steps_.size(), "has a kernel that is larger than its padded input");
    if (is_too_large(step.type)) refuse(steps_.size(), "has an output that is too large to address; check its padding");
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

// Roughly what one thread does for an image, weights not counted.
double Chain::image_ns() const {
    const KernelTable& table = current_table();
    double ns = 0;
    for (const Step& step : steps_) {
        const BlobHeader& b = *step.blob;
        const double pixels = static_cast<double>(step.type.height) * static_cast<double>(step.type.width);
        Work one;  // of a pixel
        one.multiply_adds =
            is_block_sparse(b) ? sparse_work(b, 1).multiply_adds : b.panels * kPanel * panel_sets(b) * b.k_pad;
        one.outputs = b.out_channels;
        ns += pixels * estimated_ns(table, one);
    }
    return ns;
}

int64_t Chain::value_bytes(int64_t images) const {
    int64_t total = 0;
    for (int64_t bytes : buffer_bytes_)
        total += static_cast<int64_t>(Workspace::size(static_cast<size_t>(bytes * images)));
    return total;
}

void Chain::run_images(const uint8_t* x, uint8_t* out, int64_t images, const Threads& threads, uint8_t* values) const {
    std::vector<uint8_t*> buffers;
    buffers.reserve(buffer_bytes_.size());
    for (int64_t bytes : buffer_bytes_) {
        buffers.push_back(values);
        values += Workspace::size(static_cast<size_t>(bytes * images));
    }
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
}

void Chain::run(const void* x, void* out, int64_t batch, const Threads& threads) const {
    const auto* from = static_cast<const uint8_t*>(x);
    auto* to = static_cast<uint8_t*>(out);
    for (int64_t first = 0; first < batch; first += kMaxBatch)
        run_pass(from + first * input_.bytes(), to + first * output().bytes(), std::min(kMaxBatch, batch - first),
                 threads);
}

void Chain::run_pass(const uint8_t* x, uint8_t* out, int64_t batch, const Threads& threads) const {
    Work work;
    for (const Step& step : steps_) work.weight_bytes += step.data->blob_bytes;
    work.inputs = batch * input_.channels * input_.height * input_.width;
    const double ns = image_ns();
    const int team = worthwhile_threads(current_table(), threads, work, static_cast<double>(batch) * ns);
    int64_t image_bytes = input_.bytes() + output().bytes();
    for (int64_t bytes : buffer_bytes_) image_bytes += bytes;
    const ChainSplit split = split_images(batch, team, image_bytes, ns, static_cast<int64_t>(steps_.size()));
    const int64_t rest = batch - split.by_images, largest = split.groups ? ceil_div(split.by_images, split.groups) : 0;
    const int64_t group_bytes = value_bytes(largest);
    Workspace& memory = value_memory();
    memory.reset(Workspace::size(static_cast<size_t>(std::max(group_bytes * team, value_bytes(rest)))));
    auto* values = memory.take_array<uint8_t>(std::max(group_bytes * team, value_bytes(rest)));
    FirstError error;
    if (split.groups > 0) {
        TaskQueue queue(split.groups, team, 1);
        parallel(team, [&](Team& member) {
            for (int64_t t; queue.next(member, &t);) {
                const int64_t begin = split.by_images * t / split.groups,
                              end = split.by_images * (t + 1) / split.groups;
                error.guard([&] {
                    run_images(x + begin * input_.bytes(), out + begin * output().bytes(), end - begin, {1, 0},
                               values + group_bytes * member.thread());
                });
            }
        });
    }
    if (rest > 0)
        error.guard([&] {
            run_images(x + split.by_images * input_.bytes(), out + split.by_images * output().bytes(), rest, threads,
                       values);
        });
    memory.trim();
    error.rethrow();
}

}  // namespace fastcompress
