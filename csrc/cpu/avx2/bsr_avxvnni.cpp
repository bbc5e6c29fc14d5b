// Block-sparse w8a8 kernels, 16x4 blocks, for AVX-VNNI.
#include "../families/bsr_impl.h"
#include "../simd/dot_avxvnni.h"
#include "../tables.h"

namespace fastcompress {

extern const BsrTable kBsr_avxvnni = {"vpdpbusd-256 4x16", bsr_rows<DotVnni256>, bsr_tile16<DotVnni256, 4>, 16,
                                      interleave_plain};

}  // namespace fastcompress
