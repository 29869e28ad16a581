"""The tables of overhead in docs/wire.md are what the frames really have."""

from __future__ import annotations

import re
from pathlib import Path

from jetstream.transport.frames import INLINE_BYTES, Ack, Flag, Frame, Put, Send, encode_frame

PAGE = Path(__file__).parents[2] / "docs/wire.md"
SIZES = {"8 B": 8, "32 B": 32, "64 B": 64, "256 B": 256, "1 KiB": 1024, "4 KiB": 4096}

ETHERNET, FCS, IPV4, IPV6, UDP = 14, 4, 20, 40, 8
FRAME_MIN, PREAMBLE_AND_GAP = 64, 20
#: What each protocol has between the outermost header that the cable needs and the FCS.
OTHERS = {
    "RoCEv2 SEND, middle of a WRITE": IPV4 + UDP + 12 + 4,  # BTH, ICRC
    "RoCEv2 WRITE, only or first": IPV4 + UDP + 12 + 16 + 4,  # RETH
    "RoCEv2 WRITE, only or first, IPv6": IPV6 + UDP + 12 + 16 + 4,
    "Ultra Ethernet RUD, small header": IPV4 + UDP + 12 + 20,  # PDS, SES
    "Ultra Ethernet RUD, medium header": IPV4 + UDP + 12 + 32,
    "Ultra Ethernet RUD, standard header": IPV4 + UDP + 12 + 44,
    "Ultra Ethernet RUD, standard, encrypted": IPV4 + UDP + 12 + 44 + 12 + 16,  # TSS, ICV
    "SUE over UDP": IPV4 + UDP + 8,  # reliability header
    "Falcon push": IPV4 + UDP + 24 + 4,
    "eRPC": IPV4 + UDP + 14,
}
#: Ethernet header of 6 bytes in place of 14, no IP; as claimed, its layout is not public.
SUE_OVER_AFH = 6 + 8 + FCS


def send(size: int) -> Frame:
    return Send(
        **DELIVERY, channel=0, flags=Flag.SOM | Flag.EOM, fragment=0, imm=0, payload=bytes(size)
    )


def put(size: int) -> Frame:
    total = max(size, INLINE_BYTES + 1)
    return Put(
        **DELIVERY, channel=0, flags=Flag(0), fragment=0, imm=0, offset=0, total_bytes=total,
        payload=bytes(size),
    )  # fmt: skip


DELIVERY = {"dcid": 1, "epoch": 2, "psn": 3, "ack": 4, "credit": 5}


def cable_bytes(packet_bytes: int) -> int:
    return max(packet_bytes, FRAME_MIN) + PREAMBLE_AND_GAP


def row(name: str, overhead: int, low: int = 0, high: int = 1 << 20) -> str:
    shares = [
        f"{100 * size / cable_bytes(size + overhead):.1f}" if low <= size <= high else "-"
        for size in SIZES.values()
    ]
    return f"| {name} | {overhead} | " + " | ".join(shares) + " |"


def our_rows() -> list[str]:
    rows = []
    for link, outside in (("Ethernet", ETHERNET + FCS), ("UDP", ETHERNET + IPV4 + UDP + FCS)):
        small = len(encode_frame(send(INLINE_BYTES))) - INLINE_BYTES + outside
        large = len(encode_frame(put(1024))) - 1024 + outside
        rows.append(row(f"**jetstream SEND, {link}**", small, high=INLINE_BYTES))
        rows.append(row(f"**jetstream PUT, {link}**", large, low=INLINE_BYTES + 1))
    return rows


def overhead_table() -> str:
    lines = ["| | bytes | " + " | ".join(SIZES) + " |", "|---" * (2 + len(SIZES)) + "|"]
    lines += [row(name, ETHERNET + inside + FCS) for name, inside in OTHERS.items()]
    lines += [row("SUE over AFH, as claimed", SUE_OVER_AFH), *our_rows()]
    return "\n".join(lines)


def mtu_table() -> str:
    """4 KiB at an MTU of 1500, and the packet that acknowledges."""
    ack = Ack(**DELIVERY, flags=Flag(0), sack=0, trigger=0, delay_units=0, consumed=(0, 0, 0))
    lines = ["| | packets for 4 KiB | bytes on the cable | share | ACK on the cable |"]
    lines += ["|---|---|---|---|---|"]
    for link, inside in (("Ethernet", 0), ("UDP", IPV4 + UDP)):
        room = 1500 - inside - (len(encode_frame(put(1024))) - 1024)
        parts = [room] * (4096 // room) + [4096 % room]
        packets = [ETHERNET + inside + len(encode_frame(put(part))) + FCS for part in parts]
        cable = sum(map(cable_bytes, packets))
        answer = cable_bytes(ETHERNET + inside + len(encode_frame(ack)) + FCS)
        share = f"{100 * 4096 / cable:.1f}"
        lines += [f"| jetstream PUT, {link} | {len(parts)} | {cable} | {share} | {answer} |"]
    roce = [ETHERNET + IPV4 + UDP + 12 + 4 + FCS + part for part in (1024,) * 4]
    roce[0] += 16
    cable = sum(map(cable_bytes, roce))
    answer = cable_bytes(ETHERNET + IPV4 + UDP + 12 + 4 + 4 + FCS)
    share = f"{100 * 4096 / cable:.1f}"
    lines += [f"| RoCEv2 WRITE, path MTU 1024 | 4 | {cable} | {share} | {answer} |"]
    return "\n".join(lines)


def on_the_page(name: str) -> str:
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", PAGE.read_text(), re.S)
    assert found, f"docs/wire.md has no part {name}"
    return found[1].strip()


def test_overhead() -> None:
    """Fails with the table as it should be."""
    assert on_the_page("overhead") == overhead_table(), "\n" + overhead_table()


def test_frames_of_an_mtu() -> None:
    assert on_the_page("mtu") == mtu_table(), "\n" + mtu_table()


def test_figures_known_from_elsewhere() -> None:
    """Overheads of the others as their own sources state them."""
    assert row("x", ETHERNET + OTHERS["RoCEv2 SEND, middle of a WRITE"] + FCS).startswith(
        "| x | 62"
    )
    stated = {"eRPC": 60, "Falcon push": 74, "SUE over UDP": 54}
    stated |= {"Ultra Ethernet RUD, standard header": 102}
    for name, total in stated.items():
        assert ETHERNET + OTHERS[name] + FCS == total
