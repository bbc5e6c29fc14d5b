// Float ceiling of AVX-512 FMA, for benchmarks.
#include <immintrin.h>

#include "../tables.h"

namespace fastcompress {

int64_t ceiling_fp32_avx512(int64_t iterations) {
    __m512 acc[16];
    __m512 x = _mm512_set1_ps(1.0f), y = x;
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) acc[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            asm volatile("" : "+v"(x), "+v"(y));
            acc[j] = _mm512_fmadd_ps(x, y, acc[j]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) asm volatile("" ::"v"(acc[j]));
    return iterations * 16 * 32;
}

}  // namespace fastcompress
