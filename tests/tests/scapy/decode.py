"""Decodes frames with scapy and compares every field with what is expected.

    decode.py FRAMES.pcap EXPECTED.json

EXPECTED has one object for each frame, with the fields that `fields` finds. What differs is printed; then, or where no
frame was compared, the exit status is 1.
"""

import json
import logging
import sys

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.contrib.bier import BIER, BIFT
from scapy.fields import BitField, StrLenField
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw, bind_layers, split_layers
from scapy.utils import rdpcap

ETHERTYPE_BIER = 0xAB37


class RfcBIER(BIER):
    """scapy's layer with the lengths of RFC 8296, section 2.1.2: code n means 2^(n+5) bits. scapy counts them from 0,
    after an older draft, and would take half the BitString for payload or twice as much."""

    name = "BIER (RFC 8296)"
    fields_desc = [
        BitField("length", 1, 4)
        if field.name == "length"
        else StrLenField("BitString", b"", length_from=lambda packet: 4 << packet.length)
        if field.name == "BitString"
        else field
        for field in BIER.fields_desc
    ]


def bind():
    split_layers(BIFT, BIER)
    bind_layers(BIFT, RfcBIER)
    bind_layers(UDP, BIFT, dport=9000)
    for layer in (Ether, Dot1Q, Dot1AD):
        bind_layers(layer, BIFT, type=ETHERTYPE_BIER)


def checksums(frame):
    """Whether scapy, left to compute every length and checksum, makes the very same bytes."""
    again = Ether(bytes(frame))
    for layer, names in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (UDP, ("len", "chksum"))):
        if layer in again:
            for name in names:
                if not (layer is UDP and name == "chksum" and again[UDP].chksum == 0):
                    again[layer].delfieldval(name)
    return bytes(again) == bytes(frame)


def fields(frame):
    """Every field, by name."""
    found = {"destination": frame.dst, "source": frame.src, "tags": []}
    layer = frame
    kind = frame.type
    while isinstance(layer.payload, (Dot1Q, Dot1AD)):
        layer = layer.payload
        found["tags"].append([kind, layer.prio, layer.id, layer.vlan])
        kind = layer.type
    if IP in frame:
        ip = frame[IP]
        found["ip"] = [ip.version, ip.src, ip.dst, ip.tos, ip.ttl]
    elif IPv6 in frame:
        ip = frame[IPv6]
        found["ip"] = [ip.version, ip.src, ip.dst, ip.tc, ip.hlim]
    if UDP in frame:
        udp = frame[UDP]
        found["ports"] = [udp.sport, udp.dport]
        found["checksum"] = udp.chksum != 0
    found["checksums_right"] = checksums(frame)
    bift, bier = frame[BIFT], frame[RfcBIER]
    found["bift_id"] = bift.bsl << 16 | bift.sd << 8 | bift.set
    found["tc"], found["s"], found["ttl"] = bift.cos, bift.s, bift.ttl
    found["nibble"], found["version"], found["bsl"] = bier.id, bier.version, bier.length
    found["entropy"], found["oam"], found["rsv"] = bier.entropy, bier.OAM, bier.RSV
    found["dscp"], found["proto"], found["bfir_id"] = bier.DSCP, bier.Proto, bier.BFRID
    bit_string = int.from_bytes(bier.BitString, "big")
    found["bits"] = [bit + 1 for bit in range(8 * len(bier.BitString)) if bit_string >> bit & 1]
    found["bit_string_bytes"] = len(bier.BitString)
    found["payload"] = bytes(bier.payload).hex()
    found["payload_is_raw"] = isinstance(bier.payload, Raw)
    return found


def main(frames_path, expected_path):
    bind()
    frames = rdpcap(frames_path)
    with open(expected_path, encoding="utf-8") as file:
        expected = json.load(file)
    faults = 0
    if len(frames) != len(expected) or not frames:
        print(f"{len(frames)} frames, {len(expected)} expected")
        faults += 1
    for number, (frame, wanted) in enumerate(zip(frames, expected)):
        try:
            found = fields(frame)
        except (AttributeError, IndexError) as error:
            print(f"frame {number}: {error}: {frame.summary()}")
            faults += 1
            continue
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                print(f"frame {number}: {name} is {found.get(name)}, expected {wanted.get(name)}")
                faults += 1
    print(f"{len(frames)} frames decoded, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
