"""Links between hosts, and the full stack over them, beside their floors: latency and goodput
through hand-written sockets, js_link, and messages and puts of a queue pair, in the same run.

    python bench links [shm udp-lo udp packet xdp] [--round-trips N] [--mib N] [--mtu N]

Two processes, each on a core of its own and in a network namespace of its own, are joined by a
virtual cable (udp-lo: over the loopback interface; shm: shared memory; both without namespaces).
xdp takes the rights of the host's root; what is not permitted is left out with its reason. Latency
is half a round trip, in microseconds; the methods alternate in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bounds import output, whole

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
BUILD = HERE.parent / "build" / "bench"
KINDS = ("shm", "udp-lo", "udp", "packet", "xdp")
ALONE = ("shm", "udp-lo")  # need no namespaces
METHODS = {
    "floor": "hand-written sockets, or lines of shared memory",
    "link": "frames through js_link",
    "stack": "messages of a queue pair, through everything",
    "put": "puts with a signal, the same way",
}
LIMIT_S = 150
INSIDE = "JETSTREAM_BENCH_INSIDE"  # set within the namespace that this program has made
FRAME_BYTES_MAX = 9152  # FLOOR_FRAME_BYTES_MAX of c/link_floor.h, less what it keeps
IPS = ("10.77.0.1", "10.77.0.2")


def build() -> Path:
    """Compiles c/links.c with the data plane, as much as has changed; returns the program.

    Raises subprocess.CalledProcessError; ends the program where there is no CMake.
    """
    beside = str(Path(sys.executable).parent)  # `make install` puts cmake and ninja there
    environment = {**os.environ, "PATH": f"{beside}:{os.environ['PATH']}"}
    if shutil.which("cmake", path=environment["PATH"]) is None:
        sys.exit("links: cmake is needed, which `make install` puts into .venv")
    for words in (
        ["-S", str(HERE.parent / "csrc"), "-B", str(BUILD), "-DJS_BENCH=ON"],
        ["--build", str(BUILD), "-t", "links", "-j", "2"],
    ):
        subprocess.run(["cmake", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    return BUILD / "links"


class Network:
    """Two namespaces, this process's and another one's, joined by three virtual cables."""

    def __init__(self, mtu_bytes: int) -> None:
        """Makes them. Raises subprocess.CalledProcessError where that is not permitted."""
        self.holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 1000"],
                                       stdout=subprocess.PIPE)  # fmt: skip
        assert self.holder.stdout is not None
        self.holder.stdout.readline()
        there = str(self.holder.pid)
        self.enter = ("nsenter", f"--net=/proc/{there}/ns/net")
        try:
            self._join(there, mtu_bytes)
        except subprocess.CalledProcessError:
            self.close()
            raise

    def _join(self, there: str, mtu_bytes: int) -> None:
        for near, far in (("js0", "js1"), ("js2", "js3"), ("js4", "js5")):
            self._ip("link", "add", near, "mtu", str(mtu_bytes), "type", "veth",
                     "peer", "name", far, "mtu", str(mtu_bytes), "netns", there)  # fmt: skip
            self._ip("link", "set", near, "up")
            self._ip("link", "set", far, "up", far=True)
        self._ip("addr", "add", f"{IPS[0]}/24", "dev", "js0")
        self._ip("addr", "add", f"{IPS[1]}/24", "dev", "js1", far=True)

    def _ip(self, *words: str, far: bool = False) -> None:
        subprocess.run([*(self.enter if far else ()), "ip", *words], check=True)

    def close(self) -> None:
        """Removes the cables and the other namespace."""
        for near in ("js0", "js2", "js4"):
            subprocess.run(["ip", "link", "del", near], check=False, stderr=subprocess.DEVNULL)
        self.holder.kill()
        self.holder.wait()


def run_ends(program: Path, kind: str, network: Network | None, args: argparse.Namespace) -> str:
    """Runs both ends of one measurement; returns what end 0 printed.

    Raises RuntimeError with what an end said when it failed.
    """
    # Of the link, the floor, the stack. On one cable each would see the others' Ethernet frames.
    places = {
        "shm": [("-",) * 3] * 2,
        "udp-lo": [("127.0.0.1",) * 3] * 2,
        "udp": [(IPS[0],) * 3, (IPS[1],) * 3],
        "packet": [("js0", "js2", "js4"), ("js1", "js3", "js5")],
        "xdp": [("js0", "js2", "js4"), ("js1", "js3", "js5")],
    }[kind]
    methods = sum(1 << i for i, name in enumerate(METHODS) if name in args.methods)
    cores = sorted(os.sched_getaffinity(0))
    ends = []
    for role, place in enumerate(places):
        core = cores[role % len(cores)]
        command = [str(program), kind.removesuffix("-lo"), str(role), str(core), *place,
                   str(args.frame), str(args.round_trips), str(args.mib << 20),
                   str(methods), *map(str, args.sizes)]  # fmt: skip
        enter = network.enter if network is not None and role == 1 else ()
        ends.append(
            subprocess.Popen(
                [*enter, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        lines = [end.stdout.readline() for end in ends if end.stdout is not None]
        for end, line in zip(ends, reversed(lines), strict=True):
            if end.stdin is not None and line:
                end.stdin.write(line)
                end.stdin.flush()
        outputs = [end.communicate(timeout=LIMIT_S) for end in ends]
    finally:
        for end in ends:
            end.kill()
            end.wait()
    if any(end.returncode != 0 for end in ends):
        reasons = dict.fromkeys(error.strip() for _, error in outputs if error.strip())
        statuses = " and ".join(str(end.returncode) for end in ends)
        raise RuntimeError("; ".join(reasons) or f"the ends ended with status {statuses}")
    return outputs[0][0]


def show(kind: str, rows: list[dict[str, object]]) -> None:
    """Prints the measurements of one kind, each method behind the floor of its case."""
    base = 0.0
    for row in rows:
        is_first = row["method"] == "floor"
        what = {"pingpong": "half round trip", "stream": "stream"}.get(str(row["what"]))
        if what is None:
            counts = [f"{name} {count}" for name, count in row.items() if isinstance(count, int)]
            sys.stdout.write(f"{kind:7} {row['method']}: {', '.join(counts)}\n")
            continue
        head = f"{kind:7} {what:15} {row['bytes']!s:>7} B  {row['method']!s:6}"
        if row["what"] == "stream":
            goodput = float(str(row["gb_per_s"]))
            base = goodput if is_first else base
            sys.stdout.write(f"{head} {goodput:8.2f} GB/s {100 * goodput / base:6.0f} %\n")
            continue
        times = [float(str(row[name])) for name in PERCENTILES]
        base = times[0] if is_first else base
        cells = " ".join(f"{time:8.2f}" for time in times)
        sys.stdout.write(f"{head} {cells}  {'' if is_first else f'{times[0] - base:+8.2f}'}\n")
    sys.stdout.flush()


PERCENTILES = ("p50_us", "p99_us", "p999_us")


def measure(args: argparse.Namespace) -> None:
    """Measures all kinds that were asked for."""
    results: dict[str, list[dict[str, object]]] = {}
    program = build()
    sys.stdout.write("half round trip, us: p50, p99, p99.9, p50 more than the floor's\n")
    for kind in args.kinds:
        network = None
        try:
            network = None if kind in ALONE else Network(args.mtu)
            text = run_ends(program, kind, network, args)
            results[kind] = [json.loads(line) for line in text.splitlines()]
            show(kind, results[kind])
        except (RuntimeError, subprocess.SubprocessError) as error:
            sys.stdout.write(f"{kind:7} left out: {error}\n")
        finally:
            if network is not None:
                network.close()
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


def main(arguments: list[str]) -> int:
    """Enters a namespace if one is needed, then measures."""
    methods = "\n".join(f"  {name:6} {text}" for name, text in METHODS.items())
    parser = argparse.ArgumentParser(
        prog="python bench links",
        usage="%(prog)s [KIND ...] [options]",
        description=__doc__,
        epilog=f"methods:\n{methods}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "--round-trips", type=whole(1), default=4000, help="in each of 5 turns (4000)"
    )
    parser.add_argument("--mib", type=whole(1), default=64, help="length of a stream (64)")
    parser.add_argument(
        "--mtu", type=whole(540, 65535), default=1500, help="of the virtual cable (1500)"
    )
    parser.add_argument(
        "--frame", type=whole(0, FRAME_BYTES_MAX), default=0, help="bytes; 0: what the link chooses"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=tuple(METHODS),
        default=list(METHODS),
        metavar="METHOD",
        help="beside floor, of those below (all)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=whole(0, FRAME_BYTES_MAX),
        default=[8, 64, 1024, 0],
        metavar="BYTES",
        help="of ping-pong; 0: a full frame (8 64 1024 0)",
    )
    parser.add_argument("--json", type=output, metavar="FILE", help="write all figures to FILE")
    args = parser.parse_args(arguments)
    args.methods.append("floor")
    args.kinds = args.kinds or list(KINDS)
    unknown = set(args.kinds) - set(KINDS)
    if unknown:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    if not set(ALONE).issuperset(args.kinds) and INSIDE not in os.environ:
        if shutil.which("ip") is None or shutil.which("unshare") is None:
            sys.stderr.write("links: ip and unshare are needed for all but shm and udp-lo\n")
            return 77
        # root keeps what xdp needs; anyone else becomes root of a user namespace
        enter = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
        environment = {**os.environ, INSIDE: "1"}
        words = [sys.executable, str(HERE / "links.py"), *arguments]
        return subprocess.call([*enter, *words], env=environment)
    if INSIDE in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
