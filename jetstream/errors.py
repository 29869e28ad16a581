"""Exceptions of jetstream: one class per kind of status, each also the builtin that fits.

Every exception carries ``status``, the name of the data plane's status (``JS_ERR_TIMEOUT``), or
``None`` where the data plane was not involved. ``docs/errors.md`` says what to do about each.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "ArgumentError",
    "BoundsError",
    "BusyError",
    "ClosedError",
    "CommunicatorAbortedError",
    "ConfigurationError",
    "ForkedError",
    "JetstreamError",
    "MismatchError",
    "OutOfMemoryError",
    "PeerClosedError",
    "PeerDiedError",
    "PlanError",
    "ProtocolError",
    "QueueFullError",
    "RendezvousError",
    "SegmentError",
    "SystemCallError",
    "TimedOutError",
    "TruncatedError",
    "TuningError",
    "UnreachableError",
    "UnsupportedError",
    "VersionMismatchError",
]


class JetstreamError(Exception):
    """Base of all errors of this package."""

    def __init__(self, text: str, *, status: str | None = None) -> None:
        super().__init__(text)
        self.status = status


class ArgumentError(JetstreamError, ValueError):
    """A call got an argument it cannot work with; nothing was sent, the communicator is intact."""


class PlanError(JetstreamError, ValueError):
    """A plan did not pass verification or the data plane's validation."""


class TruncatedError(JetstreamError, ValueError):
    """A message and the array that was to receive it differ in size; the message is consumed."""


class AccessError(JetstreamError, PermissionError):
    """Memory that is not registered with the queue pair for this use, or a key of no region."""


class BoundsError(JetstreamError, IndexError):
    """A range that goes beyond the end of the region or window it is in."""


class UnsupportedError(JetstreamError, NotImplementedError):
    """This machine or this build cannot do what was asked."""


class ConfigurationError(JetstreamError, ValueError):
    """An environment variable or an option has a value that makes no sense."""


class TuningError(ConfigurationError):
    """A file of tuning results is damaged, or was measured on another host."""


class BusyError(JetstreamError, RuntimeError):
    """Another thread is inside a call on the same communicator; nothing was sent."""


class QueueFullError(JetstreamError, RuntimeError):
    """A queue of a queue pair has no room; nothing was posted."""


class ClosedError(JetstreamError, RuntimeError):
    """The communicator, the queue pair or the window has been closed."""


class ForkedError(JetstreamError, RuntimeError):
    """The communicator was made before a fork and belongs to the parent process."""


class CommunicatorAbortedError(JetstreamError, ConnectionError):
    """Another rank failed or aborted; the communicator cannot be used any more."""


class PeerDiedError(CommunicatorAbortedError):
    """A rank's process died."""


class PeerClosedError(CommunicatorAbortedError):
    """A rank left the communicator while others still waited for it."""


class MismatchError(JetstreamError, ValueError):
    """Ranks called different operations, or the same one with different arguments."""


class ProtocolError(JetstreamError, ConnectionError):
    """A frame arrived that the protocol does not allow."""


class TimedOutError(JetstreamError, TimeoutError):
    """An operation did not finish in time; the text names who was missing."""


class SystemCallError(JetstreamError, OSError):
    """The operating system refused something; the text says what."""


class OutOfMemoryError(JetstreamError, MemoryError):
    """No memory left: in the symmetric heap, of which the text says what is used, or at all."""


class SegmentError(JetstreamError, OSError):
    """The shared memory handed over is not a usable jetstream segment."""


class VersionMismatchError(JetstreamError, ConnectionError):
    """The ranks run different builds of jetstream."""


class RendezvousError(JetstreamError, ConnectionError):
    """The ranks could not find each other."""


class UnreachableError(JetstreamError, ConnectionError):
    """No path to a rank on another host; the text says which, over what, in which direction."""


#: Exception class by name of the status; of class FLOW only a full queue of a queue pair raises.
BY_STATUS: dict[str, type[JetstreamError]] = {
    "JS_ERR_FULL": QueueFullError,
    "JS_ERR_INVALID": ArgumentError,
    "JS_ERR_OPCODE": ArgumentError,
    "JS_ERR_PLAN": PlanError,
    "JS_ERR_TRUNCATED": TruncatedError,
    "JS_ERR_UNSUPPORTED": UnsupportedError,
    "JS_ERR_ACCESS": AccessError,
    "JS_ERR_BOUNDS": BoundsError,
    "JS_ERR_BUSY": BusyError,
    "JS_ERR_CLOSED": ClosedError,
    "JS_ERR_FORKED": ForkedError,
    "JS_ERR_FLUSHED": CommunicatorAbortedError,
    "JS_ERR_ABORTED": CommunicatorAbortedError,
    "JS_ERR_PEER_DEAD": PeerDiedError,
    "JS_ERR_PEER_CLOSED": PeerClosedError,
    "JS_ERR_MISMATCH": MismatchError,
    "JS_ERR_PROTOCOL": ProtocolError,
    "JS_ERR_TIMEOUT": TimedOutError,
    "JS_ERR_SYSTEM": SystemCallError,
    "JS_ERR_NO_MEMORY": OutOfMemoryError,
    "JS_ERR_SEGMENT": SegmentError,
    "JS_ERR_VERSION": VersionMismatchError,
    "JS_ERR_UNREACHABLE": UnreachableError,
}
