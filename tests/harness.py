"""What the tests speak with: a framing of their own, programs as processes, a fake tracker, a fake peer.

Nothing here imports tracker.py or peer.py, so that the same tests can grade any other program. The
commands that start the two programs under test come from the variables TRACKER and PEER, with
{file} {port} {expire} and {tracker} {out} to be filled in.

What they do they also tell to `trace` (tests/steps.py): from that a failure report is made, so that a test need not say what it does.

Reading order: patience - frames - bytes and digests - Program - FakeServer, FakeTracker, FakePeer.
"""

import codecs
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

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(ROOT, "lab"))  # for steps.py, which has frames put into words

from google.protobuf.message import DecodeError  # noqa: E402  (after the path)

import explain  # noqa: E402
import processes  # noqa: E402  (after the path)
from messages_pb2 import File, Request, Response  # noqa: E402  (after the path)
from steps import exit_words, telling, trace  # noqa: E402
TRACKER = os.environ.get("TRACKER") or f"{shlex.quote(sys.executable)} tracker.py {{file}} --port {{port}} --expire {{expire}}"
PEER = os.environ.get("PEER") or f"{shlex.quote(sys.executable)} peer.py {{tracker}} {{out}}"
PROGRAMS = os.environ.get("PROGRAMS") or ROOT  # the folder in which they are started
OWN_ENVIRONMENT = ("PYTHONPATH", "PYTHONUNBUFFERED", "TRACKER", "PEER", "PROGRAMS", "GRADING")  # what the tests are told, and no program is
CHUNK = 262_144  # bytes: the default chunk size of SPEC.md
SECONDS = 10     # for anything that is expected to happen; a test that waits for so long has failed
IMPATIENT = 3    # seconds for the same, when a program that is graded has let two waits run out
OUTPUT = 1 << 20  # bytes of a program's output that are kept

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell started these tests in the background, and the programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Patience. What does not come has failed after SECONDS; many such waits would use up the time of a whole grading.


def patience(seconds):
    """How long to wait for what is expected within so many seconds."""
    return min(seconds, IMPATIENT) if trace.ran_out >= 2 and os.environ.get("GRADING") == "other" else seconds


def gave_up(expected, got=None, kind=None):
    """Note that a wait has run out; the AssertionError to raise."""
    trace.ran_out += 1
    bytes_came = trace.partial
    words = trace.ended() or "nothing of the kind, until the wait was over"
    if got is None and bytes_came:
        got, kind = bytes_came
    trace.judge(expected, words if got is None else got, kind)
    return AssertionError(f"expected {expected}, got {words if got is None or isinstance(got, bytes) else got}")


# Frames. Deliberately another code than that of the programs under test.


class Wire(socket.socket):
    """A connection to the program under test, which remembers what came since the last whole frame.

    `kind`: what the program under test sends here, "response" or "request".
    """

    kind = "response"

    @classmethod
    def of(cls, sock, kind):
        """A socket as a Wire."""
        timeout = sock.gettimeout()
        wire = cls(fileno=sock.detach())
        wire.settimeout(timeout)
        wire.kind, wire.came = kind, bytearray()
        return wire

    waits = False  # whether a frame has begun and is not whole
    who = ""       # whom it was made to, in words

    def sendall(self, data, *flags):
        if self.kind == "response":
            trace.tell("sent", bytes(data), "request")
        try:
            super().sendall(data, *flags)
        except OSError as error:
            trace.judge(answer_to_the_last(self), str(error))
            raise

    def shutdown(self, how):
        try:
            super().shutdown(how)
        except OSError:  # the other side has gone; the next recv says how
            pass

    def recv(self, count, *flags):
        try:
            data = super().recv(count, *flags)
        except ConnectionError as error:
            if self.kind == "response":
                trace.judge(answer_to_the_last(self), str(error))
            raise
        self.came += data
        return data


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
    if not isinstance(sock, Wire):
        (length,) = struct.unpack("!Q", receive_bytes(sock, 8))
        return receive_bytes(sock, length)
    sock.came, sock.waits = bytearray(), True
    try:
        (length,) = struct.unpack("!Q", receive_bytes(sock, 8))
        if length > 64 << 20:
            look_further(sock)
            raise AssertionError(f"a length of {length}, and no such frame,")
        body = receive_bytes(sock, length)
    except (EOFError, OSError, AssertionError) as error:
        not_whole(sock, error)
        raise
    sock.waits = False
    if sock.kind == "response":
        trace.hear("got", bytes(sock.came), "response")
    return body


def look_further(sock):
    """What else has come with a length that cannot be: it shows what was meant."""
    sock.settimeout(0.2)
    try:
        while len(sock.came) < 1000 and sock.recv(1000):
            pass
    except OSError:
        pass


def not_whole(sock, error):
    """Note what came of a frame that is not whole, and why no more did."""
    came = bytes(sock.came)
    why = {EOFError: "end of stream", TimeoutError: "nothing more, until the wait was over"}.get(type(error), str(error))
    if sock.kind == "request":
        if came:
            trace.partial = came, "request"
            trace.step("a fake was sent what is no whole request:", came, "request")
        return
    if isinstance(error, TimeoutError):
        trace.ran_out += 1
    if came:
        trace.step("got no whole frame, but", came, "response")
    trace.step(f"{why} after {len(came)} bytes")
    dead = trace.ended()
    trace.judge(answer_to_the_last(sock), came or why + (f"; {dead}" if dead else ""), "response")


ASKED_OF = {"the tracker under test": ("join", "active_proof", "peer_list"), "the peer under test": ("chunks_query", "fetch_chunk")}


def answer_to_the_last(sock):
    """What the request that was sent last is to be answered: bytes where they are fixed, or words."""
    try:
        request = Request.FromString(trace.sent[0][8:])
    except Exception:  # it was no request, or none was sent
        return "an answer"
    kind = request.WhichOneof("type")
    if kind and kind not in ASKED_OF.get(sock.who, kind):
        return "Bad with code WRONG_ROLE, and a reason"
    return {"join": "a peer list, with the file", "active_proof": framed(Response(ok=Response.Ok())), "peer_list": "a peer list",
            "chunks_query": "a list of chunk ids", "fetch_chunk": "a chunk"}.get(kind, "an answer")


def receive(sock, kind=Response):
    """The next message."""
    body = receive_body(sock)
    try:
        return kind.FromString(body)
    except Exception:
        trace.judge("a message of messages.proto", framed(body), "response" if kind is Response else "request")
        raise


def connect(address):
    """A connection to "host:port", a port of this machine, or (host, port)."""
    if isinstance(address, int):
        address = ("127.0.0.1", address)
    elif isinstance(address, str):
        host, port = address.rsplit(":", 1)
        address = (host.strip("[]"), int(port))
    who = trace.name(address[1])
    try:
        sock = Wire.of(socket.create_connection(address, timeout=patience(SECONDS)), "response")
    except OSError as error:
        dead = trace.ended()
        trace.step(f"could not connect to {who}: {error}")
        trace.judge(f"a connection to {who}", f"{error}" + (f"; {dead}" if dead else ""))
        raise
    trace.step(f"connected to {who}")
    sock.who = who
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
    before = sock.gettimeout()
    sock.settimeout(patience(seconds))
    try:
        came = sock.recv(1)
    except ConnectionError:
        came = b""
    except TimeoutError:
        came = None
        trace.ran_out += seconds > 2
    finally:
        sock.settimeout(before)  # the next answer may take longer
    if came:
        look_further(sock)
        came = bytes(sock.came) if isinstance(sock, Wire) else came
        trace.step("got", came, "response")
        trace.judge("end of stream, and nothing before it", came, "response")
    elif came is None:
        trace.judge("end of stream", f"a connection kept for {patience(seconds):g} s")
    else:
        trace.step("it closed the connection")
        trace.judge("a connection kept", "end of stream")
    return came == b""


def join(address):
    return Request(join=Request.Join(listening_addr=address))


def active_proof(address, content_id=b""):
    return Request(active_proof=Request.ActiveProof(listening_addr=address, content_id=content_id))


def peer_list():
    return Request(peer_list=Request.PeerList())


def chunks_query(known=0, wait_ms=0):
    return Request(chunks_query=Request.ChunksQuery(known=known, wait_ms=wait_ms))


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
    right = answer.WhichOneof("type") == "bad" and answer.bad.code == code and bool(answer.bad.reason)
    wanted = Response(bad=Response.Bad(code=code, reason=answer.bad.reason or "why"))
    got = trace.received[0] if trace.received and trace.received[1] == "response" else framed(answer)
    trace.judge("another answer" if right else framed(wanted), got, "response")
    return right


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
    give_up, before = time.monotonic() + patience(seconds), trace.received
    began = trace.count
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up or nothing_can_come():
            break
        trace.forget_since(began)
        time.sleep(0.01)
    if trace.received is not before and trace.received[1] == "response":
        raise gave_up(what, *trace.received)
    raise gave_up(what)


def timely(attempt, seconds):
    """What attempt() returns when it has taken less than so many seconds, made again until then: a busy machine may hold up any."""
    for _ in range(10):
        began = time.monotonic()
        result = attempt()
        if time.monotonic() - began < seconds:
            break
    return result


EXIT_CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 130, 143}  # of SPEC.md, but for 70, a bug


def nothing_can_come(since={}):
    """Whether a wait is in vain: a program has crashed, or every one that the test started has ended, for a second now.

    A time in which nobody looked counts little: this process may have been held up, with all its threads.
    """
    codes = [program.process.poll() for program in trace.programs if not program.stopped]
    if any(code is not None and code > 0 and code not in EXIT_CODES for code in codes):  # those of signals are below 0
        return True
    if not codes or None in codes:
        since.clear()
        return False
    now = time.monotonic()
    since["ended"] = since.get("ended", 0) + min(now - since.get("looked", now), 0.25)
    since["looked"] = now
    return since["ended"] > 1


# Programs as processes.


def program_environment():
    """The environment of a program under test."""
    return {name: value for name, value in os.environ.items() if name not in OWN_ENVIRONMENT}


class Program:
    """A process whose output is read as it comes. Ends with the test (see conftest.py). `what` it is called in a report."""

    def __init__(self, command, what="the program under test", **options):
        options.setdefault("env", program_environment())
        self.what = what
        trace.step(f"started {what}: {' '.join(os.path.basename(str(word)) for word in command)[:100]}")
        self.process = subprocess.Popen(command, cwd=PROGRAMS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True, bufsize=0, **options)
        trace.programs.append(self)
        self.pid = self.process.pid
        self.output = ""
        self.stopped = False
        self.grown = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        """Read all that is said, keep its beginning, and slow down who says more: a program may print without end."""
        kept, decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")
        for data in iter(lambda: self.process.stdout.read(1 << 16), b""):
            if kept > OUTPUT:
                time.sleep(0.01)
                continue
            kept += len(data)
            with self.grown:
                self.output += decoder.decode(data) + ("\n… and more, which is not kept" if kept > OUTPUT else "")
                self.grown.notify_all()
        with self.grown:
            self.output += "\0"  # no more will come
            self.grown.notify_all()

    def tail(self):
        """The end of the output, for people."""
        return "\n".join(self.output.rstrip("\0").splitlines()[-12:])[-2000:]

    def wait_for(self, pattern, seconds=SECONDS):
        """The match of a line of the output; fails with the output if it does not come."""
        whole = pattern if not pattern.endswith("$") else pattern[:-1] + r"(?=\n)"  # a line may have come in part
        with self.grown:
            self.grown.wait_for(lambda: re.search(whole, self.output, re.M) or "\0" in self.output, patience(seconds))
            match = re.search(whole, self.output, re.M) or "\0" in self.output and re.search(pattern, self.output, re.M)
        if not match:
            raise gave_up(f"a line of {self.what} like {pattern!r}", trace.ended() or f"its output: {self.tail() or '(none)'}")
        trace.step(f"{self.what} said: {match[0][:100]}")
        return match

    def wait(self, seconds=SECONDS):
        """The exit code, once it has ended and all of its output was read."""
        try:
            code = self.process.wait(patience(seconds))
        except subprocess.TimeoutExpired:
            raise gave_up(f"the end of {self.what} within {seconds:g} s", "it still runs") from None
        trace.step(f"{self.what} ended with {exit_words(code)}")
        self.reader.join(seconds)
        return code

    def ends_with(self, code, pattern="", seconds=SECONDS):
        """Check exit code and output, and that there is no traceback; returns the output."""
        got = self.wait(seconds)
        text = self.output.rstrip("\0")
        trace.judge(f"exit code {code}", f"{exit_words(got)}: {self.tail()}")
        assert got == code, f"expected exit code {code}, got {got}:\n{text}"
        trace.judge(f"a line like {pattern!r} in the output", self.tail())
        assert re.search(pattern, text, re.M), f"no line like {pattern!r} in the output:\n{text}"
        trace.judge("one line for people", self.tail())
        assert "Traceback" not in text, text
        return text

    def signal(self, number):
        trace.step(f"sent {signal.Signals(number).name} to {self.what}")
        self.process.send_signal(number)

    def resident(self):
        """Resident memory in bytes (Linux and macOS)."""
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.pid)])) * 1024

    def stop(self):
        """End the process and whatever it started: what has left its group, when the test ends (conftest.py)."""
        self.stopped = self.process.poll() is None
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        self.reader.join(1)
        if self.reader.is_alive():  # somebody else holds the pipe
            processes.end_all([program.pid for program in trace.programs])
            self.reader.join()
        self.process.stdout.close()


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
    trace.step(f"started the program under test: {' '.join(os.path.basename(str(word)) for word in arguments)[:100]}")
    process = subprocess.run(arguments, cwd=PROGRAMS, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                             timeout=2 * SECONDS, **options)
    trace.step(f"it ended with {exit_words(process.returncode)}")
    return process


def one_line(process, code):
    """Check that a finished process ended with this code and said one line on stderr; returns the line."""
    lines = process.stderr.splitlines()
    if (process.returncode, len(lines)) == (code, 1) and "Traceback" not in process.stderr:
        return process.stderr
    said = f"exit code {process.returncode}" + (f": {telling(lines)[:300]}" if lines else "")
    if process.returncode == code:
        said += f"; {len(lines)} lines on stderr"
    trace.judge(f"the end with exit code {code}, and one line on stderr that says why", said)
    raise AssertionError(process.stderr)


def start_tracker(file, port=0, expire=10, extra=()):
    """A Program that is the tracker under test; `port` is where it listens."""
    program = Program(command(TRACKER, file=file, port=port, expire=expire) + list(extra), "the tracker under test")
    try:
        program.port = int(program.wait_for(r"listening on port (\d+)$")[1])
        trace.names[program.port] = program.what
    except BaseException:
        program.stop()
        raise
    return program


def start_peer(tracker, out, extra=()):
    """A Program that is the peer under test. `tracker` is a port of this machine, or "host:port"."""
    if isinstance(tracker, int):
        tracker = f"127.0.0.1:{tracker}"
    return Program(command(PEER, tracker=tracker, out=out) + list(extra), "the peer under test")


def kept(port):
    """A socket, to be closed, that keeps a port for a program that is to listen there again: the system gives it to nobody else meanwhile.

    Nobody listens at it, and a program that reuses addresses, as ours do, can.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    return sock


def patched(module, changes, arguments):
    """A Program that is ours, run with other constants: `changes` is Python, such as "peer.FRAME_SECONDS = 0.5"."""
    code = f"import sys, peer, tracker, time\n{changes}\nsys.argv = {['x', *map(str, arguments)]!r}\n"
    code += f"peer.run_to_exit('{module}.py', {module}.run)\n"
    return Program([sys.executable, "-c", code], f"our {module} with other constants")


# Fakes: the other side of the program under test, honest unless a test says otherwise.


class FakeServer:
    """Accepts connections on a free port; each has a thread that answers requests until it ends.

    `answers` maps a request's name to a function of (request, sock) that returns a message, bytes
    to be framed, or None to send nothing more. `requests` records (seconds, name, request).
    """

    role = "a fake"

    def __init__(self, host="127.0.0.1"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), family=family, backlog=128)
        self.host = host
        self.port = self.listener.getsockname()[1]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.name = f"{self.role} at port {self.port}"
        trace.names[self.port] = self.name
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
            sock = Wire.of(sock, "request")
            with self.changed:
                self.connections.append(sock)
                self.changed.notify_all()
            thread = threading.Thread(target=self.serve, args=(sock,))
            self.threads.append(thread)
            thread.start()

    def serve(self, sock):
        try:
            while True:
                request = self.next_request(sock)
                name = request.WhichOneof("type")
                with self.changed:
                    self.requests.append((time.monotonic(), name, request))
                    self.changed.notify_all()
                trace.hear(f"{self.name} was asked:", bytes(sock.came), "request")
                answer = self.answers[name](getattr(request, name), sock)
                if answer is None:
                    return
                frame = framed(answer)
                trace.tell(f"{self.name} answered:", frame, "response")
                sock.sendall(frame)
                if self.one_request_per_connection:
                    return
        except (EOFError, OSError, KeyError):
            pass
        finally:
            if not getattr(self, "keep_open", False):
                sock.close()

    def next_request(self, sock):
        """The next request; what is none is noted, for the report."""
        body = receive_body(sock)
        try:
            return Request.FromString(body)
        except DecodeError:
            trace.partial = framed(body), "request"
            raise EOFError("no request") from None

    def count(self, name):
        """How many requests of this name have come."""
        with self.changed:
            return sum(1 for _, got, _ in self.requests if got == name)

    def wait_for(self, name, count=1, seconds=SECONDS):
        """The count-th request of this name, once it has come."""
        def found():
            with self.changed:
                return [request for _, got, request in self.requests if got == name][:count]
        give_up = time.monotonic() + patience(seconds)
        while len(found()) < count:
            with self.changed:
                self.changed.wait(min(0.25, max(0, give_up - time.monotonic())))
            if len(found()) < count and (time.monotonic() >= give_up or nothing_can_come()):
                raise self.missed(name, count, seconds, len(found()))
        return getattr(found()[-1], name)

    def missed(self, name, count, seconds, came):
        """The AssertionError for requests that did not come; a request that was begun shows what is wrong with it."""
        begun = next((bytes(sock.came) for sock in self.connections if sock.waits and sock.came), None)
        if begun and not trace.partial:
            trace.partial = begun, "request"
        wanted = f"{count} times {explain.TITLES[name]} within {seconds:g} s, at {self.name}"
        if trace.partial:
            return gave_up(wanted)
        return gave_up(wanted, f"{came} of them" + (f"; {trace.ended()}" if trace.ended() else ""))

    def times(self, name):
        """When requests of this name came (monotonic seconds)."""
        with self.changed:
            return [at for at, got, _ in self.requests if got == name]

    def cut(self):
        """Close the port and every connection, as the end of a program does."""
        for sock in [self.listener, *self.connections]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def stop(self):
        self.stopped = True
        self.cut()
        for thread in self.threads:
            thread.join(SECONDS)


class FakeTracker(FakeServer):
    """A tracker that lists what the test puts into `peers`, and whoever joins."""

    role = "the fake tracker"

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
            trace.names.setdefault(int(port), "the peer under test")
        return Response(peer_list=Response.PeerList(addresses=self.peers + self.joined, file=self.file, lease_ms=self.lease_ms))

    def joiner(self, count=1):
        """The address of the peer that joined, once it has."""
        self.wait_for("join", count)
        return eventually(lambda: self.joined[count - 1:count], what="a join")[0]


class FakePeer(FakeServer):
    """A peer that holds the chunks of `data` with the given indexes: all of them, if none are given."""

    role = "a fake peer"

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
