// Opening a chain's program: every field is checked, and shapes follow from the images.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "fastcompress/chain.h"
#include "pack/blob_header.h"

namespace fastcompress {
namespace {

constexpr double kMaxElements = 1e12;  // of an image: far above memory, and bytes of so many fit int64

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

bool is_too_large(const ImageType& type) {
    return !(static_cast<double>(type.height) * static_cast<double>(type.width) * static_cast<double>(type.channels) <
             kMaxElements);
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
    if (is_linear(blob) || has_real_weights(blob) || is_four_bit(blob)) corrupt("a layer in it is no int8 convolution");
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

}  // namespace fastcompress
