"""The swarm: peers that fetch from each other, and cope with others that come, go or dawdle (SPEC.md, clauses SW)."""

import os
import threading
import time

import pytest

from checks import event_written, waits_idly
from harness import KIB, SECONDS, after, ask, busy_until, eventually, fetch_chunk, held, join, peer_list, some_bytes, split
import messages_pb2 as pb
from messages_pb2 import Response

CHUNK = 16 * 1024
DATA = some_bytes(8 * CHUNK + 1000)  # nine chunks, the last one short


@pytest.fixture
def tracker(fake_tracker):
    return fake_tracker(DATA, chunk_size=CHUNK)


@pytest.fixture
def neighbor(fake_peer, tracker):
    """neighbor(indexes): a fake peer with these chunks, or all, that the tracker lists."""
    def make(indexes=None, listed=True):
        fake = fake_peer(DATA, indexes, chunk_size=CHUNK)
        if listed:
            tracker.peers.append(fake.address)
        return fake
    return make


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.bin"


@pytest.fixture
def gate():
    """An event for fakes to wait for; it is set when the test ends, if not before."""
    event = threading.Event()
    yield event
    event.set()


# All together.


def check_leechers(run_peer, tracker, tmp_path, data):
    """Start five leechers, and check that they get the same bytes; return what is listed then."""
    outs = [tmp_path / f"{number}.bin" for number in range(5)]
    leechers = [run_peer(tracker.port, out) for out in outs]
    for leecher in leechers:
        leecher.wait_for("complete")
    assert all(out.read_bytes() == data for out in outs)
    assert not list(tmp_path.glob("*.part"))
    assert len(ask(tracker.port, peer_list()).peer_list.addresses) == 6


@pytest.mark.spec("SW-1", "SW-3")
def test_five_leechers_end_with_the_same_bytes_that_the_tracker_seeds(make_file, run_tracker, run_peer, tmp_path):
    path, data = make_file(30 * CHUNK + 7)
    check_leechers(run_peer, run_tracker(path, extra=["--chunk-size", "16K"]), tmp_path, data)


@pytest.mark.spec("SW-1", "SW-2", "SW-3")
@pytest.mark.takes(3)
def test_five_leechers_of_a_slow_seeder_give_each_other_many_of_the_bytes(make_file, run_tracker, run_peer, fake_peer, tmp_path):
    path, data = make_file(30 * CHUNK + 7)
    tracker, seeder, link = run_tracker(path, expire=3600, extra=["--chunk-size", "16K", "--no-seed"]), fake_peer(data, chunk_size=CHUNK), threading.Lock()

    def one_after_the_other(request, sock):
        with link:
            time.sleep(0.06)  # 270 KiB/s for all askers together: time for them to hear of each other
        return seeder.on_fetch_chunk(request, sock)

    seeder.answers["fetch_chunk"] = one_after_the_other
    ask(tracker.port, join(seeder.address))
    check_leechers(run_peer, tracker, tmp_path, data)
    assert 31 <= seeder.count("fetch_chunk") < 4.5 * 31, "the seeder sent each chunk to everyone"  # an early endgame asks it for some chunks in vain


# SW-1: from several at once, the rarest first.


@pytest.mark.spec("SW-1")
def test_a_leecher_fetches_from_three_neighbors_at_the_same_time(tracker, neighbor, run_peer, out):
    together = threading.Barrier(3)

    def when_all_three_are_asked(fake):
        first = [True]

        def answer(request, sock):
            if first and first.pop():
                together.wait(SECONDS)
            return fake.on_fetch_chunk(request, sock)
        return answer

    for fake in [neighbor(), neighbor(), neighbor()]:
        fake.answers["fetch_chunk"] = when_all_three_are_asked(fake)
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert out.read_bytes() == DATA
    assert not together.broken


@pytest.mark.spec("SW-1")
def test_the_rarest_chunk_is_asked_for_first(tracker, neighbor, run_peer, out, gate):
    """Only one neighbor holds chunk 6; it and a busy one hold 2, 3 and 4; all three hold the rest. It is asked for 6, then for 2, 3 or 4.

    At any time one of these three chunks may be under way at the busy one.
    """
    others = [neighbor([0, 1, 5, 7, 8]), neighbor([0, 1, 2, 3, 4, 5, 7, 8])]
    rich = neighbor()
    for fake in others:
        fake.answers["fetch_chunk"] = busy_until(gate, fake)

    def when_the_others_lists_are_known(request, sock):
        for fake in others:
            fake.wait_for("fetch_chunk")
        return rich.on_chunks_query(request, sock)

    rich.answers["chunks_query"] = when_the_others_lists_are_known
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert out.read_bytes() == DATA
    first, second = rich.fetched()[:2]
    assert first == 6 * CHUNK
    assert second in (2 * CHUNK, 3 * CHUNK, 4 * CHUNK)


@pytest.mark.spec("SW-1")
def test_those_who_hold_a_chunk_are_counted_whoever_was_heard_last(tracker, neighbor, run_peer, out, gate):
    """Two hold 0 and 1, three hold the others; one of the two is heard after two of the three. Each may have one chunk under way at any time."""
    common = [neighbor(range(2, 9)), neighbor(range(2, 9))]
    rare, rich = neighbor([0, 1]), neighbor()
    for fake in (*common, rare):
        fake.answers["fetch_chunk"] = busy_until(gate, fake)

    def heard_after(fake, others):
        fake.answers["chunks_query"] = lambda request, sock: all(other.wait_for("fetch_chunk") for other in others) and fake.on_chunks_query(request, sock)
    heard_after(rare, common)
    heard_after(rich, [rare])
    run_peer(tracker.port, out, ["--leave"])
    rich.wait_for("fetch_chunk")
    gate.set()
    assert rich.fetched()[0] in (0, CHUNK)


@pytest.mark.spec("SW-1")
def test_of_chunks_that_are_equally_rare_neither_the_first_nor_the_last_is_taken_each_time(fake_tracker, fake_peer, run_peer, out):
    """With thirty chunks, a peer that takes the first one after a random place takes them in order once in 10^12 times."""
    data = some_bytes(30 * KIB)
    only = fake_peer(data, chunk_size=KIB)
    run_peer(fake_tracker(data, [only.address], chunk_size=KIB).port, out, ["--leave"]).ends_with(0)
    order = list(dict.fromkeys(only.fetched()))
    assert len(order) == 30 and order not in (sorted(order), sorted(order, reverse=True))


@pytest.mark.spec("SW-1", "SW-6")
@pytest.mark.takes(3)
def test_neighbors_that_are_gone_do_not_count_when_the_rarest_chunk_is_chosen(tracker, neighbor, run_peer, out, gate):
    """Three had chunk 6 and left. Of the others, one has all chunks, and one has all but chunk 6."""
    gone = [neighbor([6]) for _ in range(3)]
    for fake in gone:
        fake.answers["fetch_chunk"] = lambda request, sock: None  # closes
    other = neighbor([0, 1, 2, 3, 4, 5, 7, 8])
    other.answers["fetch_chunk"] = busy_until(gate, other)
    program = run_peer(tracker.port, out, ["--leave"])
    for fake in [*gone, other]:
        fake.wait_for("fetch_chunk")
    tracker.peers.clear()
    for fake in gone:
        fake.stop()
    tracker.wait_for("peer_list", tracker.count("peer_list") + 2)  # a second or two later, when it has dialled them again in vain
    rich = neighbor()
    rich.wait_for("fetch_chunk")
    gate.set()
    program.ends_with(0)
    assert rich.fetched()[0] == 6 * CHUNK


@pytest.mark.spec("SW-1")
def test_while_there_are_others_a_chunk_that_is_under_way_is_asked_of_nobody_else(tracker, neighbor, run_peer, out, gate):
    """Two neighbors have everything, a third all but chunk 6, so that is the rarest, and only one of the two is asked for it."""
    two, poor = [neighbor(), neighbor()], neighbor([0, 1, 2, 3, 4, 5, 7, 8])
    poor.answers["fetch_chunk"] = busy_until(gate, poor)
    both_were_asked = threading.Barrier(2)
    for fake in two:
        fake.answers["chunks_query"] = lambda request, sock, fake=fake: poor.wait_for("fetch_chunk") and fake.on_chunks_query(request, sock)
        fake.answers["fetch_chunk"] = lambda request, sock, fake=fake: (fake.count("fetch_chunk") > 1 or both_were_asked.wait(SECONDS) >= 0) and fake.on_fetch_chunk(request, sock)
    program = run_peer(tracker.port, out, ["--leave"])
    for fake in two:
        fake.wait_for("fetch_chunk")  # the first request to each; one of them may give all the rest
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA
    first = [fake.fetched()[0] for fake in two]
    assert first.count(6 * CHUNK) == 1, first


@pytest.mark.spec("SW-1", "FC-8")
def test_each_neighbor_is_asked_only_for_what_it_has(tracker, neighbor, run_peer, out):
    shares = [[0, 3, 6], [1, 4, 7], [8, 5, 2, 0]]
    fakes = [neighbor(share) for share in shares]
    run_peer(tracker.port, out, ["--leave"]).ends_with(0)
    assert out.read_bytes() == DATA
    for fake, share in zip(fakes, shares):
        assert fake.fetched() and set(fake.fetched()) <= {index * CHUNK for index in share}


@pytest.mark.spec("CL-3")
def test_out_is_there_when_it_is_whole_and_not_before(tracker, neighbor, run_peer, out, gate):
    part, slow = out.with_name("out.bin.part"), neighbor()
    slow.answers["fetch_chunk"] = after(gate, slow.on_fetch_chunk)
    neighbor([4, 2])
    program = run_peer(tracker.port, out, ["--leave"])
    address = tracker.joiner()
    eventually(lambda: set(held(address)) == {2 * CHUNK, 4 * CHUNK}, what="two chunks in the list")
    assert part.exists() and not out.exists()
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA and not part.exists()


# SW-2, SW-3: what is held is offered, before and after the file is complete.


@pytest.mark.spec("SW-2", "CQ-1", "CQ-2")
def test_a_chunk_is_offered_as_soon_as_it_is_held(tracker, neighbor, run_peer, out, gate):
    quick, slow = neighbor([4]), neighbor()
    slow.answers["fetch_chunk"] = after(gate, slow.on_fetch_chunk)
    program = run_peer(tracker.port, out, ["--leave"])
    address = tracker.joiner()
    eventually(lambda: held(address) == [4 * CHUNK], what="the first chunk in the list")
    assert ask(address, fetch_chunk(4 * CHUNK)).chunk == split(DATA, CHUNK)[4]
    assert not out.exists()
    gate.set()
    program.ends_with(0)
    assert quick.fetched() == [4 * CHUNK]


@pytest.mark.spec("SW-2")
def test_a_chunk_travels_through_a_leecher_that_is_not_complete_itself(tracker, fake_tracker, neighbor, run_peer, tmp_path):
    neighbor([2, 5])
    run_peer(tracker.port, tmp_path / "middle.bin")
    elsewhere = fake_tracker(DATA, [tracker.joiner()], chunk_size=CHUNK)  # knows only the one in the middle
    run_peer(elsewhere.port, tmp_path / "end.bin")
    eventually(lambda: set(held(elsewhere.joiner())) == {2 * CHUNK, 5 * CHUNK}, what="both chunks at the end of the chain")


@pytest.mark.spec("CL-15")
def test_a_leecher_writes_what_it_has_fetched_of_whom_and_that_it_is_complete(tracker, neighbor, run_peer, out, tmp_path):
    half, all_of_it = neighbor(range(5)), neighbor()
    run_peer(tracker.port, out, extra=["--events", str(tmp_path / "peer.events")])
    event_written(tmp_path / "peer.events", "fetched", chunk=8 * CHUNK, bytes=1000, of=all_of_it.address)
    event_written(tmp_path / "peer.events", "complete", bytes=len(DATA))
    event = event_written(tmp_path / "peer.events", "fetched", chunk=0)
    assert event["of"] in (half.address, all_of_it.address) and 0 <= event.get("seconds", 0) < 60


@pytest.mark.spec("SW-3")
def test_a_peer_whose_file_is_there_already_seeds_from_its_first_second(tracker, run_peer, out, tmp_path):
    out.write_bytes(DATA)
    run_peer(tracker.port, out)
    tracker.joiner()
    run_peer(tracker.port, tmp_path / "other.bin", ["--leave"]).ends_with(0)
    assert (tmp_path / "other.bin").read_bytes() == DATA


@pytest.mark.spec("SW-3")
def test_a_leecher_that_became_complete_goes_on_giving(tracker, neighbor, run_peer, out, tmp_path):
    seeder = neighbor()
    program = run_peer(tracker.port, out)
    program.wait_for("complete")
    seeder.stop()
    run_peer(tracker.port, tmp_path / "other.bin", ["--leave"]).ends_with(0)
    assert (tmp_path / "other.bin").read_bytes() == DATA
    assert program.process.poll() is None


@pytest.mark.spec("CL-19")
@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="only Linux tells for how long a thread has run")
@pytest.mark.parametrize("complete", [True, False], ids=["seeds", "waits_for_chunks"])
@pytest.mark.takes(1)
def test_a_peer_that_waits_does_not_compute(tracker, neighbor, run_peer, out, complete):
    if complete:
        out.write_bytes(DATA)
    neighbor([3])
    program = run_peer(tracker.port, out)
    eventually(lambda: held(tracker.joiner()), what="a chunk in the list")
    waits_idly(program)


# SW-5: endgame.


@pytest.mark.spec("SW-5")
@pytest.mark.parametrize("wait", [0, 1.5], ids=["from_the_first", "later"])
@pytest.mark.takes(1.5)
def test_a_neighbor_that_dawdles_over_one_chunk_does_not_delay_the_end(tracker, neighbor, run_peer, out, gate, wait):
    """Others have that chunk, and are heard at once, or after it has been under way for a while."""
    dawdler, others = neighbor(), [neighbor(), neighbor()]
    for fake in others:
        fake.answers["chunks_query"] = lambda request, sock, fake=fake: (not wait or dawdler.wait_for("fetch_chunk") and not time.sleep(wait)) and fake.on_chunks_query(request, sock)
    dawdler.answers["fetch_chunk"] = after(gate, dawdler.on_fetch_chunk)
    for fake in others:
        fake.answers["fetch_chunk"] = lambda request, sock, fake=fake: dawdler.wait_for("fetch_chunk") and fake.on_fetch_chunk(request, sock)
    program = run_peer(tracker.port, out, ["--leave"])
    dawdler.wait_for("fetch_chunk")
    program.ends_with(0, seconds=8)  # an answer of the dawdler is awaited for ten seconds
    assert out.read_bytes() == DATA
    late = dawdler.fetched()[0]
    assert sum(fake.fetched().count(late) for fake in others) >= 1


@pytest.mark.spec("SW-5", "FC-8")
@pytest.mark.parametrize("others", [[0, 1, 2, 3], []], ids=["another_has_some", "another_has_nothing"])
@pytest.mark.takes(2)
def test_what_is_late_is_asked_of_nobody_who_has_not_listed_it(tracker, neighbor, run_peer, out, others):
    """Only one neighbor has chunk 6, and it pauses before giving it, and before the last chunk but one."""
    tracker.lease_ms = 300
    alone, other = neighbor(), neighbor(others)

    def pauses(request, sock):
        if request.chunk_id == 6 * CHUNK or len({*alone.fetched(), *other.fetched()}) == 8:
            time.sleep(1)
        return alone.on_fetch_chunk(request, sock)
    alone.answers["fetch_chunk"] = pauses
    run_peer(tracker.port, out).wait_for("complete")
    assert out.read_bytes() == DATA and set(other.fetched()) <= {index * CHUNK for index in others}
    tracker.wait_for("active_proof", tracker.count("active_proof") + 2)  # it is still working


# SW-6: neighbors that go.


@pytest.mark.spec("SW-6", "FC-11")
def test_a_neighbor_that_dies_with_a_chunk_under_way_is_replaced_by_another(tracker, neighbor, run_peer, out, gate):
    dying, other = neighbor(), neighbor()
    dying.answers["fetch_chunk"] = after(gate, dying.on_fetch_chunk)
    other.answers["fetch_chunk"] = busy_until(gate, other)
    program = run_peer(tracker.port, out, ["--leave"])
    dying.wait_for("fetch_chunk")
    dying.answers.clear()
    dying.cut()
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.spec("CQ-4", "FC-8")
def test_a_neighbor_that_was_started_anew_with_nothing_is_asked_what_it_has_before_it_is_asked_for_more(tracker, neighbor, run_peer, out, gate):
    """Its first life ends in the middle of a Fetch Chunk; its list from then says nothing about its second life."""
    reborn, other = neighbor([0, 1, 2, 3]), neighbor()
    other.answers["fetch_chunk"] = busy_until(gate, other)
    second_life = []  # the requests that came in it
    ended = threading.Event()  # its first life, with all of its connections

    def on_chunks_query(request, sock):
        if not ended.is_set():
            return reborn.on_chunks_query(request, sock)
        second_life.append(("chunks_query", request.known))
        return Response(chunks_query=Response.ChunksQuery())

    def on_fetch_chunk(request, sock):
        other.wait_for("fetch_chunk")
        if not ended.is_set():
            ended.set()
            return None  # closes
        second_life.append(("fetch_chunk", request.chunk_id))
        return Response(bad=Response.Bad(code=pb.NOT_HELD))

    reborn.answers.update(chunks_query=on_chunks_query, fetch_chunk=on_fetch_chunk)
    program = run_peer(tracker.port, out, ["--leave"])
    eventually(lambda: ("chunks_query", 0) in second_life, what="a question for the whole list of the second life")
    before = second_life[:second_life.index(("chunks_query", 0))]
    assert sum(name == "fetch_chunk" for name, _ in before) <= 2, "only what was under way, over two connections at most, may be repeated"
    gate.set()
    program.ends_with(0)
    assert out.read_bytes() == DATA


# SW-8: new peers are soon used.


@pytest.mark.spec("SW-8", "PL-5")
@pytest.mark.parametrize("busy", [0, 1, 5], ids=["without_a_useful_neighbor", "with_a_busy_neighbor", "with_five_busy_neighbors"])
@pytest.mark.takes(2)
def test_a_new_seeder_is_used_within_about_a_second(tracker, neighbor, run_peer, out, gate, busy):
    for fake in [neighbor() for _ in range(busy)]:
        fake.answers["fetch_chunk"] = busy_until(gate, fake)
    new = neighbor(listed=False)
    program = run_peer(tracker.port, out, ["--leave"])
    tracker.wait_for("peer_list" if busy > 1 else "join")  # so that the next peer list is as far away as it can be
    tracker.peers.append(new.address)
    began = time.monotonic()
    new.wait_for("fetch_chunk")
    assert new.times("fetch_chunk")[0] - began < 2.5, "one second, and time for a machine that is busy"
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.spec("SW-8")
@pytest.mark.parametrize("giving, seconds", [(1, 2.5), pytest.param(5, 9, marks=[pytest.mark.slow, pytest.mark.takes(6)])], ids=["one_that_gives", "five_that_give"])
@pytest.mark.takes(2)
def test_a_new_seeder_is_used_though_others_give_chunks_meanwhile(fake_tracker, fake_peer, run_peer, out, giving, seconds):
    """After about a second, or a few seconds if there are five others; together they give a chunk every 0.2 s."""
    data, link = some_bytes(60 * KIB), threading.Lock()
    tracker = fake_tracker(data, chunk_size=KIB)

    def another():
        fake = fake_peer(data, chunk_size=KIB)
        tracker.peers.append(fake.address)
        return fake

    def one_after_the_other(fake):
        def answer(request, sock):
            with link:
                time.sleep(0.2)
            return fake.on_fetch_chunk(request, sock)
        return answer
    for fake in [another() for _ in range(giving)]:
        fake.answers["fetch_chunk"] = one_after_the_other(fake)
    run_peer(tracker.port, out)
    address = tracker.joiner()
    eventually(lambda: len(held(address)) >= 2 * giving, what="some chunks of each")
    tracker.wait_for("peer_list", tracker.count("peer_list") + (giving == 1))  # so that the next list is as far away as it can be
    new, began = another(), time.monotonic()
    new.wait_for("fetch_chunk")
    assert new.times("fetch_chunk")[0] - began < seconds, "and time for a machine that is busy"


@pytest.mark.ours
@pytest.mark.slow
@pytest.mark.spec("SW-8", "PL-4")
@pytest.mark.takes(4)
def test_as_many_neighbors_as_there_may_be_that_have_nothing_keep_no_seeder_out(tracker, neighbor, run_peer, out):
    useless = [neighbor([]) for _ in range(50)]
    program = run_peer(tracker.port, out, ["--leave"])
    eventually(lambda: any(fake.connections for fake in useless), what="a neighbor")
    tracker.wait_for("peer_list", tracker.count("peer_list") + 2)  # two seconds, in which it has dialled as many as it wants
    neighbor()
    program.ends_with(0)
    assert out.read_bytes() == DATA


@pytest.mark.spec("SW-8", "CQ-3")
@pytest.mark.takes(1)
def test_a_chunk_that_a_neighbor_comes_to_hold_is_used_within_about_a_second(tracker, neighbor, run_peer, out):
    growing = neighbor([0])
    program = run_peer(tracker.port, out, ["--leave"])
    growing.wait_for("chunks_query", 4)  # by then it is asked less often
    began = time.monotonic()
    growing.held += range(1, 9)
    growing.wait_for("fetch_chunk", 2)
    assert growing.times("fetch_chunk")[1] - began < 2.5, "one second, and time for a machine that is busy"
    program.ends_with(0)
    assert out.read_bytes() == DATA
