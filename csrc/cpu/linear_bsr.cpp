// Block-sparse linear. A thread takes runs of panels of a tile of tokens; for a new tile it brings the rows into the form that the
// kernels take (quantized, or float32) and interleaves them into a buffer of its own.
//
// A tile that several threads work on is thus made several times. Sharing one costs more: its lines are read in no order, each
// for the first time out of the other core's cache (16x4096x4096 at 95%: 57 us against 30).
#include "linear_bsr.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "epilogue_setup.h"
#include "fastcompress/bsr.h"
#include "linear_input.h"
#include "parallel.h"
#include "sparse_driver.h"

namespace fastcompress {
namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kWordBytes = 4;

class BsrLinear {
   public:
    BsrLinear(const LinearInput& input, const Epilogue& epilogue)
        : in_(input), epilogue_(epilogue), kernel_(sparse_kernel(input.table, input.blob)), threads_(count_threads()) {
        interleaved_ = !kernel_.few_rows || rows() > kSparseFewRows;
        width_ = interleaved_ ? tile_width(kernel_, rows(), threads_) : kSparseFewRows;
        tiles_ = ceil_div(rows(), width_);
        // Tiles are cut into several tasks only while there are few.
        const int64_t wanted = ceil_div(threads_ * (interleaved_ ? kTasksPerThread : 1), tiles_);
        cuts_ = cut_panels(in_.blob, threads_ == 1 ? 1 : std::clamp<int64_t>(wanted, 1, in_.blob.panels));
    }

    void run() {
        Workspace& w = Workspace::local();
        const size_t per_thread = in_.rows_bytes(width_) + Workspace::size(static_cast<size_t>(tile_bytes())) +
                                  Workspace::size(kSparseScratchBytes);
        w.reset(per_thread * static_cast<size_t>(threads_));
        std::vector<Own> own(static_cast<size_t>(threads_));
        for (Own& each : own) {
            each.rows = in_.take_rows(w, width_);
            each.tile = w.take_array<uint8_t>(tile_bytes());
            each.c = w.take_array<int32_t>(kSparseScratchElements);
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
        int64_t current = -1;  // the tile that is in `tile` (or whose rows are prepared)
    };

    int64_t rows() const { return in_.call.rows; }
    int64_t runs() const { return static_cast<int64_t>(cuts_.size()) - 1; }
    int64_t tile_bytes() const { return interleaved_ ? in_.stride * width_ : 0; }

    int count_threads() const {
        Work work = sparse_work(in_.blob, rows());
        work.inputs = 2 * rows() * in_.k;  // prepared and interleaved
        work.outputs = rows() * in_.blob.out_channels;
        return worthwhile_threads(in_.table, in_.call.threads, work);
    }

    int64_t tile_count(int64_t tile) const { return std::min(width_, rows() - tile * width_); }

    void prepare(Own& own, int64_t tile) const {
        const int64_t first = tile * width_, count = tile_count(tile);
        if (!in_.in_place)
            for (int64_t i = 0; i < count; ++i) in_.prepare_row(own.rows, first + i, i);
        if (interleaved_) {
            if (count < width_) std::fill_n(own.tile, tile_bytes(), uint8_t{0});  // no NaN is made up of old bytes
            in_.table.sparse.interleave(in_.prepared(own.rows, first), in_.stride, count, in_.stride / kWordBytes,
                                        width_, own.tile);
        }
        own.current = tile;
    }

    void multiply(const Own& own, int64_t run) const {
        const int64_t first = own.current * width_, words = column_words(in_.blob);
        const Epilogue epilogue = in_.epilogue_of(own.rows, epilogue_, first);
        const RowRun all{0, 0, tile_count(own.current)};
        SparseProduct s = sparse_product(in_.table, in_.blob, epilogue);
        s.a = interleaved_ ? own.tile : in_.prepared(own.rows, first);
        s.rows = all.count;
        s.row_stride = in_.stride;
        s.width = width_;
        s.part_step = kWordBytes * (interleaved_ ? width_ : 1);
        s.column_step = words * s.part_step;
        s.panel0 = cuts_[static_cast<size_t>(run)];
        s.panel1 = cuts_[static_cast<size_t>(run) + 1];
        s.c = own.c;
        s.runs = &all;
        s.run_count = 1;
        (interleaved_ ? kernel_.tile : kernel_.few_rows)(s);
    }

    const LinearInput& in_;
    const Epilogue& epilogue_;
    const SparseKernel& kernel_;
    int threads_;
    bool interleaved_ = false;
    int64_t width_ = 16, tiles_ = 1;
    std::vector<int64_t> cuts_;
};

}  // namespace

void run_linear_bsr(const LinearInput& input, const Epilogue& epilogue) { BsrLinear(input, epilogue).run(); }

void linear_bsr(const BlobHeader& blob, const LinearCall& call) {
    if (!is_block_sparse(blob) || !is_linear(blob) || !has_real_weights(blob))
        throw std::invalid_argument(
            "linear_bsr: the packed weights are not those of a block-sparse float linear layer");
    if (call.x_dtype != DType::f32 && call.x_dtype != DType::bf16 && call.x_dtype != DType::f16)
        throw std::invalid_argument("linear_bsr: input must be f32, bf16 or f16");
    const Epilogue epilogue = make_epilogue(blob, call.out, "linear_bsr");
    if (call.rows == 0) return;
    run_linear_bsr(real_input(table_for(static_cast<Isa>(blob.isa)), blob, call), epilogue);
}

}  // namespace fastcompress
