"""What the tests speak with: a framing of their own, programs as processes, a fake tracker, a fake peer.

Nothing here imports tracker.py or peer.py, so that the same tests can grade any other program. The
commands that start the two programs under test come from the variables TRACKER and PEER, with
{file} {port} {expire} and {tracker} {out} to be filled in.

Reading order: frames - bytes and digests - Program - FakeServer, FakeTracker, FakePeer.
"""

import hashlib
import os
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from messages_pb2 import File, Request, Response

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRACKER = os.environ.get("TRACKER") or f"{shlex.quote(sys.executable)} tracker.py {{file}} --port {{port}} --expire {{expire}}"
PEER = os.environ.get("PEER") or f"{shlex.quote(sys.executable)} peer.py {{tracker}} {{out}}"
PROGRAMS = os.environ.get("PROGRAMS") or ROOT  # the folder in which they are started
OWN_ENVIRONMENT = ("PYTHONPATH", "PYTHONUNBUFFERED", "TRACKER", "PEER", "PROGRAMS", "GRADING")  # what the tests are told, and no program is
CHUNK = 262_144  # bytes: the default chunk size of SPEC.md
SECONDS = 10     # for anything that is expected to happen; a test that waits for so long has failed

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell started these tests in the background, and the programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Frames. Deliberately another code than that of the programs under test.


def framed(message):
    """The bytes of a message, or of a body, in one frame."""
    body = message if isinstance(message, (bytes, bytearray)) else message.SerializeToString()
    return struct.pack("!Q", len(body)) + bytes(body)


def receive_bytes(sock, count):
    """Exactly `count` bytes; EOFError if the other side closes first."""
    pieces = []
    while count:
        piece = sock.recv(min(count, 1 << 20))
        if not piece:
            raise EOFError(f"closed with {count} bytes still to come")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def receive_body(sock):
    """The body of the next frame."""
    (length,) = struct.unpack("!Q", receive_bytes(sock, 8))
    assert length <= 64 << 20, f"a frame of {length} bytes"
    return receive_bytes(sock, length)


def receive(sock, kind=Response):
    """The next message."""
    return kind.FromString(receive_body(sock))


def connect(address):
    """A connection to "host:port", a port of this machine, or (host, port)."""
    if isinstance(address, int):
        address = ("127.0.0.1", address)
    elif isinstance(address, str):
        host, port = address.rsplit(":", 1)
        address = (host.strip("[]"), int(port))
    sock = socket.create_connection(address, timeout=SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(where, request):
    """The answer to one request, on an open socket or on a connection of its own."""
    if not isinstance(where, socket.socket):
        with connect(where) as sock:
            return ask(sock, request)
    where.sendall(framed(request))
    return receive(where)


def is_closed(sock, seconds=SECONDS):
    """Whether the other side closes the connection within so many seconds, having sent nothing more."""
    sock.settimeout(seconds)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def join(address):
    return Request(join=Request.Join(listening_addr=address))


def active_proof(address, content_id=b""):
    return Request(active_proof=Request.ActiveProof(listening_addr=address, content_id=content_id))


def peer_list():
    return Request(peer_list=Request.PeerList())


def chunks_query(known=0):
    return Request(chunks_query=Request.ChunksQuery(known=known))


def fetch_chunk(chunk_id, busy_ok=False):
    return Request(fetch_chunk=Request.FetchChunk(chunk_id=chunk_id, busy_ok=busy_ok))


def listed(answer):
    """The addresses in a peer list whose port is below 10,000, sorted: those that a test announced.

    The tracker's own seeder, if it has one, is among the others: it listens where the system chose.
    """
    assert answer.WhichOneof("type") == "peer_list", f"expected a peer list, got {answer}"
    return sorted(address for address in answer.peer_list.addresses if int(address.rsplit(":", 1)[1]) < 10_000)


def live(where):
    """The addresses that a tracker lists, as listed() has them, by its answer to a Join; port 9 is announced for it, and left out."""
    return [address for address in listed(ask(where, join("127.0.0.1:9"))) if not address.endswith(":9")]


def silent(request, sock):
    """For FakeServer.answers: no answer, and the connection stays open until the other side closes it."""
    while sock.recv(1):
        pass


def is_refused(answer, code):
    """Whether the answer is `Bad` with this code, and a reason."""
    return answer.WhichOneof("type") == "bad" and answer.bad.code == code and bool(answer.bad.reason)


# Bytes and digests.


def some_bytes(size, seed=1):
    """Bytes that look random and are the same in every run."""
    return random.Random(seed).randbytes(size)


def split(data, chunk_size=CHUNK):
    """The chunks of a file, in order."""
    return [data[start:start + chunk_size] for start in range(0, len(data), chunk_size)]


def describe(data, chunk_size=CHUNK, name="file.bin"):
    """The description of a file, as a tracker sends it."""
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in split(data, chunk_size))
    return File(name=name, size=len(data), chunk_size=chunk_size, digests=digests)


def content_id(file):
    """SPEC.md, FD-4."""
    return hashlib.sha256(struct.pack("!QQ", file.size, file.chunk_size) + file.digests).digest()


def eventually(condition, seconds=SECONDS, what="the condition"):
    """The first true value of condition(); for what can only be polled, such as a file or a peer list."""
    give_up = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        fail_if_crashed()
        assert time.monotonic() < give_up, f"{what} did not come about within {seconds} s"
        time.sleep(0.01)


# Programs as processes.


def program_environment():
    """The environment of a program under test."""
    return {name: value for name, value in os.environ.items() if name not in OWN_ENVIRONMENT}


PROGRAMS_RUNNING = []  # those that this test has started and not stopped
EXIT_CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 130, 143}  # of SPEC.md, but for 70, a bug


def fail_if_crashed():
    """End a wait for what will not come, because a program has ended with an exit code that means a bug; those of signals are below 0."""
    for program in PROGRAMS_RUNNING:
        code = program.process.poll()
        if code is not None and code > 0 and code not in EXIT_CODES:
            program.reader.join(SECONDS)
            raise AssertionError(f"the program under test has ended with exit code {code}:\n{program.output}")


class Program:
    """A process whose output is read as it comes. Ends with the test (see conftest.py)."""

    def __init__(self, command, **options):
        options.setdefault("env", program_environment())
        self.process = subprocess.Popen(command, cwd=PROGRAMS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True, **options)
        self.pid = self.process.pid
        self.output = ""
        self.grown = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        PROGRAMS_RUNNING.append(self)

    def read(self):
        for line in iter(self.process.stdout.readline, b""):
            with self.grown:
                self.output += line.decode(errors="replace")
                self.grown.notify_all()
        with self.grown:
            self.output += "\0"  # no more will come
            self.grown.notify_all()

    def wait_for(self, pattern, seconds=SECONDS):
        """The match of a line of the output; fails with the output if it does not come."""
        with self.grown:
            self.grown.wait_for(lambda: re.search(pattern, self.output, re.M) or "\0" in self.output, seconds)
            match = re.search(pattern, self.output, re.M)
            assert match, f"no line like {pattern!r} in the output:\n{self.output}"
            return match

    def wait(self, seconds=SECONDS):
        """The exit code, once it has ended and all of its output was read."""
        code = self.process.wait(seconds)
        self.reader.join(seconds)
        return code

    def ends_with(self, code, pattern="", seconds=SECONDS):
        """Check exit code and output, and that there is no traceback; returns the output."""
        got = self.wait(seconds)
        text = self.output.rstrip("\0")
        assert got == code, f"expected exit code {code}, got {got}:\n{text}"
        assert re.search(pattern, text, re.M), f"no line like {pattern!r} in the output:\n{text}"
        assert "Traceback" not in text, text
        return text

    def signal(self, number):
        self.process.send_signal(number)

    def resident(self):
        """Resident memory in bytes (Linux and macOS)."""
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.pid)])) * 1024

    def stop(self):
        """End the process and whatever it started."""
        if self.process.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        if self in PROGRAMS_RUNNING:
            PROGRAMS_RUNNING.remove(self)


def command(template, **values):
    """A command template with its values filled in, as a list of arguments."""
    return [word.format(**values) for word in shlex.split(template)]


def tracker_command(file, *extra, port=0, expire=10):
    """The arguments that start the tracker under test."""
    return command(TRACKER, file=file, port=port, expire=expire) + [str(word) for word in extra]


def peer_command(tracker, out, *extra):
    """The arguments that start the peer under test. `tracker` is a port of this machine, or "host:port"."""
    return command(PEER, tracker=f"127.0.0.1:{tracker}" if isinstance(tracker, int) else tracker, out=out) + [str(word) for word in extra]


def finished(arguments, **options):
    """The process that these arguments start, once it has ended: returncode, stdout, stderr."""
    options.setdefault("env", program_environment())
    return subprocess.run(arguments, cwd=PROGRAMS, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          timeout=2 * SECONDS, **options)


def start_tracker(file, port=0, expire=10, extra=()):
    """A Program that is the tracker under test; `port` is where it listens."""
    program = Program(command(TRACKER, file=file, port=port, expire=expire) + list(extra))
    try:
        program.port = int(program.wait_for(r"listening on port (\d+)$")[1])
    except BaseException:
        program.stop()
        raise
    return program


def start_peer(tracker, out, extra=()):
    """A Program that is the peer under test. `tracker` is a port of this machine, or "host:port"."""
    if isinstance(tracker, int):
        tracker = f"127.0.0.1:{tracker}"
    return Program(command(PEER, tracker=tracker, out=out) + list(extra))


def patched(module, changes, arguments):
    """A Program that is ours, run with other constants: `changes` is Python, such as "peer.FRAME_SECONDS = 0.5"."""
    code = f"import sys, peer, tracker, time\n{changes}\nsys.argv = {['x', *map(str, arguments)]!r}\n"
    code += f"peer.run_to_exit('{module}.py', {module}.run)\n"
    return Program([sys.executable, "-c", code])


# Fakes: the other side of the program under test, honest unless a test says otherwise.


class FakeServer:
    """Accepts connections on a free port; each has a thread that answers requests until it ends.

    `answers` maps a request's name to a function of (request, sock) that returns a message, bytes
    to be framed, or None to send nothing more. `requests` records (seconds, name, request).
    """

    def __init__(self, host="127.0.0.1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), family=family, backlog=128)
        self.host = host
        self.port = self.listener.getsockname()[1]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.answers = {}
        self.requests = []
        self.connections = []   # every one that was accepted, in order
        self.changed = threading.Condition()
        self.stopped = False
        self.one_request_per_connection = False
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        while not self.stopped:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(60)
            with self.changed:
                self.connections.append(sock)
                self.changed.notify_all()
            thread = threading.Thread(target=self.serve, args=(sock,))
            self.threads.append(thread)
            thread.start()

    def serve(self, sock):
        try:
            while True:
                request = receive(sock, Request)
                name = request.WhichOneof("type")
                with self.changed:
                    self.requests.append((time.monotonic(), name, request))
                    self.changed.notify_all()
                answer = self.answers[name](getattr(request, name), sock)
                if answer is None:
                    return
                sock.sendall(framed(answer))
                if self.one_request_per_connection:
                    return
        except (EOFError, OSError, KeyError):
            pass
        finally:
            if not getattr(self, "keep_open", False):
                sock.close()

    def count(self, name):
        """How many requests of this name have come."""
        with self.changed:
            return sum(1 for _, got, _ in self.requests if got == name)

    def wait_for(self, name, count=1, seconds=SECONDS):
        """The count-th request of this name, once it has come."""
        with self.changed:
            def found():
                return [request for _, got, request in self.requests if got == name][:count]
            give_up = time.monotonic() + seconds
            while not self.changed.wait_for(lambda: len(found()) >= count, 0.1):
                fail_if_crashed()
                assert time.monotonic() < give_up, f"expected {count} {name} within {seconds} s, got {[got for _, got, _ in self.requests]}"
            return getattr(found()[-1], name)

    def times(self, name):
        """When requests of this name came (monotonic seconds)."""
        with self.changed:
            return [at for at, got, _ in self.requests if got == name]

    def stop(self):
        self.stopped = True
        for sock in [self.listener, *self.connections]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        for thread in self.threads:
            thread.join(SECONDS)


class FakeTracker(FakeServer):
    """A tracker that lists what the test puts into `peers`, and whoever joins."""

    def __init__(self, data, peers=(), chunk_size=CHUNK, lease_ms=10_000, file=None, host="127.0.0.1"):
        super().__init__(host)
        self.file = file or describe(data, chunk_size)
        self.lease_ms = lease_ms
        self.peers = list(peers)    # addresses
        self.joined = []            # addresses, in order
        self.answers = {
            "join": self.on_join,
            "active_proof": lambda request, sock: Response(ok=Response.Ok()),
            "peer_list": lambda request, sock: Response(peer_list=Response.PeerList(addresses=self.peers + self.joined)),
        }

    def on_join(self, request, sock):
        host, port = sock.getpeername()[0], request.listening_addr.rsplit(":", 1)[1]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if address not in self.joined:
            self.joined.append(address)
        return Response(peer_list=Response.PeerList(addresses=self.peers + self.joined, file=self.file, lease_ms=self.lease_ms))

    def joiner(self, count=1):
        """The address of the peer that joined, once it has."""
        self.wait_for("join", count)
        return eventually(lambda: self.joined[count - 1:count], what="a join")[0]


class FakePeer(FakeServer):
    """A peer that holds the chunks of `data` with the given indexes: all of them, if none are given."""

    def __init__(self, data, held=None, chunk_size=CHUNK, host="127.0.0.1"):
        super().__init__(host)
        self.chunks = split(data, chunk_size)
        self.chunk_size = chunk_size
        self.held = list(range(len(self.chunks))) if held is None else list(held)
        self.answers = {"chunks_query": self.on_chunks_query, "fetch_chunk": self.on_fetch_chunk}

    def on_chunks_query(self, request, sock):
        return Response(chunks_query=Response.ChunksQuery(chunk_ids=[index * self.chunk_size for index in self.held[request.known:]]))

    def on_fetch_chunk(self, request, sock):
        return Response(chunk=self.chunks[request.chunk_id // self.chunk_size])

    def fetched(self):
        """The chunk ids that were asked for, in order."""
        with self.changed:
            return [request.fetch_chunk.chunk_id for _, name, request in self.requests if name == "fetch_chunk"]


class SlowPeer(FakePeer):
    """A fake peer that gives `free` chunks at once, and the others when `released` is set."""

    def __init__(self, data, free, **options):
        super().__init__(data, **options)
        self.free = free
        self.released = threading.Event()

    def on_fetch_chunk(self, request, sock):
        with self.changed:
            self.free -= 1
            at_once = self.free >= 0
        if not at_once and not self.released.wait(6 * SECONDS):
            return None
        return super().on_fetch_chunk(request, sock)

    def stop(self):
        self.released.set()
        super().stop()
