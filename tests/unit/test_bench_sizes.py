"""Sizes of bench: what may be written, and which sweep comes of it."""

from __future__ import annotations

import pytest

from jetstream.bench.sizes import QUICK_SIZES_BYTES, format_size, parse_size, sweep
from jetstream.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("8", 8),
        ("0", 0),
        ("64K", 65536),
        ("64k", 65536),
        ("1.5K", 1536),
        ("16 MiB", 16 << 20),
        ("128M", 128 << 20),
        ("1GB", 1 << 30),
        ("4B", 4),
        (" 7 ", 7),
    ],
)
def test_parse_size_reads(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "K", "-8", "1.3", "8X", "1e3", "8 8", "0.5", "2000G", "nan"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_size(text)


@pytest.mark.parametrize("size_bytes", [1, 8, 1023, 1024, 65536, 3 << 19, 64 << 20, 5 << 30])
def test_format_size_is_what_parse_size_reads(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_sweep_by_factor() -> None:
    assert sweep(8, 64, factor=2) == (8, 16, 32, 64)
    assert sweep(8, 100, factor=2) == (8, 16, 32, 64)
    assert sweep(5, 5, factor=2) == (5,)
    assert sweep(1, 4, factor=1.01) == (1, 2, 3, 4)


def test_sweep_by_step() -> None:
    assert sweep(10, 40, step_bytes=10) == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("begin", "end", "options", "word"),
    [
        (64, 8, {"factor": 2}, "larger than -e"),
        (0, 8, {"factor": 2}, "-b"),
        (8, 64, {"factor": 1}, "-f"),
        (8, 64, {"factor": 0.5}, "-f"),
        (8, 64, {"factor": float("nan")}, "-f"),
        (8, 64, {"factor": float("inf")}, "-f"),
        (8, 64, {"step_bytes": 0}, "-i"),
        (8, 64, {"factor": 2, "step_bytes": 8}, "not both"),
        (1, 1 << 30, {"step_bytes": 1}, "more than"),
    ],
)
def test_sweep_refuses(begin: int, end: int, options: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        sweep(begin, end, **options)  # type: ignore[arg-type]


def test_quick_sizes_rise() -> None:
    assert list(QUICK_SIZES_BYTES) == sorted(set(QUICK_SIZES_BYTES))
