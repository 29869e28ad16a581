"""Message sizes: reading ``64M``, writing ``64 MiB``, and the list of sizes of a sweep."""

from __future__ import annotations

import re

from jetstream.errors import ConfigurationError

__all__ = ["QUICK_SIZES_BYTES", "format_size", "parse_size", "sweep"]

#: Sizes of ``--quick``: one per regime, from a single cache line to past the last-level cache.
QUICK_SIZES_BYTES = (8, 64, 1 << 10, 8 << 10, 64 << 10, 1 << 20, 16 << 20)

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:I?B)?", re.IGNORECASE)
_SIZE_MAX_BYTES = 1 << 40
_SWEEP_MAX = 200


def parse_size(text: str) -> int:
    """Reads a size in bytes: ``8``, ``64M``, ``1.5K``, ``16 KiB``; K, M and G are powers of 1024.

    Raises ConfigurationError for anything else, and for fractions of a byte.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is no size; write bytes as 8, 64K, 16M or 1G")
    size_bytes = float(match[1]) * (1 << _UNITS[match[2].upper()])
    if size_bytes != int(size_bytes) or size_bytes > _SIZE_MAX_BYTES:
        raise ConfigurationError(f"{text!r} is no whole number of bytes up to 1 TiB")
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """Writes a size for people: ``8 B``, ``64 KiB``, ``1.5 MiB``."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.4g} {unit}"
    return f"{size_bytes} B"


def sweep(
    begin_bytes: int, end_bytes: int, *, factor: float | None = None, step_bytes: int | None = None
) -> tuple[int, ...]:
    """Lists the sizes from begin to end, both included, multiplied by factor or added step_bytes.

    Raises ConfigurationError when the list would be empty, endless or unreasonably long.
    """
    if begin_bytes < 1:
        raise ConfigurationError(f"-b must be at least 1 byte, not {begin_bytes}")
    if begin_bytes > end_bytes:
        raise ConfigurationError(
            f"-b {format_size(begin_bytes)} is larger than -e {format_size(end_bytes)}"
        )
    if factor is not None and step_bytes is not None:
        raise ConfigurationError("give either a factor -f or a step -i, not both")
    if step_bytes is not None and step_bytes < 1:
        raise ConfigurationError(f"-i must be at least 1 byte, not {step_bytes}")
    if step_bytes is None and not (factor is not None and 1 < factor < float("inf")):
        raise ConfigurationError(f"-f must be larger than 1, not {factor}")
    sizes: list[int] = []
    size_bytes = begin_bytes
    while size_bytes <= end_bytes:
        sizes.append(size_bytes)
        if len(sizes) > _SWEEP_MAX:
            raise ConfigurationError(
                f"more than {_SWEEP_MAX} sizes; use a larger factor -f or step -i"
            )
        if step_bytes is not None:
            size_bytes += step_bytes
        else:
            assert factor is not None
            size_bytes = max(size_bytes + 1, int(size_bytes * factor))
    return tuple(sizes)
