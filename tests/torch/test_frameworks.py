"""Frameworks on the CPU through jetstream; those that are not installed are skipped."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

import jetstream.vllm
from jetstream.errors import ConfigurationError

EXAMPLES = Path(__file__).parents[2] / "examples" / "torch"
TIMEOUT_S = 600.0  # starting a framework takes most of it where the cores are busy


def test_vllm_finds_the_plugin() -> None:
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    (point,) = (point for point in points if point.name == "jetstream")
    assert point.load() is jetstream.vllm.register


@pytest.mark.parametrize("value", [None, "", "0"])
def test_the_plugin_does_nothing_unasked(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("JETSTREAM_VLLM", raising=False)
    else:
        monkeypatch.setenv("JETSTREAM_VLLM", value)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    jetstream.vllm.register()


def test_the_plugin_refuses_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETSTREAM_VLLM", "yes")
    with pytest.raises(ConfigurationError, match="JETSTREAM_VLLM is 'yes'; allowed: 0, 1"):
        jetstream.vllm.register()


class Platform:
    """What the plugin uses of a platform of vLLM."""

    device_type: ClassVar[str] = "cuda"

    def is_cpu(self) -> bool:
        return self.device_type == "cpu"


def test_the_plugin_refuses_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms: Any = types.ModuleType("vllm.platforms")
    platforms.current_platform = Platform()
    monkeypatch.setenv("JETSTREAM_VLLM", "1")
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    with pytest.raises(ConfigurationError, match="vLLM runs on 'cuda'"):
        jetstream.vllm.register()
    assert not hasattr(Platform, "dist_backend")


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def output_of(program: str, *options: str, ranks: int = 0) -> list[str]:
    """Lines that a program of examples/torch prints, by torchrun where `ranks` is above 0."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks else []), str(EXAMPLES / program), *options],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "JETSTREAM_VLLM": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout.splitlines()


def trained(lines: list[str]) -> list[str]:
    """The losses and the digest that a training program printed, to the last bit."""
    return [line for line in lines if line.startswith(("step ", "parameters "))]


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_deepspeed_trains_as_with_gloo(stage: str) -> None:
    need("deepspeed")
    options = ("--stage", stage, "--steps", "8")
    ours = trained(output_of("deepspeed_zero.py", *options, ranks=2))
    gloo = trained(output_of("deepspeed_zero.py", *options, "--backend", "gloo", ranks=2))
    assert len(ours) == 9
    assert ours == gloo


def test_accelerate_trains_as_with_gloo() -> None:
    need("accelerate")
    gloo = trained(output_of("accelerate_train.py", "--backend", "gloo", ranks=2))
    assert len(gloo) == 32
    for way in ("init", "as-gloo"):
        assert trained(output_of("accelerate_train.py", "--way", way, ranks=2)) == gloo, way


def test_vllm_decodes_the_same_tokens() -> None:
    need("vllm")
    lines = output_of("vllm_tp.py", "--tokens", "16", "--repeat", "1")
    assert "the same tokens" in lines
    assert any("JetstreamCommunicator over jetstream" in line for line in lines)
    assert any("CpuCommunicator over gloo" in line for line in lines)
