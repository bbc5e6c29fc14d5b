// Four-bit panels to n16k4 in plain C++.
#include "../tables.h"

namespace {

void unpack_nibbles(const uint8_t* from, int64_t lines, int8_t* to) {
    for (int64_t line = 0; line < lines; ++line, from += 32, to += 64) {
        for (int i = 0; i < 32; ++i) {
            to[i] = static_cast<int8_t>((from[i] & 15) - 8);
            to[i + 32] = static_cast<int8_t>((from[i] >> 4) - 8);
        }
    }
}

}  // namespace

namespace fastcompress {

extern const UnpackFunction kUnpackNibbles_generic = unpack_nibbles;

}  // namespace fastcompress
