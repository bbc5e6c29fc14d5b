// conv2d_w8a8: unpack four-bit weights; then, a chunk of images at a time, (1) quantize them into a padded NHWC image, (2) for kernels that need plain
// matrices, gather the taps of each pixel, (3) GEMM or depthwise rows with the epilogue, (4) for NCHW output, transpose.
// All in one parallel region with barriers between the steps.
#include <algorithm>
#include <cstring>
#include <deque>
#include <stdexcept>

#include "channels_first.h"
#include "conv2d_bsr.h"
#include "conv2d_geometry.h"
#include "dispatch.h"
#include "epilogue_setup.h"
#include "gemm_driver.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;  // quantized image (or gathered matrix) of a chunk: fits L2
constexpr int64_t kDepthwiseCost = 4;
constexpr double kUnpackByteNs = 0.02;          // of one core, per byte of an unpacked panel
constexpr int64_t kDepthwisePixels = 8;         // the kernel's largest tile
constexpr int64_t kDepthwiseScratch = 1 << 13;  // accumulators of one run of pixels: fits L1

// Taps of a pixel are short runs: a call of memcpy for each costs more than the copy.
inline void copy_run(uint8_t* to, const uint8_t* from, int64_t bytes) {
    constexpr int64_t kWord = 16;
    int64_t i = 0;
    for (; i + kWord <= bytes; i += kWord) std::memcpy(to + i, from + i, kWord);  // one load, one store
    for (; i + 4 <= bytes; i += 4) std::memcpy(to + i, from + i, 4);              // channels are padded to fours
}

class Conv {
   public:
    Conv(const BlobHeader& blob, const ConvCall& call)
        : blob_(blob),
          call_(call),
          table_(table_for(static_cast<Isa>(blob.isa))),
          g_(conv_geometry(blob, call)),
          channels_first_(call, blob.out_channels, g_.pixels()) {
        depthwise_ = blob.family == static_cast<int32_t>(Family::depthwise);
        gather_ = !depthwise_ && table_.uniform_rows && !g_.uniform;
        channels_ = blob.in_channels * blob.groups;
        source_ = {call.x,
                   call.x_dtype,
                   call.channels_last,
                   channels_,
                   call.height,
                   call.width,
                   g_.source_step_h,
                   g_.source_step_w,
                   1.0f / blob.input_scale,
                   blob.input_zero_point};
        const ImageLayout& l = g_.image;
        // The caller's own u8 image serves when nothing needs to be added to it.
        in_place_ = call.x_dtype == DType::u8 && call.channels_last && l.pitch == channels_ &&
                    l.height == call.height && l.width == call.width && (!g_.uniform || l.pitch == blob.k_pad);
        const int64_t per_image = gather_ ? g_.pixels() * blob.k_pad * blob.groups : l.image_bytes();
        chunk_ = std::min(call.batch, std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, per_image)));
        threads_ =
            worthwhile_threads(table_, call.threads, work(), kUnpackByteNs * static_cast<double>(unpacked_bytes()));
        rows_per_task_ = image_rows_per_task(source_, l);
        tasks_per_image_ = ceil_div(l.height, rows_per_task_);
        reserve();
    }

    void run() {
        const Epilogue epilogue = make_epilogue(blob_, call_.out, "conv2d_w8a8");
        for (int64_t first = 0; first < call_.batch; first += chunk_) queues_.emplace_back(*this, first);
        TaskQueue unpack(has_packed_panels(blob_) ? blob_.groups * blob_.panels : 0, threads_);
        parallel(threads_, [&](Team& team) {
            for (int64_t t; unpack.next(team, &t);) unpack_panel(t);  // the first barrier is before the products
            for (Chunk& chunk : queues_) run_chunk(chunk, epilogue, team);
        });
        Workspace::local().trim();
    }

   private:
    // The work of a chunk of images, handed out step by step.
    struct Chunk {
        Chunk(const Conv& c, int64_t first_image)
            : first(first_image),
              images(std::min(c.chunk_, c.call_.batch - first_image)),
              plan(plan_gemm(c.table_, images * c.g_.pixels(), c.blob_.out_channels / c.blob_.groups, c.blob_.k_pad,
                             c.threads_)),
              build(c.in_place_ ? 0 : images * c.tasks_per_image_, c.threads_),
              offsets(images * c.g_.out_h, c.threads_),
              compute(c.depthwise_ ? images * c.g_.out_h : plan.tasks() * c.blob_.groups, c.threads_),
              finish(c.channels_first_.store_tasks(images), c.threads_) {}
        int64_t first, images;
        GemmPlan plan;
        TaskQueue build, offsets, compute, finish;
    };

    Work work() const {
        const int64_t columns = blob_.panels * kPanel * blob_.groups;
        Work w;
        w.outputs = call_.batch * g_.pixels() * blob_.out_channels;
        w.multiply_adds = call_.batch * g_.pixels() * columns * blob_.k_pad;
        // Depthwise tiles gather their operands and keep the multipliers waiting.
        if (depthwise_) w.multiply_adds = kDepthwiseCost * w.outputs * blob_.k_pad;
        w.weight_bytes = blob_.groups * blob_.panels * panel_bytes(blob_);
        w.inputs = in_place_ ? 0 : call_.batch * call_.height * call_.width * channels_;
        return w;
    }

    void reserve() {
        const ImageLayout& l = g_.image;
        const int64_t pixels = chunk_ * g_.pixels();
        const int64_t image = in_place_ ? 0 : chunk_ * l.image_bytes() + 64;
        const int64_t gathered = gather_ ? pixels * blob_.k_pad * blob_.groups : 0;
        const int64_t offsets = needs_offsets() ? pixels : 0;
        run_pixels_ = std::min(g_.out_w, round_up(kDepthwiseScratch / 4 / l.pitch + 1, kDepthwisePixels));
        per_thread_ =
            round_up(std::max({static_cast<int64_t>(kScratchBytes), image_scratch_bytes(source_, rows_per_task_),
                               depthwise_ ? run_pixels_ * l.pitch * 4 : 0}),
                     64);
        Workspace& w = Workspace::local();
        auto size = [](int64_t bytes) { return Workspace::size(static_cast<size_t>(bytes)); };
        w.reset(size(unpacked_bytes()) + size(image) + size(gathered) + size(offsets * 8) +
                size(per_thread_ * threads_) + channels_first_.bytes(chunk_));
        unpacked_ = w.take_array<int8_t>(unpacked_bytes());
        image_ = w.take_array<uint8_t>(image);
        gathered_ = w.take_array<uint8_t>(gathered);
        offsets_ = w.take_array<int64_t>(offsets);
        scratch_ = w.take_array<uint8_t>(per_thread_ * threads_);
        channels_first_.take(w, chunk_);
    }

    int64_t unpacked_bytes() const {
        return has_packed_panels(blob_) ? blob_.groups * blob_.panels * blob_.k_pad * kPanel : 0;
    }

    void unpack_panel(int64_t panel) {
        table_.unpack_nibbles(reinterpret_cast<const uint8_t*>(blob_panels(blob_)) + panel * panel_bytes(blob_),
                              blob_.k_pad / 4, unpacked_ + panel * blob_.k_pad * kPanel);
    }

    bool needs_offsets() const { return !depthwise_ && !gather_ && !g_.uniform; }

    const uint8_t* images(const Chunk& chunk) const {
        return in_place_ ? static_cast<const uint8_t*>(call_.x) + chunk.first * g_.image.image_bytes() : image_;
    }

    void run_chunk(Chunk& chunk, const Epilogue& epilogue, Team& team) {
        uint8_t* scratch = scratch_ + per_thread_ * team.thread();
        for (int64_t t; chunk.build.next(team, &t);) build_rows(chunk, t, scratch);
        if (gather_) team.barrier();  // gathering reads the image; plain offsets do not
        if (gather_ || needs_offsets())
            for (int64_t t; chunk.offsets.next(team, &t);) prepare_row(chunk, t);
        if (channels_first_.has_residual()) channels_first_.load_residual(chunk.first, chunk.images, team);
        team.barrier();
        const Epilogue local = channels_first_.chunk_epilogue(epilogue, chunk.first);
        for (int64_t t; chunk.compute.next(team, &t);) {
            if (depthwise_) {
                depthwise_row(chunk, local, t, reinterpret_cast<int32_t*>(scratch));
            } else {
                gemm_task(chunk, local, t, reinterpret_cast<int32_t*>(scratch));
            }
        }
        team.barrier();
        if (channels_first_.needed()) {
            for (int64_t t; chunk.finish.next(team, &t);) channels_first_.store(chunk.first, t);
            team.barrier();
        }
    }

    void build_rows(const Chunk& chunk, int64_t t, uint8_t* scratch) {
        const int64_t image = t / tasks_per_image_, y0 = t % tasks_per_image_ * rows_per_task_;
        build_image_rows(table_, source_, g_.image, chunk.first + image, y0,
                         std::min(g_.image.height, y0 + rows_per_task_),
                         image_ + (image * g_.image.height + y0) * g_.image.row_bytes(), scratch);
    }

    // Output row `t` of the chunk: where its pixels' taps begin, or the taps themselves.
    void prepare_row(const Chunk& chunk, int64_t t) {
        const int64_t image = t / g_.out_h, y = t % g_.out_h;
        const int64_t base = image * g_.image.image_bytes();
        for (int64_t x = 0; x < g_.out_w; ++x) {
            const int64_t pixel = t * g_.out_w + x;
            const int64_t offset = base + g_.pixel_offset(y, x);
            if (!gather_) {
                offsets_[pixel] = offset;
                continue;
            }
            for (int64_t g = 0; g < blob_.groups; ++g) {
                uint8_t* to = gathered_ + (g * chunk.images * g_.pixels() + pixel) * blob_.k_pad;
                uint8_t* const end = to + blob_.k_pad;
                const uint8_t* from = images(chunk) + offset + g * blob_.channel_pad;
                for (int64_t segment : g_.segments) {
                    copy_run(to, from + segment, g_.segment_bytes);
                    to += g_.segment_bytes;
                }
                std::memset(to, 0, static_cast<size_t>(end - to));
            }
        }
    }

    void gemm_task(const Chunk& chunk, Epilogue e, int64_t t, int32_t* scratch) const {
        const int64_t group = t / chunk.plan.tasks();
        const int64_t per_group = blob_.out_channels / blob_.groups;
        e.weight_scale += group * blob_.panels * kPanel;
        e.column_sum += group * blob_.panels * kPanel;
        if (e.bias) e.bias += group * blob_.panels * kPanel;
        e.out = static_cast<uint8_t*>(e.out) + group * per_group * dtype_bytes(e.out_dtype);
        if (e.residual)
            e.residual = static_cast<const uint8_t*>(e.residual) + group * per_group * dtype_bytes(e.residual_dtype);
        GemmProblem p{};
        p.table = &table_;
        p.epilogue = e;
        p.rows = chunk.images * g_.pixels();
        p.columns = per_group;
        p.panel_stride = blob_.k_pad * kPanel;
        p.b = (has_packed_panels(blob_) ? unpacked_ : blob_panels(blob_)) + group * blob_.panels * p.panel_stride;
        if (gather_ || g_.uniform) {
            p.a = gather_ ? gathered_ + group * p.rows * blob_.k_pad : images(chunk);
            p.a_stride = gather_ ? blob_.k_pad : g_.image.pitch;
            p.segments = 1;
            p.segment_quads = blob_.k_pad / 4;
        } else {
            p.a = images(chunk) + group * blob_.channel_pad;
            p.row_offset = offsets_;
            p.segment_offset = g_.segments.data();
            p.segments = static_cast<int64_t>(g_.segments.size());
            p.segment_quads = g_.segment_bytes / 4;
        }
        run_gemm_task(p, chunk.plan, t % chunk.plan.tasks(), scratch);
    }

    void depthwise_row(const Chunk& chunk, const Epilogue& e, int64_t t, int32_t* scratch) const {
        const int64_t image = t / g_.out_h, y = t % g_.out_h;
        DepthwiseRow row{};
        row.pixel_step = g_.step_w * g_.image.pitch;
        row.column_step = call_.dilation_w * g_.image.pitch;
        row.tap_offset = g_.segments.data();
        row.kernel_w = blob_.kernel_w;
        row.column_quads = ceil_div(blob_.kernel_h, 4);
        row.w = blob_panels(blob_);
        row.channels = g_.image.pitch;
        row.acc = scratch;
        row.acc_ld = g_.image.pitch;
        for (int64_t x = 0; x < g_.out_w; x += run_pixels_) {
            row.pixels = std::min(run_pixels_, g_.out_w - x);
            row.a = images(chunk) + image * g_.image.image_bytes() + g_.pixel_offset(y, x);
            table_.depthwise(row);
            table_.epilogue(e, scratch, row.acc_ld, t * g_.out_w + x, row.pixels, 0, blob_.out_channels);
        }
    }

    const BlobHeader& blob_;
    const ConvCall& call_;
    const KernelTable& table_;
    ConvGeometry g_;
    ChannelsFirst channels_first_;
    ImageSource source_{};
    bool depthwise_ = false, gather_ = false, in_place_ = false;
    int64_t channels_ = 0, chunk_ = 1, rows_per_task_ = 1, tasks_per_image_ = 1, run_pixels_ = 1, per_thread_ = 0;
    int threads_ = 1;
    int8_t* unpacked_ = nullptr;
    uint8_t *image_ = nullptr, *gathered_ = nullptr, *scratch_ = nullptr;
    int64_t* offsets_ = nullptr;
    std::deque<Chunk> queues_;
};

}  // namespace

void conv2d_w8a8(const BlobHeader& blob, const ConvCall& call) {
    if (blob.weight_rank != 4)
        throw std::invalid_argument("conv2d_w8a8: the packed weights belong to a linear layer; use linear_w8a8");
    if (call.x_dtype == DType::s8 || call.x_dtype == DType::i32)
        throw std::invalid_argument("conv2d_w8a8: input must be f32, bf16, f16 or u8");
    if (has_real_weights(blob))
        throw std::invalid_argument("conv2d_w8a8: the packed weights are floats; use conv2d_bsr");
    if (call.batch == 0) return;
    if (is_block_sparse(blob)) return run_conv2d_bsr(blob, call, "conv2d_w8a8");
    Conv(blob, call).run();
}

}  // namespace fastcompress
