// Eight "lanes" in plain C++: the specification the vector classes must agree with, bit for bit.
// min and max return the second operand when either is NaN, as the x86 instructions do.
#pragma once

#include <cstdint>

#include "half.h"

namespace {

struct Vec {
    static constexpr int width = 8;
    struct F {
        float v[width];
    };
    struct I {
        int32_t v[width];
    };

#define FC_LANES for (int l = 0; l < width; ++l)
    static F set(float x) {
        F r;
        FC_LANES r.v[l] = x;
        return r;
    }
    static I seti(int32_t x) {
        I r;
        FC_LANES r.v[l] = x;
        return r;
    }
    static F load(const float* p) {
        F r;
        FC_LANES r.v[l] = p[l];
        return r;
    }
    static I loadi(const int32_t* p) {
        I r;
        FC_LANES r.v[l] = p[l];
        return r;
    }
    static F load_bf16(const uint16_t* p) {
        F r;
        FC_LANES r.v[l] = bf16_to_float(p[l]);
        return r;
    }
    static F load_f16(const uint16_t* p) {
        F r;
        FC_LANES r.v[l] = f16_to_float(p[l]);
        return r;
    }
    static void store(float* p, F a) { FC_LANES p[l] = a.v[l]; }
    static void storei(int32_t* p, I a) { FC_LANES p[l] = a.v[l]; }
    static void store_bf16(uint16_t* p, F a) { FC_LANES p[l] = float_to_bf16(a.v[l]); }
    static void store_f16(uint16_t* p, F a) { FC_LANES p[l] = float_to_f16(a.v[l]); }
    // clamp(rint(a) + zero_point, 0, 255) ^ flip, for a <= 255 - zero_point, of any size below, not NaN.
    static void store_u8(uint8_t* p, F a, int32_t zero_point, uint8_t flip) {
        FC_LANES {
            const int32_t q = round_even(a.v[l] > -512.0f ? a.v[l] : -512.0f) + zero_point;
            p[l] = static_cast<uint8_t>((q < 0 ? 0 : q > 255 ? 255 : q) ^ flip);
        }
    }
    static void store_u8x4(uint8_t* p, F a, F b, F c, F d, int32_t zero_point, uint8_t flip) {
        store_u8(p, a, zero_point, flip);
        store_u8(p + width, b, zero_point, flip);
        store_u8(p + 2 * width, c, zero_point, flip);
        store_u8(p + 3 * width, d, zero_point, flip);
    }
    // The low byte of each lane.
    static void store_bytes(int8_t* p, I a) { FC_LANES p[l] = static_cast<int8_t>(a.v[l]); }
    static F add(F a, F b) {
        FC_LANES a.v[l] = a.v[l] + b.v[l];
        return a;
    }
    static F sub(F a, F b) {
        FC_LANES a.v[l] = a.v[l] - b.v[l];
        return a;
    }
    static F mul(F a, F b) {
        FC_LANES a.v[l] = a.v[l] * b.v[l];
        return a;
    }
    static F div(F a, F b) {
        FC_LANES a.v[l] = a.v[l] / b.v[l];
        return a;
    }
    static F min(F a, F b) {
        FC_LANES a.v[l] = a.v[l] < b.v[l] ? a.v[l] : b.v[l];
        return a;
    }
    static F max(F a, F b) {
        FC_LANES a.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l];
        return a;
    }
    static F abs(F a) {
        FC_LANES a.v[l] = bits_float(float_bits(a.v[l]) & 0x7fffffffu);
        return a;
    }
    // a < 0 ? x : y
    static F select_negative(F a, F x, F y) {
        FC_LANES a.v[l] = a.v[l] < 0.0f ? x.v[l] : y.v[l];
        return a;
    }
    // a * b, or 0 where a is NaN
    static F mul_or_zero(F a, F b) {
        FC_LANES a.v[l] = a.v[l] == a.v[l] ? a.v[l] * b.v[l] : 0.0f;
        return a;
    }
    // Nearest even; |a| < 2^22.
    static I round(F a) {
        I r;
        FC_LANES r.v[l] = round_even(a.v[l]);
        return r;
    }
    static F to_real(I a) {  // the same bits
        F r;
        FC_LANES r.v[l] = bits_float(static_cast<uint32_t>(a.v[l]));
        return r;
    }
    static F to_float(I a) {
        F r;
        FC_LANES r.v[l] = static_cast<float>(a.v[l]);
        return r;
    }
    static I addi(I a, I b) {
        FC_LANES a.v[l] = wrap(static_cast<uint32_t>(a.v[l]) + static_cast<uint32_t>(b.v[l]));
        return a;
    }
    static I subi(I a, I b) {
        FC_LANES a.v[l] = wrap(static_cast<uint32_t>(a.v[l]) - static_cast<uint32_t>(b.v[l]));
        return a;
    }
    static I muli(I a, I b) {
        FC_LANES a.v[l] = wrap(static_cast<uint32_t>(a.v[l]) * static_cast<uint32_t>(b.v[l]));
        return a;
    }
    static I shift_right_8(I a) {
        FC_LANES a.v[l] >>= 8;
        return a;
    }
    static I maxi(I a, I b) {
        FC_LANES a.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l];
        return a;
    }
    // Of all lanes.
    static float largest(F a) {
        float r = a.v[0];
        FC_LANES r = a.v[l] > r ? a.v[l] : r;
        return r;
    }
    static int32_t largesti(I a) {
        int32_t r = a.v[0];
        FC_LANES r = a.v[l] > r ? a.v[l] : r;
        return r;
    }
    static int32_t sumi(I a) {
        int32_t r = 0;
        FC_LANES r += a.v[l];
        return r;
    }
    // 2^n as a float, n in [-126, 127]
    static F exp2i(I n) {
        F r;
        FC_LANES r.v[l] = bits_float(static_cast<uint32_t>(n.v[l] + 127) << 23);
        return r;
    }
    // Bits of |a| as a non-negative int32: orders like |a|, and is >= 0x7f800000 for infinities and NaN.
    static I magnitude_bits(F a) {
        I r;
        FC_LANES r.v[l] = wrap(float_bits(a.v[l]) & 0x7fffffffu);
        return r;
    }
#undef FC_LANES

   private:
    static int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
    static int32_t round_even(float x) {
        // 1.5 * 2^23 + x has no fraction bits left: the addition rounds to an integer, half to even.
        float shifted = x + 12582912.0f;
        return static_cast<int32_t>(shifted - 12582912.0f);
    }
};

}  // namespace
