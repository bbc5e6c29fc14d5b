// w8a8 kernels for AVX-512 VNNI: 6 x 64 tiles, 24 accumulators, four weight vectors, one broadcast.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../simd/dot_avx512vnni.h"
#include "../tables.h"

namespace {

int64_t ceiling(int64_t iterations) {
    __m512i acc[16], x = _mm512_set1_epi32(0x01020304), y = x;
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) acc[j] = _mm512_setzero_si512();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            asm volatile("" : "+v"(x), "+v"(y));
            acc[j] = _mm512_dpbusd_epi32(acc[j], x, y);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) asm volatile("" ::"v"(acc[j]));
    return iterations * 16 * 128;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_avx512vnni = {gemm<DotVnni512, 6, 4>,           "vpdpbusd 6x64", 4, 6, 0, false, 500,
                                           depthwise<DotVnni512, Gather512>, ceiling};

}  // namespace fastcompress
