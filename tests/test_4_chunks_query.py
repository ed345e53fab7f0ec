"""Chunks Query: what a peer says that it holds, and how it asks others (SPEC.md, clauses CQ)."""

import time

import pytest

from checks import ids
from harness import FIVE_IDS as IDS, ask, chunks_query, connect, eventually, receive, silent, timely

# What a peer says.


@pytest.mark.spec("CQ-1", "WF-12")
def test_the_list_of_a_peer_that_holds_nothing_is_present_and_empty(start):
    address, _ = start()
    with connect(address) as sock:
        sock.sendall(bytes.fromhex("00 00 00 00 00 00 00 02 22 00"))
        answer = receive(sock)
    assert answer.WhichOneof("type") == "chunks_query" and not answer.chunks_query.chunk_ids


@pytest.mark.spec("CQ-1", "CQ-3")
def test_a_complete_peer_lists_every_chunk_and_leaves_out_those_that_the_asker_knows(start):
    address, _ = start(complete=True)
    eventually(lambda: len(ids(address)) == 5, what="the list of all chunks")
    with connect(address) as sock:
        everything = ids(sock)
        assert sorted(everything) == IDS
        for known in (0, 1, 4, 5, 6, 16_384, 2**63, 2**64 - 1):
            assert ids(sock, known) == everything[known:], known


@pytest.mark.spec("CQ-6")
@pytest.mark.takes(1)
def test_who_waits_for_news_that_do_not_come_is_answered_when_the_wait_is_over(start):
    address, _ = start(complete=True)
    eventually(lambda: len(ids(address)) == 5, what="the list of all chunks")
    with connect(address) as sock:
        for known, wait_ms, most in [(0, 2**32 - 1, 2.5), (5, 2**32 - 1, 2.5), (5, 200, 0.9), (5, 0, 0.9)]:
            took = []  # seconds; a busy machine may delay some answers

            def wait():
                began = time.monotonic()
                answer = ask(sock, chunks_query(known, wait_ms))
                took.append(time.monotonic() - began)
                return len(answer.chunks_query.chunk_ids)
            assert timely(wait, most) == 5 - known
            assert min(took) < most


# How a peer asks others.


@pytest.mark.spec("CQ-4", "WF-10")
@pytest.mark.fault(12)
def test_every_neighbor_is_asked_what_it_has_from_the_beginning_though_none_answers(start, fake_peer, data):
    neighbors = [fake_peer(data) for _ in range(3)]
    for neighbor in neighbors:
        neighbor.answers["chunks_query"] = silent
    start(*neighbors)
    for neighbor in neighbors:
        assert neighbor.wait_for("chunks_query").known == 0
        assert {name for _, name, _ in neighbor.requests} == {"chunks_query"}


@pytest.mark.spec("PL-4")
def test_a_peer_keeps_to_fifty_neighbors_however_many_there_are(start, fake_peer):
    neighbors = [fake_peer(b"") for _ in range(70)]
    for neighbor in neighbors:
        neighbor.answers["chunks_query"] = silent
    start(*neighbors)

    def open_connections():
        """The number of open connections of each neighbor that has any."""
        counts = [sum(sock.fileno() >= 0 for sock in list(neighbor.connections)) for neighbor in neighbors]
        return [count for count in counts if count]
    eventually(open_connections, what="a neighbor")
    tracker = start.tracker
    tracker.wait_for("peer_list", tracker.count("peer_list") + 2)  # two seconds to dial more neighbors
    counts = open_connections()
    assert len(counts) <= 50 and max(counts) <= 2
