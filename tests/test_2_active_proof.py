"""Active Proof: leases at the tracker, and how a peer keeps its own (SPEC.md, clauses AP)."""

import time

import pytest

import messages_pb2 as pb
from harness import (CHUNK, active_proof, ask, connect, content_id, describe, eventually, framed, is_refused, join, listed,
                     live, peer_list, receive_body, silent, timely)
from test_1_join import refuses_what_is_no_address

A, B = "127.0.0.1:5001", "127.0.0.1:5002"


@pytest.fixture
def short_lease(make_file, run_tracker):
    """The port of the tracker under test, with a lease of 1 s."""
    path, _ = make_file(1)
    return run_tracker(path, expire=1, extra=["--no-seed"]).port


# What a tracker does.


@pytest.mark.spec("AP-1")
def test_the_answer_is_ok_in_the_bytes_of_the_spec(short_lease):
    body = bytes.fromhex("12 10 0a 0e") + A.encode()
    with connect(short_lease) as sock:
        sock.sendall(len(body).to_bytes(8, "big") + body)
        assert receive_body(sock) == bytes.fromhex("0a 00")


@pytest.mark.spec("AP-1", "AP-3")
def test_who_sends_proofs_stays_and_who_sends_none_goes(short_lease):
    ask(short_lease, join(A))
    ask(short_lease, join(B))

    def only_a_is_left():
        sent = time.monotonic()
        assert ask(short_lease, active_proof(A)).WhichOneof("type") == "ok"
        answer = live(short_lease)
        assert A in answer or time.monotonic() - sent >= 1
        return answer == [A]
    eventually(only_a_is_left, what="the end of B's lease")


@pytest.mark.spec("AP-1", "AP-2", "AP-3")
@pytest.mark.fault(20)
def test_a_peer_is_listed_for_one_lease_after_its_last_proof_and_again_after_its_next(short_lease):
    """What an answer names was alive when its request was sent; what it does not name was none when it came: however slow a machine is."""
    leases = {}  # address -> (when the request was sent with which its lease began, when that was answered)
    at_least, at_most = {}, {}  # address -> seconds for which it was seen listed, after which it was seen gone
    with connect(short_lease) as sock:
        def renew(address, request):
            sent = time.monotonic()
            ask(sock, request)
            leases[address] = sent, time.monotonic()

        def all_are_gone():
            sent = time.monotonic()
            answer = live(sock)
            came = time.monotonic()
            at_least.update({address: sent - leases[address][1] for address in answer})
            for address in set(leases) - set(answer):
                at_most.setdefault(address, came - leases[address][0])
            return not answer

        def late_proof():
            eventually(lambda: not live(sock), what="the end of all leases")
            assert ask(sock, active_proof(B)).WhichOneof("type") == "ok"  # too late, and yet it counts
            return live(sock), [address for address in listed(ask(sock, join(A))) if address in (A, B)]

        for port in range(5001, 5009):
            renew(f"127.0.0.1:{port}", join(f"127.0.0.1:{port}"))
            time.sleep(0.03)  # so that they end at different times between two sweeps
        renew(A, active_proof(A))
        eventually(all_are_gone, what="the end of all leases")
        assert timely(late_proof, 1) == ([B], [A, B])
    assert max(at_least.values(), default=0) <= 1.01 and min(at_most.values()) >= 0.99, (at_least, at_most)


@pytest.mark.spec("AP-2")
@pytest.mark.fault(22)
def test_a_proof_of_a_peer_that_never_joined_here_lists_it(short_lease):
    def prove():
        assert ask(short_lease, active_proof("10.9.9.9:5001")).WhichOneof("type") == "ok"
        return live(short_lease)
    assert timely(prove, 1) == [A]


@pytest.mark.spec("AP-5")
@pytest.mark.fault(17)
def test_a_proof_of_what_is_no_address_is_refused_nothing_is_listed_and_the_connection_kept(make_file, run_tracker):
    refuses_what_is_no_address(run_tracker(make_file(1)[0], extra=["--no-seed"]).port, active_proof)


@pytest.mark.spec("AP-2", "JN-7")
@pytest.mark.fault(18)
def test_a_full_tracker_takes_a_proof_only_of_a_peer_that_it_lists(make_file, run_tracker):
    with connect(run_tracker(make_file(1)[0], extra=["--no-seed"]).port) as sock:
        for port in range(1001, 2001):
            assert ask(sock, active_proof(f"127.0.0.1:{port}")).WhichOneof("type") == "ok", port
        assert is_refused(ask(sock, active_proof("127.0.0.1:6001")), pb.FULL)
        assert ask(sock, active_proof("127.0.0.1:1001")).WhichOneof("type") == "ok"


@pytest.mark.spec("AP-6")
@pytest.mark.fault(43)
def test_a_proof_of_another_file_is_refused_and_not_listed(make_file, run_tracker):
    path, data = make_file(CHUNK + 1)
    port = run_tracker(path, extra=["--no-seed"]).port
    right = content_id(describe(data))
    for wrong in (bytes(32), right[:31], right[::-1], b"x"):
        assert is_refused(ask(port, active_proof(A, wrong)), pb.OTHER_FILE)
        assert live(port) == []
    assert ask(port, active_proof(A, right)).WhichOneof("type") == "ok"
    assert live(port) == [A]


@pytest.mark.spec("AP-7", "WF-10")
def test_a_proof_counts_though_its_sender_does_not_wait_for_the_answer(make_file, run_tracker):
    port = run_tracker(make_file(1)[0], extra=["--no-seed"]).port
    with connect(port) as sock:
        sock.sendall(framed(active_proof(A)))
    eventually(lambda: live(port) == [A], what="the proof")


# What a peer does.

LEASE_MS, PROOFS = 600, 4


def proves_every_third(tracker, lease_ms=LEASE_MS):
    """Wait until the time that usually is between two proofs is nearer to a third of the lease than to half of it.

    The usual one is the median of five or more: a busy machine makes some longer, and the next ones shorter.
    """
    lease = lease_ms / 1000

    def usual():
        times = tracker.times("active_proof")
        gaps = sorted(after - before for before, after in zip(times, times[1:]))
        return gaps[len(gaps) // 2] if len(gaps) >= 5 else lease
    eventually(lambda: usual() < 0.42 * lease, what=f"Active Proof every third of {lease_ms} ms")


@pytest.fixture
def proving(make_file, fake_tracker, run_peer, tmp_path):
    """proving(...): (fake tracker, the peer under test, the bytes); the peer holds all of them."""
    def run(lease_ms=LEASE_MS):
        path, data = make_file(CHUNK, "out.bin")
        tracker = fake_tracker(data, lease_ms=lease_ms)
        return tracker, run_peer(tracker.port, path), data
    return run


@pytest.mark.spec("AP-4")
def test_a_peer_proves_itself_every_third_of_the_lease_with_its_port_and_file(proving):
    tracker, _, data = proving()
    joined = tracker.joiner()
    for count in range(1, PROOFS + 1):
        proof = tracker.wait_for("active_proof", count)
        assert proof.listening_addr.rpartition(":")[2] == joined.rpartition(":")[2]
        assert proof.content_id in (b"", content_id(describe(data)))
    proves_every_third(tracker)


@pytest.mark.spec("AP-7")
def test_a_peer_goes_on_proving_itself_after_proofs_that_failed(proving):
    tracker, _, _ = proving(lease_ms=300)
    failures = iter([
        None,                                                                           # closed without an answer
        pb.Response(bad=pb.Response.Bad(code=pb.FULL, reason="full")),
        pb.Response(bad=pb.Response.Bad(code=77, reason="a code of a later version")),  # a refusal like any other
        pb.Response(),                                                                  # no type
        b"\xff" * 9,                                                                    # no message
        pb.Response(chunk=b"abc"),
    ])
    tracker.answers["active_proof"] = lambda request, sock: next(failures, pb.Response(ok=pb.Response.Ok()))
    tracker.wait_for("active_proof", 8)
    assert is_refused(ask(tracker.joiner(), peer_list()), pb.WRONG_ROLE)  # it is in good health


@pytest.mark.spec("AP-4", "AP-7")
def test_a_proof_that_is_never_answered_does_not_hold_up_the_next(proving):
    tracker, _, _ = proving()
    tracker.answers["active_proof"] = silent
    tracker.wait_for("active_proof", 3)  # before the 20 s that two waits for an answer take


@pytest.mark.spec("AP-6")
@pytest.mark.fault(43)
def test_a_peer_that_is_told_of_another_file_ends_with_exit_code_4(proving):
    tracker, peer, _ = proving()
    tracker.answers["active_proof"] = lambda request, sock: pb.Response(bad=pb.Response.Bad(code=pb.OTHER_FILE, reason="expected another"))
    peer.ends_with(4)
