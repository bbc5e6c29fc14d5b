// Block-sparse kernels for float weights, plain C++.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/real_generic.h"
#include "../simd/transpose_generic.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseReal_generic[] = {
    {DType::f32, 16, 1, "c++ 16x4", bsr_few_rows<F32Generic>, bsr_tile_channels<F32Generic, 4>, 16},
    {DType::f32, 4, 1, "c++ 4x16", nullptr, bsr_tile_tokens<F32Generic, NumberedColumns, 4, 1>, 16},
    {DType::f32, 1, 1, "c++ 1x64", nullptr, bsr_tile_tokens<F32Generic, NumberedColumns, 1, 4>, 64},
    {DType::bf16, 16, 2, "c++ 16x4", bsr_few_rows<Bf16Generic>, bsr_tile_channels<Bf16Generic, 4>, 16},
};

extern const InterleaveFunction kInterleave_generic = bsr_interleave;

}  // namespace fastcompress
