"""Peer List: what a tracker answers, and what a peer does with it (SPEC.md, clauses PL)."""

import subprocess
import sys

import pytest

from checks import NO_NEIGHBORS, asks_again_within_a_second, event_written
from harness import ask, connect, eventually, join, listed, peer_list, receive, silent


# What a tracker answers.


@pytest.mark.spec("PL-1")
def test_the_list_of_no_peers_is_present_and_empty(make_file, run_tracker):
    path, _ = make_file(1)
    with connect(run_tracker(path, extra=["--no-seed"]).port) as sock:
        sock.sendall(bytes.fromhex("00 00 00 00 00 00 00 02 1a 00"))
        answer = receive(sock)
    assert answer.WhichOneof("type") == "peer_list" and not answer.peer_list.addresses


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


def connections_to(port):
    """The connections of this machine to one of its own ports, as (local, remote), including most of those that ended recently."""
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
@pytest.mark.parametrize("seen", ["over_loopback", "elsewhere"])
def test_a_peer_never_connects_to_itself(leeching, request, seen):
    """The tracker lists it at the address it sees, and so tells it about itself."""
    earlier = []  # connections to whoever had this port before

    def more(address):
        port = int(address.rpartition(":")[2])
        earlier.append(connections_to(port) | connections_to(port))  # twice, because reading may miss a row while the table changes
        return [address, f"127.0.0.1:{port}", f"127.0.0.2:{port}", f"[::1]:{port}"]
    tracker, _, _ = leeching(more=more, host="127.0.0.1" if seen == "over_loopback" else request.getfixturevalue("here"))
    port = int(tracker.joiner().rpartition(":")[2])
    tracker.wait_for("peer_list")  # a second later, when it has dialled everyone listed
    assert not connections_to(port) - earlier[0], "the peer connected to its own port"
    with connect(port):  # a machine with many connections may forget an ended one at once
        eventually(lambda: not connections_to(port) <= earlier[0], what="a connection, for a real one would have been seen")


@pytest.mark.ours
@pytest.mark.spec("PL-3", "SW-8")
@pytest.mark.fault(19)
def test_a_peer_with_the_same_port_at_another_address_is_another(leeching, fake_peer, here):
    others = []

    def more(address):
        others.append(fake_peer(b"", host=here, port=int(address.rpartition(":")[2])))
        return [others[0].address]
    tracker, _, _ = leeching(more=more, extra=["--host", "127.0.0.1"])
    tracker.joiner()
    eventually(lambda: others[0].connections, what="a connection to the other peer")


@pytest.mark.spec("PL-4")
def test_a_peer_bears_what_is_no_address_and_looks_no_name_up(leeching, fake_peer):
    named = fake_peer(b"")
    tracker, _, _ = leeching([*NO_NEIGHBORS, f"localhost:{named.port}"])
    tracker.wait_for("peer_list", 2)  # by now it has dialled everyone it knows
    assert not named.connections


@pytest.mark.spec("PL-5")
def test_a_leecher_that_knows_nobody_asks_for_the_list_again_within_a_second(leeching):
    tracker, _, _ = leeching()
    tracker.wait_for("peer_list", 2)
    asks_again_within_a_second(tracker)


@pytest.mark.spec("CL-15")
def test_a_peer_writes_whom_it_has_for_a_neighbor(make_file, fake_tracker, fake_peer, run_peer, tmp_path):
    _, data = make_file(1)
    neighbor = fake_peer(data)
    neighbor.answers["chunks_query"] = silent  # dealing with answers belongs to later stages
    run_peer(fake_tracker(data, [neighbor.address]).port, tmp_path / "out.bin", extra=["--events", str(tmp_path / "peer.events")])
    event_written(tmp_path / "peer.events", "neighbor_added", neighbor=neighbor.address)
