"""The wire at a tracker that answers its three requests: the tests of stage 0 once more, and nonsense (SPEC.md, clauses WF)."""

import pytest

import messages_pb2 as pb
from harness import active_proof, ask, connect, framed, join, peer_list, receive, some_bytes
from test_0_wire import FOREIGN, Server, outcome
from test_0_wire import (  # noqa: F401  (tests, for the fixture below)
    test_the_length_of_an_answer_does_not_count_its_own_eight_bytes,
    test_a_frame_that_comes_byte_by_byte_is_answered,
    test_a_frame_that_pauses_in_the_middle_is_answered,
    test_two_frames_in_one_segment_are_both_answered,
    test_many_requests_on_one_connection_are_answered_in_their_order,
    test_a_client_may_use_each_connection_for_one_request,
    test_a_connection_that_ends_at_any_byte_of_a_frame_ends_nothing_else,
    test_a_connection_whose_end_is_in_the_middle_of_a_frame_is_closed,
    test_clients_that_say_nothing_or_half_a_frame_keep_nobody_waiting,
    test_a_request_that_announces_too_much_is_closed_at_once_and_takes_no_memory,
    test_a_request_of_65536_bytes_is_still_answered,
    test_bytes_that_are_no_message_end_that_connection_and_no_other,
    test_a_request_without_a_known_type_is_answered_bad_and_the_connection_kept,
    test_a_request_for_the_other_role_is_answered_bad_and_the_connection_kept,
    test_unknown_fields_of_a_request_are_ignored,
    test_five_hundred_random_frames_are_closed_or_bad)

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


NONSENSE = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": bytes.fromhex("16 03 01 00 c8 01 00 00 c4 03 03") + some_bytes(194),
    "random bytes": some_bytes(4000, seed=6),
    "a frame of groups 10,000 deep": framed(b"\x0b" * 10_000 + b"\x0c" * 10_000),
    "a frame of messages 1,000 deep": framed(b"".join(b"\x0a" + bytes([n & 0x7F | 0x80, n >> 7]) for n in range(2997, -1, -3))),
    "text that is not UTF-8": framed(bytes.fromhex("0a 04 0a 02 ff fe")),
    "an unknown field 20,000 times": framed(bytes.fromhex("98 06 01") * 20_000),
    "a list of 60,000 numbers": framed(bytes.fromhex("9a 06 e0 d4 03") + b"\x01" * 60_000),
}


@pytest.mark.spec("WF-6", "WF-7", "WF-10")
@pytest.mark.fault(6, 7)
def test_nonsense_is_closed_or_bad_and_the_next_good_request_is_answered(server):
    for name, data in NONSENSE.items():
        with connect(server.address) as sock:
            assert outcome(sock, data) in ("bad", "closed"), name
        assert server.serves(), name


@pytest.mark.spec("WF-6", "WF-10")
@pytest.mark.fault(6)
def test_text_that_is_not_utf8_is_closed_also_by_protobuf_without_its_c_part(make_file, run_tracker, monkeypatch):
    """That one says UnicodeDecodeError where the usual one says DecodeError. Programs in other languages do not mind."""
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    path, _ = make_file(1000)
    program = run_tracker(path)
    with connect(program.port) as sock:
        assert outcome(sock, NONSENSE["text that is not UTF-8"]) in ("bad", "closed")
    assert ask(program.port, peer_list()).WhichOneof("type") == "peer_list"
    program.stop()
    assert "Traceback" not in program.output, program.output
