// Weight-only kernels, generic.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_generic.h"
#include "../families/weight_only_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const WeightOnlyTable kWeightOnly_generic = weight_only_kernels<CodesGeneric, 2, 1, 1>("c++ 2x16");

}  // namespace fastcompress
