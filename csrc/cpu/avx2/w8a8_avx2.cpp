// w8a8 kernels for AVX2: 4 x 16 tiles, bytes widened to int16 and multiplied with vpmaddwd, exact.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../simd/dot_avx2.h"
#include "../tables.h"

namespace {

struct GatherWiden : Gather256 {
    static DotWiden256::A part(const Bytes& b, int v) { return DotWiden256::split(Gather256::part(b, v)); }
};

int64_t ceiling(int64_t iterations) {
    __m256i acc[6], x = _mm256_set1_epi32(0x00030003), y = _mm256_set1_epi32(0x00050005);
#pragma GCC unroll 16
    for (int j = 0; j < 6; ++j) acc[j] = _mm256_setzero_si256();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 6; ++j) {
            asm volatile("" : "+x"(x), "+x"(y));
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x, y));
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 6; ++j) asm volatile("" ::"x"(acc[j]));
    return iterations * 6 * 32;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_avx2 = {
    gemm<DotWiden256, 4, 1>, "vpmaddwd 4x16", 4, 4, 0, false, 80, depthwise<DotWiden256, GatherWiden>, ceiling};

}  // namespace fastcompress
