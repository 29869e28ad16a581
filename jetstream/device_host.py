"""What a communicator does for the queue pair that it serves."""

from __future__ import annotations

from typing import Any

from jetstream._core.endpoint import Endpoint
from jetstream.diagnosis import raise_failure
from jetstream.errors import ArgumentError
from jetstream.graph import Graph
from jetstream.launcher import Launcher
from jetstream.persistent import PreparedCall, prepare_call

__all__ = ["DeviceHost"]


class DeviceHost:
    """Prepares what a device launches, and tells the story of what went wrong.

    ``endpoint`` holds the native handles of the communicator.
    """

    def __init__(self, endpoint: Endpoint, launcher: Launcher, rank: int, size: int) -> None:
        self.endpoint = endpoint
        self._launcher = launcher
        self._place = rank, size

    def prepare(
        self, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> PreparedCall:
        """Check the arguments of a collective; its plan stays loaded as long as what is returned.

        Raises ArgumentError.
        """
        return prepare_call(self._launcher, self._place, kind, arguments, options, name="prepare")

    def graph_key(self, graph: Any) -> int:
        """What a descriptor names a graph by. Raises ArgumentError unless it is of this one."""
        if not isinstance(graph, Graph) or not graph.is_of(self._launcher):
            raise ArgumentError("graph: one recorded with this queue pair's capture() is needed")
        return graph.key

    def fail(self, status: int) -> None:
        """Raise what a negative status of the communicator means, with the whole story."""
        with self._launcher.held() as handle:
            raise_failure(handle, status)

    def waiting_text(self) -> str:
        """What this rank waits for at this moment."""
        return self._launcher.waiting_text()
