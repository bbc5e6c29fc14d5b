// AMX tile configuration: tiles 0-3 accumulate, 4-5 hold activations, 6-7 weights.
#pragma once

#include <cstdint>

namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

// rows0, rows1: rows of activations in the upper and lower half of a block, at most 16 each.
inline void configure_tiles(int64_t rows0, int64_t rows1) {
    TileConfig config;
    const int64_t r0 = rows0, r1 = rows1 > 0 ? rows1 : 1;
    const int64_t rows[8] = {r0, r0, r1, r1, r0, r1, 16, 16};
    for (int t = 0; t < 8; ++t) {
        config.bytes_per_row[t] = 64;
        config.rows[t] = static_cast<uint8_t>(rows[t]);
    }
    // Not the intrinsic: g++ 12 tells the compiler that it reads eight bytes of the configuration only.
    asm volatile("ldtilecfg %0" : : "m"(config));
}

}  // namespace
