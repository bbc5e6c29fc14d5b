#include "chain_split.h"

#include <algorithm>
#include <cmath>

#include "fastcompress/types.h"

namespace fastcompress {
namespace {

constexpr int64_t kGroupBytes = 1 << 19;  // what lies between two convolutions of a group should stay in L2
// Each convolution has some microseconds of its own a call: a group has work enough that they are a tenth of it.
constexpr double kStepNs = 3000, kStepShare = 0.1;
constexpr int64_t kGroupsPerThread = 4;  // so that a slow core takes fewer
// With so many images a thread, one more or less does not matter.
constexpr int64_t kUnevenImages = 8;

}  // namespace

ChainSplit split_images(int64_t batch, int64_t threads, int64_t image_bytes, double image_ns, int64_t steps) {
    const int64_t odd = batch % threads;
    // Few odd images are shared; if they are many, most threads have one more to do.
    const bool all = threads == 1 || batch >= threads * kUnevenImages || 2 * odd > threads;
    const int64_t by_images = all ? batch : batch - odd;
    if (by_images == 0) return {0, 0};
    const double enough = std::ceil(static_cast<double>(steps) * kStepNs / kStepShare / std::max(image_ns, 1.0));
    const auto least = static_cast<int64_t>(std::min(enough, static_cast<double>(batch)));
    const int64_t fit = std::max<int64_t>({1, least, kGroupBytes / std::max<int64_t>(image_bytes, 1)});
    const int64_t balanced = ceil_div(by_images, threads * kGroupsPerThread);
    const int64_t images = std::clamp(balanced, std::min(std::max<int64_t>(1, least), fit), fit);
    const int64_t groups = std::min(by_images, round_up(ceil_div(by_images, images), threads));
    return {by_images, groups};
}

}  // namespace fastcompress
