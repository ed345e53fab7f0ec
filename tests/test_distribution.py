"""lab/distribution.py: the bounds, what is made of figures, and small real swarms, client–server and peer to peer."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
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


@pytest.mark.parametrize("seeder, curves", [(1, 3), (10, 2)])
def test_the_figure_has_the_curves_and_every_point(tmp_path, seeder, curves):
    points = [point([9 + n], n=n, client_server=cs, seeder=seeder) for cs in (True, False) for n in (1, 2, 4)]
    distribution.draw(points, points[-1].setup, tmp_path / "x.svg")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    tips = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [tip for tip in tips if tip.endswith(" s")] == [f"N = {n}: {9 + n:.3f} s" for n in (1, 2, 4)] * 2
    text = "".join(root.itertext())
    assert "distribution time (s)" in text and "number of leechers N" in text and "prefers-color-scheme: dark" in text
    assert ("floor of chunks" in text) == (curves == 3)


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


def test_another_peer_py_is_run_and_what_it_says_when_it_ends_is_shown(tmp_path):
    other = tmp_path / "peer.py"
    other.write_text("import sys; print('peer.py: of another kind', file=sys.stderr); sys.exit(3)\n")
    with pytest.raises(distribution.Failure, match="expected seeder to go on, but it ended with exit code 3: peer.py: of another kind"):
        distribution.run_swarm(1, 2, 1024, MIB, program=str(other))


def children_of(pid):
    """{pid: command} of the programs that it has started; not of a process that is still a copy of itself."""
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
