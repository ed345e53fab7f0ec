"""Join: who is listed, and what a peer that joins is told (SPEC.md, clauses JN)."""

import os
import re
import socket
import time
import types

import pytest

import messages_pb2 as pb
from checks import event_written, refuses_what_is_no_address, waits_idly
from harness import (CHUNK, SECONDS, Program, ask, ask_all, bad, connect, content_id, describe, eventually, finished, framed, is_refused, join, listed, live, one_line,
                     outward_address, peer_command, peer_list, spoilt_description, timely, tracker_command)


@pytest.fixture
def tracker(make_file, run_tracker):
    """The tracker under test, with a file of three chunks (`data`) and a lease of 10 s."""
    path, data = make_file(2 * CHUNK + 1000)
    program = run_tracker(path, extra=["--no-seed"])
    program.data = data
    return program


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
    tracker.wait_for("(?i)" + content_id(expected).hex())


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
    try:
        socket.create_connection(("::1", port), timeout=SECONDS).close()
    except OSError:
        pytest.skip("this tracker cannot be reached over IPv6, which is free")
    assert listed(ask(f"[::1]:{port}", join("10.9.9.9:5001"))) == ["[::1]:5001"]
    assert listed(ask(f"127.0.0.1:{port}", join("[::1]:5001"))) == ["127.0.0.1:5001", "[::1]:5001"]


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


@pytest.mark.spec("JN-5")
@pytest.mark.takes(2)
def test_each_join_begins_a_new_lease(make_file, run_tracker):
    """A lease of 1 s, and a Join every 0.4 s: a tracker that counts from the first one forgets the peer in between."""
    port = run_tracker(make_file(1)[0], expire=1, extra=["--no-seed"]).port
    for _ in range(4):
        sent = time.monotonic()
        ask(port, join("127.0.0.1:5001"))
        time.sleep(0.4)
        addresses = listed(ask(port, join("127.0.0.1:5002")))
        assert "127.0.0.1:5001" in addresses or time.monotonic() - sent >= 1


# Across addresses.


@pytest.mark.spec("JN-6")
@pytest.mark.fault(52)
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
@pytest.mark.fault(52)
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


@pytest.mark.ours
@pytest.mark.spec("JN-6")
@pytest.mark.fault(52)
@pytest.mark.parametrize("asker, here, told", [
    ("198.51.100.9", "198.51.100.1", ["198.51.100.1:5001"]),
    ("fe80::9%eth0", "fe80::1%eth0", ["[fe80::1]:5001", "[fe80::7]:5002"]),
    ("127.0.0.1", "127.0.0.1", ["10.1.1.1:5001", "[fe80::7]:5002"]),
])
def test_our_tracker_tells_nobody_of_a_network_that_the_asker_is_not_in(asker, here, told):
    """One peer, on the tracker's own machine, has joined at its address in another network, one at a link-local address."""
    import peer
    import tracker
    ours = tracker.Tracker(peer.Description("a", 0, CHUNK, b""), 10.0, None, lambda line: None)
    ours.addresses_for(types.SimpleNamespace(getpeername=lambda: ("10.1.1.1", 40000), getsockname=lambda: ("10.1.1.1", 8000)))
    for address in [("10.1.1.1", 5001), ("fe80::7", 5002)]:
        ours.swarm.renew(address)
    assert ours.addresses_for(types.SimpleNamespace(getpeername=lambda: (asker, 40000), getsockname=lambda: (here, 8000))) == told


# Limits.


@pytest.mark.spec("WF-10")
def test_a_client_that_does_not_read_its_answers_keeps_nobody_waiting(make_file, run_tracker):
    """Each answer has half a megabyte, because the file has many chunks; together they exceed the buffers between two sockets."""
    port = run_tracker(make_file(1 << 20)[0], expire=3600, extra=["--no-seed", "--chunk-size", "64"]).port
    with connect(port) as deaf, connect(port) as other:
        deaf.sendall(40 * framed(join("127.0.0.1:5001")))
        eventually(lambda: listed(ask(other, join("127.0.0.1:5002"))) == ["127.0.0.1:5001", "127.0.0.1:5002"], what="the first of the deaf one's requests")
        for _ in range(3):
            assert len(listed(ask(port, join("127.0.0.1:5002")))) == 2


@pytest.mark.spec("CL-19")
@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="only Linux tells for how long a thread has run")
@pytest.mark.takes(1)
def test_a_tracker_that_waits_does_not_compute(tracker):
    with connect(tracker.port) as sock:
        ask(sock, join("127.0.0.1:5001"))
        waits_idly(tracker)  # with a connection that says nothing, and a lease that runs


@pytest.mark.spec("JN-7")
@pytest.mark.fault(18)
def test_of_twelve_hundred_joins_from_one_address_a_thousand_are_listed(make_file, run_tracker):
    tracker, ports = run_tracker(make_file(1)[0], expire=3600, extra=["--no-seed"]), range(1001, 2201)  # no lease runs out meanwhile
    answers = ask_all(tracker.port, [join(f"127.0.0.1:{port}") for port in ports])
    taken = [port for port, answer in zip(ports, answers) if answer.WhichOneof("type") == "peer_list"]
    assert all(is_refused(answer, pb.FULL) for answer in answers if answer.WhichOneof("type") != "peer_list")
    assert len(taken) == 1000
    with connect(tracker.port) as sock:
        addresses = ask(sock, join(f"127.0.0.1:{taken[-1]}")).peer_list.addresses
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


@pytest.mark.spec("JN-7", "AP-3")
@pytest.mark.fault(18)
def test_peers_whose_lease_has_run_out_take_up_no_room(make_file, run_tracker):
    """Three times 400 from one address, each time after all leases have run out, so that there are never more than a thousand."""
    port = run_tracker(make_file(1)[0], expire=1, extra=["--no-seed"]).port
    for first in (1001, 1401, 1801):
        eventually(lambda: not live(port), what="the end of all leases")  # by a Join, because Peer List belongs to a later stage
        joins = [join(f"127.0.0.1:{number}") for number in (9, *range(first, first + 400))]  # live() joins with port 9, too
        eventually(lambda: all(answer.WhichOneof("type") == "peer_list" for answer in ask_all(port, joins)), what="room for 400 peers")


# The file's description.


@pytest.mark.spec("FD-2", "FD-1")
@pytest.mark.parametrize("size, asked, got", [(16_384 * 64, 64, 64), (16_384 * 64 + 1, 64, 128), (100_000, 1, 8)],
                         ids=["as_many_as_may_be", "one_byte_more", "doubled_three_times"])
def test_the_chunk_size_is_doubled_until_the_file_has_at_most_16384_chunks(make_file, run_tracker, size, asked, got):
    path, data = make_file(size)
    file = ask(run_tracker(path, extra=["--no-seed", "--chunk-size", str(asked)]).port, join("127.0.0.1:5001")).peer_list.file
    assert (file.size, file.chunk_size, len(file.digests)) == (size, got, -(-size // got) * 32)
    assert file.digests == describe(data, got).digests


@pytest.mark.spec("FD-5", "CL-2")
@pytest.mark.fault(41)
def test_a_file_whose_name_has_control_characters_is_shown_with_these_escaped(make_file, run_tracker):
    path, data = make_file(10, name="\x1b[31mred\a\nnext 'quoted'")
    tracker = run_tracker(path, extra=["--no-seed"])
    tracker.wait_for("(?i)" + content_id(describe(data)).hex())
    assert not set(tracker.output) & set("\x1b\a"), ascii(tracker.output)
    assert not re.search("^next", tracker.output, re.M), "its name goes on in a line of its own"


# The peer's side.


@pytest.fixture
def calling_back(make_file, fake_tracker, run_peer, tmp_path):
    """(announced address, result of connecting to its port) of a peer under test; the tracker connects before it answers Join."""
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


@pytest.mark.spec("CL-10")
@pytest.mark.takes(1)
def test_a_peer_that_is_refused_tries_again(make_file, fake_tracker, run_peer, tmp_path):
    tracker = fake_tracker(make_file(1000)[1])
    answers = [bad(code) for code in (pb.FULL, pb.UNSPECIFIED, 77)]  # 77 is a code of a later version
    tracker.answers["join"] = lambda request, sock: answers.pop() if answers else tracker.on_join(request, sock)
    run_peer(tracker.port, tmp_path / "out.bin")
    tracker.joiner(1)
    assert tracker.count("join") == 4
    times = tracker.times("join")
    assert times[3] - times[2] > times[1] - times[0], "the pauses grow"


@pytest.mark.fault(42)
@pytest.mark.spec("FD-3", "CL-13")
@pytest.mark.parametrize("changes", [
    {"digests": lambda file: file.digests[:-32]}, {"digests": lambda file: file.digests[:-1]}, {"digests": lambda file: file.digests + bytes(32)},
    {"size": 0}, {"size": 2**60}, {"size": 2**64 - 1}, {"size": 2**60, "chunk_size": 2**60, "digests": bytes(32)},
    {"chunk_size": 0}, {"size": 4, "chunk_size": 0}, {"chunk_size": 2**24 + 1, "digests": bytes(32)}, {"size": 16_385, "chunk_size": 1, "digests": bytes(32 * 16_385)},
], ids=["a_digest_less", "a_byte_less", "a_digest_more", "size_0", "size_2^60", "size_2^64-1", "one_chunk_of_2^60",
        "chunk_size_0", "chunk_size_0_and_digests_for_1", "chunk_size_over_16_mib", "16385_chunks"])
def test_a_description_that_does_not_agree_is_refused_and_nothing_reserved(fake_tracker, tmp_path, changes):
    tracker = fake_tracker(b"", file=spoilt_description(**changes))
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--leave")), 4)
    assert not any(path.stat().st_size for path in tmp_path.iterdir())  # an empty OUT.part is allowed


@pytest.mark.fault(42)
@pytest.mark.spec("FD-3", "CL-15")
@pytest.mark.parametrize("size, chunk_size", [(16_384, 1), (2**24, 2**24), (0, CHUNK)], ids=["16384_chunks_of_a_byte", "one_chunk_of_16_mib", "no_bytes"])
def test_a_description_that_goes_up_to_the_bounds_is_taken(make_file, fake_tracker, run_peer, tmp_path, size, chunk_size):
    """It is consistent and within all bounds, so there is no reason to refuse it."""
    tracker = fake_tracker(make_file(bytes(size))[1], chunk_size=chunk_size)
    run_peer(tracker.port, tmp_path / "out.bin", extra=["--events", str(tmp_path / "peer.events")])
    event_written(tmp_path / "peer.events", "joined")


@pytest.mark.fault(42)
@pytest.mark.spec("FD-3", "CL-13")
def test_an_answer_to_join_without_a_description_is_refused(fake_tracker, tmp_path):
    tracker = fake_tracker(b"")
    tracker.answers["join"] = tracker.answers["peer_list"]
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--leave")), 4)


@pytest.mark.spec("FD-4")
@pytest.mark.fault(43)
def test_a_peer_that_expects_another_file_ends_when_it_is_told_of_this_one(make_file, fake_tracker, tmp_path):
    """So it has accepted the answer, with its own address in the list."""
    tracker = fake_tracker(make_file(1000)[1])
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--expect", "0" * 64)), 4)
    assert len(tracker.joined) == 1


# Events and output.


@pytest.mark.spec("CL-15")
def test_a_tracker_writes_who_has_joined(make_file, run_tracker, tmp_path):
    events = tmp_path / "tracker.events"
    tracker = run_tracker(make_file(1)[0], extra=["--no-seed", "--events", str(events)])
    ask(tracker.port, join("127.0.0.1:5001"))
    event_written(events, "joined", peer="127.0.0.1:5001")
    assert event_written(events, "start")["port"] == tracker.port


@pytest.mark.spec("CL-15")
def test_a_peer_writes_that_it_has_joined_and_where_it_listens(make_file, fake_tracker, run_peer, tmp_path):
    tracker = fake_tracker(make_file(1)[1])
    run_peer(tracker.port, tmp_path / "out.bin", extra=["--events", str(tmp_path / "peer.events")])
    event_written(tmp_path / "peer.events", "joined", listening=tracker.joiner())


@pytest.mark.spec("CL-18")
def test_a_quiet_tracker_says_nothing_of_who_joins(make_file, ending, tmp_path):
    events = tmp_path / "tracker.events"
    tracker = ending(Program(tracker_command(make_file(1)[0], "--no-seed", "--quiet", "--events", events), "the tracker under test"))
    port = event_written(events, "start")["port"]
    ask(port, join("127.0.0.1:5001"))
    event_written(events, "joined")
    ask(port, join("127.0.0.1:5002"))  # anything said about the first one has been printed by now
    tracker.stop()                     # and read
    said = tracker.output or "nothing"
    assert said == "nothing"
