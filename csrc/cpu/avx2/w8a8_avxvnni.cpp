// w8a8 kernels for AVX-VNNI (256-bit vpdpbusd, VEX-encoded): 6 x 16 tiles.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../simd/dot_avxvnni.h"
#include "../tables.h"

namespace {

int64_t ceiling(int64_t iterations) {
    __m256i acc[12], x = _mm256_set1_epi32(0x01020304), y = x;
#pragma GCC unroll 16
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_setzero_si256();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 12; ++j) {
            asm volatile("" : "+x"(x), "+x"(y));
            acc[j] = DotVnni256::dot(acc[j], x, y);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 12; ++j) asm volatile("" ::"x"(acc[j]));
    return iterations * 12 * 64;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_avxvnni = {
    gemm<DotVnni256, 6, 1>, "vpdpbusd-256 6x16", 4, 6, 0, false, 200, depthwise<DotVnni256, Gather256>, ceiling};

}  // namespace fastcompress
