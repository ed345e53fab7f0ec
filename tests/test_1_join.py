"""Join: who is listed, and what the one that joins is told (SPEC.md, clauses JN)."""

import os
import re
import socket
import types

import pytest

import messages_pb2 as pb
from harness import (CHUNK, ask, connect, content_id, describe, eventually, finished, is_refused, join, listed, live,
                     one_line, peer_command, peer_list, some_bytes, timely)


@pytest.fixture
def tracker(make_file, run_tracker):
    """The tracker under test, of a file of three chunks (`data`), with a lease of 10 s."""
    path, data = make_file(2 * CHUNK + 1000)
    program = run_tracker(path, extra=["--no-seed"])
    program.data = data
    return program


def outward_address():
    """An IPv4 address of this machine that is not loopback; None if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks which address would be used
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


# Who is listed.


@pytest.mark.spec("JN-1")
def test_everyone_who_joins_is_told_of_all_and_of_itself(tracker):
    for count in (1, 2, 3):
        answer = ask(tracker.port, join(f"127.0.0.1:{5000 + count}"))
        assert listed(answer) == [f"127.0.0.1:{5000 + n}" for n in range(1, count + 1)]


@pytest.mark.spec("JN-2", "FD-1", "FD-4")
def test_the_answer_carries_the_files_description_and_the_lease(tracker):
    answer = ask(tracker.port, join("127.0.0.1:5001")).peer_list
    expected = describe(tracker.data)
    assert (answer.file.size, answer.file.chunk_size) == (expected.size, expected.chunk_size)
    assert answer.file.digests == expected.digests
    assert answer.lease_ms == 10_000
    tracker.wait_for(content_id(expected).hex())


@pytest.mark.spec("JN-2")
def test_the_lease_is_the_one_that_the_tracker_was_started_with(make_file, run_tracker):
    path, _ = make_file(1)
    assert ask(run_tracker(path, expire=3, extra=["--no-seed"]).port, join("127.0.0.1:5001")).peer_list.lease_ms == 3000


@pytest.mark.spec("JN-3")
@pytest.mark.fault(17)
def test_a_peer_is_listed_where_it_called_from_whatever_ip_address_it_announced(tracker):
    for announced in ("10.9.9.9:5001", "0.0.0.0:5001", "255.255.255.255:5001", "[::1]:5001", "[2001:db8::9]:5001"):
        assert listed(ask(tracker.port, join(announced))) == ["127.0.0.1:5001"], announced


@pytest.mark.spec("JN-3")
@pytest.mark.fault(17)
def test_a_peer_that_calls_over_ipv6_is_listed_in_brackets(make_file, run_tracker):
    path, _ = make_file(1)
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = run_tracker(path, extra=["--no-seed"]).port
    assert listed(ask(f"[::1]:{port}", join("10.9.9.9:5001"))) == ["[::1]:5001"]
    assert listed(ask(f"127.0.0.1:{port}", join("[::1]:5001"))) == ["127.0.0.1:5001", "[::1]:5001"]


NO_ADDRESS = ["", "foo", ":", ":5001", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:70000",
              "127.0.0.1:-1", "127.0.0.1:+5001", "127.0.0.1:5001x", "127.0.0.1: 5001", " 127.0.0.1:5001", "127.0.0.1:5001\n",
              "127.0.0.1:５００１", "127.0.0.1:99999999999999999999", "localhost:5001", "example.org:5001", "1.2.3:5001",
              "999.1.1.1:5001", "127.0.0.1:5001:5002", "[::1]", "[::1]5001", "[::1:5001", "[foo]:5001", "[]:5001",
              "127.0.0.1\0:5001", "a" * 60_000 + ":5001"]


def refuses_what_is_no_address(port, request_for):
    """Check that a tracker refuses these requests, lists nothing and keeps the connection."""
    with connect(port) as sock:
        for announced in NO_ADDRESS:
            assert is_refused(ask(sock, request_for(announced)), pb.BAD_ADDRESS), announced[:100]
            assert live(sock) == [], announced[:100]


@pytest.mark.spec("JN-4")
@pytest.mark.fault(17)
def test_what_is_no_address_is_refused_nothing_is_listed_and_the_connection_kept(tracker):
    refuses_what_is_no_address(tracker.port, join)


@pytest.mark.spec("JN-4")
def test_the_lowest_and_the_highest_port_are_listed(tracker):
    for port in (1, 65535):
        assert f"127.0.0.1:{port}" in ask(tracker.port, join(f"127.0.0.1:{port}")).peer_list.addresses


@pytest.mark.spec("JN-5", "AP-3")
@pytest.mark.fault(16)
def test_joining_again_leaves_one_entry_with_a_new_lease_while_the_old_port_expires(make_file, run_tracker):
    path, _ = make_file(1)
    port = run_tracker(path, expire=1, extra=["--no-seed"]).port

    def be_back_on_another_port():
        ask(port, join("127.0.0.1:5001"))
        return listed(ask(port, join("127.0.0.1:5002")))
    assert timely(be_back_on_another_port, 1) == ["127.0.0.1:5001", "127.0.0.1:5002"]

    def only_the_new_one_is_left():
        answer = listed(ask(port, join("127.0.0.1:5002")))
        assert answer.count("127.0.0.1:5002") == 1
        return answer == ["127.0.0.1:5002"]
    eventually(only_the_new_one_is_left, what="the end of the lease of the old port")


# Across addresses.


@pytest.mark.spec("JN-6")
def test_an_asker_from_elsewhere_is_told_of_a_loopback_peer_where_it_reached_the_tracker(tracker):
    here = outward_address()
    if here is None:
        pytest.skip("this machine has loopback addresses only; the next test does without others")
    ask(("127.0.0.1", tracker.port), join("127.0.0.1:5001"))
    ask((here, tracker.port), join("127.0.0.1:5002"))
    assert listed(ask((here, tracker.port), join("127.0.0.1:5002"))) == sorted([f"{here}:5001", f"{here}:5002"])
    assert listed(ask(("127.0.0.1", tracker.port), join("127.0.0.1:5001"))) == sorted(["127.0.0.1:5001", f"{here}:5002"])


@pytest.mark.ours
@pytest.mark.spec("JN-6")
@pytest.mark.parametrize("asker, here, told", [
    ("127.0.0.1", "127.0.0.1", ["127.0.0.1:5001", "[::1]:5002", "198.51.100.7:5003", "[2001:db8::7]:5004"]),
    ("198.51.100.9", "203.0.113.1", ["203.0.113.1:5001", "203.0.113.1:5002", "198.51.100.7:5003", "[2001:db8::7]:5004"]),
    ("::ffff:198.51.100.9", "::ffff:203.0.113.1", ["203.0.113.1:5001", "203.0.113.1:5002", "198.51.100.7:5003", "[2001:db8::7]:5004"]),
    ("2001:db8::9", "2001:db8::1", ["[2001:db8::1]:5001", "[2001:db8::1]:5002", "198.51.100.7:5003", "[2001:db8::7]:5004"]),
])
def test_our_tracker_puts_the_address_that_the_asker_reached_in_place_of_loopback(asker, here, told):
    import peer
    import tracker
    sock = types.SimpleNamespace(getpeername=lambda: (asker, 40000), getsockname=lambda: (here, 8000))
    ours = tracker.Tracker(peer.Description("a", 0, CHUNK, b""), 10.0, None, lambda line: None)
    for address in [("127.0.0.1", 5001), ("::1", 5002), ("198.51.100.7", 5003), ("2001:db8::7", 5004)]:
        ours.swarm.renew(address)
    assert ours.addresses_for(sock) == told


# Bounds.


@pytest.mark.spec("JN-7")
@pytest.mark.fault(18)
def test_of_five_thousand_joins_from_one_address_a_thousand_are_listed(make_file, run_tracker):
    tracker = run_tracker(make_file(1)[0], expire=3600, extra=["--no-seed"])  # no lease runs out meanwhile
    with connect(tracker.port) as sock:
        answers = [ask(sock, join(f"127.0.0.1:{port}")) for port in range(1001, 6001)]
        taken = [port for port, answer in zip(range(1001, 6001), answers) if answer.WhichOneof("type") == "peer_list"]
        assert all(is_refused(answer, pb.FULL) for answer in answers if answer.WhichOneof("type") != "peer_list")
        addresses = ask(sock, join(f"127.0.0.1:{taken[-1]}")).peer_list.addresses
        assert len(taken) == 1000
        assert len(addresses) == len(set(addresses)) <= 1000 and {f"127.0.0.1:{port}" for port in taken} <= set(addresses)


@pytest.mark.spec("JN-7")
@pytest.mark.fault(18)
@pytest.mark.parametrize("bound", ["MAX_PEERS", "MAX_PEERS_PER_IP"])
def test_a_full_tracker_has_room_again_when_leases_have_run_out(make_file, run_patched, bound):
    path, _ = make_file(1)
    tracker = run_patched("tracker", f"tracker.{bound} = 3", [path, "--port", "0", "--no-seed", "--expire", "0.5"])
    port = int(tracker.wait_for(r"listening on port (\d+)$")[1])

    def four_joins():
        eventually(lambda: not ask(port, peer_list()).peer_list.addresses, what="the end of all leases")
        return [ask(port, join(f"127.0.0.1:{5001 + n}")) for n in range(4)]
    answers = timely(four_joins, 0.5)
    assert [len(listed(answer)) for answer in answers[:3]] == [1, 2, 3]
    assert is_refused(answers[3], pb.FULL)
    eventually(lambda: ask(port, join("127.0.0.1:5004")).WhichOneof("type") == "peer_list", what="room for another peer")


# The peer's side.


@pytest.fixture
def calling_back(make_file, fake_tracker, run_peer, tmp_path):
    """(announced address, what connecting to its port came to) of a peer under test, which the tracker calls before it answers Join."""
    _, data = make_file(1000)
    tracker, calls = fake_tracker(data), []

    def call_back_first(request, sock):
        try:
            connect(int(request.listening_addr.rpartition(":")[2])).close()
            calls.append("accepted")
        except (OSError, ValueError, OverflowError) as error:
            calls.append(error)
        return tracker.on_join(request, sock)
    tracker.answers["join"] = call_back_first
    run_peer(tracker.port, tmp_path / "out.bin")
    announced = tracker.wait_for("join").listening_addr
    return announced, eventually(lambda: calls, what="a call")[0]


@pytest.mark.spec("JN-4")
def test_a_peer_announces_an_address_by_the_rules(calling_back):
    assert re.fullmatch(r"(\d+\.\d+\.\d+\.\d+|\[[0-9a-f:.]+\]):[1-9]\d{0,4}", calling_back[0])


@pytest.mark.spec("JN-8")
def test_a_peer_accepts_connections_on_the_announced_port_before_it_joins(calling_back):
    assert calling_back[1] == "accepted"


def spoilt_description(**changes):
    file = describe(some_bytes(3 * CHUNK + 1000))
    for field, value in changes.items():
        setattr(file, field, value(file) if callable(value) else value)
    return file


@pytest.mark.fault(42)
@pytest.mark.spec("FD-3", "CL-13")
@pytest.mark.parametrize("changes", [
    {"digests": lambda file: file.digests[:-32]}, {"digests": lambda file: file.digests[:-1]}, {"digests": lambda file: file.digests + bytes(32)},
    {"size": 0}, {"size": 2**60}, {"size": 2**64 - 1}, {"size": 2**60, "chunk_size": 2**60, "digests": bytes(32)},
    {"chunk_size": 0}, {"chunk_size": 2**24 + 1, "digests": bytes(32)}, {"size": 16_385, "chunk_size": 1, "digests": bytes(32 * 16_385)},
], ids=["a_digest_less", "a_byte_less", "a_digest_more", "size_0", "size_2^60", "size_2^64-1", "one_chunk_of_2^60",
        "chunk_size_0", "chunk_size_over_16_mib", "16385_chunks"])
def test_a_description_that_does_not_agree_is_refused_and_nothing_reserved(fake_tracker, tmp_path, changes):
    tracker = fake_tracker(b"", file=spoilt_description(**changes))
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--leave")), 4)
    assert os.listdir(tmp_path) == []


@pytest.mark.fault(42)
@pytest.mark.spec("FD-3", "CL-13")
def test_an_answer_to_join_without_a_description_is_refused(fake_tracker, tmp_path):
    tracker = fake_tracker(b"")
    tracker.answers["join"] = tracker.answers["peer_list"]
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--leave")), 4)


@pytest.mark.spec("FD-4")
@pytest.mark.fault(43)
def test_a_peer_that_expects_another_file_ends_when_it_is_told_of_this_one(make_file, fake_tracker, tmp_path):
    """So it has taken the answer, with its own address in the list."""
    tracker = fake_tracker(make_file(1000)[1])
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--expect", "0" * 64)), 4)
    assert len(tracker.joined) == 1
