"""Chunks Query: what a peer says that it holds, and how it takes what others say (SPEC.md, clauses CQ)."""

import random

import pytest

import messages_pb2 as pb
from harness import (CHUNK, ask, chunks_query, connect, eventually, fetch_chunk, is_refused, receive_body, silent, split)

SIZE = 4 * CHUNK + 1000  # five chunks, the last one short
IDS = [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK]


@pytest.fixture
def data(make_file):
    return make_file(SIZE)[1]


@pytest.fixture
def start(data, fake_tracker, run_peer, tmp_path):
    """start(neighbors): (the address of a peer under test that was told of these, OUT)."""
    def run(*neighbors, complete=False):
        if complete:
            (tmp_path / "out.bin").write_bytes(data)
        tracker = fake_tracker(data, [neighbor.address for neighbor in neighbors])
        run_peer(tracker.port, tmp_path / "out.bin")
        return tracker.joiner(), tmp_path / "out.bin"
    return run


def ids(where, known=0):
    """The ids that a peer lists."""
    answer = ask(where, chunks_query(known))
    assert answer.WhichOneof("type") == "chunks_query"
    return list(answer.chunks_query.chunk_ids)


def chunk_list(*indexes):
    """The answer to Chunks Query that lists these chunks."""
    return pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[index * CHUNK for index in indexes]))


# What a peer says.


@pytest.mark.spec("CQ-1", "WF-12")
def test_the_list_of_a_peer_that_holds_nothing_is_present_and_empty(start):
    address, _ = start()
    with connect(address) as sock:
        sock.sendall(bytes.fromhex("00 00 00 00 00 00 00 02 22 00"))
        assert receive_body(sock) == bytes.fromhex("22 00")


@pytest.mark.spec("CQ-1", "CQ-3")
def test_a_complete_peer_lists_every_chunk_and_leaves_out_those_that_the_asker_knows(start):
    address, _ = start(complete=True)
    eventually(lambda: len(ids(address)) == 5, what="the list of all chunks")
    with connect(address) as sock:
        everything = ids(sock)
        assert sorted(everything) == IDS
        for known in (0, 1, 4, 5, 6, 16_384, 2**63, 2**64 - 1):
            assert ids(sock, known) == everything[known:], known


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


# What a peer makes of what others say.


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
    """The new program lists chunk 0 first. Its predecessor had not held it, and ended in the middle of an answer."""
    neighbor = fake_peer(data, held=[1])

    def end_once(request, sock):
        if request.chunk_id == 2 * CHUNK and neighbor.held == [1, 2]:
            neighbor.held = [0, 1, 2]
            return None  # closed; the next connection is to its successor
        return neighbor.on_fetch_chunk(request, sock)
    neighbor.answers["fetch_chunk"] = end_once
    address, _ = start(neighbor)
    eventually(lambda: ids(address) == [CHUNK], what="chunk 1")
    neighbor.held = [1, 2]
    eventually(lambda: sorted(ids(address)) == [0, CHUNK, 2 * CHUNK], seconds=4, what="chunk 0 of the successor")


@pytest.mark.spec("CQ-4", "FC-8")
def test_what_a_neighbor_that_was_started_anew_lists_no_longer_is_not_asked_for(start, fake_peer, data):
    """Its predecessor had listed chunks 1 and 2, was busy, and ended. The new program is slow to list chunk 0."""
    neighbor = fake_peer(data, held=[1, 2])
    heard_anew = []  # how many chunks had been asked for when the new list was told

    def end_once(request, sock):
        if neighbor.held == [1, 2]:
            neighbor.held = []
            return None
        return pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="later"))

    def on_query(request, sock):
        if neighbor.held == []:
            heard_anew.append(neighbor.count("fetch_chunk"))
            neighbor.held = [0] if len(heard_anew) > 2 else []
        return neighbor.on_chunks_query(request, sock)
    neighbor.answers.update(fetch_chunk=end_once, chunks_query=on_query)
    start(neighbor)
    eventually(lambda: neighbor.fetched()[-3:] == [0, 0, 0], what="requests for chunk 0")
    assert set(neighbor.fetched()[heard_anew[0] + 1:]) == {0}  # one may have been under way


@pytest.mark.spec("CQ-4", "SW-8")
def test_what_a_neighbor_tells_is_added_to_what_it_told_before(start, fake_peer, data):
    """Chunk 0 is given only after a further list, from which it is left out."""
    neighbor = fake_peer(data, held=[0])

    def later(request, sock):
        if neighbor.count("chunks_query") < 3:
            return pb.Response(bad=pb.Response.Bad(code=pb.BUSY, reason="later"))
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
    assert sorted(neighbor.fetched()) == IDS


@pytest.mark.spec("CQ-5", "FC-8")
def test_ids_that_are_no_offset_of_a_chunk_are_ignored(start, fake_peer, data):
    neighbor = fake_peer(data)
    strange = [1, CHUNK - 1, CHUNK + 1, SIZE, 5 * CHUNK, 16_384 * CHUNK, 2**63, 2**64 - CHUNK, 2**64 - 1]
    neighbor.answers["chunks_query"] = lambda request, sock: pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[*strange, *IDS, *strange]))
    _, out = start(neighbor)
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert set(neighbor.fetched()) == set(IDS)


@pytest.mark.spec("CQ-5", "FC-8")
def test_an_id_in_the_middle_of_a_chunk_does_not_stand_for_that_chunk(start, fake_peer, data):
    neighbor = fake_peer(data)
    listed = [0, CHUNK + 1, 3 * CHUNK - 1, 4 * CHUNK + 999]
    neighbor.answers["chunks_query"] = lambda request, sock: pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=listed[request.known:]))
    address, _ = start(neighbor)
    eventually(lambda: 0 in ids(address), what="chunk 0")
    neighbor.wait_for("chunks_query", neighbor.count("chunks_query") + 2)  # by now it has asked for all that it believes to be there
    assert neighbor.fetched() == [0]


@pytest.mark.spec("CQ-4", "CQ-5")
def test_a_list_in_which_ids_are_repeated_is_understood(start, fake_peer, data):
    neighbor = fake_peer(data)
    neighbor.answers["chunks_query"] = lambda request, sock: chunk_list(*[index for index in range(5) for _ in range(3)])
    _, out = start(neighbor)
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert sorted(neighbor.fetched()) == IDS
