// bf16 ceiling of AMX, for benchmarks.
#include <immintrin.h>

#include "../tables.h"
#include "tile_config.h"

namespace fastcompress {

int64_t ceiling_bf16_amx(int64_t iterations) {
    configure_tiles(16, 16);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t i = 0; i < iterations; ++i) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return iterations * 4 * 2 * 16 * 16 * 32;
}

}  // namespace fastcompress
