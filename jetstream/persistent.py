"""Calls that are prepared once and launched often: fixed buffers, one pointer per launch."""

from __future__ import annotations

from typing import Any

from jetstream.array_calls import persistent_call
from jetstream.arrays import Array, share
from jetstream.collective_calls import CollectiveCalls
from jetstream.dtypes import Kind
from jetstream.errors import ArgumentError
from jetstream.launcher import Launcher
from jetstream.work import Work

__all__ = ["Persistent", "prepare"]

_KINDS = tuple(kind.label for kind in Kind if kind is not Kind.NONE)


class Persistent:
    """A collective with fixed arrays. Made by ``Communicator.persistent``.

    Every rank launches it as often as the others, by a persistent call or by an ordinary one: on
    the other side there is no difference. The arrays belong to the caller between launches.
    """

    def __init__(
        self,
        launcher: Launcher,
        plan: int,
        arrays: tuple[Array, Array],
        *,
        result: Any,
        what: str,
        timeout: float | None,
    ) -> None:
        self._launcher = launcher
        self._plan = plan
        self._arrays = arrays
        self._result = result
        self._what = what
        self._timeout = timeout
        self._native, self._buffers = launcher.prepare(self, plan, arrays, timeout)

    def __repr__(self) -> str:
        return f"<Persistent {self._what}>"

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
        return self._result

    def start(self) -> Work:
        """Launch without waiting."""
        return self._launcher.start(self._plan, *self._arrays, self._result, self._what)


class _Preparing:
    """Stands where collectives expect a launcher: what they would start is only prepared."""

    def __init__(self, launcher: Launcher, timeout: float | None) -> None:
        self._launcher = launcher
        self._timeout = timeout
        self.plan = launcher.plan
        self.barrier_call = None

    def repeat_start(self, *_call: Any) -> None:
        """No call of this kind has been made before."""

    def remember(self, *_call: Any) -> None:
        """Nor is this one made."""

    prepare_barrier = remember

    def start(self, plan: int, source: Array, target: Array, result: Any, what: str) -> Persistent:
        return Persistent(
            self._launcher, plan, (source, target), result=result, what=what, timeout=self._timeout
        )


class _Preparation(CollectiveCalls):
    """The collectives of a communicator, of which none is carried out."""

    def __init__(self, launcher: Launcher, rank: int, size: int, timeout: float | None) -> None:
        self.rank = rank
        self.size = size
        self._launcher: Any = _Preparing(launcher, timeout)


def prepare(
    launcher: Launcher,
    rank: int,
    size: int,
    kind: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> Persistent:
    """The persistent call of a collective by name. Raises ArgumentError."""
    if kind not in _KINDS:
        raise ArgumentError(f"persistent: {kind!r} is not one of {', '.join(_KINDS)}")
    for name in ("async_op", "scale"):
        if name in options:
            raise ArgumentError(f"persistent: {name} cannot be fixed")
    # Both would be copied now, and launches would see the copy.
    given = arguments[0] if arguments else options.get("x")
    if kind != Kind.BARRIER.label and given is not None:
        x = share(given, name="x")
        if not x.flags.c_contiguous:
            raise ArgumentError(
                f"persistent: x is not C-contiguous (strides {x.strides} for shape {x.shape})"
            )
    timeout = options.pop("timeout", None)
    preparation = _Preparation(launcher, rank, size, timeout)
    call: Persistent = getattr(preparation, kind)(*arguments, **options, async_op=True)
    return call
