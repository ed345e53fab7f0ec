"""Mistakes that programs make, and how to recognize each by its bytes: the line `likely` of a failure report.

LIKELY is a list of (hint, predicate), tried from the top; BY_CLAUSE says what to look at when none matches. A predicate gets
the facts of a failure, a Facts; if it raises, it does not match. A hint is one line: what seems to happen - what to do instead.
To add a mistake, add a line; tests/test_grade.py shows how to try it.
"""

import re
import struct

from messages_pb2 import Request, Response

CHUNK = 262_144  # bytes


class Facts:
    """What is known about a failure.

    `sent`: the message last sent to the program under test. `expected`, `got`: bytes, or words. `want`, `answer`: the
    same two as a Response (an empty one if they are words or not a message). `left`, `right`: the values of a comparison that
    failed. `words`: expected, got and output together. `steps`: their words. `stage`: the number of the test's stage.
    """

    def __init__(self, sent, expected, got, clauses, name, steps, left=None, right=None, stage=7):
        self.sent = message(sent[0], Request if sent[1] == "request" else Response) if sent else Request()
        self.pieces = "pieces)" in " ".join(steps[-4:])
        self.expected, self.got = expected, got
        self.want, self.answer = message(expected, Response), message(got, Response)
        self.clauses, self.name, self.steps, self.left, self.right = clauses, name, steps, left, right
        self.stage = stage
        self.words = " ".join(str(part) for part in (expected, got) if isinstance(part, str))

    def asked(self):
        return self.sent.WhichOneof("type")

    def silent(self):
        """Whether no byte came in time."""
        return isinstance(self.got, str) and "until the wait was over" in self.got

    def closed(self):
        return isinstance(self.got, str) and ("end of stream" in self.got or "reset" in self.got)

    def answered_before(self):
        """Whether an answer had come on this connection before."""
        for step in reversed(self.steps[:-1]):
            if step.startswith("connected"):
                return False
            if step.startswith("got"):
                return True
        return False


def message(frame, kind):
    """The message in a frame; an empty one if the frame holds none."""
    try:
        if isinstance(frame, bytes) and int.from_bytes(frame[:8], "big") == len(frame) - 8:
            return kind.FromString(frame[8:])
    except Exception:  # whatever the parser of this version of protobuf raises
        pass
    return kind()


LENGTHS = [  # (bytes of the length, how they are read, what is counted besides the message, hint)
    (8, "little", 0, 'the length is little-endian – write it big-endian, struct.pack("!Q", n)'),
    (8, "big", 8, "the length counts its own eight bytes – it is that of the message alone"),
    (4, "big", 0, 'the length has 4 bytes – it has 8, struct.pack("!Q", n)'),
    (4, "little", 0, 'the length has 4 bytes, and little-endian – it has 8, big-endian, struct.pack("!Q", n)'),
    (2, "big", 0, 'the length has 2 bytes – it has 8, struct.pack("!Q", n)'),
    (1, "big", 0, 'the length is a varint, as between messages in a file – here it has 8 bytes, big-endian, struct.pack("!Q", n)'),
    (0, "big", 0, "the message comes without its length – 8 bytes, big-endian, before each message"),
]


def mended(came):
    """(the frame that these bytes were probably meant to be, hint); (None, None) if they are well framed or hopeless."""
    if len(came) >= 8 and int.from_bytes(came[:8], "big") == len(came) - 8:
        if has_type(came[8:]) or not has_type(came[8:-8]):
            return None, None
        came = came[:-8]  # the next frame's length, taken for the end of this one
    for size, order, besides, hint in LENGTHS:
        body = came[size:]
        counted = int.from_bytes(came[:size], order)
        if body and (counted == len(body) + besides if size else has_type(body)):
            return struct.pack("!Q", len(body)) + body, hint
    return None, None


def has_type(body):
    for kind in (Response, Request):
        try:
            if kind.FromString(body).WhichOneof("type"):
                return True
        except Exception:  # not a message
            pass
    return False


def zeros(data):
    return len(data) > 0 and not any(data)


def missing(f):
    """Addresses that were expected in a list but did not come."""
    return wants(f, "peer_list") and set(f.want.peer_list.addresses) - set(f.answer.peer_list.addresses)


def too_many(f):
    """Addresses that came in a list but were not expected."""
    return wants(f, "peer_list") and set(f.answer.peer_list.addresses) - set(f.want.peer_list.addresses)


def joined(f):
    """The address in the last Join."""
    return f.sent.join.listening_addr


def has(f, kind):
    return f.answer.WhichOneof("type") == kind


TO_ITS_END = "a test that comes to its end"  # what is expected when the test itself raises
WORDS = {"ok": "Ok", "bad": "Bad", "peer_list": "a peer list", "chunks_query": "a list of chunk ids", "chunk": "a chunk"}  # of answers


def wants(f, kind):
    """Whether an answer of this kind was expected."""
    return f.want.WhichOneof("type") == kind or isinstance(f.expected, str) and bool(re.match(WORDS[kind] + r"\b(?! ids)", f.expected))


def later_stage(f):
    """Whether the program has called a function that is not written yet and need not be in this stage."""
    found = re.search(r"NotImplementedError: stage (\d)", f.words)
    return found and int(found[1]) > f.stage


def excepted(f):
    """Whether a program has ended with an exception, or printed one. An error in its own words does not count, nor does an exception of the test itself."""
    if re.search(r"exit code [2-9]\b", str(f.expected)) and not re.search(r"exit code 70|Traceback|(Error|Exception)\b", f.got):
        return False
    return re.search(r"exit code (1|70|[2-9]\d)\b|\bprinted: " + ("" if f.expected == TO_ITS_END else r"|Traceback|Error(:| \()"), f.got)


LIKELY = [
    # Nothing works yet.
    ("the program's first line ends in CR LF, as Windows writes it – save the file with LF alone (dos2unix, or the editor's setting)",
     lambda f: re.search(r"\\r['’]$|\\r['’]: No such file", f.got)),
    ("the program that its first line names is not there – `#!/usr/bin/env python3` finds Python wherever it is", lambda f: "; its first line asks for" in f.got),
    ("this program cannot run on this machine – a script begins with a line such as `#!/usr/bin/env python3`; other programs are built for this system",
     lambda f: "Exec format error" in f.got),
    ("the file is not executable – chmod +x, also in the archive that you hand in", lambda f: re.search(r"Permission denied$", f.got) and f.expected.startswith("the start of") or "exit code 126" in f.got),
    ("a command was not found – use its full path, or say in the submission what to install", lambda f: re.search(r"exit code 127\b|: No such file or directory$", f.got) and re.search("127|the start of", f"{f.expected} {f.got}")),
    ("the program does not begin to run, because one of its lines is not valid code – run it once by itself", lambda f: re.search(r"\b(SyntaxError|IndentationError|TabError)\b", f.got)),
    ("this function belongs to a later stage, which is not asked for here – the program went too far; do what the clause says first", later_stage),
    ("this function is not written yet – the note named there says what it must do", lambda f: "NotImplementedError" in f.words),
    ("a module is missing – put everything that the program imports beside it", lambda f: re.search("ModuleNotFoundError|ImportError|Cannot find module", f.words)),
    ('the program ends as soon as options follow its own words – the tests append them: let a wrapper pass them on, as "$@" does in a shell; see clauses CL of lab/SPEC.md',
     lambda f: re.search("exit code [1-9]", f.got) and "listening on port" in str(f.expected) and re.search(r" --(no-seed|chunk-size|upload-limit|events)", f.steps[0])
     and not re.search("Error|Exception", f.got)),
    ("the program does not take these arguments – see clauses CL of lab/SPEC.md for the command line", lambda f: re.search("exit code 2\\b", f.got)
     and (not re.search("exit code [3-9]", str(f.expected)) or re.search("argument|option|usage", f.got))),
    ("fewer bytes had come than the code assumes – recv() returns what is there; read on until there are as many as the length says",
     lambda f: re.search("struct.error: unpack requires|memoryview assignment: lvalue and rvalue", str(f.got))),
    ("an exception that was not caught – its last line is shown; fix its cause, and catch what a network does (OSError) in each connection",
     excepted),
    ("the program does not print `listening on port N` – print that line, flushed, once it accepts connections (CL-1)", lambda f: "listening on port" in f.words),
    ("the program has ended because of one neighbor, or of the tracker – what a network does ends one exchange, and never the program",
     lambda f: re.search(r"(^|peer under test ended with )exit code [3457]\b", f.got) and not re.search("exit code [1-9]", f.expected)
     and re.search(r"\b(SW|FC|CQ|PL)-", " ".join(f.clauses))),
    ("the program has ended although it should keep serving – is its last thread a daemon?", lambda f: "exit code 0" in f.got and "exit code" not in f.expected and "FC-9" not in f.clauses),
    # Framing.
    *[(hint, lambda f, hint=hint: mended(f.got)[1] == hint) for *_, hint in LENGTHS],
    ("this is text – frames hold an 8-byte length and a protobuf message", lambda f: f.got[:1] in (b"{", b"[", b"H", b"<") and f.got[:20].isascii()),
    ("one recv() was taken for a whole message – TCP may cut it anywhere; read on until all bytes of the length, then of the message, are there",
     lambda f: f.pieces and (f.silent() or f.closed() or has(f, "bad")) and not {"WF-10", "FC-6", "FC-14"} & set(f.clauses)),
    ("two frames came in one segment and only the first was seen – read exactly as many bytes as the length says, and keep the rest",
     lambda f: "two frames" in f.name),
    ("a request of exactly 65,536 bytes is refused – close only above that", lambda f: "65536 bytes is still" in f.name.replace("_", " ") and not f.silent()),
    ("a client that has ended its side is thrown out before its answer – it still reads: answer what has come, then close",
     lambda f: "ended its side" in f.name.replace("_", " ") and f.closed()),
    # Zero is false.
    ('`if request.fetch_chunk.chunk_id:` – 0 is false, and absent on the wire; ask WhichOneof("type")',
     lambda f: f.asked() == "fetch_chunk" and f.sent.fetch_chunk.chunk_id == 0 and wants(f, "chunk")
     and (f.closed() or f.silent() or has(f, "bad") and f.answer.bad.code != 6) and not {"FC-5", "FC-6", "FC-14", "WF-10"} & set(f.clauses)),
    ('an empty message is taken for a missing one – its presence is its meaning; ask WhichOneof("type")',
     lambda f: f.sent.ByteSize() == 2 and (has(f, "bad") and f.answer.bad.code in (0, 1) or f.closed()) and not wants(f, "bad") and not {"WF-13", "FC-5"} & set(f.clauses)),
    # Chunks.
    ("bytes are sent that were changed since they were verified – compare the digest of what is read before it is sent, or notice that the file has changed",
     lambda f: "FC-13" in f.clauses and has(f, "chunk")),
    ("an asker that did not say busy_ok is told BUSY – let it wait for its turn", lambda f: f.answer.bad.code == 6 and not f.sent.fetch_chunk.busy_ok),
    ("BUSY is said with nothing on its way out – a slot is free again when its answer was sent, and when its asker has gone", lambda f: f.answer.bad.code == 6 and wants(f, "chunk")),
    ("the length announces more bytes than come – the last chunk has only the bytes that the file still has",
     lambda f: "FC-2" in f.clauses and isinstance(f.got, bytes) and len(f.got) > 8 and int.from_bytes(f.got[:8], "big") > len(f.got) - 8),
    ("the last chunk is padded with zeros – it has only the bytes that the file still has",
     lambda f: f.want.chunk and f.answer.chunk.startswith(f.want.chunk) and zeros(f.answer.chunk[len(f.want.chunk):])),
    ("the answer goes on beyond the chunk – it ends with the chunk", lambda f: f.want.chunk and f.answer.chunk.startswith(f.want.chunk) and len(f.answer.chunk) > len(f.want.chunk)),
    ("the chunk is cut short – one read or send may do less than it was asked for; go on until all is done",
     lambda f: f.answer.chunk and f.want.chunk.startswith(f.answer.chunk) and len(f.answer.chunk) < len(f.want.chunk)),
    ("zeros are sent for a chunk that is not held – answer Bad with code NOT_HELD", lambda f: wants(f, "bad") and zeros(f.answer.chunk)),
    ("an empty chunk is sent where the file has none – answer Bad", lambda f: wants(f, "bad") and has(f, "chunk") and not f.answer.chunk),
    ("bytes are sent that are no chunk of the file, or are not held – check the id against the chunk size, the file's size and what is held; answer Bad",
     lambda f: wants(f, "bad") and has(f, "chunk")),
    ("another chunk's bytes are sent – the chunk id is a byte offset, not an index, and not to be multiplied by the chunk size",
     lambda f: f.want.chunk and f.answer.chunk and f.sent.fetch_chunk.chunk_id),
    ("the answer is the first chunk's for every id – seek to the chunk id", lambda f: f.want.chunk and f.answer.chunk),
    ("chunks are listed by index – a chunk id is the byte offset: index times chunk size",
     lambda f: len(f.answer.chunks_query.chunk_ids) > 1 and max(f.answer.chunks_query.chunk_ids) < len(f.answer.chunks_query.chunk_ids) + 1),
    ("chunks are asked for by index – a chunk id is the byte offset: index times chunk size",
     lambda f: 0 < max(f.left) < 1000 <= max(f.right)),
    ("chunks are listed that are not held – list an id only when its bytes were verified and written",
     lambda f: has(f, "chunks_query") and set(f.answer.chunks_query.chunk_ids) > set(f.want.chunks_query.chunk_ids) and not {"CQ-3", "CL-3"} & set(f.clauses)),
    ("`known` is not heeded – leave out exactly as many ids of the list as the asker says that it knows",
     lambda f: has(f, "chunks_query") and f.sent.chunks_query.known and len(f.answer.chunks_query.chunk_ids) > len(f.want.chunks_query.chunk_ids)
     and "CQ-2" not in f.clauses),
    ("the ids are sorted, or in the order of a set – keep them in the order in which the chunks came",
     lambda f: has(f, "chunks_query") and len(f.want.chunks_query.chunk_ids) > 1 and sorted(f.answer.chunks_query.chunk_ids) == sorted(f.want.chunks_query.chunk_ids)),
    # The tracker's list.
    ("an asker from elsewhere is sent a loopback address – send the address at which the asker reached the tracker", lambda f: "JN-6" in f.clauses and missing(f)),
    ("the list lacks the peer that joins – list it first, then answer",
     lambda f: joined(f) and ("JN-3" not in f.clauses or not f.answer.peer_list.addresses) and any(address.endswith(joined(f)[-5:]) for address in missing(f) or ())
     or joined(f) and joined(f) == f.left),
    ("a peer is listed under the IP address that it announced – take the address of the connection, and only the port from the message",
     lambda f: {address.rpartition(":")[2] for address in missing(f)} & {address.rpartition(":")[2] for address in too_many(f)}),
    ("a peer is listed under the port that it called from – take the IP address from the connection, and the port from the message", lambda f: "JN-3" in f.clauses and missing(f)),
    ("the asker itself is listed – asking for the list does not make a peer", lambda f: "PL-2" in f.clauses and "AP-3" not in f.clauses and (too_many(f) and f.asked() == "peer_list" or isinstance(f.left, str) and f.left in f.right)),
    ("peers whose lease has run out are still listed – leave them out of each answer, or sweep them before",
     lambda f: too_many(f) and {"AP-3", "JN-5"} & set(f.clauses)
     or re.search(r"the end of .*\bleases?\b", f.expected) and f.answer.peer_list.addresses or "AP-3" in f.clauses and f.expected.startswith("at most ")),
    ("peers are forgotten before their lease has run out – it lasts from the answer to Join, or from the last proof", lambda f: "AP-3" in f.clauses and f.expected.startswith(">= ")),
    ("a proof of a peer that is not listed is refused, or thrown away – list it, by the rules of Join",
     lambda f: "AP-2" in f.clauses and (has(f, "bad") and f.asked() == "active_proof" and f.want.WhichOneof("type") == "ok" or isinstance(f.left, tuple) and not f.left[0])),
    ("a peer that sends proofs is forgotten all the same – a proof starts the lease again from that moment", lambda f: missing(f) and "AP-1" in f.clauses),
    ("a proof of a peer that is not listed is thrown away – list it, by the rules of Join", lambda f: missing(f) and {"AP-2", "AP-7"} & set(f.clauses)),
    ("a peer is listed twice – its address is the key, and a second Join only renews", lambda f: len(set(f.answer.peer_list.addresses)) < len(f.answer.peer_list.addresses)),
    ("the lease is given in seconds – the field is in milliseconds", lambda f: f.answer.peer_list.lease_ms * 1000 == f.want.peer_list.lease_ms > 0),
    ("the digests are hexadecimal text – the field holds raw bytes, digest() and not hexdigest()",
     lambda f: len(f.answer.peer_list.file.digests) == 2 * len(f.want.peer_list.file.digests) > 0),
    ("the digests cover other bytes – each covers exactly one chunk, and the last chunk is shorter",
     lambda f: len(f.answer.peer_list.file.digests) == len(f.want.peer_list.file.digests) and f.answer.peer_list.file.digests != f.want.peer_list.file.digests),
    ("there is one digest for the whole file – there is one for each chunk", lambda f: len(f.answer.peer_list.file.digests) == 32 < len(f.want.peer_list.file.digests)),
    ("the answer to Join has no description of the file – fill the field file", lambda f: f.asked() == "join" and not f.answer.peer_list.HasField("file") and has(f, "peer_list") and "JN-2" in f.clauses),
    ("peers are missing in the list – answer with all live peers, also those that joined on other connections; is the table shared, and under a lock?", lambda f: has(f, "peer_list") and wants(f, "peer_list") and missing(f)),
    ("peers are listed that should not be", lambda f: wants(f, "peer_list") and too_many(f)),
    # Refusals.
    ("everything is answered Ok – Ok answers Active Proof only", lambda f: has(f, "ok") and not wants(f, "ok") and f.asked() != "active_proof"),
    ("Active Proof is answered with a list – its answer is Ok", lambda f: has(f, "peer_list") and f.want.WhichOneof("type") == "ok"),
    ("Bad has no code – the code is for programs, the reason for people", lambda f: has(f, "bad") and wants(f, "bad") and not f.answer.bad.code),
    ("this Bad has another code than the clause says", lambda f: has(f, "bad") and f.want.WhichOneof("type") == "bad"),
    ("a wrong value is taken as if it were right – check it, and answer Bad", lambda f: f.want.WhichOneof("type") == "bad" and f.answer.WhichOneof("type")),
    ("the connection is closed where Bad is due – a refused request is an answer like any other; go on reading", lambda f: f.closed() and (wants(f, "bad") or {"WF-7", "WF-8", "FC-4", "FC-5", "JN-4"} & set(f.clauses))),
    ("what does not parse is answered – close that connection, and no other", lambda f: "WF-6" in f.clauses and f.answer.WhichOneof("type")),
    ("nothing to list is no reason to refuse – set the list, present and empty (SetInParent)", lambda f: has(f, "bad") and f.asked() in ("chunks_query", "peer_list")),
    ("the id of a chunk is refused – it is a byte offset; divided by the chunk size it is the index",
     lambda f: has(f, "bad") and f.answer.bad.code != 6 and f.sent.fetch_chunk.chunk_id and wants(f, "chunk")),
    ("peers that are gone still count – when a lease has run out, take one off the count of its address", lambda f: f.answer.bad.code == 7 and "JN-7" in f.clauses),
    ("a good request is refused", lambda f: has(f, "bad")),
    # Connections.
    ("there is no room for a new connection – of 512 that are open, close the one that has waited longest for a request",
     lambda f: "WF-13" in f.clauses and (f.closed() or "room for" in f.expected)),
    ("the connection is closed after one answer – read the next request from it, until the other side closes", lambda f: f.closed() and f.answered_before()),
    ("nothing listens at the announced port, not yet or not any more – announce the port on which the socket listens (getsockname), "
     "listen before Join is sent, and for as long as the program runs",
     lambda f: re.search("refused", f.got) and not {"FC-9", "CL-10"} & set(f.clauses) and re.search("accepted|peer under test", f.expected)),
    ("nothing listens there any more – accept connections for as long as the program runs",
     lambda f: re.search("refused", f.got) and not {"FC-9", "CL-10"} & set(f.clauses)),
    ("your own address is in the list too – leave out your own port, at the address that the tracker sees and at every loopback address",
     lambda f: "connected to its own port" in f.got),
    ("the tracker listens at another port than --port says – only 0 leaves the choice to the system",
     lambda f: isinstance(f.left, int) and isinstance(f.right, int) and min(f.left, f.right) > 1023 and "started the tracker" in " ".join(f.steps)),
    # Descriptions.
    ("this is another content id – SHA-256 over size and chunk size, 8 bytes big-endian each, then all digests, each 32 raw bytes",
     lambda f: re.search(r"\b[0-9a-f]{64}\b", f.expected) or "AP-4" in f.clauses and isinstance(f.left, bytes) and len(f.left) == 32),
    ("the description is not compared with --expect – do it when Join was answered, before anything is fetched, and end with exit code 4",
     lambda f: "FD-4" in f.clauses and "exit code 4" in f.expected),
    ("the connection was closed without an answer – an exception in the handler that was caught, or not printed? print it to see", lambda f: f.closed() and "a connection" not in f.expected),
    ("the end of a connection is taken for a pause – recv() that returns nothing says that no more will come; stop reading, and close",
     lambda f: "is in the middle" in f.name.replace("_", " ") and f.got.startswith("a connection kept")),
    ("one connection keeps all others waiting – a thread for each, as in ThreadingTCPServer, and no lock while sending or reading",
     lambda f: f.silent() and ({"WF-10", "FC-6", "FC-14"} & set(f.clauses) or "WF-9" in f.clauses)),
    ("a request that is for the other role is not answered at all – refuse it in words, and keep the connection", lambda f: f.silent() and "WRONG_ROLE" in f.expected),
    ("no answer – is it still in a buffer (flush), or does the program read until the connection ends?", lambda f: f.silent() and f.asked() and isinstance(f.expected, (str, bytes)) and f.steps and "after 0 bytes" in f.steps[-1]),
    # Heartbeats.
    ("the next proof waits for the answer to the last, which never comes – wait no longer than until the next is due; or the timer fires once only",
     lambda f: "Active Proof" in f.expected and re.match("1 of them$", f.got) and "was asked: Active Proof" in f.steps[-1]),
    ("proofs stop after the first – threading.Timer fires once; start the next one from the first", lambda f: "Active Proof" in f.expected and re.match("1 of them", f.got)),
    ("no proof is sent – start the timer once Join was answered", lambda f: "Active Proof" in f.expected and re.match("0 of them", f.got)),
    ("proofs come too slowly – one every third of the lease that the tracker told (lease_ms), also while something else waits", lambda f: "AP-4" in f.clauses),
    ("the list is not asked for again – while no neighbor has what is wanted, ask each second", lambda f: re.search("times Peer List", f.expected) and re.match(r"\d of them", f.got)),
    # How a leecher deals with others.
    ("a field that is unknown spoils an answer – skip it, before and after what you know, as the parser does; a chunk ends where its own length says, not with the frame",
     lambda f: "WF-11" in f.clauses and "complete file" in f.expected),
    ("two neighbors are asked for one chunk while others are free – note what is under way when you ask for it, and choose among the rest",
     lambda f: "SW-1" in f.clauses and "under_way" in f.name and (f.left, f.right) == (2, 1)),
    ("what was under way with a neighbor that has gone is never asked of another – release it when its connection ends",
     lambda f: {"SW-1", "SW-6"} <= set(f.clauses) and "waited in vain" in " ".join(f.steps)),
    ("the last chunk is waited for at one slow neighbor – when nothing else is left, ask a second one for what has been under way for long",
     lambda f: "SW-5" in f.clauses and "waited in vain" in " ".join(f.steps)),
    ("the file has zeros where chunks should be – count a chunk when it was verified and written, not when it was asked for",
     lambda f: isinstance(f.got, bytes) and isinstance(f.expected, bytes) and len(f.got) == len(f.expected) and any(zeros(f.got[at:at + 1000]) for at in range(0, len(f.got), 1000))),
    ("a neighbor that sent wrong bytes is kept, or dialled again – hang up at the first wrong byte, and ban its address",
     lambda f: "FC-9" in f.clauses and ("the end of all connections" in f.expected or isinstance(f.left, dict))),
    ("wrong bytes were kept – compare the length and the SHA-256 of each chunk before it is written or offered", lambda f: "FC-9" in f.clauses and "banned" not in f.expected),
    ("a request without a length, or with a wrong one", lambda f: isinstance(f.got, bytes) and 0 < len(f.got) < 8),
]


BY_CLAUSE = {
    "WF-1": "the length is 8 bytes, big-endian, and counts the message alone",
    "WF-2": "TCP cuts and joins as it likes – read until as many bytes are there as the length says, and no more",
    "WF-3": "after an answer, read the next request from the same connection",
    "WF-4": "the other side may close after each answer – connect anew for the next request, and do not count that as a failure",
    "WF-5": "look at the length before reading or reserving anything, and close if it is above 65,536",
    "WF-6": "what does not parse ends this connection, and no other",
    "WF-7": 'ask WhichOneof("type"); None is answered Bad with code NO_TYPE, and the connection kept',
    "WF-8": "a request for the other role is answered Bad with code WRONG_ROLE, and the connection kept",
    "WF-9": "the deadline is for the whole frame – a timeout for each recv() does not end it",
    "WF-10": "a thread for each connection; one that ends or says nothing concerns no other",
    "WF-11": "skip fields that are unknown – the parser does; do not refuse what it has skipped",
    "WF-12": 'presence is meaning – WhichOneof("type"), never the truth of a field',
    "WF-13": "when as many connections are open as there may be, close the one that has waited longest",
    "JN-1": "list the joining peer first, then answer with all live peers",
    "JN-2": "the answer to Join carries file and lease_ms",
    "JN-3": "take the IP address from the connection and the port from the message",
    "JN-4": "an address is a literal IP, a colon, and a port from 1 to 65535; everything else is Bad with code BAD_ADDRESS",
    "JN-5": "the address is the key of the table: a second Join renews the entry",
    "JN-6": "loopback means nothing elsewhere – send the address at which the asker reached the tracker",
    "JN-7": "count the peers of each IP address; beyond the bound answer Bad with code FULL",
    "JN-8": "listen first, then join",
    "AP-1": "the answer is Ok, and the lease starts again",
    "AP-2": "a proof of a peer that is not listed lists it",
    "AP-3": "compare each entry's time with now when you answer – a sweep alone comes too late",
    "AP-4": "a timer that starts itself again, every third of lease_ms, for as long as the peer runs",
    "AP-5": "check the address of Active Proof as that of Join",
    "AP-6": "compare content_id, if it is there, with the file's; the peer that is told OTHER_FILE ends with exit code 4",
    "AP-7": "a proof that fails is no reason to send no more; one that is received counts before it is answered",
    "PL-1": "all live peers, whoever asks; set the list also when it is empty (SetInParent)",
    "PL-2": "asking lists nobody and renews nothing",
    "PL-3": "leave out your own address",
    "PL-4": "skip what is not an address, take a part of a very long list, and stop at 50 neighbors",
    "PL-5": "while no neighbor has what is wanted, ask for the list again each second",
    "CQ-1": "list what was verified and written; set the list also when it is empty (SetInParent)",
    "CQ-2": "append to a list when a chunk comes to be held; do not sort",
    "CQ-3": "answer with the list from index `known` on",
    "CQ-4": "add what is told to what is known of that neighbor; on a new connection begin at known 0: it no longer has what that answer does not list",
    "CQ-5": "ignore ids that are no multiple of the chunk size, or not below the file's size",
    "CQ-6": "hold the answer back while there is nothing new, for wait_ms or a second at most, and send it as soon as there is; whoever is told nothing new pauses before it asks again",
    "FC-1": "seek to the chunk id, and send exactly the chunk",
    "FC-2": "the last chunk is min(chunk size, size - id) bytes",
    "FC-3": 'WhichOneof("type"), never `if request.fetch_chunk.chunk_id`',
    "FC-4": "refuse ids that are no multiple of the chunk size, or not below the file's size, with code NO_SUCH_CHUNK",
    "FC-5": "refuse what is not held with code NOT_HELD",
    "FC-6": "BUSY is for those that said busy_ok; others wait for a slot",
    "FC-7": "after BUSY, pause for a random time, at most 20 requests a second to this neighbor",
    "FC-8": "ask a neighbor only for ids that it has listed",
    "FC-9": "compare length and SHA-256 before writing; ban whoever sends wrong bytes, and fetch elsewhere",
    "FC-10": "count refusals in a row for each neighbor; a chunk that comes sets the count to 0, BUSY does not count",
    "FC-11": "a deadline for silence and one for the whole answer; release the chunk when it is over",
    "FC-12": "when a chunk arrives, look whether it is held already",
    "FC-13": "compare the digest of what is read before it is sent, or notice that the file has changed",
    "FC-14": "a deadline for sending too: an asker that stops reading loses its slot",
    "FC-15": "ask ahead only on a connection that has given two answers; when it ends, ask again, here or elsewhere, for what did not come",
    "FD-1": "one raw SHA-256 for each chunk, in order",
    "FD-2": "double the chunk size until there are at most 16,384 chunks",
    "FD-3": "compare size, chunk size and number of digests before anything is reserved",
    "FD-4": "SHA-256 over size and chunk size, 8 bytes big-endian each, then all digests",
    "FD-5": "escape control characters of the name, and never open it as a path",
    "CL-1": "print the line once connections are accepted, with the number of the port, and flush it",
    "CL-2": "the address and OUT stand at the end of each command, each quoted as a shell needs it (shlex.quote); seed the file unless told --no-seed; --expire is the lease",
    "CL-3": "write to OUT.part, each chunk at its offset, and rename it to OUT when every chunk is held",
    "CL-4": "verify each chunk of OUT or OUT.part at the start, and fetch only those that are missing or wrong",
    "CL-5": "look at OUT before anything is fetched: if it is another file or a link, leave it as it is, exit code 5; --force replaces it at the end",
    "CL-6": "open OUT.part before Join; if that fails, exit code 5",
    "CL-7": "lock OUT or OUT.part (flock) at the start, for as long as the process runs; a process that does not get the lock ends with exit code 5",
    "CL-8": "with --leave exit code 0 when complete, with --seed-for after that many seconds",
    "CL-9": "SIGINT ends the program with exit code 130, SIGTERM with 143, also while threads wait, and OUT.part stays",
    "CL-10": "a tracker that does not answer, or refuses, is asked again, after pauses that grow, for 30 s",
    "CL-11": "ignore SIGXFSZ; when a write fails for lack of room, exit code 6, and OUT.part stays",
    "CL-12": "exit code 8 for FILE, 9 for the port, 2 for wrong arguments",
    "CL-13": "catch what a user can cause, say it in one line on stderr, and end with the exit code of the table",
    "CL-14": "count the bytes of all uploads together, and wait before sending more than the rate allows",
    "CL-15": "append one JSON object a line, with t and event, where it happens, and flush each – self.events(...) in the starter",
    "CL-16": "let a bug show its traceback, and end the process with exit code 70",
    "CL-17": "compute with a monotonic clock, time.monotonic(), and never with time.time()",
    "CL-18": "see the clause for the words; with --quiet print nothing – self.say(...) in the starter, and no print()",
    "CL-19": "wait on a condition, a timer or a socket – never in a loop that only looks again",
    "SW-1": "several neighbors at once; for each, the chunk that the fewest hold, of those that it has and that are not under way; do not count neighbors that are gone",
    "SW-2": "offer a chunk at once when it is held – and do not hold a lock while sending",
    "SW-3": "go on serving when complete",
    "SW-4": "the tracker's end is no reason to end",
    "SW-5": "when only chunks under way are left, ask a second neighbor for one that has taken long",
    "SW-6": "forget a neighbor that cannot be reached, ask others for what was under way there, and dial it again only after growing pauses",
    "SW-7": "after 60 s in which nobody had what is wanted: exit code 7, and keep OUT.part",
    "SW-8": "ask neighbors for news, and the tracker for new peers, within about a second",
}


def likely(facts):
    """The hint that fits these facts best, or None."""
    for hint, fits in LIKELY:
        try:
            if fits(facts):
                return hint
        except (TypeError, ValueError, AttributeError, IndexError):
            continue  # it looks at something that this failure lacks
    return next((BY_CLAUSE[clause] for clause in facts.clauses if clause in BY_CLAUSE), None)
