// Four-byte dot products with 512-bit registers: exact widening to int16 on plain AVX-512, vpdpbusd with VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

inline int32_t load_quad(const void* p) {
    int32_t q;
    __builtin_memcpy(&q, p, 4);
    return q;
}

struct Dot512Base {
    static constexpr int lanes = 16, parts = 1;
    using Acc = __m512i;
    static Acc zero() { return _mm512_setzero_si512(); }
    // Pins an accumulator to a register at the end of a loop: without it g++ 12 copies accumulators in and out of every step.
    static void pin(Acc& a) { asm("" : "+v"(a)); }
    static Acc add(Acc a, Acc b) { return _mm512_add_epi32(a, b); }
    static Acc load(const int32_t* p) { return _mm512_loadu_si512(p); }
    static void store(int32_t* p, Acc a) { _mm512_storeu_si512(p, a); }
    static __m512i load(const int8_t* p) { return _mm512_loadu_si512(p); }
};

// Even and odd bytes as int16; two vpmaddwd add them up exactly.
struct DotWiden512 : Dot512Base {
    static constexpr bool has_four = false;
    struct B {
        __m512i even, odd;
    };
    struct A {
        __m512i even, odd;
    };
    static B split_b(__m512i b) { return {_mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8), _mm512_srai_epi16(b, 8)}; }
    static B load_b(const int8_t* p) { return split_b(load(p)); }
    static B broadcast_b(const int8_t* p) { return split_b(_mm512_set1_epi32(load_quad(p))); }
    static A load_a(const uint8_t* p) { return split(_mm512_loadu_si512(p)); }
    static A split(__m512i a) { return {_mm512_and_si512(a, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(a, 8)}; }
    static A broadcast(const uint8_t* p) { return split(_mm512_set1_epi32(load_quad(p))); }
    static Acc dot(Acc acc, A a, B b) {
        acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a.even, b.even));
        return _mm512_add_epi32(acc, _mm512_madd_epi16(a.odd, b.odd));
    }
};

// 64 bytes { p0[c], p1[c], p2[c], p3[c] }: dwords transposed across lanes, then bytes inside each lane.
struct Gather512 {
    static __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
    static __m512i interleave(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
        const __m512i dwords = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i bytes =
            _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        // Masked broadcasts from memory, unlike insertions, do not need the shuffle port.
        __m512i x = _mm512_castsi128_si512(load16(p0));
        x = _mm512_mask_broadcast_i32x4(x, 0x00f0, load16(p1));
        x = _mm512_mask_broadcast_i32x4(x, 0x0f00, load16(p2));
        x = _mm512_mask_broadcast_i32x4(x, 0xf000, load16(p3));
        return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(dwords, x), bytes);
    }
    static __m512i part(__m512i bytes, int) { return bytes; }
};

}  // namespace
