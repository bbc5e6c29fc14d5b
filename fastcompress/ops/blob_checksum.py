"""``blob_checksum`` of csrc/cpu/pack/blob_header.cpp."""

import struct

__all__ = ["blob_checksum"]

_WORD = (1 << 64) - 1


def blob_checksum(text: bytes) -> int:
    """64 bits of a multiply-and-rotate mix, of whole 8-byte words: any single flipped bit changes the result."""
    h = 0x9E3779B97F4A7C15 ^ len(text)
    for (word,) in (*struct.iter_unpack("=Q", text), (0,)):
        h = (h ^ word) * 0xFF51AFD7ED558CCD & _WORD
        h = (h << 29 | h >> 35) & _WORD
    return h ^ h >> 32
