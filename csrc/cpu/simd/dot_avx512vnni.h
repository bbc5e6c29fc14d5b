// Four-byte dot products with vpdpbusd on 512-bit registers.
#pragma once

#include "dot_avx512.h"

namespace {

struct DotVnni512 : Dot512Base {
    static constexpr bool has_four = true;
    using A = __m512i;
    using B = __m512i;
    static B load_b(const int8_t* p) { return load(p); }
    static B broadcast_b(const int8_t* p) { return _mm512_set1_epi32(load_quad(p)); }
    static A load_a(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static A broadcast(const uint8_t* p) { return _mm512_set1_epi32(load_quad(p)); }
    // Four tokens' inputs at once, and each of them from there.
    using Four = __m512i;
    static Four load_four(const uint8_t* p) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    template <int i>
    static A one_of(Four four) {
        return _mm512_shuffle_epi32(four, static_cast<_MM_PERM_ENUM>(i * 0x55));
    }
    static Acc dot(Acc acc, A a, B b) { return _mm512_dpbusd_epi32(acc, a, b); }
};

}  // namespace
