// The machine's read bandwidth, for benchmarks.
#pragma once

#include <cstdint>

namespace fastcompress {

// Bytes per second that all threads together read from a buffer of `bytes`, best of the passes made in `seconds`.
double read_bandwidth(int64_t bytes, double seconds);

// Reads a buffer once on all threads (0: all there are) and returns a number that depends on it. A last part below 256
// bytes is left out.
int32_t read_buffer(const void* data, int64_t bytes, int threads);

}  // namespace fastcompress
