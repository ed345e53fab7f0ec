#!/usr/bin/env python3
"""What the bytes mean: requests and answers as an annotated hexdump, including wrong ones.

    python3 lab/tools/explain.py 0000000000000002 2a00      hex; spaces, colons, commas, | and 0x are skipped
    python3 lab/tools/explain.py --response 00000000000000022a00    the same bytes, read as an answer
    python3 lab/tools/explain.py "b'\\0\\0\\0\\0\\0\\0\\0\\2*\\0'"     a Python string, or the columns of Wireshark, xxd or hexdump;
                                                      - reads stdin
    python3 lab/tools/explain.py lab/exchange.pcap          a capture of TCP (pcap or pcapng, as tcpdump writes it): each
                                                      request with its answer; --port N: all traffic of port N only
    python3 lab/tools/explain.py --proxy 9000 127.0.0.1:8000        live: give a peer port 9000 as its tracker's, and watch the
                                                      traffic. Run the proxy on the peer's machine: the tracker
                                                      lists the address that connects. Ctrl-C ends it.

Messages are decoded here by hand, byte after byte, and not by protobuf, so that a message which no parser accepts
can be shown up to the wrong byte and beyond. Lines that begin with `!!` are mistakes. No input raises an
exception. For other programs: fields, headline, render, difference. capture.py reads files, paste.py what
people paste.

Exit codes: 0; 1 if stdout accepts no more; 2 for unreadable input, after one line that says what was expected.

Reading order: what fields there are - what values mean - reading one frame - lines - frames out of a stream -
captures - the proxy - main. The proxy has a thread that accepts and two for each connection, which only move
bytes; only the main thread prints. They share nothing but a queue.
"""

import collections
import ipaddress
import itertools
import os
import queue
import re
import socket
import sys
import textwrap
import threading
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import capture  # noqa: E402  (beside this file)
import ending  # noqa: E402  (in lab/, by the path above)
import paste  # noqa: E402

CHUNK = 262_144        # bytes; the chunk size unless chosen otherwise
MAX_REQUEST = 65_536   # bytes of a request after its length [WF-5]
MAX_FRAME = 32 << 20   # bytes; a longer length is taken for a mistake: the largest chunk is half of that
ROW = 8                # bytes in a line: as many as the length takes
WIDTH = 110            # columns of a line
SHOWN = 8              # bytes shown of a chunk and of digests, unless more are asked for
FEW = 4 * ROW          # bytes; anything up to this is shown whole
HEAD, TAIL = 60, 12    # lines shown of a long dump: its beginning and its end
MAX_RUNS = 100_000     # kept of one frame; 16 MiB of tiny fields would take gigabytes
LONG = 60              # characters shown of a string
NOT_CAPTURED = " are not in the capture"
CONNECT_SECONDS = 5.0  # for the proxy's target to accept
WAITING = 1000         # pieces of traffic that wait to be printed; beyond that the proxy slows the traffic down


# ---------------------------------------------------------------------------------------------
# What fields there are: message -> number -> (name, type), as in messages.proto. A type with a capital is a message.


MESSAGES = {
    "Request": {1: ("join", "Join"), 2: ("active_proof", "ActiveProof"), 3: ("peer_list", "AskPeerList"),
                4: ("chunks_query", "AskChunksQuery"), 5: ("fetch_chunk", "FetchChunk")},
    "Join": {1: ("listening_addr", "address")},
    "ActiveProof": {1: ("listening_addr", "address"), 8: ("content_id", "sha256")},
    "AskPeerList": {},
    "AskChunksQuery": {8: ("known", "count"), 9: ("wait_ms", "milliseconds")},
    "FetchChunk": {1: ("chunk_id", "chunk_id"), 8: ("busy_ok", "bool")},
    "Response": {1: ("ok", "Ok"), 2: ("bad", "Bad"), 3: ("peer_list", "PeerList"), 4: ("chunks_query", "ChunksQuery"), 5: ("chunk", "chunk")},
    "Ok": {},
    "Bad": {8: ("code", "code"), 9: ("reason", "text"), 10: ("retry_ms", "milliseconds"), 11: ("instead", "chunk_ids")},
    "PeerList": {1: ("addresses", "address"), 8: ("file", "File"), 9: ("lease_ms", "milliseconds")},
    "ChunksQuery": {1: ("chunk_ids", "chunk_ids")},
    "File": {1: ("name", "text"), 2: ("size", "bytes"), 3: ("chunk_size", "bytes"), 4: ("digests", "digests")},
}
TITLES = {"join": "Join", "active_proof": "Active Proof", "peer_list": "Peer List", "chunks_query": "Chunks Query",
          "fetch_chunk": "Fetch Chunk", "ok": "Ok", "bad": "Bad", "chunk": "chunk"}
CODES = ["UNSPECIFIED", "NO_TYPE", "WRONG_ROLE", "BAD_ADDRESS", "NO_SUCH_CHUNK", "NOT_HELD", "BUSY", "FULL", "OTHER_FILE"]
EMPTY = {"PeerList": "a list of no peers", "ChunksQuery": "a list of no chunks", "chunk": "a chunk of no bytes", "address": "!! an ip:port is due"}
ABSENT = {"FetchChunk": ("chunk_id", "chunk_id is absent, so it is 0"), "AskChunksQuery": ("known", "known is absent, so it is 0"),
          "Bad": ("code", "no code"), "Join": ("listening_addr", "!! without listening_addr, where an ip:port is due"),
          "ActiveProof": ("listening_addr", "!! without listening_addr, where an ip:port is due")}
WIRE = {0: "varint", 1: "8 bytes", 2: "length follows", 5: "4 bytes"}


# ---------------------------------------------------------------------------------------------
# What values mean: type -> (wire type, a function of the value that returns a text, with "!! " in front if the value is wrong).


def quoted(text):
    """A string on one line, control characters escaped, cut when it is long."""
    shown = '"' + repr(text[:LONG])[1:-1].replace('"', '\\"').replace("\\'", "'") + '"'
    return shown if len(text) <= LONG else f"{shown} … {len(text) - LONG:,} more"


def text_of(data):
    """(the string that the bytes are, or None; a text about them)"""
    try:
        text = bytes(data).decode()
        return text, quoted(text)
    except UnicodeDecodeError as error:
        return None, f"!! not UTF-8: byte {error.start + 1} of {len(data)}, {data[error.start]:02x}, cannot stand there"


def is_address(text):
    """Whether it is ip:port or [ip]:port [JN-4]."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    try:
        return bool(match) and ipaddress.ip_address(match[1] or match[2]) is not None and 0 < int(match[3]) < 65_536
    except ValueError:
        return False


def address(data):
    text, shown = text_of(data)
    return shown if text is None or is_address(text) else f"!! {shown} is not ip:port with a port from 1 to 65535"


def chunk_id(value):
    if value % CHUNK:
        return f"{value:,} (no multiple of {CHUNK:,}, the usual chunk size)"
    return f"{value:,} = {value // CHUNK:,} × {CHUNK:,}" if value else "0: the first chunk"


def sha256(data):
    return f"SHA-256 {data[:4].hex()}…" if len(data) == 32 else f"!! {counted(len(data), 'byte')} where 32 are due"


def digests(data):
    if len(data) % 32:
        return f"!! {counted(len(data), 'byte')}: no multiple of 32, the size of a SHA-256"
    first = [f"{data[i:i + 4].hex()}…" for i in range(0, min(len(data), 96), 32)]
    return f"SHA-256 of {counted(len(data) // 32, 'chunk')}: {', '.join(first)}" + (", …" if len(data) > 96 else "")


def chunk(data):
    readable = len(data) <= LONG and data.isascii() and data.decode("ascii").isprintable()
    return "the chunk's bytes" + (f": {quoted(data.decode('ascii'))}" if readable else "")


def code(value):
    return f"{value} {CODES[value]}" if value < len(CODES) else f"{value:,}: a code that is not known, and a refusal like any other"


def counted(number, noun):
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


VALUES = {
    "address": (2, address),
    "text": (2, lambda data: text_of(data)[1]),
    "sha256": (2, sha256),
    "digests": (2, digests),
    "chunk": (2, chunk),
    "chunk_id": (0, chunk_id),
    "chunk_ids": (2, chunk_id),  # packed: varints, one after another
    "count": (0, lambda value: f"{value:,}"),
    "bytes": (0, lambda value: counted(value, "byte")),
    "milliseconds": (0, lambda value: f"{value:,} ms = {value / 1000:g} s"),
    "bool": (0, lambda value: "false" if value == 0 else "true" if value == 1 else f"true, sent as {value:,}"),
    "code": (0, code),
}


# ---------------------------------------------------------------------------------------------
# Reading one frame.


def varint(data, at, end):
    """(value, where it ends, what is wrong with it or ""): seven bits a byte, the lowest first."""
    value = 0
    for here in range(at, min(end, at + 10)):
        value |= (data[here] & 0x7f) << 7 * (here - at)
        if data[here] < 0x80:
            return value & (2**64 - 1), here + 1, "a varint of more than 64 bits" if value >= 2**64 else ""
    if end - at >= 10:
        return 0, end, "a varint that does not end within 10 bytes"
    return 0, end, "a varint cut short: its last byte says that more follow"


class Reading:
    """A decoded message: what its bytes mean, and how much of it is wrong."""

    def __init__(self, data, kind, cut=False):
        self.data = data
        self.kind = kind
        self.cut = cut    # the rest was not captured, so an early end is not a mistake
        self.runs = []    # (start, end, depth, text), in order and without a gap
        self.wrong = 0    # things that a parser or SPEC.md refuses
        self.odd = 0      # things to be skipped: an unknown field counts 1, one numbered below 8 counts 2
        self.values = {}  # "join.listening_addr" -> [value, ...]

    def say(self, start, end, depth, text):
        text = text.removeprefix("!! ") if self.cut and end == len(self.data) else text
        self.wrong += text.startswith("!! ")
        self.runs.append((start, end, depth, text))

    def enough(self, start, end, depth):
        """Whether so much has been said that the rest of the message is skipped."""
        if len(self.runs) >= MAX_RUNS:
            self.say(start, end, depth, "not read any further")
        return len(self.runs) > MAX_RUNS

    def amend(self, index, text):
        """Add to what was said about a run."""
        start, end, depth, before = self.runs[index]
        wrong = text.startswith("!! ") and not before.startswith("!! ")
        self.wrong += wrong
        self.runs[index] = (start, end, depth, "!! " * wrong + before + f": {text.removeprefix('!! ')}" * bool(text))

    def keep(self, path, value):
        self.values.setdefault(path, []).append(value)

    def top(self, start, end):
        """The message itself: a Request or a Response."""
        self.message(self.kind.capitalize(), "", start, end, 0)
        return self

    def message(self, name, path, start, end, depth):
        while start < end and not self.enough(start, end, depth):
            start = self.field(name, path, start, end, depth)

    def field(self, name, path, at, end, depth):
        """Read one field of a message that ends at `end`; return where the next one begins."""
        tag, after, problem = varint(self.data, at, end)
        number, wire = tag >> 3, tag & 7
        if not problem and wire not in WIRE:
            problem = f"wire type {wire}, which there is not: 0, 1, 2 and 5 are"
        elif not problem and not 0 < number < 2**29:
            problem = f"field number {number:,}, which there is not"
        if problem:
            self.say(at, end, depth, f"!! {problem}; from here on nothing can be told")
            return end
        field, type_ = MESSAGES[name].get(number, ("", ""))
        due = wire if not type_ or type_ == "chunk_ids" and wire == 0 else wire_type(type_)  # chunk_ids may be unpacked
        if due != wire:
            self.say(at, after, depth, f"!! field {number} {field}, wire type {wire} ({WIRE[wire]}), where {due} ({WIRE[due]}) is due")
            type_ = ""
        else:
            self.odd += 0 if type_ else 1 if number >= 8 else 2
            told = field + self.repetition(name, field) if type_ else f"{'(an extension) ' * (number >= 8)}not known, to be skipped"
            self.say(at, after, depth, f"field {number} {told}, wire type {wire} ({WIRE[wire]})")
        return self.value(type_, path + (field if type_ else f"?{number}"), wire, after, end, depth + 1)

    def repetition(self, name, field):
        """What to say about a second member of `type`: only the last one counts."""
        before = [known for known, _ in MESSAGES[name].values() if known in self.values] if name in ("Request", "Response") else []
        return f" ({before[0]} came before: the last one counts)" if before else ""

    def value(self, type_, path, wire, at, end, depth):
        """Read what follows a tag; return where it ends."""
        if at == end:
            start, stop, before, text = self.runs.pop()
            self.say(start, stop, before, f"!! {text.removeprefix('!! ')}; but the message ends here")
            return end
        if wire == 2:
            return self.with_length(type_, path, at, end, depth)
        if wire == 0:
            value, after, problem = varint(self.data, at, end)
            self.keep(path, value)
            self.say(at, after, depth, f"!! {problem}" if problem else VALUES[type_][1](value) if type_ else f"{value:,}")
            return after
        size = 8 if wire == 1 else 4
        after = min(end, at + size)
        self.say(at, after, depth, f"{size} bytes" if after == at + size else f"!! cut short: {after - at} of {size} bytes")
        return after

    def with_length(self, type_, path, at, end, depth):
        """Read a length and that many bytes: a message, a string, packed numbers. Return where they end."""
        size, start, problem = varint(self.data, at, end)
        if problem:
            self.say(at, end, depth, f"!! {problem}")
            return end
        after = min(end, start + size)
        self.keep(path, self.data[start:after])
        cut = self.cut and after == len(self.data) and start + size > end
        short = f"{'' if cut else '!! '}{counted(size, 'byte')}, but only {end - start:,} are left"
        self.say(at, start, depth, counted(size, "byte") if start + size <= end else short)
        here = len(self.runs) - 1
        if not size and type_ in EMPTY:
            self.amend(here, EMPTY[type_])
        if is_message(type_):
            self.message(type_, path + ".", start, after, depth + 1)
            field, text = ABSENT.get(type_, ("", ""))
            if f"{path}.{field}" not in self.values and not cut:
                self.amend(here, text)
        elif type_ == "chunk_ids":
            self.packed(path, start, after, depth + 1)
        elif start < after:
            self.say(start, after, depth + 1, "its beginning" if cut else VALUES[type_][1](self.data[start:after]) if type_ else "its bytes")
        return after

    def packed(self, path, at, end, depth):
        self.values[path].pop()
        while at < end and not self.enough(at, end, depth):
            value, after, problem = varint(self.data, at, end)
            self.say(at, after, depth, f"!! {problem}" if problem else chunk_id(value))
            self.keep(path, value)
            at = after


def wire_type(type_):
    return 2 if is_message(type_) else VALUES[type_][0]


def is_message(type_):
    return type_[:1].isupper()


def sound(data, kind, start):
    """Whether everything from `start` on is a message with a type, and nothing in it is wrong or unknown."""
    reading = Reading(data, kind).top(start, len(data))
    return bool(reading.values) and not reading.wrong and not reading.odd


def length_of(data, kind):
    """(bytes that the length takes, where the message ends, what to say about the length) [WF-1, WF-5]"""
    total, rest, said, little = len(data), len(data) - 8, int.from_bytes(data[:8], "big"), int.from_bytes(data[:8], "little")
    if said == rest and kind == "request" and said > MAX_REQUEST:
        return 8, total, f"!! length: {said:,} bytes, where a server takes {MAX_REQUEST:,} at the most and closes the connection"
    if said == rest:
        return 8, total, f"length: {counted(said, 'byte')} of message" + ("" if said else ", so it has no type; the answer to that is Bad NO_TYPE")
    if rest >= 0 and little == rest:
        return 8, total, f"!! little-endian? This length would be {said:,}; it has to be big-endian: {rest.to_bytes(8, 'big').hex(' ')}"
    if rest >= 0 and said == total:
        return 8, total, f"!! length: {said:,}, but {rest:,} follow: it counts its own 8 bytes, which it must not"
    for order in ("big", "little"):
        if total > 4 and int.from_bytes(data[:4], order) == total - 4 and sound(data, kind, 4):
            return 4, total, f"!! a length of 4 bytes{', little-endian' * (order == 'little')}? It must have 8, big-endian"
    if sound(data, kind, 0):
        return 0, total, "!! no length in front? A frame begins with 8 bytes of it"
    if rest < 0:
        return total, total, f"!! cut short: {total} of the 8 bytes of a length"
    if said > MAX_FRAME and little <= MAX_FRAME:
        return 8, total, f"!! little-endian? This length would be {said:,}; read the other way round it is {little:,}, and {rest:,} follow"
    if said > rest:
        return 8, total, f"!! length: {counted(said, 'byte')} of message, but only {rest:,} follow"
    return 8, 8 + said, f"length: {counted(said, 'byte')} of message"


def read(frame, kind, cut=False):
    """The Reading of a frame: the length, the message, and what follows it. `kind` is "request" or "response". `cut`: the rest was not
    captured."""
    reading = Reading(bytes(frame), kind, cut)
    size, end, text = length_of(reading.data, kind)
    if cut and int.from_bytes(frame[:8], "big") <= MAX_FRAME:
        text = text.removeprefix("!! ")
    if len(reading.data):
        reading.say(0, size, 0, text)
    reading.top(size, end)
    if end < len(frame):
        reading.say(end, len(frame), 0, f"!! {counted(len(frame) - end, 'byte')} more than the length says")
    return reading


def fields(frame, kind):
    """[(start, end, text)]: what each run of bytes of a whole frame means, 8 bytes of length and the message. `kind` is "request" or "response".

    The runs are in order and without a gap. The text of wrong bytes begins with "!! "; nothing raises.
    """
    return [(start, end, text) for start, end, _, text in read(frame, kind).runs]


def headline(frame, kind, cut=False):
    """A frame in a few words: "Fetch Chunk, chunk id 262,144"."""
    reading = read(frame, kind, cut)
    last = [name for name in reading.values if name in TITLES][-1:]
    if not last:
        return "no type that is known" if len(frame) >= 8 else "no whole frame"
    return TITLES[last[0]] + details(last[0], reading).replace("!! ", "") + (", and wrong bytes" if reading.wrong else "")


def details(type_, reading):
    """What is worth saying about a message of this type, besides its name."""
    def one(name, otherwise=0):
        return reading.values.get(f"{type_}.{name}", [otherwise])[-1]

    def many(name, noun):
        return " of " + counted(len(reading.values.get(f"{type_}.{name}", [])), noun)
    if type_ in ("join", "active_proof"):
        return f" {text_of(one('listening_addr', b''))[1]}"
    if type_ == "fetch_chunk":
        return f", chunk id {one('chunk_id'):,}" + ", busy_ok" * bool(one("busy_ok"))
    if type_ == "chunk":
        return f" of {counted(len(reading.values[type_][-1]), 'byte')}"
    if type_ == "bad":
        return f", {code(one('code'))}" + (f", {text_of(one('reason'))[1]}" if one("reason") else "")
    if reading.kind == "request":
        return f", {one('known'):,} known" if one("known") else ""
    if type_ == "peer_list":
        return many("addresses", "peer") + ", with the file" * bool(one("file"))
    return many("chunk_ids", "chunk") if type_ == "chunks_query" else ""


# ---------------------------------------------------------------------------------------------
# Lines.


def hex_rows(start, end, limit, mark):
    """[(start, end, shown)] of the rows of a run: bytes beyond the limit are left out, except for the row of the offset `mark`."""
    limit = end - start if end - start <= FEW else limit
    rows = set(range(start, min(end, start + limit), ROW))
    if mark is not None and start <= mark <= end and start < end:
        rows.add(start + (min(mark, end - 1) - start) // ROW * ROW)
    result, at = [], start
    for row in sorted(rows):
        result += [(at, row, False)] if at < row else []
        at = min(end, row + ROW)
        result.append((row, at, True))
    return result + ([(at, end, False)] if at < end else [])


def lines_of(run, data, limit, mark):
    """(start, end, line) of each line of one run: offset, hex, meaning. Lines without bytes start and end at the run's end."""
    start, end, depth, text = run
    column = 8 + 3 * ROW + 1 + 2 * min(depth, 6)
    meaning = textwrap.wrap(text, WIDTH - column, subsequent_indent="   " if text.startswith("!!") else "")
    rows = hex_rows(start, end, limit, mark)
    for row, words in itertools.zip_longest(rows, meaning, fillvalue=""):
        first, last, shown = row or (end, end, False)
        left = f"{first:6}  {data[first:last].hex(' ')}" if shown else f"{'':6}  … {last - first:,} more" if last > first else ""
        yield first, last, f"{left:{column}}{words}".rstrip()


def render(frame, kind, limit=SHOWN, mark=None, note="", cut=False):
    """The annotated hexdump, a list of lines: offset, at most 8 bytes of hex, what they mean.

    `limit` is how many bytes are shown of a chunk and of anything else longer than 32. A caret with the note stands under the byte
    at offset `mark`, which is never left out; it may be the offset at which the frame ends. `cut` as in read().
    """
    data = bytes(frame)
    lines = [line for run in read(data, kind, cut).runs for line in lines_of(run, data, limit, mark)]
    if mark is None:
        return folded([line for _, _, line in lines])
    with_bytes = [i for i, (start, end, _) in enumerate(lines) if start < end and start <= mark]
    here = with_bytes[-1] if with_bytes else -1
    start = lines[here][0] if lines else 0
    texts = [line for _, _, line in lines]
    texts.insert(here + 1, f"{' ' * (8 + 3 * (mark - start))}^ {note}".rstrip())
    return folded(texts, here + 1)


def folded(lines, here=0):
    """The first lines, the last ones and those around the line `here`; the lines between are counted."""
    keep = [i for i in range(len(lines)) if i < HEAD or i >= len(lines) - TAIL or abs(i - here) <= 3]
    result = []
    for before, i in zip([-1, *keep], keep):
        if i - before > 1:
            result.append(f"{'':6}  … {counted(i - before - 1, 'more line')}")
        result.append(lines[i])
    return result


def difference(expected, got, kind):
    """(offset of the first byte in which two frames differ, or None; lines with both dumps and a caret under it)."""
    expected, got = bytes(expected), bytes(got)
    if expected == got:
        return None, [f"the same {counted(len(got), 'byte')}", *render(got, kind)]
    offset = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
    lines = []
    for title, frame, other in (("expected", expected, got), ("got", got, expected)):
        here = f"{frame[offset]:02x}" if offset < len(frame) else "the end"
        there = f"{other[offset]:02x}" if offset < len(other) else "the end"
        note = f"offset {offset:,}: {here}, and {there} in what {'came' if title == 'expected' else 'was expected'}"
        lines += [f"{title}  {counted(len(frame), 'byte')}: {headline(frame, kind)}", *render(frame, kind, mark=offset, note=note)]
    return offset, lines


# ---------------------------------------------------------------------------------------------
# Frames out of a stream.


def kind_of(frame):
    """What a frame is, "request" or "response": whichever makes more sense of it, or a request if both do equally."""
    def senseless(kind):
        reading = read(frame, kind)
        return 2 * reading.wrong + reading.odd
    return min(("request", "response"), key=senseless)


def begins_frame(data):
    """Whether a frame seems to begin here: a possible length, followed by the tag of a member of `type`."""
    said = int.from_bytes(data[:8], "big")
    return len(data) >= 8 and said <= MAX_FRAME and (said == 0 or len(data) == 8 or data[8] in (0x0a, 0x12, 0x1a, 0x22, 0x2a))


class Cutter:
    """Cuts frames out of what one side sends, however it is split."""

    def __init__(self):
        self.buffer = bytearray()

    def feed(self, data):
        """The frames that are whole now. An impossible length is read in the other byte order; if that fails too, the frame ends with the bytes."""
        self.buffer += data
        frames = []
        while len(self.buffer) >= 8:
            size = int.from_bytes(self.buffer[:8], "big")
            if size > MAX_FRAME:
                size = int.from_bytes(self.buffer[:8], "little")
            size = len(self.buffer) if size > MAX_FRAME else 8 + size
            if len(self.buffer) < size:
                break
            frames.append(bytes(self.buffer[:size]))
            del self.buffer[:size]
        return frames

    def rest(self):
        """The bytes of a frame that will never be whole."""
        rest = bytes(self.buffer)
        self.buffer.clear()
        return rest


def shown_address(address):
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def shown_time(seconds):
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


class Talk:
    """What has been printed of one connection: which requests wait for an answer. `numbers` counts the requests of all connections."""

    def __init__(self, client, server, numbers):
        self.client, self.server = shown_address(client), shown_address(server)
        self.numbers = numbers
        self.waiting = collections.deque()  # (number, seconds)

    def line(self, seconds, arrow, text):
        text = f"{seconds:9.6f}  {self.client} {arrow} {self.server}  {text}"
        return textwrap.fill(text, WIDTH, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)

    def frame(self, seconds, kind, frame, note=""):
        """The lines that describe a frame."""
        if kind == "request":
            self.waiting.append((next(self.numbers), seconds))
            arrow, what = "→", f"request {self.waiting[-1][0]}"
        elif self.waiting:
            number, asked = self.waiting.popleft()
            arrow, what = "←", f"answer to {number} after {shown_time(seconds - asked)}"
        else:
            arrow, what = "←", "answer to a request that was not seen"
        cut = NOT_CAPTURED in note
        text = f"{what}, {counted(len(frame), 'byte')}: {headline(frame, kind, cut)}{note}"
        return [self.line(seconds, arrow, text), *render(frame, kind, cut=cut), ""]

    def unanswered(self):
        """What to say about the requests that still wait, or ""; then forget them."""
        numbers = [str(number) for number, _ in self.waiting]
        self.waiting.clear()
        return f"no answer to request {', '.join(numbers)}" if numbers else ""


# ---------------------------------------------------------------------------------------------
# Captures.


def frames_of(pieces, whole):
    """[(seconds, frame, note)] of one side of a connection; `pieces` as from Side.pieces, `whole` if its beginning was captured."""
    cutter, frames, lost, before = Cutter(), [], not whole, 0.0
    for seconds, missing, data in pieces:
        if missing:
            frames += rest_of(cutter, before, f"; then {counted(missing, 'byte')}{NOT_CAPTURED}")
            lost = True
        before = seconds
        if lost and not begins_frame(data):
            continue  # the middle of a frame whose beginning is missing
        lost = False
        frames += [(seconds, frame, "") for frame in cutter.feed(data)]
    return frames + rest_of(cutter, before, "; then nothing more came")


def rest_of(cutter, seconds, note):
    rest = cutter.rest()
    return [(seconds, rest, note)] if rest else []


def mistakes(frames, kind):
    """How little sense frames make as this kind: from 0.0 to 1.0. Frames that are not whole do not count; without any others it is 1.0."""
    readings = [read(frame, kind) for _, frame, note in frames if not note]
    return sum(min(1, reading.wrong + reading.odd / 2 + (not reading.values)) for reading in readings) / len(readings) if readings else 1.0


def oriented(connection, ports):
    """(client, requests, answers) of a connection; None if it is not one of ours. Requests and answers as from frames_of."""
    ends = {end: frames_of(side.pieces(), side.first is not None) for end, side in connection.sides.items()}
    first = sorted(ends, key=lambda end: (not ends[end], ends[end][0][0] if ends[end] else 0))  # the client speaks first
    clients = [connection.client] if connection.client else [end for end in first if connection.other(end)[1] in ports] or first

    def senseless(client):
        return mistakes(ends[client], "request"), mistakes(ends[connection.other(client)], "response")
    client = min(clients, key=lambda end: sum(senseless(end)))
    server = connection.other(client)
    # If one side makes sense, the other may be a program with a mistake.
    ours = {client[1], server[1]} & ports if ports else min(senseless(client)) < 0.5
    return (client, ends[client], ends[server]) if ours else None


def paired(requests, answers):
    """[(request or None, answer or None)]: answers come in the order of their requests, and after them [WF-3]."""
    waiting, pairs = collections.deque(requests), []
    for answer in answers:
        asked = waiting and waiting[0][0] <= answer[0]
        pairs.append((waiting.popleft() if asked else None, answer))
    return pairs + [(request, None) for request in waiting]


def connections_of(path):
    """What a capture holds, as from capture.connections; Wrong if it is not a capture."""
    try:
        return capture.connections(capture.packets(path))
    except capture.NotACapture as error:
        raise Wrong(f"{path}: {error}") from None
    except OSError as error:
        raise Wrong(f"{path}: expected a capture, got: {error.strerror}") from None


def explain_capture(path, ports):
    """Print each request of a capture with its answer, in the order of the requests. Wrong if it has none."""
    found, count, passed, cut = connections_of(path)
    numbers, exchanges, ours = itertools.count(1), [], 0
    for connection in found:
        client, requests, answers = oriented(connection, ports) or (None, [], [])
        if client:
            ours += 1
            talk = Talk(client, connection.other(client), numbers)
            exchanges += [((request or answer)[0], talk, request, answer) for request, answer in paired(requests, answers)]
    exchanges.sort(key=lambda exchange: exchange[0])
    for _, talk, request, answer in exchanges:
        print_exchange(talk, request, answer, exchanges[0][0])
    print(f"{counted(count, 'packet')}, {counted(len(found), 'TCP connection')}, {ours} of them with {counted(len(exchanges), 'exchange')}")
    for why, number in passed.items():
        print(f"{counted(number, 'packet')} not read: {why}")
    if cut:
        raise Wrong(f"{path}: {cut}")
    if not exchanges:
        raise Wrong(f"{path}: expected TCP connections that carry frames{' at these ports' * bool(ports)}, found none"
                    + "; --port N shows what passed at port N, whatever it is" * (not ports))


def print_exchange(talk, request, answer, began):
    for kind, told in (("request", request), ("response", answer)):
        if told:
            seconds, frame, note = told
            print("\n".join(talk.frame(seconds - began, kind, frame, note)))
    if talk.waiting:
        print(f"{'':11}{talk.unanswered()} in the capture\n")


# ---------------------------------------------------------------------------------------------
# The proxy.


class Proxy:
    """Passes bytes between every client and the target, and reports them: puts (seconds, Talk, side, bytes) into `passed`.

    A side is "request" or "response"; None instead of bytes means that this side has ended.
    """

    def __init__(self, listener, target):
        self.listener = listener
        self.target = target
        self.passed = queue.Queue(WAITING)
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()
        # guarded by lock:
        self.sockets = set()  # all that are open
        self.ended = False

    def accept(self):
        """Accept clients until the listener is closed."""
        while True:
            try:
                client, address = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client, address), daemon=True).start()

    def keep(self, sock):
        """Remember an open socket; if the proxy has stopped, hang up at once."""
        with self.lock:
            self.sockets.add(sock)
            ended = self.ended
        if ended:
            hang_up(sock)

    def serve(self, client, address):
        talk = Talk(address, self.target, self.numbers)
        self.keep(client)
        try:
            server = socket.create_connection(self.target, CONNECT_SECONDS)
        except OSError as error:
            self.passed.put((time.monotonic(), talk, "refused", f"{shown_address(self.target)} did not accept: {error.strerror or error}"))
            self.forget(client)
            return
        server.settimeout(None)
        self.keep(server)
        back = threading.Thread(target=self.move, args=(server, client, talk, "response"), daemon=True)
        back.start()
        self.move(client, server, talk, "request")
        back.join()
        self.forget(client, server)

    def move(self, source, to, talk, side):
        """Pass bytes on until they end; report before sending, so that no answer is reported before its request."""
        try:
            while data := source.recv(65_536):
                self.passed.put((time.monotonic(), talk, side, data))
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:  # one of them is gone, so end the connection for the other too
            hang_up(source)
            hang_up(to)
        self.passed.put((time.monotonic(), talk, side, None))

    def forget(self, *sockets):
        with self.lock:
            self.sockets -= set(sockets)
        for sock in sockets:
            sock.close()

    def stop(self):
        self.listener.close()
        with self.lock:
            self.ended = True
            sockets = list(self.sockets)
        for sock in sockets:
            hang_up(sock)


def hang_up(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def explain_traffic(proxy):
    """Print what passes, until Ctrl-C."""
    began = time.monotonic()
    cutters = collections.defaultdict(Cutter)
    open_sides = collections.Counter()
    while True:
        seconds, talk, side, data = proxy.passed.get()
        for line in told(talk, seconds - began, side, data, cutters, open_sides):
            print(line)
        sys.stdout.flush()


def told(talk, seconds, side, data, cutters, open_sides):
    """The lines for one item from the proxy's queue."""
    if side == "refused":
        return [talk.line(seconds, "✗", data), ""]
    if data is not None:
        return [line for frame in cutters[talk, side].feed(data) for line in talk.frame(seconds, side, frame)]
    rest = cutters.pop((talk, side), Cutter()).rest()
    lines = talk.frame(seconds, side, rest, "; then nothing more came") if rest else []
    open_sides[talk] += 1
    if open_sides[talk] == 2:
        del open_sides[talk]
        unanswered = talk.unanswered()
        lines += [talk.line(seconds, "–", "closed" + f"; {unanswered}" * bool(unanswered)), ""]
    return lines


def host_and_port(text, host=""):
    """("127.0.0.1", 8000) of "127.0.0.1:8000" or "[::1]:8000"; also of "8000" if a default `host` is given."""
    match = re.fullmatch(r"(?:\[([^]]+)\]:|([^:]+):)?(\d{1,5})", text)
    if not match or int(match[3]) > 65_535 or not (match[1] or match[2] or host):
        raise Wrong(f"expected {'PORT or ' if host else ''}HOST:PORT, got {text!r}")
    return match[1] or match[2] or host, int(match[3])


def run_proxy(listen, target):
    """Try the target once, then pass on until Ctrl-C."""
    (host, port), target = host_and_port(listen, "127.0.0.1"), host_and_port(target)
    try:
        socket.create_connection(target, CONNECT_SECONDS).close()
    except OSError as error:
        raise Wrong(f"expected a program that listens at {shown_address(target)}, got: {error.strerror or error}; start it first") from None
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise Wrong(f"expected a free port, cannot listen at {shown_address((host, port))}: {error.strerror or error}") from None
    proxy = Proxy(listener, target)
    acceptor = threading.Thread(target=proxy.accept, daemon=True)
    acceptor.start()
    print(f"what connects to {shown_address(listener.getsockname())} is passed on to {shown_address(target)}; Ctrl-C ends it\n", flush=True)
    try:
        explain_traffic(proxy)
    except KeyboardInterrupt:
        print(f"ended after {counted(next(proxy.numbers) - 1, 'request')}")
    finally:
        proxy.stop()


# ---------------------------------------------------------------------------------------------
# Main.


LEGEND = """A tag is field number × 8 + wire type: 2a (42) is 5 × 8 + 2. A varint has seven bits a byte, the lowest
first; a byte of 80 or more says that another one follows: 80 80 10 is 0 + 0 × 128 + 16 × 16,384 = 262,144."""


class Wrong(ending.Failure):
    """The input cannot be used: one line, exit code 2."""


def streams_of(text):
    """The bytes that a text means, a list; Wrong says where the typo is."""
    try:
        return paste.streams(text, are_frames)
    except paste.NoBytes as error:
        (why,) = error.args
        if isinstance(why, int):
            raise Wrong(f"expected two hex digits for each byte, got an odd number of them: {why}") from None
        raise Wrong(f"expected hex digits, {why}{quoted(text)}") from None


def split_frames(data):
    """The frames that follow one another in these bytes; a rest that is not a whole frame stays with the last one."""
    frames = []
    while 8 + int.from_bytes(data[:8], "big") < len(data) and begins_frame(data[8 + int.from_bytes(data[:8], "big"):]):
        size = 8 + int.from_bytes(data[:8], "big")
        frames.append(data[:size])
        data = data[size:]
    return [*frames, data]


def are_frames(data):
    """Whether these bytes are whole frames."""
    last = split_frames(data)[-1]
    return begins_frame(last) and len(last) == 8 + int.from_bytes(last[:8], "big")


def unpacked(data):
    """The payload of a whole TCP packet, if a frame begins in it; the bytes themselves otherwise."""
    for link in () if are_frames(data) else (1, 101, 113, 276, 0):
        payload = capture.payload_of(link, data)
        if begins_frame(payload):
            print(f"a packet of {counted(len(data), 'byte')}; behind its headers, {len(data) - len(payload)} of them:")
            return payload
    return data


def explain_text(text, kind):
    for data in map(unpacked, streams_of(text)):
        for frame in split_frames(data):
            told = kind or kind_of(frame)
            print(f"{told}, {counted(len(frame), 'byte')}: {headline(frame, told)}", *render(frame, told), "", sep="\n")
    print(LEGEND)


def parse_arguments():
    parser = ending.Arguments(prog="explain.py", description="Explains the bytes of requests and answers: of hex digits, of a capture, or live.")
    parser.add_argument("what", nargs="*", metavar="HEX | FILE", help="hex digits of frames, or a copied dump or string; - for stdin; or a pcap or pcapng file")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--request", action="store_const", const="request", dest="kind", help="the hex digits are a request, whatever they look like")
    kind.add_argument("--response", action="store_const", const="response", dest="kind", help="the hex digits are an answer")
    parser.add_argument("--port", type=int, action="append", default=[], help="of a capture: all traffic of this port, whatever it is")
    parser.add_argument("--proxy", nargs=2, metavar=("PORT", "TARGET:PORT"), help="listen at PORT, pass everything on to TARGET, and show it")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if bool(arguments.what) == bool(arguments.proxy):
        raise Wrong("expected hex digits, or a capture, or --proxy PORT TARGET:PORT")
    text = " ".join(arguments.what)
    if arguments.proxy:
        run_proxy(*arguments.proxy)
    elif text == "-":
        explain_text(sys.stdin.buffer.read().decode(errors="replace") if sys.stdin else "", arguments.kind)
    elif os.path.exists(text) or re.fullmatch(r"\S*([/.]|cap$)\S*", text) and not re.search(r"[\"'\\]|[0-9a-f]{2}:", text):
        explain_capture(text, set(arguments.port))
    else:
        explain_text(text, arguments.kind)


if __name__ == "__main__":
    ending.run(main)
