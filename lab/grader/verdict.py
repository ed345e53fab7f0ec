"""pytest for lab/grader/grade.py: collects the tests, and forks workers that run them one by one and report how each ended.

    python -m pytest -s -p verdict ...      with the descriptors GRADE_REPORTS and GRADE_FORKS

Reports are JSON objects, one per line. The process that lab/grader/grade.py has started reports {"collected": [...]}; then it
forks a worker for each pair of pipes that comes through the socket GRADE_FORKS. With the pipes comes a pace, and the worker
reports {"begin": id} and {"end": id, "outcome": ..., "failure": ...} for each test over the first pipe. Each number in the
second pipe, the tokens, is the index of one test; whichever worker reads it runs that test, so that none waits for another. A
worker that gets no pace measures it, reports {"power": ..., "start": ..., "options": ...}, and runs no test. Workers share nothing else:
hence -s, because pytest would keep what they print in one file, and a tmp_path of our own.

The program under test gets none of the pipes: subprocess closes them.
"""

import json
import os
import re
import pathlib
import resource
import socket
import struct
import tempfile
import threading
import time

import pytest

import explain
import harness
import pace
import processes
from harness import EXIT_CODES, framed, trace
from messages_pb2 import Response
from mistakes import TO_ITS_END, WORDS, Facts, likely, mended, message
from steps import shortened, telling

reports, FORKS = (int(os.environ.pop(name)) for name in ("GRADE_REPORTS", "GRADE_FORKS"))
HIDDEN = os.environ.pop("GRADE_HIDDEN", "")
SLOW = os.environ.pop("GRADE_SLOW", "") == "yes"
THOROUGH = os.environ.pop("GRADE_THOROUGH", "") == "yes"
OURS = os.environ.pop("GRADE_OURS", "") == "yes"
PACE = json.loads(os.environ.pop("GRADE_PACE", "null"))  # pace.share()
LAST_STAGE = 7
TEST_SECONDS = 40       # seconds for one test, in case its own waits do not end it
PROBE_SECONDS = 6       # seconds for measuring the start of a program; nobody waits longer for it
TICK = 0.05             # seconds between two readings of the clock
FILE_LIMIT = 256 << 20  # bytes in one file; no test needs more than a tenth of this


def tell(**line):
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(reports, data):]


def limit(what, value):
    """Limit one resource of this process and all that it starts, as far as that is allowed."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def pytest_configure(config):
    if not OURS:
        os.umask(0)  # so that a program that runs as another user can write into a test's folders
        limit(resource.RLIMIT_FSIZE, FILE_LIMIT)
    limit(resource.RLIMIT_CORE, 0)


@pytest.fixture
def tmp_path():
    """A folder for this worker alone: of two workers with the same --basetemp, the second would remove the files of the first.

    Programs that run as another user can open it, if they know its name.
    """
    path = pathlib.Path(tempfile.mkdtemp(prefix="test-"))
    if not OURS:
        path.chmod(0o777)
    return path


def clauses_of(item):
    return [clause for mark in item.iter_markers("spec") for clause in mark.args]


def described(item):
    """What the grader must know about a test before it runs."""
    return {"id": id_of(item), "file": item.path.name, "name": item.name, "clauses": clauses_of(item),
            "takes": max((seconds for mark in item.iter_markers("takes") for seconds in mark.args), default=0),
            "hidden": bool(HIDDEN) and str(item.path).startswith(HIDDEN)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    thorough = [item for item in items if not THOROUGH and item.get_closest_marker("thorough")]
    left_out = [item for item in items if not SLOW and item.get_closest_marker("slow") and item not in thorough]
    foreign = [item for item in items if not OURS and item.get_closest_marker("ours")]
    items[:] = [item for item in items if item not in left_out and item not in thorough and item not in foreign]
    tell(slow=len(left_out), thorough=len(thorough), ours=len(foreign))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    report = (yield).get_result()
    if report.failed:
        secret = bool(HIDDEN) and str(collector.path).startswith(HIDDEN)
        tell(broken=collector.path.name, why="" if secret else str(report.longrepr)[-1500:])


def id_of(item):
    """A test's name in all reports: pytest's own name gives no file for tests outside this repository."""
    return f"{item.path.name}::{item.name}"


def pytest_runtestloop(session):
    tell(collected=[described(item) for item in session.items])
    os.close(reports)
    with socket.socket(fileno=FORKS) as forks:
        while True:
            told, pipes, _, _ = socket.recv_fds(forks, 1 << 10, 2)
            if not pipes:
                return True
            if os.fork() == 0:
                try:
                    forks.close()
                    begin(session.items, json.loads(told), *pipes)
                finally:
                    os._exit(0)  # only the collecting process runs the rest of pytest
            for pipe in pipes:
                os.close(pipe)


def begin(items, how, pipe, tokens):
    """Be a worker, in a session of its own, and adopt its orphans."""
    global reports
    reports = pipe
    os.setsid()
    processes.adopt_orphans()
    if how is None:
        harness.pace = pace.Pace(**PACE) if PACE else pace.Pace(pace.power())
        tell(power=harness.pace.power, **({"start": harness.pace.start, "options": []} if PACE else probe()))
    else:
        harness.pace = pace.Pace(**how)
        work(items, tokens)


def work(items, tokens):
    """Run the tests whose numbers come, and report each one."""
    while token := os.read(tokens, 4):
        item = items[struct.unpack("!I", token)[0]]
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS * harness.pace.factor() + 4 * harness.pace.start))
        tell(begin=id_of(item))
        ending[id_of(item)] = {"outcome": "passed", "failure": None, "late": False, "stalled": 0}
        began, waits = time.monotonic(), trace.ran_out
        with Ticker() as ticker:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        ended = ending.pop(id_of(item))
        ended.update(late=ended["late"] or trace.ran_out > waits, stalled=round(ticker.late, 2))
        tell(end=id_of(item), seconds=round(time.monotonic() - began, 2), **ended)


class Ticker:
    """Keeps reading the clock: `late` is the most seconds by which it woke up late, as all processes of this machine then do."""

    def __enter__(self):
        self.late, self.ended = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.tick, daemon=True)
        self.thread.start()
        return self

    def tick(self):
        before = time.monotonic()
        while not self.ended.wait(TICK):
            now = time.monotonic()
            self.late, before = max(self.late, now - before - TICK), now

    def __exit__(self, *exception):
        self.ended.set()
        self.thread.join()


# How long the programs take to start, and whether they accept options.


def probe():
    """{"start": seconds that the slower program takes, "options": those that the tests append and a program rejects}."""
    with tempfile.TemporaryDirectory() as folder:
        if not OURS:
            os.chmod(folder, 0o777)
        file = os.path.join(folder, "file.bin")
        with open(file, "wb") as content:
            content.write(b"abc")
        took, refused = [], []

        def start(what, run, option):
            seconds = seconds_of(run, file, [option])
            if seconds is None and (seconds := seconds_of(run, file, [])) is not None:
                refused.append(f"{what} {option}")
            took.append(seconds or 0)  # patience does not help a program that does not start
        threads = [threading.Thread(target=start, args=args) for args in (("tracker", tracker_start, "--no-seed"), ("peer", peer_start, "--leave"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    processes.end_all()
    return {"start": round(max(took), 2), "options": sorted(refused)}


def seconds_of(start, file, options):
    """How long a program takes to start with these options; None if it does not within PROBE_SECONDS."""
    began = time.monotonic()
    try:
        start(file, options)
        return time.monotonic() - began
    except (AssertionError, OSError, EOFError):
        return None


def tracker_start(file, options):
    program = harness.Program(harness.tracker_command(file, *options), "the tracker under test")
    try:
        program.wait_for(r"listening on port (\d+)$", PROBE_SECONDS)
    finally:
        program.stop()


def peer_start(file, options):
    tracker = harness.FakeTracker(b"abc")
    try:
        program = harness.start_peer(tracker.port, f"{file}.{len(options)}", options)
        try:
            eventually_joins(tracker, program)
        finally:
            program.stop()
    finally:
        tracker.stop()


def eventually_joins(tracker, program):
    give_up = time.monotonic() + harness.patience(PROBE_SECONDS)
    while not tracker.count("join"):
        assert time.monotonic() < give_up and program.process.poll() is None, "no Join"
        time.sleep(0.005)


ending = {}  # test id -> how it has ended so far


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    now = ending.get(id_of(item))
    if now is None or report.passed or now["outcome"] == "failed":
        return
    now["outcome"] = report.outcome
    if report.failed:
        now["failure"] = failure(item, call.excinfo)
        now["late"] = now["late"] or now["failure"].pop("late")


# A failure as facts. Expected and got are what a part of the harness last judged, or the two sides of the comparison
# that failed: for a value from an answer, the whole answer is shown, once as it came and once as it should be.


compared = None  # (op, left, right, trace.clock) of the last comparison that failed


def pytest_assertrepr_compare(config, op, left, right):
    global compared
    compared = op, left, right, trace.clock


def failure(item, excinfo):
    """The facts for the report of a failed test; test_entry and report in lab/grader/grade.py use them."""
    steps = list(trace.steps)
    expected, got, kind, request, mark = sides(item, excinfo)
    got, sent = with_crash(got), request or trace.sent
    left, right = compared[1:3] if compared and compared[3] == trace.clock else (None, None)
    words, at = numbered(steps, mark)
    facts = Facts(sent, expected, got, clauses_of(item), item.name, words, left, right, stage_of(item))
    if isinstance(got, bytes) and isinstance(expected, str) and kind and mended(got)[0]:
        expected = mended(got)[0]
    offset = first_difference(expected, got)
    return {"late": isinstance(expected, str) and bool(re.match(r"at most [\d.]+ s$", expected)),
            "steps": [f"{number} {said}" for number, said in enumerate(words, start=1)], "step": at,
            "sent": shortened(sent[0]) if sent else None, "sent_lines": explain.render(*sent)[:24] if sent else [],
            "expected": told(expected, offset), "got": told(got, offset), "offset": offset,
            "lines": lines(expected, got, kind), "likely": likely(facts)}


def stage_of(item):
    """The stage of a test, from the name of its file; if the name has none, the last stage."""
    found = re.match(r"test_(\d)_", item.path.name)
    return int(found[1]) if found else LAST_STAGE


def numbered(steps, mark):
    """(the steps in words, repeated ones merged; the number of the step that failed).

    That is the step `mark`, the answer that was judged; without one, the test's own last step, or the last of all if it only waited.
    """
    words, times, at, marked = [], [], 0, None
    for step in steps:
        if words and words[-1] == step.words():
            times[-1] += 1
        else:
            words.append(step.words())
            times.append(1)
        at = len(words) if step.by_test else at
        marked = len(words) if step.number == mark else marked
    did = at and not words[at - 1].startswith("started")
    return [said + (f" ({count} times)" if count > 1 else "") for said, count in zip(words, times)], marked or (at if did else len(words))


def sides(item, excinfo):
    """(expected, got, kind, request, step): bytes, or words. `kind` is "response" or "request" for frames; request and step may be None."""
    if compared and excinfo.errisinstance(AssertionError) and compared[3] == trace.clock and str(excinfo.value) and not judged_here(excinfo):
        return of_comparison(*compared[:3])
    by_harness = not excinfo.errisinstance(AssertionError) or judged_here(excinfo) or last_statement(excinfo, "is_refused", "is_closed", "refuses(")
    if trace.verdict and trace.verdict[3] == trace.clock and by_harness:
        expected, got, kind, _, request, step = trace.verdict
        return expected, got, kind, request, step or (trace.answer[1] if trace.answer and trace.answer[0] == got else None)
    if excinfo.errisinstance(AssertionError):
        secret = bool(HIDDEN) and str(item.path).startswith(HIDDEN)
        dead = trace.ended()
        said = str(excinfo.value).splitlines()[0] if str(excinfo.value) else "it did not hold"
        if trace.answer and not dead and said.startswith("assert "):  # a bare condition, most likely about the last answer
            return "what this test asserts" if secret else str(excinfo.traceback[-1].statement).strip()[:300], trace.answer[0], "response", *trace.answer[:0:-1]
        return ("what this test asserts" if secret else str(excinfo.traceback[-1].statement).strip()[:300],
                dead or ("it did not hold" if secret else said[:300]), None, None, None)
    return TO_ITS_END, f"{excinfo.typename}" + ("" if HIDDEN else f": {str(excinfo.value)[:300]}"), None, None, None


CLOSED = r"end of stream|(\w+: )?\[Errno \d+\] [\w ]+"  # what a crash looks like from outside
DYING = 0.5  # seconds, at most, between the end of a program's connections and its own end


def with_crash(got):
    """What came, in words, and the last line of the program if it crashed; its connections may end a moment earlier."""
    if got and not isinstance(got, str) or not trace.programs:
        return got
    seen = re.split(r"(?:^|; )the \w+ under test ended with ", got or "")[0]
    give_up = time.monotonic() + (DYING if not seen or re.match(CLOSED, seen) else 0)
    while time.monotonic() < give_up and not any(crashed(program) or raised(program) for program in trace.programs):
        time.sleep(0.01)
    for program in filter(crashed, trace.programs):
        program.reader.join(DYING)  # until all of its output has been read
    said = trace.ended() if any(map(crashed, trace.programs)) else "; ".join(filter(None, map(raised, trace.programs)))
    if not said or said.partition(": ")[2] in seen and seen:
        return got
    return f"{seen}; {said}" if seen and not re.fullmatch(CLOSED, seen) else said


def crashed(program):
    """Whether a program has ended with an uncaught error, or with the exit code of a bug."""
    code = program.process.poll()
    return code is not None and code > 0 and code not in EXIT_CODES and not program.stopped


def raised(program):
    """The exception that a still running program has printed, as a dying Python thread does; "" if it has printed none."""
    before, found, after = program.output.rpartition("Traceback (most recent call last):\n")
    error = telling(after.splitlines()) if re.search(r"^\S.*\n", after, re.M) else ""
    return f"{program.what} printed: {error[:300]}" if found and error and program.process.poll() is None else ""


def judged_here(excinfo):
    """Whether the exception comes from the harness, which has then judged."""
    return os.path.basename(str(excinfo.traceback[-1].path)) == "harness.py"


def last_statement(excinfo, *names):
    return any(name in str(excinfo.traceback[-1].statement) for name in names)


def of_comparison(op, left, right):
    """sides() for the two sides of a comparison; if they are part of an answer, the whole answer."""
    if op == "not in" and left == "Traceback":
        return "no traceback", trace.ended() or telling(str(right).splitlines()), None, None, None
    if op in ("<", "<=") and isinstance(left, float):  # only times are compared like this
        return f"at most {right:g} s", f"{left:.2f} s", None, None, None
    if op == "in" and isinstance(right, tuple):  # one of several allowed values; otherwise, a value that should be there
        return f"one of {', '.join(map(in_words, right))}", in_words(left), None, None, None
    if op == "in":
        return f"{in_words(left)}, among others", in_words(right), None, None, None
    frame, step, request = trace.answer or (b"", None, None)
    if op == "==" and frame:
        lifted = as_frames(frame, left, right)
        if lifted:
            return (*lifted, "response", request, step)
    if isinstance(left, bytes) and isinstance(right, bytes) and op == "==":
        for frame, kind, request, step in ((frame, "response", request, step), (*(trace.received or (b"", None)), None, None)):
            if frame[8:] == left:
                return framed(right), frame, kind, request, step
        return right, left, "response" if message(right, Response).WhichOneof("type") else None, None, None
    return ("" if op == "==" else f"{op} ") + in_words(right), in_words(left), None, None, None


def in_words(value):
    return (value if isinstance(value, str) else shortened(value) if isinstance(value, bytes) else repr(value))[:400]


def as_frames(frame, left, right):
    """(the expected frame, the frame that came), if `left` is part of the last answer; None if it is not."""
    try:
        answer = Response.FromString(frame[8:])
    except Exception:  # not a message
        return None
    expected = instead_of_type(answer, left, right)
    if expected is None and isinstance(left, bytes) and isinstance(right, bytes) and left == answer.chunk:
        expected = framed(Response(chunk=right))
    if expected is None and isinstance(left, list) and isinstance(right, list):
        expected = instead_of_list(answer, left, right)
    if expected is None:
        changed = copied(answer)
        expected = framed(changed) if replace(changed, left, right) else None
    return None if expected is None else (expected, frame)


def instead_of_type(answer, left, right):
    """The expected frame, or its beginning in words, of the type `right` ("ok", "bad NOT_HELD"); None if `left` is not a type."""
    kind = answer.WhichOneof("type")
    if not kind or not isinstance(left, str) or left.split()[:1] != [kind] or not isinstance(right, str):
        return None
    if re.fullmatch(r"bad [A-Z_]+", right):
        return framed(Response(bad=Response.Bad(code=right[4:], reason=answer.bad.reason or "why")))
    if right == "ok":
        return framed(Response(ok=Response.Ok()))
    return f"{WORDS[right]}: the message begins with {FIRST_BYTES[right]}" if right in WORDS else None


def instead_of_list(answer, left, right):
    """The answer's frame with the list `right` of chunk ids or addresses instead of `left`; None if `left` is not such a list."""
    expected = copied(answer)
    if left == list(answer.chunks_query.chunk_ids) and all(isinstance(value, int) for value in right):
        expected.chunks_query.SetInParent()
        expected.chunks_query.chunk_ids[:] = right
        return framed(expected)
    if set(left) <= set(answer.peer_list.addresses) and all(isinstance(value, str) and ":" in value for value in right):
        expected.peer_list.SetInParent()
        kept = [address for address in answer.peer_list.addresses if address in right or address not in left]
        expected.peer_list.addresses[:] = list(dict.fromkeys(kept)) + [address for address in right if address not in kept]
        return framed(expected)
    return None


def copied(message):
    other = type(message)()
    other.CopyFrom(message)
    return other


FIRST_BYTES = {"bad": "12", "peer_list": "1a", "chunks_query": "22", "chunk": "2a"}


def replace(message, old, new):
    """Replace a value in the message by another one; return whether it was found."""
    for field, value in message.ListFields():
        if field.message_type and not isinstance(value, (list, tuple)) and hasattr(value, "ListFields"):
            if replace(value, old, new):
                return True
        elif not field.message_type and type(value) in (int, bytes, str) and value == old and type(new) is type(old):
            setattr(message, field.name, new)
            return True
    return False


def first_difference(expected, got):
    """The offset of the first byte that differs, if both are bytes."""
    if isinstance(got, bytes) and isinstance(expected, str) and "the message begins with" in expected:
        return 8
    if not (isinstance(expected, bytes) and isinstance(got, bytes)) or expected == got:
        return None
    return next((at for at, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))


def told(side, offset):
    return (shortened(side, offset) or "no bytes") if isinstance(side, bytes) else side


def lines(expected, got, kind):
    """Both as lines of lab/tools/explain.py; words give none."""
    if kind and isinstance(expected, bytes) and isinstance(got, bytes):
        return explain.difference(expected, got, kind)[1]
    if kind and isinstance(got, bytes):
        return [f"got       {len(got)} bytes", *explain.render(got, kind)]
    return []
