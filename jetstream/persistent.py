"""Calls that are prepared once and launched often: fixed buffers, one pointer per launch."""

from __future__ import annotations

from typing import Any, NamedTuple

from jetstream.array_calls import persistent_call
from jetstream.arrays import Array, share_fixed
from jetstream.collective_calls import CollectiveCalls
from jetstream.dtypes import Kind
from jetstream.errors import ArgumentError
from jetstream.launcher import Launcher
from jetstream.plans import Plan
from jetstream.work import Work

__all__ = ["Persistent", "PreparedCall", "prepare", "prepare_call"]

_KINDS = tuple(kind.label for kind in Kind if kind is not Kind.NONE)


class PreparedCall(NamedTuple):
    """A collective whose arguments have been checked: its plan, which stays loaded, and its arrays.

    ``result`` is what the call returns, ``what`` its name.
    """

    plan: Plan
    source: Array
    target: Array
    result: Any
    what: str

    @property
    def plan_id(self) -> int:
        """What the data plane knows the plan by."""
        return self.plan.id


class Persistent:
    """A collective with fixed arrays. Made by ``Communicator.persistent``.

    Every rank launches it as often as the others, by a persistent call or by an ordinary one: on
    the other side there is no difference. The arrays belong to the caller between launches.
    """

    def __init__(self, launcher: Launcher, call: PreparedCall, timeout: float | None) -> None:
        self._launcher = launcher
        self._call = call
        arrays = call.source, call.target
        self._native, self._buffers = launcher.prepare(call.plan, arrays, timeout)

    def __repr__(self) -> str:
        return f"<Persistent {self._call.what}>"

    def __call__(self) -> Any:
        """Launch and wait; returns what the ordinary call returns.

        Raises what it raises, too.
        """
        try:
            status = persistent_call(self._native)
            if status != 0:
                self._launcher.finish(self._native, status)
        except BaseException as error:
            self._launcher.interrupt(error)
            raise
        return self._call.result

    def start(self) -> Work:
        """Launch without waiting."""
        return self._launcher.start(*self._call)


class _Preparing:
    """Stands where collectives expect a launcher: what they would start is only prepared."""

    is_fixed = True
    share_input = staticmethod(share_fixed)

    def __init__(self, launcher: Launcher) -> None:
        self.plan = launcher.plan
        self.barrier_call = None

    def repeat_start(self, *_call: Any) -> None:
        """No call of this kind has been made before."""

    def remember(self, *_call: Any) -> None:
        """Nor is this one made."""

    prepare_barrier = remember

    def start(self, plan: Plan, source: Array, target: Array, result: Any, what: str) -> Any:
        return PreparedCall(plan, source, target, result, what)


class _Preparation(CollectiveCalls):
    """The collectives of a communicator, of which none is carried out."""

    def __init__(self, launcher: Launcher, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._launcher: Any = _Preparing(launcher)


def prepare(
    launcher: Launcher,
    rank: int,
    size: int,
    kind: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Persistent:
    """The persistent call of a collective by name. Raises ArgumentError."""
    call = prepare_call(launcher, (rank, size), kind, arguments, options, name="persistent")
    return Persistent(launcher, call, options.get("timeout"))


def prepare_call(
    launcher: Launcher,
    place: tuple[int, int],
    kind: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    *,
    name: str,
) -> PreparedCall:
    """Check the arguments of a collective by name and load its plan. ``place``: rank and size.

    Raises ArgumentError, whose text begins with ``name``.
    """
    if kind not in _KINDS:
        raise ArgumentError(f"{name}: {kind!r} is not one of {', '.join(_KINDS)}")
    for option in ("async_op", "scale"):
        if option in options:
            raise ArgumentError(f"{name}: {option} cannot be fixed")
    preparation = _Preparation(launcher, *place)
    passed = {key: value for key, value in options.items() if key != "timeout"}
    call: PreparedCall = getattr(preparation, kind)(*arguments, **passed, async_op=True)
    return call
