"""The wire: frames, answers to nonsense, how long a connection lasts (SPEC.md, clauses WF).

Most of these tests are in wire_tests.py. Here a tracker gets only requests that it refuses; test_3_wire.py and test_5_wire.py
run the same tests with the requests that a tracker and a peer serve.
"""

import time

import pytest

import messages_pb2 as pb
from harness import ask, connect, eventually, framed, is_closed, patience
from wire_tests import *  # noqa: F403  (the tests)
from wire_tests import FOREIGN, Server, a_request_has_ten_seconds


@pytest.fixture
def server(make_file, run_tracker):
    """A tracker that gets only requests it refuses: framing can be right before any request is understood."""
    program = run_tracker(make_file(1000)[0], expire=3600, extra=["--no-seed"])
    server = Server(program, ("127.0.0.1", program.port), [FOREIGN[0], pb.Request(), FOREIGN[1]], ["bad WRONG_ROLE", "bad NO_TYPE", "bad WRONG_ROLE"], FOREIGN)
    yield server
    server.stop()


# Limits of time and number.


@pytest.fixture
def impatient_tracker(make_file, run_patched):
    """impatient_tracker(changes): the port of our tracker with other constants, not seeding."""
    def run(changes):
        path, _ = make_file(1000)
        return int(run_patched("tracker", changes, [path, "--port", "0", "--no-seed"]).wait_for(r"listening on port (\d+)$")[1])
    return run


@pytest.mark.spec("WF-9")
@pytest.mark.fault(5)
@pytest.mark.parametrize("at_once", [b"\0", bytes.fromhex("00 00 00 00 00 00 40 00")], ids=["in_the_length", "in_the_message"])
def test_a_request_that_dribbles_is_closed_when_the_time_for_a_whole_frame_is_over(impatient_tracker, at_once):
    with connect(impatient_tracker("peer.FRAME_SECONDS = 0.3")) as sock:
        began = time.monotonic()
        sock.sendall(at_once)
        while not is_closed(sock, 0.05):
            assert time.monotonic() - began < patience(3), "a byte every 50 ms keeps the connection open"
            try:
                sock.sendall(b"\0")
            except ConnectionError:
                break
        assert time.monotonic() - began >= 0.3


@pytest.mark.slow
@pytest.mark.takes(11)
@pytest.mark.spec("WF-9")
@pytest.mark.fault(5)
def test_a_request_has_ten_seconds_from_its_first_byte_and_no_more(server):
    a_request_has_ten_seconds(server)


@pytest.mark.spec("WF-9")
def test_a_request_that_stops_in_the_middle_is_closed_when_its_time_is_over(impatient_tracker):
    port = impatient_tracker("peer.FRAME_SECONDS = 0.3")
    with connect(port) as idle, connect(port) as sock:
        sock.sendall(framed(FOREIGN[0])[:9])
        assert is_closed(sock, 3)
        assert not is_closed(idle, 0.01)  # its time runs from its first byte


@pytest.mark.spec("WF-10")
def test_an_idle_connection_is_closed_in_the_end(impatient_tracker):
    port = impatient_tracker("peer.IDLE_SECONDS = 0.3")

    def served():
        """A connection on which a request was answered; None if it was closed first, because the request came late."""
        sock = connect(port)
        try:
            ask(sock, FOREIGN[0])
            return sock
        except (EOFError, ConnectionError):
            sock.close()
    with connect(port) as silent, eventually(served, what="an answer") as sock:
        assert is_closed(silent, 3) and is_closed(sock, 3)


TELLS_WHEN_IT_WAITS = """
read_frame = peer.read_frame
def tell_and_read(*arguments):
    print("waits", flush=True)
    return read_frame(*arguments)
peer.read_frame = tell_and_read
"""


@pytest.mark.spec("WF-13")
def test_a_full_server_closes_the_connection_that_has_waited_longest(make_file, run_patched):
    program = run_patched("tracker", "peer.MAX_CONNECTIONS = 4" + TELLS_WHEN_IT_WAITS, [make_file(1000)[0], "--port", "0", "--no-seed"])
    port = int(program.wait_for(r"listening on port (\d+)$")[1])
    crowd = [connect(port) for _ in range(4)]
    try:
        for count, sock in enumerate([*crowd, crowd[0]], start=1):  # the first asks again, so the second has waited longest
            ask(sock, FOREIGN[0])
            eventually(lambda: program.output.count("waits") == 4 + count, what="the server's wait for its next request")
        with connect(port) as another:
            assert ask(another, FOREIGN[0]).WhichOneof("type") == "bad"
            assert is_closed(crowd[1], 3)
            for sock in (crowd[0], crowd[2], crowd[3], another):
                assert ask(sock, FOREIGN[0]).WhichOneof("type") == "bad"
    finally:
        for sock in crowd:
            sock.close()
