// Every table of function pointers that an ISA source defines. Constant-initialised plain data: loading the library
// runs no code of an ISA the CPU may lack. Only those with a FASTCOMPRESS_HAVE_<ISA> (CMakeLists.txt) are defined.
#pragma once

#include "fastcompress/kernels.h"

namespace fastcompress {

// Shared by all ISAs of one vector width.
struct ElementwiseTable {
    decltype(KernelTable::epilogue) epilogue;
    decltype(KernelTable::quantize) quantize;
    decltype(KernelTable::widen) widen;
    decltype(KernelTable::split) split;
    decltype(KernelTable::range) range;
    int32_t (*read)(const int32_t* data, int64_t count);  // for bandwidths
};

// One ISA's w8a8 kernels.
struct W8A8Table {
    decltype(KernelTable::gemm) gemm;
    const char* gemm_name;
    int64_t k_unit;
    int64_t tile_rows;
    int64_t call_rows;
    bool uniform_rows;
    float multiply_adds_per_ns;
    decltype(KernelTable::depthwise) depthwise;
    // Register-only loop of the family's multiply instruction: operations per call of `iterations` loops.
    int64_t (*ceiling)(int64_t iterations);
};

extern const ElementwiseTable kElementwise_generic;
extern const W8A8Table kW8A8_generic;
extern const ElementwiseTable kElementwise_avx2;
extern const ElementwiseTable kElementwise_avx512;
extern const W8A8Table kW8A8_avx2;
extern const W8A8Table kW8A8_avxvnni;
extern const W8A8Table kW8A8_avx512;
extern const W8A8Table kW8A8_avx512vnni;
extern const W8A8Table kW8A8_amxint8;

extern const SparseKernel kSparseInteger_generic[kSparseIntegerKernels];
extern const SparseKernel kSparseInteger_avx2[kSparseIntegerKernels];
extern const SparseKernel kSparseInteger_avxvnni[kSparseIntegerKernels];
extern const SparseKernel kSparseInteger_avx512[kSparseIntegerKernels];
extern const SparseKernel kSparseInteger_avx512vnni[kSparseIntegerKernels];

// Shared by all ISAs of one vector width.
extern const SparseKernel kSparseReal_generic[kSparseRealKernels];
extern const SparseKernel kSparseReal_avx2[kSparseRealKernels];
extern const SparseKernel kSparseReal_avx512[kSparseRealKernels];
extern const InterleaveFunction kInterleave_generic;
extern const InterleaveFunction kInterleave_avx2;
extern const InterleaveFunction kInterleave_avx512;

// Shared by all ISAs of one vector width.
extern const UnpackFunction kUnpackNibbles_generic;
extern const UnpackFunction kUnpackNibbles_avx2;
extern const UnpackFunction kUnpackNibbles_avx512;

extern const GroupedTable kGrouped_generic;
extern const GroupedTable kGrouped_avx2;
extern const GroupedTable kGrouped_avxvnni;
extern const GroupedTable kGrouped_avx512;
extern const GroupedTable kGrouped_avx512vnni;

// Register-only loops of the float units; return the operations done.
int64_t ceiling_fp32_avx2(int64_t iterations);
int64_t ceiling_fp32_avx512(int64_t iterations);
int64_t ceiling_bf16_avx512(int64_t iterations);
int64_t ceiling_bf16_amx(int64_t iterations);

// dispatch.cpp
const W8A8Table& w8a8_table(Isa isa);
const ElementwiseTable& elementwise_table(Isa isa);
SparseTable sparse_table(Isa isa);
UnpackFunction nibble_unpacker(Isa isa);
const GroupedTable& grouped_table(Isa isa);

}  // namespace fastcompress
