// What packing functions of all families share.
#pragma once

#include "buffers.h"
#include "fastcompress/blob.h"

namespace fastcompress::bindings {

// What all layers have in common; the buffers stay alive with it.
struct Channels {
    Buffer scale, bias;
};

// An opened blob of any ISA.
const BlobHeader& open_any(const Buffer& packed);

// Reads [channels] scales and biases, either of which may be None, into `spec`.
Channels read_channels(const char* op, const py::object& weight_scale, const py::object& bias, int64_t channels,
                       LayerSpec& spec);
void read_input(int input_mode, float input_scale, int input_zero_point, int activation, LayerSpec& spec);

// The blob of a layer, in memory of its own.
py::array packed(const LayerSpec& spec);

}  // namespace fastcompress::bindings
