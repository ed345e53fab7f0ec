#!/usr/bin/env python3
"""A live map of a swarm: a row for each peer, a column for each chunk. It watches and takes no part.

    .venv/bin/python lab/tools/watch.py TRACKER:PORT           in the terminal, until Ctrl-C
    .venv/bin/python lab/tools/watch.py TRACKER:PORT --web     in a browser too; it prints the address
    .venv/bin/python lab/tools/watch.py TRACKER:PORT --once    one map, once everybody has answered
    .venv/bin/python lab/tools/watch.py TRACKER:PORT --until 9 until nine peers are complete, its seeder among them

It uses two of the five requests: Peer List with the tracker, and Chunks Query with each peer, asking
only for what is new (CQ-3). It never joins, so nobody is told that it is there, and any
implementation of lab/SPEC.md can be watched. Since it does not join, it is not told what the file is
either: it infers the size and number of chunks from the ids that peers list.

Reading order: constants - what is known - asking - the map as text - the map as a page - main.

Threads. `look` asks the tracker for the list; each listed peer has a thread (`follow`), so that a silent one holds
up nobody; with --web, one more serves, with one for each request. The main thread draws.
Lock. Watch.lock guards what is known, and is not held while asking or drawing.
"""

import collections
import contextlib
import http.server
import itertools
import json
import os
import sys
import textwrap
import threading
import time
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import peer  # noqa: E402  (after the path)
from messages_pb2 import Request, Response  # noqa: E402

EVERY_SECONDS = 0.5       # between two requests to the same program
ANSWER_SECONDS = 3.0      # silence after which a row says that there is no answer
RATE_SECONDS = 3.0        # over which a rate is measured
MAX_ROWS = 200            # peers that are asked, each with a thread; a longer list is cut, and the map says so
MAX_WIDTH = 100           # characters of a map; with more chunks, a cell stands for several
MIN_WIDTH = 10            # characters of a map beside its words; with less room, it gets its own line
WIDTH = 120               # characters of a line if stdout is not a terminal
PLAIN_SECONDS = 5.0       # between two maps if stdout is not a terminal
LOCAL = "127.0.0.1"       # the page is private to this machine
GLYPHS = "·░▒▓█", ".:+*#"    # a cell's share: none, up to a third, up to two, less than all, all; without UTF-8
PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watch.html")


# What is known.


class Row:
    """One peer, as far as it has said."""

    def __init__(self, address):
        self.address = address
        self.known = 0           # how many ids it has listed on this connection; only its thread uses this
        self.held = set()        # chunk ids that it has listed
        self.trouble = "not asked yet"
        self.history = collections.deque(maxlen=30)  # (when, how many it held): for the rate
        self.listed = True

    def rate(self, now):
        """Chunks per second, over the last RATE_SECONDS."""
        recent = [(at, count) for at, count in self.history if now - at <= RATE_SECONDS]
        if len(recent) < 2:
            return 0.0
        return max(0, recent[-1][1] - recent[0][1]) / max(now - recent[0][0], 0.1)


class Seen(NamedTuple):
    """One peer at one moment."""

    address: str
    held: set      # chunk ids; never changed but replaced by a new set
    rate: float    # chunks a second
    trouble: str   # why it does not answer; "" if it does


class Swarm(NamedTuple):
    """Everything at one moment."""

    peers: list        # Seen
    ids: list          # of all chunks, as far as is known
    size: int          # bytes of a chunk; None with fewer than two ids
    passed_over: int   # listed peers beyond MAX_ROWS
    trouble: str       # why the tracker does not answer; "" if it does

    def here(self):
        """The peers that answer; the chunks of the others are of no use to anybody."""
        return [one for one in self.peers if not one.trouble]

    def copies(self):
        """Chunk id -> how many peers hold it, of those that answer."""
        count = collections.Counter()
        for one in self.here():
            count.update(one.held)
        return count

    def complete(self, one):
        return bool(self.ids) and not one.trouble and one.held.issuperset(self.ids)


def chunk_ids(lists):
    """(bytes of a chunk, ids of all chunks), from the ids that were listed; no size from fewer than two.

    The smallest gap is the chunk size. If that made more chunks than a file can have, some peer lists false
    ids; then the most frequent gap is taken, and ids that do not fit are left out.
    """
    ids = sorted(set().union(*lists))
    gaps = [after - before for before, after in itertools.pairwise(ids)]
    if not gaps:
        return None, ids
    size = min(gaps)
    if ids[-1] // size >= peer.MAX_CHUNKS:
        size = collections.Counter(gaps).most_common(1)[0][0]
        ids = [chunk_id for chunk_id in ids if chunk_id % size == 0 and chunk_id // size < peer.MAX_CHUNKS] or [0]
    return size, list(range(0, ids[-1] + 1, size))


# Asking.


class Watch:
    """Everything that is known of one swarm, kept up to date by threads; SPEC PL-2, CQ-2 to CQ-4."""

    def __init__(self, tracker, every=EVERY_SECONDS):
        self.tracker, self.every = tracker, every
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # announces an answer, or the lack of one
        self.complete = set()  # addresses of peers that were complete, even if they have left; main thread only
        # guarded by lock:
        self.rows = {}        # address -> Row
        self.passed_over = 0  # listed, but beyond MAX_ROWS
        self.trouble = None   # with the tracker; None if it was not asked yet, "" if all is well
        self.answered = False  # whether anything answers there, even if it is not a tracker

    def ask(self, link, kind, limit, make_request):
        """The answer to make_request(), of the type `kind`, in at most `limit` bytes; OSError, ProtocolError."""
        while True:
            again = link.answers > 0  # dial anew, once, if it takes one request per connection
            try:
                link.send(make_request())
                answer = peer.parse(Response, link.receive(limit))
                break
            except ConnectionError:
                link.close()
                if not again:
                    raise
        if answer.WhichOneof("type") != kind:
            raise peer.ProtocolError(f"refused: {peer.show_name(answer.bad.reason)[:40]}" if answer.HasField("bad") else "answers something else")
        return getattr(answer, kind)

    def look(self):
        """A thread that keeps asking the tracker for the list."""
        with contextlib.closing(peer.Link(self.tracker, ANSWER_SECONDS)) as link:
            while True:
                try:
                    self.listed(self.ask(link, "peer_list", peer.MAX_ANSWER, lambda: Request(peer_list=Request.PeerList())).addresses)
                except (OSError, peer.ProtocolError) as trouble:
                    with self.lock:
                        ended = isinstance(trouble, ConnectionError) and link.round_trip > 0  # and not refused
                        self.answered |= ended or isinstance(trouble, peer.ProtocolError)
                    self.told(self, trouble)
                    link.close()
                time.sleep(self.every)

    def listed(self, addresses):
        """Apply a peer list: new peers get a row and a thread, and peers that are gone lose theirs."""
        listed = {}
        for text in addresses:
            try:
                address = peer.parse_ip_address(text)
                listed[peer.format_address(address)] = address
            except ValueError:
                continue  # anything but an address is skipped [PL-4]
        with self.changed:
            for name in self.rows.keys() - listed.keys():
                self.rows.pop(name).listed = False
            new = [name for name in listed if name not in self.rows]
            room = MAX_ROWS - len(self.rows)
            for name in new[:room]:
                self.rows[name] = Row(name)
                threading.Thread(target=self.follow, args=(self.rows[name], listed[name]), daemon=True).start()
            self.passed_over = len(new[room:])
            self.trouble = ""
            self.changed.notify_all()

    def follow(self, row, address):
        """A thread that keeps asking one peer for its news, until it is no longer listed."""
        def request():
            if link.sock is None:
                row.known = 0  # what it said on an old connection may no longer be true [CQ-4]
            return Request(chunks_query=Request.ChunksQuery(known=row.known))

        with contextlib.closing(peer.Link(address, ANSWER_SECONDS)) as link:
            while row.listed:
                try:
                    self.heard(row, self.ask(link, "chunks_query", peer.MAX_LIST, request).chunk_ids)
                except (OSError, peer.ProtocolError) as trouble:
                    self.told(row, trouble)
                    link.close()
                time.sleep(self.every)

    def heard(self, row, ids):
        """Note the chunks that a peer lists, but no more than a file can have."""
        with self.changed:
            before = row.held if row.known else set()
            row.held = before.union(itertools.islice(ids, peer.MAX_CHUNKS - len(before)))
            row.known = len(row.held)
            row.history.append((time.monotonic(), len(row.held)))
            row.trouble = ""
            self.changed.notify_all()

    def told(self, who, trouble):
        """Note why the tracker, or a row, has not answered."""
        with self.changed:
            who.trouble = "no answer" if isinstance(trouble, TimeoutError) else getattr(trouble, "strerror", None) or str(trouble)
            self.changed.notify_all()

    def all_asked(self):
        """Whether the tracker and every row have answered or timed out; call with the lock held."""
        return self.trouble is not None and all(row.trouble != "not asked yet" for row in self.rows.values())

    def now(self):
        """The Swarm right now."""
        now = time.monotonic()
        with self.lock:
            peers = [Seen(row.address, row.held, row.rate(now), row.trouble) for row in self.rows.values()]
            passed_over, trouble = self.passed_over, self.trouble
        size, ids = chunk_ids(one.held for one in peers)
        return Swarm(peers, ids, size, passed_over, trouble)

    def complete_peers(self):
        """How many peers are complete, or were in an earlier call."""
        swarm = self.now()
        self.complete.update(one.address for one in swarm.peers if swarm.complete(one))
        return len(self.complete)


# The map as text.


def parts(ids, width):
    """The ids, in at most `width` parts of nearly equal length; each part is a cell of the map."""
    count = min(width, len(ids))
    return [ids[number * len(ids) // count:(number + 1) * len(ids) // count] for number in range(count)]


def cell(share, glyphs):
    """The character for the share of a part that is held; the first means none, the last all."""
    if share in (0, 1):
        return glyphs[-1 if share else 0]
    return glyphs[1 + int(share * (len(glyphs) - 2))]


def map_of(held, ids, width, glyphs):
    """A row's map: one character for each part."""
    return "".join(cell(sum(chunk_id in held for chunk_id in part) / len(part), glyphs) for part in parts(ids, width))


def rarest_of(copies, ids, width):
    """How many peers hold the rarest chunk of each part: 0 to 9, + for more."""
    return "".join(str(fewest) if fewest < 10 else "+" for fewest in (min(copies[chunk_id] for chunk_id in part) for part in parts(ids, width)))


def state(one, swarm):
    """What a row says beside its map."""
    if one.trouble:
        return one.trouble
    if swarm.complete(one):
        return f"{len(swarm.ids)} of {len(swarm.ids)}  complete"
    rate = f"  {peer.human(one.rate * swarm.size)}/s" if swarm.size and one.rate else ""
    return f"{len(one.held.intersection(swarm.ids))} of {len(swarm.ids)}{rate}"


def plural(count, word):
    return f"{count} {word}{'s' * (count != 1)}"


def headline(swarm, copies):
    """The swarm in one line."""
    here = swarm.here()
    words = [plural(len(here), "peer"), f"{sum(map(swarm.complete, here))} complete", plural(len(swarm.ids), "chunk")]
    if swarm.size:
        words[2] += f" of {peer.human(swarm.size)}"
    if swarm.ids:
        fewest = min(copies[chunk_id] for chunk_id in swarm.ids)
        words.append(f"the rarest held by {fewest or 'nobody'}")
    if len(here) < len(swarm.peers):
        words.append(f"{len(swarm.peers) - len(here)} without an answer")
    if swarm.passed_over:
        words.append(f"{swarm.passed_over} more not asked")
    if swarm.trouble:
        words.append(f"tracker: {swarm.trouble}")
    return ", ".join(words)


def render(swarm, width, height, glyphs):
    """The map as lines: at most `height` of them, none wider than `width`. A row takes one line, or two if its map would not fit."""
    copies, states = swarm.copies(), [state(one, swarm) for one in swarm.peers]
    names = max(len(one.address) for one in swarm.peers) if swarm.peers else 0
    beside = min(MAX_WIDTH, width - names - max(map(len, states), default=0) - 4)
    lines_each = 1 if beside >= min(MIN_WIDTH, len(swarm.ids)) else 2
    room = beside if lines_each == 1 else min(MAX_WIDTH, width)

    def row(name, cells, words=""):
        if lines_each == 1:
            return [f"{name:<{names}}  {cells}  {words}".rstrip()]
        return [f"{name} {' '.join(words.split())}".rstrip()[:width], cells]

    head = textwrap.wrap(headline(swarm, copies), width)
    rows = [row(one.address, map_of(one.held, swarm.ids, room, glyphs), words) for one, words in zip(swarm.peers, states)]
    last = row("copies", rarest_of(copies, swarm.ids, room)) if swarm.ids else []
    fit = (height - len(head) - len(last)) // lines_each
    if len(rows) > fit:
        fit = max(0, (height - len(head) - len(last) - 1) // lines_each)
        rows[fit:] = [[f"and {len(rows) - fit} more"]]
    return [*head, *(line for lines in rows for line in lines), *last]


# The map as a page. watch.html draws it; what it draws comes twice a second, as JSON.


def as_json(swarm):
    """What the page draws. A row's `held` are hexadecimal digits, the lowest first: chunk 0 is bit 0 of the first digit."""
    rows = []
    for one in swarm.peers:
        bits = peer.bits_of(index for index, chunk_id in enumerate(swarm.ids) if chunk_id in one.held)
        rows.append({"address": one.address, "held": f"{bits:x}"[::-1], "state": state(one, swarm), "silent": bool(one.trouble)})
    return json.dumps({"headline": headline(swarm, swarm.copies()), "chunks": len(swarm.ids), "rows": rows})


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET / with the page and GET /swarm with what it draws."""

    timeout = 10.0  # seconds of silence

    def do_GET(self):
        if self.path == "/":
            with open(PAGE, "rb") as page:
                self.give(200, "text/html; charset=utf-8", page.read())
        elif self.path == "/swarm":
            self.give(200, "application/json", as_json(self.server.watch.now()).encode())
        else:
            self.give(404, "text/plain; charset=utf-8", b"expected / or /swarm\n")

    def give(self, code, kind, body):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # the terminal shows the map


class Site(http.server.ThreadingHTTPServer):
    """Serves the page on this machine alone."""

    daemon_threads = True

    def __init__(self, watch, port):
        self.watch = watch
        try:
            super().__init__((LOCAL, port), Handler)
        except OSError as error:
            raise peer.Fatal(peer.EXIT_PORT, f"cannot listen on port {port}: {error.strerror}; choose another with --web") from None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a browser that went away


# Main.


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="watch.py", description="A live map of a swarm: rows are peers, columns are chunks. It watches and takes no part.")
    parser.add_argument("tracker", type=peer.tracker_address, metavar="TRACKER:PORT", help="where the swarm's tracker listens")
    parser.add_argument("--once", action="store_true", help="show one map, once everybody has answered or timed out, and end")
    parser.add_argument("--until", type=int, default=float("inf"), metavar="N", help="end when N peers are or were complete; a tracker's seeder is one of them")
    parser.add_argument("--web", type=peer.port_number, nargs="?", const=0, metavar="PORT", help="also serve the map to browsers of this machine")
    parser.add_argument("--every", type=peer.seconds_above_zero, default=EVERY_SECONDS, metavar="S",
                        help="seconds between two requests to each peer (default: %(default)s)")
    return parser.parse_args(argv)


def first_answers(watch, tracker):
    """Wait until everybody has answered once or timed out.

    Like peer.py, it waits for a tracker that is not there yet. Fatal if none comes, or if it is not a tracker.
    """
    where = peer.format_address(tracker)
    until, said = time.monotonic() + peer.TRACKER_SECONDS, False
    with watch.changed:
        watch.changed.wait_for(lambda: watch.trouble is not None)
        while watch.trouble:
            left = until - time.monotonic()
            if watch.answered or left <= 0:
                raise peer.Fatal(peer.EXIT_NO_TRACKER, f"expected a tracker at {where}, got: {watch.trouble}; is it running?")
            if not said:
                warn(f"waiting {peer.TRACKER_SECONDS:g} s for a tracker at {where}: {watch.trouble}")
                said = True
            watch.changed.wait(left)
        watch.changed.wait_for(watch.all_asked)


def warn(line):
    """Print a line for people, apart from the map."""
    with contextlib.suppress(OSError, AttributeError):  # nobody reads stderr, or it is closed
        print(f"watch.py: {line}", file=sys.stderr, flush=True)


def drawn_over(stream):
    """Whether a stream is a terminal that can overwrite the last map."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def size_of_terminal():
    """The current (columns, lines); COLUMNS and LINES may be outdated."""
    try:
        width, height = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return WIDTH, MAX_ROWS * 2
    return width or WIDTH, height or MAX_ROWS * 2  # 0 means that it does not know


def show(watch, screen, glyphs, again):
    """Draw the map: on a terminal over the last one, elsewhere below it."""
    width, height = size_of_terminal()
    if screen.terminal:
        lines = render(watch.now(), width, height - 1, glyphs)
        screen.write(("" if again else "\x1b[2J") + "\x1b[H" + "".join(f"\x1b[K{line}\n" for line in lines) + "\x1b[J")
    else:
        lines = render(watch.now(), width, MAX_ROWS * 3, glyphs)
        screen.write("\n" * again + "\n".join(lines) + "\n")


def run():
    """The program. Returns the exit code."""
    args = parse_arguments()
    screen = peer.Screen(False)
    screen.terminal = drawn_over(sys.stdout)
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    glyphs = GLYPHS[0 if encoding.startswith("utf") else 1]
    watch = Watch(args.tracker, args.every)
    threading.Thread(target=watch.look, daemon=True).start()
    first_answers(watch, args.tracker)
    if args.web is not None:
        screen.say(f"the map is at http://{LOCAL}:{Site(watch, args.web).server_address[1]}/")
    again = False
    while not screen.quiet:
        show(watch, screen, glyphs, again)
        if args.once or watch.complete_peers() >= args.until:
            break
        again = True
        next_map = time.monotonic() + (0 if screen.terminal else PLAIN_SECONDS)
        while time.sleep(args.every) or time.monotonic() < next_map and watch.complete_peers() < args.until:
            pass  # a peer that leaves as soon as it is complete must still be seen
    return peer.EXIT_COMPLETE


if __name__ == "__main__":
    peer.run_to_exit("watch.py", run)
