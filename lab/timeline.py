#!/usr/bin/env python3
"""Who sent which chunk to whom when: a picture and a summary of a run, from the --events files of its peers.

    .venv/bin/python lab/timeline.py EVENTS… [--out timeline.svg]
    .venv/bin/python lab/distribution.py --point 4 40 --events run && .venv/bin/python lab/timeline.py run/*.events
    .venv/bin/python lab/timeline.py --links up=20M,delay=10ms run/*.events     also shows how much of each uplink was used

Give the files of as many peers as you have, and the tracker's, where its seeder writes. A peer whose
file is not given is still drawn as a source, as far as the others mention it. The picture is one SVG
file; point at a bar to read what it is. The summary goes to stdout: who moved how much, how long
each link was idle, and where the time of the slowest peer went.

What the events say. `fetched` says who sent a chunk, when it was verified and how long the exchange took, so
it is a bar at its receiver. `sent` says when the last byte was handed to the kernel; it is matched
with the `fetched` that it led to, and takes its beginning from there (or from its own `seconds`, if it
has them). Under an upload limit chunks go out one after another, so there a bar begins no earlier than the previous one
on that uplink ended: any time before that was spent waiting. A `sent` on the connection of a known peer that led to
no `fetched` is a duplicate: the chunk had already come from elsewhere. No event shows what was sent of an exchange that
broke off. Events need not say how long an exchange took; if none does, its bar has no known beginning: it is a line at
its end, and whatever depends on beginnings, such as how long a link was idle, is left out.

Runs. --events appends, so one file may describe several processes, each from its `start` on. Processes that ran at the
same time form one run of a swarm; of several runs, or contents, the last is shown, and --run chooses another.

Clocks. The `t` of all processes on one machine comes from one clock, until the machine restarts. If the wall times in the
`start` events show that a run has more than one clock, all its times are converted to wall time, and are as accurate as those
clocks. Events without a wall time are assumed to use the same clock.

Reading order: data - reading - runs and clocks - who is who - matching - intervals - summary - bars - rates - main.
"""

import bisect
import json
import os
import re
import statistics
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ending  # noqa: E402  (after the path)
import links  # noqa: E402
import svg  # noqa: E402

LATEST = 1e11         # seconds, a few thousand years: no clock shows more
SAME_CLOCK = 1.0      # seconds by which wall time less `t` may differ between files of one machine
SLACK = 2.0           # seconds by which a `sent` may be noted before or after the `fetched` that it led to
MANY = 4000           # transfers; with more, rates are drawn instead of bars
BINS = 240            # columns of time in the picture of rates
TIPS = 60             # fields to point at for each lane, each over several columns
USUAL = 0.995         # of all columns must fit into half a lane: one burst must not flatten all others
NOTABLE = 0.05        # share of a peer's time above which a cause is worth mentioning
SLOW_SOURCE = 3       # times slower than the median, and a source is called slow
WIDTH, LEFT, RIGHT, TOP = 1180, 168, 1150, 116   # pixels
COLOURS = len(svg.SERIES)


# Data. Times are in seconds from the first request; a lane is one peer, identified by its index in a list.


class Transfer(NamedTuple):
    """A chunk on its way, as seen by one of its ends."""

    begin: float
    end: float
    chunk: int      # its id
    size: int       # bytes
    source: int     # lane
    to: int         # lane; None for a peer that no file mentions
    duplicate: bool = False
    timed: bool = True   # whether its beginning is known; if not, `begin` is its end


class Sent(NamedTuple):
    """A `sent` event: where its connection leads is found out later."""

    t: float
    seconds: float  # None if the event does not say
    chunk: int
    size: int
    to: str


class Lane:
    """One peer: what its own file says, or, without one, what the others say of it."""

    def __init__(self, name, has_file=True):
        self.name = name
        self.has_file = has_file
        self.offset = None     # wall time less `t`, if its `start` says
        self.content = None    # content id
        self.file, self.place = None, 0  # the file that it was read from, and its number among the processes that wrote there
        self.first = self.last = None  # times of its first and last event
        self.joined = []       # times at which it joined
        self.complete = None   # when it last became complete
        self.listening = set() # addresses that it says it has
        self.port = None
        self.fetched = []      # (t, seconds, chunk, size, address of the source), then Transfers
        self.sent = []         # Sent, then Transfers
        self.dropped = []      # (t, neighbor, reason)
        self.size = None       # of the file, as `complete` says
        self.limit = None      # bytes per second, if `start` says
        self.uplink = None     # bytes per second of its link, if --links says

    def is_seeder(self):
        """Whether it had the whole file from the start, as far as anyone can tell."""
        return not self.fetched and (self.complete is not None or bool(self.sent))


# Reading.


def seconds_in(value):
    """A time as a float; ValueError if no clock shows it: it would shrink the rest of the picture to a point."""
    if not abs(float(value)) <= LATEST:
        raise ValueError
    return float(value)


def duration_in(value):
    """As seconds_in, but not below 0; None if the event does not say."""
    if value is None:
        return None
    if not 0 <= float(value) <= LATEST:
        raise ValueError
    return float(value)


def bytes_in(value):
    """A number of bytes, or a chunk's id."""
    if not 0 <= int(value) < 2**63:
        raise ValueError
    return int(value)


def text_in(value):
    """Text that is safe in a terminal and in an SVG file."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))


def events_of(path):
    """Yield the events of a file, and say on stderr how many lines are not events. The last line may be unfinished: it may still be written."""
    events, unreadable = [], 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    event = json.loads(line)
                    seconds_in(event["t"]), str(event["event"])
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                    unreadable += line.endswith(b"\n")
                else:
                    yield event
    except OSError as error:
        raise ending.Failure(f"cannot read {text_in(path)}: {error.strerror}; expected the file that a peer wrote with --events") from None
    if unreadable:
        lines = "1 line that is" if unreadable == 1 else f"{unreadable} lines that are"
        print(f"{text_in(path)}: left out {lines} no event", file=sys.stderr)


def take(lane, event, same, tracker):
    """Add an event to a lane. KeyError, TypeError, ValueError, OverflowError if it is not as SPEC CL-15 demands."""
    kind, t = event["event"], seconds_in(event["t"])
    if kind in ("fetched", "sent"):
        address = text_in(event["of" if kind == "fetched" else "to"])
        moved = (t, duration_in(event.get("seconds")), same(bytes_in(event["chunk"])), same(bytes_in(event["bytes"])), same(address))
        lane.fetched.append(moved) if kind == "fetched" else lane.sent.append(Sent(*moved))
    elif kind == "start":
        if event.get("wall") is not None:
            lane.offset = seconds_in(event["wall"]) - t
        lane.limit = bytes_in(event.get("upload_limit") or 0) or lane.limit
        if "file" not in event:  # the tracker's port is not its seeder's
            lane.port = int(event["port"])
    elif kind == "joined" and "peer" in event:
        tracker.append(text_in(event["peer"]))
    elif kind == "joined":
        lane.joined.append(t)
        if event.get("listening"):
            lane.listening.add(text_in(event["listening"]))
        elif tracker:  # the tracker's own seeder: the last peer that joined before this event
            lane.listening.add(tracker[-1])
    elif kind == "complete":
        lane.complete, lane.size = t, bytes_in(event["bytes"])
    elif kind == "neighbor_dropped" and event.get("reason"):
        lane.dropped.append((t, text_in(event["neighbor"]), text_in(event["reason"])))


def read_lanes(path, name):
    """The lanes of one file: one for each process that wrote to it, in order."""
    lanes, seen, tracker = [], {}, []
    for event in events_of(path):
        if event["event"] == "start" or not lanes:
            lanes.append(Lane(name))
            lanes[-1].file, lanes[-1].place, tracker = path, len(lanes), []
        lane, t = lanes[-1], seconds_in(event["t"])
        lane.first, lane.last = t if lane.first is None else lane.first, t
        try:
            if isinstance(event.get("content_id"), str):
                lane.content = event["content_id"]
            take(lane, event, lambda value: seen.setdefault(value, value), tracker)
        except (KeyError, TypeError, ValueError, OverflowError):
            print(f"{text_in(path)}: left out a {text_in(event['event'])} that is not as lab/SPEC.md has it", file=sys.stderr)
    return lanes


def names_of(paths):
    """A short name for each file: its base name, or its whole path if two would have the same."""
    short = [text_in(os.path.splitext(os.path.basename(path))[0]) for path in paths]
    return [text_in(path) if short.count(name) > 1 else name for path, name in zip(paths, short)]


def natural(name):
    """A key that sorts "peer 10" after "peer 9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# Runs and clocks.


def know_offsets(files):
    """Give lanes without wall time the clock of the others, if these share one; return whether they do not. `files`: a list of lanes each."""
    known = [lane.offset for lanes in files for lane in lanes if lane.offset is not None]
    several = bool(known) and max(known) - min(known) > SAME_CLOCK
    for lane in (lane for lanes in files for lane in lanes if lane.offset is None):
        if several:
            raise ending.Failure(f"the files are of several machines, and that of {lane.name} has no wall time in a "
                                 "start event: expected one, to know its clock; leave that file out")
        lane.offset = known[0] if known else 0.0
    return several


def fits(lane, run):
    """Whether a lane may belong to a run: the same content, as far as known, and no other process that wrote to its file at the same time."""
    contents = {other.content for other in run} | {lane.content}
    return len(contents - {None}) < 2 and not any(overlap(lane, other) for other in run if other.file == lane.file)


def overlap(lane, other):
    return lane.first + lane.offset <= other.last + other.offset and other.first + other.offset <= lane.last + lane.offset


def runs_in(files):
    """The lanes of each run, in order of time: lanes that overlap in time, and others as long as no file occurs twice in the run."""
    def begin(lane):
        return lane.first + lane.offset

    runs = []
    for lane in sorted((lane for lanes in files for lane in lanes), key=begin):
        met = [fits(lane, run) and any(overlap(lane, other) for other in run) for run in runs]
        runs = [run for run, meets in zip(runs, met) if not meets] + [sum((run for run, meets in zip(runs, met) if meets), []) + [lane]]
    runs.sort(key=lambda run: (max(lane.place for lane in run), min(map(begin, run))))
    together = runs[:1]
    for run in runs[1:]:
        there = {lane.file for lane in together[-1]}
        if all(lane.file not in there and fits(lane, together[-1]) for lane in run):
            together[-1] = together[-1] + run
        else:
            together.append(run)
    return together


def shifted(lane, by):
    """Add `by` seconds to all times of a lane."""
    lane.fetched = [(event[0] + by, *event[1:]) for event in lane.fetched]
    lane.sent = [event._replace(t=event.t + by) for event in lane.sent]
    lane.dropped = [(event[0] + by, *event[1:]) for event in lane.dropped]
    lane.joined = [t + by for t in lane.joined]
    lane.complete = None if lane.complete is None else lane.complete + by


def joined_up(lanes):
    """Merge the lanes of one file into one: a peer that was restarted during the run."""
    first = lanes[0]
    for lane in lanes[1:]:  # they are in order of time
        for name in ("joined", "fetched", "sent", "dropped"):
            getattr(first, name).extend(getattr(lane, name))
        first.listening |= lane.listening
        for name in ("complete", "port", "size", "limit"):
            setattr(first, name, getattr(lane, name) or getattr(first, name))
    return first


# Who is who.


def port_of(address):
    port = address.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else None


def lane_of(address, lanes):
    """The index of the lane that listens at an address; one is added for an address that no file owns."""
    for index, lane in enumerate(lanes):
        if address in lane.listening:
            return index
    same_port = [index for index, lane in enumerate(lanes) if lane.port is not None and lane.port == port_of(address)]
    if len(same_port) == 1:
        lanes[same_port[0]].listening.add(address)
        return same_port[0]
    lanes.append(Lane(address, has_file=False))  # if several machines use the same port, nobody can tell which one it is
    lanes[-1].listening.add(address)
    return len(lanes) - 1


def zero_time(lanes):
    """The time of the first request of a chunk, from which all times are counted; Failure if no chunk was requested."""
    begins = [t - (seconds or 0) for lane in lanes for t, seconds, *_ in lane.fetched] or [event.t for lane in lanes for event in lane.sent]
    if not begins:
        raise ending.Failure("no chunk was sent or fetched in these files; expected the --events files of a swarm that has begun")
    return min(begins)


# Matching.


def receive(lanes, zero):
    """Turn every lane's fetched events into Transfers."""
    known = {}
    for index in range(len(lanes)):
        transfers = []
        for t, seconds, chunk, size, address in lanes[index].fetched:
            if address not in known:
                known[address] = lane_of(address, lanes)
            transfers.append(Transfer(t - (seconds or 0) - zero, t - zero, chunk, size, known[address], index, timed=seconds is not None))
        lanes[index].fetched = sorted(transfers, key=lambda transfer: transfer.end)


def match(lane, index, arrivals, zero):
    """Turn one lane's sent events into Transfers. `arrivals` maps a chunk to the Transfers that others received from it."""
    connections, pairs = {}, []
    for event in lane.sent:
        t, best = event.t - zero, None
        for arrival in arrivals.get(event.chunk, ()):
            if arrival.begin - SLACK <= t <= arrival.end + SLACK and (best is None or abs(arrival.end - t) < abs(best.end - t)):
                best = arrival
        if best is not None:
            arrivals[event.chunk].remove(best)
            connections[event.to] = best.to
        pairs.append((event, best))
    known = [arrival.end - arrival.begin for _, arrival in pairs if arrival and arrival.timed]
    sent = []
    for event, arrival in pairs:
        end, seconds = event.t - zero, event.seconds
        if seconds is None and (arrival.timed if arrival else known):
            seconds = max(0.0, end - arrival.begin) if arrival else statistics.median(known)
        to = arrival.to if arrival else connections.get(event.to)
        sent.append(Transfer(end - (seconds or 0), end, event.chunk, event.size, index, to, arrival is None and to is not None, seconds is not None))
    return sorted(sent, key=lambda transfer: transfer.end)


def one_by_one(transfers):
    """The transfers of an uplink that sends one chunk after another, each without its wait for the previous one; sorted by end."""
    clipped, free = [], float("-inf")
    for transfer in transfers:
        clipped.append(transfer._replace(begin=min(transfer.end, max(transfer.begin, free))))
        free = transfer.end
    return clipped


def send(lanes, zero):
    """Turn every lane's sent events into Transfers; a lane without a file sent what others fetched from it."""
    arrivals = [{} for _ in lanes]
    for lane in lanes:
        for transfer in lane.fetched:
            arrivals[transfer.source].setdefault(transfer.chunk, []).append(transfer)
    for index, lane in enumerate(lanes):
        if lane.has_file and lane.sent:
            sent = match(lane, index, arrivals[index], zero)
            lane.sent = one_by_one(sent) if lane.limit else sent  # without a limit, concurrent chunks share the link
        else:
            lane.sent = sorted((transfer for chosen in arrivals[index].values() for transfer in chosen), key=lambda transfer: transfer.end)


class Run:
    """A whole run: its lanes, seeders first, their Transfers, and when it ended."""

    def __init__(self, lanes, several_clocks=False, which=""):
        self.several_clocks, self.which = several_clocks, which
        self.zero = zero_time(lanes)
        receive(lanes, self.zero)
        send(lanes, self.zero)
        self.order(lanes)
        for lane in self.lanes:
            lane.joined = [t - self.zero for t in lane.joined]
            lane.dropped = [(t - self.zero, *rest) for t, *rest in lane.dropped]
            lane.complete = None if lane.complete is None else lane.complete - self.zero
        transfers = [transfer.end for lane in self.lanes for transfer in lane.fetched[-1:] + lane.sent[-1:]]
        self.end = max(transfers + [lane.complete for lane in self.lanes if lane.fetched and lane.complete is not None])
        self.chunks = {transfer.chunk for lane in self.lanes for transfer in lane.fetched + lane.sent}
        self.size = max((lane.size for lane in self.lanes if lane.size), default=None)

    def order(self, lanes):
        """Leave out lanes that moved nothing and never were peers (a tracker), and number the rest: seeders first, then by name."""
        kept = [index for index, lane in enumerate(lanes) if lane.fetched or lane.sent or lane.joined or lane.complete is not None]
        kept.sort(key=lambda index: (not lanes[index].is_seeder(), natural(lanes[index].name)))
        place = {old: new for new, old in enumerate(kept)}
        self.lanes = [lanes[index] for index in kept]
        for lane in self.lanes:
            lane.fetched = [transfer._replace(source=place[transfer.source], to=place[transfer.to]) for transfer in lane.fetched]
            lane.sent = [transfer._replace(source=place[transfer.source], to=place.get(transfer.to)) for transfer in lane.sent]


def read_run(paths, number=None):
    """The Run that these files describe: the last one, or the one with this number, counted from 1."""
    files = [lanes for path, name in zip(paths, names_of(paths)) if (lanes := read_lanes(path, name))]
    know_offsets(files)
    runs = [run for run in runs_in(files) if any(lane.fetched or lane.sent for lane in run)] or [[]]
    if number is not None and not 1 <= number <= len(runs):
        raise ending.Failure(f"expected --run from 1 to {len(runs)}, got {number}: that is how many runs these files tell of")
    number = number or len(runs)
    chosen = runs[number - 1]
    offsets = [lane.offset for lane in chosen]
    several_clocks = bool(chosen) and max(offsets) - min(offsets) > SAME_CLOCK
    if several_clocks:
        for lane in chosen:
            shifted(lane, lane.offset)
    which = f"run {number} of the {len(runs)} that these files tell of{', the last' * (number == len(runs))}; --run N shows another" if len(runs) > 1 else ""
    return Run([joined_up(mine) for lanes in files if (mine := [lane for lane in chosen if lane.file == lanes[0].file])], several_clocks, which)


# Intervals.


def busy(transfers, low, high):
    """Seconds between `low` and `high` during which at least one of the transfers was under way."""
    return sum(end - begin for begin, end in merged(transfers, low, high))


def all_timed(transfers):
    return all(transfer.timed for transfer in transfers)


def merged(transfers, low, high):
    """The spans between `low` and `high` during which something was under way, in order, none touching the next."""
    spans = []
    for begin, end in sorted((max(low, transfer.begin), min(high, transfer.end)) for transfer in transfers):
        if end <= begin:
            continue
        if spans and begin <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([begin, end])
    return spans


def gaps(transfers, low, high):
    """The spans between `low` and `high` during which nothing was under way, the longest first."""
    edges = [low] + [edge for span in merged(transfers, low, high) for edge in span] + [high]
    found = [(begin, end) for begin, end in zip(edges[::2], edges[1::2]) if end > begin]
    return sorted(found, key=lambda gap: gap[0] - gap[1])


def down_window(lane, run):
    """The time in which a leecher could have downloaded, as (begin, end): since it joined, until it was complete."""
    return max(0.0, min(lane.joined, default=0.0)), run.end if lane.complete is None else max(0.0, lane.complete)


def up_window(lane, run):
    """The time in which a peer could have uploaded, as (begin, end): since it held a chunk, until nobody missed one."""
    return max(0.0, lane.fetched[0].end if lane.fetched else min(lane.joined, default=0.0)), run.end


# Summary.


def human(size):
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def total(transfers):
    return sum(transfer.size for transfer in transfers)


def count(chunks):
    """1 chunk, 2 chunks."""
    return f"{len(chunks)} chunk{'s' * (len(chunks) != 1)}"


def idle(transfers, window):
    """(seconds of a window during which nothing was under way, its length); None if it never opened, or if beginnings are unknown."""
    low, high = window
    return (high - low - busy(transfers, low, high), high - low) if high > low and all_timed(transfers) else None


def show_idle(found):
    return "-" if found is None else f"{found[0]:.2f} s {100 * found[0] / found[1]:3.0f} %"


def state(lane):
    if not lane.has_file:
        return "no events"
    if lane.is_seeder():
        return "seeder"
    return "never" if lane.complete is None else f"{lane.complete:.2f} s"


def summary_row(lane, run):
    """A lane's row of the table, as strings."""
    down = show_idle(idle(lane.fetched, down_window(lane, run))) if lane.has_file and not lane.is_seeder() else "-"
    sources = len({transfer.source for transfer in lane.fetched})
    used = ""
    if (lane.limit or lane.uplink) and run.end > up_window(lane, run)[0]:
        used = f"{100 * total(lane.sent) / (lane.limit or lane.uplink) / (run.end - up_window(lane, run)[0]):.0f} %"
    return [lane.name, state(lane), human(total(lane.fetched)), str(sources or "-"), human(total(lane.sent)), down,
            show_idle(idle(lane.sent, up_window(lane, run))), used]


def know_uplinks(run, spec):
    """Note the rate of each lane's uplink; the last number of its address is the number of its host."""
    for lane in run.lanes:
        hosts = [match[1] for address in lane.listening if (match := re.match(rf"{re.escape(links.NETWORK)}\.(\d+):", address))]
        if hosts and spec.of(int(hosts[0])).up < float("inf"):
            lane.uplink = spec.of(int(hosts[0])).up


def columns(rows):
    """Lines of a table: the first column is aligned left, the others right; empty columns are left out."""
    rows = list(zip(*(column for column in zip(*rows) if any(column[1:]))))
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip() for row in rows]


def totals(run):
    """Lines about the whole swarm."""
    arrived = sum(total(lane.fetched) for lane in run.lanes)
    seeded = [transfer for lane in run.lanes if lane.is_seeder() for transfer in lane.sent]
    useful = total(transfer for transfer in seeded if not transfer.duplicate)
    again = [transfer for lane in run.lanes for transfer in lane.sent if transfer.duplicate]
    strangers = [transfer for lane in run.lanes for transfer in lane.sent if transfer.to is None]
    files = f", {total(seeded) / run.size:.2f} files" if run.size else ""
    size = human(run.size) if run.size else "size unknown: nobody was complete"
    share = f"; {100 * useful / arrived:.0f} % of the {human(arrived)} that arrived came from them" if arrived else ""
    yield f"{count(run.chunks)}, {size}; {run.end:.2f} s from the first request to the end"
    yield f"seeders sent {human(total(seeded))}{files}{share}"
    yield f"duplicates: {count(again)}, {human(total(again))}, sent to peers that had them from elsewhere first"
    if strangers:
        yield f"{count(strangers)}, {human(total(strangers))}, went to peers whose events are not given"
    if run.several_clocks:
        yield "the files are of several machines, or of one that was started anew: times are wall times, as good as these clocks agree"
    if run.which:
        yield run.which


def slowest(run):
    """The leecher that became complete last, or never; None without leechers."""
    leechers = [lane for lane in run.lanes if lane.has_file and not lane.is_seeder()]
    return max(leechers, key=lambda lane: (lane.complete is None, lane.complete or -len(lane.fetched)), default=None)


def holders(run, lane, t):
    """The lanes that, at time t, held a chunk that this one lacked."""
    has = {transfer.chunk for transfer in lane.fetched if transfer.end <= t}
    found = []
    for other in run.lanes:
        if other is not lane:
            held = run.chunks if other.is_seeder() else {transfer.chunk for transfer in other.fetched if transfer.end <= t}
            if held - has:
                found.append(other)
    return found


def cause_idle(lane, run):
    """(seconds, line) about an idle downlink and its longest gap."""
    window = down_window(lane, run)
    found = idle(lane.fetched, window)
    if not found or not found[0]:
        return 0, ""
    low, high = gaps(lane.fetched, *window)[0]
    middle = (low + high) / 2
    there = holders(run, lane, middle)
    free = [other for other in there if not any(transfer.begin <= middle <= transfer.end for transfer in other.sent)]
    why = f"{len(there) or 'nobody'} had what it missed"
    if there and all(all_timed(other.sent) for other in there):
        why += f", {len(free)} of them with an idle uplink" if free else ", all of them busy with others"
    return found[0], f"nothing came for {found[0]:.2f} s in all; the longest gap was {high - low:.2f} s, from {low:.2f} s on: {why}"


def cause_source(lane, run):
    """(seconds, line) about the source that took the most time, if it was slow."""
    rates = [transfer.size / (transfer.end - transfer.begin) for other in run.lanes for transfer in other.fetched if transfer.end > transfer.begin]
    times = {}
    for transfer in lane.fetched:
        if transfer.timed:
            times.setdefault(transfer.source, []).append(transfer)
    slow = []
    for source, transfers in times.items():
        seconds = sum(transfer.end - transfer.begin for transfer in transfers)
        rate = total(transfers) / seconds if seconds else float("inf")
        if rates and rate * SLOW_SOURCE < statistics.median(rates):
            slow.append((seconds, f"{run.lanes[source].name} was a slow source: {seconds:.2f} s for {count(transfers)}, "
                                  f"{human(rate)}/s against a median of {human(statistics.median(rates))}/s"))
    return max(slow, default=(0, ""))


def cause_last(lane, run):
    """(seconds, line) about the wait for the last chunk."""
    if len(lane.fetched) < 2 or not all_timed(lane.fetched):
        return 0, ""
    last, before = lane.fetched[-1], lane.fetched[-2]
    usual = statistics.median(transfer.end - transfer.begin for transfer in lane.fetched)
    wait = last.end - before.end
    if wait < 2 * usual:
        return 0, ""
    return wait, (f"its last chunk came {wait:.2f} s after the one before, from {run.lanes[last.source].name}; "
                  f"{usual:.2f} s is usual for a whole exchange")


def cause_late(lane, run):
    low, _ = down_window(lane, run)
    return low, f"it joined {low:.2f} s after the first request of the swarm"


def causes(lane, run):
    """Lines that say where a peer's time went, the largest loss first."""
    low, high = down_window(lane, run)
    found = sorted((cause(lane, run) for cause in (cause_late, cause_idle, cause_source, cause_last)), reverse=True)
    lines = [line for seconds, line in found if seconds > NOTABLE * max(high, run.end / 10)]
    if lane.complete is None:
        missing = len(run.chunks) - len({transfer.chunk for transfer in lane.fetched})
        last = f"its last came at {lane.fetched[-1].end:.2f} s" if lane.fetched else "none came"
        lines.insert(0, f"it was never complete: {missing} of {count(run.chunks)} missing; {last}")
    for t, neighbor, reason in lane.dropped[:3]:
        lines.append(f"it lost its neighbor {neighbor} at {t:.2f} s: {reason[:100]}")
    return lines or ["no single cause: no wait, no source and no gap took more than a small part of it"]


def summary(run):
    """All lines for stdout."""
    header = ["peer", "complete", "down", "sources", "up", "downlink idle", "uplink idle", "of its limit"]
    lines = columns([header] + [summary_row(lane, run) for lane in run.lanes]) + ["", *totals(run)]
    lane = slowest(run)
    if lane is not None:
        done = sorted(other.complete for other in run.lanes if not other.is_seeder() and other.complete is not None)
        beside = f"; the median is {statistics.median(done):.2f} s" if len(done) > 1 else ""
        lines += ["", f"the last: {lane.name}, {'never complete' if lane.complete is None else f'complete at {lane.complete:.2f} s'}{beside}"]
        lines += [f"  {line}" for line in causes(lane, run)]
    return lines


# The picture of bars: each transfer one bar, at its receiver and at its sender.


def stack(transfers):
    """(row of each transfer, number of rows), so that no two in one row overlap; `transfers` in any order."""
    rows, free = {}, []
    for transfer in sorted(transfers, key=lambda transfer: (transfer.begin, transfer.end)):
        row = next((row for row, end in enumerate(free) if end <= transfer.begin), len(free))
        free[row:row + 1] = [transfer.end]
        rows[transfer] = row
    return rows, max(1, len(free))


def colour(lane, run):
    """The series of a lane: its own while there are enough; then seeders share one, and leechers repeat the others."""
    if len(run.lanes) <= COLOURS:
        return lane
    return 0 if run.lanes[lane].is_seeder() else 1 + lane % (COLOURS - 1)


def tip(transfer, run):
    """The text shown when a bar is pointed at."""
    names = [run.lanes[lane].name if lane is not None else "a peer without events" for lane in (transfer.source, transfer.to)]
    seconds = transfer.end - transfer.begin
    when = f"{transfer.begin:.3f} – {transfer.end:.3f} s" if transfer.timed else f"until {transfer.end:.3f} s"
    rate = f", {human(transfer.size / seconds)}/s" if seconds else ""
    again = "; it had it already" if transfer.duplicate else ""
    return f"chunk {transfer.chunk}: {names[0]} → {names[1]}{again}; {when}; {human(transfer.size)}{rate}"


def draw_bars(picture, plot, run, transfers, partner, top, height):
    """The transfers of one half lane, stacked where they overlap. A bar with enough room shows its `partner`: source or to."""
    rows, count = stack(transfers)
    each = height / count
    for transfer, row in rows.items():
        x, series = plot.x(transfer.begin), colour(transfer.source, run)
        width = max(0.8, plot.x(transfer.end) - x - 0.5)
        style = {"opacity": 0.4} if transfer.duplicate else {}
        picture.add("rect", tip=tip(transfer, run), x=float(x), y=float(top + row * each), width=float(width),
                    height=float(max(0.8, each - 0.7)), class_=f"s{series}", **style)
        other = getattr(transfer, partner)
        if width > 22 and each > 10 and other is not None:
            picture.add("text", str(other), x=float(x + width / 2), y=top + row * each + each / 2 + 3.2, class_="on", text_anchor="middle")


def half_heights(lane, lanes):
    """Pixels for what a lane downloads, and for what it uploads; rows are higher if there are few lanes."""
    each = 13 if lanes <= 6 else 8 if lanes <= 12 else 6
    down, up = stack(lane.fetched)[1] if lane.fetched else 0, stack(lane.sent)[1] if lane.sent else 0
    return (min(11 * each, max(14, each * down)) if down else 0), (min(7 * each, max(14, each * up)) if up else 14)


def swatch(picture, run, index, middle):
    """A lane's colour and number, as in its bars and those of its partners."""
    picture.add("rect", x=16.0, y=middle - 6.5, width=18.0, height=13.0, class_=f"s{colour(index, run)}")
    picture.add("text", str(index), x=25.0, y=middle + 3.7, class_="on", text_anchor="middle")


def label(picture, run, index, top, height):
    """A lane's name, its number, its swatch and when it was complete."""
    lane = run.lanes[index]
    name = lane.name if len(lane.name) <= 15 else lane.name[:7] + "…" + lane.name[-7:]
    if height >= 30:
        swatch(picture, run, index, top + height / 2 - 7)
        picture.text(40, top + height / 2 - 3, name, tip=lane.name)
        became = state(lane) if lane.is_seeder() or not lane.has_file else "never complete" if lane.complete is None else "complete " + state(lane)
        picture.text(40, top + height / 2 + 13, became, class_="dim", style="font-size:11.5px")
    else:
        swatch(picture, run, index, top + height / 2)
        picture.text(40, top + height / 2 + 4, name, tip=f"{lane.name}: {state(lane)}", style="font-size:11.5px")


def draw_complete(picture, plot, lane, top, height):
    """A line at the time when the lane became complete."""
    if lane.complete is not None and lane.fetched:
        x = float(plot.x(lane.complete))
        picture.add("path", tip=f"{lane.name} complete at {lane.complete:.3f} s", d=f"M{x:.1f} {top - 2:.1f}v{height + 4:.1f}", class_="done")


def frame(run, bottom, what):
    """A picture with its heading, and the plot with the time axis under all lanes."""
    leechers = sum(not lane.is_seeder() for lane in run.lanes)
    seeders = len(run.lanes) - leechers
    picture = svg.Picture(WIDTH, bottom + 60, "Timeline of a swarm", what)
    picture.parts.append("<style>.done{stroke-width:2;stroke-dasharray:3 2;fill:none}.on{font-size:10px;fill:#fff;font-weight:600}</style>")
    picture.parts.append(f"<style>.done{{stroke:{svg.INK[0]}}}"
                         f"@media (prefers-color-scheme: dark){{.done{{stroke:{svg.INK[1]}}}.on{{fill:{svg.PAPER[1]}}}}}</style>")
    size = f"{human(run.size)} in " if run.size else ""
    picture.heading("Who sent which chunk to whom, and when",
                    f"{size}{count(run.chunks)}, {seeders} seeder{'s' * (seeders != 1)} and {leechers} leecher{'s' * (leechers != 1)}; {what}")
    plot = svg.Plot(picture, (LEFT, TOP - 10, RIGHT, bottom), (0, run.end * 1.005 or 1), (0, 1))
    plot.x_axis("time since the first request (s)", svg.ticks(0, run.end, 12), grid=True)
    return picture, plot


def draw_all_bars(run):
    """The picture with a bar for each transfer."""
    halves = [half_heights(lane, len(run.lanes)) for lane in run.lanes]
    bottom = TOP + sum(down + up + 14 for down, up in halves)
    picture, plot = frame(run, bottom, "each lane has what a peer downloads, from its request on, and below what it uploads;")
    repeat = "" if len(run.lanes) <= COLOURS else " (colours repeat)"
    picture.text(16, 64, f"a bar has its sender's colour{repeat} and the other peer's number; dashed line: complete; pale: duplicate."
                 " Point at a bar for chunk, time and rate.", class_="dim")
    top = TOP
    for index, (lane, (down, up)) in enumerate(zip(run.lanes, halves)):
        picture.add("line", x1=16.0, x2=float(RIGHT), y1=top - 7.0, y2=top - 7.0, class_="grid")
        label(picture, run, index, top, down + up)
        for transfers, partner, word, begin, height in ((lane.fetched, "source", "down", top, down), (lane.sent, "to", "up", top + down + 3, up - 3)):
            draw_bars(picture, plot, run, transfers, partner, begin, height)
            if transfers:
                picture.text(LEFT - 8, begin + height / 2 + 3.5, word, class_="dim", text_anchor="end", style="font-size:10.5px")
        draw_complete(picture, plot, lane, top, down + up)
        top += down + up + 14
    return picture


# The picture of rates, for when so many transfers would make bars thinner than a pixel.


def binned(transfers, end, bins=BINS):
    """Bytes in each of `bins` equal parts of the time from 0 to `end`; a transfer's bytes are spread over its duration."""
    found, width = [0.0] * bins, end / bins or 1
    for transfer in transfers:
        first, last = (min(bins - 1, max(0, int(t / width))) for t in (transfer.begin, transfer.end))
        if first == last:
            found[first] += transfer.size
            continue
        each = transfer.size / (transfer.end - transfer.begin)
        for place in range(first, last + 1):
            begin, until = max(transfer.begin, place * width), min(transfer.end, (place + 1) * width)
            found[place] += each * max(0.0, until - begin)
    return found


def draw_columns(picture, plot, run, amounts, base, scale, series):
    """One path with a column for each part of the time; `base` is where each begins (pixels), `scale` is pixels per byte, negative for upwards."""
    step = run.end / len(amounts)
    pieces = []
    for place, amount in enumerate(amounts):
        if amount > 0:
            x, wide = plot.x(place * step), plot.x((place + 1) * step) - plot.x(place * step)
            pieces.append(f"M{x:.1f} {base[place]:.1f}v{amount * scale:.1f}h{wide:.1f}v{-amount * scale:.1f}z")
    if pieces:
        picture.add("path", d="".join(pieces), class_=f"s{series}")


def draw_tips(picture, plot, run, lane, series, top, height):
    """Invisible fields over a lane that show its rates when pointed at."""
    each = BINS // TIPS
    for field in range(TIPS):
        seeded, shared, up = (sum(amounts[field * each:(field + 1) * each]) for amounts in series)
        begin, end = field * run.end / TIPS, (field + 1) * run.end / TIPS
        if seeded or shared or up:
            rates = [human(amount / (end - begin)) + "/s" for amount in (seeded, shared, up)]
            picture.add("rect", tip=f"{lane.name}, {begin:.2f} – {end:.2f} s: down {rates[0]} from seeders, {rates[1]} from leechers; up {rates[2]}",
                        x=float(plot.x(begin)), y=float(top), width=float(plot.x(end) - plot.x(begin)), height=float(height), fill_opacity=0)


def rates_of(lane, run):
    """Bytes in each part of the time: from seeders, from leechers, sent."""
    seeded = [transfer for transfer in lane.fetched if run.lanes[transfer.source].is_seeder()]
    shared = [transfer for transfer in lane.fetched if not run.lanes[transfer.source].is_seeder()]
    return [binned(transfers, run.end) for transfers in (seeded, shared, lane.sent)]


def draw_all_rates(run):
    """The picture with each lane's rates over time: downloads above its middle line, uploads below."""
    height = 46 if len(run.lanes) <= 16 else 22
    bottom = TOP + height * len(run.lanes)
    series = [rates_of(lane, run) for lane in run.lanes]
    highest = sorted(amount for each in series for a, b, up in zip(*each) for amount in (a + b, up) if amount)
    most = highest[int(len(highest) * USUAL)]
    picture, plot = frame(run, bottom, "above a lane's middle line its downloads, below it its uploads;")
    picture.text(16, 64, f"half a lane is {human(most / (run.end / BINS))}/s, more than that is cut off. "
                 "Point at a lane for its rates; the dashed line: complete.", class_="dim")
    for row, text in enumerate(("from seeders", "from leechers", "uploads")):
        picture.add("rect", x=LEFT + 130.0 * row, y=80.0, width=12.0, height=12.0, class_=f"s{row}")
        picture.text(LEFT + 130 * row + 18, 91, text)
    scale = (height / 2 - 2) / most
    for index, (lane, (seeded, shared, up)) in enumerate(zip(run.lanes, series)):
        top = TOP + height * index
        middle = top + height / 2
        picture.text(16, middle + 4, lane.name[:20], tip=f"{lane.name}: {state(lane)}", style="font-size:11.5px")
        low = [min(amount, most) for amount in seeded]
        draw_columns(picture, plot, run, low, [middle] * BINS, -scale, 0)
        over = [min(amount, most - under) for amount, under in zip(shared, low)]
        draw_columns(picture, plot, run, over, [middle - under * scale for under in low], -scale, 1)
        draw_columns(picture, plot, run, [min(amount, most) for amount in up], [middle] * BINS, scale, 2)
        picture.add("line", x1=float(LEFT), x2=float(RIGHT), y1=float(middle), y2=float(middle), class_="axis", stroke_opacity=0.5)
        draw_complete(picture, plot, lane, top + 2, height - 4)
        draw_tips(picture, plot, run, lane, (seeded, shared, up), top, height)
    return picture


def draw(run):
    """The picture of a run: bars, or rates if there are too many of them."""
    transfers = sum(len(lane.fetched) + len(lane.sent) for lane in run.lanes)
    return draw_all_rates(run) if transfers > MANY else draw_all_bars(run)


# Main.


def main():
    parser = ending.Arguments(prog="timeline.py",
                              description="Draw who sent which chunk to whom when, from --events files, and say why a download was slow.")
    parser.add_argument("events", nargs="+", metavar="EVENTS", help="files that peers and the tracker wrote with --events")
    parser.add_argument("--out", default="timeline.svg", metavar="FILE", help="the picture (default: %(default)s)")
    parser.add_argument("--links", type=links.parse_links, metavar="SPEC", help="the links on which it ran, as in lab/links.py")
    parser.add_argument("--run", type=int, metavar="N", help="of several runs in the files, the N-th (default: the last)")
    args = parser.parse_args()
    run = read_run(args.events, args.run)
    if args.links:
        know_uplinks(run, args.links)
    print("\n".join(summary(run)), flush=True)
    try:
        draw(run).save(args.out)
    except OSError as error:
        raise ending.Failure(f"cannot write {text_in(args.out)}: {error.strerror}") from None
    print(f"\nwrote {text_in(args.out)}")


if __name__ == "__main__":
    ending.run(main)
