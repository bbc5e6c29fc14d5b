// Four-bit kernels, avxvnni.
// clang-format off: operand classes come before the templates that use them
#include "../simd/nibbles_avxvnni.h"
#include "../families/w4_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const NibbleTable kNibbles_avxvnni = {nibble_product<NibblesVnni256, 4, 1>, "vpdpbusd-256 4x16", 4, 1};

}  // namespace fastcompress
