"""The wire at a peer that holds its whole file: the tests of stage 0 once more, and nonsense (SPEC.md, clauses WF)."""

import pytest

from harness import CHUNK, active_proof, ask, chunks_query, eventually, fetch_chunk, join, peer_list
from test_0_wire import Server
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
from test_3_wire import test_nonsense_is_closed_or_bad_and_the_next_good_request_is_answered  # noqa: F401

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
