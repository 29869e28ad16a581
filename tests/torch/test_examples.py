"""The torch examples, small: the programs as users start them, under either launcher."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "torch"
PATIENCE_S = 600
LAUNCHERS = {
    "jetstream": ["jetstream", "run", "-n", "2"],
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
}
SMALL = ["--compare", "--steps", "4", "--layers", "1", "--width", "32", "--window", "16"]

needs_transformers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "accelerate")),
    reason="needs: pip install -r examples/requirements-llama.txt",
)
pytestmark = pytest.mark.usefixtures("no_leaks")


def run(launcher: str, program: str, *arguments: str) -> str:
    """What a program prints that ends well, without the launcher's labels."""
    process = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], str(EXAMPLES / program), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "FAIL" not in process.stdout
    return re.sub(r"^\[\d+\] ", "", process.stdout, flags=re.MULTILINE)


def test_training_has_the_same_losses_in_every_way() -> None:
    """DDP and FSDP2, by gloo and by jetstream: with two ranks there is one result, bit for bit."""
    output = run("jetstream", "fsdp2.py", "--with-ddp", *SMALL)
    equal = re.findall(r"PASS +(.*) and DDP gloo: 4 of 4 losses have the same bits", output)
    assert equal == ["DDP jetstream", "FSDP2 gloo", "FSDP2 jetstream"], output
    assert re.search(r"^   3(?: +\d\.\d{8}){4}$", output, flags=re.MULTILINE), output


def test_training_under_torchrun() -> None:
    output = run("torchrun", "ddp.py", "--backend", "jetstream", *SMALL[1:])
    losses = re.findall(r"^ +[03] +(\d\.\d{8})$", output, flags=re.MULTILINE)
    assert len(losses) == 2, output
    assert float(losses[1]) < float(losses[0])


def test_tensor_parallelism_compiled() -> None:
    output = run(
        *("jetstream", "dtensor_tp.py", "--backend", "jetstream", "--layers", "1"),
        *("--width", "32", "--passes", "3"),
    )
    assert re.findall(r"PASS +jetstream, (\w+): equal to the whole model", output) == [
        "eager",
        "compiled",
    ]


@needs_transformers
def test_a_llama_split_by_transformers() -> None:
    output = run(
        *("jetstream", "llama_tp.py", "--compare", "--rounds", "1", "--layers", "1"),
        *("--hidden", "256", "--prompt", "4", "--tokens", "3"),
    )
    for dtype in ("float32", "bfloat16"):
        part = output.partition(f"parameters in torch.{dtype}")[2]
        for backend in ("gloo", "jetstream"):
            assert f"PASS  {backend}: logits equal" in part
            assert f"PASS  {backend}: the same bits on all 2 ranks" in part
    assert output.count("p99.9") == 8


@pytest.mark.parametrize(
    ("program", "missing"), [("ddp.py", "torch"), ("llama_tp.py", "transformers")]
)
def test_what_is_missing_is_said_once(program: str, missing: str, tmp_path: Path) -> None:
    (tmp_path / f"{missing}.py").write_text(f'raise ImportError("No module named {missing}")')
    process = subprocess.run(
        # The rank that says it has time for that, where the other one is the first to end.
        [sys.executable, "-m", "jetstream", "run", "--grace=60", "-n", "2", EXAMPLES / program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert process.returncode == 2
    said = [line for line in process.stderr.splitlines() if missing in line]
    assert len(said) == 1
    assert "pip install" in said[0]
    assert "Traceback" not in process.stderr
