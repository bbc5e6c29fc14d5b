// Running a chain: images are shared out, each group goes through all convolutions.
#include "fastcompress/chain.h"

#include <algorithm>
#include <atomic>
#include <exception>

#include "chain_split.h"
#include "dispatch.h"
#include "gemm_driver.h"
#include "pack/blob_header.h"
#include "parallel.h"
#include "sparse_driver.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kMaxBatch = 1 << 20;  // of a pass; more take several

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

// Values of the images that are in a chain. Not Workspace::local(), which the convolutions use meanwhile.
Workspace& value_memory() {
    thread_local Workspace workspace;
    return workspace;
}

}  // namespace

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
