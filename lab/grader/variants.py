#!/usr/bin/env python3
"""Grade the grader the other way round: programs that differ from the reference as lab/SPEC.md allows must not lose a point.

    make variants                        each alone in the stages that it touches, then each group together in all stages
    make variants ARGS=late_answers      some of them, by name, with what a student would read if they fail
    make variants ARGS=--together        only the groups, as in make check
    make variants ARGS=--list            list them

A variant is the reference with other constants, with some functions replaced, or with a few other words, in its own folder,
and is graded like a submission (gauntlet.py). The variants of a group are compatible, and are also graded as one program that
differs in all these ways at once. Group "careful" is late, small and patient; group "eager" asks often and remembers everything.

When one loses a point, either the test demands something that no clause says, or the clause that allows the difference is
missing: fix the test, or the page. Exit code: 0 all points; 1 something to fix; 2 wrong usage.

Reading order: what a variant is - the variants - verdicts - all of them.
"""

import pathlib
import sys
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "lab"))

import ending  # noqa: E402  (after the path)
import gauntlet  # noqa: E402
from stages import STAGES  # noqa: E402

ALL = tuple(stage.number for stage in STAGES)
LIMIT = 1500      # seconds for all, and for each grading too, so that no correct program runs out of time; a variant not graded by then fails
WORKERS = 4       # tests at a time in each grading


class Variant(typing.NamedTuple):
    """One difference. `old` occurs once in `program`, and `new` takes its place; without `old`, `new` is added after all functions."""

    name: str
    group: str     # "careful" or "eager": variants that fit into one program
    program: str   # "peer.py" or "tracker.py"
    stages: tuple  # stages whose tests may notice
    clauses: str   # clauses that allow it; "free" is the section What is free
    thought: str   # what its author had in mind
    new: str
    old: str = ""


# How a message is written, for variants that write it differently. send_message takes any object with SerializeToString.

WRITER = '''
WRITES = {"reversed": False, "packed": True, "unknown": False}
UNKNOWN = bytes.fromhex("9a 06 03 61 62 63  98 06 96 01  99 06 01 02 03 04 05 06 07 08  9d 06 01 02 03 04")


def number(value):
    return bytes([value & 0x7F | 0x80]) + number(value >> 7) if value > 0x7F else bytes([value])


def written(message):
    pieces, fields = [], message.ListFields()
    for field, value in reversed(fields) if WRITES["reversed"] else fields:
        many = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if many and field.type == field.TYPE_UINT64 and WRITES["packed"]:
            value, many = b"".join(map(number, value)), False
        for one in value if many else [value]:
            if isinstance(one, int):
                pieces.append(number(field.number << 3) + number(int(one)))
            else:
                content = written(one) if field.message_type else one.encode() if isinstance(one, str) else one
                pieces.append(number(field.number << 3 | 2) + number(len(content)) + content)
        pieces += [UNKNOWN] if WRITES["unknown"] else []
    return b"".join(pieces)


class Written:
    def __init__(self, message):
        self.message = message

    def SerializeToString(self):
        return written(self.message)


def send_message(sock, message, real=send_message):
    return real(sock, Written(message))
'''


def constant(**values):
    return "".join(f"{name} = {value}\n" for name, value in values.items())


VARIANTS = [
    # Messages.
    Variant("unpacked_lists", "careful", "peer.py", (4, 5, 6), "WF-11", "Each number has its tag.", 'WRITES["packed"] = False\n'),
    Variant("fields_in_the_other_order", "careful", "peer.py", ALL, "WF-11", "The last field is written first.", 'WRITES["reversed"] = True\n'),
    Variant("fields_of_its_own", "careful", "peer.py", ALL, "WF-11", "A later version tells more, in every wire type, also beside a chunk.", '''WRITES["unknown"] = True


def chunk_head(length, real=chunk_head):
    field = UNKNOWN + real(length)[8:]
    return struct.pack(">Q", len(field) + length) + field
'''),
    Variant("other_reasons", "eager", "peer.py", ALL, "free", "A reason is for people, in their language.", '''
def bad(code, reason):
    return Response(bad=Response.Bad(code=code, reason="Das geht nicht. \\u2603"))
'''),
    Variant("no_reasons", "careful", "peer.py", ALL, "free", "A code says enough.", '''
def bad(code, reason):
    return Response(bad=Response.Bad(code=code))
'''),
    Variant("further_fields_in_the_peer_list", "eager", "tracker.py", (3, 6, 7), "free", "Every asker is told file and lease again.", '''
def on_peer_list(self, request, sock):
    return Response(peer_list=Response.PeerList(addresses=self.addresses_for(sock), file=self.message, lease_ms=int(self.swarm.lease * 1000)))


Tracker.on_peer_list = on_peer_list
'''),
    # How bytes are sent and received.
    Variant("small_receives", "careful", "peer.py", ALL, "WF-2", "A thousand bytes at a time.", '''
def read_exactly(sock, count, deadline, real=read_exactly):
    return b"".join(real(sock, min(1000, count - at), deadline) for at in range(0, count, 1000))
'''),
    Variant("many_segments", "careful", "peer.py", ALL, "WF-2", "Answers leave in pieces of 500 bytes, chunks in pieces of 5,000.", '''
def send_exactly(sock, data, deadline, flags=0, real=send_exactly):
    size = 500 if len(data) < 10_000 else 5000
    for at in range(0, len(data), size):
        real(sock, data[at:at + size], deadline)
'''),
    Variant("small_segments_wait", "eager", "peer.py", ALL, "free", "TCP_NODELAY is for those in a hurry.", '''
def prepare(sock, wait, real=prepare):
    real(sock, wait)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
'''),
    Variant("late_answers", "careful", "peer.py", ALL, "free", "Every answer takes 50 ms.", '''
def answer(self, request, real=Connection.answer):
    time.sleep(0.05)
    return real(self, request)


Connection.answer = answer
'''),
    Variant("ipv4_only", "careful", "peer.py", (0, 1, 2, 3), "free", "IPv4 is enough here.", "socket.has_dualstack_ipv6 = lambda: False\n"),
    Variant("one_connection_for_each_request", "careful", "peer.py", (4, 5, 6, 7), "WF-4", "A connection is for one request, and then it is closed.", '''
def ask_and_take(self, neighbor, link, real=Peer.ask_and_take):
    before = neighbor.heard_at
    real(self, neighbor, link)
    if link.answers:
        link.close()
        neighbor.known, neighbor.heard = 0, False
    if neighbor.heard_at != before:
        time.sleep(0.1)  # a list was told, and perhaps there was nothing new


Peer.ask_and_take = ask_and_take
'''),
    Variant("keeps_the_connection_to_the_tracker", "eager", "peer.py", (1, 2, 3, 6, 7), "WF-3", "One connection for each kind of request.", '''
def ask_tracker(self, request, wait=None):
    links, kind = self.__dict__.setdefault("tracker_links", {}), request.WhichOneof("type")
    link = links.pop(kind, None) or Link(self.tracker, wait)
    try:
        link.send(request)
        response = parse(Response, link.receive(MAX_ANSWER))
    except (OSError, ProtocolError):
        again = link.answers
        link.close()
        if again:  # it was closed meanwhile
            return ask_tracker(self, request, wait)
        raise
    self.own_ip = plain_ip(link.sock.getsockname()[0])
    links[kind] = link
    return response


Peer.ask_tracker = ask_tracker
'''),
    # The tracker's lists, and what a peer says about itself.
    Variant("lists_in_any_order", "careful", "tracker.py", (1, 2, 3, 6), "free", "A list has no order.", '''
def addresses_for(self, sock, real=Tracker.addresses_for):
    import random
    found = real(self, sock)
    return random.sample(found, len(found))


Tracker.addresses_for = addresses_for
'''),
    Variant("announces_an_address_of_its_own", "careful", "peer.py", (1, 2), "JN-3", "It announces the address it believes it has.", '''
def listening_addr(self):
    return f"127.0.0.1:{self.server.port}"


Peer.listening_addr = listening_addr
'''),
    Variant("proofs_without_a_content_id", "eager", "peer.py", (2, 7), "AP-6", "The tracker knows what it distributes.", '''
def prove_without(self, request, wait=None, real=Peer.ask_tracker):
    request.active_proof.ClearField("content_id") if request.HasField("active_proof") else None
    return real(self, request, wait)


Peer.ask_tracker = prove_without
'''),
    Variant("proofs_at_a_third_exactly", "careful", "peer.py", (2, 6, 7), "AP-4", "Every third of the lease.", constant(PROOF_SHARE="1 / 3")),
    Variant("proofs_five_times_a_lease", "eager", "peer.py", (2, 6, 7), "AP-4", "More often is safer.", constant(PROOF_SHARE="0.2")),
    Variant("peer_list_three_times_a_second", "eager", "peer.py", (3, 6, 7), "PL-5", "The sooner a new peer is heard of, the better.",
            constant(REFRESH_SECONDS="0.3", PEER_LIST_SECONDS="0.3")),
    Variant("few_neighbors", "careful", "peer.py", (3, 4, 6, 7), "PL-4", "Twenty are enough.", constant(MAX_NEIGHBORS="20")),
    Variant("asks_for_the_list_when_it_is_complete", "eager", "peer.py", (2, 5, 6, 7), "PL-5", "It likes to know who is there.", '''
def look_now_and_then(self):
    while True:
        time.sleep(0.5)
        try:
            self.ask_tracker(Request(peer_list=Request.PeerList()))
        except (OSError, ProtocolError):
            pass


def completed(self, real=Peer.completed):
    real(self)
    threading.Thread(target=look_now_and_then, args=(self,), daemon=True).start()


Peer.completed = completed
'''),
    Variant("a_second_connection_to_each_neighbor", "eager", "peer.py", (4, 6, 7), "PL-4", "One more, in case it is needed.", '''
def fetch_from(self, neighbor, real=Peer.fetch_from):
    second = socket.socket()
    try:
        second.settimeout(CONNECT_SECONDS)
        second.connect(neighbor.address)
    except OSError:
        pass
    with second:
        return real(self, neighbor)


Peer.fetch_from = fetch_from
'''),
    # Chunks Query.
    Variant("cannot_wait_for_news", "careful", "peer.py", (4, 6, 7), "CQ-6", "It answers at once, whatever wait_ms says.", '''
def on_chunks_query(self, request, sock, real=Peer.on_chunks_query):
    request.ClearField("wait_ms")
    return real(self, request, sock)


Peer.on_chunks_query = on_chunks_query
'''),
    Variant("does_not_ask_to_wait", "eager", "peer.py", (4, 6, 7), "free", "It asks again after a pause.", '''
def send_without_wait(self, request, real=Link.send):
    request.chunks_query.ClearField("wait_ms") if request.HasField("chunks_query") else None
    return real(self, request)


Link.send = send_without_wait
'''),
    Variant("seldom_asks_for_news", "careful", "peer.py", (4, 6, 7), "SW-8", "Twice in a second, or a little less.", constant(NEWS_PAUSE="0.6")),
    Variant("often_asks_for_news", "eager", "peer.py", (4, 6, 7), "CQ-6", "Ten times in a second, or a little more.", constant(NEWS_PAUSE="0.1")),
    Variant("lists_the_last_chunks_first", "eager", "peer.py", (4, 5, 6), "CQ-2", "Chunks found on disk were verified from the end.", "reversed(list(indexes(held))))",
            "indexes(held))"),
    # Fetch Chunk, the side that gives.
    Variant("never_busy", "careful", "peer.py", (5, 6, 7), "FC-6", "Every asker waits for its turn, even if it need not.", '''
def on_fetch_chunk(self, request, sock, real=Peer.on_fetch_chunk):
    request.ClearField("busy_ok")
    return real(self, request, sock)


Peer.on_fetch_chunk = on_fetch_chunk
'''),
    Variant("two_upload_slots", "careful", "peer.py", (5, 6, 7), "FC-6", "Two at a time.", constant(UPLOAD_SLOTS="2")),
    Variant("thirty_upload_slots", "eager", "peer.py", (5, 6, 7), "free", "Everyone at once.", constant(UPLOAD_SLOTS="30")),
    Variant("busy_without_a_time_or_a_chunk", "eager", "peer.py", (5, 6, 7), "FC-7", "Busy is busy.", '''
def busy(self, index, real=Peer.busy):
    response = real(self, index)
    response.bad.ClearField("retry_ms")
    response.bad.ClearField("instead")
    return response


Peer.busy = busy
'''),
    Variant("closes_on_a_chunk_that_was_changed", "eager", "peer.py", (5, 7), "FC-13", "Its file is broken, so it ends the connection.", '''
def intact(self, index, real=Store.intact):
    if not real(self, index):
        raise ProtocolError("changed on disk")
    return True


Store.intact = intact
'''),
    # Fetch Chunk, the side that asks.
    Variant("never_allows_busy", "careful", "peer.py", (6, 7), "free", "It waits for its turn, as older programs do.", '''
def send_patiently(self, request, real=Link.send):
    request.fetch_chunk.ClearField("busy_ok") if request.HasField("fetch_chunk") else None
    return real(self, request)


Link.send = send_patiently
'''),
    Variant("ignores_what_is_named_instead", "eager", "peer.py", (6, 7), "FC-7", "It chooses itself.", '''
def refused_without_instead(self, neighbor, index, answer, real=Peer.refused):
    answer.ClearField("instead")
    return real(self, neighbor, index, answer)


Peer.refused = refused_without_instead
'''),
    Variant("long_pauses_when_told_busy", "eager", "peer.py", (6, 7), "FC-7", "Three quarters of a second, more or less.", constant(BUSY_SECONDS="(0.75, 1.0)", RETRY_SPREAD="(0.8, 1.2)")),
    Variant("one_request_at_a_time", "careful", "peer.py", (6, 7), "free", "It asks for a chunk once it has the previous one.", '''
def ahead(self, neighbor, link):
    return 1


Peer.ahead = ahead
'''),
    Variant("asks_again_for_what_was_refused", "eager", "peer.py", (6, 7), "FC-10", "The next time it may be there.", '''
def refused_for_now(self, neighbor, index, answer, real=Peer.refused):
    real(self, neighbor, index, answer)
    with self.lock:
        self.picker.add(neighbor.address, 1 << index)


Peer.refused = refused_for_now
'''),
    # The swarm.
    Variant("late_endgame", "careful", "peer.py", (6, 7), "SW-5", "A chunk is late after two and a half seconds.", constant(LATE_SECONDS="(2.5, 2.5)")),
    Variant("early_endgame", "eager", "peer.py", (6, 7), "SW-5", "A chunk is late after a tenth of a second.", constant(LATE_SECONDS="(0.1, 0.1)")),
    Variant("longer_pauses_before_it_calls_again", "careful", "peer.py", (6, 7), "SW-6", "A second and a quarter, then twice that.", constant(REDIAL_SECONDS="(1.25, 20.0)")),
    # Command line, files and what is printed.
    Variant("takes_two_seconds_to_start", "careful", "peer.py", ALL, "free", "A large runtime.", 'time.sleep(2 * (__name__ == "__main__"))\n'),
    Variant("a_tracker_takes_two_seconds_to_start", "careful", "tracker.py", ALL, "free", "A large runtime.", 'time.sleep(2 * (__name__ == "__main__"))\n'),
    Variant("a_content_id_in_capitals", "careful", "peer.py", (1,), "FD-4", "Hexadecimal digits are capitals.", '''
def say_in_capitals(self, line, real=Screen.say):
    real(self, "Content ID " + line[11:].upper() if line.startswith("content id ") else line)


Screen.say = say_in_capitals
'''),
    Variant("lines_with_a_prefix", "eager", "peer.py", ALL, "CL-1", "Each line has a level, where nothing says how it begins.", '''
def say_with_a_prefix(self, line, real=Screen.say):
    real(self, line if line.startswith(("complete", " ")) else "info: " + line)


Screen.say = say_with_a_prefix
'''),
    Variant("errors_in_other_words", "eager", "peer.py", ALL, "CL-13", "One line, but a different one.", '''
def __init__(self, code, line):
    Exception.__init__(self, f"error {code}, because: {line}")
    self.code = code


Fatal.__init__ = __init__
'''),
    Variant("seldom_tells_of_progress", "eager", "peer.py", (6, 7), "CL-18", "Once in twenty seconds is often enough.", constant(SHOW_SECONDS="(0.5, 20.0)")),
    Variant("leaves_an_empty_out_part", "careful", "peer.py", (1,), "free", "Nobody minds an empty file.", "Output.discard_part = lambda self: None\n"),
]

GROUPS = {group: [variant for variant in VARIANTS if variant.group == group] for group in ("careful", "eager")}
MAIN = '\n\nif __name__ == "__main__":\n'  # with what a program ends


def programs(variants):
    """{program: text} of the reference with these differences; gauntlet.NotOnce."""
    texts = {}
    for variant in variants:
        text = texts.get(variant.program) or (ROOT / variant.program).read_text()
        old = variant.old or MAIN
        if text.count(old) != 1:
            raise gauntlet.NotOnce(f"{variant.name}: expected its old text once in {variant.program}, found it {text.count(old)} times: "
                                   f"the reference has changed, mend this variant in lab/grader/variants.py: {old!r}", 1)
        if variant.old:
            texts[variant.program] = text.replace(variant.old, variant.new)
            continue
        before, main, after = text.rpartition(MAIN)
        writer = WRITER if "WRITES[" in variant.new and "WRITES = " not in text else ""
        texts[variant.program] = before + writer.rstrip() + "\n\n\n" + variant.new.strip() + main + after
    return texts


# Verdicts.


def verdict(name, variants, numbers):
    """Whether a program with these differences has all points in these stages."""
    texts, points, most, lost, printed = programs(variants), 0, 0, [], ""
    for number in numbers:
        results, output = gauntlet.grade(number, texts, "--workers", str(WORKERS), "--limit", str(LIMIT))
        points += results.get("score", 0)
        most += results.get("extra_data", {}).get("max_score", 1)
        lost += [f"{test['number']} {test['extra_data']['clauses']}" for test in gauntlet.failures(results)]
        printed += output if results.get("score", 0) != most else ""
    good = points == most > 0 and not lost
    line = f"{name:42} stages {','.join(map(str, numbers)):16} {points:3} of {most:3} points  {'; '.join(lost)}".rstrip()
    return gauntlet.Verdict(name, good, line, "" if good else printed)


def alone(variant):
    return verdict(variant.name, [variant], variant.stages)


def together(group_and_stage):
    group, number = group_and_stage
    return verdict(f"all {len(GROUPS[group])} of group {group}", GROUPS[group], [number])


# All of them.


def main():
    parser = gauntlet.arguments("variants.py", "Grade the grader with programs that are right.", LIMIT)
    parser.add_argument("--together", action="store_true", help="only the groups, each as one program")
    args = gauntlet.parse(parser, VARIANTS)
    chosen = [variant for variant in VARIANTS if variant.name in args.names or not args.names and not args.together]
    if args.list:
        for variant in chosen:
            print(f"{variant.name:38} {variant.group:8} stages {','.join(map(str, variant.stages)):16} {variant.clauses:6} {variant.thought}", flush=True)
        return 0
    began = time.monotonic()
    for variants in [*GROUPS.values(), *([variant] for variant in chosen)]:
        programs(variants)
    tasks = [] if args.names else [(f"group {group}, stage {number}", together, (group, number)) for number in reversed(ALL) for group in GROUPS]
    tasks += [(variant.name, alone, variant) for variant in chosen]
    verdicts = gauntlet.run_all(tasks, args.jobs, args.limit, lambda verdict: gauntlet.show(verdict, bool(args.names)))
    return gauntlet.conclude(verdicts, time.monotonic() - began, not args.names)


if __name__ == "__main__":
    ending.run(main)
