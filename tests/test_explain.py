"""lab/tools/explain.py and lab/tools/p2p.lua: what they say about good and wrong bytes, captures and live traffic.

Captures are made here, packet by packet (class Wire), so that each can be wrong in one way.
Reading order: frames - command line - captures - the capture in lab/ - the proxy - Wireshark.
"""

import contextlib
import functools
import io
import ipaddress
import itertools
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys

import pytest
from google.protobuf.descriptor import FieldDescriptor

import messages_pb2 as pb
from harness import (CHUNK, ROOT, FakePeer, Program, active_proof, ask, chunks_query, connect, describe, eventually, fetch_chunk, finished, framed,
                     join, peer_list, receive, some_bytes)
import explain

EXPLAIN = [sys.executable, str(pathlib.Path(ROOT, "lab", "tools", "explain.py"))]
EXCHANGE = str(pathlib.Path(ROOT, "lab", "exchange.pcap"))
ADDRESS = "127.0.0.1:5000"
REQUESTS = [join(ADDRESS), active_proof(ADDRESS), active_proof(ADDRESS, bytes(32)), peer_list(), chunks_query(), chunks_query(3),
            fetch_chunk(0), fetch_chunk(CHUNK, busy_ok=True)]
RESPONSES = [
    pb.Response(ok=pb.Response.Ok()),
    pb.Response(bad=pb.Response.Bad(code=pb.NOT_HELD, reason="expected a chunk that is held")),
    pb.Response(peer_list=pb.Response.PeerList(addresses=[ADDRESS, "[::1]:6000"], file=describe(some_bytes(CHUNK + 1), name="a"), lease_ms=10_000)),
    pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[0, CHUNK, 2 * CHUNK])),
    pb.Response(chunk=b"abc"),
]
FRAMES = [(framed(message), "request") for message in REQUESTS] + [(framed(message), "response") for message in RESPONSES]
CHUNK_ANSWER = framed(pb.Response(chunk=some_bytes(CHUNK)))


def dump(frame, kind="request", **options):
    """The annotated hexdump as one text. The frame may be hex."""
    return "\n".join(explain.render(bytes.fromhex(frame) if isinstance(frame, str) else frame, kind, **options))


# Frames.


@pytest.mark.parametrize("frame, kind", FRAMES)
def test_the_runs_of_a_good_frame_are_without_a_gap_and_none_is_wrong(frame, kind):
    runs = explain.fields(frame, kind)
    assert [start for start, _, _ in runs] == [0] + [end for _, end, _ in runs[:-1]] and runs[-1][1] == len(frame)
    assert not [text for _, _, text in runs if "!!" in text or "not known" in text]
    assert explain.kind_of(frame) == kind


@pytest.mark.parametrize("seed, frames", [(0, 400), pytest.param(1, 4000, marks=pytest.mark.long)])
def test_nothing_that_is_read_raises_and_every_byte_is_told_of(seed, frames):
    chance = random.Random(seed)
    for _ in range(frames):
        frame, kind = chance.choice(FRAMES)
        frame = bytearray(frame[:chance.randrange(len(frame) + 1)])
        for _ in range(chance.randrange(4) if frame else 0):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        runs = explain.fields(frame, kind)
        assert [start for start, _, _ in runs] == [0] * bool(runs) + [end for _, end, _ in runs[:-1]], frame.hex()
        assert (runs[-1][1] if runs else 0) == len(frame), frame.hex()
        assert max(map(len, explain.render(frame, kind)), default=0) <= 110
        assert explain.headline(frame, kind) and explain.difference(frame, FRAMES[0][0], kind)


def test_the_names_numbers_and_types_are_those_of_the_messages():
    wire = {FieldDescriptor.TYPE_STRING: 2, FieldDescriptor.TYPE_BYTES: 2, FieldDescriptor.TYPE_MESSAGE: 2}

    def compare(name, message):
        assert {field.number: field.name for field in message.fields} == {number: field for number, (field, _) in explain.MESSAGES[name].items()}
        for field in message.fields:
            type_ = explain.MESSAGES[name][field.number][1]
            packed = field.name in ("chunk_ids", "instead")
            assert explain.wire_type(type_) == (2 if packed else wire.get(field.type, 0)), field.full_name
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                compare(type_, field.message_type)
            compared.add(name)
    compared = set()
    compare("Request", pb.Request.DESCRIPTOR)
    compare("Response", pb.Response.DESCRIPTOR)
    assert compared == {name for name, fields in explain.MESSAGES.items() if fields}
    assert explain.CODES == [pb.Code.Name(number) for number in range(len(pb.Code.keys()))]


def test_a_dump_has_offset_bytes_and_meaning():
    assert explain.render(framed(fetch_chunk(CHUNK)), "request") == [
        "     0  00 00 00 00 00 00 00 06  length: 6 bytes of message",
        "     8  2a                       field 5 fetch_chunk, wire type 2 (length follows)",
        "     9  04                         4 bytes",
        "    10  08                           field 1 chunk_id, wire type 0 (varint)",
        "    11  80 80 10                       262,144 = 1 × 262,144",
    ]


def test_the_answer_to_join_is_told_field_by_field():
    text = dump(framed(RESPONSES[2]), "response")
    for told in ("field 3 peer_list", "field 1 addresses", '"127.0.0.1:5000"', '"[::1]:6000"', "field 8 file", 'field 1 name', '"a"', "262,145 bytes",
                 "field 3 chunk_size", "SHA-256 of 2 chunks: ", "field 9 lease_ms", "10,000 ms = 10 s"):
        assert told in text, text
    digests = RESPONSES[2].peer_list.file.digests
    assert f"{digests[:4].hex()}…, {digests[32:36].hex()}…" in text and "… 56 more" in text


def test_of_a_chunk_only_the_first_bytes_are_shown():
    lines = explain.render(CHUNK_ANSWER, "response")
    assert lines[-2].split("the chunk")[0].split() == ["12", *some_bytes(CHUNK)[:8].hex(" ").split()]
    assert lines[-1].split() == ["…", "262,136", "more"] and len(lines) == 5
    assert len(explain.render(CHUNK_ANSWER, "response", limit=80)) == 14


def test_long_lists_are_folded_in_the_middle():
    lines = explain.render(framed(pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=range(0, 1000 * CHUNK, CHUNK)))), "response")
    assert len(lines) < 80 and any(line.endswith("more lines") for line in lines) and "261,881,856 = 999 × 262,144" in lines[-1]


def test_of_a_frame_with_millions_of_fields_the_beginning_is_told():
    for body in (bytes.fromhex("40 01") * 200_000, b"\x22\x80\x88\x30\x0a\xfc\x87\x30" + bytes(787_452)):
        frame = framed(body)
        runs = explain.fields(frame, "response")
        assert len(runs) <= explain.MAX_RUNS + 5 and runs[-1][1] == len(frame) and "not read any further" in runs[-1][2]
        assert all(one[1] == other[0] for one, other in zip(runs, runs[1:]))


@pytest.mark.parametrize("frame, kind, told", [
    ("00 00 00 00 00 00 00 02 2a 00", "request", "0 bytes: chunk_id is absent, so it is 0"),
    ("00 00 00 00 00 00 00 02 2a 00", "response", "0 bytes: a chunk of no bytes"),
    ("00 00 00 00 00 00 00 04 2a 02 40 01", "request", "2 bytes: chunk_id is absent, so it is 0"),
    ("00 00 00 00 00 00 00 02 1a 00", "response", "0 bytes: a list of no peers"),
    ("00 00 00 00 00 00 00 06 2a 04 08 01 40 01", "request", "1 (no multiple of 262,144, the usual chunk size)"),
    ("00 00 00 00 00 00 00 04 2a 02 40 01", "request", "field 8 busy_ok, wire type 0 (varint)\n    11  01                             true"),
    ("00 00 00 00 00 00 00 07 12 05 40 05 4a 01 78", "response", "5 NOT_HELD"),
    ("00 00 00 00 00 00 00 04 12 02 40 63", "response", "99: a code that is not known, and a refusal like any other"),
    ("00 00 00 00 00 00 00 05 2a 03 61 62 63", "response", 'the chunk\'s bytes: "abc"'),
    ("00 00 00 00 00 00 00 06 22 04 08 80 80 10", "response", "field 1 chunk_ids, wire type 0 (varint)"),  # not packed
    ("00 00 00 00 00 00 00 00", "request", "it has no type; the answer to that is Bad"),
    ("00 00 00 00 00 00 00 06 9a 06 03 61 62 63", "request", "field 99 (an extension) not known, to be skipped"),
    ("00 00 00 00 00 00 00 04 32 02 61 62", "request", "field 6 not known, to be skipped"),
    ("00 00 00 00 00 00 00 04 1a 00 22 00", "request", "field 4 chunks_query (peer_list came before: the last one counts)"),
    ("00 00 00 00 00 00 00 06 2a 04 71 01 02 03", "request", "!! cut short: 3 of 8 bytes"),
    ("00 00 00 00 00 00 00 07 2a 05 75 01 02 03 04", "request", "field 14 (an extension) not known, to be skipped, wire type 5 (4 bytes)"),
])
def test_what_a_value_means_is_told(frame, kind, told):
    assert told in dump(frame, kind)


@pytest.mark.parametrize("frame, told", [
    ("02 00 00 00 00 00 00 00 2a 00", "!! little-endian? This length would be 144,115,188,075,855,872"),
    ("06 00 00 00 00 00 00 00 2a 00", "!! little-endian? This length would be 432,345,564,227,567,616; read the other way round it is 6, and 2"),
    ("00 00 00 00 00 00 00 0a 2a 00", "!! length: 10, but 2 follow: it counts its own 8 bytes, which it must not"),
    ("00 00 00 02 2a 00", "!! a length of 4 bytes? It must have 8, big-endian"),
    ("02 00 00 00 2a 00", "!! a length of 4 bytes, little-endian? It must have 8, big-endian"),
    ("2a 04 08 80 80 10", "!! no length in front? A frame begins with 8 bytes of it"),
    ("00 00 00", "!! cut short: 3 of the 8 bytes of a length"),
    ("00 00 00 00 00 00 00 05 2a 00", "!! length: 5 bytes of message, but only 2 follow"),
    ("00 00 00 00 00 00 00 02 2a 00 ff ff", "!! 2 bytes more than the length says"),
    ("00 00 00 00 00 00 00 04 2a 02 08 80", "!! a varint cut short: its last byte says that more follow"),
    ("00 00 00 00 00 00 00 0e 2a 0c 08 80 80 80 80 80 80 80 80 80 80 01", "!! a varint that does not end within 10 bytes"),
    ("00 00 00 00 00 00 00 0d 2a 0b 08 ff ff ff ff ff ff ff ff ff 02", "!! a varint of more than 64 bits"),
    ("00 00 00 00 00 00 00 05 2a 03 0a 01 30", "!! field 1 chunk_id, wire type 2 (length follows), where 0 (varint) is due"),
    ("00 00 00 00 00 00 00 02 08 01", "!! field 1 join, wire type 0 (varint), where 2 (length follows) is due"),
    ("00 00 00 00 00 00 00 05 0a 03 0a 01 ff", "!! not UTF-8: byte 1 of 1, ff, cannot stand there"),
    ("00 00 00 00 00 00 00 06 0a 04 0a 02 61 62", '!! "ab" is not ip:port with a port from 1 to 65535'),
    ("00 00 00 00 00 00 00 02 0a 00", "!! 0 bytes: without listening_addr, where an ip:port is due"),
    ("00 00 00 00 00 00 00 04 0a 02 0a 05", "!! 5 bytes, but only 0 are left"),
    ("00 00 00 00 00 00 00 02 2b 00", "!! wire type 3, which there is not: 0, 1, 2 and 5 are; from here on"),
    ("00 00 00 00 00 00 00 02 02 00", "!! field number 0, which there is not"),
    ("00 00 00 00 00 00 00 03 2a 01 08", "!! field 1 chunk_id, wire type 0 (varint); but the message ends here"),
    ("00 00 00 00 00 00 00 07 12 05 42 03 61 62 63", "!! 3 bytes where 32 are due"),
])
def test_wrong_bytes_are_told_in_plain_words(frame, told):
    assert told in re.sub(r"\n +(?=[^ \d…])", " ", dump(frame))
    assert explain.headline(bytes.fromhex(frame), "request")


def test_a_request_that_is_too_long_is_told_and_digests_that_are_no_digests():
    assert "!! length: 65,537 bytes, where a server takes 65,536 at the most" in dump(framed(b"\xfa\x01\xfd\xff\x03" + bytes(65_532))[:8 + 65_537])
    answer = pb.Response(peer_list=pb.Response.PeerList(file=pb.File(digests=bytes(33))))
    assert "!! 33 bytes: no multiple of 32" in dump(framed(answer), "response")


def test_control_characters_are_escaped():
    text = dump(framed(pb.Response(bad=pb.Response.Bad(reason="a\x1b[2J\u202e\nb"))), "response")
    assert r'"a\x1b[2J\u202e\nb"' in text and "\x1b" not in text and "\u202e" not in text


def test_a_difference_has_its_offset_and_a_caret_in_both_dumps():
    offset, lines = explain.difference(framed(fetch_chunk(CHUNK)), framed(fetch_chunk(2 * CHUNK)), "request")
    assert offset == 13
    carets = [(lines[i - 1], line) for i, line in enumerate(lines) if "^" in line]
    assert [above[line.index("^"):][:2] for above, line in carets] == ["10", "20"]
    assert [line.split("^ ")[1] for _, line in carets] == ["offset 13: 10, and 20 in what came", "offset 13: 20, and 10 in what was expected"]
    assert explain.difference(b"abc", b"abc", "request")[0] is None


def test_a_difference_in_the_middle_of_a_chunk_or_at_its_end_is_not_left_out():
    other = CHUNK_ANSWER[:100_000] + bytes([CHUNK_ANSWER[100_000] ^ 255]) + CHUNK_ANSWER[100_001:]
    offset, lines = explain.difference(CHUNK_ANSWER, other, "response")
    caret = [i for i, line in enumerate(lines) if "^" in line]
    assert offset == 100_000 and len(caret) == 2 and lines[caret[1] - 1][lines[caret[1]].index("^"):][:2] == f"{other[100_000]:02x}"
    offset, lines = explain.difference(CHUNK_ANSWER, CHUNK_ANSWER[:-1], "response")
    assert offset == len(CHUNK_ANSWER) - 1 and len(lines) < 20
    last = f"{CHUNK_ANSWER[-1]:02x}"
    assert [line.split(": ", 1)[1] for line in lines if "^" in line] == [f"{last}, and the end in what came", f"the end, and {last} in what was expected"]


def test_a_difference_to_nothing_at_all():
    offset, lines = explain.difference(framed(peer_list()), b"", "request")
    assert offset == 0 and sum("^" in line for line in lines) == 2


# Command line.


def run(*arguments, code=0):
    """(stdout, stderr) of a run that ends with this exit code, without a traceback."""
    done = finished([*EXPLAIN, *map(str, arguments)])
    assert done.returncode == code and "Traceback" not in done.stderr, (done.returncode, done.stdout, done.stderr)
    assert code != 2 or len(done.stderr.splitlines()) == 1, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("words", [["0000000000000002", "2a00"], ["00:00:00:00:00:00:00:02:2A:00"], ["0x0000000000000002 0x2a, 0x00"],
                                   ["00 00 00 00 00 00 00 02 | 2a 00"]])
def test_hex_may_be_written_in_many_ways(words):
    assert run(*words)[0].startswith("request, 10 bytes: Fetch Chunk, chunk id 0\n     0  00 00 00 00 00 00 00 02")


def test_hex_is_read_as_what_it_can_only_be_or_as_told():
    assert run("0000000000000002 0a00")[0].startswith("response, 10 bytes: Ok")
    assert run("--response", "0000000000000002 2a00")[0].startswith("response, 10 bytes: chunk of 0 bytes")
    assert run("--request", "0000000000000002 0a00")[0].startswith("request, 10 bytes: Join")


def test_several_frames_in_a_row_are_told_one_by_one():
    heads = re.findall(r"^re.*$", run(b"".join(frame for frame, _ in FRAMES).hex())[0], re.M)
    assert [head.split(",")[0] for head in heads] == [kind for _, kind in FRAMES]


JOIN = framed(join(ADDRESS))  # 26 bytes: a whole line and a short one


def lines_of(row, data=JOIN):
    """A dump: row(offset, 16 bytes) for each line."""
    return "\n".join(row(at, data[at:at + 16]) for at in range(0, len(data), 16))


def readable(data):
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def words_of(data, size):
    return " ".join(data[at:at + size].hex() for at in range(0, len(data), size))


def swapped(data):
    return " ".join(data[at:at + 2][::-1].hex() for at in range(0, len(data), 2))


PASTED = {
    "wireshark": lines_of(lambda at, data: f"{at:04x}   {data.hex(' '):47}   {readable(data)}"),
    "xxd": lines_of(lambda at, data: f"{at:08x}: {words_of(data, 2):39}  {readable(data)}"),
    "hexdump_c": lines_of(lambda at, data: f"{at:08x}  {data[:8].hex(' ')}  {data[8:].hex(' '):23}  |{readable(data)}|") + "\n0000001a",
    "hexdump": lines_of(lambda at, data: f"{at:07x} {swapped(data)}") + "\n000001a",
    "od": lines_of(lambda at, data: f"{at:07o} {data.hex(' ')}") + "\n0000032",
    "tcpdump": lines_of(lambda at, data: f"\t0x{at:04x}:  {words_of(data, 2):39}  {readable(data)}"),
    "not_from_0": lines_of(lambda at, data: f"{at + 0x42:04x}  {data.hex(' ')}"),
    "python": repr(JOIN), "bytearray": repr(bytearray(JOIN)), "two_strings": f"{JOIN[:9]!r}\n{JOIN[9:]!r}", "no_quotes": repr(JOIN)[2:-1],
    "array_of_c": "static const unsigned char pkt1[26] = {\n" + ", ".join(f"0x{byte:02x}" for byte in JOIN) + " /* 127.0.0.1 */\n};"}


@pytest.mark.parametrize("text", PASTED.values(), ids=PASTED)
def test_what_people_paste_is_read_as_the_bytes_it_shows(text):
    expected = run(JOIN.hex())[0]
    assert run(text)[0] == expected and "!!" not in expected
    piped = subprocess.run([*EXPLAIN, "-"], input=text.encode(), capture_output=True, timeout=20, check=True)
    assert piped.stdout.decode() == expected


def test_one_line_of_a_dump_is_read_without_its_quotes_too():
    assert run(*"0000 00 00 00 00 00 00 00 02 2a 00 ........*.".split())[0] == run("00000000000000022a00")[0]
    assert run("0000 0000 0000 0002 2a00")[0] == run("00000000000000022a00")[0], "these are no offsets"


def test_both_sides_of_a_followed_stream_are_told_and_repeated_lines_are_there():
    one, other = PASTED["hexdump_c"], PASTED["hexdump_c"].replace("\n", "\n    ")
    assert [head.split(":")[0] for head in re.findall(r"^re.*$", run(f"{one}\n    {other}")[0], re.M)] == ["request, 26 bytes"] * 2
    assert explain.paste.of_dump("00000000  " + "00 " * 16 + "\n*\n00000040  01\n00000041") == ([bytes(64) + b"\1"], True)


def test_of_a_whole_packet_the_frame_is_told():
    (_, packet), = Wire().segment(0, JOIN).packets
    out, _ = run((LINKS[1][0] + packet).hex())
    assert out.startswith("a packet of 80 bytes; behind its headers, 54 of them:\nrequest, 26 bytes: Join")


def test_no_text_makes_it_fail():
    chance = random.Random(1)
    for _ in range(2000):
        text = "".join(chance.choice(["00", "ab", " ", "  ", "\n", ":", "*", "|", "0000", "\\x0", "b'", '"', "{", "}", "g"]) for _ in range(chance.randrange(30)))
        with contextlib.suppress(explain.Wrong):
            assert isinstance(explain.streams_of(text), list)


@pytest.mark.parametrize("words, told", [
    (["00 00 0g"], "expected hex digits, got 'g' at character 8 of \"00 00 0g\""),
    (["000"], "expected two hex digits for each byte, got an odd number of them: 3"),
    (["no/such.pcap"], "no/such.pcap: expected a capture, got: No such file or directory"),
    (["lab"], "lab: expected a capture, got: Is a directory"),
    (["README.md"], "README.md: expected a pcap or pcapng capture, got a file that begins with 23 20 4f 6e"),
    ([], "expected hex digits, or a capture, or --proxy PORT TARGET:PORT"),
    (["--prots", "1"], "unrecognized arguments: --prots; see --help"),
    (["--proxy", "0", "nowhere"], "expected HOST:PORT, got 'nowhere'"),
    (["--proxy", "99999", "127.0.0.1:1"], "expected PORT or HOST:PORT, got '99999'"),
    (["--proxy", "0", "127.0.0.1:1"], "expected a program that listens at 127.0.0.1:1, got: Connection refused; start it first"),
])
def test_bad_input_is_answered_by_one_line(words, told):
    assert told in run(*words, code=2)[1]


# Captures.


SYN, ACK, FIN = 2, 16, 1
CUT = "their ends, which were cut off when they were recorded (tcpdump -s 0 keeps all)"
LINKS = {  # link type -> header before an IPv4 packet, and before an IPv6 packet
    1: (bytes(12) + b"\x08\x00", bytes(12) + b"\x86\xdd"),
    113: (bytes(14) + b"\x08\x00", bytes(14) + b"\x86\xdd"),
    276: (b"\x08\x00" + bytes(18), b"\x86\xdd" + bytes(18)),
    0: (b"\x02\0\0\0", b"\x1e\0\0\0"),
    108: (b"\0\0\0\x02", b"\0\0\0\x1e"),
    101: (b"", b""),
}


class Wire:
    """Packets of one TCP connection, in the order for the capture."""

    def __init__(self, server_port=9000, client_port=50_000, v6=False, start=(1000, 2000)):
        self.hosts = ("::1", "::2") if v6 else ("10.0.0.1", "10.0.0.2")
        self.ports = (client_port, server_port)
        self.start = start
        self.sent = [1, 1]  # next place after each side's SYN
        self.packets = []   # (IP version, IP packet)

    def segment(self, side, data=b"", flags=ACK, place=None):
        """Add a segment of side 0 (client) or 1 (server), at `place` or after the last one."""
        if place is None:
            place = self.sent[side]
            self.sent[side] += len(data)
        other = 1 - side
        tcp = struct.pack("!HHIIBBHHH", self.ports[side], self.ports[other], (self.start[side] + place) % 2**32, 0, 5 << 4, flags, 1000, 0, 0) + data
        ends = b"".join(ipaddress.ip_address(self.hosts[end]).packed for end in (side, other))
        if len(ends) == 8:
            self.packets.append((4, struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + ends + tcp))
        else:
            self.packets.append((6, struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + ends + tcp))
        return self

    def open(self):
        return self.segment(0, flags=SYN, place=0).segment(1, flags=SYN | ACK, place=0)

    def exchange(self, *pairs):
        for request, answer in pairs:
            self.segment(0, framed(request)).segment(1, framed(answer))
        return self


def pcap(packets, link=1, order="<", nano=False, cut=None):
    """A pcap file; packet number n was captured n milliseconds after the first."""
    magic, part = (0xa1b23c4d, 10**6) if nano else (0xa1b2c3d4, 10**3)
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, link)
    for number, (version, packet) in enumerate(packets):
        packet = LINKS[link][version == 6] + packet
        data += struct.pack(order + "IIII", 1_700_000_000, number * part, len(packet[:cut]), len(packet)) + packet[:cut]
    return data


def pcapng(packets, link=1, order="<"):
    """The same as pcapng, in nanoseconds, with a block of an unknown type."""
    def block(type_, body):
        body += bytes(-len(body) % 4)
        return struct.pack(order + "II", type_, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)
    data = block(0x0a0d0d0a, struct.pack(order + "IHHq", 0x1a2b3c4d, 1, 0, -1))
    data += block(1, struct.pack(order + "HHIHHB3xHH", link, 0, 0, 9, 1, 9, 0, 0)) + block(0xbad, b"abc")
    for number, (version, packet) in enumerate(packets):
        packet = LINKS[link][version == 6] + packet
        ticks = 1_700_000_000 * 10**9 + number * 10**6
        data += block(6, struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xffffffff, len(packet), len(packet)) + packet)
    return data


@pytest.fixture
def told(tmp_path):
    """told(capture, ...): what explain.py says about a capture, without the dumps: one line for each frame."""
    def tell(data, *arguments, code=0):
        path = tmp_path / "test.pcap"
        path.write_bytes(data)
        out, error = run(path, *arguments, code=code)
        lines = re.sub(r"\n {11}(?=\S)", " ", out).splitlines()
        return [line for line in lines if re.match(r" *\d+\.\d{6}  |\d+ packet", line)] + error.splitlines()
    return tell


EXCHANGES = [(join(ADDRESS), RESPONSES[2]), (active_proof(ADDRESS), RESPONSES[0]), (chunks_query(), RESPONSES[3]), (fetch_chunk(0), RESPONSES[4])]
NAMES = ["Join", "Peer List", "Active Proof", "Ok", "Chunks Query", "Chunks Query", "Fetch Chunk", "chunk"]


def names(lines):
    """The names of the frames in these lines."""
    return [re.search(r"bytes?: (Peer List|Active Proof|Chunks Query|Fetch Chunk|\w+)", line)[1] for line in lines if "→" in line or "←" in line]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("write", [pcap, pcapng])
def test_link_types_of_both_ip_versions_in_both_formats(told, write, link, v6):
    lines = told(write(Wire(v6=v6).open().exchange(*EXCHANGES).packets, link))
    assert names(lines) == NAMES
    client, server = ("[::1]:50000", "[::2]:9000") if v6 else ("10.0.0.1:50000", "10.0.0.2:9000")
    assert lines[0] == f" 0.000000  {client} → {server}  request 1, 26 bytes: Join \"127.0.0.1:5000\""
    assert lines[3] == f" 0.003000  {client} ← {server}  answer to 2 after 1 ms, 10 bytes: Ok"


@pytest.mark.parametrize("write", [lambda packets: pcap(packets, order=">"), lambda packets: pcap(packets, nano=True),
                                   lambda packets: pcap(packets, order=">", nano=True), lambda packets: pcapng(packets, order=">")])
def test_both_byte_orders_and_nanoseconds(told, write):
    lines = told(write(Wire().open().exchange(*EXCHANGES).packets))
    assert names(lines) == NAMES and lines[3].startswith(" 0.003000  ") and "after 1 ms" in lines[3]


def test_padding_and_a_vlan_tag_are_not_data(told):
    packets = [(4, packet) for _, packet in Wire().open().exchange(*EXCHANGES).packets]
    assert names(told(pcap([(4, packet + bytes(9)) for _, packet in packets]))) == NAMES
    data = struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 262_144, 1)
    for _, packet in packets:
        packet = bytes(12) + b"\x81\x00\x00\x05\x08\x00" + packet
        data += struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet
    assert names(told(data)) == NAMES


def framed_by(head, packets, link=1):
    """A pcap file of IPv4 packets, each after this header."""
    data = struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 262_144, link)
    for _, packet in packets:
        packet = head(packet) + packet
        data += struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet
    return data


@pytest.mark.parametrize("head", [lambda packet: bytes(12) + b"\x91\x00\x00\x05\x81\x00\x00\x06\x08\x00",
                                  lambda packet: bytes(12) + b"\x88\x64" + struct.pack("!BBHHH", 0x11, 0, 7, len(packet) + 2, 0x0021)], ids=["two_tags", "pppoe"])
def test_what_providers_put_around_a_packet_is_not_data(told, head):
    assert names(told(framed_by(head, Wire().open().exchange(*EXCHANGES).packets))) == NAMES


def authenticated(version, packet):
    """An IPv6 packet with an authentication header before its TCP."""
    return version, packet[:4] + struct.pack("!HB", len(packet) - 40 + 24, 51) + packet[7:40] + struct.pack("!BBHIQQ", 6, 4, 0, 1, 2, 3) + packet[40:]


def test_an_authentication_header_is_not_data(told):
    assert names(told(pcap([authenticated(*packet) for packet in Wire(v6=True).open().exchange(*EXCHANGES).packets]))) == NAMES


@pytest.mark.parametrize("link, change, why", [
    (127, None, "link type 127, 802.11 behind radiotap headers"), (258, None, "link type 258, PKTAP"), (105, None, "link type 105, 802.11"), (147, None, "link type 147"),
    (101, lambda packet: packet[:6] + b"\x20\x00" + packet[8:], "IP fragments"), (101, lambda packet: packet[:9] + b"\x32" + packet[10:], "encrypted (ESP)"),
    (101, lambda packet: packet[:9] + b"\x33" + packet[10:], "IP with authentication headers"),
])
def test_what_is_not_read_is_named(tmp_path, link, change, why):
    packets = [(4, change(packet) if change else packet) for _, packet in Wire().open().exchange(*EXCHANGES).packets]
    (tmp_path / "test.pcap").write_bytes(framed_by(lambda packet: b"", packets, link))
    out, error = run(tmp_path / "test.pcap", code=2)
    assert f"{len(packets)} packets not read: {why}" in out and "expected TCP connections" in error


def test_packets_that_are_surely_nothing_of_ours_are_not_told_of(tmp_path):
    (tmp_path / "test.pcap").write_bytes(framed_by(lambda packet: b"", [(4, struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + bytes(16))], 101))
    assert "not read" not in run(tmp_path / "test.pcap", code=2)[0]


def split_exchange(size=3, **options):
    """The exchanges, each frame in segments of `size` bytes."""
    wire = Wire(**options).open()
    for request, answer in EXCHANGES:
        for side, message in enumerate((request, answer)):
            for at in range(0, len(framed(message)), size):
                wire.segment(side, framed(message)[at:at + size])
    return wire


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_segments_are_put_together(told, size):
    assert names(told(pcap(split_exchange(size).packets))) == NAMES


def test_several_frames_in_one_segment_are_taken_apart(told):
    requests, answers = (b"".join(map(framed, side)) for side in zip(*EXCHANGES))
    lines = told(pcap(Wire().open().segment(0, requests).segment(1, answers).packets))
    assert names(lines) == NAMES and [f"answer to {n} " in line for n, line in enumerate(lines[1:8:2], 1)] == [True] * 4


def test_segments_that_come_twice_overlap_or_come_out_of_order(told):
    wire = split_exchange(5)
    packets = wire.packets[:2] + [packet for packet in wire.packets[2:] for _ in range(2)]
    assert names(told(pcap(packets))) == NAMES
    runs = [list(run) for _, run in itertools.groupby(packets[2:], key=lambda packet: packet[1][12:16])]  # each of one sender
    assert names(told(pcap(packets[:2] + [packet for run in runs for packet in run[::-1]]))) == NAMES
    wire = Wire().open().exchange(*EXCHANGES)
    wire.segment(0, b"".join(framed(request) for request, _ in EXCHANGES)[:60], place=1)  # all of it again, cut elsewhere
    assert names(told(pcap(wire.packets))) == NAMES
    frame = framed(join(ADDRESS))
    wire = Wire().open().segment(0, frame[:20]).segment(0, frame[10:], place=11).segment(1, framed(RESPONSES[2]))
    assert [line.endswith(end) for line, end in zip(told(pcap(wire.packets)), ['26 bytes: Join "127.0.0.1:5000"', "2 peers, with the file"])] == [True, True]


def test_a_frame_has_the_time_at_which_it_was_whole(told):
    frame = framed(join(ADDRESS))
    wire = Wire().open().segment(0, frame[:20]).segment(1, b"").segment(0, frame[20:]).segment(1, framed(RESPONSES[0]))
    wire.exchange((peer_list(), RESPONSES[2]))
    assert "after 1 ms" in told(pcap(wire.packets))[1]


def test_a_connection_whose_syn_was_not_captured(told):
    packets = Wire(server_port=50_000, client_port=9000).exchange(*EXCHANGES).packets
    lines = told(pcap(packets))
    assert names(lines) == NAMES and "10.0.0.1:9000 → 10.0.0.2:50000" in lines[0]
    lines = told(pcap(packets[1:]))  # the first is an answer
    assert names(lines) == NAMES[1:] and "answer to a request that was not seen" in lines[0] and "10.0.0.1:9000 ←" in lines[0]


def test_a_syn_that_comes_late_begins_no_other_connection(told):
    packets = Wire().open().exchange(*EXCHANGES).packets
    lines = told(pcap([packets[2], packets[0], packets[1], *packets[3:]]))
    assert names(lines) == NAMES and "1 TCP connection," in lines[-1]


def test_sequence_numbers_wrap(told):
    assert names(told(pcap(split_exchange(7, start=(2**32 - 10, 2**32 - 100)).packets))) == NAMES


def test_ports_that_are_used_again_are_another_connection(told):
    first, second = Wire().open().exchange(*EXCHANGES), Wire(start=(77_000_000, 5)).open().exchange(*EXCHANGES)
    lines = told(pcap(first.packets + second.packets))
    assert names(lines) == 2 * NAMES and "2 TCP connections, 2 of them with 8 exchanges" in lines[-1]


def test_bytes_that_were_not_captured_are_told_and_what_follows_is_read_again(told):
    packets = split_exchange(40).packets
    lines = told(pcap(packets[:4] + packets[5:]))  # a segment in the middle of the answer to Join
    assert "40 bytes are not in the capture" in lines[1]
    assert names(lines) == NAMES


@pytest.mark.parametrize("recorded, frames, packets", [(200, 10, 1), (76, 10, 4), (64, 10, 6), (54, 0, 10), (40, 0, 12)])
def test_packets_that_were_recorded_in_part_are_cut_and_not_wrong(told, tmp_path, recorded, frames, packets):
    """As tcpdump -s records them: the headers alone take 54 bytes, or 66 with options."""
    data = pcap(Wire().open().exchange(*EXCHANGES, (fetch_chunk(0), pb.Response(chunk=some_bytes(1000)))).packets, cut=recorded)
    (tmp_path / "cut.pcap").write_bytes(data)
    assert "!!" not in run(tmp_path / "cut.pcap", code=0 if frames else 2)[0]
    lines = told(data, code=0 if frames else 2)
    assert len(names(lines)) == frames and not any("wrong" in line or "nothing more came" in line for line in lines)
    assert f"{packets} packet{'s' * (packets > 1)} not read: {CUT}" in lines
    if frames:
        assert [number for line in lines for number in re.findall("answer to (\\d)", line)] == list("12345")
        assert re.search(r"; then [0-9,]+ bytes are not in the capture$", lines[frames - 1])


def test_a_request_without_an_answer_and_a_frame_without_an_end_are_told(told, tmp_path):
    wire = Wire().open().exchange(*EXCHANGES).segment(0, framed(peer_list())).segment(1, framed(RESPONSES[2])[:50])
    lines = told(pcap(wire.packets))
    assert "nothing more came" in lines[-2]
    (tmp_path / "open.pcap").write_bytes(pcap(Wire().open().exchange(*EXCHANGES).segment(0, framed(peer_list())).packets))
    assert "no answer to request 5 in the capture" in run(tmp_path / "open.pcap")[0]


def test_connections_are_told_in_the_order_of_their_requests(told):
    one, other = Wire().open().exchange(*EXCHANGES).packets, Wire(client_port=50_001).open().exchange(*EXCHANGES).packets
    lines = told(pcap([packet for pair in zip(one, other) for packet in pair]))
    assert [re.search(r"\d:(\d+) ", line)[1] for line in lines[:-1]] == ["50000", "50000", "50001", "50001"] * 4
    assert [re.search(r"request (\d+),", line)[1] for line in lines[:-1:2]] == [str(n) for n in range(1, 9)]


def test_only_what_carries_frames_is_told_unless_ports_are_named(told):
    web = Wire(server_port=80).open().segment(0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").segment(1, b"HTTP/1.1 200 OK\r\n\r\nhello")
    both = web.packets + Wire().open().exchange(*EXCHANGES).packets
    assert names(told(pcap(both))) == NAMES
    assert names(told(pcap(both), "--port", 9000)) == NAMES
    assert "10.0.0.2:80 " in told(pcap(both), "--port", 80)[0]
    assert "expected TCP connections that carry frames, found none; --port N shows" in told(pcap(web.packets), code=2)[-1]
    assert "carry frames at these ports, found none" in told(pcap(both), "--port", 81, code=2)[-1]


def test_a_wrong_length_is_shown_where_a_port_is_named(told, tmp_path):
    little = struct.pack("<Q", 2) + b"\x2a\x00"
    path = tmp_path / "little.pcap"
    path.write_bytes(pcap(Wire().open().segment(0, little).segment(0, little).packets))
    assert run(path, "--port", 9000)[0].count("little-endian?") == 2


def test_a_capture_that_is_cut_short_is_told_as_far_as_it_goes(told):
    packets = Wire().open().exchange(*EXCHANGES).packets
    for write in (pcap, pcapng):
        lines = told(write(packets)[:-30], code=2)
        assert names(lines) == NAMES[:-1] and "cut short after packet 9: " in lines[-1]
    assert "after packet 0" in told(pcap(packets)[:10], code=2)[-1]
    assert "after packet 0: 5 of 16 bytes of a packet" in told(pcap(packets)[:29], code=2)[-1]


def test_a_socket_that_is_connected_to_itself_is_left_out(told):
    wire, other = Wire(server_port=9000, client_port=9000), Wire().open().exchange(*EXCHANGES)
    wire.hosts = ("10.0.0.1", "10.0.0.1")
    assert names(told(pcap(wire.open().exchange(*EXCHANGES).packets + other.packets))) == NAMES


def test_captures_that_are_none_or_nonsense_raise_nothing(told, tmp_path):
    assert "is empty" in told(b"", code=2)[-1]
    assert "unpack it" in told(b"\x1f\x8b\x08\x00", code=2)[-1]
    chance = random.Random(2)
    packets = Wire().open().exchange(*EXCHANGES).packets
    for number in range(600):
        data = bytearray((pcap, pcapng)[number % 2](packets, chance.choice(list(LINKS))))
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path = tmp_path / "nonsense.pcap"
        path.write_bytes(data)
        with contextlib.suppress(explain.Wrong, explain.capture.NotACapture), contextlib.redirect_stdout(io.StringIO()):
            explain.explain_capture(str(path), {9000})


# The capture in lab/.


def test_the_capture_in_lab_has_all_requests_and_all_answers():
    out, _ = run(EXCHANGE)
    assert pathlib.Path(EXCHANGE).stat().st_size < 20_000 and "!!" not in out and "not known" not in out
    requests = set(re.findall(r"request \d+, .* bytes?: (Join|Active Proof|Peer List|Chunks Query|Fetch Chunk)", out))
    answers = set(re.findall(r"answer to \d+ after .* bytes?: (Ok|Bad|Peer List|Chunks Query|chunk)", out))
    assert len(requests) == 5 and answers == {"Ok", "Bad", "Peer List", "Chunks Query", "chunk"}
    assert max(map(len, out.splitlines())) <= 110


def test_the_capture_in_lab_can_be_made_again(tmp_path, recording_alone):
    done = finished([sys.executable, "lab/exchange.py", tmp_path / "again.pcap"])
    if done.returncode == 3:
        pytest.skip(f"recording is not possible here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    heads = [re.findall(r"(?:request|answer to) \d+.*?: ([A-Z]?[a-z]+ ?[A-Z]?[a-z]*)", run(path)[0]) for path in (EXCHANGE, tmp_path / "again.pcap")]
    assert set(heads[0]) == set(heads[1])


# The proxy.


@pytest.fixture
def proxy(ending):
    """proxy(target): the proxy as a Program; `port` is where it listens."""
    def start(target):
        program = ending(Program([*EXPLAIN, "--proxy", "0", target]))
        program.port = int(program.wait_for(r"what connects to 127\.0\.0\.1:(\d+) is passed on to .*; Ctrl-C ends it")[1])
        return program
    return start


@pytest.fixture
def echo(ending):
    """A server, as a target, that sends back everything it got once the other side has finished."""
    class Echo(FakePeer):
        def serve(self, sock):
            data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            sock.sendall(data)
            sock.close()
    return ending(Echo(b""))


def test_the_proxy_shows_what_passes_between_two_programs(proxy, fake_peer):
    data = some_bytes(CHUNK + 5)
    program = proxy(fake_peer(data).address)
    with connect(("127.0.0.1", program.port)) as sock:
        for request in (chunks_query(), fetch_chunk(0), fetch_chunk(CHUNK)):
            answer = ask(sock, request)
        assert answer.chunk == data[CHUNK:]
    program.wait_for(r"closed$")
    text = program.output
    assert names(text.splitlines()) == ["Chunks Query", "Chunks Query", "Fetch Chunk", "chunk", "Fetch Chunk", "chunk"], text
    assert "… 262,136 more" in text and "262,144 = 1 × 262,144" in text and re.search(r"answer to 3 after .*: chunk of 5 bytes", text)


def test_the_proxy_passes_on_any_bytes_unchanged_however_they_are_split(proxy, echo):
    program = proxy(echo.address)
    data = framed(fetch_chunk(CHUNK)) + bytes(range(256)) + some_bytes(100_000)
    with connect(("127.0.0.1", program.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(40):
            sock.sendall(data[at:at + 1])
        sock.sendall(data[40:])
        sock.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: sock.recv(1 << 16), b"")) == data
    program.wait_for(r"closed")
    assert "request 1, 14 bytes: Fetch Chunk, chunk id 262,144" in program.output


def test_the_proxy_shows_what_was_cut_off_and_what_had_no_answer(proxy, echo):
    program = proxy(echo.address)
    with connect(("127.0.0.1", program.port)) as sock:
        sock.sendall(struct.pack("!Q", 10) + b"\x2a\x00")
    program.wait_for(r"closed")
    assert "it counts its own 8 bytes" in program.output and "nothing more came" in program.output


def test_the_proxy_takes_many_connections_at_once(proxy, fake_peer):
    data = some_bytes(20 * 1000)
    program = proxy(fake_peer(data, chunk_size=1000).address)
    socks = [connect(("127.0.0.1", program.port)) for _ in range(20)]
    for number, sock in enumerate(socks):
        sock.sendall(framed(fetch_chunk(number * 1000)))
    for number, sock in enumerate(socks):
        assert receive(sock).chunk == data[number * 1000:][:1000]
        sock.close()
    eventually(lambda: program.output.count("closed") == 20, what="the end of 20 connections")
    assert sorted(map(int, re.findall(r"request (\d+),", program.output))) == list(range(1, 21))


def test_the_proxy_tells_when_its_target_is_gone_and_goes_on(proxy, ending):
    target = FakePeer(b"abc")
    program = proxy(target.address)
    target.stop()
    for _ in range(2):
        with connect(("127.0.0.1", program.port)) as sock:
            assert sock.recv(1) == b""
    eventually(lambda: program.output.count("did not accept: Connection refused") == 2, what="two refusals")
    assert "Traceback" not in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_proxy_ends_cleanly_also_with_connections_open(proxy, fake_peer, number):
    program = proxy(fake_peer(b"abc").address)
    with connect(("127.0.0.1", program.port)) as sock:
        assert ask(sock, fetch_chunk(0)).chunk == b"abc"
        program.wait_for("chunk of 3 bytes")
        program.signal(number)
        program.ends_with(0, r"^ended after 1 request$")
        assert sock.recv(1) == b""


def test_a_port_that_is_taken_is_told_in_one_line(fake_peer):
    target = fake_peer(b"")
    assert "expected a free port, cannot listen at 127.0.0.1:" in run("--proxy", target.port, target.address, code=2)[1]


def test_a_real_swarm_runs_through_the_proxy(proxy, make_file, run_tracker, run_peer, tmp_path):
    path, data = make_file(3 * CHUNK)
    program = proxy(f"127.0.0.1:{run_tracker(path).port}")
    run_peer(program.port, tmp_path / "out.bin", ["--leave"]).ends_with(0)
    assert (tmp_path / "out.bin").read_bytes() == data
    program.wait_for("answer to 1 after .*: Peer List of 2 peers")


# Wireshark. Starting tshark takes most of a second, so all captures are in one file, each as a connection of its own.


needs_tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
BOTH = [(kind, name) for pair in zip(NAMES[::2], NAMES[1::2]) for kind, name in zip(("request", "response"), pair)]


def several_in_one_segment(**options):
    requests, answers = (b"".join(map(framed, side)) for side in zip(*EXCHANGES))
    return Wire(**options).open().segment(0, requests).segment(1, answers)


def wrong_frames(**options):
    wire = Wire(**options).open().segment(0, struct.pack("<Q", 2) + b"\x2a\x00")
    return wire.segment(0, framed(b"\x2a\x05\x08")).segment(0, framed(bytes.fromhex("2a 03 0a 01 30")))


def other_traffic(**options):
    return Wire(**options).open().segment(0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").segment(1, b"HTTP/1.1 200 OK\r\n\r\nhello")


def nonsense(**options):
    """Frames with wrong bytes, at most three in each."""
    chance, wire = random.Random(3), Wire(**options).open()
    for _ in range(400):
        frame, kind = chance.choice(FRAMES)
        frame = bytearray(frame)
        for _ in range(chance.randrange(1, 4)):
            frame[chance.randrange(8, len(frame)) if len(frame) > 8 else 7] = chance.randrange(256)
        wire.segment(kind == "response", bytes(frame))
    return wire


CAPTURES = {f"split_{size}_{port}": functools.partial(split_exchange, size, server_port=port) for size in (8, 10, 50) for port in (8000, 9000, 1024)}
CAPTURES |= {"single_bytes": functools.partial(split_exchange, 1, server_port=9009), "several": several_in_one_segment,
             "wrong": functools.partial(wrong_frames, server_port=8000), "web": functools.partial(other_traffic, server_port=80),
             "nonsense": functools.partial(nonsense, server_port=8000)}
LATE = {f"late_{first}": first for first in range(1, len(NAMES), 2)}  # captures that lack this many packets at the beginning


class Dissected:
    """What one run of tshark with our dissector says about all captures, frame by frame."""

    def __init__(self, folder, *options):
        recorded = pathlib.Path(EXCHANGE).read_bytes()
        wires = {name: make(client_port=50_000 + number).packets for number, (name, make) in enumerate(CAPTURES.items())}
        wires |= {name: Wire(client_port=51_000 + first).exchange(*EXCHANGES).packets[first:] for name, first in LATE.items()}
        (folder / "all.pcap").write_bytes(recorded + pcap([packet for packets in wires.values() for packet in packets])[24:])
        arguments = ["tshark", "-n", "-X", f"lua_script:{pathlib.Path(ROOT, 'lab', 'tools', 'p2p.lua')}", "-r", str(folder / "all.pcap"), *options]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        complaints = [line for line in done.stderr.splitlines() if "root" not in line]  # its complaint about running as root does not matter
        assert done.returncode == 0 and not complaints, done.stderr
        self.all = done.stdout
        frames = re.split(r"^(?=Frame \d+: )", done.stdout, flags=re.M)[1:]
        self.text, at = {}, len(frames) - sum(map(len, wires.values()))
        self.text["lab"] = "".join(frames[:at])
        for name, packets in wires.items():
            self.text[name] = "".join(frames[at:at + len(packets)])
            at += len(packets)

    def frames(self, name):
        """The frames of a capture, as (kind, type); none may be malformed."""
        assert "Malformed" not in self.text[name] and "Error" not in self.text[name], self.text[name]
        return re.findall(r"^P2P file distribution, (request|response): (.*)$", self.text[name], re.M)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return Dissected(tmp_path_factory.mktemp("once"), "-O", "p2p", "-z", "io,stat,0,p2p.chunk_id == 1024")


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """In two passes, with more ports in the preference, and all details."""
    return Dissected(tmp_path_factory.mktemp("twice"), "-2", "-V", "-o", "p2p.ports:8000,9001-9010")


@needs_tshark
def test_tshark_shows_all_requests_and_all_answers_of_the_capture_in_lab(once):
    assert set(once.frames("lab")) == {("request", name) for name in ("Join", "Active Proof", "Peer List", "Chunks Query", "Fetch Chunk")} \
        | {("response", name) for name in ("Ok", "Bad", "Peer List", "Chunks Query", "chunk")}
    for told in ("listening_addr: 0.0.0.0:8001", "content_id: ", "addresses: 127.0.0.1:8002", "file", "name: story.txt", "size: 2592",
                 "chunk_size: 1024", "digests: ", "lease_ms: 1000", "chunk_ids: 2048", "chunk_id: 0 (absent)", "chunk_id: 1024",
                 "busy_ok: True", "chunk: 6c696e65", "code: NO_SUCH_CHUNK (4)", "reason: "):
        assert told in once.text["lab"], told


@needs_tshark
def test_a_field_is_a_filter_of_tshark(once):
    (frames,) = re.findall(r"<> +[\d.]+ \| +(\d+) \|", once.all)
    assert int(frames) == len(re.findall(r"^ +chunk_id: 1024$", once.all, re.M)) == 1


@needs_tshark
@pytest.mark.parametrize("name", [name for name in CAPTURES if name.startswith("split")])
def test_tshark_puts_split_frames_together_at_any_port(once, twice, name):
    assert once.frames(name) == twice.frames(name) == BOTH


@needs_tshark
def test_tshark_puts_single_bytes_together_at_the_ports_of_the_preference(once, twice):
    assert twice.frames("single_bytes") == BOTH and once.frames("single_bytes") == []


@needs_tshark
def test_tshark_takes_several_frames_in_one_segment_apart(once):
    assert sorted(once.frames("several")) == sorted(BOTH)


@needs_tshark
@pytest.mark.parametrize("name", LATE)
def test_tshark_tells_who_asks_from_the_bytes_when_the_beginning_is_missing(once, name):
    assert once.frames(name) == BOTH[LATE[name]:]


@needs_tshark
def test_tshark_is_told_of_wrong_frames_and_leaves_other_traffic_alone(once):
    assert "is it little-endian?" in once.text["wrong"] and "Lua Error" not in once.text["wrong"]
    assert "no field that is whole" in once.text["wrong"] and "field 1 has wire type 2, where 0 is due" in once.text["wrong"]
    assert once.frames("web") == []


@needs_tshark
def test_no_bytes_make_the_dissector_fail(twice):
    assert "Lua Error" not in twice.text["nonsense"]
