"""A device on a GPU: a kernel launches all-reduces and waits for them; Python only starts it.

`jetstream run -n 2 examples/device/cuda_loop.py` runs two ranks on one GPU. Needs nvcc and a GPU.
`python examples/device/cuda_loop.py --build FOLDER` only compiles, which needs no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cffi
import numpy as np

import jetstream
from jetstream import transport

SOURCE = Path(__file__).with_suffix(".cu")
#: The struct and the function of cuda_loop.cu.
DECLARATIONS = """
typedef struct device_task {
    uintptr_t qp, staged;
    uint64_t count, steps;
    uintptr_t latency_ns;
    uint32_t plan, rank, size;
    int32_t status;
    uint64_t steps_done, wrong;
    char error[256];
} device_task;
int device_run(device_task *task);
"""


def build(folder: str, arch: str) -> Path:
    """Compiles the device program for a kind of GPU, as nvcc names it."""
    compiler = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if compiler is None:
        raise SystemExit("cuda_loop.py needs nvcc, the compiler of CUDA")
    library = Path(folder) / "libdevice.so"
    command = [
        *(compiler, "-O2", "-std=c++17", f"-arch={arch}", "-Werror", "all-warnings"),
        *("-shared", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror", "-cudart", "static"),
        f"-I{jetstream.get_include()}",
        *("-o", str(library), str(SOURCE)),
    ]
    subprocess.run(command, check=True)
    return library


def run(options: argparse.Namespace) -> int:
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    with (
        tempfile.TemporaryDirectory() as folder,
        jetstream.init(progress="thread") as comm,  # a GPU cannot make the rounds
        transport.QueuePair(comm, threads="one") as qp,
    ):
        program = ffi.dlopen(str(build(folder, options.arch)))
        staged = comm.empty(options.count)  # the segment: pinned, the GPU reaches it too
        launch = qp.prepare("all_reduce", staged)
        latency_ns = np.zeros(options.steps, np.uint64)
        task = ffi.new("device_task *")
        task.qp, task.staged = qp.address, launch.source_addr
        task.count, task.steps = options.count, options.steps
        task.latency_ns = latency_ns.ctypes.data
        task.plan, task.rank, task.size = launch.key, comm.rank, comm.size
        if program.device_run(task) != 0:
            print(f"rank {comm.rank}: CUDA: {ffi.string(task.error).decode()}")
            return 1
        p50_us, p99_us = np.percentile(latency_ns[: task.steps_done], (50, 99)) / 1e3
        print(
            f"rank {comm.rank}: {task.steps_done} all-reduces of {staged.nbytes} bytes, "
            f"p50 {p50_us:.1f} us, p99 {p99_us:.1f} us, "
            f"{task.wrong} wrong elements, status {task.status}"
        )
        return int(task.status != 0 or task.wrong != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="all-reduces (1000)")
    parser.add_argument("--count", type=int, default=2048, help="float32 elements (2048)")
    parser.add_argument("--arch", default="native", help="for nvcc -arch (native)")
    parser.add_argument("--build", metavar="FOLDER", help="only compile into this folder")
    options = parser.parse_args()
    if options.build:
        print(build(options.build, options.arch))
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
