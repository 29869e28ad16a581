"""How an array is divided among the ranks, as a word of 64 bits that all ranks compare.

Zero: equal parts. Otherwise the two highest bits say how to read the rest (``JS_PARTS_*``): the
counts themselves, where they fit; a hash of them; or that every rank has its own splits, which are
compared pair by pair.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

__all__ = [
    "PARTS_SPLITS",
    "SPLIT_MAX",
    "Splits",
    "format_counts",
    "is_packed",
    "pack_counts",
    "unpack_counts",
]

#: Elements from one rank to one other: frames carry the number in 32 bits.
SPLIT_MAX = 2**32 - 1

_SHIFT = 62
_PACKED, _HASHED = 1 << _SHIFT, 2 << _SHIFT
#: The word of a call whose ranks have splits of their own.
PARTS_SPLITS = 3 << _SHIFT
_LOW = (1 << _SHIFT) - 1
_SHOWN_MAX = 16


@dataclass(frozen=True, slots=True)
class Splits:
    """One rank's side of an all_to_all, in elements: what it sends to each rank and awaits."""

    sent: tuple[int, ...]
    received: tuple[int, ...]


def pack_counts(counts: Sequence[int]) -> int:
    """The word of ``counts``, one per rank; none stand for equal parts."""
    if not counts:
        return 0
    bits = _SHIFT // len(counts)
    if max(counts) >> bits == 0:
        word = 0
        for count in reversed(counts):
            word = word << bits | count
        return _PACKED | word
    digest = blake2b(struct.pack(f"<{len(counts)}Q", *counts), digest_size=8).digest()
    return _HASHED | (int.from_bytes(digest, "little") & _LOW)


def is_packed(word: int) -> bool:
    """Whether ``word`` holds the counts themselves."""
    return word >> _SHIFT == _PACKED >> _SHIFT


def unpack_counts(word: int, world: int) -> tuple[int, ...]:
    """The counts that a packed word holds."""
    bits = _SHIFT // world
    return tuple((word & _LOW) >> bits * rank & ((1 << bits) - 1) for rank in range(world))


def format_counts(counts: Sequence[int]) -> str:
    """Counts as text, ``[3, 4, 5]``; of more than 16 only the first."""
    shown = ", ".join(str(count) for count in counts[:_SHOWN_MAX])
    return f"[{shown}{', ...' if len(counts) > _SHOWN_MAX else ''}]"
