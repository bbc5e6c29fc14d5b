// Scratch memory of one calling thread, kept between calls so that small layers do not pay for allocation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastcompress {

class Workspace {
   public:
    static Workspace& local();  // this thread's

    // Starts a new call: everything handed out before is given up.
    void reset(size_t bytes);
    // 64-byte aligned, with 64 readable bytes behind it. The sum of a call's requests must fit what reset() was told;
    // each request takes size(bytes).
    void* take(size_t bytes);
    template <class T>
    T* take_array(int64_t count) {
        return static_cast<T*>(take(static_cast<size_t>(count) * sizeof(T)));
    }
    static size_t size(size_t bytes) { return (bytes + 127) / 64 * 64; }

    // Ends a call: a large reservation goes back to the system.
    void trim();

    ~Workspace();

   private:
    uint8_t* memory_ = nullptr;
    size_t capacity_ = 0;
    size_t used_ = 0;
};

}  // namespace fastcompress
