// Four-byte dot products with vpdpbusd on 256-bit registers (AVX-VNNI, VEX-encoded).
#pragma once

#include "dot_avx2.h"

namespace {

struct DotVnni256 : Dot256Base {
    using A = __m256i;
    using B = __m256i;
    static B load_b(const int8_t* p) { return load(p); }
    static B broadcast_b(const int8_t* p) { return _mm256_set1_epi32(load_quad(p)); }
    static A load_a(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static A broadcast(const uint8_t* p) { return _mm256_set1_epi32(load_quad(p)); }
    static Acc dot(Acc acc, A a, B b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
};

}  // namespace
