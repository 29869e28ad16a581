"""A device in C: a thread runs the loop of pthread_loop.c; Python only prepares and joins it.

Run it with `jetstream run -n 2 examples/device/pthread_loop.py`. It needs a C compiler.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cffi
import numpy as np

import jetstream
from jetstream import transport

SOURCE = Path(__file__).with_suffix(".c")
#: The struct and the functions of pthread_loop.c.
DECLARATIONS = """
typedef struct device {
    uintptr_t qp, x;
    uint64_t count, steps;
    uintptr_t latency_ns;
    uint32_t plan, rank, size;
    int32_t status;
    uint64_t steps_done, wrong;
    unsigned long thread;
} device;
int device_start(device *d);
int device_join(device *d);
"""


def build(ffi: cffi.FFI, folder: str) -> Any:
    """Compiles the device program and loads it."""
    library = Path(folder) / "libdevice.so"
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"),
        f"-I{jetstream.get_include()}",
        *("-o", str(library), str(SOURCE)),
    ]
    subprocess.run(command, check=True)
    return ffi.dlopen(str(library))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="all-reduces (10000)")
    parser.add_argument("--count", type=int, default=2048, help="float32 elements of each (2048)")
    options = parser.parse_args()
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    with (
        tempfile.TemporaryDirectory() as folder,
        jetstream.init() as comm,
        transport.QueuePair(comm, threads="one") as qp,
    ):
        program = build(ffi, folder)
        x = comm.empty(options.count)  # symmetric memory: the peers read it where it is
        launch = qp.prepare("all_reduce", x)
        device = ffi.new("device *")
        device.qp = qp.address
        device.x = launch.source_addr
        device.plan = launch.key
        device.count, device.steps = options.count, options.steps
        latency_ns = np.zeros(options.steps, np.uint64)
        device.latency_ns = latency_ns.ctypes.data
        device.rank, device.size = comm.rank, comm.size

        if program.device_start(device) != 0:
            raise RuntimeError("no thread for the device")
        program.device_join(device)  # without the GIL; the main thread could do anything else

        p50_us, p99_us = np.percentile(latency_ns[: device.steps_done], (50, 99)) / 1e3
        print(
            f"rank {comm.rank}: {device.steps_done} all-reduces of {x.nbytes} bytes, "
            f"p50 {p50_us:.1f} us, p99 {p99_us:.1f} us, "
            f"{device.wrong} wrong elements, status {device.status}"
        )
        return int(device.status != 0 or device.wrong != 0)


if __name__ == "__main__":
    sys.exit(main())
