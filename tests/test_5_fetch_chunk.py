"""Fetch Chunk: what a peer answers, and how it asks (SPEC.md, clauses FC)."""

import pytest

from harness import CHUNK, ask, connect, fetch_chunk, receive_body, chunks_query, split, eventually
import messages_pb2 as pb

SIZE = 2 * CHUNK + 1000  # three chunks, the last one short


@pytest.fixture
def seeding(make_file, fake_tracker, run_peer, tmp_path):
    """(address of a peer under test that is complete, the file's bytes)."""
    _, data = make_file(SIZE)
    out = tmp_path / "out.bin"
    out.write_bytes(data)
    tracker = fake_tracker(data)
    run_peer(tracker.port, out)
    address = tracker.joiner()
    eventually(lambda: len(ask(address, chunks_query()).chunks_query.chunk_ids) == 3, what="the peer's list of all chunks")
    return address, data


@pytest.mark.spec("FC-1", "FC-2", "FC-3", "WF-12")
@pytest.mark.parametrize("index, body", [(0, "2a 00"), (1, "2a 04 08 80 80 10"), (2, "2a 04 08 80 80 20")],
                         ids=["first_chunk", "second_chunk", "last_chunk_is_short"])
def test_every_chunk_is_answered_with_exactly_its_bytes(seeding, index, body):
    address, data = seeding
    request = bytes.fromhex(body)
    with connect(address) as sock:
        sock.sendall(len(request).to_bytes(8, "big") + request)
        answer = pb.Response.FromString(receive_body(sock))
    assert answer.WhichOneof("type") == "chunk"
    assert answer.chunk == split(data)[index]


@pytest.mark.spec("FC-4")
@pytest.mark.fault(9)
@pytest.mark.parametrize("chunk_id", [1, CHUNK - 1, 3 * CHUNK, SIZE, 2**63, 2**64 - 1])
def test_an_id_that_is_no_chunks_offset_is_refused_and_the_connection_kept(seeding, chunk_id):
    address, data = seeding
    with connect(address) as sock:
        answer = ask(sock, fetch_chunk(chunk_id))
        assert answer.bad.code == pb.NO_SUCH_CHUNK and answer.bad.reason
        assert ask(sock, fetch_chunk(0)).chunk == data[:CHUNK]
