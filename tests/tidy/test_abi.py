"""What Python believes about the C side is what was compiled."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from jetstream._native import ffi, lib

HEADERS = Path("csrc/include/jetstream")
# One entry per name: JS_X(NAME, value, then words and texts)
DEF_ENTRY = re.compile(r"^JS_(?:STATUS|OP|COUNTER)\(([^\n]*)\)$", re.MULTILINE)


def def_entries(path: Path) -> list[list[str]]:
    """Returns the arguments of each entry of a list of X-macros, texts without their quotes."""
    lines = DEF_ENTRY.findall(path.read_text())
    return [[word.strip('"') for word in re.findall(r'"[^"]*"|[-\w]+', line)] for line in lines]


def text_of(pointer: object) -> str:
    assert isinstance(pointer, ffi.CData)
    text = ffi.string(pointer)
    assert isinstance(text, bytes)
    return text.decode()


def test_stub_is_current(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("gen_pyi", root / "csrc/ffi/gen_pyi.py")
    assert spec is not None and spec.loader is not None
    gen_pyi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gen_pyi)
    stub = (root / "jetstream/_native.pyi").read_text()
    assert stub == gen_pyi.stub_text(), 'run "make stub"'


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        ("js_sqe", 64),
        ("js_rqe", 32),
        ("js_cqe", 32),
        ("js_ring_line", 64),
        ("js_qp_control", 7 * 64),
        ("js_signal", 64),
        ("js_qp", 128),
        ("js_call", 32),
        ("js_plan_header", 96),
        ("js_plan_op", 56),
        ("js_plan_source", 16),
        ("js_record", 128),
    ],
)
def test_sizes(name: str, size_bytes: int) -> None:
    assert ffi.sizeof(name) == size_bytes


@pytest.mark.parametrize("name", ["js_status.def", "js_op.def", "js_counter.def"])
def test_lists_are_in_the_module(root: Path, name: str) -> None:
    entries = def_entries(root / HEADERS / name)
    assert entries
    for symbol, value, *_ in entries:
        assert getattr(lib, symbol) == int(value)
    assert len({value for _, value, *_ in entries}) == len(entries)


def test_status_texts(root: Path) -> None:
    for symbol, value, class_name, text in def_entries(root / HEADERS / "js_status.def"):
        assert text_of(lib.js_status_name(int(value))) == symbol
        assert text_of(lib.js_status_class(int(value))) == class_name
        assert text_of(lib.js_status_text(int(value))) == text


def test_counter_texts(root: Path) -> None:
    entries = def_entries(root / HEADERS / "js_counter.def")
    for _, index, unit, text in entries:
        assert text_of(lib.js_counter_unit(int(index))) == unit
        assert text_of(lib.js_counter_help(int(index))) == text
    assert lib.js_counter_name(len(entries)) == ffi.NULL


def test_build_id_is_a_hash() -> None:
    build_id = text_of(lib.js_build_id())
    assert re.fullmatch(r"[0-9a-f]{32}", build_id)
    assert len(build_id) < lib.JS_BUILD_ID_BYTES
