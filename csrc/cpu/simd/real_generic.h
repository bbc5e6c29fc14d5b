// Products of float32 inputs and float32 or bfloat16 weights in plain C++, summed in float32.
#pragma once

#include "half.h"

namespace {

struct RealGeneric {
    static constexpr int lanes = 16;
    static constexpr bool has_four = false;
    struct Acc {
        float v[lanes];
    };
    using A = Acc;
    using B = Acc;
    static Acc zero() { return {}; }
    static void pin(Acc&) {}
    static Acc add(Acc a, const Acc& b) {
        for (int l = 0; l < lanes; ++l) a.v[l] += b.v[l];
        return a;
    }
    static void store(int32_t* p, const Acc& a) { __builtin_memcpy(p, a.v, sizeof a.v); }
    static A load_a(const uint8_t* p) {
        A a;
        __builtin_memcpy(a.v, p, sizeof a.v);
        return a;
    }
    static A broadcast(const uint8_t* p) { return all(bits_float(word(p))); }
    static Acc dot(Acc acc, const A& a, const B& b) {
        for (int l = 0; l < lanes; ++l) acc.v[l] += a.v[l] * b.v[l];
        return acc;
    }

   protected:
    static uint32_t word(const void* p) {
        uint32_t w;
        __builtin_memcpy(&w, p, 4);
        return w;
    }
    static A all(float x) {
        A a;
        for (int l = 0; l < lanes; ++l) a.v[l] = x;
        return a;
    }
};

struct F32Generic : RealGeneric {
    static constexpr int parts = 1;
    static B load_b(const int8_t* p) { return load_a(reinterpret_cast<const uint8_t*>(p)); }
    static B broadcast_b(const int8_t* p) { return all(bits_float(word(p))); }
};

// A word holds a channel's weights for two inputs: the first in its low half.
struct Bf16Generic : RealGeneric {
    static constexpr int parts = 2;
    static float half(uint32_t pair, int part) { return bits_float(part == 0 ? pair << 16 : pair & 0xffff0000u); }
    static B load_b(const int8_t* p, int part) {
        B b;
        for (int l = 0; l < lanes; ++l) b.v[l] = half(word(p + 4 * l), part);
        return b;
    }
    static B broadcast_b(const int8_t* p, int part) { return all(half(word(p), part)); }
};

}  // namespace
