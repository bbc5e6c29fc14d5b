// Blocks of 16 channels on 512-bit registers: tokens in lanes, but for the narrowest tile, which needs no transposition.
#pragma once

#include "bsr_channels_impl.h"
#include "bsr_tokens_impl.h"

namespace {

template <class Dot>
void bsr_tile_blocks16(const SparseProduct& s) {
    s.width == 16 ? bsr_tile_channels<Dot, 16>(s) : bsr_tile_tokens<Dot, 16, 8, 2>(s);
}

}  // namespace
