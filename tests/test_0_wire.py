"""The wire: frames, what nonsense is answered, how long a connection lasts (SPEC.md, clauses WF)."""

import random
import socket
import struct
import time

import pytest

import messages_pb2 as pb
from harness import (CHUNK, active_proof, ask, chunks_query, connect, eventually, fetch_chunk, framed, is_closed,
                     is_refused, join, peer_list, receive, some_bytes)

TO_TRACKER = [join("127.0.0.1:5000"), active_proof("127.0.0.1:5000"), peer_list()]
TO_PEER = [chunks_query(), fetch_chunk(0)]
UNKNOWN_FIELD = bytes.fromhex("9a 06 03 61 62 63")  # field 99, three bytes


class Server:
    """A program under test that answers: `requests` are those of its role, the first is harmless."""

    def __init__(self, program, address, requests, kinds, others):
        self.program = program
        self.address = address
        self.requests = requests
        self.kinds = kinds      # what each of them is answered
        self.others = others    # requests for the other role

    def serves(self, sock=None):
        """Whether it answers a good request, on an open connection or on a new one."""
        return ask(sock or self.address, self.requests[0]).WhichOneof("type") == self.kinds[0]


@pytest.fixture(params=["tracker", "peer"])
def server(request, make_file, run_tracker, run_peer, fake_tracker, tmp_path):
    """A tracker, then a peer that holds the whole file."""
    path, data = make_file(CHUNK + 1000)
    if request.param == "tracker":
        program = run_tracker(path)
        yield Server(program, ("127.0.0.1", program.port), [peer_list(), *TO_TRACKER], ["peer_list", "peer_list", "ok", "peer_list"], TO_PEER)
    else:
        out = tmp_path / "out.bin"
        out.write_bytes(data)
        tracker = fake_tracker(data)
        program = run_peer(tracker.port, out)
        address = tracker.joiner()
        eventually(lambda: len(ask(address, chunks_query()).chunks_query.chunk_ids) == 2, what="the peer's list of all chunks")
        yield Server(program, address, TO_PEER, ["chunks_query", "chunk"], TO_TRACKER)
    program.stop()
    assert "Traceback" not in program.output, program.output


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
    assert int.from_bytes(answer[:8], "big") == len(answer) - 8
    assert pb.Response.FromString(answer[8:]).WhichOneof("type") == server.kinds[0]


@pytest.mark.spec("WF-1", "WF-2")
@pytest.mark.fault(4)
def test_a_frame_that_comes_byte_by_byte_is_answered(server):
    with connect(server.address) as sock:
        for request, kind in zip(server.requests, server.kinds):
            for byte in framed(request):
                sock.sendall(bytes([byte]))
            assert receive(sock).WhichOneof("type") == kind


@pytest.mark.spec("WF-2")
def test_a_frame_that_pauses_in_the_middle_is_answered(server):
    frame = framed(server.requests[0])
    for cut in (1, 7, 8, 9):
        with connect(server.address) as sock:
            sock.sendall(frame[:cut])
            assert not is_closed(sock, 0.05), cut
            sock.sendall(frame[cut:])
            assert receive(sock).WhichOneof("type") == server.kinds[0], cut


@pytest.mark.spec("WF-2", "WF-3")
@pytest.mark.fault(4)
def test_two_frames_in_one_segment_are_both_answered(server):
    with connect(server.address) as sock:
        sock.sendall(b"".join(map(framed, server.requests[:2])))
        assert [receive(sock).WhichOneof("type") for _ in range(2)] == server.kinds[:2]


@pytest.mark.spec("WF-2")
def test_an_asker_understands_answers_that_come_byte_by_byte(make_file, fake_tracker, fake_peer, run_peer, tmp_path):
    _, data = make_file(2500)
    tracker, neighbor = fake_tracker(data, chunk_size=1000), fake_peer(data, chunk_size=1000)
    tracker.peers = [neighbor.address]

    def byte_by_byte(answer):
        def send(request, sock):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in framed(answer(request, sock)):
                sock.sendall(bytes([byte]))
        return send
    for fake in (tracker, neighbor):
        fake.answers = {name: byte_by_byte(answer) for name, answer in fake.answers.items()}
    run_peer(tracker.port, tmp_path / "out.bin")
    eventually((tmp_path / "out.bin").exists, what="a complete file")
    assert (tmp_path / "out.bin").read_bytes() == data


# Connections.


@pytest.mark.spec("WF-3")
def test_many_requests_on_one_connection_are_answered_in_their_order(server):
    order = random.Random(3).choices(range(len(server.requests)), k=30)
    with connect(server.address) as sock:
        sock.sendall(b"".join(framed(server.requests[i]) for i in order))
        assert [receive(sock).WhichOneof("type") for _ in order] == [server.kinds[i] for i in order]


@pytest.mark.spec("WF-4")
def test_a_client_may_use_each_connection_for_one_request(server):
    for _ in range(3):
        assert [ask(server.address, request).WhichOneof("type") for request in server.requests] == server.kinds


@pytest.mark.spec("WF-4")
def test_a_client_copes_with_servers_that_close_after_each_answer(make_file, fake_tracker, fake_peer, run_peer, tmp_path):
    _, data = make_file(5 * CHUNK)
    neighbors = [fake_peer(data), fake_peer(data, held=[0, 1])]
    tracker = fake_tracker(data, [neighbor.address for neighbor in neighbors], lease_ms=300)
    for fake in [tracker, *neighbors]:
        fake.one_request_per_connection = True
    run_peer(tracker.port, tmp_path / "out.bin")
    eventually((tmp_path / "out.bin").exists, what="a complete file")
    assert (tmp_path / "out.bin").read_bytes() == data
    tracker.wait_for("active_proof", 2)


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
def test_clients_that_say_nothing_or_half_a_frame_keep_nobody_waiting(server):
    silent = [connect(server.address) for _ in range(20)]
    try:
        for sock in silent[10:]:
            sock.sendall(framed(server.requests[0])[:9])
        began = time.monotonic()
        for request, kind in zip(server.requests, server.kinds):
            assert ask(server.address, request).WhichOneof("type") == kind
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
        assert receive(sock).WhichOneof("type") == server.kinds[0]


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
        sock.sendall(at_once)
        began = time.monotonic()
        while not is_closed(sock, 0.05):
            assert time.monotonic() - began < 3, "a byte every 50 ms keeps the connection open"
            try:
                sock.sendall(b"\0")
            except ConnectionError:
                break
        assert time.monotonic() - began > 0.2


@pytest.mark.spec("WF-9")
def test_a_request_that_stops_in_the_middle_is_closed_when_its_time_is_over(impatient_tracker):
    port = impatient_tracker("peer.FRAME_SECONDS = 0.3")
    with connect(port) as idle, connect(port) as sock:
        sock.sendall(framed(peer_list())[:9])
        assert is_closed(sock, 3)
        assert not is_closed(idle, 0.01)  # its time runs from its first byte


@pytest.mark.spec("WF-10")
def test_an_idle_connection_is_closed_in_the_end(impatient_tracker):
    port = impatient_tracker("peer.IDLE_SECONDS = 0.3")
    with connect(port) as silent, connect(port) as served:
        ask(served, peer_list())
        assert is_closed(silent, 3) and is_closed(served, 3)


@pytest.mark.spec("WF-13")
def test_a_full_server_closes_the_connection_that_has_waited_longest(impatient_tracker):
    port = impatient_tracker("peer.MAX_CONNECTIONS = 4")
    crowd = [connect(port) for _ in range(4)]
    try:
        for sock in [*crowd, crowd[0]]:  # the first asks again, so the second has waited longest
            ask(sock, peer_list())
            time.sleep(0.05)  # until it waits again
        with connect(port) as another:
            assert ask(another, peer_list()).WhichOneof("type") == "peer_list"
            assert is_closed(crowd[1], 3)
            for sock in (crowd[0], crowd[2], crowd[3], another):
                assert ask(sock, peer_list()).WhichOneof("type") == "peer_list"
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
            inner = getattr(request, name).SerializeToString() + UNKNOWN_FIELD
            tag = request.DESCRIPTOR.fields_by_name[name].number << 3 | 2
            sock.sendall(framed(UNKNOWN_FIELD + bytes([tag, len(inner)]) + inner + UNKNOWN_FIELD))
            assert receive(sock).WhichOneof("type") == kind


@pytest.mark.spec("WF-11")
@pytest.mark.parametrize("place", ["before", "after"])
def test_unknown_fields_of_an_answer_are_ignored(make_file, fake_tracker, fake_peer, run_peer, tmp_path, place):
    _, data = make_file(2 * CHUNK)
    neighbor = fake_peer(data)
    tracker = fake_tracker(data, [neighbor.address])

    def with_more(answer):
        def more(request, sock):
            body = answer(request, sock).SerializeToString()
            return UNKNOWN_FIELD + body if place == "before" else body + UNKNOWN_FIELD
        return more
    for fake in (tracker, neighbor):
        fake.answers = {name: with_more(answer) for name, answer in fake.answers.items()}
    run_peer(tracker.port, tmp_path / "out.bin")
    eventually((tmp_path / "out.bin").exists, what="a complete file")
    assert (tmp_path / "out.bin").read_bytes() == data


@pytest.mark.spec("WF-12")
def test_a_request_whose_content_is_all_default_is_told_by_its_presence(server):
    """`2a 00` is Fetch Chunk 0; `0a 00` is a Join of no address, not a request of no type."""
    expected = {"tracker": {"0a 00": "bad", "12 00": "bad", "1a 00": "peer_list", "22 00": "bad", "2a 00": "bad"},
                "peer": {"0a 00": "bad", "12 00": "bad", "1a 00": "bad", "22 00": "chunks_query", "2a 00": "chunk"}}
    with connect(server.address) as sock:
        for body, kind in expected["tracker" if server.others is TO_PEER else "peer"].items():
            sock.sendall(framed(bytes.fromhex(body)))
            answer = receive(sock)
            assert answer.WhichOneof("type") == kind, body
            assert answer.bad.code != pb.NO_TYPE, body


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


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6, 7)
def test_nonsense_is_closed_or_bad_and_the_next_good_request_is_answered(server):
    for name, data in NONSENSE.items():
        with connect(server.address) as sock:
            assert outcome(sock, data) in ("bad", "closed"), name
        assert server.serves(), name


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6)
def test_five_hundred_random_frames_are_closed_or_bad(server):
    rng = random.Random(500)
    for _ in range(500):
        with connect(server.address) as sock:
            frame = framed(rng.randbytes(rng.randrange(3, 100)))
            assert outcome(sock, frame) in ("bad", "closed"), frame.hex(" ")
    assert server.serves()


@pytest.mark.spec("WF-6", "WF-10")
@pytest.mark.fault(6)
def test_text_that_is_not_utf8_is_closed_also_by_protobuf_without_its_c_part(make_file, run_tracker, monkeypatch):
    """That one says UnicodeDecodeError where the usual one says DecodeError. Programs in other languages do not mind."""
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    path, _ = make_file(1000)
    program = run_tracker(path)
    with connect(program.port) as sock:
        assert outcome(sock, NONSENSE["text that is not UTF-8"]) in ("bad", "closed")
    assert ask(program.port, peer_list()).WhichOneof("type") == "peer_list"
    program.stop()
    assert "Traceback" not in program.output, program.output
