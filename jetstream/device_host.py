"""What a communicator does for the queue pair that it serves."""

from __future__ import annotations

from typing import Any

from jetstream._core.endpoint import Endpoint
from jetstream.diagnosis import raise_failure
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
        self, owner: object, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> PreparedCall:
        """Check the arguments of a collective; its plan stays loaded as long as ``owner`` lives.

        Raises ArgumentError.
        """
        call = prepare_call(self._launcher, self._place, kind, arguments, options, name="prepare")
        self._launcher.plans.pin(call.plan, owner)
        return call

    def fail(self, status: int) -> None:
        """Raise what a negative status of the communicator means, with the whole story."""
        raise_failure(self._launcher.handle(), status)

    def waiting_text(self) -> str:
        """What this rank waits for at this moment."""
        return self._launcher.waiting_text()
