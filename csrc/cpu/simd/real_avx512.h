// Products of float32 inputs and float32 or bfloat16 weights on 512-bit registers, summed in float32.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Real512 {
    static constexpr int lanes = 16;
    static constexpr bool has_four = true;
    using Acc = __m512;
    using A = __m512;
    using B = __m512;
    static Acc zero() { return _mm512_setzero_ps(); }
    static void pin(Acc& a) { asm("" : "+v"(a)); }  // as in dot_avx512.h
    static Acc add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
    static void store(int32_t* p, Acc a) { _mm512_storeu_si512(p, _mm512_castps_si512(a)); }
    static A load_a(const uint8_t* p) { return _mm512_castsi512_ps(words(p)); }
    static A broadcast(const uint8_t* p) { return _mm512_castsi512_ps(word(p)); }
    // Four tokens' inputs at once, and each of them from there.
    using Four = __m512;
    static Four load_four(const uint8_t* p) {
        return _mm512_castsi512_ps(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    template <int i>
    static A one_of(Four four) {
        return _mm512_permute_ps(four, i * 0x55);
    }
    static Acc dot(Acc acc, A a, B b) { return _mm512_fmadd_ps(a, b, acc); }

   protected:
    static __m512i words(const void* p) { return _mm512_loadu_si512(p); }
    static __m512i word(const void* p) {
        int32_t w;
        __builtin_memcpy(&w, p, 4);
        return _mm512_set1_epi32(w);
    }
};

struct F32x16 : Real512 {
    static constexpr int parts = 1;
    static B load_b(const int8_t* p) { return _mm512_castsi512_ps(words(p)); }
    static B broadcast_b(const int8_t* p) { return _mm512_castsi512_ps(word(p)); }
};

// A word holds a channel's weights for two inputs: the first in its low half.
struct Bf16x16 : Real512 {
    static constexpr int parts = 2;
    static B half(__m512i pair, int part) {
        return _mm512_castsi512_ps(part == 0 ? _mm512_slli_epi32(pair, 16)
                                             : _mm512_and_si512(pair, _mm512_set1_epi32(-65536)));
    }
    static B load_b(const int8_t* p, int part) { return half(words(p), part); }
    static B broadcast_b(const int8_t* p, int part) { return half(word(p), part); }
};

}  // namespace
