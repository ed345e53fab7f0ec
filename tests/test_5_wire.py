"""The wire at a peer that holds its whole file: the tests of stage 0 once more, and nonsense (SPEC.md, clauses WF)."""

import pytest

from harness import CHUNK, active_proof, ask, chunks_query, eventually, fetch_chunk, join, peer_list
from wire_tests import *  # noqa: F403  (the tests)
from wire_tests import Server, a_request_has_ten_seconds, nonsense_is_closed_or_bad

FOREIGN = [join("127.0.0.1:5000"), active_proof("127.0.0.1:5000"), peer_list()]


@pytest.fixture
def server(make_file, fake_tracker, run_peer, tmp_path):
    """A peer whose OUT is complete."""
    _, data = make_file(CHUNK + 1000)
    (tmp_path / "out.bin").write_bytes(data)
    tracker = fake_tracker(data)
    program = run_peer(tracker.port, tmp_path / "out.bin")
    address = tracker.joiner()
    eventually(lambda: len(ask(address, chunks_query()).chunks_query.chunk_ids) == 2, what="the peer's list of all chunks")
    server = Server(program, address, [chunks_query(), fetch_chunk(0)], ["chunks_query", "chunk"], FOREIGN)
    yield server
    server.stop()


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6, 7)
def test_nonsense_is_closed_or_bad_and_the_next_good_request_is_answered(server):
    nonsense_is_closed_or_bad(server)


@pytest.mark.slow
@pytest.mark.takes(11)
@pytest.mark.spec("WF-9")
@pytest.mark.fault(5)
def test_a_request_has_ten_seconds_from_its_first_byte_and_no_more(server):
    a_request_has_ten_seconds(server)
