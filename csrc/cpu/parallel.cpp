#include "parallel.h"

#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__)
#include <pthread.h>
#endif

namespace fastcompress {
namespace {

std::atomic<bool> forked{false};

#if defined(__unix__)
// libgomp's worker threads do not exist in a forked child, and a parallel region there would wait for them forever.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

}  // namespace

int max_threads() {
#if defined(_OPENMP)
    if (forked.load(std::memory_order_relaxed)) return 1;
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
#if defined(_OPENMP)
    if (threads > 1 && !forked.load(std::memory_order_relaxed)) {
#pragma omp parallel num_threads(threads)
        {
            Team team(omp_get_thread_num(), omp_get_num_threads());
            function(context, team);
        }
        return;
    }
#endif
    (void)threads;
    Team alone(0, 1);
    function(context, alone);
}

}  // namespace fastcompress
