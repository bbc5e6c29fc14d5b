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
using fastcompress::kPanel;

// Steps of 64 in K that a pair of weight panels stays in L1 for (24 KiB) while the rows pass by.
constexpr int64_t kSpanSteps = 12;

// Accumulators of all rows and columns of a call: their rows are so far apart.
inline int64_t scratch_ld(const GemmBlock& g) { return (g.columns + kPanel - 1) / kPanel * kPanel; }

// Cache lines of weights to fetch into L2 while a block computes: `lines` a step.
struct Prefetch {
    const int8_t* from;
    int64_t lines;
};

template <int ROW_TILES, int PANELS>
inline void block(const GemmBlock& g, bool first, int64_t steps, const uint8_t* a, const int8_t* b, int32_t* c,
                  Prefetch next) {
    const int64_t ldc = scratch_ld(g), ldc_bytes = ldc * 4;
    if (first) {
        _tile_zero(0);
        if constexpr (PANELS > 1) _tile_zero(1);
        if constexpr (ROW_TILES > 1) _tile_zero(2);
        if constexpr (ROW_TILES > 1 && PANELS > 1) _tile_zero(3);
    } else {
        _tile_loadd(0, c, ldc_bytes);
        if constexpr (PANELS > 1) _tile_loadd(1, c + 16, ldc_bytes);
        if constexpr (ROW_TILES > 1) _tile_loadd(2, c + 16 * ldc, ldc_bytes);
        if constexpr (ROW_TILES > 1 && PANELS > 1) _tile_loadd(3, c + 16 * ldc + 16, ldc_bytes);
    }
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
        for (int64_t i = 0; i < next.lines; ++i, next.from += 64) _mm_prefetch(next.from, _MM_HINT_T1);
        a += 64;
        a1 += 64;
        b += 1024;
        b1 += 1024;
    }
    _tile_stored(0, c, ldc_bytes);
    if constexpr (PANELS > 1) _tile_stored(1, c + 16, ldc_bytes);
    if constexpr (ROW_TILES > 1) _tile_stored(2, c + 16 * ldc, ldc_bytes);
    if constexpr (ROW_TILES > 1 && PANELS > 1) _tile_stored(3, c + 16 * ldc + 16, ldc_bytes);
}

// Rows [row0, row1) times all panels; full tiles of 2 x 16 rows, or the one tail that the configuration was made for.
template <int ROW_TILES>
void rows(const GemmBlock& g, int64_t row0, int64_t row1) {
    const int64_t steps = g.segment_quads / 16, panels = (g.columns + kPanel - 1) / kPanel;
    const int64_t spans = (steps + kSpanSteps - 1) / kSpanSteps;
    for (int64_t p = 0; p < panels; p += 2) {
        for (int64_t s = 0; s < spans; ++s) {
            const int64_t k0 = steps * s / spans, k1 = steps * (s + 1) / spans;
            const int8_t* b = g.b + p * g.panel_stride + k0 * 1024;
            // The span's part of the next two panels, spread over the row blocks: half of them fetch one panel each.
            const int64_t blocks = (row1 - row0 + 31) / 32;
            const int64_t lines = g.fetch_ahead ? (32 + blocks - 1) / blocks : 0;
            for (int64_t row = row0; row < row1; row += 32) {
                const int64_t line = (row - row0) / 32 * lines * (k1 - k0), panel_lines = (k1 - k0) * 16;
                const Prefetch next{
                    b + 2 * g.panel_stride + line / panel_lines * g.panel_stride + line % panel_lines * 64, lines};
                const uint8_t* a = g.a + row * g.a_stride + k0 * 64;
                int32_t* c = g.c + row * scratch_ld(g) + 16 * p;
                if (p + 2 <= panels) {
                    block<ROW_TILES, 2>(g, s == 0, k1 - k0, a, b, c, next);
                } else {
                    block<ROW_TILES, 1>(g, s == 0, k1 - k0, a, b, c, next);
                }
            }
        }
    }
}

void gemm(const GemmBlock& g) {
    const int64_t full = g.rows / 32 * 32, left = g.rows - full;
    if (full > 0) {
        configure_tiles(16, 16);
        rows<2>(g, 0, full);
    }
    if (left > 16) {
        configure_tiles(16, left - 16);
        rows<2>(g, full, g.rows);
    } else if (left > 0) {
        configure_tiles(left, 0);
        rows<1>(g, full, g.rows);
    }
    _tile_release();
    g.finish(*g.epilogue, g.c, scratch_ld(g), g.row0, g.rows, g.col0, g.columns);
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

extern const W8A8Table kW8A8_amxint8 = {gemm, "tdpbusd 32x32", 64, 32, 128, true, 1500, nullptr, ceiling};

}  // namespace fastcompress
