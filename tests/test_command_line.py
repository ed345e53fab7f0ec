"""Command line, OUT and OUT.part, events, and the file's description (SPEC.md, clauses CL and FD).

Faults of files, disks, ports, signals and bugs (CL-5 to CL-7, CL-9, CL-11, CL-12, CL-16) and of the description
that a tracker sends (FD-3, FD-5) are in test_faults_system.py.
"""

import contextlib
import hashlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import harness
from harness import (CHUNK, SECONDS, active_proof, answers, ask, chunks_query, connect, content_id, describe, eventually, events_in, fetch_chunk, finished, framed, join, kept,
                     one_line, peer_command, peer_list, split, timely, tracker_command)

SIZE = 2 * CHUNK + 1000  # three chunks, the last one short
OPTIONS = ["--host", "--port", "--upload-limit", "--events", "--quiet", "--version"]  # of both programs


def skip_without_ipv6(host="::1"):
    """Skip a test with this address if it is an IPv6 address and there is no IPv6 here."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip("this machine has no IPv6")


def addresses(tracker):
    """The peers that a tracker lists."""
    return list(ask(tracker.port, peer_list()).peer_list.addresses)


def the_seeder(tracker):
    """The address of the tracker's own peer, once it is listed and holds the file."""
    address = eventually(lambda: addresses(tracker), what="a peer in the list")[0]
    eventually(lambda: ask(address, chunks_query()).chunks_query.chunk_ids, what="a chunk at the seeder")
    return address


# The tracker.


@pytest.mark.spec("CL-1", "CL-2")
def test_the_tracker_names_its_port_when_it_accepts_and_seeds_the_file_itself(make_file, run_tracker):
    path, data = make_file(SIZE)
    tracker = run_tracker(path)
    assert ask(tracker.port, peer_list()).WhichOneof("type") == "peer_list"  # at once, without a second try
    seeder = the_seeder(tracker)
    assert sorted(ask(seeder, chunks_query()).chunks_query.chunk_ids) == [0, CHUNK, 2 * CHUNK]
    assert ask(seeder, fetch_chunk(2 * CHUNK)).chunk == data[2 * CHUNK:]


@pytest.mark.spec("CL-2")
def test_told_not_to_seed_the_tracker_lists_only_who_joins(make_file, run_tracker):
    tracker = run_tracker(make_file(SIZE)[0], extra=["--no-seed"])
    assert ask(tracker.port, join("127.0.0.1:5000")).peer_list.addresses == ["127.0.0.1:5000"]


@pytest.mark.spec("CL-2", "JN-2", "AP-3")
def test_the_lease_is_the_one_of_the_command_line(make_file, run_tracker):
    tracker = run_tracker(make_file(SIZE)[0], expire=0.4, extra=["--no-seed"])
    began = time.monotonic()
    assert ask(tracker.port, join("127.0.0.1:5000")).peer_list.lease_ms == 400
    eventually(lambda: not addresses(tracker), what="the end of the lease")
    assert time.monotonic() - began >= 0.4


@pytest.mark.spec("CL-2", "JN-2")
def test_a_lease_that_the_answer_has_no_room_for_is_refused_or_cut(make_file, ending):
    path, _ = make_file(10)
    tracker = ending(harness.Program(tracker_command(path, "--no-seed", expire=5_000_000)))  # 58 days; lease_ms ends at 49
    eventually(lambda: tracker.process.poll() is not None or "listening" in tracker.output, what="a refusal or a start")
    if tracker.process.poll() is None:
        port = int(tracker.wait_for(r"listening on port (\d+)$")[1])
        assert ask(port, join("127.0.0.1:5000")).peer_list.lease_ms > 4_000_000_000
    else:
        tracker.ends_with(2)


def printed_commands(tracker):
    """(address, OUT) of each command for joining that the tracker printed."""
    return re.findall(rf"^\s+\S.*\s'?(\S+:{tracker.port})'? (.+)$", tracker.output, re.M)


@pytest.mark.spec("CL-2")
def test_the_commands_that_the_tracker_prints_lead_to_it(make_file, run_tracker, run_peer, tmp_path):
    path, data = make_file(SIZE)
    tracker = run_tracker(path)
    printed = printed_commands(tracker)
    assert printed, tracker.output
    for address, out in printed:
        assert out == "file.bin"
        assert ask(address, peer_list()).WhichOneof("type") == "peer_list"
    out = tmp_path / "copy"
    run_peer(printed[0][0], out, extra=["--leave"]).ends_with(0)
    assert out.read_bytes() == data


@pytest.mark.spec("CL-2")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_nobody_is_told_to_join_at_the_address_that_stands_for_all(make_file, run_tracker, host):
    skip_without_ipv6(host)
    tracker = run_tracker(make_file(10)[0], extra=["--host", host])
    hosts = [address.rsplit(":", 1)[0].strip("[]") for address, _ in printed_commands(tracker)]
    assert hosts and host not in hosts, tracker.output


@pytest.mark.spec("CL-2")
def test_the_printed_command_for_a_name_that_looks_like_an_option_names_a_file(make_file, run_tracker):
    tracker = run_tracker(make_file(10, name="--leave")[0])
    for _, out in printed_commands(tracker):
        assert not out.strip("'").startswith("-"), f"{out} is taken for an option"


@pytest.mark.spec("CL-2", "FD-4")
def test_a_printed_command_can_be_pasted_as_it_is_and_takes_this_file_only(make_file, run_tracker):
    skip_without_ipv6()
    path, _ = make_file(SIZE)
    tracker = run_tracker(path, extra=["--host", "::1", "--no-seed"])
    (line,) = re.findall(r"^  (\S.*)$", tracker.output, re.M)
    assert shlex.split(line)[1:] == ["peer.py", "--expect", content_id(describe(path.read_bytes())).hex(), f"[::1]:{tracker.port}", "file.bin"]
    assert f"'[::1]:{tracker.port}'" in line, "some shells take brackets for a pattern"


@pytest.mark.spec("CL-2")
def test_addresses_are_told_with_their_interfaces_and_only_of_those_that_are_up(monkeypatch):
    import tracker
    names = dict(socket.if_nameindex())
    found = tracker.own_addresses()
    assert found and list(found)[-1] == "127.0.0.1"
    if sys.platform.startswith("linux"):
        assert found["127.0.0.1"] in names.values()
        real = tracker.fcntl.ioctl
        monkeypatch.setattr(tracker.fcntl, "ioctl", lambda sock, request, data: data if request == 0x8913 else real(sock, request, data))
        assert not list(tracker.interfaces()), "their flags say that they are down"


@pytest.mark.spec("CL-2")
def test_the_default_routes_address_is_told_first_every_other_after_it_and_loopback_last(monkeypatch):
    import tracker
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no default route")
        first = probe.getsockname()[0]
    monkeypatch.setattr(tracker, "interfaces", lambda: [("lo", "127.0.0.1"), ("br0", "172.17.0.1"), ("eth0", first), ("eth0", "10.9.9.9")])
    found = tracker.own_addresses()
    assert list(found)[0] == first and list(found)[-1] == "127.0.0.1" and found[first] == found["10.9.9.9"] == "eth0" and found["172.17.0.1"] == "br0"


@pytest.mark.spec("CL-2")
@pytest.mark.parametrize("size, words", [(10, " in 1 chunk of "), (SIZE, " in 3 chunks of ")])
def test_chunks_are_counted_as_people_do(make_file, run_tracker, size, words):
    assert words in run_tracker(make_file(size)[0], extra=["--no-seed"]).output


@pytest.mark.spec("CL-2")
def test_the_ports_that_others_must_reach_are_told_and_the_seeder_has_the_next_one(make_file, run_tracker):
    path, _ = make_file(SIZE)
    with two_free_ports() as (first, second):
        tracker = run_tracker(path, port=first)
        assert the_seeder(tracker) == f"127.0.0.1:{second}"
        assert f"others must reach port {first} of this machine, and {second} for the seeder" in tracker.output


@contextlib.contextmanager
def two_free_ports():
    """Two consecutive ports, reserved for a tracker and its seeder."""
    for _ in range(100):
        with kept(0) as first, contextlib.suppress(OSError, OverflowError), kept(first.getsockname()[1] + 1) as second:
            yield first.getsockname()[1], second.getsockname()[1]
            return
    pytest.skip("no two free ports in a row")


@pytest.mark.spec("CL-2")
@pytest.mark.parametrize("given", [True, False], ids=["given", "the next"])
def test_a_seeder_whose_port_is_taken_is_refused_if_it_was_given_and_takes_another_if_not(make_file, run_tracker, ending, given):
    path, _ = make_file(SIZE)
    with two_free_ports() as (first, second), socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", second))
        taken.listen()
        if given:
            ending(harness.Program(tracker_command(path, "--seed-port", second, port=first))).ends_with(9, f":{second}: Address already in use")
        else:
            assert the_seeder(run_tracker(path, port=first)) != f"127.0.0.1:{second}"


@pytest.mark.spec("CL-1")
@pytest.mark.parametrize("host", ["*", "0", "[::1]"])
def test_a_host_is_taken_as_people_write_it(make_file, run_tracker, host):
    skip_without_ipv6()
    tracker = run_tracker(make_file(SIZE)[0], extra=["--host", host])
    where = ("::1" if "1" in host else "127.0.0.1", tracker.port)
    assert eventually(lambda: ask(where, peer_list()).peer_list.addresses, what="a peer in the list")
    assert host not in {address.rsplit(":", 1)[0] for address, _ in printed_commands(tracker)} - {"[::1]"}


# The file's description.


@pytest.mark.spec("FD-1", "FD-2", "JN-2")
@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_the_answer_to_join_describes_the_file(make_file, run_tracker, size):
    path, data = make_file(size)
    answer = ask(run_tracker(path, extra=["--no-seed"]).port, join("127.0.0.1:5000")).peer_list
    assert (answer.file.name, answer.file.size, answer.file.chunk_size) == ("file.bin", size, 262_144)
    assert answer.file.digests == b"".join(hashlib.sha256(data[at:at + 262_144]).digest() for at in range(0, size, 262_144))


@pytest.mark.spec("FD-2")
@pytest.mark.parametrize("size, asked, got", [(16_384 * 1024, 1024, 1024), (16_384 * 1024 + 1, 1024, 2048), (100_000, 1, 8)],
                         ids=["as_many_as_may_be", "one_byte_more", "doubled_three_times"])
def test_the_chunk_size_is_doubled_until_there_are_at_most_16384_chunks(tmp_path, run_tracker, size, asked, got):
    path = tmp_path / "file.bin"
    path.touch()
    os.truncate(path, size)
    file = ask(run_tracker(path, extra=["--no-seed", "--chunk-size", str(asked)]).port, join("127.0.0.1:5000")).peer_list.file
    assert file == describe(bytes(size), got)


@pytest.mark.spec("FD-2", "CL-12")
def test_a_file_of_more_than_256_gib_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "file.bin"
    path.touch()
    try:
        os.truncate(path, (256 << 30) + 1)
    except OSError:
        pytest.skip("this file system takes no sparse file of that size")
    process = finished(tracker_command(path))
    assert process.returncode == 8 and process.stderr.count("\n") == 1, process.stderr


@pytest.mark.spec("FD-4")
@pytest.mark.parametrize("data, name, expected", [
    (b"abc", "a", "a352fc223dd00678c6d60ca5ea0a591257dd32c5b7b754cce0a3492f065f324f"),  # the example of the spec
    (harness.some_bytes(SIZE), "file.bin", None),
], ids=["the_example_of_the_spec", "three_chunks"])
def test_the_tracker_prints_the_content_id(make_file, run_tracker, data, name, expected):
    if expected is None:
        digests = b"".join(hashlib.sha256(data[at:at + 262_144]).digest() for at in range(0, len(data), 262_144))
        expected = hashlib.sha256(len(data).to_bytes(8, "big") + (262_144).to_bytes(8, "big") + digests).hexdigest()
    assert re.search(rf"\b{expected}\b", run_tracker(make_file(data, name=name)[0]).output)


@pytest.mark.spec("FD-4")
@pytest.mark.parametrize("spelled", [str.lower, str.upper], ids=["lower_case", "upper_case"])
def test_a_peer_takes_the_content_that_it_was_told_to_expect(fake_tracker, fake_peer, run_peer, tmp_path, spelled):
    data = harness.some_bytes(SIZE)
    tracker = fake_tracker(data, [fake_peer(data).address])
    out = tmp_path / "out"
    run_peer(tracker.port, out, extra=["--leave", "--expect", spelled(harness.content_id(tracker.file).hex())]).ends_with(0)
    assert out.read_bytes() == data


@pytest.mark.spec("FD-4", "CL-13")
@pytest.mark.fault(43)
@pytest.mark.parametrize("expected", ["0" * 64, "", "nonsense"])
def test_a_peer_refuses_any_other_content_than_the_expected(fake_tracker, fake_peer, tmp_path, expected):
    data = harness.some_bytes(SIZE)
    neighbor = fake_peer(data)
    tracker = fake_tracker(data, [neighbor.address])
    process = finished(peer_command(tracker.port, tmp_path / "out", "--leave", "--expect", expected))
    assert process.returncode == 4
    assert process.stderr.count("\n") == 1 and harness.content_id(tracker.file).hex() in process.stderr
    assert os.listdir(tmp_path) == [] and not neighbor.fetched()


# OUT and OUT.part.


@pytest.mark.spec("CL-3")
def test_out_comes_by_one_rename_when_every_chunk_is_held(ending, fake_tracker, run_peer, tmp_path):
    data = harness.some_bytes(SIZE)
    neighbor = ending(harness.SlowPeer(data, free=2))
    tracker = fake_tracker(data, [neighbor.address])
    out, part = tmp_path / "out", tmp_path / "out.part"
    peer = run_peer(tracker.port, out)
    address = tracker.joiner()
    eventually(lambda: len(ask(address, chunks_query()).chunks_query.chunk_ids) == 2, what="two chunks of three")
    assert os.listdir(tmp_path) == ["out.part"]
    inode = part.stat().st_ino
    neighbor.released.set()
    peer.wait_for("^complete")
    assert os.listdir(tmp_path) == ["out"]
    assert out.read_bytes() == data and out.stat().st_ino == inode


@pytest.mark.spec("CL-4", "SW-3")
def test_a_complete_out_is_seeded_and_nothing_is_fetched(fake_tracker, fake_peer, run_peer, make_file, tmp_path):
    path, data = make_file(SIZE)
    neighbor = fake_peer(data)
    tracker = fake_tracker(data, [neighbor.address])
    run_peer(tracker.port, path).wait_for("^complete")
    assert sorted(ask(tracker.joiner(), chunks_query()).chunks_query.chunk_ids) == [0, CHUNK, 2 * CHUNK]
    assert not neighbor.requests
    assert path.read_bytes() == data and os.listdir(tmp_path) == [path.name]


@pytest.mark.spec("CL-4")
@pytest.mark.parametrize("left, missing", [
    (lambda data: data[:CHUNK + 5], [CHUNK, 2 * CHUNK]),
    (lambda data: bytes(CHUNK) + data[CHUNK:], [0]),
    (lambda data: data[:CHUNK] + bytes([data[CHUNK] ^ 1]) + data[CHUNK + 1:], [CHUNK]),
    (lambda data: data + b"more than there should be", []),
    (lambda data: harness.some_bytes(SIZE, seed=2), [0, CHUNK, 2 * CHUNK]),
], ids=["cut_short", "a_hole", "one_wrong_bit", "too_long", "of_another_file"])
def test_of_an_out_part_only_what_is_missing_or_wrong_is_fetched(fake_tracker, fake_peer, run_peer, tmp_path, left, missing):
    data = harness.some_bytes(SIZE)
    out = tmp_path / "out"
    (tmp_path / "out.part").write_bytes(left(data))
    neighbor = fake_peer(data)
    run_peer(fake_tracker(data, [neighbor.address]).port, out, extra=["--leave"]).ends_with(0)
    assert sorted(neighbor.fetched()) == missing
    assert out.read_bytes() == data and os.listdir(tmp_path) == ["out"]


@pytest.mark.spec("CL-7")
def test_a_tracker_keeps_nobody_from_its_file(make_file, run_tracker, run_peer):
    path, data = make_file(SIZE)
    trackers = [run_tracker(path) for _ in range(2)]
    run_peer(trackers[0].port, path, extra=["--leave"]).ends_with(0, "^complete")
    assert path.read_bytes() == data
    for tracker in trackers:
        assert ask(the_seeder(tracker), fetch_chunk(0)).chunk == split(data)[0]


# How long a peer stays.


@pytest.mark.spec("SW-3")
def test_a_complete_peer_goes_on_seeding_and_says_so(fake_tracker, fake_peer, run_peer, tmp_path):
    data = harness.some_bytes(SIZE)
    tracker = fake_tracker(data, [fake_peer(data).address])
    peer = run_peer(tracker.port, tmp_path / "out")
    assert "seeding" in peer.wait_for("^complete.*")[0]
    assert ask(tracker.joiner(), fetch_chunk(CHUNK)).chunk == split(data)[1]
    assert peer.process.poll() is None


@pytest.mark.spec("CL-8")
def test_told_to_seed_for_half_a_second_a_peer_leaves_after_that(fake_tracker, fake_peer, run_peer, tmp_path):
    data = harness.some_bytes(SIZE)
    tracker = fake_tracker(data, [fake_peer(data).address])
    peer = run_peer(tracker.port, tmp_path / "out", extra=["--seed-for", "0.5", "--events", str(tmp_path / "events")])
    peer.ends_with(0)
    (complete,) = events_in(tmp_path / "events", "complete")
    assert 0.5 <= time.monotonic() - complete["t"] < 3


@pytest.mark.spec("CL-8")
def test_told_to_leave_a_peer_that_has_the_file_already_leaves_at_once(fake_tracker, run_peer, make_file):
    path, data = make_file(SIZE)
    run_peer(fake_tracker(data).port, path, extra=["--leave"]).ends_with(0, "^complete")


@pytest.mark.spec("CL-10", "CL-13")
def test_a_tracker_that_does_not_answer_is_tried_again_with_growing_pauses(ending, run_patched, tmp_path):
    tracker = ending(harness.FakeServer())  # it knows no answer: each request ends its connection
    run_patched("peer", "peer.TRACKER_SECONDS = 2", [tracker.address, tmp_path / "out"]).ends_with(3, "no tracker")
    times = tracker.times("join")
    pauses = [after - before for before, after in zip(times, times[1:])]
    assert 3 <= len(pauses) <= 6 and all(pause > 0.9 * least for pause, least in zip(pauses[:-1], [0.1, 0.2, 0.4, 0.8])), pauses  # the last is cut off at the end
    assert os.listdir(tmp_path) == []


# Addresses.


@pytest.mark.spec("CL-1", "CL-2", "JN-3")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_both_programs_take_ipv4_ipv6_and_host_names(make_file, run_tracker, run_peer, tmp_path, host):
    skip_without_ipv6(host)
    path, data = make_file(SIZE)
    text = f"[{host}]" if ":" in host else host
    tracker = run_tracker(path, extra=["--host", host])
    assert [address for address, _ in printed_commands(tracker)] == [f"{text}:{tracker.port}"]
    run_peer(f"{text}:{tracker.port}", tmp_path / "out", extra=["--host", host]).wait_for("^complete")
    assert (tmp_path / "out").read_bytes() == data
    listed = ask(f"{text}:{tracker.port}", peer_list()).peer_list.addresses
    assert len(listed) == 2
    for address in listed:
        assert host == "localhost" or address.rsplit(":", 1)[0] == text
        assert ask(address, fetch_chunk(0)).chunk == data[:CHUNK]


@pytest.mark.spec("CL-1")
def test_told_no_address_a_program_listens_on_ipv4_and_ipv6(make_file, run_tracker):
    skip_without_ipv6()
    tracker = run_tracker(make_file(10)[0], extra=["--no-seed"])
    assert ask(f"127.0.0.1:{tracker.port}", join("127.0.0.1:5000")).peer_list.addresses == ["127.0.0.1:5000"]
    assert sorted(ask(f"[::1]:{tracker.port}", join("[::1]:5001")).peer_list.addresses) == ["127.0.0.1:5000", "[::1]:5001"]


@pytest.mark.spec("JN-8")
def test_a_peer_listens_on_the_port_that_it_is_told(fake_tracker, run_peer, make_file):
    path, data = make_file(SIZE)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    tracker = fake_tracker(data)
    run_peer(tracker.port, path, extra=["--host", "127.0.0.1", "--port", str(port)])
    assert tracker.joiner() == f"127.0.0.1:{port}"
    assert ask(port, chunks_query()).WhichOneof("type") == "chunks_query"


# Sizes and rates.


@pytest.mark.spec("FD-2")
@pytest.mark.parametrize("text, size", [("65536", 65_536), ("64k", 65_536), ("0.5M", 524_288), ("16M", 16_777_216), ("64KB", 65_536), ("1MiB", 1_048_576)])
def test_a_size_takes_units_that_are_powers_of_1024(make_file, run_tracker, text, size):
    tracker = run_tracker(make_file(10)[0], extra=["--no-seed", "--chunk-size", text])
    assert ask(tracker.port, join("127.0.0.1:5000")).peer_list.file.chunk_size == size


@pytest.mark.spec("CL-14", "CL-13")
def test_a_rate_at_which_nobody_would_wait_for_a_chunk_is_refused(make_file):
    path, _ = make_file(300_000)
    process = finished(tracker_command(path, "--upload-limit", "3K"))
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "4096 at least, got 3K" in process.stderr


@pytest.mark.spec("CL-14")
@pytest.mark.parametrize("rate", ["1048576", "1M"])
def test_a_rate_is_in_bytes_per_second_and_takes_the_same_units(make_file, run_tracker, rate):
    path, data = make_file(CHUNK)
    tracker = run_tracker(path, extra=["--upload-limit", rate])
    seeder = the_seeder(tracker)

    def fetch():
        began = time.monotonic()
        assert ask(seeder, fetch_chunk(0)).chunk == data
        return time.monotonic() - began
    assert 0.2 < timely(fetch, 1) < 1  # a chunk of 256 KiB takes a quarter of a second; if the limit were in bits, it would take two


def read_all_the_time(address, seconds, arrivals):
    """Keep asking for chunk 0, two requests ahead, and note (time, bytes) of whatever arrives."""
    frame = len(framed(harness.Response(chunk=bytes(CHUNK))))
    request = framed(fetch_chunk(0))
    with connect(address) as sock:
        arrivals.append((time.monotonic(), 0))
        sock.sendall(2 * request)
        total, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            count = len(sock.recv(1 << 16))
            arrivals.append((time.monotonic(), count))
            sock.sendall(((total + count) // frame - total // frame) * request)
            total += count


def note_hold_ups(seconds, held_up):
    """Note how long this machine delays a thread that wants to wake up every 10 ms."""
    end = time.monotonic() + seconds
    while (before := time.monotonic()) < end:
        time.sleep(0.01)
        late = time.monotonic() - before - 0.01
        held_up.append(late if late > 0.05 else 0)


@pytest.mark.spec("CL-14")
def test_the_upload_limit_holds_within_3_percent_over_all_uploads_together(fake_tracker, run_peer, make_file):
    """The one test here that must take its time, because the limit is an average over 5 s.

    It bounds the bytes that come between the first request and any later moment, however busy this machine is. The
    time for which this process, too, was held up does not count against the program.
    """
    path, data = make_file(2 * CHUNK)
    tracker = fake_tracker(data)
    run_peer(tracker.port, path, extra=["--upload-limit", "2M"]).wait_for("^complete")
    arrivals, held_up = [], []
    threads = [threading.Thread(target=read_all_the_time, args=(tracker.joiner(), 5.1, arrivals)) for _ in range(2)]
    threads.append(threading.Thread(target=note_hold_ups, args=(5.0, held_up)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arrivals.sort()
    within = [(at, count) for at, count in arrivals if at <= arrivals[0][0] + 5]
    due, total, seconds = 2 << 20, sum(count for _, count in within), within[-1][0] - within[0][0]
    assert 0.97 * due * (seconds - sum(held_up)) < total < 1.03 * due * seconds, f"{total / seconds:.0f} bytes per second"


# What is printed.


@pytest.mark.spec("CL-13")
def test_told_to_be_quiet_a_program_says_nothing_but_errors(make_file, run_tracker, tmp_path):
    path, _ = make_file(SIZE)
    tracker = run_tracker(path)
    process = finished(peer_command(tracker.port, tmp_path / "out", "--leave", "--quiet"))
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    process = finished(peer_command(tracker.port, tmp_path / "missing" / "out", "--quiet"))
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (5, "", 1)


@pytest.mark.spec("CL-18")
def test_a_quiet_tracker_serves_and_says_nothing(make_file, ending, tmp_path):
    events = tmp_path / "events"
    tracker = ending(harness.Program(tracker_command(make_file(SIZE)[0], "--quiet", "--events", events)))
    (start,) = eventually(lambda: events_in(events, "start"), what="the event of the start")
    ask(start["port"], join("127.0.0.1:5000"))
    tracker.process.terminate()
    assert tracker.ends_with(143) == ""


@pytest.mark.spec("CL-18")
@pytest.mark.parametrize("command, options", [
    (tracker_command("FILE"), [*OPTIONS, "--chunk-size", "--expire", "--no-seed"]),
    (peer_command(1, "OUT"), [*OPTIONS, "--leave", "--seed-for", "--expect", "--force"]),
], ids=["tracker", "peer"])
def test_help_lists_every_option_and_version_is_told(command, options):
    process = finished(command + ["--help"])
    assert process.returncode == 0 and process.stderr == ""
    assert [option for option in options if option not in process.stdout] == []
    process = finished(command + ["--version"])
    assert process.returncode == 0 and process.stderr == "" and re.search(r"\d+\.\d+", process.stdout)


@pytest.fixture
def half_way(ending, fake_tracker):
    """(tracker, neighbor): a peer comes to hold one chunk of three, and waits for the others."""
    data = harness.some_bytes(3 * CHUNK)
    neighbor = ending(harness.SlowPeer(data, free=1))
    return fake_tracker(data, [neighbor.address]), neighbor


@pytest.mark.spec("CL-18")
def test_progress_is_plain_lines_where_there_is_no_terminal(half_way, run_patched, tmp_path):
    tracker, neighbor = half_way
    peer = run_patched("peer", "peer.SHOW_SECONDS = (0.05, 0.1)", [tracker.address, tmp_path / "out", "--leave"])
    peer.wait_for(r"^ *33\.3 % .*/s .*\b1 neighbor\b.*$")
    neighbor.released.set()
    assert "\r" not in peer.ends_with(0, r"^complete")


@pytest.mark.spec("CL-18")
def test_progress_lines_are_rare_where_there_is_no_terminal(half_way, run_peer, tmp_path):
    tracker, neighbor = half_way
    peer = run_peer(tracker.port, tmp_path / "out", extra=["--leave"])
    neighbor.wait_for("fetch_chunk", 2)
    time.sleep(0.5)  # the fault's time: two checks of the progress
    neighbor.released.set()
    assert "%" not in peer.ends_with(0)


def the_rest_of(terminal):
    """What is read from a terminal until its other end is closed, which some systems report as an error."""
    read = b""
    try:
        while more := os.read(terminal, 1000):
            read += more
    except OSError:
        pass
    return read


@pytest.mark.spec("CL-18")
def test_progress_on_a_terminal_is_one_line_that_is_overwritten(half_way, tmp_path):
    tracker, neighbor = half_way
    here, there = os.openpty()
    peer = subprocess.Popen(peer_command(tracker.port, tmp_path / "out", "--leave"), cwd=harness.ROOT, stdin=subprocess.DEVNULL, stdout=there)
    os.close(there)
    try:
        shown = b""
        while shown.count(b"33.3 %") < 2:
            shown += os.read(here, 1000)
        neighbor.released.set()
        shown += the_rest_of(here)
        assert peer.wait(SECONDS) == 0
    finally:
        peer.kill()
        peer.wait()
        os.close(here)
    assert re.search(rb"33\.3 %[^\n]*\r[^\n]* 33\.3 %[^\n]*1 neighbor[^\n]*\r", shown), shown
    assert re.search(rb"complete[^\n]*\r?\n$", shown), shown


# Wrong arguments: one line on stderr, exit code 2.


WRONG_FOR_PEER = [
    ["", "OUT"], [":8000", "OUT"], ["host:0", "OUT"], ["host:70000", "OUT"], ["::1:8000", "OUT"], ["a..b:8000", "OUT"], ["x" * 64 + ":8000", "OUT"],
    [], ["h:1", "OUT", "more"], ["h:1", "OUT", "two\nlines"], ["h:1", "OUT", "--nonsense"], ["h:1", "OUT", "--leave", "--seed-for", "1"],
    ["h:1", "OUT", "--seed-for", "-1"], ["h:1", "OUT", "--port", "70000"], ["h:1", "OUT", "--port", "http"], ["h:1", "OUT", "--events", "/dev/null/events"],
    ["h:1", "OUT", "--upload-limit", "0"], ["h:1", "OUT", "--upload-limit", "-1M"], ["h:1", "OUT", "--upload-limit", "inf"], ["h:1", "OUT", "--upload-limit", "1KX"],
]
WRONG_FOR_TRACKER = [
    [], ["FILE", "more"], ["FILE", "--chunk-size", "0"], ["FILE", "--chunk-size", "17M"], ["FILE", "--chunk-size", "K"],
    ["FILE", "--expire", "0"], ["FILE", "--expire", "nan"], ["FILE", "--leave"],
]


def bare(command, *placeholders):
    """A command without the placeholders of its arguments."""
    return [word for word in command if word not in placeholders]


@pytest.mark.spec("CL-12", "CL-13")
@pytest.mark.parametrize("command", [bare(peer_command("TRACKER", "OUT"), "TRACKER", "OUT") + words for words in WRONG_FOR_PEER]
                         + [bare(tracker_command("FILE"), "FILE") + words for words in WRONG_FOR_TRACKER],
                         ids=[f"peer {' '.join(words)[:40]!r}" for words in WRONG_FOR_PEER] + [f"tracker {' '.join(words)!r}" for words in WRONG_FOR_TRACKER])
def test_wrong_arguments_are_one_line_and_exit_code_2(command):
    process = finished(command)
    assert "Traceback" not in process.stderr
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1), process.stderr


# Events.


FIELDS = {  # of our two programs; the spec leaves them to the author
    "start": {"port": int, "upload_limit": (int, type(None))}, "joined": {}, "listed": {"peer": str}, "expired": {"peer": str},
    "neighbor_added": {"neighbor": str}, "neighbor_dropped": {"neighbor": str, "reason": str},
    "sent": {"chunk": int, "bytes": int, "to": str, "seconds": float}, "fetched": {"chunk": int, "bytes": int, "of": str}, "complete": {"bytes": int},
}


@pytest.mark.spec("CL-15", "SW-6")
def test_every_kind_of_event_is_written_with_its_time_and_its_fields(make_file, run_tracker, run_peer, tmp_path):
    path, _ = make_file(SIZE)
    trackers, peers = tmp_path / "tracker.events", tmp_path / "peer.events"
    began = time.monotonic()
    tracker = run_tracker(path, expire=2, extra=["--events", str(trackers)])
    seeder = the_seeder(tracker)
    run_peer(tracker.port, tmp_path / "out", extra=["--events", str(peers)])
    eventually(lambda: events_in(peers, "complete") and events_in(peers, "neighbor_dropped"), what="the peer's last events")
    ask(tracker.port, active_proof("127.0.0.1:5000"))  # from a peer that has not joined: it is listed, and expires
    eventually(lambda: events_in(trackers, "expired"), what="the end of a lease")

    for path, kinds in ((trackers, {"start", "joined", "listed", "expired", "sent", "complete"}),
                        (peers, {"start", "joined", "neighbor_added", "neighbor_dropped", "fetched", "complete"})):
        events = events_in(path)
        assert {event["event"] for event in events} == kinds
        for event in events:
            assert began <= event["t"] <= time.monotonic()
            for field, kind in FIELDS[event["event"]].items():
                assert isinstance(event[field], kind), event
    assert events_in(trackers, "listed")[0]["peer"] == events_in(trackers, "expired")[0]["peer"] == "127.0.0.1:5000"
    assert sum(event["bytes"] for event in events_in(trackers, "sent")) == SIZE
    fetched = events_in(peers, "fetched")
    assert sorted((event["chunk"], event["bytes"]) for event in fetched) == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, 1000)]
    assert {event["of"] for event in fetched} == {event["neighbor"] for event in events_in(peers, "neighbor_added")} == {seeder}


@pytest.mark.spec("CL-15")
def test_events_are_appended_to_those_of_an_earlier_run(fake_tracker, run_peer, make_file, tmp_path):
    path, data = make_file(SIZE)
    events = tmp_path / "events"
    for _ in range(2):
        run_peer(fake_tracker(data).port, path, extra=["--leave", "--events", str(events)]).ends_with(0)
    assert [event["event"] for event in events_in(events)] == 2 * ["start", "joined", "complete"]


@pytest.mark.spec("CL-15")
def test_no_event_is_lost_when_the_program_ends(fake_tracker, fake_peer, run_patched, tmp_path):
    """One verifying thread is slow to write its event; meanwhile another one verifies the last chunk."""
    slow = """
import threading
write, slow = peer.Events.__call__, []
def slowly(self, event, **fields):
    if event == "fetched" and threading.current_thread().name == "verify" and not slow:
        slow.append(event)
        time.sleep(1)
    write(self, event, **fields)
peer.Events.__call__ = slowly
"""
    data, events = harness.some_bytes(9 * 1000), tmp_path / "events"
    tracker = fake_tracker(data, [fake_peer(data, chunk_size=1000).address], chunk_size=1000)
    run_patched("peer", slow, [tracker.address, tmp_path / "out", "--leave", "--events", events]).ends_with(0)
    assert sorted(event["chunk"] for event in events_in(events, "fetched")) == list(range(0, 9000, 1000))


# The wall clock.


WALL_CLOCKS = [
    "hours = iter(range(10**9)); time.time = lambda: 1e9 + 3600 * next(hours)",  # jumps an hour with every reading
    "hours = iter(range(10**9)); time.time = lambda: 2e9 - 3600 * next(hours)",  # and back
    "time.time = lambda: 1e9",                                                   # stands still
]


@pytest.mark.spec("CL-17")
@pytest.mark.fault(21)
@pytest.mark.parametrize("clock", WALL_CLOCKS, ids=["jumps_forth", "jumps_back", "stands_still"])
def test_whatever_the_wall_clock_does_a_lease_lasts_as_long_as_it_should(make_file, run_patched, clock):
    tracker = run_patched("tracker", clock, [make_file(10)[0], "--port", "0", "--no-seed", "--expire", "0.3"])
    tracker.port = int(tracker.wait_for(r"listening on port (\d+)$")[1])
    began = time.monotonic()
    ask(tracker.port, join("127.0.0.1:5000"))
    eventually(lambda: not addresses(tracker), what="the end of the lease")
    assert time.monotonic() - began >= 0.3


@pytest.mark.spec("CL-17", "AP-4")
@pytest.mark.fault(21)
@pytest.mark.parametrize("clock", WALL_CLOCKS, ids=["jumps_forth", "jumps_back", "stands_still"])
def test_whatever_the_wall_clock_does_a_peer_fetches_and_proves_in_time(fake_tracker, fake_peer, run_patched, tmp_path, clock):
    data = harness.some_bytes(SIZE)
    tracker = fake_tracker(data, [fake_peer(data).address], lease_ms=300)
    peer = run_patched("peer", clock, [tracker.address, tmp_path / "out"])
    peer.wait_for("^complete")
    tracker.wait_for("active_proof", 10)
    times = tracker.times("active_proof")
    assert times[9] - times[0] > 0.1, "proofs came without a pause"


# Shortcuts and messages.


@pytest.mark.spec("CL-10")
@pytest.mark.parametrize("text, address", [("host", ("host", 8000)), ("10.0.0.1", ("10.0.0.1", 8000)), ("[::1]", ("::1", 8000)), ("h:1", ("h", 1))])
def test_a_tracker_without_a_port_has_the_usual_one(text, address):
    import peer
    assert peer.tracker_address(text) == address


@pytest.mark.spec("CL-3")
@pytest.mark.parametrize("arguments", [[], ["."], ["folder"]], ids=["left_out", "this_folder", "a_folder"])
def test_in_a_folder_out_has_the_name_that_the_tracker_tells_and_replaces_nothing(fake_tracker, fake_peer, tmp_path, arguments):
    data = harness.some_bytes(SIZE)
    (tmp_path / "folder").mkdir()
    out = tmp_path.joinpath(*arguments, "the name.bin")
    tracker = fake_tracker(data, [fake_peer(data).address], file=describe(data, name="the name.bin"))
    command = [sys.executable, os.path.join(harness.ROOT, "peer.py"), tracker.address, *arguments, "--leave"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert process.returncode == 0 and "the name.bin" in process.stdout and out.read_bytes() == data
    out.write_bytes(b"mine")
    one_line(subprocess.run([*command, "--force"], cwd=tmp_path, capture_output=True, text=True, timeout=20), 5)
    assert out.read_bytes() == b"mine"


HOSTILE = ["", ".", "..", "...", "/", "//", "\\", "../x", "../../x", "/etc/passwd", "C:\\x", "a/../../b", "a/", "-", "--force", "-rf", "~", "~/x", ".bashrc", ".ssh/config",
           "\0", "a\0b", "a\nb", "a\rb", "\x1b[2J", "\x07", "\x7f", "\u202egpj.exe", "\u2028", "\ufeffx", "\u200b", " ", " x ", "\t", "x" * 5000, "é" * 300, "日本" * 200,
           "con", "nul", "x.part", "a|b", "a;b", "$(x)", "`x`", "*", "?", "'", '"', "a b", "😀" * 100, "..\\..\\x"]


@pytest.mark.spec("FD-5")
@pytest.mark.fault(41)
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_whatever_name_a_tracker_tells_it_becomes_one_in_this_folder(name, tmp_path):
    import peer
    safe = peer.safe_name(name)
    assert safe and not set(safe) & set("/\\\0\n\r\x1b") and not safe.startswith((".", "-")) and safe.isprintable()
    (tmp_path / f"{safe}.part").write_bytes(b"")
    assert os.listdir(tmp_path) == [f"{safe}.part"]


@pytest.mark.spec("CL-12", "CL-15")
@pytest.mark.parametrize("name", ["out", "out.part", "./out", "link"])
def test_events_are_not_written_into_the_file_itself(make_file, tmp_path, name):
    path, data = make_file(SIZE)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    one_line(finished(peer_command(9, tmp_path / "out", "--events", os.path.join(tmp_path, name))), 2)
    one_line(finished(tracker_command(path, "--events", path)), 2)
    assert path.read_bytes() == data and not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


@pytest.mark.spec("CL-4", "CL-18")
def test_a_resumed_download_says_how_much_is_here(fake_tracker, fake_peer, run_peer, tmp_path):
    data = harness.some_bytes(4 * CHUNK)
    (tmp_path / "out.part").write_bytes(data[:3 * CHUNK])
    tracker = fake_tracker(data, [fake_peer(data).address])
    assert "resuming: 768.0 KiB of 1.0 MiB are here" in run_peer(tracker.port, tmp_path / "out", extra=["--leave"]).ends_with(0)


@pytest.mark.spec("CL-18")
@pytest.mark.parametrize("left, words", [(59, "0:00:59 left"), (3661, "1:01:01 left"), (400_000, "4 days, 15:06:40 left")])
def test_long_times_are_told_in_hours_and_minutes(left, words):
    import peer
    file = peer.Description("a", 400_000, 1000, bytes(400 * 32))
    assert words in peer.progress(file, left, [(0.0, 0), (1.0, 1)], 1)


@pytest.mark.spec("SW-4", "CL-18")
def test_a_tracker_that_is_gone_is_told_once(fake_tracker, run_peer, tmp_path):
    tracker = fake_tracker(harness.some_bytes(SIZE), lease_ms=300)
    peer = run_peer(tracker.port, tmp_path / "out")
    tracker.wait_for("active_proof")
    tracker.stop()
    peer.wait_for("^no answer from the tracker: .*; going on without it$")
    time.sleep(0.5)  # the fault's time: five more proofs
    assert peer.output.count("no answer from the tracker: ") == 1


@pytest.mark.spec("CL-10", "CL-13")
def test_another_program_at_the_trackers_port_is_told_by_what_it_says(fake_tracker, run_patched, tmp_path):
    tracker = fake_tracker(b"")
    tracker.answers["join"] = lambda request, sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    run_patched("peer", "peer.TRACKER_SECONDS = 0.3", [tracker.address, tmp_path / "out"]).ends_with(3, r"no tracker at .*: b'HTTP/1\.1'")


@pytest.mark.spec("CL-10")
def test_of_the_addresses_of_a_name_the_one_that_answered_is_tried_first(fake_tracker, run_patched, tmp_path):
    tracker = fake_tracker(harness.some_bytes(SIZE), lease_ms=300)
    changes = ("import socket; real = socket.create_connection\n"
               "def create_connection(address, **options): print('dialled', address, flush=True); return real(address, **options)\n"
               "socket.create_connection = create_connection")
    peer = run_patched("peer", changes, [f"localhost:{tracker.port}", tmp_path / "out"])
    tracker.wait_for("active_proof", 2)
    dialled = re.findall(r"dialled \('(.+)', ", peer.output)
    assert dialled[0] == "localhost" and set(dialled[1:]) == {"127.0.0.1"}


@pytest.fixture
def link_local():
    """A link-local address of this machine, with its zone."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as table:
        for address, _, _, scope, _, interface in map(str.split, table):
            if scope == "20":
                return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))}%{interface}"
    return pytest.skip("this machine has no link-local address")


@pytest.mark.fault(52)
@pytest.mark.spec("JN-6", "AP-4")
def test_at_a_link_local_address_the_tracker_and_its_peers_are_reached_for_good(link_local, make_file, run_tracker, run_peer, tmp_path):
    tracker = run_tracker(make_file(SIZE)[0], expire=1)
    peer = run_peer(f"[{link_local}]:{tracker.port}", tmp_path / "out", extra=["--seed-for", "3"])
    peer.ends_with(0)
    assert "no answer" not in peer.output and "expired" not in tracker.output


@pytest.mark.spec("CL-18")
def test_a_progress_line_fits_into_the_terminal_as_it_is_now(ending, half_way, tmp_path):
    tracker, neighbor = half_way
    terminal = ending(harness.Terminal(peer_command(tracker.port, tmp_path / "out", "--leave"), columns=24))
    assert max(map(len, re.findall(r"\x1b\[K([^\r\n]*%[^\r\n]*)", terminal.read(r" 33\.3 %.*\r")))) == 23
    terminal.resize(200)
    terminal.read(r" 33\.3 %.* 1 neighbor .*\r")
    neighbor.released.set()
    terminal.read(r"complete: ")


@pytest.mark.spec("CL-18")
def test_on_a_terminal_a_seeder_shows_how_much_it_has_given(ending, make_file, run_peer, tmp_path):
    terminal = ending(harness.Terminal(harness.tracker_command(make_file(3 * 1024)[0])))
    port = re.search(r"listening on port (\d+)", terminal.read(r"listening on port \d+\r?\n"))[1]
    run_peer(int(port), tmp_path / "out", extra=["--leave"]).ends_with(0)
    terminal.read(r"\x1b\[K3\.0 KiB sent\r")


@pytest.mark.spec("CL-18")
def test_a_terminal_that_knows_no_escapes_gets_none(ending, half_way, tmp_path):
    tracker, neighbor = half_way
    terminal = ending(harness.Terminal(peer_command(tracker.port, tmp_path / "out", "--leave"), term="dumb"))
    neighbor.wait_for("fetch_chunk", 2)
    neighbor.released.set()
    assert "\x1b" not in terminal.read(r"^complete.*\n")


# Threads, and time that passed while asleep.


@pytest.mark.fault(50)
@pytest.mark.spec("WF-10", "SW-6")
def test_a_peer_that_can_start_few_threads_completes_from_many_neighbors(fake_tracker, ending, run_patched, tmp_path):
    data = harness.some_bytes(9 * 1000)
    neighbors = [ending(harness.SlowPeer(data, 0, chunk_size=1000)) for _ in range(12)]  # slow, so that many links are open before it is complete
    tracker = fake_tracker(data, [neighbor.address for neighbor in neighbors], chunk_size=1000)
    peer = run_patched("peer", FEW_THREADS.format(most=10), [tracker.address, tmp_path / "out", "--leave", "--events", tmp_path / "events"])
    eventually(lambda: any("can't start" in event["reason"] for event in events_in(tmp_path / "events", "neighbor_dropped")), what="a neighbor refused a thread")
    for neighbor in neighbors:
        neighbor.released.set()
    peer.ends_with(0)
    assert (tmp_path / "out").read_bytes() == data


FEW_THREADS = """
import threading
start = threading.Thread.start
def limited(thread):
    if threading.active_count() >= {most}:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
"""


@pytest.mark.fault(50)
@pytest.mark.spec("WF-10")
def test_a_tracker_that_can_start_few_threads_closes_what_waits_and_goes_on(make_file, run_patched):
    path, _ = make_file(10)
    tracker = run_patched("tracker", FEW_THREADS.format(most=10), [path, "--port", "0", "--no-seed"])
    port = int(tracker.wait_for(r"listening on port (\d+)$")[1])
    with contextlib.ExitStack() as idle:
        for _ in range(12):
            idle.enter_context(connect(port))
        eventually(lambda: answers(port, peer_list()), what="an answer, for one of those that wait is closed")
    assert "Traceback" not in tracker.output


@pytest.mark.fault(51)
@pytest.mark.spec("SW-7", "CL-17")
def test_a_time_that_a_peer_slept_through_is_no_time_without_a_neighbor(fake_tracker, fake_peer, run_patched, tmp_path):
    data = harness.some_bytes(SIZE)
    tracker = fake_tracker(data)
    peer = run_patched("peer", "peer.LOST_SECONDS = 2.5; peer.REFRESH_SECONDS = 0.1", [tracker.address, tmp_path / "out", "--leave"])
    peer.wait_for("^waiting for a neighbor")
    peer.signal(signal.SIGSTOP)
    time.sleep(3)  # the fault's time: longer than a swarm may be lost
    tracker.peers.append(fake_peer(data).address)
    peer.signal(signal.SIGCONT)
    peer.ends_with(0)
