// w8a8 kernels for AVX-512 BW/VL without VNNI: 4 x 64 tiles, bytes widened to int16, vpmaddwd, exact.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../simd/dot_avx512.h"
#include "../tables.h"

namespace {

struct Dot : Dot512Base {
    struct B {
        __m512i even, odd;
    };
    struct A {
        __m512i even, odd;
    };
    static B load_b(const int8_t* p) {
        const __m512i b = load(p);
        return {_mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8), _mm512_srai_epi16(b, 8)};
    }
    static A split(__m512i a) { return {_mm512_and_si512(a, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(a, 8)}; }
    static A broadcast(const uint8_t* p) { return split(_mm512_set1_epi32(load_quad(p))); }
    static Acc dot(Acc acc, A a, B b) {
        acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a.even, b.even));
        return _mm512_add_epi32(acc, _mm512_madd_epi16(a.odd, b.odd));
    }
};

struct Gather : Gather512 {
    static Dot::A part(__m512i bytes, int) { return Dot::split(bytes); }
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

extern const W8A8Table kW8A8_avx512 = {gemm<Dot, 4, 4>,        "vpmaddwd 4x64", 4, 4, 0, false, 200,
                                       depthwise<Dot, Gather>, ceiling};

}  // namespace fastcompress
