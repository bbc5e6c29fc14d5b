#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "parallel.h"

namespace fastcompress {
namespace {

// Sums 64-bit words in eight chains; the compiler turns it into baseline SIMD, which is enough to saturate memory.
uint64_t read(const uint64_t* data, int64_t words) {
    uint64_t sum[8] = {};
    for (int64_t i = 0; i + 8 <= words; i += 8)
        for (int j = 0; j < 8; ++j) sum[j] ^= data[i + j];
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

}  // namespace

double read_bandwidth(int64_t bytes, double seconds) {
    const int threads = max_threads();
    const int64_t words = std::max<int64_t>(bytes / 8 / threads / 8 * 8, 8);
    const std::unique_ptr<uint64_t[]> buffer(new uint64_t[static_cast<size_t>(words * threads)]);
    std::fill_n(buffer.get(), words * threads, uint64_t{1});
    const int64_t repeats = std::max<int64_t>(1, (int64_t{1} << 26) / (words * threads * 8));
    std::atomic<uint64_t> sink{0};
    std::atomic<int64_t> bytes_read{0};
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
    double best = 0;
    do {
        bytes_read = 0;
        const auto start = Clock::now();
        parallel(threads, [&](Team& team) {
            for (int64_t r = 0; r < repeats; ++r) {
                sink += read(buffer.get() + words * team.thread(), words);
                __asm__ volatile("" ::: "memory");
            }
            bytes_read += words * 8 * repeats;
        });
        const std::chrono::duration<double> elapsed = Clock::now() - start;
        best = std::max(best, static_cast<double>(bytes_read.load()) / elapsed.count());
    } while (Clock::now() < deadline);
    return best;
}

}  // namespace fastcompress
