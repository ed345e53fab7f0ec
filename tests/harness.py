"""The tools of the tests: a framing of their own, programs as processes, a fake tracker, a fake peer.

Nothing here imports tracker.py or peer.py, so that the same tests can grade any other program. The
commands that start the two programs under test come from the variables TRACKER and PEER, with
{file} {port} {expire} and {tracker} {out} to be filled in.

Everything done here is also noted in `trace` (lab/grader/steps.py), from which failure reports are made, so that tests need not say what they do.

Reading order: patience - frames - bytes and digests - Program, Terminal - FakeServer, FakeTracker, FakePeer.
"""

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path += [os.path.join(ROOT, "lab", *folder) for folder in ([], ["grader"], ["tools"])]  # for the tests' reports to the grader, and for what they test

from google.protobuf.message import DecodeError  # noqa: E402  (after the path)

import explain  # noqa: E402
import processes  # noqa: E402  (after the path)
from pace import Pace  # noqa: E402  (after the path)
from messages_pb2 import BUSY, NOT_HELD, File, Request, Response  # noqa: E402  (after the path)
from steps import exit_words, telling, trace  # noqa: E402
TRACKER = os.environ.get("TRACKER") or f"{shlex.quote(sys.executable)} tracker.py {{file}} --port {{port}} --expire {{expire}}"
PEER = os.environ.get("PEER") or f"{shlex.quote(sys.executable)} peer.py {{tracker}} {{out}}"
PROGRAMS = os.environ.get("PROGRAMS") or ROOT  # the folder in which they are started
OWN_ENVIRONMENT = ("PYTHONPATH", "PYTHONUNBUFFERED", "TRACKER", "PEER", "PROGRAMS", "GRADING")  # for the tests; kept from the programs
CHUNK = 262_144  # bytes: the default chunk size of SPEC.md
SECONDS = 10     # for anything that is expected to happen; a test that waits this long has failed
IMPATIENT = 3    # seconds instead, once a graded program has let two waits run out
OUTPUT = 1 << 20  # bytes of a program's output that are kept

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell started these tests in the background, and the programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Patience. A wait fails after SECONDS; many failed waits would use up the time of a whole grading.

pace = Pace()  # of this machine and of the programs under test, as the grader has measured it


def patience(seconds, starts=False):
    """How long to wait, on a machine as slow as this one, for what is expected within `seconds`; `starts`: a program may start in this time.

    A wait shorter than SECONDS stays so, because the expected event comes before the 10 s of WF-9 and FC-11.
    """
    longer = seconds * pace.factor() + (pace.starting() if starts else 0)
    if trace.ran_out >= 2 and seconds <= SECONDS and os.environ.get("GRADING") == "other":  # a longer wait has its reason
        longer = min(longer, IMPATIENT * pace.factor() + (pace.starting() if starts else 0))
    return longer if not 1 < seconds < SECONDS else min(longer, 0.95 * SECONDS)


def gave_up(expected, got=None, kind=None, request=None):
    """Note that a wait has run out; return the AssertionError to raise."""
    trace.ran_out += 1
    step = trace.step(f"waited in vain for {expected.partition(', within ')[0]}")
    bytes_came = trace.partial
    words = trace.ended() or "nothing of the kind, until the wait was over"
    if got is None and bytes_came:
        got, kind = bytes_came
    trace.judge(expected, words if got is None else got, kind, request, step.number)
    return AssertionError(f"expected {expected}, got {words if got is None or isinstance(got, bytes) else got}")


# Frames. Deliberately not the code of the programs under test.


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

    waits = False  # whether a frame has begun but is not whole
    told = None    # (frame, "request") sent last, if the program under test answers here
    who = ""       # name of the other side

    def sendall(self, data, *flags):
        if self.kind == "response":
            self.told = trace.tell("sent", bytes(data), "request", self)
        try:
            super().sendall(data, *flags)
        except OSError as error:
            trace.judge(answer_to_the_last(self), str(error), request=self.told)
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
                trace.judge(answer_to_the_last(self), str(error), request=self.told)
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
        trace.hear("got", bytes(sock.came), "response", sock.told)
    return body


def look_further(sock):
    """Read what follows an impossible length, to show what was meant."""
    sock.settimeout(0.2)
    try:
        while len(sock.came) < 1000 and sock.recv(1000):
            pass
    except OSError:
        pass


def not_whole(sock, error):
    """Note what has come of an incomplete frame, and why no more came."""
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
    trace.judge(answer_to_the_last(sock), came or why + (f"; {dead}" if dead else ""), "response", sock.told)


ASKED_OF = {"the tracker under test": ("join", "active_proof", "peer_list"), "the peer under test": ("chunks_query", "fetch_chunk")}


def answer_to_the_last(sock):
    """The expected answer to the last request sent here: bytes if they are fixed, otherwise words."""
    try:
        request = Request.FromString(sock.told[0][8:])
    except Exception:  # it was not a request, or none was sent
        return "an answer"
    kind = request.WhichOneof("type")
    if kind and kind not in ASKED_OF.get(sock.who, kind):
        return "Bad with code WRONG_ROLE"
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


def answers(where, request):
    """Whether a server answers this request by its own kind of answer, and does not close the connection instead."""
    with contextlib.suppress(AssertionError, EOFError, OSError):
        return ask(where, request).WhichOneof("type") == request.WhichOneof("type")
    return False


def ask_all(where, requests, connections=25):
    """The answers to many requests, in order, over several connections at once, because a server may be slow with each."""
    shares = [requests[at::connections] for at in range(connections)]
    socks = [connect(where) for share in shares if share]
    answers = [None] * len(requests)
    try:
        for sock, share in zip(socks, shares):
            sock.sendall(b"".join(map(framed, share)))
        for number in range(len(requests)):  # in turn: a server that nobody reads from gives up
            answers[number] = receive(socks[number % connections])
    finally:
        for sock in socks:
            sock.close()
    return answers


def is_closed(sock, seconds=SECONDS):
    """Whether the other side closes the connection within `seconds`, without sending anything more."""
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
    """The addresses in a peer list with a port below 10,000, sorted: those that a test announced.

    The tracker's own seeder, if it has one, is not among them: the system chose its port.
    """
    trace.judge("a peer list", framed(answer), "response", trace.answer and trace.answer[2])
    assert answer.WhichOneof("type") == "peer_list", f"expected a peer list, got {answer}"
    return sorted(address for address in answer.peer_list.addresses if int(address.rsplit(":", 1)[1]) < 10_000)


def live(where):
    """The addresses in a tracker's answer to a Join, as from listed(); the port 9 announced for this is left out."""
    return [address for address in listed(ask(where, join("127.0.0.1:9"))) if not address.endswith(":9")]


def silent(request, sock):
    """For FakeServer.answers: no answer, and the connection stays open until the other side closes it."""
    while sock.recv(1):
        pass


def is_refused(answer, code):
    """Whether the answer is `Bad` with this code; the reason may be anything."""
    right = answer.WhichOneof("type") == "bad" and answer.bad.code == code
    wanted = Response(bad=Response.Bad(code=code, reason=answer.bad.reason or "why"))
    got, _, request = trace.answer if trace.answer and trace.answer[0][8:] == answer.SerializeToString() else (framed(answer), 0, None)
    trace.judge("another answer" if right else framed(wanted), got, "response", request)
    return right


def first(fault, then):
    """For FakeServer.answers: `fault` the first time, and `then` from then on."""
    turns = [fault]
    return lambda request, sock: (turns.pop() if turns else then)(request, sock)


def after(event, then):
    """For FakeServer.answers: `then`, once the event is set."""
    return lambda request, sock: event.wait(SECONDS) and then(request, sock)


def never(request, sock):
    """For FakeServer.answers: no answer; the connection closes when the other side sends more or gives up."""
    sock.recv(1)


def bad(code):
    return Response(bad=Response.Bad(code=code, reason="as the test wants it"))


def busy_until(event, fake):
    """For FakeServer.answers: BUSY until the event, then honest. A peer that did not set busy_ok waits for its turn."""
    def answer(request, sock):
        if request.busy_ok and not event.is_set():
            return bad(BUSY)
        return event.wait(3 * SECONDS) and fake.on_fetch_chunk(request, sock)
    return answer


def two_of_three_refused(fake):
    """For FakeServer.answers: two of every three answers refuse what was listed, even over two connections, of which the second waits for the first."""
    lock, seen = threading.Lock(), []

    def answer(request, sock):
        with lock:
            if seen and seen[-1] is not sock:
                time.sleep(0.05)  # until the last answer has been read
            seen.append(sock)
            return fake.on_fetch_chunk(request, sock) if len(seen) % 3 == 0 else bad(NOT_HELD)
    return answer


def says_busy_ok(fake):
    """Whether the program under test lets this fake say BUSY."""
    return any(request.fetch_chunk.busy_ok for _, name, request in fake.requests if name == "fetch_chunk")


def held(address):
    """The chunk ids that a peer lists."""
    return list(ask(address, chunks_query()).chunks_query.chunk_ids)


def bytes_left(sock, most=16 << 20):
    """How many bytes still come, up to `most` or until the other side closes the connection."""
    count = 0
    try:
        while count < most and (more := len(sock.recv(1 << 20))):
            count += more
    except ConnectionError:
        pass
    return count


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


def spoilt_description(**changes):
    """A description of four chunks with these fields replaced, or as a function changes it."""
    file = describe(some_bytes(3 * CHUNK + 1000))
    for field, value in changes.items():
        setattr(file, field, value(file) if callable(value) else value)
    return file


# The files that many tests distribute; conftest.py has the fixtures.

FIVE_SIZE = 4 * CHUNK + 1000  # bytes: five chunks, the last one short
FIVE_IDS = [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK]
KIB = 1024
SMALL_CHUNK = 16 * KIB
NINE_CHUNKS = some_bytes(8 * SMALL_CHUNK + 1000)  # the last one short


def events_in(path, *kinds):
    """The events of these kinds, or all, in a file that --events has written or will write."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if not kinds or event["event"] in kinds]


def eventually(condition, seconds=SECONDS, what="the condition"):
    """Poll until condition() is true; return its value. For what cannot be awaited, such as a file or a peer list."""
    wait, before = patience(seconds, starts=True), trace.answer
    give_up = time.monotonic() + wait
    began = trace.count
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up or nothing_can_come():
            break
        trace.forget_since(began)
        time.sleep(0.01)
    if trace.answer is not before and not trace.ended():
        raise gave_up(f"{what}, within {wait:.0f} s", trace.answer[0], "response", trace.answer[2])
    raise gave_up(what)


def timely(attempt, seconds):
    """Repeat attempt() until it takes less than `seconds`, because a busy machine may hold up any; return its result."""
    for _ in range(10):
        began = time.monotonic()
        result = attempt()
        if time.monotonic() - began < seconds:
            break
    return result


EXIT_CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 130, 143}  # of SPEC.md, except for 70, a bug


def nothing_can_come(since={}):
    """Whether a wait is in vain: a program has crashed, or all that the test started ended a second ago.

    Time in which nobody looked counts little, because this process may have been held up with all its threads.
    """
    codes = [program.process.poll() for program in trace.programs if not program.stopped]
    if any(code is not None and code > 0 and code not in EXIT_CODES for code in codes):  # after a signal it is below 0
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


def started(command, what, **options):
    """Start a command, with pipes for its output, in the folder of the programs; its environment says nothing about the tests."""
    trace.step(f"started {what}: {' '.join(os.path.basename(str(word)) for word in command)[:100]}")
    options.setdefault("env", program_environment())
    try:
        return subprocess.Popen(command, cwd=PROGRAMS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, **options)
    except OSError as error:
        trace.judge(f"the start of {what}", f"{command[0]}: {error.strerror}{first_line(command[0])}")
        raise AssertionError(f"cannot start {command[0]}: {error.strerror}") from None


def first_line(path):
    """What a script's first line asks for, in words; "" if it is not a script."""
    try:
        with open(shutil.which(path, path=f"{PROGRAMS}:{os.environ.get('PATH', '')}") or path, "rb") as file:
            line = file.readline(200)
    except OSError:
        return ""
    return f"; its first line asks for {line[2:].rstrip(bytes([10])).decode(errors='replace')!r}" if line.startswith(b"#!") else ""


def texts_of(pipe):
    """What a program prints, piece by piece, up to OUTPUT bytes. The rest is read slowly and thrown away, because it may print without end."""
    kept, decoder = 0, None
    for data in iter(lambda: pipe.read(1 << 16), b""):
        if kept > OUTPUT:
            time.sleep(0.01)
            continue
        decoder = decoder or codecs.getincrementaldecoder(encoding_of(data))("replace")
        kept += len(data)
        yield decoder.decode(data) + ("\n… and more, which is not kept" if kept > OUTPUT else "")


def encoding_of(data):
    """UTF-8, unless the first bytes are UTF-16, which some runtimes write, with a byte order mark or as plain ASCII text."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get((data[:1] == b"\0", data[1:2] == b"\0") if data[2:4].count(0) == 1 else None, "utf-8")


def read_to_the_end(*readers):
    """Wait for the threads that read the output of a program that has ended."""
    for reader in readers:
        reader.join(1)
    if any(reader.is_alive() for reader in readers):  # another process holds the pipe
        processes.end_all([program.pid for program in trace.programs])
    for reader in readers:
        reader.join()


class Program:
    """A process whose output is read as it comes. Ends with the test (see conftest.py). Reports call it `what`."""

    def __init__(self, command, what="the program under test", **options):
        self.what = what
        self.process = started(command, what, stderr=subprocess.STDOUT, start_new_session=True, **options)
        trace.programs.append(self)
        self.pid = self.process.pid
        self.output = ""
        self.all_read = False  # whether no more output will come
        self.stopped = False
        self.grown = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        """Read all of the output."""
        for text in texts_of(self.process.stdout):
            with self.grown:
                self.output += text
                self.grown.notify_all()
        with self.grown:
            self.all_read = True
            self.grown.notify_all()

    def tail(self):
        """The end of the output, for people."""
        return "\n".join(self.output.splitlines()[-12:])[-2000:]

    def wait_for(self, pattern, seconds=SECONDS):
        """Wait for a line of the output that matches; return the match. If none comes, the failure shows the output."""
        whole = pattern if not pattern.endswith("$") else pattern[:-1] + r"(?=\r?\n)"  # only a part of the line may have come
        with self.grown:
            self.grown.wait_for(lambda: re.search(whole, self.output, re.M) or self.all_read, patience(seconds, starts=True))
            match = re.search(whole, self.output, re.M) or self.all_read and re.search(pattern, self.output, re.M)
        if not match and self.all_read:
            self.ending()
        if not match:
            raise gave_up(f"a line of {self.what} like {pattern!r}", trace.ended() or f"its output: {self.tail() or '(none)'}")
        trace.step(f"{self.what} said: {match[0][:100]}")
        return match

    def ending(self):
        """Wait for the end of a program that has closed its output and ends a moment later."""
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            pass

    def wait(self, seconds=SECONDS):
        """The exit code, once it has ended and all of its output has been read."""
        try:
            code = self.process.wait(patience(seconds, starts=True))
        except subprocess.TimeoutExpired:
            raise gave_up(f"the end of {self.what} within {seconds:g} s", "it still runs") from None
        trace.step(f"{self.what} ended with {exit_words(code)}")
        self.reader.join(seconds)
        return code

    def ends_with(self, code, pattern="", seconds=SECONDS):
        """Check exit code and output, and that there is no traceback; returns the output."""
        got = self.wait(seconds)
        text = self.output
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
        """End the process and its group; what has left the group ends with the test (conftest.py)."""
        self.stopped = self.process.poll() is None
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        read_to_the_end(self.reader)
        self.process.stdout.close()


class Terminal:
    """A process whose stdout is a terminal of this size. Ends with the test, as a Program does."""

    def __init__(self, command, columns=80, lines=24, term="xterm", **variables):
        self.here, there = os.openpty()
        self.resize(columns, lines)
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=there, start_new_session=True,
                                        env={**program_environment(), "PYTHONIOENCODING": "utf-8", "TERM": term, **variables})
        os.close(there)

    def resize(self, columns, lines=24):
        fcntl.ioctl(self.here, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def read(self, pattern=None, seconds=SECONDS):
        """What came since the last call, up to a match of the pattern, or to the end."""
        came, until = "", time.monotonic() + seconds
        while pattern is None or not re.search(pattern, came, re.M):
            if not select.select([self.here], [], [], max(0, until - time.monotonic()))[0]:
                raise gave_up(f"{pattern or 'the end'} on the terminal", came[-2000:])
            try:
                more = os.read(self.here, 1 << 16)
            except OSError:  # some systems report the end as an error
                more = b""
            if not more:
                assert pattern is None, f"expected {pattern!r}, got {came!r}"
                break
            came += more.decode(errors="replace").replace("\r\n", "\n")
        return came

    def stop(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.here)


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
    """Run these arguments as a process; once it has ended, return it: returncode, stdout, stderr."""
    what, said = "the program under test", {}
    process = started(arguments, what, stderr=subprocess.PIPE, **options)
    readers = [threading.Thread(target=lambda pipe=pipe: said.update({pipe: "".join(texts_of(pipe))})) for pipe in (process.stdout, process.stderr)]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(2 * patience(SECONDS, starts=True))
    except subprocess.TimeoutExpired:
        raise gave_up(f"the end of {what} within {2 * SECONDS} s", "it still runs") from None
    finally:
        process.kill()
        process.wait()
        read_to_the_end(*readers)
        process.stdout.close()
        process.stderr.close()
    trace.step(f"it ended with {exit_words(code)}")
    return subprocess.CompletedProcess(arguments, code, said[process.stdout], said[process.stderr])


def one_line(process, code):
    """Check that a finished process ended with this code and wrote one line to stderr; returns the line."""
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


def outward_address():
    """A non-loopback IPv4 address of this machine, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but shows which address would be used
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def kept(port):
    """A socket, for the caller to close, that reserves a port for a program that will listen there again, so that nobody else gets it.

    It does not listen itself, so a program that reuses addresses, as ours do, can listen.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    return sock


def patched(module, changes, arguments):
    """One of our programs, as a Program with other constants: `changes` is Python, such as "peer.FRAME_SECONDS = 0.5"."""
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

    def __init__(self, host="127.0.0.1", port=0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, port), family=family, backlog=128)
        self.host = host
        self.port = self.listener.getsockname()[1]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.name = f"{self.role} at port {self.port}"
        trace.names[self.port] = self.name
        self.answers = {}
        self.requests = []
        self.connections = []   # all that were accepted, in order
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
        """The next request; anything else is noted for the report."""
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
        give_up = time.monotonic() + patience(seconds, starts=True)
        while len(found()) < count:
            with self.changed:
                self.changed.wait(min(0.25, max(0, give_up - time.monotonic())))
            if len(found()) < count and (time.monotonic() >= give_up or nothing_can_come()):
                raise self.missed(name, count, seconds, len(found()))
        return getattr(found()[-1], name)

    def missed(self, name, count, seconds, came):
        """The AssertionError for requests that did not come; the beginning of a request shows what is wrong with it."""
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

    def hang_up(self):
        """End every connection, like a program that restarts on the same port."""
        for sock in list(self.connections):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """Close the port and every connection, as when a program ends."""
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
    """A tracker that lists the test's `peers` and whoever joins."""

    role = "the fake tracker"

    def __init__(self, data, peers=(), chunk_size=CHUNK, lease_ms=10_000, file=None, host="127.0.0.1", port=0):
        super().__init__(host, port)
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
    """A peer that holds the chunks of `data` with the given indexes, or all of them."""

    role = "a fake peer"

    def __init__(self, data, held=None, chunk_size=CHUNK, host="127.0.0.1", port=0):
        super().__init__(host, port)
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
