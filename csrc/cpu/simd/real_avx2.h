// Products of float32 inputs and float32 or bfloat16 weights on 256-bit registers, summed in float32.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Real256 {
    static constexpr int lanes = 8;
    static constexpr bool has_four = false;
    using Acc = __m256;
    using A = __m256;
    using B = __m256;
    static Acc zero() { return _mm256_setzero_ps(); }
    static void pin(Acc& a) { asm("" : "+x"(a)); }  // as in dot_avx512.h
    static Acc add(Acc a, Acc b) { return _mm256_add_ps(a, b); }
    static void store(int32_t* p, Acc a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castps_si256(a)); }
    static A load_a(const uint8_t* p) { return _mm256_castsi256_ps(words(p)); }
    static A broadcast(const uint8_t* p) { return _mm256_castsi256_ps(word(p)); }
    static Acc dot(Acc acc, A a, B b) { return _mm256_fmadd_ps(a, b, acc); }

   protected:
    static __m256i words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static __m256i word(const void* p) {
        int32_t w;
        __builtin_memcpy(&w, p, 4);
        return _mm256_set1_epi32(w);
    }
};

struct F32x8 : Real256 {
    static constexpr int parts = 1;
    static B load_b(const int8_t* p) { return _mm256_castsi256_ps(words(p)); }
    static B broadcast_b(const int8_t* p) { return _mm256_castsi256_ps(word(p)); }
};

// A word holds a channel's weights for two inputs: the first in its low half.
struct Bf16x8 : Real256 {
    static constexpr int parts = 2;
    static B half(__m256i pair, int part) {
        return _mm256_castsi256_ps(part == 0 ? _mm256_slli_epi32(pair, 16)
                                             : _mm256_and_si256(pair, _mm256_set1_epi32(-65536)));
    }
    static B load_b(const int8_t* p, int part) { return half(words(p), part); }
    static B broadcast_b(const int8_t* p, int part) { return half(word(p), part); }
};

}  // namespace
