"""The device programs in examples/device: each one runs, with real processes, and checks itself."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples/device"
PROGRAM_TIMEOUT_S = 180


def start(program: str, size: int, *options: str, folder: Path) -> str:
    """Runs a program on so many ranks and returns what it printed."""
    command = [sys.executable, "-m", "jetstream", "run", "-n", str(size)]
    done = subprocess.run(
        [*command, str(EXAMPLES / program), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_nvcc() -> str:
    """Returns the path of nvcc; skips the test where there is none."""
    compiler = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if compiler is None:
        pytest.skip("no nvcc here: the CUDA program is not compiled")
    return compiler


def test_first_program_of_the_page(tmp_path: Path) -> None:
    """What docs/device.md begins with works as it stands there."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    page = (EXAMPLES.parents[1] / "docs/device.md").read_text()
    source, commands, script = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)[:3]
    (tmp_path / "first.c").write_text(source)
    (tmp_path / "first.py").write_text(script)
    compile_line, run_line = commands.splitlines()
    assert run_line == "jetstream run -n 2 first.py"
    python = f'"{sys.executable}"'
    line = compile_line.replace("$(python ", f"$({python} ").replace("cc ", "cc -Wall -Werror ")
    subprocess.run(["sh", "-ec", line], cwd=tmp_path, check=True, timeout=PROGRAM_TIMEOUT_S)
    text = start(str(tmp_path / "first.py"), 2, folder=tmp_path)
    assert sorted(re.findall(r"rank \d: status 0", text)) == [
        "rank 0: status 0",
        "rank 1: status 0",
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pthread(size: int, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    text = start("pthread_loop.py", size, "--steps", "300", folder=tmp_path)
    good = re.findall(r"rank \d: 300 all-reduces of 8192 bytes, .* 0 wrong .*, status 0\n", text)
    assert len(good) == size, text


@pytest.mark.parametrize(("size", "threads"), [(1, 1), (2, 1), (2, 3)])
def test_numba(size: int, threads: int, tmp_path: Path) -> None:
    if importlib.util.find_spec("numba") is None:
        pytest.skip("no Numba here: pip install numba")
    options = ("--steps", "100", "--threads", str(threads))
    text = start("numba_loop.py", size, *options, folder=tmp_path)
    for program in ("loops", "ring"):
        pattern = rf"{program}: {threads} threads of 100 steps, .* 0 wrong, status \[0\]\n"
        assert len(re.findall(pattern, text)) == size, text


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_compiles(arch: str, tmp_path: Path) -> None:
    find_nvcc()
    program = [sys.executable, str(EXAMPLES / "cuda_loop.py")]
    subprocess.run(
        [*program, "--build", str(tmp_path), "--arch", arch],
        cwd=tmp_path,
        check=True,
        timeout=PROGRAM_TIMEOUT_S,
    )
    assert (tmp_path / "libdevice.so").stat().st_size > 0


def test_cuda_says_what_is_missing(tmp_path: Path) -> None:
    """Without a GPU the program ends by itself on all ranks, and tells why."""
    find_nvcc()
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    launch = [sys.executable, "-m", "jetstream", "run", "-n", "2"]
    done = subprocess.run(
        [*launch, str(EXAMPLES / "cuda_loop.py"), "--arch", "sm_90"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
    )
    assert done.returncode != 0
    assert "CUDA: no GPU: " in done.stdout, done.stdout + done.stderr


def test_cuda_runs(tmp_path: Path) -> None:
    find_nvcc()
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no GPU here: the CUDA program is compiled, but not run")
    text = start("cuda_loop.py", 2, "--steps", "200", folder=tmp_path)
    assert len(re.findall(r"200 all-reduces .* 0 wrong elements, status 0\n", text)) == 2, text
