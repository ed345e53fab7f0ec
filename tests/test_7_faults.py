"""Faults over the wire: what a network, other peers and a tracker do wrong, and what any implementation must do then.

The numbers are those of lab/FAULTS.md. The other side is a fake that is honest except for one
fault. Faults that take too long are tested in test_faults_network.py, on our own programs with shorter times.
"""

import os
import resource
import signal
import socket
import sys
import threading
import time

import pytest

from checks import most_in_a_second
from harness import (KIB, SECONDS, NINE_CHUNKS as DATA, SMALL_CHUNK as CHUNK, after, ask, bad, busy_until, chunks_query, connect, eventually, fetch_chunk, finished, first, framed, held,
                     is_closed, join, never, one_line, patience, peer_command, peer_list, receive_bytes, says_busy_ok, some_bytes, split, two_of_three_refused)
import messages_pb2 as pb
from messages_pb2 import Response

@pytest.fixture
def leecher(run_peer, tracker, out):
    """leecher(...): a peer under test that leaves when it is complete."""
    return lambda *extra: run_peer(tracker.port, out, ["--leave", *extra])


def all_closed(neighbor):
    """Whether a fake has had connections, and all of them have ended."""
    return bool(neighbor.connections) and all(sock.fileno() < 0 for sock in list(neighbor.connections))


@pytest.fixture
def slow_seeder(neighbor):
    """slow_seeder(): an honest neighbor whose first chunk takes 0.3 s, so that the asker has time to dial others."""
    def make():
        fake = neighbor()

        def answer(request, sock):
            time.sleep(0.3 if fake.count("fetch_chunk") == 1 else 0)
            return fake.on_fetch_chunk(request, sock)
        fake.answers["fetch_chunk"] = answer
        return fake
    return make


# Row 1: impossible lengths.


@pytest.mark.fault(1)
@pytest.mark.spec("WF-5", "FC-11")
@pytest.mark.parametrize("request_name", ["chunks_query", "fetch_chunk"])
def test_an_answer_that_announces_too_much_is_given_up_at_once_and_takes_no_memory(neighbor, leecher, tracker, out, request_name):
    boasters, ended = [neighbor() for _ in range(3)], {}  # length -> whether the first exchange was given up

    def boast(length):
        def answer(request, sock):
            sock.sendall(length.to_bytes(8, "big") + b"\x2a")
            closed = is_closed(sock, 8)  # well before the 10 s of FC-11
            ended.setdefault(length, closed)
        return answer
    for boaster, length in zip(boasters, (1 << 24, 8 << 30, 2**64 - 1)):
        boaster.answers[request_name] = boast(length)
    program = leecher()
    eventually(lambda: len(ended) == 3, seconds=9, what="the end of the exchanges with those who announce too much")
    assert all(ended.values()), ended
    assert program.resident() < 400 << 20
    neighbor()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.fault(1)
@pytest.mark.spec("WF-5", "AP-7")
def test_a_tracker_that_announces_too_much_is_given_up_at_once(tracker, run_peer, out):
    tracker.lease_ms, ended = 600, []

    def boast(request, sock):
        sock.sendall((8 << 30).to_bytes(8, "big") + b"\x0a")
        ended.append(is_closed(sock, 8))
    tracker.answers["active_proof"] = boast
    program = run_peer(tracker.port, out)
    eventually(lambda: len(ended) >= 2, what="the end of two proofs")
    assert all(ended[:2]) and program.process.poll() is None


# Row 10: bytes that are not the chunk's.


@pytest.mark.fault(10)
@pytest.mark.spec("FC-9", "WF-12")
@pytest.mark.takes(3)
def test_wrong_chunks_are_thrown_away_their_neighbors_banned_and_the_chunks_fetched_elsewhere(tracker, neighbor, slow_seeder, leecher, out):
    chunks = split(DATA, CHUNK)
    wrong = {
        "other bytes": lambda chunk: b"wrong" + chunk[5:],
        "one byte short": lambda chunk: chunk[:-1],
        "one byte long": lambda chunk: chunk + b"x",
        "no bytes": lambda chunk: b"",  # `2a 00`: a chunk nevertheless
        "another chunk": lambda chunk: chunks[5] if chunk != chunks[5] else chunks[0],
        "a longer one for the last": lambda chunk: chunks[5],  # which is short, but an answer may be 64 KiB longer
        "zeros": lambda chunk: bytes(len(chunk)),
    }
    liars = {name: neighbor([8]) if "last" in name else neighbor() for name in wrong}
    for name, liar in liars.items():
        liar.answers["fetch_chunk"] = lambda request, sock, change=wrong[name]: Response(chunk=change(chunks[request.chunk_id // CHUNK]))
    program = leecher()
    for name, liar in liars.items():
        liar.wait_for("fetch_chunk")
        eventually(lambda: all_closed(liar), what=f"the end of all connections to the neighbor that sends {name}")
    assert not held(tracker.joiner()) and not out.exists()
    assert b"wrong" not in out.with_name("out.bin.part").read_bytes()
    asked = {name: (len(liar.connections), liar.count("fetch_chunk")) for name, liar in liars.items()}
    tracker.wait_for("peer_list")  # a second later, when any that are not banned are dialled again
    slow_seeder()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    assert {name: (len(liar.connections), liar.count("fetch_chunk")) for name, liar in liars.items()} == asked
    assert max(fetches for _, fetches in asked.values()) <= 2  # one request is enough; a second may have been under way


# Row 48: answers in the wrong order.


@pytest.mark.fault(48)
@pytest.mark.spec("FC-15", "FC-9")
def test_nothing_of_a_neighbor_that_answers_in_another_order_is_kept(tracker, neighbor, leecher, out):
    """Every answer has the bytes of the next chunk; its chunks are then asked of the honest one."""
    chunks = split(DATA, CHUNK)
    liar = neighbor()
    liar.answers["fetch_chunk"] = lambda request, sock: Response(chunk=chunks[(request.chunk_id // CHUNK + 1) % len(chunks)])
    program = leecher()
    liar.wait_for("fetch_chunk")
    eventually(lambda: all_closed(liar), what="the end of all connections to the liar")
    assert not held(tracker.joiner()) and not any(out.with_name("out.bin.part").read_bytes())
    neighbor()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.fault(10, 28)
@pytest.mark.spec("SW-5", "FC-9")
def test_in_the_endgame_a_wrong_answer_is_not_the_one_that_counts(neighbor, leecher, out, gate):
    slow, liar = neighbor(), neighbor()
    slow.answers["fetch_chunk"] = lambda request, sock: (slow.count("fetch_chunk") < 9 or gate.wait(SECONDS)) and slow.on_fetch_chunk(request, sock)
    liar.answers["chunks_query"] = lambda request, sock: slow.wait_for("fetch_chunk", 9) and liar.on_chunks_query(request, sock)
    liar.answers["fetch_chunk"] = lambda request, sock: Response(chunk=bytes(CHUNK))
    program = leecher()
    liar.wait_for("fetch_chunk")
    eventually(lambda: liar.connections[0].fileno() == -1, what="the end of the connection to the liar")
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    assert len(liar.fetched()) == 1


# Row 11: broken promises.


@pytest.mark.fault(11)
@pytest.mark.spec("FC-10")
@pytest.mark.takes(3)
def test_neighbors_that_refuse_three_listed_chunks_in_a_row_are_banned(tracker, neighbor, slow_seeder, leecher, out):
    liars = {code: neighbor() for code in (pb.NOT_HELD, pb.NO_SUCH_CHUNK, pb.UNSPECIFIED, 77)}  # the last is a code of a later version
    for code, liar in liars.items():
        liar.answers["fetch_chunk"] = lambda request, sock, code=code: bad(code)
    program = leecher()
    for code, liar in liars.items():
        liar.wait_for("fetch_chunk", 3)
        eventually(lambda: all_closed(liar), what=f"the end of all connections to the neighbor that answers with code {code}")
    asked = {code: (len(liar.connections), liar.count("fetch_chunk")) for code, liar in liars.items()}
    assert max(fetches for _, fetches in asked.values()) <= 5  # three are enough; more may have been under way
    tracker.wait_for("peer_list")  # a second later, when any that are not banned are dialled again
    slow_seeder()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    assert {code: (len(liar.connections), liar.count("fetch_chunk")) for code, liar in liars.items()} == asked


@pytest.mark.fault(11)
@pytest.mark.spec("FC-10")
def test_after_three_refusals_in_a_row_a_neighbor_is_asked_for_nothing_more(neighbor, leecher):
    """Except for a fourth request that was sent before the third answer came, or on a second connection."""
    liar, ahead = neighbor(), []

    def refuse(request, sock):
        if liar.count("fetch_chunk") == 3:
            sock.settimeout(0.2)
            try:
                if b"\x2a" in sock.recv(4096, socket.MSG_PEEK):  # the tag of a Fetch Chunk
                    ahead.append(request)
            except TimeoutError:
                pass
            sock.settimeout(SECONDS)
        return bad(pb.NOT_HELD)
    liar.answers["fetch_chunk"] = refuse
    leecher()
    liar.wait_for("fetch_chunk", 3)
    eventually(lambda: all_closed(liar), what="the end of all connections to the liar")
    assert liar.count("fetch_chunk") == 3 or ahead or len(liar.connections) > 1


@pytest.mark.fault(11)
@pytest.mark.spec("FC-10")
@pytest.mark.takes(1)
def test_a_chunk_that_is_given_makes_good_for_two_that_were_refused(neighbor, leecher, out, gate):
    moody, other = neighbor(), neighbor()
    refuse = two_of_three_refused(moody)
    moody.answers["fetch_chunk"] = lambda request, sock: other.wait_for("fetch_chunk") and refuse(request, sock)  # so that it is not the only useful neighbor
    other.answers["fetch_chunk"] = busy_until(gate, other)
    program = leecher()
    moody.wait_for("fetch_chunk", 7)
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


# Row 12: answers that never come, or only in part.


@pytest.mark.fault(12)
@pytest.mark.spec("WF-10", "FC-11")
@pytest.mark.parametrize("request_name", ["chunks_query", "fetch_chunk"])
def test_a_neighbor_that_never_answers_holds_up_nobody_else(neighbor, leecher, out, request_name):
    silent, honest = neighbor(), neighbor()
    silent.answers[request_name] = never
    honest.answers["chunks_query"] = lambda request, sock: silent.wait_for(request_name) and honest.on_chunks_query(request, sock)
    program = leecher()
    silent.wait_for(request_name)
    program.ends_with(0, seconds=8)  # it waits ten seconds for the silent one
    assert out.read_bytes() == DATA


@pytest.mark.fault(12)
@pytest.mark.spec("SW-1", "FC-11")
def test_with_the_largest_chunks_too_a_silent_neighbor_holds_up_nobody_else(fake_tracker, fake_peer, run_peer, out):
    size = 16 << 20
    data = bytes(size) + b"the end"
    silent, honest = fake_peer(data, chunk_size=size), fake_peer(data, chunk_size=size)
    silent.answers["fetch_chunk"] = never
    honest.answers["chunks_query"] = lambda request, sock: silent.wait_for("fetch_chunk") and honest.on_chunks_query(request, sock)
    tracker = fake_tracker(data, [silent.address, honest.address], chunk_size=size)
    program = run_peer(tracker.port, out, ["--leave"])
    silent.wait_for("fetch_chunk")
    program.ends_with(0, seconds=8)  # it waits ten seconds for the silent one
    assert out.read_bytes() == data


@pytest.mark.fault(12)
@pytest.mark.spec("FC-11")
@pytest.mark.slow
@pytest.mark.takes(16)
def test_a_neighbor_that_is_silent_or_dribbles_is_given_up_in_the_time_that_an_answer_has(tracker, neighbor, run_peer, out):
    """10 s for one that says nothing, up to 20 s in mid-answer; a chunk of 16 KiB that comes byte by byte has 14 s."""
    silent, stopped, dribbling = fakes = [neighbor() for _ in range(3)]
    began, gone = {}, {}  # fake -> when it was asked for its first chunk; seconds until it saw the end of that exchange

    def until_closed(fake, sock, piece):
        began.setdefault(fake, time.monotonic())
        sock.settimeout(0.5)
        while fake not in gone:
            try:
                sock.sendall(piece)
                if sock.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        gone.setdefault(fake, time.monotonic() - began[fake])

    def begin_and(fake, sock, piece):
        sock.sendall(framed(Response(chunk=split(DATA, CHUNK)[0]))[:500])
        until_closed(fake, sock, piece)

    silent.answers["fetch_chunk"] = lambda request, sock: until_closed(silent, sock, b"")
    stopped.answers["fetch_chunk"] = lambda request, sock: begin_and(stopped, sock, b"")
    dribbling.answers["fetch_chunk"] = lambda request, sock: begin_and(dribbling, sock, b"x")
    run_peer(tracker.port, out)
    eventually(lambda: len(began) == 3, what="a request to each")
    give_up = time.monotonic() + 22  # eventually() would be less patient with a program that has failed before
    while len(gone) < 3 and time.monotonic() < give_up:
        time.sleep(0.1)
    assert len(gone) == 3, f"still waited for: {[name for name, fake in zip(('silent', 'stopped', 'dribbling'), fakes) if fake not in gone]}"


# Row 14: connections that send nothing, or half a request.


@pytest.fixture
def room_for_sockets():
    """Enough descriptors for a crowd of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048 if hard < 0 else min(2048, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault(14)
@pytest.mark.spec("WF-10", "WF-13", "CL-9")
@pytest.mark.takes(3)
def test_more_idle_connections_than_there_is_room_for_are_bounded_and_hold_up_neither_the_others_nor_the_end(tracker, run_peer, out, room_for_sockets):
    program = run_peer(tracker.port, out)
    address = tracker.joiner()
    idle = []
    try:
        for _ in range(540):
            idle.append(connect(address))
        assert ask(address, chunks_query()).WhichOneof("type") == "chunks_query"
        closed = eventually(lambda: len(found := [number for number, sock in enumerate(idle) if is_closed(sock, 0.001)]) >= 28 and found, what="room for 28 more than 512")
        assert max(closed) < 270, "those who have waited longest make room, as nearly as threads begin in the order of their connections"
        if sys.platform == "linux":
            assert len(os.listdir(f"/proc/{program.pid}/task")) < 512 + 70, "512 connections, 50 neighbors, and a few"
        program.signal(signal.SIGINT)
        program.ends_with(130, seconds=4)
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.fault(14)
@pytest.mark.spec("WF-13")
@pytest.mark.takes(3)
def test_who_is_being_sent_a_chunk_does_not_make_room_for_others(fake_tracker, run_peer, out, room_for_sockets):
    """Its connection is the oldest; 539 newer ones wait for a request."""
    size = 16 << 20
    data = some_bytes(size)
    out.write_bytes(data)
    tracker = fake_tracker(data, chunk_size=size)
    run_peer(tracker.port, out)
    address = tracker.joiner()
    eventually(lambda: held(address), what="the peer's list of its chunk")
    idle = []
    try:
        with connect(address) as busy:
            busy.sendall(framed(fetch_chunk(0)))
            head = receive_bytes(busy, 8)  # no more for now: the answer does not fit into the buffers between the two
            for _ in range(539):
                idle.append(connect(address))
            eventually(lambda: any(is_closed(sock, 0.001) for sock in idle), what="room for those that are too many")
            assert Response.FromString(receive_bytes(busy, int.from_bytes(head, "big"))).chunk == data
    finally:
        for sock in idle:
            sock.close()


# Row 15: everyone busy.


@pytest.mark.fault(15)
@pytest.mark.spec("FC-7")
def test_busy_neighbors_are_asked_again_after_pauses_and_not_twenty_times_a_second(neighbor, leecher, out, gate):
    busy = [neighbor(), neighbor([0, 1, 2])]
    for fake in busy:
        fake.answers["fetch_chunk"] = busy_until(gate, fake)
    program = leecher()
    for fake in busy:
        fake.wait_for("fetch_chunk")
    for fake in filter(says_busy_ok, busy):  # others wait for their turn
        fake.wait_for("fetch_chunk", 6)
        assert most_in_a_second(fake.times("fetch_chunk")) <= 20
        gaps = [later - earlier for earlier, later in zip(fake.times("fetch_chunk"), fake.times("fetch_chunk")[1:])]
        assert max(gaps) - min(gaps) > 0.005, "pauses at random, not in step"
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.fault(15)
@pytest.mark.spec("FC-7")
def test_a_neighbor_that_serves_one_at_a_time_is_not_pestered_by_a_second_connection(fake_tracker, fake_peer, run_peer, out):
    """A second connection to the only useful neighbor pays off, but if it is told BUSY, it must not try again at once."""
    data = some_bytes(100 * KIB)
    alone = fake_peer(data, chunk_size=KIB)
    refused, serving = [], threading.Lock()

    def one_at_a_time(request, sock):
        if not serving.acquire(blocking=not request.busy_ok):
            refused.append(time.monotonic())
            return bad(pb.BUSY)
        time.sleep(0.005)
        serving.release()
        return alone.on_fetch_chunk(request, sock)

    alone.answers["fetch_chunk"] = one_at_a_time
    tracker = fake_tracker(data, [alone.address], chunk_size=KIB)
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert out.read_bytes() == data
    assert most_in_a_second(refused) <= 20


# Row 18: an endless peer list.


@pytest.mark.fault(18)
@pytest.mark.spec("PL-4")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers at all of 127.0.0.0/8")
@pytest.mark.takes(2)
def test_of_a_hundred_thousand_addresses_fifty_are_neighbors(tracker, fake_peer, leecher, out, gate):
    everyone = fake_peer(DATA, chunk_size=CHUNK, host="0.0.0.0")
    everyone.answers["fetch_chunk"] = busy_until(gate, everyone)
    called = set()  # the addresses at which it was asked; a connection may be kept, or serve one request
    everyone.answers["chunks_query"] = lambda request, sock: called.add(sock.getsockname()[0]) or everyone.on_chunks_query(request, sock)
    tracker.peers = [f"127.{1 + n // 62500}.{n // 250 % 250}.{1 + n % 250}:{everyone.port}" for n in range(100_000)]
    assert len(set(tracker.peers)) == 100_000
    program = leecher()

    def open_now():
        """The addresses with open connections."""
        found = []
        for sock in list(everyone.connections):
            try:
                found.append(sock.getsockname()[0])
            except OSError:
                pass  # closed
        return found
    eventually(lambda: called, what="a neighbor")
    tracker.wait_for("peer_list", tracker.count("peer_list") + 2)  # while all are busy, it keeps asking and dialling
    eventually(lambda: len(set(open_now())) <= 50, what="fifty at a time")
    assert len(open_now()) <= 100, "two connections to each at most"
    assert program.resident() < 400 << 20
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.fault(18)
@pytest.mark.spec("PL-4")
def test_what_is_no_address_in_a_peer_list_is_skipped(tracker, neighbor, leecher, out):
    tracker.peers += ["", "foo", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "localhost:80", "::1:80", "\0", "x" * 100_000]
    neighbor()
    leecher().ends_with(0)
    assert out.read_bytes() == DATA


# Row 19: addresses that lead nowhere, or back.


@pytest.mark.fault(19)
@pytest.mark.spec("SW-6")
def test_fifty_dead_addresses_and_a_good_one(tracker, neighbor, leecher, out):
    dead = [socket.socket() for _ in range(50)]
    try:
        for sock in dead:
            sock.bind(("127.0.0.1", 0))  # and does not listen
            tracker.peers.append(f"127.0.0.1:{sock.getsockname()[1]}")
        neighbor()
        leecher().ends_with(0)
        assert out.read_bytes() == DATA
    finally:
        for sock in dead:
            sock.close()


@pytest.mark.fault(19)
@pytest.mark.spec("SW-6")
@pytest.mark.takes(3)
def test_a_neighbor_that_fails_is_dialled_again_but_not_at_once_again_and_again(neighbor, leecher, out):
    failing = neighbor()
    connections = []  # number of connections at each query

    def closes_twice(request, sock):
        connections.append(len(failing.connections))
        return failing.on_chunks_query(request, sock) if len(connections) > 2 else None

    failing.answers["chunks_query"] = closes_twice
    leecher().ends_with(0)
    assert out.read_bytes() == DATA
    times = failing.times("chunks_query")
    assert times[2] - times[0] > 0.5, "the third time came at once"
    assert times[2] - times[0] < patience(7), "five seconds, and time for a machine that is busy"
    assert connections[2] <= 6, "twice in vain, then for good, over two connections perhaps"


@pytest.mark.slow
@pytest.mark.fault(19)
@pytest.mark.spec("SW-6")
@pytest.mark.takes(9)
def test_the_pauses_before_a_neighbor_that_always_fails_is_dialled_again_grow(neighbor, leecher):
    failing = neighbor()
    failing.answers["chunks_query"] = lambda request, sock: None
    leecher()

    def pauses():
        """Pauses between attempts; two within 0.3 s are one attempt over two connections."""
        times = failing.times("chunks_query")
        began = [at for before, at in zip([0, *times], times) if at - before > 0.3]
        return [after - before for before, after in zip(began, began[1:])]
    eventually(lambda: len(pauses()) >= 4, seconds=30, what="a fifth time")
    assert sum(pauses()[2:4]) > 1.2 * sum(pauses()[:2]), pauses()


# Row 20: proofs that are late or lost.


@pytest.mark.fault(20)
@pytest.mark.spec("AP-4", "AP-7")
@pytest.mark.takes(1)
def test_after_a_proof_that_nobody_answers_the_next_one_comes_before_the_lease_ends(tracker, run_peer, out):
    """Among several proofs, one such pause is enough: a busy machine may delay others."""
    tracker.lease_ms = 2000
    tracker.answers["active_proof"] = never
    run_peer(tracker.port, out)

    def gaps():
        times = tracker.times("active_proof")
        return [after - before for before, after in zip(times, times[1:])]
    eventually(lambda: min(gaps(), default=9) < 1.4, what="another Active Proof while the lease of 2 s still lasts")


@pytest.mark.fault(20)
@pytest.mark.spec("AP-2", "AP-3")
@pytest.mark.takes(1)
def test_a_peer_that_was_suspended_for_longer_than_its_lease_is_listed_again(make_file, run_tracker, run_peer, out):
    path, _ = make_file(DATA)
    tracker = run_tracker(path, expire=1, extra=["--no-seed"])
    suspended = run_peer(tracker.port, out)

    def listed():
        return list(ask(tracker.port, peer_list()).peer_list.addresses)

    before = eventually(listed, what="a peer in the list")
    suspended.signal(signal.SIGSTOP)
    try:
        eventually(lambda: not listed(), what="the end of its lease")
    finally:
        suspended.signal(signal.SIGCONT)
    assert eventually(listed, what="a peer in the list again") == before


# Rows 22, 23: the tracker dies.


@pytest.mark.fault(22)
@pytest.mark.spec("AP-2", "AP-7", "SW-4")
def test_a_tracker_that_was_killed_and_restarted_lists_its_peers_again_and_they_never_stop(make_file, run_tracker, run_peer, fake_peer, out):
    path, data = make_file(DATA)
    tracker = run_tracker(path, expire=1, extra=["--no-seed", "--chunk-size", "16K"])
    seeder, leave = fake_peer(data, chunk_size=CHUNK), threading.Semaphore(0)
    seeder.answers["fetch_chunk"] = lambda request, sock: leave.acquire(timeout=SECONDS) and seeder.on_fetch_chunk(request, sock)
    leecher = run_peer(tracker.port, out, ["--leave"])

    def others():
        """The peers listed besides the seeder, which joins each time because its lease is short."""
        return set(ask(tracker.port, join(seeder.address)).peer_list.addresses) - {seeder.address}
    try:
        eventually(lambda: others() and seeder.count("fetch_chunk"), what="a request for a chunk")
        (address,) = eventually(others, what="the leecher in the list")
        tracker.signal(signal.SIGKILL)
        tracker.wait()
        leave.release(4)
        eventually(lambda: len(held(address)) >= 4, what="four chunks without a tracker")
        again = run_tracker(path, port=tracker.port, expire=1, extra=["--no-seed", "--chunk-size", "16K"])
        assert again.port == tracker.port
        assert eventually(lambda: list(ask(again.port, peer_list()).peer_list.addresses), what="a peer in the list") == [address]
    finally:
        leave.release(100)
    leecher.ends_with(0)
    assert out.read_bytes() == data


@pytest.fixture
def swarm_of_two(tracker, neighbor, run_peer, tmp_path, gate):
    """(seeder, two leechers): the fake seeder gives each chunk away once, when the gate is open, and the leechers know each other."""
    seeder, served, lock = neighbor(), set(), threading.Lock()

    def each_chunk_once(request, sock):
        gate.wait(SECONDS)
        with lock:
            if request.chunk_id in served and request.busy_ok:
                return bad(pb.BUSY)  # so the other leecher must get it from the first
            served.add(request.chunk_id)
        return seeder.on_fetch_chunk(request, sock)

    seeder.answers["fetch_chunk"] = each_chunk_once
    together = threading.Barrier(2)

    def when_both_have_joined(request, sock):
        tracker.on_join(request, sock)
        together.wait(SECONDS)
        return tracker.on_join(request, sock)

    tracker.answers["join"] = when_both_have_joined
    leechers = [run_peer(tracker.port, tmp_path / name) for name in ("one.bin", "two.bin")]
    tracker.wait_for("join", 2)
    seeder.wait_for("fetch_chunk", 2)  # so both have the answer to Join
    return seeder, leechers


def check_files(leechers, tmp_path):
    for program in leechers:
        program.wait_for("complete")
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes() == DATA


@pytest.mark.fault(23)
@pytest.mark.spec("SW-4")
@pytest.mark.slow  # it waits for three peer lists, one a second, while the tracker dies, and for more afterwards
@pytest.mark.takes(2)
def test_the_swarm_finishes_without_a_tracker_that_died_after_the_first_peer_list(tracker, swarm_of_two, tmp_path, gate):
    _, leechers = swarm_of_two
    tracker.answers.clear()  # from now on it closes the connection at every request
    tracker.wait_for("peer_list", tracker.count("peer_list") + 3)  # each asks once a second, so both have most likely noticed
    tracker.stop()
    gate.set()
    check_files(leechers, tmp_path)


@pytest.mark.fault(23)
@pytest.mark.spec("SW-4", "SW-6")
@pytest.mark.takes(1)
def test_a_tracker_that_hangs_does_not_keep_a_leecher_from_its_neighbors(tracker, neighbor, leecher, out):
    """A neighbor that failed once is dialled again after a second, not only once the wait for the tracker is over."""
    seeder = neighbor()
    tracker.answers["peer_list"] = tracker.answers["active_proof"] = never
    seeder.answers["chunks_query"] = first(lambda request, sock: None, seeder.on_chunks_query)
    program = leecher()
    seeder.wait_for("chunks_query")
    program.ends_with(0, seconds=8)  # the wait for the tracker is ten seconds
    assert out.read_bytes() == DATA


# Rows 25, 26, 27: no seeder.


@pytest.mark.fault(26)
@pytest.mark.spec("SW-2", "SW-4")
@pytest.mark.takes(2)
def test_the_swarm_completes_when_the_seeder_dies_once_every_chunk_was_given_away(tracker, swarm_of_two, tmp_path, gate):
    seeder, leechers = swarm_of_two
    gate.set()
    eventually(lambda: len({chunk_id for address in tracker.joined for chunk_id in held(address)}) == 9, what="every chunk in the swarm")
    seeder.stop()
    check_files(leechers, tmp_path)


# Row 28: the last chunk on a slow neighbor.


@pytest.mark.fault(28)
@pytest.mark.spec("SW-5", "FC-12")
def test_the_last_chunk_is_asked_of_a_second_neighbor_when_the_first_is_slow_and_counted_once(tracker, neighbor, run_peer, out, gate):
    slow, fast = neighbor(), neighbor()
    slow.answers["fetch_chunk"] = after(gate, slow.on_fetch_chunk)
    fast.answers["fetch_chunk"] = lambda request, sock: slow.wait_for("fetch_chunk") and fast.on_fetch_chunk(request, sock)
    program = run_peer(tracker.port, out)
    slow.wait_for("fetch_chunk")
    program.wait_for("complete", seconds=8)  # it waits ten seconds for the slow one
    assert slow.fetched()[0] in fast.fetched()
    written = out.stat().st_mtime_ns
    gate.set()  # now the same chunk comes again, unless the peer has stopped waiting for it
    give_up = time.monotonic() + 1
    eventually(lambda: all_closed(slow) or time.monotonic() > give_up, what="the end of all connections to the slow one, or a second")  # they may be kept
    assert sorted(held(tracker.joiner())) == [index * CHUNK for index in range(9)]
    assert out.stat().st_mtime_ns == written, "a file that is complete is not written to again"
    assert out.read_bytes() == DATA


# Row 29: no room for the file.


@pytest.mark.fault(29)
@pytest.mark.spec("CL-11")
@pytest.mark.parametrize("left", [b"", bytes(len(DATA)), DATA[:CHUNK] + bytes(CHUNK) + DATA[2 * CHUNK:]],
                         ids=["nothing_there", "out_part_of_full_size", "all_but_the_chunk_that_meets_the_limit"])
def test_a_limit_on_the_size_of_files_ends_the_peer_with_one_line(tracker, neighbor, out, left):
    neighbor()
    part = out.with_name("out.bin.part")
    part.write_bytes(left)  # if of full size, a write meets the limit, and may first be short
    limit = CHUNK + CHUNK // 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    one_line(finished(peer_command(tracker.port, out), preexec_fn=limited), 6)
    assert not out.exists()
    assert not left or part.stat().st_size == len(DATA)
