"""Measures algorithms and chunk sizes against each other: what every rank of a tuning run does.

Run by the launcher as ``python -m jetstream.bench.tune REQUEST``. Rank 0 reports as the ranks of a
bench do, with the events "cell" (about to be measured), "result" and "end".
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jetstream.bench.kinds import PREFIXES, REDUCING, ROOTED, SHARDED, Case, Operation, build
from jetstream.bench.measure import no_garbage_collection
from jetstream.bench.worker import Emit, print_event
from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import CHUNK_BYTES_MAX
from jetstream.collectives.placement import Placement, place
from jetstream.collectives.select import (
    REMOTE_CHUNK_BYTES_MAX,
    Selection,
    algorithms_of,
    choose,
)
from jetstream.dtypes import Algorithm, DType, Kind
from jetstream.errors import JetstreamError

if TYPE_CHECKING:
    from jetstream.communicator import Communicator

__all__ = ["TUNABLE", "Candidate", "Request", "Result", "candidates", "run_cells", "selected"]

#: Kinds that leave something to choose.
TUNABLE = tuple(kind.label for kind in Kind if kind not in (Kind.NONE, Kind.BARRIER))
#: What is better than the built-in choice by less than this is not worth a rule.
GAIN_MIN = 0.05

_CHUNKS = (4 << 10, 8 << 10, 16 << 10, 32 << 10)
_ROUNDS = 7
_CALLS_MIN = 4
_CALLS_MAX = 400
_WARMUP = 2
_ALL_BYTES_MAX = 64 << 20
_FAILED = 3
_KINDS = {kind.label: kind for kind in Kind}
#: Kinds whose calls take algo=; of the others only chunk sizes are compared.
_NAMING = frozenset((Kind.ALL_REDUCE, Kind.REDUCE))
#: Kinds in which a rank may run ahead of the others: a barrier goes before each call.
_LOOSE = frozenset((*ROOTED, *PREFIXES))


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. ``sizes_bytes`` are those that selection looks at, see ``choose``."""

    kinds: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    dtype: str = "float32"
    budget_s: float = 30.0  # for everything
    is_crowded: bool = False

    def to_json(self) -> str:
        """Writes the request for the ranks' command line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Reads what to_json wrote."""
        values: dict[str, Any] = json.loads(text)
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def cells(self, world: int) -> list[tuple[str, int]]:
        """What is measured, as (kind, bytes); sizes that would take too much memory are not."""
        return [
            (kind, size)
            for kind in self.kinds
            for size in self.sizes_bytes
            if size * (world if kind in SHARDED else 1) <= _ALL_BYTES_MAX
        ]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to carry out a call. The largest chunk size stands for all that make one chunk."""

    algorithm: Algorithm
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell gave: times in ns of the slowest rank, p50 and p90, by candidate.

    ``rule`` is the built-in choice, ``best`` the fastest at p90, if that is better by so much, and
    so in a second measurement, that it is worth a rule; otherwise ``rule``.
    """

    kind: str
    nbytes: int
    times_ns: dict[Candidate, tuple[float, float]]
    rule: Candidate
    best: Candidate

    @property
    def loss(self) -> float:
        """What the built-in choice costs at p90, as a share of the best."""
        return self.times_ns[self.rule][1] / self.times_ns[self.best][1] - 1.0

    def to_dict(self) -> dict[str, Any]:
        """For an event, and for ``measurements`` in the file."""
        rows = [
            [candidate.algorithm.label, candidate.chunk_bytes, *map(round, times)]
            for candidate, times in self.times_ns.items()
        ]
        order = list(self.times_ns)
        return {
            "kind": self.kind,
            "bytes": self.nbytes,
            "rule": order.index(self.rule),
            "best": order.index(self.best),
            "algorithm_chunk_p50_p90": rows,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """The inverse of to_dict."""
        times = {
            Candidate(Algorithm[label.upper()], chunk): (float(p50), float(p90))
            for label, chunk, p50, p90 in values["algorithm_chunk_p50_p90"]
        }
        order = list(times)
        rule, best = order[values["rule"]], order[values["best"]]
        return cls(values["kind"], values["bytes"], times, rule, best)


def candidates(
    kind: Kind, nbytes: int, world: int, placement: Placement | None = None
) -> list[Candidate]:
    """Every algorithm with every chunk size that makes a difference; one chunk comes first."""
    largest = _largest_chunk(placement)
    found = []
    for algorithm in algorithms_of(kind):
        if not _is_comparable(kind, algorithm, placement):
            continue
        if (
            kind not in _NAMING
            and algorithm is not choose(kind, nbytes, world, placement=placement)[0]
        ):
            continue
        longest = min(_op_bytes(algorithm, nbytes, world), largest)
        sizes = [largest, *(size for size in _CHUNKS if size < longest)]
        found += [Candidate(algorithm, size) for size in sizes]
    return found


def _largest_chunk(placement: Placement | None) -> int:
    """Longer chunks are not sent between hosts, or at all."""
    is_one = placement is None or placement.is_one_host
    return CHUNK_BYTES_MAX if is_one else REMOTE_CHUNK_BYTES_MAX


def _is_comparable(kind: Kind, algorithm: Algorithm, placement: Placement | None) -> bool:
    """Whether it is something else than the others on those hosts, and may be faster."""
    if placement is None or placement.is_one_host:
        return (kind, algorithm) in ALGORITHMS
    is_flat = (kind, algorithm) in ALGORITHMS
    return algorithm is not Algorithm.LEND and (is_flat or not placement.is_one_each)


def selected(
    kind: Kind, nbytes: int, world: int, *, is_crowded: bool, placement: Placement | None = None
) -> Candidate:
    """The candidate that stands for the built-in choice."""
    selection = Selection(crowded=is_crowded)
    algorithm, chunk_bytes = choose(kind, nbytes, world, selection=selection, placement=placement)
    largest = _largest_chunk(placement)
    if chunk_bytes >= min(_op_bytes(algorithm, nbytes, world), largest):
        chunk_bytes = largest
    return Candidate(algorithm, chunk_bytes)


def _op_bytes(algorithm: Algorithm, nbytes: int, world: int) -> int:
    is_sharded = algorithm in (Algorithm.TWO_SHOT, Algorithm.LEND)
    return -(-nbytes // world) if is_sharded else nbytes


def run_cells(comm: Communicator, request: Request, emit: Emit) -> None:
    """Measures all cells on all ranks together; stops when twice the budget is spent."""
    cells = request.cells(comm.size)
    emit({"event": "hosts", "ranks": place(comm.host_index, comm.size).sizes})
    begin_s = time.monotonic()
    for index, (label, nbytes) in enumerate(cells):
        spent_s = _largest(comm, time.monotonic() - begin_s)
        if spent_s > 2 * request.budget_s:
            break
        emit({"event": "cell", "kind": label, "bytes": nbytes, "index": index, "total": len(cells)})
        result = _Cell(comm, request, label, nbytes).measure(request.budget_s / len(cells))
        emit({"event": "result", "result": result.to_dict()})
    emit({"event": "end"})


class _Cell:
    """One kind at one size."""

    def __init__(self, comm: Communicator, request: Request, label: str, nbytes: int) -> None:
        kind = _KINDS[label]
        self._comm = comm
        self._label, self._nbytes = label, nbytes
        placement = place(comm.host_index, comm.size)
        self._listed = candidates(kind, nbytes, comm.size, placement)
        self._rule = selected(
            kind, nbytes, comm.size, is_crowded=request.is_crowded, placement=placement
        )
        itemsize = DType[request.dtype.upper()].itemsize
        all_bytes = max(nbytes, itemsize) * (comm.size if label in SHARDED else 1)
        redop, root = "sum" if label in REDUCING else "none", 0 if label in ROOTED else -1
        case = Case(label, comm.size, all_bytes, request.dtype, redop, root)
        self._operation = build(comm, case)
        self._names_algorithm = kind in _NAMING
        self._steps: dict[Candidate, Callable[[], object]] = {}

    def measure(self, budget_s: float) -> Result:
        """Compares all candidates, in turns; what beats the rule has to do so twice."""
        with no_garbage_collection():
            calls = self._calls(budget_s)
            times_ns = self._compare(self._listed, calls)
            best = min(times_ns, key=lambda candidate: times_ns[candidate][1])
            if best != self._rule and self._gains(times_ns, best):
                again_ns = self._compare([self._rule, best], calls)
                if not self._gains(again_ns, best):
                    best = self._rule
                times_ns |= again_ns
            else:
                best = self._rule
        return Result(self._label, self._nbytes, times_ns, self._rule, best)

    def _gains(self, times_ns: dict[Candidate, tuple[float, float]], best: Candidate) -> bool:
        pairs = zip(times_ns[self._rule], times_ns[best], strict=True)
        return all(rule > (1.0 + GAIN_MIN) * other for rule, other in pairs)

    def _calls(self, budget_s: float) -> int:
        """How many calls of each candidate fit into a round; the same on all ranks."""
        warmup_ns = _time_calls(self._comm, self._operation, self._bind(self._rule), 5, True)
        call_s = _largest(self._comm, float(np.median(warmup_ns))) * 1e-9
        fitting = budget_s / (_ROUNDS * len(self._listed) * max(call_s, 1e-7)) - _WARMUP
        return int(min(max(fitting, _CALLS_MIN), _CALLS_MAX))

    def _compare(self, listed: list[Candidate], calls: int) -> dict[Candidate, tuple[float, float]]:
        """The median over the rounds of p50 and p90, in ns, of each candidate."""
        rounds: dict[Candidate, list[NDArray[Any]]] = {candidate: [] for candidate in listed}
        for _ in range(_ROUNDS):
            for candidate in listed:
                self._comm.barrier()
                own_ns = _time_calls(
                    self._comm,
                    self._operation,
                    self._bind(candidate),
                    calls + _WARMUP,
                    self._label in _LOOSE,
                )[_WARMUP:]
                slowest_ns = self._comm.all_gather(own_ns).reshape(self._comm.size, -1).max(axis=0)
                rounds[candidate].append(np.percentile(slowest_ns, (50, 90)))
        medians = {candidate: np.median(rows, axis=0) for candidate, rows in rounds.items()}
        return {candidate: (float(p50), float(p90)) for candidate, (p50, p90) in medians.items()}

    def _bind(self, candidate: Candidate) -> Callable[[], object]:
        """A persistent operation, so that little but the plan is timed."""
        step = self._steps.get(candidate)
        if step is None:
            call = self._operation.call
            assert isinstance(call, partial)
            options: dict[str, Any] = {**call.keywords, "chunk_bytes": candidate.chunk_bytes}
            if self._names_algorithm:
                options["algo"] = candidate.algorithm.label
            step = self._comm.persistent(self._label, *call.args, **options)
            self._steps[candidate] = step
        return step


def _time_calls(
    comm: Communicator,
    operation: Operation,
    call: Callable[[], object],
    count: int,
    has_barrier: bool,
) -> NDArray[np.int64]:
    """The latency of each call in ns; the input is written anew before each."""
    latency_ns = np.zeros(count, np.int64)
    clock, copy, target = time.perf_counter_ns, np.copyto, operation.target
    for index in range(count):
        copy(target, operation.windows[index % len(operation.windows)])
        if has_barrier:
            comm.barrier()
        begin_ns = clock()
        call()
        latency_ns[index] = clock() - begin_ns
    return latency_ns


def _largest(comm: Communicator, value: float) -> float:
    return float(comm.all_reduce(np.array([value]), "max")[0])


def main(arguments: list[str]) -> int:
    """Entry point of a rank: one argument, the request as JSON."""
    import jetstream

    (text,) = arguments
    try:
        with jetstream.init() as comm:
            run_cells(
                comm,
                Request.from_json(text),
                print_event if comm.rank == 0 else lambda _event: None,
            )
    except JetstreamError as error:
        sys.stderr.write(f"jetstream tune: {type(error).__name__}: {error}\n")
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
