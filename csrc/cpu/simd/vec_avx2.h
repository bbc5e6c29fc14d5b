// Eight float lanes with AVX2 + F16C. Same operations, same results as vec_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
    static constexpr int width = 8;
    using F = __m256;
    using I = __m256i;

    static F set(float x) { return _mm256_set1_ps(x); }
    static I seti(int32_t x) { return _mm256_set1_epi32(x); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static I loadi(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static F load_bf16(const uint16_t* p) {
        __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    }
    static F load_f16(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
    static void storei(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
    static void store_bf16(uint16_t* p, F a) {
        __m256i u = _mm256_castps_si256(a);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
        __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
        __m256i r =
            _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
        r = _mm256_srli_epi32(r, 16);
        __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    }
    static void store_f16(uint16_t* p, F a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                         _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    static void store_u8(uint8_t* p, F a, int32_t zero_point, uint8_t flip) {
        const __m256i q = _mm256_cvtps_epi32(a);
        const __m128i words = _mm_adds_epi16(_mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)),
                                             _mm_set1_epi16(static_cast<int16_t>(zero_point)));
        const __m128i bytes = _mm_xor_si128(_mm_packus_epi16(words, words), _mm_set1_epi8(static_cast<char>(flip)));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
    }
    static void store_u8x4(uint8_t* p, F a, F b, F c, F d, int32_t zero_point, uint8_t flip) {
        const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
        const __m256i ab = _mm256_adds_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), zero);
        const __m256i cd = _mm256_adds_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d)), zero);
        // Packs work lane by lane: the dwords of a, b, c, d come out interleaved.
        const __m256i bytes =
            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(flip))));
    }
    // The low byte of each lane.
    static void store_bytes(int8_t* p, I a) {
        const __m256i quads = _mm256_shuffle_epi8(
            a, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                         _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1)));
    }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
    static F select_negative(F a, F x, F y) {
        return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_LT_OQ));
    }
    static F mul_or_zero(F a, F b) { return _mm256_and_ps(_mm256_mul_ps(a, b), _mm256_cmp_ps(a, a, _CMP_ORD_Q)); }
    static I round(F a) { return _mm256_cvtps_epi32(a); }
    static F to_real(I a) { return _mm256_castsi256_ps(a); }  // the same bits
    static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
    static I addi(I a, I b) { return _mm256_add_epi32(a, b); }
    static I subi(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I muli(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static I shift_right_8(I a) { return _mm256_srai_epi32(a, 8); }
    static I maxi(I a, I b) { return _mm256_max_epi32(a, b); }
    // Of all lanes.
    static float largest(F a) {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }
    static int32_t largesti(I a) {
        const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
        return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
    }
    static int32_t sumi(I a) {
        const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
    }
    static F exp2i(I n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    }
    static I magnitude_bits(F a) { return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff)); }
};

}  // namespace
