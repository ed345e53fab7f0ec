"""The wire at a tracker that answers its three requests: the tests of stage 0 once more, and nonsense (SPEC.md, clauses WF)."""

import pytest

import messages_pb2 as pb
from harness import active_proof, ask, connect, framed, join, peer_list, receive
from wire_tests import *  # noqa: F403  (the tests)
from wire_tests import FOREIGN, NONSENSE, Server, nonsense_is_closed_or_bad, outcome

REQUESTS = [peer_list(), join("127.0.0.1:5000"), active_proof("127.0.0.1:5000"), peer_list()]


@pytest.fixture
def server(make_file, run_tracker):
    """A tracker, which seeds its file."""
    program = run_tracker(make_file(1000)[0])
    server = Server(program, ("127.0.0.1", program.port), REQUESTS, ["peer_list", "peer_list", "ok", "peer_list"], FOREIGN)
    yield server
    server.stop()


@pytest.mark.spec("WF-12")
def test_a_request_whose_content_is_all_default_is_told_by_its_presence(server):
    """`1a 00` is Peer List; `0a 00` is a Join of no address, not a request of no type."""
    with connect(server.address) as sock:
        for body, kind in {"0a 00": "bad", "12 00": "bad", "1a 00": "peer_list", "22 00": "bad", "2a 00": "bad"}.items():
            sock.sendall(framed(bytes.fromhex(body)))
            answer = receive(sock)
            assert answer.WhichOneof("type") == kind, body
            assert answer.bad.code != pb.NO_TYPE, body


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6, 7)
def test_nonsense_is_closed_or_bad_and_the_next_good_request_is_answered(server):
    nonsense_is_closed_or_bad(server)


@pytest.mark.spec("WF-6", "WF-10")
@pytest.mark.fault(6)
def test_text_that_is_not_utf8_is_closed_also_by_protobuf_without_its_c_part(make_file, run_tracker, monkeypatch):
    """That one raises UnicodeDecodeError instead of the usual DecodeError. It does not affect programs in other languages."""
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    path, _ = make_file(1000)
    program = run_tracker(path)
    with connect(program.port) as sock:
        assert outcome(sock, NONSENSE["text that is not UTF-8"]) in ("bad", "closed")
    assert ask(program.port, peer_list()).WhichOneof("type") == "peer_list"
    program.stop()
    assert "Traceback" not in program.output, program.output
