"""The zmq socket of the rendezvous: sealed messages between rank 0 and the others."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import zmq

from jetstream.config import Config
from jetstream.control.machine import Unreadable
from jetstream.control.messages import LIMIT_BYTES, ForeignBytesError, Message, open_sealed, seal
from jetstream.errors import JetstreamError, RendezvousError

__all__ = ["Wire"]

_log = logging.getLogger("jetstream.control")


class Wire:
    """The zmq socket of one attempt: ROUTER, bound, at rank 0; DEALER, connected, elsewhere.

    A rank 0 that finds the address taken connects too: if another rank 0 listens there, both of
    them, and all others, get to know it.
    """

    def __init__(self, config: Config) -> None:
        self._secret = config.job_secret
        self._context = zmq.Context(io_threads=1)
        self.is_bound = config.rank == 0 and self._open(zmq.ROUTER, config.rendezvous)
        if not self.is_bound:
            self._open(zmq.DEALER, config.rendezvous)

    def _open(self, kind: int, address: str) -> bool:
        """Opens the socket; returns False if the address is taken."""
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LIMIT_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            if kind == zmq.ROUTER:
                if address.startswith("ipc:"):
                    self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
                self._socket.bind(address)
            else:
                # One Hello may wait for the connection; more would only pile up.
                self._socket.setsockopt(zmq.SNDHWM, 2)
                self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
                self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
                self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            if error.errno == zmq.EADDRINUSE:
                return False
            self._context.term()
            raise RendezvousError(
                f"cannot use {address} as JETSTREAM_RENDEZVOUS: {error}"
            ) from None
        return True

    def send(self, peer: bytes, message: Message) -> None:
        """Sends or, where nobody takes it, drops: what matters is repeated or times out."""
        frames = [peer] if self.is_bound else []
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(
                [*frames, seal(message, secret=self._secret)], flags=zmq.NOBLOCK
            )
        _log.debug("sent %s", type(message).__name__)

    def wait(self, fds: list[int], *, timeout_s: float) -> set[int]:
        """Waits for a message or until one of `fds` is readable; returns those that are."""
        poller = zmq.Poller()
        for source in (self._socket, *fds):
            poller.register(source, zmq.POLLIN)
        ready = poller.poll(max(0, int(1e3 * timeout_s) + 1))
        return {source for source, _ in ready if isinstance(source, int)}

    def receive_all(self) -> Iterator[tuple[bytes, Message | Unreadable]]:
        """Yields (peer, message) for everything that ranks have sent."""
        while True:
            try:
                frames = self._socket.recv_multipart(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            peer = frames.pop(0) if self.is_bound else b""
            try:
                yield peer, open_sealed(b"".join(frames), secret=self._secret)
            except ForeignBytesError as error:
                _log.warning("ignored at the rendezvous: %s", error)
            except JetstreamError as error:
                yield peer, Unreadable(error)

    def close(self, *, linger_ms: int) -> None:
        """Closes the socket and ends zmq's threads; `linger_ms` is for messages not yet sent."""
        self._context.destroy(linger=linger_ms)
