"""Tests of the wire that stages 0, 3 and 5 run, each on a server of its own: framing, connections, nonsense (SPEC.md, clauses WF).

A file that runs them says `from wire_tests import *`, which imports only the tests, and has a fixture `server`, a Server.
It imports everything else by name.
"""

import random
import socket
import struct
import time

import pytest
from google.protobuf.descriptor import FieldDescriptor

import messages_pb2 as pb
from harness import CHUNK, ask, chunks_query, connect, fetch_chunk, framed, is_closed, is_refused, patience, receive, some_bytes

FOREIGN = [chunks_query(), fetch_chunk(CHUNK)]  # requests that a tracker answers only with Bad
UNKNOWN_FIELD = bytes.fromhex("9a 06 03 61 62 63  98 06 96 01  99 06 01 02 03 04 05 06 07 08  9d 06 01 02 03 04")  # field 99, of wire types 2, 0, 1 and 5


def kind_of(answer):
    """The type of an answer; for Bad, with its code."""
    kind = answer.WhichOneof("type")
    return f"bad {pb.Code.Name(answer.bad.code)}" if kind == "bad" else kind


NUMBERS = {FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_ENUM}


def varint(number):
    """A number as protobuf writes it."""
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def written_otherwise(message):
    """The bytes of a message as another program may write it: fields in reverse order, unknown ones between them, lists not packed."""
    pieces = [UNKNOWN_FIELD]
    for field, value in reversed(message.ListFields()):
        many = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        for one in value if many else [value]:
            if field.type in NUMBERS:
                pieces.append(varint(field.number << 3) + varint(int(one)))
            else:
                content = written_otherwise(one) if field.message_type else one.encode() if isinstance(one, str) else one
                pieces.append(varint(field.number << 3 | 2) + varint(len(content)) + content)
            pieces.append(UNKNOWN_FIELD)
    return b"".join(pieces)


class Server:
    """A program under test that answers `requests`, the first of which is harmless, with answers of these kinds."""

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


def outcome(sock, data):
    """How these bytes are answered: the type of the answer, or "closed"."""
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
def test_a_client_that_has_ended_its_side_after_a_request_is_answered_and_the_connection_closed(server):
    with connect(server.address) as sock:
        sock.sendall(framed(server.requests[0]))
        sock.shutdown(socket.SHUT_WR)
        assert kind_of(receive(sock)) == server.kinds[0]
        assert is_closed(sock, 8)  # before the 10 s of WF-9


@pytest.mark.spec("WF-10")
@pytest.mark.fault(3)
def test_a_connection_whose_end_is_in_the_middle_of_a_frame_is_closed(server):
    """A program that takes the end of a stream for late bytes keeps reading forever, as fast as it can."""
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
        assert time.monotonic() - began < patience(3)
    finally:
        for sock in silent:
            sock.close()


# The size limit.


@pytest.mark.spec("WF-5")
@pytest.mark.fault(1)
def test_a_request_that_announces_too_much_is_closed_at_once_and_takes_no_memory(server):
    assert server.serves()
    before = server.program.resident()
    for length in (65_537, 8 << 30, 2**40, 2**63, 2**64 - 1):
        with connect(server.address) as sock:
            sock.sendall(length.to_bytes(8, "big") + b"x")
            assert is_closed(sock, 3), length  # well before the 10 s that a frame may take
    assert server.program.resident() - before < 64 << 20  # a runtime may need some for itself
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
    "a message of no bytes": "",
    "an unknown member of the oneof": "32 00",
    "an unknown field of bytes": "9a 06 03 61 62 63",
    "an unknown number": "98 06 01",
    "an unknown field of eight bytes": "99 06 01 02 03 04 05 06 07 08",
    "an unknown field of four bytes": "9d 06 01 02 03 04",
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
def test_unknown_fields_of_a_request_are_ignored_of_whatever_wire_type_and_wherever_they_stand(server):
    with connect(server.address) as sock:
        for request, kind in zip(server.requests, server.kinds):
            name = request.WhichOneof("type")
            if name is None:
                continue
            body = written_otherwise(request)
            assert pb.Request.FromString(body).WhichOneof("type") == name
            sock.sendall(framed(body))
            assert kind_of(receive(sock)) == kind


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6)
def test_five_hundred_random_frames_are_closed_or_bad(server):
    rng = random.Random(500)
    for _ in range(20):  # 25 at a time, because a server may be slow with each
        frames = [framed(rng.randbytes(rng.randrange(3, 100))) for _ in range(25)]
        socks = [connect(server.address) for _ in frames]
        try:
            for sock, frame in zip(socks, frames):
                sock.sendall(frame)
            for sock, frame in zip(socks, frames):
                assert outcome(sock, b"") in ("bad", "closed"), frame.hex(" ")
        finally:
            for sock in socks:
                sock.close()
    assert server.serves()


NONSENSE = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": bytes.fromhex("16 03 01 00 c8 01 00 00 c4 03 03") + some_bytes(194),
    "random bytes": some_bytes(4000, seed=6),
    "a frame of groups 10,000 deep": framed(b"\x0b" * 10_000 + b"\x0c" * 10_000),
    "a frame of messages 1,000 deep": framed(b"".join(b"\x0a" + bytes([n & 0x7F | 0x80, n >> 7]) for n in range(2997, -1, -3))),
    "text that is not UTF-8": framed(bytes.fromhex("0a 04 0a 02 ff fe")),
    "an unknown field 20,000 times": framed(bytes.fromhex("98 06 01") * 20_000),
    "a list of 60,000 numbers": framed(bytes.fromhex("9a 06 e0 d4 03") + b"\x01" * 60_000),
}


def nonsense_is_closed_or_bad(server):
    """Check that all of NONSENSE is answered like this, and that a good request after each is served."""
    for name, data in NONSENSE.items():
        with connect(server.address) as sock:
            assert outcome(sock, data) in ("bad", "closed"), name
        assert server.serves(), name


def a_request_has_ten_seconds(server):
    """Check that a frame that takes 8 s is answered, and that the program does not wait much longer than 10 s for any frame.

    Each connection gets a byte every 0.7 s, except for the one that has stopped.
    """
    frame = framed(server.requests[0])
    with connect(server.address) as slow, connect(server.address) as dribbling, connect(server.address) as stopped, connect(server.address) as idle:
        began = time.monotonic()
        dribbling.sendall(bytes.fromhex("00 00 00 00 00 00 40 00"))
        stopped.sendall(frame[:9])
        pause = 7 / len(frame)
        for byte in frame:
            slow.sendall(bytes([byte]))
            dribbling.sendall(b"\0")
            time.sleep(pause)
        assert kind_of(receive(slow)) == server.kinds[0]
        ended = {}  # socket -> seconds after which it was closed
        while len(ended) < 2 and time.monotonic() - began < 15:
            for sock in {dribbling, stopped} - set(ended):
                if is_closed(sock, 0.2):
                    ended[sock] = time.monotonic() - began
                elif sock is dribbling:
                    dribble(sock)
        assert len(ended) == 2, "a byte now and then keeps a connection open" if stopped in ended else "half a frame keeps a connection open"
        assert not is_closed(idle, 0.01), "its time has not begun"


def dribble(sock):
    """Send one byte, if the other side has not closed meanwhile."""
    try:
        sock.sendall(b"\0")
    except ConnectionError:
        pass


__all__ = [name for name in globals() if name.startswith("test_")]
