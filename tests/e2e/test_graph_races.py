"""What another thread may do to a graph between two steps of its launch: close it.

Where it can be, the other thread's deed is put in its place by hand, so that it happens every time.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream import graph as graphs
from jetstream._core.native import FULL, lib
from jetstream.errors import ArgumentError

WAIT_S = 30.0


class Launches:
    """Stands for ``graph_call`` and counts; the queue is full for the first ``full_count``."""

    def __init__(self, full_count: int = 0) -> None:
        self.full_count, self.count = full_count, 0
        self.has_begun = threading.Event()

    def __call__(self, call: Any) -> int:
        self.count += 1
        self.has_begun.set()
        assert self.count < 100, "launched for ever"
        return FULL if self.count <= self.full_count else int(lib.js_graph_call(call))


def test_graph_closed_while_the_queue_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    with jetstream.init() as comm:
        with comm.capture() as graph:
            comm.all_reduce(np.ones(4))
        monkeypatch.setattr(graphs, "graph_call", Launches(full_count=1))

        def close(_timeout_ns: int) -> bool:
            graph.close()  # as another thread would
            return True

        monkeypatch.setattr(comm._launcher, "_make_room", close)
        with pytest.raises(ArgumentError, match="is closed"):
            graph()


def test_graph_launched_while_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it has been freed and before it says so."""
    errors: list[BaseException] = []
    with jetstream.init() as comm:
        with comm.capture() as graph:
            comm.all_reduce(np.ones(4))
        launches, finish = Launches(), graph._recording.finish
        monkeypatch.setattr(graphs, "graph_call", launches)

        def launch() -> None:
            try:
                graph()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=launch, daemon=True)

        def finish_late() -> None:
            thread.start()
            assert launches.has_begun.wait(WAIT_S)
            time.sleep(0.01)  # in which it asks why it has been turned away
            finish()

        monkeypatch.setattr(graph._recording, "finish", finish_late)
        graph.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [ArgumentError], errors


class FullOnce:
    """A data plane whose queue is full when a graph is launched for the first time."""

    def __init__(self) -> None:
        self.answers = iter((FULL,))

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def js_comm_launch_graph(self, *call: Any) -> int:
        return next(self.answers, None) or int(lib.js_comm_launch_graph(*call))


def test_graph_number_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that was turned away does not launch what has the number by now."""
    with jetstream.init() as comm:
        with comm.capture() as graph:
            comm.all_reduce(np.ones(4))
        made = []

        def make_another(_timeout_ns: int) -> bool:
            key = graph.key
            graph.close()
            with comm.capture() as another:
                comm.barrier()
            assert another.key == key
            made.append(another)
            return True

        with monkeypatch.context() as patch:
            patch.setattr(graphs, "lib", FullOnce())
            patch.setattr(comm._launcher, "_make_room", make_another)
            with pytest.raises(ArgumentError, match="is closed"):
                graph.launch()
        made.pop()()
