// Float ceiling of AVX2 FMA, for benchmarks.
#include <immintrin.h>

#include "../tables.h"

namespace fastcompress {

int64_t ceiling_fp32_avx2(int64_t iterations) {
    __m256 acc[12];
    __m256 x = _mm256_set1_ps(1.0f), y = x;
#pragma GCC unroll 16
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_setzero_ps();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 12; ++j) {
            asm volatile("" : "+x"(x), "+x"(y));
            acc[j] = _mm256_fmadd_ps(x, y, acc[j]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 12; ++j) asm volatile("" ::"x"(acc[j]));
    return iterations * 12 * 16;
}

}  // namespace fastcompress
