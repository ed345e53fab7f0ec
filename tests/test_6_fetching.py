"""How a peer fetches: what it learns from its neighbors' lists, and how it asks them for chunks (SPEC.md, clauses CQ, FC).

How it answers Chunks Query and Fetch Chunk is in test_4_chunks_query.py and test_5_fetch_chunk.py; what many
peers do together is in test_6_swarm.py.
"""

import random
import socket
import struct
import threading
import time

import pytest

import messages_pb2 as pb
from checks import LEASE_MS, NO_NEIGHBORS, PROOFS, asks_again_within_a_second, ids, most_in_a_second, proves_every_third
from harness import (CHUNK, SECONDS, ask, bad, bytes_left, chunks_query, connect, content_id, describe, eventually, fetch_chunk, first, framed, is_refused,
                     says_busy_ok, silent, split, two_of_three_refused)
from harness import FIVE_IDS as IDS, FIVE_SIZE as SIZE
from wire_tests import UNKNOWN_FIELD, written_otherwise


def chunk_list(*indexes):
    """The answer to Chunks Query that lists these chunks."""
    return pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[index * CHUNK for index in indexes]))


# What a peer learns from others.


@pytest.mark.spec("CQ-4", "WF-4")
def test_on_a_new_connection_the_asker_says_that_it_knows_nothing(start, fake_peer, data):
    neighbor = fake_peer(data, held=[0])
    neighbor.one_request_per_connection = True  # so every query comes on a new connection
    _, out = start(neighbor)
    for count in range(1, 5):
        neighbor.wait_for("fetch_chunk", count)
        neighbor.held.append(count)
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert {request.chunks_query.known for _, name, request in neighbor.requests if name == "chunks_query"} == {0}


@pytest.mark.spec("CQ-4")
def test_an_asker_learns_what_a_neighbor_holds_that_was_started_anew(start, fake_peer, data):
    """The new program lists chunk 0 first. Its predecessor lacked it, and ended in the middle of an answer."""
    neighbor = fake_peer(data, held=[1])

    def end_once(request, sock):
        if request.chunk_id == 2 * CHUNK and neighbor.held == [1, 2]:
            neighbor.held = [0, 1, 2]
            neighbor.hang_up()
            return None  # the next connection is to its successor
        return neighbor.on_fetch_chunk(request, sock)
    neighbor.answers["fetch_chunk"] = end_once
    address, _ = start(neighbor)
    eventually(lambda: ids(address) == [CHUNK], what="chunk 1")
    neighbor.held = [1, 2]
    eventually(lambda: sorted(ids(address)) == [0, CHUNK, 2 * CHUNK], what="chunk 0 of the successor")


@pytest.mark.spec("CQ-4", "FC-8")
def test_what_a_neighbor_that_was_started_anew_lists_no_longer_is_not_asked_for(start, fake_peer, data):
    """Its predecessor had listed chunks 1 and 2, was busy, and ended. The new program is slow to list chunk 0."""
    neighbor = fake_peer(data, held=[1, 2])
    heard_anew = []  # how many chunks had been requested by the time of each new list

    def end_once(request, sock):
        if neighbor.held == [1, 2]:
            neighbor.held = []
            neighbor.hang_up()
            return None
        return bad(pb.BUSY) if request.busy_ok else neighbor.on_fetch_chunk(request, sock)

    def on_query(request, sock):
        if neighbor.held == []:
            heard_anew.append(neighbor.count("fetch_chunk"))
            neighbor.held = [0] if len(heard_anew) > 2 else []
        return neighbor.on_chunks_query(request, sock)
    neighbor.answers.update(fetch_chunk=end_once, chunks_query=on_query)
    start(neighbor)
    eventually(lambda: neighbor.fetched()[-1:] == [0] and (neighbor.fetched()[-3:] == [0, 0, 0] or not says_busy_ok(neighbor)), what="requests for chunk 0")
    assert set(neighbor.fetched()[heard_anew[0] + 2:]) <= {0}  # one request may have been under way, or one on each of two connections


@pytest.mark.spec("CQ-4", "SW-8")
def test_what_a_neighbor_tells_is_added_to_what_it_told_before(start, fake_peer, data):
    """Chunk 0 is given only after another list, which leaves it out."""
    neighbor = fake_peer(data, held=[0])

    def later(request, sock):
        if neighbor.count("chunks_query") < 3 and request.busy_ok:
            return bad(pb.BUSY)
        return neighbor.on_fetch_chunk(request, sock)
    neighbor.answers["fetch_chunk"] = later
    address, _ = start(neighbor)
    eventually(lambda: ids(address) == [0], what="chunk 0")


@pytest.mark.spec("CQ-4")
def test_a_neighbor_that_answers_always_with_its_whole_list_in_any_order_is_understood(start, fake_peer, data):
    neighbor = fake_peer(data, held=[2])
    neighbor.answers["chunks_query"] = lambda request, sock: chunk_list(*random.sample(neighbor.held, len(neighbor.held)))
    _, out = start(neighbor)
    for count, index in enumerate([0, 4, 1, 3], start=1):
        neighbor.wait_for("fetch_chunk", count)
        neighbor.held.append(index)
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert set(neighbor.fetched()) == set(IDS)


@pytest.mark.spec("CQ-6", "PL-4")
@pytest.mark.parametrize("whole", [False, True], ids=["what_is_new", "its_whole_list"])
@pytest.mark.takes(2)
def test_a_neighbor_without_news_is_not_asked_for_them_without_end(start, fake_peer, data, whole):
    """It answers at once, whatever wait_ms says, like a program without the extension, which may send its whole list each time."""
    neighbor = fake_peer(data, held=[0, 1])
    if whole:
        neighbor.answers["chunks_query"] = lambda request, sock: chunk_list(*neighbor.held)
    address, _ = start(neighbor)
    eventually(lambda: len(ids(address)) == 2, what="the chunks that there are")
    began = time.monotonic()
    eventually(lambda: neighbor.times("chunks_query")[-1] > began + 1, what="a question for news, a second later")
    assert most_in_a_second(neighbor.times("chunks_query")) <= 20 + 3 + 2, "one for the first list and for each chunk, and two that a busy machine held up"
    assert sum(sock.fileno() >= 0 for sock in list(neighbor.connections)) <= 2


@pytest.mark.spec("CQ-4", "CQ-5", "FC-8")
def test_ids_that_are_no_offset_of_a_chunk_are_ignored(start, fake_peer, data):
    neighbor = fake_peer(data)
    strange = [1, CHUNK - 1, CHUNK + 1, SIZE, 5 * CHUNK, 16_384 * CHUNK, 2**63, 2**64 - CHUNK, 2**64 - 1]
    told, too_many = {}, []  # connection -> number of ids sent on it

    def on_query(request, sock):
        if request.known > told.setdefault(sock, 0):
            too_many.append(request.known)
        told[sock] += 2 * len(strange) + len(IDS)
        return pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[*strange, *IDS, *strange]))
    neighbor.answers["chunks_query"] = on_query
    _, out = start(neighbor)
    eventually(out.exists, what="a complete file")
    assert not too_many, "known is more than it was told on this connection"
    assert out.read_bytes() == data
    assert set(neighbor.fetched()) == set(IDS)


@pytest.mark.spec("CQ-5", "FC-8")
def test_an_id_in_the_middle_of_a_chunk_does_not_stand_for_that_chunk(start, fake_peer, data):
    neighbor = fake_peer(data)
    listed = [0, CHUNK + 1, 3 * CHUNK - 1, 4 * CHUNK + 999]
    neighbor.answers["chunks_query"] = lambda request, sock: pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=listed[request.known:]))
    address, _ = start(neighbor)
    eventually(lambda: 0 in ids(address), what="chunk 0")
    neighbor.wait_for("chunks_query", neighbor.count("chunks_query") + 2)  # by now it has asked for every chunk that it believes to be there
    assert neighbor.fetched() == [0]


@pytest.mark.spec("CQ-4", "CQ-5")
def test_a_list_in_which_ids_are_repeated_is_understood(start, fake_peer, data):
    neighbor = fake_peer(data)
    neighbor.answers["chunks_query"] = lambda request, sock: chunk_list(*[index for index in range(5) for _ in range(3)])
    _, out = start(neighbor)
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert set(neighbor.fetched()) == set(IDS)


# What it holds, it offers.


@pytest.mark.spec("CQ-1", "FC-5")
def test_a_chunk_is_listed_when_it_was_written_and_not_when_it_was_asked_for(start, fake_peer, data):
    neighbor = fake_peer(data)
    neighbor.answers["fetch_chunk"] = lambda request, sock: neighbor.on_fetch_chunk(request, sock) if request.chunk_id == CHUNK else silent(request, sock)
    neighbor.answers["chunks_query"] = lambda request, sock: chunk_list(1) if neighbor.count("fetch_chunk") == 0 else chunk_list(*range(5))
    address, out = start(neighbor)
    eventually(lambda: ids(address) == [CHUNK], what="the chunk that came")
    part = out.with_name("out.bin.part")
    assert part.read_bytes()[CHUNK:2 * CHUNK] == split(data)[1]
    neighbor.wait_for("fetch_chunk", 2)
    with connect(address) as sock:
        assert ids(sock) == [CHUNK]
        for chunk_id in (0, 2 * CHUNK, 4 * CHUNK):
            assert is_refused(ask(sock, fetch_chunk(chunk_id)), pb.NOT_HELD)
        assert ask(sock, fetch_chunk(CHUNK)).chunk == split(data)[1]


@pytest.mark.spec("CQ-2", "CQ-3", "SW-2")
def test_the_list_grows_in_the_order_in_which_the_chunks_came(start, fake_peer, data):
    neighbor = fake_peer(data, held=[])
    address, _ = start(neighbor)
    order = []
    for index in (3, 0, 4, 1):
        neighbor.held.append(index)
        order.append(index * CHUNK)
        eventually(lambda: ids(address, known=len(order) - 1) == order[-1:], what=f"chunk {index}")
        assert ids(address) == order


@pytest.mark.spec("FC-5", "FC-4")
@pytest.mark.fault(9)
def test_a_chunk_that_is_not_held_is_refused_and_the_connection_kept(make_file, fake_tracker, fake_peer, run_peer, tmp_path):
    _, data = make_file(3 * CHUNK - 1000)
    tracker = fake_tracker(data, [fake_peer(data, held=[1]).address])
    run_peer(tracker.port, tmp_path / "out.bin")
    address = tracker.joiner()
    with connect(address) as sock:
        eventually(lambda: ids(address) == [CHUNK], what="the one chunk that there is")
        for chunk_id in (0, 2 * CHUNK):
            assert is_refused(ask(sock, fetch_chunk(chunk_id)), pb.NOT_HELD)
        assert is_refused(ask(sock, fetch_chunk(3 * CHUNK)), pb.NO_SUCH_CHUNK)
        assert ask(sock, fetch_chunk(CHUNK)).chunk == split(data)[1]


@pytest.mark.spec("CQ-6")
def test_who_waits_for_news_is_told_of_a_chunk_when_it_has_come_and_not_when_the_wait_is_over(start, fake_peer, data):
    """A program without the extension answers at once, with an empty list, which is allowed too."""
    neighbor = fake_peer(data, held=[0])
    address, _ = start(neighbor)
    eventually(lambda: ids(address) == [0], what="chunk 0")
    for index in range(1, 5):  # a busy machine may delay some tries
        eventually(lambda: len(ids(address)) == index, what="the chunk before")
        timer = threading.Timer(0.2, neighbor.held.append, [index])
        timer.start()
        began = time.monotonic()
        answer = ask(address, chunks_query(index, wait_ms=1000))
        took = time.monotonic() - began
        timer.join()
        assert list(answer.chunks_query.chunk_ids) in ([], [index * CHUNK])
        if took < 0.8:
            return
    raise AssertionError(f"expected the answer when the chunk had come, after 0.2 s; got it after {took:.1f} s")


# What it knows about others, and who knows about it.


@pytest.mark.spec("PL-4")
def test_a_peer_skips_what_is_no_address_and_looks_no_name_up(leeching, fake_peer, make_file):
    neighbor, named = fake_peer(make_file(CHUNK)[1]), fake_peer(b"")
    junk = [*NO_NEIGHBORS, f"localhost:{named.port}"]
    tracker, out, data = leeching([*junk, neighbor.address, *junk])
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert not named.connections


@pytest.mark.spec("PL-5", "SW-8")
@pytest.mark.parametrize("useless_neighbor", [pytest.param(False, marks=pytest.mark.slow), True], ids=["no_neighbor", "a_neighbor_that_has_nothing"])
@pytest.mark.takes(3)
def test_a_leecher_that_nobody_can_serve_asks_for_the_list_again_within_a_second(leeching, fake_peer, useless_neighbor):
    tracker, out, data = leeching([fake_peer(b"").address] if useless_neighbor else [])
    asks_again_within_a_second(tracker)
    tracker.peers.append(fake_peer(data).address)
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data


@pytest.mark.spec("PL-5")
@pytest.mark.takes(2)
def test_a_leecher_whose_neighbors_hold_only_what_it_has_asks_for_the_list_again(leeching, fake_peer, make_file):
    neighbor = fake_peer(make_file(2 * CHUNK)[1], held=[1])
    tracker, _, _ = leeching([neighbor.address], size=2 * CHUNK)
    address = tracker.joiner()
    eventually(lambda: ask(address, chunks_query()).chunks_query.chunk_ids == [CHUNK], what="the chunk that there is")
    asks_again_within_a_second(tracker)


@pytest.mark.spec("AP-4")
@pytest.mark.takes(1)
def test_a_leecher_that_waits_for_a_chunk_proves_itself_every_third_of_the_lease(fake_tracker, fake_peer, run_peer, data, tmp_path):
    neighbor = fake_peer(data)
    neighbor.answers["fetch_chunk"] = silent
    tracker = fake_tracker(data, [neighbor.address], lease_ms=LEASE_MS)
    run_peer(tracker.port, tmp_path / "out.bin")
    for count in range(1, PROOFS + 1):
        proof = tracker.wait_for("active_proof", count)
        assert proof.listening_addr.rpartition(":")[2] == tracker.joiner().rpartition(":")[2]
        assert proof.content_id in (b"", content_id(describe(data)))
    proves_every_third(tracker)
    neighbor.wait_for("fetch_chunk")


# The wire, at the end that asks.


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


@pytest.mark.spec("WF-4")
def test_a_client_closes_its_end_of_a_connection_that_the_server_has_closed(make_file, fake_tracker, fake_peer, run_peer, tmp_path):
    _, data = make_file(5 * CHUNK)
    neighbor = fake_peer(data)
    tracker, ended = fake_tracker(data, [neighbor.address], lease_ms=300), []

    def and_end(answer):
        def end(request, sock):
            sock.sendall(framed(answer(request, sock)))
            sock.shutdown(socket.SHUT_WR)
            try:
                while sock.recv(1 << 16):  # requests that came meanwhile get no answer
                    pass
            except ConnectionError:
                pass
            ended.append(sock)
        return end
    for fake in (tracker, neighbor):
        fake.answers = {name: and_end(answer) for name, answer in fake.answers.items()}
    run_peer(tracker.port, tmp_path / "out.bin")
    tracker.wait_for("active_proof", 4)
    completes(tmp_path / "out.bin", data)
    count = len(neighbor.connections + tracker.connections)
    eventually(lambda: len(ended) >= count - 3, what="the end of all connections but the last ones")


@pytest.mark.spec("WF-11")
@pytest.mark.parametrize("place", ["before", "after", "everywhere"])
def test_unknown_fields_of_an_answer_are_ignored(make_file, fake_tracker, fake_peer, run_peer, tmp_path, place):
    """Everywhere means also inside its members, which come in another order, with lists not packed."""
    _, data = make_file(2 * CHUNK)
    neighbor = fake_peer(data)
    tracker = fake_tracker(data, [neighbor.address])

    def with_more(answer):
        def more(request, sock):
            if place == "everywhere":
                return written_otherwise(answer(request, sock))
            body = answer(request, sock).SerializeToString()
            return UNKNOWN_FIELD + body if place == "before" else body + UNKNOWN_FIELD
        return more
    for fake in (tracker, neighbor):
        fake.answers = {name: with_more(answer) for name, answer in fake.answers.items()}
    run_peer(tracker.port, tmp_path / "out.bin")
    eventually((tmp_path / "out.bin").exists, what="a complete file")
    assert (tmp_path / "out.bin").read_bytes() == data


# How a peer asks.


@pytest.fixture
def fetch(fake_tracker, run_peer, tmp_path):
    """fetch(data, neighbors): (fake tracker, address, OUT) of a peer under test whose tracker lists these."""
    def run(data, *neighbors, chunk_size=CHUNK, start=run_peer):
        tracker = fake_tracker(data, [neighbor.address for neighbor in neighbors], chunk_size=chunk_size)
        start(tracker.port, tmp_path / "out.bin")
        return tracker, tracker.joiner(), tmp_path / "out.bin"
    return run


@pytest.fixture
def fetch_patched(fetch, run_patched):
    """fetch_patched(changes, ...): the same with our peer and other constants."""
    def run(changes, *args, **kwargs):
        return fetch(*args, start=lambda tracker, out: run_patched("peer", changes, [f"127.0.0.1:{tracker}", out]), **kwargs)
    return run


def completes(out, data, seconds=SECONDS):
    """Wait for OUT, and compare."""
    eventually(out.exists, seconds, what="a complete file")
    assert out.read_bytes() == data


@pytest.mark.spec("FC-7")
@pytest.mark.fault(15)
@pytest.mark.takes(1.3)
def test_an_asker_that_is_told_busy_pauses_at_random_and_asks_again(make_file, fake_peer, fetch):
    _, data = make_file(3 * CHUNK - 1000)
    neighbor = fake_peer(data)

    def busy_eleven_times(request, sock):
        return bad(pb.BUSY) if request.busy_ok and neighbor.count("fetch_chunk") < 12 else neighbor.on_fetch_chunk(request, sock)
    neighbor.answers["fetch_chunk"] = busy_eleven_times
    _, _, out = fetch(data, neighbor)
    completes(out, data, 2 * SECONDS)  # being busy breaks no promise; a pause may last a second
    if not says_busy_ok(neighbor):
        return  # without busy_ok, it waits for its turn
    times = neighbor.times("fetch_chunk")[:12]
    pauses = [after - before for before, after in zip(times, times[1:])]
    assert max(pauses) - min(pauses) > 0.02, pauses
    assert times[-1] - times[0] >= 0.55 and most_in_a_second(times) <= 20, pauses
    assert sorted(pauses)[len(pauses) // 2] < 1.6, "about a second, at most"


@pytest.mark.spec("FC-7")
@pytest.mark.takes(1)
def test_an_asker_pauses_as_long_as_a_busy_neighbor_says(make_file, fake_peer, fetch):
    _, data = make_file(CHUNK)
    neighbor = fake_peer(data)

    def answer(request, sock):
        if neighbor.count("fetch_chunk") > 3 or not request.busy_ok:
            return neighbor.on_fetch_chunk(request, sock)
        return pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="by the test", retry_ms=300))
    neighbor.answers["fetch_chunk"] = answer
    _, _, out = fetch(data, neighbor)
    completes(out, data)
    times = neighbor.times("fetch_chunk")
    pauses = [after - before for before, after in zip(times, times[1:])]
    assert not says_busy_ok(neighbor) or 0.15 < min(pauses) < 0.65 and len(set(pauses)) == 3, pauses  # a busy machine may prolong some of them


@pytest.mark.spec("FC-7")
@pytest.mark.takes(4)
@pytest.mark.slow
def test_a_neighbor_that_goes_on_saying_that_a_slot_is_near_is_not_asked_without_end(make_file, fake_peer, fetch):
    """It says each time that one will be free within a millisecond, which may be believed at first."""
    _, data = make_file(CHUNK)
    neighbor = fake_peer(data)
    soon = pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="by the test", retry_ms=1))
    neighbor.answers["fetch_chunk"] = lambda request, sock: soon if request.busy_ok and neighbor.count("fetch_chunk") < 70 else neighbor.on_fetch_chunk(request, sock)
    _, _, out = fetch(data, neighbor)
    completes(out, data, 4 * SECONDS)  # it chooses the pauses itself, up to a second
    assert most_in_a_second(neighbor.times("fetch_chunk")[30:]) <= 20 + 2, "twenty, and two that a busy machine held up"


@pytest.mark.spec("FC-7")
@pytest.mark.takes(1.5)
def test_an_asker_does_not_wait_for_minutes_though_a_busy_neighbor_says_so(make_file, fake_peer, fetch):
    _, data = make_file(CHUNK)
    neighbor = fake_peer(data)
    hours = pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="by the test", retry_ms=3_600_000))
    neighbor.answers["fetch_chunk"] = lambda request, sock: hours if neighbor.count("fetch_chunk") == 1 else neighbor.on_fetch_chunk(request, sock)
    _, _, out = fetch(data, neighbor)
    completes(out, data)


@pytest.mark.spec("FC-7", "FC-8")
@pytest.mark.fault(15)
@pytest.mark.takes(1)
def test_a_neighbor_that_always_names_another_chunk_is_not_asked_without_end(make_file, fake_peer, fetch):
    _, data = make_file(6 * CHUNK)
    neighbor = fake_peer(data)

    def another(request, sock):
        if neighbor.count("fetch_chunk") > 14 or not request.busy_ok:
            return neighbor.on_fetch_chunk(request, sock)
        named = (request.chunk_id + CHUNK) % (6 * CHUNK)
        return pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="by the test", instead=[named, 6 * CHUNK, 1]))
    neighbor.answers["fetch_chunk"] = another
    _, _, out = fetch(data, neighbor)
    completes(out, data, 2 * SECONDS)
    times = neighbor.times("fetch_chunk")[:14]
    assert not says_busy_ok(neighbor) or times[-1] - times[0] >= 6 * 0.05, "of every two requests one comes after a pause"
    asked = list(zip(times, neighbor.fetched()))
    at_once = [(before, chunk) for (began, before), (at, chunk) in zip(asked, asked[1:]) if at - began < 0.01]
    assert not says_busy_ok(neighbor) or all(chunk == (before + CHUNK) % (6 * CHUNK) for before, chunk in at_once), "another chunk than the named one was asked for at once"


@pytest.mark.spec("FC-7", "FC-8")
@pytest.mark.takes(1)
def test_a_chunk_that_a_busy_neighbor_names_and_has_not_listed_is_not_asked_of_it_nor_any_other_at_once(make_file, fake_peer, fetch):
    _, data = make_file(6 * CHUNK)
    neighbor = fake_peer(data, held=[0, 1, 3, 4])

    def names_another(request, sock):
        if neighbor.count("fetch_chunk") > 6 or not request.busy_ok:
            return neighbor.on_fetch_chunk(request, sock)
        return pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="by the test", retry_ms=200, instead=[2 * CHUNK]))
    neighbor.answers["fetch_chunk"] = names_another
    _, address, _ = fetch(data, neighbor)
    eventually(lambda: len(ids(address)) == 4, what="the chunks that there are")
    assert set(neighbor.fetched()) == {0, CHUNK, 3 * CHUNK, 4 * CHUNK}
    times = neighbor.times("fetch_chunk")[:7]
    assert not says_busy_ok(neighbor) or min(after - before for before, after in zip(times, times[1:])) > 0.1, "no pause of about 200 ms"


@pytest.mark.spec("FC-15", "WF-4")
@pytest.mark.fault(49)
@pytest.mark.takes(1)
def test_nothing_is_asked_ahead_before_a_connection_has_given_two_answers(make_file, fake_peer, fetch):
    _, data = make_file(20 * CHUNK)
    neighbor, early = fake_peer(data), []
    answered = {}  # connection -> number of answers given on it

    def careful(answer):
        def look(request, sock):
            if answered.setdefault(sock, 0) < 2:
                sock.settimeout(0.1)
                try:
                    early.append(sock.recv(1, socket.MSG_PEEK))
                except TimeoutError:
                    pass
                sock.settimeout(60)
            answered[sock] += 1
            if answered[sock] % 7 == 0:
                return None  # closes, despite any requests ahead
            return answer(request, sock)
        return look
    neighbor.answers = {name: careful(answer) for name, answer in neighbor.answers.items()}
    _, _, out = fetch(data, neighbor)
    completes(out, data)
    assert not early, "a request came before the answer to the one before"
    assert len(answered) > 2


@pytest.mark.spec("FC-15", "SW-1")
@pytest.mark.takes(1)
def test_a_file_of_more_bytes_than_may_be_on_their_way_is_fetched_whole(make_file, fake_peer, fetch):
    """Requests for 16 MiB may be under way at any time; the file has 20."""
    _, data = make_file(20 << 20)
    _, _, out = fetch(data, fake_peer(data, chunk_size=1 << 20), chunk_size=1 << 20)
    completes(out, data)


@pytest.mark.spec("FC-15", "FC-12")
@pytest.mark.fault(47)
@pytest.mark.parametrize("end", ["closes", "resets"])
def test_what_was_asked_on_a_connection_that_ended_is_asked_again_and_nothing_is_lost(make_file, fake_peer, fetch, end):
    """It ends after every fifth chunk, where the next answer should begin."""
    _, data = make_file(16 * CHUNK)
    neighbor, given = fake_peer(data), []

    def give(request, sock):
        if len(given) % 5 == 4 and given[-1] != "end":
            given.append("end")
            if end == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:  # closing with requests unread would reset the connection, too
                sock.shutdown(socket.SHUT_WR)
                bytes_left(sock)
            return None
        given.append(request.chunk_id)
        return neighbor.on_fetch_chunk(request, sock)
    neighbor.answers["fetch_chunk"] = give
    _, _, out = fetch(data, neighbor)
    completes(out, data)
    chunks = [chunk for chunk in given if chunk != "end"]
    if end == "closes":  # a reset discards what was sent but not read yet, perhaps the same chunk twice
        assert max(chunks.count(chunk) for chunk in chunks) <= 2 and len(chunks) <= 16 + given.count("end"), "each came once more at most"
    assert set(chunks) == {index * CHUNK for index in range(16)} and given.count("end") >= 3


@pytest.mark.spec("FC-8")
def test_an_asker_asks_each_neighbor_only_for_what_it_has_listed(make_file, fake_peer, fetch):
    _, data = make_file(6 * CHUNK)
    neighbors = [fake_peer(data, held) for held in ([0, 1], [2, 3], [1, 3, 4])]
    late = fake_peer(data, held=[])
    _, address, out = fetch(data, *neighbors, late)
    eventually(lambda: len(ids(address)) == 5, what="five of the six chunks")
    assert late.count("fetch_chunk") == 0
    late.held.append(5)
    completes(out, data)
    assert set(late.fetched()) == {5 * CHUNK}
    for neighbor in neighbors:
        assert set(neighbor.fetched()) <= {index * CHUNK for index in neighbor.held}


@pytest.mark.spec("FC-10")
@pytest.mark.takes(1.4)
def test_a_neighbor_that_refuses_two_in_a_row_and_then_gives_one_is_kept(make_file, fake_peer, fetch):
    _, data = make_file(9 * 1000)
    neighbor = fake_peer(data, chunk_size=1000)
    neighbor.answers["fetch_chunk"] = two_of_three_refused(neighbor)
    _, address, _ = fetch(data, neighbor, chunk_size=1000)
    neighbor.wait_for("fetch_chunk", 7)
    eventually(lambda: len(ids(address)) >= 2, what="the two chunks that it gave")


@pytest.mark.spec("FC-10", "CQ-4")
def test_of_a_neighbor_that_refuses_one_chunk_all_others_that_it_has_listed_are_fetched(make_file, fake_peer, fetch):
    _, data = make_file(9 * 1000)
    neighbor = fake_peer(data, chunk_size=1000)
    neighbor.answers["fetch_chunk"] = first(lambda request, sock: bad(pb.NOT_HELD), neighbor.on_fetch_chunk)
    _, address, _ = fetch(data, neighbor, chunk_size=1000)
    eventually(lambda: set(range(0, 9000, 1000)) - set(ids(address)) <= {neighbor.fetched()[0]} if neighbor.fetched() else False, what="all but the refused chunk")


def stall_in_the_middle(request, sock):
    sock.sendall(framed(pb.Response(chunk=bytes(64 << 10)))[:500])
    silent(request, sock)


def dribble(request, sock):
    """A byte every 50 ms, until the asker gives up."""
    frame = framed(pb.Response(chunk=bytes(1000)))
    sock.settimeout(0.05)
    for byte in frame:
        sock.sendall(bytes([byte]))
        try:
            if sock.recv(1) == b"":
                return
        except TimeoutError:
            pass


def reset_in_the_middle(request, sock):
    sock.sendall(framed(pb.Response(chunk=bytes(64 << 10)))[:500])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets


@pytest.mark.spec("FC-11")
@pytest.mark.fault(12)
@pytest.mark.takes(1.3)
def test_an_exchange_that_takes_too_long_is_given_up_and_the_chunk_fetched_elsewhere(make_file, fake_peer, fetch_patched):
    """Silence may last 0.4 s, an answer 0.4 s and one second more for every 4 KiB of it.

    That is 16.4 s for three of the chunks, but 0.65 s for the last, short one, for which the dribbler would need fifty.
    """
    size = 64 << 10
    _, data = make_file(3 * size + 1000)
    lasted = {}
    slow = []
    for index, answer in enumerate([silent, stall_in_the_middle, reset_in_the_middle, dribble]):
        def timed(request, sock, answer=answer):
            began = time.monotonic()
            try:
                answer(request, sock)
            finally:
                lasted.setdefault(answer.__name__, time.monotonic() - began)
        slow.append(fake_peer(data, [index], size))
        slow[-1].answers["fetch_chunk"] = timed
    tracker, _, out = fetch_patched("peer.FRAME_SECONDS = 0.4; peer.SLOWEST_LINK = 4 * peer.KIB", data, *slow, chunk_size=size)
    for neighbor in slow:
        neighbor.wait_for("fetch_chunk")
    tracker.peers.append(fake_peer(data, chunk_size=size).address)
    eventually(lambda: len(lasted) == 4, what="the end of all exchanges")
    assert max(lasted.values()) < 2, lasted
    completes(out, data)


@pytest.mark.slow
@pytest.mark.takes(15)
@pytest.mark.spec("FC-11")
@pytest.mark.fault(12)
@pytest.mark.parametrize("answer", [silent, dribble], ids=["no_byte_comes", "a_byte_at_a_time"])
def test_an_exchange_is_given_up_when_its_time_is_over(make_file, fake_tracker, fake_peer, run_peer, tmp_path, answer):
    """Its time is 10 s without a byte; or, for the whole answer, 10 s and one more for each 4 KiB, here 4."""
    size = 16 << 10
    _, data = make_file(size)
    slow = fake_peer(data, chunk_size=size)
    slow.answers["fetch_chunk"] = answer
    tracker = fake_tracker(data, [slow.address], chunk_size=size)
    run_peer(tracker.port, tmp_path / "out.bin")
    slow.wait_for("fetch_chunk")
    began = time.monotonic()
    first = slow.connections[-1]
    eventually(lambda: slow.count("fetch_chunk") > 1 or first.fileno() < 0, seconds=22, what="the end of the exchange, or another try")
    assert time.monotonic() - began > 8, "it was given up early"


@pytest.mark.spec("FC-11")
@pytest.mark.takes(2)
def test_an_answer_that_is_slow_but_in_time_is_taken(make_file, fake_peer, fetch_patched):
    """Its pauses of 0.4 s are shorter than the silence allowed, one second; the whole answer takes longer, but may take five."""
    _, data = make_file(CHUNK)
    slow = fake_peer(data)

    def in_pieces(request, sock):
        frame = framed(slow.on_fetch_chunk(request, sock))
        for piece in split(frame, 60_000):
            time.sleep(0.4)
            sock.sendall(piece)
    slow.answers["fetch_chunk"] = in_pieces
    _, _, out = fetch_patched("peer.FRAME_SECONDS = 1; peer.SLOWEST_LINK = 64 * peer.KIB", data, slow)
    completes(out, data)


@pytest.mark.spec("FC-12", "SW-5")
@pytest.mark.fault(44)
@pytest.mark.takes(1)
def test_a_chunk_that_arrives_twice_is_counted_once(make_file, fake_peer, fetch):
    """Two neighbors answer the same request at the same time; nobody has chunk 0 until then."""
    _, data = make_file(2 * CHUNK)
    neighbors = [fake_peer(data, held=[1]), fake_peer(data, held=[1])]
    both_were_asked = threading.Barrier(2)
    for neighbor in neighbors:
        def answer(request, sock, neighbor=neighbor):
            if request.chunk_id == CHUNK:
                both_were_asked.wait(SECONDS)
            return neighbor.on_fetch_chunk(request, sock)
        neighbor.answers["fetch_chunk"] = answer
    _, address, out = fetch(data, *neighbors)
    eventually(lambda: ids(address), what="chunk 1")
    counts = [neighbor.count("chunks_query") for neighbor in neighbors]
    eventually(lambda: all(neighbor.count("chunks_query") > count for neighbor, count in zip(neighbors, counts)), what="the next query of both")
    assert ids(address) == [CHUNK] and not out.exists()
    neighbors[0].held.append(0)
    completes(out, data)
    assert ids(address) == [CHUNK, 0]
