"""Faults of the machine: disks, files, signals, ports, descriptors, bugs (rows 29 to 46 of lab/FAULTS.md)."""

import errno
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import harness
import messages_pb2 as pb
from harness import (CHUNK, SECONDS, ask, chunks_query, connect, describe, eventually, events_in, fetch_chunk, finished, framed, held, is_closed, join,
                     one_line, peer_command, peer_list, receive_bytes, split, spoilt_description, tracker_command)

SIZE = 3 * CHUNK + 1000  # four chunks, the last one short
LINUX = sys.platform == "linux"


def right_chunks(part, data, chunk_size=CHUNK):
    """The ids of the chunks that a file holds, found by comparing bytes."""
    there = part.read_bytes()
    return [index * chunk_size for index, chunk in enumerate(split(data, chunk_size)) if there[index * chunk_size:][:len(chunk)] == chunk]


def the_seeder(tracker):
    """The address of the tracker's own peer, as soon as it is listed and holds the file."""
    address = eventually(lambda: ask(tracker.port, peer_list()).peer_list.addresses, what="a peer in the list")[0]
    eventually(lambda: held(address), what="a chunk at the seeder")
    return address


@pytest.fixture
def swarm(fake_tracker, fake_peer):
    """(tracker, neighbor, data): fakes for one file; the neighbor holds all of it."""
    data = harness.some_bytes(SIZE)
    neighbor = fake_peer(data)
    return fake_tracker(data, [neighbor.address]), neighbor, data


@pytest.fixture
def stuck_swarm(ending, fake_tracker):
    """(tracker, neighbor, data): fakes for one file; the neighbor gives two chunks, then none until it is released."""
    data = harness.some_bytes(SIZE)
    neighbor = ending(harness.SlowPeer(data, free=2))
    return fake_tracker(data, [neighbor.address]), neighbor, data


# Row 29: no room on the disk.


NO_ROOM_AFTER_TWO = """
import errno, os
pwrite, room = os.pwrite, [1, 1]
def full(*arguments):
    if not room:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    room.pop()
    return pwrite(*arguments)
os.pwrite = full
"""


@pytest.mark.fault(29)
@pytest.mark.spec("CL-11", "CL-13", "CL-4")
def test_a_full_disk_ends_the_peer_and_what_came_is_kept(swarm, fake_peer, run_patched, run_peer, tmp_path):
    tracker, _, data = swarm
    out, part = tmp_path / "out", tmp_path / "out.part"
    run_patched("peer", NO_ROOM_AFTER_TWO, [tracker.address, out]).ends_with(6, os.strerror(errno.ENOSPC))
    kept = right_chunks(part, data)
    assert len(kept) == 2 and not out.exists()
    another = fake_peer(data)
    tracker.peers[:] = [another.address]
    run_peer(tracker.port, out, extra=["--leave"]).ends_with(0)  # now there is room again
    assert sorted(kept + another.fetched()) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert out.read_bytes() == data


@pytest.mark.fault(29)
@pytest.mark.spec("CL-11", "CL-13")
def test_a_disk_without_room_for_the_whole_file_ends_the_peer_before_anything_is_asked(swarm, run_patched, tmp_path):
    tracker, neighbor, _ = swarm
    disk = "import os, types\nos.fstatvfs = lambda fd: types.SimpleNamespace(f_bavail=3, f_frsize=1024, f_blocks={blocks})"
    run_patched("peer", disk.format(blocks=9), [tracker.address, tmp_path / "out"]).ends_with(6, r"3\.0 KiB are free for .*make room")
    assert not neighbor.requests and not (tmp_path / "out.part").exists()
    run_patched("peer", disk.format(blocks=0), [tracker.address, tmp_path / "out", "--leave"]).ends_with(0)  # the free space is unknown


@pytest.mark.fault(29)
@pytest.mark.spec("CL-11", "SW-2")
def test_a_full_disk_at_one_peer_is_not_noticed_by_its_neighbors(make_file, run_tracker, run_patched, run_peer, tmp_path):
    path, data = make_file(SIZE)
    tracker = run_tracker(path)
    seeder = the_seeder(tracker)
    full = run_patched("peer", NO_ROOM_AFTER_TWO, [f"127.0.0.1:{tracker.port}", tmp_path / "full"])
    other = run_peer(tracker.port, tmp_path / "other", extra=["--leave"])
    full.ends_with(6)
    other.ends_with(0)
    assert (tmp_path / "other").read_bytes() == data
    assert ask(seeder, fetch_chunk(0)).chunk == data[:CHUNK]


@pytest.mark.fault(29)
@pytest.mark.spec("CL-11", "CL-3")
def test_writes_that_are_short_are_completed(swarm, run_patched, tmp_path):
    tracker, _, data = swarm
    short = "import os\npwrite = os.pwrite\nos.pwrite = lambda fd, chunk, offset: pwrite(fd, chunk[:50_000], offset)"
    run_patched("peer", short, [tracker.address, tmp_path / "out", "--leave"]).ends_with(0)
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.fault(29)
@pytest.mark.spec("CL-11", "CL-13", "CL-4")
def test_a_disk_that_fails_ends_the_peer_with_another_exit_code(swarm, run_patched, tmp_path):
    tracker, _, data = swarm
    fails = "import errno, os\ndef fails(*_):\n    raise OSError(errno.EIO, os.strerror(errno.EIO))\nos.pwrite = fails"
    run_patched("peer", fails, [tracker.address, tmp_path / "out"]).ends_with(5, "cannot write")
    assert os.listdir(tmp_path) == ["out.part"]


@pytest.mark.fault(29)
@pytest.mark.spec("CL-4", "CL-13")
@pytest.mark.parametrize("name", ["out", "out.part"])
def test_a_disk_that_cannot_be_read_is_told_in_one_line(swarm, run_patched, tmp_path, name):
    tracker, _, data = swarm
    (tmp_path / name).write_bytes(data)
    broken = "import errno, os\ndef broken(*_):\n    raise OSError(errno.EIO, os.strerror(errno.EIO))\npeer.hash_chunks = broken"
    run_patched("peer", broken, [tracker.address, tmp_path / "out"]).ends_with(5, "cannot read what is in .*Input/output error")
    assert (tmp_path / name).read_bytes() == data


# Rows 30 to 33: OUT and OUT.part.


def unwritable(tmp_path):
    """A folder in which this user cannot make files, although root can nearly everywhere."""
    if LINUX:
        return "/proc"
    if os.geteuid() == 0:
        pytest.skip("root may write in any folder here")
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    return folder


@pytest.mark.fault(30)
@pytest.mark.spec("CL-6", "CL-13")
@pytest.mark.parametrize("place, force", [("missing folder", []), ("unwritable folder", []), ("below a file", []), ("OUT.part a directory", []),
                                          ("-", []), ("no directory/", [])],
                         ids=lambda value: value if isinstance(value, str) else "".join(value))
def test_an_out_that_cannot_be_written_is_refused_before_joining(swarm, tmp_path, place, force):
    tracker, _, data = swarm
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"something else")
    (tmp_path / "out.part").mkdir()
    out = {"missing folder": tmp_path / "missing" / "out", "unwritable folder": os.path.join(unwritable(tmp_path), "out"),
           "-": "-", "no directory/": f"{tmp_path}/none/", "below a file": tmp_path / "file" / "out",
           "OUT.part a directory": tmp_path / "out"}[place]
    one_line(finished(peer_command(tracker.port, out, *force)), 5)
    assert not tracker.requests
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "out.part"] and not os.listdir(tmp_path / "folder")


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-13")
@pytest.mark.parametrize("there", [b"", bytes(SIZE), harness.some_bytes(SIZE) + b"more", harness.some_bytes(SIZE)[:-1] + b"?"],
                         ids=["empty", "of_the_same_size", "longer", "with_one_wrong_byte"])
def test_an_out_that_is_another_file_is_refused_and_unchanged(swarm, tmp_path, there):
    tracker, neighbor, data = swarm
    out = tmp_path / "out"
    out.write_bytes(there)
    before = out.stat()
    one_line(finished(peer_command(tracker.port, out, "--leave")), 5)
    assert out.read_bytes() == there and os.path.samestat(out.stat(), before)
    assert not neighbor.fetched() and os.listdir(tmp_path) == ["out"]


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-3")
def test_forced_a_peer_replaces_another_file_only_at_the_end(stuck_swarm, run_peer, tmp_path):
    tracker, neighbor, data = stuck_swarm
    out = tmp_path / "out"
    out.write_bytes(b"something else")
    peer = run_peer(tracker.port, out, extra=["--force", "--leave"])
    address = tracker.joiner()
    eventually(lambda: len(held(address)) == 2, what="two chunks")
    assert out.read_bytes() == b"something else"
    neighbor.released.set()
    peer.ends_with(0)
    assert out.read_bytes() == data and os.listdir(tmp_path) == ["out"]


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5")
@pytest.mark.parametrize("target", ["another file", "the file itself", "nothing"])
def test_a_link_as_out_is_refused_and_when_forced_replaced_but_never_followed(swarm, run_peer, tmp_path, target):
    tracker, _, data = swarm
    out, behind = tmp_path / "out", tmp_path / "behind"
    out.symlink_to(behind)
    if target != "nothing":
        behind.write_bytes(data if target == "the file itself" else b"something else")
    one_line(finished(peer_command(tracker.port, out, "--leave")), 5)
    assert out.is_symlink()
    run_peer(tracker.port, out, extra=["--leave", "--force"]).ends_with(0)
    assert not out.is_symlink() and out.read_bytes() == data
    if target == "another file":
        assert behind.read_bytes() == b"something else"
    assert behind.exists() == (target != "nothing")


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-6")
@pytest.mark.parametrize("name, force", [("out", []), ("out", ["--force"]), ("out.part", [])], ids=["out", "out_forced", "out.part"])
def test_a_fifo_in_the_place_of_out_or_out_part_does_not_hold_a_peer_up(swarm, tmp_path, name, force):
    tracker, _, _ = swarm
    os.mkfifo(tmp_path / name)
    one_line(finished(peer_command(tracker.port, tmp_path / "out", *force)), 5)
    assert os.listdir(tmp_path) == [name] and not tracker.requests


@pytest.mark.fault(31)
@pytest.mark.spec("CL-6")
@pytest.mark.parametrize("target", ["another file", "nothing"])
def test_a_link_in_the_place_of_out_part_is_not_written_through(swarm, tmp_path, target):
    tracker, _, _ = swarm
    behind = tmp_path / "behind"
    if target == "another file":
        behind.write_bytes(b"something else")
    (tmp_path / "out.part").symlink_to(behind)
    one_line(finished(peer_command(tracker.port, tmp_path / "out", "--force")), 5)
    assert behind.read_bytes() == b"something else" if target == "another file" else not behind.exists()


@pytest.mark.fault(31)
@pytest.mark.spec("CL-5", "CL-3", "CL-13")
def test_an_out_that_comes_to_exist_meanwhile_is_not_replaced(stuck_swarm, run_peer, tmp_path):
    tracker, neighbor, data = stuck_swarm
    peer = run_peer(tracker.port, tmp_path / "out")
    neighbor.wait_for("fetch_chunk", 3)
    (tmp_path / "out").write_bytes(b"something else")
    neighbor.released.set()
    peer.ends_with(5, r"^peer\.\w+: ")
    assert (tmp_path / "out").read_bytes() == b"something else" and (tmp_path / "out.part").read_bytes() == data


@pytest.mark.fault(31)
@pytest.mark.spec("CL-3", "CL-13")
@pytest.mark.parametrize("instead", [b"something else", None], ids=["replaced", "removed"])
def test_an_out_part_that_is_not_ours_any_longer_does_not_become_out(stuck_swarm, run_peer, tmp_path, instead):
    tracker, neighbor, data = stuck_swarm
    peer = run_peer(tracker.port, tmp_path / "out", extra=["--leave"])
    neighbor.wait_for("fetch_chunk", 3)
    (tmp_path / "out.part").unlink()
    if instead:
        (tmp_path / "out.part").write_bytes(instead)
    peer.wait()  # it ends although no chunk comes
    assert not (tmp_path / "out").exists(), "OUT is not what was verified"
    peer.ends_with(5, r"^peer\.\w+: ")


@pytest.mark.fault(32)
@pytest.mark.spec("CL-7", "CL-13")
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_the_second_peer_on_an_out_that_is_being_fetched_ends_at_once(stuck_swarm, run_peer, tmp_path, force):
    tracker, neighbor, data = stuck_swarm
    out = tmp_path / "out"
    first = run_peer(tracker.port, out, extra=["--leave"])
    neighbor.wait_for("fetch_chunk", 3)
    assert "another process" in one_line(finished(peer_command(tracker.port, out, *force)), 5)
    assert tracker.count("join") == 1
    neighbor.released.set()
    first.ends_with(0)
    assert out.read_bytes() == data


@pytest.mark.fault(32)
@pytest.mark.spec("CL-7", "CL-13")
@pytest.mark.parametrize("there", [True, False], ids=["it_was_there", "it_was_fetched"])
def test_the_second_peer_on_an_out_that_is_seeded_ends_at_once(swarm, run_peer, tmp_path, there):
    tracker, neighbor, data = swarm
    out = tmp_path / "out"
    if there:
        out.write_bytes(data)
    run_peer(tracker.port, out).wait_for("^complete")
    for force in ([], ["--force"]):
        assert "another process" in one_line(finished(peer_command(tracker.port, out, *force)), 5)
    assert tracker.count("join") == 1 and out.read_bytes() == data
    assert held(tracker.joiner())


@pytest.mark.fault(33)
@pytest.mark.spec("CL-4", "CL-3")
def test_after_kill_9_at_half_only_what_is_missing_crosses_the_wire(stuck_swarm, fake_peer, run_peer, tmp_path):
    tracker, neighbor, data = stuck_swarm
    out, part = tmp_path / "out", tmp_path / "out.part"
    peer = run_peer(tracker.port, out)
    address = tracker.joiner()
    offered = eventually(lambda: len(held(address)) == 2 and held(address), what="two chunks")
    peer.signal(signal.SIGKILL)
    peer.wait()
    assert sorted(offered) == right_chunks(part, data) and not out.exists()
    tracker.peers, honest = [], fake_peer(data)
    tracker.peers.append(honest.address)
    run_peer(tracker.port, out, extra=["--leave"]).ends_with(0)
    assert sorted(offered + honest.fetched()) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert out.read_bytes() == data


@pytest.mark.fault(33)
@pytest.mark.spec("CL-4")
def test_after_kill_9_what_was_spoilt_in_out_part_is_found_and_fetched_again(stuck_swarm, fake_peer, run_peer, tmp_path):
    tracker, _, data = stuck_swarm
    out, part = tmp_path / "out", tmp_path / "out.part"
    peer = run_peer(tracker.port, out)
    address = tracker.joiner()
    kept, spoilt = eventually(lambda: len(held(address)) == 2 and sorted(held(address)), what="two chunks")
    peer.signal(signal.SIGKILL)
    peer.wait()
    with open(part, "r+b") as file:
        file.seek(spoilt + 500)
        file.write(b"spoilt")
    honest = fake_peer(data)
    tracker.peers[:] = [honest.address]
    run_peer(tracker.port, out, extra=["--leave"]).ends_with(0)
    assert spoilt in honest.fetched() and kept not in honest.fetched()
    assert out.read_bytes() == data


# Row 34: the file changes while it is served.


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(CHUNK + 7)
        file.write(b"spoilt")


def overwrite_and_turn_back_the_time(path):
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync --inplace --times does


@pytest.mark.fault(34)
@pytest.mark.spec("FC-13", "FC-5")
@pytest.mark.parametrize("change", [overwrite, overwrite_and_turn_back_the_time, lambda path: os.truncate(path, CHUNK + 7)],
                         ids=["overwritten", "overwritten_with_its_old_time", "cut_short"])
def test_a_chunk_that_was_changed_on_disk_is_refused_and_the_others_are_served(swarm, run_peer, tmp_path, change):
    tracker, _, data = swarm
    out = tmp_path / "out"
    out.write_bytes(data)
    peer = run_peer(tracker.port, out)
    peer.wait_for("^complete")
    with connect(tracker.joiner()) as sock:
        assert ask(sock, fetch_chunk(CHUNK)).chunk == data[CHUNK:2 * CHUNK]
        change(out)
        assert ask(sock, fetch_chunk(CHUNK)).bad.code == pb.NOT_HELD
        assert ask(sock, fetch_chunk(0)).chunk == data[:CHUNK]
    peer.wait_for("^the file was changed: ")


@pytest.mark.spec("CQ-1", "FC-5")
def test_a_peer_that_still_verifies_its_file_lists_nothing_and_gives_nothing(fake_tracker, run_patched, tmp_path):
    """Verification waits until a file appears; the peer has joined, so others may ask it meanwhile."""
    data, go_on = harness.some_bytes(SIZE), tmp_path / "go_on"
    (tmp_path / "out.bin").write_bytes(data)
    tracker = fake_tracker(data)
    changes = f"""
import os
verify = peer.Store.verify
def wait_and_verify(self, show):
    while not os.path.exists({str(go_on)!r}):
        time.sleep(0.01)
    return verify(self, show)
peer.Store.verify = wait_and_verify
"""
    run_patched("peer", changes, [f"127.0.0.1:{tracker.port}", tmp_path / "out.bin"])
    with connect(tracker.joiner()) as sock:
        eventually(lambda: ask(sock, fetch_chunk(1)).bad.code == pb.NO_SUCH_CHUNK, what="a peer that knows the file")
        answer = ask(sock, chunks_query())
        assert answer.WhichOneof("type") == "chunks_query" and not answer.chunks_query.chunk_ids
        assert harness.is_refused(ask(sock, fetch_chunk(0)), pb.NOT_HELD)
        go_on.touch()
        eventually(lambda: list(ask(sock, chunks_query()).chunks_query.chunk_ids) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK], what="the whole list")


@pytest.mark.fault(34)
@pytest.mark.spec("FC-13", "FC-2")
def test_a_file_that_is_cut_while_a_chunk_of_it_is_sent_ends_that_connection_only(make_file, run_tracker):
    path, data = make_file(SIZE)
    tracker = run_tracker(path, extra=["--upload-limit", "256K"])
    seeder = the_seeder(tracker)
    with connect(seeder) as sock:
        sock.sendall(framed(fetch_chunk(0)))
        start = receive_bytes(sock, 20_000)
        os.truncate(path, 0)
        got = start
        while len(got) < 13 + CHUNK and (more := sock.recv(1 << 20)):  # up to the end of the connection, or of the chunk if it had been read before
            got += more
    assert got[13:] in data[:CHUNK]
    assert ask(seeder, fetch_chunk(0)).bad.code == pb.NOT_HELD
    assert len(ask(tracker.port, peer_list()).peer_list.addresses) == 1


@pytest.mark.fault(34)
@pytest.mark.spec("FC-13", "FC-9", "CL-3", "SW-7")
def test_a_leecher_is_never_completed_from_a_file_that_was_overwritten(make_file, run_tracker, run_patched, tmp_path):
    path, data = make_file(SIZE)
    tracker = run_tracker(path, extra=["--upload-limit", "64K", "--chunk-size", "16K"])  # it would take twelve seconds
    the_seeder(tracker)
    peer = run_patched("peer", "peer.LOST_SECONDS = 2", [f"127.0.0.1:{tracker.port}", tmp_path / "out", "--events", tmp_path / "events"])
    eventually(lambda: events_in(tmp_path / "events", "fetched"), what="a first chunk")
    path.write_bytes(bytes(SIZE))
    peer.ends_with(7, "lost")
    there = (tmp_path / "out.part").read_bytes()
    assert not (tmp_path / "out").exists()
    for at in range(0, SIZE, 16 << 10):
        assert there[at:at + (16 << 10)] in (data[at:at + (16 << 10)], bytes(min(16 << 10, SIZE - at)))


# Row 35: what cannot be distributed.


@pytest.mark.fault(35)
@pytest.mark.spec("CL-12", "CL-13")
@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "device", "socket"])
def test_a_file_that_is_no_regular_file_is_refused_with_one_line(tmp_path, monkeypatch, kind):
    path = tmp_path / "file"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/null"
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("file")
    one_line(finished(tracker_command(path)), 8)


# Row 36: signals.


SIGNALS = pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])


def ends_within_a_second(program, number, code):
    """Check that a signal ends a program within a second; time in which this process was held up, too, counts little."""
    program.signal(number)
    waited, looked = 0.0, time.monotonic()
    while program.process.poll() is None and waited < 1:
        time.sleep(0.01)
        waited, looked = waited + min(time.monotonic() - looked, 0.05), time.monotonic()
    assert program.process.poll() is not None, "it still runs a second after the signal"
    return program.ends_with(code)


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
def test_a_signal_ends_a_peer_that_waits_for_its_tracker(ending, run_peer, tmp_path, number, code):
    tracker = ending(harness.FakeServer())  # it knows no answer: each request ends its connection
    peer = run_peer(tracker.address, tmp_path / "out")
    tracker.wait_for("join", 2)
    ends_within_a_second(peer, number, code)


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
def test_a_signal_ends_a_peer_whose_tracker_is_silent(ending, run_peer, tmp_path, number, code):
    tracker = ending(harness.FakeServer())
    released = threading.Event()
    tracker.answers["join"] = lambda request, sock: released.wait(SECONDS) and None
    peer = run_peer(tracker.address, tmp_path / "out")
    tracker.wait_for("join")
    try:
        ends_within_a_second(peer, number, code)
    finally:
        released.set()


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9", "CL-4")
@SIGNALS
def test_a_signal_ends_a_peer_that_downloads_and_what_came_is_kept(stuck_swarm, run_peer, tmp_path, number, code):
    tracker, neighbor, data = stuck_swarm
    peer = run_peer(tracker.port, tmp_path / "out")
    address = tracker.joiner()
    offered = eventually(lambda: len(held(address)) == 2 and held(address), what="two chunks")
    ends_within_a_second(peer, number, code)
    assert right_chunks(tmp_path / "out.part", data) == sorted(offered) and os.listdir(tmp_path) == ["out.part"]


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
def test_a_signal_ends_a_peer_that_seeds_also_in_the_middle_of_a_chunk(swarm, run_peer, tmp_path, number, code):
    tracker, _, data = swarm
    (tmp_path / "out").write_bytes(data)
    peer = run_peer(tracker.port, tmp_path / "out", extra=["--upload-limit", "16K"])
    with connect(tracker.joiner()) as sock:
        peer.wait_for("^complete")
        sock.sendall(framed(fetch_chunk(0)))
        receive_bytes(sock, 20)
        ends_within_a_second(peer, number, code)
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
@pytest.mark.parametrize("extra", [[], ["--no-seed"]], ids=["seeding", "not_seeding"])
def test_a_signal_ends_the_tracker_with_connections_open(make_file, run_tracker, extra, number, code):
    tracker = run_tracker(make_file(SIZE)[0], extra=extra)
    with connect(tracker.port) as sock:
        ask(sock, join("127.0.0.1:5000"))
        ends_within_a_second(tracker, number, code)


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
@pytest.mark.parametrize("module", ["tracker", "peer"])
def test_a_signal_ends_a_program_that_reads_its_file(swarm, make_file, run_patched, module, number, code):
    slow = """
import os
def slowly(read):
    def slow(*arguments):
        print("reading", flush=True)
        time.sleep(20)
        return read(*arguments)
    return slow
os.pread = slowly(os.pread)
"""
    tracker, _, data = swarm
    path, _ = make_file(data)
    program = run_patched(module, slow, [path, "--port", "0"] if module == "tracker" else [tracker.address, path])
    program.wait_for("reading")
    ends_within_a_second(program, number, code)


NEVER_THE_MAIN_THREAD = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
"""
SLOW_NAMES = """
import hashlib, socket
def look_up(*arguments, **options):  # like getaddrinfo, it spends seconds in C, where no Python runs
    print("looking up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
socket.getaddrinfo = look_up
"""


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@SIGNALS
def test_a_signal_ends_a_peer_that_waits_for_a_name_to_be_looked_up(run_patched, tmp_path, number, code):
    peer = run_patched("peer", SLOW_NAMES, ["tracker.example:8000", tmp_path / "out"])
    peer.wait_for("looking up")
    time.sleep(0.1)  # the fault's time: from the line to the look-up
    ends_within_a_second(peer, number, code)


@pytest.mark.fault(36)
@pytest.mark.spec("CL-9")
@pytest.mark.parametrize("module, changes, arguments, said", [
    ("peer", "", ["{tracker}", "{file}"], "^complete"),
    ("peer", SLOW_NAMES, ["tracker.example:8000", "{file}"], "looking up"),
    ("tracker", "", ["{file}", "--port", "0"], "^joined"),
    ("tracker", "", ["{file}", "--port", "0", "--no-seed"], "listening on port"),
], ids=["seeding_peer", "looking_up_a_name", "seeding_tracker", "tracker_only"])
def test_a_signal_that_does_not_wake_the_main_thread_is_seen_all_the_same(swarm, make_file, run_patched, module, changes, arguments, said):
    """A signal may reach any thread of a process, or the main one just before it begins to wait; an unbounded wait would miss it."""
    tracker, _, data = swarm
    path, _ = make_file(data)
    program = run_patched(module, NEVER_THE_MAIN_THREAD + changes, [word.format(tracker=tracker.address, file=path) for word in arguments])
    program.wait_for(said)
    time.sleep(0.1)  # the fault's time: from the line to the wait
    ends_within_a_second(program, signal.SIGTERM, 143)


# Row 37: nobody reads stdout.


@pytest.fixture
def popen(request):
    """popen(command, **options): a process with its stderr in a pipe; the test provides its stdout."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as for users

    def start(command, **options):
        process = subprocess.Popen(command, cwd=harness.ROOT, env=buffered, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   start_new_session=True, **options)

        def end():
            process.kill()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            process.wait()
        request.addfinalizer(end)
        return process
    return start


def start_unread(popen, how, command):
    """A process whose stdout is closed in one of several ways, or full."""
    if how == "closed before the start":
        return popen(["sh", "-c", 'exec "$@" >&-', "sh", *command])
    if how == "full device":
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        with open("/dev/full", "wb") as full:
            return popen(command, stdout=full)
    read_end, write_end = os.pipe()
    if how == "never read":  # like a terminal after Ctrl-S
        os.set_blocking(write_end, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
        os.set_blocking(write_end, True)
    process = popen(command, stdout=write_end)
    os.close(write_end)
    if how == "never read":
        process.stdout = open(read_end, "rb")  # so that it is closed at the end
        return process
    if how == "after the first line":  # as head -1 does
        while os.read(read_end, 1) not in (b"\n", b""):
            pass
    os.close(read_end)
    return process


UNREAD = pytest.mark.parametrize("how", ["after the first line", "at once", "closed before the start", "full device", "never read"])


@pytest.mark.fault(37)
@pytest.mark.spec("CL-13")
@UNREAD
def test_a_tracker_whose_stdout_nobody_reads_goes_on(make_file, popen, run_peer, tmp_path, how):
    path, data = make_file(SIZE)
    process = start_unread(popen, how, tracker_command(path, "--events", tmp_path / "events"))
    (start,) = eventually(lambda: process.poll() is not None and [None] or events_in(tmp_path / "events", "start"), what="the start")
    assert process.poll() is None, process.stderr.read().decode()
    run_peer(start["port"], tmp_path / "out", extra=["--leave"]).ends_with(0)
    assert (tmp_path / "out").read_bytes() == data
    process.terminate()
    assert (process.wait(SECONDS), process.stderr.read()) == (143, b"")


@pytest.mark.fault(37)
@pytest.mark.spec("CL-13")
@UNREAD
def test_a_peer_whose_stdout_nobody_reads_completes(swarm, popen, tmp_path, how):
    tracker, _, data = swarm
    process = start_unread(popen, how, peer_command(tracker.port, tmp_path / "out", "--leave"))
    assert (process.wait(SECONDS), process.stderr.read()) == (0, b"")
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.fault(37)
@pytest.mark.spec("CL-13")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_nobody_reads_is_no_error(popen, option):
    process = start_unread(popen, "at once", peer_command(1, "OUT", option))
    assert (process.wait(SECONDS), process.stderr.read()) == (0, b"")


# Row 38: ports.


@pytest.mark.fault(38)
@pytest.mark.spec("CL-12", "CL-13")
def test_a_port_that_is_taken_is_refused_with_one_line(make_file, run_tracker, tmp_path):
    path, _ = make_file(10)
    tracker = run_tracker(path)
    assert str(tracker.port) in one_line(finished(tracker_command(path, port=tracker.port)), 9)
    assert str(tracker.port) in one_line(finished(peer_command(tracker.port, tmp_path / "out", "--port", tracker.port)), 9)
    assert not (tmp_path / "out.part").exists()


@pytest.mark.fault(38)
@pytest.mark.spec("CL-12", "CL-13")
@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b"], ids=["of_another_machine", "unknown_name", "no_name"])
def test_an_address_that_is_not_of_this_machine_is_refused_with_one_line(make_file, host):
    assert "--port" not in one_line(finished(tracker_command(make_file(10)[0], "--host", host)), 9), "another port does not help"


@pytest.mark.fault(38)
@pytest.mark.spec("CL-1")
def test_a_tracker_is_started_again_at_once_on_the_same_port(make_file, run_tracker):
    path, _ = make_file(10)
    tracker = run_tracker(path)
    for _ in range(3):
        with connect(tracker.port) as sock:  # the tracker ends first, so its side waits in TIME_WAIT
            ask(sock, peer_list())
            tracker.signal(signal.SIGTERM)
            tracker.wait()
            assert is_closed(sock)
        tracker = run_tracker(path, port=tracker.port)
    assert ask(tracker.port, peer_list()).WhichOneof("type") == "peer_list"


# Row 39: few descriptors.


def cpu_seconds(pid):
    """Processor time that a process has used."""
    if LINUX:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    seconds = 0.0
    for part in subprocess.check_output(["ps", "-o", "time=", "-p", str(pid)], text=True).strip().replace("-", ":").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def with_few_descriptors(command, count=32):
    return ["sh", "-c", f'ulimit -n {count}; exec "$@"', "sh", *command]


def knock(port, count):
    """Begin `count` connections at once, without waiting for them."""
    socks = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        socks.append(sock)
    return socks


def uses_little_cpu(program, seconds=0.5):
    """Whether a program rests for `seconds`; one that spins gets a good part of a core even if others compete for it."""
    before = cpu_seconds(program.pid)
    time.sleep(seconds)  # the fault's time
    return cpu_seconds(program.pid) - before < seconds / 4


@pytest.mark.fault(39)
@pytest.mark.spec("WF-10")
def test_a_tracker_with_32_descriptors_serves_on_through_200_idle_connections(make_file, ending):
    tracker = ending(harness.Program(with_few_descriptors(tracker_command(make_file(10)[0]))))
    port = int(tracker.wait_for(r"listening on port (\d+)$")[1])
    socks = knock(port, 200)
    try:
        eventually(lambda: uses_little_cpu(tracker), what="a tracker that rests")
        began = time.monotonic()
        assert ask(port, join("127.0.0.1:5000")).peer_list.addresses
        assert time.monotonic() - began < 3, "the idle connections did not make way"
    finally:
        for sock in socks:
            sock.close()
    assert ask(port, peer_list()).peer_list.addresses
    tracker.signal(signal.SIGTERM)
    tracker.ends_with(143)


@pytest.mark.fault(39)
@pytest.mark.spec("WF-10", "FC-14")
def test_a_peer_whose_descriptors_are_all_in_use_waits_without_spinning(ending, fake_tracker, make_file):
    size = 16 << 20  # more than the buffers of a connection hold
    path, data = make_file(size)
    tracker = fake_tracker(data, chunk_size=size)
    peer = ending(harness.Program(with_few_descriptors(peer_command(tracker.port, path))))
    address = tracker.joiner()
    peer.wait_for("^complete")
    askers = [connect(address) for _ in range(60)]  # some are answered, some wait in the listener's queue
    try:
        for sock in askers:
            sock.sendall(framed(fetch_chunk(0)))  # and read nothing; no connection is idle, so none may be closed for another
        eventually(lambda: uses_little_cpu(peer), what="a peer that rests")
    finally:
        for sock in askers:
            sock.close()
    assert held(address) == [0]
    peer.signal(signal.SIGTERM)
    peer.ends_with(143)


# Row 40: sizes.


@pytest.mark.fault(40)
@pytest.mark.spec("FC-1", "FC-2", "FD-1", "CL-3")
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK])
def test_a_file_of_any_size_arrives_exact(make_file, run_tracker, run_peer, tmp_path, size):
    path, data = make_file(size)
    run_peer(run_tracker(path).port, tmp_path / "out", extra=["--leave"]).ends_with(0)
    assert (tmp_path / "out").read_bytes() == data


def sparse(path, zeros, tail):
    """Make a file of `zeros` zeros that take no disk space, and a tail; skip the test where there are no sparse files."""
    path.touch()
    os.truncate(path, zeros)
    with open(path, "ab") as file:
        file.write(tail)
    if path.stat().st_blocks * 512 > zeros // 2:
        path.unlink()
        pytest.skip("this file system has no sparse files")


PAST = 4 << 30  # bytes; anything after it needs offsets of more than 32 bits


@pytest.mark.long
@pytest.mark.fault(40)
@pytest.mark.spec("FD-2", "FC-1", "FC-4")
def test_a_tracker_seeds_what_lies_past_4_gib(tmp_path, ending):
    """This takes some seconds, because the tracker hashes 4 GiB of zeros."""
    tail = harness.some_bytes(700_000)
    sparse(tmp_path / "file.bin", PAST, tail)
    tracker = ending(harness.Program(tracker_command(tmp_path / "file.bin")))
    tracker.port = int(tracker.wait_for(r"listening on port (\d+)$", 4 * SECONDS)[1])
    seeder = the_seeder(tracker)
    file = ask(tracker.port, join("127.0.0.1:5000")).peer_list.file
    size = file.chunk_size
    assert (file.size, size) == (PAST + len(tail), 524_288)
    assert file.digests[-64:] == hashlib.sha256(tail[:size]).digest() + hashlib.sha256(tail[size:]).digest()
    assert set(split(file.digests[:-64], 32)) == {hashlib.sha256(bytes(size)).digest()}
    assert ask(seeder, fetch_chunk(PAST)).chunk == tail[:size] and ask(seeder, fetch_chunk(PAST + size)).chunk == tail[size:]
    assert ask(seeder, fetch_chunk(PAST - size)).chunk == bytes(size)
    assert ask(seeder, fetch_chunk(PAST + 2 * size)).bad.code == pb.NO_SUCH_CHUNK


@pytest.mark.fault(40)
@pytest.mark.spec("FC-1", "CL-4", "CQ-1")
def test_a_peer_fetches_writes_and_gives_what_lies_past_4_gib(ending, fake_tracker, fake_peer, run_peer, tmp_path):
    """The only neighbor holds the last three chunks, so that nobody moves or hashes the 4 GiB before them."""
    size, tail = 16 << 20, harness.some_bytes(700_000)
    file = pb.File(name="file.bin", size=PAST + size + len(tail), chunk_size=size,
                   digests=bytes(32 * (PAST // size)) + hashlib.sha256(bytes(size)).digest() + hashlib.sha256(tail).digest())
    neighbor = fake_peer(b"")
    chunks = {PAST: bytes(size), PAST + size: tail}
    neighbor.answers["chunks_query"] = lambda request, sock: pb.Response(chunks_query=pb.Response.ChunksQuery(chunk_ids=list(chunks)[request.known:]))
    neighbor.answers["fetch_chunk"] = lambda request, sock: pb.Response(chunk=chunks[request.chunk_id])
    tracker = fake_tracker(b"", [neighbor.address], file=file)
    peer = run_peer(tracker.port, tmp_path / "out")
    address = tracker.joiner()
    eventually(lambda: sorted(held(address)) == [PAST, PAST + size], what="both chunks")
    assert ask(address, fetch_chunk(PAST + size)).chunk == tail
    peer.signal(signal.SIGINT)
    peer.ends_with(130)
    part = tmp_path / "out.part"
    assert part.stat().st_size == file.size
    with open(part, "rb") as there:
        there.seek(-len(tail) - 1000, os.SEEK_END)
        assert there.read() == bytes(1000) + tail


# Row 41: names.


NAMES = ["größe, 日本語 🎉 ", "two\nlines", "\x1b[31mred\a", "right\u202eleft", "'quoted' \"twice\" $HOME `ls` %s {0}"]


@pytest.mark.fault(41)
@pytest.mark.spec("FD-5", "CL-2")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_of_any_name_is_shown_safely_and_distributed(make_file, run_tracker, name):
    path, data = make_file(10, name=name)
    tracker = run_tracker(path)
    answer = ask(tracker.port, join("127.0.0.1:5000")).peer_list
    assert answer.file == describe(data, name=name)
    assert re.fullmatch(r"(?s)[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]+", tracker.output), ascii(tracker.output)
    assert "\ntwo" not in tracker.output and "\nlines" not in tracker.output


@pytest.mark.fault(41)
@pytest.mark.spec("FD-5", "CL-13")
def test_a_name_that_the_terminal_cannot_show_does_not_end_a_program(make_file, ending, tmp_path):
    path, data = make_file(10, name="größe 日本語")
    ascii_only = dict(os.environ, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    tracker = ending(harness.Program(tracker_command(path), env=ascii_only))
    port = int(tracker.wait_for(r"listening on port (\d+)$")[1])
    peer = ending(harness.Program(peer_command(port, tmp_path / "größe", "--leave"), env=ascii_only))
    peer.ends_with(0, "^complete")
    assert (tmp_path / "größe").read_bytes() == data


@pytest.mark.ours
@pytest.mark.fault(41)
@pytest.mark.spec("FD-5")
@pytest.mark.skipif(not LINUX, reason="names are any bytes only on Linux")
def test_a_name_that_is_no_utf_8_is_distributed_all_the_same(tmp_path, run_tracker):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    with open(path, "wb") as file:
        file.write(b"abc")
    answer = ask(run_tracker(os.fsdecode(path)).port, join("127.0.0.1:5000")).peer_list
    assert answer.file.size == 3 and answer.file.name.startswith("caf")


@pytest.mark.fault(41)
@pytest.mark.spec("FD-5")
@pytest.mark.parametrize("name", ["../x", "/tmp/absolute-{}", "a\0b", "", "\x1b[2J\n\r", "x" * 5000], ids=lambda name: ascii(name[:20]))
def test_a_name_from_a_tracker_is_never_used_as_a_path(fake_tracker, fake_peer, run_peer, tmp_path, name):
    data = harness.some_bytes(SIZE)
    folder = tmp_path / "folder"
    folder.mkdir()
    name = name.format(os.getpid())
    tracker = fake_tracker(data, [fake_peer(data).address], file=describe(data, name=name))
    output = run_peer(tracker.port, folder / "out", extra=["--leave"]).ends_with(0)
    assert (folder / "out").read_bytes() == data
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(folder) == ["out"]
    assert not name.startswith("/") or not os.path.exists(name)
    assert not set(output) & set("\0\x1b\r")


# Rows 42 and 43: descriptions by a tracker.


@pytest.mark.fault(42)
@pytest.mark.spec("FD-3", "CL-11")
def test_a_size_that_agrees_but_is_more_than_the_disk_has_is_refused_or_waits_in_a_hole(fake_tracker, run_patched, tmp_path):
    """256 GiB is within the bounds: OUT.part may be a hole of that size, but takes neither memory nor disk space."""
    tracker = fake_tracker(b"", file=spoilt_description(size=256 << 30, chunk_size=16 << 20, digests=bytes(32 * 16_384)))
    peer = run_patched("peer", "peer.LOST_SECONDS = 0.5", [tracker.address, tmp_path / "out"])
    assert peer.wait() in (6, 7), peer.output
    assert "Traceback" not in peer.output
    part = tmp_path / "out.part"
    assert not part.exists() or part.stat().st_blocks * 512 < 1 << 20


@pytest.mark.fault(43)
@pytest.mark.spec("AP-6", "CL-13")
def test_a_peer_ends_when_its_tracker_comes_back_with_another_file(make_file, run_tracker, run_peer, tmp_path):
    tracker = run_tracker(make_file(SIZE, seed=1)[0], expire=0.6, extra=["--no-seed"])
    peer = run_peer(tracker.port, tmp_path / "out")
    eventually(lambda: ask(tracker.port, peer_list()).peer_list.addresses, what="the peer in the list")
    tracker.signal(signal.SIGKILL)
    tracker.wait()
    with harness.kept(tracker.port):
        other = run_tracker(make_file(SIZE, name="other.bin", seed=2)[0], port=tracker.port, expire=0.6, extra=["--no-seed"])
    peer.ends_with(4, "another file")
    assert not ask(other.port, peer_list()).peer_list.addresses


@pytest.mark.fault(43)
@pytest.mark.spec("FC-9")
def test_a_neighbor_that_has_another_file_is_banned_and_the_right_one_arrives(swarm, fake_peer, run_patched, tmp_path):
    tracker, neighbor, data = swarm
    stranger = fake_peer(harness.some_bytes(SIZE, seed=2))
    tracker.peers = [stranger.address]
    peer = run_patched("peer", "peer.REFRESH_SECONDS = 0.1", [tracker.address, tmp_path / "out", "--leave"])
    peer.wait_for("banned")
    tracker.peers = [stranger.address, neighbor.address]
    peer.ends_with(0)
    assert (tmp_path / "out").read_bytes() == data
    assert len(stranger.fetched()) <= 2  # it may have had two requests at a time


# Row 44: a chunk twice.


@pytest.mark.fault(44)
@pytest.mark.spec("FC-12", "SW-5", "CQ-2")
def test_a_chunk_that_arrives_twice_is_counted_once(ending, fake_tracker, run_peer, tmp_path):
    data = harness.some_bytes(2 * CHUNK)
    twice = [ending(harness.SlowPeer(data, free=0, held=[0])) for _ in range(2)]
    last = ending(harness.SlowPeer(data, free=0, held=[1]))
    tracker = fake_tracker(data, [neighbor.address for neighbor in [*twice, last]])
    peer = run_peer(tracker.port, tmp_path / "out", extra=["--leave", "--events", str(tmp_path / "events")])
    for neighbor in [*twice, last]:
        neighbor.wait_for("fetch_chunk")  # the second of the two is asked in the endgame
    queries = [neighbor.count("chunks_query") for neighbor in twice]
    for neighbor in twice:
        neighbor.released.set()
    for neighbor, count in zip(twice, queries):
        neighbor.wait_for("chunks_query", count + 1)  # so its answer has been processed
    assert held(tracker.joiner()) == [0]
    last.released.set()
    peer.ends_with(0)
    assert sorted(event["chunk"] for event in events_in(tmp_path / "events", "fetched")) == [0, CHUNK]
    assert (tmp_path / "out").read_bytes() == data


# Row 45: bugs.


BUGS = {
    "in choosing a chunk": "peer.rarest_first = lambda *arguments: 1 / 0",
    "in writing a chunk": "peer.Store.write = lambda *arguments: 1 / 0",
    "in proving": "peer.Peer.prove = lambda *arguments: 1 / 0",
    "in refreshing": "peer.Peer.refresh = lambda *arguments: 1 / 0\npeer.REFRESH_SECONDS = 0.1",
    "in verifying": "import os\nos.pread = lambda *arguments: 1 / 0",
    "in the main thread": "peer.download = lambda *arguments: 1 / 0",
    "in naming OUT": "peer.Output.finish = lambda *arguments: 1 / 0",
}


@pytest.mark.fault(45)
@pytest.mark.spec("CL-16")
@pytest.mark.parametrize("place", BUGS)
def test_a_bug_shows_its_traceback_and_ends_the_peer(stuck_swarm, run_patched, tmp_path, place):
    tracker, neighbor, data = stuck_swarm
    tracker.lease_ms = 300
    if place == "in verifying":
        (tmp_path / "out.part").write_bytes(data[:CHUNK])
    if place == "in naming OUT":
        neighbor.released.set()
    peer = run_patched("peer", BUGS[place], [tracker.address, tmp_path / "out", "--leave"])
    assert peer.wait() == 70, peer.output
    assert "Traceback" in peer.output and "ZeroDivisionError" in peer.output
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(45)
@pytest.mark.spec("CL-16")
def test_a_bug_in_an_answer_shows_its_traceback_and_ends_that_connection_only(swarm, run_patched, tmp_path):
    tracker, _, data = swarm
    (tmp_path / "out").write_bytes(data)
    peer = run_patched("peer", "peer.Peer.on_fetch_chunk = lambda *arguments: 1 / 0", [tracker.address, tmp_path / "out"])
    address = tracker.joiner()
    peer.wait_for("^complete")
    with connect(address) as sock:
        sock.sendall(framed(fetch_chunk(0)))
        assert is_closed(sock)
    peer.wait_for("ZeroDivisionError")
    assert held(address) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]


# Row 46: all at once.


UNRELIABLE = """
import random
send = peer.Store.send
def unreliable(self, sock, index, uploads, start):
    fate = random.random()
    if fate < 0.05:  # breaks off in mid-chunk
        sock.sendall(peer.chunk_head(self.file.length(index)) + bytes(1000))
        raise peer.ProtocolError("broken off")
    if fate < %s:
        sock.sendall(peer.chunk_head(self.file.length(index)) + bytes(self.file.length(index)))
    else:
        send(self, sock, index, uploads, start)
peer.Store.send = unreliable
"""


def descriptors_and_threads(pid):
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.fault(46)
@pytest.mark.spec("FC-9", "SW-1", "SW-2", "SW-6")
def test_eight_peers_of_whom_half_break_off_or_lie_all_get_the_file(make_file, run_tracker, run_patched, run_peer, tmp_path):
    path, data = make_file(1 << 20)
    tracker = run_tracker(path, extra=["--no-seed", "--chunk-size", "8K"])
    outs = [tmp_path / f"out{number}" for number in range(8)]
    events = [tmp_path / f"events{number}" for number in range(8)]
    extra = [["--events", str(name)] for name in events]
    nature = 2 * [UNRELIABLE % 0.05] + 2 * [UNRELIABLE % 0.1] + 4 * [""]  # two break off, two also lie, four are honest
    peers = [run_patched("peer", "peer.REFRESH_SECONDS = 0.2\n" + changes, [f"127.0.0.1:{tracker.port}", out, *more])
             for changes, out, more in zip(nature, outs, extra)]
    eventually(lambda: all(len(events_in(name, "neighbor_added")) >= 7 for name in events), what="a swarm in which each knows all others")
    seeder = run_peer(tracker.port, path, extra=["--upload-limit", "512K", "--events", str(tmp_path / "sent")])
    for peer in peers:
        peer.wait_for("^complete", 3 * SECONDS)
    assert [out for out in outs if out.read_bytes() != data] == []
    sent = sum(event["bytes"] for event in events_in(tmp_path / "sent", "sent"))
    assert sent <= 1.3 * len(data), f"the seeder sent {sent / len(data):.2f} files' worth"
    if LINUX:
        for peer in [*peers, seeder]:  # threads: main, accept, a timer; descriptors: the standard three, OUT, events, those of the listener
            eventually(lambda: max(descriptors_and_threads(peer.pid)) <= 8, what=f"{descriptors_and_threads(peer.pid)} left over")
    for peer in [*peers, seeder]:
        peer.signal(signal.SIGINT)
    for peer in [*peers, seeder]:
        peer.ends_with(130)
