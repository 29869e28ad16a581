"""docs/device.md says what js_device.h and the data plane say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jetstream._native import ffi, lib
from jetstream.transport import queues

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/device.md").read_text()
Row = list[str]


def table(after: str, first_header: str) -> list[Row]:
    """Returns the rows of the first table whose head begins so, behind a text of the page."""
    start = PAGE.index(f"| {first_header} |", PAGE.index(after))
    lines = PAGE[start:].split("\n\n")[0].splitlines()
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize(
    ("heading", "head", "struct"),
    [
        ("### js_sqe", "offset", "js_sqe"),
        ("### js_rqe", "offset", "js_rqe"),
        ("### js_cqe", "offset", "js_cqe"),
        ("### js_qp:", "offset", "js_qp"),
        ("### js_qp_control", "offset", "js_qp_control"),
        ("In each ring line", "offset", "js_qp_status"),
    ],
)
def test_layouts(heading: str, head: str, struct: str) -> None:
    rows = table(heading, head)
    fields = dict(ffi.typeof(struct).fields)
    assert [row[2] for row in rows] == [name for name in fields if name in {r[2] for r in rows}]
    for offset, size, name, *_ in rows:
        assert int(offset) == fields[name].offset, name
        assert int(size) == ffi.sizeof(fields[name].type), name
    missing = set(fields) - {row[2] for row in rows}
    assert missing <= {"reserved"}
    stated = re.search(rf"### {struct}: [^\n]*?(\d+)(?: of (\d+))? bytes", PAGE)
    assert stated or struct == "js_qp_status"
    if stated:
        assert int(stated[1]) * int(stated[2] or 1) == ffi.sizeof(struct)


def test_ring_line_and_signal() -> None:
    line = dict(ffi.typeof("js_ring_line").fields)
    assert (line["index"].offset, line["seen"].offset) == (0, 4)
    assert ffi.sizeof("js_signal") == 64 and lib.JS_SIGNALS == 64


def test_numbers() -> None:
    for name, number, *_ in (
        table("### js_sqe", "opcode") + table("### js_sqe", "flag") + table("## States", "state")
    ):
        assert getattr(lib, name) == int(number), name
    assert f"`JS_DEVICE_ABI_VERSION` is {lib.JS_DEVICE_ABI_VERSION}." in PAGE
    assert (lib.JS_SIGNAL_NONE, lib.JS_SIGNAL_ADD, lib.JS_SIGNAL_SET) == (0, 1, 2)
    assert (lib.JS_SQ_INLINE_SEND_BYTES, lib.JS_SQ_INLINE_PUT_BYTES) == (24, 8)
    assert lib.JS_PEER_ANY == 0xFFFF
    assert (lib.JS_RQ_TAG_ANY, lib.JS_RQ_PROBE) == (1 << 63, 1 << 62)


def test_commit_words() -> None:
    commits: dict[str, Callable[[int, int], int]] = {
        "SQ": queues.sq_commit,
        "RQ": queues.rq_commit,
        "CQ": queues.cq_commit,
    }
    rows = table("## Commit words", "ring | depth")
    assert len(rows) > 10
    for ring, depth, index, slot, parity, word in rows:
        assert int(slot) == int(index) % int(depth)
        assert int(parity) == queues.lap_parity(int(index), int(depth))
        assert int(word, 16) == commits[ring](int(index), int(depth)), (ring, index)


def test_names_exist() -> None:
    header = (ROOT / "csrc/include/jetstream/js_device.h").read_text()
    api = (ROOT / "csrc/include/jetstream/js_api.h").read_text()
    statuses = (ROOT / "csrc/include/jetstream/js_status.def").read_text()
    known = set(re.findall(r"\b(?:js|JS)_\w+", header + api + statuses)) | {"js_device", "js_api"}
    named = set(re.findall(r"\b(?:js|JS)_\w+", PAGE))
    assert len(named) > 50
    assert sorted(named - known) == []


def test_plain_calls() -> None:
    rows = table("## Without the header: calls", "function")
    listed = [call for row in rows for call in re.findall(r"(js_device_\w+)\(([^)]*)\)", row[0])]
    exported = [name for name in dir(lib) if name.startswith("js_device_")]
    assert sorted(name for name, _ in listed) == sorted(exported)
    for name, arguments in listed:
        assert len(arguments.split(",")) == len(ffi.typeof(getattr(lib, name)).args), name
