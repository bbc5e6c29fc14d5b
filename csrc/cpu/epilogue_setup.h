// Fills an Epilogue from a blob and an output description, and checks the latter.
#pragma once

#include "fastcompress/epilogue.h"
#include "fastcompress/w8a8.h"

namespace fastcompress {

Epilogue make_epilogue(const BlobHeader& blob, const OutputSpec& out, const char* op);

}  // namespace fastcompress
