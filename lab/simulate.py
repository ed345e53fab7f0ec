#!/usr/bin/env python3
"""A swarm in simulated time: the policy of peer.py without sockets, threads and waiting.

    python lab/simulate.py                                  32 leechers, 160 chunks: makespan over the floor
    python lab/simulate.py --leechers 1000 --runs 1         up to 10,000
    python lab/simulate.py --without "rarest first"         a rule switched off; --rules lists them
    python lab/simulate.py --ablation                       each rule switched off in turn
    python lab/simulate.py --leechers 8 --chunks 64 --links up=20M,down=100M,delay=10ms

All decisions are imported from peer.py: Picker (which chunk, when one is late), busy_pause (how long to
rest), upload_slots and Slots (who may have one). Only the network is simulated: a request takes LATENCY,
and chunks go out one after another, each in chunk size / upload limit. Timeouts and requests ahead are
left out. Time jumps from event to event, in the order of (time, ...), so a minute of swarm costs a
second or two.

With --links nobody has an upload limit, and the network is simulated packet by packet
(lab/network.py): rates, delays, queues, losses, and TCP with its slow start. Then peers request chunks ahead
[FC-15] and wait for news [CQ-6], and requests and answers wait in queues like everything else. A run takes
a few seconds.

A rule is switched off by a line of Python that runs with `peer` in scope. lab/ablation.py gives the
same lines to real peers.

Reading order: constants - rules - Member and Lane - Simulation - on links - floor and table - main.
There are no threads and no locks here. The same seed gives the same run.
"""

import argparse
import collections
import heapq
import itertools
import json
import math
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ending  # noqa: E402  (after the path)
import links  # noqa: E402
import network  # noqa: E402
import peer  # noqa: E402

LATENCY = 0.002   # seconds for a request and its answer, with the programs' own time
TAU = 0.4         # seconds that a chunk takes at the upload limit, unless chosen otherwise
MAX_LEECHERS = 10_000
FOREVER = 1e9     # seconds
REQUEST = 40      # bytes of a request, and of an answer without a chunk
MOMENT = 0.005    # seconds whose events are in the heap: with all future ones it would not fit into a processor's cache


# Rules. Each is a line of Python that takes one out of peer.py.

RULES = {
    "rarest first": "peer.rarest_first = lambda offered, holdings, count, rng: peer.any_of(offered, count, rng)",
    "any order": "peer.rarest_first = lambda offered, holdings, count, rng: next(peer.indexes(offered), None)",
    "neighbor first": """
def chunk_first(self, neighbor, now, proposed=None, choose=peer.Picker.choose):
    free = ~self.held & ~peer.bits_of(self.under_way)
    if proposed is not None and (self.wanted(neighbor) & free) >> proposed & 1:
        return choose(self, neighbor, now, proposed)
    every = 0
    for bits in self.holds.values():
        every |= bits
    index = peer.rarest_first(every & free, self.holds.values(), self.count, self.rng)
    if index is None or not self.wanted(neighbor) >> index & 1:
        return None if index is not None else choose(self, neighbor, now)
    self.under_way[index] = {neighbor: now}
    return index
peer.Picker.choose = chunk_first""",
    "upload slots": "peer.UPLOAD_SLOTS = peer.PACED_SLOTS = peer.MAX_CONNECTIONS",
    "busy": "peer.BUSY_AFTER = 3600.0",
    "unsent first": "peer.Slots.given_away = lambda self, index: 0",
    "turns": "peer.Slots.turn_away = lambda self: None",
    "news": "peer.NEWS_SECONDS = 0.0",
    "random pauses": "peer.RETRY_SPREAD = (1.0, 1.0)",
    "endgame": "peer.Picker.late = lambda self, neighbor, wanted, now: None",
    "requests ahead": "peer.RECEIVE_MEMORY, peer.FEWEST_NEIGHBORS = 0, peer.MAX_NEIGHBORS",
    "few ahead": "peer.requests_ahead = lambda rate, round_trip, chunk_size: 63",
    "unsent limit": "peer.UNSENT_BYTES = 4 * peer.MIB",
}
ON_LINKS = "requests ahead", "few ahead", "unsent limit"  # rules that have no effect without links


def rules(on_links):
    """The names of the rules that can have an effect."""
    return [name for name in RULES if on_links or name not in ON_LINKS]


class Without:
    """Switch these rules off for a `with` block; afterwards peer.py is as before."""

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
    """A peer: its chunks, what it knows of others, and its uplink."""

    def __init__(self, number, count, rate, held, rng):
        self.number = number
        self.seconds = 1 / rate        # seconds to send a chunk
        self.places = peer.upload_slots(self.seconds)
        self.picker = peer.Picker(count, held, rng)
        self.complete_at = None        # seconds
        self.slots = peer.Slots()
        self.slots.sole = held if self.picker.complete() else 0
        self.turned_away = 0           # since the last upload ended
        self.waiting = set()           # lanes that wait for news from this member
        self.resting = set()           # this member's lanes that have nothing to ask for
        self.queue = []                # (lane, index, asked at) that have a slot; the first is being sent
        self.line = []                 # (lane, index, asked at) that wait for a slot
        self.uploaded = 0              # chunks


class Lane:
    """The thread that asks one neighbor: what Peer.fetch_from keeps in a Neighbor."""

    __slots__ = ("asker", "other", "known", "instead", "busy", "turn")

    def __init__(self, asker, other):
        self.asker, self.other = asker, other
        self.known = 0                 # the chunks that the other peer has listed
        self.instead = None            # the chunk that it proposed
        self.busy = 0                  # how often in a row it said BUSY
        self.turn = 0                  # counts the waits, so that the end of an old one does not end the next


class Simulation:
    """One run. Methods are named after events; each is called by the clock, or by the previous event."""

    def __init__(self, leechers, chunks, tau=TAU, slow=0.0, seeder=1.0, seed=1):
        self.rng = random.Random(seed)
        self.now, self.tickets = 0.0, itertools.count()
        self.moment, self.clock = 0, []  # the number of this moment, and a heap of its events
        self.later = {}                  # number of a moment -> list of its events
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
                self.after(self.rng.uniform(0, 0.1), self.step, self.lane(asker, other))

    def neighbors(self, asker):
        """Whom a leecher dials: everybody, or, if there are too many, a random choice."""
        others = range(len(self.members))
        drawn = others if len(others) <= peer.MAX_NEIGHBORS + 1 else self.rng.sample(others, peer.MAX_NEIGHBORS)
        return [self.members[number] for number in drawn if number != asker.number]

    def lane(self, asker, other):
        return Lane(asker, other)

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
        index, proposed, lane.instead = picker.choose(number, self.now, lane.instead), lane.instead, None
        if index is not None:
            self.asked(lane, index)
        elif proposed is not None:
            self.rest(lane, lane.other.seconds * lane.other.turned_away)
        else:
            self.wait(lane)

    def hear(self, lane):
        """Chunks Query: what is new since the last one."""
        news = lane.other.picker.held & ~lane.known
        if news:
            self.counts["news"] += 1
            lane.known |= news
            lane.asker.picker.add(lane.other.number, news)

    def wait(self, lane):
        """With nothing to ask for, wait until the other has news, or a chunk requested elsewhere is late."""
        lane.turn += 1
        if peer.NEWS_SECONDS:
            lane.other.waiting.add(lane)
        picker = lane.asker.picker
        self.after(picker.late_after() / 2 if picker.wanted(lane.other.number) else 1.0, self.waited, lane, lane.turn)

    def waited(self, lane, turn):
        """The wait of that turn is over, unless news ended it before."""
        if turn == lane.turn:
            lane.turn += 1
            lane.other.waiting.discard(lane)
            self.step(lane)

    def rest(self, lane, seconds):
        self.after(LATENCY + peer.busy_pause(seconds, lane.busy, lane.asker.picker.rng), self.step, lane)

    def asked(self, lane, index):
        """Fetch Chunk arrives at the other side, which gives a slot, a place in the line, or BUSY."""
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
        """No slot became free in time, unless the upload has begun meanwhile."""
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
        """The first chunk of the queue is out: start the next one, serve the line, let the asker go on."""
        upload = other.queue.pop(0)
        if other.queue:
            self.after(other.seconds, self.sent, other)
        other.slots.active -= 1
        other.uploaded, other.turned_away = other.uploaded + 1, 0
        for waiting in list(other.line):
            lane, index, _ = waiting
            if other.slots.free(lane.asker.number, index, False, other.places):
                other.line.remove(waiting)
                self.begin(other, waiting)
        self.after(LATENCY, self.arrived, *upload)

    def arrived(self, lane, index, since):
        """A chunk has arrived and is verified and written."""
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


# On links.


class LinkLane(Lane):
    """A Lane with its connection and the state that peer.py keeps in Neighbor and Link."""

    __slots__ = ("there", "back", "trip", "asked", "served", "heard", "heard_at", "waits", "rest_until", "rate", "took_at", "answers")

    def __init__(self, asker, other, net):
        super().__init__(asker, other)
        self.there = network.Connection(net, asker.number, other.number, peer.UNSENT_BYTES)
        self.back = network.Connection(net, other.number, asker.number, peer.UNSENT_BYTES)
        self.trip = net.round_trip(asker.number, other.number)
        self.asked = collections.deque()   # (index, or None for Chunks Query; when) of requests not answered yet
        self.served = collections.deque()  # (index or None, how long it may wait) at the other side, which is answering the first
        self.heard, self.heard_at, self.waits = False, 0.0, False
        self.rest_until, self.rate, self.took_at, self.answers = 0.0, 0.0, 0.0, 0

    def chunks_asked(self):
        return sum(index is not None for index, _ in self.asked)


class OnLinks(Simulation):
    """A run on links: requests, news and chunks are packets. A method modelled on one in peer.py names it."""

    def __init__(self, leechers, chunks, spec, chunk_size, seed=1):
        self.network = network.Network(spec, leechers + 1, self.after, lambda: self.now, random.Random(seed))
        self.chunk_size, self.lanes = chunk_size, collections.defaultdict(list)
        super().__init__(leechers, chunks, seed=seed)
        for member in self.members:
            member.seconds, member.places = 0.0, peer.upload_slots(0.0)
            member.interval, member.ended_at = peer.BUSY_SECONDS[0], 0.0

    def lane(self, asker, other):
        """All know each other and wait for news; the seeder is about to answer the first query (distribution.py)."""
        lane = LinkLane(asker, other, self.network)
        self.lanes[asker.number].append(lane)
        lane.asked.append((None, 0.0))
        if other.number:
            lane.heard, lane.waits, lane.answers = True, True, 1
        self.after(0.0, self.requested, lane, None, self.rng.uniform(0, peer.NEWS_SECONDS) if other.number else 0.0)
        return lane

    def step(self, lane):
        """Peer.ask_and_take, except for waiting for an answer."""
        lane.turn += 1
        lane.asker.resting.discard(lane)
        if lane.asker.complete_at is not None:
            return
        self.ask_for_chunks(lane)
        self.ask_for_news(lane)
        if not lane.asked:
            lane.asker.resting.add(lane)
            left = lane.rest_until - self.now
            self.after(left if left > 0 else lane.asker.picker.late_after() / 2, self.rested, lane, lane.turn)

    def rested(self, lane, turn):
        if turn == lane.turn:
            self.step(lane)

    def ask_for_chunks(self, lane):
        """Peer.choose."""
        picker, number = lane.asker.picker, lane.other.number
        while lane.heard and (self.now >= lane.rest_until or lane.instead is not None) and lane.chunks_asked() < self.ahead(lane):
            index, lane.instead = picker.choose(number, self.now, lane.instead), None
            if index is None:
                break
            self.counts["fetches"] += 1
            self.ask(lane, index)

    def ahead(self, lane):
        """Peer.ahead."""
        picker = lane.asker.picker
        if lane.answers < 2 or lane.busy or not lane.rate:
            return 1
        if len(picker.under_way) * self.chunk_size >= peer.RECEIVE_MEMORY:
            return 1 - any(lane.other.number in askers for askers in picker.under_way.values())
        return 1 + (picker.useful() == [lane.other.number]) + peer.requests_ahead(lane.rate, lane.trip, self.chunk_size)

    def ask_for_news(self, lane):
        """Peer.ask_for_news."""
        picker, number, chunks = lane.asker.picker, lane.other.number, lane.chunks_asked()
        if len(lane.asked) > chunks or chunks and lane.answers < 2 or picker.holds.get(number) == picker.all:
            return
        if self.now < (lane.heard_at + picker.typical if chunks else lane.rest_until):
            return
        seconds = 0.0
        if not chunks:
            seconds = picker.late_after() / 2 if picker.wanted(number) else peer.NEWS_SECONDS
        lane.waits = seconds > 0
        self.ask(lane, None, seconds)

    def ask(self, lane, index, seconds=0.0):
        lane.asked.append((index, self.now))
        lane.there.write(REQUEST, None, lambda: self.after(LATENCY / 2, self.requested, lane, index, seconds))

    def requested(self, lane, index, seconds):
        """A request has arrived at the other side, which answers one at a time."""
        lane.served.append((index, seconds))
        if len(lane.served) == 1:
            self.serve(lane)

    def serve(self, lane):
        """Peer.on_chunks_query, or Peer.on_fetch_chunk: a slot, or a place in the line for a moment."""
        index, seconds = lane.served[0]
        other, upload = lane.other, (lane, index, self.now)
        if index is None:
            other.waiting.add(lane)
            lane.turn += 1
            if other.picker.held & ~lane.known or not seconds:
                self.tell(lane)
            else:
                self.after(min(seconds, peer.NEWS_SECONDS), self.waited, lane, lane.turn)
        elif other.slots.free(lane.asker.number, index, False, other.places):
            self.begin(other, upload)
        else:
            other.line.append(upload)
            self.after(peer.BUSY_AFTER, self.gave_up, other, upload)

    def waited(self, lane, turn):
        if turn == lane.turn:
            self.tell(lane)

    def tell(self, lane):
        """The answer to Chunks Query."""
        lane.turn += 1
        lane.other.waiting.discard(lane)
        news = lane.other.picker.held & ~lane.known
        self.answer(lane, REQUEST, self.told, news)
        self.next_request(lane)

    def answer(self, lane, size, then, *arguments, left=None):
        lane.back.write(size, left, lambda: self.after(LATENCY / 2, self.took, lane, then, arguments))

    def took(self, lane, then, arguments):
        """Peer.take_answer."""
        if lane.asker.complete_at is None:
            index, asked_at = lane.asked.popleft()
            lane.answers += 1
            then(lane, index, asked_at, *arguments)
            self.step(lane)

    def told(self, lane, _, asked_at, news):
        """Peer.heard."""
        self.counts["news"] += bool(news)
        lane.known |= news
        lane.heard, lane.heard_at = True, self.now
        if news:
            lane.asker.picker.add(lane.other.number, news)
        elif lane.waits and self.now - asked_at < peer.LATE_SECONDS[0] / 2:
            lane.rest_until = self.now + peer.NEWS_PAUSE * self.rng.uniform(*peer.RETRY_SPREAD)

    def turned_away(self, other, lane, index):
        """Peer.busy: how soon a slot is expected, or what to ask for instead."""
        other.slots.turn_away()
        other.turned_away += 1
        self.counts["busy"] += 1
        self.answer(lane, REQUEST, self.refused, other.interval * other.turned_away, other.slots.instead(index, self.rng))
        self.next_request(lane)

    def refused(self, lane, index, _, seconds, instead):
        """Peer.refused."""
        picker = lane.asker.picker
        picker.release(lane.other.number, index)
        lane.busy += 1
        if instead is not None and lane.busy % 2:
            lane.instead = instead
        lane.rest_until = self.now + peer.busy_pause(seconds, lane.busy, picker.rng)

    def next_request(self, lane):
        lane.served.popleft()
        if lane.served:
            self.serve(lane)

    def begin(self, other, upload):
        """Uploads.begin, and the chunk sets out."""
        lane, index, _ = upload
        if not other.slots.active:
            other.ended_at = self.now
        other.slots.take(lane.asker.number, index)
        self.answer(lane, self.chunk_size, self.arrived, left=lambda: self.sent(other, lane))

    def sent(self, other, lane):
        """The chunk has left, except for what the socket still holds: its slot is free (Uploads.end)."""
        other.slots.active -= 1
        other.interval += (self.now - other.ended_at - other.interval) / 4
        other.ended_at, other.turned_away = self.now, 0
        other.uploaded += 1
        self.next_request(lane)
        for waiting in list(other.line):
            if other.slots.free(waiting[0].asker.number, waiting[1], False, other.places):
                other.line.remove(waiting)
                self.begin(other, waiting)

    def arrived(self, lane, index, since):
        """Peer.hand_over, verify and keep: a chunk has arrived, is correct and is written."""
        asker = lane.asker
        rate = self.chunk_size / max(self.now - max(since, lane.took_at), 1e-6)
        lane.rate += (rate - lane.rate) / 4 if lane.rate else rate
        lane.took_at, lane.rest_until, lane.busy = self.now, self.now, 0
        asker.picker.release(lane.other.number, index)
        if asker.picker.arrived(index, self.now - since):
            self.holds_more(asker)
        else:
            self.counts["duplicates"] += 1

    def holds_more(self, member):
        """Tell those who wait for news; resting lanes check whether there is something to ask for."""
        if member.picker.complete():
            member.complete_at, member.slots.sole = self.now, member.picker.all
            self.missing -= 1
            for lane in self.lanes[member.number]:
                lane.back.close()
        for lane in sorted(member.waiting, key=lambda lane: lane.asker.number):
            self.tell(lane)
        for lane in sorted(member.resting, key=lambda lane: lane.other.number):
            if self.now >= lane.rest_until:
                self.after(0.0, self.rested, lane, lane.turn)


def floor(leechers, chunks, tau):
    """The least seconds in which the file can be distributed, if everyone uploads one chunk in `tau` seconds."""
    return (chunks + leechers.bit_length() - 1) * tau


def simulate_on_links(leechers, chunks, spec, chunk_size=peer.CHUNK_SIZE, seed=1, without=()):
    """One run on links: like simulate(), but the floor is the textbook's bound plus a round trip."""
    with Without(without):
        run = OnLinks(leechers, chunks, spec, chunk_size, seed).run()
    makespan = max(member.complete_at or FOREVER for member in run.members[1:])
    least = links.bound(spec, leechers, chunks * chunk_size)
    return {"makespan": makespan, "floor": least, "ratio": makespan / least,
            "seeder_files": run.members[0].uploaded / chunks,
            "complete": [member.complete_at for member in run.members[1:]],
            **{what: count / (leechers * chunks) for what, count in run.counts.items()}}


def simulate(leechers, chunks, tau=TAU, slow=0.0, seeder=1.0, seed=1, without=()):
    """One run: makespan and floor in seconds, their ratio, what the seeder sent in files, requests per chunk.

    With `slow`, member 1 has that share of the others' rate; makespan and floor are those of the
    others.
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
    """The requested number of runs, each with the next seed."""
    if args.links:
        return [simulate_on_links(args.leechers, args.chunks, args.links, args.chunk_size, args.seed + number, without) for number in range(args.runs)]
    return [simulate(args.leechers, args.chunks, args.tau, args.slow or 0.0, args.seeder, args.seed + number, without) for number in range(args.runs)]


HEAD = f"{'rule taken out':<16} {'makespan':>9} {'over floor':>10} {'worst':>6} {'seeder':>7} {'news':>6} {'fetches':>8} {'busy':>6} {'twice':>6}"


def row(name, runs):
    """One line: the median run, the worst run, and requests per chunk that a leecher got."""
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


def links_with_rate(text):
    spec = links.parse_links(text)
    if spec.usual.up == math.inf:
        raise argparse.ArgumentTypeError(f"expected up=RATE for all hosts, got {peer.show_name(text)}")
    return spec


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="simulate.py", description="A swarm in simulated time, by the policy of peer.py.")
    parser.add_argument("--leechers", type=whole_number(1, MAX_LEECHERS), default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--chunks", type=whole_number(1, peer.MAX_CHUNKS), default=160, metavar="M", help="(default: %(default)s)")
    parser.add_argument("--tau", type=share, default=TAU, metavar="S", help="seconds that a chunk takes at the upload limit (default: %(default)s)")
    parser.add_argument("--slow", type=share, metavar="SHARE", help="one leecher uploads at this share of the others' rate; only the others count")
    parser.add_argument("--seeder", type=share, default=1.0, metavar="K", help="the seeder uploads K times as fast (default: 1)")
    parser.add_argument("--links", type=links_with_rate, metavar="SPEC",
                        help="links instead of --tau, --slow and --seeder, as in lab/links.py: up=20M,down=100M,delay=10ms,3:up=2M")
    parser.add_argument("--chunk-size", type=peer.size_in_bytes, default=peer.CHUNK_SIZE, metavar="SIZE", help="with --links (default: 256K)")
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


def title(args):
    """The line above the table."""
    if args.links:
        least = links.bound(args.links, args.leechers, args.chunks * args.chunk_size)
        return f"{args.leechers} leechers, {args.chunks} chunks of {peer.human(args.chunk_size)} on links, median of {args.runs}; bound {least:.2f} s"
    return (f"{args.leechers} leechers, {args.chunks} chunks, {args.tau:g} s for a chunk, median of {args.runs}; "
            f"floor {floor(args.leechers, args.chunks, args.tau):.1f} s")


def main(argv=None):
    args = parse_arguments(argv)
    if args.rules:
        print("\n".join(f"{name}: {change.strip()}" for name, change in RULES.items()))
        return 0
    choices = [[], *([name] for name in rules(args.links))] if args.ablation else [args.without]
    if not args.json:
        print(title(args), HEAD, sep="\n")
    for without in choices:
        runs = several(args, without)
        if args.json:
            print("\n".join(json.dumps({"without": without, **run}) for run in runs), flush=True)
        else:
            print(row(", ".join(without) or "none", runs), flush=True)
    return 0


if __name__ == "__main__":
    ending.run(main, peer.Fatal)
