#!/usr/bin/env python3
"""What each rule of the swarm is worth: real swarms with one rule taken out at a time, beside the simulator's prediction.

    make ablation                        16 leechers, every rule, three runs each: about 12 minutes; QUICK=1: one run of 8 leechers, about 2
    python lab/ablation.py --rule busy   the baseline, and one rule taken out
    python lab/ablation.py --links up=20M,down=100M,delay=10ms --quick
                                         on links (lab/links.py) instead of under a limit; over the bound instead of the floor

The lines that take a rule out of the simulator (RULES in lab/simulate.py) take it out of peer.py too: each peer
runs such a line first. Swarms, limits and the start of the clock are those of lab/distribution.py, and so are the
exit codes. Writes ablation.json, with every run, real and simulated, after each rule; an older file is replaced
once the first rule has been measured.

Reading order: a peer without a rule - measure one rule - main. There is one thread.
"""

import json
import os
import statistics
import tempfile
import time

import distribution  # beside this file; it makes peer.py importable
import ending
import links
import peer
import simulate

LEECHERS, CHUNKS, TAU = 16, 80, 0.2        # 84 τ are 17 s; at that rate the processors are less than half busy
QUICK_LEECHERS, QUICK_CHUNKS, QUICK_TAU = 8, 60, 0.12
CHUNK_SIZE = 32 * peer.KIB                 # on links it is the usual one
RUNS = 3                                   # real runs of each rule; the median counts
SIMULATED_RUNS = 15                        # these cost little


def program_without(rule, folder):
    """Write a peer.py without this rule into the folder; return its path."""
    path = os.path.join(folder, "peer_without_a_rule.py")
    with open(path, "w") as file:
        file.write(f"import sys\nsys.path.insert(0, {distribution.ROOT!r})\nimport peer\n{simulate.RULES[rule]}\n"
                   "peer.run_to_exit('peer.py', peer.run)\n")
    return path


def real_runs(rule, args):
    """Run the requested number of real swarms: [distribution.Result]."""
    setup = {"n": args.leechers, "chunks": args.chunks, "chunk_size": args.chunk_size, "limit": args.chunk_size / args.tau}
    if args.links:
        setup["links"] = args.links
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        program = program_without(rule, folder) if rule else distribution.PEER
        return [distribution.attempt(setup, program=program) for _ in range(args.runs)]


def simulated_runs(rule, args):
    without = [rule] if rule else []
    if args.links:
        return [simulate.simulate_on_links(args.leechers, args.chunks, links.parse_links(args.links), args.chunk_size, seed, without)
                for seed in range(args.simulated)]
    return [simulate.simulate(args.leechers, args.chunks, args.tau, seed=seed, without=without) for seed in range(args.simulated)]


def least(args):
    """Seconds that every run is held against: the floor, or on links the bound."""
    if args.links:
        return links.bound(links.parse_links(args.links), args.leechers, args.chunks * args.chunk_size)
    return simulate.floor(args.leechers, args.chunks, args.tau)


def compare(rule, args):
    """What was measured and simulated without this rule, as a dict for the JSON file; None stands for all rules in place."""
    runs = real_runs(rule, args)
    simulated, floor = simulated_runs(rule, args), least(args)
    size = args.chunks * args.chunk_size
    return {"rule": rule, "leechers": args.leechers, "chunks": args.chunks, "tau_s": args.tau, "floor_s": floor,
            "real_makespans_s": [round(run.makespan, 3) for run in runs],
            "real_over_floor": statistics.median(run.makespan for run in runs) / floor,
            "real_seeder_files": statistics.median(run.seeder_bytes / size for run in runs),
            "links": args.links, "on_links": distribution.of_the_wire(runs),
            "cpu": max((run.cpu for run in runs if run.cpu is not None), default=None),
            "simulated_makespans_s": [round(run["makespan"], 3) for run in simulated],
            "simulated_over_floor": statistics.median(run["ratio"] for run in simulated),
            "simulated_seeder_files": statistics.median(run["seeder_files"] for run in simulated)}


HEAD = f"{'rule taken out':<16} {'real':>8} {'over floor':>10} {'seeder':>7}   {'simulated':>9} {'seeder':>7}   real to simulated"


def line(found):
    real, simulated = found["real_over_floor"], found["simulated_over_floor"]
    return (f"{found['rule'] or 'none':<16} {statistics.median(found['real_makespans_s']):>6.1f} s {real:>10.3f} {found['real_seeder_files']:>7.2f}"
            f"   {simulated:>9.3f} {found['simulated_seeder_files']:>7.2f}   {100 * (real / simulated - 1):>+6.1f} %"
            f"   {distribution.percent(found['cpu'])}"
            + found["on_links"])


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="ablation.py", description="Real swarms with one rule taken out at a time, beside the simulator's prediction.")
    parser.add_argument("--quick", action="store_true", help="a smaller swarm, one run of each")
    parser.add_argument("--rule", type=simulate.rule, action="append", metavar="RULE", help="only this one; again for another (default: all)")
    parser.add_argument("--leechers", type=simulate.whole_number(1, 64), metavar="N", help=f"(default: {LEECHERS}, quick {QUICK_LEECHERS})")
    parser.add_argument("--chunks", type=simulate.whole_number(1, 10_000), metavar="M", help=f"(default: {CHUNKS}, quick {QUICK_CHUNKS})")
    parser.add_argument("--tau", type=simulate.share, metavar="S",
                        help=f"seconds that a chunk takes at the upload limit (default: {TAU:g}, quick {QUICK_TAU:g})")
    parser.add_argument("--links", type=distribution.links_with_rate, metavar="SPEC", help="on these links instead of --tau, as in lab/links.py")
    parser.add_argument("--runs", type=simulate.whole_number(1, 100), metavar="K", help=f"real runs of each (default: {RUNS}, quick 1)")
    parser.add_argument("--simulated", type=simulate.whole_number(1, 1000), default=SIMULATED_RUNS, metavar="K",
                        help="simulated runs of each (default: %(default)s)")
    parser.add_argument("--out", default="ablation.json", metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.links and args.tau:
        parser.error("expected one of --links and --tau")
    args.chunk_size = peer.CHUNK_SIZE if args.links else CHUNK_SIZE
    args.tau = args.chunk_size / links.parse_links(args.links).usual.up if args.links else args.tau
    n, chunks, tau, runs = (QUICK_LEECHERS, QUICK_CHUNKS, QUICK_TAU, 1) if args.quick else (LEECHERS, CHUNKS, TAU, RUNS)
    args.leechers, args.chunks, args.tau, args.runs = args.leechers or n, args.chunks or chunks, args.tau or tau, args.runs or runs
    return args


def ablation(args):
    began, found = time.monotonic(), []
    open(args.out, "a").close()  # before measuring: a path that cannot be written should fail now
    print(f"{args.leechers} leechers, {args.chunks} chunks of {args.tau:.3g} s, {'bound' if args.links else 'floor'} {least(args):.1f} s, "
          f"medians of {args.runs} real and {args.simulated} simulated runs\n{HEAD}", flush=True)
    for rule in [None, *(args.rule or simulate.rules(args.links))]:
        found.append(compare(rule, args))
        with open(args.out, "w") as file:  # rewritten after each rule; an interruption waits for it, so it costs one rule at most
            json.dump(found, file, indent=1)
        print(line(found[-1]), flush=True)
    print(f"{time.monotonic() - began:.0f} s; wrote {args.out}", flush=True)


def main():
    args = parse_arguments()
    ending.hold_signals()
    ablation(args)


if __name__ == "__main__":
    ending.run(main, peer.Fatal)
