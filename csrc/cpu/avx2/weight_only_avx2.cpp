// Weight-only kernels, avx2.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_avx2.h"
#include "../families/weight_only_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const WeightOnlyTable kWeightOnly_avx2 = weight_only_kernels<Codes256, 4, 1, 4>("fma-256 4x16");

}  // namespace fastcompress
