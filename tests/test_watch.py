"""lab/tools/watch.py: what it infers from lists of ids, the map as text and as a page, and that it only watches."""

import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request

import pytest

from harness import CHUNK, ROOT, SECONDS, Program, Terminal, eventually, finished, kept, some_bytes
from messages_pb2 import Response
import watch

pytestmark = pytest.mark.ours
K = 1024
GLYPHS = watch.GLYPHS[1]


def swarm_of(*lists, trouble="", passed_over=0):
    """A Swarm whose peers a, b, c ... hold chunks with these indexes, of 1 KiB each."""
    peers = [watch.Seen("abcdefgh"[number], {K * index for index in held}, 0.0, "") for number, held in enumerate(lists)]
    size, ids = watch.chunk_ids(one.held for one in peers)
    return watch.Swarm(peers, ids, size, passed_over, trouble)


# What it infers.


@pytest.mark.parametrize("lists, size, count", [
    ([], None, 0), ([{0}], None, 1), ([{0, K}], K, 2), ([{0, 5 * K}, {4 * K}], K, 6),
    ([{0, K, 2 * K, 3 * K}, {1, 2**63}], K, 4)])
def test_the_chunks_are_concluded_from_the_ids_that_are_listed(lists, size, count):
    got, ids = watch.chunk_ids(lists)
    assert (got, len(ids)) == (size, count) and ids == [number * (size or 0) for number in range(count)]


def test_no_list_however_wild_makes_more_chunks_than_a_file_can_have():
    for ids in ({0, 1, 2**64 - 1}, {2**64 - 1}, set(range(2**60, 2**60 + 50)), {3, 2**40, 2**50}):
        assert len(watch.chunk_ids([ids])[1]) <= watch.peer.MAX_CHUNKS


# The map as text.


@pytest.mark.parametrize("share, shown", [(0, "."), (0.01, ":"), (0.34, "+"), (0.67, "*"), (0.99, "*"), (1, "#")])
def test_a_cell_shows_nothing_and_everything_only_for_none_and_all(share, shown):
    assert watch.cell(share, GLYPHS) == shown


@pytest.mark.parametrize("count, width, lengths", [(0, 10, []), (3, 10, [1, 1, 1]), (5, 2, [2, 3]), (160, 100, None)])
def test_every_chunk_is_in_one_cell(count, width, lengths):
    cells = watch.parts(list(range(count)), width)
    assert [index for cell in cells for index in cell] == list(range(count)) and len(cells) == min(width, count)
    assert lengths is None or [len(cell) for cell in cells] == lengths


def test_a_map_has_a_row_for_each_peer_and_one_for_the_copies():
    assert watch.render(swarm_of(range(4), [1], []), 80, 24, GLYPHS) == [
        "3 peers, 1 complete, 4 chunks of 1.0 KiB, the rarest held by 1",
        "a  ####  4 of 4  complete", "b  .#..  1 of 4", "c  ....  0 of 4", "copies  1211"]


def test_a_chunk_that_nobody_lists_is_seen():
    lines = watch.render(swarm_of([0, 1, 3]), 80, 24, GLYPHS)
    assert lines[0].endswith("the rarest held by nobody") and lines[-1] == "copies  1101"


def test_a_map_keeps_within_the_terminal_and_says_what_is_left_out():
    lines = watch.render(swarm_of(*[range(200)] * 8, trouble="no answer", passed_over=7), 60, 8, GLYPHS)
    assert len(lines) == 8 and all(len(line) <= 60 for line in lines) and lines[-2] == "and 4 more"
    assert " ".join(lines[:2]).endswith("7 more not asked, tracker: no answer")


@pytest.mark.parametrize("width", [20, 40, 60, 100])
@pytest.mark.parametrize("height", [9, 40])
def test_a_map_has_room_on_a_narrow_terminal_too(width, height):
    swarm = swarm_of(*[range(80)] * 3, [0])
    peers = [one._replace(address=f"192.168.100.10{number}:40000", trouble="" if number else "refused: it is not in the mood today")
             for number, one in enumerate(swarm.peers)]
    lines = watch.render(swarm._replace(peers=peers), width, height, GLYPHS)
    assert len(lines) <= height and all(len(line) <= width for line in lines)
    if (width, height) == (40, 40):
        assert lines[3:7] == ["192.168.100.100:40000 refused: it is not", "#" * 40, "192.168.100.101:40000 80 of 80 complete", "#" * 40]


def test_a_peer_that_is_gone_holds_nothing_that_counts():
    swarm = swarm_of(range(4), [0, 1], [])
    gone = swarm._replace(peers=[swarm.peers[0]._replace(trouble="Connection refused"), *swarm.peers[1:]])
    assert watch.render(gone, 80, 24, GLYPHS) == [
        "2 peers, 0 complete, 4 chunks of 1.0 KiB, the rarest held by nobody, 1 without", "an answer",
        "a  ####  Connection refused", "b  ##..  2 of 4", "c  ....  0 of 4", "copies  1100"]


def test_an_empty_swarm_has_a_headline_only():
    assert watch.render(swarm_of(), 80, 24, GLYPHS) == ["0 peers, 0 complete, 0 chunks"]


def test_the_page_gets_the_lowest_chunks_first():
    told = json.loads(watch.as_json(swarm_of([0, 5, 6], range(7))))
    assert told["chunks"] == 7 and [row["held"] for row in told["rows"]] == ["16", "f7"]


# Over the wire.


def once(*arguments):
    return finished([sys.executable, os.path.join(ROOT, "lab", "tools", "watch.py"), *map(str, arguments)], env={**os.environ, "PYTHONIOENCODING": "utf-8"})


def test_one_map_of_a_swarm_that_never_hears_of_the_observer(fake_tracker, fake_peer):
    data = some_bytes(3 * CHUNK)
    peers = [fake_peer(data), fake_peer(data, held=[2])]
    tracker = fake_tracker(data, peers=[*(peer.address for peer in peers), "no address", "127.0.0.1:0"])
    shown = once(f"127.0.0.1:{tracker.port}", "--once")
    assert (shown.returncode, shown.stderr) == (0, "")
    head, first, second, copies = shown.stdout.splitlines()
    assert head == "2 peers, 1 complete, 3 chunks of 256.0 KiB, the rarest held by 1" and copies.split() == ["copies", "112"]
    assert first.split(maxsplit=2) == [peers[0].address, "███", "3 of 3  complete"] and second.split(maxsplit=2)[1:] == ["··█", "1 of 3"]
    assert {name for _, name, _ in tracker.requests} == {"peer_list"}
    assert {name for fake in peers for _, name, _ in fake.requests} == {"chunks_query"}


def test_who_does_not_answer_holds_up_nobody_and_is_told_of(fake_tracker, fake_peer):
    data = some_bytes(2 * CHUNK)
    silent, refusing, good = fake_peer(data), fake_peer(data), fake_peer(data)
    silent.answers["chunks_query"] = lambda request, sock: sock.recv(1) and None
    refusing.answers["chunks_query"] = lambda request, sock: Response(bad=Response.Bad(reason="not\x1b[today"))
    tracker = fake_tracker(data, peers=[silent.address, refusing.address, good.address, f"127.0.0.1:{unused_port()}"])
    lines = once(f"127.0.0.1:{tracker.port}", "--once").stdout.splitlines()
    assert [re.split(r"  +", line, maxsplit=2)[2] for line in lines[1:5]] == [
        "no answer", r"refused: not\x1b[today", "2 of 2  complete", "Connection refused"]


def unused_port():
    """A port that was free a moment ago, so nobody listens there."""
    import socket
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def watching(fake_tracker, ending):
    """watching(tracker): (the program, a function that gets what the page draws)."""
    def start(tracker):
        program = ending(Program([sys.executable, os.path.join(ROOT, "lab", "tools", "watch.py"), f"127.0.0.1:{tracker.port}", "--web", "--every", "0.05"]))
        at = program.wait_for(r"the map is at (http://127\.0\.0\.1:\d+/)$")[1]

        def get(path):
            with urllib.request.urlopen(at + path, timeout=10) as answer:
                return answer.read().decode()
        return program, get
    return start


def test_the_page_follows_the_swarm(fake_tracker, fake_peer, watching):
    data = some_bytes(3 * CHUNK)
    growing, leaving = fake_peer(data, held=[0]), fake_peer(data)
    tracker = fake_tracker(data, peers=[growing.address, leaving.address])
    program, get = watching(tracker)
    assert "<canvas" not in get("") and "/swarm" in get("")

    def rows():
        return {row["address"]: row["held"] for row in json.loads(get("swarm"))["rows"]}

    eventually(lambda: rows() == {growing.address: "1", leaving.address: "7"})
    growing.held.append(2)
    eventually(lambda: rows()[growing.address] == "5")
    known = [request.chunks_query.known for _, _, request in growing.requests]
    assert known[0] == 0 and 1 in known, "only what is new is asked for"
    tracker.peers.remove(leaving.address)
    eventually(lambda: set(rows()) == {growing.address})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get("../etc/passwd")
    program.signal(signal.SIGINT)
    program.ends_with(130)


def test_a_peer_that_was_started_anew_is_believed_anew(fake_tracker, fake_peer, watching):
    data = some_bytes(3 * CHUNK)
    peer = fake_peer(data)
    _, get = watching(fake_tracker(data, peers=[peer.address]))
    eventually(lambda: json.loads(get("swarm"))["rows"][0]["held"] == "7")
    peer.held[:] = [0, 1]
    for sock in list(peer.connections):
        sock.close()
    eventually(lambda: json.loads(get("swarm"))["rows"][0]["state"].startswith("2 of 2"))


def test_the_map_stays_when_the_tracker_goes(fake_tracker, fake_peer, watching):
    data = some_bytes(2 * CHUNK)
    peer = fake_peer(data)
    tracker = fake_tracker(data, peers=[peer.address])
    _, get = watching(tracker)
    tracker.stop()
    told = eventually(lambda: "tracker: " in (told := json.loads(get("swarm")))["headline"] and told)
    assert [row["held"] for row in told["rows"]] == ["3"]


def test_a_real_swarm_is_watched_to_its_end(run_tracker, run_peer, make_file, tmp_path, watching):
    path, _ = make_file(5 * CHUNK + 1)
    tracker = run_tracker(path)
    run_peer(tracker.port, tmp_path / "out.bin")
    _, get = watching(tracker)
    told = eventually(lambda: "2 peers, 2 complete, 6 chunks" in (told := json.loads(get("swarm")))["headline"] and told)
    assert [row["state"] for row in told["rows"]] == ["6 of 6  complete"] * 2


def test_told_to_wait_for_two_it_ends_when_two_have_been_complete(fake_tracker, fake_peer, ending):
    data = some_bytes(3 * CHUNK)
    seeder, leaving = fake_peer(data), fake_peer(data, held=[0])
    tracker = fake_tracker(data, peers=[seeder.address, leaving.address])
    program = ending(Program([sys.executable, "lab/tools/watch.py", f"127.0.0.1:{tracker.port}", "--until", "2", "--every", "0.05"]))
    program.wait_for("^2 peers, 1 complete")
    leaving.held[:] = [0, 1, 2]
    program.ends_with(0)


@pytest.mark.parametrize("term, over", [("xterm", True), ("dumb", False), ("", False)])
def test_a_map_is_drawn_over_the_last_one_where_the_terminal_can(fake_tracker, fake_peer, ending, term, over):
    data = some_bytes(3 * CHUNK)
    tracker = fake_tracker(data, peers=[fake_peer(data).address])
    terminal = ending(Terminal([sys.executable, "lab/tools/watch.py", f"127.0.0.1:{tracker.port}", "--once"], 40, term=term))
    shown = terminal.read()
    assert "███" in shown and ("\x1b" in shown) == over


def test_a_map_is_as_wide_as_the_terminal_is_now(fake_tracker, fake_peer, ending):
    data = some_bytes(80 * 1000)
    tracker = fake_tracker(data, peers=[fake_peer(data, chunk_size=1000).address])
    terminal = ending(Terminal([sys.executable, "lab/tools/watch.py", f"127.0.0.1:{tracker.port}", "--every", "0.05"], 200, COLUMNS="132"))
    assert f"  {'█' * 80}  80 of 80" in terminal.read(r"copies +1{80}$")
    terminal.resize(40)
    terminal.read(rf"^\x1b\[K{'█' * 40}$")


@pytest.mark.parametrize("arguments, code, said", [
    ([], 2, "the following arguments are required: TRACKER:PORT"), (["::1:8000"], 2, "expected host:port"),
    (["127.0.0.1:1", "--web", "x"], 2, "expected a port"), (["127.0.0.1:1", "--every", "0"], 2, "expected a number of seconds above 0")])
def test_what_cannot_be_watched_is_told_in_one_line(arguments, code, said):
    ended = once(*arguments)
    assert ended.returncode == code and said in ended.stderr and ended.stderr.count("\n") == 1 and not ended.stdout


def watching_for(seconds, *arguments):
    """The command of a watch.py that waits `seconds` for a tracker."""
    code = f"import sys; sys.path.insert(0, 'lab/tools'); import watch; watch.peer.TRACKER_SECONDS = {seconds}; sys.argv[1:] = {list(map(str, arguments))}"
    return [sys.executable, "-c", f"{code}; watch.peer.run_to_exit('watch.py', watch.run)"]


def test_a_tracker_that_does_not_come_is_told_of():
    ended = finished(watching_for(0.5, f"127.0.0.1:{unused_port()}", "--once"))
    assert ended.returncode == 3 and not ended.stdout
    assert re.fullmatch(r"watch\.py: waiting 0\.5 s for a tracker at (127\.0\.0\.1:\d+): Connection refused\n"
                        r"watch\.py: expected a tracker at \1, got: Connection refused; is it running\?\n", ended.stderr)


def test_a_tracker_that_is_late_is_waited_for(run_tracker, make_file, ending):
    with kept(0) as place:
        port = place.getsockname()[1]
        program = ending(Program(watching_for(SECONDS, f"127.0.0.1:{port}", "--once", "--every", "0.05")))
        program.wait_for(f"waiting 10 s for a tracker at 127.0.0.1:{port}: Connection refused")
        run_tracker(make_file(1)[0], port=port, extra=["--no-seed"])
        program.ends_with(0, "^0 peers, 0 complete")


def test_a_tracker_that_is_none_is_told_of(fake_peer):
    ended = once(f"127.0.0.1:{fake_peer(b'x').port}", "--once")
    assert ended.returncode == 3 and ended.stderr.count("\n") == 1


def test_a_port_for_the_page_that_is_taken_is_told_of(fake_tracker):
    tracker = fake_tracker(b"x")
    ended = once(f"127.0.0.1:{tracker.port}", "--web", tracker.port)
    assert ended.returncode == 9 and f"cannot listen on port {tracker.port}: Address already in use; choose another with --web" in ended.stderr
