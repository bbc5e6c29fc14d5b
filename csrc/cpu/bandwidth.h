// The machine's read bandwidth, for benchmarks.
#pragma once

#include <cstdint>

namespace fastcompress {

// Bytes per second that all threads together read from a buffer of `bytes`, best of the passes made in `seconds`.
double read_bandwidth(int64_t bytes, double seconds);

}  // namespace fastcompress
