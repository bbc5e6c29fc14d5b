// The only threading point. OpenMP through the libgomp that torch has loaded, so both share one pool.
// Results never depend on the number of threads: threads only divide rows, channels and images among themselves.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastcompress {

int max_threads();            // what torch.set_num_threads set; 1 in a forked child (libgomp's pool does not survive fork)
void set_max_threads(int n);  // for callers without torch

// One thread's view of a parallel region.
class Team {
   public:
    Team(int thread, int threads) : thread_(thread), threads_(threads) {}
    int thread() const { return thread_; }
    int threads() const { return threads_; }
    void barrier();

   private:
    int thread_, threads_;
};

// Hands out tasks 0 .. count-1, each once, to whoever asks next: a slow core takes fewer.
class TaskQueue {
   public:
    explicit TaskQueue(int64_t count) : count_(count) {}
    bool next(int64_t* task) {
        *task = next_.fetch_add(1, std::memory_order_relaxed);
        return *task < count_;
    }

   private:
    std::atomic<int64_t> next_{0};
    int64_t count_;
};

using TeamFunction = void (*)(void* context, Team& team);
void parallel(int threads, TeamFunction function, void* context);

// Runs f(team) on `threads` threads (fewer if the runtime gives fewer). f must not throw.
template <class F>
void parallel(int threads, const F& f) {
    parallel(
        threads, [](void* context, Team& team) { (*static_cast<const F*>(context))(team); },
        const_cast<F*>(&f));
}

}  // namespace fastcompress
