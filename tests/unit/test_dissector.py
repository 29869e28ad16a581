"""The dissector for Wireshark and tshark says what the codec in Python says, field by field."""

from __future__ import annotations

import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream._core.native import check, ffi, lib
from jetstream.cli.info import dissector_path
from jetstream.errors import ArgumentError, ProtocolError
from jetstream.testing import NoNetworkError, RankPool, run_ranks
from jetstream.transport.captures import frame_bytes, read_capture
from jetstream.transport.frames import (
    Ack,
    Flag,
    FrameError,
    Note,
    Opcode,
    Put,
    Refusal,
    Send,
    decode_frame,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/frames.json").read_text())
FRAMES = [bytes.fromhex(vector["hex"]) for vector in VECTORS]
TSHARK = shutil.which("tshark")
needs_tshark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed here")

FIELDS = (
    *("version", "channel", "opcode", "flags", "flags.som", "flags.eom", "flags.more"),
    *(
        "flags.ackreq",
        "flags.retx",
        "header_words",
        "dcid",
        "sender",
        "epoch",
        "psn",
        "ack",
        "credit",
    ),
    *("length", "fragment", "imm", "offset", "total_bytes", "sack.low", "sack.high", "trigger"),
    *(
        "delay",
        "delay_ns",
        "consumed.collective",
        "consumed.message",
        "consumed.put",
        "padding_bytes",
        "key",
    ),
    *("mtu", "payload", "note", "crc.status"),
)
EXPERTS = ("malformed", "reserved_bit", "crc.bad", "retransmission", "reset", "repeats")


def fields_of(data: bytes) -> dict[str, int | str]:
    """Returns what the dissector should show of a sound frame; what it has not is absent."""
    frame = decode_frame(data)
    flags = getattr(frame, "flags", Flag(0))
    shown: dict[str, int | str] = {
        "version": 1,
        "channel": getattr(frame, "channel", 0),
        "opcode": int(frame.opcode),
        "flags": int(flags),
        "header_words": data[3],
        "sender": frame.dcid % 256,
        "crc.status": 1,
    }
    shown |= {f"flags.{flag.name.lower()}": int(flag in flags) for flag in Flag if flag.name}
    names = ["dcid", "epoch", "psn", "ack", "credit"]
    if isinstance(frame, Send | Put):
        names += ["fragment", "imm"]
        shown |= {"length": len(frame.payload), "payload": frame.payload.hex()}
    if isinstance(frame, Put):
        names += ["offset", "total_bytes"]
    if isinstance(frame, Ack):
        names += ["trigger"]
        shown |= {"sack.low": frame.sack % 2**64, "sack.high": frame.sack >> 64}
        shown |= {"delay": frame.delay_units, "delay_ns": 64 * frame.delay_units}
        channels = ("collective", "message", "put")
        shown |= {f"consumed.{name}": frame.consumed[i] for i, name in enumerate(channels)}
    if isinstance(frame, Note):
        names += ["key", "mtu", "padding_bytes"]
        shown |= {"length": len(frame.note), "note": frame.note.hex()}
    shown |= {name: getattr(frame, name) for name in names}
    return {name: value for name, value in shown.items() if value != ""}


def refusal_of(data: bytes) -> Refusal | None:
    try:
        decode_frame(data)
    except FrameError as error:
        return error.reason
    return None


def tshark(path: Path, *arguments: str) -> list[dict[str, int | str]]:
    """Returns the fields of every packet, as far as there are any."""
    assert TSHARK is not None
    names = [*FIELDS, *EXPERTS]
    columns = [word for name in names for word in ("-e", f"jetstream.{name}")]
    script = ("-X", f"lua_script:{dissector_path()}")
    command = [TSHARK, "-n", *script, "-r", str(path), "-T", "fields", "-E", "separator=|"]
    done = subprocess.run(
        [*command, *columns, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Lua" not in done.stderr, done.stderr
    rows = []
    for line in done.stdout.splitlines():
        texts = dict(zip(names, line.split("|"), strict=True))
        rows.append({name: number(name, text) for name, text in texts.items() if text})
    return rows


def number(name: str, text: str) -> int | str:
    if name in ("payload", "note"):
        return text.replace(":", "")
    if text in ("True", "False"):
        return int(text == "True")
    return int(text, 0) if text[0].isdigit() else text


def block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


def capture_file(path: Path, packets: list[bytes], link_type: int) -> None:
    """Writes packets with their headers, with time stamps of 1, 2, ... microseconds."""
    data = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    data += block(1, struct.pack("<HHI", link_type, 0, 0))
    for index, packet in enumerate(packets):
        data += block(6, struct.pack("<5I", 0, 0, index + 1, len(packet), len(packet)) + packet)
    path.write_bytes(data)


@contextmanager
def linked(kind: int, interfaces: tuple[str, str], trace: str = "") -> Iterator[tuple[Any, ...]]:
    """Yields two links that know each other and their addresses; the first writes the trace."""
    links: list[Any] = []
    addresses = ffi.new("js_link_address[2]")
    peer = ffi.new("uint32_t *")
    try:
        for index, interface in enumerate(interfaces):
            keep = ffi.new("char[]", trace.encode() if index == 0 else b"")
            settings = {"kind": kind, "interface": interface.encode(), "trace": keep}
            out = ffi.new("js_link **")
            check(lib.js_link_open(ffi.new("js_link_config *", settings), out))
            links.append(out[0])
            lib.js_link_get_address(out[0], addresses + index)
        for index in (0, 1):
            check(lib.js_link_call_add_peer(links[index], addresses + 1 - index, peer))
            assert peer[0] == 0
        yield links[0], links[1], addresses
    finally:
        for link in links:
            lib.js_link_close(link)


def exchange(source: Any, target: Any, frame: bytes) -> None:
    """Sends a frame over the loopback, and waits for it."""
    check(lib.js_link_call_send(source, 0, frame, len(frame)))
    out = ffi.new("uint8_t[]", 2048)
    size = ffi.new("uint32_t *")
    for _ in range(1_000_000):
        if lib.js_link_call_receive(target, out, 2048, size) == lib.JS_OK:
            break
    assert bytes(ffi.buffer(out, size[0])) == frame


def traced(folder: Path) -> tuple[Path, int]:
    """Exchanges all vectors in both directions; returns the trace, and the port of its writer."""
    path = folder / "trace.pcapng"
    with linked(lib.JS_LINK_UDP, ("", ""), str(path)) as (first, second, addresses):
        for frame in filter(None, FRAMES):
            exchange(first, second, frame)
            exchange(second, first, frame)
        return path, addresses[0].port


def test_trace_holds_the_frames(tmp_path: Path) -> None:
    path, _ = traced(tmp_path)
    packets = list(read_capture(path))
    sent = [frame for frame in FRAMES if frame for _ in range(2)]
    assert [frame_bytes(packet) for packet in packets] == sent
    ways = [packet.direction.name for packet in packets]
    assert ways == ["OUTBOUND", "INBOUND"] * (len(sent) // 2)
    times = [packet.time_ns for packet in packets]
    assert times == sorted(times)
    assert packets[0].link_type == 101


def test_other_captures(tmp_path: Path) -> None:
    """Ethernet, the other byte order, a file that ends in the middle, and what is none."""
    path = tmp_path / "some.pcapng"
    ether = bytes(12) + b"\x88\xb5"
    capture_file(path, [ether + FRAMES[0], bytes(12) + b"\x08\x06" + bytes(28)], 1)
    first, second = read_capture(path)
    assert (frame_bytes(first), first.time_ns) == (FRAMES[0], 1000)
    assert frame_bytes(second) is None
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    assert len(list(read_capture(path))) == 1
    section = struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    interface = struct.pack(">IIHHIHHBxxxHHI", 1, 32, 1, 0, 0, 9, 1, 9, 0, 0, 32)
    packet = struct.pack(">8I", 6, 32 + 16, 0, 1, 2, 16, 16, 0x01020304) + bytes(12)
    path.write_bytes(section + interface + packet + struct.pack(">I", 48))
    (big,) = read_capture(path)
    assert (big.time_ns, len(big.data), big.data[:4]) == (2**32 + 2, 16, b"\1\2\3\4")
    old = struct.pack("<IHHqII", 0xA1B23C4D, 2, 4, 0, 65535, 1)
    old += struct.pack("<4I", 5, 7, 14 + len(FRAMES[0]), 14 + len(FRAMES[0])) + ether + FRAMES[0]
    path.write_bytes(old + struct.pack("<4I", 5, 8, 10, 10) + bytes(9))
    (packet_of_pcap,) = read_capture(path)
    assert frame_bytes(packet_of_pcap) == FRAMES[0]
    assert packet_of_pcap.time_ns == 5_000_000_007
    path.write_bytes(b"\x01\x02\x03\x04" + bytes(20))
    with pytest.raises(ConnectionError, match="no pcapng file"):
        list(read_capture(path))


@given(st.data())
def test_any_file_is_read_or_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    """A capture with some bytes changed, and noise."""
    path = tmp_path_factory.getbasetemp() / "damaged.pcapng"
    capture_file(path, [bytes(12) + b"\x88\xb5" + frame for frame in FRAMES[:3]], 1)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        for packet in read_capture(path):
            frame_bytes(packet)
    except ProtocolError:
        pass


def test_links_by_hand() -> None:
    """Frames that do not fit are refused; nothing to receive is no error."""
    with linked(lib.JS_LINK_UDP, ("", "")) as (first, _, addresses):
        size = ffi.new("uint32_t *")
        assert lib.js_link_call_receive(first, ffi.NULL, 0, size) == lib.JS_ERR_EMPTY
        for wrong in (0, addresses[0].mtu_bytes + 1):
            with pytest.raises(ArgumentError, match=f"a frame of {wrong} bytes"):
                check(lib.js_link_call_send(first, 0, bytes(wrong), wrong))


def expect(row: dict[str, int | str], data: bytes) -> None:
    """What tshark shows of a frame is what the codec says, refusals included."""
    refusal = refusal_of(data)
    shown = {name: value for name, value in row.items() if name not in EXPERTS}
    if refusal is None:
        assert shown == fields_of(data)
        assert not {"malformed", "reserved_bit", "crc.bad"} & set(row)
        is_repeat = "repeats" in row or bool(data[2] & 0x10 and data[1] < 0x80)
        assert ("retransmission" in row) == is_repeat
        assert ("reset" in row) == (data[1] == 0x8C)
    elif refusal is Refusal.RESERVED:
        assert "reserved_bit" in row
    elif refusal is Refusal.CRC:
        assert "crc.bad" in row
        assert shown["crc.status"] == 0
    else:
        assert "malformed" in row
        assert not shown


@needs_tshark
def test_of_a_trace(tmp_path: Path) -> None:
    """UDP: found by the look of the frames, and by the port, which shows what is no frame, too."""
    path, port = traced(tmp_path)
    packets = [frame_bytes(packet) or b"" for packet in read_capture(path)]
    rows = tshark(path, "-o", f"jetstream.udp_port:{port}")
    assert len(rows) == len(packets)
    for row, data in zip(rows, packets, strict=True):
        expect(row, data)
    structural = {Refusal.SHORT, Refusal.FOREIGN, Refusal.OPCODE, Refusal.HEADER}
    for row, data in zip(tshark(path), packets, strict=True):
        assert bool(row) == (refusal_of(data) not in structural)


@needs_tshark
def test_on_ethernet(tmp_path: Path) -> None:
    """The EtherType tells; padding is no part of the frame; repeats name the first packet."""
    path = tmp_path / "ethernet.pcapng"
    packets = [bytes(12) + b"\x88\xb5" + frame for frame in FRAMES if len(frame) > 1]
    packets += [packets[1] + bytes(20)]
    capture_file(path, packets, 1)
    rows = tshark(path)
    assert len(rows) == len(packets)
    for row, packet in zip(rows, packets, strict=True):
        expect(row, packet[14:])
    assert rows[-1]["repeats"] == 1
    assert "repeats" not in rows[0]


#: Two hosts' ends of a cable in a network namespace of its own; dumpcap listens on the one, frames
#: go from the other to it. Exit status 77: not permitted here; the text says what.
ON_A_CABLE = """
import subprocess, sys, time
from test_dissector import FRAMES, check, lib, linked
def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(" ".join(words), "->", done.stderr.strip())
        sys.exit(77)
run("ip", "link", "add", "name", "left", "type", "veth", "peer", "name", "right")
for name in ("left", "right"):
    run("ip", "link", "set", name, "up")
command = ("dumpcap", "-q", "-P", "-i", "right", "-w", sys.argv[1])
listener = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
if "Capturing" not in listener.stderr.readline() + listener.stderr.readline():
    listener.terminate()
    print("dumpcap:", listener.communicate()[1].strip())
    sys.exit(77)
with linked(lib.JS_LINK_PACKET, ("left", "right")) as (first, _, _):
    sent = [frame for frame in FRAMES if len(frame) >= 20]
    for frame in sent:
        check(lib.js_link_call_send(first, 0, frame, len(frame)))
until_s = time.monotonic() + 30
while sent[-1] not in open(sys.argv[1], "rb").read() and time.monotonic() < until_s:
    time.sleep(0.1)
listener.terminate()
listener.communicate(timeout=30)
"""


@needs_tshark
def test_on_a_cable(tmp_path: Path) -> None:
    """What the kernel itself captures is what was sent, and the dissector understands it."""
    path = tmp_path / "cable.pcap"
    words = ["unshare", "-Urn", sys.executable, "-c", ON_A_CABLE, str(path)]
    done = subprocess.run(
        words, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"network namespaces or capturing: {done.stdout}{done.stderr}".strip())
    assert done.returncode == 0, done.stderr
    packets = list(read_capture(path))
    rows = tshark(path)
    assert len(rows) == len(packets)
    pairs = [(row, frame_bytes(packet)) for row, packet in zip(rows, packets, strict=True)]
    ours = [(row, data) for row, data in pairs if data is not None]
    sent = [frame for frame in FRAMES if len(frame) >= 20]
    assert [data[: len(frame)] for (_, data), frame in zip(ours, sent, strict=True)] == sent
    for row, data in ours:
        expect(row, data)


def sums(comm: Any) -> None:
    for count in (1, 8, 1000, 20000):
        assert (comm.all_reduce(np.full(count, comm.rank, np.float32)) == 1).all()


@needs_tshark
def test_of_ranks(tmp_path: Path) -> None:
    """What ranks of two hosts send over a bad network: all kinds of frames, some of them spoilt."""
    trace = {"JETSTREAM_LINK_TRACE": f"{tmp_path}/{{rank}}.pcapng?limit_mib=64"}
    faults = "drop=0.03,dup=0.03,corrupt=0.03,seed=5"
    run_ranks(sums, 2, hosts=2, link="udp", faults=faults, env=trace)
    for rank in (0, 1):
        path = tmp_path / f"{rank}.pcapng"
        packets = [frame_bytes(packet) or b"" for packet in read_capture(path)]
        rows = tshark(path)
        assert len(rows) == len(packets) > 20
        for row, data in zip(rows, packets, strict=True):
            if row:  # else it is spoilt so that only its port would tell
                expect(row, data)
        opcodes = {row.get("opcode") for row in rows}
        assert {Opcode.SEND, Opcode.PUT, Opcode.ACK, Opcode.HELLO, Opcode.HELLO_ACK} <= opcodes


@contextmanager
def listening(network: Any, path: Path) -> Iterator[None]:
    """What passes the bridge meanwhile goes into that file; skips where that is not permitted."""
    listen = ("-i", "bridge0", "-U", "--immediate-mode", "-B", "32768", "-w", str(path))
    for host in (0, 1):  # as on a cable: datagrams that leave in one call go one by one
        command, fds = network.inside(host, "ip", "link", "set", "eth0", "gso_max_segs", "1")
        done = subprocess.run(
            command, pass_fds=fds, timeout=30, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"gso_max_segs of eth0: {done.stderr.strip()}")
    command, fds = network.inside(None, "tcpdump", "-Z", "root", *listen)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=fds) as tcpdump:
        assert tcpdump.stderr is not None
        said = []
        try:
            while "listening on" not in (line := tcpdump.stderr.readline()):
                said.append(line)
                if not line:
                    pytest.skip(f"tcpdump on a bridge: {''.join(said).strip()}")
            yield
            time.sleep(0.2)
        finally:
            tcpdump.send_signal(signal.SIGINT)
            report = tcpdump.communicate(timeout=30)[1]
    assert re.search(r"(?m)^0 packets dropped by kernel", report), report


@needs_tshark
@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed here")
def test_on_a_bridge(tmp_path: Path) -> None:
    """What tcpdump sees on the bridge between namespaces while ranks call collectives."""
    path = tmp_path / "bridge.pcap"
    with RankPool(2, fresh=True, hosts=2, link="udp", namespaces=True) as pool:
        try:
            pool.run(sums)
        except NoNetworkError as error:
            pytest.skip(str(error))
        with listening(pool.network, path):
            pool.run(sums)
    packets = list(read_capture(path))
    rows = tshark(path)
    assert len(rows) == len(packets)
    for row, packet in zip(rows, packets, strict=True):
        data = frame_bytes(packet)
        assert len(packet.data) <= 1514 or data is None  # TCP, by which they meet, may be longer
        if data is not None:
            assert refusal_of(data) is None
            expect(row, data)
    opcodes = {row.get("opcode") for row in rows}
    assert {Opcode.SEND, Opcode.PUT, Opcode.ACK, Opcode.HELLO, Opcode.HELLO_ACK} <= opcodes


def test_path_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jetstream", "info", "--dissector"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{dissector_path()}\n"
    assert dissector_path().read_text().startswith("--")
