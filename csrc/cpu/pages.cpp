#include "pages.h"

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastcompress {
namespace {

constexpr std::align_val_t kAlign{64};

#if defined(__linux__) && defined(MADV_HUGEPAGE)
constexpr size_t kHugePage = size_t{2} << 20;

// Of addresses: memory is taken when it is written.
size_t mapped_size(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// A mapping of its own, and not malloc's memory: whatever is kept there later would inherit the wish for huge pages.
void* map_aligned(size_t bytes) {
    const size_t size = mapped_size(bytes);
    void* const all = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<uint8_t*>(all);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before > 0) munmap(begin, before);
    if (before < kHugePage) munmap(begin + before + size, kHugePage - before);
    // A request: where it is refused, pages are small and all else is the same. What is less than a huge page stays small.
    madvise(begin + before, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return begin + before;
}
#endif

}  // namespace

void* allocate_weights(size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kHugePage) return map_aligned(bytes);
#endif
    return ::operator new(bytes, kAlign);
}

void release_weights(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kHugePage) {
        munmap(memory, mapped_size(bytes));
        return;
    }
#endif
    ::operator delete(memory, kAlign);
}

}  // namespace fastcompress
