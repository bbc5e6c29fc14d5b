// How the images of a chain are shared out: pure arithmetic.
#pragma once

#include <cstdint>

namespace fastcompress {

// The first `by_images` images go through the chain in `groups` groups, each on one thread; the rest go through it together, with
// all threads in each convolution.
struct ChainSplit {
    int64_t by_images, groups;
};

// image_bytes: of an image's values while it is in the chain; image_ns: roughly what it takes one thread; steps: convolutions.
ChainSplit split_images(int64_t batch, int64_t threads, int64_t image_bytes, double image_ns, int64_t steps);

}  // namespace fastcompress
