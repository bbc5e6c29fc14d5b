#include "parallel.h"

#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__)
#include <pthread.h>
#endif
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fastcompress {
namespace {

std::atomic<bool> forked{false};

#if defined(__unix__)
// libgomp's worker threads do not exist in a forked child, and a parallel region there would wait for them forever.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

// Kernels run in the default float environment on every thread: a caller's flush-to-zero mode would hold for its own
// thread only, and results would depend on who does the work.
class DefaultFloatEnvironment {
   public:
#if defined(__SSE2__)
    DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }

   private:
    unsigned saved_;
#elif defined(__aarch64__)
    DefaultFloatEnvironment() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
    }
    ~DefaultFloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

   private:
    uint64_t saved_ = 0;
#endif
};

void run(TeamFunction function, void* context, int thread, int threads) {
    [[maybe_unused]] const DefaultFloatEnvironment environment;
    Team team(thread, threads);
    function(context, team);
}

}  // namespace

bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

int max_threads() {
#if defined(_OPENMP)
    if (in_forked_child()) return 1;
    return std::max(1, omp_get_max_threads());
#else
    return 1;
#endif
}

void set_max_threads(int n) {
#if defined(_OPENMP)
    omp_set_num_threads(std::max(1, n));
#else
    (void)n;
#endif
}

void Team::barrier() {
#if defined(_OPENMP)
    if (threads_ > 1) {
#pragma omp barrier
    }
#endif
}

void parallel(int threads, TeamFunction function, void* context) {
    threads = std::min(threads, kMaxThreads);
#if defined(_OPENMP)
    if (threads > 1 && !in_forked_child()) {
#pragma omp parallel num_threads(threads)
        run(function, context, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    run(function, context, 0, 1);
}

}  // namespace fastcompress
