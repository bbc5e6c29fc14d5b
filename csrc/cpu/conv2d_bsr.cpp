// Block-sparse convolutions: a chunk of images at a time, (1) bring them into planes (planes.h), (2) multiply tiles of output pixels
// with the blocks, one offset a block, (3) for NCHW output, transpose. All in one parallel region with barriers between the steps.
#include "conv2d_bsr.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <vector>

#include "channels_first.h"
#include "conv2d_geometry.h"
#include "epilogue_setup.h"
#include "fastcompress/bsr.h"
#include "parallel.h"
#include "planes.h"
#include "sparse_driver.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;  // planes of a chunk: fit L2
constexpr int64_t kTasksPerThread = 4;

class BsrConv {
   public:
    BsrConv(const BlobHeader& blob, const ConvCall& call, const ConvGeometry& geometry)
        : blob_(blob),
          call_(call),
          table_(table_for(static_cast<Isa>(blob.isa))),
          kernel_(sparse_kernel(table_, blob)),
          layout_(plane_layout(blob, call, geometry.out_h, geometry.out_w)),
          builder_(table_, blob, call, layout_),
          channels_first_(call, blob.out_channels, geometry.pixels()) {
        chunk_ = std::clamp<int64_t>(kChunkBytes / layout_.bytes(1), 1, call.batch);
        Work work = sparse_work(blob, call.batch * geometry.pixels());
        work.inputs = 2 * call.batch * call.height * call.width * blob.in_channels;  // prepared and interleaved
        work.outputs = call.batch * geometry.pixels() * blob.out_channels;
        threads_ = worthwhile_threads(table_, call.threads, work);
        reserve();
    }

    void run(const char* op) {
        const Epilogue epilogue = make_epilogue(blob_, call_.out, op);
        for (int64_t first = 0; first < call_.batch; first += chunk_) queues_.emplace_back(*this, first);
        parallel(threads_, [&](Team& team) {
            for (Chunk& chunk : queues_) run_chunk(chunk, epilogue, team);
        });
        Workspace::local().trim();
    }

   private:
    // The work of a chunk of images, handed out step by step.
    struct Chunk {
        Chunk(const BsrConv& c, int64_t first_image)
            : first(first_image),
              images(std::min(c.chunk_, c.call_.batch - first_image)),
              positions(c.layout_.positions(images)),
              width(tile_width(c.kernel_, positions, c.threads_)),
              tiles(ceil_div(positions, width)),
              offsets(plane_offsets(c.blob_, c.call_, c.layout_, images)),
              cuts(cut_panels(c.blob_, c.threads_ == 1
                                           ? 1
                                           : std::clamp<int64_t>(ceil_div(c.threads_ * kTasksPerThread, tiles), 1,
                                                                 c.blob_.panels))),
              build(c.builder_.tasks(images), c.threads_),
              multiply(tiles * runs(), c.threads_),
              store(c.channels_first_.store_tasks(images), c.threads_) {}
        int64_t runs() const { return static_cast<int64_t>(cuts.size()) - 1; }
        int64_t first, images, positions, width, tiles;
        std::vector<int64_t> offsets, cuts;
        TaskQueue build, multiply, store;
    };

    void reserve() {
        per_thread_ = round_up(std::max(static_cast<int64_t>(kSparseScratchBytes), builder_.scratch_bytes()), 64);
        Workspace& w = Workspace::local();
        // The last tile reads beyond the last pixel.
        const int64_t planes = layout_.bytes(chunk_) + 4 * kWidestTile;
        w.reset(Workspace::size(static_cast<size_t>(planes)) +
                Workspace::size(static_cast<size_t>(per_thread_ * threads_)) + channels_first_.bytes(chunk_));
        planes_ = w.take_array<uint8_t>(planes);
        scratch_ = w.take_array<uint8_t>(per_thread_ * threads_);
        channels_first_.take(w, chunk_);
    }

    void run_chunk(Chunk& chunk, const Epilogue& epilogue, Team& team) {
        uint8_t* scratch = scratch_ + per_thread_ * team.thread();
        for (int64_t t; chunk.build.next(team, &t);) builder_.build(chunk.first, chunk.images, t, planes_, scratch);
        if (channels_first_.has_residual()) channels_first_.load_residual(chunk.first, chunk.images, team);
        team.barrier();
        const Epilogue local = channels_first_.chunk_epilogue(epilogue, chunk.first);
        for (int64_t t; chunk.multiply.next(team, &t);)
            multiply(chunk, local, t / chunk.runs(), t % chunk.runs(), reinterpret_cast<int32_t*>(scratch));
        team.barrier();
        if (channels_first_.needed()) {
            for (int64_t t; chunk.store.next(team, &t);) channels_first_.store(chunk.first, t);
            team.barrier();
        }
    }

    // Which positions of a tile are output pixels, and of which rows.
    int64_t find_runs(const Chunk& chunk, int64_t begin, int64_t end, RowRun* runs) const {
        int64_t count = 0;
        for (int64_t position = begin; position < end;) {
            const int64_t row = position / layout_.pitch, x = position % layout_.pitch;
            const int64_t image = std::min(row / layout_.image_rows, chunk.images - 1);
            const int64_t y = row - image * layout_.image_rows;
            const int64_t next = std::min(end, (row + 1) * layout_.pitch);
            if (y < layout_.out_h && x < layout_.out_w) {
                const RowRun run{position - begin, (image * layout_.out_h + y) * layout_.out_w + x,
                                 std::min(next, position + layout_.out_w - x) - position};
                RowRun* last = count > 0 ? runs + count - 1 : nullptr;
                if (last && last->token + last->count == run.token && last->row + last->count == run.row) {
                    last->count += run.count;
                } else {
                    runs[count++] = run;
                }
            }
            position = next;
        }
        return count;
    }

    void multiply(const Chunk& chunk, const Epilogue& epilogue, int64_t tile, int64_t part, int32_t* c) const {
        const int64_t begin = tile * chunk.width, end = std::min(chunk.positions, begin + chunk.width);
        RowRun runs[kWidestTile];
        SparseProduct s = sparse_product(table_, blob_, epilogue);
        s.a = planes_ + 4 * begin;
        s.width = chunk.width;
        s.part_step = 4 * layout_.phases() * layout_.plane_words(chunk.images);
        s.column_offset = chunk.offsets.data();
        s.panel0 = chunk.cuts[static_cast<size_t>(part)];
        s.panel1 = chunk.cuts[static_cast<size_t>(part) + 1];
        s.c = c;
        s.runs = runs;
        s.run_count = find_runs(chunk, begin, end, runs);
        kernel_.tile(s);
    }

    const BlobHeader& blob_;
    const ConvCall& call_;
    const KernelTable& table_;
    const SparseKernel& kernel_;
    const PlaneLayout layout_;
    const PlaneBuilder builder_;
    ChannelsFirst channels_first_;
    int threads_ = 1;
    int64_t chunk_ = 1, per_thread_ = 0;
    uint8_t *planes_ = nullptr, *scratch_ = nullptr;
    std::deque<Chunk> queues_;
};

}  // namespace

void run_conv2d_bsr(const BlobHeader& blob, const ConvCall& call, const char* op) {
    BsrConv(blob, call, conv_geometry(blob, call)).run(op);
}

void conv2d_bsr(const BlobHeader& blob, const ConvCall& call) {
    if (!is_block_sparse(blob) || is_linear(blob) || !has_real_weights(blob))
        throw std::invalid_argument("conv2d_bsr: the packed weights are not those of a block-sparse float convolution");
    if (call.x_dtype != DType::f32 && call.x_dtype != DType::bf16 && call.x_dtype != DType::f16)
        throw std::invalid_argument("conv2d_bsr: input must be f32, bf16 or f16");
    if (call.batch == 0) return;
    run_conv2d_bsr(blob, call, "conv2d_bsr");
}

}  // namespace fastcompress
