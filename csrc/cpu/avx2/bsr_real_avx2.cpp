// Block-sparse kernels for float weights, AVX2 and FMA.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/real_avx2.h"
#include "../simd/transpose_avx2.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseReal_avx2[] = {
    {DType::f32, 16, 1, "vfmadd 16x4", bsr_few_rows<F32x8>, bsr_tile_channels<F32x8, 4>, 16},
    {DType::f32, 4, 1, "vfmadd 4x16", nullptr, bsr_tile_tokens<F32x8, NumberedColumns, 4, 2>, 16},
    {DType::f32, 1, 1, "vfmadd 1x64", nullptr, bsr_tile_tokens<F32x8, NumberedColumns, 1, 8>, 64},
    {DType::bf16, 16, 2, "vfmadd 16x4", bsr_few_rows<Bf16x8>, bsr_tile_channels<Bf16x8, 4>, 16},
};

extern const InterleaveFunction kInterleave_avx2 = bsr_interleave;

}  // namespace fastcompress
