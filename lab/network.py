"""A network in simulated time, for lab/simulate.py --links: queues, rates, delays, losses, and TCP as it starts and slows down.

Links are those of lab/links.py, and packets pass the same queues in the same order. Those parts of TCP are simulated
that decide how long a chunk takes, as in Linux: ten segments at first and twice as many after each round trip, until
HyStart sees a queue grow or a packet is lost. After a loss the window is three tenths smaller, does not grow until
the loss is repaired, and then grows as in cubic. Bytes are read in the order in which they were written: one lost segment
holds up all that follow. What is not acknowledged is sent again, first the last segment (a tail loss probe), then all.
Left out: connection set-up, delayed acknowledgements beyond every second segment, pacing, and the
receiver's window; and TCP is always cubic, whatever the links say about `tcp`.

Reading order: constants - the network - a connection. `after` is the clock's: after(seconds, function, *arguments).
"""

import collections
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import links  # noqa: E402  (after the path)

HEADERS = 52            # bytes of IP and TCP in each packet
FIRST_WINDOW = 10       # segments in flight at first
LEAST_WAIT = 0.2        # seconds without an acknowledgement after which a packet is taken for lost
DUPLICATES = 3          # this many later packets must arrive before an earlier one is taken for lost
PROBE_WAIT = 0.002      # plus two round trips, after which the last segment is sent once more
BETA, CUBIC = 0.7, 0.4  # cubic: the share of the window left after a loss; how fast it grows
FRIENDLY = 3 * (1 - BETA) / (1 + BETA)  # segments per round trip by which it grows at least, like Reno
HYSTART_WINDOW = 16     # segments; with a smaller window, slow start goes on
HYSTART_LATER = 0.004, 0.016  # seconds, at least and at most: a queue grows when all round trips are longer by this
HYSTART_SAMPLES = 8     # of them
HYSTART_TRAIN = 0.002   # seconds between acknowledgements of one train


class Network:
    """The queues of all hosts. now() tells the time."""

    def __init__(self, spec, hosts, after, now, rng):
        self.links = [spec.of(host) for host in range(1, hosts + 1)]
        self.up_free, self.down_free = [0.0] * hosts, [0.0] * hosts
        self.after, self.now, self.rng = after, now, rng
        self.sent = [0] * hosts  # bytes

    def packet(self, source, to, size, then, *arguments):
        """Send a packet; then(*arguments) when it arrives, if it does."""
        link, now = self.links[source], self.now()
        begin = max(now, self.up_free[source])
        if links.is_full(link, link.up, begin - now):
            return
        gone = self.up_free[source] = begin + size / link.up
        self.sent[source] += size
        if not link.loss or self.rng.random() >= link.loss:
            self.after(gone + link.delay - now, self.arrive, to, size, then, arguments)

    def arrive(self, to, size, then, arguments):
        """At the receiver's downlink."""
        link, now = self.links[to], self.now()
        begin = max(now, self.down_free[to])
        if links.is_full(link, link.down, begin - now):
            return
        self.down_free[to] = begin + size / link.down
        if self.down_free[to] <= now:
            then(*arguments)
        else:
            self.after(self.down_free[to] - now, then, *arguments)

    def round_trip(self, one, other):
        """Seconds, without time spent in queues."""
        return self.links[one].delay + self.links[other].delay


class Chunk:
    """Bytes written to a connection: left() is called when the rest fits into the socket's buffer, came() when all is there."""

    def __init__(self, segments, left, came):
        self.unsent = self.missing = segments
        self.left, self.came = left, came


class Segment:
    """A segment in flight."""

    __slots__ = ("chunk", "at", "came", "again")

    def __init__(self, chunk, at, again):
        self.chunk, self.at = chunk, at  # when it was sent
        self.came = False
        self.again = again               # it was lost before


class Connection:
    """One direction of a TCP connection. Windows are in segments."""

    def __init__(self, network, source, to, unsent):
        self.network, self.source, self.to = network, source, to
        self.segment = network.links[source].mtu - HEADERS
        self.buffer = unsent // self.segment   # segments that may wait in the socket (TCP_NOTSENT_LOWAT)
        self.window, self.threshold = float(FIRST_WINDOW), math.inf
        self.chunks = collections.deque()      # chunks with unsent segments
        self.unread = collections.deque()      # chunks that the receiver does not have whole
        self.lost = collections.deque()        # for each segment to be sent again, its chunk
        self.out = {}                          # number -> Segment
        self.number = 0                        # of the next segment
        self.recover = self.holes = 0          # a loss is repaired once that number, and this many segments, have arrived
        self.shortest = self.trip = network.round_trip(source, to)  # seconds; and a moving average
        self.sent_at = self.heard_at = 0.0     # the last segment, the last acknowledgement
        self.waiting = self.probed = False     # a timer is set; the last segment was sent once more
        self.odd = False
        self.most = 0                          # segments in flight at once, at most, in this round trip
        self.round_end, self.round_at = 0, 0.0  # the number that ends it, and when it began
        self.train_at, self.fastest, self.samples = 0.0, math.inf, 0  # of HyStart
        self.peak = 0.0                        # of cubic: the window at the last loss,
        self.since = None                      # and when growth after it began

    def write(self, size, left, came):
        self.wake(self.network.now())
        chunk = Chunk(math.ceil(size / self.segment), left, came)
        self.chunks.append(chunk)
        self.unread.append(chunk)
        self.pump()

    def wake(self, now):
        """An idle connection loses half of its window with each timeout."""
        if self.out or not self.number:
            return
        rest = now - self.sent_at
        if self.since is not None:
            self.since += rest
        if rest > self.timeout():
            self.threshold = max(self.threshold, 0.75 * self.window)
            self.window = max(self.window / 2 ** int(rest / self.timeout()), min(self.window, FIRST_WINDOW))

    def close(self):
        """The receiver is gone: nothing more is sent."""
        for chunk in self.chunks:
            if chunk.left:
                self.network.after(0.0, chunk.left)
        for each in (self.chunks, self.unread, self.lost, self.out):
            each.clear()

    def timeout(self):
        return LEAST_WAIT + self.trip

    def pump(self):
        """Send what the window allows."""
        while len(self.out) < int(self.window) and (self.lost or self.chunks):
            if self.lost:
                self.send(self.lost.popleft(), True)
                continue
            chunk = self.chunks[0]
            chunk.unsent -= 1
            if not chunk.unsent:
                self.chunks.popleft()
            self.send(chunk, False)
            if chunk.left and chunk.unsent <= min(self.buffer, self.window):  # the kernel's buffer is two windows
                left, chunk.left = chunk.left, None
                self.network.after(0.0, left)
        self.watch()

    def send(self, chunk, again):
        self.sent_at = self.network.now()
        self.out[self.number] = Segment(chunk, self.sent_at, again)
        self.network.packet(self.source, self.to, self.segment + HEADERS, self.arrived, self.number)
        self.number += 1
        self.most = max(self.most, len(self.out))

    def arrived(self, number):
        """At the receiver: acknowledge every second segment, what follows a gap, and the last segment of a chunk."""
        segment = self.out.get(number)
        if segment is None or segment.came:
            return  # it was taken for lost, and has already come again
        segment.came = True
        segment.chunk.missing -= 1
        self.odd = not self.odd
        gap = not self.out[next(iter(self.out))].came
        if gap or not self.odd or not segment.chunk.missing or self.window < 2:
            self.network.packet(self.to, self.source, HEADERS, self.acknowledged, number)
        while self.unread and not self.unread[0].missing:
            self.unread.popleft().came()

    def acknowledged(self, number):
        """At the sender: segments that arrived make room; those overtaken by later ones are lost."""
        now, recovering = self.network.now(), self.recovering()
        if number in self.out:
            self.hear(number, now - self.out[number].at, now)
        came, lost = [], []
        for other, segment in self.out.items():
            if other > number:
                break
            if segment.came:
                came.append(other)
            elif self.probed or other <= number - DUPLICATES:
                lost.append(other)
        for other in came:
            self.holes -= self.out.pop(other).again
        self.lose(lost, recovering)
        self.heard_at, self.probed = now, False
        if not self.recovering() and self.limited():
            self.grow(len(came), now)
        self.pump()

    def recovering(self):
        """Whether a loss is not repaired yet."""
        return self.holes > 0 or next(iter(self.out), self.number) < self.recover

    def limited(self):
        """Whether the window was what limited sending."""
        return self.window < 2 * self.most if self.window < self.threshold else self.most >= int(self.window)

    def hear(self, number, trip, now):
        """Use the time of a round trip: TCP's averages, and HyStart, which ends slow start before a queue is full."""
        self.shortest = min(self.shortest, trip)
        self.trip += (trip - self.trip) / 8
        if number >= self.round_end:
            self.round_end, self.round_at, self.train_at = self.number, now, now
            self.fastest, self.samples, self.most = math.inf, 0, len(self.out)
        if self.threshold < math.inf or self.window < HYSTART_WINDOW:
            return
        train = now - self.train_at <= HYSTART_TRAIN
        self.train_at = now if train else self.train_at
        self.fastest, self.samples = min(self.fastest, trip), self.samples + 1
        least, most = HYSTART_LATER
        later = self.shortest + min(max(self.shortest / 8, least), most)
        if (train and now - self.round_at > self.shortest / 2
                or self.samples > HYSTART_SAMPLES and self.fastest > later):
            self.threshold = self.window

    def lose(self, numbers, recovering):
        """Queue these segments to be sent again; the window shrinks only once for everything in flight."""
        if numbers and not recovering:
            self.shrink()
        for number in numbers:
            segment = self.out.pop(number)
            self.holes += not segment.again
            self.lost.append(segment.chunk)

    def shrink(self):
        self.peak = self.window * (1 + BETA) / 2 if self.window < self.peak else self.window
        self.since = None
        self.window = self.threshold = float(max(2, int(int(self.window) * BETA)))  # rounded down, and so less than BETA says
        self.recover = self.number

    def grow(self, count, now):
        """Double the window in each round trip; or let it grow with the cube of the time since the last loss."""
        if self.window < self.threshold:
            self.window += count
            return
        if self.since is None:
            self.since, self.friendly, self.origin = now, self.window, max(self.peak, self.window)
            self.climb = ((self.origin - self.window) / CUBIC) ** (1 / 3)  # seconds until it is back at the peak
        self.friendly += count * FRIENDLY / self.window
        target = self.origin + CUBIC * (now + self.shortest - self.since - self.climb) ** 3
        step = max(target - self.window, self.friendly - self.window, 0.01) / self.window
        self.window += count * min(max(step, 0 if self.peak else 0.05), 0.5)

    def watch(self):
        """Make sure that the last segments do not stay lost."""
        if self.out and not self.waiting:
            self.look()

    def look(self):
        """After too long a silence, send the last segment once more, and the next time all of them."""
        self.waiting = bool(self.out)
        if not self.out:
            return
        probe = 2 * self.trip + (PROBE_WAIT if len(self.out) > 1 else LEAST_WAIT)
        wait = self.timeout() if self.probed else min(probe, self.timeout())
        left = max(self.heard_at, self.sent_at) + wait - self.network.now()
        if left > 0:
            self.network.after(left + 1e-6, self.look)
            return
        if self.probed:
            self.start_again()
        else:
            self.probe()
        self.look()

    def probe(self):
        self.probed = True
        number, segment = next(reversed(self.out.items()))
        if segment.came:  # only the acknowledgement was lost
            self.sent_at = self.network.now()
            self.network.after(self.trip, self.acknowledged, number)
            return
        if not self.recovering():
            self.shrink()
        del self.out[number]
        self.holes += not segment.again
        self.send(segment.chunk, True)

    def start_again(self):
        """Timeout: everything in flight is taken for lost, and slow start begins anew."""
        self.lost.extend(segment.chunk for segment in self.out.values() if not segment.came)
        self.out.clear()
        self.shrink()
        self.window, self.holes, self.recover, self.probed = 1.0, 0, 0, False
        self.pump()
