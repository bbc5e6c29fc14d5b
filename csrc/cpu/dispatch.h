// Which kernel table runs. The choice is made once (FASTCOMPRESS_ISA, else the strongest supported) and may be forced
// by name at run time for tests and measurements.
#pragma once

#include <string>
#include <vector>

#include "fastcompress/kernels.h"

namespace fastcompress {

const char* isa_name(Isa isa);
const char* isa_name(int32_t code);  // "unknown" out of range

std::vector<Isa> compiled_isas();

const KernelTable& table_for(Isa isa);
const KernelTable& current_table();  // throws std::runtime_error when FASTCOMPRESS_ISA is unknown or unsupported

// The table's kernel for blocks of one kind; null: there is none.
const SparseKernel* find_sparse_kernel(const KernelTable& table, DType value, int64_t block_h, int64_t block_w);

void set_isa(const std::string& name);  // throws likewise; nothing changed then

}  // namespace fastcompress
