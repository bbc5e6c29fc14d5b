// Float ceiling of AVX-512 BF16 (vdpbf16ps), for benchmarks.
#include <immintrin.h>

#include "../tables.h"

namespace fastcompress {

int64_t ceiling_bf16_avx512(int64_t iterations) {
    __m512 acc[16];
    __m512i x = _mm512_set1_epi32(0x3f803f80), y = x;
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) acc[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            asm volatile("" : "+v"(x), "+v"(y));
            acc[j] = _mm512_dpbf16_ps(acc[j], (__m512bh)x, (__m512bh)y);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) asm volatile("" ::"v"(acc[j]));
    return iterations * 16 * 64;
}

}  // namespace fastcompress
