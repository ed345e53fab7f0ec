"""Active Proof: leases at the tracker, and how a peer keeps its own (SPEC.md, clauses AP)."""

import time

import pytest

import messages_pb2 as pb
from checks import LEASE_MS, PROOFS, event_written, most_in_a_second, proves_every_third, refuses_what_is_no_address
from harness import (CHUNK, Program, active_proof, ask, ask_all, connect, content_id, describe, events_in, eventually, framed, is_refused, join,
                     listed, live, peer_list, program_environment, receive, silent, timely, tracker_command)

A, B = "127.0.0.1:5001", "127.0.0.1:5002"


@pytest.fixture
def short_lease(make_file, run_tracker):
    """The port of the tracker under test, with a lease of 1 s."""
    path, _ = make_file(1)
    return run_tracker(path, expire=1, extra=["--no-seed"]).port


# What a tracker does.


@pytest.mark.spec("AP-1")
def test_the_bytes_of_the_spec_are_answered_ok(short_lease):
    body = bytes.fromhex("12 10 0a 0e") + A.encode()
    with connect(short_lease) as sock:
        sock.sendall(len(body).to_bytes(8, "big") + body)
        assert receive(sock).WhichOneof("type") == "ok"


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
    """However slow the machine: a listed peer had its lease when the request was sent, an absent one had none when the answer came."""
    leases = {}  # address -> (when the request that began its lease was sent, when it was answered)
    at_least, at_most = {}, {}  # address -> seconds for which it was seen listed; seconds after which it was seen gone
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
            assert ask(sock, active_proof(B)).WhichOneof("type") == "ok"  # it is too late but still counts
            return live(sock), [address for address in listed(ask(sock, join(A))) if address in (A, B)]

        for port in range(5001, 5009):
            renew(f"127.0.0.1:{port}", join(f"127.0.0.1:{port}"))
            time.sleep(0.03)  # so that they end at different times between two sweeps
        renew(A, active_proof(A))
        eventually(all_are_gone, what="the end of all leases")
        assert timely(late_proof, 1) == ([B], [A, B])
    assert max(at_least.values(), default=0) <= 1.01, f"a peer was listed after the end of its lease: {at_least}"
    assert min(at_most.values()) >= 0.99, f"a peer was gone before the end of its lease: {at_most}"


@pytest.mark.spec("AP-2")
@pytest.mark.fault(22)
def test_a_proof_of_a_peer_that_never_joined_here_lists_it(short_lease):
    def prove():
        assert ask(short_lease, active_proof("10.9.9.9:5001")).WhichOneof("type") == "ok"
        return live(short_lease)
    assert timely(prove, 1) == [A]


@pytest.mark.spec("CL-15")
@pytest.mark.takes(1)
def test_a_tracker_writes_who_was_listed_by_a_proof_and_who_has_expired(make_file, run_tracker, tmp_path):
    events = tmp_path / "tracker.events"
    port = run_tracker(make_file(1)[0], expire=1, extra=["--no-seed", "--events", str(events)]).port
    ask(port, join(B))
    ask(port, active_proof(B))  # it was listed before, by its Join
    ask(port, active_proof(A))
    event_written(events, "listed", peer=A)
    assert {event["peer"] for event in events_in(events, "listed")} == {A}
    event_written(events, "expired", peer=A)


@pytest.mark.spec("AP-5")
@pytest.mark.fault(17)
def test_a_proof_of_what_is_no_address_is_refused_nothing_is_listed_and_the_connection_kept(make_file, run_tracker):
    refuses_what_is_no_address(run_tracker(make_file(1)[0], extra=["--no-seed"]).port, active_proof)


@pytest.mark.spec("AP-2", "JN-7")
@pytest.mark.fault(18)
def test_a_full_tracker_takes_a_proof_only_of_a_peer_that_it_lists(make_file, run_tracker):
    tracker, ports = run_tracker(make_file(1)[0], expire=3600, extra=["--no-seed"]), range(1001, 2001)
    for port, answer in zip(ports, ask_all(tracker.port, [active_proof(f"127.0.0.1:{port}") for port in ports])):
        assert answer.WhichOneof("type") == "ok", port
    with connect(tracker.port) as sock:
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


CLOCK_THAT_IS_SET = """
import datetime, time
now = time.time
def set_by():
    with open({path!r}) as file:
        return float(file.read() or 0)
class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.utcfromtimestamp(time.time())
time.time, time.time_ns, datetime.datetime = lambda: now() + set_by(), lambda: int(1e9 * (now() + set_by())), Datetime
"""


@pytest.mark.spec("CL-17", "AP-3")
@pytest.mark.fault(21)
@pytest.mark.parametrize("seconds, lease, left", [(7200, 3600, [A]), (-7200, 1, [])], ids=["forth", "back"])
def test_setting_the_wall_clock_neither_ends_a_lease_nor_prolongs_it(make_file, ending, tmp_path, seconds, lease, left):
    """Only for programs in Python: they find a sitecustomize.py with a time.time() that can be set. Others ignore it."""
    clock = tmp_path / "seconds"
    clock.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK_THAT_IS_SET.format(path=str(clock)))
    tracker = ending(Program(tracker_command(make_file(1)[0], "--no-seed", expire=lease), "the tracker under test",
                             env={**program_environment(), "PYTHONPATH": str(tmp_path)}))
    port = int(tracker.wait_for(r"listening on port (\d+)$")[1])
    ask(port, join(A))
    clock.write_text(str(seconds))
    eventually(lambda: live(port) == left, what="a list of those whose lease has not run out")


# What a peer does.


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


@pytest.mark.spec("AP-4")
@pytest.mark.takes(1)
def test_told_no_lease_a_peer_proves_itself_and_not_without_end(proving):
    tracker, _, _ = proving(lease_ms=0)
    tracker.wait_for("active_proof")
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 1 or tracker.count("active_proof") > 100, what="a second")
    assert most_in_a_second(tracker.times("active_proof")) <= 60, "fifty, and some that a busy machine held up"


@pytest.mark.spec("AP-7")
def test_a_peer_goes_on_proving_itself_after_proofs_that_failed(proving):
    tracker, _, _ = proving(lease_ms=300)
    failures = iter([
        None,                                                                           # closed without an answer
        pb.Response(bad=pb.Response.Bad(code=pb.FULL, reason="full")),
        pb.Response(bad=pb.Response.Bad(code=77, reason="a code of a later version")),  # a refusal like any other
        pb.Response(),                                                                  # no type
        b"\xff" * 9,                                                                    # not a message
        pb.Response(chunk=b"abc"),
    ])
    tracker.answers["active_proof"] = lambda request, sock: next(failures, pb.Response(ok=pb.Response.Ok()))
    tracker.wait_for("active_proof", 8)
    assert is_refused(ask(tracker.joiner(), peer_list()), pb.WRONG_ROLE)  # it is still working


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
