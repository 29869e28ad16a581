"""js_device.h is valid C, C++ and CUDA C++, without a warning and with nothing to link."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc/include/jetstream/js_device.h"
SOURCE = ROOT / "tests/device/use_everything.c"
COMPILE_TIMEOUT_S = 300

# All but -Wold-style-cast: the header is C too, whose casts are of no other style. Who wants that
# warning for code of their own includes installed headers by -isystem.
WARNINGS = [
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow"),
    *("-Wcast-qual", "-Wcast-align", "-Wundef", "-Wnull-dereference", "-Werror"),
]


def find(*names: str) -> str:
    """Returns the first of these compilers that there is; skips the test if there is none."""
    for name in names:
        found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
        if found:
            return found
    pytest.skip(f"no {' or '.join(names)} here")


def clang(name: str) -> list[str]:
    """Returns the names under which clang or clang++ may be installed, newest last."""
    return [name, *(f"{name}-{version}" for version in range(22, 10, -1))]


def compile_all(compiler: str, *options: str, folder: Path) -> Path:
    target = folder / "use_everything.o"
    command = [compiler, *options, f"-I{ROOT / 'csrc/include'}", "-o", str(target)]
    done = subprocess.run(
        [*command, "-c", str(SOURCE)], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return target


def missing_symbols(target: Path) -> list[str]:
    """Returns what an object file wants from elsewhere."""
    nm = find("nm")
    text = subprocess.run([nm, "-u", str(target)], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in text.stdout.splitlines() if line.strip()]


def test_every_function_is_used() -> None:
    text = HEADER.read_text()
    names = set(re.findall(r"^JS_DEVICE_FN [\w ]+?\*?(js_\w+)\(", text, re.MULTILINE))
    stems = re.findall(r"^    JS_DEVICE_FN [\w ]+?(js_\w+_)##name\(", text, re.MULTILINE)
    suffixes = re.findall(r"^JS_DEVICE_ACCESS\((\w+),", text, re.MULTILINE)
    names |= {stem + suffix for stem in stems for suffix in suffixes}
    assert len(names) > 30, "the header is not read rightly"
    source = SOURCE.read_text()
    assert not [name for name in sorted(names) if not re.search(rf"\b{name}\(", source)]


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_c(level: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or find("gcc", *clang("clang"))
    target = compile_all(compiler, "-std=c11", level, *WARNINGS, folder=tmp_path)
    assert missing_symbols(target) == []


@pytest.mark.parametrize("standard", ["c11", "gnu17"])
@pytest.mark.parametrize("names", [["gcc"], clang("clang")], ids=["gcc", "clang"])
def test_c_compilers(names: list[str], standard: str, tmp_path: Path) -> None:
    compile_all(find(*names), f"-std={standard}", "-O1", *WARNINGS, folder=tmp_path)


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
@pytest.mark.parametrize("names", [["g++"], clang("clang++")], ids=["g++", "clang++"])
def test_cplusplus(names: list[str], standard: str, tmp_path: Path) -> None:
    options = ["-x", "c++", f"-std={standard}", "-O1"]
    target = compile_all(find(*names), *options, *WARNINGS, folder=tmp_path)
    assert missing_symbols(target) == []


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_cuda(architecture: str, tmp_path: Path) -> None:
    options = ["-x", "cu", f"-arch={architecture}", "-Werror", "all-warnings"]
    host = ["-Xcompiler", "-Wall,-Wextra,-Wconversion,-Wshadow,-Werror"]
    compile_all(find("nvcc"), *options, *host, folder=tmp_path)
