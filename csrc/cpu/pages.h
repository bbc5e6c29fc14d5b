// Memory for packed weights. Where it holds whole huge pages (2 MiB), Linux is asked for them: weights that stream from memory then
// cost fewer address translations, which are dear in virtual machines.
#pragma once

#include <cstddef>

namespace fastcompress {

// At least 64-byte aligned, not initialized. Throws std::bad_alloc.
void* allocate_weights(size_t bytes);
void release_weights(void* memory, size_t bytes);

}  // namespace fastcompress
