"""The rules of style that no other tool checks: limits, banned words, braces, names."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

LINE_MAX = 100
FUNCTION_LINES_MAX = 70
C_FILE_LINES_MAX = 600
PYTHON_FILE_LINES_MAX = 500
PARAMETERS_MAX = 6
FILE_BYTES_MAX = 200_000

GENERATED = {"jetstream/_native.pyi"}
C_BANNED = re.compile(r"\b(strcpy|sprintf|alloca|volatile|atomic_thread_fence)\b")
C_CLOCK = re.compile(r"\b(clock_gettime|gettimeofday|_?_?rdtscp?)\b")
# A definition that no other file sees; JS_INLINE of js_base.h is one.
LOCAL = re.compile(r"\bstatic\b|\bJS_INLINE\b")
# Put together from pieces, so that this file passes its own test.
UNFINISHED = re.compile(r"\b(" + "TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work" + r"|root" + r"|home)/")

Sources = dict[str, str]


@dataclass(frozen=True)
class CFunction:
    """A function definition in C: where it starts, its signature in one line, its body."""

    where: str
    name: str
    signature: str
    body: str
    line_count: int

    def parameter_count(self) -> int:
        """Returns the number of parameters: commas outside of inner parentheses, plus one."""
        depth = 0
        count = 1
        text = self.signature[self.signature.index("(") :]
        for char in text:
            depth += {"(": 1, ")": -1}.get(char, 0)
            count += char == "," and depth == 1
        return 0 if re.fullmatch(r"\(\s*(void)?\s*\)", text.strip()) else count


def expect_none(offences: list[str]) -> None:
    """Fails with all offences, not with the first one alone."""
    assert not offences, "\n" + "\n".join(offences)


def is_c(path: str) -> bool:
    return path.endswith((".c", ".h"))


def c_code(text: str) -> str:
    """Returns C text without comments, contents of literals and preprocessor lines."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    literals = r'/\*.*?\*/|//[^\n]*|(?<=")(?:\\.|[^"\\\n])+(?=")|\'(?:\\.|[^\'\\\n])+\''
    # Strings first keep their quotes: what stands between two strings must not look like one.
    text = re.sub(
        r'"(?:\\.|[^"\\\n])*"|' + literals,
        lambda m: '""' if m[0].startswith('"') else blank(m),
        text,
        flags=re.DOTALL,
    )
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)


def c_functions(path: str, text: str) -> list[CFunction]:
    """Returns the definitions: a line that is just "{", up to the next that begins with "}"."""
    lines = c_code(text).splitlines()
    found: list[CFunction] = []
    for index, line in enumerate(lines):
        if line != "{":
            continue
        first = index
        while first > 0 and lines[first - 1].strip() and not lines[first - 1].endswith((";", "}")):
            first -= 1
        last = next(i for i in range(index, len(lines)) if lines[i].startswith("}"))
        signature = " ".join(lines[first:index])
        signature = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", signature)
        name = re.search(r"(\w+)\s*\(", signature)
        if name:
            body = "\n".join(lines[index : last + 1])
            where = f"{path}:{first + 1}: {name[1]}"
            found.append(CFunction(where, name[1], signature, body, last - first + 1))
    return found


def all_c_functions(sources: Sources, prefix: str = "") -> list[CFunction]:
    return [
        function
        for path, text in sources.items()
        if is_c(path) and path.startswith(prefix)
        for function in c_functions(path, text)
    ]


def python_trees(sources: Sources) -> dict[str, ast.Module]:
    return {path: ast.parse(text) for path, text in sources.items() if path.endswith(".py")}


def matches(sources: Sources, pattern: re.Pattern[str]) -> list[str]:
    """Returns path, line number and match of every line where the pattern occurs."""
    return [
        f"{path}:{number}: {found[0]}"
        for path, text in sources.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := pattern.search(line))
    ]


def closing_parenthesis(code: str, opening: int) -> int:
    """Returns the index of the parenthesis that closes the one at index `opening`."""
    depth = 0
    for index in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[index], 0)
        if depth == 0:
            return index
    raise ValueError("unbalanced parentheses")


def unbraced(code: str) -> list[str]:
    """Returns the control statements of C code that are not followed by a brace."""
    found: list[str] = []
    for match in re.finditer(r"\b(if|for|while|switch|else|do)\b", code):
        end = match.end()
        if match[1] not in ("else", "do"):
            end = closing_parenthesis(code, code.index("(", end)) + 1
        rest = code[end:].lstrip()
        is_do_while = match[1] == "while" and code[: match.start()].rstrip().endswith("}")
        is_else_if = match[1] == "else" and rest.startswith("if")
        if not rest.startswith("{") and not is_else_if and not (is_do_while and rest[0] == ";"):
            found.append(f"line {code.count(chr(10), 0, match.start()) + 1}: {match[1]}")
    return found


def test_lines_are_short(sources: Sources) -> None:
    code = (".c", ".h", ".def", ".py", ".cmake", ".toml", "CMakeLists.txt", "Makefile", "run")
    long = [
        f"{path}:{number}"
        for path, text in sources.items()
        if path.endswith(code)
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > LINE_MAX
    ]
    expect_none(long)


def test_files_are_short(sources: Sources) -> None:
    limits = {".c": C_FILE_LINES_MAX, ".h": C_FILE_LINES_MAX, ".py": PYTHON_FILE_LINES_MAX}
    long = [
        f"{path}: {text.count(chr(10))} lines"
        for path, text in sources.items()
        if text.count("\n") > limits.get(PurePosixPath(path).suffix, 10**9)
    ]
    expect_none(long)


def test_no_large_files(sources: Sources, root: Path) -> None:
    large = [path for path in sources if (root / path).stat().st_size > FILE_BYTES_MAX]
    expect_none(large)


def test_every_file_says_what_it_is(sources: Sources) -> None:
    silent = [path for path, text in sources.items() if is_c(path) and not text.startswith("/*")]
    silent += [
        path
        for path, tree in python_trees(sources).items()
        if ast.get_docstring(tree) is None and tree.body
    ]
    expect_none(silent)


def test_c_functions_are_short(sources: Sources) -> None:
    functions = all_c_functions(sources)
    assert functions, "no function found: the heuristic is broken"
    long = [f"{f.where}: {f.line_count}" for f in functions if f.line_count > FUNCTION_LINES_MAX]
    expect_none(long)


def test_c_functions_have_few_parameters(sources: Sources) -> None:
    crowded = [
        f"{function.where}: {function.parameter_count()}"
        for function in all_c_functions(sources, "csrc/")
        if function.parameter_count() > PARAMETERS_MAX
    ]
    expect_none(crowded)


def test_c_functions_do_not_call_themselves(sources: Sources) -> None:
    recursive = [
        function.where
        for function in all_c_functions(sources, "csrc/")
        if re.search(rf"\b{function.name}\s*\(", function.body)
    ]
    expect_none(recursive)


def test_c_names(sources: Sources) -> None:
    """What other files can see begins with js_, what they cannot does not."""
    wrong = [
        function.where
        for function in all_c_functions(sources, "csrc/")
        if not function.where.startswith("csrc/ffi/") and ".h:" not in function.where
        if bool(LOCAL.search(function.signature)) == function.name.startswith("js_")
    ]
    expect_none(wrong)


def test_c_file_names_are_unique(sources: Sources) -> None:
    names = [PurePosixPath(path).name for path in sources if is_c(path)]
    assert sorted(names) == sorted(set(names))


def test_c_always_has_braces(sources: Sources) -> None:
    bare = [
        f"{path}: {where}"
        for path, text in sources.items()
        if is_c(path)
        for where in unbraced(c_code(text))
    ]
    expect_none(bare)


def test_c_banned_words(sources: Sources) -> None:
    code = {path: c_code(text) for path, text in sources.items() if path.startswith("csrc/")}
    c_only = {path: text for path, text in code.items() if is_c(path)}
    expect_none(matches(c_only, C_BANNED))


def test_one_file_reads_the_clock(sources: Sources) -> None:
    others = {
        path: c_code(text)
        for path, text in sources.items()
        if is_c(path) and path.startswith("csrc/")
        if not PurePosixPath(path).name.startswith("js_clock")
    }
    expect_none(matches(others, C_CLOCK))


def test_one_file_includes_stdatomic(sources: Sources) -> None:
    includers = [path for path, text in sources.items() if is_c(path) and "<stdatomic.h>" in text]
    assert set(includers) <= {"csrc/base/js_atomic.h"}


def test_nothing_is_unfinished(sources: Sources) -> None:
    expect_none(matches(sources, UNFINISHED))


def test_no_paths_of_one_machine(sources: Sources) -> None:
    expect_none(matches(sources, MACHINE_PATH))


def test_python_functions_are_short(sources: Sources) -> None:
    long = [
        f"{path}:{node.lineno}: {node.name}"
        for path, tree in python_trees(sources).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    expect_none(long)


def test_python_does_not_read_the_wall_clock(sources: Sources) -> None:
    readers = [
        f"{path}:{node.lineno}"
        for path, tree in python_trees(sources).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "time"
        if isinstance(node.value, ast.Name) and node.value.id == "time"
    ]
    expect_none(readers)


def test_python_does_not_import_everything(sources: Sources) -> None:
    stars = [
        f"{path}:{node.lineno}"
        for path, tree in python_trees(sources).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    expect_none(stars)


BAD_C = """\
/* A file that breaks rules. */
#define TWICE(x) do { if (x) { x; } } while (0)

static int js_bad(int a, int (*b)(int, int), int c, int d,
                  int e, int f, int g)
{
    if (a) /* if (b) */
        return js_bad(a, b, c, d, e, f, g);
    do {
        a--;
    } while (a);
    for (;;) {
        puts("else strcpy");
    }
}
"""


def test_the_c_heuristics_find_what_they_look_for() -> None:
    (function,) = c_functions("bad.c", BAD_C)
    assert function.where == "bad.c:4: js_bad"
    assert function.line_count == 12
    assert function.parameter_count() == 7
    assert "js_bad(" in function.body
    assert unbraced(c_code(BAD_C)) == ["line 7: if"]
    assert C_BANNED.search(c_code(BAD_C)) is None


@pytest.mark.parametrize("text", ["see " + "TO" + "DO", "/" + "home/me"])
def test_the_word_rules_find_what_they_look_for(text: str) -> None:
    assert UNFINISHED.search(text) or MACHINE_PATH.search(text)
