// Block-sparse linear. A thread takes runs of panels of a tile of tokens; for a new tile it quantizes the rows and
// interleaves them into a buffer of its own.
//
// A tile that several threads work on is thus made several times. Sharing one costs more: its lines are read in no order, each
// for the first time out of the other core's cache (16x4096x4096 at 95%: 57 us against 30).
#include "linear_bsr_w8a8.h"

#include <algorithm>
#include <vector>

#include "gemm_driver.h"
#include "linear_input.h"

namespace fastcompress {
namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kNarrow = 16;  // tokens of a tile that every ISA takes
// Wide tiles multiply faster and are transposed at the end of each panel: worth it from so many blocks a panel on.
constexpr int64_t kWideBlocks = 24;

class BsrLinear {
   public:
    BsrLinear(const LinearInput& input, const Epilogue& epilogue)
        : in_(input), epilogue_(epilogue), bsr_(*input.table.bsr), threads_(count_threads()) {
        interleaved_ = rows() > kBsrFewRows;
        const bool worth_transposing = input.blob.blocks >= kWideBlocks * input.blob.panels;
        width_ = rows() > kNarrow && worth_transposing ? bsr_.widest : kNarrow;
        tile_rows_ = interleaved_ ? width_ : kBsrFewRows;
        tiles_ = ceil_div(rows(), tile_rows_);
        cut_panels();
    }

    void run() {
        Workspace& w = Workspace::local();
        const size_t per_thread = in_.rows_bytes(tile_rows_) + Workspace::size(static_cast<size_t>(tile_bytes())) +
                                  Workspace::size(kScratchBytes);
        w.reset(per_thread * static_cast<size_t>(threads_));
        std::vector<Own> own(static_cast<size_t>(threads_));
        for (Own& each : own) {
            each.rows = in_.take_rows(w, tile_rows_);
            each.tile = w.take_array<uint8_t>(tile_bytes());
            each.c = w.take_array<int32_t>(kScratchElements);
        }
        TaskQueue tasks(tiles_ * runs(), threads_);
        parallel(threads_, [&](Team& team) {
            Own& mine = own[static_cast<size_t>(team.thread())];
            for (int64_t task; tasks.next(team, &task);) {
                if (mine.current != task / runs()) prepare(mine, task / runs());
                multiply(mine, task % runs());
            }
        });
        w.trim();
    }

   private:
    // What a thread has to itself.
    struct Own {
        Rows rows{};
        uint8_t* tile = nullptr;
        int32_t* c = nullptr;
        int64_t current = -1;  // the tile that is in `tile` (or whose rows are quantized)
    };

    int64_t rows() const { return in_.call.rows; }
    int64_t runs() const { return static_cast<int64_t>(cuts_.size()) - 1; }
    int64_t tile_bytes() const { return interleaved_ ? in_.k * width_ : 0; }

    int count_threads() const {
        Work work;
        work.weight_bytes = in_.blob.blocks * (in_.blob.block_h * in_.blob.block_w + 2);
        work.multiply_adds = rows() * in_.blob.blocks * in_.blob.block_h * in_.blob.block_w;
        work.inputs = 2 * rows() * in_.k;  // quantized and interleaved
        work.outputs = rows() * in_.blob.out_channels;
        return worthwhile_threads(in_.table, in_.call.threads, work);
    }

    // Runs of panels with about equally many blocks; tiles are cut into several only while there are few.
    void cut_panels() {
        const int64_t wanted =
            std::clamp<int64_t>(ceil_div(threads_ * (interleaved_ ? kTasksPerThread : 1), tiles_), 1, in_.blob.panels);
        const int64_t runs = threads_ == 1 ? 1 : wanted;
        const int32_t* pointer = blob_pointers(in_.blob);
        cuts_.push_back(0);
        for (int64_t i = 1; i < runs; ++i) {
            const int64_t blocks = in_.blob.blocks * i / runs;
            // Whole groups of panels, so that rows of the output are written in long runs.
            const int64_t cut = round_up(std::lower_bound(pointer, pointer + in_.blob.panels, blocks) - pointer, 4);
            if (cut > cuts_.back() && cut < in_.blob.panels) cuts_.push_back(cut);
        }
        cuts_.push_back(in_.blob.panels);
    }

    int64_t tile_count(int64_t tile) const { return std::min(tile_rows_, rows() - tile * tile_rows_); }

    void prepare(Own& own, int64_t tile) const {
        const int64_t first = tile * tile_rows_, count = tile_count(tile);
        if (!in_.in_place)
            for (int64_t i = 0; i < count; ++i) in_.quantize_row(own.rows, first + i, i);
        if (interleaved_)
            bsr_.interleave(in_.quantized(own.rows, first), in_.stride, count, width_, 0, in_.k / 4, own.tile);
        own.current = tile;
    }

    void multiply(const Own& own, int64_t run) const {
        const int64_t first = own.current * tile_rows_;
        const Epilogue epilogue = in_.epilogue_of(own.rows, epilogue_, first);
        SparseProduct s;
        s.a = interleaved_ ? own.tile : in_.quantized(own.rows, first);
        s.row_stride = in_.stride;
        s.width = width_;
        s.rows = tile_count(own.current);
        s.pointer = blob_pointers(in_.blob);
        s.quad = blob_quads(in_.blob);
        s.w = blob_panels(in_.blob);
        s.panel0 = cuts_[static_cast<size_t>(run)];
        s.panel1 = cuts_[static_cast<size_t>(run) + 1];
        s.c = own.c;
        s.finish = in_.table.epilogue;
        s.epilogue = &epilogue;
        s.row0 = 0;
        (interleaved_ ? bsr_.tile : bsr_.rows)(s);
    }

    const LinearInput& in_;
    const Epilogue& epilogue_;
    const BsrTable& bsr_;
    int threads_;
    bool interleaved_ = false;
    int64_t width_ = 16, tile_rows_ = 1, tiles_ = 1;
    std::vector<int64_t> cuts_;
};

}  // namespace

void linear_bsr_w8a8(const LinearInput& input, const Epilogue& epilogue) { BsrLinear(input, epilogue).run(); }

}  // namespace fastcompress
