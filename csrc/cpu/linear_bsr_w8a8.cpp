// Block-sparse linear: (1) quantize the rows, (2) interleave them into tiles of tokens, (3) multiply tiles with runs of
// panels. A few rows skip (2). One parallel region with barriers between the steps.
#include "linear_bsr_w8a8.h"

#include <algorithm>
#include <vector>

#include "gemm_driver.h"
#include "linear_input.h"

namespace fastcompress {
namespace {

constexpr int64_t kQuadsPerTask = 128;  // of an interleaving task: 16 KiB of a tile of 32 tokens
constexpr int64_t kTasksPerThread = 4;

class BsrLinear {
   public:
    BsrLinear(const LinearInput& input, const Epilogue& epilogue)
        : in_(input), epilogue_(epilogue), bsr_(*input.table.bsr), threads_(count_threads()) {
        interleaved_ = rows() > kBsrFewRows;
        width_ = rows() > 16 ? bsr_.widest : 16;
        tile_rows_ = interleaved_ ? width_ : kBsrFewRows;
        tiles_ = ceil_div(rows(), tile_rows_);
        quads_ = in_.k / 4;
        cut_panels();
    }

    void run() {
        const int64_t tile_bytes = quads_ * width_ * 4;
        Workspace& w = Workspace::local();
        w.reset(in_.rows_bytes(rows()) + Workspace::size(static_cast<size_t>(interleaved_ ? tiles_ * tile_bytes : 0)) +
                Workspace::size(kScratchBytes * static_cast<size_t>(threads_)));
        rows_ = in_.take_rows(w, rows());
        tiled_ = w.take_array<uint8_t>(interleaved_ ? tiles_ * tile_bytes : 0);
        uint8_t* scratch = w.take_array<uint8_t>(static_cast<int64_t>(kScratchBytes) * threads_);
        const int64_t parts = ceil_div(quads_, kQuadsPerTask);
        TaskQueue quantize(in_.in_place ? 0 : rows(), threads_),
            interleave(interleaved_ ? tiles_ * parts : 0, threads_);
        TaskQueue multiply(tiles_ * static_cast<int64_t>(cuts_.size() - 1), threads_);
        parallel(threads_, [&](Team& team) {
            if (!in_.in_place) {
                for (int64_t row; quantize.next(team, &row);) in_.quantize_row(rows_, row, row);
                team.barrier();
            }
            if (interleaved_) {
                for (int64_t task; interleave.next(team, &task);) interleave_part(task / parts, task % parts);
                team.barrier();
            }
            int32_t* c = reinterpret_cast<int32_t*>(scratch + kScratchBytes * static_cast<size_t>(team.thread()));
            for (int64_t task; multiply.next(team, &task);) multiply_part(task, c);
        });
        w.trim();
    }

   private:
    int64_t rows() const { return in_.call.rows; }

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
        const int64_t wanted = std::clamp<int64_t>(ceil_div(threads_ * kTasksPerThread, tiles_), 1, in_.blob.panels);
        const int64_t runs = threads_ == 1 ? 1 : wanted;
        const int32_t* pointer = blob_pointers(in_.blob);
        cuts_.push_back(0);
        for (int64_t i = 1; i < runs; ++i) {
            const int64_t blocks = in_.blob.blocks * i / runs;
            const int64_t cut = std::lower_bound(pointer, pointer + in_.blob.panels, blocks) - pointer;
            if (cut > cuts_.back()) cuts_.push_back(cut);
        }
        if (cuts_.back() < in_.blob.panels) cuts_.push_back(in_.blob.panels);
    }

    int64_t tile_count(int64_t tile) const { return std::min(tile_rows_, rows() - tile * tile_rows_); }

    void interleave_part(int64_t tile, int64_t part) const {
        const int64_t quad = part * kQuadsPerTask;
        bsr_.interleave(in_.quantized(rows_, 0) + tile * width_ * in_.stride, in_.stride, tile_count(tile), width_,
                        quad, std::min(quads_, quad + kQuadsPerTask), tiled_ + tile * quads_ * width_ * 4);
    }

    void multiply_part(int64_t task, int32_t* c) const {
        const int64_t runs = static_cast<int64_t>(cuts_.size()) - 1;
        const int64_t tile = task / runs;
        const Epilogue epilogue = in_.epilogue_of(rows_, epilogue_, 0);
        SparseProduct s;
        s.a = interleaved_ ? tiled_ + tile * quads_ * width_ * 4
                           : in_.quantized(rows_, 0) + tile * kBsrFewRows * in_.stride;
        s.row_stride = in_.stride;
        s.width = width_;
        s.rows = tile_count(tile);
        s.pointer = blob_pointers(in_.blob);
        s.quad = blob_quads(in_.blob);
        s.w = blob_panels(in_.blob);
        s.panel0 = cuts_[static_cast<size_t>(task % runs)];
        s.panel1 = cuts_[static_cast<size_t>(task % runs) + 1];
        s.c = c;
        s.finish = in_.table.epilogue;
        s.epilogue = &epilogue;
        s.row0 = tile * tile_rows_;
        (interleaved_ ? bsr_.tile : bsr_.rows)(s);
    }

    const LinearInput& in_;
    const Epilogue& epilogue_;
    const BsrTable& bsr_;
    int threads_;
    bool interleaved_ = false;
    int64_t width_ = 16, tile_rows_ = 1, tiles_ = 1, quads_ = 0;
    std::vector<int64_t> cuts_;
    Rows rows_{};
    uint8_t* tiled_ = nullptr;
};

}  // namespace

void linear_bsr_w8a8(const LinearInput& input, const Epilogue& epilogue) { BsrLinear(input, epilogue).run(); }

}  // namespace fastcompress
