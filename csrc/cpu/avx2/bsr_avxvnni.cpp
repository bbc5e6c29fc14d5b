// Block-sparse kernels for s8 weights, AVX-VNNI.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/dot_avxvnni.h"
#include "../simd/transpose_avx2.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseInteger_avxvnni[] = {
    {DType::s8, 16, 4, "vpdpbusd 16x4", bsr_few_rows<DotVnni256>, bsr_tile_channels<DotVnni256, 4>, 16},
    {DType::s8, 4, 4, "vpdpbusd 4x16", nullptr, bsr_tile_tokens<DotVnni256, SteppedColumns, 4, 2>, 16},
    {DType::s8, 1, 4, "vpdpbusd 1x64", nullptr, bsr_tile_tokens<DotVnni256, SteppedColumns, 1, 8>, 64},
};

}  // namespace fastcompress
