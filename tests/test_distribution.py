"""lab/distribution.py: the bounds, the processing of figures, and small real swarms, client–server and peer to peer."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree

import pytest

from harness import ROOT, Program, eventually

sys.path.insert(0, str(pathlib.Path(ROOT, "lab")))
import distribution  # noqa: E402  (after the path)

pytestmark = pytest.mark.ours
KIB, MIB = 1 << 10, 1 << 20
SETUP = {"n": 4, "chunks": 40, "chunk_size": 64 * KIB, "limit": MIB, "seeder": 1, "slow": None, "client_server": False, "staggered": False}


def run_of(n, makespan, cpu=0.25, files=1.0):
    return distribution.Result(makespan, [makespan] * n, int(files * 40 * 64 * KIB), [0] * n, cpu)


def point(makespans=(2.7, 2.8, 2.75), **changes):
    setup = SETUP | changes
    return distribution.Point(setup, [run_of(setup["n"], makespan) for makespan in makespans], *distribution.bounds(setup))


# Bounds: the textbook's example has F/u = 1 hour, u_s = 10 u and d_min ≥ u_s.


def test_the_bounds_are_those_of_the_textbook():
    assert distribution.client_server_bound(30, 1, 10) == 3.0
    assert distribution.p2p_bound(1, 10, [1] * 30) == 30 / 40
    assert distribution.p2p_bound(1, 10, [1] * 10 ** 6) < 1


def test_a_slow_download_or_a_slow_seeder_is_a_bound_of_its_own():
    assert distribution.client_server_bound(2, 100, 50, download=10) == 10
    assert distribution.p2p_bound(100, 50, [1000, 1000], download=10) == 10
    assert distribution.p2p_bound(100, 50, [1000, 1000]) == 2


def test_what_each_configuration_is_held_against():
    assert distribution.bounds(SETUP) == (2.5, 42 / 16)
    assert distribution.bounds(SETUP | {"client_server": True}) == (10.0, None)
    assert distribution.bounds(SETUP | {"seeder": 10}) == (4 * 2.5 / 14, None)
    assert distribution.bounds(SETUP | {"slow": 0.05}) == (2.5, 41 / 16), "the others are three, and their floor is that of three"


# Figures.


def test_the_median_counts_and_with_a_slow_peer_that_of_the_others():
    assert point().makespan() == 2.75
    slow = distribution.Point(SETUP | {"slow": 0.1}, [distribution.Result(9, [1, 2, 3, 9], 0, [], None)], 1, 1)
    assert slow.makespan() == 3


def test_a_share_of_the_processors_is_busy_time_over_all_time():
    assert distribution.cpu_share((10, 100), (40, 200)) == 0.3
    assert distribution.cpu_share(None, (40, 200)) is None and distribution.cpu_share((1, 2), (1, 2)) is None


def test_csv_and_json_hold_every_run(tmp_path):
    points = [point(n=2), point([10.1], client_server=True)]
    distribution.write_csv(points, tmp_path / "x.csv")
    distribution.write_json(points, tmp_path / "x.json")
    rows = list(csv.DictReader(open(tmp_path / "x.csv")))
    assert [(row["mode"], row["n"], row["makespan_s"], row["over_bound"], row["floor_s"]) for row in rows] == [
        ("peer-to-peer", "2", "2.7", "1.08", "2.5625"), ("peer-to-peer", "2", "2.8", "1.12", "2.5625"), ("peer-to-peer", "2", "2.75", "1.1", "2.5625"),
        ("client-server", "4", "10.1", "1.01", "")]
    kept = json.load(open(tmp_path / "x.json"))
    assert [len(one["runs"]) for one in kept["points"]] == [3, 1] and kept["points"][0]["setup"]["limit"] == MIB and kept["machine"]["processors"]


def test_the_table_has_measured_over_bound_for_each_point():
    lines = distribution.table([point(), point([10.1], client_server=True)])
    assert lines[1].split() == "peer to peer 4 2.750 2.500 1.100 1.048 1.00 files 25 %".split()
    assert lines[2].split() == "client–server 4 10.100 10.000 1.010 - 1.00 files 25 %".split()


SVG = "{http://www.w3.org/2000/svg}"


def drawn(points, path):
    """The root of the figure's SVG."""
    distribution.draw(points, points[-1].setup, path)
    return ElementTree.parse(path).getroot()


@pytest.mark.parametrize("seeder, curves", [(1, 3), (10, 2)])
@pytest.mark.parametrize("numbers", [(1, 2, 4), (1, 2, 4, 8, 16, 32), (5,)])
def test_the_figure_has_the_curves_and_every_point(tmp_path, seeder, curves, numbers):
    points = [point([9 + n], n=n, client_server=cs, seeder=seeder) for cs in (True, False) for n in numbers]
    root = drawn(points, tmp_path / "x.svg")
    tips = [element.text for element in root.iter(f"{SVG}title")]
    assert [tip for tip in tips if tip.endswith(" s")] == [f"N = {n}: {9 + n:.3f} s" for n in numbers] * 2
    text = "".join(root.itertext())
    assert "distribution time (s)" in text and "number of leechers N" in text and "prefers-color-scheme: dark" in text
    assert ("floor of chunks (M" in text) == (curves == 3)


def test_in_the_figure_n_doubles_from_mark_to_mark_and_dashed_is_what_theory_says(tmp_path):
    root = drawn([point([9 + n], n=n, client_server=cs) for cs in (True, False) for n in (1, 2, 4, 8)], tmp_path / "x.svg")
    numbers = [float(element.get("x")) for element in root.iter(f"{SVG}text") if element.text in ("1", "2", "4", "8") and element.get("text-anchor") == "middle"]
    assert len(numbers) == 8 and numbers[:4] == numbers[4:]
    assert [after - before for before, after in zip(numbers, numbers[1:4])] == pytest.approx([numbers[1] - numbers[0]] * 3, abs=0.11)
    dashed = [element for element in root.iter(f"{SVG}path") if element.get("stroke-dasharray")]
    assert len({element.get("stroke-dasharray") for element in dashed}) == 1 and len(dashed) == 2 * (3 + 1), "three bounds, what is possible, and their labels"


@pytest.mark.parametrize("most", [0.96, 1.0, 39.0, 40.0, 40.1])
def test_every_point_is_below_the_highest_number_on_the_axis(tmp_path, most):
    root = drawn([point([most], n=n) for n in (1, 2)], tmp_path / "x.svg")
    heights = [float(element.get("y")) for element in root.iter(f"{SVG}text") if element.get("text-anchor") == "end"]
    marks = [float(number) for element in root.iter(f"{SVG}polygon") for number in re.findall(r",([\d.]+)", element.get("points"))]
    assert min(heights) < min(marks) + 3 and min(marks) > 100, "the plot begins at 100"


def test_labels_of_lines_do_not_cover_each_other():
    assert distribution.svg.spread([10, 100, 12, 11], 20, 0, 200) == [-9 + 9, 100, 40, 20]
    assert distribution.svg.spread([50, 50, 50], 20, 0, 200) == [30, 50, 70]
    assert distribution.svg.spread([200, 195], 20, 0, 200) == [200, 180] and distribution.svg.spread([], 20, 0, 200) == []


def test_a_limit_that_keeps_the_processors_busy_is_halved(monkeypatch, capsys):
    shares = iter([0.9, 0.6, 0.4])
    monkeypatch.setattr(distribution, "run_swarm", lambda n, limit, **rest: run_of(n, 1, 1.0)._replace(own=next(shares)))
    fitted = distribution.fitting(SETUP, keep_duration=True)
    assert (fitted["limit"], fitted["chunks"]) == (MIB / 4, 10)
    assert capsys.readouterr().out.count("trial") == 3


def test_a_run_that_failed_is_tried_once_more_and_busy_processors_are_told_of(monkeypatch, capsys):
    def fail_once(**_):
        if tries.append(1) or len(tries) == 1:
            raise distribution.Failure("disturbed")
        return run_of(4, 2.7, cpu=0.8)

    tries = []
    monkeypatch.setattr(distribution, "run_swarm", fail_once)
    assert distribution.measure(SETUP, 1).makespan() == 2.7
    assert "once more: disturbed" in (said := capsys.readouterr().out) and "warning: the processors" in said


# The command line.


@pytest.mark.parametrize("arguments, said", [
    (["--point", "0", "40"], "expected a whole number from 1 to 1000, got 0"), (["--point", "4"], "expected 2 arguments"),
    (["--slow", "0.1"], "expected --point"), (["--point", "1", "8", "--slow", "0.1"], "expected at least 2 leechers"),
    (["--point", "2", "8", "--slow", "2"], "expected a number above 0, at most 1, got 2"), (["--seeder", "nan"], "got nan"),
    (["--peer", "/absent.py"], "expected the path of a peer.py"), (["--limit", "fast"], "expected a size"), (["--chunk-size", "1G"], "at most"), (["--out", "/absent/x"], "a folder that can be written"),
    (["--point", "2", "8", "--events", "/dev/null/x"], "cannot make the folder"), (["extra"], "unrecognized")])
def test_wrong_arguments_are_told_in_one_line(arguments, said):
    with pytest.raises(distribution.peer.Fatal, match=re.escape(said)) as refused:
        distribution.parse_arguments(arguments)
    assert refused.value.code == 2 and "\n" not in str(refused.value)


# Real swarms.


def test_clients_that_nobody_can_reach_get_every_file_from_the_seeder():
    result = distribution.run_swarm(3, 8, 16 * KIB, 512 * KIB, client_server=True)
    assert result.seeder_bytes == 3 * 8 * 16 * KIB and result.peer_bytes == [0, 0, 0]
    assert 0.9 * 3 * 8 / 32 < result.makespan == max(result.times) and len(result.times) == 3


def test_a_slow_peer_and_a_staggered_start():
    result = distribution.run_swarm(3, 16, 16 * KIB, 512 * KIB, slow=0.05, staggered=True)
    assert sum(result.peer_bytes) + result.seeder_bytes >= 3 * 16 * 16 * KIB
    assert result.peer_bytes[-1] <= max(result.peer_bytes[:-1])


def test_a_run_is_over_when_the_senders_have_noted_all_that_came():
    """A sender notes a chunk a moment after its last byte, perhaps when the receiver is already complete."""
    def process(*events):
        noted = types.SimpleNamespace(read=lambda: None, transfers=[json.dumps({"event": event, "bytes": 5}).encode() for event in events])
        noted.bytes_of = types.MethodType(distribution.Process.bytes_of, noted)
        return noted

    seeder, leecher = process("sent"), process("fetched", "fetched")
    swarm = types.SimpleNamespace(processes=[seeder, leecher], leechers=[leecher])
    assert not distribution.Swarm.all_noted(swarm)
    seeder.transfers += process("sent").transfers
    assert distribution.Swarm.all_noted(swarm)


def test_another_peer_py_is_run_and_what_it_says_when_it_ends_is_shown(tmp_path):
    other = tmp_path / "peer.py"
    other.write_text("import sys; print('peer.py: of another kind', file=sys.stderr); sys.exit(3)\n")
    with pytest.raises(distribution.Failure, match="expected seeder to go on, but it ended with exit code 3: peer.py: of another kind"):
        distribution.run_swarm(1, 2, 1024, MIB, program=str(other))


def children_of(pid):
    """{pid: command} of the programs that a process has started, but not of a fork that still runs its own code."""
    shown = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return {int(line.split()[0]): line for line in shown.splitlines() if "tracker.py" in line or "peer.py" in line}


def has_not_ended(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="ps --ppid")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path, ending, number):
    command = [sys.executable, "lab/distribution.py", "--point", "2", "100", "--limit", "64K"]
    program = ending(Program(command, env={**os.environ, "TMPDIR": str(tmp_path)}))
    started = eventually(lambda: len(found := children_of(program.pid)) == 4 and found, what="a tracker, a seeder and two leechers")
    program.signal(number)
    program.ends_with(128 + number)
    assert os.listdir(tmp_path) == []
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_no_peer_outlives_a_measurement_that_is_killed_not_even_one_that_is_stopped(tmp_path, ending):
    command = [sys.executable, "lab/distribution.py", "--point", "2", "100", "--limit", "64K"]
    program = ending(Program(command, env={**os.environ, "TMPDIR": str(tmp_path)}))
    started = eventually(lambda: len(found := children_of(program.pid)) >= 2 and found, what="a tracker and a seeder")
    for pid in started:
        os.kill(pid, signal.SIGSTOP)
    program.signal(signal.SIGKILL)
    program.ends_with(-9)
    eventually(lambda: not [pid for pid in started if has_not_ended(pid)], what="the end of all that it started")


# On links.


ON_LINKS = SETUP | {"links": "up=8M,down=16M,delay=10ms", "limit": 1e6}


def test_bounds_on_links_have_their_rates_and_a_round_trip():
    size, tau = 40 * 64 * KIB, 64 * KIB / 1e6
    assert distribution.bounds(ON_LINKS) == pytest.approx((size / 1e6 + 0.02, 42 * tau + 0.02))
    assert distribution.bounds(ON_LINKS | {"client_server": True}) == (pytest.approx(4 * size / 1e6 + 0.02), None)
    assert distribution.bounds(ON_LINKS | {"seeder": 10}) == (pytest.approx(size / 2e6 + 0.02), None), "the downlink"
    assert distribution.bounds(ON_LINKS | {"slow": 0.1})[1] == pytest.approx(41 * tau + 0.02), "of the others, who are equal"


@pytest.mark.parametrize("words, said", [(["--links", "down=1M"], "expected up=RATE for all hosts"), (["--links", "up=x"], "up: expected a number"),
                                         (["--links", "up=1M", "--limit", "1M"], "expected one of --links and --limit")])
def test_wrong_links_are_told_in_one_line(words, said):
    with pytest.raises(distribution.peer.Fatal, match=re.escape(said)):
        distribution.parse_arguments(["--point", "2", "8", *words])


@pytest.mark.parametrize("words", [[], ["--client-server"], ["--slow", "0.5"]])
def test_a_real_swarm_on_links(words):
    command = ["lab/distribution.py", "--point", "2", "8", "--chunk-size", "16K", "--links", "up=4M,delay=5ms", *words]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=100)
    if ended.returncode == distribution.links.EXIT_CANNOT:
        pytest.skip(ended.stderr.strip())
    if ended.returncode == distribution.links.EXIT_SLOW:
        assert "no figure" in ended.stderr and ended.stderr.count("\n") == 1
    else:
        assert ended.returncode == 0 and "of a core" in ended.stdout, ended.stderr
