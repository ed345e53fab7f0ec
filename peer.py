#!/usr/bin/env python3
"""A peer: it fetches one file from a swarm, checks every byte of it, and gives what it has to others.

    python peer.py TRACKER:PORT OUT          download, then go on seeding until Ctrl-C
    python peer.py TRACKER:PORT OUT --leave  download, then leave

What it promises is written in lab/SPEC.md; the numbers in brackets, such as [FC-9], are its clauses.

Reading order, which is the order of this file:

    constants   every bound and every time, with its unit and its reason
    errors      what a network does, and what ends the program
    wire        one message in one frame; one chunk in one frame
    server      a thread per connection, answers by the name of the request
    clock       a timer that repeats, waits that a signal ends
    file        its description, its chunks on disk, its name on disk
    choosing    which chunk to ask of which neighbor, who may have one: no thread, no socket, no clock
    uploads     a pace that is not exceeded
    peer        what it answers, what it asks
    main        arguments, progress, exit codes

Threads. One accepts connections, and each connection that is accepted has one (Server). Each
neighbor that this peer asks has one (Peer.fetch_from); what they receive is verified and written by
one per core, four at most (Peer.verify_arrivals). Three timers send proofs, ask for the peer list and
dial neighbors. Hashing uses one thread per core, four at most (hash_chunks). Join runs in its own
thread, so that a signal can interrupt it (in_a_thread). The main thread shows progress and sees signals.

                  Join, Active Proof, Peer List
        +---------+   (timers)          +-------------+
        | tracker | <------------------ |             |  Chunks Query, Fetch Chunk   +----------+
        +---------+                     |    this     | ---------------------------> | neighbor |
        +----------+                    |    peer     |   (a thread per neighbor)    +----------+
        | neighbor | -----------------> |             | --- pwrite, rename ---> OUT
        +----------+  Chunks Query,     +-------------+
                      Fetch Chunk (a thread per connection)

Locks. Server.lock, Peer.lock, Uploads.lock, Repeat.lock and Screen.lock; what each one guards
stands where it is made. No thread holds two, and none is held during network or disk traffic; Screen.lock
is held while a line is written, which does not wait.
"""

import argparse
import collections
import contextlib
import errno
import fcntl
import hashlib
import heapq
import json
import os
import queue
import random
import select
import signal
import socket
import socketserver
import stat
import struct
import sys
import threading
import time

from google.protobuf.message import DecodeError

import messages_pb2
from messages_pb2 import Request, Response

VERSION = "1.0"


# ---------------------------------------------------------------------------------------------
# Constants. Times are in seconds, sizes in bytes. Tests shrink them, so they are looked up when
# they are used and never bound to a default argument.

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

CHUNK_SIZE = 256 * KIB           # of a file, unless chosen otherwise
MAX_CHUNKS = 16_384              # of a file: their digests fit in half a MiB
MAX_CHUNK_SIZE = 16 * MIB        # a chunk is in memory whole while it is checked
DIGEST_SIZE = 32                 # SHA-256

MAX_REQUEST = 64 * KIB           # a request is tiny; more is a mistake or an attack [WF-5]
MAX_ANSWER = 8 * MIB             # a tracker's: 100,000 addresses and 16,384 digests
MAX_LIST = 256 * KIB             # a neighbor's list of chunks: 16,384 ids of at most 7 bytes, and a margin
ANSWER_MARGIN = 64 * KIB         # an answer to Fetch Chunk may be this much longer than the chunk
FRAME_SECONDS = 10.0             # for a whole request frame, and for silence within any frame [WF-9]
SLOWEST_LINK = 4 * KIB           # bytes per second that a long frame must keep up [FC-11]
CONNECT_SECONDS = 5.0            # a neighbor that does not answer SYN for so long is not there
IDLE_SECONDS = 60.0              # a client that has no further request for so long is sent home
MAX_CONNECTIONS = 512            # at a server, each with its thread [WF-13]
DESCRIPTORS_PAUSE = 0.05         # when there is none left, before the next accept: no spin

LEASE_SECONDS = 10.0             # a peer that was not heard of for so long is gone
PROOF_SHARE = 0.3                # of a lease, between two proofs: one in three may get lost [AP-4]
TRACKER_SECONDS = 30.0           # so long a peer tries to reach its tracker before it joined [CL-10]
REFRESH_SECONDS = 1.0            # between two looks at the neighbors [PL-5, SW-8]
PEER_LIST_SECONDS = 5.0          # between two peer lists of a leecher that has enough useful neighbors
ENOUGH_NEIGHBORS = 4             # so many; with fewer it asks at every look

MAX_NEIGHBORS = 50               # asked at a time: as many threads, and more would know nothing more
MAX_CONTACTS = 1_000             # addresses remembered: a list may be as long as it likes [PL-4]
REDIAL_SECONDS = (0.5, 60.0)     # pause after the first failure; it doubles up to the second [SW-6]
MAX_BROKEN_PROMISES = 3          # listed chunks refused in a row; one wrong byte is enough [FC-9, FC-10]
BUSY_SECONDS = (0.05, 1.0)       # pause after BUSY: at least, if no time was told; at most, if one was [FC-7]
BUSY_PATIENCE = 25               # after this many BUSY in a row the least holds whatever time was told
RETRY_SPREAD = (0.7, 1.3)        # a pause is multiplied by a random factor from here: no marching in step
LATE_SECONDS = (0.2, 2.0)        # a chunk is late after twice a usual exchange, within these bounds [SW-5]
NEWS_SECONDS = 1.0               # the longest wait for news, asked for or granted [CQ-6]
NEWS_PAUSE = 0.25                # before asking again a neighbor that cannot wait and had no news
VERIFIERS = 4                    # threads that verify and write, at most; otherwise one per core

UPLOAD_SLOTS = 6                 # chunks on their way out: a few connections alone do not fill a real uplink
PACED_SLOTS = 2                  # under an upload limit: one is sent and one waits, so that there is no gap
BUSY_AFTER = 0.005               # wait this long for a slot before saying BUSY
SEND_SLICE = 64 * KIB            # sent at a time: a sipping reader can exceed its deadline by one slice
UNSENT_BYTES = 32 * KIB          # of a chunk in the socket's buffer: a slot is free once its chunk has left
PACE_BURST = 0.05                # seconds of upload that may be made up for when a sender was late [CL-14]
RECEIVE_MEMORY = 16 * MIB        # for chunks on their way in, all together,
FEWEST_BUFFERS = 4               # but for so many at least, however large: who waits for memory makes its sender hang up
LOST_SECONDS = 60.0              # nobody has what is missing for so long: the swarm is lost [SW-7]
SIGNAL_SECONDS = 0.2             # so late a signal may be seen, at the worst
SHOW_SECONDS = (0.2, 5.0)        # between two progress lines: on a terminal, elsewhere

EXIT_COMPLETE, EXIT_USAGE, EXIT_NO_TRACKER, EXIT_CONTENT, EXIT_OUT = 0, 2, 3, 4, 5
EXIT_DISK_FULL, EXIT_LOST, EXIT_FILE, EXIT_PORT, EXIT_BUG = 6, 7, 8, 9, 70
EXIT_SIGINT, EXIT_SIGTERM = 130, 143


# ---------------------------------------------------------------------------------------------
# Errors. OSError is what a network does; ProtocolError is what the program at its other end does
# wrong. Both end one exchange or one connection, never the program. Fatal ends the program. What is
# none of the three is a bug, and is not caught.


class ProtocolError(Exception):
    """The other side sent something that it must not send."""


class Closed(ProtocolError):
    """The other side closed the connection where a frame should have begun."""


class WrongChunk(ProtocolError):
    """The other side sent bytes that are not the chunk's [FC-9]."""


class BrokenPromises(ProtocolError):
    """The other side refused chunks that it had listed, too often [FC-10]."""


class Fatal(Exception):
    """The program ends with this exit code and this one line."""

    def __init__(self, code, line):
        super().__init__(line)
        self.code = code


# ---------------------------------------------------------------------------------------------
# Wire. One message, one frame: 8 bytes of length, big-endian, then the message [WF-1]. TCP carries
# bytes, not messages: a recv may bring half a length or three frames, so every read here says how
# many bytes it wants and goes on until it has them [WF-2].


def wait_at_most(sock, option, deadline, silence=None):
    """Let the kernel end a receive (SO_RCVTIMEO) or send (SO_SNDTIMEO) at `deadline`, or after FRAME_SECONDS of silence.

    A timeout of Python's would cost a poll before every call; here one recv brings a whole chunk.
    """
    seconds = min(deadline - time.monotonic(), silence or FRAME_SECONDS)
    if seconds <= 0:
        raise TimeoutError("the time for this frame is up")
    whole = int(seconds)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, max(1, int((seconds - whole) * 1e6))))


def read_exactly(sock, view, deadline):
    """Fill `view` from the socket by `deadline` (monotonic), with no silence of FRAME_SECONDS.

    The deadline is for all of it: a timeout for each recv would let a client send one byte now and
    then for ever [WF-9].
    """
    got = 0
    while got < len(view):
        wait_at_most(sock, socket.SO_RCVTIMEO, deadline)
        try:
            count = sock.recv_into(view[got:], 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise TimeoutError(f"expected {len(view)} bytes in time, got {got}") from None
        if count == 0:
            raise ProtocolError(f"closed after {got} of {len(view)} bytes")
        got += count


def for_request(length):
    """Seconds that a request frame may take [WF-9]."""
    return FRAME_SECONDS


def for_answer(length):
    """Seconds that an answer, or a chunk on its way out, of so many bytes may take [FC-11, FC-14]."""
    return FRAME_SECONDS + length / SLOWEST_LINK


def read_frame(sock, limit, wait, patience, room=bytearray):
    """The next frame's message, as a view of the memory that room(length) gives.

    It must begin within `wait` seconds, and be whole patience(length) seconds later; Closed if the
    other side has no more to say. The length is a stranger's word: it is checked before any memory
    is reserved for it [WF-5].
    """
    head = memoryview(bytearray(8))
    wait_at_most(sock, socket.SO_RCVTIMEO, time.monotonic() + wait, wait)
    try:
        count = sock.recv_into(head)
    except BlockingIOError:
        raise TimeoutError(f"expected a frame to begin within {wait:g} s") from None
    if count == 0:
        raise Closed("closed where a frame should begin")
    began = time.monotonic()
    read_exactly(sock, head[count:], began + FRAME_SECONDS)
    length = int.from_bytes(head, "big")
    if length > limit:
        raise ProtocolError(f"expected a frame of at most {limit} bytes, got a length of {length}")
    view = memoryview(room(length))[:length]
    read_exactly(sock, view, began + patience(length))
    return view


def send_exactly(sock, data, deadline, flags=0):
    """Send all of `data` by `deadline`."""
    view = memoryview(data)
    while view:
        wait_at_most(sock, socket.SO_SNDTIMEO, deadline)
        try:
            view = view[sock.send(view, flags):]
        except BlockingIOError:
            raise TimeoutError("the other side stopped reading") from None


def parse(kind, frame):
    """The message in a frame: `kind` is Request or Response [WF-6]."""
    try:
        return kind.FromString(bytes(frame))
    except (DecodeError, ValueError):  # the second from a protobuf without its C part, for text that is not UTF-8
        raise ProtocolError(f"expected a {kind.__name__}, got {len(frame)} bytes that are none") from None


def send_message(sock, message):
    """Send one message in one frame."""
    body = message.SerializeToString()
    send_exactly(sock, struct.pack(">Q", len(body)) + body, time.monotonic() + for_answer(len(body)))


def bad(code, reason):
    """The answer that refuses a request: a code for programs, a reason for people."""
    return Response(bad=Response.Bad(code=code, reason=reason))


def varint(number):
    """A number as protobuf writes it: seven bits a byte, the lowest first, high bit set on all but the last."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


CHUNK_TAG = b"\x2a"  # field 5, length-delimited: `chunk` in Response


def chunk_head(length):
    """All of a chunk's frame that stands before its bytes, so that these can go from disk to socket."""
    field = CHUNK_TAG + varint(length)
    return struct.pack(">Q", len(field) + length) + field


def chunk_in(frame, length):
    """The chunk of this length that a Response carries and nothing else, without copying it; None: let protobuf look."""
    head = chunk_head(length)[8:]
    return frame[len(head):] if len(frame) == len(head) + length and frame[:len(head)] == head else None


def show_name(text):
    """Text from elsewhere made fit for a terminal: what is not printable is escaped [FD-5]."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def parse_address(text):
    """(host, port) of "host:port" or "[host]:port"; ValueError says what was expected."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or host in ("", "[]") or (":" in host and not bracketed):
        raise ValueError(f"expected host:port or [host]:port, got {show_name(text)}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"expected a port from 1 to 65535, got {show_name(port)}")
    return (host[1:-1] if bracketed else host), int(port)


def plain_ip(host):
    """An IPv4 address that an IPv6 socket shows as ::ffff:1.2.3.4, as IPv4; others as they are."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host.partition("%")[0]


def parse_ip_address(text):
    """parse_address for what comes over the network: no name is looked up for a stranger [JN-4]."""
    host, port = parse_address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return plain_ip(socket.inet_ntop(family, socket.inet_pton(family, host))), port  # one spelling for each
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


# Without it a whole chunk fits into the socket's buffer, and counts as sent when it has hardly left.
NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 0x201 if sys.platform == "darwin" else None)


def prepare(sock):
    """Make a new connection ready: it blocks, within the kernel's timeouts, and sends small requests at once."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if NOTSENT_LOWAT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, UNSENT_BYTES)


class Link:
    """The asking end of a connection: requests, then their answers in the same order. Used by one thread at a time.

    It dials when it must: before the first request, and before the next one where the connection was
    closed. An answer must begin within `wait` seconds.
    """

    def __init__(self, address, wait=None):
        self.address = address
        self.wait = wait or FRAME_SECONDS
        self.sock = None
        self.round_trip = 0.0  # seconds: how long the other side's machine took to accept the connection
        self.answers = 0       # that came on this connection

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.sock is not None:
            self.sock.close()
            self.sock, self.answers = None, 0

    def hang_up(self):
        """End the connection from another thread: the one that uses it sees its end."""
        if (sock := self.sock) is not None:
            hang_up(sock)

    def dial(self):
        began = time.monotonic()
        self.sock = socket.create_connection(self.address, timeout=CONNECT_SECONDS)
        self.round_trip = time.monotonic() - began
        prepare(self.sock)

    def send(self, request):
        """Send a request; OSError, ProtocolError."""
        if self.sock is None:
            self.dial()
        send_message(self.sock, request)

    def receive(self, limit, room=bytearray):
        """The frame that answers the oldest request that has no answer yet; OSError, ProtocolError."""
        frame = read_frame(self.sock, limit, self.wait, for_answer, room)
        self.answers += 1
        return frame


# ---------------------------------------------------------------------------------------------
# Server. socketserver accepts and gives each connection a thread; what is added is a bound on
# their number and a deadline on their patience. It knows frames and requests, no files, no peers:
# the actor (a Peer, a Tracker) has a method for each request that it answers, called by its name.


def hang_up(sock):
    """End a connection that another thread reads from: that thread sees its end."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself


def has_ipv6():
    """Whether one socket here can listen on IPv6 and IPv4 at once."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


class Connection(socketserver.BaseRequestHandler):
    """The server's end of one connection, in its own thread: request, answer, request, answer [WF-3]."""

    def handle(self):
        try:
            prepare(self.request)
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
            return bad(messages_pb2.NO_TYPE, "expected one of the five requests, got none that is known")
        method = getattr(self.server.actor, "on_" + kind, None)
        if method is None:
            return bad(messages_pb2.WRONG_ROLE, f"{kind} is not answered here: this is a {type(self.server.actor).__name__.lower()}")
        return method(getattr(request, kind), self.request)


class Server(socketserver.ThreadingTCPServer):
    """Answers frames on `host`:`port`; port 0 lets the system choose, `port` tells what it chose."""

    allow_reuse_address = True   # a restart need not wait for TIME_WAIT to end
    request_queue_size = 128     # socketserver's 5 loses connections when many peers join at once
    daemon_threads = True        # an idle client does not keep the program from ending,
    block_on_close = False       # nor server_close() from returning

    def __init__(self, host, port, actor):
        self.actor = actor
        self.lock = threading.Lock()
        self.room = threading.Condition(self.lock)  # announces: a connection was closed
        # guarded by lock:
        self.connections = set()  # sockets that are open
        self.waiting = {}         # those of them that wait for a request, the longest first
        try:
            super().__init__(self.listen_at(host, port), Connection)
        except OSError as error:
            remedy = "give an address of this machine with --host" if error.errno == errno.EADDRNOTAVAIL else "choose another with --port"
            raise Fatal(EXIT_PORT, f"cannot listen on port {port}: {os.strerror(error.errno)}; {remedy}") from None
        self.port = self.server_address[1]

    def listen_at(self, host, port):
        """The address to bind, and its family; without a host all addresses, IPv6 and IPv4 at once where both work."""
        if not host:
            self.address_family = socket.AF_INET6 if has_ipv6() else socket.AF_INET
            return ("::" if has_ipv6() else "0.0.0.0", port)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:  # the second for a name that can be none, such as a..b
            raise Fatal(EXIT_PORT, f"cannot listen on {show_name(host)}: {error}; give an address of this machine with --host") from None
        self.address_family = found[0][0]
        return found[0][4]

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def start(self):
        """Accept connections, in a thread of its own."""
        threading.Thread(target=self.serve_forever, name="accept", daemon=True).start()

    def get_request(self):
        try:
            sock, address = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self.make_room():
                time.sleep(DESCRIPTORS_PAUSE)  # select would report the same connection at once, again and again
            raise
        return sock, address

    def verify_request(self, request, client_address):
        """Whether there is room for one more connection, if need be at the cost of an idle one [WF-13]."""
        with self.lock:
            crowded = len(self.connections) >= MAX_CONNECTIONS
        if crowded and not self.make_room():
            return False
        with self.lock:
            self.connections.add(request)
        return True

    def make_room(self):
        """End the connection that has waited longest for a request; False if all are being answered."""
        with self.lock:
            if not self.waiting:
                return False
            sock = next(iter(self.waiting))
            del self.waiting[sock]
        hang_up(sock)  # its thread reads the end, and closes it
        with self.room:
            return self.room.wait_for(lambda: sock not in self.connections, timeout=2 * NEWS_SECONDS)

    def close_request(self, request):
        super().close_request(request)
        with self.room:
            self.connections.discard(request)
            self.room.notify_all()

    def await_request(self, sock):
        """The connection's next request; Closed when the client has no more, TimeoutError when it was idle for too long."""
        with self.idle(sock):
            return parse(Request, read_frame(sock, MAX_REQUEST, IDLE_SECONDS, for_request))

    @contextlib.contextmanager
    def idle(self, sock):
        """Meanwhile the connection may be ended to make room for another."""
        with self.lock:
            self.waiting[sock] = None
        try:
            yield
        finally:
            with self.lock:
                self.waiting.pop(sock, None)


# ---------------------------------------------------------------------------------------------
# Clock. All times are time.monotonic(): setting the machine's clock changes nothing here [CL-17].


class Repeat:
    """Calls `action` every `seconds`, on threading.Timer. A Timer fires once, so each one makes the next."""

    def __init__(self, seconds, action):
        self.seconds = seconds
        self.action = action
        self.lock = threading.Lock()
        # guarded by lock:
        self.stopped = False
        self.timer = None

    def start(self, late=0.0):
        """Begin; the first call comes after `seconds`, less what the last one took."""
        with self.lock:
            if not self.stopped:
                self.timer = threading.Timer(max(0.0, self.seconds - late), self.fire)
                self.timer.daemon = True  # to be set on the object: as a class attribute it is ignored
                self.timer.start()

    def fire(self):
        began = time.monotonic()
        self.action()
        self.start(time.monotonic() - began)

    def stop(self):
        with self.lock:
            self.stopped = True
            if self.timer is not None:
                self.timer.cancel()


def wait_for(event, seconds=float("inf")):
    """Wait for a threading.Event in the main thread; whether it came. In steps, for one endless wait may sleep through a signal [CL-9]."""
    give_up = time.monotonic() + seconds
    while not event.wait(min(SIGNAL_SECONDS, max(0.0, give_up - time.monotonic()))):
        if time.monotonic() >= give_up:
            return False
    return True


def in_a_thread(call):
    """The result of call(), or what it raises. It runs in a thread of its own, so that a signal ends the wait.

    A name that is looked up keeps its thread in C for many seconds, where no signal is seen [CL-9].
    """
    ended = threading.Event()
    results, errors = [], []

    def run():
        try:
            results.append(call())
        except Exception as error:  # the caller's to handle
            errors.append(error)
        ended.set()

    threading.Thread(target=run, name="in a thread", daemon=True).start()
    wait_for(ended)
    if errors:
        raise errors[0]
    return results[0]


# ---------------------------------------------------------------------------------------------
# File. A Description says what the bytes must be, a Store has them on disk, an Output knows under
# which names. Chunks are counted by index (0, 1, 2 ...) inside the program, and by id, their byte
# offset, on the wire. A set of chunks is a bitfield: an int whose bit i stands for the chunk with
# index i, so that "what it has, I have not, and nobody was asked for" is `theirs & ~mine & ~asked`,
# in well under a microsecond for thousands of chunks.


def all_of(count):
    """The bitfield of `count` chunks, all set."""
    return (1 << count) - 1


def bits_of(indexes):
    """The bitfield of some indexes."""
    bits = 0
    for index in indexes:
        bits |= 1 << index
    return bits


def indexes(bits):
    """The indexes in a bitfield, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class Description:
    """What a swarm distributes: name, size and chunk size in bytes, and one digest for each chunk [FD-1]."""

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
        """Check what a tracker sent before anything is made of it; Fatal [FD-3]."""
        if not 1 <= file.chunk_size <= MAX_CHUNK_SIZE:
            raise Fatal(EXIT_CONTENT, f"expected a chunk size from 1 to {MAX_CHUNK_SIZE}, got {file.chunk_size} from the tracker")
        count = -(-file.size // file.chunk_size)
        if count > MAX_CHUNKS:
            raise Fatal(EXIT_CONTENT, f"expected at most {MAX_CHUNKS} chunks, got {count} from the tracker")
        if len(file.digests) != count * DIGEST_SIZE:
            raise Fatal(EXIT_CONTENT, f"expected {count * DIGEST_SIZE} bytes of digests, got {len(file.digests)} from the tracker")
        return cls(file.name, file.size, file.chunk_size, file.digests)

    def to_message(self):
        return messages_pb2.File(name=self.name, size=self.size, chunk_size=self.chunk_size, digests=self.digests)

    def index(self, chunk_id):
        """The index of the chunk with this id; None if the file has no such chunk [FC-4]."""
        index, rest = divmod(chunk_id, self.chunk_size)
        return index if rest == 0 and index < self.count else None

    def length(self, index):
        """Bytes in a chunk; the last one may be short [FC-2]."""
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def digest(self, index):
        return self.digests[index * DIGEST_SIZE:(index + 1) * DIGEST_SIZE]


def read_at(fd, buffer, offset):
    """What of the buffer an open file fills from this offset on: all of it, or less at the end of the file."""
    if hasattr(os, "preadv"):
        return buffer[:os.preadv(fd, [buffer], offset)]
    return os.pread(fd, len(buffer), offset)


def hash_chunks(fd, size, chunk_size, show=lambda done: None):
    """The digests of all chunks of an open file, as one bytes object.

    `show` is called now and then with the number of bytes done. One thread a core, each with every
    so-manyeth chunk: hashlib lets go of the interpreter lock.
    """
    count = -(-size // chunk_size)
    digests = bytearray(count * DIGEST_SIZE)
    done = [0] * min(os.cpu_count() or 1, 4)
    failed = []

    def work(worker):
        buffer = memoryview(bytearray(min(chunk_size, size)))  # one for all: new memory for each chunk costs more than the hash
        try:
            for index in range(worker, count, len(done)):
                chunk = read_at(fd, buffer[:size - index * chunk_size], index * chunk_size)
                digests[index * DIGEST_SIZE:(index + 1) * DIGEST_SIZE] = hashlib.sha256(chunk).digest()
                done[worker] += len(chunk)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(len(done))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(SHOW_SECONDS[0])
            show(sum(done))
    if failed:
        raise failed[0]
    return bytes(digests)


def send_some(sock, fd, offset, count):
    """How many of so many bytes of the file the socket has taken; 0: the file has no more."""
    try:
        return os.sendfile(sock.fileno(), fd, offset, count)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    chunk = os.pread(fd, count, offset)  # a file system that has no sendfile
    return sock.send(chunk) if chunk else 0


def send_file(sock, fd, offset, left, deadline):
    """Send so many bytes of an open file by `deadline`. TimeoutError if the asker stops reading, or only sips [FC-14].

    In slices, for one sendfile goes on for as long as a few bytes are read now and then.
    """
    while left:
        wait_at_most(sock, socket.SO_SNDTIMEO, deadline)
        try:
            sent = send_some(sock, fd, offset, min(left, SEND_SLICE))
        except BlockingIOError:
            raise TimeoutError("the asker stopped reading") from None
        if sent == 0:
            raise ProtocolError(f"the file ends {left} bytes early: it was cut short")  # our file, their end [FC-13]
        offset, left = offset + sent, left - sent


def disk_error(error):
    """The Fatal for an OSError of a file that is written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Fatal(EXIT_DISK_FULL, f"no room for the rest of the file: {error.strerror}; OUT.part is kept, make room and start again")
    return Fatal(EXIT_OUT, f"cannot write OUT.part: {error.strerror}")


class Store:
    """A file's chunks on disk, by index. Holds no lock: what is written when is the owner's business."""

    def __init__(self, fd, file):
        self.fd = fd
        self.file = file
        self.stamp = None  # (size, time of change) of a file that is complete, since when it is not ours to change

    def verify(self, show=lambda done: None):
        """The chunks that are there and right, as a bitfield [CL-4]."""
        found = hash_chunks(self.fd, self.file.size, self.file.chunk_size, show)
        return bits_of(index for index in range(self.file.count)
                       if found[index * DIGEST_SIZE:(index + 1) * DIGEST_SIZE] == self.file.digest(index))

    def write(self, index, chunk):
        """Write a chunk that was checked; a pwrite may be short. Fatal when there is no room [CL-11]."""
        offset = index * self.file.chunk_size
        try:
            while chunk:
                count = os.pwrite(self.fd, chunk, offset)
                chunk, offset = chunk[count:], offset + count
        except OSError as error:
            raise disk_error(error) from None

    def seal(self):
        """The file is complete: from now on a change of it is somebody else's [FC-13]."""
        self.stamp = self.look()

    def look(self):
        status = os.fstat(self.fd)
        return status.st_size, status.st_ctime_ns  # mtime can be turned back

    def intact(self, index):
        """Whether the chunk's bytes still are what they were when it was verified [FC-13].

        A look at size and time of change is enough while nobody touched the file; then it is read.
        """
        if self.stamp is None or self.stamp == self.look():
            return True
        chunk = os.pread(self.fd, self.file.length(index), index * self.file.chunk_size)
        return hashlib.sha256(chunk).digest() == self.file.digest(index)

    def send(self, sock, index, uploads, ticket):
        """Send a chunk as a whole frame; its bytes go from disk to socket without passing through here."""
        offset, left = index * self.file.chunk_size, self.file.length(index)
        deadline = time.monotonic() + for_answer(left) + (left * PACED_SLOTS / uploads.rate if uploads.rate else 0)
        send_exactly(sock, chunk_head(left), deadline, getattr(socket, "MSG_MORE", 0))
        while left:
            size = min(left, uploads.slice)
            uploads.pay(ticket, size)
            send_file(sock, self.fd, offset, size, deadline)
            offset, left = offset + size, left - size


class Output:
    """OUT and OUT.part: bytes go to the second, which becomes the first by one rename [CL-3].

    Making one claims them, before this peer joins: it looks whether OUT can be written at all, and
    locks it against a second process. Fatal says what is wrong [CL-5, CL-6, CL-7].
    """

    def __init__(self, path, force):
        self.path = path
        self.part = path + ".part"
        self.force = force
        self.fd_out = self.fd_part = None
        try:
            self.claim()
        except OSError as error:
            self.close()
            raise self.refuse(error.strerror) from None
        except Fatal:
            self.close()
            raise

    def refuse(self, reason):
        return Fatal(EXIT_OUT, f"cannot write {show_name(self.path)}: {reason}")

    def claim(self):
        """Open what is there: OUT, if it is to be kept, else OUT.part, new or from an earlier run."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            mode = None
        if os.path.basename(self.path) in ("", ".", "..") or mode is not None and stat.S_ISDIR(mode):
            raise self.refuse("expected a file name, got a directory")
        if mode is not None and stat.S_ISREG(mode):
            self.fd_out = self.lock(self.path, os.O_RDONLY)
        elif mode is not None and not (self.force and stat.S_ISLNK(mode)):
            raise self.refuse("expected a regular file, got a link or a device" + (" (--force replaces a link)" if stat.S_ISLNK(mode) else ""))
        if self.fd_out is None or self.force:
            self.fd_part = self.lock(self.part, os.O_RDWR | os.O_CREAT)

    def lock(self, path, flags):
        """Open a file and lock it for this process; the lock ends with the process, whatever ends it."""
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise self.refuse("another process is at work on it") from None
        except OSError:
            pass  # a file system that has no locks; digests still keep out what is wrong
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not os.path.samestat(os.fstat(fd), os.lstat(path)):
            os.close(fd)
            raise self.refuse(f"expected {show_name(path)} to be a regular file, and to stay it")
        return fd

    def open_store(self, file, show):
        """(Store, bitfield of the chunks that are there already) for the file that the swarm has [CL-4]."""
        if self.fd_out is not None:
            store = Store(self.fd_out, file)
            store.seal()
            if os.fstat(self.fd_out).st_size == file.size and self.verified(store, show) == all_of(file.count):
                self.discard_part()
                return store, all_of(file.count)
            if not self.force:
                raise self.refuse("it exists and is another file; choose another name, or replace it with --force")
        store = Store(self.fd_part, file)
        held = self.verified(store, show) if os.fstat(self.fd_part).st_size else 0
        try:
            os.ftruncate(self.fd_part, file.size)
        except OSError as error:
            raise disk_error(error) from None
        return store, held

    def verified(self, store, show):
        """Which chunks are there; a disk that cannot be read is Fatal."""
        try:
            return store.verify(show)
        except OSError as error:
            raise Fatal(EXIT_OUT, f"cannot read what is in {show_name(self.path)} or {show_name(self.part)}: {error.strerror}") from None

    def finish(self, store):
        """Every chunk is held: OUT.part becomes OUT, if it is not OUT already."""
        if store.fd == self.fd_out:
            return
        if not self.force and os.path.lexists(self.path):
            raise self.refuse("it has come to exist meanwhile; OUT.part is complete and kept")
        try:
            if not os.path.samestat(os.fstat(self.fd_part), os.lstat(self.part)):
                raise self.refuse("another file has taken the place of OUT.part")
            os.rename(self.part, self.path)
        except OSError as error:
            raise self.refuse(error.strerror) from None
        self.fd_out, self.fd_part = self.fd_part, None
        store.seal()

    def discard_part(self):
        """Leave no empty OUT.part behind."""
        fd = self.fd_part  # looked at once: a thread that has just renamed the file makes it None
        if fd is not None and os.fstat(fd).st_size == 0:
            os.unlink(self.part)

    def close(self):
        """Let go of OUT; an OUT.part in which nothing was written goes."""
        try:
            self.discard_part()
        except OSError:
            pass  # it was renamed, or the folder is gone
        for fd in {self.fd_out, self.fd_part} - {None}:
            os.close(fd)
        self.fd_out = self.fd_part = None


# ---------------------------------------------------------------------------------------------
# Choosing. Pure functions, the Picker that keeps what they need to know of others' chunks, and the Slots
# for our own: none has a thread, a socket or a clock.


def any_of(bits, count, rng):
    """One index of a bitfield: the first at or after a place drawn at random; None of an empty one."""
    if not bits:
        return None
    start = int(rng.random() * count)
    after = bits >> start
    if after:
        return start + (after & -after).bit_length() - 1
    return (bits & -bits).bit_length() - 1


def rarest_first(offered, levels, count, rng):
    """An index of `offered` that the fewest neighbors hold, at random among equals; None if there is none.

    `levels[k]` is the bitfield of the chunks that exactly k neighbors hold [SW-1].
    """
    if offered:
        for level in levels:
            if offered & level:
                return any_of(offered & level, count, rng)
    return None


def busy_pause(retry_seconds, times, rng):
    """Seconds before the next request to a neighbor that said BUSY, at random, lest all come back at once [FC-7].

    `retry_seconds` is how soon it expects to have a slot, 0 if it did not say; `times` how often in a row it said BUSY.
    """
    shortest, longest = BUSY_SECONDS
    least = shortest / RETRY_SPREAD[0] * (min(times / BUSY_PATIENCE, 1) if retry_seconds else 1)
    return min(max(retry_seconds, least), longest) * rng.uniform(*RETRY_SPREAD)


def requests_ahead(rate, round_trip, chunk_size):
    """How many requests beyond the first keep a link of `rate` bytes a second busy [FC-15].

    Twice what a round trip holds, so that a rate that was measured too low can grow.
    """
    return int(2 * rate * round_trip / chunk_size)


class Picker:
    """Which chunk to ask of which neighbor: all that a peer knows of who holds what.

    It has no thread, no socket and no clock, so that it can be tested and simulated; whoever uses
    it from several threads holds a lock meanwhile. A neighbor is any key of a dict.
    """

    def __init__(self, count, held=0, rng=None):
        self.count = count
        self.all = all_of(count)         # what there is
        self.held = held                 # chunks of our own
        self.asked = 0                   # chunks for which an exchange is under way
        self.claimed = 0                 # chunks that came and are written, or are being written
        self.under_way = {}              # index -> {neighbor: when it was asked}
        self.holds = {}                  # neighbor -> what it has listed
        self.levels = [self.all]         # levels[k]: chunks that exactly k neighbors hold; our own stay where they were
        self.typical = 0.0               # seconds that an exchange takes, a moving average
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
        """The neighbor holds these chunks too; how many of them are news."""
        listed = self.holds.get(neighbor, 0)
        news = bits & ~listed
        self.holds[neighbor] = listed | bits
        left = news & ~self.held  # how rare a chunk of our own is does not matter
        if left:
            self.raise_levels(left)
        return news.bit_count()

    def raise_levels(self, left):
        """One neighbor more holds each of these chunks."""
        levels = self.levels
        levels.append(0)  # there is a level above each
        for k, level in enumerate(levels):
            moved = level & left
            if moved:
                levels[k] ^= moved
                levels[k + 1] |= moved
                left ^= moved
                if not left:
                    break
        if not levels[-1]:
            levels.pop()

    def withdraw(self, neighbor, bits):
        """The neighbor does not hold these chunks, whatever it has said."""
        gone = bits & self.holds.get(neighbor, 0)
        self.holds[neighbor] = self.holds.get(neighbor, 0) & ~bits
        for k in range(1, len(self.levels)):
            moved = self.levels[k] & gone
            self.levels[k] ^= moved
            self.levels[k - 1] |= moved

    def forget(self, neighbor):
        """The neighbor is gone."""
        self.withdraw(neighbor, self.holds.get(neighbor, 0))
        self.holds.pop(neighbor, None)

    def knows_all(self, neighbor):
        """Whether this neighbor holds all that there is, and has no news to tell."""
        return self.holds.get(neighbor) == self.all

    def choose(self, neighbor, now):
        """The chunk to ask of this neighbor next, noted as under way; None if there is none."""
        wanted = self.wanted(neighbor)
        if not wanted:
            return None
        index = rarest_first(wanted & ~self.asked, self.levels, self.count, self.rng)
        if index is None:
            index = self.late(neighbor, wanted, now)
        if index is not None:
            self.ask(neighbor, index, now)
        return index

    def choose_instead(self, neighbor, index, now):
        """The chunk that the neighbor proposed, if it is wanted and not under way, noted as under way; else None."""
        if not (self.wanted(neighbor) & ~self.asked) >> index & 1:
            return None
        self.ask(neighbor, index, now)
        return index

    def ask(self, neighbor, index, now):
        self.under_way.setdefault(index, {})[neighbor] = now
        self.asked |= 1 << index

    def late_after(self):
        """Seconds after which a chunk that is under way is late [SW-5]."""
        return min(max(2 * self.typical, LATE_SECONDS[0]), LATE_SECONDS[1])

    def late(self, neighbor, wanted, now):
        """Endgame: all that is wanted is under way; a chunk for which one other has taken long is asked for twice [SW-5]."""
        wanted &= ~self.claimed
        for index, askers in self.under_way.items():
            if wanted >> index & 1 and len(askers) == 1 and neighbor not in askers:
                if now - min(askers.values()) > self.late_after():
                    return index
        return None

    def release(self, neighbor, index):
        """The exchange has ended, however it ended; when it began."""
        askers = self.under_way[index]
        since = askers.pop(neighbor)
        if not askers:
            del self.under_way[index]
            self.asked &= ~(1 << index)
        return since

    def claim(self, index):
        """The chunk has come: whether to write it, which another thread may have done, or be doing [FC-12]."""
        first = not self.claimed >> index & 1
        self.claimed |= 1 << index
        return first

    def arrived(self, index, seconds):
        """The chunk was written, after an exchange of so many seconds; False if we had it already [FC-12]."""
        self.typical += ((seconds - self.typical) / 8) if self.typical else seconds
        new = not self.held >> index & 1
        self.held |= 1 << index
        return new


def upload_slots(seconds):
    """Upload slots where a chunk takes so long at the upload limit, 0 without one [FC-6]."""
    if not seconds:
        return UPLOAD_SLOTS
    return PACED_SLOTS if seconds < FRAME_SECONDS / 2 else 1  # who waits behind a long one would hear nothing for too long [FC-11]


class Slots:
    """Who may have a chunk next. Like the Picker it can be simulated [FC-6].

    The first slot is anybody's. The others are not for a chunk that was given away before, as long as
    there are some that nobody else can give: it can be had elsewhere by now. Nor are they for who was
    served last, if somebody else was turned away since: he would come back first each time, and all
    would have to get it from him.
    """

    def __init__(self):
        self.active = 0           # slots that are taken
        self.sent = 0             # bitfield of the chunks that were given away, or are on their way
        self.sole = 0             # bitfield of the chunks that perhaps nobody else has: all of a seeder's
        self.served = []          # who got the last slots, the newest last
        self.turned_away = False  # somebody was, since the last slot was given

    def free(self, asker, index, patient, slots):
        """Whether there is a slot for this chunk. One who is patient, and would wait for ever, is not put behind."""
        if self.active == 0:
            return True
        if self.active >= slots:
            return False
        behind = self.given_away(index) or self.turned_away and asker in self.served
        return patient or not behind

    def given_away(self, index):
        """Whether this chunk is with somebody else by now, and others are not."""
        return self.sent >> index & 1 and self.sole & ~self.sent

    def instead(self, index, rng):
        """The index of a chunk that was not given away, to be asked for instead of one that was; None if there is none."""
        if not self.given_away(index):
            return None
        return any_of(self.sole & ~self.sent, self.sole.bit_length(), rng)

    def take(self, asker, index):
        self.active += 1
        self.sent |= 1 << index
        self.served = [*self.served, asker][-PACED_SLOTS:]
        self.turned_away = False

    def turn_away(self):
        self.turned_away = True

    def release(self):
        self.active -= 1


# ---------------------------------------------------------------------------------------------
# Uploads. The clock for what the Slots have let through: a pace that is not exceeded.


class Uploads:
    """Upload slots and the rate that they share. A chunk that came first is sent first, at the full rate [FC-6, CL-14].

    Two chunks that share the rate would both arrive when the second could have been there anyway, and
    the first could be passed on half the time earlier.
    """

    def __init__(self, rate=None):
        self.rate = rate  # bytes per second; None: as fast as it goes
        self.slice = max(1, min(64 * KIB, int(rate / 20))) if rate else MAX_CHUNK_SIZE  # bytes sent at a time: 50 ms worth of it
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # announces: a slot is free, or it is another chunk's turn
        # guarded by lock:
        self.slots = Slots()
        self.turned_away = 0                # askers, since the last upload ended
        self.interval = BUSY_SECONDS[0]     # seconds from the end of an upload to the end of the next, a moving average
        self.ended_at = time.monotonic()    # when the last one ended, or the first of a row began
        self.tickets = 0   # uploads that ever began: the lower its number, the sooner an upload goes on
        self.waiting = []  # heap of the tickets that wait for the rate
        self.free_at = time.monotonic()  # when all that was taken so far was paid for

    def check(self, file):
        """Fatal if a chunk would take longer than any asker waits for it [FC-11, CL-14]."""
        length = min(file.chunk_size, file.size)
        if self.rate and length / self.rate > for_answer(length):
            raise Fatal(EXIT_USAGE, f"expected an upload limit of at least {human(SLOWEST_LINK)} a second for chunks of {human(length)},"
                                    f" got {human(self.rate)}: whoever asks would give up before the end")

    def begin(self, asker, index, length, busy_ok):
        """The ticket for sending a chunk of so many bytes; None: BUSY, which is said only to those who allow it [FC-6]."""
        seconds = length / self.rate if self.rate else 0.0
        slots = upload_slots(seconds)
        patience = None if not busy_ok else BUSY_AFTER if seconds <= BUSY_AFTER else 0.0
        with self.changed:
            if not self.changed.wait_for(lambda: self.slots.free(asker, index, not busy_ok, slots), patience):
                self.slots.turn_away()
                self.turned_away += 1
                return None
            if not self.slots.active:
                self.ended_at = time.monotonic()
                self.free_at = max(self.free_at, self.ended_at)  # what was not used while nobody asked is lost
            self.slots.take(asker, index)
            self.tickets += 1
            return self.tickets

    def pay(self, ticket, count):
        """Wait until the rate has allowed for so many bytes, and no older upload wants them.

        They are paid for before they are sent, so that no chunk is there before its time.
        """
        if not self.rate:
            return
        with self.changed:
            heapq.heappush(self.waiting, ticket)
            self.free_at = max(self.free_at, time.monotonic() - PACE_BURST)
            while (wait := self.free_at + count / self.rate - time.monotonic()) > 0 or self.waiting[0] != ticket:
                self.changed.wait(wait if wait > 0 else None)
            heapq.heappop(self.waiting)
            self.free_at += count / self.rate
            self.changed.notify_all()

    def end(self):
        """The upload has ended, however it ended."""
        with self.changed:
            now = time.monotonic()
            self.interval += (now - self.ended_at - self.interval) / 4
            self.ended_at, self.turned_away = now, 0
            self.slots.release()
            self.changed.notify_all()

    def busy(self, index):
        """(seconds until it is this asker's turn, index of a chunk to ask for instead or None), for who is told BUSY [FC-7]."""
        with self.lock:
            return self.interval * max(1, self.turned_away), self.slots.instead(index, random)


# ---------------------------------------------------------------------------------------------
# Peer.


def hosts_in_turn(addresses):
    """The first address of each host, then the second of each, and so on: one machine may list a thousand ports, all silent [JN-7]."""
    seen = {}

    def turn(address):
        seen[address[0]] = seen.get(address[0], 0) + 1
        return seen[address[0]]
    return sorted(addresses, key=turn)


class Contacts:
    """The addresses that this peer has heard of: which may be dialled, and when [PL-4, SW-6].

    Like a Picker it has no thread, no socket and no clock; its owner holds a lock.
    """

    def __init__(self):
        self.failures = {}   # address -> how often in a row it could not be talked to
        self.retry_at = {}   # address -> when it may be dialled again
        self.bans = {}       # addresses that are never dialled again, the oldest first; the values mean nothing

    def add(self, address):
        """Remember an address; when there are too many, the one that failed most gives way, or this one is passed over."""
        if address in self.failures or address in self.bans:
            return
        if len(self.failures) >= MAX_CONTACTS:
            worst = max(self.failures, key=self.failures.get)
            if not self.failures[worst]:
                return
            del self.failures[worst], self.retry_at[worst]
        self.failures[address] = 0
        self.retry_at[address] = 0.0

    def ready(self, now, neighbors):
        """The addresses that may be dialled now and are no neighbors: hosts in turn, and of each host those first that were never tried."""
        ready = [address for address, at in self.retry_at.items() if at <= now and address not in neighbors]
        random.shuffle(ready)
        return hosts_in_turn(sorted(ready, key=self.retry_at.get))

    def left(self, address, now, failed):
        """A neighbor is one no longer: it may be dialled again after a pause that doubles with each failure."""
        if address in self.bans:
            return
        self.failures[address] = self.failures.get(address, 0) + 1 if failed else 0
        self.retry_at[address] = now + min(REDIAL_SECONDS[0] * 2 ** min(max(self.failures[address] - 1, 0), 10), REDIAL_SECONDS[1])

    def gave(self, address):
        """A neighbor gave a chunk: its failures are forgotten."""
        if address in self.failures:
            self.failures[address] = 0

    def ban(self, address):
        """Never again, for as long as this peer runs, or until as many others were banned as may be remembered [FC-9, FC-10]."""
        self.failures.pop(address, None)
        self.retry_at.pop(address, None)
        self.bans[address] = True
        if len(self.bans) > MAX_CONTACTS:
            del self.bans[next(iter(self.bans))]

    def banned(self, address):
        return address in self.bans


class Neighbor:
    """A peer that this peer asks, in a thread of its own (Peer.fetch_from)."""

    def __init__(self, address):
        self.address = address
        self.name = format_address(address)
        # of its thread alone:
        self.asked = collections.deque()  # requests without an answer yet, the oldest first: (index or None for Chunks Query, when)
        self.known = 0                    # chunk ids that it listed on this connection [CQ-3]
        self.heard = False                # it has answered Chunks Query on this connection
        self.heard_at = 0.0               # when it did so last
        self.rest_until = 0.0             # no request for a chunk before
        self.instead = None               # index of the chunk that it proposed when it said BUSY
        self.busy = 0                     # how often in a row it said BUSY
        self.broken = 0                   # promises broken in a row [FC-10]
        self.rate = 0.0                   # bytes per second while chunks are under way, a moving average
        self.took_at = 0.0                # when its last chunk had come
        self.link = None                  # its connection
        # written by a thread that verifies, once:
        self.failure = None               # the WrongChunk that it sent
        # guarded by Peer.lock:
        self.leaving = False              # to make room for another, or because it is banned

    def chunks_asked(self):
        """How many requests for chunks have no answer yet."""
        return sum(index is not None for index, _ in self.asked)


class Peer:
    """One member of a swarm. `tracker` is (host, port); events and say are called from any thread.

    Life: __init__ listens, join() asks the tracker, begin(store) answers and asks others. It
    ends with its process: its threads are daemons, and wait for nobody.
    """

    def __init__(self, tracker, host="", port=0, upload_limit=None, events=None, say=None):
        self.tracker = tracker
        self.uploads = Uploads(upload_limit)
        self.events = events or (lambda event, **fields: None)
        self.say = say or (lambda line: None)
        self.file = None           # Description, from join() on
        self.store = None          # from begin() on
        self.finish = None         # what to do when the last chunk was written
        self.done = threading.Event()    # complete, or failed
        self.failed = threading.Event()  # failure is set
        self.failure = None        # a Fatal
        self.heartbeat = None      # a Repeat, from join() on
        self.refresher = Repeat(REFRESH_SECONDS, self.refresh)
        self.dialler = Repeat(REFRESH_SECONDS, self.dial)
        self.own_ip = ""           # as the tracker sees it [PL-3]
        self.arrivals = queue.SimpleQueue()  # chunks that have come: (neighbor, index, bytes, buffer, when asked for)
        self.buffers = queue.LifoQueue()  # memory for chunks on their way in; None is leave to make some
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # announces: a chunk is to be asked again, or it is over
        self.news = threading.Condition(self.lock)     # announces: a chunk more is held
        # guarded by lock:
        self.picker = Picker(0)
        self.order = []            # chunk ids in the order of arrival; only grows [CQ-2]
        self.neighbors = {}        # address -> Neighbor
        self.contacts = Contacts()
        self.received = 0          # bytes of chunks that were verified
        self.peer_list_at = (0.0, 0)  # when the tracker was asked last, and what was received by then
        self.server = Server(host, port, self)
        self.server.start()        # before Join: who is told of us may call at once [JN-8]

    # What it answers. One method for a request, named after it; they run in the server's threads.

    def on_chunks_query(self, request, sock):
        """The ids of the chunks that are held, in the order of arrival, but for the first request.known [CQ-1, CQ-2, CQ-3].

        Who knows them all may wait until there is one more [CQ-6].
        """
        with self.server.idle(sock), self.news:
            self.news.wait_for(lambda: len(self.order) > request.known, min(request.wait_ms / 1000, NEWS_SECONDS))
            ids = self.order[request.known:]
        return Response(chunks_query=Response.ChunksQuery(chunk_ids=ids))

    def on_fetch_chunk(self, request, sock):
        """Send the chunk itself, by Store.send, and return None; or return the answer that refuses it [FC-1 to FC-6, FC-13, FC-14]."""
        index = self.file.index(request.chunk_id) if self.file else None
        if self.file and index is None:
            return bad(messages_pb2.NO_SUCH_CHUNK,
                       f"expected a multiple of {self.file.chunk_size} below {self.file.size}, got {request.chunk_id}")
        if index is None or not self.holds(index):
            return bad(messages_pb2.NOT_HELD, f"chunk {request.chunk_id} is not held here")
        length = self.file.length(index)
        asker = peer_address(sock)
        ticket = self.uploads.begin(asker, index, length, request.busy_ok)
        if ticket is None:
            return self.busy(index)
        began = time.monotonic()
        try:
            if not self.store.intact(index):
                return bad(messages_pb2.NOT_HELD, f"chunk {request.chunk_id} is no longer what it was")
            self.store.send(sock, index, self.uploads, ticket)
        finally:
            self.uploads.end()
        self.events("sent", chunk=request.chunk_id, bytes=length, to=format_address(asker), seconds=round(time.monotonic() - began, 6))
        return None

    def busy(self, index):
        """The answer BUSY: when to ask again, or what to ask for instead [FC-7]."""
        seconds, instead = self.uploads.busy(index)
        response = bad(messages_pb2.BUSY, "other chunks are on their way out; ask again")
        response.bad.retry_ms = max(1, int(1000 * seconds))
        if instead is not None:
            response.bad.instead.append(instead * self.file.chunk_size)
        return response

    def holds(self, index):
        """Whether this peer holds a chunk: verified and written."""
        with self.lock:
            return bool(self.picker.held >> index & 1)

    # What it asks the tracker.

    def join(self):
        """Join the swarm: its description is known afterwards. Tries for TRACKER_SECONDS; Fatal [JN-8, CL-10]."""
        give_up = time.monotonic() + TRACKER_SECONDS
        request = Request(join=Request.Join(listening_addr=self.listening_addr()))
        pause = 0.1
        while True:
            try:
                return self.joined(in_a_thread(lambda: self.ask_tracker(request)))
            except (OSError, ProtocolError) as error:
                left = give_up - time.monotonic()
                if left <= 0:
                    raise Fatal(EXIT_NO_TRACKER, f"no tracker at {format_address(self.tracker)}: {error}; tried for {TRACKER_SECONDS:g} s") from None
                if pause > 0.5:
                    self.say(f"no tracker at {format_address(self.tracker)} yet: {error}; trying for another {left:.0f} s")
            wait_for(self.failed, min(pause, left))
            pause = min(2 * pause, 4)

    def listening_addr(self):
        """What is announced: only the port counts, the tracker sees the address itself [JN-3]."""
        return f"0.0.0.0:{self.server.port}"

    def ask_tracker(self, request, wait=None):
        """The tracker's answer, on a connection of its own: a tracker keeps no thread for a peer that is silent."""
        with Link(self.tracker, wait) as link:
            link.send(request)
            response = parse(Response, link.receive(MAX_ANSWER))
            self.own_ip = plain_ip(link.sock.getsockname()[0])
        return response

    def joined(self, response):
        """Take the answer to Join: who is there, what the file is, how long the lease is."""
        if response.WhichOneof("type") != "peer_list":
            raise ProtocolError(f"expected a peer list, got {show_name(response.bad.reason) or 'another answer'}")
        if not response.peer_list.HasField("file"):
            raise Fatal(EXIT_CONTENT, "expected the file's description in the answer to Join, got none: this tracker is too old")
        self.file = Description.from_message(response.peer_list.file)
        lease = min(max(response.peer_list.lease_ms / 1000, 0.1), 3600)  # whatever it says, no flood and no silence
        self.heartbeat = Repeat(lease * PROOF_SHARE, self.prove)
        self.heartbeat.start()
        self.merge(response.peer_list.addresses)
        self.events("joined", tracker=format_address(self.tracker), listening=format_address((self.own_ip, self.server.port)), lease=lease,
                    content_id=self.file.content_id.hex())

    def prove(self):
        """Send one Active Proof. One that fails is followed by the next [AP-4, AP-6, AP-7]."""
        proof = Request.ActiveProof(listening_addr=self.listening_addr(), content_id=self.file.content_id)
        try:
            response = self.ask_tracker(Request(active_proof=proof), min(self.heartbeat.seconds, FRAME_SECONDS))  # then the next is due
        except (OSError, ProtocolError):
            return  # the swarm goes on without its tracker [SW-4]
        if response.WhichOneof("type") == "bad" and response.bad.code == messages_pb2.OTHER_FILE:
            self.fail(Fatal(EXIT_CONTENT, f"the tracker now has another file: {show_name(response.bad.reason)[:200]}"))

    def refresh(self):
        """Ask for the peer list, unless it is not long ago and there is enough to be had [PL-5, SW-8]."""
        now = time.monotonic()
        with self.lock:
            asked_at, received = self.peer_list_at
            content = len(self.picker.useful()) >= ENOUGH_NEIGHBORS and self.received > received
            if content and now - asked_at < PEER_LIST_SECONDS:
                return
            self.peer_list_at = now, self.received
        try:
            self.merge(self.ask_tracker(Request(peer_list=Request.PeerList())).peer_list.addresses)
        except (OSError, ProtocolError):
            return  # those that are known are known [SW-4]
        self.dial()

    def merge(self, addresses):
        """Remember whom the tracker lists: not ourselves, and of a very long list a part [PL-3, PL-4]."""
        found = []
        for text in random.sample(list(addresses), min(len(addresses), 2 * MAX_CONTACTS)):
            try:
                found.append(parse_ip_address(text))
            except ValueError:
                pass  # not an address: nothing to dial
        with self.lock:
            for address in found:
                if not self.is_self(address):
                    self.contacts.add(address)

    def is_self(self, address):
        """Whether (host, port) is this peer, by the address that the tracker sees, or by loopback's where it sees that [PL-3]."""
        host, port = address
        return port == self.server.port and (host == self.own_ip or is_loopback(host) and is_loopback(self.own_ip))

    def dial(self):
        """Begin with as many neighbors as there is room for; with none of use among them, let one go for another."""
        with self.changed:
            if self.picker.complete():
                return
            if len(self.neighbors) >= MAX_NEIGHBORS and not self.picker.useful():
                random.choice(list(self.neighbors.values())).leaving = True
                self.changed.notify_all()
            ready = self.contacts.ready(time.monotonic(), self.neighbors)
            new = [Neighbor(address) for address in ready[:MAX_NEIGHBORS - len(self.neighbors)]]
            self.neighbors.update((neighbor.address, neighbor) for neighbor in new)
        for neighbor in new:
            self.events("neighbor_added", neighbor=neighbor.name)
            threading.Thread(target=self.fetch_from, args=(neighbor,), name=f"fetch from {neighbor.name}", daemon=True).start()

    # What it asks its neighbors. One thread for each: hear what it has, choose, fetch, again. So the
    # neighbor is chosen first and then a chunk, and a silent neighbor holds up nobody else.

    def begin(self, store, held, finish=lambda: None):
        """Offer the chunks that are held, and fetch the others. Fatal if the upload limit is of no use [CL-14]."""
        self.uploads.check(self.file)
        with self.lock:
            self.store = store
            self.finish = finish
            for _ in range(max(FEWEST_BUFFERS, min(MAX_NEIGHBORS, RECEIVE_MEMORY // self.file.chunk_size))):
                self.buffers.put(None)
            self.picker = Picker(self.file.count, held)
            self.order.extend(index * self.file.chunk_size for index in indexes(held))
            self.news.notify_all()
            complete = self.picker.complete()
        if complete:
            self.completed()
        else:
            for _ in range(min(os.cpu_count() or 1, VERIFIERS)):
                threading.Thread(target=self.verify_arrivals, name="verify", daemon=True).start()
            self.dial()
            self.dialler.start()    # a timer of its own: a tracker that hangs keeps nobody from his neighbors
            self.refresher.start()

    def fetch_from(self, neighbor):
        """The life of the thread that asks one neighbor, until nothing is missing or the neighbor fails.

        Ask for as many chunks as keep the link busy; take the oldest answer; again. When there is no
        chunk to ask for, ask for news, and let the neighbor wait until it has some. What was asked of a
        connection that ended goes back, to be asked for again here or elsewhere.
        """
        failure = None
        try:
            with Link(neighbor.address) as neighbor.link:
                while self.goes_on(neighbor):
                    self.ask_and_take(neighbor, neighbor.link)
        except (OSError, ProtocolError) as error:
            failure = error
        except Fatal as fatal:
            self.fail(fatal)
        self.drop(neighbor, neighbor.failure or failure)

    def goes_on(self, neighbor):
        """Whether the thread of this neighbor still has a purpose."""
        with self.lock:
            return not (self.failure or neighbor.failure or neighbor.leaving or self.picker.complete())

    def ask_and_take(self, neighbor, link):
        """One turn: send what is to be asked now, take one answer, or rest if there is none to come."""
        try:
            for index in self.choose(neighbor, link):
                link.send(Request(fetch_chunk=Request.FetchChunk(chunk_id=index * self.file.chunk_size, busy_ok=True)))
            self.ask_for_news(neighbor, link)
            if neighbor.asked:
                self.take_answer(neighbor, link)
            else:
                self.rest(neighbor)
        except (Closed, ConnectionError):
            if not link.answers or neighbor.failure:
                raise
            link.close()  # it takes one request per connection, or ended one that was idle: dial anew [WF-4]
            neighbor.known, neighbor.heard = 0, False  # perhaps it was started anew, and has nothing of what it had [CQ-4]
            self.give_back(neighbor)

    def choose(self, neighbor, link):
        """The indexes of the chunks to ask of this neighbor now, noted as under way [FC-15]."""
        now = time.monotonic()
        chosen = []
        if not neighbor.heard_at or link.answers and not neighbor.heard:
            return chosen  # it has listed nothing; or one chunk was asked for on this new connection, and it may have no other [CQ-4]
        with self.lock:
            while now >= neighbor.rest_until and neighbor.chunks_asked() < self.ahead(neighbor, link):
                index = None
                if neighbor.instead is not None:
                    index, neighbor.instead = self.picker.choose_instead(neighbor.address, neighbor.instead, now), None
                if index is None:
                    index = self.picker.choose(neighbor.address, now)
                if index is None:
                    break
                chosen.append(index)
                neighbor.asked.append((index, now))  # before it is sent: what a broken connection takes along goes back
        return chosen

    def ahead(self, neighbor, link):
        """How many chunks may be under way from this neighbor: one, and as many more as its link holds [FC-15].

        A connection that was not kept after an answer would lose what was asked ahead.
        """
        if link.answers < 2 or neighbor.busy or neighbor.broken:
            return 1
        if len(self.picker.under_way) * self.file.chunk_size >= RECEIVE_MEMORY:
            return 1
        alone = self.picker.useful() == [neighbor.address]  # then the next one is there while this one is verified
        return 1 + alone + requests_ahead(neighbor.rate, link.round_trip, self.file.chunk_size)

    def ask_for_news(self, neighbor, link):
        """Ask what the neighbor has: at once on a new connection, then now and then beside chunks.

        With no chunk under way the neighbor may keep the answer until it has news [CQ-3, CQ-4, CQ-6].
        """
        now = time.monotonic()
        chunks = neighbor.chunks_asked()
        if len(neighbor.asked) > chunks or chunks and link.answers < 2:
            return
        with self.lock:
            if neighbor.heard and self.picker.knows_all(neighbor.address):
                return
            if neighbor.heard and now < (neighbor.heard_at + self.picker.typical if chunks else neighbor.rest_until):
                return
            seconds = 0.0
            if neighbor.heard and not chunks:
                seconds = self.picker.late_after() / 2 if self.picker.wanted(neighbor.address) else NEWS_SECONDS
        neighbor.asked.append((None, now))
        link.send(Request(chunks_query=Request.ChunksQuery(known=neighbor.known, wait_ms=int(1000 * seconds))))

    def take_answer(self, neighbor, link):
        """Receive the answer to the oldest request."""
        index, began = neighbor.asked[0]
        if index is None:
            frame = link.receive(MAX_LIST)
            neighbor.asked.popleft()
            if link.answers == 1:  # it was asked alone, and not to wait
                link.round_trip = min(link.round_trip, time.monotonic() - began)
            self.heard(neighbor, parse(Response, frame), began)
        else:
            self.take_chunk(neighbor, link, index, began)

    def take_chunk(self, neighbor, link, index, began):
        """Receive the answer to a request for a chunk, which was sent at `began`."""
        length, taken = self.file.length(index), []

        def room(_):
            """Memory for the answer, once it has begun: a neighbor that is silent takes none from the others."""
            taken.append(self.buffers.get() or bytearray(self.file.chunk_size + ANSWER_MARGIN))
            return taken[0]

        try:
            frame = link.receive(length + ANSWER_MARGIN, room)
            chunk = chunk_in(frame, length)
            if chunk is None:
                chunk = self.unpack(neighbor, index, parse(Response, frame))
            neighbor.asked.popleft()
            if chunk is None:
                with self.lock:
                    self.picker.release(neighbor.address, index)
            else:
                arrival = neighbor, index, chunk, taken.pop(), began
                if neighbor.rate:
                    self.arrivals.put(arrival)
                else:
                    self.verify(*arrival)  # a stranger's first chunk, before it is asked for more
                self.measure(neighbor, length, began)
        finally:
            for buffer in taken:
                self.buffers.put(buffer)

    def heard(self, neighbor, response, asked_at):
        """Take the answer to Chunks Query [CQ-4, CQ-5]."""
        if response.WhichOneof("type") != "chunks_query":
            raise ProtocolError("expected a list of chunks, got another answer")
        ids = response.chunks_query.chunk_ids[:MAX_CHUNKS]
        bits = bits_of(index for index in map(self.file.index, ids) if index is not None)
        with self.lock:
            if not neighbor.known:  # a list from its beginning: what is not in it is no longer there
                self.picker.withdraw(neighbor.address, ~bits)
            news = self.picker.add(neighbor.address, bits)
        neighbor.known += len(ids)
        neighbor.heard, neighbor.heard_at = True, time.monotonic()
        if not news and neighbor.heard_at - asked_at < LATE_SECONDS[0] / 2:  # it does not know how to wait
            neighbor.rest_until = neighbor.heard_at + NEWS_PAUSE * random.uniform(*RETRY_SPREAD)

    def unpack(self, neighbor, index, response):
        """The chunk in an answer to Fetch Chunk, empty and so wrong when it is of another type; None if it refuses."""
        if response.WhichOneof("type") == "bad":
            return self.refused(neighbor, index, response.bad)
        return response.chunk

    def measure(self, neighbor, length, began):
        """How fast chunks come from this neighbor."""
        now = time.monotonic()
        rate = length / max(now - max(began, neighbor.took_at), 1e-6)
        neighbor.rate += (rate - neighbor.rate) / 4 if neighbor.rate else rate
        neighbor.took_at, neighbor.busy, neighbor.broken = now, 0, 0

    def verify_arrivals(self):
        """The life of a thread that verifies and writes what the others receive, so that they can go on receiving."""
        while True:
            self.verify(*self.arrivals.get())

    def verify(self, neighbor, index, chunk, buffer, began):
        """Keep a chunk that has come, or end the neighbor that sent another."""
        try:
            self.keep(neighbor, index, chunk, began)
        except WrongChunk as lie:
            neighbor.failure = lie
            self.ban(neighbor, lie)  # here, for its thread may have ended, or another have dialled it anew
            neighbor.link.hang_up()
        except Fatal as fatal:
            self.fail(fatal)
        del chunk  # it lies in the buffer, which another answer may now use
        self.buffers.put(buffer)
        with self.changed:
            self.picker.release(neighbor.address, index)
            self.changed.notify_all()

    def keep(self, neighbor, index, chunk, began):
        """Check a chunk, write it, and only then count and offer it [FC-9]."""
        if len(chunk) != self.file.length(index) or hashlib.sha256(chunk).digest() != self.file.digest(index):
            raise WrongChunk(f"expected chunk {index * self.file.chunk_size} with its digest, got {len(chunk)} other bytes")
        with self.lock:
            first = self.picker.claim(index)
        if first:
            self.store.write(index, chunk)
            self.arrived(neighbor, index, time.monotonic() - began)

    def refused(self, neighbor, index, answer):
        """The neighbor does not give a chunk that it had listed [FC-7, FC-10]."""
        if answer.code == messages_pb2.BUSY:
            neighbor.busy += 1
            if answer.instead and neighbor.busy % 2:  # not twice in a row: it could have us ask without end
                neighbor.instead = self.file.index(answer.instead[0])
            else:
                neighbor.rest_until = time.monotonic() + busy_pause(answer.retry_ms / 1000, neighbor.busy, random)
            return
        with self.lock:
            self.picker.withdraw(neighbor.address, 1 << index)
        neighbor.broken += 1
        if neighbor.broken >= MAX_BROKEN_PROMISES:
            raise BrokenPromises(f"expected chunks that it had listed, was refused {neighbor.broken} in a row: {show_name(answer.reason)[:100]}")

    def arrived(self, neighbor, index, seconds):
        """A chunk is verified and on disk: count it once, offer it, and see whether it was the last [FC-12, SW-2]."""
        chunk_id = index * self.file.chunk_size
        with self.lock:
            self.contacts.gave(neighbor.address)
            if not self.picker.arrived(index, seconds):
                return
            self.order.append(chunk_id)
            self.news.notify_all()
            self.received += self.file.length(index)
            complete = self.picker.complete()
        self.events("fetched", chunk=chunk_id, bytes=self.file.length(index), of=neighbor.name, seconds=round(seconds, 6))
        if complete:
            self.completed()

    def rest(self, neighbor):
        """Wait, when there is nothing to ask: for the end of a pause, or for a chunk that another neighbor did not give."""
        now = time.monotonic()
        with self.changed:
            if now < neighbor.rest_until:
                self.changed.wait_for(self.picker.complete, neighbor.rest_until - now)
            else:
                self.changed.wait(self.picker.late_after() / 2)

    def give_back(self, neighbor):
        """What was asked of this neighbor and did not come can be asked for again."""
        with self.changed:
            for index, _ in neighbor.asked:
                if index is not None:
                    self.picker.release(neighbor.address, index)
            neighbor.asked.clear()
            self.changed.notify_all()

    def drop(self, neighbor, failure):
        """The neighbor is forgotten, and dialled again later or never [SW-6]."""
        if isinstance(failure, BrokenPromises):
            self.ban(neighbor, failure)
        self.give_back(neighbor)
        with self.lock:
            self.contacts.left(neighbor.address, time.monotonic(), failure is not None)
            banned = self.contacts.banned(neighbor.address)
            del self.neighbors[neighbor.address]
            self.picker.forget(neighbor.address)
        self.events("neighbor_dropped", neighbor=neighbor.name, banned=banned, reason=str(failure or ""))

    def ban(self, neighbor, failure):
        """Never ask this address again [FC-9, FC-10]."""
        with self.changed:
            again = self.contacts.banned(neighbor.address)
            self.contacts.ban(neighbor.address)
            if neighbor.address in self.neighbors:
                self.neighbors[neighbor.address].leaving = True
            self.changed.notify_all()
        if not again:
            self.say(f"banned {neighbor.name}: {failure}")

    # How it ends.

    def completed(self):
        """Every chunk is held."""
        self.refresher.stop()
        self.dialler.stop()
        with self.uploads.lock:
            self.uploads.slots.sole = self.picker.all
        self.finish()
        self.events("complete", bytes=self.file.size)
        self.done.set()
        with self.changed:
            self.changed.notify_all()

    def fail(self, failure):
        """End the peer from any thread: whoever waits for `done` finds the Fatal in `failure`."""
        self.failure = failure
        self.done.set()
        self.failed.set()


# ---------------------------------------------------------------------------------------------
# Main. What tracker.py uses too: arguments, lines for people, events for programs, and the end.


class Arguments(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message):
        raise Fatal(EXIT_USAGE, f"{show_name(message)}; see --help")


def size_in_bytes(text):
    """262144, 256K, 1.5M, 2G: bytes, or bytes per second."""
    unit = {"K": KIB, "M": MIB, "G": GIB}.get(text[-1:].upper(), 1)
    number = text[:-1] if unit > 1 else text
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 65536, 256K, 1.5M or 2G, got {show_name(text)}")
    return size


def port_number(text):
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {show_name(text)}")
    return int(text)


def seconds_above_zero(text):
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {show_name(text)}")
    return seconds


def tracker_address(text):
    try:
        host, port = parse_address(text)
        host.encode("idna")  # UnicodeError, a ValueError, for what can be no name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return host, port


def add_common_arguments(parser, port):
    """The options that peer and tracker share."""
    parser.add_argument("--host", default="", metavar="H", help="address to listen on (default: all)")
    parser.add_argument("--port", type=port_number, default=port, metavar="N", help="port to listen on, 0: any free one (default: %(default)s)")
    parser.add_argument("--upload-limit", type=size_in_bytes, metavar="RATE",
                        help="bytes per second sent to all neighbors together (default: no limit)")
    parser.add_argument("--events", metavar="FILE", help="append one JSON object a line for everything that happens")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")


def human(size):
    """A number of bytes as people read it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024


class Screen:
    """Lines for people, from any thread. A stdout that is closed ends the lines, one that is not read loses some [CL-13]."""

    def __init__(self, quiet):
        self.quiet = quiet or sys.stdout is None  # as it is when there was no descriptor 1 at the start
        self.terminal = not self.quiet and sys.stdout.isatty()
        if not self.quiet:
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show
        self.status_at = time.monotonic()
        self.lock = threading.Lock()  # one line at a time

    def say(self, line):
        self.write(("\r\x1b[K" if self.terminal else "") + line + "\n")

    def status(self, line):
        """The progress line: overwritten on a terminal, now and then a plain line elsewhere."""
        if self.terminal:
            self.write("\r\x1b[K" + line)
        elif time.monotonic() - self.status_at >= SHOW_SECONDS[1]:
            self.status_at = time.monotonic()
            self.write(line + "\n")

    def write(self, text):
        if self.quiet:
            return
        with self.lock:
            try:
                if not select.select([], [sys.stdout], [], 0)[1]:
                    return  # a stopped terminal, a pipe that is full: a line is lost, and no answer is kept waiting
                sys.stdout.write(text)
                sys.stdout.flush()
            except OSError:
                self.quiet = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the last flush would complain


class Events:
    """Writes what happens to a file, one JSON object a line [CL-15]. Lines of several threads do not mix."""

    def __init__(self, path):
        try:
            self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Fatal(EXIT_USAGE, f"cannot write events to {show_name(path)}: {error.strerror}") from None

    def __call__(self, event, **fields):
        line = json.dumps({"t": round(time.monotonic(), 6), "event": event, **fields}) + "\n"
        try:
            os.write(self.fd, line.encode())
        except OSError:
            pass  # a full disk must not end an upload


class Terminated(BaseException):
    """SIGTERM, in the main thread; not an Exception, as KeyboardInterrupt is none."""


def on_sigterm(number, frame):
    raise Terminated


def leave(code):
    """End the process at once. Threads that are in the middle of a chunk are not waited for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            pass  # nobody reads it
    os._exit(code)


def crash(args):
    """A thread died of a bug: say so and end, for a program without one of its threads would only hang [CL-16]."""
    sys.excepthook(args.exc_type, args.exc_value, args.exc_traceback)
    leave(EXIT_BUG)


def run_to_exit(program, run):
    """Run `run()` and end the process with its exit code, or with that of what went wrong [CL-9, CL-13]."""
    signal.signal(signal.SIGTERM, on_sigterm)
    threading.excepthook = crash
    try:
        code = run()
    except Fatal as failure:
        print(f"{program}: {failure}", file=sys.stderr)
        code = failure.code
    except KeyboardInterrupt:
        code = EXIT_SIGINT
    except Terminated:
        code = EXIT_SIGTERM
    except SystemExit as end:  # of argparse, after --help
        code = end.code or EXIT_COMPLETE
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = EXIT_BUG
    leave(code)


def parse_arguments(argv=None):
    parser = Arguments(prog="peer.py", description="Fetch a file from a swarm, verified, and seed it.")
    parser.add_argument("tracker", type=tracker_address, metavar="TRACKER:PORT", help="where the file's tracker listens")
    parser.add_argument("out", metavar="OUT", help="the file to write; OUT.part until it is complete")
    leaving = parser.add_mutually_exclusive_group()
    leaving.add_argument("--leave", action="store_true", help="leave as soon as the file is complete")
    leaving.add_argument("--seed-for", type=seconds_above_zero, metavar="S", help="leave so many seconds after it is complete")
    parser.add_argument("--expect", metavar="ID", help="refuse any file but the one with this content id")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is another file")
    add_common_arguments(parser, 0)
    return parser.parse_args(argv)


def expect(content_id, file):
    """Refuse a file that is not the one that was asked for [FD-4]."""
    if content_id is not None and content_id.lower() != file.content_id.hex():
        raise Fatal(EXIT_CONTENT, f"expected content id {show_name(content_id)}, got {file.content_id.hex()} from the tracker")


def name_chunks(bits, file):
    """Which chunks a bitfield means, in words: how many, and the ids of the first few."""
    first = [str(index * file.chunk_size) for index, _ in zip(indexes(bits), range(8))]
    more = bits.bit_count() - len(first)
    return f"{bits.bit_count()} of {file.count} chunks ({', '.join(first)}{f' and {more} more' if more else ''})"


def progress(file, missing, history, neighbors):
    """The progress line: percentage, rate, neighbors, time left."""
    left = min(missing.bit_count() * file.chunk_size, file.size)
    (since, before), (now, received) = history[0], history[-1]
    rate = (received - before) / max(now - since, 0.001)
    remaining = f"{left / rate:.0f} s left" if rate else "waiting"
    return f"{100 * (1 - left / file.size):5.1f} %  {human(rate)}/s  {neighbors} neighbor{'s' * (neighbors != 1)}  {remaining}"


def download(peer, screen):
    """Wait until every chunk is held, showing progress; Fatal, also when the swarm is lost [SW-7]."""
    history = [(time.monotonic(), 0)]
    useful_at = time.monotonic()
    waiting = False
    while not peer.done.wait(SHOW_SECONDS[0]):
        now = time.monotonic()
        with peer.lock:
            useful, received, neighbors = peer.picker.useful(), peer.received, len(peer.neighbors)
            missing = all_of(peer.file.count) & ~peer.picker.held
        history = history[-15:] + [(now, received)]
        if useful or received != history[-2][1]:
            useful_at, waiting = now, False
        elif now - useful_at > LOST_SECONDS:
            raise Fatal(EXIT_LOST, f"the swarm is lost: for {LOST_SECONDS:g} s no neighbor has had {name_chunks(missing, peer.file)};"
                                   " what came is kept, start again to go on")
        elif now - useful_at > 1 and not waiting:
            waiting = True
            screen.say(f"waiting for a neighbor that has {name_chunks(missing, peer.file)}; giving up after {LOST_SECONDS:g} s")
        screen.status(progress(peer.file, missing, history, neighbors))
    if peer.failure:
        raise peer.failure


def summary(peer, out, seconds, leaving, seed_for):
    """The line for a file that is complete."""
    moved = f"{human(peer.received)} received in {seconds:.1f} s" if peer.received else "it was there already"
    after = "leaving" if leaving else f"seeding on port {peer.server.port} " + (f"for {seed_for:g} s" if seed_for else "until Ctrl-C")
    return f"complete: {show_name(out)}, {human(peer.file.size)}, every chunk verified; {moved}; {after}"


def run():
    """The program: claim OUT, join, fetch, seed. Returns the exit code."""
    args = parse_arguments()
    screen = Screen(args.quiet)
    events = Events(args.events) if args.events else None
    output = Output(args.out, args.force)
    try:
        peer = Peer(args.tracker, args.host, args.port, args.upload_limit, events, screen.say)
        peer.events("start", wall=time.time(), port=peer.server.port, out=args.out, upload_limit=args.upload_limit)
        peer.join()
        expect(args.expect, peer.file)
        began = time.monotonic()
        store, held = output.open_store(peer.file, lambda done: screen.status(f"verified {human(done)} of {human(peer.file.size)}"))
        peer.begin(store, held, lambda: output.finish(store))
        download(peer, screen)
        screen.say(summary(peer, args.out, time.monotonic() - began, args.leave, args.seed_for))
        if not args.leave and wait_for(peer.failed, args.seed_for or float("inf")):
            raise peer.failure
        return EXIT_COMPLETE
    finally:
        output.close()


if __name__ == "__main__":
    run_to_exit("peer.py", run)
