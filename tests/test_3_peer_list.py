"""Peer List: what a tracker tells, and what a peer does with it (SPEC.md, clauses PL)."""

import subprocess
import sys
import time

import pytest

from harness import (CHUNK, ask, chunks_query, connect, eventually, join, listed, peer_list, receive_body)


# What a tracker tells.


@pytest.mark.spec("PL-1")
def test_the_list_of_no_peers_is_present_and_empty(make_file, run_tracker):
    path, _ = make_file(1)
    with connect(run_tracker(path, extra=["--no-seed"]).port) as sock:
        sock.sendall(bytes.fromhex("00 00 00 00 00 00 00 02 1a 00"))
        assert receive_body(sock) == bytes.fromhex("1a 00")


@pytest.mark.spec("PL-1", "PL-2")
def test_everyone_is_told_of_all_live_peers_and_nobody_is_listed_by_asking(make_file, run_tracker):
    path, _ = make_file(1)
    port = run_tracker(path).port
    assert listed(ask(port, peer_list())) == []
    for count in (1, 2, 3):
        ask(port, join(f"127.0.0.1:{5000 + count}"))
        with connect(port) as stranger:
            answer = ask(stranger, peer_list())
            own = f"127.0.0.1:{stranger.getsockname()[1]}"
        assert listed(answer) == [f"127.0.0.1:{5000 + n}" for n in range(1, count + 1)]
        assert own not in answer.peer_list.addresses


@pytest.mark.spec("PL-2", "AP-3")
def test_a_lease_runs_out_however_often_its_machine_asks_for_the_list(make_file, run_tracker):
    path, _ = make_file(1)
    port = run_tracker(path, expire=1).port
    assert listed(ask(port, join("127.0.0.1:5001"))) == ["127.0.0.1:5001"]
    eventually(lambda: listed(ask(port, peer_list())) == [], what="the end of a lease that only lists were asked for in")


# What a peer does with it.


@pytest.fixture
def leeching(make_file, fake_tracker, run_peer, tmp_path):
    """leeching(peers): (fake tracker that lists these, OUT, the bytes of the file) for a peer under test that has none.

    `more(address)` gives what the tracker lists besides, when it knows the address of the peer under test.
    """
    def run(peers=(), size=CHUNK, more=lambda address: []):
        _, data = make_file(size)
        tracker = fake_tracker(data, peers)

        def on_join(request, sock):
            tracker.peers += more(f"127.0.0.1:{request.listening_addr.rpartition(':')[2]}")
            return tracker.on_join(request, sock)
        tracker.answers["join"] = on_join
        run_peer(tracker.port, tmp_path / "out.bin")
        return tracker, tmp_path / "out.bin", data
    return run


def connections_to(port):
    """The connections of this machine to one of its own ports, as (local, remote), also those that have ended lately."""
    if sys.platform != "linux":
        rows = [line.split() for line in subprocess.run(["netstat", "-an", "-p", "tcp"], capture_output=True, text=True).stdout.splitlines()]
        return {(row[3], row[4]) for row in rows if len(row) > 5 and row[4].endswith(f".{port}")}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            rows = [line.split() for line in lines]
        found |= {(row[1], row[2]) for row in rows if row[2].endswith(f":{port:04X}")}
    return found


@pytest.mark.spec("PL-3")
@pytest.mark.fault(19)
def test_a_peer_never_connects_to_itself(leeching):
    earlier = []  # connections to whoever had this port before

    def more(address):
        earlier.append(connections_to(int(address.rpartition(":")[2])))
        return [address, address.replace("127.0.0.1", "127.0.0.2"), address.replace("127.0.0.1", "[::1]")]
    tracker, _, _ = leeching(more=more)
    port = int(tracker.joiner().rpartition(":")[2])
    tracker.wait_for("peer_list")  # a second later: whomever it was told of, it has dialled
    assert connections_to(port) <= earlier[0]
    connect(port).close()
    assert not connections_to(port) <= earlier[0]  # it would have been seen


@pytest.mark.spec("PL-4")
def test_a_peer_skips_what_is_no_address_and_looks_no_name_up(leeching, fake_peer, make_file):
    neighbor, named = fake_peer(make_file(CHUNK)[1]), fake_peer(b"")
    junk = ["", "foo", ":", ":1", "1.2.3.4", "127.0.0.1:0", "127.0.0.1:70000", "[::1]", "999.1.1.1:80", "127.0.0.1:x",
            "127.0.0.1\0:80", "\x1b[2J:80", f"localhost:{named.port}", "a" * 100_000]
    tracker, out, data = leeching([*junk, neighbor.address, *junk])
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data
    assert not named.connections


@pytest.mark.spec("PL-4")
def test_a_peer_keeps_to_fifty_neighbors_however_many_there_are(leeching, ending, fake_peer):
    neighbors = [fake_peer(b"") for _ in range(70)]  # none has anything, so that it would like to know others
    tracker, _, _ = leeching([neighbor.address for neighbor in neighbors])

    def open_connections():
        return sum(sock.fileno() >= 0 for neighbor in neighbors for sock in list(neighbor.connections))
    most = 0
    while tracker.count("peer_list") < 1:  # a second
        most = max(most, open_connections())
        time.sleep(0.01)
    time.sleep(0.2)  # for those that it dials next
    assert 0 < max(most, open_connections()) <= 50


@pytest.mark.spec("PL-5", "SW-8")
@pytest.mark.parametrize("useless_neighbor", [False, True], ids=["no_neighbor", "a_neighbor_that_has_nothing"])
def test_a_leecher_that_nobody_can_serve_asks_for_the_list_again_within_a_second(leeching, fake_peer, useless_neighbor):
    tracker, out, data = leeching([fake_peer(b"").address] if useless_neighbor else [])
    if useless_neighbor:
        tracker.wait_for("peer_list")  # and again after the first time
    else:
        tracker.joiner()
    tracker.peers.append(fake_peer(data).address)
    tracker.wait_for("peer_list", tracker.count("peer_list") + 1)
    last, this = sorted(tracker.times("join") + tracker.times("peer_list"))[-2:]
    assert this - last < 1.5
    eventually(out.exists, what="a complete file")
    assert out.read_bytes() == data


@pytest.mark.spec("PL-5")
def test_a_leecher_whose_neighbors_hold_only_what_it_has_asks_for_the_list_again(leeching, fake_peer, make_file):
    neighbor = fake_peer(make_file(2 * CHUNK)[1], held=[1])
    tracker, _, _ = leeching([neighbor.address], size=2 * CHUNK)
    address = tracker.joiner()
    eventually(lambda: ask(address, chunks_query()).chunks_query.chunk_ids == [CHUNK], what="the chunk that there is")
    tracker.wait_for("peer_list", tracker.count("peer_list") + 1, seconds=2)
