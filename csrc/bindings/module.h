// What each source adds to the module fastcompress._C.
#pragma once

#include <pybind11/pybind11.h>

namespace fastcompress::bindings {

void add_cpu(pybind11::module_& m);         // features, ISA choice, threads, ceilings
void add_packing(pybind11::module_& m);     // packed blobs
void add_groups(pybind11::module_& m);      // those of weights in groups
void add_quantizers(pybind11::module_& m);  // kernels on raw buffers
void add_layers(pybind11::module_& m);

}  // namespace fastcompress::bindings
