"""Generates the C source of the extension module jetstream._native from js_api.h.

js_api.h is the single truth: C compiles it, and this script turns it into what cffi reads.

    build_native.py INCLUDE_DIR OUTPUT.c

Rules for the public headers:
- Text between the comments ``cdef: begin`` and ``cdef: end`` is for Python; a header without them
  is so as a whole. Includes of other public headers are followed wherever they stand.
- ``#include <jetstream/x.def>`` inside an enum stands for the first two arguments of each of its
  entries: ``JS_X(NAME, value, ...)`` becomes ``NAME = value,``.
- ``#define JS_X value`` becomes a constant; the compiler supplies or confirms its value.
- No inline functions, bit-fields or function-like macros there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

MODULE = "jetstream._native"
HEADER = "jetstream/js_api.h"

_BEGIN = re.compile(r"/\*\s*cdef:\s*begin\s*\*/")
_END = re.compile(r"/\*\s*cdef:\s*end\s*\*/")
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|/\*.*?\*/|//[^\n]*', re.DOTALL)
_CPLUSPLUS = re.compile(r"^\s*#\s*ifdef\s+__cplusplus\b.*?^\s*#\s*endif[^\n]*$", re.M | re.S)
_STATIC_ASSERT = re.compile(r"_Static_assert\s*\(.*?\)\s*;", re.DOTALL)
_DECORATION = re.compile(r"\b(?:JS_API|JS_MUST_CHECK)\b|__attribute__\s*\(\(.*?\)\)")
_INCLUDE = re.compile(r'\s*#\s*include\s*[<"](?:jetstream/)?([\w.]+)[>"]')
_DEFINE = re.compile(r"\s*#\s*define\s+(JS_\w+)\s+(\S.*)")
_DEF_ENTRY = re.compile(r"^\s*JS_\w+\(\s*(JS_\w+)\s*,\s*(-?\w+)", re.MULTILINE)
_LITERAL = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*")


def read_cdef(include_dir: Path) -> str:
    """Returns the declarations of js_api.h and of what it includes, in the form cffi reads."""
    return "\n".join(_header_lines(include_dir / "jetstream", Path(HEADER).name, set()))


def _header_lines(folder: Path, name: str, seen: set[str]) -> list[str]:
    """Returns the cdef lines of one header, those of its includes before or between them."""
    if name in seen or not (folder / name).exists():
        return []  # a header of the system, or one that has been read
    seen.add(name)
    lines: list[str] = []
    for is_cdef, text in _sections((folder / name).read_text()):
        for line in _strip(text).splitlines():
            included = _INCLUDE.match(line)
            if included and included[1].endswith(".def"):
                lines += _def_lines(folder / included[1])
            elif included:
                lines += _header_lines(folder, included[1], seen)
            elif is_cdef and line.strip():
                lines += _cdef_line(line)
    if any(re.search(r"\bstatic\b", line) for line in lines):
        raise ValueError(f"{name}: an inline function between the cdef markers")
    return lines


def _sections(text: str) -> list[tuple[bool, str]]:
    """Splits a header at its markers into (is it for Python, text)."""
    if not _BEGIN.search(text):
        return [(True, text)]
    sections: list[tuple[bool, str]] = []
    for part in _BEGIN.split(text):
        inside, *outside = _END.split(part) if sections else ("", part)
        sections += [(True, inside), (False, "".join(outside))]
    return sections


def _strip(text: str) -> str:
    """Removes what cffi does not understand and what holds for C alone."""
    text = _COMMENT.sub(lambda match: match[1] or " ", text).replace("\\\n", " ")
    text = _CPLUSPLUS.sub("", text)
    text = _STATIC_ASSERT.sub("", text)
    return _DECORATION.sub("", text)


def _def_lines(path: Path) -> list[str]:
    """Returns the enumerators of a list of X-macros."""
    return [f"{name} = {value}," for name, value in _DEF_ENTRY.findall(_strip(path.read_text()))]


def _cdef_line(line: str) -> list[str]:
    """Returns one line for cffi: declarations as they are, macros as constants or not at all."""
    if not line.lstrip().startswith("#"):
        return [line.rstrip()]
    define = _DEFINE.match(line)
    if not define or define[2].startswith('"'):
        return []
    # cffi wants to know a literal, for the sizes of arrays; anything else the compiler computes.
    value = define[2].strip()
    return [f"#define {define[1]} {value if _LITERAL.fullmatch(value) else '...'}"]


def main() -> None:
    """Writes the C source."""
    include_dir, output = Path(sys.argv[1]), Path(sys.argv[2])
    ffi = FFI()
    ffi.cdef(read_cdef(include_dir))
    ffi.set_source(MODULE, f"#include <{HEADER}>")
    ffi.emit_c_code(str(output))


if __name__ == "__main__":
    main()
