"""What a queue pair needs of the communicator that it serves; jetstream.Communicator has it."""

from __future__ import annotations

from typing import Any, Protocol

from jetstream._core.endpoint import Endpoint
from jetstream.arrays import Array

__all__ = ["Communicator", "Host", "PreparedCall"]


class PreparedCall(Protocol):
    """A collective with its plan and arrays."""

    @property
    def plan_id(self) -> int:
        """Id of the plan, which stays loaded as long as this object."""

    @property
    def source(self) -> Array:
        """INPUT."""

    @property
    def target(self) -> Array:
        """OUTPUT."""

    @property
    def result(self) -> Any:
        """What the call returns."""

    @property
    def what(self) -> str:
        """Name of the collective."""


class Host(Protocol):
    """The side of a communicator that is turned to a device."""

    endpoint: Endpoint

    def prepare(
        self, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> PreparedCall:
        """Check the arguments of a collective."""

    def graph_key(self, graph: Any) -> int:
        """What a descriptor names a graph by. Raises ArgumentError for a foreign one."""

    def fail(self, status: int) -> None:
        """Raise what a negative status of the communicator means."""

    def waiting_text(self) -> str:
        """What this rank waits for at this moment."""


class Communicator(Protocol):
    """An ordered group of ranks."""

    rank: int
    size: int

    @property
    def timeout(self) -> float:
        """Default timeout of every wait in seconds."""

    def dup(self) -> Any:
        """A communicator of the same ranks; all ranks call it."""

    def all_gather(self, x: Any) -> Any:
        """The arrays of all ranks, one after another."""

    def close(self) -> None:
        """Leave."""

    def device_host(self) -> Host:
        """What a queue pair needs."""
