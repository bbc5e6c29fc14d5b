// What an instruction set offers: one table of function pointers per ISA. Drivers (csrc/cpu/*.cpp, compiled for the
// baseline CPU) split the work and call through a table; kernels never see a tensor and never check their arguments.
#pragma once

#include "fastcompress/epilogue.h"
#include "fastcompress/types.h"

namespace fastcompress {

// Called for every finished part of a product: `acc` [rows, acc_ld] covers output rows row0.. and channels
// col0..col0+cols (col0 a multiple of kPanel).
using EpilogueFunction = void (*)(const Epilogue&, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows,
                                  int64_t col0, int64_t cols);

// out[row0 + r, col0 + n] = epilogue(sum_k A[r, k] * B[k, n]), u8 x s8 -> s32, r in [0, rows), n in [0, columns).
// The kernel forms the accumulators of some rows and columns in `c` and hands them to `finish` while they are in L1.
//
// B is packed "n16k4": panel p holds output channels 16p .. 16p+15,
//
//     byte offset inside a panel = (k / 4) * 64 + n * 4 + (k % 4)
//
//      k0..k3 of n0 | k0..k3 of n1 | ... | k0..k3 of n15      <- 64 bytes, one zmm / one row of an AMX tile
//      k4..k7 of n0 | ...
//
// A row starts at a + row_offset[m] (bytes), or a + m * a_stride when row_offset is null. Its K bytes are `segments` runs
// of 4 * segment_quads bytes; run s starts segment_offset[s] bytes after the row's start. A plain matrix is one run.
// Kernels whose table says `uniform_rows` take one run and a constant a_stride only.
// Bytes beyond K in the last quad (or AMX step, see k_unit) must be readable; B is zero there.
struct GemmBlock {
    const uint8_t* a;
    const int64_t* row_offset;
    int64_t a_stride;
    const int64_t* segment_offset;
    int64_t segments;
    int64_t segment_quads;
    const int8_t* b;
    int64_t panel_stride;  // bytes from one panel to the next
    int64_t rows;          // at most the table's call_rows
    int64_t columns;       // real channels; the last panel may be part padding
    int32_t* c;            // scratch of kScratchElements
    EpilogueFunction finish;
    const Epilogue* epilogue;
    int64_t row0, col0;
    int64_t next_bytes;  // a hint: so many bytes of weights behind these panels are needed next
    bool fetch_ahead;    // a hint: the weights exceed the cache and the panels behind these come next
};

// GemmBlock::c holds this many accumulators.
constexpr int64_t kScratchElements = 128 * 64;

// One run of output pixels of a depthwise convolution, all of one image row.
//
//   acc[x, c] = sum_t a[x * pixel_step + tap_offset[t] + c] * w[c, t]      c in [0, channels), channels a multiple of 16
//
// Taps are ordered by kernel column, each column's rows padded to a multiple of four with weight 0 and a valid offset:
//
//   3x3:  t =  (0,0) (1,0) (2,0) pad | (0,1) (1,1) (2,1) pad | (0,2) (1,2) (2,2) pad          (row, column)
//
// so a quad of taps lies in one column, and neighbouring pixels can share its gathered bytes: column j of pixel x is
// column 0 moved by x * pixel_step + j * column_step. w is n16k4 with k = t; acc is [pixels, acc_ld] int32.
struct DepthwiseRow {
    const uint8_t* a;
    int64_t pixel_step;   // bytes
    int64_t column_step;  // bytes
    const int64_t* tap_offset;
    int64_t kernel_w;
    int64_t column_quads;  // quads of taps in a column
    const int8_t* w;
    int64_t channels;
    int64_t pixels;
    int32_t* acc;
    int64_t acc_ld;
};

// Tokens token .. token + count - 1 of a tile are output rows row ...
struct RowRun {
    int64_t token, row, count;
};

// Block-sparse products: tokens times the blocks of panels [panel0, panel1), finished like a GEMM's.
//
// A block is block_h channels x one column of inputs; a column is as many inputs as one multiplication takes:
//
//     value   inputs    a weight's place         a token's inputs of column i
//     s8      4 x u8    4 (channel) + input      4 bytes
//     f32     1 x f32   4 (channel)              4 bytes
//     bf16    2 x f32   4 (channel) + 2 (input)  2 words, `part_step` bytes apart
//
// so a block has 4 * block_h bytes. Few rows are read as they lie, row_stride bytes apart. More come as a tile of `width` tokens, a
// multiple of 16, neighbours four bytes apart: one load takes a column of as many tokens as it has lanes. The tile holds
// a column at a + column * column_step, or at a + column_offset[column]. Tokens that are in no run hold anything.
struct SparseProduct {
    const uint8_t* a;
    int64_t rows, row_stride;  // of few rows
    int64_t width;             // of a tile
    int64_t column_step, part_step;
    const int64_t* column_offset;  // null: column_step holds
    const int32_t* pointer;        // first block of each row of blocks; those of whole panels
    const void* index;             // of each block; SparseKernel says how
    const uint8_t* w;
    int64_t panel0, panel1;
    int64_t channels;  // real ones; the last panel may be part padding
    int32_t* c;        // scratch of kSparseScratchElements
    EpilogueFunction finish;
    const Epilogue* epilogue;
    const RowRun* runs;
    int64_t run_count;
};

// Columns of blocks are uint16. Small s8 blocks must spend less on an index: a byte, the distance from the block before, or from column
// 0. kFarBlock stands for a block of zeros that only bridges a distance.
constexpr int64_t kFarBlock = 255;

// One kernel for blocks of one kind.
struct SparseKernel {
    DType value;
    int32_t block_h, block_w;
    const char* name;                        // of the tile's inner loop
    void (*few_rows)(const SparseProduct&);  // up to kSparseFewRows rows; null: none
    void (*tile)(const SparseProduct&);
    int64_t widest;  // tile, at most kWidestTile
};
constexpr int64_t kWidestTile = 64;
constexpr int64_t kSparseScratchElements = kWidestTile * (144 + 16);
constexpr int64_t kSparseFewRows = 4;

// Word w of row r (4 bytes; rows are `stride` bytes apart) to out + (w * width + r) * 4.
using InterleaveFunction = void (*)(const uint8_t* from, int64_t stride, int64_t rows, int64_t words, int64_t width,
                                    uint8_t* out);

// Products of weights in groups: rows of s8 activations times the codes of panels [panel0, panel1), in float32. Activations of eight
// bits are one row each, those of sixteen two: high bytes, low bytes (a = 256 high + low). For row m and channel n
//
//     v = 0;  with minima (then z = 0), for each group g in order:  v = v + input_sum[m,g] * minimum[n,g]
//             for each group g in order:  S = sum_k (q[n,k] - z[n,g]) a[m,k], of each row exact int32
//                 eight bits:    v = v + float(S) * scale[n,g]
//                 sixteen bits:  v = v + ((float(S high) * 256 + float(S low)) * scale[n,g]) * a_scale[m,g]
//     eight bits:  v = v * a_scale[m]
//
// The float32 operations are these, in this order, on every ISA. The layout is blob.h's; q is the stored code. Where z is the same
// everywhere, `start` holds -z sum_k a[m,k].
struct GroupedProduct {
    const int8_t* a;         // zeros from K to the end of the last eight inputs
    int64_t rows, a_stride;  // rows: of s8
    const int32_t* start;    // [rows, groups]: what the sums of a group start from; null: 0
    const float* a_scale;    // [rows], or [rows / 2, groups]
    const float* input_sum;  // with minima, [activations' rows, groups]: sum, in 16 bits (256 high + low) a_scale
    const uint8_t* w;
    const void* scale;
    DType scale_dtype;
    const uint8_t* zero_point;  // null: none
    const int32_t* sums;        // with zero points, [rows, groups]: of a group's activations
    const float* minimum;       // null: none
    int64_t octets, group_octets, groups;
    int64_t panel0, panel1, channels;
    float* c;  // scratch of kGroupedScratchElements
    EpilogueFunction finish;
    const Epilogue* epilogue;
    int64_t row0;
};
constexpr int64_t kGroupedScratchElements = 256;  // the float sums of a tile, on their way to the epilogue

// What one ISA has for weights in groups: codes of four or eight bits, activations of eight or sixteen.
struct GroupedTable {
    void (*w4a8)(const GroupedProduct&);
    void (*w4a16)(const GroupedProduct&);
    void (*w8a16)(const GroupedProduct&);
    // sums[g]: of the values of group g, `quads` fours of them; values are followed by zeros up to a multiple of 64.
    void (*group_sums)(const int8_t* values, int64_t count, int64_t quads, int32_t* sums);
    const char* name;
    int64_t panels;  // of a task: a multiple of this
};

// What one ISA has for sparse weights.
struct SparseTable {
    const SparseKernel* integer;  // kSparseIntegerKernels of them
    const SparseKernel* real;     // kSparseRealKernels of them
    InterleaveFunction interleave;
};
constexpr int kSparseIntegerKernels = 3, kSparseRealKernels = 4;

// Panels of four-bit weights (blob.h) to n16k4: `lines` lines of 64 bytes to `to`, from half as many bytes.
using UnpackFunction = void (*)(const uint8_t* from, int64_t lines, int8_t* to);

struct KernelTable {
    Isa isa;
    const char* name;

    // GEMM. k_unit: K is padded to this many bytes; call_rows: the most rows of a call (0: any); tile_rows: rows that are
    // multiplied together, of which a task should have several.
    void (*gemm)(const GemmBlock&);
    const char* gemm_name;
    int64_t k_unit;
    int64_t tile_rows;
    int64_t call_rows;
    bool uniform_rows;
    float multiply_adds_per_ns;  // of one core, roughly: to judge whether work is worth a second thread

    // For few rows (up to small_rows), when the main kernel wastes work on them; same packed layout. Null: none.
    void (*gemm_small)(const GemmBlock&);
    int64_t small_rows;

    void (*depthwise)(const DepthwiseRow&);

    SparseTable sparse;
    GroupedTable grouped;
    UnpackFunction unpack_nibbles;

    EpilogueFunction epilogue;

    // out[i] = clamp(rint(x[i] * inverse_scale) + zero_point) as u8, or as s8 when is_signed; NaN -> zero_point.
    // x: f32, bf16, f16.
    void (*quantize)(const void* x, DType dtype, int64_t count, float inverse_scale, int32_t zero_point, bool is_signed,
                     uint8_t* out);

    // bf16 or f16 to f32.
    void (*widen)(const void* x, DType dtype, int64_t count, float* out);

    // q = rint(x[i] * inverse_scale), which must fit 16 bits: q = 256 high[i] + low[i]. x: f32, bf16, f16.
    void (*split)(const void* x, DType dtype, int64_t count, float inverse_scale, int8_t* high, int8_t* low);

    // lo = min(0, min x), hi = max(0, max x); returns false (lo, hi unspecified) when x holds a NaN or an infinity.
    bool (*range)(const void* x, DType dtype, int64_t count, float* lo, float* hi);
};

}  // namespace fastcompress
