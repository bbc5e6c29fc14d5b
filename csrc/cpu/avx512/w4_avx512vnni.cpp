// Four-bit kernels, avx512vnni.
// clang-format off: operand classes come before the templates that use them
#include "../simd/nibbles_avx512vnni.h"
#include "../families/w4_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const NibbleTable kNibbles_avx512vnni = {nibble_product<NibblesVnni512, 6, 4>, "vpdpbusd 6x64", 6, 4};

}  // namespace fastcompress
