// w8a8 kernels in plain C++: 1 x 16 tiles, exact int32 arithmetic.
#include "../families/depthwise_impl.h"
#include "../families/gemm_impl.h"
#include "../tables.h"

namespace {

struct Dot {
    static constexpr int lanes = 16;
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
    struct Gathered {
        uint8_t v[64];
    };
    static Acc dot(Acc acc, const Gathered& a, B b) {
        for (int l = 0; l < lanes; ++l)
            for (int i = 0; i < 4; ++i) acc.v[l] += a.v[4 * l + i] * b.bytes[4 * l + i];
        return acc;
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

struct Gather {
    static Dot::Gathered interleave(const uint8_t* p0, const uint8_t* p1, const uint8_t* p2, const uint8_t* p3) {
        Dot::Gathered r;
        for (int c = 0; c < 16; ++c) {
            r.v[4 * c] = p0[c];
            r.v[4 * c + 1] = p1[c];
            r.v[4 * c + 2] = p2[c];
            r.v[4 * c + 3] = p3[c];
        }
        return r;
    }
    static const Dot::Gathered& part(const Dot::Gathered& bytes, int) { return bytes; }
};

// Integer multiply-adds, eight independent chains.
int64_t ceiling(int64_t iterations) {
    int32_t acc[8] = {};
    int32_t x = 3, y = 5;
    for (int64_t i = 0; i < iterations; ++i) {
        asm volatile("" : "+r"(x), "+r"(y));
        for (int j = 0; j < 8; ++j) acc[j] += x * y;
    }
    for (int j = 0; j < 8; ++j) asm volatile("" ::"r"(acc[j]));
    return iterations * 8 * 2;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_generic = {gemm<Dot, 4, 1>,        "c++ 4x16", 4, 4, 0, false, 10,
                                        depthwise<Dot, Gather>, ceiling};

}  // namespace fastcompress
