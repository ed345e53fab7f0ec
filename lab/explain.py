#!/usr/bin/env python3
"""What the bytes mean: requests and answers as an annotated hexdump, wrong ones too.

    python lab/explain.py 0000000000000002 2a00      hex; spaces, colons and 0x may be in it
    python lab/explain.py --response 00000000000000020a00

Messages are read here by hand, byte after byte, and not by protobuf: so a message that no parser
would take can be shown up to the byte that is wrong, and behind it. Nothing that is read raises.
Lines that begin with `!!` are mistakes. For other programs: fields, headline, render, difference.

Reading order: what fields there are - what values mean - reading one frame - lines - main.
"""

import argparse
import ipaddress
import itertools
import re
import sys
import textwrap

CHUNK = 262_144        # bytes; the chunk size unless chosen otherwise
MAX_REQUEST = 65_536   # bytes of a request after its length [WF-5]
ROW = 8                # bytes a line: as many as the length has
WIDTH = 110            # columns of a line
SHOWN = 8              # bytes shown of a chunk and of digests, unless more are asked for
HEAD, TAIL = 60, 12    # lines shown of a long dump: its beginning and its end
LONG = 60              # characters shown of a string


# ---------------------------------------------------------------------------------------------
# What fields there are: message -> number -> (name, type), as in messages.proto. A type with a capital is a message.


MESSAGES = {
    "Request": {1: ("join", "Join"), 2: ("active_proof", "ActiveProof"), 3: ("peer_list", "AskPeerList"),
                4: ("chunks_query", "AskChunksQuery"), 5: ("fetch_chunk", "FetchChunk")},
    "Join": {1: ("listening_addr", "address")},
    "ActiveProof": {1: ("listening_addr", "address"), 8: ("content_id", "sha256")},
    "AskPeerList": {},
    "AskChunksQuery": {8: ("known", "count")},
    "FetchChunk": {1: ("chunk_id", "chunk_id"), 8: ("busy_ok", "bool")},
    "Response": {1: ("ok", "Ok"), 2: ("bad", "Bad"), 3: ("peer_list", "PeerList"), 4: ("chunks_query", "ChunksQuery"), 5: ("chunk", "chunk")},
    "Ok": {},
    "Bad": {8: ("code", "code"), 9: ("reason", "text")},
    "PeerList": {1: ("addresses", "address"), 8: ("file", "File"), 9: ("lease_ms", "lease")},
    "ChunksQuery": {1: ("chunk_ids", "chunk_ids")},
    "File": {1: ("name", "text"), 2: ("size", "bytes"), 3: ("chunk_size", "bytes"), 4: ("digests", "digests")},
}
TITLES = {"join": "Join", "active_proof": "Active Proof", "peer_list": "Peer List", "chunks_query": "Chunks Query",
          "fetch_chunk": "Fetch Chunk", "ok": "Ok", "bad": "Bad", "chunk": "chunk"}
CODES = ["UNSPECIFIED", "NO_TYPE", "WRONG_ROLE", "BAD_ADDRESS", "NO_SUCH_CHUNK", "NOT_HELD", "BUSY", "FULL", "OTHER_FILE"]
EMPTY = {"FetchChunk": "chunk_id is absent, so it is 0", "AskChunksQuery": "known is absent, so it is 0", "PeerList": "a list of no peers",
         "ChunksQuery": "a list of no chunks", "chunk": "a chunk of no bytes", "Bad": "no code, no reason",
         "Join": "!! listening_addr is absent, so it is no ip:port", "ActiveProof": "!! listening_addr is absent, so it is no ip:port"}
WIRE = {0: "varint", 1: "8 bytes", 2: "length follows", 5: "4 bytes"}


# ---------------------------------------------------------------------------------------------
# What values mean: type -> (wire type, a function of the value). It returns a text, which begins with "!! " if the value is wrong.


def quoted(text):
    """A string on one line, control characters escaped, cut when it is long."""
    shown = '"' + repr(text[:LONG])[1:-1].replace('"', '\\"').replace("\\'", "'") + '"'
    return shown if len(text) <= LONG else f"{shown} … {len(text) - LONG:,} more"


def text_of(data):
    """(the string that the bytes are, or None; a text on them)"""
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
        return f"{value:,}: no multiple of {CHUNK:,}, so no chunk of a file with chunks of that size"
    return f"{value:,}" + (f" = {value // CHUNK:,} × {CHUNK:,}" if value else ": the first chunk")


def sha256(data):
    return f"SHA-256 {data[:4].hex()}…" if len(data) == 32 else f"!! {len(data)} bytes where 32 are due"


def digests(data):
    if len(data) % 32:
        return f"!! {len(data):,} bytes: no multiple of 32, which a SHA-256 has"
    return f"SHA-256 of {counted(len(data) // 32, 'chunk')}: " + ", ".join(f"{data[i:i + 4].hex()}…" for i in range(0, min(len(data), 96), 32)) + \
        (", …" if len(data) > 96 else "")


def counted(number, noun):
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


VALUES = {
    "address": (2, address),
    "text": (2, lambda data: text_of(data)[1]),
    "sha256": (2, sha256),
    "digests": (2, digests),
    "chunk": (2, lambda data: "the chunk's bytes" + (f": {quoted(data.decode('ascii'))}" if len(data) <= LONG and data.isascii() and data.decode("ascii").isprintable() else "")),
    "chunk_id": (0, chunk_id),
    "chunk_ids": (2, chunk_id),  # packed: varints, one after another
    "count": (0, lambda value: f"{value:,}"),
    "bytes": (0, lambda value: counted(value, "byte")),
    "lease": (0, lambda value: f"{value:,} ms = {value / 1000:g} s"),
    "bool": (0, lambda value: "false" if value == 0 else "true" if value == 1 else f"true, sent as {value:,}"),
    "code": (0, lambda value: f"{value} {CODES[value]}" if value < len(CODES) else f"{value:,}: a code that is not known, a refusal all the same"),
}


# ---------------------------------------------------------------------------------------------
# Reading one frame.


def varint(data, at, end):
    """(value, where it ends, what is wrong with it or ""): seven bits a byte, the lowest first."""
    value = shift = 0
    for here in range(at, min(end, at + 10)):
        value |= (data[here] & 0x7f) << shift
        shift += 7
        if data[here] < 0x80:
            return value & (2**64 - 1), here + 1, "a varint of more than 64 bits" if value >= 2**64 else ""
    if end - at >= 10:
        return 0, at + 10, "a varint that does not end within 10 bytes"
    return 0, end, "a varint cut short: its last byte says that more follow"


class Reading:
    """One frame, read: `runs` of (start, end, depth, text), in order and without a gap; how many things are wrong or odd; the values by path."""

    def __init__(self, data, kind):
        self.data = data
        self.kind = "Response" if kind.lower() == "response" else "Request"
        self.runs = []
        self.wrong = 0    # things that a parser or the SPEC refuses
        self.odd = 0      # things to be ignored, such as unknown fields
        self.values = {}  # "join.listening_addr" -> [value, ...]

    def say(self, start, end, depth, text):
        self.wrong += text.startswith("!! ")
        self.runs.append((start, end, depth, text))

    def frame(self):
        """The length, the message, and what is behind it."""
        size, end, text = self.length()
        if size:
            self.say(0, size, 0, text)
        elif text:
            self.wrong += 1
        if end == size and size == 8 and not self.data[8:]:
            self.runs[-1] = (0, 8, 0, text + ("" if text.startswith("!!") else " – a message without a type, to be answered Bad NO_TYPE"))
        self.message(self.kind, "", size, end, 0)
        if not size and text and self.runs:
            start, stop, depth, first = self.runs[0]
            self.runs[0] = (start, stop, depth, f"{text} {first}")
        if end < len(self.data):
            self.say(end, len(self.data), 0, f"!! {counted(len(self.data) - end, 'byte')} beyond the length")

    def length(self):
        """(bytes that the length takes, where the message ends, what to say of the length) [WF-1]"""
        data, total = self.data, len(self.data)
        said, rest = int.from_bytes(data[:8], "big"), total - 8
        if rest >= 0 and said == rest:
            over = self.kind == "Request" and said > MAX_REQUEST
            return 8, total, f"!! length: {said:,} bytes, more than the {MAX_REQUEST:,} that a server takes" if over else f"length: {counted(said, 'byte')} of message"
        if rest >= 0 and int.from_bytes(data[:8], "little") == rest:
            return 8, total, f"!! little-endian? Read big-endian, this length would be {said:,}"
        if rest >= 0 and said == total:
            return 8, total, f"!! length: {said:,}, but {rest:,} follow. It counts its own 8 bytes, which it must not"
        for order in ("big", "little"):
            if total >= 4 and int.from_bytes(data[:4], order) == total - 4 and not self.sound(4, total - 4):
                return 4, total, f"!! a length of 4 bytes{', little-endian' if order == 'little' else ''}? It has 8, big-endian"
        if total and not self.sound(0, total):
            return 0, total, "!! no length in front? 8 bytes of it are due. As a message:"
        if rest < 0:
            return total, total, f"!! cut short: {total} of the length's 8 bytes"
        return self.other_length(said, rest)

    def sound(self, start, size):
        """How many things are wrong with these bytes as a message; without a type, one more."""
        inner = Reading(self.data, self.kind)
        inner.message(self.kind, "", start, start + size, 0)
        return inner.wrong + inner.odd + (not inner.values)

    def other_length(self, said, rest):
        little = int.from_bytes(self.data[:8], "little")
        if said >= 2**32:
            guess = f"little-endian, it would be {little:,}, and {rest:,} follow" if little < 2**32 else f"{rest:,} follow"
            return 8, len(self.data), f"!! little-endian? This length would be {said:,}; {guess}" if little < 2**32 else f"!! length: {said:,}, but {guess}"
        if said > rest:
            return 8, len(self.data), f"!! length: {counted(said, 'byte')}, but {rest:,} follow; {said - rest:,} are missing"
        return 8, 8 + said, f"length: {counted(said, 'byte')} of message"

    def message(self, name, path, start, end, depth):
        at = start
        while at < end:
            at = self.field(name, path, at, end, depth)

    def field(self, name, path, at, end, depth):
        """One field of a message that ends at `end`; where the next one begins."""
        tag, after, problem = varint(self.data, at, end)
        number, wire = tag >> 3, tag & 7
        if problem or not 0 < number < 2**29 or wire not in WIRE:
            problem = problem or (f"wire type {wire}, which there is not: 0, 1, 2 and 5 are" if wire not in WIRE else f"field number {number:,}, which there is not")
            self.say(at, end, depth, f"!! {problem}; what follows cannot be told")
            return end
        field, type_ = MESSAGES[name].get(number, ("", ""))
        due = 2 if type_[:1].isupper() else VALUES[type_][0] if type_ else wire
        unpacked = type_ == "chunk_ids" and wire == 0
        if due != wire and not unpacked:
            self.say(at, after, depth, f"!! field {number} {field}, wire type {wire} ({WIRE[wire]}), where wire type {due} ({WIRE[due]}) is due")
            type_ = ""
        elif not type_:
            self.odd += 1
            self.say(at, after, depth, f"field {number}, not known and to be ignored; wire type {wire} ({WIRE[wire]})")
        else:
            self.say(at, after, depth, f"field {number} {field}, wire type {wire} ({WIRE[wire]})" + self.repetition(name, path, field))
        return self.value(type_, path + field, wire, after, end, depth + 1)

    def repetition(self, name, path, field):
        """What to say of a second member of `type`: only the last one counts."""
        before = [known for known, _ in MESSAGES[name].values() if known in self.values] if name in ("Request", "Response") else []
        self.odd += bool(before)
        return f"; {before[0]} came before, the last one counts" if before else ""

    def value(self, type_, path, wire, at, end, depth):
        """What follows a tag; where it ends."""
        if wire == 0:
            value, after, problem = varint(self.data, at, end)
            if at == end:
                problem = "the message ends before the value"
                self.runs[-1] = (*self.runs[-1][:3], f"!! {self.runs[-1][3]}: {problem}")
                self.wrong += 1
                return end
            self.keep(path, value)
            self.say(at, after, depth, f"!! {problem}" if problem else VALUES[type_][1](value) if type_ else f"{value:,}")
            return after
        if wire == 2:
            return self.with_length(type_, path, at, end, depth)
        size = WIRE[wire][0]
        after = min(end, at + int(size))
        self.say(at, after, depth, f"{size} bytes" if after == at + int(size) else f"!! cut short: {after - at} of {size} bytes")
        return after

    def with_length(self, type_, path, at, end, depth):
        """A length, then so many bytes: a message, a string, packed numbers; where they end."""
        size, start, problem = varint(self.data, at, end)
        after = min(end, start + size)
        if problem or at == end:
            self.say(at, end, depth, f"!! {problem if at < end else 'the message ends before the length'}")
            return end
        self.keep(path, self.data[start:after])
        empty = EMPTY.get(type_, "") if not size else ""
        text = f"{counted(size, 'byte')}: {empty}" if empty else counted(size, "byte")
        self.say(at, start, depth, f"!! {text.replace('!! ', '')}" if "!! " in text else text if start + size <= end else f"!! {counted(size, 'byte')}, but only {end - start:,} are left")
        if type_[:1].isupper():
            self.message(type_, path + ".", start, after, depth + 1)
        elif type_ == "chunk_ids":
            self.packed(path, start, after, depth + 1)
        elif start < after:
            self.say(start, after, depth + 1, VALUES[type_][1](self.data[start:after]) if type_ else "bytes")
        return after

    def packed(self, path, at, end, depth):
        self.values[path] = []
        while at < end:
            value, after, problem = varint(self.data, at, end)
            self.say(at, after, depth, f"!! {problem}" if problem else chunk_id(value))
            self.keep(path, value)
            at = after

    def keep(self, path, value):
        self.values.setdefault(path, []).append(value)


def read(frame, kind):
    """The Reading of a whole frame; `kind` is "request" or "response"."""
    reading = Reading(bytes(frame), kind)
    reading.frame()
    return reading


def fields(frame, kind):
    """[(start, end, text)]: what each run of bytes of a whole frame means, 8 bytes of length and the message. `kind` is "request" or "response".

    The runs are in order and without a gap. Bytes that are wrong are said to be, after "!! "; nothing raises.
    """
    return [(start, end, text) for start, end, _, text in read(frame, kind).runs]


def headline(frame, kind):
    """A frame in a few words: "Fetch Chunk, chunk id 262,144"."""
    reading = read(frame, kind)
    last = [name for name in reading.values if name in TITLES][-1:]
    if not last:
        return "no type" if not reading.wrong else "nothing that can be read"
    return TITLES[last[0]] + details(last[0], reading.values) + (", and wrong bytes" if reading.wrong else "")


def details(type_, values):
    """What is worth telling of a message of this type, beside its name."""
    def one(name, otherwise=0):
        return values.get(f"{type_}.{name}", [otherwise])[-1]
    if type_ == "fetch_chunk":
        return f", chunk id {one('chunk_id'):,}" + (", busy_ok" if one("busy_ok") else "")
    if type_ in ("join", "active_proof"):
        return f" {text_of(one('listening_addr', b''))[1]}"
    if type_ == "chunk":
        return f" of {counted(len(values[type_][-1]), 'byte')}"
    if type_ == "bad":
        code = one("code")
        return f", {CODES[code] if code < len(CODES) else code}" + (f": {text_of(one('reason', b''))[1]}" if one("reason") else "")
    if type_ == "chunks_query":
        ids = values.get("chunks_query.chunk_ids")
        return f" of {counted(len(ids), 'chunk')}" if ids else f", {one('known'):,} known" if one("known") else ""
    if type_ == "peer_list" and len(values) > 1:
        return f" of {counted(len(values.get('peer_list.addresses', [])), 'peer')}" + (", with the file" if one("file", b"") else "")
    return ""


# ---------------------------------------------------------------------------------------------
# Lines.


def hex_rows(run, limit, mark):
    """[(start, end)] of the rows of a run, and (start, end, None) where bytes are left out. The row of `mark` is never left out."""
    start, end, _, text = run
    if end - start <= 4 * ROW or "bytes" not in text and "SHA" not in text and not text.startswith("!!"):
        return [(at, min(end, at + ROW), True) for at in range(start, end, ROW)]
    shown = {start + at for at in range(0, limit, ROW)}
    if mark is not None and start <= mark <= end:
        mark = min(mark, end - 1)
        shown.add(mark - (mark - start) % ROW)
    rows, at = [], start
    for row in sorted(at for at in shown if at < end):
        if at < row:
            rows.append((at, row, False))
        rows.append((row, min(end, row + ROW), True))
        at = min(end, row + ROW)
    return rows + ([(at, end, False)] if at < end else [])


def lines_of(run, data, limit, mark):
    """[(start, end, line)] of one run: offset, hex, meaning."""
    _, _, depth, text = run
    column = 8 + 3 * ROW + 1 + 2 * min(depth, 6)
    meaning = textwrap.wrap(text, WIDTH - column, subsequent_indent="   " if text.startswith("!!") else "") or [""]
    for row, words in itertools.zip_longest(hex_rows(run, limit, mark), meaning, fillvalue=""):
        start, end, shown = row or (run[1], run[1], True)
        left = f"{start:6}  {data[start:end].hex(' ')}" if end > start and shown else f"{'':6}  … {end - start:,} more" if end > start else ""
        yield start, end, f"{left:{column}}{words}".rstrip()


def render(frame, kind, limit=SHOWN, mark=None, note=""):
    """The annotated hexdump, a list of lines: offset, at most 8 bytes of hex, what they mean.

    `limit` is how many bytes are shown of a chunk and of digests. Under the byte at offset `mark`, which is never left out, comes a
    caret with the note; it may be the offset at which the frame ends.
    """
    data = bytes(frame)
    lines = [line for run in read(data, kind).runs for line in lines_of(run, data, limit, mark)]
    here = None
    if mark is not None:
        here = next((i for i, (start, end, _) in enumerate(lines) if start <= mark < end), None)
        if here is None:  # the frame ends there
            here = max((i for i, (start, end, _) in enumerate(lines) if start < end), default=-1)
        start = lines[here][0] if lines else 0
        caret = (mark, mark, f"{' ' * (8 + 3 * (mark - start))}^ {note}".rstrip())
        lines.insert(here + 1, caret)
        here += 1
    return folded([line for _, _, line in lines], here)


def folded(lines, here):
    """The first lines, the last ones and those about the line `here`; what is between is counted."""
    keep = [i for i in range(len(lines)) if i < HEAD or i >= len(lines) - TAIL or here is not None and abs(i - here) <= 3]
    result = []
    for before, i in zip([-1, *keep], keep):
        if i - before > 1:
            result.append(f"{'':6}  … {i - before - 1:,} more lines")
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
# Main.


def kind_of(frame):
    """What a frame is, "request" or "response", and whether its bytes tell: by which of the two it makes more sense."""
    worth = {kind: (reading.wrong, reading.odd) for kind in ("request", "response") for reading in [read(frame, kind)]}
    best = min(worth, key=lambda kind: worth[kind])
    return best, worth["request"] != worth["response"]


def main():
    parser = argparse.ArgumentParser(description="Explain the bytes of requests and answers.")
    parser.add_argument("what", nargs="+")
    parser.add_argument("--response", action="store_true")
    arguments = parser.parse_args()
    frame = bytes.fromhex("".join(arguments.what))
    kind = "response" if arguments.response else kind_of(frame)[0]
    print(f"{kind}, {counted(len(frame), 'byte')}: {headline(frame, kind)}\n")
    print("\n".join(render(frame, kind)))


if __name__ == "__main__":
    main()
