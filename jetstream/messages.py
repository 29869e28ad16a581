"""Messages between two ranks: send, receive, probe. A base of Communicator."""

from __future__ import annotations

from typing import Any

from jetstream._core.native import lib
from jetstream.array_calls import MISS, array_receive, array_send
from jetstream.arrays import Array, share, share_result, share_writable
from jetstream.launcher import Launcher
from jetstream.message_launcher import ANY_SOURCE
from jetstream.shapes import TAG_MAX, check_rank, check_tag
from jetstream.work import Arrival, Message, Work, check_length

__all__ = ["MessageCalls"]

_TAG_ANY: int = lib.JS_RQ_TAG_ANY


class MessageCalls:
    """Point-to-point calls.

    A message goes to the oldest posted receive that fits its source and tag; messages of one
    sender that fit one receive arrive in the order in which they were sent. Receives from any
    source serve the senders in turns.
    """

    rank: int
    size: int
    _launcher: Launcher

    def send(self, x: Any, dst: int, tag: int = 0, *, timeout: float | None = None) -> None:
        """Send ``x`` to rank ``dst``; returns when ``x`` may be changed again.

        ``tag``: 0 to 2**32 - 1. A long message that nobody receives holds its sender back.
        """
        if not (type(dst) is int and 0 <= dst < self.size):
            dst = check_rank(dst, self.size, "dst")
        if not (type(tag) is int and 0 <= tag <= TAG_MAX):
            tag = check_tag(tag)
        launcher = self._launcher
        if timeout is None:
            try:
                status = array_send(launcher.mail, id(x), dst << 32 | tag)
                if status == 0:
                    return
                if status != MISS:
                    launcher.go_on_sending(status, share(x), dst, tag, None)
                    return
            except BaseException as error:
                launcher.give_up(error)
                raise
        launcher.send_now(launcher.share_input(x), dst, tag, timeout)

    def recv(
        self,
        out: Any,
        src: int | None = None,
        tag: int | None = None,
        *,
        exact: bool = True,
        timeout: float | None = None,
    ) -> Any:
        """Receive into ``out`` from rank ``src`` (None: any) with ``tag`` (None: any).

        Returns ``out``. Raises TruncatedError when the message is longer than ``out``, or, unless
        ``exact`` is False, shorter; it is gone then. Where source, tag or length are to be known,
        use ``irecv``, whose Work tells them, or ``probe`` first. After a timeout with nothing
        received the communicator can still be used. A receive from any source fails with
        PeerDiedError when any rank has died, with PeerClosedError when all others have closed.
        """
        if not (type(src) is int and 0 <= src < self.size):
            src = self._source(src)
        if not (tag is None or (type(tag) is int and 0 <= tag <= TAG_MAX)):
            tag = check_tag(tag)
        launcher = self._launcher
        if timeout is None:
            try:
                if tag is None:
                    status = array_receive(launcher.mail, id(out), src << 32, _TAG_ANY)
                else:
                    status = array_receive(launcher.mail, id(out), src << 32 | tag, 0)
                if status == 0:
                    return out
                if status != MISS:
                    nbytes = launcher.go_on_receiving(status, share(out), src, tag, None)
                    check_length(nbytes, out, exact)
                    return out
            except BaseException as error:
                launcher.give_up(error)
                raise
        array = _room(launcher, out)
        return launcher.receive_now(Arrival(array, out, exact), src, tag, timeout)

    def isend(self, x: Any, dst: int, tag: int = 0) -> Work:
        """Start to send; ``x`` must not change before the Work is complete."""
        target = check_rank(dst, self.size, "dst")
        launcher = self._launcher
        return launcher.send(launcher.share_input(x), target, check_tag(tag))

    def irecv(
        self, out: Any, src: int | None = None, tag: int | None = None, *, exact: bool = True
    ) -> Work:
        """Start to receive; ``out`` must not be touched before the Work is complete.

        Then ``work.source``, ``work.tag`` and ``work.nbytes`` tell what has come.
        """
        source, number = self._source(src), _any_tag(tag)
        array = _room(self._launcher, out)
        return self._launcher.receive(array, source, number, Arrival(array, out, exact))

    def probe(
        self, src: int | None = None, tag: int | None = None, *, timeout: float | None = None
    ) -> Message:
        """Wait for a message that ``recv`` with these arguments would get; it stays there.

        Returns Message(source, tag, nbytes): make an array of that length and receive it from
        that source with that tag. Raises TimedOutError; the communicator can still be used.
        """
        found = self._launcher.probe(self._source(src), _any_tag(tag), timeout)
        assert found is not None
        return found

    def iprobe(self, src: int | None = None, tag: int | None = None) -> Message | None:
        """As ``probe``, but without waiting: None when there is no such message yet."""
        return self._launcher.probe(self._source(src), _any_tag(tag), 0.0, is_waiting=False)

    # --- checks --------------------------------------------------------------------------------

    def _source(self, src: int | None) -> int:
        return ANY_SOURCE if src is None else check_rank(src, self.size, "src")


def _room(launcher: Launcher, out: Any) -> Array:
    """Where a message goes; what is captured finds it there at every launch."""
    return (share_writable if launcher.is_fixed else share_result)(out, name="out")


def _any_tag(tag: int | None) -> int | None:
    return None if tag is None else check_tag(tag)
