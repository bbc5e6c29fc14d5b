#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "dispatch.h"
#include "parallel.h"
#include "tables.h"

namespace fastcompress {
int32_t read_buffer(const void* data, int64_t bytes, int threads) {
    constexpr int64_t kUnit = 256;  // bytes: whole groups of vectors on every ISA
    const auto read = elementwise_table(current_table().isa).read;
    const int64_t units = bytes / kUnit;
    std::atomic<int32_t> sum{0};
    parallel(threads > 0 ? threads : max_threads(), [&](Team& team) {
        const int64_t first = units * team.thread() / team.threads();
        const int64_t last = units * (team.thread() + 1) / team.threads();
        sum += read(reinterpret_cast<const int32_t*>(static_cast<const uint8_t*>(data) + first * kUnit),
                    (last - first) * kUnit / 4);
    });
    return sum;
}

double read_bandwidth(int64_t bytes, double seconds) {
    const int threads = max_threads();
    const int64_t words = std::max<int64_t>(bytes / 4 / threads / 64 * 64, 64);
    const std::unique_ptr<int32_t[]> buffer(new int32_t[static_cast<size_t>(words * threads)]);
    std::fill_n(buffer.get(), words * threads, 1);
    const int64_t repeats = std::max<int64_t>(1, (int64_t{1} << 26) / (words * threads * 4));
    const auto read = elementwise_table(current_table().isa).read;
    std::atomic<int32_t> sink{0};
    std::atomic<int64_t> bytes_read{0};
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
    double best = 0;
    do {
        bytes_read = 0;
        const auto start = Clock::now();
        parallel(threads, [&](Team& team) {
            int32_t sum = 0;
            for (int64_t r = 0; r < repeats; ++r) {
                sum ^= read(buffer.get() + words * team.thread(), words);
                __asm__ volatile("" ::: "memory");
            }
            sink += sum;
            bytes_read += words * 4 * repeats;
        });
        const std::chrono::duration<double> elapsed = Clock::now() - start;
        best = std::max(best, static_cast<double>(bytes_read.load()) / elapsed.count());
    } while (Clock::now() < deadline);
    return best;
}

}  // namespace fastcompress
