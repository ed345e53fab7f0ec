"""pytest for lab/grade.py: collects the tests, and forks workers that run them one by one and tell how each of them ended.

    python -m pytest -s -p verdict ...      with the descriptors GRADE_TOKENS, GRADE_REPORTS and GRADE_FORKS

What is told is one JSON object a line: {"collected": [...]} by the process that lab/grade.py has started; then, for
each pipe that comes through the socket GRADE_FORKS, it forks a worker, which tells over that pipe {"begin": id} and
{"end": id, "outcome": ..., "failure": ...} for each test. Each number in the pipe of tokens is the index of one test,
and whichever worker reads it runs that test, so that none waits for another. Workers share nothing else: -s, because
pytest would keep what they print in one file, and a tmp_path of our own.

The program under test gets no pipe: subprocess closes them.
"""

import json
import os
import re
import pathlib
import resource
import socket
import struct
import tempfile
import time

import pytest

import explain
import processes
from harness import EXIT_CODES, framed, trace
from messages_pb2 import Response
from mistakes import WORDS, Facts, likely, mended, message
from steps import shortened, telling

TOKENS, reports, FORKS = (int(os.environ.pop(name)) for name in ("GRADE_TOKENS", "GRADE_REPORTS", "GRADE_FORKS"))
HIDDEN = os.environ.pop("GRADE_HIDDEN", "")
SLOW = os.environ.pop("GRADE_SLOW", "") == "yes"
OURS = os.environ.pop("GRADE_OURS", "") == "yes"
LAST_STAGE = 7
FILE_LIMIT = 256 << 20  # bytes in one file; no test needs more than a tenth of it


def tell(**line):
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(reports, data):]


def limit(what, value):
    """Bound what this process and all that it starts may have, as far as that is allowed."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def pytest_configure(config):
    if not OURS:
        os.umask(0)  # a program that runs as another user writes into the folders that a test makes
        limit(resource.RLIMIT_FSIZE, FILE_LIMIT)
    limit(resource.RLIMIT_CORE, 0)


@pytest.fixture
def tmp_path():
    """A folder that no other worker has: of two workers with one --basetemp the second removes what the first has put there.

    Programs that run as another user can open it; its name is told only to these.
    """
    path = pathlib.Path(tempfile.mkdtemp(prefix="test-"))
    if not OURS:
        path.chmod(0o777)
    return path


def clauses_of(item):
    return [clause for mark in item.iter_markers("spec") for clause in mark.args]


def described(item):
    """What the grader must know of a test before it runs."""
    return {"id": id_of(item), "file": item.path.name, "name": item.name, "clauses": clauses_of(item),
            "takes": max((seconds for mark in item.iter_markers("takes") for seconds in mark.args), default=0),
            "hidden": bool(HIDDEN) and str(item.path).startswith(HIDDEN)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if not SLOW and item.get_closest_marker("slow")]
    foreign = [item for item in items if not OURS and item.get_closest_marker("ours")]
    items[:] = [item for item in items if item not in left_out and item not in foreign]
    tell(slow=len(left_out), ours=len(foreign))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    report = (yield).get_result()
    if report.failed:
        secret = bool(HIDDEN) and str(collector.path).startswith(HIDDEN)
        tell(broken=collector.path.name, why="" if secret else str(report.longrepr)[-1500:])


def id_of(item):
    """A test's name in all that is told: pytest's own has no file for tests outside of this repository."""
    return f"{item.path.name}::{item.name}"


def pytest_runtestloop(session):
    tell(collected=[described(item) for item in session.items])
    os.close(reports)
    with socket.socket(fileno=FORKS) as forks:
        while True:
            _, pipes, _, _ = socket.recv_fds(forks, 1, 1)
            if not pipes:
                return True
            if os.fork() == 0:
                try:
                    forks.close()
                    work(session.items, pipes[0])
                finally:
                    os._exit(0)  # the rest of pytest is for the process that has collected
            os.close(pipes[0])


def work(items, pipe):
    """Run the tests whose numbers come, and tell of each over the pipe; in a session of its own, and with its own orphans."""
    global reports
    reports = pipe
    os.setsid()
    processes.adopt_orphans()
    while token := os.read(TOKENS, 4):
        item = items[struct.unpack("!I", token)[0]]
        tell(begin=id_of(item))
        ending[id_of(item)] = {"outcome": "passed", "failure": None}
        began = time.monotonic()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        tell(end=id_of(item), seconds=round(time.monotonic() - began, 2), **ending.pop(id_of(item)))


ending = {}  # test id -> how it ended so far


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


# A failure as facts. Expected and got are what a part of the harness has judged last, or the two sides of the comparison
# that failed: a value that was part of an answer is shown as the whole answer, once as it came and once as it should be.


compared = None  # (op, left, right, trace.clock) of the last comparison that failed


def pytest_assertrepr_compare(config, op, left, right):
    global compared
    compared = op, left, right, trace.clock


def failure(item, excinfo):
    """What the report of a failed test says (what becomes of it: test_entry and report in lab/grade.py)."""
    steps = list(trace.steps)
    expected, got, kind = sides(item, excinfo)
    got = with_crash(got)
    left, right = compared[1:3] if compared and compared[3] == trace.clock else (None, None)
    words, at = numbered(steps)
    facts = Facts(trace.sent, expected, got, clauses_of(item), item.name, words, left, right, stage_of(item))
    if isinstance(got, bytes) and isinstance(expected, str) and kind and mended(got)[0]:
        expected = mended(got)[0]
    offset = first_difference(expected, got)
    return {"steps": [f"{number} {said}" for number, said in enumerate(words, start=1)], "step": at,
            "sent": shortened(trace.sent[0]) if trace.sent else None, "sent_lines": explain.render(*trace.sent)[:24] if trace.sent else [],
            "expected": told(expected, offset), "got": told(got, offset), "offset": offset,
            "lines": lines(expected, got, kind), "likely": likely(facts)}


def stage_of(item):
    """The stage of a test, by the name of its file; the last one, if it says none."""
    found = re.match(r"test_(\d)_", item.path.name)
    return int(found[1]) if found else LAST_STAGE


def numbered(steps):
    """(the steps in words, those that repeat the one before as one; the number of the last that the test itself did, or of the last, if it only waited)."""
    words, times, at = [], [], 0
    for step in steps:
        if words and words[-1] == step.words():
            times[-1] += 1
        else:
            words.append(step.words())
            times.append(1)
        at = len(words) if step.by_test else at
    did = at and not words[at - 1].startswith("started")
    return [said + (f" ({count} times)" if count > 1 else "") for said, count in zip(words, times)], at if did else len(words)


def sides(item, excinfo):
    """(expected, got, kind): bytes, or words. `kind` is "response" or "request" for frames."""
    if compared and excinfo.errisinstance(AssertionError) and compared[3] == trace.clock and str(excinfo.value) and not judged_here(excinfo):
        return of_comparison(*compared[:3])
    by_harness = not excinfo.errisinstance(AssertionError) or judged_here(excinfo) or last_statement(excinfo, "is_refused", "is_closed")
    if trace.verdict and trace.verdict[3] == trace.clock and by_harness:
        return trace.verdict[:3]
    if excinfo.errisinstance(AssertionError):
        secret = bool(HIDDEN) and str(item.path).startswith(HIDDEN)
        dead = trace.ended()
        said = str(excinfo.value).splitlines()[0] if str(excinfo.value) else "it did not hold"
        return ("what this test asserts" if secret else str(excinfo.traceback[-1].statement).strip()[:300],
                dead or ("it did not hold" if secret else said[:300]), None)
    return "a test that comes to its end", f"{excinfo.typename}" + ("" if HIDDEN else f": {str(excinfo.value)[:300]}"), None


CLOSED = r"end of stream|(\w+: )?\[Errno \d+\] [\w ]+"  # what is seen of a crash from outside
DYING = 0.5  # seconds that pass at the most between the end of a program's connections and its own


def with_crash(got):
    """What came, in words, and the last line of the program if it was a bug: its connections may end a moment before."""
    if got and not isinstance(got, str) or not trace.programs:
        return got
    seen = re.split(r"(?:^|; )the \w+ under test ended with ", got or "")[0]
    give_up = time.monotonic() + (DYING if not seen or re.match(CLOSED, seen) else 0)
    while time.monotonic() < give_up and not any(crashed(program) or raised(program) for program in trace.programs):
        time.sleep(0.01)
    for program in filter(crashed, trace.programs):
        program.reader.join(DYING)  # until all of its output was read
    said = trace.ended() if any(map(crashed, trace.programs)) else "; ".join(filter(None, map(raised, trace.programs)))
    if not said or said.partition(": ")[2] in seen and seen:
        return got
    return f"{seen}; {said}" if seen and not re.fullmatch(CLOSED, seen) else said


def crashed(program):
    """Whether a program has ended with an error that nobody caught, or with the exit code of a bug."""
    code = program.process.poll()
    return code is not None and code > 0 and code not in EXIT_CODES and not program.stopped


def raised(program):
    """The exception that a program which goes on has printed, as a thread of Python does that dies of it; "" if there is none."""
    before, found, after = program.output.rpartition("Traceback (most recent call last):\n")
    error = telling(after.splitlines()) if re.search(r"^\S.*\n", after, re.M) else ""
    return f"{program.what} printed: {error[:300]}" if found and error and program.process.poll() is None else ""


def judged_here(excinfo):
    """Whether the exception comes from the harness, which has judged."""
    return os.path.basename(str(excinfo.traceback[-1].path)) == "harness.py"


def last_statement(excinfo, *names):
    return any(name in str(excinfo.traceback[-1].statement) for name in names)


def of_comparison(op, left, right):
    frame, kind = trace.received or (b"", None)
    if op == "not in" and left == "Traceback":
        return "no traceback", trace.ended() or telling(str(right).splitlines()), None
    if op in ("<", "<=") and isinstance(left, float):  # the tests compare nothing else so
        return f"at most {right:g} s", f"{left:.2f} s", None
    if op == "in":
        return f"{in_words(left)}, among others", in_words(right), None
    if op == "==" and kind == "response":
        lifted = as_frames(frame, left, right)
        if lifted:
            return (*lifted, "response")
    if isinstance(left, bytes) and isinstance(right, bytes) and op == "==":
        if frame[8:] == left:
            return framed(right), frame, kind
        return right, left, "response" if left == frame or message(right, Response).WhichOneof("type") else None
    return ("" if op == "==" else f"{op} ") + in_words(right), in_words(left), None


def in_words(value):
    return (value if isinstance(value, str) else shortened(value) if isinstance(value, bytes) else repr(value))[:400]


def as_frames(frame, left, right):
    """(the frame that was expected, that came), if `left` is a part of the answer that came last; None if it is not."""
    try:
        answer = Response.FromString(frame[8:])
    except Exception:  # no message
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
    """The frame, or its beginning in words, of the type `right` ("ok", "bad NOT_HELD") that was expected; None if `left` is no type."""
    kind = answer.WhichOneof("type")
    if not kind or not isinstance(left, str) or left.split()[:1] != [kind] or not isinstance(right, str):
        return None
    if re.fullmatch(r"bad [A-Z_]+", right):
        return framed(Response(bad=Response.Bad(code=right[4:], reason=answer.bad.reason or "why")))
    if right == "ok":
        return framed(Response(ok=Response.Ok()))
    return f"{WORDS[right]}: the message begins with {FIRST_BYTES[right]}" if right in WORDS else None


def instead_of_list(answer, left, right):
    """The answer's frame with the list `right` of chunk ids or of addresses in place of `left`; None if `left` is none of it."""
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
    """Put another value in the place of one that is in the message; whether there was one."""
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
    """Both as the lines of lab/explain.py; none for words."""
    if kind and isinstance(expected, bytes) and isinstance(got, bytes):
        return explain.difference(expected, got, kind)[1]
    if kind and isinstance(got, bytes):
        return [f"got       {len(got)} bytes", *explain.render(got, kind)]
    return []
