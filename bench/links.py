"""Links between hosts beside their floors: latency and goodput through js_link and hand-written
sockets, in the same run.

    python bench/links.py [udp-lo udp packet xdp] [--round-trips N] [--mib N] [--mtu N]

Two processes, each in a network namespace of its own, are joined by a virtual cable (udp-lo: over
the loopback interface, without namespaces). xdp takes the rights of the host's root; what is not
permitted is left out with its reason. Latency is half a round trip, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent / "csrc"
KINDS = ("udp-lo", "udp", "packet", "xdp")
FOLDERS = ("base", "link")
LIMIT_S = 150
INSIDE = "JETSTREAM_BENCH_INSIDE"  # set within the namespace that this program has made
IPS = ("10.77.0.1", "10.77.0.2")


def build(folder: Path) -> Path:
    """Compiles c/links.c with the sources of the links; returns the program."""
    program = folder / "links"
    sources = [
        str(path)
        for name in FOLDERS
        for path in sorted((CSRC / name).glob("*.c"))
        if path.name != "js_link_shm.c"
    ]
    floors = [str(HERE / f"c/link_floor_{name}.c") for name in ("udp", "packet", "xdp")]
    includes = [f"-I{CSRC / name}" for name in ("include", "shm", "wire", *FOLDERS)]
    flags = ["-O3", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", *includes]
    subprocess.run(
        [
            os.environ.get("CC", "cc"),
            *flags,
            "-o",
            str(program),
            str(HERE / "c/links.c"),
            *floors,
            *sources,
        ],
        check=True,
    )
    return program


class Network:
    """Two namespaces, this process's and another one's, joined by two virtual cables."""

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
        for near, far in (("js0", "js1"), ("js2", "js3")):
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
        for near in ("js0", "js2"):
            subprocess.run(["ip", "link", "del", near], check=False, stderr=subprocess.DEVNULL)
        self.holder.kill()
        self.holder.wait()


def run_ends(program: Path, kind: str, network: Network | None, args: argparse.Namespace) -> str:
    """Runs both ends of one measurement; returns what end 0 printed.

    Raises RuntimeError with what an end said when it failed.
    """
    places = {
        "udp-lo": [("127.0.0.1", "127.0.0.1")] * 2,
        "udp": [(IPS[0], IPS[0]), (IPS[1], IPS[1])],
        "packet": [("js0", "js0"), ("js1", "js1")],
        "xdp": [("js0", "js2"), ("js1", "js3")],
    }[kind]
    ends = []
    for role, (link_place, floor_place) in enumerate(places):
        command = [str(program), kind.removesuffix("-lo"), str(role), link_place, floor_place,
                   str(args.frame), str(args.round_trips), str(args.mib << 20)]  # fmt: skip
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
        raise RuntimeError(" ".join(error.strip() for _, error in outputs) or "an end died")
    return outputs[0][0]


def show(kind: str, rows: list[dict[str, object]]) -> None:
    """Prints the measurements of one kind, floor and link side by side."""
    for floor, link in zip(rows[::2], rows[1::2], strict=True):
        head = f"{kind:7} {floor['what']!s:8} {floor['bytes']!s:>6} B"
        if floor["what"] == "stream":
            share = 100 * float(str(link["gb_per_s"])) / float(str(floor["gb_per_s"]))
            sys.stdout.write(
                f"{head}  floor {floor['gb_per_s']:6} GB/s  link {link['gb_per_s']:6} GB/s"
                f"  {share:.0f} %\n"
            )
            continue
        cells = [
            f"{name} {' '.join(f'{float(str(row[f])):8.2f}' for f in PERCENTILES)}"
            for name, row in (("floor", floor), ("link", link))
        ]
        sys.stdout.write(f"{head}  {'  '.join(cells)}\n")
    sys.stdout.flush()


PERCENTILES = ("p50_us", "p99_us", "p999_us")


def measure(args: argparse.Namespace) -> None:
    """Measures all kinds that were asked for."""
    results: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        sys.stdout.write("half round trip, us: p50, p99, p99.9\n")
        for kind in args.kinds:
            network = None
            try:
                network = None if kind == "udp-lo" else Network(args.mtu)
                text = run_ends(program, kind, network, args)
                results[kind] = [json.loads(line) for line in text.splitlines()]
                show(kind, results[kind])
            except (RuntimeError, subprocess.SubprocessError) as error:
                sys.stdout.write(f"{kind:7} left out: {error}\n")
            finally:
                if network is not None:
                    network.close()
    if args.json is not None:
        Path(args.json).write_text(json.dumps(results, indent=1))


def main() -> int:
    """Enters a namespace if one is needed, then measures."""
    parser = argparse.ArgumentParser(description="Links beside their floors.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--round-trips", type=int, default=4000, help="in each of five turns")
    parser.add_argument("--mib", type=int, default=64, help="length of a stream")
    parser.add_argument("--mtu", type=int, default=1500, help="of the virtual cable")
    parser.add_argument("--frame", type=int, default=0, help="bytes; 0: what the link chooses")
    parser.add_argument("--json")
    args = parser.parse_args()
    args.kinds = args.kinds or list(KINDS)
    unknown = set(args.kinds) - set(KINDS)
    if unknown:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    if any(kind != "udp-lo" for kind in args.kinds) and INSIDE not in os.environ:
        if shutil.which("ip") is None or shutil.which("unshare") is None:
            sys.stderr.write("links: ip and unshare are needed for all but udp-lo\n")
            return 77
        # root keeps what xdp needs; anyone else becomes root of a user namespace
        enter = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
        environment = {**os.environ, INSIDE: "1"}
        return subprocess.call([*enter, sys.executable, *sys.argv], env=environment)
    if INSIDE in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
