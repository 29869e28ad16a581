"""The operations of soak.py: each is drawn, carried out, and compared with what must come out."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.distributed.distributed_c10d import _coalescing_manager

COUNTS = (0, 1, 3, 10, 11, 100, 1000, 4096, 20_000, 100_000, 300_000)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
MOVED = (
    *INTEGERS, *FLOATS, *COMPLEX,
    torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32,
)  # fmt: skip
BY_GLOO = (torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)

ReduceOp = dist.ReduceOp
Work = Any
#: What is to be waited for, and what checks the results then.
Started = tuple[list[Work], Callable[[], None]]
Reduction = tuple[Any, Callable[[int], torch.Tensor], Callable[[int], torch.Tensor]]


class Place:
    """A group: all ranks know its members; ``group`` is for those."""

    def __init__(self, group: Any, members: list[int], rank: int) -> None:
        self.group = group
        self.members = members
        self.size = len(members)
        self.is_member = rank in members
        self.me = members.index(rank) if self.is_member else -1


class Operations:
    """Draws operations. What concerns all ranks comes from ``plan``, the rest from ``own``."""

    def __init__(self, plan: random.Random, own: random.Random, backend: str) -> None:
        self.plan, self.own = plan, own
        self.is_gloo = backend == "gloo"
        self.moved = BY_GLOO if self.is_gloo else MOVED
        self.reduced = BY_GLOO if self.is_gloo else (*INTEGERS, *FLOATS, *COMPLEX)
        self.asynchronous = [name for name in dir(self) if name.startswith("start_")]
        self.alone = [name for name in dir(self) if name.startswith("do_")]
        self.draw = plan  # of the operation at hand
        self.is_async = False
        self.last = "nothing"
        self.count = 0
        self.checked_bytes = 0
        self.kinds_done: Counter[str] = Counter()

    # --- which ----------------------------------------------------------------------------------

    def one(self, place: Place) -> None:
        """One operation, complete when it returns."""
        name = self.plan.choice(self.asynchronous * 2 + self.alone)
        is_async = self.plan.random() < 0.4
        if not self._draw(name, place, is_async):
            return
        if name in self.alone:
            getattr(self, name)(place)
        else:
            works, check = getattr(self, name)(place)
            self._wait(works)
            check()

    def in_flight(self, places: list[Place]) -> None:
        """Several at once, waited for in an order that no two ranks share."""
        started: list[tuple[str, Started]] = []
        for place in places:
            name = self.plan.choice(self.asynchronous)
            if self._draw(name, place, True):
                started.append((self.last, getattr(self, name)(place)))
        self.own.shuffle(started)
        for last, (works, check) in started:
            self.last = f"{last} in flight"
            self._wait(works)
            check()

    def _draw(self, name: str, place: Place, is_async: bool) -> bool:
        """True if this rank takes part; all ranks draw the same amount."""
        seed = self.plan.randrange(2**31)
        self.draw, self.is_async = random.Random(seed), is_async
        self.last = f"{name} on ranks {place.members}, async {is_async}, seed {seed}"
        self.count += 1
        self.kinds_done[name.partition("_")[2]] += 1
        return place.is_member

    def _wait(self, works: list[Work]) -> None:
        for work in works:
            if work is not None and not self.is_gloo and self.own.random() < 0.2:
                work.get_future().wait()
            elif work is not None:
                work.wait()

    # --- tensors --------------------------------------------------------------------------------

    def pattern(self, count: int) -> Callable[[int], torch.Tensor]:
        """From the number of a part to integers that everybody can work out."""
        start = self.draw.randrange(1000)
        return lambda part: (torch.arange(count) + start + 7 * part) % 251

    def place_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """A copy with a layout, and in memory, of this rank's liking."""
        draw = self.own.random()
        if self.is_gloo or draw < 0.5 or values.dim() != 1:
            return values.clone()
        if draw < 0.7:
            room = torch.zeros(2 * values.numel() + 1, dtype=values.dtype)[1::2]
        elif draw < 0.8:
            room = torch.zeros(values.numel() + 3, dtype=values.dtype)[3:]
        else:
            from jetstream.torch import empty

            room = empty(values.shape, dtype=values.dtype)
        return room.copy_(values)

    def room(self, like: torch.Tensor) -> torch.Tensor:
        return self.place_tensor(torch.zeros_like(like))

    def check(self, got: torch.Tensor, expected: torch.Tensor) -> None:
        assert got.dtype == expected.dtype and got.shape == expected.shape, (self.last, got.shape)
        plain = [t.clone(memory_format=torch.contiguous_format) for t in (got, expected)]
        bits, wanted = (t.reshape(-1).view(torch.uint8) for t in plain)
        if not torch.equal(bits, wanted):
            wrong = (bits != wanted).nonzero()
            raise AssertionError(f"{self.last}: {got.dtype} {tuple(got.shape)}, byte {wrong[0]}")
        self.checked_bytes += bits.numel()

    def reduction(self, multiple: int = 1) -> Reduction:
        """An op, what part r of its input is, and the result over so many parts."""
        dtype = self.draw.choice(self.reduced)
        ops = ["SUM"]
        if dtype not in COMPLEX:
            ops += ["PRODUCT", "MIN", "MAX"]
        if dtype in INTEGERS:
            ops += ["BAND", "BOR", "BXOR"]
        if dtype in FLOATS and not self.is_gloo:
            ops += ["AVG"]
        name = self.draw.choice(ops)
        values = self.pattern(-(-self.draw.choice(COUNTS) // multiple) * multiple)
        exact = torch.complex128 if dtype in COMPLEX else torch.float64
        exact = torch.int64 if dtype in INTEGERS else exact

        def part(rank: int) -> torch.Tensor:
            raw = values(rank)
            shaped = {"SUM": raw % 7, "PRODUCT": raw % 2 + 1, "AVG": raw % 3 * 12}
            return shaped.get(name, raw % 100).to(dtype)

        def result(size: int) -> torch.Tensor:
            parts = torch.stack([part(rank).to(exact) for rank in range(size)])
            total = _FOLDS[name](parts)
            return total.to(dtype)

        return getattr(ReduceOp, name), part, result

    def moved_parts(self, multiple: int = 1) -> Callable[[int], torch.Tensor]:
        dtype = self.draw.choice(self.moved)
        values = self.pattern(-(-self.draw.choice(COUNTS) // multiple) * multiple)
        return lambda part: (values(part) % 8).to(dtype)

    def common(self, place: Place) -> dict[str, Any]:
        return {"group": place.group, "async_op": self.is_async}

    # --- reductions -----------------------------------------------------------------------------

    def start_all_reduce(self, place: Place) -> Started:
        op, part, result = self.reduction()
        x = self.place_tensor(part(place.me))
        work = dist.all_reduce(x, op, **self.common(place))
        return [work], lambda: self.check(x, result(place.size))

    def start_reduce(self, place: Place) -> Started:
        op, part, result = self.reduction()
        root = self.draw.randrange(place.size)
        x = self.place_tensor(part(place.me))
        work = dist.reduce(x, place.members[root], op, **self.common(place))
        return [work], lambda: self.check(x, result(place.size)) if root == place.me else None

    def start_reduce_scatter_tensor(self, place: Place) -> Started:
        op, part, result = self.reduction(place.size)
        x = self.place_tensor(part(place.me))
        out = self.room(x[: x.numel() // place.size])
        work = dist.reduce_scatter_tensor(out, x, op, **self.common(place))
        return [work], lambda: self.check(out, result(place.size).chunk(place.size)[place.me])

    def start_reduce_scatter(self, place: Place) -> Started:
        op, part, result = self.reduction(place.size)
        parts = [self.place_tensor(x) for x in part(place.me).chunk(place.size)]
        out = self.room(parts[0])
        work = dist.reduce_scatter(out, parts, op, **self.common(place))
        return [work], lambda: self.check(out, result(place.size).chunk(place.size)[place.me])

    # --- moves ----------------------------------------------------------------------------------

    def start_broadcast(self, place: Place) -> Started:
        part = self.moved_parts()
        root = self.draw.randrange(place.size)
        x = self.place_tensor(part(place.me))
        work = dist.broadcast(x, place.members[root], **self.common(place))
        return [work], lambda: self.check(x, part(root))

    def start_all_gather(self, place: Place) -> Started:
        part = self.moved_parts()
        outs = [self.room(part(0)) for _ in range(place.size)]
        work = dist.all_gather(outs, self.place_tensor(part(place.me)), **self.common(place))
        return [work], lambda: self.check_all(outs, [part(rank) for rank in range(place.size)])

    def start_all_gather_into_tensor(self, place: Place) -> Started:
        part = self.moved_parts()
        expected = torch.cat([part(rank) for rank in range(place.size)])
        out = self.room(expected)
        x = self.place_tensor(part(place.me))
        work = dist.all_gather_into_tensor(out, x, **self.common(place))
        return [work], lambda: self.check(out, expected)

    def start_all_to_all_single(self, place: Place) -> Started:
        part = self.moved_parts(place.size)
        x = self.place_tensor(part(place.me))
        out = self.room(x)
        work = dist.all_to_all_single(out, x, **self.common(place))
        mine = [part(rank).chunk(place.size)[place.me] for rank in range(place.size)]
        return [work], lambda: self.check(out, torch.cat(mine) if x.numel() else part(0))

    def start_all_to_all_splits(self, place: Place) -> Started:
        rows, dtype = self.uneven(place), self.draw.choice(self.moved)
        inputs = [
            torch.cat([self.piece(a, b, rows[a][b], dtype) for b in range(place.size)])
            for a in range(place.size)
        ]
        expected = torch.cat(
            [self.piece(a, place.me, rows[a][place.me], dtype) for a in range(place.size)]
        )
        x, out = self.place_tensor(inputs[place.me]), self.room(expected)
        taken, given = [row[place.me] for row in rows], rows[place.me]
        work = dist.all_to_all_single(out, x, taken, given, **self.common(place))
        return [work], lambda: self.check(out, expected)

    def start_gather(self, place: Place) -> Started:
        part = self.moved_parts()
        root = self.draw.randrange(place.size)
        outs = [self.room(part(0)) for _ in range(place.size)] if root == place.me else None
        x = self.place_tensor(part(place.me))
        work = dist.gather(x, outs, place.members[root], **self.common(place))
        expected = [part(rank) for rank in range(place.size)]
        return [work], lambda: self.check_all(outs or [], expected[: len(outs or [])])

    def start_scatter(self, place: Place) -> Started:
        part = self.moved_parts()
        root = self.draw.randrange(place.size)
        parts = None
        if root == place.me:
            parts = [self.place_tensor(part(rank)) for rank in range(place.size)]
        out = self.room(part(0))
        work = dist.scatter(out, parts, place.members[root], **self.common(place))
        return [work], lambda: self.check(out, part(place.me))

    def start_ring(self, place: Place) -> Started:
        """Everybody sends to a rank so many places on."""
        part = self.moved_parts()
        step, tag = self.draw.randrange(1, place.size + 1), self.draw.randrange(5)
        target, source = (place.me + step) % place.size, (place.me - step) % place.size
        if step == place.size:  # to itself: not all backends can
            return [], lambda: None
        out = self.room(part(0))
        x = self.place_tensor(part(place.me))
        works = [
            dist.isend(x, place.members[target], group=place.group, tag=tag),
            dist.irecv(out, place.members[source], group=place.group, tag=tag),
        ]
        return works, lambda: self.check(out, part(source))

    def check_all(self, got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
        for x, wanted in zip(got, expected, strict=True):
            self.check(x, wanted)

    def uneven(self, place: Place) -> list[list[int]]:
        """How many elements each rank has for each other."""
        most = self.draw.choice((2, 50, 5000))
        return [[self.draw.randrange(most) for _ in place.members] for _ in place.members]

    def piece(self, source: int, target: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        return ((torch.arange(count) + 3 * source + target) % 8).to(dtype)

    # --- what is complete when it returns -------------------------------------------------------

    def do_barrier(self, place: Place) -> None:
        dist.barrier(place.group)

    def do_all_to_all(self, place: Place) -> None:
        rows, dtype = self.uneven(place), self.draw.choice(self.moved)
        if self.is_gloo:  # has no such thing
            return
        me = place.me
        ins = [self.piece(me, rank, rows[me][rank], dtype) for rank in range(place.size)]
        expected = [self.piece(rank, me, rows[rank][me], dtype) for rank in range(place.size)]
        outs = [self.room(x) for x in expected]
        dist.all_to_all(outs, [self.place_tensor(x) for x in ins], group=place.group)
        self.check_all(outs, expected)

    def do_coalesced(self, place: Place) -> None:
        """Several all-reduces as one."""
        drawn = [self.reduction() for _ in range(self.draw.randint(1, 4))]
        tensors = [self.place_tensor(part(place.me)) for _, part, _ in drawn]
        if self.is_gloo:
            for x, (op, _, _) in zip(tensors, drawn, strict=True):
                dist.all_reduce(x, op, group=place.group)
        else:
            op = ReduceOp.SUM
            drawn = [entry for entry in drawn if entry[0] == op]
            tensors = [self.place_tensor(part(place.me)) for _, part, _ in drawn]
            with _coalescing_manager(place.group):
                for x in tensors:
                    dist.all_reduce(x, op, group=place.group)
        self.check_all(tensors, [result(place.size) for _, _, result in drawn])

    def do_functional(self, place: Place) -> None:
        op, part, result = self.reduction(place.size)
        if op not in (ReduceOp.SUM, ReduceOp.MAX):
            return
        name = "sum" if op == ReduceOp.SUM else "max"
        group = place.group if place.group is not None else dist.group.WORLD
        x = part(place.me)
        total = functional.all_reduce(x, name, group)
        self.check(functional.wait_tensor(total), result(place.size))
        own = functional.reduce_scatter_tensor(x, name, 0, group)
        expected = result(place.size).chunk(place.size)[place.me]
        self.check(functional.wait_tensor(own), expected)
        whole = functional.all_gather_tensor(expected.clone(), 0, group)
        self.check(functional.wait_tensor(whole), result(place.size))

    def do_batch(self, place: Place) -> None:
        """Messages both ways with all the others, in one call."""
        part = self.moved_parts()
        others = [rank for rank in range(place.size) if rank != place.me]
        if not others:
            return
        outs = {rank: self.room(part(0)) for rank in others}
        sends = [
            dist.P2POp(dist.isend, self.place_tensor(part(place.me)), place.members[rank],
                       group=place.group)
            for rank in others
        ]  # fmt: skip
        receives = [
            dist.P2POp(dist.irecv, outs[rank], place.members[rank], group=place.group)
            for rank in others
        ]
        messages = sends + receives
        self.own.shuffle(messages)
        for work in dist.batch_isend_irecv(messages):
            work.wait()
        self.check_all([outs[rank] for rank in others], [part(rank) for rank in others])

    def do_storm(self, place: Place) -> None:
        """Messages between random pairs, received in any order, a collective among them."""
        size = place.size
        if size == 1:
            return
        messages = []
        for number in range(3 * size):
            source = self.draw.randrange(size)
            target = (source + self.draw.randrange(1, size)) % size
            messages.append((source, target, self.draw.choice(COUNTS[1:8]), number))
        works = [
            dist.isend(torch.full((count,), number, dtype=torch.int32), place.members[target],
                       group=place.group, tag=number)
            for source, target, count, number in messages
            if source == place.me
        ]  # fmt: skip
        ones = torch.ones(5)
        total = dist.all_reduce(ones, group=place.group, async_op=True)
        mine = [message for message in messages if message[1] == place.me]
        self.own.shuffle(mine)
        for source, _, count, number in mine:
            got = torch.empty(count, dtype=torch.int32)
            dist.recv(got, place.members[source], group=place.group, tag=number)
            self.check(got, torch.full((count,), number, dtype=torch.int32))
        self._wait([*works, total])
        self.check(ones, torch.full((5,), float(size)))

    def do_any_source(self, place: Place) -> None:
        """Everybody sends one message to one rank, which takes them as they come."""
        target = self.draw.randrange(place.size)
        tag = self.draw.randrange(100, 110)
        if place.me != target:
            dist.send(torch.tensor([place.me] * 10), place.members[target], place.group, tag)
        else:
            seen = []
            for _ in range(place.size - 1):
                got = torch.zeros(10, dtype=torch.int64)
                source = dist.recv(got, None, place.group, tag)
                assert place.members[int(got[0])] == source, self.last
                seen.append(int(got[0]))
            assert sorted(seen) == [rank for rank in range(place.size) if rank != target], seen
        dist.barrier(place.group)  # or a second storm of this kind could mix with it

    def do_objects(self, place: Place) -> None:
        thing = {"text": "x" * self.draw.randrange(2000), "number": self.draw.random()}
        root = self.draw.randrange(place.size)
        kind = self.draw.randrange(4)
        source = place.members[root]
        own: Any = (place.me, thing)
        everything = [(rank, thing) for rank in range(place.size)]
        if kind == 0:
            gathered: list[Any] = [None] * place.size
            dist.all_gather_object(gathered, own, place.group)
            assert gathered == everything, self.last
        elif kind == 1:
            box = [own, place.me]
            dist.broadcast_object_list(box, source, place.group)
            assert box == [(root, thing), root], self.last
        elif kind == 2:
            into: Any = [None] * place.size if place.me == root else None
            dist.gather_object(own, into, source, place.group)
            assert into is None or into == everything, self.last
        else:
            out: list[Any] = [None]
            given = everything if place.me == root else None
            dist.scatter_object_list(out, given, source, place.group)
            assert out == [own], self.last


_FOLDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "SUM": lambda x: x.sum(0),
    "PRODUCT": lambda x: x.prod(0),
    "MIN": lambda x: x.amin(0),
    "MAX": lambda x: x.amax(0),
    "AVG": lambda x: x.mean(0),
    "BAND": lambda x: _fold(torch.bitwise_and, x),
    "BOR": lambda x: _fold(torch.bitwise_or, x),
    "BXOR": lambda x: _fold(torch.bitwise_xor, x),
}


def _fold(op: Callable[..., torch.Tensor], parts: torch.Tensor) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = op(total, part)
    return total
