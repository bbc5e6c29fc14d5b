// Codes of four or eight bits times s8 activations in plain C++; lanes are output channels.
#pragma once

#include "vec_generic.h"

namespace {

struct CodesGeneric {
    struct Weights {
        uint8_t v[4 * Vec::width];
    };
    struct Inputs {
        int8_t v[4];
    };
    // Inputs 0..3, or 4..7, of Vec::width channels.
    static Weights low(const uint8_t* p) {
        Weights w;
        for (int i = 0; i < 4 * Vec::width; ++i) w.v[i] = p[i] & 15;
        return w;
    }
    static Weights high(const uint8_t* p) {
        Weights w;
        for (int i = 0; i < 4 * Vec::width; ++i) w.v[i] = p[i] >> 4;
        return w;
    }
    static Weights whole(const uint8_t* p) {
        Weights w;
        for (int i = 0; i < 4 * Vec::width; ++i) w.v[i] = p[i];
        return w;
    }
    static Inputs broadcast(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static Vec::I dot(Vec::I acc, const Weights& w, const Inputs& a) {
        for (int l = 0; l < Vec::width; ++l)
            for (int i = 0; i < 4; ++i) acc.v[l] += w.v[4 * l + i] * a.v[i];
        return acc;
    }
    static Vec::I dot_bytes(Vec::I acc, const Weights& w, const Inputs& a) { return dot(acc, w, a); }
    // Of each four of 4 * Vec::width values.
    static Vec::I quad_sums(const int8_t* p) {
        Vec::I r;
        for (int l = 0; l < Vec::width; ++l) r.v[l] = p[4 * l] + p[4 * l + 1] + p[4 * l + 2] + p[4 * l + 3];
        return r;
    }
    static Vec::I load_bytes(const uint8_t* p) {
        Vec::I r;
        for (int l = 0; l < Vec::width; ++l) r.v[l] = p[l];
        return r;
    }
    static void fetch(const uint8_t*) {}
};

}  // namespace
