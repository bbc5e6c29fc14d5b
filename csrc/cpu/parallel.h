// The only threading point. OpenMP through the libgomp that torch has loaded, so both share one pool.
// Results never depend on the number of threads: threads only divide rows, channels and images among themselves.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastcompress {

int max_threads();       // the calling thread's OpenMP setting; 1 in a forked child
bool in_forked_child();  // libgomp's pool does not survive fork: everything runs serially there
constexpr int kMaxThreads = 1024;
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

// Hands out tasks 0 .. count-1, each once. A thread first works through a contiguous share of its own, so that from call
// to call it meets the same weights in its cache; then it helps those who are behind, so that a slow core takes fewer.
class TaskQueue {
   public:
    // A helper's weights and output lie in the other core's cache: for a single small task it costs more than it saves (3%), so a
    // share is helped while it has at least `worth_helping` tasks left.
    TaskQueue(int64_t count, int threads, int64_t worth_helping = 2)
        : shares_(threads < kMaxShares ? threads : kMaxShares), worth_helping_(worth_helping) {
        for (int i = 0; i < shares_; ++i) {
            share_[i].next.store(count * i / shares_, std::memory_order_relaxed);
            share_[i].end = count * (i + 1) / shares_;
        }
    }
    bool next(const Team& team, int64_t* task) {
        for (int i = 0; i < shares_; ++i) {
            const int owner = (team.thread() + i) % shares_;
            Share& s = share_[owner];
            // A share whose owner is not there (the runtime gave fewer threads) has to be finished by others.
            const int64_t least = i == 0 || owner >= team.threads() ? 1 : worth_helping_;
            if (s.end - s.next.load(std::memory_order_relaxed) < least) continue;
            *task = s.next.fetch_add(1, std::memory_order_relaxed);
            if (*task < s.end) return true;
        }
        return false;
    }

   private:
    static constexpr int kMaxShares = 16;
    struct alignas(64) Share {
        std::atomic<int64_t> next;
        int64_t end;
    };
    int shares_;
    int64_t worth_helping_;
    Share share_[kMaxShares];
};

using TeamFunction = void (*)(void* context, Team& team);
void parallel(int threads, TeamFunction function, void* context);

// Runs f(team) on `threads` threads (fewer if the runtime gives fewer). f must not throw.
template <class F>
void parallel(int threads, const F& f) {
    parallel(threads, [](void* context, Team& team) { (*static_cast<const F*>(context))(team); }, const_cast<F*>(&f));
}

}  // namespace fastcompress
