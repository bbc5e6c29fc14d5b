// Int8 convolutions that follow each other, as one call: a thread takes whole images through all of them, so that what lies
// between stays in its own cache. Images that are too few for the threads go through the convolutions one after the other, each
// shared by all threads.
//
// The program of a chain is one buffer:
//
//     | ChainHeader 64 | ChainStep 128, one a convolution | packed weights (blob.h), each at a multiple of 64 bytes |
//
// Step i makes value i from the values before it; the last one is the output. Values lie channels-last. Written by
// fastcompress/ops/chain_program.py.
#pragma once

#include <vector>

#include "fastcompress/w8a8.h"

namespace fastcompress {

constexpr uint32_t kChainMagic = 0x48434346u;  // "FCCH"
constexpr int32_t kChainVersion = 1;
constexpr int64_t kMaxChainSteps = 1024;
constexpr int64_t kChainInput = -1, kNoValue = -2;

struct ChainHeader {
    uint32_t magic;
    int32_t version;
    int64_t total_bytes, steps;
    uint8_t reserved[32];
    uint64_t
        checksum;  // of the header before it, then of the steps (blob_checksum of all these bytes, this field left out)
};
static_assert(sizeof(ChainHeader) == 64, "the header is part of the format");

struct ChainStep {
    int64_t blob_offset, blob_bytes;
    int64_t input, residual;  // a step before this one, kChainInput, or (residual) kNoValue
    int64_t stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dilation_h, dilation_w;
    int32_t out_dtype;
    float out_scale;  // u8 and s8
    int32_t out_zero_point;
    uint8_t reserved[20];
};
static_assert(sizeof(ChainStep) == 128, "steps are part of the format");

struct ImageType {
    int64_t channels = 0, height = 0, width = 0;
    DType dtype = DType::f32;
    int64_t bytes() const { return channels * height * width * dtype_bytes(dtype); }
};

class Chain {
   public:
    // Opens a program for images of a type. Throws BlobError (bad program), std::invalid_argument (bad images). `program` must
    // outlive it.
    Chain(const uint8_t* program, int64_t bytes, const ImageType& input);

    const ImageType& output() const { return steps_.back().type; }

    // x, out: [batch, height, width, channels].
    void run(const void* x, void* out, int64_t batch, const Threads& threads) const;

   private:
    struct Step {
        const BlobHeader* blob;
        const ChainStep* data;
        ConvCall call;     // all but pointers, batch and threads
        ImageType type;    // of what it gives
        int64_t last_use;  // the last step that reads it
        int buffer;        // where it lies while it is needed; the last step's lies in the caller's memory
    };
    void open_step(const uint8_t* program, const ChainStep& data);
    void assign_buffers();
    const ImageType& type_of(int64_t value) const;
    double image_ns() const;
    int64_t value_bytes(int64_t images) const;
    void run_pass(const uint8_t* x, uint8_t* out, int64_t batch, const Threads& threads) const;
    void run_images(const uint8_t* x, uint8_t* out, int64_t images, const Threads& threads, uint8_t* values) const;

    ImageType input_;
    std::vector<Step> steps_;
    std::vector<int64_t> buffer_bytes_;  // of one image
};

}  // namespace fastcompress
