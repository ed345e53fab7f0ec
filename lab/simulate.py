#!/usr/bin/env python3
"""A swarm in simulated time: the policy of peer.py without sockets, threads and waiting.

    python lab/simulate.py                                  32 leechers, 160 chunks: makespan over the floor
    python lab/simulate.py --leechers 1000 --runs 1         up to 10,000
    python lab/simulate.py --without "rarest first"         a rule switched off; --rules lists them
    python lab/simulate.py --ablation                       each rule switched off in turn

What decides is imported from peer.py: Picker (which chunk, when one is late), busy_pause (how long to
rest), upload_slots and Slots (who may have one). What is simulated is what a network does: a request
takes LATENCY, a chunk takes chunk size / upload limit, one after the other. Left out are timeouts and
requests ahead. Time passes from event to event, in the order of
(time, ...), so a minute of swarm costs a second or two.

A rule is switched off by a line of Python that is run with `peer` in reach. lab/ablation.py gives the
same lines to real peers.

Reading order: constants - rules - Uplink - Member and Lane - Simulation - floor and table - main.
Nothing here has a thread or a lock. The same seed gives the same run.
"""

import argparse
import heapq
import itertools
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ending  # noqa: E402  (after the path)
import peer  # noqa: E402

LATENCY = 0.002   # seconds for a request and its answer, and what the programs take for them
TAU = 0.4         # seconds that a chunk takes at the upload limit, unless chosen otherwise
MAX_LEECHERS = 10_000
FOREVER = 1e9     # seconds
MOMENT = 0.005    # seconds whose events are in the heap: with all to come it would not fit into a processor's cache


# Rules. Each is a line of Python that takes one out of peer.py.

RULES = {
    "rarest first": "peer.rarest_first = lambda offered, levels, count, rng: peer.any_of(offered, count, rng)",
    "any order": "peer.rarest_first = lambda offered, levels, count, rng: next(peer.indexes(offered), None)",
    "neighbor first": """
def chunk_first(self, neighbor, now, choose=peer.Picker.choose):
    every = 0
    for bits in self.holds.values():
        every |= bits
    index = peer.rarest_first(every & ~self.held & ~self.asked, self.levels, self.count, self.rng)
    if index is None or not self.wanted(neighbor) >> index & 1:
        return None if index is not None else choose(self, neighbor, now)
    self.under_way[index] = {neighbor: now}
    self.asked |= 1 << index
    return index
peer.Picker.choose = chunk_first""",
    "upload slots": "peer.UPLOAD_SLOTS = peer.PACED_SLOTS = peer.MAX_CONNECTIONS",
    "busy": "peer.BUSY_AFTER = 3600.0",
    "unsent first": "peer.Slots.given_away = lambda self, index: 0",
    "turns": "peer.Slots.turn_away = lambda self: None",
    "news": "peer.NEWS_SECONDS = 0.0",
    "random pauses": "peer.RETRY_SPREAD = (1.0, 1.0)",
    "endgame": "peer.Picker.late = lambda self, neighbor, wanted, now: None",
}


class Without:
    """Runs with these rules switched off, for a `with` block; peer.py is as it was afterwards."""

    def __init__(self, rules):
        self.rules = rules

    def __enter__(self):
        self.before = [(owner, dict(vars(owner))) for owner in (peer, peer.Picker, peer.Slots)]
        for rule in self.rules:
            exec(RULES[rule], {"peer": peer})

    def __exit__(self, *_):
        for owner, names in self.before:
            for name, value in names.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


# The swarm. Member 0 is the seeder.


class Member:
    """A peer: what it holds and knows, and its uplink."""

    def __init__(self, number, count, rate, held, rng):
        self.number = number
        self.seconds = 1 / rate        # that it takes to send a chunk
        self.places = peer.upload_slots(self.seconds)
        self.picker = peer.Picker(count, held, rng)
        self.complete_at = None        # seconds
        self.slots = peer.Slots()
        self.slots.sole = held if self.picker.complete() else 0
        self.turned_away = 0           # since the last upload ended
        self.waiting = set()           # lanes that wait for news of this member
        self.queue = []                # (lane, index, asked at) that have a slot; the first is being sent
        self.line = []                 # (lane, index, asked at) that wait for a slot
        self.uploaded = 0              # chunks


class Lane:
    """The thread that asks one neighbor: what Peer.fetch_from keeps in a Neighbor."""

    __slots__ = ("asker", "other", "known", "instead", "busy", "turn")

    def __init__(self, asker, other):
        self.asker, self.other = asker, other
        self.known = 0                 # the chunks that the other has listed
        self.instead = None            # the chunk that it proposed
        self.busy = 0                  # how often in a row it said BUSY
        self.turn = 0                  # counts the waits, so that the end of an old one is no end of the next


class Simulation:
    """One run. Methods named after what happens; each is called by the clock, or by the one before it."""

    def __init__(self, leechers, chunks, tau=TAU, slow=0.0, seeder=1.0, seed=1):
        self.rng = random.Random(seed)
        self.now, self.tickets = 0.0, itertools.count()
        self.moment, self.clock = 0, []  # the number of this moment, and a heap of what happens in it
        self.later = {}                  # number of a moment -> list of what happens in it
        self.chunks, self.tau = chunks, tau
        rates = [seeder / tau] + [1 / tau] * leechers
        if slow:
            rates[1] = slow / tau
        self.members = [Member(number, chunks, rate, 0 if number else peer.all_of(chunks), self.rng)
                        for number, rate in enumerate(rates)]
        self.missing = leechers        # members that are not complete
        self.counts = {"news": 0, "fetches": 0, "busy": 0, "duplicates": 0}
        for asker in self.members[1:]:
            for other in self.neighbors(asker):
                self.after(self.rng.uniform(0, 0.1), self.step, Lane(asker, other))

    def neighbors(self, asker):
        """Whom a leecher dials: everybody, or as many as it may, at random."""
        others = range(len(self.members))
        drawn = others if len(others) <= peer.MAX_NEIGHBORS + 1 else self.rng.sample(others, peer.MAX_NEIGHBORS)
        return [self.members[number] for number in drawn if number != asker.number]

    def after(self, seconds, action, *args):
        event = self.now + seconds, next(self.tickets), action, args
        moment = int(event[0] / MOMENT)
        if moment == self.moment:
            heapq.heappush(self.clock, event)
        elif moment in self.later:
            self.later[moment].append(event)
        else:
            self.later[moment] = [event]

    def run(self):
        while self.missing and (self.clock or self.later):
            if not self.clock:
                self.moment = min(self.later)
                self.clock = self.later.pop(self.moment)
                heapq.heapify(self.clock)
            self.now, _, action, args = heapq.heappop(self.clock)
            action(*args)
        return self

    def step(self, lane):
        """One turn of the loop in Peer.fetch_from: hear, choose, fetch or wait for news."""
        if lane.asker.complete_at is not None:
            return
        picker, number = lane.asker.picker, lane.other.number
        self.hear(lane)
        index = None
        if lane.instead is not None:
            index, lane.instead = picker.choose_instead(number, lane.instead, self.now), None
        if index is None:
            index = picker.choose(number, self.now)
        if index is None:
            self.wait(lane)
        else:
            self.asked(lane, index)

    def hear(self, lane):
        """Chunks Query: what is new since the last one."""
        news = lane.other.picker.held & ~lane.known
        if news:
            self.counts["news"] += 1
            lane.known |= news
            lane.asker.picker.add(lane.other.number, news)

    def wait(self, lane):
        """Nothing to ask for: until the other has news, or a chunk that is under way elsewhere is late."""
        lane.turn += 1
        if peer.NEWS_SECONDS:
            lane.other.waiting.add(lane)
        picker = lane.asker.picker
        self.after(picker.late_after() / 2 if picker.wanted(lane.other.number) else 1.0, self.waited, lane, lane.turn)

    def waited(self, lane, turn):
        """The wait of that turn is over, unless news ended it."""
        if turn == lane.turn:
            lane.turn += 1
            lane.other.waiting.discard(lane)
            self.step(lane)

    def rest(self, lane, seconds):
        self.after(LATENCY + peer.busy_pause(seconds, lane.busy, lane.asker.picker.rng), self.step, lane)

    def asked(self, lane, index):
        """Fetch Chunk arrives at the other side: a slot, or a place in the line, or BUSY."""
        other, upload = lane.other, (lane, index, self.now)
        self.counts["fetches"] += 1
        if other.slots.free(lane.asker.number, index, False, other.places):
            self.begin(other, upload)
        elif other.seconds <= peer.BUSY_AFTER:
            other.line.append(upload)
            self.after(peer.BUSY_AFTER, self.gave_up, other, upload)
        else:
            self.turned_away(other, lane, index)

    def gave_up(self, other, upload):
        """No slot came free in time, unless the upload has begun meanwhile."""
        if upload in other.line:
            other.line.remove(upload)
            self.turned_away(other, *upload[:2])

    def turned_away(self, other, lane, index):
        """The asker is told BUSY."""
        other.slots.turn_away()
        other.turned_away += 1
        lane.asker.picker.release(other.number, index)
        self.counts["busy"] += 1
        lane.instead = other.slots.instead(index, self.rng)
        lane.busy += 1
        if lane.instead is None or lane.busy % 2 == 0:
            lane.instead = None
            self.rest(lane, other.seconds * other.turned_away)
        else:
            self.after(LATENCY, self.step, lane)

    def begin(self, other, upload):
        """A slot is taken; the uplink sends one chunk after the other."""
        lane, index, _ = upload
        other.slots.take(lane.asker.number, index)
        other.queue.append(upload)
        if len(other.queue) == 1:
            self.after(other.seconds, self.sent, other)

    def sent(self, other):
        """The first chunk of the queue is out: the next one, the line, and the asker go on."""
        upload = other.queue.pop(0)
        if other.queue:
            self.after(other.seconds, self.sent, other)
        other.slots.release()
        other.uploaded, other.turned_away = other.uploaded + 1, 0
        for waiting in list(other.line):
            lane, index, _ = waiting
            if other.slots.free(lane.asker.number, index, False, other.places):
                other.line.remove(waiting)
                self.begin(other, waiting)
        self.after(LATENCY, self.arrived, *upload)

    def arrived(self, lane, index, since):
        """A chunk is there, verified and written."""
        asker = lane.asker
        lane.busy = 0
        asker.picker.release(lane.other.number, index)
        if asker.complete_at is None and asker.picker.arrived(index, self.now - since):
            if asker.picker.complete():
                asker.complete_at = self.now
                asker.slots.sole = asker.picker.all
                self.missing -= 1
            for waiting in sorted(asker.waiting, key=lambda waiting: waiting.asker.number):
                self.after(LATENCY, self.waited, waiting, waiting.turn)
            asker.waiting.clear()
        else:
            self.counts["duplicates"] += 1
        self.step(lane)


def floor(leechers, chunks, tau):
    """Seconds before which nobody can have distributed the file, when all upload at one chunk in `tau` seconds."""
    return (chunks + leechers.bit_length() - 1) * tau


def simulate(leechers, chunks, tau=TAU, slow=0.0, seeder=1.0, seed=1, without=()):
    """One run: makespan and floor in seconds, their ratio, what the seeder sent in files, requests per chunk.

    With `slow`, a share of the others' rate, member 1 has that rate; makespan and floor are those of
    the others.
    """
    with Without(without):
        run = Simulation(leechers, chunks, tau, slow, seeder, seed).run()
    counted = run.members[2 if slow else 1:]
    makespan = max(member.complete_at or FOREVER for member in counted)
    bound = floor(len(counted), chunks, tau)
    return {"makespan": makespan, "floor": bound, "ratio": makespan / bound,
            "seeder_files": run.members[0].uploaded / chunks,
            "complete": [member.complete_at for member in counted],
            **{what: count / (leechers * chunks) for what, count in run.counts.items()}}


# The table and the program.


def median_run(runs):
    """The run whose makespan is the median."""
    return sorted(runs, key=lambda run: run["makespan"])[len(runs) // 2]


def several(args, without=()):
    """As many runs as were asked for, each with the next seed."""
    return [simulate(args.leechers, args.chunks, args.tau, args.slow or 0.0, args.seeder, args.seed + number, without) for number in range(args.runs)]


HEAD = f"{'rule taken out':<16} {'makespan':>9} {'over floor':>10} {'worst':>6} {'seeder':>7} {'news':>6} {'fetches':>8} {'busy':>6} {'twice':>6}"


def row(name, runs):
    """One line: the median run, the worst of the runs, and requests for each chunk that a leecher got."""
    run, worst = median_run(runs), max(run["ratio"] for run in runs)
    return (f"{name:<16} {run['makespan']:>7.1f} s {run['ratio']:>10.3f} {worst:>6.3f} {run['seeder_files']:>7.2f}"
            f" {run['news']:>6.1f} {run['fetches']:>8.1f} {run['busy']:>6.1f} {run['duplicates']:>6.3f}")


def whole_number(low, high):
    """An argparse type: a whole number within bounds."""
    def parse(text):
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high:,}, got {peer.show_name(text)}")
        return int(text)
    return parse


def share(text):
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0.001 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number from 0.001 to 1000, got {peer.show_name(text)}")
    return number


def rule(text):
    if text not in RULES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(RULES)}; got {peer.show_name(text)}")
    return text


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="simulate.py", description="A swarm in simulated time, by the policy of peer.py.")
    parser.add_argument("--leechers", type=whole_number(1, MAX_LEECHERS), default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--chunks", type=whole_number(1, peer.MAX_CHUNKS), default=160, metavar="M", help="(default: %(default)s)")
    parser.add_argument("--tau", type=share, default=TAU, metavar="S", help="seconds that a chunk takes at the upload limit (default: %(default)s)")
    parser.add_argument("--slow", type=share, metavar="SHARE", help="one leecher uploads at this share of the others' rate; they alone count")
    parser.add_argument("--seeder", type=share, default=1.0, metavar="K", help="the seeder uploads K times as fast (default: 1)")
    parser.add_argument("--runs", type=whole_number(1, 1000), default=5, metavar="N", help="each with the next seed (default: %(default)s)")
    parser.add_argument("--seed", type=whole_number(0, 10**9), default=1, metavar="N", help="of the first run (default: %(default)s)")
    parser.add_argument("--without", type=rule, action="append", default=[], metavar="RULE",
                        help="take a rule out; again for another; --rules lists them")
    parser.add_argument("--ablation", action="store_true", help="take out each rule in turn")
    parser.add_argument("--rules", action="store_true", help="list the rules, and the Python that takes them out")
    parser.add_argument("--json", action="store_true", help="print each run as one JSON object a line instead of the table")
    args = parser.parse_args(argv)
    if args.slow and args.leechers < 2:
        parser.error("expected at least 2 leechers with --slow: one is slow, the others are measured")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.rules:
        print("\n".join(f"{name}: {change.strip()}" for name, change in RULES.items()))
        return 0
    choices = [[], *([name] for name in RULES)] if args.ablation else [args.without]
    if not args.json:
        print(f"{args.leechers} leechers, {args.chunks} chunks, {args.tau:g} s for a chunk, median of {args.runs}; "
              f"floor {floor(args.leechers, args.chunks, args.tau):.1f} s\n{HEAD}")
    for without in choices:
        runs = several(args, without)
        if args.json:
            print("\n".join(json.dumps({"without": without, **run}) for run in runs), flush=True)
        else:
            print(row(", ".join(without) or "none", runs), flush=True)
    return 0


if __name__ == "__main__":
    ending.run(main, peer.Fatal)
