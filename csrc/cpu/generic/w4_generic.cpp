// Four-bit kernels, generic.
// clang-format off: operand classes come before the templates that use them
#include "../simd/nibbles_generic.h"
#include "../families/w4_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const NibbleTable kNibbles_generic = {nibble_product<NibblesGeneric, 2, 1>, "c++ 2x16", 2, 1};

}  // namespace fastcompress
