// w8a8 kernels in plain C++: 1 x 16 tiles, exact int32 arithmetic.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../simd/dot_generic.h"
#include "../tables.h"

namespace {

struct Gather {
    static DotGeneric::Gathered interleave(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
        DotGeneric::Gathered r;
        for (int c = 0; c < 16; ++c) {
            r.v[4 * c] = p0[c];
            r.v[4 * c + 1] = p1[c];
            r.v[4 * c + 2] = p2[c];
            r.v[4 * c + 3] = p3[c];
        }
        return r;
    }
    static const DotGeneric::Gathered& part(const DotGeneric::Gathered& bytes, int) { return bytes; }
};

// Integer multiply-adds, eight independent chains.
int64_t ceiling(int64_t iterations) {
    int32_t acc[8] = {};
    int32_t x = 3, y = 5;
    for (int64_t i = 0; i < iterations; ++i) {
        asm volatile("" : "+r"(x), "+r"(y));
        for (int j = 0; j < 8; ++j) acc[j] += x * y;
    }
    for (int j = 0; j < 8; ++j) asm volatile("" ::"r"(acc[j]));
    return iterations * 8 * 2;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_generic = {gemm<DotGeneric, 4, 1>,        "c++ 4x16", 4, 4, 0, false, 10,
                                        depthwise<DotGeneric, Gather>, ceiling};

}  // namespace fastcompress
