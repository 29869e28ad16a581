"""Capturing: the calls of a communicator become the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from jetstream._core.native import ffi
from jetstream._core.timeouts import timeout_to_ns
from jetstream.arrays import Array, share_fixed
from jetstream.collectives.calls import REDUCING, ROOTED
from jetstream.dtypes import Kind, RedOp, redop_of
from jetstream.errors import ArgumentError
from jetstream.graph import Graph, Pin, check_usable
from jetstream.launcher import Launcher
from jetstream.plans import Plan
from jetstream.recording import Recording
from jetstream.work import Arrival

__all__ = ["Capture"]


class CapturedWork:
    """What an asynchronous call returns within the block of a capture: ``wait`` becomes a node."""

    is_done = False
    message = source = tag = nbytes = None

    def __init__(
        self, recording: Recording, node: int | None, what: str, result: Any = None
    ) -> None:
        self._recording = recording
        self._node = node  # None: a collective, for which the next node waits anyway
        self.what = what
        self._result = result

    def __repr__(self) -> str:
        return f"<CapturedWork {self.what}>"

    def wait(self, timeout: float | None = None) -> Any:
        """From here on the graph waits for the operation; returns the array of its result."""
        _forbid_timeout(timeout)
        self._recording.check()
        if self._node is not None:
            self._recording.join(self._node)
        return self._result

    def done(self) -> NoReturn:
        """Raise ArgumentError: it cannot be known."""
        raise ArgumentError(f"{self.what} is captured: whether it is done only a launch can tell")


def _forbid_timeout(timeout: float | None) -> None:
    if timeout is not None:
        raise ArgumentError("timeout cannot be captured: pass it to capture, or to graph.wait")


class _Recorder:
    """Stands where a communicator's calls expect its launcher."""

    is_fixed = True
    share_input = staticmethod(share_fixed)
    barrier_call = None

    def __init__(self, launcher: Launcher, recording: Recording, pin: Pin) -> None:
        self._launcher = launcher
        self._recording = recording
        self._pin = pin
        self._texts: dict[Plan, str] = {}
        self.tables: dict[Any, Any] = {}  # no call is known: all come the long way, checked,
        self.mail = ffi.new("js_mail *")  # and so do messages
        self.require_live = launcher.require_live
        self.handle = launcher.handle
        self.abort = launcher.abort
        self.fail = launcher.fail

    @property
    def timeout(self) -> float:
        """The communicator's, in seconds."""
        return self._launcher.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._launcher.timeout = seconds

    # --- collectives -----------------------------------------------------------------------------

    def plan(self, kind: Kind, dtype: Any, count: int, **options: Any) -> Plan:
        """A plan, which stays as long as the graph."""
        self._recording.check()
        op: Any = options.get("op", "sum")
        if op in ("premul_sum", RedOp.PREMUL_SUM):
            raise ArgumentError("premul_sum cannot be captured: it multiplies when it is called")
        plan = self._launcher.plan(kind, dtype, count, **options)
        if plan not in self._texts:
            words = [str(dtype)] if kind is not Kind.BARRIER else []
            words += [redop_of(op).label] if kind in REDUCING else []
            words += [f"count={count}"] if kind is not Kind.BARRIER else []
            words += [f"root={options.get('root', 0)}"] if kind in ROOTED else []
            self._texts[plan] = f"{kind.label}({', '.join(words)})"
            self._pin.plans.append(plan)
        return plan

    def repeat(self, *_call: Any) -> bool:
        """Every call comes the long way."""
        return False

    def repeat_start(self, *_call: Any) -> None:
        """So do those without waiting."""

    def remember(self, *_call: Any) -> None:
        """None is made."""

    prepare_barrier = remember

    def run(
        self, plan: Plan, source: Array, target: Array, result: Any, timeout: float | None
    ) -> Any:
        """A collective; returns the array that will have its result."""
        _forbid_timeout(timeout)
        self._recording.launch(plan.id, (source, target), self._texts[plan])
        return result

    def start(
        self, plan: Plan, source: Array, target: Array, result: Any, what: str
    ) -> CapturedWork:
        """A collective, with ``async_op``."""
        self.run(plan, source, target, result, None)
        return CapturedWork(self._recording, None, what, result)

    # --- messages --------------------------------------------------------------------------------

    def send(self, array: Array, target: int, tag: int) -> CapturedWork:
        """A send that is waited for by its Work."""
        node = self._recording.send(array, target, tag, is_joined=True)
        return CapturedWork(self._recording, node, f"send to rank {target}")

    def send_now(self, array: Array, target: int, tag: int, timeout: float | None) -> None:
        """Send, for which the first node waits that may write to the array."""
        _forbid_timeout(timeout)
        self._recording.send(array, target, tag, is_joined=False)

    def receive(self, array: Array, source: int, tag: int | None, arrival: Arrival) -> CapturedWork:
        """A receive that is waited for by its Work."""
        node = self._recording.receive(array, source, tag, exact=arrival.exact)
        return CapturedWork(self._recording, node, "receive", arrival.result)

    def receive_now(
        self, arrival: Arrival, source: int, tag: int | None, timeout: float | None
    ) -> Any:
        """Receive, for which the next node waits."""
        _forbid_timeout(timeout)
        return self.receive(arrival.array, source, tag, arrival).wait()

    def probe(self, *_call: Any, **_options: Any) -> NoReturn:
        """Raise ArgumentError."""
        raise ArgumentError("probe cannot be captured: nothing has been sent")

    def close(self) -> NoReturn:
        """Raise ArgumentError."""
        raise ArgumentError("close cannot be captured: leave the block first")


class Capture:
    """The block of a capture. ``use`` has the communicator's calls go to a launcher."""

    def __init__(
        self, launcher: Launcher, use: Callable[[Any], None], timeout: float | None
    ) -> None:
        launcher.require_live("capture")
        self._launcher = launcher
        self._use = use
        self._timeout_ns = timeout_to_ns(timeout, launcher.timeout)
        self._graph: Graph | None = None

    def __enter__(self) -> Graph:
        launcher = self._launcher
        launcher.require_live("capture")
        if self._graph is not None:
            raise ArgumentError("this capture has been used: call capture() again")
        check_usable(launcher)
        recording, pin = Recording(), Pin()
        self._graph = Graph(launcher, recording, pin, timeout_ns=self._timeout_ns)
        launcher.set_captured(True)
        self._use(_Recorder(launcher, recording, pin))
        return self._graph

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._graph is not None
        self._use(self._launcher)
        self._launcher.set_captured(False)
        self._graph.finish(error)
