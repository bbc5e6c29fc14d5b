// Block-sparse w8a8 kernels, 16x4 blocks, for plain C++.
#include "../families/bsr_impl.h"
#include "../simd/dot_generic.h"
#include "../tables.h"

namespace fastcompress {

extern const BsrTable kBsr_generic = {"c++ 4x16", bsr_rows<DotGeneric>, bsr_tile16<DotGeneric, 4>, 16,
                                      interleave_plain};

}  // namespace fastcompress
