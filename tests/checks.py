"""Checks that several test files make: each waits for something, or fails like a test.

They are not in harness.py because a failure here counts as the test's own (lab/grader/grade.py tells the two apart).
"""

import os
import time

import json

import messages_pb2 as pb
from harness import ask, chunks_query, connect, eventually, is_refused, live

NO_NEIGHBORS = ["", "foo", ":", ":1", "1.2.3.4", "127.0.0.1:0", "127.0.0.1:70000", "[::1]", "999.1.1.1:80", "127.0.0.1:x",
                "127.0.0.1\0:80", "\x1b[2J:80", "a" * 100_000]
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


LEASE_MS, PROOFS = 600, 4


def proves_every_third(tracker, lease_ms=LEASE_MS):
    """Wait until the usual time between two proofs is nearer to a third of the lease than to half of it.

    The usual time is the median of five or more: on a busy machine some are longer, and the next ones shorter.
    """
    lease = lease_ms / 1000

    def usual():
        times = tracker.times("active_proof")
        gaps = sorted(after - before for before, after in zip(times, times[1:]))
        return gaps[len(gaps) // 2] if len(gaps) >= 5 else lease
    eventually(lambda: usual() < 0.42 * lease, what=f"Active Proof every third of {lease_ms} ms")


def most_in_a_second(times):
    """The largest number of these times within any one second."""
    return max((sum(start <= at < start + 1 for at in times) for start in times), default=0)


def asks_again_within_a_second(tracker):
    """Wait for two successive requests for the list within about a second; a busy machine may delay some."""
    def gaps():
        times = tracker.times("peer_list")
        return [after - before for before, after in zip(times, times[1:])]
    eventually(lambda: min(gaps(), default=9) < 1.5, what="another Peer List within about a second")
    began = tracker.times("peer_list")[0]
    eventually(lambda: tracker.times("peer_list")[-1] > began + 1, what="a Peer List more than a second after the first")
    assert most_in_a_second(tracker.times("peer_list")) <= 7, "five, and some that a busy machine held up"


def run_seconds(program):
    """{thread: seconds that it has run, or waited for a core} of a program and everything in its session (Linux).

    A thread that computes all the time gets the full time here, however many others share the cores.
    """
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                session = file.read().rpartition(")")[2].split()[3]
            if int(session) == program.pid:
                for thread in os.listdir(f"/proc/{name}/task"):
                    with open(f"/proc/{name}/task/{thread}/schedstat") as file:
                        found[thread] = sum(map(int, file.read().split()[:2])) / 1e9
        except OSError:
            continue  # it has ended
    return found


def waits_idly(program):
    """Wait for half a second in which no thread of a program computes for a fifth of the time; at first it may be busy."""
    def idle():
        before, began = run_seconds(program), time.monotonic()
        time.sleep(0.5)
        ran = [seconds - before.get(thread, seconds) for thread, seconds in run_seconds(program).items()]
        return max(ran) < (time.monotonic() - began) / 5
    eventually(idle, what="half a second in which no thread computes for a fifth of the time")


def ids(where, known=0):
    """The ids that a peer lists."""
    answer = ask(where, chunks_query(known))
    assert answer.WhichOneof("type") == "chunks_query"
    return list(answer.chunks_query.chunk_ids)


def event_written(path, kind, **fields):
    """The first event of this kind with these fields, once a program has written it to its --events file [CL-15].

    Only whole lines count; a line that is not a JSON object with a time fails at once.
    """
    def found():
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        for line in lines:
            event = read_event(line)
            if event["event"] == kind and all(event.get(name) == value for name, value in fields.items()):
                return event
        return None
    told = "".join(f", {name} {value}" for name, value in fields.items())
    return eventually(found, what=f"a line in the file of --events: event {kind}{told}")


def read_event(line):
    try:
        event = json.loads(line)
        assert isinstance(event["event"], str) and isinstance(event["t"], (int, float))
    except (ValueError, TypeError, KeyError, AssertionError):
        raise AssertionError(f"expected a JSON object with t and event on each line, got {line[:100]!r}") from None
    return event
