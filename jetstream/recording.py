"""The nodes of a graph while it is being made, in the order of the calls."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from jetstream._core.native import ffi, lib
from jetstream.array_calls import byte_pointer
from jetstream.arrays import Array
from jetstream.diagnosis import describe_sender
from jetstream.errors import ArgumentError, BusyError
from jetstream.kernels import argument_address, function_address

__all__ = ["Recording"]

_TAG_ANY: int = lib.JS_RQ_TAG_ANY


class _Node(NamedTuple):
    """A ``js_graph_node``, and what it is for people."""

    text: str
    kind: int
    key: int = 0
    source: int = 0
    target: int = 0
    nbytes: int = 0
    function: int = 0
    peer: int = 0
    flags: int = 0


def _span(array: Array) -> tuple[int, int]:
    start = int(array.ctypes.data)
    return start, start + array.nbytes


class Recording:
    """What becomes a graph; a message is known by the index of its node.

    A ``send`` must have read its array before anything may write to it. So its JOIN stands before
    the first node that may: a call of a function, or what writes to memory of that array.
    """

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.keep: list[Any] = []  # must live as long as the graph
        self._sends: dict[int, tuple[int, int]] = {}  # not joined, with the memory they read
        self._joined: set[int] = set()
        self._thread = threading.get_ident()
        self._is_over = False

    def finish(self) -> None:
        """Nothing is recorded any more."""
        self._is_over = True

    def check(self) -> None:
        """Raise BusyError in another thread than that of the block, ArgumentError after it."""
        if self._is_over:
            raise ArgumentError("the block of the capture has ended: nothing can be added")
        if threading.get_ident() != self._thread:
            raise BusyError("another thread captures the calls of this communicator")

    def launch(self, plan: int, arrays: tuple[Array, Array], text: str) -> None:
        """A collective."""
        self.check()
        source, target = arrays
        self._await_readers(target)
        addresses = _span(source)[0], _span(target)[0]
        self._add(_Node(text, lib.JS_NODE_LAUNCH, plan, *addresses), *arrays)

    def send(self, array: Array, peer: int, tag: int, *, is_joined: bool) -> int:
        """A send; ``is_joined``: somebody joins it."""
        self.check()
        text = f"send of {array.nbytes} bytes to rank {peer}, tag {tag}"
        start, stop = _span(array)
        node = _Node(text, lib.JS_NODE_SEND, key=tag, source=start, nbytes=array.nbytes, peer=peer)
        index = self._add(node, array)
        if not is_joined:
            self._sends[index] = start, stop
        return index

    def receive(self, array: Array, source: int, tag: int | None, *, exact: bool) -> int:
        """A receive; ``source`` may be JS_PEER_ANY."""
        self.check()
        self._await_readers(array)
        tags = "any tag" if tag is None else f"tag {tag}"
        text = f"receive of {array.nbytes} bytes from {describe_sender(source)}, {tags}"
        node = _Node(
            text,
            lib.JS_NODE_RECEIVE,
            key=tag or 0,
            target=_span(array)[0],
            nbytes=array.nbytes if tag is not None else array.nbytes | _TAG_ANY,
            peer=source,
            flags=lib.JS_NODE_EXACT if exact else 0,
        )
        return self._add(node, array)

    def join(self, index: int) -> None:
        """Wait for a message; once is enough."""
        self.check()
        if index not in self._joined:
            self._joined.add(index)
            self._sends.pop(index, None)
            self._add(_Node(f"join of node {index}", lib.JS_NODE_JOIN, index + 1))

    def call(self, function: Any, argument: Any, keep: tuple[Any, ...]) -> None:
        """A function of C, with one argument."""
        self.check()
        address, given = function_address(function), argument_address(argument)
        for index in list(self._sends):
            self.join(index)
        name = getattr(function, "__name__", None) or f"{address:#x}"
        node = _Node(f"call of {name}", lib.JS_NODE_CALL, source=given, function=address)
        self._add(node)
        self.keep.append((function, argument, keep))

    def to_native(self) -> Any:
        """The nodes as a ``js_graph_node[]``."""
        nodes = ffi.new("js_graph_node[]", len(self.nodes))
        for native, node in zip(nodes, self.nodes, strict=True):
            native.kind, native.key = node.kind, node.key
            native.source_addr, native.target_addr = node.source, node.target
            native.bytes, native.peer, native.flags = node.nbytes, node.peer, node.flags
            native.function = ffi.cast("void (*)(void *)", node.function)
        return nodes

    def _await_readers(self, array: Array) -> None:
        """Join the sends that read what is now written to."""
        start, stop = _span(array)
        for index, (first, last) in list(self._sends.items()):
            if start < last and first < stop:
                self.join(index)

    def _add(self, node: _Node, *arrays: Array) -> int:
        self.keep.extend((array, byte_pointer(array)) for array in arrays)
        self.nodes.append(node)
        return len(self.nodes) - 1
