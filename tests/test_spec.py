"""The page, the tests, messages.proto, messages_pb2.py and the constants say the same.

Nothing is run here: the page (lab/SPEC.md) is read, and the tests are read with ast (pages.py). Reading order: clauses - bytes - messages - constants.
"""

import hashlib
import pathlib
import re
import struct

import pytest
from google.protobuf.descriptor import FieldDescriptor

import messages_pb2 as pb
import peer
import tracker
from harness import ROOT, active_proof, chunks_query, content_id, describe, fetch_chunk, framed, join, peer_list
from pages import CLAUSES, SPEC, all_tests, marks, functions_of

PROTO = pathlib.Path(ROOT, "messages.proto").read_text()


# Clauses. Each has a test, and each test has a clause.


def test_the_numbers_of_the_clauses_are_unique_and_without_a_gap():
    numbers = re.findall(r"^\*\*([A-Z]+)-(\d+)\*\*", SPEC, re.M)
    for family in dict(numbers):
        assert [int(n) for name, n in numbers if name == family] == list(range(1, len([1 for name, _ in numbers if name == family]) + 1)), family
    assert len(numbers) == len(CLAUSES) > 70


def test_every_clause_says_must():
    assert not [clause for clause, text in CLAUSES.items() if "MUST" not in text]


def test_every_clause_is_named_by_a_test():
    named = {clause for _, function in all_tests() for name, values in marks(function) if name == "spec" for clause in values}
    assert not sorted(set(CLAUSES) - named)


def test_every_mark_names_a_clause_that_there_is():
    wrong = [(file, function.name, clause) for file, function in all_tests()
             for name, values in marks(function) if name == "spec" for clause in values if clause not in CLAUSES]
    assert not wrong


def test_every_conformance_test_names_its_clauses_or_its_fault():
    unmarked = [(file, function.name) for file, function in all_tests("test_[0-7]_*.py") + all_tests("test_command_line.py") if not marks(function)]
    assert not unmarked


def test_every_clause_that_the_programs_name_is_one():
    for path in ("peer.py", "tracker.py", "messages.proto"):
        named = re.findall(r"\b([A-Z]{2}-\d+)\b", pathlib.Path(ROOT, path).read_text())
        assert not sorted(set(named) - set(CLAUSES) - {"UTF-8"}), path


def test_the_marks_of_a_test_are_read_as_they_are_written():
    source = '@pytest.mark.spec("WF-1", "WF-2")\n@pytest.mark.fault(4)\ndef test_a(): pass\nclass C:\n    def test_b(self): pass\ndef helper(): pass'
    assert [(function.name, marks(function)) for function in functions_of(source)] == [("test_a", [("spec", ["WF-1", "WF-2"]), ("fault", [4])]), ("test_b", [])]


# Bytes. The examples of the page have two forms in its indented blocks: `label   hex`, and a label
# alone with the hex on the lines below. `..` and `…` stand for bytes that are not shown.


HEX = r"(?:[0-9a-f]{2}|\.\.|…)"
ADDRESS = "127.0.0.1:5000"

EXAMPLES = {
    "Request, no type": pb.Request(),
    "Response": pb.Response(bad=pb.Response.Bad(code=pb.NO_TYPE, reason="for people")),
    'Join "127.0.0.1:5000"': join(ADDRESS),
    'PeerList of one, lease 10 s, and the file of 3 bytes "abc" named "a"':
        pb.Response(peer_list=pb.Response.PeerList(addresses=[ADDRESS], file=describe(b"abc", name="a"), lease_ms=10_000)),
    'ActiveProof "127.0.0.1:5000"': active_proof(ADDRESS),
    "Ok": pb.Response(ok=pb.Response.Ok()),
    "PeerList": peer_list(),
    "PeerList of one": pb.Response(peer_list=pb.Response.PeerList(addresses=[ADDRESS])),
    "ChunksQuery": chunks_query(),
    "ChunksQuery, two ids known": chunks_query(2),
    "ChunksQuery: 0, 262144, 524288": pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[0, 262144, 524288])),
    "FetchChunk 0": fetch_chunk(0),
    "FetchChunk 262144": fetch_chunk(262144),
    "FetchChunk 0, busy_ok": fetch_chunk(0, busy_ok=True),
    'the chunk "abc"': pb.Response(chunk=b"abc"),
    'Bad, code NOT_HELD, reason "x"': pb.Response(bad=pb.Response.Bad(code=pb.NOT_HELD, reason="x")),
}


def examples(page):
    """[(label, hex)] of all frames that the page shows."""
    found = []
    for line in page.splitlines():
        indented = re.fullmatch(r"    +(\S.*)", line)
        if not indented or indented[1].startswith("^") or "sha256" in line:
            continue
        parts = re.fullmatch(rf"(.*?)(?:^|  +)({HEX}(?: {HEX})*(?: \|(?: {HEX})*)?)", indented[1])
        if parts is None:
            found.append((indented[1].strip(), ""))
        elif parts[1].strip():
            found.append((parts[1].strip(), parts[2]))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]} {parts[2]}")
    return [(label, digits.strip()) for label, digits in found if digits]


def pattern(digits):
    """The pattern that the bytes of an example must match."""
    words = digits.replace("|", " ").split()
    return re.compile(b"".join(b".+" if word in ("..", "…") else re.escape(bytes.fromhex(word)) for word in words), re.DOTALL)


def test_the_page_shows_the_examples_that_are_compared_and_no_others():
    assert sorted(label for label, _ in examples(SPEC)) == sorted(EXAMPLES)


@pytest.mark.parametrize("label, digits", examples(SPEC))
def test_the_bytes_of_an_example_are_those_of_the_message(label, digits):
    frame = framed(EXAMPLES[label])
    if not re.search(r"\.\.|…", digits):
        assert bytes.fromhex(digits.replace("|", " ")) == frame
    assert pattern(digits).fullmatch(frame), f"{digits}\nis not\n{frame.hex(' ')}"


@pytest.mark.parametrize("old, new", [("2a 04 08 80 80 10", "2a 04 08 80 80 11"), ("00 05 | 2a 03 61", "00 0d | 2a 03 61"), ("42 2b 0a", "42 2c 0a")])
def test_a_wrong_byte_on_the_page_would_be_found(old, new):
    assert old in SPEC
    assert any(not pattern(digits).fullmatch(framed(EXAMPLES[label])) for label, digits in examples(SPEC.replace(old, new)))


def test_the_example_of_the_content_id():
    file = describe(b"abc", name="a")
    hashed, digest = re.search(r"sha256\(([^)]*)\)\s*= ([0-9a-f]{64})", SPEC).groups()
    assert pattern(hashed).fullmatch(struct.pack("!QQ", 3, 262_144) + hashlib.sha256(b"abc").digest())
    assert digest == content_id(file).hex() == peer.Description.from_message(file).content_id.hex()


def test_the_table_of_requests_and_answers_has_the_numbers_of_the_messages():
    fields = re.findall(r"^ +(\w+) +(\d+)  → \w+ +(\w+) +(\d+)  to ", SPEC, re.M)
    assert {(name, int(number)) for name, number, _, _ in fields} == {(f.name, f.number) for f in pb.Request.DESCRIPTOR.oneofs[0].fields}
    assert {(name, int(number)) for _, _, name, number in fields} == {(f.name, f.number) for f in pb.Response.DESCRIPTOR.oneofs[0].fields}


def test_every_code_that_the_page_names_is_one():
    named = set(re.findall(r"code `([A-Z_]+)`", SPEC))
    assert named and named <= set(pb.Code.keys())


# Messages. A parser for the part of proto3 that messages.proto uses; it refuses anything else.


SCALARS = {"string", "bytes", "bool", "uint32", "uint64"}
TYPE_NAMES = {getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name for name in SCALARS}


class Proto:
    """messages.proto as facts: one tuple for the package, each message, each field, each enum value."""

    def __init__(self, text):
        text = re.sub(r"//[^\n]*", "", text)
        self.tokens = re.findall(r'[\w.]+|"[^"]*"|[^\s\w]', text)
        self.facts = set()
        self.package = ""
        self.fields = []  # (message, oneof, repeated, type, name, number), until all types are known
        while self.tokens:
            self.statement()
        for field in self.fields:
            self.facts.add(("field", *self.resolved(*field)))

    def take(self, *expected):
        """The next token, which must be one of `expected`, if there are any."""
        token = self.tokens.pop(0)
        assert not expected or token in expected, f"expected {' or '.join(expected)}, got {token}"
        return token

    def statement(self):
        word = self.take("syntax", "package", "message", "enum")
        if word == "syntax":
            self.take("=")
            self.facts.add(("syntax", self.take().strip('"')))
            self.take(";")
        elif word == "package":
            self.package = self.take()
            self.facts.add(("package", self.package))
            self.take(";")
        else:
            getattr(self, word)(self.package)

    def message(self, scope):
        name = f"{scope}.{self.take()}"
        self.facts.add(("message", name))
        self.take("{")
        while (word := self.take()) != "}":
            if word == "message":
                self.message(name)
            elif word == "enum":
                self.enum(name)
            elif word == "oneof":
                oneof = self.take()
                self.take("{")
                while (kind := self.take()) != "}":
                    self.field(name, oneof, kind)
            else:
                self.field(name, None, word)

    def field(self, message, oneof, word):
        kind = self.take() if word == "repeated" else word
        name = self.take()
        self.take("=")
        self.fields.append((message, oneof, word == "repeated", kind, name, int(self.take())))
        self.take(";")

    def enum(self, scope):
        enum = f"{scope}.{self.take()}"
        self.facts.add(("enum", enum))
        self.take("{")
        while (name := self.take()) != "}":
            self.take("=")
            self.facts.add(("value", enum, name, int(self.take())))
            self.take(";")

    def resolved(self, message, oneof, repeated, kind, name, number):
        """The field with the full name of its type, looked up from the inside out."""
        if kind not in SCALARS:
            scope = message
            while not {("message", f"{scope}.{kind}"), ("enum", f"{scope}.{kind}")} & self.facts:
                assert "." in scope, f"expected a type, got {kind}"
                scope = scope.rpartition(".")[0]
            kind = f"{scope}.{kind}"
        return message, oneof, repeated, kind, name, number


def facts_of(file):
    """The same facts about a compiled file."""
    facts = {("syntax", "proto3"), ("package", file.package)}

    def add_message(message):
        facts.add(("message", message.full_name))
        for field in message.fields:
            repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
            type_ = field.message_type or field.enum_type
            oneof = field.containing_oneof and field.containing_oneof.name
            facts.add(("field", message.full_name, oneof, repeated, type_.full_name if type_ else TYPE_NAMES[field.type], field.name, field.number))
        for nested in message.nested_types:
            add_message(nested)
        for enum in message.enum_types:
            add_enum(enum)

    def add_enum(enum):
        facts.add(("enum", enum.full_name))
        for value in enum.values:
            facts.add(("value", enum.full_name, value.name, value.number))
    for message in file.message_types_by_name.values():
        add_message(message)
    for enum in file.enum_types_by_name.values():
        add_enum(enum)
    return facts


def test_messages_pb2_is_what_messages_proto_says():
    assert sorted(map(str, Proto(PROTO).facts)) == sorted(map(str, facts_of(pb.DESCRIPTOR)))


@pytest.mark.parametrize("old, new", [
    ("Join join = 1;", "Join join = 6;"),                                          # another number
    ("string listening_addr = 1;", "bytes listening_addr = 1;"),                   # another type
    ("uint64 known = 8;", "uint64 heard = 8;"),                                    # another name
    ("repeated string addresses", "string addresses"),                             # another label
    ("uint32 lease_ms = 9;", "uint32 lease_ms = 9;\n    bool extra = 10;"),        # an additional field
    ("bool busy_ok = 8;", ""),                                                     # a missing field
    ("  oneof type {\n    Ok ok = 1;", "  Ok ok = 1;\n  oneof type {"),            # another place
    ("oneof type", "oneof kind"),
    ("BUSY = 6;", "BUSY = 16;"),
    ("OTHER_FILE = 8;", "OTHER_FILE = 8;\n  LATER = 9;"),
    ("message Ok {}", "message Ok {}\n  message Further {}"),
    ("package p2p;", "package other;"),
    ('"proto3"', '"proto2"'),
    ("File file = 8;", "Code file = 8;"),
])
def test_a_change_of_messages_proto_alone_would_be_found(old, new):
    assert old in PROTO
    assert Proto(PROTO.replace(old, new, 1)).facts != facts_of(pb.DESCRIPTOR)


def test_comments_and_spaces_mean_nothing():
    changed = re.sub(r"//[^\n]*", "", PROTO).replace(";", " ;\n  // message Wrong { = }\n")
    assert changed != PROTO
    assert Proto(changed).facts == Proto(PROTO).facts


# Constants.


def numbers(text):
    """The numbers of a text with their units, in order: bytes, seconds or pieces."""
    units = {"KiB": peer.KIB, "MiB": peer.MIB, "GiB": peer.GIB}
    return [float(number.replace(",", "")) * units.get(unit, 1) for number, unit in re.findall(r"(\d[\d,]*(?:\.\d+)?)(?: (KiB|MiB|GiB))?", text)]


def rows(title):
    """{first column: second column} of the table that begins with this title."""
    table = re.search(rf"^\| {title} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", SPEC, re.M)[1]
    return {row.split("|")[1].strip(): row.split("|")[2].strip() for row in table.splitlines()}


def test_the_table_of_constants_agrees_with_the_programs():
    assert {what: numbers(value) for what, value in rows("what").items()} == {
        "chunk size, unless chosen otherwise": [peer.CHUNK_SIZE],
        "chunks of a file, at most": [peer.MAX_CHUNKS],
        "chunk size, at most": [peer.MAX_CHUNK_SIZE, peer.MAX_CHUNK_SIZE * peer.MAX_CHUNKS],
        "request frame, at most": [peer.MAX_REQUEST],
        "time for a whole request frame, from its first byte": [peer.FRAME_SECONDS],
        "idle connection kept for": [peer.IDLE_SECONDS],
        "connections open at a server": [peer.MAX_CONNECTIONS],
        "lease, unless chosen otherwise": [peer.LEASE_SECONDS],
        "peers listed by a tracker": [tracker.MAX_PEERS, tracker.MAX_PEERS_PER_IP],
        "answer to Join and to Peer List, at most": [peer.MAX_ANSWER],
        "answer to Chunks Query, at most": [peer.MAX_LIST],
        "answer to Fetch Chunk, at most": [peer.ANSWER_MARGIN],
        "neighbors of a peer, at most": [peer.MAX_NEIGHBORS],
    }


def test_what_is_said_of_the_references_upload_slots_is_so():
    said = re.search(r"the reference has (\d), under an upload limit (\d), and (\d) where a chunk takes (\d) s or more at it", SPEC).groups()
    slow = peer.FRAME_SECONDS / 2
    assert list(map(int, said)) == [peer.upload_slots(0), peer.upload_slots(slow / 2), peer.upload_slots(slow), slow]


@pytest.mark.parametrize("clause, text, value", [
    ("WF-5", "above 65,536", peer.MAX_REQUEST),
    ("WF-9", "not whole 10 s after", peer.FRAME_SECONDS),
    ("WF-13", "has 512 connections", peer.MAX_CONNECTIONS),
    ("JN-7", "more than 1,000 peers", tracker.MAX_PEERS_PER_IP),
    ("JN-7", "more than 100,000 in all", tracker.MAX_PEERS),
    ("PL-4", "to 50 neighbors", peer.MAX_NEIGHBORS),
    ("CQ-6", "or 1 s", peer.NEWS_SECONDS),
    ("FC-7", "about 1 s if", peer.BUSY_SECONDS[1]),
    ("FC-15", "more than 16 MiB", peer.RECEIVE_MEMORY),
    ("FC-11", "for 10 s", peer.FRAME_SECONDS),
    ("FC-11", "every 4 KiB", peer.SLOWEST_LINK),
    ("FD-2", "262,144 bytes by default", peer.CHUNK_SIZE),
    ("FD-2", "at most 16,384 chunks", peer.MAX_CHUNKS),
    ("SW-7", "for 60 s", peer.LOST_SECONDS),
    ("CL-10", "for 30 s", peer.TRACKER_SECONDS),
])
def test_the_numbers_in_the_clauses_agree_with_the_programs(clause, text, value):
    assert text in CLAUSES[clause]
    assert numbers(text) == [value]


def test_the_numbers_that_the_clauses_give_in_words_are_kept_by_the_programs():
    assert "at least every third of the lease" in CLAUSES["AP-4"] and peer.PROOF_SHARE < 1 / 3
    assert "within about a second" in CLAUSES["PL-5"] and peer.REFRESH_SECONDS <= 1
    assert "more than 20 times a second" in CLAUSES["FC-7"] and peer.BUSY_SECONDS[0] >= 1 / 20
    assert "more than 20 Chunks Queries in a second" in CLAUSES["CQ-6"] and peer.NEWS_PAUSE * min(peer.RETRY_SPREAD) >= 1 / 20
    assert "more than five times in a second" in CLAUSES["PL-5"] and peer.REFRESH_SECONDS >= 1 / 5
    assert "below 100 ms" in CLAUSES["AP-4"] and "3 s at most" in CLAUSES["SW-5"] and peer.LATE_SECONDS[1] <= 3
    pauses = [peer.REDIAL_SECONDS[0] * 2 ** failures for failures in range(2)]
    assert "up to a minute at most" in CLAUSES["SW-6"] and peer.REDIAL_SECONDS[1] <= 60
    assert "longer than half a second, and no longer than 5 s" in CLAUSES["SW-6"] and 0.5 < sum(pauses) <= 5
    assert "to three requests in a row" in CLAUSES["FC-10"] and peer.MAX_BROKEN_PROMISES == 3


def test_the_table_of_exit_codes_agrees_with_the_programs():
    codes = [int(code) for row in rows("exit code") for code in row.split(", ")]
    assert sorted(codes) == sorted(value for name, value in vars(peer).items() if name.startswith("EXIT_"))
    named = {int(code) for text in CLAUSES.values() for code in re.findall(r"exit code (\d+)", text)}
    assert named <= set(codes)
