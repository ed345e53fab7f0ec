"""The policy in small simulated swarms with fixed seeds, and lab/simulate.py itself.

The simulator runs the functions of peer.py, so these tests fix what the rules are worth: a change
that costs more than noise fails here, in simulated time, on any machine.
"""

import json
import os
import random
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
import links  # noqa: E402
import network  # noqa: E402
import simulate  # noqa: E402


def ratio(leechers, chunks, runs=5, **options):
    """The median of makespan over floor, over some seeds."""
    return statistics.median(simulate.simulate(leechers, chunks, seed=seed, **options)["ratio"] for seed in range(runs))


@pytest.mark.parametrize("leechers, chunks, steps", [(1, 10, 10), (2, 10, 11), (3, 10, 11), (4, 10, 12), (8, 160, 163), (1000, 1, 10)])
def test_the_floor_is_every_chunk_and_a_doubling_for_each_power_of_two(leechers, chunks, steps):
    assert simulate.floor(leechers, chunks, 0.5) == steps * 0.5


def test_one_leecher_gets_one_chunk_after_the_other_without_a_gap():
    run = simulate.simulate(1, 100)
    assert run["ratio"] == pytest.approx(1, abs=0.01) and run["seeder_files"] == 1 and run["busy"] == 0


@pytest.mark.parametrize("leechers, chunks, most", [(2, 40, 1.06), (8, 40, 1.12), (8, 160, 1.05), pytest.param(16, 160, 1.06, marks=pytest.mark.long)])
def test_a_swarm_of_equals_is_near_the_floor(leechers, chunks, most):
    assert 1 <= ratio(leechers, chunks) <= most


@pytest.mark.parametrize("tau, most", [(0.042, 1.08), (0.01, 1.10), (0.002, 1.2)])
def test_a_swarm_on_faster_uplinks_is_near_the_floor_too(tau, most):
    """Pauses depend on the exchange and not on a constant; in the last case, a request takes as long as a chunk."""
    assert ratio(8, 160, tau=tau) <= most


def test_the_seeder_sends_little_more_than_one_file():
    assert statistics.median(simulate.simulate(16, 160, seed=seed)["seeder_files"] for seed in range(3)) <= 1.10


@pytest.mark.long
def test_one_slow_peer_costs_the_others_little():
    worst = max(simulate.simulate(16, 160, slow=0.05, seed=seed)["ratio"] for seed in range(5))
    assert worst <= 1.15


@pytest.mark.parametrize("rule, least", [("busy", 1.2), *(pytest.param(*rule, marks=pytest.mark.long) for rule in (("neighbor first", 1.4), ("unsent first", 1.03)))])
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
    """As after a restart, the leechers hold all but one chunk, which only the seeder has. Nothing deadlocks."""
    swarm = simulate.Simulation(4, 10)
    swarm.members[0].slots.sent = peer.all_of(10)  # as if it had given everything away
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


# On links.


HOMES = links.parse_links("up=20M,down=100M,delay=10ms")


def one_connection(text, size, then=()):
    """(when each write has arrived, the network): `size` bytes go from host 0 to host 1; `then`: more writes (at, size)."""
    clock, came = simulate.Simulation(1, 1), []
    clock.clock, clock.later, clock.missing = [], {}, 1  # nothing but the connection
    net = network.Network(links.parse_links(text), 2, clock.after, lambda: clock.now, random.Random(1))
    connection = network.Connection(net, 0, 1, 32 * 1024)
    for at, count in [(0.0, size), *then]:
        clock.after(at, connection.write, count, None, lambda: came.append(clock.now))
    clock.run()
    return came, net


@pytest.mark.parametrize("segments, trips", [(10, 0), (30, 1), (70, 2), (150, 3)])
def test_a_connection_starts_with_ten_segments_and_doubles_with_each_round_trip(segments, trips):
    came, _ = one_connection("up=1G,delay=50ms", segments * 1448)
    assert came == [pytest.approx(0.05 + trips * 0.1, abs=0.01)]


def test_a_long_transfer_fills_the_uplink_and_one_that_has_rested_starts_anew():
    came, net = one_connection("up=20M,delay=10ms", 10_000_000)
    assert 4.1 < came[0] < 4.6 and net.sent[0] < 10_800_000
    came, _ = one_connection("up=1G,delay=50ms", 400_000, [(2.0, 400_000), (2.5, 14_480)])
    assert came[1] - 2.0 == pytest.approx(came[0], abs=0.05)


@pytest.mark.parametrize("text, size, measured", [
    ("up=100M,down=100M,delay=40ms", 256, 0.374), ("up=100M,down=100M,delay=40ms", 1024, 0.544), ("up=100M,down=100M,delay=40ms", 16384, 1.850),
    ("up=20M,down=100M,delay=10ms", 1024, 0.472), ("up=20M,down=100M,delay=10ms", 16384, 6.992), ("up=20M,down=100M,delay=40ms", 4096, 2.028)])
def test_a_transfer_takes_what_it_takes_with_the_tcp_of_linux(text, size, measured):
    """Medians of three or more runs of socket.sendall over lab/links.py, from first byte sent to last received; Linux 6.18, cubic."""
    came, _ = one_connection(text, size * 1024)
    assert came == [pytest.approx(measured, rel=0.03)]


class LosesOne:
    """A random number generator that makes only the packet with this number get lost."""

    def __init__(self, number):
        self.number = number

    def random(self):
        self.number -= 1
        return float(self.number != 0)


def with_one_loss(number, size):
    """(connection, its windows, what came when), for `size` segments from host 0 to host 1, one of which was lost."""
    clock, came, windows = simulate.Simulation(1, 1), [], []
    clock.clock, clock.later, clock.missing = [], {}, 1
    net = network.Network(links.parse_links("up=20M,delay=20ms,2:loss=0%,1:loss=1%"), 2, clock.after, lambda: clock.now, LosesOne(number))
    connection = network.Connection(net, 0, 1, 32 * 1024)

    def look():
        windows.append((connection.window, connection.recovering()))
        clock.after(0.001, look) if clock.now < 3 else None
    for part in range(4):
        connection.write(size // 4 * connection.segment, None, lambda part=part: came.append((part, clock.now)))
    clock.after(0.0, look)
    clock.run()
    return connection, windows, came


def test_no_window_grows_while_a_loss_is_made_up_for():
    _, windows, _ = with_one_loss(40, 400)
    during = {window for window, recovering in windows if recovering}
    assert len(during) == 1, "one window, from the loss until it is made up for"
    before = max(window for window, _ in windows[:windows.index((*during, True))])
    assert during.pop() == int(int(before) * network.BETA)


def test_one_lost_segment_holds_up_all_that_was_written_later():
    _, _, came = with_one_loss(8, 40)
    assert [part for part, _ in came] == [0, 1, 2, 3] and came[0][1] > 0.06
    assert came[1][1] - came[0][1] < 0.01, "the second part was there already"


@pytest.mark.parametrize("number, trips", [(40, 3), (38, 3)])
def test_a_lost_tail_is_found_by_a_probe_and_not_by_a_timeout(number, trips):
    connection, _, came = with_one_loss(number, 40)
    whole, _, fast = with_one_loss(10 ** 9, 40)
    assert 0.04 < came[-1][1] - fast[-1][1] < 0.18 and whole.window > connection.window


def test_losses_are_made_up_for_and_cost_time():
    fast, _ = one_connection("up=20M,delay=20ms", 3_000_000)
    slow, net = one_connection("up=20M,delay=20ms,loss=2%", 3_000_000)
    assert len(slow) == 1 and slow[0] > 1.2 * fast[0] and net.sent[0] > 3_030_000


def test_a_full_queue_drops_and_a_small_one_suffices():
    came, _ = one_connection("up=20M,delay=20ms,queue=10ms", 3_000_000)
    assert 1.2 < came[0] < 3


def test_a_swarm_on_links_is_above_its_bound_and_sends_little_twice():
    runs = [simulate.simulate_on_links(4, 16, HOMES, seed=seed) for seed in range(2)]
    assert all(1 < run["ratio"] < 1.8 and run["seeder_files"] < 1.6 for run in runs) and runs[0] != runs[1]
    assert simulate.simulate_on_links(4, 16, HOMES, seed=1) == runs[1]


@pytest.mark.parametrize("rule", simulate.RULES)
def test_a_swarm_on_links_without_any_rule_still_ends(rule):
    run = simulate.simulate_on_links(3, 8, HOMES, without=[rule])
    assert len(run["complete"]) == 3 and run["makespan"] < simulate.FOREVER


def test_news_is_told_to_whoever_waits_for_it():
    """Three trips one way: the seeder's first answer, the request, the chunk; then news to a waiting query, the request, the chunk."""
    far = links.parse_links("up=1G,down=1G,delay=100ms")
    swarm = simulate.OnLinks(2, 1, far, 1000).run()
    assert [member.complete_at for member in swarm.members[1:]] == [pytest.approx(0.3, abs=0.02)] * 2
    swarm = simulate.OnLinks(2, 1, far, 1000)
    seeder, first, second = swarm.members
    seeder.picker.held, everything = 0, seeder.picker.held
    swarm.after(0.5, setattr, first.picker, "held", everything)
    swarm.after(0.5, swarm.holds_more, first)
    assert swarm.run().members[2].complete_at == pytest.approx(0.8, abs=0.02)


def test_a_longer_way_a_loss_and_one_slow_host_cost_time():
    def makespan(text):
        return statistics.median(simulate.simulate_on_links(4, 16, links.parse_links(text), seed=seed)["makespan"] for seed in range(3))
    near = makespan("up=20M,down=100M,delay=10ms")
    assert makespan("up=20M,down=100M,delay=80ms") > near + 0.3 and makespan("up=20M,down=100M,delay=10ms,loss=3%") > near
    assert makespan("up=20M,down=100M,delay=10ms,2:down=4M") > 2 * near


# The program.


def run_simulate(*words):
    return subprocess.run([sys.executable, os.path.join(ROOT, "lab", "simulate.py"), *words], capture_output=True, text=True, timeout=60)


def test_the_program_prints_a_line_for_each_rule():
    out = run_simulate("--leechers", "3", "--chunks", "8", "--runs", "1", "--ablation").stdout.splitlines()
    assert out[0].startswith("3 leechers, 8 chunks") and [line[:16].strip() for line in out[2:]] == ["none", *simulate.rules(False)]


def test_the_program_prints_the_raw_figures_as_json():
    runs = [json.loads(line) for line in run_simulate("--leechers", "3", "--chunks", "8", "--runs", "2", "--json", "--without", "busy").stdout.splitlines()]
    assert len(runs) == 2 and runs[0]["without"] == ["busy"] and len(runs[0]["complete"]) == 3


@pytest.mark.parametrize("words, expected", [
    (["--leechers", "0"], "expected a whole number from 1 to 10,000, got 0"),
    (["--leechers", "10001"], "expected a whole number from 1 to 10,000"),
    (["--chunks", "x"], "expected a whole number"), (["--tau", "0"], "expected a number from 0.001"), (["--slow", "nan"], "expected a number"),
    (["--links", "up=2"], "up: expected from 1000"), (["--links", "delay=1ms"], "expected up=RATE"),
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


@pytest.mark.long
def test_a_small_ablation_writes_what_it_measured(tmp_path):
    out = tmp_path / "ablation.json"
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "ablation.py"), "--leechers", "2", "--chunks", "8", "--tau", "0.05", "--runs", "1",
                            "--simulated", "3", "--rule", "busy", "--out", str(out)], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    none, busy = json.loads(out.read_text())
    assert (none["rule"], busy["rule"]) == (None, "busy")
    assert all(len(found["real_makespans_s"]) == 1 and len(found["simulated_makespans_s"]) == 3 for found in (none, busy))
    assert none["real_over_floor"] == pytest.approx(none["real_makespans_s"][0] / none["floor_s"], rel=0.01)


@pytest.mark.long
def test_a_small_ablation_on_links(tmp_path):
    command = ["lab/ablation.py", "--leechers", "2", "--chunks", "4", "--links", "up=20M,delay=5ms", "--runs", "1", "--simulated", "1", "--rule", "busy"]
    ended = subprocess.run([sys.executable, *command, "--out", str(tmp_path / "x.json")], cwd=ROOT, capture_output=True, text=True, timeout=100)
    if ended.returncode in (links.EXIT_CANNOT, links.EXIT_SLOW):
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0 and ended.stdout.count("% of a core") == 2 and "bound" in ended.stdout, ended.stderr


@pytest.mark.long
def test_an_ablation_that_is_interrupted_keeps_what_it_has_measured(tmp_path, ending):
    (tmp_path / "x.json").write_text("[]")
    words = ["--leechers", "1", "--chunks", "2", "--tau", "0.05", "--runs", "1", "--simulated", "1", "--out", str(tmp_path / "x.json")]
    program = ending(Program([sys.executable, os.path.join(ROOT, "lab", "ablation.py"), *words]))
    program.wait_for("^none .* CPU")
    program.signal(signal.SIGINT)
    program.ends_with(130)
    rules = [found["rule"] for found in json.loads((tmp_path / "x.json").read_text())]
    assert rules[0] is None and len(rules) < 1 + len(simulate.rules(False))


def test_an_ablation_that_cannot_write_says_so_before_it_measures(tmp_path):
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "ablation.py"), "--out", str(tmp_path / "no" / "where.json")],
                           capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1) and "No such file" in ended.stderr


@pytest.mark.long
def test_a_real_swarm_under_limits_is_not_far_from_the_floor():
    """The bound is generous, and one good run of three is enough, because other tests may run; lab/distribution.py measures."""
    for _ in range(3):
        run = distribution.run_swarm(6, 24, 16_384, 16_384 / 0.15)
        if run.makespan < 2 * simulate.floor(6, 24, 0.15) and run.seeder_bytes < 2 * 24 * 16_384:
            break
    assert run.makespan < 2 * simulate.floor(6, 24, 0.15)
    assert run.seeder_bytes < 2 * 24 * 16_384
