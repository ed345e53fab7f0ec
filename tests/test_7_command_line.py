"""The command line, files, signals and exit codes of any implementation (SPEC.md, clauses CL).

Tests of our own programs, with shorter times and with faults made inside of them, are in test_command_line.py
and test_faults_system.py.
"""

import os
import select
import shlex
import signal
import socket
import subprocess
import time

import pytest

import harness
from harness import NINE_CHUNKS as DATA, SMALL_CHUNK as CHUNK
from harness import (KIB, SECONDS, after, ask, chunks_query, content_id, events_in, eventually, fetch_chunk, finished, held, kept, one_line,
                     peer_command, program_environment, some_bytes, split, tracker_command)

SIGNALS = pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])


def part_of(out):
    return out.with_name(out.name + ".part")


# OUT and OUT.part.


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-13")
@pytest.mark.parametrize("there", [bytes(len(DATA)), DATA + b"more"], ids=["of_the_same_size", "longer"])
def test_an_out_that_is_another_file_is_refused_and_left_as_it_is(tracker, neighbor, out, there):
    fake = neighbor()
    out.write_bytes(there)
    one_line(finished(peer_command(tracker.port, out, "--leave")), 5)
    assert out.read_bytes() == there and not fake.fetched()


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-13")
def test_an_out_that_is_a_link_is_refused_and_what_it_points_to_left_as_it_is(tracker, neighbor, out):
    neighbor()
    behind = out.with_name("behind")
    behind.write_bytes(b"something else")
    out.symlink_to(behind)
    one_line(finished(peer_command(tracker.port, out, "--leave")), 5)
    assert out.is_symlink() and behind.read_bytes() == b"something else"


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-3")
@pytest.mark.parametrize("link", [False, True], ids=["a_file", "a_link"])
def test_forced_a_peer_replaces_out_at_the_end_and_not_what_a_link_points_to(tracker, neighbor, run_peer, out, gate, link):
    slow, behind = neighbor(), out.with_name("behind")
    slow.answers["fetch_chunk"] = after(gate, slow.on_fetch_chunk)
    behind.write_bytes(b"something else")
    out.symlink_to(behind) if link else out.write_bytes(b"something else")
    program = run_peer(tracker.port, out, ["--force", "--leave"])
    slow.wait_for("fetch_chunk")
    assert out.read_bytes() == b"something else" and out.is_symlink() == link
    gate.set()
    program.ends_with(0)
    assert not out.is_symlink() and out.read_bytes() == DATA
    assert behind.read_bytes() == b"something else"


@pytest.mark.fault(32)
@pytest.mark.spec("CL-7", "CL-13")
def test_the_second_peer_on_one_out_ends_at_once_and_the_first_goes_on(tracker, neighbor, run_peer, out, gate):
    slow = neighbor()
    slow.answers["fetch_chunk"] = after(gate, slow.on_fetch_chunk)
    program = run_peer(tracker.port, out, ["--leave"])
    slow.wait_for("fetch_chunk")
    run_peer(tracker.port, out, ["--leave"]).ends_with(5, seconds=5)
    assert not out.exists()
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.spec("CL-4")
def test_of_an_out_part_what_is_right_is_kept_and_the_rest_fetched(tracker, neighbor, run_peer, out):
    """That includes fetching a chunk of zeros, like a hole in a sparse file, and one with a single wrong byte."""
    fake, before = neighbor(), bytearray(DATA)
    before[CHUNK:2 * CHUNK] = bytes(CHUNK)
    before[5 * CHUNK + 7] ^= 1
    part_of(out).write_bytes(before)
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert out.read_bytes() == DATA
    assert set(fake.fetched()) == {CHUNK, 5 * CHUNK}


@pytest.mark.spec("CL-4", "CL-8")
def test_told_to_leave_a_peer_whose_out_is_complete_fetches_nothing_and_leaves(tracker, neighbor, run_peer, out):
    fake = neighbor()
    out.write_bytes(DATA)
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert out.read_bytes() == DATA and not fake.fetched()


@pytest.mark.spec("CL-8")
@pytest.mark.takes(2)
def test_told_to_seed_for_two_seconds_a_peer_leaves_after_these(tracker, neighbor, run_peer, out):
    neighbor()
    program = run_peer(tracker.port, out, ["--seed-for", "2"])
    eventually(out.exists, what="a complete file")
    began = time.monotonic()
    program.ends_with(0, seconds=6)
    assert time.monotonic() - began > 1, "it left at once"  # two seconds; this test may have been late to see the file
    assert out.read_bytes() == DATA


# Wrong usage.


@pytest.mark.fault(35)
@pytest.mark.spec("CL-12", "CL-13")
@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, os.mkfifo], ids=["nothing_there", "a_directory", "a_fifo"])
def test_what_is_no_file_ends_the_tracker(tmp_path, make):
    make(tmp_path / "file.bin")
    one_line(finished(tracker_command(tmp_path / "file.bin")), 8)


@pytest.mark.fault(38)
@pytest.mark.spec("CL-12", "CL-13")
@pytest.mark.parametrize("program", ["tracker", "peer"])
def test_a_port_that_is_taken_ends_either_program(tracker, make_file, tmp_path, out, program):
    """It is taken at all addresses, so that none is free."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        command = peer_command(tracker.port, out, "--port", port) if program == "peer" else tracker_command(make_file(1)[0], port=port)
        one_line(finished(command), 9)
    assert not tracker.joined


@pytest.mark.spec("CL-12", "CL-13")
@pytest.mark.parametrize("words", [["--no-such-option"], ["one", "two"], ["--upload-limit", "fast"], ["--upload-limit"]],
                         ids=["unknown_option", "too_many_words", "no_rate", "no_value"])
def test_wrong_arguments_end_either_program(tracker, make_file, out, words):
    for command in (peer_command(tracker.port, out, *words), tracker_command(make_file(1)[0], *words)):
        process = finished(command)
        assert process.returncode == 2 and process.stderr.strip() and "Traceback" not in process.stderr
    assert not tracker.joined
@pytest.mark.fault(33)
@pytest.mark.spec("CL-4", "CL-3")
@pytest.mark.parametrize("left, missing", [
    (lambda data: data[:5 * CHUNK + 5], [5, 6, 7, 8]),
    (lambda data: data[:2 * CHUNK] + bytes([data[2 * CHUNK] ^ 1]) + data[2 * CHUNK + 1:], [2]),
    (lambda data: data + b"more than there should be", []),
], ids=["cut_short", "one_wrong_bit", "too_long"])
def test_of_what_is_left_in_out_part_only_the_wrong_and_the_missing_is_fetched(tracker, neighbor, run_peer, out, left, missing):
    fake = neighbor()
    part_of(out).write_bytes(left(DATA))
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert sorted(fake.fetched()) == [index * CHUNK for index in missing]
    assert out.read_bytes() == DATA and not part_of(out).exists()


@pytest.mark.fault(30)
@pytest.mark.spec("CL-6", "CL-13")
def test_an_out_in_a_folder_that_is_missing_is_refused_before_the_peer_joins(tracker, tmp_path):
    one_line(finished(peer_command(tracker.port, tmp_path / "missing" / "out", "--leave")), 5)
    assert not tracker.requests and not os.listdir(tmp_path)


@pytest.mark.spec("FD-4")
def test_a_peer_takes_the_file_that_it_was_told_to_expect(tracker, neighbor, run_peer, out):
    neighbor()
    run_peer(tracker.port, out, ["--leave", "--expect", content_id(tracker.file).hex()]).ends_with(0)
    assert out.read_bytes() == DATA


# How long a peer stays, and where it listens.


@pytest.mark.spec("CL-1", "JN-8")
def test_a_peer_listens_on_the_port_that_it_is_told(tracker, run_peer, out):
    with kept(0) as free:
        port = free.getsockname()[1]
        run_peer(tracker.port, out, ["--port", str(port)])
        assert tracker.joiner() == f"127.0.0.1:{port}"
        assert ask(port, chunks_query()).WhichOneof("type") == "chunks_query"


# What is printed.


@pytest.mark.spec("CL-2")
@pytest.mark.fault(41)
def test_the_commands_that_a_tracker_prints_can_be_given_to_a_shell(make_file, run_tracker):
    tracker = run_tracker(make_file(10, name='it\'s a "file"; rm x')[0])
    commands = [shlex.split(line) for line in tracker.output.splitlines() if line.startswith((" ", "\t")) and f":{tracker.port} " in line]
    assert commands, f"no indented line with the port {tracker.port}: {tracker.output}"
    assert {words[-1] for words in commands} == {'it\'s a "file"; rm x'} and all(words[-2].endswith(f":{tracker.port}") for words in commands)


@pytest.mark.spec("CL-18")
def test_a_peer_that_is_quiet_says_nothing_and_one_that_is_not_says_that_it_seeds(tracker, neighbor, run_peer, out):
    neighbor()
    quiet = finished(peer_command(tracker.port, out, "--leave", "--quiet"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert "seeding" in run_peer(tracker.port, out).wait_for("^complete.*")[0]


@pytest.mark.spec("CL-18")
@pytest.mark.parametrize("command, options", [
    (tracker_command("FILE"), ["--host", "--port", "--chunk-size", "--expire", "--upload-limit", "--no-seed", "--quiet", "--events", "--version"]),
    (peer_command(1, "OUT"), ["--host", "--port", "--leave", "--seed-for", "--upload-limit", "--expect", "--force", "--quiet", "--events", "--version"]),
], ids=["tracker", "peer"])
def test_help_lists_every_option(command, options):
    said = finished([*command, "--help"])
    assert said.returncode == 0 and [option for option in options if option not in said.stdout] == []


@pytest.mark.fault(37)
@pytest.mark.spec("CL-13")
def test_a_program_whose_stdout_was_closed_goes_on(make_file, out):
    """As with `| head -1`: nobody reads the tracker's first lines, or the peer's last one."""
    path, data = make_file(DATA)
    with kept(0) as free:
        port = free.getsockname()[1]
    unread, write = os.pipe()
    os.close(unread)
    harness.trace.step("started both programs under test, with a stdout that is closed")
    tracker = subprocess.Popen(tracker_command(path, port=port), cwd=harness.PROGRAMS, env=program_environment(), stdin=subprocess.DEVNULL,
                               stdout=write, stderr=subprocess.PIPE, start_new_session=True)
    try:
        peer = subprocess.run(peer_command(port, out, "--leave"), cwd=harness.PROGRAMS, env=program_environment(), stdin=subprocess.DEVNULL,
                              stdout=write, stderr=subprocess.PIPE, timeout=2 * SECONDS)
        assert (peer.returncode, peer.stderr, tracker.poll()) == (0, b"", None)
        assert out.read_bytes() == data
    finally:
        os.close(write)
        tracker.kill()
        tracker.communicate()


@pytest.mark.fault(37)
@pytest.mark.spec("CL-13")
def test_a_peer_whose_stdout_nobody_reads_completes(tracker, neighbor, out):
    neighbor()
    unread, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    harness.trace.step("started the peer under test, with a stdout that takes nothing more")
    try:
        peer = subprocess.run(peer_command(tracker.port, out, "--leave"), cwd=harness.PROGRAMS, env=program_environment(), stdin=subprocess.DEVNULL,
                              stdout=write, stderr=subprocess.PIPE, timeout=2 * SECONDS)
        assert (peer.returncode, peer.stderr) == (0, b"") and out.read_bytes() == DATA
    finally:
        os.close(write)
        os.close(unread)


@pytest.mark.spec("CL-15")
def test_a_peer_writes_its_events_one_object_a_line(tracker, neighbor, run_peer, out):
    fake, events = neighbor(), out.with_name("events")
    run_peer(tracker.port, out, ["--leave", "--events", str(events)]).ends_with(0)
    found = events_in(events)
    assert all(event["t"] >= 0 for event in found)
    by_kind = {event["event"]: event for event in found}
    assert {"start", "joined", "neighbor_added", "fetched", "complete"} <= set(by_kind)
    assert abs(by_kind["start"]["wall"] - time.time()) < 60 and by_kind["start"]["port"] > 0
    assert by_kind["joined"]["listening"] == tracker.joiner()
    assert by_kind["neighbor_added"]["neighbor"] == fake.address
    assert sorted(event["chunk"] for event in found if event["event"] == "fetched") == sorted(set(fake.fetched()))
    assert {event["of"] for event in found if event["event"] == "fetched"} == {fake.address}
    assert sum(event["bytes"] for event in found if event["event"] == "fetched") == by_kind["complete"]["bytes"] == len(DATA)


@pytest.mark.spec("CL-15")
def test_a_tracker_writes_who_joined_and_whose_lease_ran_out(make_file, run_tracker, out):
    events = out.with_name("events")
    tracker = run_tracker(make_file(10)[0], expire=1, extra=["--no-seed", "--events", str(events)])
    ask(tracker.port, harness.join("127.0.0.1:5001"))
    ask(tracker.port, harness.active_proof("127.0.0.1:5002"))
    eventually(lambda: len(events_in(events, "expired")) == 2, what="the events of both leases' ends")
    assert [(event["event"], event.get("peer")) for event in events_in(events, "joined", "listed")] == [("joined", "127.0.0.1:5001"), ("listed", "127.0.0.1:5002")]
    assert {event["peer"] for event in events_in(events, "expired")} == {"127.0.0.1:5001", "127.0.0.1:5002"}


# The rate.


@pytest.mark.slow
@pytest.mark.spec("CL-14")
@pytest.mark.takes(6)
def test_a_chunk_that_takes_seconds_at_the_upload_limit_comes_whole_and_in_time(fake_tracker, run_peer, tmp_path):
    """24 KiB at 4 KiB a second; an asker waits up to sixteen seconds. The other two may be told BUSY, or have their turn after the first."""
    data = some_bytes(48 * KIB)
    (tmp_path / "out").write_bytes(data)
    tracker = fake_tracker(data, chunk_size=24 * KIB)
    run_peer(tracker.port, tmp_path / "out", ["--upload-limit", "4K"]).wait_for("^complete")
    with harness.connect(tracker.joiner()) as first, harness.connect(tracker.joiner()) as second, harness.connect(tracker.joiner()) as third:
        for sock in (first, second, third):
            sock.sendall(harness.framed(fetch_chunk(24 * KIB, busy_ok=sock is not first)))
            select.select([sock], [], [], 0.2)
        first.settimeout(harness.patience(SECONDS))
        assert harness.receive(first).chunk == data[24 * KIB:]
        for sock in select.select([second, third], [], [], 0)[0]:
            answer = harness.receive(sock)
            assert answer.chunk == data[24 * KIB:] or harness.is_refused(answer, harness.BUSY)
        assert sorted(held(tracker.joiner())) == [0, 24 * KIB]


@pytest.mark.slow
@pytest.mark.spec("CL-14")
@pytest.mark.takes(6)
def test_no_more_than_the_upload_limit_comes_to_all_askers_together(make_file, fake_tracker, run_peer, tmp_path):
    """Over a little more than five seconds. That it is not much less is tested where there is time (test_command_line.py)."""
    data = some_bytes(256 * KIB)
    (tmp_path / "out").write_bytes(data)
    tracker = fake_tracker(data, chunk_size=64 * KIB)
    run_peer(tracker.port, tmp_path / "out", ["--upload-limit", "256K"]).wait_for("^complete")
    socks = [harness.connect(tracker.joiner()) for _ in range(3)]
    try:
        came, began = 0, time.monotonic()
        for number, sock in enumerate(socks):
            sock.sendall(20 * harness.framed(fetch_chunk(number * 64 * KIB)))
        while time.monotonic() - began < 5.5:
            for sock in select.select(socks, [], [], 0.1)[0]:
                came += len(sock.recv(1 << 20))
                sock.came.clear()
        seconds = time.monotonic() - began
    finally:
        for sock in socks:
            sock.close()
    assert came <= 1.03 * 256 * KIB * seconds, f"{came / seconds / KIB:.0f} KiB a second"
    assert came > 256 * KIB, "it hardly sends at all"


# No tracker, no seeder.


@pytest.mark.thorough
@pytest.mark.long
@pytest.mark.takes(31)
@pytest.mark.timeout(120)
@pytest.mark.fault(24)
@pytest.mark.spec("CL-10", "CL-13")
def test_a_peer_whose_tracker_never_comes_gives_up_after_thirty_seconds(run_peer, out):
    with kept(0) as free:
        began = time.monotonic()
        run_peer(free.getsockname()[1], out).ends_with(3, seconds=45)
        assert time.monotonic() - began > 25, "it gave up early"
    assert not out.exists()


@pytest.mark.thorough
@pytest.mark.long
@pytest.mark.takes(62)
@pytest.mark.timeout(150)
@pytest.mark.fault(27)
@pytest.mark.spec("SW-7", "CL-3")
def test_when_nobody_has_a_chunk_for_sixty_seconds_a_leecher_ends_and_keeps_what_it_has(tracker, neighbor, run_peer, out):
    neighbor([0, 1, 2, 4, 5, 6, 7, 8])
    program = run_peer(tracker.port, out)
    eventually(lambda: len(held(tracker.joiner())) == 8, what="all but one")
    began = time.monotonic()
    text = program.ends_with(7, seconds=80)
    assert time.monotonic() - began > 55, "it gave up early"
    how_much = ("12", "16", "1 of 9", "1 chunk", str(3 * CHUNK))  # percent; KiB or bytes; chunks; which one
    assert not out.exists() and any(words in text for words in how_much), "it says how much is missing"
    part = part_of(out).read_bytes()
    assert part[:3 * CHUNK] == DATA[:3 * CHUNK] and part[4 * CHUNK:] == DATA[4 * CHUNK:]


@pytest.mark.fault(24)
@pytest.mark.spec("CL-10")
def test_a_peer_that_is_there_before_its_tracker_joins_when_that_is_up(fake_tracker, fake_peer, run_peer, out):
    seeder = fake_peer(DATA, chunk_size=CHUNK)
    with kept(0) as free:  # a port at which nobody listens
        port = free.getsockname()[1]
        program = run_peer(port, out, ["--leave"])
        time.sleep(1)  # the fault's time: a peer that tries only once, or a few times at once, has ended
        fake_tracker(DATA, [seeder.address], chunk_size=CHUNK, port=port)
        program.ends_with(0)
    assert out.read_bytes() == DATA


# Signals.


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9", "CL-4")
@SIGNALS
def test_a_signal_ends_a_peer_with_its_exit_code_and_what_came_is_kept(tracker, neighbor, run_peer, out, gate, number, code):
    quick, slow = neighbor([4]), neighbor()
    slow.answers["fetch_chunk"] = after(gate, slow.on_fetch_chunk)
    program = run_peer(tracker.port, out)
    eventually(lambda: held(tracker.joiner()) == [4 * CHUNK], what="the one chunk that comes")
    program.signal(number)
    program.ends_with(code)
    assert part_of(out).read_bytes()[4 * CHUNK:5 * CHUNK] == split(DATA, CHUNK)[4] and not out.exists()


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
def test_a_signal_ends_a_tracker_with_its_exit_code(make_file, run_tracker, number, code):
    program = run_tracker(make_file(1000)[0])
    program.signal(number)
    program.ends_with(code)
