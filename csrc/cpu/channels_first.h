// Convolutions compute in NHWC. For an NCHW output they write into a buffer, which is transposed a chunk of images at a time; an
// NCHW residual takes the same way back.
#pragma once

#include "fastcompress/epilogue.h"
#include "fastcompress/w8a8.h"
#include "parallel.h"
#include "workspace.h"

namespace fastcompress {

class ChannelsFirst {
   public:
    // `pixels`: of one output image.
    ChannelsFirst(const ConvCall& call, int64_t channels, int64_t pixels);

    // Workspace for `images` images: nothing when the call is channels-last.
    size_t bytes(int64_t images) const;
    void take(Workspace& workspace, int64_t images);

    bool has_residual() const { return needed_ && call_.out.residual; }
    // Residuals of images first .. to the buffer; every thread of the team calls it.
    void load_residual(int64_t first, int64_t images, const Team& team) const;

    // `e` for the chunk that begins with image `first`, whose rows are numbered from 0.
    Epilogue chunk_epilogue(Epilogue e, int64_t first) const;

    // Tasks that bring a chunk from the buffer to the output.
    bool needed() const { return needed_; }
    int64_t store_tasks(int64_t images) const;
    void store(int64_t first, int64_t task) const;

   private:
    int64_t out_bytes(int64_t images) const;
    int64_t residual_bytes(int64_t images) const;

    const ConvCall& call_;
    int64_t channels_, pixels_;
    bool needed_;
    uint8_t *out_ = nullptr, *residual_ = nullptr;
};

}  // namespace fastcompress
