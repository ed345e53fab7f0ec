"""Fetch Chunk: what a peer answers (SPEC.md, clauses FC). How it asks is in test_6_fetching.py."""

import os
import select
import socket
import struct
import threading

import pytest

import messages_pb2 as pb
from harness import (CHUNK, SECONDS, ask, chunks_query, connect, eventually, fetch_chunk, framed, is_refused, receive,
                     receive_body, receive_bytes, some_bytes, split)

SIZE = 2 * CHUNK + 1000  # three chunks, the last one short


def held_by(address):
    """The chunk ids that a peer lists."""
    return list(ask(address, chunks_query()).chunks_query.chunk_ids)


# What a peer answers.


@pytest.fixture
def seed(fake_tracker, run_peer, tmp_path):
    """seed(data, ...): the address of a peer under test that holds all of it, in OUT."""
    def run(data, chunk_size=CHUNK):
        out = tmp_path / "out.bin"
        out.write_bytes(data)
        tracker = fake_tracker(data, chunk_size=chunk_size)
        run_peer(tracker.port, out)
        address = tracker.joiner()
        eventually(lambda: len(held_by(address)) == len(split(data, chunk_size)), what="the peer's list of all chunks")
        return address
    return run


@pytest.fixture
def seeding(make_file, seed):
    """(address of a peer under test that is complete, the file's bytes)."""
    _, data = make_file(SIZE)
    return seed(data), data


@pytest.mark.spec("FC-1", "FC-2", "FC-3", "WF-12")
@pytest.mark.parametrize("index, body", [(0, "2a 00"), (0, "2a 02 08 00"), (1, "2a 04 08 80 80 10"), (2, "2a 04 08 80 80 20")],
                         ids=["first_chunk", "first_chunk_with_its_zero", "second_chunk", "last_chunk_is_short"])
def test_every_chunk_is_answered_with_exactly_its_bytes(seeding, index, body):
    address, data = seeding
    request = bytes.fromhex(body)
    with connect(address) as sock:
        sock.sendall(len(request).to_bytes(8, "big") + request)
        answer = pb.Response.FromString(receive_body(sock))
    assert answer.WhichOneof("type") == "chunk"
    assert answer.chunk == split(data)[index]


@pytest.mark.spec("FC-1", "WF-1")
def test_the_answer_has_the_bytes_of_the_spec(seed):
    with connect(seed(b"abc")) as sock:
        sock.sendall(framed(fetch_chunk(0)))
        assert receive_bytes(sock, 13) == bytes.fromhex("00 00 00 00 00 00 00 05 2a 03 61 62 63")


@pytest.mark.spec("FC-1", "FC-2")
@pytest.mark.fault(40)
@pytest.mark.parametrize("size, chunk_size", [(1, CHUNK), (CHUNK, CHUNK), (CHUNK + 1, CHUNK), (3000, 1000), (300, 127)])
def test_chunks_of_every_size_put_together_are_the_file(make_file, seed, size, chunk_size):
    _, data = make_file(size)
    with connect(seed(data, chunk_size)) as sock:
        chunks = [ask(sock, fetch_chunk(chunk_id)).chunk for chunk_id in range(0, size, chunk_size)]
        assert is_refused(ask(sock, fetch_chunk(len(chunks) * chunk_size)), pb.NO_SUCH_CHUNK)
    assert chunks == split(data, chunk_size)


@pytest.mark.spec("FC-4")
@pytest.mark.fault(9)
def test_an_id_that_is_no_chunks_offset_is_refused_and_the_connection_kept(seeding):
    address, data = seeding
    with connect(address) as sock:
        for chunk_id in (1, CHUNK - 1, CHUNK + 1, SIZE - 1, SIZE, 3 * CHUNK, 2**32, 2**63, 2**64 - CHUNK, 2**64 - 1):
            assert is_refused(ask(sock, fetch_chunk(chunk_id)), pb.NO_SUCH_CHUNK), chunk_id
            assert ask(sock, fetch_chunk(0)).chunk == data[:CHUNK]


@pytest.mark.spec("FC-4", "FD-1")
@pytest.mark.fault(9, 40)
def test_a_file_of_no_bytes_has_no_chunk(seed):
    with connect(seed(b"")) as sock:
        eventually(lambda: is_refused(ask(sock, fetch_chunk(0)), pb.NO_SUCH_CHUNK), what="the refusal, once it knows the file")
        assert list(ask(sock, chunks_query()).chunks_query.chunk_ids) == []


@pytest.mark.spec("FC-5", "FC-4")
@pytest.mark.fault(9)
def test_a_peer_that_holds_nothing_refuses_every_chunk_and_keeps_the_connection(make_file, fake_tracker, run_peer, tmp_path):
    _, data = make_file(SIZE)
    tracker = fake_tracker(data)
    run_peer(tracker.port, tmp_path / "out.bin")
    with connect(tracker.joiner()) as sock:
        eventually(lambda: is_refused(ask(sock, fetch_chunk(3 * CHUNK)), pb.NO_SUCH_CHUNK), what="the refusal, once it knows the file")
        for chunk_id in (0, CHUNK, 2 * CHUNK):
            assert is_refused(ask(sock, fetch_chunk(chunk_id)), pb.NOT_HELD)


@pytest.mark.spec("FC-13")
@pytest.mark.fault(34)
def test_a_complete_peer_does_not_send_bytes_that_were_changed(seeding, tmp_path):
    address, data = seeding
    with open(tmp_path / "out.bin", "r+b") as file:
        file.seek(CHUNK + 100)
        file.write(b"changed")
    assert ask(address, fetch_chunk(CHUNK)).WhichOneof("type") == "bad"
    assert ask(address, fetch_chunk(0)).chunk == data[:CHUNK]
    os.truncate(tmp_path / "out.bin", 2 * CHUNK + 1)
    assert ask(address, fetch_chunk(2 * CHUNK)).WhichOneof("type") == "bad"


# Upload slots. The chunk is of the largest size that there may be, so that it does not fit into the
# buffers between two sockets: an asker that does not read keeps its slot.


BIG = 16 << 20
MOST_SLOTS = 12  # so many askers stop reading before a peer is taken for one that is never busy


def ask_and_stop_reading(address):
    """A connection on which an answer has begun, of which no more is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    sock.settimeout(SECONDS)
    host, port = address.rsplit(":", 1)
    sock.connect((host, int(port)))
    sock.sendall(framed(fetch_chunk(0)))
    assert receive_bytes(sock, 8) == struct.pack("!Q", BIG + 5)
    return sock


def bytes_left(sock, most=BIG):
    """How many bytes still come: so many, or until the other side closes the connection."""
    count = 0
    try:
        while count < most and (more := len(sock.recv(1 << 20))):
            count += more
    except ConnectionError:
        pass
    return count


@pytest.mark.spec("FC-6")
@pytest.mark.takes(1)
def test_an_asker_is_told_busy_only_if_it_said_that_it_does_not_mind(seed):
    data = some_bytes(BIG)
    address = seed(data, chunk_size=BIG)
    stalled = []
    with connect(address) as hurried, connect(address) as patient:
        while not is_refused(answer := ask(hurried, fetch_chunk(0, busy_ok=True)), pb.BUSY):
            assert answer.chunk == data
            if len(stalled) == MOST_SLOTS:
                break  # it need not ever be busy
            stalled.append(ask_and_stop_reading(address))
        assert stalled, "it is busy with nothing on its way out"
        patient.sendall(framed(fetch_chunk(0)))
        select.select([patient], [], [], 0.3)  # time to be refused: the slots are taken until the next line
        for sock in stalled:
            sock.close()
        assert receive(patient).chunk == data  # its turn has come
        eventually(lambda: ask(hurried, fetch_chunk(0, busy_ok=True)).chunk == data, what="a free slot")


@pytest.mark.spec("FC-6")
def test_a_peer_with_nothing_on_its_way_out_is_not_busy(seeding):
    """Also for a chunk that it gave away before."""
    address, data = seeding
    with connect(address) as sock:
        for _ in range(3):
            assert ask(sock, fetch_chunk(0, busy_ok=True)).chunk == data[:CHUNK]


@pytest.mark.spec("WF-10", "FC-6")
@pytest.mark.fault(13)
def test_an_asker_that_stops_reading_keeps_nobody_else_from_being_answered(seed):
    """It has one of the slots. A lock that is held while a chunk is sent would stop everybody."""
    data = some_bytes(BIG)
    address = seed(data, chunk_size=BIG)
    eventually(lambda: held_by(address) == [0], what="the peer's list of its chunk")
    with connect(address) as other, ask_and_stop_reading(address):
        other.settimeout(SECONDS / 2)  # well before the peer gives the first one up
        assert list(ask(other, chunks_query()).chunks_query.chunk_ids) == [0]
        assert is_refused(ask(other, fetch_chunk(1)), pb.NO_SUCH_CHUNK)
        assert ask(other, fetch_chunk(0)).chunk == data


@pytest.mark.spec("FC-14")
@pytest.mark.fault(13)
@pytest.mark.parametrize("reads", [0, 65_536], ids=["not_at_all", "too_slowly"])
@pytest.mark.takes(2)
def test_an_asker_that_stops_reading_loses_its_slot(fake_tracker, run_patched, tmp_path, reads):
    """Every 20 ms the askers read so many bytes: five seconds for all. Silence may last for a second, the whole answer for two."""
    data = some_bytes(BIG)
    (tmp_path / "out.bin").write_bytes(data)
    tracker = fake_tracker(data, chunk_size=BIG)
    run_patched("peer", "peer.UPLOAD_SLOTS = 2; peer.FRAME_SECONDS = 1; peer.SLOWEST_LINK = 16 * peer.MIB", [f"127.0.0.1:{tracker.port}", tmp_path / "out.bin"])
    address = tracker.joiner()
    eventually(lambda: held_by(address) == [0], what="the peer's list of its chunk")
    stalled = {ask_and_stop_reading(address): 0 for _ in range(2)}  # -> bytes that it has read
    ended = threading.Event()

    def read_slowly():
        while not ended.wait(0.02):
            for sock in stalled:
                try:
                    stalled[sock] += len(sock.recv(reads))
                except OSError:
                    return

    def served():
        """Whether a quick asker gets its turn, and the whole chunk before its own time is over."""
        try:
            return ask(address, fetch_chunk(0)).chunk == data
        except (EOFError, ConnectionError):
            return False
    reader = threading.Thread(target=read_slowly)
    if reads:
        reader.start()
    try:
        eventually(served, seconds=5, what="a free slot")
        ended.set()
        if reads:
            reader.join()
        assert min(count + bytes_left(sock, BIG - count) for sock, count in stalled.items()) < BIG, "the slot came free when all had been sent"
    finally:
        ended.set()
        if reads:
            reader.join()
        for sock in stalled:
            sock.close()
