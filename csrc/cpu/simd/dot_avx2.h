// Four-byte dot products with 256-bit registers: exact widening to int16 on AVX2, vpdpbusd on AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

inline int32_t load_quad(const void* p) {
    int32_t q;
    __builtin_memcpy(&q, p, 4);
    return q;
}

struct Dot256Base {
    static constexpr int lanes = 8, parts = 1;
    static constexpr bool has_four = false;
    using Acc = __m256i;
    static Acc zero() { return _mm256_setzero_si256(); }
    static void pin(Acc& a) { asm("" : "+x"(a)); }  // as in dot_avx512.h
    static Acc add(Acc a, Acc b) { return _mm256_add_epi32(a, b); }
    static Acc load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store(int32_t* p, Acc a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
    static __m256i load(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
};

// Even and odd bytes as int16; two vpmaddwd add them up exactly (255 * 128 * 2 is far below 2^31). vpmaddubsw, one
// instruction less, would saturate at 255 * 127 * 2.
struct DotWiden256 : Dot256Base {
    struct B {
        __m256i even, odd;
    };
    struct A {
        __m256i even, odd;
    };
    static B split_b(__m256i b) { return {_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)}; }
    static B load_b(const int8_t* p) { return split_b(load(p)); }
    static B broadcast_b(const int8_t* p) { return split_b(_mm256_set1_epi32(load_quad(p))); }
    static A load_a(const uint8_t* p) { return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static A split(__m256i a) { return {_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(a, 8)}; }
    static A broadcast(const uint8_t* p) { return split(_mm256_set1_epi32(load_quad(p))); }
    static Acc dot(Acc acc, A a, B b) {
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a.even, b.even));
        return _mm256_add_epi32(acc, _mm256_madd_epi16(a.odd, b.odd));
    }
};

// 64 bytes { p0[c], p1[c], p2[c], p3[c] } in two registers.
struct Gather256 {
    struct Bytes {
        __m256i low, high;
    };
    static Bytes interleave(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
        const __m128i x0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p0));
        const __m128i x1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p1));
        const __m128i x2 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p2));
        const __m128i x3 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p3));
        const __m128i l01 = _mm_unpacklo_epi8(x0, x1), h01 = _mm_unpackhi_epi8(x0, x1);
        const __m128i l23 = _mm_unpacklo_epi8(x2, x3), h23 = _mm_unpackhi_epi8(x2, x3);
        return {_mm256_set_m128i(_mm_unpackhi_epi16(l01, l23), _mm_unpacklo_epi16(l01, l23)),
                _mm256_set_m128i(_mm_unpackhi_epi16(h01, h23), _mm_unpacklo_epi16(h01, h23))};
    }
    static __m256i part(const Bytes& b, int v) { return v == 0 ? b.low : b.high; }
};

}  // namespace
