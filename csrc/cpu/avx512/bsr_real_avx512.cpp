// Block-sparse kernels for float weights, AVX-512.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/real_avx512.h"
#include "../simd/transpose_avx512.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseReal_avx512[] = {
    {DType::f32, 16, 1, "vfmadd 16x16", bsr_few_rows<F32x16>, bsr_tile_channels<F32x16, 16>, 16},
    {DType::f32, 4, 1, "vfmadd 4x32", nullptr, bsr_tile_tokens<F32x16, NumberedColumns, 4, 2>, 32},
    {DType::f32, 1, 1, "vfmadd 1x64", nullptr, bsr_tile_tokens<F32x16, NumberedColumns, 1, 4>, 64},
    {DType::bf16, 16, 2, "vfmadd 16x16", bsr_few_rows<Bf16x16>, bsr_tile_channels<Bf16x16, 16>, 16},
};

extern const InterleaveFunction kInterleave_avx512 = bsr_interleave;

}  // namespace fastcompress
