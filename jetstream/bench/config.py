"""What a bench run is asked to do: checked once, before any rank starts, and sent to the ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jetstream.bench.kinds import (
    COLLECTIVES,
    KINDS,
    LAUNCHED_FROM_C,
    PREFIXES,
    REDUCING,
    ROOTED,
    Case,
)
from jetstream.bench.sizes import format_size
from jetstream.config import RANKS_MAX, load_config
from jetstream.dtypes import DType, RedOp
from jetstream.errors import ConfigurationError

__all__ = ["BenchConfig", "check_output_path", "parse_dtypes", "parse_ops"]

#: A premultiplied sum is a sum with a pass over the array before it: there is nothing to see.
_OPS = [redop.label for redop in RedOp if redop is not RedOp.PREMUL_SUM]
#: Names that nccl-tests uses for the same types.
_ALIASES = {"double": "float64", "float": "float32", "half": "float16", "int": "int32"}


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """A checked request. Raises ConfigurationError on making one that cannot be run."""

    kinds: tuple[str, ...]
    ranks: int
    sizes_bytes: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    ops: tuple[str, ...] = ("sum",)
    root: int = 0
    warmup: int = 10
    iterations: int | None = None  # None: as many as fit into budget_s
    budget_s: float = 1.0  # of timed iterations for one row of the table
    check: bool = True
    launch: str = "python"
    algorithm: str | None = None  # in the grammar of JETSTREAM_ALGO
    bind: str = "core"
    timeout_s: float = 60.0  # of one operation
    keep_samples: bool = False

    def __post_init__(self) -> None:
        """Checks every field; the message names the option at fault."""
        _check_names("kind", self.kinds, KINDS)
        _check_names("-d", self.dtypes, [dtype.label for dtype in DType])
        _check_names("-o", self.ops, _OPS)
        _check_names("--launch", (self.launch,), ("python", "c"))
        _check_names("--bind", (self.bind,), ("core", "none"))
        if self.algorithm is not None:
            load_config({"JETSTREAM_ALGO": self.algorithm})
        _check_range("-n", self.ranks, 1, RANKS_MAX)
        _check_range("--root", self.root, 0, self.ranks - 1)
        _check_range("--warmup", self.warmup, 0, 1_000_000)
        _check_range("--iters", 1 if self.iterations is None else self.iterations, 1, 10_000_000)
        _check_range("--timeout", self.timeout_s, 0.001, 1e6)
        if not self.sizes_bytes:
            raise ConfigurationError("no sizes to measure")
        messages = [kind for kind in self.kinds if kind not in COLLECTIVES]
        if messages and self.ranks < 2:
            raise ConfigurationError(f"{messages[0]} needs at least 2 ranks (-n 2)")
        for kind in self.kinds:
            if kind in REDUCING and not any(self._ops_of(dtype, kind) for dtype in self.dtypes):
                ops = ", ".join(self.ops)
                raise ConfigurationError(f"-o: no type of -d has any of {ops} for {kind}")
        if self.launch == "c":
            _check_names("--launch c", self.kinds, LAUNCHED_FROM_C)

    def cases(self) -> list[Case]:
        """Lists the rows of the table in order; sizes that round to the same row appear once.

        Reductions that are not defined for an element type are left out.
        """
        cases: dict[tuple[object, ...], Case] = {}
        for kind in self.kinds:
            for dtype in self.dtypes:
                for redop in self._ops_of(dtype, kind) if kind in REDUCING else ("none",):
                    for size_bytes in self.sizes_bytes:
                        root = self.root if kind in ROOTED else -1
                        case = Case(kind, self.ranks, size_bytes, dtype, redop, root)
                        if kind == "barrier":
                            case = Case(kind, self.ranks)
                        key = (kind, case.dtype, case.redop, case.size_bytes)
                        cases.setdefault(key, case)
        return list(cases.values())

    def _ops_of(self, dtype: str, kind: str) -> tuple[str, ...]:
        undefined = ("avg",) if kind in PREFIXES else ()
        defined = [redop.label for redop in DType[dtype.upper()].redops]
        return tuple(op for op in self.ops if op in defined and op not in undefined)

    def check_memory(self, free_bytes: int) -> None:
        """Raises ConfigurationError when the largest size cannot fit into `free_bytes`."""
        need_bytes = max(case.size_bytes for case in self.cases()) * 3 * self.ranks
        if need_bytes > free_bytes:
            raise ConfigurationError(
                f"the largest size needs about {format_size(need_bytes)} for {self.ranks} ranks, "
                f"{format_size(free_bytes)} are free; choose a smaller -e"
            )

    def to_json(self) -> str:
        """Writes the request for the ranks' command line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> BenchConfig:
        """Reads what to_json wrote."""
        values: dict[str, Any] = json.loads(text)
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def parse_dtypes(names: Iterable[str]) -> tuple[str, ...]:
    """Expands ``all``, translates nccl-tests' ``float``, ``half``, ``double`` and ``int``."""
    expanded: dict[str, None] = {}
    for name in names:
        if name == "all":
            expanded.update(dict.fromkeys(dtype.label for dtype in DType))
        else:
            expanded[_ALIASES.get(name, name)] = None
    return tuple(expanded)


def parse_ops(names: Iterable[str]) -> tuple[str, ...]:
    """Expands ``all`` to every reduction that needs no more than its name."""
    expanded: dict[str, None] = {}
    for name in names:
        expanded.update(dict.fromkeys(_OPS if name == "all" else [name]))
    return tuple(expanded)


def check_output_path(option: str, path: Path) -> None:
    """Raises ConfigurationError when a file could not be written, before any time is spent."""
    if path.is_dir():
        raise ConfigurationError(f"{option} {path}: is a directory; give a file name")
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: {error.strerror}") from error
    if not existed:
        path.unlink()


def _check_names(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigurationError(f"{option}: {name!r} is not one of {', '.join(known)}")


def _check_range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigurationError(f"{option} must be from {least:g} to {most:g}, not {value:g}")
