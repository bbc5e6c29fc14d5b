// Four-byte dot products with vpdpbusd on 512-bit registers.
#pragma once

#include "dot_avx512.h"

namespace {

struct DotVnni512 : Dot512Base {
    using A = __m512i;
    using B = __m512i;
    static B load_b(const int8_t* p) { return load(p); }
    static B broadcast_b(const int8_t* p) { return _mm512_set1_epi32(load_quad(p)); }
    static A load_a(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static A broadcast(const uint8_t* p) { return _mm512_set1_epi32(load_quad(p)); }
    static Acc dot(Acc acc, A a, B b) { return _mm512_dpbusd_epi32(acc, a, b); }
};

}  // namespace
