// w8a8 GEMM for AMX: 32 x 32 blocks, four accumulator tiles, two tiles of activations, two of weights.
//
//          B0 (16 k-quads x 16 channels)  B1
//     A0   C00                            C01        tdpbusd: C[16 x 16] += A[16 x 64] * B[64 x 16]
//     A1   C10                            C11
//
// A panel of n16k4 weights is a B tile as it lies in memory (64 bytes a row). K is padded to 64 with zero weights, so the
// last step may read up to 63 bytes past a row's K bytes of activations: the caller keeps them readable.
#include <immintrin.h>

#include "../tables.h"
#include "tile_config.h"

namespace {

using fastcompress::GemmBlock;

template <int ROW_TILES, int PANELS>
inline void block(const GemmBlock& g, const uint8_t* a, const int8_t* b, int32_t* c) {
    _tile_zero(0);
    if constexpr (PANELS > 1) _tile_zero(1);
    if constexpr (ROW_TILES > 1) _tile_zero(2);
    if constexpr (ROW_TILES > 1 && PANELS > 1) _tile_zero(3);
    const int64_t steps = g.segment_quads / 16;
    const uint8_t* a1 = a + 16 * g.a_stride;
    const int8_t* b1 = b + g.panel_stride;
    for (int64_t k = 0; k < steps; ++k) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, g.a_stride);
        _tile_dpbusd(0, 4, 6);
        if constexpr (PANELS > 1) {
            _tile_loadd(7, b1, 64);
            _tile_dpbusd(1, 4, 7);
        }
        if constexpr (ROW_TILES > 1) {
            _tile_loadd(5, a1, g.a_stride);
            _tile_dpbusd(2, 5, 6);
            if constexpr (PANELS > 1) _tile_dpbusd(3, 5, 7);
        }
        a += 64;
        a1 += 64;
        b += 1024;
        b1 += 1024;
    }
    const int64_t ldc_bytes = g.ldc * 4;
    _tile_stored(0, c, ldc_bytes);
    if constexpr (PANELS > 1) _tile_stored(1, c + 16, ldc_bytes);
    if constexpr (ROW_TILES > 1) _tile_stored(2, c + 16 * g.ldc, ldc_bytes);
    if constexpr (ROW_TILES > 1 && PANELS > 1) _tile_stored(3, c + 16 * g.ldc + 16, ldc_bytes);
}

template <int ROW_TILES>
inline void columns(const GemmBlock& g, int64_t row) {
    const uint8_t* a = g.a + row * g.a_stride;
    int32_t* c = g.c + row * g.ldc;
    int64_t p = 0;
    for (; p + 2 <= g.panels; p += 2) block<ROW_TILES, 2>(g, a, g.b + p * g.panel_stride, c + 16 * p);
    if (p < g.panels) block<ROW_TILES, 1>(g, a, g.b + p * g.panel_stride, c + 16 * p);
}

void gemm(const GemmBlock& g) {
    int64_t row = 0;
    if (g.rows >= 32) {
        configure_tiles(16, 16);
        for (; row + 32 <= g.rows; row += 32) columns<2>(g, row);
    }
    const int64_t left = g.rows - row;
    if (left > 16) {
        configure_tiles(16, left - 16);
        columns<2>(g, row);
    } else if (left > 0) {
        configure_tiles(left, 0);
        columns<1>(g, row);
    }
    _tile_release();
}

int64_t ceiling(int64_t iterations) {
    configure_tiles(16, 16);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t i = 0; i < iterations; ++i) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
    return iterations * 4 * 2 * 16 * 16 * 64;
}

}  // namespace

namespace fastcompress {

extern const W8A8Table kW8A8_amxint8 = {gemm, "tdpbusd 32x32", 64, 32, true, nullptr, ceiling};

}  // namespace fastcompress
