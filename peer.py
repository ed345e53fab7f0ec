#!/usr/bin/env python3
"""A peer: it fetches one file from a swarm, checks every byte, and gives what it has to others.

    python3 peer.py TRACKER:PORT OUT          download, then go on seeding until Ctrl-C
    python3 peer.py TRACKER:PORT OUT --leave  download, then leave

lab/SPEC.md says what it promises; the numbers in brackets, such as [FC-9], are its clauses.

PART ONE shows how a chunk travels, and takes an afternoon to read (two and a half hours): frames on
the wire, the file's description, its chunks on disk, which chunk to request from whom, the asking
end of a connection, and the peer, from Join to the last chunk. PART TWO is what keeps it standing
(two hours more): each section opens with the fault that it handles. Part One can be read without
looking up what it uses from Part Two: small helpers that do what their names say, and these:

    prepare     caps each blocking call on a socket at one tick
    Server      a thread per connection; calls Peer.on_... for each request
    Uploads     who may have a chunk now, and at what pace
    Contacts    which addresses may be dialled, and when
    repeat      a timer: calls a function at intervals until it returns False
    Output      OUT and OUT.part; at the end the peer calls finish(), which renames OUT.part

Threads. The main thread first starts one that waits for signals. It opens OUT, joins, verifies what
is there, calls Peer.begin, and then shows progress. Another accepts connections and starts a thread
for each (Server). Each neighbor that this peer asks has its own, started by Peer.dial; it verifies
and writes what it receives (Peer.fetch_from) or, while the next chunk comes in, leaves that to one
of a few others (Peer.verify_arrivals). Timers (repeat) send proofs, ask for the peer list and dial
neighbors. To hash a whole file, hash_chunks uses one thread per core, four at most.

                  Join, Active Proof, Peer List
        +---------+ (main, then timers) +-------------+
        | tracker | <------------------ |             |  Chunks Query, Fetch Chunk   +----------+
        +---------+                     |    this     | ---------------------------> | neighbor |
        +----------+                    |    peer     |   (a thread per neighbor)    +----------+
        | neighbor | -----------------> |             | --- pwrite, rename ---> OUT
        +----------+  Chunks Query,     +-------------+
                      Fetch Chunk (a thread per connection)

Locks. Server.lock guards the table of connections; Peer.lock, what is held, requested and known of
others; Uploads.lock, who may be sent a chunk and when; Screen.lock, the progress line. Their fields
are named where each is created. No thread holds two, or holds one during network or disk traffic.
"""

import argparse
import collections
import contextlib
import datetime
import errno
import functools
import hashlib
import itertools
import json
import os
import queue
import random
import re
import select
import shutil
import signal
import socket
import socketserver
import stat
import struct
import sys
import threading
import time

try:  # report in one line what this machine lacks; tracker.py imports this file first
    if sys.version_info < (3, 10):
        raise ImportError(f"Python {sys.version.split()[0]}")
    import fcntl
    import messages_pb2
    from google.protobuf.message import DecodeError
    from messages_pb2 import Request, Response
except ImportError as lacking:
    sys.exit(f"{os.path.basename(sys.argv[0])}: expected Python 3.10 or newer with protobuf 3.20 or"
             f" newer, on Linux, macOS or WSL, got: {lacking}; type make .venv/ready, and then"
             " .venv/bin/python for python3, or use the files of make dist, which need no package")

VERSION = "1.0"

# The constants of SPEC.md. Times are in seconds, sizes in bytes. All constants are looked up when
# they are used, so that tests can shrink them. Those of one section are defined where it begins.
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CHUNK_SIZE = 256 * KIB       # of a file, unless chosen otherwise
MAX_CHUNKS = 16_384          # of a file: their digests fit in half a MiB
MAX_CHUNK_SIZE = 16 * MIB    # a whole chunk is in memory while it is checked
DIGEST_SIZE = 32             # SHA-256
MAX_REQUEST = 64 * KIB       # a request is tiny; more is a mistake or an attack [WF-5]
FRAME_SECONDS = 10.0         # for a whole request, and for silence within any frame [WF-9]
SLOWEST_LINK = 4 * KIB       # bytes per second that a long frame must sustain [FC-11]
LEASE_SECONDS = 10.0         # a tracker forgets a peer after this long without a proof
PROOF_SHARE = 0.3            # of a lease, between two proofs: one in three may get lost [AP-4]
TRACKER_SECONDS = 30.0       # give up joining after this long [CL-10]
REFRESH_SECONDS = 1.0        # between two looks at the neighbors [PL-5, SW-8]
MAX_NEIGHBORS = 50           # asked at a time, each in its own thread
MAX_CONTACTS = 1_000         # addresses remembered, however long the list [PL-4]
MAX_BROKEN_PROMISES = 3      # refusals in a row of listed chunks that lead to a ban [FC-10]
NEWS_SECONDS = 1.0           # the longest wait for news, asked for or granted [CQ-6]
LOST_SECONDS = 60.0          # without a neighbor that has what is missing: lost [SW-7]
TRACKER_PORT = 8000          # unless told otherwise

EXIT_COMPLETE, EXIT_USAGE, EXIT_NO_TRACKER, EXIT_CONTENT, EXIT_OUT = 0, 2, 3, 4, 5
EXIT_DISK_FULL, EXIT_LOST, EXIT_FILE, EXIT_PORT, EXIT_BUG = 6, 7, 8, 9, 70
EXIT_SIGINT, EXIT_SIGTERM = 130, 143


# Errors. OSError is what a network does; ProtocolError is what the program at its other end does
# wrong. Both end one exchange or one connection, never the program. Fatal ends the program, in
# whichever thread it is raised. Anything else is a bug, and is not caught.

class ProtocolError(Exception):
    """The other side sent something that it must not send."""


class Fatal(Exception):
    """The program ends with this exit code and this one line."""

    def __init__(self, code, line):
        super().__init__(line)
        self.code = code


# ---------------------------------------------------------------------------------------------
# PART ONE: how a chunk travels.
#
# Frames. One message, one frame: 8 bytes of length, big-endian, then the message [WF-1]. TCP
# carries bytes, not messages: a recv may bring half a length or three frames, so every read here
# says how many bytes it wants and goes on until it has them [WF-2].


def in_time(transfer, deadline, silence=None):
    """The result of transfer(), a recv or a send. The kernel ends a call after one tick (see
    prepare) in which nothing moved; it is tried again until `deadline` (monotonic), but for at most
    `silence` seconds (by default FRAME_SECONDS). Then TimeoutError."""
    until = min(deadline, time.monotonic() + (silence or FRAME_SECONDS))
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            return transfer()
    raise TimeoutError("the other side was silent, or too slow")


def read_exactly(sock, count, deadline):
    """The next `count` bytes, by `deadline`, with no silence of FRAME_SECONDS. The deadline covers
    all of them: with one per recv, a client could trickle bytes in forever [WF-9]."""
    data = b""
    while len(data) < count:
        missing = count - len(data)
        more = in_time(lambda: sock.recv(missing, socket.MSG_WAITALL), deadline)
        if not more:
            raise ProtocolError(f"closed after {len(data)} of {count} bytes")
        data += more
    return data


def for_answer(length):
    """Seconds that an answer, or a chunk on its way out, of this length may take [FC-11, FC-14]."""
    return FRAME_SECONDS + length / SLOWEST_LINK


def read_frame(sock, limit, wait, rate):
    """The next frame's message, as bytes. It must begin within `wait` seconds (ConnectionError if
    the other side has no more to say), and be complete within FRAME_SECONDS plus the time that its
    length takes at `rate` bytes a second. The length comes from a stranger: it is checked before
    any memory is reserved for it [WF-5]."""
    head = in_time(lambda: sock.recv(8), float("inf"), wait)
    if not head:
        raise ConnectionError("closed where a frame should begin")
    began = time.monotonic()
    head += read_exactly(sock, 8 - len(head), began + FRAME_SECONDS)
    length = int.from_bytes(head, "big")
    if length > limit:
        raise ProtocolError(f"expected at most {limit} bytes, got a length of {length}: {head}")
    return read_exactly(sock, length, began + FRAME_SECONDS + length / rate)


def send_exactly(sock, data, deadline, flags=0):
    """Send all of `data` by `deadline`."""
    view = memoryview(data)
    while view:
        view = view[in_time(lambda: sock.send(view, flags), deadline):]


def parse(kind, frame):
    """The message in a frame: `kind` is Request or Response [WF-6]."""
    try:
        return kind.FromString(frame)
    except (DecodeError, ValueError):  # protobuf without its C part: ValueError if not UTF-8
        raise ProtocolError(f"expected a {kind.__name__}, got {len(frame)} other bytes") from None


def send_message(sock, message):
    """Send one message in one frame."""
    body = message.SerializeToString()
    deadline = time.monotonic() + for_answer(len(body))
    send_exactly(sock, struct.pack(">Q", len(body)) + body, deadline)


def bad(code, reason):
    """The answer that refuses a request: a code for programs, a reason for people."""
    return Response(bad=Response.Bad(code=code, reason=reason))


# The file. Inside the program a chunk goes by its index (0, 1, 2 ...), on the wire by its id, its
# byte offset. A set of chunks is a bitfield: an int whose bit i stands for the chunk with index i,
# so that "it has them, I do not, and nobody was asked" is `theirs & ~mine & ~asked`, which takes
# well under a microsecond for thousands of chunks.


def all_of(count):
    """The bitfield of `count` chunks, all set."""
    return (1 << count) - 1


def bits_of(indexes):
    """The bitfield of some indexes."""
    return sum({1 << index for index in indexes})


def indexes(bits):
    """The indexes in a bitfield, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class Description:
    """What a swarm distributes: name, size and chunk size in bytes, digests [FD-1]."""

    def __init__(self, name, size, chunk_size, digests):
        self.name = name
        self.size = size
        self.chunk_size = chunk_size
        self.digests = digests  # bytes: DIGEST_SIZE for each chunk
        self.count = -(-size // chunk_size)
        content = size.to_bytes(8, "big") + chunk_size.to_bytes(8, "big") + digests
        self.content_id = hashlib.sha256(content).digest()  # [FD-4]

    @classmethod
    def from_message(cls, file):
        """Check what a tracker sent before using it; Fatal if it is bad [FD-3]."""
        count = -(-file.size // max(file.chunk_size, 1))
        for what, got, least, most in (
                ("a chunk size", file.chunk_size, 1, MAX_CHUNK_SIZE),
                ("a number of chunks", count, 0, MAX_CHUNKS),
                ("digest bytes", len(file.digests), count * DIGEST_SIZE, count * DIGEST_SIZE)):
            if not least <= got <= most:
                raise Fatal(EXIT_CONTENT, f"expected {what} from {least} to {most}, got {got} from"
                            " the tracker")
        return cls(file.name, file.size, file.chunk_size, file.digests)

    def to_message(self):
        return messages_pb2.File(name=self.name, size=self.size, chunk_size=self.chunk_size,
                                 digests=self.digests)

    def index(self, chunk_id):
        """The index of the chunk with this id; None if the file has no such chunk [FC-4]."""
        index, rest = divmod(chunk_id, self.chunk_size)
        return index if rest == 0 and index < self.count else None

    def length(self, index):
        """Bytes in a chunk; the last one may be short [FC-2]."""
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def digest(self, index):
        return self.digests[index * DIGEST_SIZE:(index + 1) * DIGEST_SIZE]

    def matches(self, index, chunk):
        """Whether these bytes are the chunk [FC-9]."""
        return (len(chunk) == self.length(index)
                and hashlib.sha256(chunk).digest() == self.digest(index))


class Store:
    """A file's chunks on disk, by index. It has no lock: its owner decides what is written when."""

    def __init__(self, fd, file):
        self.fd = fd
        self.file = file   # Description
        self.stamp = None  # of a complete file: (size, time of change) that it must keep

    def verify(self, show=lambda done: None):
        """The chunks that are there and correct, as a bitfield [CL-4]."""
        found = hash_chunks(self.fd, self.file.size, self.file.chunk_size, show)
        return bits_of(index for index, digest in enumerate(found)
                       if digest == self.file.digest(index))

    def write(self, index, chunk):
        """Write a checked chunk; a pwrite may be short. Fatal if there is no room [CL-11]."""
        offset = index * self.file.chunk_size
        try:
            while chunk:
                count = os.pwrite(self.fd, chunk, offset)
                chunk, offset = chunk[count:], offset + count
        except OSError as error:
            raise disk_error(error) from None

    def seal(self):
        """The file is complete: from now on any change to it is somebody else's [FC-13]."""
        self.stamp = self.look()

    def look(self):
        status = os.fstat(self.fd)
        return status.st_size, status.st_ctime_ns  # mtime can be turned back

    def intact(self, index):
        """Whether the chunk's bytes are still what they were when it was verified [FC-13]. While
        size and time of change stay the same, nobody has touched the file; else it is read."""
        if self.stamp is None or self.stamp == self.look():
            return True
        chunk = os.pread(self.fd, self.file.length(index), index * self.file.chunk_size)
        return self.file.matches(index, chunk)

    def send(self, sock, index, uploads, start):
        """Send a chunk as one frame, in pieces, each paid for before it leaves [FC-1]."""
        offset, left = index * self.file.chunk_size, self.file.length(index)
        deadline = time.monotonic() + for_answer(left) + uploads.seconds(left) * PACED_SLOTS
        send_exactly(sock, chunk_head(left), deadline, getattr(socket, "MSG_MORE", 0))
        while left:
            piece = os.pread(self.fd, min(left, uploads.piece), offset)
            if not piece:  # our file was cut short; their connection ends [FC-13]
                raise ProtocolError(f"the file ends {left} bytes early")
            uploads.pay(start, len(piece))
            send_exactly(sock, piece, deadline)
            offset, left = offset + len(piece), left - len(piece)


# Choosing. Which chunk to request from which neighbor: no thread, no socket, no clock, so that it
# can be tested and simulated.

LATE_SECONDS = (0.2, 2.0)    # a chunk is late after twice the usual, within these bounds [SW-5]


def any_of(bits, count, rng):
    """An index in a bitfield: the first from a random position on, wrapping; None if empty."""
    if not bits:
        return None
    start = int(rng.random() * count)
    after = bits >> start << start or bits
    return (after & -after).bit_length() - 1


def rarest_first(offered, holdings, count, rng):
    """An index of `offered` that the fewest neighbors hold, at random among equals; or None [SW-1].
    `holdings` are their bitfields. They are added up in binary, all chunks at once: planes[k] has
    bit k of each chunk's sum. From the top bit down, chunks with a 0 beat those with a 1."""
    planes = []
    for carry in holdings:
        for k, plane in enumerate(planes):
            planes[k], carry = plane ^ carry, plane & carry
        if carry:
            planes.append(carry)
    for plane in reversed(planes):
        offered = offered & ~plane or offered
    return any_of(offered, count, rng)


class Picker:
    """Which chunk to request from which neighbor: all that a peer knows about who holds what.
    Threads that share it hold a lock while they use it. Any key of a dict can be a neighbor."""

    def __init__(self, count, held=0, rng=None):
        self.count = count
        self.all = all_of(count)   # every chunk of the file
        self.held = held           # the chunks that we have
        self.claimed = 0           # chunks that came, written or being written outside the lock
        self.under_way = {}        # index -> {neighbor: when it was asked}
        self.holds = {}            # neighbor -> what it has listed
        self.typical = 0.0         # seconds that an exchange takes, a moving average
        self.rng = rng or random.Random()

    def complete(self):
        return self.held == self.all

    def wanted(self, neighbor):
        """What this neighbor has and we have not."""
        return self.holds.get(neighbor, 0) & ~self.held

    def useful(self):
        """The neighbors that have anything that we want."""
        return [neighbor for neighbor, bits in self.holds.items() if bits & ~self.held]

    def add(self, neighbor, bits):
        """Note that the neighbor holds these chunks too; returns how many of them are news."""
        listed = self.holds.get(neighbor, 0)
        self.holds[neighbor] = listed | bits
        return (bits & ~listed).bit_count()

    def withdraw(self, neighbor, bits):
        """Note that the neighbor does not hold these chunks, whatever it has said."""
        self.holds[neighbor] = self.holds.get(neighbor, 0) & ~bits

    def choose(self, neighbor, now, proposed=None):
        """The chunk to request from this neighbor next, which is noted as under way; or None. If
        the neighbor proposed one, no other is considered [FC-7]."""
        wanted = self.wanted(neighbor) & (self.all if proposed is None else 1 << proposed)
        free = wanted & ~bits_of(self.under_way)
        index = rarest_first(free, self.holds.values(), self.count, self.rng)
        if index is None:
            index = self.late(neighbor, wanted, now)
        if index is not None:
            self.under_way.setdefault(index, {})[neighbor] = now
        return index

    def late_after(self):
        """Seconds after which a chunk that is under way is late [SW-5]."""
        return min(max(2 * self.typical, LATE_SECONDS[0]), LATE_SECONDS[1])

    def late(self, neighbor, wanted, now):
        """Endgame: all wanted chunks are under way; a late one is requested once more [SW-5]."""
        wanted &= ~self.claimed
        for index, askers in self.under_way.items():
            if wanted >> index & 1 and len(askers) == 1 and neighbor not in askers:
                if now - min(askers.values()) > self.late_after():
                    return index
        return None

    def release(self, neighbor, index):
        """The exchange has ended, however it ended."""
        del self.under_way[index][neighbor]
        if not self.under_way[index]:
            del self.under_way[index]

    def claim(self, index):
        """Whether to write a chunk that has come; False if another thread does or did [FC-12]."""
        first = not self.claimed >> index & 1
        self.claimed |= 1 << index
        return first

    def arrived(self, index, seconds):
        """The chunk was written, after an exchange of this many seconds; False if we had it."""
        self.typical += ((seconds - self.typical) / 8) if self.typical else seconds
        new = not self.held >> index & 1
        self.held |= 1 << index
        return new


# The asking end of a connection.

CONNECT_SECONDS = 5.0      # give up connecting after this long


class Link:
    """Sends requests, then receives their answers in the same order [WF-3]. Used by one thread at a
    time. It dials when it must: before the first request, and again before the next one after the
    connection was closed. An answer must begin within `wait` seconds."""

    def __init__(self, address, wait=None):
        self.address = address
        self.wait = wait or FRAME_SECONDS
        self.sock = None
        self.round_trip = 0.0  # seconds that the other machine took to accept the connection
        self.answers = 0       # received on this connection

    def close(self):
        if self.sock is not None:
            self.sock.close()
            self.sock, self.answers = None, 0

    def send(self, request):
        """Send a request; OSError."""
        if self.sock is None:
            began = time.monotonic()
            self.sock = socket.create_connection(self.address, timeout=CONNECT_SECONDS)
            self.round_trip = time.monotonic() - began
            prepare(self.sock, self.wait)
        send_message(self.sock, request)

    def receive(self, limit):
        """The frame that answers the oldest unanswered request; OSError, ProtocolError."""
        frame = read_frame(self.sock, limit, self.wait, SLOWEST_LINK)
        self.answers += 1
        return frame


# The peer.

MAX_ANSWER = 8 * MIB             # a tracker's: 100,000 addresses and 16,384 digests
MAX_LIST = 256 * KIB             # a neighbor's list: 16,384 ids of at most 7 bytes, plus a margin
ANSWER_MARGIN = 64 * KIB         # an answer to Fetch Chunk may be this much longer than the chunk
RECEIVE_MEMORY = 16 * MIB        # for all incoming chunks; larger chunks mean fewer neighbors
FEWEST_NEIGHBORS = 4             # asked at a time at least, however large the chunks
VERIFIERS = 4                    # threads that verify and write: one per core, at most this many
PEER_LIST_SECONDS = 5.0          # between two requests for the list, with enough useful neighbors
ENOUGH_NEIGHBORS = 4             # useful ones; with fewer, the list is requested at every look
NEWS_PAUSE = 0.25                # between two questions to a neighbor that cannot wait for news


def requests_ahead(rate, round_trip, chunk_size):
    """How many requests beyond the first keep a link of `rate` bytes a second busy [FC-15]. Twice
    what fits in a round trip, so that a rate that was measured too low can grow."""
    return int(2 * rate * round_trip / chunk_size)


class Neighbor:
    """A peer that this peer asks, in a thread of its own (Peer.fetch_from)."""

    def __init__(self, address):
        self.address = address
        self.name = format_address(address)
        # Read and written by its thread alone:
        self.asked = collections.deque()  # (index or None for Chunks Query, when), oldest first
        self.known = 0                    # how many chunk ids it listed on this connection [CQ-3]
        self.heard = False                # it has answered Chunks Query on this connection
        self.heard_at = 0.0               # when it did so last
        self.waits = False                # the last query let it wait for news
        self.rest_until = 0.0             # ask nothing new before then: BUSY, or it cannot wait
        self.proposed = None              # index that it named with BUSY: requested without a rest
        self.busy = 0                     # how often in a row it said BUSY
        self.broken = 0                   # promises broken in a row [FC-10]
        self.rate = 0.0                   # bytes per second, a moving average
        self.took_at = 0.0                # when its last chunk had arrived
        self.link = None                  # written before the first request; ban() hangs it up
        # Set under Peer.lock:
        self.failure = None               # why it is banned; read when its thread ends
        self.leaving = False              # to make room for another, or because it is banned

    def chunks_asked(self):
        """How many requests for chunks have no answer yet."""
        return sum(index is not None for index, _ in self.asked)


class Peer:
    """One member of a swarm. `tracker` is (host, port); events and say are called from any thread.
    Life: __init__ listens, join() asks the tracker, begin(store) serves and asks others. It ends
    with its process: its threads are daemons, and nobody waits for them."""

    def __init__(self, tracker, host="", port=0, upload_limit=None, events=None, say=None):
        self.tracker = tracker
        self.uploads = Uploads(upload_limit)
        self.events = events or (lambda event, **fields: None)
        self.say = say or (lambda line: None)
        self.complete = threading.Event()    # set when every chunk is held and OUT has its name
        self.arrivals = queue.SimpleQueue()  # for the verifying threads: the arguments of keep()
        self.file = self.lease = None        # Description, seconds; set by main thread, in join()
        self.store = self.finish = None      # set by main thread, in begin()
        self.own_ip = ""                     # set by threads asking the tracker; one value [PL-3]
        self.tracker_at = None               # likewise: the address at which it answered
        self.said = set()                    # the subjects of say_once(); only grows, in any thread
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # a chunk is free, a neighbor goes, the end
        self.news = threading.Condition(self.lock)     # another chunk is held
        # Guarded by lock:
        self.picker = Picker(0)
        self.order = []               # chunk ids in the order of arrival; only grows [CQ-2]
        self.neighbors = {}           # address -> Neighbor
        self.contacts = Contacts()
        self.received = 0             # bytes of chunks that were verified
        self.trouble = ""             # the last neighbor that failed, and why
        self.peer_list_at = (0.0, 0)  # when the list was last requested, and `received` then
        self.server = Server(host, port, self)
        self.server.start()           # before Join: others may call as soon as we are listed [JN-8]

    # What it answers: a method for each request, named after it, called in the server's threads.

    def on_chunks_query(self, request, sock):
        """The ids of the chunks held, in order of arrival, from `known` on [CQ-1 to CQ-3]. An
        asker that knows them all may wait until there is another [CQ-6]."""
        wait = min(request.wait_ms / 1000, NEWS_SECONDS)
        with self.server.idle(sock), self.news:
            self.news.wait_for(lambda: len(self.order) > request.known, wait)
            ids = self.order[request.known:]
        return Response(chunks_query=Response.ChunksQuery(chunk_ids=ids))

    def on_fetch_chunk(self, request, sock):
        """Send the chunk and return None, or return the answer that refuses it [FC-1 to FC-6]."""
        index = self.file.index(request.chunk_id) if self.file else -1  # -1: none is held yet
        if index is None:
            return bad(messages_pb2.NO_SUCH_CHUNK, f"expected a multiple of {self.file.chunk_size}"
                       f" below {self.file.size}, got {request.chunk_id}")
        with self.lock:
            held = index >= 0 and self.picker.held >> index & 1
        if not held:
            return bad(messages_pb2.NOT_HELD, f"chunk {request.chunk_id} is not held here")
        length, asker = self.file.length(index), peer_address(sock)
        start = self.uploads.begin(asker, index, length, request.busy_ok)
        if start is None:
            return self.busy(index)
        began = time.monotonic()
        try:
            if not self.store.intact(index):
                self.say_once("file", "the file was changed: wrong chunks are not sent")
                return bad(messages_pb2.NOT_HELD, f"chunk {request.chunk_id} was changed on disk")
            self.store.send(sock, index, self.uploads, start)
        finally:
            self.uploads.end()
        self.events("sent", chunk=request.chunk_id, bytes=length, to=format_address(asker),
                    seconds=round(time.monotonic() - began, 6))
        return None

    def busy(self, index):
        """The answer BUSY: when to ask again, or what to ask for instead [FC-7]."""
        seconds, instead = self.uploads.busy(index)
        named = [] if instead is None else [instead * self.file.chunk_size]
        return Response(bad=Response.Bad(
            code=messages_pb2.BUSY, reason="other chunks are on their way out; ask again",
            retry_ms=max(1, int(1000 * seconds)), instead=named))

    def say_once(self, about, line):
        """Tell people about something that may happen often, but only the first time."""
        if about not in self.said:
            self.said.add(about)
            self.say(line)

    # What it asks the tracker.

    def join(self):
        """Join the swarm, and learn the file's description. Fatal if nobody answers [CL-10]."""
        join = Request.Join(listening_addr=self.listening_addr())
        name, pause, left = format_address(self.tracker), 0.1, TRACKER_SECONDS
        while True:
            began = time.monotonic()
            try:
                return self.joined(self.ask_tracker(Request(join=join)))
            except (OSError, ProtocolError) as error:
                left -= min(time.monotonic() - began, 2 * FRAME_SECONDS)  # longer: host suspended
                if left <= 0:
                    raise Fatal(EXIT_NO_TRACKER, f"no tracker at {name}: {error};"
                                f" tried for {TRACKER_SECONDS:g} s") from None
                if pause > 0.5:
                    self.say(f"no tracker at {name} yet: {error}; trying for another {left:.0f} s")
            time.sleep(min(pause, left))
            left, pause = left - min(pause, left), min(2 * pause, 4)

    def listening_addr(self):
        """The address to announce: only its port counts; the tracker sees the IP itself [JN-3]."""
        return f"0.0.0.0:{self.server.port}"

    def ask_tracker(self, request, wait=None):
        """The tracker's answer, on a connection that is then closed: a tracker has few threads. Of
        its name's addresses, the one that answered last is tried first."""
        with contextlib.closing(Link(self.tracker_at or self.tracker, wait)) as link:
            self.tracker_at = None
            link.send(request)
            response = parse(Response, link.receive(MAX_ANSWER))
            numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV  # with the zone, as in %eth0
            self.tracker_at = socket.getnameinfo(link.sock.getpeername(), numeric)
            self.own_ip = plain_ip(link.sock.getsockname()[0])
        return response

    def joined(self, response):
        """Take the answer to Join: the other peers, the file's description, and the lease."""
        if response.WhichOneof("type") != "peer_list":
            got = show_name(response.bad.reason) or "another answer"
            raise ProtocolError(f"expected a peer list, got {got}")
        if not response.peer_list.HasField("file"):
            raise Fatal(EXIT_CONTENT, "expected the file's description in the answer to Join,"
                        " got none: this tracker is too old")
        self.file = Description.from_message(response.peer_list.file)
        self.lease = min(max(response.peer_list.lease_ms / 1000, 0.1), 3600)  # no flood, no silence
        repeat(self.lease * PROOF_SHARE, self.prove)
        self.merge(response.peer_list.addresses)
        self.events("joined", tracker=format_address(self.tracker), lease=self.lease,
                    listening=format_address((self.own_ip, self.server.port)),
                    content_id=self.file.content_id.hex())

    def prove(self):
        """Send one Active Proof. If it fails, the next one follows anyway [AP-4, AP-6, AP-7]."""
        proof = Request.ActiveProof(listening_addr=self.listening_addr(),
                                    content_id=self.file.content_id)
        wait = min(self.lease * PROOF_SHARE, FRAME_SECONDS)  # then the next one is due
        try:
            response = self.ask_tracker(Request(active_proof=proof), wait)
        except (OSError, ProtocolError) as error:
            self.say_once("tracker", f"no answer from the tracker: {error}; going on without it")
            return
        if response.WhichOneof("type") == "bad" and response.bad.code == messages_pb2.OTHER_FILE:
            reason = show_name(response.bad.reason)[:200]
            raise Fatal(EXIT_CONTENT, f"the tracker now has another file: {reason}")

    def refresh(self):
        """Ask for the peer list, unless it is recent and enough neighbors help [PL-5, SW-8]."""
        now = time.monotonic()
        with self.lock:
            if self.picker.complete():
                return False  # the timer ends
            asked_at, received = self.peer_list_at
            served = len(self.picker.useful()) >= ENOUGH_NEIGHBORS and self.received > received
            if served and now - asked_at < PEER_LIST_SECONDS:
                return True
            self.peer_list_at = now, self.received
        try:
            response = self.ask_tracker(Request(peer_list=Request.PeerList()))
        except (OSError, ProtocolError):
            return True  # the known ones still serve [SW-4]
        self.merge(response.peer_list.addresses)
        return self.dial()

    def merge(self, addresses):
        """Remember the peers that the tracker lists, except ourselves; a sample of a long list
        [PL-3]. Link-local addresses belong to the link on which the tracker was reached."""
        zone = "".join((self.tracker_at or self.tracker)[0].partition("%")[1:])
        found = []
        for text in random.sample(list(addresses), min(len(addresses), 2 * MAX_CONTACTS)):
            with contextlib.suppress(ValueError):  # not an address: nothing to dial
                found.append(parse_ip_address(text))
        with self.lock:
            for host, port in found:
                if not self.is_self((host, port)):
                    self.contacts.add((host + zone * host.startswith("fe80:"), port))

    def is_self(self, address):
        """Whether (host, port) is this peer, as the tracker sees it, or over loopback [PL-3]."""
        host, port = address
        return port == self.server.port and (host == self.own_ip or is_loopback(host))

    def dial(self):
        """Start as many neighbors as there is room for; when full of useless ones, drop one."""
        most = min(MAX_NEIGHBORS, max(FEWEST_NEIGHBORS, RECEIVE_MEMORY // self.file.chunk_size))
        with self.changed:
            if self.picker.complete():
                return False  # the timer ends
            if len(self.neighbors) >= most and not self.picker.useful():
                random.choice(list(self.neighbors.values())).leaving = True
                self.changed.notify_all()
            ready = self.contacts.ready(time.monotonic(), self.neighbors)
            new = [Neighbor(address) for address in ready[:most - len(self.neighbors)]]
            self.neighbors.update((neighbor.address, neighbor) for neighbor in new)
        for neighbor in new:
            self.events("neighbor_added", neighbor=neighbor.name)
            try:
                threading.Thread(target=self.fetch_from, args=(neighbor,), daemon=True,
                                 name=f"fetch from {neighbor.name}").start()
            except RuntimeError as no_thread_left:
                self.drop(neighbor, no_thread_left)  # it is dialled again, after a pause
        return True

    # What it asks its neighbors. Each thread asks one neighbor, and picks chunks to request
    # from it, so that a silent neighbor holds up nobody else.

    def begin(self, store, held, finish=lambda: None):
        """Offer the chunks that are held, fetch the others, and call finish() once all are held."""
        self.store, self.finish = store, finish
        with self.lock:
            self.picker = Picker(self.file.count, held)
            self.order.extend(index * self.file.chunk_size for index in indexes(held))
            self.news.notify_all()
        if held == all_of(self.file.count):
            self.completed()
            return
        for _ in range(min(os.cpu_count() or 1, VERIFIERS)):
            threading.Thread(target=self.verify_arrivals, name="verify", daemon=True).start()
        repeat(REFRESH_SECONDS, self.dial)  # separate: refresh may hang on the tracker
        repeat(REFRESH_SECONDS, self.refresh)
        self.dial()  # last: neighbors may take all the threads that can be started

    def fetch_from(self, neighbor):
        """The life of the thread that asks one neighbor. Ask what it has, and request as many
        chunks as keep the link busy; take the oldest answer; have the chunk verified and written;
        repeat. With no chunk to request, ask for news, and let the neighbor wait until it has some.
        The thread ends when nothing is missing, or when the neighbor fails or lies. Chunks that
        were requested but have not come are released, to be requested here or elsewhere."""
        failure = None
        try:
            with contextlib.closing(Link(neighbor.address)) as neighbor.link:
                while self.goes_on(neighbor):
                    self.ask_and_take(neighbor, neighbor.link)
        except (OSError, ProtocolError) as error:
            failure = error
        self.drop(neighbor, neighbor.failure or failure)

    def goes_on(self, neighbor):
        """Whether the thread of this neighbor still has work to do."""
        with self.lock:
            return not (neighbor.leaving or self.picker.complete())

    def ask_and_take(self, neighbor, link):
        """One turn: send what there is to ask now, and take one answer; or rest if none is due."""
        try:
            for index in self.choose(neighbor, link):
                fetch = Request.FetchChunk(chunk_id=index * self.file.chunk_size, busy_ok=True)
                link.send(Request(fetch_chunk=fetch))
            self.ask_for_news(neighbor, link)
            if neighbor.asked:
                self.take_answer(neighbor, link)
            else:
                self.rest(neighbor)
        except ConnectionError:
            if not link.answers:
                raise
            link.close()  # it takes one request per connection, or ended an idle one [WF-4]
            neighbor.known, neighbor.heard = 0, False  # it may have restarted, with nothing [CQ-4]
            self.give_back(neighbor)

    def choose(self, neighbor, link):
        """The chunks to request from this neighbor now, noted as under way: indexes [FC-15]."""
        now, chosen = time.monotonic(), []
        if not neighbor.heard_at or link.answers and not neighbor.heard:
            return chosen  # a list first; but a redialled link may begin with a chunk [CQ-4]
        with self.lock:
            while ((now >= neighbor.rest_until or neighbor.proposed is not None)
                   and neighbor.chunks_asked() < self.ahead(neighbor, link)):
                index = self.picker.choose(neighbor.address, now, neighbor.proposed)
                neighbor.proposed = None
                if index is None:
                    break
                chosen.append(index)
                neighbor.asked.append((index, now))  # before it is sent: sending may fail
        return chosen

    def ahead(self, neighbor, link):
        """How many chunks may be under way: one, and as many more as the link holds [FC-15]. Only
        one from a neighbor that has given none yet or is unreliable, or on a connection that has
        not outlived its first answer: if it closes, the requests sent ahead are lost."""
        if link.answers < 2 or neighbor.busy or neighbor.broken or not neighbor.rate:
            return 1
        if len(self.picker.under_way) * self.file.chunk_size >= RECEIVE_MEMORY:
            askers = self.picker.under_way.values()
            return 1 - any(neighbor.address in each for each in askers)  # memory full: one each
        alone = self.picker.useful() == [neighbor.address]  # one more, to overlap with verifying
        return 1 + alone + requests_ahead(neighbor.rate, link.round_trip, self.file.chunk_size)

    def ask_for_news(self, neighbor, link):
        """Ask what the neighbor has: alone at first, along with chunks once the connection lasts.
        With no chunk under way, it may hold its answer back until it has news [CQ-3 to CQ-6]."""
        now, chunks = time.monotonic(), neighbor.chunks_asked()
        if len(neighbor.asked) > chunks or chunks and link.answers < 2:
            return
        seconds = 0.0
        if neighbor.heard:
            with self.lock:
                if self.picker.holds.get(neighbor.address) == self.picker.all:
                    return  # it has no news to tell
                due = neighbor.heard_at + self.picker.typical if chunks else neighbor.rest_until
                if now < due:
                    return
                if not chunks:
                    wanted = self.picker.wanted(neighbor.address)
                    seconds = self.picker.late_after() / 2 if wanted else NEWS_SECONDS
        neighbor.asked.append((None, now))
        neighbor.waits = seconds > 0
        query = Request.ChunksQuery(known=neighbor.known, wait_ms=int(1000 * seconds))
        link.send(Request(chunks_query=query))

    def take_answer(self, neighbor, link):
        """Receive the answer to the oldest request, which is news or a chunk."""
        index, began = neighbor.asked[0]
        if index is None:
            frame = link.receive(MAX_LIST)
            if link.answers == 1:  # it was asked alone, and not to wait
                link.round_trip = min(link.round_trip, time.monotonic() - began)
            self.heard(neighbor, parse(Response, frame), began)
            neighbor.asked.popleft()
            return
        frame = link.receive(self.file.length(index) + ANSWER_MARGIN)
        chunk = self.unpack(neighbor, index, frame)
        neighbor.asked.popleft()
        if chunk is None:
            self.release(neighbor, index)
        else:
            self.hand_over(neighbor, index, chunk, began)

    def heard(self, neighbor, response, asked_at):
        """Take the answer to Chunks Query [CQ-4, CQ-5]."""
        if response.WhichOneof("type") != "chunks_query":
            raise ProtocolError("expected a list of chunks, got another answer")
        ids = response.chunks_query.chunk_ids[:MAX_CHUNKS]
        bits = bits_of(index for index in map(self.file.index, ids) if index is not None)
        with self.lock:
            if not neighbor.known:  # a list from its beginning: it holds nothing else
                self.picker.withdraw(neighbor.address, ~bits)
            news = self.picker.add(neighbor.address, bits)
        neighbor.known += len(ids)
        neighbor.heard, neighbor.heard_at = True, time.monotonic()
        if not news and neighbor.waits and neighbor.heard_at - asked_at < LATE_SECONDS[0] / 2:
            pause = NEWS_PAUSE * random.uniform(*RETRY_SPREAD)  # it cannot wait
            neighbor.rest_until = neighbor.heard_at + pause

    def unpack(self, neighbor, index, frame):
        """The chunk in an answer; None if refused; b"", which matches no chunk, if unexpected."""
        chunk = chunk_in(frame, self.file.length(index))
        if chunk is not None:
            return chunk
        response = parse(Response, frame)
        if response.WhichOneof("type") == "bad":
            return self.refused(neighbor, index, response.bad)
        return response.chunk

    def refused(self, neighbor, index, answer):
        """The neighbor refuses a chunk that it had listed [FC-7, FC-10]."""
        if answer.code == messages_pb2.BUSY:
            neighbor.busy += 1
            if answer.instead and neighbor.busy % 2:  # not twice in a row, or it would never end
                neighbor.proposed = self.file.index(answer.instead[0])
            pause = busy_pause(answer.retry_ms / 1000, neighbor.busy, random)
            neighbor.rest_until = time.monotonic() + pause
            return
        with self.lock:
            self.picker.withdraw(neighbor.address, 1 << index)
        neighbor.broken += 1
        if neighbor.broken >= MAX_BROKEN_PROMISES:
            self.ban(neighbor, f"expected chunks that it had listed, was refused {neighbor.broken}"
                     f" in a row: {show_name(answer.reason)[:100]}")

    def hand_over(self, neighbor, index, chunk, began):
        """A chunk has come: have it verified while the next one arrives, if one is on its way."""
        now, old = time.monotonic(), neighbor.rate
        rate = self.file.length(index) / max(now - max(began, neighbor.took_at), 1e-6)
        neighbor.rate += (rate - old) / 4 if old else rate
        neighbor.took_at, neighbor.rest_until, neighbor.busy, neighbor.broken = now, now, 0, 0
        if old and neighbor.chunks_asked():
            self.arrivals.put((neighbor, index, chunk, began))
        else:  # nothing is on its way; or it is a stranger's first, to be checked before the next
            self.keep(neighbor, index, chunk, began)

    def verify_arrivals(self):
        """The life of a thread that verifies and writes while others receive."""
        while True:
            self.keep(*self.arrivals.get())

    def release(self, neighbor, index):
        """The exchange has ended, and others may be asked for the chunk if it is still missing."""
        with self.changed:
            self.picker.release(neighbor.address, index)
            self.changed.notify_all()

    def keep(self, neighbor, index, chunk, began):
        """Check a chunk, write it, and only then count and offer it [FC-9]."""
        right = self.file.matches(index, chunk)
        with self.lock:
            first = right and self.picker.claim(index)
        if first:
            self.store.write(index, chunk)
            self.arrived(neighbor, index, time.monotonic() - began)
        if not right:
            self.ban(neighbor, f"expected chunk {index * self.file.chunk_size} with its digest,"
                     f" got {len(chunk)} other bytes")
        self.release(neighbor, index)

    def arrived(self, neighbor, index, seconds):
        """A chunk is verified and on disk: count and offer it; was it the last? [FC-12, SW-2]"""
        chunk_id, length = index * self.file.chunk_size, self.file.length(index)
        self.events("fetched", chunk=chunk_id, bytes=length, of=neighbor.name,
                    seconds=round(seconds, 6))  # before it counts: the last one ends the program
        with self.lock:
            self.picker.arrived(index, seconds)
            self.order.append(chunk_id)
            self.received += length
            self.news.notify_all()
            complete = self.picker.complete()
        if complete:
            self.completed()

    def completed(self):
        """Every chunk is held: OUT gets its name, and the main thread is woken."""
        with self.uploads.lock:
            self.uploads.slots.sole = self.picker.all  # what perhaps nobody else has goes first
        self.finish()
        self.events("complete", bytes=self.file.size)
        self.complete.set()
        with self.changed:
            self.changed.notify_all()

    def rest(self, neighbor):
        """Nothing to ask: wait out a pause, unless the end comes, or until a chunk may be free."""
        now = time.monotonic()
        with self.changed:
            if now < neighbor.rest_until:
                self.changed.wait_for(self.picker.complete, neighbor.rest_until - now)
            else:
                self.changed.wait(self.picker.late_after() / 2)

    def give_back(self, neighbor):
        """Release the chunks that were requested from this neighbor and did not come."""
        with self.changed:
            for index, _ in neighbor.asked:
                if index is not None:
                    self.picker.release(neighbor.address, index)
            neighbor.asked.clear()
            self.changed.notify_all()

    def drop(self, neighbor, failure):
        """Forget the neighbor, to be dialled again later, or never [SW-6]."""
        reason = str(getattr(failure, "strerror", None) or failure or "")
        self.give_back(neighbor)
        with self.lock:
            self.contacts.departed(neighbor.address, time.monotonic(), failure is not None,
                                   neighbor.took_at > 0)
            banned = neighbor.address in self.contacts.bans
            self.trouble = f"{neighbor.name}: {reason}" if reason else self.trouble
            del self.neighbors[neighbor.address]
            self.picker.holds.pop(neighbor.address, None)
        self.events("neighbor_dropped", neighbor=neighbor.name, banned=banned, reason=reason)

    def ban(self, neighbor, reason):
        """Never ask this address again: it lied [FC-9, FC-10]. Called from any thread, perhaps when
        the neighbor's own has ended and a new one has dialled the address again."""
        with self.changed:
            again = neighbor.address in self.contacts.bans
            self.contacts.ban(neighbor.address)
            neighbor.failure = reason
            self.neighbors.get(neighbor.address, neighbor).leaving = True
            self.changed.notify_all()
        hang_up(neighbor.link.sock)
        if not again:
            self.say(f"banned {neighbor.name}: {reason}")


# ---------------------------------------------------------------------------------------------
# PART TWO: what keeps it standing.
#
# The server. The fault: clients that are silent or slow, or too many of them. Each connection has a
# deadline, and their number is bounded; the price is a table of those that may be closed. The
# server knows frames and requests, but no files and no peers: the actor (a Peer, a Tracker) has a
# method on_... for each request that it answers.

IDLE_SECONDS = 60.0          # a client is disconnected after this long without a request
MAX_CONNECTIONS = 512        # each in its own thread [WF-13]
DESCRIPTORS_PAUSE = 0.05     # before the next accept when no descriptor is left, so as not to spin
BACKLOG = 128                # socketserver's 5 loses connections when many peers join at once
UNSENT_BYTES = 32 * KIB      # of a chunk in the socket's buffer, which could hold a whole one: a
                             # slot must not be free before its chunk has left


def prepare(sock, wait):
    """Prepare a connection: it sends at once, and blocks for at most one tick, a tenth of the
    shortest time that anybody waits. Python's own timeouts would cost a poll before every call."""
    tick = min(wait, FRAME_SECONDS) / 10
    timeval = struct.pack("ll", int(tick), max(1, int(tick % 1 * 1e6)))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def hang_up(sock):
    """End a connection that another thread reads from: that thread sees its end."""
    with contextlib.suppress(OSError, AttributeError):  # it ended by itself, or was never made
        sock.shutdown(socket.SHUT_RDWR)


def listen_on(host, port):
    """A listening socket; without a host, on all addresses, IPv6 and IPv4 where both work."""
    try:
        if not host and socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # no IPv6 here, or the port is taken
                return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG,
                                            dualstack_ipv6=True)
        family, *_, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM,
                                                 flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a bad name, such as a..b
        taken = getattr(error, "errno", 0) in (errno.EADDRINUSE, errno.EACCES)
        remedy = "choose another with --port" if taken else "name one of this machine with --host"
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise Fatal(EXIT_PORT, f"cannot listen on {format_address((show_name(host or '*'), port))}:"
                    f" {reason}; {remedy}") from None


class Connection(socketserver.BaseRequestHandler):
    """The server's end of one connection: request, answer, request, answer [WF-3]."""

    def handle(self):
        """Called by socketserver, in this connection's thread."""
        try:
            prepare(self.request, FRAME_SECONDS)
            while True:
                response = self.answer(self.server.await_request(self.request))
                if response is not None:
                    send_message(self.request, response)
        except (OSError, ProtocolError):
            pass  # the end of this connection, and of nothing else [WF-6, WF-10]

    def answer(self, request):
        """The Response to send, or None if the actor has sent it."""
        kind = request.WhichOneof("type")
        if kind is None:
            return bad(messages_pb2.NO_TYPE,
                       "expected one of the five requests, got none that is known")
        method = getattr(self.server.actor, "on_" + kind, None)
        if method is None:
            role = type(self.server.actor).__name__.lower()
            return bad(messages_pb2.WRONG_ROLE, f"{kind} is not answered here: this is a {role}")
        return method(getattr(request, kind), self.request)


class Server(socketserver.ThreadingTCPServer):
    """Answers frames on `host`:`port`; with port 0 the system chooses, and `port` tells which."""

    daemon_threads = True        # an idle client does not keep the program from ending,
    block_on_close = False       # nor server_close() from returning

    def __init__(self, host, port, actor):
        self.actor = actor
        self.lock = threading.Lock()
        self.closed = threading.Condition(self.lock)  # a connection was closed
        # Guarded by lock:
        self.connections = {}  # socket -> whether it waits for a request; the longest wait first
        super().__init__((host, port), Connection, bind_and_activate=False)
        self.socket.close()    # socketserver's own, which could not listen on IPv6 and IPv4 at once
        self.socket = listen_on(host, port)
        self.port = self.socket.getsockname()[1]

    def start(self):
        """Accept connections, in a thread of its own."""
        threading.Thread(target=self.serve_forever, name="accept", daemon=True).start()

    def get_request(self):
        """Called by socketserver, in the accepting thread, when a client has connected."""
        try:
            return self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self.make_room():
                time.sleep(DESCRIPTORS_PAUSE)  # select would report the same client again
            raise

    def verify_request(self, request, client_address):
        """Called by socketserver, in the accepting thread: may the client stay? [WF-13]"""
        with self.lock:
            crowded = len(self.connections) >= MAX_CONNECTIONS
        if crowded and not self.make_room():
            return False
        with self.lock:
            self.connections[request] = False
        return True

    def process_request(self, request, client_address):
        """Called by socketserver, in the accepting thread: give the connection its own thread."""
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is left: this client will call again; close an idle one
            self.shutdown_request(request)
            self.make_room()

    def make_room(self):
        """Close the connection that has waited longest for a request; False if all are busy."""
        with self.lock:
            sock = next((sock for sock, waits in self.connections.items() if waits), None)
            if sock is None:
                return False
            self.connections[sock] = False
        hang_up(sock)  # its thread reads the end, and closes it
        with self.closed:
            return self.closed.wait_for(lambda: sock not in self.connections, 2 * NEWS_SECONDS)

    def close_request(self, request):
        """Called by socketserver, in the connection's thread, or in the accepting one."""
        super().close_request(request)
        with self.closed:
            self.connections.pop(request, None)
            self.closed.notify_all()

    def await_request(self, sock):
        """The next request; ConnectionError after the last, TimeoutError, ProtocolError."""
        with self.idle(sock):
            return parse(Request, read_frame(sock, MAX_REQUEST, IDLE_SECONDS, float("inf")))

    @contextlib.contextmanager
    def idle(self, sock):
        """While this lasts, the connection may be closed to make room for another."""
        with self.lock:
            del self.connections[sock]
            self.connections[sock] = True  # at the end
        try:
            yield
        finally:
            with self.lock:
                self.connections[sock] = False


# Addresses. The fault: text from strangers, on its way to a terminal or to connect().


def show_name(text):
    """Text made safe for a terminal: unprintable characters are escaped [FD-5]."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
                   for c in text)


def safe_name(name):
    """A stranger's name for a file, made safe to use in a folder of ours [FD-5]."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in last if c.isprintable()).lstrip(".- ")
    return shown.encode()[:200].decode(errors="ignore").rstrip() or "file"


def parse_address(text):
    """(host, port) of "host:port" or "[host]:port"; ValueError says what was expected."""
    found = re.fullmatch(r"(\[(.+)\]|[^][:]+):([0-9]{1,5})", text, re.DOTALL)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise ValueError("expected host:port or [host]:port, with a port from 1 to 65535,"
                         f" got {show_name(text)}")
    return found[2] or found[1], int(found[3])


def plain_ip(host):
    """An IPv4 address in the form ::ffff:1.2.3.4 as IPv4; others without their scope."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host.partition("%")[0]


def parse_ip_address(text):
    """parse_address for a stranger's text: it does not look up names [JN-4]."""
    host, port = parse_address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return plain_ip(socket.inet_ntop(family, socket.inet_pton(family, host))), port
    except (OSError, ValueError):
        raise ValueError(f"expected a literal IP address, got {show_name(host)}") from None


def format_address(address):
    """The text that parse_address reads."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_address(sock):
    """(IP address, port) of a connection's other end."""
    host, port = sock.getpeername()[:2]
    return plain_ip(host), port


def is_loopback(host):
    """Whether an IP address means the machine itself."""
    return host.startswith("127.") or host in ("::1", "0.0.0.0", "::")


# Contacts. The fault: dead addresses, a thousand addresses of one machine, liars that come back.

REDIAL_SECONDS = (0.5, 60.0)  # the first pause after a failure, and the longest; it doubles [SW-6]


def hosts_in_turn(addresses):
    """The first address of each host, then the second of each, and so on [JN-7]."""
    turns = collections.defaultdict(itertools.count)  # a count for each host
    return sorted(addresses, key=lambda address: next(turns[address[0]]))


class Contacts:
    """The addresses that this peer has heard of: which may be dialled, and when [PL-4, SW-6]. Like
    a Picker, it has no thread, no socket and no clock; its owner holds a lock."""

    def __init__(self):
        self.known = {}  # address -> (failures in a row, when it may be dialled again)
        self.bans = {}   # addresses that are never dialled again, oldest first -> None

    def add(self, address):
        """Remember an address; with too many, forget the one that failed most, or this one."""
        if address in self.known or address in self.bans:
            return
        if len(self.known) >= MAX_CONTACTS:
            worst = max(self.known, key=self.known.get)
            if not self.known[worst][0]:
                return
            del self.known[worst]
        self.known[address] = 0, 0.0

    def ready(self, now, neighbors):
        """The addresses to dial now: hosts take turns; each starts with those never tried."""
        ready = [(retry_at, random.random(), address)
                 for address, (_, retry_at) in self.known.items()
                 if retry_at <= now and address not in neighbors]
        return hosts_in_turn(address for *_, address in sorted(ready))

    def departed(self, address, now, failed, gave):
        """The neighbor is gone: dial it again after a pause that doubles with each failure."""
        if address in self.bans:
            return
        before = 0 if gave else self.known.get(address, (0,))[0]
        failures = before + 1 if failed else 0
        pause = REDIAL_SECONDS[0] * 2 ** min(max(failures - 1, 0), 10)
        self.known[address] = failures, now + min(pause, REDIAL_SECONDS[1])

    def ban(self, address):
        """Do not dial it again, at least until MAX_CONTACTS others were banned [FC-9, FC-10]."""
        self.known.pop(address, None)
        self.bans[address] = None
        if len(self.bans) > MAX_CONTACTS:
            del self.bans[next(iter(self.bans))]


# Uploads. The fault: a socket's buffer that takes more than the uplink carries, so that all is sent
# to everybody at once, and arrives late. Slots decides who gets a chunk next, Uploads at what pace.

BUSY_SECONDS = (0.05, 1.0)   # pause after BUSY: shortest if no time was said, longest; then spread
BUSY_PATIENCE = 25           # after this many BUSY in a row the shortest applies, whatever was said
RETRY_SPREAD = (0.7, 1.3)    # pauses are multiplied by a random factor, lest peers fall into step
UPLOAD_SLOTS = 6             # chunks on their way out: one or two do not fill an uplink
PACED_SLOTS = 2              # under an upload limit: one is sent and one waits, so there is no gap
BUSY_AFTER = 0.005           # wait this long for a slot before saying BUSY
PACE_BURST = 0.05            # seconds of upload that a late sender may make up for [CL-14]


def busy_pause(retry_seconds, times, rng):
    """Seconds before the next request to a neighbor that said BUSY, `times` in a row [FC-7].
    `retry_seconds` is when it expects to have a slot, 0 if it did not say. The pause is random, so
    that askers that were turned away do not all come back at once."""
    shortest, longest = BUSY_SECONDS
    share = min(times / BUSY_PATIENCE, 1) if retry_seconds else 1
    least = shortest / RETRY_SPREAD[0] * share
    return min(max(retry_seconds, least), longest) * rng.uniform(*RETRY_SPREAD)


def upload_slots(seconds):
    """Upload slots if a chunk takes this many seconds at the upload limit, 0 if none [FC-6]."""
    paced = PACED_SLOTS if seconds < FRAME_SECONDS / 2 else 1  # or it would wait too long [FC-11]
    return paced if seconds else UPLOAD_SLOTS


class Slots:
    """Who may have a chunk next. Like the Picker, it can be simulated [FC-6]. Anybody may take the
    first slot. The others go neither to a chunk that was given away before (others have it by now)
    while there are chunks that nobody else can give, nor to an asker that was just served while
    somebody else was turned away (it would always come back first)."""

    def __init__(self):
        self.active = 0           # slots that are taken
        self.sent = 0             # bitfield of the chunks that were given away, or are being sent
        self.sole = 0             # bitfield of what perhaps nobody else has: all of a seeder's
        self.served = []          # askers that got the last slots, the newest last
        self.turned_away = 0      # how many askers, since the last slot was given

    def free(self, asker, index, patient, slots):
        """Whether a slot is free for this chunk. Patient askers, which take no BUSY, go first."""
        if self.active == 0:
            return True
        if self.active >= slots:
            return False
        behind = self.given_away(index) or self.turned_away and asker in self.served
        return patient or not behind

    def given_away(self, index):
        """Whether this chunk was given away before, while some others were not."""
        return self.sent >> index & 1 and self.sole & ~self.sent

    def instead(self, index, rng):
        """The index of a chunk that was not given away, to request instead; or None."""
        if not self.given_away(index):
            return None
        return any_of(self.sole & ~self.sent, self.sole.bit_length(), rng)

    def take(self, asker, index):
        self.active += 1
        self.sent |= 1 << index
        self.served = [*self.served, asker][-PACED_SLOTS:]
        self.turned_away = 0

    def turn_away(self):
        self.turned_away += 1


class Uploads:
    """Upload slots and the rate that they share. The first to be requested is sent first, at the
    full rate: sharing would delay the first and not speed up the second [FC-6, CL-14]."""

    def __init__(self, rate=None):
        self.rate = rate  # bytes per second; None: as fast as possible
        # Bytes read and paid for at a time: more would stall the socket; limited: 50 ms' worth.
        self.piece = max(1, min(UNSENT_BYTES, int(rate / 20))) if rate else UNSENT_BYTES
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # a slot is free
        # Guarded by lock:
        self.slots = Slots()
        self.interval = BUSY_SECONDS[0]    # seconds between ends of uploads, a moving average
        self.ended_at = time.monotonic()   # when the last upload ended, or one began after a pause
        self.all_sent_at = 0.0             # when all chunks with a slot will be sent, at this rate
        self.paid_until = 0.0              # when everything taken so far will be paid for
        self.given = 0                     # bytes of chunks, including uploads that broke off

    def seconds(self, length):
        """How long this many bytes take at the upload limit; 0 without one."""
        return length / self.rate if self.rate else 0.0

    def begin(self, asker, index, length, busy_ok):
        """When to begin this chunk; None for BUSY, only to askers that allow it [FC-6]."""
        seconds = self.seconds(length)
        slots = upload_slots(seconds)
        patience = None if not busy_ok else BUSY_AFTER if seconds <= BUSY_AFTER else 0.0
        with self.changed:
            if not self.changed.wait_for(lambda: self.slots.free(asker, index, not busy_ok, slots),
                                         patience):
                self.slots.turn_away()
                return None
            if not self.slots.active:
                self.ended_at = self.all_sent_at = time.monotonic()
                self.paid_until = max(self.paid_until, self.ended_at)  # unused rate is lost
            self.slots.take(asker, index)
            self.given += length
            self.all_sent_at += seconds
            return self.all_sent_at - seconds

    def pay(self, start, count):
        """Wait until `start`, and until the rate allows `count` bytes. They are paid for before
        they are sent, so that no chunk arrives early."""
        if not self.rate:
            return
        time.sleep(max(0.0, start - time.monotonic()))
        with self.lock:
            earliest = time.monotonic() - PACE_BURST
            self.paid_until = max(self.paid_until, earliest) + self.seconds(count)
            wait = self.paid_until - time.monotonic()
        time.sleep(max(0.0, wait))

    def end(self):
        """The upload has ended, however it ended."""
        with self.changed:
            now = time.monotonic()
            self.interval += (now - self.ended_at - self.interval) / 4
            self.ended_at = now
            self.slots.active -= 1
            self.changed.notify_all()

    def busy(self, index):
        """For BUSY: (seconds until this asker's turn, index to request instead or None) [FC-7]."""
        with self.lock:
            seconds = self.interval * max(1, self.slots.turned_away)
            return seconds, self.slots.instead(index, random)


@functools.lru_cache(maxsize=2)  # the chunks of a file have two lengths
def chunk_head(length):
    """The part of a chunk's frame before its bytes, which can then go from disk to socket."""
    message = Response(chunk=bytes(length)).SerializeToString()
    return struct.pack(">Q", len(message)) + message[:len(message) - length]


def chunk_in(frame, length):
    """The chunk of this length in a Response that has nothing else, not copied; None: parse it."""
    head = chunk_head(length)[8:]
    whole = len(frame) == len(head) + length and frame.startswith(head)
    return memoryview(frame)[len(head):] if whole else None


# Files. The fault: a disk that is full, a name that is taken, a second process, a kill -9.


@contextlib.contextmanager
def fatal_if_it_fails(code, what):
    """An OSError inside ends the program with this code, and with `what` before its reason."""
    try:
        yield
    except OSError as error:
        raise Fatal(code, f"{what}: {error.strerror}") from None


def disk_error(error):
    """The Fatal for an OSError while a file is written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Fatal(EXIT_DISK_FULL, f"no room for the rest of the file: {error.strerror};"
                     " OUT.part is kept, make room and start again")
    return Fatal(EXIT_OUT, f"cannot write OUT.part: {error.strerror}")


def hash_chunks(fd, size, chunk_size, show=lambda done: None):
    """The digests of all chunks of an open file, as a list; show(bytes done) now and then; OSError.
    Each thread takes the next chunk that is not taken; hashlib releases the interpreter lock."""
    digests = [b""] * -(-size // chunk_size)
    left, hashed = iter(range(len(digests))), queue.SimpleQueue()  # items: None or an OSError
    def work():
        for index in left:
            at = index * chunk_size
            try:
                chunk = os.pread(fd, min(chunk_size, size - at), at)
                digests[index] = hashlib.sha256(chunk).digest()
                hashed.put(None)
            except OSError as error:
                hashed.put(error)

    for _ in range(min(os.cpu_count() or 1, 4)):
        threading.Thread(target=work, name="hash", daemon=True).start()
    for done in range(len(digests)):
        if error := hashed.get():
            raise error
        show(min(size, (done + 1) * chunk_size))
    return digests


class Output:
    """OUT and OUT.part: bytes go to OUT.part, which a single rename turns into OUT [CL-3]. Creating
    an Output claims them: it checks that OUT can be written at all, and locks it against other
    processes. Fatal says what is wrong [CL-5, CL-6, CL-7]."""

    def __init__(self, path, force):
        self.path = path
        self.part = path + ".part"
        self.force = force
        self.fd_out = self.fd_part = None
        AT_THE_END.append(self.discard_part)
        with fatal_if_it_fails(EXIT_OUT, f"cannot write {show_name(path)}"):
            self.claim()

    def refuse(self, reason):
        return Fatal(EXIT_OUT, f"cannot write {show_name(self.path)}: {reason}")

    def claim(self):
        """Open OUT if it is there, and OUT.part, new or left from before, unless OUT is kept."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            mode = 0
        if self.path == "-" or os.path.basename(self.path) == "" or stat.S_ISDIR(mode):
            raise self.refuse("expected a file or an existing folder, and not - for a stream")
        if stat.S_ISREG(mode):
            self.fd_out = self.open_locked(self.path, os.O_RDONLY)
        elif mode and not (self.force and stat.S_ISLNK(mode)):
            raise self.refuse("expected a file, got a link (--force replaces it) or a device")
        if self.fd_out is None or self.force:
            self.fd_part = self.open_locked(self.part, os.O_RDWR | os.O_CREAT)

    def open_locked(self, path, flags):
        """Open a file and lock it; the lock ends with the process, however that ends."""
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise self.refuse("another process is at work on it") from None
        except OSError:
            pass  # a file system without locks; digests still keep wrong bytes out
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not os.path.samestat(status, os.lstat(path)):
            os.close(fd)
            raise self.refuse(f"expected {show_name(path)} to be and stay a regular file")
        return fd

    def open_store(self, file, show):
        """(Store, bitfield of the chunks that are there) for the file that the swarm has [CL-4]."""
        what = f"cannot read what is in {show_name(self.path)} or {show_name(self.part)}"
        with fatal_if_it_fails(EXIT_OUT, what):
            if self.fd_out is not None:
                store = Store(self.fd_out, file)
                store.seal()
                same_size = os.fstat(self.fd_out).st_size == file.size
                if same_size and store.verify(show) == all_of(file.count):
                    self.discard_part()
                    return store, all_of(file.count)
                if not self.force:
                    raise self.refuse("it exists and is another file; choose another name, or"
                                      " replace it with --force")
            store = Store(self.fd_part, file)
            held = store.verify(show) if os.fstat(self.fd_part).st_size else 0
        try:
            disk, part = os.fstatvfs(self.fd_part), os.fstat(self.fd_part)
            free = disk.f_bavail * disk.f_frsize
            if disk.f_blocks and free < file.size - 512 * part.st_blocks:  # f_blocks 0: unknown
                raise OSError(errno.ENOSPC, f"{human(free)} are free for {human(file.size)}")
            os.ftruncate(self.fd_part, file.size)
        except OSError as error:
            raise disk_error(error) from None
        return store, held

    def finish(self, store):
        """Every chunk is held: OUT.part becomes OUT, if it is not OUT already."""
        if store.fd == self.fd_out:
            return
        if not self.force and os.path.lexists(self.path):
            raise self.refuse("it has come to exist meanwhile; OUT.part is complete and kept")
        with fatal_if_it_fails(EXIT_OUT, f"cannot write {show_name(self.path)}"):
            if not os.path.samestat(os.fstat(self.fd_part), os.lstat(self.part)):
                raise self.refuse("another file has taken the place of OUT.part")
            os.rename(self.part, self.path)
        self.fd_out, self.fd_part = self.fd_part, None
        store.seal()

    def discard_part(self):
        """Remove OUT.part if nothing was written to it."""
        fd = self.fd_part  # read only once: a thread that has just renamed the file makes it None
        with contextlib.suppress(OSError):  # it was renamed, or the folder is gone
            if fd is not None and os.fstat(fd).st_size == 0:
                os.unlink(self.part)


# The program, and what tracker.py shares with it. The fault: a terminal that nobody reads, options
# that make no sense, a signal at any time, a bug in one thread of many.

SHOW_SECONDS = (0.2, 5.0)    # between two progress lines: on a terminal, elsewhere
AT_THE_END = []              # what leave() calls first; appended to by the main thread
LEAVING = threading.Lock()   # held forever by the one thread that ends the process


def repeat(seconds, action):
    """Call `action` every `seconds`, in a thread of its own, until it returns False [CL-17]."""
    def run():
        began = time.monotonic()
        while True:
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            began = time.monotonic()
            if action() is False:
                return
    threading.Thread(target=run, name=action.__name__, daemon=True).start()


class Arguments(argparse.ArgumentParser):
    """An argparse parser whose errors take one line."""

    def error(self, message):
        raise Fatal(EXIT_USAGE, f"{show_name(message)}; see --help")


def expected(what, text):
    """The error for an argument that is not what was expected."""
    return argparse.ArgumentTypeError(f"expected {what}, got {show_name(text)}")


def size_in_bytes(text, least=1):
    """262144, 256K, 1.5M, 2G, 2GB, 2GiB: bytes, or bytes per second."""
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = {"K": KIB, "M": MIB, "G": GIB}.get(number[-1:], 1)
    with contextlib.suppress(ValueError, OverflowError):
        size = int(float(number[:-1] if unit > 1 else number) * unit)
        if size >= least:
            return size
    raise expected(f"a size such as 65536, 256K, 1.5M or 2G, and {least} at least", text)


def port_number(text):
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise expected("a port from 0 to 65535", text)
    return int(text)


def seconds_above_zero(text):
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e9:
            return float(text)
    raise expected("a number of seconds above 0", text)


def tracker_address(text):
    """(host, port) of host:port, or of a host alone: the default port is 8000."""
    bare = ":" not in text or text.endswith("]")
    try:
        host, port = parse_address(f"{text}:{TRACKER_PORT}" if bare else text)
        host.encode("idna")  # UnicodeError, a ValueError, if it cannot be a name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return host, port


def add_common_arguments(parser, port):
    """The options that peer and tracker share."""
    add = parser.add_argument
    add("--host", default="", metavar="H", type=lambda text: text.strip("*[]"),
        help="address to listen on (default: all)")
    add("--port", type=port_number, default=port, metavar="N",
        help="port to listen on, 0: any free one (default: %(default)s)")
    add("--upload-limit", type=functools.partial(size_in_bytes, least=SLOWEST_LINK), metavar="RATE",
        help="bytes per second sent to all neighbors together (default: no limit)")  # [FC-11]
    add("--events", metavar="FILE",
        help="append one JSON object a line for everything that happens")
    add("--quiet", action="store_true", help="say nothing but errors")
    add("--version", action="version", version=f"%(prog)s {VERSION}")


def human(size):
    """A number of bytes, written for people."""
    power = min(max(int(size).bit_length() - 1, 0) // 10, 3)
    return f"{size / KIB ** power:.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


class Screen:
    """Lines for people, from any thread. If stdout is closed, they end; if stuck, some are lost."""

    def __init__(self, quiet):
        self.quiet = quiet or sys.stdout is None  # None: it started without descriptor 1
        self.terminal = not self.quiet and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if not self.quiet:
            sys.stdout.reconfigure(errors="backslashreplace")  # a name it cannot show
        self.status_at = time.monotonic()
        self.lock = threading.Lock()  # one line at a time

    def say(self, line):
        self.write(("\r\x1b[K" if self.terminal else "") + line + "\n")

    def status(self, line):
        """The progress line: overwritten on a terminal, now and then a plain line elsewhere."""
        if time.monotonic() - self.status_at >= SHOW_SECONDS[not self.terminal]:
            self.status_at = time.monotonic()
            width = shutil.get_terminal_size().columns - 1  # as it is now
            self.write("\r\x1b[K" + line[:width] if self.terminal else line + "\n")

    def write(self, text):
        if self.quiet:
            return
        with self.lock:
            try:
                if not select.select([], [sys.stdout], [], 0)[1]:
                    return  # a stopped terminal, a full pipe: a line is lost, and nobody waits
                sys.stdout.write(text)
                sys.stdout.flush()
            except OSError:
                self.quiet = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the last flush would complain


class Events:
    """Appends events to a file, a JSON object per line, whole lines from any thread [CL-15]."""

    def __init__(self, path, *taken):
        if os.path.realpath(path) in map(os.path.realpath, taken):
            raise Fatal(EXIT_USAGE, f"expected a file of its own for events, got {show_name(path)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        with fatal_if_it_fails(EXIT_USAGE, f"cannot write events to {show_name(path)}"):
            self.fd = os.open(path, flags, 0o666)

    def __call__(self, event, **fields):
        line = json.dumps({"t": round(time.monotonic(), 6), "event": event, **fields}) + "\n"
        with contextlib.suppress(OSError):  # a full disk must not end an upload
            os.write(self.fd, line.encode())


def leave(code, last_words=""):
    """End the process at once, without waiting for threads in the middle of a chunk."""
    LEAVING.acquire()
    for act in AT_THE_END:
        act()
    for stream, words in ((sys.stdout, ""), (sys.stderr, last_words)):
        with contextlib.suppress(OSError, AttributeError):  # nobody reads it, or it is closed
            stream.write(words)
            stream.flush()
    os._exit(code)


def leave_on_signals():
    """Have SIGINT and SIGTERM end the process, from a thread that waits for them [CL-9]. Python
    calls a handler in the main thread alone, and only once that returns from C code: looking up a
    name can keep it there for many seconds. Signals that were ignored stay ignored."""
    codes = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}
    heard = [number for number in codes if signal.getsignal(number) != signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # in all threads that start from here on
    threading.Thread(target=lambda: leave(codes[signal.sigwait(heard)]), daemon=True).start()


def run_to_exit(program, run):
    """End the process with the exit code that run() returns, or that of an exception in any thread:
    without the thread that died, the program might hang [CL-9, CL-16]."""
    threading.excepthook = lambda args: fail(program, args.exc_value)
    leave_on_signals()
    try:
        leave(run())
    except SystemExit as end:  # of argparse, after --help
        leave(end.code or EXIT_COMPLETE)
    except Exception as error:
        fail(program, error)


def fail(program, error):
    """End the process with the line of a Fatal, or the traceback of a bug."""
    if isinstance(error, Fatal):
        leave(error.code, f"{program}: {error}\n")
    sys.excepthook(type(error), error, error.__traceback__)
    leave(EXIT_BUG)


def parse_arguments(argv=None):
    parser = Arguments(prog="peer.py", description="Fetch a file from a swarm, and seed it.")
    add = parser.add_argument
    add("tracker", type=tracker_address, metavar="TRACKER:PORT",
        help="where the file's tracker listens; without :PORT at 8000")
    add("out", metavar="OUT", nargs="?", default=".", help="file to write, or folder (default: .)")
    leaving = parser.add_mutually_exclusive_group()
    leaving.add_argument("--leave", action="store_true", help="leave once the file is complete")
    leaving.add_argument("--seed-for", type=seconds_above_zero, metavar="S",
                         help="leave this many seconds after it is complete")
    add("--expect", metavar="ID", help="refuse any file but the one with this content id")
    add("--force", action="store_true", help="replace OUT if it is another file")
    add_common_arguments(parser, 0)
    return parser.parse_args(argv)


def progress(file, left, history, neighbors):
    """The progress line: percentage, rate, neighbors, time left; `left` bytes are missing."""
    (since, before), (now, received) = history[0], history[-1]
    rate = (received - before) / max(now - since, 0.001)
    remaining = f"{datetime.timedelta(seconds=round(left / rate))} left" if rate else "waiting"
    return (f"{100 * (1 - left / file.size):5.1f} %  {human(rate)}/s"
            f"  {neighbors} neighbor{'s' * (neighbors != 1)}  {remaining}")


def download(peer, screen):
    """Wait for every chunk, showing progress; Fatal if OUT.part or the swarm is lost [SW-7]."""
    history = [(time.monotonic(), 0)]
    lonely = 0.0  # seconds without a useful neighbor, except while the host was suspended
    while not peer.complete.wait(SHOW_SECONDS[0]):
        now = time.monotonic()
        with peer.lock:
            useful, received = peer.picker.useful(), peer.received
            neighbors, missing = len(peer.neighbors), peer.picker.all & ~peer.picker.held
            trouble = f"; the last failure: {peer.trouble}" if peer.trouble else ""
        left = min(missing.bit_count() * peer.file.chunk_size, peer.file.size)
        what = f"the missing {100 * left / peer.file.size:.1f} % ({human(left)}){trouble}"
        step = min(now - history[-1][0], 1.0)
        lonely = 0.0 if useful or received != history[-1][1] else lonely + step
        history = history[-15:] + [(now, received)]
        if not os.fstat(peer.store.fd).st_nlink:
            raise Fatal(EXIT_OUT, "OUT.part was taken away before it was complete; start again")
        if lonely > LOST_SECONDS:
            raise Fatal(EXIT_LOST, f"the swarm is lost: for {LOST_SECONDS:g} s no neighbor has had"
                        f" {what}; what came is kept, start again to go on")
        if lonely - step <= 1 < lonely:
            screen.say(f"waiting for a neighbor that has {what};"
                       f" giving up after {LOST_SECONDS:g} s")
        screen.status(progress(peer.file, left, history, neighbors))


def show_given(peer, screen):
    """From now on, show on a terminal how much was sent to others."""
    if screen.terminal:
        repeat(SHOW_SECONDS[0], lambda: screen.status(f"{human(peer.uploads.given)} sent"))


def summary(peer, args, seconds):
    """The line for a file that is complete."""
    moved = f"{human(peer.received)} received in {seconds:.1f} s"
    until = f"for {args.seed_for:g} s" if args.seed_for else "until Ctrl-C"
    after = "leaving" if args.leave else f"seeding on port {peer.server.port} {until}"
    return (f"complete: {show_name(args.out)}, {human(peer.file.size)}, every chunk verified;"
            f" {moved if peer.received else 'it was there already'}; {after}")


def verify(output, file, screen):
    """(Store, bitfield of the chunks that are there); says how much is there already."""
    store, held = output.open_store(file, lambda done: screen.status(
        f"verified {human(done)} of {human(file.size)}"))
    if held and held != all_of(file.count):
        here = held.bit_count() * file.chunk_size
        screen.say(f"resuming: {human(here)} of {human(file.size)} are here")
    return store, held


def run():
    """The program: claim OUT, join, fetch, seed. Returns the exit code."""
    args = parse_arguments()
    screen = Screen(args.quiet)
    events = Events(args.events, args.out, f"{args.out}.part") if args.events else None
    output = None if os.path.isdir(args.out) else Output(args.out, args.force)
    peer = Peer(args.tracker, args.host, args.port, args.upload_limit, events, screen.say)
    peer.events("start", wall=time.time(), port=peer.server.port, out=args.out,
                upload_limit=args.upload_limit)
    peer.join()
    content_id = peer.file.content_id.hex()
    if args.expect is not None and args.expect.lower() != content_id:  # [FD-4]
        raise Fatal(EXIT_CONTENT, f"expected content id {show_name(args.expect)}, got {content_id}")
    if output is None:
        args.out = os.path.join(args.out, safe_name(peer.file.name))
        output = Output(args.out, force=False)
    began = time.monotonic()
    store, held = verify(output, peer.file, screen)
    peer.begin(store, held, lambda: output.finish(store))
    download(peer, screen)
    screen.say(summary(peer, args, time.monotonic() - began))
    if not args.leave:
        show_given(peer, screen)
        threading.Event().wait(args.seed_for)
    return EXIT_COMPLETE


if __name__ == "__main__":
    run_to_exit("peer.py", run)
