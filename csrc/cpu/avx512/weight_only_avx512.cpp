// Weight-only kernels, avx512.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_avx512.h"
#include "../families/weight_only_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const WeightOnlyTable kWeightOnly_avx512 = weight_only_kernels<Codes512, 6, 4, 8>("fma 6x64");

}  // namespace fastcompress
