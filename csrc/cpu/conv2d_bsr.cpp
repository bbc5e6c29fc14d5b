// Block-sparse convolutions. The output is cut into parts (some images, or some rows of one) and, where those are too few, runs of
// panels. A thread takes a part: it brings what the part needs of the input into planes of its own (planes.h), and multiplies tiles of
// output pixels with the blocks, one offset a block. For NCHW output a chunk of images is transposed at the end.
//
// Rows between two parts are thus prepared twice, and with runs of panels all of the input; planes that threads share would be read
// in no order out of each other's caches, which costs more (512 -> 512, 7x7, 3x3: 47 us on two threads, 37 on one).
//
// A 1x1 convolution of an NHWC image needs none of this: it is a linear layer on its pixels, with tiles of them in L1.
#include "conv2d_bsr.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <vector>

#include "channels_first.h"
#include "conv2d_geometry.h"
#include "epilogue_setup.h"
#include "fastcompress/bsr.h"
#include "linear_bsr.h"
#include "parallel.h"
#include "planes.h"
#include "sparse_driver.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kPartBytes = 1 << 20;   // planes of a part: fit L2
constexpr int64_t kChunkBytes = 1 << 22;  // NHWC output of a chunk of images
constexpr int64_t kHaloFraction = 2;      // a part has so many times the rows that it shares with its neighbour

// A part of the output and how its planes lie.
struct PlannedPart {
    PlannedPart(const BlobHeader& blob, const ConvCall& call, const ConvGeometry& g, const OutputPart& p)
        : part(p),
          layout(plane_layout(blob, call, g.out_h, g.out_w, p)),
          offsets(plane_offsets(blob, call, layout, p.images)) {}
    OutputPart part;
    PlaneLayout layout;
    std::vector<int64_t> offsets;
};

class BsrConv {
   public:
    BsrConv(const BlobHeader& blob, const ConvCall& call)
        : blob_(blob),
          call_(call),
          table_(table_for(static_cast<Isa>(blob.isa))),
          kernel_(sparse_kernel(table_, blob)),
          geometry_(conv_geometry(blob, call)),
          channels_first_(call, blob.out_channels, geometry_.pixels()) {
        Work work = sparse_work(blob, call.batch * geometry_.pixels());
        work.inputs = 2 * call.batch * call.height * call.width * blob.in_channels;  // prepared and interleaved
        work.outputs = call.batch * geometry_.pixels() * blob.out_channels;
        threads_ = worthwhile_threads(table_, call.threads, work);
        const int64_t image_bytes = geometry_.pixels() * blob.out_channels * dtype_bytes(call.out.dtype);
        chunk_ = call.channels_last ? call.batch : std::clamp<int64_t>(kChunkBytes / image_bytes, 1, call.batch);
        for (int64_t first = 0; first < call.batch; first += chunk_) chunks_.emplace_back(*this, first);
        reserve();
    }

    void run(const char* op) {
        const Epilogue epilogue = make_epilogue(blob_, call_.out, op);
        parallel(threads_, [&](Team& team) {
            for (Chunk& chunk : chunks_) run_chunk(chunk, epilogue, team);
        });
        Workspace::local().trim();
    }

   private:
    // The work of a chunk of images, handed out by parts and runs of panels.
    struct Chunk {
        Chunk(const BsrConv& c, int64_t first_image)
            : first(first_image),
              images(std::min(c.chunk_, c.call_.batch - first_image)),
              parts(c.cut_output(first_image, images)),
              cuts(cut_panels(c.blob_, ceil_div(c.threads_, static_cast<int64_t>(parts.size())))),
              tasks(static_cast<int64_t>(parts.size()) * runs(), c.threads_),
              store(c.channels_first_.store_tasks(images), c.threads_) {}
        int64_t runs() const { return static_cast<int64_t>(cuts.size()) - 1; }
        int64_t first, images;
        std::vector<PlannedPart> parts;
        std::vector<int64_t> cuts;
        TaskQueue tasks, store;
    };

    // Whole images while there are enough of them; else rows, as few as threads and cache ask for.
    std::vector<PlannedPart> cut_output(int64_t first, int64_t images) const {
        std::vector<PlannedPart> parts;
        const auto add = [&](const OutputPart& part) { parts.emplace_back(blob_, call_, geometry_, part); };
        const int64_t out_h = geometry_.out_h;
        const PlaneLayout whole = plane_layout(blob_, call_, out_h, geometry_.out_w, {first, 1, 0, out_h});
        const int64_t fit = std::max<int64_t>(1, kPartBytes / whole.bytes(1));
        if (images >= threads_ && whole.bytes(1) <= kPartBytes) {
            const int64_t wanted = std::max<int64_t>(threads_, ceil_div(images, fit));
            for (int64_t i = 0; i < wanted; ++i) {
                const int64_t begin = images * i / wanted, end = images * (i + 1) / wanted;
                if (end > begin) add({first + begin, end - begin, 0, out_h});
            }
            return parts;
        }
        const int64_t halo = whole.rows - out_h;
        const int64_t most = halo > 0 ? std::max<int64_t>(1, out_h / (kHaloFraction * halo)) : out_h;
        const int64_t wanted = std::max(ceil_div(threads_, images), ceil_div(whole.bytes(1), kPartBytes));
        const int64_t cuts = std::min(wanted, most);
        for (int64_t image = 0; image < images; ++image)
            for (int64_t i = 0; i < cuts; ++i) {
                const int64_t begin = out_h * i / cuts, end = out_h * (i + 1) / cuts;
                add({first + image, 1, begin, end - begin});
            }
        return parts;
    }

    void reserve() {
        int64_t planes = 0;
        for (const Chunk& chunk : chunks_)
            for (const PlannedPart& p : chunk.parts) planes = std::max(planes, p.layout.bytes(p.part.images));
        planes_bytes_ = round_up(planes + 4 * kWidestTile, 4096);  // the last tile reads beyond the last pixel
        scratch_bytes_ = round_up(
            std::max(static_cast<int64_t>(kSparseScratchBytes), PlaneBuilder::scratch_bytes(blob_, call_)), 64);
        Workspace& w = Workspace::local();
        w.reset(Workspace::size(static_cast<size_t>(planes_bytes_ * threads_)) +
                Workspace::size(static_cast<size_t>(scratch_bytes_ * threads_)) + channels_first_.bytes(chunk_));
        planes_ = w.take_array<uint8_t>(planes_bytes_ * threads_);
        scratch_ = w.take_array<uint8_t>(scratch_bytes_ * threads_);
        channels_first_.take(w, chunk_);
    }

    void run_chunk(Chunk& chunk, const Epilogue& epilogue, Team& team) {
        uint8_t* scratch = scratch_ + scratch_bytes_ * team.thread();
        uint8_t* planes = planes_ + planes_bytes_ * team.thread();
        if (channels_first_.has_residual()) {
            channels_first_.load_residual(chunk.first, chunk.images, team);
            team.barrier();
        }
        const Epilogue local = channels_first_.chunk_epilogue(epilogue, chunk.first);
        int64_t current = -1;
        for (int64_t t; chunk.tasks.next(team, &t);) {
            const PlannedPart& p = chunk.parts[static_cast<size_t>(t / chunk.runs())];
            if (current != t / chunk.runs())
                PlaneBuilder(table_, blob_, call_, p.layout, p.part).build(planes, scratch);
            current = t / chunk.runs();
            multiply(chunk, p, t % chunk.runs(), local, planes, reinterpret_cast<int32_t*>(scratch));
        }
        if (channels_first_.needed()) {
            team.barrier();
            for (int64_t t; chunk.store.next(team, &t);) channels_first_.store(chunk.first, t);
            team.barrier();
        }
    }

    // Which of a part's positions [begin, end) are output pixels, and of which rows of the chunk.
    int64_t find_runs(const Chunk& chunk, const PlannedPart& p, int64_t begin, int64_t end, RowRun* runs) const {
        const PlaneLayout& l = p.layout;
        int64_t count = 0;
        for (int64_t position = begin; position < end;) {
            const int64_t row = position / l.pitch, x = position % l.pitch;
            const int64_t image = std::min(row / l.image_rows, p.part.images - 1);
            const int64_t y = row - image * l.image_rows;
            const int64_t next = std::min(end, (row + 1) * l.pitch);
            if (y < l.out_h && x < l.out_w) {
                const int64_t in_chunk = (p.part.image - chunk.first + image) * geometry_.out_h + l.first_row + y;
                const RowRun run{position - begin, in_chunk * l.out_w + x,
                                 std::min(next, position + l.out_w - x) - position};
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

    // All tiles of a part times a run of panels.
    void multiply(const Chunk& chunk, const PlannedPart& p, int64_t run, const Epilogue& epilogue,
                  const uint8_t* planes, int32_t* c) const {
        const int64_t positions = p.layout.positions(p.part.images), width = tile_width(kernel_, positions, 1);
        RowRun runs[kWidestTile];
        SparseProduct s = sparse_product(table_, blob_, epilogue);
        s.width = width;
        s.part_step = 4 * p.layout.phases() * p.layout.plane_words(p.part.images);
        s.column_offset = p.offsets.data();
        s.panel0 = chunk.cuts[static_cast<size_t>(run)];
        s.panel1 = chunk.cuts[static_cast<size_t>(run) + 1];
        s.c = c;
        s.runs = runs;
        for (int64_t begin = 0; begin < positions; begin += width) {
            s.a = planes + 4 * begin;
            s.run_count = find_runs(chunk, p, begin, std::min(positions, begin + width), runs);
            kernel_.tile(s);
        }
    }

    const BlobHeader& blob_;
    const ConvCall& call_;
    const KernelTable& table_;
    const SparseKernel& kernel_;
    const ConvGeometry geometry_;
    ChannelsFirst channels_first_;
    int threads_ = 1;
    int64_t chunk_ = 1, planes_bytes_ = 0, scratch_bytes_ = 0;
    uint8_t *planes_ = nullptr, *scratch_ = nullptr;
    std::deque<Chunk> chunks_;
};

bool is_pointwise(const BlobHeader& blob, const ConvCall& call) {
    return call.channels_last && blob.kernel_h == 1 && blob.kernel_w == 1 && call.pad_top == 0 &&
           call.pad_bottom == 0 && call.pad_left == 0 && call.pad_right == 0;
}

void run_pointwise(const BlobHeader& blob, const ConvCall& call, const char* op) {
    const ConvGeometry g = conv_geometry(blob, call);
    const PixelRows pixels{call.height, call.width, g.out_h, g.out_w, call.stride_h, call.stride_w};
    LinearCall linear;
    linear.x = call.x;
    linear.x_dtype = call.x_dtype;
    linear.rows = call.batch * g.pixels();
    linear.out = call.out;
    linear.threads = call.threads;
    const bool real = has_real_weights(blob), all = call.stride_h == 1 && call.stride_w == 1;
    const bool in_place = all && call.x_dtype == (real ? DType::f32 : DType::u8);
    const int64_t k = blob.in_channels, stride = real ? k * static_cast<int64_t>(sizeof(float)) : k;
    run_linear_bsr({table_for(static_cast<Isa>(blob.isa)), blob, linear, InputMode::per_tensor, k, stride, in_place,
                    false, real, all ? nullptr : &pixels},
                   make_epilogue(blob, call.out, op));
}

}  // namespace

void run_conv2d_bsr(const BlobHeader& blob, const ConvCall& call, const char* op) {
    is_pointwise(blob, call) ? run_pointwise(blob, call, op) : BsrConv(blob, call).run(op);
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
