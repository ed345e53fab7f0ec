"""What one test did and saw: the numbered steps of a failure report, the last bytes, what was expected.

The parts of tests/harness.py append to `trace` as they work, so that tests need not: a step for each program that is
started, each connection, and each request and answer, including those between the program under test and the fakes.
Steps are put into words only when a test fails (lab/grader/verdict.py). A process runs one test at a time.

There are three kinds of facts: steps; `sent`, the last message to the program under test, and `answer`, its last answer to a
test, with the request, because the fakes keep talking to it meanwhile; and `verdict`, (expected, got), each of them the bytes
of a frame, or words if there are no bytes.
"""

import re
import threading

import explain

FIRST, LAST = 12, 40  # steps kept of a long test, at its beginning and its end


class Step:
    """`text`, then the frame in words. `kind` is "request" or "response"."""

    def __init__(self, number, text, frame, kind, by_test):
        self.number, self.text, self.frame, self.kind, self.by_test = number, text, frame, kind, by_test
        self.pieces = 1    # number of pieces in which it was sent,
        self.where = None  # on this connection

    def words(self):
        said = explain.headline(self.frame, self.kind) if self.frame is not None else ""
        if self.frame is not None and said in ("nothing that can be read", "no type") or ", and wrong bytes" in said:
            said = f"{len(self.frame)} bytes, " + shortened(self.frame)
        return f"{self.text} {said[:120]}".strip() + (f" (in {self.pieces} pieces)" if self.pieces > 1 else "")


class Trace:
    def __init__(self):
        self.lock = threading.Lock()
        self.ran_out = 0  # waits that timed out, in all tests of this process
        self.begin()

    def begin(self):
        """A test begins."""
        self.steps = []
        self.count = 0
        self.names = {}        # port -> name of whatever listens there
        self.programs = []     # harness.Program, in starting order
        self.sent = None       # (frame, kind) last sent to the program under test
        self.received = None   # (frame, kind) of its last answer or request
        self.answer = None     # (frame, number of its step, request) of its last answer to a test
        self.verdict = None    # (expected, got, kind)
        self.partial = None    # (bytes, kind) of a frame from the program under test that is incomplete or not a message
        self.clock = 0         # grows with each verdict, to tell which of two came last

    def step(self, text, frame=None, kind=None):
        by_test = threading.current_thread() is threading.main_thread()
        with self.lock:
            self.count += 1
            step = Step(self.count, text, frame, kind, by_test)
            self.steps.append(step)
            if len(self.steps) > FIRST + 2 * LAST:
                del self.steps[FIRST:FIRST + LAST]
        return step

    def tell(self, text, frame, kind, where=None):
        """Note bytes sent to the program under test on a connection; return all that was sent there since its last answer."""
        last = next((step for step in reversed(self.steps) if step.by_test), None)
        if last and where is not None and last.where is where and last.text == text:
            last.frame += frame  # the same frame continues
            last.pieces += 1
        else:
            last = self.step(text, frame, kind)
            last.where = where
        self.sent = last.frame, kind
        return self.sent

    def hear(self, text, frame, kind, request=None):
        """Note what the program under test said; if it said it to a test, `request` is the one it answers."""
        step = self.step(text, frame, kind)
        self.received = frame, kind
        if kind == "response":
            self.answer = frame, step.number, request

    def judge(self, expected, got, kind=None, request=None, step=None):
        """Note what was just expected and what came, as bytes or words; in answer to `request`, in the step with the number `step`."""
        self.clock += 1
        self.verdict = expected, got, kind, self.clock, request, step

    def forget_since(self, count):
        """Drop the test's own steps since that count, because it polls again."""
        with self.lock:
            self.steps = [step for step in self.steps if step.number <= count or not step.by_test]

    def name(self, port):
        return self.names.get(port, f"port {port}")

    def ended(self):
        """What is known about the programs that have ended, in words; "" if none has."""
        said = []
        for program in self.programs:
            code = program.process.poll()
            if code is not None and not program.stopped:
                lines = program.output.rstrip("\n").splitlines()
                said.append(f"{program.what} ended with {exit_words(code)}" + (f": {telling(lines)[:300]}" if lines else ""))
        return "; ".join(said)


def telling(lines):
    """The last line that names an error, with the place that a Python traceback gives; if no line does, the last line."""
    errors = r"[\w.]*(Error|Exception)\b|.*: No such file or directory$"  # the second is env's message about a wrong first line
    at = next((at for at in reversed(range(len(lines))) if re.match(errors, lines[at])), None)
    return lines[-1] if at is None else lines[at] + place(lines[:at])


def place(lines):
    """Where the traceback at the end of these lines ends, if possible outside Python's own library: " (peer.py, line 7, in send)"; or ""."""
    found = []
    for line in reversed(lines):
        if not line.startswith(" "):
            break
        found += re.findall(r'^  File "(?:([^"]*)/)?([^"/]+)", line (\d+), in (.+)', line)
    own = [frame for frame in found if "/lib/python" not in frame[0]] or found
    return f" ({own[0][1]}, line {own[0][2]}, in {own[0][3]})" if own else ""


def exit_words(code):
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def shortened(data, around=None, most=96):
    """Bytes as hex; if there are many, only the first ones and those around an offset."""
    if len(data) <= most:
        return data.hex(" ")
    head = data[:most // 2]
    if around is None or around < len(head):
        return f"{data[:most].hex(' ')} … ({len(data)} bytes)"
    start = max(len(head), around - 8)
    there = data[start:start + most // 2]
    return f"{head.hex(' ')} … at {start}: {there.hex(' ')} … ({len(data)} bytes)"


trace = Trace()
