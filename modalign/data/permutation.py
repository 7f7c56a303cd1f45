"""Seeded shuffles without memory: where an element goes is computed, never stored."""

from __future__ import annotations

import hashlib

MASK = (1 << 64) - 1
ROUNDS = 6  # four already make a Feistel network pseudo-random; two more for tiny sizes


def key(*parts: int) -> int:
    """64 bits that follow from `parts` alone, the same on every machine."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def permute(position: int, size: int, secret: int) -> int:
    """Where `position` goes in a shuffle of 0..size-1 that `secret` (64 bits) chooses; O(1).

    A Feistel network on the smallest even number of bits that holds `size`; results beyond the end
    enter it again, which keeps it a bijection and takes fewer than four turns on average.
    """
    if not 0 <= position < size:
        raise IndexError(f"position {position} is not within 0..{size - 1}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = position >> half, position & low
        for turn in range(ROUNDS):
            left, right = right, left ^ (_mix(secret + turn * 0x9E3779B97F4A7C15 + right) & low)
        position = (left << half) | right
        if position < size:
            return position


def _mix(value: int) -> int:
    """The finaliser of SplitMix64: every input bit changes half of the output bits."""
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
