"""Fetch Chunk: what a peer answers (SPEC.md, clauses FC). How it asks is in test_6_fetching.py."""

import os
import select
import socket
import struct
import threading

import pytest

import messages_pb2 as pb
from checks import event_written
from harness import (CHUNK, SECONDS, ask, bytes_left, chunks_query, connect, eventually, fetch_chunk, framed, held, is_refused, patience, receive,
                     receive_body, receive_bytes, some_bytes, split)

SIZE = 2 * CHUNK + 1000  # three chunks, the last one short


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
        eventually(lambda: len(held(address)) == len(split(data, chunk_size)), what="the peer's list of all chunks")
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
def test_the_request_of_the_spec_is_answered_with_its_chunk(seed):
    with connect(seed(b"abc")) as sock:
        for _ in range(2):  # the second answer shows that the length of the first was right
            sock.sendall(bytes.fromhex("00 00 00 00 00 00 00 02 2a 00"))
            assert receive(sock).chunk == b"abc"


@pytest.mark.spec("FC-1", "FC-2")
@pytest.mark.fault(40)
@pytest.mark.parametrize("size, chunk_size", [(1, CHUNK), (CHUNK, CHUNK), (CHUNK + 1, CHUNK), (3000, 1000), (300, 127)])
def test_chunks_of_every_size_put_together_are_the_file(make_file, seed, size, chunk_size):
    _, data = make_file(size)
    with connect(seed(data, chunk_size)) as sock:
        chunks = [ask(sock, fetch_chunk(chunk_id)).chunk for chunk_id in range(0, size, chunk_size)]
        assert is_refused(ask(sock, fetch_chunk(len(chunks) * chunk_size)), pb.NO_SUCH_CHUNK)
    assert chunks == split(data, chunk_size)


@pytest.mark.spec("CL-15", "CL-18")
def test_a_peer_says_that_it_is_complete_and_writes_what_it_has_sent_to_whom(make_file, fake_tracker, run_peer, tmp_path):
    out, data = make_file(SIZE, name="out.bin")
    tracker = fake_tracker(data)
    run_peer(tracker.port, out, extra=["--events", str(tmp_path / "peer.events")]).wait_for("^complete.*seeding")
    with connect(tracker.joiner()) as sock:
        ask(sock, fetch_chunk(2 * CHUNK))
        host, port = sock.getsockname()
        event = event_written(tmp_path / "peer.events", "sent", chunk=2 * CHUNK, bytes=1000, to=f"{host}:{port}")
        assert 0 <= event.get("seconds", 0) < 60


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


@pytest.mark.spec("FC-5", "JN-8")
def test_who_asks_a_peer_that_has_not_joined_yet_does_not_bring_it_down(make_file, fake_tracker, run_peer, tmp_path):
    """It accepts connections but does not know the file: it refuses the chunk, or answers once it has joined."""
    out, data = make_file(SIZE, name="out.bin")
    tracker, early = fake_tracker(data), []

    def on_join(request, sock):
        early.append(connect(int(request.listening_addr.rpartition(":")[2])))
        early[0].sendall(framed(fetch_chunk(0)))
        select.select(early, [], [], 0.5)
        return tracker.on_join(request, sock)
    tracker.answers["join"] = on_join
    run_peer(tracker.port, out)
    address = tracker.joiner()
    with early[0]:
        answer = receive(early[0])
        assert answer.chunk == data[:CHUNK] or is_refused(answer, pb.NOT_HELD) or is_refused(answer, pb.NO_SUCH_CHUNK)
        eventually(lambda: ask(early[0], fetch_chunk(0)).chunk == data[:CHUNK], what="chunk 0, once it knows the file")
    assert len(held(address)) == 3


def refuses(address, chunk_id):
    """Whether a peer says that it does not hold a chunk, or ends the connection before all of it has come."""
    try:
        return is_refused(ask(address, fetch_chunk(chunk_id)), pb.NOT_HELD)
    except (EOFError, ConnectionError):
        return True


@pytest.mark.spec("FC-13")
@pytest.mark.fault(34)
def test_a_complete_peer_does_not_send_bytes_that_were_changed(seeding, tmp_path):
    address, data = seeding
    with open(tmp_path / "out.bin", "r+b") as file:
        file.seek(CHUNK + 100)
        file.write(b"changed")
    assert refuses(address, CHUNK)
    assert [ask(address, fetch_chunk(chunk_id)).chunk for chunk_id in (0, 2 * CHUNK)] == split(data)[::2]
    os.truncate(tmp_path / "out.bin", 2 * CHUNK + 1)
    assert refuses(address, 2 * CHUNK)


@pytest.mark.spec("FC-13")
@pytest.mark.fault(34)
def test_a_change_is_noticed_though_the_file_says_that_it_is_old(seeding, tmp_path):
    """As after a copy that preserves times: the time of the last write is unchanged."""
    address, data = seeding
    before = os.stat(tmp_path / "out.bin")
    with open(tmp_path / "out.bin", "r+b") as file:
        file.seek(CHUNK + 100)
        file.write(b"changed")
    os.utime(tmp_path / "out.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert refuses(address, CHUNK)
    assert ask(address, fetch_chunk(0)).chunk == data[:CHUNK]


# Upload slots. The chunk has the largest size allowed, so that it does not fit into the buffers between
# two sockets: an asker that does not read keeps its slot.


BIG = 16 << 20
MOST_SLOTS = 12  # askers that stop reading; a peer that is still not busy is taken for one that never is


def ask_and_stop_reading(address):
    """A connection on which an answer has begun but is not read any further."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    sock.settimeout(SECONDS)
    host, port = address.rsplit(":", 1)
    sock.connect((host, int(port)))
    sock.sendall(framed(fetch_chunk(0)))
    assert BIG + 5 <= struct.unpack("!Q", receive_bytes(sock, 8))[0] < BIG + 1000  # perhaps with fields of its own
    return sock


@pytest.mark.spec("FC-13")
@pytest.mark.fault(34)
def test_when_the_file_is_cut_short_while_a_chunk_is_sent_the_connection_ends(seed, tmp_path):
    """Unless the whole chunk was read from the file before."""
    data = some_bytes(BIG)
    with ask_and_stop_reading(seed(data, chunk_size=BIG)) as sock:
        os.truncate(tmp_path / "out.bin", 0)
        came = bytearray()
        while len(came) < BIG + 5 and (more := sock.recv(1 << 20)):
            came += more
    begins = came.find(data[:1000])  # after the tag and any fields of its own
    assert len(came) < 2000 or begins >= 0 and data.startswith(came[begins:begins + BIG]), "other bytes were sent than the chunk's"


@pytest.mark.spec("FC-6")
@pytest.mark.takes(1)
def test_an_asker_is_told_busy_only_if_it_said_that_it_does_not_mind(seed):
    data = some_bytes(BIG)
    address = seed(data, chunk_size=BIG)
    stalled, waiting = [], []

    def is_busy(hurried):
        """Whether it says BUSY, or lets an asker wait that has set busy_ok."""
        hurried.sendall(framed(fetch_chunk(0, busy_ok=True)))
        if not select.select([hurried], [], [], 1 if stalled else patience(2 * SECONDS))[0]:
            waiting.append(hurried)
            return True
        answer = receive(hurried)
        assert answer.chunk == data or is_refused(answer, pb.BUSY)
        return answer.chunk != data
    with connect(address) as hurried, connect(address) as patient:
        while not is_busy(hurried) and len(stalled) < MOST_SLOTS:  # it may never be busy
            stalled.append(ask_and_stop_reading(address))
        assert stalled, "it is busy with nothing on its way out"
        patient.sendall(framed(fetch_chunk(0)))
        select.select([patient], [], [], 0.3)  # time to be refused: the slots are taken until the next line
        for sock in stalled:
            sock.close()
        assert receive(patient).chunk == data  # its turn has come
        assert all(receive(sock).WhichOneof("type") for sock in waiting), "one that waited has no answer"
        eventually(lambda: ask(address, fetch_chunk(0, busy_ok=True)).chunk == data, what="a free slot")


@pytest.mark.spec("FC-6")
def test_a_peer_with_nothing_on_its_way_out_is_not_busy(seeding):
    """Not even for a chunk that it has given away before."""
    address, data = seeding
    with connect(address) as sock:
        for _ in range(3):
            assert ask(sock, fetch_chunk(0, busy_ok=True)).chunk == data[:CHUNK]


@pytest.mark.spec("WF-10", "FC-6")
@pytest.mark.fault(13)
def test_an_asker_that_stops_reading_keeps_nobody_else_from_being_answered(seed):
    """It occupies one of the slots. A lock held while sending a chunk would stop everybody."""
    data = some_bytes(BIG)
    address = seed(data, chunk_size=BIG)
    eventually(lambda: held(address) == [0], what="the peer's list of its chunk")
    with connect(address) as other, ask_and_stop_reading(address):
        other.settimeout(SECONDS / 2)  # well before the peer gives the first one up
        assert list(ask(other, chunks_query()).chunks_query.chunk_ids) == [0]
        assert is_refused(ask(other, fetch_chunk(1)), pb.NO_SUCH_CHUNK)
        assert ask(other, fetch_chunk(0)).chunk == data


@pytest.mark.slow
@pytest.mark.takes(11)
@pytest.mark.spec("FC-14")
@pytest.mark.fault(13)
def test_askers_that_stop_reading_have_lost_their_slots_when_the_time_for_silence_is_over(seed):
    """There are enough of them that others are told BUSY, unless that never happens."""
    data = some_bytes(BIG)
    address = seed(data, chunk_size=BIG)
    stalled = []
    try:
        with connect(address) as hurried, connect(address) as patient:
            while len(stalled) < MOST_SLOTS and not is_refused(ask(hurried, fetch_chunk(0, busy_ok=True)), pb.BUSY):
                stalled.append(ask_and_stop_reading(address))
            patient.settimeout(25)  # at most 20 s, says FC-11
            assert ask(patient, fetch_chunk(0)).chunk == data
    finally:
        for sock in stalled:
            sock.close()


@pytest.mark.spec("FC-14")
@pytest.mark.fault(13)
@pytest.mark.parametrize("reads", [0, 65_536], ids=["not_at_all", "too_slowly"])
@pytest.mark.takes(2)
def test_an_asker_that_stops_reading_loses_its_slot(fake_tracker, run_patched, tmp_path, reads):
    """Every 20 ms the askers read `reads` bytes, which takes five seconds. Silence may last one second, the whole answer two."""
    data = some_bytes(BIG)
    (tmp_path / "out.bin").write_bytes(data)
    tracker = fake_tracker(data, chunk_size=BIG)
    run_patched("peer", "peer.UPLOAD_SLOTS = 2; peer.FRAME_SECONDS = 1; peer.SLOWEST_LINK = 16 * peer.MIB", [f"127.0.0.1:{tracker.port}", tmp_path / "out.bin"])
    address = tracker.joiner()
    eventually(lambda: held(address) == [0], what="the peer's list of its chunk")
    stalled = {ask_and_stop_reading(address): 0 for _ in range(2)}  # socket -> bytes that it has read
    ended = threading.Event()

    def read_slowly():
        while not ended.wait(0.02):
            for sock in stalled:
                try:
                    stalled[sock] += len(sock.recv(reads))
                except OSError:
                    return

    def served():
        """Whether a quick asker gets its turn, and the whole chunk in time."""
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
