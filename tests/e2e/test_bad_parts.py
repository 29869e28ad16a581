"""Bad input of the collectives with parts, roots and splits: one rank's mistakes, disagreements.

One rank's own mistake leaves the communicator intact; what ranks disagree on is MismatchError on
all of them, with both sides in its text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, ClosedError, MismatchError, PlanError
from jetstream.testing.plugin import Pools


def refuses(kind: type[Exception], pattern: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert type(caught.value) is kind


def still_works(comm: Communicator) -> None:
    assert (comm.all_to_all(np.full(comm.size, comm.rank)) == np.arange(comm.size)).all()


# --- one rank's own mistake ----------------------------------------------------------------------


def run_bad_arrays(comm: Communicator) -> None:
    x, n = np.ones(6 * comm.size), comm.size
    arrays: tuple[Any, ...] = (None, 3, "text", [1.0], np.zeros(6, object), np.zeros(6, ">f4"))
    for bad in arrays:
        for call in (comm.all_to_all, comm.gather, comm.scan, comm.exscan, comm.reduce):
            refuses(ArgumentError, "array|not supported", partial(call, bad))
        refuses(ArgumentError, "array|not supp", partial(comm.scatter, bad, comm.rank))
        refuses(ArgumentError, "array|not supp|out is needed",
                partial(comm.scatter, None, (comm.rank + 1) % n, out=bad))  # fmt: skip
    fixed = x.copy()
    fixed.flags.writeable = False
    refuses(ArgumentError, "out is read-only", lambda: comm.all_to_all(x, out=fixed))
    refuses(ArgumentError, "x is read-only", lambda: comm.scan(fixed))
    refuses(ArgumentError, "x is read-only", lambda: comm.reduce(fixed, comm.rank))
    refuses(ArgumentError, "out is read-only", lambda: comm.gather(x[:6], comm.rank, out=fixed))
    strided = np.ones((2, 2 * n))[:, ::2]
    refuses(ArgumentError, "x is not C-contiguous", lambda: comm.exscan(strided))
    refuses(ArgumentError, "out is not C-cont", lambda: comm.scan(x[: 2 * n], out=strided))
    still_works(comm)


def run_bad_outputs(comm: Communicator) -> None:
    n, rank = comm.size, comm.rank
    x, part = np.ones((2 * n, 3)), np.ones((2, 3))
    small, other = np.ones(5), np.ones(6 * n, np.float32)
    calls: list[tuple[Callable[..., object], Any]] = [
        (comm.all_to_all, x),
        (partial(comm.gather, root=rank), part),
        (comm.scan, x),
        (comm.exscan, x),
        (partial(comm.reduce, root=rank), x),
    ]
    for call, array in calls:
        refuses(ArgumentError, "out has 5 elements, the result", partial(call, array, out=small))
        refuses(ArgumentError, "out has dtype float32", partial(call, array, out=other))
    refuses(ArgumentError, "5 elements, the result has 6", lambda: comm.scatter(x, rank, out=small))
    splits = {"input_splits": [2] * n, "output_splits": [2] * n}
    refuses(ArgumentError, "out has 5", lambda: comm.all_to_all(x, out=small, **splits))
    still_works(comm)


def run_overlaps(comm: Communicator) -> None:
    """Whole arrays that are the same memory are in place; what overlaps otherwise is refused."""
    n, rank = comm.size, comm.rank
    memory = np.ones(8 * n)
    low, high = memory[: 4 * n], memory[1 : 4 * n + 1]
    refuses(ArgumentError, "overlap", lambda: comm.all_to_all(low, out=high))
    refuses(ArgumentError, "overlap", lambda: comm.scan(low, out=high))
    refuses(ArgumentError, "overlap", lambda: comm.exscan(low, out=high))
    refuses(ArgumentError, "overlap", lambda: comm.reduce(low, rank, out=high))
    splits = {"input_splits": [4] * n, "output_splits": [4] * n}
    for out in (low, high):
        pattern = "splits cannot be done in place: input and output overlap"
        refuses(ArgumentError, pattern, partial(comm.all_to_all, low, out=out, **splits))
    own = memory[4 * rank + 1 : 4 * rank + 5]
    refuses(ArgumentError, "overlap", lambda: comm.gather(own, rank, out=low))
    refuses(ArgumentError, "overlap", lambda: comm.scatter(low, rank, out=own))
    counts = [*range(2, n + 2)]
    whole, start = memory[1 : sum(counts) + 1], sum(counts[:rank])
    shifted = memory[start : start + counts[rank]]
    refuses(ArgumentError, "overlap", lambda: comm.all_gather(shifted, out=whole, counts=counts))
    refuses(
        ArgumentError, "overlap", lambda: comm.reduce_scatter(whole, out=shifted, counts=counts)
    )
    still_works(comm)


def run_bad_numbers(comm: Communicator) -> None:
    n = comm.size
    x = np.ones(2 * n)
    wrong: Any
    for wrong in (-1, n, 10**9, 1.0, "0", None):
        for call in (comm.reduce, comm.gather, comm.scatter):
            pattern = rf"root is .*a rank from 0 to {n - 1}"
            refuses(ArgumentError, pattern, partial(call, x, wrong))
    for axis in (1, -2, 0.5):
        for call in (comm.all_to_all, comm.gather, partial(comm.scatter, root=comm.rank)):
            refuses(ArgumentError, "axis", partial(call, x, axis=axis))
    for call in (comm.scan, comm.exscan):
        refuses(ArgumentError, "op 'avg' is not defined for a prefix", partial(call, x, "avg"))
        refuses(ArgumentError, "op 'mean' is not one of", partial(call, x, "mean"))
    refuses(ArgumentError, "op 'mean' is not", lambda: comm.reduce(x, op="mean"))
    refuses(
        ArgumentError, "reduce has no algorithm one_shot", lambda: comm.reduce(x, algo="one_shot")
    )
    square = np.ones((2 * n, 2 * n))
    for call in (comm.all_to_all, comm.gather, comm.all_gather):
        refuses(
            ArgumentError, "async_op needs axis=0", partial(call, square, axis=1, async_op=True)
        )
    for call in (comm.all_to_all, comm.gather, comm.reduce, comm.scan):
        refuses(ArgumentError, "timeout", partial(call, x, timeout=-1))
        refuses(PlanError, "chunks of 63", partial(call, x, chunk_bytes=63))
    if n > 1:
        odd = np.ones(2 * n + 1)
        refuses(ArgumentError, f"cannot be split into {n}", lambda: comm.all_to_all(odd))
        refuses(ArgumentError, f"cannot be split into {n}", lambda: comm.scatter(odd, comm.rank))
        someone = (comm.rank + 1) % n
        refuses(ArgumentError, "out is needed on every rank but", lambda: comm.scatter(x, someone))
    refuses(ArgumentError, "cannot be split", lambda: comm.all_to_all(np.array(1.0)))
    still_works(comm)


def run_bad_counts(comm: Communicator) -> None:
    n, rank = comm.size, comm.rank
    x = np.ones((3, 2))
    good = [3] * n
    wrong: Any
    for wrong, pattern in (
        ([3] * (n + 1), rf"{n} numbers, one per rank"),
        ([], rf"{n} numbers"),
        (3, rf"counts is 3: {n} numbers"),
        ("3" * n, r"counts\[0\] is '3': a whole number"),
        ([-3] * n, r"counts\[0\] is -3: a whole number, zero or more"),
        ([3.0] * n, r"counts\[0\] is 3.0"),
        ([True] * n, r"counts\[0\] is True"),
        ([4] * n, rf"counts\[{rank}\] is 4, but axis 0 of x with shape \(3, 2\) has 3"),
    ):
        refuses(ArgumentError, pattern, partial(comm.all_gather, x, counts=wrong))
        refuses(ArgumentError, pattern, partial(comm.gather, x, counts=wrong))
    whole = np.ones((3 * n, 2))
    for call in (comm.reduce_scatter, partial(comm.scatter, root=rank)):
        pattern = rf"counts adds up to {3 * n + 1}, axis 0 of shape .* has {3 * n}"
        refuses(ArgumentError, pattern, partial(call, whole, counts=[4, *good[1:]]))
        refuses(ArgumentError, "is -1", partial(call, whole, counts=[-1] * n))
    if n > 1:
        scatter = partial(comm.scatter, None, (rank + 1) % n)
        refuses(ArgumentError, "of out with shape", partial(scatter, out=x, counts=[4] * n))
        refuses(ArgumentError, "one per rank", partial(scatter, out=x, counts=[4]))
    still_works(comm)


def run_bad_splits(comm: Communicator) -> None:
    n, rank = comm.size, comm.rank
    x, good = np.ones((2 * n, 2)), [2] * n
    call = partial(comm.all_to_all, x)
    wrong: Any
    for wrong in ([2] * (n + 1), [], 2, [-2] * n, [2.0] * n):
        for name, other in (("input_splits", "output_splits"), ("output_splits", "input_splits")):
            splits = {name: wrong, other: good}
            refuses(ArgumentError, f"{name}.*(one per rank|zero or more)", partial(call, **splits))
    pattern = f"input_splits adds up to {2 * n + 1}, axis 0 of shape .* has {2 * n}"
    refuses(ArgumentError, pattern, lambda: call(input_splits=[3, *good[1:]], output_splits=good))
    refuses(ArgumentError, "without output_splits need an out", lambda: call(input_splits=good))
    own = [3 if r == rank else 2 for r in range(n)]
    pattern = rf"input_splits\[{rank}\] is 2, output_splits\[{rank}\] is 3: what rank"
    refuses(ArgumentError, pattern, lambda: call(input_splits=good, output_splits=own))
    if n > 1:
        odd = np.ones((2 * n + 1, 2))
        pattern = f"out: axis 0 of shape .* cannot be split into {n}"
        refuses(ArgumentError, pattern, lambda: call(out=odd, input_splits=good))
        refuses(ArgumentError, f"cannot be split into {n}",
                lambda: comm.all_to_all(odd, output_splits=good))  # fmt: skip
    still_works(comm)


def run_after_close(comm: Communicator) -> None:
    x = np.ones(2 * comm.size)
    comm.barrier()
    comm.close()
    for call in (comm.all_to_all, comm.reduce, comm.gather, comm.scan, comm.exscan):
        refuses(ClosedError, "closed", partial(call, x))
    refuses(ClosedError, "closed", lambda: comm.scatter(x, comm.rank))
    refuses(ClosedError, "closed", lambda: comm.all_gather(x, counts=[2 * comm.size] * comm.size))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "run",
    [
        run_bad_arrays,
        run_bad_outputs,
        run_overlaps,
        run_bad_numbers,
        run_bad_counts,
        run_bad_splits,
        run_after_close,
    ],
)
def test_one_call(rank_pools: Pools, run: Any, world: int) -> None:
    rank_pools(world).run(run)


# --- ranks that disagree -----------------------------------------------------------------------

#: What the even ranks call, what the odd ranks call, and what the text must say of either. Sizes
#: are those of each rank's part; counts are rotated or stretched from rank to rank.
DISAGREEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "size": ({"kind": "all_to_all"}, {"kind": "all_to_all", "count": 3}, "count=2", "count=3"),
    "dtype": ({"kind": "scan"}, {"kind": "scan", "dtype": "f8"}, "float32", "float64"),
    "kind": ({"kind": "all_to_all"}, {"kind": "all_reduce"}, "all_to_all(", "all_reduce("),
    "prefix": ({"kind": "scan"}, {"kind": "exscan"}, " scan(", "exscan("),
    "op": ({"kind": "reduce"}, {"kind": "reduce", "op": "max"}, "sum", "max"),
    "reduce root": ({"kind": "reduce"}, {"kind": "reduce", "root": 1}, "root=0", "root=1"),
    "gather root": ({"kind": "gather"}, {"kind": "gather", "root": 1}, "root=0", "root=1"),
    "gather size": ({"kind": "gather"}, {"kind": "gather", "count": 9}, "count=2", "count=9"),
    "two senders": ({"kind": "gather", "root": 1}, {"kind": "gather"}, "root=1", "root=0"),
    "scatter root": ({"kind": "scatter"}, {"kind": "scatter", "root": 1}, "root=0", "root=1"),
    "scatter size": ({"kind": "scatter"}, {"kind": "scatter", "count": 5}, "count=2", "count=5"),
    "algorithm": (
        {"kind": "reduce", "algo": "direct"},
        {"kind": "reduce", "algo": "two_shot"},
        "direct",
        "two_shot",
    ),
    "counts": (
        {"kind": "all_gather", "counts": "up"},
        {"kind": "all_gather", "counts": "long"},
        "counts=[1, 2",
        "counts=[1, 7",
    ),
    "order of counts": (
        {"kind": "reduce_scatter", "counts": "up"},
        {"kind": "reduce_scatter", "counts": "down"},
        "counts=[1, 2",
        "2, 1]",
    ),
    "only one has counts": (
        {"kind": "all_gather", "counts": "up"},
        {"kind": "all_gather"},
        "counts=[1, 2",
        "count=2",
    ),
    "only one has splits": (
        {"kind": "all_to_all", "splits": 2},
        {"kind": "all_to_all"},
        "all_to_all(float32, with splits",
        "count=2",
    ),
}


def make_counts(name: str | None, world: int) -> list[int] | None:
    if name is None:
        return None
    up = [*range(1, world + 1)]
    return {"up": up, "down": up[::-1], "long": [up[0], 7, *up[2:]]}[name]


def call_collective(
    comm: Communicator,
    kind: str,
    count: int = 2,
    dtype: str = "f4",
    counts: str | None = None,
    splits: int | None = None,
    **options: Any,
) -> None:
    rows = make_counts(counts, comm.size)
    if rows is not None:
        options["counts"] = rows
    if splits is not None:
        options |= {"input_splits": [splits] * comm.size, "output_splits": [splits] * comm.size}
    whole = count * comm.size if rows is None else sum(rows)
    part = count if rows is None else rows[comm.rank]
    is_whole = kind in ("all_to_all", "reduce_scatter", "scatter")
    x = np.ones(whole if is_whole else part, dtype)
    if kind == "scatter":
        options["out"] = np.ones(part, dtype)
    getattr(comm, kind)(x, **options)


def run_disagreement(comm: Communicator, name: str, late: int) -> str:
    even, odd, _, _ = DISAGREEMENTS[name]
    still_works(comm)
    if comm.rank % 2 == late:
        time.sleep(0.03)
    with pytest.raises(MismatchError) as caught:
        call_collective(comm, **(odd if comm.rank % 2 else even))
        # Who only sends is done when its frames are out: it learns later.
        still_works(comm)
        comm.barrier()
    with pytest.raises(MismatchError, match="cannot be used any more"):
        comm.scan(np.ones(3))
    return str(caught.value)


@pytest.mark.parametrize("late", [0, 1, 2], ids=["even late", "odd late", "together"])
@pytest.mark.parametrize("name", DISAGREEMENTS)
@pytest.mark.parametrize("world", [2, 3])
def test_disagreement(rank_pools: Pools, world: int, name: str, late: int) -> None:
    texts = rank_pools(world).run(run_disagreement, name, late)
    _, _, even, odd = DISAGREEMENTS[name]
    for text in texts:
        assert even in text and odd in text, text
        assert text == texts[0]


def run_large_counts(comm: Communicator) -> str:
    """Counts that do not fit the word that travels: no side can know the other's."""
    counts = [5000, 1, 1, 1, 2] if comm.rank == 0 else [5000, 1, 1, 2, 1]
    with pytest.raises(MismatchError) as caught:
        comm.all_gather(np.ones(counts[comm.rank], np.uint8), counts=counts)
    return str(caught.value)


def test_large_counts(rank_pools: Pools) -> None:
    for text in rank_pools(5).run(run_large_counts):
        assert text.count("counts that add up to 5005") == 2, text


def run_gather_of_other_counts(comm: Communicator) -> str:
    """The sender has finished long before the root looks: the records do not hold its counts."""
    with pytest.raises(MismatchError) as caught:
        if comm.rank == 0:
            time.sleep(0.2)
            comm.gather(np.ones(1), counts=[1, 4, 3])
        else:
            comm.gather(np.ones(comm.rank + 2), counts=[1, 3, 4])
        comm.barrier()
    return str(caught.value)


def test_gather_of_other_counts(rank_pools: Pools) -> None:
    for text in rank_pools(3).run(run_gather_of_other_counts):
        assert "counts=[1, 4, 3]" in text, text
        assert "counts=[1, 3, 4]" in text or "or other counts" in text, text


def run_split_mismatch(comm: Communicator, sent: int, expected: int, late: int) -> str:
    """Rank 0 sends ``sent`` elements to rank 1, which awaits ``expected``; the rest agrees."""
    still_works(comm)
    sends, awaits = [4] * comm.size, [4] * comm.size
    if comm.rank == 0:
        sends[1] = sent
    if comm.rank == 1:
        awaits[0] = expected
    if comm.rank == late:
        time.sleep(0.03)
    with pytest.raises(MismatchError) as caught:
        x = np.ones(sum(sends), np.uint8)
        comm.all_to_all(x, input_splits=sends, output_splits=awaits)
        comm.barrier()
    with pytest.raises(MismatchError):
        comm.barrier()
    return str(caught.value)


@pytest.mark.parametrize("late", [0, 1, 9])
@pytest.mark.parametrize(
    ("sent", "expected"),
    [(3, 5), (5, 3), (0, 1), (1, 0), (65536, 32768), (32768, 65536), (98304, 0), (1 << 23, 7)],
)
@pytest.mark.parametrize("world", [2, 3])
def test_split_mismatch(rank_pools: Pools, world: int, sent: int, expected: int, late: int) -> None:
    """Also where the frames that both have in mind are alike, and one only has more of them."""
    texts = rank_pools(world).run(run_split_mismatch, sent, expected, late)
    for text in texts:
        assert f"sends {sent} elements to rank 1, which expects {expected}" in text, text
        assert "all_to_all(uint8, with splits" in text and "rank 0 (pid" in text


def run_rows_of_another_size(comm: Communicator) -> str:
    """Splits agree in rows, but the rows are not alike."""
    columns = 3 if comm.rank == 0 else 2
    splits = [2] * comm.size
    x = np.ones((2 * comm.size, columns))
    with pytest.raises(MismatchError) as caught:
        comm.all_to_all(x, input_splits=splits, output_splits=splits)
        comm.barrier()
    return str(caught.value)


def test_rows_of_another_size(rank_pools: Pools) -> None:
    for text in rank_pools(2).run(run_rows_of_another_size):
        assert "which expects" in text and " 6" in text and " 4" in text, text
