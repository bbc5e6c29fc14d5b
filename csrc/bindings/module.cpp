// fastcompress._C: the kernels on raw buffers (pybind11) and, through static registration in ops_*.cpp, the torch ops.
#include "module.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "fastcompress' native kernels on raw buffers; see docs/architecture.md, section 6.";
    fastcompress::bindings::add_cpu(m);
    fastcompress::bindings::add_packing(m);
    fastcompress::bindings::add_groups(m);
    fastcompress::bindings::add_quantizers(m);
    fastcompress::bindings::add_layers(m);
}
