// Sixteen float lanes with AVX-512 F/BW/VL/DQ. Same operations, same results as vec_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
    static constexpr int width = 16;
    using F = __m512;
    using I = __m512i;

    static F set(float x) { return _mm512_set1_ps(x); }
    static I seti(int32_t x) { return _mm512_set1_epi32(x); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static I loadi(const int32_t* p) { return _mm512_loadu_si512(p); }
    static F load_bf16(const uint16_t* p) {
        __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    }
    static F load_f16(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static void storei(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
    static void store_bf16(uint16_t* p, F a) {
        __m512i u = _mm512_castps_si512(a);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
        r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
    }
    static void store_f16(uint16_t* p, F a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void store_u8(uint8_t* p, F a, int32_t zero_point, uint8_t flip) {
        const __m256i words = _mm256_adds_epi16(_mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)),
                                                _mm256_set1_epi16(static_cast<int16_t>(zero_point)));
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(flip))));
    }
    static void store_u8x4(uint8_t* p, F a, F b, F c, F d, int32_t zero_point, uint8_t flip) {
        const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(zero_point));
        const __m512i ab = _mm512_adds_epi16(_mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)), zero);
        const __m512i cd = _mm512_adds_epi16(_mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d)), zero);
        // Packs work lane by lane: the dwords of a, b, c, d come out interleaved.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd));
        _mm512_storeu_si512(p, _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(flip))));
    }
    // The low byte of each lane.
    static void store_bytes(int8_t* p, I a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
    }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F abs(F a) { return _mm512_abs_ps(a); }
    static F select_negative(F a, F x, F y) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ), y, x);
    }
    static F mul_or_zero(F a, F b) { return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b); }
    static I round(F a) { return _mm512_cvtps_epi32(a); }
    static F to_real(I a) { return _mm512_castsi512_ps(a); }  // the same bits
    static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    static I addi(I a, I b) { return _mm512_add_epi32(a, b); }
    static I subi(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I muli(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static I shift_right_8(I a) { return _mm512_srai_epi32(a, 8); }
    static I maxi(I a, I b) { return _mm512_max_epi32(a, b); }
    // Of all lanes.
    static float largest(F a) { return _mm512_reduce_max_ps(a); }
    static int32_t largesti(I a) { return _mm512_reduce_max_epi32(a); }
    static int32_t sumi(I a) { return _mm512_reduce_add_epi32(a); }
    static F exp2i(I n) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
    }
    static I magnitude_bits(F a) { return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)); }
};

}  // namespace
