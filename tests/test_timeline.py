"""lab/timeline.py and lab/svg.py: what they make of events, whether hand-made, broken or from a real swarm.

The hand-made run: a seeder S gives chunks 0 and 10 to A, which gives 0 to B; S gives 10 to B, and 0 once more, too late.

    t      100    101    102    103    104    105
    S up    [0 → A][10 → A]      [10 → B][0 → B, it had it]
    A up                  [0 → B]
"""

import json
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from harness import ROOT, events_in

sys.path.insert(0, str(pathlib.Path(ROOT, "lab")))
import distribution  # noqa: E402  (after the path)
import svg  # noqa: E402
import timeline  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def start(t, port, wall=1e9, **more):
    return {"t": t, "event": "start", "wall": wall + t, "port": port, "out": "x", **more}


def joined(t, content="ab", **more):
    return {"t": t, "event": "joined", "tracker": "127.0.0.1:8000", "lease": 10, "content_id": content, **more}


def fetched(t, chunk, source, seconds, size=10):
    return {"t": t, "event": "fetched", "chunk": chunk, "bytes": size, "of": f"127.0.0.1:{source}", "seconds": seconds}


def sent(t, chunk, to, size=10, **more):
    return {"t": t, "event": "sent", "chunk": chunk, "bytes": size, "to": f"127.0.0.1:{to}", **more}


def complete(t, size=20):
    return {"t": t, "event": "complete", "bytes": size}


SEEDER = [start(90, 5000), joined(90), complete(90), sent(101, 0, 40001), sent(102, 10, 40001), sent(104, 10, 40002), sent(105, 0, 40002)]
A = [start(95, 5001), joined(95), fetched(101, 0, 5000, 1.0), fetched(102, 10, 5000, 1.0), complete(102), sent(103, 0, 41002)]
B = [start(95, 5002), joined(95), fetched(103, 0, 5001, 1.0), fetched(104, 10, 5000, 1.0), complete(104)]
WRITTEN = {"seeder": SEEDER, "a": A, "b": B}


@pytest.fixture
def write(tmp_path):
    """write({name: events}): the paths of files with these events."""
    def write_all(files):
        paths = []
        for name, events in files.items():
            paths.append(str(tmp_path / f"{name}.events"))
            pathlib.Path(paths[-1]).write_text("".join(json.dumps(event) + "\n" for event in events))
        return paths
    return write_all


def lane(run, name):
    return next(lane for lane in run.lanes if lane.name == name)


def text_of(run):
    return "\n".join(timeline.summary(run))


# Who sent what to whom.


def test_every_chunk_is_found_at_both_of_its_ends(write):
    run = timeline.read_run(write(WRITTEN))
    assert [lane.name for lane in run.lanes] == ["seeder", "a", "b"]
    assert [(t.chunk, t.source, t.to, t.begin, t.end) for t in lane(run, "b").fetched] == [(0, 1, 2, 2, 3), (10, 0, 2, 3, 4)]
    assert [(t.chunk, t.to, t.begin, t.end, t.duplicate) for t in lane(run, "seeder").sent] == [
        (0, 1, 0, 1, False), (10, 1, 1, 2, False), (10, 2, 3, 4, False), (0, 2, 4, 5, True)]
    assert [(t.chunk, t.to, t.duplicate) for t in lane(run, "a").sent] == [(0, 2, False)]


def test_the_summary_adds_up(write):
    text = text_of(timeline.read_run(write(WRITTEN)))
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert rows["a"].split()[1:] == "2.00 s 20 B 1 10 B 0.00 s 0 % 3.00 s 75 %".split()    # it can upload since it has a chunk, at 1
    assert rows["b"].split()[1:] == "4.00 s 20 B 2 0 B 2.00 s 50 % 2.00 s 100 %".split()
    assert rows["seeder"].split()[1:] == "seeder 0 B - 40 B - 1.00 s 20 %".split()
    assert "2 chunks, 20 B; 5.00 s from the first request" in text
    assert "seeders sent 40 B, 2.00 files; 75 % of the 40 B that arrived came from them" in text
    assert "duplicates: 1 chunk, 10 B" in text
    assert "the last: b, complete at 4.00 s; the median is 3.00 s" in text
    assert "nothing came for 2.00 s in all; the longest gap was 2.00 s, from 0.00 s on: 2 had what it missed, 1 of them with an idle uplink" in text


def test_a_peer_without_a_file_is_drawn_from_what_the_others_tell(write):
    run = timeline.read_run(write({"b": B}))
    assert [(lane.name, lane.has_file, len(lane.sent)) for lane in run.lanes] == [("127.0.0.1:5000", False, 1), ("127.0.0.1:5001", False, 1), ("b", True, 0)]
    assert "no events" in text_of(run)


def test_what_goes_to_a_peer_without_a_file_is_no_duplicate(write):
    text = text_of(timeline.read_run(write({"seeder": SEEDER, "a": A})))
    assert "duplicates: 0 chunks" in text and "3 chunks, 30 B, went to peers whose events are not given" in text


def test_the_tracker_s_own_seeder_is_known_by_its_join(write):
    tracker = [{"t": 90, "event": "start", "wall": 1e9 + 90, "port": 8000, "file": "f", "content_id": "ab"},
               {"t": 90, "event": "joined", "peer": "127.0.0.1:5000"}, joined(90.1), complete(90.2), *SEEDER[3:]]
    run = timeline.read_run(write({"tracker": tracker, "a": A, "b": B}))
    assert [(lane.name, lane.is_seeder(), len(lane.sent)) for lane in run.lanes] == [("tracker", True, 4), ("a", False, 1), ("b", False, 0)]


def test_a_tracker_that_does_not_seed_has_no_lane(write):
    tracker = [{"t": 90, "event": "start", "wall": 1e9 + 90, "port": 8000, "file": "f", "content_id": "ab"}, {"t": 90, "event": "joined", "peer": "127.0.0.1:5000"}]
    assert len(timeline.read_run(write({"tracker": tracker, **WRITTEN})).lanes) == 3


def test_two_peers_with_one_port_are_not_taken_for_each_other(write):
    twin = [start(95, 5000), joined(95), complete(95)]
    run = timeline.read_run(write({**WRITTEN, "twin": twin}))
    assert lane(run, "127.0.0.1:5000").sent and not lane(run, "twin").sent
    told = [start(95, 5000), joined(95, listening="127.0.0.1:5000"), complete(95)]
    assert lane(timeline.read_run(write({**WRITTEN, "twin": told})), "twin").has_file


def test_a_sent_event_that_says_how_long_it_took_is_believed(write):
    run = timeline.read_run(write({**WRITTEN, "a": A[:-1] + [sent(103, 0, 41002, seconds=0.25)]}))
    assert lane(run, "a").sent[0].begin == 2.75


@pytest.mark.parametrize("limit, begins", [({"upload_limit": 10}, [0, 1, 2, 4]), ({}, [0, 0, 1, 4])])
def test_under_a_limit_what_waits_behind_another_chunk_is_not_on_the_wire_yet(write, limit, begins):
    sends = [sent(101, 0, 40001, seconds=1), sent(102, 10, 40001, seconds=2), sent(104, 10, 40002, seconds=3), sent(105, 0, 40002, seconds=1)]
    run = timeline.read_run(write({**WRITTEN, "seeder": [start(90, 5000, **limit), *SEEDER[1:3], *sends]}))
    assert [transfer.begin for transfer in lane(run, "seeder").sent] == begins
    assert [transfer.end for transfer in lane(run, "seeder").sent] == [1, 2, 4, 5]


def bare(events):
    """The events of an implementation that writes only what SPEC CL-15 demands."""
    return [{name: value for name, value in event.items() if name not in ("seconds", "wall", "out")} for event in events]


def test_events_without_what_they_need_not_have_are_bars_of_no_known_beginning(write, capsys):
    run = timeline.read_run(write({name: bare(events) for name, events in WRITTEN.items()}))
    assert [(t.chunk, t.source, t.to, t.begin, t.end, t.timed) for t in lane(run, "b").fetched] == [(0, 1, 2, 2, 2, False), (10, 0, 2, 3, 3, False)]
    assert [(t.chunk, t.to, t.end, t.duplicate, t.timed) for t in lane(run, "seeder").sent] == [
        (0, 1, 0, False, False), (10, 1, 1, False, False), (10, 2, 3, False, False), (0, 2, 4, True, False)]
    rows = {line.split()[0]: line.split()[1:] for line in text_of(run).splitlines() if line}
    assert rows["b"][:8] == "3.00 s 20 B 2 0 B -".split() and "nothing came" not in text_of(run), "what is not known is not told"
    assert shapes(timeline.draw(run), "rect", "chunk 0: a → b; until 2.000 s; 10 B") and not capsys.readouterr().err


def test_one_peer_that_says_less_takes_nothing_from_the_others(write):
    run = timeline.read_run(write({**WRITTEN, "a": bare(A)}))
    rows = {line.split()[0]: line for line in text_of(run).splitlines() if line}
    assert rows["b"].split()[1:10] == "3.00 s 20 B 2 0 B 1.00 s".split() and rows["a"].split()[8] == "-"
    assert lane(run, "a").sent[0].begin == 1 and [transfer.timed for transfer in lane(run, "seeder").sent] == [False, False, True, True]


def test_a_file_without_a_wall_time_cannot_be_put_among_those_of_several_machines(write):
    elsewhere = [{**event, "t": event["t"] + 5000, **({"wall": event["wall"]} if "wall" in event else {})} for event in B]
    with pytest.raises(timeline.ending.Failure, match="that of a has no wall time"):
        timeline.read_run(write({**WRITTEN, "a": bare(A), "b": elsewhere}))


# Clocks.


def test_files_of_several_machines_meet_on_the_wall_clock(write):
    elsewhere = [{**event, "t": event["t"] + 5000, **({"wall": event["wall"]} if "wall" in event else {})} for event in B]
    run = timeline.read_run(write({**WRITTEN, "b": elsewhere}))
    assert run.several_clocks and "several machines" in text_of(run)
    assert [round(t.end, 3) for t in lane(run, "b").fetched] == [3, 4] and round(lane(run, "b").complete, 3) == 4


def test_of_a_file_with_two_contents_the_last_one_counts(write):
    other = [start(10, 5001), joined(10, content="cd"), fetched(11, 990, 5009, 1.0), complete(11)]
    assert {t.chunk for t in lane(timeline.read_run(write({**WRITTEN, "a": other + A})), "a").fetched} == {0, 10}


# Several runs in one file: --events appends.


def again(events, later, boot=0.0):
    """The same events `later` seconds later, on a machine restarted `boot` seconds before; 0 means not restarted."""
    moved = [{**event, "t": event["t"] + later - boot} for event in events]
    return [{**event, "wall": event["wall"] + later} if "wall" in event else event for event in moved]


@pytest.mark.parametrize("boot", [0.0, 3700.0, -50_000.0], ids=["one_clock", "started_anew", "another_clock"])
@pytest.mark.parametrize("some", [{"seeder", "a", "b"}, {"b"}], ids=["all", "one"])
def test_of_several_runs_the_last_is_shown_and_the_others_can_be(write, boot, some):
    later = [event for event in again(B, 3600, boot) if event["event"] != "fetched" or event["chunk"] == 10] + [complete(3600 + 109 - boot)]
    twice = {name: events + (later if name == "b" else again(events, 3600, boot)) if name in some else events for name, events in WRITTEN.items()}
    once = text_of(timeline.read_run(write(WRITTEN)))
    paths = write(twice)
    run, first = timeline.read_run(paths), timeline.read_run(paths, 1)
    assert [transfer.chunk for transfer in lane(run, "b").fetched] == [10] and [transfer.chunk for transfer in lane(first, "b").fetched] == [0, 10]
    assert text_of(first).replace(f"{first.which}\n", "") == once
    assert "run 2 of the 2 that these files tell of, the last; --run N shows another" in text_of(run) and "run 1 of the 2" in text_of(first)
    assert run.end < 20 and not run.several_clocks
    with pytest.raises(timeline.ending.Failure, match="expected --run from 1 to 2, got 3"):
        timeline.read_run(paths, 3)


def test_two_swarms_are_told_apart_by_their_content_though_they_ran_at_the_same_time(write):
    other = {name: [{**event, "content_id": "cd"} if "content_id" in event else event for event in events] for name, events in WRITTEN.items()}
    run = timeline.read_run(write({**WRITTEN, "c": other["b"]}))
    assert {lane.name for lane in run.lanes if lane.has_file} in ({"c"}, {"seeder", "a", "b"}) and "of the 2" in run.which


@pytest.mark.parametrize("boot, told", [(0.0, False), (60.0, True)], ids=["one_clock", "started_anew"])
def test_a_peer_that_was_started_anew_in_the_middle_is_one_lane_of_one_run(write, boot, told):
    resumed = [*B[:3], start(103.5 - boot, 5003, wall=1e9 + boot), joined(103.5 - boot), *[{**event, "t": event["t"] - boot} for event in B[3:]]]
    run = timeline.read_run(write({**WRITTEN, "b": resumed}))
    assert not run.which and [round(transfer.end, 3) for transfer in lane(run, "b").fetched] == [3, 4] and run.several_clocks == told
    assert round(lane(run, "b").complete, 3) == 4


def test_runs_without_a_wall_time_are_told_apart_by_their_starts(write):
    run = timeline.read_run(write({"b": bare(B) + [{**event, "t": event["t"] - 94.5} for event in bare(B)]}))
    assert "run 2 of the 2" in run.which and run.end < 20


# Runs that went wrong.


def test_a_line_that_is_cut_off_and_lines_that_are_no_events_are_left_out(write, capsys):
    paths = write(WRITTEN)
    with open(paths[2], "a") as file:
        file.write('nothing\n[1]\n{"t": 1, "event": "fetched"}\n{"t": 105.0, "event": "fet')
    assert text_of(timeline.read_run(paths)) == text_of(timeline.read_run(write({**WRITTEN})))
    assert "left out 2 lines that are no event" in (said := capsys.readouterr().err) and "left out a fetched" in said


@pytest.mark.parametrize("event", [
    start(1e308, 5001), {**start(1, 5001), "upload_limit": "fast"}, {**start(1, 5001), "wall": float("nan")}, fetched(103, 0, 5000, 1e308), fetched(103, 0, 5000, -1.0),
    fetched(103, 0, 5000, 1.0, size=-10), fetched(103, 2**64, 5000, 1.0), fetched(103, float("inf"), 5000, 1.0), sent(103, 0, 41002, seconds=float("inf")), complete(103, size=10**300)])
def test_an_event_with_a_number_that_no_peer_writes_is_left_out(write, capsys, event):
    expected = text_of(timeline.read_run(write(WRITTEN)))
    assert text_of(timeline.read_run(write({**WRITTEN, "a": [*A, event]}))) == expected
    assert "left out" in capsys.readouterr().err


def test_a_line_that_is_too_deep_for_a_parser_is_no_event(write, capsys):
    paths = write(WRITTEN)
    with open(paths[2], "a") as file:
        file.write("[" * 100_000 + "\n")
    assert timeline.read_run(paths) and "left out 1 line that is no event" in capsys.readouterr().err


def test_texts_that_no_terminal_and_no_picture_can_hold_are_replaced(write, tmp_path):
    run = timeline.read_run(write({"a": [*A, {**fetched(104, 20, 0, 1.0), "of": "\ud800\x1b[2J:\u00b2"}]}))
    timeline.draw(run).save(tmp_path / "x.svg")
    assert "\ufffd\ufffd[2J:\u00b2" in (tmp_path / "x.svg").read_text() and "\x1b" not in text_of(run)


def test_who_was_never_complete_is_said_to_be_so_and_why(write):
    stuck = B[:3] + [{"t": 103.5, "event": "neighbor_dropped", "neighbor": "127.0.0.1:5000", "banned": False, "reason": "closed"}]
    text = text_of(timeline.read_run(write({**WRITTEN, "b": stuck})))
    assert "the last: b, never complete" in text and "1 of 2 chunks missing; its last came at 3.00 s" in text
    assert "it lost its neighbor 127.0.0.1:5000 at 3.50 s: closed" in text


def test_a_slow_source_is_named(write):
    many = [fetched(100 + n / 10, 20 + n, 5000, 0.1) for n in range(1, 20)]
    text = text_of(timeline.read_run(write({"seeder": SEEDER[:3], "a": A[:2] + many + [complete(102)],
                                            "b": [start(95, 5002), joined(95), *many[:10], fetched(109, 0, 5001, 8.0), complete(109)]})))
    assert "a was a slow source: 8.00 s for 1 chunk, 1 B/s against a median of 100 B/s" in text
    assert "its last chunk came 8.00 s after the one before, from a" in text


@pytest.mark.parametrize("arguments, said", [
    (["absent.events"], "cannot read absent.events: No such file or directory; expected the file that a peer wrote with --events"),
    ([], "the following arguments are required"),
    (["{file}", "--nonsense"], "unrecognized arguments"),
    (["{empty}"], "no chunk was sent or fetched"),
    (["{file}", "--out", "/absent/x.svg"], "cannot write /absent/x.svg"),
])
def test_what_the_user_did_wrong_is_said_in_one_line(write, arguments, said):
    paths = dict(zip(("file", "empty"), write({"a": A, "empty": []})))
    ended = subprocess.run([sys.executable, "lab/timeline.py", *(word.format(**paths) for word in arguments)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


# Pictures.


def shapes(picture, tag, word=""):
    """The elements of an SVG with this tag, and this word in their tooltip."""
    root = ElementTree.fromstring(picture.markup())
    return [element for element in root.iter(SVG + tag) if word in (element.findtext(SVG + "title") or "")]


def test_every_transfer_is_a_bar_at_its_receiver_and_one_at_its_sender(write):
    picture = timeline.draw(timeline.read_run(write(WRITTEN)))
    assert len(shapes(picture, "rect", "→")) == 4 + 5
    (bar, _) = shapes(picture, "rect", "chunk 0: a → b")
    assert bar.findtext(SVG + "title") == "chunk 0: a → b; 2.000 – 3.000 s; 10 B, 10 B/s"
    assert len(shapes(picture, "rect", "it had it already")) == 1
    assert shapes(picture, "path", "b complete at 4.000 s")


@pytest.mark.parametrize("peers", [2, 12])
def test_what_stands_above_the_picture_fits_over_it(write, monkeypatch, peers):
    files = {f"peer {number}": [start(95, 6000 + number), joined(95), fetched(101 + number, 0, 5000, 1.0), complete(102)] for number in range(peers)}
    for most in (timeline.MANY, 1):
        monkeypatch.setattr(timeline, "MANY", most)
        picture = timeline.draw(timeline.read_run(write({"seeder": SEEDER[:3], **files})))
        heads = [element.text for element in shapes(picture, "text") if float(element.get("y")) < 70]
        assert len(heads) == 3 and max(map(len, heads)) * svg.SIZE * svg.LETTER < timeline.WIDTH - 16, heads
        assert "where colours repeat" not in "".join(heads) and ("(colours repeat)" in heads[2]) == (peers == 12 and most > 1)


def test_bars_that_overlap_are_in_different_rows():
    transfers = [timeline.Transfer(begin, begin + 2, begin, 1, 0, 1) for begin in (0, 1, 2, 3)]
    assert timeline.stack(transfers) == ({transfers[0]: 0, transfers[1]: 1, transfers[2]: 0, transfers[3]: 1}, 2)


def test_many_transfers_are_drawn_as_rates(write, monkeypatch):
    monkeypatch.setattr(timeline, "MANY", 5)
    picture = timeline.draw(timeline.read_run(write(WRITTEN)))
    assert not shapes(picture, "rect", "→") and shapes(picture, "rect", "a, 0.00 – 0.08 s: down 10 B/s from seeders, 0 B/s from leechers; up 0 B/s")


def test_no_byte_is_lost_where_bytes_are_spread_over_time():
    transfers = [timeline.Transfer(0.0, 10.0, 0, 100, 0, 1), timeline.Transfer(9.99, 10.0, 0, 7, 0, 1), timeline.Transfer(5.0, 5.0, 0, 1, 0, 1)]
    assert sum(timeline.binned(transfers, 10.0)) == pytest.approx(108)
    assert timeline.binned(transfers[:1], 10.0, 4) == pytest.approx([25, 25, 25, 25])


def test_a_name_cannot_break_the_picture(write):
    picture = timeline.draw(timeline.read_run(write({**WRITTEN, "<b>&\"": B})))
    assert shapes(picture, "rect", "a → <b>&\"")


def test_a_picture_has_both_themes_and_stands_alone(write):
    markup = timeline.draw(timeline.read_run(write(WRITTEN))).markup()
    assert "@media (prefers-color-scheme: dark)" in markup and "<script" not in markup and "href" not in markup
    shapes_only = markup.replace(markup[markup.index("<style>"):markup.rindex("</style>")], "")
    assert "#" not in shapes_only, "a colour outside the style sheet would be the same in light and in dark"
    assert "time since the first request (s)" in markup


@pytest.mark.parametrize("low, high, most, expected", [
    (0, 10, 5, [0, 2, 4, 6, 8, 10]), (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.99, 1.21, 6, [1, 1.05, 1.1, 1.15, 1.2]), (0, 84, 6, [0, 20, 40, 60, 80]), (3, 3, 6, [3])])
def test_the_numbers_on_an_axis_are_round(low, high, most, expected):
    assert svg.ticks(low, high, most) == expected


def test_a_plot_puts_low_left_below_and_high_right_above():
    plot = svg.Plot(None, (10, 20, 110, 220), (0, 5), (1, 2))
    assert (plot.x(0), plot.y(1), plot.x(5), plot.y(2)) == (10, 220, 110, 20)


# A real swarm.


@pytest.mark.ours
def test_the_timeline_of_a_real_swarm_adds_up_to_its_bytes(tmp_path):
    chunks, chunk_size = 12, 16384
    result = distribution.run_swarm(3, chunks, chunk_size, 256 << 10, events=str(tmp_path))
    run = timeline.read_run([str(path) for path in tmp_path.glob("*.events")])
    leechers = [lane for lane in run.lanes if not lane.is_seeder()]
    assert [lane.name for lane in run.lanes] == ["seeder", "peer 1", "peer 2", "peer 3"]
    assert run.size == chunks * chunk_size and len(run.chunks) == chunks
    assert [timeline.total(lane.fetched) for lane in leechers] == [run.size] * 3
    assert timeline.total(run.lanes[0].sent) == result.seeder_bytes and [timeline.total(lane.sent) for lane in leechers] == result.peer_bytes
    assert sum(timeline.total(lane.sent) for lane in run.lanes) - sum(transfer.size for lane in run.lanes for transfer in lane.sent if transfer.duplicate) == 3 * run.size
    assert not [transfer for lane in run.lanes for transfer in lane.sent if transfer.to is None]
    assert run.end <= result.makespan + 1 and len(shapes(timeline.draw(run), "rect", "→")) >= 2 * 3 * chunks
    known = [event["t"] for path in tmp_path.glob("peer*.events") for event in events_in(path, "neighbor_added")]
    assert len(known) == 9 and max(known) < min(event["t"] for event in events_in(tmp_path / "seeder.events", "sent")), "all know all before the seeder begins"


@pytest.mark.ours
def test_a_real_tracker_that_seeds_is_a_lane_of_its_own(tmp_path, make_file, run_tracker, run_peer):
    path, data = make_file(100_000)
    tracker = run_tracker(path, extra=["--events", str(tmp_path / "tracker.events"), "--chunk-size", "16K"])
    run_peer(tracker.port, tmp_path / "out", ["--events", str(tmp_path / "leecher.events"), "--leave"]).ends_with(0)
    run = timeline.read_run([str(tmp_path / "leecher.events"), str(tmp_path / "tracker.events")])
    assert [(lane.name, lane.is_seeder(), timeline.total(lane.sent)) for lane in run.lanes] == [("tracker", True, len(data)), ("leecher", False, 0)]
    assert [transfer.source for transfer in run.lanes[1].fetched] == [0] * 7


def test_of_each_uplink_it_says_how_much_was_in_use_when_it_is_told_of_the_links(write, tmp_path):
    def at_host(events, host):
        return json.loads(json.dumps(events).replace("127.0.0.1", f"10.99.0.{host}"))
    paths = write({"seeder": at_host([start(90, 5000), {**joined(90), "listening": "10.99.0.1:5000"}, complete(90), sent(101, 0, 40001)], 1),
                   "a": at_host([start(95, 5001), {**joined(95), "listening": "10.99.0.2:5001"}, fetched(101, 0, 5000, 1.0), complete(101)], 1)})
    command = [sys.executable, "lab/timeline.py", *paths, "--out", str(tmp_path / "x.svg"), "--links"]
    with_links = subprocess.run([*command, "up=8K,2:up=16K"], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (with_links.returncode, with_links.stderr) == (0, "") and with_links.stdout.splitlines()[1].split()[-2:] == ["1", "%"], with_links.stdout
    refused = subprocess.run([*command, "up"], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "KEY=VALUE" in refused.stderr
