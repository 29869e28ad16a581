"""Facts about this machine and this build that every measurement has to be read with."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from jetstream import __version__

__all__ = [
    "allowed_cores",
    "cores_text",
    "cpu_model",
    "facts",
    "memory_bytes",
    "native_facts",
    "read_text",
]


def cpu_model() -> str:
    """Returns the processor's name as the kernel gives it.

    Only the first core is looked at: on large hosts the kernel takes long to describe them all.
    """
    try:
        with Path("/proc/cpuinfo").open("rb", buffering=0) as file:
            text = file.read(4096).decode(errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def allowed_cores() -> tuple[int, ...]:
    """Returns the numbers of the cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cores_text(cores: tuple[int, ...]) -> str:
    """Writes core numbers as the kernel does: ``0-3,8``."""
    ranges: list[list[int]] = []
    for core in cores:
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)


def memory_bytes() -> dict[str, int]:
    """Returns /proc/meminfo's MemTotal, MemAvailable and others, in bytes."""
    values = {}
    for line in read_text("/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            values[key] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return values


def native_facts() -> dict[str, str]:
    """Returns build id and instruction set of the data plane, or why it cannot be loaded."""
    try:
        from jetstream._core.native import build_id, lib
    except ImportError as error:
        return {"build_id": f"not available: {error}", "instruction_set": "unknown"}
    names = {lib.JS_ISA_SCALAR: "scalar", lib.JS_ISA_AVX2: "avx2", lib.JS_ISA_AVX512: "avx512"}
    return {
        "build_id": build_id(),
        "instruction_set": names.get(lib.js_isa(), str(lib.js_isa())),
        "instruction_sets": ", ".join(
            name for isa, name in names.items() if lib.js_isa_available(isa)
        ),
        "tick_ns": f"{lib.js_clock_tick_ns():.4f}",
    }


def facts() -> dict[str, Any]:
    """Returns what belongs in the head of a table and in a result document."""
    import numpy as np

    native = native_facts()
    return {
        "jetstream": __version__,
        "build_id": native["build_id"],
        "instruction_set": native["instruction_set"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "cores_allowed": cores_text(allowed_cores()),
        "memory_bytes": memory_bytes().get("MemTotal", 0),
        "kernel": f"{platform.system()} {platform.release()}",
        "clock_source": read_text(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        ),
        "host": platform.node(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def read_text(path: str) -> str:
    """Returns the stripped text of a small kernel file; empty when it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
