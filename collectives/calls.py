"""The call of a collective: everything that all ranks must agree on."""

from __future__ import annotations

from dataclasses import dataclass

from jetstream.collectives.parts import PARTS_SPLITS, Splits, format_counts, pack_counts
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

__all__ = [
    "CHUNK_ALIGN",
    "CHUNK_BYTES_MAX",
    "COUNTED",
    "PREFIXES",
    "RANKS_MAX",
    "REDUCING",
    "ROOTED",
    "Call",
]

# js_plan.h and js_api.h
CHUNK_BYTES_MAX = 131072
CHUNK_ALIGN = 64
RANKS_MAX = 256

#: Kinds with a root.
ROOTED = frozenset({Kind.BROADCAST, Kind.REDUCE, Kind.GATHER, Kind.SCATTER})
#: Kinds that combine elements.
REDUCING = frozenset(
    {Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.REDUCE, Kind.SCAN, Kind.EXSCAN},
)
#: Kinds whose result on a rank is made of the ranks before it.
PREFIXES = frozenset({Kind.SCAN, Kind.EXSCAN})
#: Kinds whose parts may differ in size.
COUNTED = frozenset({Kind.ALL_GATHER, Kind.REDUCE_SCATTER, Kind.GATHER, Kind.SCATTER})

_BYTES_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """One collective, as ``js_call`` carries it; equal on all ranks.

    ``count`` is in elements: of one rank's part for all_gather, gather, reduce_scatter, scatter
    and all_to_all (there: of what one rank sends to one other), of the whole array for the other
    kinds; zero for barrier. ``counts`` are the elements of each rank's part where they differ, and
    ``count`` is their sum; equal parts have none. With ``has_splits`` every rank of an all_to_all
    has Splits of its own, and ``count`` is zero. ``root`` is zero where the kind has none,
    ``redop`` is SUM where nothing is reduced. Raises PlanError if a field is out of its range.
    """

    kind: Kind
    redop: RedOp
    dtype: DType
    count: int
    root: int
    world: int
    algorithm: Algorithm
    chunk_bytes: int
    counts: tuple[int, ...] = ()
    has_splits: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.world <= RANKS_MAX:
            raise PlanError(f"{self.describe()}: {self.world} ranks, not 1 to {RANKS_MAX}")
        if not 0 <= self.root < (self.world if self.kind in ROOTED else 1):
            raise PlanError(f"{self.describe()}: root {self.root} of {self.world} ranks")
        if self.count < 0 or (self.count != 0 and (self.kind is Kind.BARRIER or self.has_splits)):
            raise PlanError(f"{self.describe()}: {self.count} elements")
        if self.kind in PREFIXES and self.redop is RedOp.AVG:
            raise PlanError(f"{self.describe()}: there is no average of a prefix")
        if self.has_splits and self.kind is not Kind.ALL_TO_ALL:
            raise PlanError(f"{self.describe()}: only all_to_all has splits")
        if self.counts:
            self._check_counts()
        if self.count_bytes * (1 if self.counts else self.world) > _BYTES_MAX:
            raise PlanError(f"{self.describe()}: buffers are larger than memory can be")
        if not 0 < self.chunk_bytes <= CHUNK_BYTES_MAX or self.chunk_bytes % CHUNK_ALIGN != 0:
            raise PlanError(
                f"{self.describe()}: chunks of {self.chunk_bytes} bytes; "
                f"a multiple of {CHUNK_ALIGN} up to {CHUNK_BYTES_MAX} is needed"
            )

    def _check_counts(self) -> None:
        if self.kind not in COUNTED:
            raise PlanError(f"{self.describe()}: the kind has no counts")
        if len(self.counts) != self.world or min(self.counts) < 0:
            raise PlanError(f"{self.describe()}: {self.world} counts, zero or more, are needed")
        if sum(self.counts) != self.count:
            raise PlanError(f"{self.describe()}: the counts do not add up to {self.count}")
        if len(set(self.counts)) == 1:  # two ways to say one thing would not be equal
            raise PlanError(f"{self.describe()}: equal parts are written without counts")

    @property
    def count_bytes(self) -> int:
        """``count`` elements in bytes."""
        return self.count * self.dtype.itemsize

    @property
    def divisor(self) -> int:
        """Contributions to an average; 1 for every other operation."""
        return self.world if self.redop is RedOp.AVG else 1

    @property
    def is_exact(self) -> bool:
        """Whether the bits of a fold are the same in whichever groups it is done."""
        is_float = self.dtype.numpy.kind not in "iub"
        return not is_float or self.redop in (RedOp.MIN, RedOp.MAX)

    @property
    def partial_scale(self) -> int:
        """Size of a partial fold in elements; zero if the reduction has none.

        What is folded in float32 stays that. A sum of integers that will be divided may need more
        bits than they have.
        """
        if self.redop is RedOp.AVG and self.is_exact:
            return 0
        return 1 if self.is_exact or self.dtype.itemsize > 2 else 4 // self.dtype.itemsize

    @property
    def parts(self) -> int:
        """The word that stands for ``counts`` and splits in the binary form."""
        return PARTS_SPLITS if self.has_splits else pack_counts(self.counts)

    @property
    def whole_bytes(self) -> int:
        """Size of all ranks' parts together in bytes."""
        return self.count_bytes if self.counts else self.count_bytes * self.world

    def part(self, rank: int) -> tuple[int, int]:
        """Offset and size, in bytes, of a rank's part among all parts."""
        if not self.counts:
            return rank * self.count_bytes, self.count_bytes
        itemsize = self.dtype.itemsize
        return sum(self.counts[:rank]) * itemsize, self.counts[rank] * itemsize

    def input_bytes(self, rank: int, splits: Splits | None = None) -> int:
        """Size of a rank's INPUT in bytes."""
        if splits is not None:
            return sum(splits.sent) * self.dtype.itemsize
        if self.kind in (Kind.ALL_GATHER, Kind.GATHER):
            return self.part(rank)[1]
        if self.kind is Kind.SCATTER:
            return self.whole_bytes if rank == self.root else 0
        is_whole = self.kind in (Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL)
        return self.whole_bytes if is_whole else self.count_bytes

    def output_bytes(self, rank: int, splits: Splits | None = None) -> int:
        """Size of a rank's OUTPUT in bytes."""
        if splits is not None:
            return sum(splits.received) * self.dtype.itemsize
        if self.kind in (Kind.REDUCE_SCATTER, Kind.SCATTER):
            return self.part(rank)[1]
        if self.kind in (Kind.GATHER, Kind.REDUCE) and rank != self.root:
            return 0
        is_whole = self.kind in (Kind.ALL_GATHER, Kind.GATHER, Kind.ALL_TO_ALL)
        return self.whole_bytes if is_whole else self.count_bytes

    def describe(self) -> str:
        """The call as users know it, for example ``all_reduce(float32, sum, count=1024)``."""
        if self.kind is Kind.BARRIER:
            return "barrier()"
        words = [self.dtype.label]
        if self.kind in REDUCING:
            words.append(self.redop.label)
        if self.has_splits:
            words.append("splits")
        elif self.counts:
            words.append(f"counts={format_counts(self.counts)}")
        else:
            words.append(f"count={self.count}")
        if self.kind in ROOTED:
            words.append(f"root={self.root}")
        return f"{self.kind.label}({', '.join(words)})"
