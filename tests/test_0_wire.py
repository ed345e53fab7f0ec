"""The wire: frames, what nonsense is answered, how long a connection lasts (SPEC.md, clauses WF).

A tracker is asked here only what it refuses. test_3_wire.py and test_5_wire.py run the same tests with the
requests that a tracker and a peer answer.
"""

import random
import socket
import struct
import time

import pytest

import messages_pb2 as pb
from harness import CHUNK, ask, chunks_query, connect, eventually, fetch_chunk, framed, is_closed, is_refused, receive

FOREIGN = [chunks_query(), fetch_chunk(CHUNK)]  # requests that no tracker answers but with Bad
UNKNOWN_FIELD = bytes.fromhex("9a 06 03 61 62 63")  # field 99, three bytes


def kind_of(answer):
    """The type of an answer; of Bad its code too."""
    kind = answer.WhichOneof("type")
    return f"bad {pb.Code.Name(answer.bad.code)}" if kind == "bad" else kind


class Server:
    """A program under test that answers: `requests`, the first of which is harmless, with answers of these kinds."""

    def __init__(self, program, address, requests, kinds, others):
        self.program = program
        self.address = address
        self.requests = requests
        self.kinds = kinds      # see kind_of
        self.others = others    # requests for the other role

    def serves(self, sock=None):
        """Whether it answers a good request, on an open connection or on a new one."""
        return kind_of(ask(sock or self.address, self.requests[0])) == self.kinds[0]

    def stop(self):
        self.program.stop()
        assert "Traceback" not in self.program.output, self.program.output


@pytest.fixture
def server(make_file, run_tracker):
    """A tracker that is asked only what it refuses: framing can be right before any request is understood."""
    program = run_tracker(make_file(1000)[0], expire=3600, extra=["--no-seed"])
    server = Server(program, ("127.0.0.1", program.port), [FOREIGN[0], pb.Request(), FOREIGN[1]], ["bad WRONG_ROLE", "bad NO_TYPE", "bad WRONG_ROLE"], FOREIGN)
    yield server
    server.stop()


def outcome(sock, data):
    """What these bytes are answered: the type of the answer, or "closed"."""
    try:
        sock.sendall(data)
        return receive(sock).WhichOneof("type")
    except (EOFError, ConnectionError):
        return "closed"


# Frames.


@pytest.mark.spec("WF-1")
def test_the_length_of_an_answer_does_not_count_its_own_eight_bytes(server):
    with connect(server.address) as sock:
        sock.sendall(framed(server.requests[0]))
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(1 << 20), b""))
    assert answer == framed(answer[8:])
    assert kind_of(pb.Response.FromString(answer[8:])) == server.kinds[0]


@pytest.mark.spec("WF-1", "WF-2")
@pytest.mark.fault(4)
def test_a_frame_that_comes_byte_by_byte_is_answered(server):
    with connect(server.address) as sock:
        for request, kind in zip(server.requests, server.kinds):
            for byte in framed(request):
                sock.sendall(bytes([byte]))
            assert kind_of(receive(sock)) == kind


@pytest.mark.spec("WF-2")
def test_a_frame_that_pauses_in_the_middle_is_answered(server):
    frame = framed(server.requests[0])
    for cut in (1, 7, 8, 9):
        with connect(server.address) as sock:
            sock.sendall(frame[:cut])
            assert not is_closed(sock, 0.05), cut
            sock.sendall(frame[cut:])
            assert kind_of(receive(sock)) == server.kinds[0], cut


@pytest.mark.spec("WF-2", "WF-3")
@pytest.mark.fault(4)
def test_two_frames_in_one_segment_are_both_answered(server):
    with connect(server.address) as sock:
        sock.sendall(b"".join(map(framed, server.requests[:2])))
        assert [kind_of(receive(sock)) for _ in range(2)] == server.kinds[:2]


# Connections.


@pytest.mark.spec("WF-3")
def test_many_requests_on_one_connection_are_answered_in_their_order(server):
    order = random.Random(3).choices(range(len(server.requests)), k=30)
    with connect(server.address) as sock:
        sock.sendall(b"".join(framed(server.requests[i]) for i in order))
        assert [kind_of(receive(sock)) for _ in order] == [server.kinds[i] for i in order]


@pytest.mark.spec("WF-4")
def test_a_client_may_use_each_connection_for_one_request(server):
    for _ in range(3):
        assert [kind_of(ask(server.address, request)) for request in server.requests] == server.kinds


@pytest.mark.spec("WF-10")
@pytest.mark.fault(3)
def test_a_connection_that_ends_at_any_byte_of_a_frame_ends_nothing_else(server):
    frame = framed(server.requests[-1])
    for cut in range(len(frame) + 1):
        with connect(server.address) as sock:
            sock.sendall(frame[:cut])
        with connect(server.address) as sock:
            sock.sendall(frame[:cut])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
    assert server.serves()


@pytest.mark.spec("WF-10")
@pytest.mark.fault(3)
def test_a_connection_whose_end_is_in_the_middle_of_a_frame_is_closed(server):
    """Whoever takes no bytes for bytes that are late reads on for ever, as fast as it can."""
    frame = framed(server.requests[0])
    for cut in (1, 9):
        with connect(server.address) as sock:
            sock.sendall(frame[:cut])
            sock.shutdown(socket.SHUT_WR)
            assert is_closed(sock, 8), cut  # before the 10 s of WF-9
    assert server.serves()


@pytest.mark.spec("WF-10")
def test_clients_that_say_nothing_or_half_a_frame_keep_nobody_waiting(server):
    silent = [connect(server.address) for _ in range(20)]
    try:
        for sock in silent[10:]:
            sock.sendall(framed(server.requests[0])[:9])
        began = time.monotonic()
        for request, kind in zip(server.requests, server.kinds):
            assert kind_of(ask(server.address, request)) == kind
        assert time.monotonic() - began < 3
    finally:
        for sock in silent:
            sock.close()


# Bounds of size and time.


@pytest.mark.spec("WF-5")
@pytest.mark.fault(1)
def test_a_request_that_announces_too_much_is_closed_at_once_and_takes_no_memory(server):
    assert server.serves()
    before = server.program.resident()
    for length in (65_537, 8 << 30, 2**40, 2**63, 2**64 - 1):
        with connect(server.address) as sock:
            sock.sendall(length.to_bytes(8, "big") + b"x")
            assert is_closed(sock, 3), length  # well before the 10 s that a frame may take
    assert server.program.resident() - before < 5_000_000
    assert server.serves()


@pytest.mark.spec("WF-5", "WF-11")
def test_a_request_of_65536_bytes_is_still_answered(server):
    request = server.requests[0].SerializeToString()
    filling = 65_536 - len(request) - 5
    body = request + bytes.fromhex("9a 06") + bytes([filling & 0x7F | 0x80, filling >> 7 & 0x7F | 0x80, filling >> 14]) + b"x" * filling
    assert len(body) == 65_536
    with connect(server.address) as sock:
        sock.sendall(framed(body))
        assert kind_of(receive(sock)) == server.kinds[0]


@pytest.fixture
def impatient_tracker(make_file, run_patched):
    """impatient_tracker(changes): the port of a tracker of ours with other constants, which does not seed."""
    def run(changes):
        path, _ = make_file(1000)
        return int(run_patched("tracker", changes, [path, "--port", "0", "--no-seed"]).wait_for(r"listening on port (\d+)$")[1])
    return run


@pytest.mark.spec("WF-9")
@pytest.mark.fault(5)
@pytest.mark.parametrize("at_once", [b"\0", bytes.fromhex("00 00 00 00 00 00 40 00")], ids=["in_the_length", "in_the_message"])
def test_a_request_that_dribbles_is_closed_when_the_time_for_a_whole_frame_is_over(impatient_tracker, at_once):
    with connect(impatient_tracker("peer.FRAME_SECONDS = 0.3")) as sock:
        began = time.monotonic()
        sock.sendall(at_once)
        while not is_closed(sock, 0.05):
            assert time.monotonic() - began < 3, "a byte every 50 ms keeps the connection open"
            try:
                sock.sendall(b"\0")
            except ConnectionError:
                break
        assert time.monotonic() - began >= 0.3


@pytest.mark.spec("WF-9")
def test_a_request_that_stops_in_the_middle_is_closed_when_its_time_is_over(impatient_tracker):
    port = impatient_tracker("peer.FRAME_SECONDS = 0.3")
    with connect(port) as idle, connect(port) as sock:
        sock.sendall(framed(FOREIGN[0])[:9])
        assert is_closed(sock, 3)
        assert not is_closed(idle, 0.01)  # its time runs from its first byte


@pytest.mark.spec("WF-10")
def test_an_idle_connection_is_closed_in_the_end(impatient_tracker):
    port = impatient_tracker("peer.IDLE_SECONDS = 0.3")

    def served():
        """A connection on which a request was answered; None if it was closed before, as that request came late."""
        sock = connect(port)
        try:
            ask(sock, FOREIGN[0])
            return sock
        except (EOFError, ConnectionError):
            sock.close()
    with connect(port) as silent, eventually(served, what="an answer") as sock:
        assert is_closed(silent, 3) and is_closed(sock, 3)


TELLS_WHEN_IT_WAITS = """
read_frame = peer.read_frame
def tell_and_read(*arguments):
    print("waits", flush=True)
    return read_frame(*arguments)
peer.read_frame = tell_and_read
"""


@pytest.mark.spec("WF-13")
def test_a_full_server_closes_the_connection_that_has_waited_longest(make_file, run_patched):
    program = run_patched("tracker", "peer.MAX_CONNECTIONS = 4" + TELLS_WHEN_IT_WAITS, [make_file(1000)[0], "--port", "0", "--no-seed"])
    port = int(program.wait_for(r"listening on port (\d+)$")[1])
    crowd = [connect(port) for _ in range(4)]
    try:
        for count, sock in enumerate([*crowd, crowd[0]], start=1):  # the first asks again, so the second has waited longest
            ask(sock, FOREIGN[0])
            eventually(lambda: program.output.count("waits") == 4 + count, what="the server's wait for its next request")
        with connect(port) as another:
            assert ask(another, FOREIGN[0]).WhichOneof("type") == "bad"
            assert is_closed(crowd[1], 3)
            for sock in (crowd[0], crowd[2], crowd[3], another):
                assert ask(sock, FOREIGN[0]).WhichOneof("type") == "bad"
    finally:
        for sock in crowd:
            sock.close()


# What requests mean, and nonsense.


NO_MESSAGE = {
    "a field that is longer than the message": "0a ff",
    "a number that does not end": "80 80 80 80 80 80 80 80 80 80 80 80",
    "a field without a value": "0a",
    "field 0": "02 00",
    "the end of a group that did not begin": "0c",
    "wire type 7": "0f 00",
}


@pytest.mark.spec("WF-6")
def test_bytes_that_are_no_message_end_that_connection_and_no_other(server):
    with connect(server.address) as other:
        for name, body in NO_MESSAGE.items():
            with connect(server.address) as sock:
                sock.sendall(framed(bytes.fromhex(body)))
                assert is_closed(sock), name
            assert server.serves(other), name
    assert server.serves()


NO_TYPE = {
    "the empty frame": "",
    "an unknown member of the oneof": "32 00",
    "an unknown field of bytes": "9a 06 03 61 62 63",
    "an unknown number": "98 06 01",
}


@pytest.mark.spec("WF-7")
@pytest.mark.fault(2, 7)
def test_a_request_without_a_known_type_is_answered_bad_and_the_connection_kept(server):
    with connect(server.address) as sock:
        for name, body in NO_TYPE.items():
            sock.sendall(framed(bytes.fromhex(body)))
            assert is_refused(receive(sock), pb.NO_TYPE), name
            assert server.serves(sock), name


@pytest.mark.spec("WF-8")
@pytest.mark.fault(8)
def test_a_request_for_the_other_role_is_answered_bad_and_the_connection_kept(server):
    with connect(server.address) as sock:
        for request in server.others:
            assert is_refused(ask(sock, request), pb.WRONG_ROLE)
            assert server.serves(sock)


@pytest.mark.spec("WF-11")
def test_unknown_fields_of_a_request_are_ignored(server):
    with connect(server.address) as sock:
        for request, kind in zip(server.requests, server.kinds):
            name = request.WhichOneof("type")
            if name is None:
                continue
            inner = getattr(request, name).SerializeToString() + UNKNOWN_FIELD
            tag = request.DESCRIPTOR.fields_by_name[name].number << 3 | 2
            sock.sendall(framed(UNKNOWN_FIELD + bytes([tag, len(inner)]) + inner + UNKNOWN_FIELD))
            assert kind_of(receive(sock)) == kind


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6)
def test_five_hundred_random_frames_are_closed_or_bad(server):
    rng = random.Random(500)
    for _ in range(500):
        with connect(server.address) as sock:
            frame = framed(rng.randbytes(rng.randrange(3, 100)))
            assert outcome(sock, frame) in ("bad", "closed"), frame.hex(" ")
    assert server.serves()
