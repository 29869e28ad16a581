"""The call of a collective: everything that all ranks must agree on."""

from __future__ import annotations

from dataclasses import dataclass

from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

__all__ = ["CHUNK_ALIGN", "CHUNK_BYTES_MAX", "RANKS_MAX", "Call"]

# js_plan.h and js_api.h
CHUNK_BYTES_MAX = 32768
CHUNK_ALIGN = 64
RANKS_MAX = 256

_BYTES_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """One collective, as ``js_call`` carries it; equal on all ranks.

    ``count`` is in elements: of the array for all_reduce and broadcast, of one rank's INPUT for
    all_gather, of one rank's OUTPUT for reduce_scatter; zero for barrier. ``root`` is zero where
    the kind has none, ``redop`` is SUM where nothing is reduced. Raises PlanError if a field is
    out of its range.
    """

    kind: Kind
    redop: RedOp
    dtype: DType
    count: int
    root: int
    world: int
    algorithm: Algorithm
    chunk_bytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.world <= RANKS_MAX:
            raise PlanError(f"{self.describe()}: {self.world} ranks, not 1 to {RANKS_MAX}")
        if not 0 <= self.root < (self.world if self.kind is Kind.BROADCAST else 1):
            raise PlanError(f"{self.describe()}: root {self.root} of {self.world} ranks")
        if self.count < 0 or (self.kind is Kind.BARRIER and self.count != 0):
            raise PlanError(f"{self.describe()}: {self.count} elements")
        if max(self.input_bytes, self.output_bytes) > _BYTES_MAX:
            raise PlanError(f"{self.describe()}: buffers are larger than memory can be")
        if not 0 < self.chunk_bytes <= CHUNK_BYTES_MAX or self.chunk_bytes % CHUNK_ALIGN != 0:
            raise PlanError(
                f"{self.describe()}: chunks of {self.chunk_bytes} bytes; "
                f"a multiple of {CHUNK_ALIGN} up to {CHUNK_BYTES_MAX} is needed"
            )

    @property
    def count_bytes(self) -> int:
        """``count`` elements in bytes."""
        return self.count * self.dtype.itemsize

    @property
    def input_bytes(self) -> int:
        """Size of every rank's INPUT in bytes."""
        return self.count_bytes * (self.world if self.kind is Kind.REDUCE_SCATTER else 1)

    @property
    def output_bytes(self) -> int:
        """Size of every rank's OUTPUT in bytes."""
        return self.count_bytes * (self.world if self.kind is Kind.ALL_GATHER else 1)

    @property
    def divisor(self) -> int:
        """Contributions to an average; 1 for every other operation."""
        return self.world if self.redop is RedOp.AVG else 1

    def describe(self) -> str:
        """The call as users know it, for example ``all_reduce(float32, sum, count=1024)``."""
        if self.kind is Kind.BARRIER:
            return "barrier()"
        words = [self.dtype.label]
        if self.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER):
            words.append(self.redop.label)
        words.append(f"count={self.count}")
        if self.kind is Kind.BROADCAST:
            words.append(f"root={self.root}")
        return f"{self.kind.label}({', '.join(words)})"
