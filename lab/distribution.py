#!/usr/bin/env python3
"""The textbook's figure on real sockets: how long until N machines have a file, client–server and peer to peer.

    make figure                                     N = 1 … 32, under 6 minutes; QUICK=1: N = 1 … 8, under one
    python lab/distribution.py --seeder 10          the seeder's link ten times a leecher's, as in the textbook
    python lab/distribution.py --point 8 160        one swarm, N = 8 and M = 160 chunks: seconds, and over the floor
    python lab/distribution.py --point 16 160 --slow 0.05 --runs 5 --peer OTHER/peer.py
    python lab/distribution.py --point 8 64 --chunk-size 256K --links up=20M,down=100M,delay=10ms

The figure writes distribution.svg, .csv and .json (every run) and prints a table. No other files are left behind.
Exit code 0: measured; 1: a run failed; 2: wrong arguments; 130, 143: interrupted; with --links also 3 and 4, as
for lab/links.py.

What runs: the unmodified tracker.py and one peer.py for each machine, as processes on loopback with --upload-limit.
A *client* is a peer that nobody can reach, as if behind a home router: it listens on one loopback
address and is listed under another, so it downloads with the same program and uploads nothing.
With --links each program has a host of its own (lab/links.py), except that tracker and seeder share host 1. There is
no --upload-limit: the links are the limit. The bounds gain one round trip, and d_min is that of the links.

What is measured: the makespan, in seconds, from the moment at which the seeder begins until the last
leecher has its last chunk verified and on disk. When the clock starts, every leecher has joined, knows all
others and has asked the seeder what it has, but nothing has been sent: the state that the bounds assume. To get there the
seeder is started first and stopped (SIGSTOP) before anyone asks it, and each leecher is stopped once it has joined;
when all have joined, the leechers are continued (SIGCONT) and find each other, and then the seeder is continued. With
--staggered nobody is stopped: leechers that arrive find the seeder already at work, and time runs from the first Join.

The theory that it is compared with, for a file of F bytes in M chunks, N leechers, upload limits u_s and u, τ = chunk ÷ u:

    client–server    max{ N·F/u_s, F/d_min }                       no peer has a download limit here: d_min is endless
    peer to peer     max{ F/u_s, F/d_min, N·F/(u_s + Σu) }         bits may flow on as soon as they arrive
    chunked floor    (M + ⌊log₂N⌋)·τ                               a chunk must be whole first; all limits equal

No ratio is below 1: a program pays for bytes before it sends them (peer.Uploads), so no chunk arrives before its time.

Reading order: bounds - processes - the swarm - one run - several runs - table, CSV, JSON - the figure - main.
"""

import argparse
import contextlib
import csv
import ctypes
import hashlib
import json
import math
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "lab")]

import ending  # noqa: E402  (after the path)
import links  # noqa: E402
import peer  # noqa: E402
import simulate  # noqa: E402
import svg  # noqa: E402

PEER = os.path.join(ROOT, "peer.py")
TRACKER = os.path.join(ROOT, "tracker.py")
NUMBERS = 1, 2, 4, 8, 16, 32     # leechers in the figure
QUICK_NUMBERS = 1, 2, 4, 8
CHUNK_SIZE = 64 * peer.KIB       # small files, so that 33 copies stay in memory
CHUNKS, QUICK_CHUNKS = 20, 16    # F/u is 2.5 s and 1 s
TAU, QUICK_TAU = 1 / 8, 1 / 16   # seconds to upload a chunk: N = 32 means 256 chunks a second in the swarm, about 3 ms of processor time each
EXCHANGES = 80                   # at most as many chunks per second and processor in the swarm, when --point chooses the limit
MOST_CPU = 0.5                   # share of the processors; above it, the run measures them and not the links
SIMULATED_RUNS = 5               # to compare a --point with
FEWEST_CHUNKS = 8                # in a file that is halved
HALVINGS = 3                     # of the limit at most, to keep the processors less busy than MOST_CPU
RUNS = 3                         # of each peer-to-peer point; its median counts
LEASE = 60                       # seconds: a peer that is stopped while the others start must not expire
LOOK_SECONDS = 0.01              # between two looks at the events while the swarm starts
WATCH_SECONDS = 0.1              # ... and while it is measured: the events hold the times, so looking more often would only cost
START_SECONDS = 60               # for all processes to start and find each other
SETTLE_SECONDS = 0.2             # for the connections, once everyone has heard of everyone
PATIENCE = 4                     # times the bound, and START_SECONDS more: then a run has failed
HIDDEN_HOSTS = "127.0.0.2", "::1"  # where a client listens but nobody looks for it; not every system has the first


class Failure(ending.Failure):
    """A run failed; the one line says why."""

    def __init__(self, line, code=1):
        super().__init__(line, code)


# Bounds. Sizes in bytes, rates in bytes per second, all results in seconds.


def client_server_bound(n, size, seeder, download=math.inf):
    """The server uploads n copies; the slowest client downloads one."""
    return max(n * size / seeder, size / download)


def p2p_bound(size, seeder, leechers, download=math.inf):
    """The textbook's fluid bound. `leechers` is the list of their upload rates."""
    return max(size / seeder, size / download, len(leechers) * size / (seeder + sum(leechers)))


# Processes. All waiting is done in nap(), so a signal is handled within a tenth of a second, but never
# between the start of a process and its entry in the list.


def nap(seconds):
    until = time.monotonic() + seconds
    ending.check_signals()
    while time.monotonic() < until:
        time.sleep(max(0.0, min(0.1, until - time.monotonic())))
        ending.check_signals()


def eventually(condition, seconds, what, pause=LOOK_SECONDS):
    """Wait until condition() is true; Failure after this many seconds."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise Failure(f"expected {what} within {seconds:.0f} s; is this machine too busy?")
        nap(pause)


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def end_with_us():
    """Called in a new process before its program starts: when we end, even by SIGKILL, it is killed (Linux).

    Otherwise a stopped peer would stay forever.
    """
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Process:
    """A tracker or a peer with its --events file, which is read as it grows."""

    def __init__(self, name, folder, command, enter=end_with_us):
        self.name = name
        self.path = os.path.join(folder, name + ".events")
        open(self.path, "w").close()
        self.events = open(self.path, "rb")
        self.errors = tempfile.TemporaryFile()
        self.rest = b""           # the beginning of an unfinished line
        self.transfers = []       # lines of `sent` and `fetched`: read when the run is over
        self.happened = {}        # any other event -> the last one
        self.neighbors = set()
        command = [sys.executable, *command, "--quiet", "--events", self.path]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
                                        start_new_session=True, preexec_fn=enter)  # a session, or Ctrl-C would reach it too

    def read(self):
        """Read the events written since the last call; Failure if the process has ended."""
        *lines, self.rest = (self.rest + self.events.read()).split(b"\n")
        for line in lines:
            if b'"sent"' in line or b'"fetched"' in line:
                self.transfers.append(line)
                continue
            event = json.loads(line)
            self.happened[event["event"]] = event
            if event["event"] == "neighbor_added":
                self.neighbors.add(event["neighbor"])
        if self.process.poll() is not None:
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise Failure(f"expected {self.name} to go on, but it ended with exit code {self.process.returncode}: {said[-1]}")

    def has(self, event):
        self.read()
        return event in self.happened

    def signal(self, number):
        self.process.send_signal(number)

    def bytes_of(self, what):
        """The total size of the chunks that it has noted as `sent`, or as `fetched`."""
        return sum(event["bytes"] for event in map(json.loads, self.transfers) if event["event"] == what)

    def cpu_seconds(self):
        """Processor time that it has used so far; 0 if that is unknown."""
        try:
            with open(f"/proc/{self.process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return 0.0

    def close(self):
        self.process.wait()
        self.events.close()
        self.errors.close()


def hidden_host():
    """An address to listen on that cannot be reached as 127.0.0.1."""
    for host in HIDDEN_HOSTS:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            return host
    raise Failure(f"expected a second loopback address ({' or '.join(HIDDEN_HOSTS)}) for clients that nobody can reach, found none")


# The swarm.


class Swarm:
    """A tracker, a seeder and leechers in a folder of their own; `with` ends them all."""

    def __init__(self, folder, size, chunk_size, program, made=None):
        self.folder, self.program = folder, program
        self.links = made  # links.Links, or None: everybody is on loopback
        self.original = os.path.join(folder, "original.bin")
        self.processes, self.leechers = [], []
        with open(self.original, "wb") as file:
            file.write(random.Random(size).randbytes(size))
        shutil.copyfile(self.original, self.out("seeder"))  # its OUT is already complete, so it is a seeder
        self.tracker = self.start("tracker", [TRACKER, self.original, "--host", self.address(1), "--port", "0", "--no-seed",
                                              "--chunk-size", str(chunk_size), "--expire", str(LEASE)])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.process.kill()  # it may be stopped, and a stopped process ends only by SIGKILL
        for process in self.processes:
            process.close()

    def out(self, name):
        return os.path.join(self.folder, name + ".bin")

    def address(self, number):
        """Where the programs of host `number` listen: the seeder has number 1, the leechers the next ones."""
        return links.address(number) if self.links else "127.0.0.1"

    def start(self, name, command, number=1):
        process = Process(name, self.folder, command, self.links.enter(number) if self.links else end_with_us)
        self.processes.append(process)
        return process

    def start_peer(self, name, limit, number=1, host=None):
        tracker = f"{self.address(1)}:{self.tracker.happened['start']['port']}"
        limited = [] if self.links else ["--upload-limit", str(max(1, round(limit)))]
        return self.start(name, [self.program, tracker, self.out(name), "--host", host or self.address(number), *limited], number)

    def start_seeder(self, limit):
        eventually(lambda: self.tracker.has("start"), START_SECONDS, "a tracker that listens")
        self.seeder = self.start_peer("seeder", limit)
        eventually(lambda: self.seeder.has("complete"), START_SECONDS, "a seeder that has joined")

    def start_leechers(self, limits, host, join):
        """Start a leecher for each limit, all at once; call join(leecher) once it has joined and dialled its first neighbor."""
        self.leechers = [self.start_peer(f"peer {number}", limit, number + 1, host) for number, limit in enumerate(limits, 1)]
        absent = list(self.leechers)

        def all_joined():
            nap(LOOK_SECONDS)  # after the first dial it starts its timers, in less than this
            for leecher in [leecher for leecher in absent if leecher.neighbors]:
                join(leecher)
                absent.remove(leecher)
            for leecher in absent:
                leecher.read()
            return not absent

        eventually(all_joined, START_SECONDS, f"{len(limits)} leechers that have joined")

    def acquainted(self):
        """Whether every leecher has heard of all others and of the seeder, or of as many as it wants."""
        for leecher in self.leechers:
            leecher.read()
        return all(len(leecher.neighbors) >= min(len(self.leechers), peer.MAX_NEIGHBORS) for leecher in self.leechers)

    def begin_together(self, limits, host):
        """Let everyone find everyone before the seeder sends a byte; return the time at which it begins (monotonic)."""
        self.seeder.signal(signal.SIGSTOP)
        self.start_leechers(limits, host, lambda leecher: leecher.signal(signal.SIGSTOP))
        nap(peer.REFRESH_SECONDS)  # so that all ask for the peer list as soon as they go on, and none waits for the others
        for leecher in self.leechers:
            leecher.signal(signal.SIGCONT)
        eventually(self.acquainted, START_SECONDS, "leechers that know each other")
        nap(SETTLE_SECONDS)
        began = time.monotonic()
        self.seeder.signal(signal.SIGCONT)
        return began

    def begin_staggered(self, limits, host):
        """Leechers join as they start, and the seeder serves them at once; return the time of the first Join (monotonic)."""
        self.start_leechers(limits, host, lambda leecher: None)
        return min(leecher.happened["joined"]["t"] for leecher in self.leechers)

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.processes)

    def complete(self):
        return all([leecher.has("complete") for leecher in self.leechers])  # a list, so that every leecher's events are read

    def all_noted(self):
        """Whether the senders, too, have noted all that arrived: they do so a moment after the last byte, perhaps after the end."""
        for process in self.processes:
            process.read()
        sent = sum(process.bytes_of("sent") for process in self.processes)
        return sent >= sum(leecher.bytes_of("fetched") for leecher in self.leechers)

    def check(self):
        """Failure unless every file equals the original."""
        paths = [self.original, *(self.out(leecher.name) for leecher in self.leechers)]
        digests = {hashlib.sha256(open(path, "rb").read()).digest() for path in paths}
        if len(digests) != 1:
            raise Failure("expected every leecher to have the original file, got others")


# One run.


class Result(NamedTuple):
    """What one swarm did. Times in seconds from the beginning (see the top), in the order of the leechers."""

    makespan: float      # until the last leecher was complete
    times: list          # until each was complete; a slow one comes last
    seeder_bytes: int    # sent by the seeder, in whole chunks
    peer_bytes: list     # sent by each leecher
    cpu: float           # share of all processors that was busy meanwhile, with any program; None if unknown
    own: float = 0.0     # the swarm's own part of that
    wire: float = None   # share of a core that the wire used; None without --links, as is `queue`
    queue: float = None  # seconds that the seeder's bytes waited in the queue of its uplink, on average


def cpu_times():
    """(busy, all) processor time of this machine so far, in ticks; None where there is no /proc/stat."""
    try:
        with open("/proc/stat") as file:
            fields = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(fields) - fields[3] - fields[4], sum(fields)  # without idle and iowait


def cpu_share(before, after):
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def keep_events(swarm, events):
    """Copy everybody's events to a folder, for lab/timeline.py."""
    if events:
        os.makedirs(events, exist_ok=True)
        for process in swarm.processes:
            shutil.copy(process.path, events)


def the_links(setup):
    """The links.Spec of a configuration, with its --slow and --seeder; None on loopback."""
    if not setup.get("links"):
        return None
    spec = links.parse_links(setup["links"])
    if setup.get("slow"):
        spec = spec.with_host(setup["n"] + 1, up=spec.of(setup["n"] + 1).up * setup["slow"])
    if setup.get("seeder", 1) != 1:
        spec = spec.with_host(1, up=spec.of(1).up * setup["seeder"])
    return spec


def run_swarm(n, chunks, chunk_size, limit, *, program=PEER, events=None, **how):
    """Distribute a file of `chunks` chunks to `n` leechers, once: Result, or Failure.

    Everyone uploads at `limit` bytes per second; the seeder at `seeder` times that, and with `slow` the last
    leecher at that share of it. `client_server`: nobody can reach the leechers. `links`: run on these links, not on loopback.
    `program` is the peer.py to run, `events` a folder for everybody's events.
    """
    spec = the_links({"n": n, **how})
    how.pop("links", None)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(links.Links(spec, n + 1)) if spec else None
        return run_once(made, n, chunks, chunk_size, limit, program=program, events=events, **how)


def run_once(made, n, chunks, chunk_size, limit, *, seeder=1.0, slow=None, client_server=False, staggered=False, program=PEER, events=None):
    """As run_swarm, on the links `made`, or on loopback if that is None."""
    limits = [limit] * (n - 1) + [limit * (slow or 1)]
    host = hidden_host() if client_server else None
    size = chunks * chunk_size
    worst = client_server_bound(n, size, seeder * limit)
    with tempfile.TemporaryDirectory(prefix="distribution-") as folder, Swarm(folder, size, chunk_size, program, made) as swarm:
        swarm.start_seeder(seeder * limit)
        began = (swarm.begin_staggered if staggered else swarm.begin_together)(limits, host)
        before, own, since = cpu_times(), swarm.cpu_seconds(), time.monotonic()
        if made:
            made.begin()
        eventually(swarm.complete, START_SECONDS + PATIENCE * worst, "every leecher to be complete", WATCH_SECONDS)
        cpu = cpu_share(before, cpu_times())
        own = (swarm.cpu_seconds() - own) / (time.monotonic() - since) / (os.cpu_count() or 1)
        wire, queue = report_of(made)
        eventually(swarm.all_noted, START_SECONDS, "every chunk to be noted by its sender", WATCH_SECONDS)
        swarm.check()
        keep_events(swarm, events)
        times = [leecher.happened["complete"]["t"] - began for leecher in swarm.leechers]
        return Result(max(times), times, swarm.seeder.bytes_of("sent"), [leecher.bytes_of("sent") for leecher in swarm.leechers], cpu, own, wire, queue)


def report_of(made):
    """The wire's share of a core and the seeder's queue, None without a wire; Failure if it was the bottleneck."""
    report = made and made.report()
    if report and report.refusal():
        raise Failure(report.refusal(), links.EXIT_SLOW)
    return (report.cpu, report.queue[1]) if report else (None, None)


# Several runs.


class Point(NamedTuple):
    """A configuration of run_swarm, its runs, and what they are compared with (seconds; None if there is no such bound)."""

    setup: dict
    runs: list
    bound: float
    floor: float

    def makespan(self):
        """The median over the runs; with a slow peer, that of the other leechers."""
        return statistics.median(makespan_of(run, self.setup) for run in self.runs)

    def size(self):
        return self.setup["chunks"] * self.setup["chunk_size"]

    def seeder_files(self):
        return statistics.median(run.seeder_bytes / self.size() for run in self.runs)

    def cpu(self):
        return max((run.cpu for run in self.runs if run.cpu is not None), default=None)


def makespan_of(run, setup):
    return max(run.times[:-1]) if setup["slow"] else run.makespan


def bounds(setup):
    """(bound, floor) of a configuration in seconds; with a slow peer, both hold for the other leechers."""
    n, size, limit = setup["n"] - bool(setup["slow"]), setup["chunks"] * setup["chunk_size"], setup["limit"]
    seeder = setup["seeder"] * limit
    if setup.get("links"):
        return bounds_on_links(setup, n, size)
    if setup["client_server"]:
        return client_server_bound(n, size, seeder), None
    floor = simulate.floor(n, setup["chunks"], setup["chunk_size"] / limit) if setup["seeder"] == 1 else None
    return p2p_bound(size, seeder, [limit] * n), floor


def bounds_on_links(setup, n, size):
    """As bounds(), with the download rate and the round trip of the links; no floor if uplinks differ."""
    spec = the_links(setup)
    rtt = 2 * spec.usual.delay
    floor = simulate.floor(n, setup["chunks"], setup["chunk_size"] / setup["limit"]) + rtt
    if setup["client_server"]:
        return client_server_bound(n, size, spec.of(1).up, spec.usual.down) + rtt, None
    return links.bound(spec, n, size), None if setup["seeder"] != 1 or spec.others.keys() - {n + 2} else floor


def percent(share):
    return "CPU unknown" if share is None else f"CPU {100 * share:.0f} %"


def describe_run(run, setup, number, runs):
    bound, floor = bounds(setup)
    makespan = makespan_of(run, setup)
    mode = "client–server" if setup["client_server"] else "peer to peer "
    held = f"{makespan / floor:.3f} × floor" if floor else f"{makespan / bound:.3f} × bound"
    sent = run.seeder_bytes / (setup["chunks"] * setup["chunk_size"])
    return f"{mode} N={setup['n']:<3} run {number} of {runs}  {makespan:8.3f} s  {held}  seeder sent {sent:.2f} files  {percent(run.cpu)}{of_the_wire([run])}"


def of_the_wire(runs):
    """What to say about the links, if any: the seeder's queue and the wire's largest share."""
    runs = [run for run in runs if run.wire is not None]
    if not runs:
        return ""
    queue, share = statistics.median(run.queue for run in runs), max(run.wire for run in runs)
    return f"  queue {1000 * queue:.0f} ms  wire {100 * share:.0f} % of a core"


def attempt(setup, **options):
    """run_swarm, tried once more if it fails: a disturbed run gives no figure."""
    try:
        return run_swarm(**setup, **options)
    except Failure as failure:
        print(f"failed, trying once more: {failure}", flush=True)
        return run_swarm(**setup, **options)


def measure(setup, runs, **options):
    """A Point: `runs` runs of one configuration, each with a line that says how it went."""
    results = []
    for number in range(1, runs + 1):
        results.append(attempt(setup, **options))
        print(describe_run(results[-1], setup, number, runs), flush=True)
        if (results[-1].cpu or 0) > MOST_CPU:
            print(f"warning: the processors were more than {100 * MOST_CPU:.0f} % busy, so this may measure them and not the links; "
                  + ("take a lower --limit" if results[-1].own > MOST_CPU else "other programs are at work"), flush=True)
    return Point(setup, results, *bounds(setup))


def fitting(setup, keep_duration, **options):
    """The configuration with its limit halved until the swarm keeps less than half of the processors busy.

    What other programs use does not count, because a lower limit would not help. With `keep_duration` the file is
    halved too, as long as it has enough chunks, so that the run takes no longer.
    """
    for _ in range(HALVINGS):
        run = attempt(setup, **options)
        print(f"trial N={setup['n']}, limit {peer.human(setup['limit'])}/s: {percent(run.cpu)}, {100 * run.own:.0f} % by this swarm", flush=True)
        if run.own <= MOST_CPU or (keep_duration and setup["chunks"] < 2 * FEWEST_CHUNKS):
            break
        setup = setup | {"limit": setup["limit"] / 2}
        if keep_duration:
            setup["chunks"] //= 2
    return setup


# Table, CSV, JSON.


def rows(points):
    """A dict for every run, as in the CSV."""
    for point in points:
        for number, run in enumerate(point.runs, 1):
            makespan = makespan_of(run, point.setup)
            yield {"mode": "client-server" if point.setup["client_server"] else "peer-to-peer", "n": point.setup["n"], "run": number,
                   "makespan_s": round(makespan, 4), "bound_s": round(point.bound, 4), "over_bound": round(makespan / point.bound, 4),
                   "floor_s": point.floor and round(point.floor, 4), "over_floor": point.floor and round(makespan / point.floor, 4),
                   "seeder_files": round(run.seeder_bytes / point.size(), 4), "cpu_share": run.cpu and round(run.cpu, 3),
                   "own_cpu_share": round(run.own, 3)}


def write_csv(points, path):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, next(rows(points)))
        writer.writeheader()
        writer.writerows(rows(points))


def write_json(points, path):
    """The raw figures: every run of every configuration, with the machine on which it ran."""
    machine = {"processors": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    found = [{"setup": point.setup, "bound": point.bound, "floor": point.floor, "runs": [run._asdict() for run in point.runs]} for point in points]
    with open(path, "w") as file:
        json.dump({"machine": machine, "points": found}, file, indent=1)


def table(points):
    """The table's lines: medians, each over its bound."""
    lines = [f"{'':13}   N   median s    bound s  over bound  over floor  seeder sent  CPU at most"]
    for point in points:
        mode = "client–server" if point.setup["client_server"] else "peer to peer "
        over = f"{point.makespan() / point.floor:.3f}" if point.floor else "-"
        cpu = "unknown" if point.cpu() is None else f"{100 * point.cpu():.0f} %"
        lines.append(f"{mode} {point.setup['n']:>3} {point.makespan():>10.3f} {point.bound:>10.3f} {point.makespan() / point.bound:>11.3f} {over:>11}"
                     f" {point.seeder_files():>6.2f} files {cpu:>12}")
    return lines


# The figure. Dashed lines are theory, solid ones are measured. N doubles from mark to mark.

RIGHT, LABELS = 640, 680   # pixels: where the plots end, and where the labels of their lines begin


def panel(picture, top, bottom, numbers, marks, title):
    """A plot over N between two heights, with its axes; `marks` are the numbers along y, from first to last."""
    plot = svg.Plot(picture, (76, top, RIGHT, bottom), (min(numbers) / 1.1, max(numbers) * 1.1), (marks[0], marks[-1]), log_x=True)
    plot.y_axis(title, marks)
    plot.x_axis("number of leechers N", marks=numbers)
    return plot


def label_lines(plot, lines):
    """A label at the end of each line: `lines` are (points, series, dash, text)."""
    _, top, _, bottom = plot.box
    ends = [(plot.x(points[-1][0]), plot.y(points[-1][1]), series, dash, text) for points, series, dash, text in lines if points]
    svg.line_labels(plot.picture, ends, LABELS, top, bottom)


def draw_times(picture, points, setup):
    """The upper plot: seconds over N, measured and in theory."""
    numbers = sorted({point.setup["n"] for point in points})
    size, limit, seeder = setup["chunks"] * setup["chunk_size"], setup["limit"], setup["seeder"] * setup["limit"]
    fine = [min(numbers) * (max(numbers) / min(numbers)) ** (step / 200) for step in range(201)]
    theory = [([(n, client_server_bound(n, size, seeder)) for n in fine], 0, "bound max{N·F/uₛ, F/dₘᵢₙ}"),
              ([(n, max(size / seeder, n * size / (seeder + n * limit))) for n in fine], 1, "bound max{F/uₛ, F/dₘᵢₙ, N·F/(uₛ+Σu)}")]
    if setup["seeder"] == 1:
        floors = {n: simulate.floor(n, setup["chunks"], setup["chunk_size"] / limit) for n in range(min(numbers), max(numbers) + 1)}
        steps = [(n, floors[whole]) for whole in range(min(numbers), max(numbers)) for n in (whole, whole + 1)] + [(max(numbers), floors[max(numbers)])]
        theory.append((steps, 2, "floor of chunks (M + ⌊log₂N⌋)·τ"))
    measured = {server: sorted((point.setup["n"], point.makespan()) for point in points if point.setup["client_server"] == server) for server in (True, False)}
    highest = max([seconds for found in measured.values() for _, seconds in found] + [curve[-1][1] for curve, _, _ in theory])
    plot = panel(picture, 100, 430, numbers, svg.ticks_around(0, highest), "distribution time (s)")
    for curve, series, _ in theory:
        plot.curve(curve, series, svg.DASHES[1])
    for server, found in measured.items():
        plot.curve(found, 1 - server, "")
        plot.marks(found, 1 - server, lambda n, seconds: f"N = {n}: {seconds:.3f} s")
    label_lines(plot, [(curve, series, svg.DASHES[1], text) for curve, series, text in theory]
                + [(measured[True], 0, "", "client–server, measured"), (measured[False], 1, "", "peer to peer, measured")])


def draw_ratios(picture, points):
    """The lower plot: measured over bound, and over the floor of chunks."""
    numbers = sorted({point.setup["n"] for point in points})
    series = {0: [], 1: [], 2: []}
    for point in sorted(points, key=lambda point: point.setup["n"]):
        n = point.setup["n"]
        series[0 if point.setup["client_server"] else 1].append((n, point.makespan() / point.bound))
        if point.floor:
            series[2].append((n, point.makespan() / point.floor))
    ratios = [1.0] + [ratio for chosen in series.values() for _, ratio in chosen]
    plot = panel(picture, 510, 650, numbers, svg.ticks_around(min(ratios), max(ratios), 4), "measured ÷ bound")
    picture.path([(76, plot.y(1)), (RIGHT, plot.y(1))], 3, svg.DASHES[1])
    for number, chosen in series.items():
        if chosen:
            plot.curve(chosen, number)
            plot.marks(chosen, number, lambda n, ratio: f"N = {n}: {ratio:.3f}")
    texts = ("client–server over its bound", "peer to peer over its bound", "peer to peer over the floor of chunks")
    label_lines(plot, [(series[number], number, "", text) for number, text in enumerate(texts)] + [([(max(numbers), 1)], 3, svg.DASHES[1], "what is possible")])


def draw(points, setup, path):
    """The figure as SVG."""
    seeder = "" if setup["seeder"] == 1 else f", the seeder {setup['seeder']:g} times that"
    on = f", on links {setup['links']}" if setup.get("links") else ""
    runs = len(points[-1].runs)
    runs = f"medians of {runs} runs (client–server: one)" if runs > 1 else "one run each"
    picture = svg.Picture(1000, 712, "Distribution time over the number of leechers",
                          "Client–server grows with N, peer to peer does not; solid lines are measured, dashed ones are lower bounds.")
    picture.heading("How long until N leechers have the file",
                    f"F = {peer.human(setup['chunks'] * setup['chunk_size'])} in M = {setup['chunks']} chunks; "
                    f"everyone uploads at most {peer.human(setup['limit'])}/s{seeder}{on};\n"
                    f"solid: real trackers and peers as processes on one machine, {runs}; dashed: what no program can beat")
    draw_times(picture, points, setup)
    draw_ratios(picture, points)
    picture.save(path)


# Main.


def number_of(least):
    def parse(text):
        if not (text.isascii() and text.isdigit() and least <= int(text) <= 1000):
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to 1000, got {peer.show_name(text)}")
        return int(text)
    return parse


def share(most):
    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"expected a number above 0, at most {most:g}, got {peer.show_name(text)}")
        return value
    return parse


def existing_file(text):
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"expected the path of a peer.py, found no file {peer.show_name(text)}")
    return os.path.abspath(text)


def prefix_of_files(text):
    """Check the prefix before anything is measured, rather than fail minutes later. No text, the default, means "distribution" or none."""
    folder = os.path.dirname(text) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"expected the beginning of file names in a folder that can be written, got {peer.show_name(text)}")
    return text


def links_with_rate(text):
    """Check the links, but keep the text, which a JSON file can hold."""
    if links.parse_links(text).usual.up == math.inf:
        raise argparse.ArgumentTypeError(f"expected up=RATE for all hosts, got {peer.show_name(text)}")
    return text


def new_folder(text):
    try:
        os.makedirs(text, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot make the folder {peer.show_name(text)}: {error.strerror}") from None
    return text


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="distribution.py",
                            description="Measure distribution time, client–server and peer to peer, against the bounds of theory.")
    parser.add_argument("--quick", action="store_true", help="N = 1 … 8 and a small file: under a minute")
    parser.add_argument("--point", nargs=2, type=number_of(1), metavar=("N", "M"), help="measure one swarm of N leechers and M chunks; no figure")
    parser.add_argument("--slow", type=share(1), metavar="SHARE",
                        help="with --point: the last leecher uploads at this share of the others' limit; the makespan is that of the others")
    parser.add_argument("--client-server", action="store_true", help="with --point: leechers that nobody can reach")
    parser.add_argument("--staggered", action="store_true", help="leechers join as they start, instead of all before the seeder begins")
    parser.add_argument("--seeder", type=share(1000), default=1.0, metavar="K", help="the seeder's upload limit, in those of a leecher (default: 1)")
    parser.add_argument("--limit", type=peer.size_in_bytes, metavar="RATE",
                        help="upload limit in bytes per second (default: one at which the processors are less than half busy)")
    parser.add_argument("--links", type=links_with_rate, metavar="SPEC", help="on these links instead of --limit, as in lab/links.py: up=20M,delay=10ms")
    parser.add_argument("--chunk-size", type=peer.size_in_bytes, default=CHUNK_SIZE, metavar="SIZE", help="bytes in a chunk (default: 64K)")
    parser.add_argument("--runs", type=number_of(1), metavar="K", help=f"runs of each peer-to-peer point (default: {RUNS}; with --point: 1)")
    parser.add_argument("--peer", type=existing_file, default=PEER, metavar="PATH", help="another peer.py to run, to compare versions")
    parser.add_argument("--events", type=new_folder, metavar="FOLDER",
                        help="with --point: leave the events of the last run there, for lab/timeline.py")
    parser.add_argument("--out", type=prefix_of_files, default="", metavar="PREFIX",
                        help="write PREFIX.json, for the figure PREFIX.svg and .csv too (default for the figure: distribution)")
    args = parser.parse_args(argv)
    if args.links and args.limit:
        parser.error("expected one of --links and --limit")
    args.limit = links.parse_links(args.links).usual.up if args.links else args.limit
    if not args.point and (args.slow or args.client_server or args.events):
        parser.error("expected --point N M with --slow, --client-server and --events")
    if args.slow and args.point[0] < 2:
        parser.error("expected at least 2 leechers with --slow: one is slow, the others are measured")
    if args.chunk_size > peer.MAX_CHUNK_SIZE:
        parser.error(f"expected a chunk size of at most {peer.human(peer.MAX_CHUNK_SIZE)}")
    args.out = args.out or ("" if args.point else "distribution")
    return args


def setup_of(args, n, chunks, limit):
    return {"n": n, "chunks": chunks, "chunk_size": args.chunk_size, "limit": limit, "seeder": args.seeder, "slow": args.slow,
            "client_server": args.client_server, "staggered": args.staggered, **({"links": args.links} if args.links else {})}


def compare_with_simulation(point):
    """A line with the prediction of lab/simulate.py for the same swarm, and how far the real one was from it."""
    setup = point.setup
    makespan = statistics.median(simulated(setup, seed) for seed in range(SIMULATED_RUNS))
    return (f"simulated: median of {SIMULATED_RUNS} {makespan:.3f} s, ratio {makespan / point.floor:.3f}; "
            f"real is {100 * (point.makespan() / makespan - 1):+.1f} % from it")


def simulated(setup, seed):
    """The makespan of one simulated run of a configuration."""
    if spec := the_links(setup):
        run = simulate.simulate_on_links(setup["n"], setup["chunks"], spec, setup["chunk_size"], seed)
        return max(run["complete"][:-1] if setup["slow"] else run["complete"])
    tau = setup["chunk_size"] / setup["limit"]
    return simulate.simulate(setup["n"], setup["chunks"], tau, slow=setup["slow"] or 0.0, seed=seed)["makespan"]


def one_point(args):
    """--point: one configuration, several runs, and the median over the floor."""
    n, chunks = args.point
    tau = max(QUICK_TAU, (n + args.seeder - 1) / EXCHANGES / (os.cpu_count() or 1))
    limit = args.limit or args.chunk_size / tau
    setup = setup_of(args, n, chunks, limit)
    if not args.limit and (args.runs or 1) > 1:
        setup = fitting(setup, keep_duration=False, program=args.peer)
    point = measure(setup, args.runs or 1, program=args.peer, events=args.events)
    over = point.floor or point.bound
    what = "floor (M + ⌊log₂N⌋)τ" if point.floor else "bound"
    slow = f", one peer at {args.slow:g} of the rate, makespan of the others" if args.slow else ""
    print(f"N={n} M={chunks} τ={args.chunk_size / setup['limit'] * 1000:.1f} ms{slow}: "
          f"median {point.makespan():.3f} s, {what} {over:.3f} s, ratio {point.makespan() / over:.3f}; "
          f"seeder sent {point.seeder_files():.3f} files; {percent(point.cpu())} at most{of_the_wire(point.runs)}", flush=True)
    if point.floor and not args.staggered and not args.client_server:
        print(compare_with_simulation(point), flush=True)
    if args.out:
        write_json([point], args.out + ".json")


def all_points(args, setup, numbers):
    """Measure the figure's points: client–server once, because nothing in it is random, peer to peer several times."""
    runs = args.runs or (1 if args.quick else RUNS)
    expected = sum(bounds(setup | {"n": n, "client_server": True})[0] + runs * bounds(setup | {"n": n})[0] for n in numbers)
    print(f"{len(numbers) * (runs + 1)} runs; {expected:.0f} s of them are transfers, the rest is starting processes", flush=True)
    return [measure(setup | {"n": n, "client_server": client_server}, 1 if client_server else runs, program=args.peer)
            for client_server in (True, False) for n in numbers]


def figure(args):
    """make figure: every point, then table, CSV, JSON and SVG."""
    began = time.monotonic()
    numbers, chunks, tau = (QUICK_NUMBERS, QUICK_CHUNKS, QUICK_TAU) if args.quick else (NUMBERS, CHUNKS, TAU)
    limit = args.limit or args.chunk_size / tau / math.sqrt(args.seeder)  # a faster seeder shortens client–server; the root keeps it long enough to measure
    setup = setup_of(args, max(numbers), chunks, limit)
    if not args.limit:
        setup = fitting(setup, keep_duration=True, program=args.peer)
    points = all_points(args, setup, numbers)
    write_csv(points, args.out + ".csv")
    write_json(points, args.out + ".json")
    draw(points, setup, args.out + ".svg")
    print("", *table(points), "", f"{time.monotonic() - began:.0f} s; wrote {args.out}.svg, {args.out}.csv and {args.out}.json", sep="\n", flush=True)


def main():
    args = parse_arguments()
    ending.hold_signals()
    one_point(args) if args.point else figure(args)


if __name__ == "__main__":
    ending.run(main, peer.Fatal)
