// Four-byte dot products in plain C++, exact int32 arithmetic.
#pragma once

#include <cstdint>

namespace {

struct DotGeneric {
    static constexpr int lanes = 16, parts = 1;
    static constexpr bool has_four = false;
    struct Acc {
        int32_t v[lanes];
    };
    struct B {
        const int8_t* bytes;
    };
    struct A {
        int32_t v[4];
    };
    static Acc zero() { return {}; }
    static B load_b(const int8_t* p) { return {p}; }
    static A broadcast(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static Acc dot(Acc acc, A a, B b) {
        for (int l = 0; l < lanes; ++l)
            for (int i = 0; i < 4; ++i) acc.v[l] += a.v[i] * b.bytes[4 * l + i];
        return acc;
    }
    // Sixteen tokens' inputs times one channel's weights.
    struct Tokens {
        const uint8_t* bytes;
    };
    struct Weights {
        int32_t v[4];
    };
    static Tokens load_a(const uint8_t* p) { return {p}; }
    static Weights broadcast_b(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static Acc dot(Acc acc, Tokens a, Weights b) {
        for (int l = 0; l < lanes; ++l)
            for (int i = 0; i < 4; ++i) acc.v[l] += a.bytes[4 * l + i] * b.v[i];
        return acc;
    }
    struct Gathered {
        uint8_t v[64];
    };
    static Acc dot(Acc acc, const Gathered& a, B b) {
        for (int l = 0; l < lanes; ++l)
            for (int i = 0; i < 4; ++i) acc.v[l] += a.v[4 * l + i] * b.bytes[4 * l + i];
        return acc;
    }
    static void pin(Acc&) {}
    static Acc add(Acc a, const Acc& b) {
        for (int l = 0; l < lanes; ++l) a.v[l] += b.v[l];
        return a;
    }
    static Acc load(const int32_t* p) {
        Acc a;
        for (int l = 0; l < lanes; ++l) a.v[l] = p[l];
        return a;
    }
    static void store(int32_t* p, const Acc& a) {
        for (int l = 0; l < lanes; ++l) p[l] = a.v[l];
    }
};

}  // namespace
