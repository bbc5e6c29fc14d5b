// Reads memory and does next to nothing with it: the bandwidth that kernels are held against. Compiled per ISA, because
// baseline loads are too narrow for L1.
#pragma once

#include "fastcompress/types.h"

namespace {

// A number that depends on every element of four equal parts of whole vectors. Four streams with fetches ahead: one
// stream leaves a third of this memory's bandwidth unused.
int32_t run_read(const int32_t* data, int64_t count) {
    constexpr int64_t kAhead = 256;  // elements
    const int64_t part = count / 4 / Vec::width * Vec::width;
    const int32_t *p0 = data, *p1 = data + part, *p2 = data + 2 * part, *p3 = data + 3 * part;
    Vec::I a = Vec::seti(0), b = a, c = a, d = a;
    for (int64_t i = 0; i < part; i += Vec::width) {
        __builtin_prefetch(p0 + i + kAhead, 0, 2);
        __builtin_prefetch(p1 + i + kAhead, 0, 2);
        __builtin_prefetch(p2 + i + kAhead, 0, 2);
        __builtin_prefetch(p3 + i + kAhead, 0, 2);
        a = Vec::addi(a, Vec::loadi(p0 + i));
        b = Vec::addi(b, Vec::loadi(p1 + i));
        c = Vec::addi(c, Vec::loadi(p2 + i));
        d = Vec::addi(d, Vec::loadi(p3 + i));
    }
    alignas(64) int32_t sums[Vec::width];
    Vec::storei(sums, Vec::addi(Vec::addi(a, b), Vec::addi(c, d)));
    uint32_t sum = 0;
    for (int32_t each : sums) sum += static_cast<uint32_t>(each);
    return static_cast<int32_t>(sum);
}

}  // namespace
