"""The zmq socket of the rendezvous: sealed messages between rank 0 and the others.

Over TCP, where there is a job secret, the connections are encrypted (CURVE) under a key of rank 0
that only those know who have the secret; others do not get as far as sending a message.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import struct
from collections import Counter
from collections.abc import Iterator

import zmq
import zmq.utils.z85

from jetstream.config import Config
from jetstream.control.machine import Unreadable
from jetstream.control.messages import LIMIT_BYTES, ForeignBytesError, Message, open_sealed, seal
from jetstream.control.reach import try_tcp
from jetstream.errors import JetstreamError, RendezvousError
from jetstream.places import split_tcp

__all__ = ["Wire"]

_log = logging.getLogger("jetstream.control")

_CURVE_CONTEXT = b"jetstream rendezvous rank 0"
_REFUSALS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = _REFUSALS | zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
_EVENT = struct.Struct("=HI")  # number and value, as zmq_socket_monitor(3) has them


class Wire:
    """The zmq socket of one attempt: ROUTER, bound, at rank 0; DEALER, connected, elsewhere.

    A rank 0 that finds the address taken connects too: if another rank 0 listens there, both of
    them, and all others, get to know it.
    """

    def __init__(self, config: Config) -> None:
        self._secret = config.job_secret
        self._context = zmq.Context(io_threads=1)
        self._monitor: zmq.Socket[bytes] | None = None
        self._address = config.rendezvous
        #: How often each thing has happened to the connections of a TCP socket.
        self._events: Counter[int] = Counter()
        self.is_bound = config.rank == 0 and self._open(zmq.ROUTER, config.rendezvous)
        if not self.is_bound:
            self._open(zmq.DEALER, config.rendezvous)

    @property
    def address(self) -> str:
        """Where rank 0 listens: with the port that the kernel has chosen, where it was 0."""
        if not self._address.endswith(":0"):
            return self._address
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def _open(self, kind: int, address: str) -> bool:
        """Opens the socket; returns False if the address is taken."""
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LIMIT_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        is_server = kind == zmq.ROUTER
        try:
            if address.startswith("tcp:"):
                self._socket.setsockopt(zmq.IPV6, int("[" in address))
                self._encrypt(is_server=is_server)
                self._monitor = self._socket.get_monitor_socket(_WATCHED)
            if is_server:
                # A rank whose connection was broken comes back under its name.
                self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
                if address.startswith("ipc:"):
                    self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
                self._socket.bind(_address_to_bind(address))
            else:
                self._socket.setsockopt(zmq.ROUTING_ID, b"\1" + secrets.token_bytes(15))
                # One Hello may wait for the connection; more would only pile up.
                self._socket.setsockopt(zmq.SNDHWM, 2)
                self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
                self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
                self._socket.connect(address)
        except zmq.ZMQError as error:
            self._close_monitor()
            self._socket.close()
            if error.errno == zmq.EADDRINUSE:
                return False
            self._context.term()
            raise RendezvousError(
                f"cannot use {address} as JETSTREAM_RENDEZVOUS: {error}"
            ) from None
        return True

    def _encrypt(self, *, is_server: bool) -> None:
        """Rank 0's key follows from the job secret: so the others know it, and nobody else does."""
        if not self._secret:
            return
        if not zmq.has("curve"):
            raise RendezvousError("this pyzmq has no CURVE, which a rendezvous over TCP needs")
        raw = hmac.digest(self._secret, _CURVE_CONTEXT, "sha256")
        private = zmq.utils.z85.encode(raw)
        public = zmq.curve_public(private)
        if is_server:
            self._socket.curve_server = True
            self._socket.curve_secretkey = private
        else:
            self._socket.curve_serverkey = public
            self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None

    def count_refused(self) -> int:
        """How many connections have failed because one side does not have the job's secret.

        Each failing rank makes many of them: it tries again and again.
        """
        if not self._secret:
            return 0
        return sum(count for event, count in self._look().items() if event & _REFUSALS)

    def explain_silence(self, *, timeout_s: float) -> str:
        """Says what became of the TCP connection to a rank 0 that has never spoken.

        Returns "" if it has, and where that cannot be told. Takes at most about `timeout_s`.
        """
        events = self._look()
        if self._monitor is None or self.is_bound or events[zmq.EVENT_HANDSHAKE_SUCCEEDED]:
            return ""
        host, port = split_tcp(self._address)
        # Only where nobody has answered: rank 0 would take a probe for one without the secret.
        if not events[zmq.EVENT_CONNECTED]:
            return try_tcp(host, port, timeout_s=timeout_s)
        return (
            f"a TCP connection to {host} port {port} comes up, but no rank 0 speaks there: it is "
            "stopped, or another program listens"
        )

    def _look(self) -> Counter[int]:
        while self._monitor is not None and self._monitor.poll(0):
            event, _ = _EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            self._events[event] += 1
        return self._events

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
        self._close_monitor()
        self._context.destroy(linger=linger_ms)


def _address_to_bind(address: str) -> str:
    """What rank 0 listens at. A name may lead elsewhere on its own host: then everywhere."""
    host, port = split_tcp(address)
    is_name = (
        address.startswith("tcp:") and not host.replace(".", "").isdecimal() and ":" not in host
    )
    return f"tcp://*:{port}" if is_name else address
