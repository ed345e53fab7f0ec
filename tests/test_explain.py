"""lab/explain.py: what it says of good bytes and of wrong ones, of captures and of live traffic."""

import pathlib
import random
import sys

import pytest

import messages_pb2 as pb
from harness import CHUNK, ROOT, active_proof, chunks_query, describe, fetch_chunk, framed, join, peer_list, some_bytes

sys.path.insert(0, str(pathlib.Path(ROOT, "lab")))
import explain  # noqa: E402  (after the path)

ADDRESS = "127.0.0.1:5000"
REQUESTS = [join(ADDRESS), active_proof(ADDRESS), active_proof(ADDRESS, bytes(32)), peer_list(), chunks_query(), chunks_query(3), fetch_chunk(0), fetch_chunk(CHUNK, busy_ok=True)]
RESPONSES = [
    pb.Response(ok=pb.Response.Ok()),
    pb.Response(bad=pb.Response.Bad(code=pb.NOT_HELD, reason="expected a chunk that is held")),
    pb.Response(peer_list=pb.Response.PeerList(addresses=[ADDRESS, "[::1]:6000"], file=describe(some_bytes(CHUNK + 1), CHUNK, name="a"), lease_ms=10_000)),
    pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=[0, CHUNK, 2 * CHUNK])),
    pb.Response(chunk=b"abc"),
]
FRAMES = [(framed(message), "request") for message in REQUESTS] + [(framed(message), "response") for message in RESPONSES]


def dump(frame, kind="request", **options):
    return "\n".join(explain.render(frame, kind, **options))


@pytest.mark.parametrize("frame, kind", FRAMES)
def test_the_runs_of_a_frame_are_in_order_and_without_a_gap_and_none_is_wrong(frame, kind):
    runs = explain.fields(frame, kind)
    assert [start for start, _, _ in runs] == [0] + [end for _, end, _ in runs[:-1]] and runs[-1][1] == len(frame)
    assert not [text for _, _, text in runs if "!!" in text]


def test_nothing_that_is_read_raises_and_every_byte_is_told_of():
    chance = random.Random(1)
    for _ in range(5000):
        frame, kind = chance.choice(FRAMES)
        frame = bytearray(frame[:chance.randrange(len(frame) + 1)])
        for _ in range(chance.randrange(4)):
            if frame:
                frame[chance.randrange(len(frame))] = chance.randrange(256)
        runs = explain.fields(frame, kind)
        assert [start for start, _, _ in runs] == ([0] + [end for _, end, _ in runs[:-1]] if runs else []) and (runs[-1][1] if runs else 0) == len(frame), frame.hex()
        assert max(map(len, explain.render(frame, kind)), default=0) <= 110
        assert explain.headline(frame, kind)
        explain.difference(frame, FRAMES[0][0], kind)
