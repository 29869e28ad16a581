"""Graphs: chains of operations on fixed arrays, launched as one."""

from __future__ import annotations

import threading
from typing import Any

from jetstream._core.native import ffi, lib
from jetstream.array_calls import graph_call
from jetstream.errors import ArgumentError, BusyError, JetstreamError
from jetstream.launcher import Launcher
from jetstream.plans import Plan
from jetstream.recording import Recording
from jetstream.work import Work

__all__ = ["Graph"]

_CAPTURING = "is still being captured"


class Pin:
    """Plans that stay loaded while it lives."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []


class _Native:
    """A graph in the data plane, and what it works on."""

    def __init__(self, call: Any, keep: tuple[Any, ...]) -> None:
        self.call = call  # the js_persistent *; its comm is NULL once the communicator is closed
        self._keep = keep

    def free(self) -> bool:
        """False: it is under way, or another thread is inside the communicator."""
        comm = self.call.comm  # once: another thread may be closing
        if comm != ffi.NULL:
            status = lib.js_comm_free_graph(comm, self.call.plan_id)
            if status == lib.JS_ERR_BUSY:
                return False
        self.call.comm = ffi.NULL
        self._keep = ()
        return True


def _new_graph(launcher: Launcher, nodes: Any, count: int) -> int:
    """The id of a graph in the data plane."""
    out = ffi.new("uint32_t *")
    status = lib.js_comm_new_graph(launcher.handle(), nodes, count, out)
    if status < 0:
        launcher.fail(status)
    return int(out[0])


def check_usable(launcher: Launcher) -> None:
    """Raise what every call on a communicator raises that is closed or has failed.

    QueueFullError: there are too many graphs.
    """
    launcher.undisposed[:] = [graph for graph in launcher.undisposed if not graph.free()]
    key = _new_graph(launcher, ffi.NULL, 0)
    lib.js_comm_free_graph(launcher.handle(), key)


class Graph:
    """Operations that one call launches, in the order of their capture.

    Made by ``Communicator.capture``. All ranks must launch graphs with the same collectives, or
    make the same calls one by one: on the other side there is no difference. Launches take their
    turn behind the collectives started before, also those of the same graph.

    The arrays belong to the caller between launches, and live as long as the graph. Errors are
    those of the operations; one that fails ends the communicator on all ranks.
    """

    def __init__(
        self, launcher: Launcher, recording: Recording, pin: Pin, *, timeout_ns: int
    ) -> None:
        self._launcher = launcher
        self._call = ffi.new("js_persistent *")  # its comm is NULL unless it can be launched
        self._call.timeout_ns = self._timeout_ns = timeout_ns
        self._pin: Pin | None = pin
        self._recording = recording
        self._native: _Native | None = None
        self._unusable = _CAPTURING
        self._lock = threading.RLock()  # of who closes and of who asks whether it is closed
        self._last: Work | None = None

    def __repr__(self) -> str:
        state = f", {self._unusable}" if self._unusable else ""
        return f"<Graph of {len(self)} nodes{state}>"

    def __len__(self) -> int:
        return len(self._recording.nodes)

    @property
    def nodes(self) -> tuple[str, ...]:
        """What the graph does, for people: one line per node."""
        return tuple(node.text for node in self._recording.nodes)

    @property
    def key(self) -> int:
        """What a descriptor names the graph by, for a device with a queue pair."""
        self._require_ready()
        return int(self._call.plan_id)

    def is_of(self, launcher: Launcher) -> bool:
        """Whether it was captured on the communicator of a launcher."""
        return self._launcher is launcher

    # --- making ----------------------------------------------------------------------------------

    def call(self, function: Any, argument: Any = None, *, keep: tuple[Any, ...] = ()) -> None:
        """Add a call of ``void function(void *argument)``, within the block of the capture.

        ``function``: a cffi pointer, a ctypes function, an address, or an object with the attribute
        ``address`` (numba.cfunc). ``argument``: None, an address, a NumPy array or a cffi pointer.
        Both live as long as the graph, and so does what is in ``keep``. The function runs in the
        thread that moves the graph on, without the GIL; it must not use the communicator, and
        cannot report an error. Raises ArgumentError.
        """
        self._recording.call(function, argument, keep)

    def finish(self, error: BaseException | None) -> None:
        """What the end of the block calls.

        Raises ArgumentError for too many nodes, OutOfMemoryError.
        """
        recording = self._recording
        recording.finish()
        keep, recording.keep = tuple(recording.keep), []
        if error is None:
            try:
                self._make(recording.to_native(), keep)
                return
            except JetstreamError as failure:
                self._end(f"could not be made: {failure}")
                raise
        self._end(f"is incomplete: its block ended with {type(error).__name__}: {error}")

    def _make(self, nodes: Any, keep: tuple[Any, ...]) -> None:
        launcher = self._launcher
        self._call.plan_id = _new_graph(launcher, nodes, len(self))
        self._call.comm = launcher.handle()
        self._native = _Native(self._call, (keep, self._pin))
        launcher.watch(self._call)
        self._unusable = ""

    # --- launching -------------------------------------------------------------------------------

    def __call__(self) -> None:
        """Launch and wait. A timeout or an interrupt makes the communicator unusable."""
        try:
            status = graph_call(self._call)
            if status != 0:
                self._go_on(status)
        except BaseException as error:
            self._launcher.interrupt(error)
            raise

    def launch(self) -> Work:
        """Launch without waiting; the Work has no result."""
        self._require_ready()
        wr_id = self._launcher.post(self._post)
        self._last = self._launcher.track(wr_id, self._what, (self._native,))
        return self._last

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the last ``launch``, as its Work does. Raises ArgumentError if there is none."""
        if self._last is None:
            raise ArgumentError("the graph has not been launched")
        self._last.wait(timeout)

    def close(self) -> None:
        """Free the graph and let go of its arrays; also happens when nobody holds it any more.

        Idempotent. Raises BusyError while it is under way, also while a device has posted it,
        ArgumentError in the block that captures it.
        """
        if self._unusable == _CAPTURING:
            raise ArgumentError("a graph cannot be closed in the block that captures it")
        with self._lock:
            if self._native is not None and not self._native.free():
                raise BusyError("the graph is still being carried out", status="JS_ERR_BUSY")
            self._recording.finish()
            self._end(self._unusable or "is closed")

    def __del__(self) -> None:
        native: _Native | None = getattr(self, "_native", None)
        if native is not None and not native.free():
            self._launcher.undisposed.append(native)

    # --- internals -------------------------------------------------------------------------------

    @property
    def _what(self) -> str:
        return f"graph of {len(self)} nodes"

    def _end(self, why: str) -> None:
        self._call = ffi.new("js_persistent *")  # that nobody sets a communicator in
        self._native = None
        self._pin = None
        self._unusable = why

    def _require_ready(self) -> None:
        with self._lock:  # a close that another thread has begun has succeeded or failed
            if self._unusable:
                raise ArgumentError(f"the graph {self._unusable}")

    def _go_on(self, status: int) -> None:
        """What a launch still needs that was not complete at once."""
        launcher, timeout_ns = self._launcher, self._timeout_ns
        if status == lib.JS_ERR_CLOSED:  # it cannot be launched: why not
            self._require_ready()
            launcher.require_live("another graph")
        status = launcher.insist(status, self._again, timeout_ns)
        launcher.run_on(status, timeout_ns, self._what)

    def _again(self) -> int:
        """Launch once more what was turned away: perhaps by the end of the graph itself."""
        self._require_ready()
        return int(graph_call(self._call))

    def _post(self, comm: Any, out: Any) -> int:
        """Launch without waiting, as long as its number is not that of another graph."""
        with self._lock:
            self._require_ready()
            return int(lib.js_comm_launch_graph(comm, self._call.plan_id, out))
