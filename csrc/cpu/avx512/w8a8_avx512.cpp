// w8a8 kernels for AVX-512 BW/VL without VNNI: 4 x 64 tiles, bytes widened to int16, vpmaddwd, exact.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../simd/dot_avx512.h"
#include "../tables.h"

namespace {

struct Gather : Gather512 {
    static DotWiden512::A part(__m512i bytes, int) { return DotWiden512::split(bytes); }
};

int64_t ceiling(int64_t iterations) {
    __m512i acc[8], x = _mm512_set1_epi32(0x00030003), y = _mm512_set1_epi32(0x00050005);
#pragma GCC unroll 16
    for (int j = 0; j < 8; ++j) acc[j] = _mm512_setzero_si512();
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 8; ++j) {
            asm volatile("" : "+v"(x), "+v"(y));
            acc[j] = _mm512_add_epi32(acc[j], _mm512_madd_epi16(x, y));
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 8; ++j) asm volatile("" ::"v"(acc[j]));
    return iterations * 8 * 64;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_avx512 = {gemm<DotWiden512, 4, 4>,        "vpmaddwd 4x64", 4, 4, 0, false, 200,
                                       depthwise<DotWiden512, Gather>, ceiling};

}  // namespace fastcompress
