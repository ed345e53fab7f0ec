"""The policy in small simulated swarms with fixed seeds, and lab/simulate.py itself.

The simulator runs the functions of peer.py, so these tests pin what the rules are worth: a change
that costs more than noise fails here, in simulated time, on any machine.
"""

import json
import os
import signal
import statistics
import subprocess
import sys

import pytest

import peer
from harness import ROOT, Program

sys.path.insert(0, os.path.join(ROOT, "lab"))

import ablation  # noqa: E402  (after the path)
import distribution  # noqa: E402
import simulate  # noqa: E402


def ratio(leechers, chunks, runs=5, **options):
    """The median over some seeds of makespan over floor."""
    return statistics.median(simulate.simulate(leechers, chunks, seed=seed, **options)["ratio"] for seed in range(runs))


@pytest.mark.parametrize("leechers, chunks, steps", [(1, 10, 10), (2, 10, 11), (3, 10, 11), (4, 10, 12), (8, 160, 163), (1000, 1, 10)])
def test_the_floor_is_every_chunk_and_a_doubling_for_each_power_of_two(leechers, chunks, steps):
    assert simulate.floor(leechers, chunks, 0.5) == steps * 0.5


def test_one_leecher_gets_one_chunk_after_the_other_without_a_gap():
    run = simulate.simulate(1, 100)
    assert run["ratio"] == pytest.approx(1, abs=0.01) and run["seeder_files"] == 1 and run["busy"] == 0


@pytest.mark.parametrize("leechers, chunks, most", [(2, 40, 1.06), (8, 40, 1.12), (8, 160, 1.05), (16, 160, 1.06)])
def test_a_swarm_of_equals_is_near_the_floor(leechers, chunks, most):
    assert 1 <= ratio(leechers, chunks) <= most


@pytest.mark.parametrize("tau, most", [(0.042, 1.08), (0.01, 1.10), (0.002, 1.2)])
def test_a_swarm_on_faster_uplinks_is_near_the_floor_too(tau, most):
    """Pauses come from the exchange and not from a constant; a request takes as long as a chunk in the last one."""
    assert ratio(8, 160, tau=tau) <= most


def test_the_seeder_sends_little_more_than_one_file():
    assert statistics.median(simulate.simulate(16, 160, seed=seed)["seeder_files"] for seed in range(3)) <= 1.10


def test_one_slow_peer_costs_the_others_little():
    worst = max(simulate.simulate(16, 160, slow=0.05, seed=seed)["ratio"] for seed in range(5))
    assert worst <= 1.15


@pytest.mark.parametrize("rule, least", [("neighbor first", 1.4), ("busy", 1.2), ("unsent first", 1.03)])
def test_a_swarm_without_the_rule_is_slower_by_so_much(rule, least):
    assert ratio(16, 80, runs=3, without=[rule]) > least * ratio(16, 80, runs=3)


def test_without_an_endgame_a_slow_peer_costs_more():
    assert ratio(16, 80, runs=3, slow=0.05, without=["endgame"]) > 1.1 * ratio(16, 80, runs=3, slow=0.05)


@pytest.mark.parametrize("rule", simulate.RULES)
def test_a_rule_that_is_taken_out_changes_peer_py_and_is_put_back(rule):
    owners = peer, peer.Picker, peer.Slots
    before = [dict(vars(owner)) for owner in owners]
    with simulate.Without([rule]):
        assert [dict(vars(owner)) for owner in owners] != before
    assert [dict(vars(owner)) for owner in owners] == before


@pytest.mark.parametrize("rule", simulate.RULES)
def test_a_swarm_without_any_rule_still_ends(rule):
    run = simulate.simulate(5, 20, without=[rule])
    assert len(run["complete"]) == 5 and run["makespan"] < simulate.FOREVER


def test_chunks_are_sent_as_often_as_they_come():
    run = simulate.Simulation(8, 40, seed=3).run()
    sent = sum(member.uploaded for member in run.members)
    under_way = sum(len(member.queue) for member in run.members)
    came = 8 * 40 + run.counts["duplicates"]
    assert came <= sent <= came + under_way + len(run.members)  # the last ones may still be on the wire


def test_a_seeder_that_knows_nothing_of_what_it_sent_gives_a_swarm_with_a_missing_chunk_all_of_it():
    """As after a restart: the leechers hold all but one chunk, which only the seeder has. Nothing deadlocks."""
    swarm = simulate.Simulation(4, 10)
    swarm.members[0].slots.sent = peer.all_of(10)  # and as if it had given everything away
    for member in swarm.members[1:]:
        member.picker.held = peer.all_of(9)
        member.order = list(range(9))
    swarm.run()
    assert all(member.complete_at for member in swarm.members[1:])


def test_the_same_seed_gives_the_same_run_and_another_another():
    assert simulate.simulate(6, 30, seed=5) == simulate.simulate(6, 30, seed=5) != simulate.simulate(6, 30, seed=6)


def test_nobody_has_more_neighbors_than_a_peer_may():
    swarm = simulate.Simulation(80, 4)
    assert {len({id(other) for other in swarm.neighbors(member)}) for member in swarm.members[1:]} <= {peer.MAX_NEIGHBORS, peer.MAX_NEIGHBORS - 1}


def test_what_decides_are_the_functions_of_peer_py(monkeypatch):
    asked = []
    monkeypatch.setattr(peer, "rarest_first", lambda *args, rarest_first=peer.rarest_first: asked.append(args) or rarest_first(*args))
    simulate.simulate(2, 10)
    assert asked


# The program.


def run_simulate(*words):
    return subprocess.run([sys.executable, os.path.join(ROOT, "lab", "simulate.py"), *words], capture_output=True, text=True, timeout=60)


def test_the_program_prints_a_line_for_each_rule():
    out = run_simulate("--leechers", "3", "--chunks", "8", "--runs", "1", "--ablation").stdout.splitlines()
    assert out[0].startswith("3 leechers, 8 chunks") and [line[:16].strip() for line in out[2:]] == ["none", *simulate.RULES]


def test_the_program_prints_the_raw_figures_as_json():
    runs = [json.loads(line) for line in run_simulate("--leechers", "3", "--chunks", "8", "--runs", "2", "--json", "--without", "busy").stdout.splitlines()]
    assert len(runs) == 2 and runs[0]["without"] == ["busy"] and len(runs[0]["complete"]) == 3


@pytest.mark.parametrize("words, expected", [
    (["--leechers", "0"], "expected a whole number from 1 to 10,000, got 0"),
    (["--leechers", "10001"], "expected a whole number from 1 to 10,000"),
    (["--chunks", "x"], "expected a whole number"), (["--tau", "0"], "expected a number from 0.001"), (["--slow", "nan"], "expected a number"),
    (["--without", "luck"], "expected one of rarest first"), (["--loud"], "unrecognized"),
])
def test_wrong_arguments_are_one_line_and_exit_code_2(words, expected):
    ended = run_simulate(*words)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and expected in ended.stderr


# Real peers without a rule.


@pytest.mark.parametrize("rule", simulate.RULES)
def test_a_peer_without_a_rule_is_peer_py_with_its_line_run_first(rule, tmp_path):
    program = ablation.program_without(rule, tmp_path)
    ended = subprocess.run([sys.executable, program, "--version"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"peer.py {peer.VERSION}\n", "")
    assert simulate.RULES[rule] in open(program).read()


def test_a_small_ablation_writes_what_it_measured(tmp_path):
    out = tmp_path / "ablation.json"
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "ablation.py"), "--leechers", "2", "--chunks", "8", "--tau", "0.05", "--runs", "1",
                            "--simulated", "3", "--rule", "busy", "--out", str(out)], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    none, busy = json.loads(out.read_text())
    assert (none["rule"], busy["rule"]) == (None, "busy")
    assert all(len(found["real_makespans_s"]) == 1 and len(found["simulated_makespans_s"]) == 3 for found in (none, busy))
    assert none["real_over_floor"] == pytest.approx(none["real_makespans_s"][0] / none["floor_s"], rel=0.01)


def test_an_ablation_that_is_interrupted_keeps_what_it_has_measured(tmp_path, ending):
    (tmp_path / "x.json").write_text("[]")
    words = ["--leechers", "1", "--chunks", "2", "--tau", "0.05", "--runs", "1", "--simulated", "1", "--out", str(tmp_path / "x.json")]
    program = ending(Program([sys.executable, os.path.join(ROOT, "lab", "ablation.py"), *words]))
    program.wait_for("^none .* CPU")
    program.signal(signal.SIGINT)
    program.ends_with(130)
    rules = [found["rule"] for found in json.loads((tmp_path / "x.json").read_text())]
    assert rules[0] is None and len(rules) < 1 + len(simulate.RULES)


def test_an_ablation_that_cannot_write_says_so_before_it_measures(tmp_path):
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "ablation.py"), "--out", str(tmp_path / "no" / "where.json")],
                           capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1) and "No such file" in ended.stderr


def test_a_real_swarm_under_limits_is_not_far_from_the_floor():
    """The bound is generous, and one run of three is enough, for a machine that is busy with other tests; lab/distribution.py measures."""
    for _ in range(3):
        run = distribution.run_swarm(6, 24, 16_384, 16_384 / 0.15)
        if run.makespan < 2 * simulate.floor(6, 24, 0.15) and run.seeder_bytes < 2 * 24 * 16_384:
            break
    assert run.makespan < 2 * simulate.floor(6, 24, 0.15)
    assert run.seeder_bytes < 2 * 24 * 16_384
