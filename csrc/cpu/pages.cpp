#include "pages.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastcompress {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::align_val_t alignment(size_t bytes) { return std::align_val_t{bytes >= kHugePage ? kHugePage : 64}; }

}  // namespace

void* allocate_weights(size_t bytes) {
    void* const memory = ::operator new(bytes, alignment(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // A request: where it is refused, pages are small and all else is the same. What is less than a page stays small.
    if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return memory;
}

void release_weights(void* memory, size_t bytes) { ::operator delete(memory, alignment(bytes)); }

}  // namespace fastcompress
