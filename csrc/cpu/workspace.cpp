#include "workspace.h"

#include <new>
#include <stdexcept>

namespace fastcompress {
namespace {

constexpr size_t kKeep = size_t{64} << 20;  // more than this is given back after the call
constexpr std::align_val_t kAlign{4096};

}  // namespace

Workspace& Workspace::local() {
    thread_local Workspace workspace;
    return workspace;
}

void Workspace::reset(size_t bytes) {
    used_ = 0;
    if (bytes <= capacity_) return;
    ::operator delete(memory_, kAlign);
    memory_ = nullptr;
    capacity_ = 0;
    memory_ = static_cast<uint8_t*>(::operator new(bytes, kAlign));
    capacity_ = bytes;
}

void* Workspace::take(size_t bytes) {
    const size_t need = size(bytes);
    if (need > capacity_ - used_) throw std::logic_error("fastcompress: workspace request exceeds its reservation");
    void* p = memory_ + used_;
    used_ += need;
    return p;
}

void Workspace::trim() {
    if (capacity_ <= kKeep) return;
    ::operator delete(memory_, kAlign);
    memory_ = nullptr;
    capacity_ = used_ = 0;
}

Workspace::~Workspace() { ::operator delete(memory_, kAlign); }

}  // namespace fastcompress
