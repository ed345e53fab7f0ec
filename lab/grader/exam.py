#!/usr/bin/env python3
"""Make an exam with fresh values, and its answer sheet.

    make exam                      exam-SEED.md and exam-SEED-answers.md, with a seed that nobody can guess
    make exam SEED=2c41f09b        the same exam again
    python lab/grader/exam.py --seed group-b --out ../exam --only leases rarest

A question draws its values, which are used twice: ask() puts them into prose, and solve() works out the answer from the
values alone, without seeing the prose. tests/test_exam.py compares the answers of solve() with what the programs do.
Anyone who knows the seed can make the answers too, so do not use the year.

Exit code: 0, or 2 for wrong usage.
Reading order: bytes - leases - sizes - rarest first - floors - pauses - the exam - main.
"""

import collections
import math
import pathlib
import random
import re
import secrets
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "lab"), str(ROOT / "lab" / "tools")]

import ending  # noqa: E402  (after the path)
import explain  # noqa: E402
from messages_pb2 import BUSY, Request, Response  # noqa: E402

# A question: draw(rng) -> values, ask(values) -> prose, solve(values) -> answer, show(answer) -> words for the sheet.
Question = collections.namedtuple("Question", "name title points clauses draw ask solve show")

KIB = 1024


def framed(message):
    body = message.SerializeToString()
    return struct.pack(">Q", len(body)) + body


def block(text):
    return "\n".join(f"    {line}" for line in text.splitlines())


# Bytes to write.


def draw_request(rng):
    size = rng.choice([1000, 4096, 16 * KIB, 100_000, 512 * KIB])
    return {"size": size, "index": rng.randrange(1, 40), "busy_ok": rng.random() < 0.5}


def ask_request(v):
    leave = ", and would rather be told `BUSY` than wait" if v["busy_ok"] else ""
    return (f"A file is distributed in chunks of {v['size']:,} bytes. A peer asks for its chunk number {v['index']}, counted from 0{leave}. "
            f"Write the whole frame in hexadecimal, and mark the length, the tags and the id.")


def solve_request(v):
    return framed(Request(fetch_chunk=Request.FetchChunk(chunk_id=v["index"] * v["size"], busy_ok=v["busy_ok"]))).hex(" ")


# Bytes to read.


def draw_answer(rng):
    kind = rng.choice(["chunks_query", "peer_list", "bad"])
    size = 256 * KIB
    return {"kind": kind, "ids": [index * size for index in rng.sample(range(60), 4)], "ports": rng.sample(range(1024, 65536), 2),
            "host": f"192.0.2.{rng.randrange(1, 255)}", "retry": rng.randrange(20, 900)}


def bytes_of(v):
    if v["kind"] == "chunks_query":
        message = Response(chunks_query=Response.ChunksQuery(chunk_ids=v["ids"]))
    elif v["kind"] == "peer_list":
        message = Response(peer_list=Response.PeerList(addresses=[f"{v['host']}:{port}" for port in v["ports"]]))
    else:
        message = Response(bad=Response.Bad(code=BUSY, retry_ms=v["retry"], instead=v["ids"][:1]))
    return framed(message)


def ask_answer(v):
    digits = bytes_of(v).hex(" ").split()
    rows = "\n".join(" ".join(digits[at:at + 16]) for at in range(0, len(digits), 16))
    return (f"This came over a connection, as an answer. Take it apart byte by byte: to which request is it an answer, and what does it say? "
            f"After how many bytes does the next frame begin?\n\n{block(rows)}")


def solve_answer(v):
    return {"lines": explain.render(bytes_of(v), "response"), "next": len(bytes_of(v))}


def show_answer(solution):
    return f"The next frame begins after {solution['next']} bytes.\n\n" + block("\n".join(solution["lines"]))


# Leases. Times are in tenths of a second.


def draw_leases(rng):
    while True:
        lease = 10 * rng.randrange(4, 15)
        at = sorted(rng.sample(range(0, 5 * lease // 2), 11))
        names = [*"ABC", *rng.choices("ABCD", k=8)]
        kinds = ["Join"] * 3 + [rng.choice(["Active Proof"] * 3 + ["Peer List"]) for _ in range(8)]
        events = list(zip(at, names, kinds))
        asked = sorted(rng.sample(range(lease, 3 * lease), 3))
        values = {"lease": lease, "events": events, "asked": asked}
        lists = solve_leases(values)["lists"]
        apart = all(abs(when - begun - lease) > 2 for when in asked for begun, _, _ in events) and not set(at) & set(asked)
        if apart and len({tuple(names) for names in lists}) == 3 and any(kind == "Peer List" for _, _, kind in events):
            return values


def tenths(time):
    return f"{time / 10:.1f}"


def ask_leases(v):
    rows = "\n".join(f"| {tenths(at)} | {name} | {kind} |" for at, name, kind in v["events"])
    when = ", ".join(tenths(time) for time in v["asked"])
    return (f"A tracker gives leases of {tenths(v['lease'])} s and hears the following. Who is in its answers to Peer List at {when} s? "
            f"Until when is each of them listed if nothing more comes?\n\n| s | from | request |\n|---|---|---|\n{rows}")


def solve_leases(v):
    """The peers listed at each of the times, and the end of each lease."""
    lists = []
    for when in v["asked"]:
        last = {name: at for at, name, kind in v["events"] if kind != "Peer List" and at <= when}
        lists.append(sorted(name for name, at in last.items() if when < at + v["lease"]))
    last = {name: at for at, name, kind in v["events"] if kind != "Peer List"}
    return {"lists": lists, "asked": v["asked"], "ends": {name: at + v["lease"] for name, at in sorted(last.items())}}


def show_leases(solution):
    said = [f"at {tenths(when)} s: {', '.join(names) or 'nobody'}" for when, names in zip(solution["asked"], solution["lists"])]
    ends = ", ".join(f"{name} {tenths(at)} s" for name, at in solution["ends"].items())
    return "; ".join(said) + f". Leases end: {ends}. Peer List renews none, and a proof lists whoever sends it."


# Sizes.


def draw_sizes(rng):
    chunk = rng.choice([64, 128, 256]) * KIB
    return {"chunk": chunk, "size": 16_384 * chunk * rng.randrange(1, 6) + rng.randrange(2, chunk)}


def ask_sizes(v):
    return (f"A tracker is started with chunks of {v['chunk'] // KIB} KiB and a file of {v['size']:,} bytes. Which chunk size does it announce, how many "
            f"chunks are there, how many bytes has the last one, how many bytes are the digests, and what length stands before an answer with the last chunk?")


def solve_sizes(v):
    chunk = v["chunk"]
    while v["size"] > 16_384 * chunk:
        chunk *= 2
    count = math.ceil(v["size"] / chunk)
    last = v["size"] - (count - 1) * chunk
    return {"chunk": chunk, "count": count, "last": last, "digests": 32 * count, "length": len(Response(chunk=bytes(last)).SerializeToString())}


def show_sizes(solution):
    return (f"{solution['chunk']:,} bytes; {solution['count']:,} chunks; the last one {solution['last']:,} bytes; digests {solution['digests']:,} bytes; "
            f"length {solution['length']:,}: tag, varint and the chunk.")


# Rarest first.

NEIGHBORS = "ABCD"


def draw_rarest(rng):
    while True:
        count = rng.randrange(9, 13)
        holds = {name: sorted(rng.sample(range(count), rng.randrange(4, count - 1))) for name in NEIGHBORS}
        held = sorted(rng.sample(range(count), 2))
        values = {"count": count, "size": rng.choice([1000, 16 * KIB, 100_000]), "holds": holds, "held": held, "asked": rng.randrange(count)}
        wanted = [index for index in holds["A"] if index not in held and index != values["asked"]]
        solution = solve_rarest(values)
        hidden = values["asked"] in held or values["asked"] not in holds["A"] or values["asked"] not in holds["B"]
        if not hidden and len(wanted) > len(solution["first"]) and solution["first"] != solution["then"]:
            return values


def ask_rarest(v):
    rows = "\n".join(f"| {name} | {', '.join(str(index * v['size']) for index in indexes)} |" for name, indexes in v["holds"].items())
    return (f"A file has {v['count']} chunks of {v['size']:,} bytes. A leecher holds {' and '.join(str(index * v['size']) for index in v['held'])}, has asked B for "
            f"{v['asked'] * v['size']} a moment ago, and knows four neighbors:\n\n| neighbor | ids |\n|---|---|\n{rows}\n\n"
            f"(1) Write as a number, in hexadecimal, the bitfield of what A holds, the leecher does not, and nobody was asked for; bit 0 stands for the first chunk. "
            f"(2) Which id may it ask A for now? Name all that are equally good. (3) B's connection ends before the chunk came, and B is gone. "
            f"Which id may it ask A for now?")


def rarest_of(offered, holds):
    """The offered chunks that the fewest neighbors hold."""
    copies = {index: sum(index in indexes for indexes in holds.values()) for index in offered}
    return sorted(index for index in offered if copies[index] == min(copies.values()))


def solve_rarest(v):
    offered = [index for index in v["holds"]["A"] if index not in v["held"]]
    free = [index for index in offered if index != v["asked"]]
    left = {name: indexes for name, indexes in v["holds"].items() if name != "B"}
    return {"bits": sum(1 << index for index in free), "first": rarest_of(free, v["holds"]), "then": rarest_of(offered, left), "size": v["size"]}


def show_rarest(solution):
    first, then = (" or ".join(str(index * solution["size"]) for index in solution[name]) for name in ("first", "then"))
    return (f"(1) {solution['bits']:#x}; (2) {first}; (3) {then}: B counts no longer, and what it was asked for may be asked of another.")


# Floors.


def draw_floor(rng):
    rate = rng.choice([100, 160, 200, 320, 400])
    return {"leechers": rng.randrange(5, 60), "chunks": rng.randrange(20, 200), "chunk": rng.choice([64, 128, 256, 512]), "rate": rate,
            "seeder": rng.choice([rate // 4, rate // 2, 3 * rate, 5 * rate])}


def ask_floor(v):
    return (f"A file of {v['chunks']} chunks of {v['chunk']} KiB goes from a seeder to {v['leechers']} leechers. Everybody uploads at {v['rate']} KiB/s; downloads have no "
            f"limit. (1) How long does a chunk take? (2) How long does it take at least until all have the file, if a chunk is passed on once it is whole? "
            f"(3) How long if the seeder alone serves all? (4) The textbook's bound, with a seeder that uploads at {v['seeder']} KiB/s, and which of its terms binds? "
            f"All in seconds.")


def solve_floor(v):
    tau = v["chunk"] / v["rate"]
    file, n = v["chunks"] * tau, v["leechers"]
    doublings = 0
    while 2 << doublings <= n:
        doublings += 1
    size = v["chunks"] * v["chunk"]
    once, all_of_it = size / v["seeder"], n * size / (v["seeder"] + n * v["rate"])
    return {"tau": tau, "floor": (v["chunks"] + doublings) * tau, "server": n * file, "bound": max(once, all_of_it),
            "binds": "F/u_s" if once > all_of_it else "N·F/(u_s + Σu_i)"}


def show_floor(solution):
    return (f"(1) {solution['tau']:.2f} s; (2) (M + ⌊log₂N⌋)·τ = {solution['floor']:.1f} s; (3) N·M·τ = {solution['server']:.1f} s; "
            f"(4) {solution['bound']:.1f} s: {solution['binds']} binds.")


# Pauses that grow. Times are in milliseconds.


def draw_pauses(rng):
    while True:
        values = {"fails": rng.randrange(0, 4) * 50 + 50, "pause": rng.choice([100, 150, 200, 250, 400]), "most": rng.choice([2000, 3000, 4000]),
                  "end": 1000 * rng.randrange(15, 45)}
        if all(abs(at - values["end"]) > 100 for at in beginnings(values, 60)):
            return values


def beginnings(v, count):
    """When the first attempts begin, however they end."""
    at, pause, found = 0, v["pause"], []
    for _ in range(count):
        found.append(at)
        at, pause = at + v["fails"] + pause, min(2 * pause, v["most"])
    return found


def ask_pauses(v):
    return (f"Nobody listens at the tracker's port, and a peer learns that {v['fails']} ms after it has begun to connect. Then it pauses: {v['pause']} ms the first time, "
            f"twice as long each time, and {v['most']} ms at most. (1) When do attempts 1 to 6 begin, counted from the first? (2) It makes no attempt that would begin more than "
            f"{v['end'] // 1000} s after the first. How many does it make? (3) How many would it have made with the first pause throughout?")


def solve_pauses(v):
    return {"begin": beginnings(v, 6), "count": sum(at <= v["end"] for at in beginnings(v, 1000)), "flat": 1 + v["end"] // (v["fails"] + v["pause"])}


def show_pauses(solution):
    return f"(1) {', '.join(f'{at / 1000:.2f}' for at in solution['begin'])} s; (2) {solution['count']}; (3) {solution['flat']}."


# The exam.

QUESTIONS = [
    Question("request", "Bytes to write", 4, "WF-1, FC-3, FC-6", draw_request, ask_request, solve_request, block),
    Question("answer", "Bytes to read", 5, "WF-1, PL-1, CQ-2, FC-7", draw_answer, ask_answer, solve_answer, show_answer),
    Question("sizes", "Sizes", 5, "FC-2, FD-1, FD-2", draw_sizes, ask_sizes, solve_sizes, show_sizes),
    Question("leases", "Leases", 6, "AP-1, AP-2, AP-3, PL-2", draw_leases, ask_leases, solve_leases, show_leases),
    Question("rarest", "Rarest first", 6, "SW-1, SW-5", draw_rarest, ask_rarest, solve_rarest, show_rarest),
    Question("floor", "How fast it can be", 6, "note 8", draw_floor, ask_floor, solve_floor, show_floor),
    Question("pauses", "Pauses that grow", 4, "CL-10, SW-6", draw_pauses, ask_pauses, solve_pauses, show_pauses),
]


def values_of(question, seed):
    """The values of a question in the exam of a seed; they do not depend on other questions."""
    return question.draw(random.Random(f"{seed}/{question.name}"))


def sheets(seed, questions):
    """(the exam, its answers), in Markdown."""
    total = sum(question.points for question in questions)
    exam = [f"# Exam\n\n{len(questions)} questions, {total} points. lab/SPEC.md and messages.proto may be used; no computer."]
    answers = [f"# Answers\n\nOf the exam with seed {seed}."]
    for number, question in enumerate(questions, 1):
        values = values_of(question, seed)
        heading = f"## {number}. {question.title} ({question.points} points)"
        exam.append(f"{heading}\n\n{question.ask(values)}")
        answers.append(f"{heading}\n\n{question.show(question.solve(values))}\n\n({question.clauses})")
    return "\n\n".join(exam) + "\n", "\n\n".join(answers) + "\n"


def parse_arguments():
    names = [question.name for question in QUESTIONS]
    parser = ending.Arguments(prog="exam.py", description="Make an exam with fresh values, and its answers.", allow_abbrev=False)
    parser.add_argument("--seed", default=None, help="letters and digits; the same seed makes the same exam (default: one that nobody can guess)")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="where the two pages go (default: here)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=f"some of {', '.join(names)}")
    args = parser.parse_args()
    if args.seed is not None and not re.fullmatch(r"[\w-]{1,40}", args.seed, re.A):
        raise ending.Failure(f"--seed: expected at most 40 letters, digits, - and _, got {args.seed!r}")
    return args


def main():
    args = parse_arguments()
    seed, folder = args.seed or secrets.token_hex(4), pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    pages = [folder / f"exam-{seed}.md", folder / f"exam-{seed}-answers.md"]
    for path, text in zip(pages, sheets(seed, [question for question in QUESTIONS if question.name in args.only])):
        path.write_text(text)
    print(f"wrote {pages[0]} and {pages[1]}")


if __name__ == "__main__":
    ending.run(main)
