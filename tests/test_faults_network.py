"""Faults of a network, other peers and a tracker that take too long to wait for: on our own programs, with shorter times.

Faults that can be tested with any implementation are in test_7_faults.py; the numbers, in both files, are
those of lab/FAULTS.md.
"""

import ast
import contextlib
import os
import signal
import socket
import struct
import threading
import time

import pytest

from harness import (KIB, ROOT, SECONDS, NINE_CHUNKS as DATA, SMALL_CHUNK as CHUNK, after, answers, ask, bad, busy_until, bytes_left, chunks_query, connect, eventually,
                     events_in, fetch_chunk, first, framed, held, is_closed, kept, never, peer_list, receive, some_bytes, split)
import messages_pb2 as pb
from messages_pb2 import Response

QUICK = "peer.REFRESH_SECONDS = peer.PEER_LIST_SECONDS = 0.05; peer.REDIAL_SECONDS = (0.02, 0.1); "


@pytest.fixture
def leecher(run_patched, tracker, out):
    """leecher(changes, ...): a peer under test that leaves when it is complete."""
    return lambda changes="", *extra: run_patched("peer", changes or "pass", [f"127.0.0.1:{tracker.port}", out, "--leave", *extra])


# Row 10: bytes that are not the chunk's.


LIES = {
    "wrong_bytes": lambda chunks, index: bytes(byte ^ 0xFF for byte in chunks[index]),
    "one_wrong_bit": lambda chunks, index: chunks[index][:-1] + bytes([chunks[index][-1] ^ 1]),
    "one_byte_short": lambda chunks, index: chunks[index][:-1],
    "one_byte_long": lambda chunks, index: chunks[index] + b"x",
    "another_chunk": lambda chunks, index: chunks[(index + 1) % 8],
    "nothing": lambda chunks, index: b"",
}


@pytest.mark.fault(10)
@pytest.mark.spec("FC-9", "CQ-1")
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_wrong_chunk_is_not_written_not_offered_and_its_sender_never_asked_again(tracker, neighbor, leecher, out, gate, lie):
    liar, honest = neighbor(), neighbor()
    liar.answers["fetch_chunk"] = lambda request, sock: Response(chunk=lie(liar.chunks, request.chunk_id // CHUNK))
    honest.answers["fetch_chunk"] = after(gate, honest.on_fetch_chunk)
    program = leecher(QUICK)
    liar.wait_for("fetch_chunk")
    program.wait_for("banned " + liar.address)
    tracker.wait_for("peer_list", tracker.count("peer_list") + 4)  # after each one, it dials whoever may be dialled
    assert not any((out.parent / "out.bin.part").read_bytes()), "it was written"
    assert not held(tracker.joiner()), "it is offered"
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    assert len(liar.connections) == 1 and liar.count("fetch_chunk") == 1


@pytest.mark.fault(10)
@pytest.mark.spec("FC-9")
def test_a_liar_that_ends_the_connection_before_its_chunk_was_verified_is_banned_too(tracker, neighbor, leecher, out, gate):
    """On each connection it sends an honest chunk, then a wrong one and bytes that are no frame; verifying takes 0.3 s here."""
    liar, honest = neighbor(), neighbor()
    trusted = set()

    def lie(request, sock):
        if sock not in trusted:
            trusted.add(sock)
            return liar.on_fetch_chunk(request, sock)
        sock.sendall(framed(Response(chunk=bytes(CHUNK))) + b"\xff" * 8)
    liar.answers["fetch_chunk"] = lie
    honest.answers["fetch_chunk"] = after(gate, honest.on_fetch_chunk)
    program = leecher(QUICK + "keep = peer.Peer.keep; peer.Peer.keep = lambda *chunk: time.sleep(0.3) or keep(*chunk)")
    program.wait_for("banned " + liar.address)
    tracker.wait_for("peer_list", tracker.count("peer_list") + 2)  # other connections may have begun before the verdict
    asked = len(liar.connections)
    tracker.wait_for("peer_list", tracker.count("peer_list") + 4)
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    assert len(liar.connections) == asked, "it was dialled again though it is banned"


# Row 11: broken promises.


@pytest.mark.fault(11)
@pytest.mark.spec("FC-10")
@pytest.mark.parametrize("code", [pb.NOT_HELD, 99], ids=["not_held", "a_code_of_tomorrow"])
def test_a_neighbor_that_refuses_three_listed_chunks_in_a_row_is_banned(tracker, neighbor, leecher, out, gate, code):
    boaster, honest = neighbor(), neighbor()
    boaster.answers["fetch_chunk"] = lambda request, sock: bad(code)
    honest.answers["fetch_chunk"] = after(gate, honest.on_fetch_chunk)
    program = leecher(QUICK)
    program.wait_for("banned " + boaster.address)
    tracker.wait_for("peer_list", tracker.count("peer_list") + 4)
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    assert len(boaster.connections) == 1 and boaster.count("fetch_chunk") == 3
    assert len(set(boaster.fetched())) == 3, "what was refused is not asked for again"


# Row 12: answers that never come, or only in part.


def part_of(request, sock):
    """Half of an answer."""
    chunk = Response(chunk=split(DATA, CHUNK)[request.chunk_id // CHUNK])
    sock.sendall(framed(chunk)[:500])


def closes(request, sock):
    part_of(request, sock)


def resets(request, sock):
    part_of(request, sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def stalls_in_the_length(request, sock):
    sock.sendall(bytes(3))
    sock.recv(1)


def drips(request, sock):
    part_of(request, sock)
    while True:
        sock.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.fault(12)
@pytest.mark.spec("FC-11")
@pytest.mark.parametrize("fault", [never, stalls_in_the_length, closes, resets, drips])
def test_an_exchange_that_does_not_end_is_given_up_and_the_chunk_asked_for_again(neighbor, leecher, out, fault):
    alone = neighbor()
    alone.answers["fetch_chunk"] = first(fault, alone.on_fetch_chunk)
    program = leecher(QUICK + "peer.FRAME_SECONDS = 0.8; peer.SLOWEST_LINK = 1 << 20")
    program.ends_with(0, seconds=8)
    assert out.read_bytes() == DATA
    assert len(alone.connections) >= 2
    assert alone.fetched().count(alone.fetched()[0]) == 2


@pytest.mark.fault(12)
@pytest.mark.spec("FC-11")
def test_a_reset_in_the_middle_gives_back_the_memory_that_the_answer_had(neighbor, leecher, out):
    """There is memory for one chunk only; the exchange is tried again at once, on a new connection."""
    alone = neighbor()
    alone.answers["fetch_chunk"] = first(resets, alone.on_fetch_chunk)
    leecher("peer.RECEIVE_MEMORY = peer.FEWEST_NEIGHBORS = 1").ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.fault(12)
@pytest.mark.spec("SW-1", "FC-14")
def test_the_largest_chunks_too_come_from_several_neighbors_at_once(fake_tracker, fake_peer, run_patched, out):
    """Each sends all but the end, which is more than a connection's buffers hold, and waits until the other has done so too."""
    data = some_bytes(2 * (16 << 20))
    both = threading.Barrier(2)
    neighbors = [fake_peer(data, [index], 16 << 20) for index in range(2)]
    for one in neighbors:
        def in_two_parts(request, sock, one=one):
            frame = framed(one.on_fetch_chunk(request, sock))
            sock.sendall(frame[:-(1 << 20)])
            both.wait(SECONDS)
            sock.sendall(frame[-(1 << 20):])
        one.answers["fetch_chunk"] = in_two_parts
    tracker = fake_tracker(data, [one.address for one in neighbors], chunk_size=16 << 20)
    run_patched("peer", "pass", [f"127.0.0.1:{tracker.port}", out, "--leave"]).ends_with(0)
    assert out.read_bytes() == data


@pytest.mark.fault(12)
@pytest.mark.spec("FC-11")
def test_silence_in_the_middle_of_a_chunk_is_borne_for_twice_the_time_of_silence_before_it_at_the_most(neighbor, leecher, out):
    """The silence allowed here is 0.6 s; the time for the whole chunk would be sixteen seconds."""
    alone, waited = neighbor(), []

    def stalls(request, sock):
        began = time.monotonic()
        part_of(request, sock)
        sock.recv(1)
        waited.append(time.monotonic() - began)

    alone.answers["fetch_chunk"] = first(stalls, alone.on_fetch_chunk)
    leecher(QUICK + "peer.FRAME_SECONDS = 0.6; peer.SLOWEST_LINK = 1024").ends_with(0)
    assert out.read_bytes() == DATA
    assert 0.6 <= waited[0] < 2.5, "0.6 s, or 1.2 s, and time for a machine that is busy"


@pytest.mark.fault(12)
@pytest.mark.spec("FC-11")
def test_the_time_for_a_short_answer_is_short(fake_tracker, fake_peer, run_patched, out):
    """0.4 s and one second for each 8 KiB: half a second for this chunk, not the time for the longest answer."""
    data = some_bytes(500)
    alone = fake_peer(data)
    tracker = fake_tracker(data, [alone.address])

    def drip(request, sock):
        for byte in framed(Response(chunk=data)):
            sock.sendall(bytes([byte]))
            time.sleep(0.04)

    alone.answers["fetch_chunk"] = first(drip, alone.on_fetch_chunk)  # this would take twenty seconds
    changes = QUICK + "peer.FRAME_SECONDS = 0.4; peer.SLOWEST_LINK = 8192"
    program = run_patched("peer", changes, [f"127.0.0.1:{tracker.port}", out, "--leave"])
    program.ends_with(0, seconds=5)
    assert out.read_bytes() == data


# Row 18: an endless list of chunks.


@pytest.mark.fault(18)
@pytest.mark.spec("CQ-5")
def test_a_list_longer_than_any_file_has_chunks_is_not_taken_in(tracker, neighbor, leecher, out, gate, tmp_path):
    flooder, honest = neighbor(), neighbor()
    flooder.answers["chunks_query"] = lambda request, sock: Response(chunks_query=Response.ChunksQuery(chunk_ids=[0] * (1 << 20)))
    honest.answers["fetch_chunk"] = after(gate, honest.on_fetch_chunk)
    (tmp_path / "events").touch()
    program = leecher("", "--events", tmp_path / "events")
    dropped = eventually(lambda: [line for line in (tmp_path / "events").read_text().splitlines() if "neighbor_dropped" in line], what="an end of it")
    assert flooder.address in dropped[0] and "expected at most" in dropped[0]
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


# Row 13: a receiver that stops reading.


BIG = 16 << 20  # more than fits into the buffers of a connection


@pytest.fixture
def seeder(fake_tracker, run_patched, out):
    """seeder(changes): the address of a peer under test that holds a chunk of 16 MiB and one of five bytes."""
    def start(changes):
        data = bytes(BIG) + b"small"
        out.write_bytes(data)
        tracker = fake_tracker(data, chunk_size=BIG)
        start.program = run_patched("peer", changes, [f"127.0.0.1:{tracker.port}", out])
        address = tracker.joiner()
        start.program.wait_for("complete")
        return address
    return start


@pytest.mark.fault(13)
@pytest.mark.spec("FC-6", "FC-14")
def test_those_who_stop_reading_lose_their_upload_slots(seeder):
    address = seeder("peer.UPLOAD_SLOTS = 2; peer.FRAME_SECONDS = 1")
    with connect(address) as one, connect(address) as two:
        began = time.monotonic()
        for sock in (one, two):
            sock.sendall(framed(fetch_chunk(0)))
            assert sock.recv(9)  # it has its slot
        assert ask(address, fetch_chunk(BIG, busy_ok=True)).bad.code == pb.BUSY or time.monotonic() - began >= 1
        assert ask(address, fetch_chunk(BIG)).chunk == b"small", "one that waits for its turn gets it"
        assert ask(address, fetch_chunk(0)).chunk == bytes(BIG)


@pytest.mark.fault(13)
@pytest.mark.spec("FC-14")
@pytest.mark.parametrize("window, sip", [(256 * KIB, 48 * KIB), (4 * KIB, KIB)], ids=["in_large_sips", "in_small_sips"])
def test_one_who_reads_too_slowly_loses_its_upload_slot(seeder, window, sip):
    """It has 0.9 s and one second for each 64 MiB: little more than a second, however steadily it reads."""
    address = seeder("peer.UPLOAD_SLOTS = 1; peer.FRAME_SECONDS = 0.9; peer.SLOWEST_LINK = 64 << 20")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)  # so that the sender notices at once what it has read
        slow.connect(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        began = time.monotonic()
        slow.sendall(framed(fetch_chunk(0)))
        assert slow.recv(9)
        assert ask(address, fetch_chunk(BIG, busy_ok=True)).bad.code == pb.BUSY or time.monotonic() - began >= 0.9
        give_up, got = time.monotonic() + 4, 9
        while ask(address, fetch_chunk(BIG, busy_ok=True)).WhichOneof("type") == "bad":
            assert time.monotonic() < give_up, "it still holds the slot"
            got += len(slow.recv(sip))
            time.sleep(0.02)
        assert got + bytes_left(slow, BIG - got) < BIG, "it had all of the chunk, which takes seven seconds, or minutes"


# Row 14: connections that send nothing, or half a request.


@pytest.mark.fault(14)
@pytest.mark.spec("WF-9", "WF-10", "WF-13")
@pytest.mark.parametrize("role", ["tracker", "peer"])
def test_half_open_connections_up_to_the_limit_still_leave_room(make_file, tracker, run_patched, out, role):
    if role == "tracker":
        path, _ = make_file(DATA)
        program = run_patched("tracker", "peer.MAX_CONNECTIONS = 20", [path, "--port", 0, "--no-seed"])
        address, request = int(program.wait_for(r"listening on port (\d+)$")[1]), peer_list()
    else:
        run_patched("peer", "peer.MAX_CONNECTIONS = 20", [f"127.0.0.1:{tracker.port}", out])
        address, request = tracker.joiner(), chunks_query()
    half_open = [connect(address) for _ in range(20)]
    try:
        for sock in half_open:
            sock.sendall(bytes(4))
        for _ in range(5):
            assert ask(address, request).WhichOneof("type") == request.WhichOneof("type")
        assert sum(is_closed(sock, 0.01) for sock in half_open) <= 5, "no more than needed are closed"
    finally:
        for sock in half_open:
            sock.close()


HOLDS_CHUNKS = """
import os, time
send = peer.Store.send
def held(*arguments):
    print("sends", flush=True)
    while not os.path.exists({until!r}):
        time.sleep(0.01)
    send(*arguments)
peer.Store.send = held
peer.MAX_CONNECTIONS = 3
"""


@pytest.mark.fault(14)
@pytest.mark.spec("WF-13")
def test_where_all_connections_are_busy_the_next_is_closed_and_takes_nobodys_place(tracker, run_patched, out, tmp_path):
    out.write_bytes(DATA)
    program = run_patched("peer", HOLDS_CHUNKS.format(until=str(tmp_path / "go")), [f"127.0.0.1:{tracker.port}", out])
    program.wait_for("complete: ")
    address = tracker.joiner()
    with contextlib.ExitStack() as open_ones:
        busy = [open_ones.enter_context(connect(address)) for _ in range(3)]
        for sock in busy:
            sock.sendall(framed(fetch_chunk(0)))
        eventually(lambda: program.output.count("sends") == 3, what="three chunks on their way out")
        with connect(address) as one_more:
            assert is_closed(one_more), "nobody waits for a request, so nobody makes room"
        (tmp_path / "go").touch()
        for sock in busy:
            assert receive(sock).chunk == DATA[:CHUNK]
        busy.pop().close()
        eventually(lambda: answers(address, chunks_query()), what="room for one in the place of the one that has gone")
        for sock in busy:
            assert ask(sock, chunks_query()).WhichOneof("type") == "chunks_query", "there was room for three"


# Row 15: everyone busy.


@pytest.mark.spec("FC-15")
def test_the_only_neighbor_is_asked_for_the_next_chunk_before_it_has_given_the_last(neighbor, leecher, out):
    alone = neighbor()
    ahead = threading.Event()

    def when_the_next_request_has_come(request, sock):
        if alone.count("fetch_chunk") == 4:
            assert sock.recv(1, socket.MSG_PEEK), "closed"
            ahead.set()
        return alone.on_fetch_chunk(request, sock)

    alone.answers["fetch_chunk"] = when_the_next_request_has_come
    leecher().ends_with(0)
    assert out.read_bytes() == DATA
    assert ahead.is_set() and len(alone.connections) == 1


# Row 19: addresses that lead nowhere, or back.


@pytest.mark.fault(19)
@pytest.mark.spec("PL-3")
@pytest.mark.parametrize("spellings", [["127.0.0.1:{}"], ["[::1]:{}", "[::ffff:127.0.0.1]:{}", "0.0.0.0:{}", "[0:0:0:0:0:0:0:1]:{}"]],
                         ids=["as_listed", "otherwise"])
def test_a_peer_does_not_dial_itself_however_its_address_is_spelled(tracker, fake_peer, leecher, out, spellings):
    events = out.with_suffix(".events")
    program = leecher(QUICK, "--events", events)
    port = tracker.joiner().rsplit(":", 1)[1]
    tracker.peers += [spelling.format(port) for spelling in spellings]
    tracker.wait_for("peer_list", tracker.count("peer_list") + 3)
    tracker.peers.append(fake_peer(DATA, chunk_size=CHUNK).address)
    program.ends_with(0)
    added = [event["neighbor"] for event in events_in(events, "neighbor_added")]
    assert added == tracker.peers[-1:]


@pytest.mark.fault(19)
@pytest.mark.spec("SW-6")
def test_a_neighbor_that_fails_is_dialled_again_after_pauses_that_grow(neighbor, leecher):
    failing = neighbor()
    failing.answers["chunks_query"] = lambda request, sock: None  # closes
    leecher("peer.REFRESH_SECONDS = 0.02; peer.REDIAL_SECONDS = (0.05, 60.0)")
    failing.wait_for("chunks_query", 4)
    times = failing.times("chunks_query")
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert all(gap > 0.9 * least for gap, least in zip(gaps, [0.05, 0.1, 0.2])), gaps


# Row 21: the wall clock jumps.


JUMP = "hours = iter(range(10**9)); now = time.time; time.time = lambda: now() + 3600 * (next(hours) % 3 - 1); "


@pytest.mark.fault(21)
@pytest.mark.spec("CL-17")
def test_a_wall_clock_that_jumps_by_hours_changes_nothing(make_file, run_patched, tmp_path):
    path, data = make_file(DATA)
    tracker = run_patched("tracker", JUMP, [path, "--port", 0, "--expire", 2, "--chunk-size", "16K"])
    address = "127.0.0.1:" + tracker.wait_for(r"listening on port (\d+)$")[1]

    def listed():
        return list(ask(address, peer_list()).peer_list.addresses)

    before = eventually(listed, what="the seeder in the list")
    first_peer = run_patched("peer", JUMP, [address, tmp_path / "one.bin"])
    first_peer.wait_for("complete")
    end = time.monotonic() + 2.3  # longer than a lease
    while time.monotonic() < end:
        assert set(before) < set(listed()), "a lease ran out"
        time.sleep(0.05)
    run_patched("peer", JUMP, [address, tmp_path / "two.bin", "--leave"]).ends_with(0)
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes() == data


@pytest.mark.ours
@pytest.mark.fault(21)
@pytest.mark.spec("CL-17")
@pytest.mark.parametrize("name", ["peer.py", "tracker.py"])
def test_the_wall_clock_is_only_told_never_computed_with(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as text:
        tree = ast.parse(text.read())
    told = [ast.dump(node.value.func) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "wall"]
    used = [ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"]
    assert used == told and len(used) == 1
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("time.")}
    assert names <= {"time.time", "time.monotonic", "time.sleep"}
    dates = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("datetime.")}
    assert dates <= {"datetime.timedelta"}, "it shows how long something takes, and knows no time of day"
    assert not any(isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime") for node in ast.walk(tree))


# Row 24: no tracker.


@pytest.mark.fault(24)
@pytest.mark.spec("CL-10")
def test_a_peer_that_is_there_before_its_tracker_joins_as_soon_as_that_is_up(make_file, run_tracker, run_peer, out):
    path, data = make_file(DATA)
    tracker = run_tracker(path)
    tracker.signal(signal.SIGKILL)  # its port is known and nobody listens there
    tracker.wait()
    with kept(tracker.port):
        program = run_peer(tracker.port, out, ["--leave"])
        program.wait_for(f"no tracker at 127.0.0.1:{tracker.port} yet")
        run_tracker(path, port=tracker.port)
    program.ends_with(0)
    assert out.read_bytes() == data


@pytest.mark.fault(24)
@pytest.mark.spec("CL-10", "CL-13")
def test_a_tracker_that_does_not_answer_is_tried_with_growing_pauses_for_all_of_the_stated_time(tracker, leecher):
    tracker.answers["join"] = lambda request, sock: None  # closes
    began = time.monotonic()
    program = leecher("peer.TRACKER_SECONDS = 2")
    text = program.ends_with(3, r"^peer\.py: no tracker at 127\.0\.0\.1:\d+: .*")
    assert 2 <= time.monotonic() - began < 6
    times = tracker.times("join")
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert 3 <= len(gaps) <= 6 and all(gap > 0.9 * least for gap, least in zip(gaps[:-1], [0.1, 0.2, 0.4, 0.8])), gaps  # the last is cut off at the end
    assert text.count("\npeer.py: ") + text.startswith("peer.py: ") == 1


@pytest.mark.fault(24)
@pytest.mark.spec("CL-10")
def test_a_tracker_that_accepts_and_never_answers_is_given_up(tracker, leecher):
    tracker.answers["join"] = never
    leecher("peer.TRACKER_SECONDS = 2; peer.FRAME_SECONDS = 0.2").ends_with(3, "no tracker", seconds=6)
    assert tracker.count("join") >= 2


@pytest.mark.fault(24)
@pytest.mark.spec("CL-10", "CL-13")
def test_a_name_that_does_not_resolve_ends_with_one_line(run_patched, out):
    changes = "import socket\ndef unknown(*args, **kwargs): raise socket.gaierror(-2, 'Name or service not known')\n"
    changes += "socket.getaddrinfo = unknown; peer.TRACKER_SECONDS = 0.3; peer.has_ipv6 = lambda: False"
    text = run_patched("peer", changes, ["tracker.example:8000", out]).ends_with(3, r"^peer\.py: no tracker at tracker\.example:8000: .*not known")
    assert text.count("\n") == 1


@pytest.mark.fault(24)
@pytest.mark.spec("CL-13")
@pytest.mark.parametrize("host", ["x" * 64 + ".example", "a..example"], ids=["label_too_long", "label_empty"])
def test_a_name_that_is_none_ends_with_one_line_and_no_traceback(run_patched, out, host):
    text = run_patched("peer", "peer.TRACKER_SECONDS = 0.3", [f"{host}:8000", out])
    assert text.wait() in (2, 3)
    text = text.ends_with(text.process.returncode, r"^peer\.py: ")
    assert text.count("\n") == 1


# Rows 25, 26, 27: no seeder.


@pytest.mark.fault(25)
@pytest.mark.spec("SW-7", "PL-5")
def test_without_a_seeder_a_leecher_says_that_it_waits_and_starts_when_one_appears(neighbor, leecher, out):
    program = leecher(QUICK)
    program.wait_for(r"waiting for a neighbor that has the missing 100.0 % \(129.0 KiB\)")
    neighbor()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.fault(27)
@pytest.mark.spec("SW-7", "CL-3")
def test_when_a_chunk_is_nowhere_a_leecher_says_how_much_is_missing_keeps_what_it_has_and_ends_with_exit_code_7(tracker, neighbor, leecher, out):
    seeder = neighbor([0, 1, 2, 4, 5, 6, 7, 8])
    program = leecher("peer.LOST_SECONDS = 3")
    eventually(lambda: len(held(tracker.joiner())) == 8, what="all but one")
    seeder.stop()
    text = program.ends_with(7, r"^peer\.py: .* the missing 12\.4 % \(16\.0 KiB\); the last failure: 127\.0\.0\.1:\d+: \w")
    assert "waiting for a neighbor" in text
    part = out.with_name("out.bin.part").read_bytes()
    assert not out.exists() and part[:3 * CHUNK] == DATA[:3 * CHUNK] and part[4 * CHUNK:] == DATA[4 * CHUNK:]


@pytest.mark.fault(15, 27)
@pytest.mark.spec("SW-7")
def test_a_swarm_is_not_lost_while_a_neighbor_has_the_chunk_however_long_it_is_busy(neighbor, leecher, out, gate):
    busy = neighbor()
    busy.answers["fetch_chunk"] = busy_until(gate, busy)
    program = leecher("peer.LOST_SECONDS = 2")
    busy.wait_for("fetch_chunk")
    before = program.output.count("waiting for a neighbor")  # it may have been slow to hear of it
    eventually(lambda: busy.times("fetch_chunk")[-1] - busy.times("fetch_chunk")[0] > 2.5, what="requests for longer than that")
    gate.set()
    assert program.ends_with(0).count("waiting for a neighbor") == before
    assert out.read_bytes() == DATA
