// Block-sparse kernels for s8 weights, plain C++.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/dot_generic.h"
#include "../simd/transpose_generic.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseInteger_generic[] = {
    {DType::s8, 16, 4, "c++ 16x4", bsr_few_rows<DotGeneric>, bsr_tile_channels<DotGeneric, 4>, 16},
    {DType::s8, 4, 4, "c++ 4x16", nullptr, bsr_tile_tokens<DotGeneric, SteppedColumns, 4, 1>, 16},
    {DType::s8, 1, 4, "c++ 1x64", nullptr, bsr_tile_tokens<DotGeneric, SteppedColumns, 1, 4>, 64},
};

}  // namespace fastcompress
