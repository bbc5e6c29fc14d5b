// The machine's own limits, for benchmarks: register-only loops of each multiply instruction.
#pragma once

#include <string>
#include <vector>

namespace fastcompress {

// int8 (the strongest vector unit), amx_int8, bf16, amx_bf16, fp32, and "int8:<isa>" for each ISA of this machine.
std::vector<std::string> ceiling_kinds();

// Operations (multiplies and adds) per second of all threads, the best of short bursts during `seconds`.
// Throws std::invalid_argument for a kind this machine does not have.
double measure_ceiling(const std::string& kind, double seconds);

}  // namespace fastcompress
