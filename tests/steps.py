"""What one test did and saw: the numbered steps of a failure report, the last bytes, what was expected.

The parts of tests/harness.py append to `trace` as they work, so that no test has to: a step for each program that is
started, each connection, each request and answer, also those between the program under test and the fakes. Only
when a test fails is a step put into words (tests/verdict.py). One test runs at a time in a process.

Three kinds of facts: steps; `sent`, what the program under test was last told; `verdict`, (expected, got), each of them
bytes of a frame, or words where there are no bytes.
"""

import re
import threading

import explain

FIRST, LAST = 12, 40  # steps that are kept of a long test: its beginning and its end


class Step:
    """`text`, then the frame in words. `kind` is "request" or "response"."""

    def __init__(self, number, text, frame, kind, by_test):
        self.number, self.text, self.frame, self.kind, self.by_test = number, text, frame, kind, by_test
        self.pieces = 1  # as many times the same, or in as many pieces

    def words(self):
        said = explain.headline(self.frame, self.kind) if self.frame is not None else ""
        if self.frame is not None and said in ("nothing that can be read", "no type") or ", and wrong bytes" in said:
            said = f"{len(self.frame)} bytes, " + shortened(self.frame)
        return f"{self.text} {said[:120]}".strip() + (f" (in {self.pieces} pieces)" if self.pieces > 1 else "")


class Trace:
    def __init__(self):
        self.lock = threading.Lock()
        self.ran_out = 0  # waits that came to their end, in all tests of this process
        self.begin()

    def begin(self):
        """A test begins."""
        self.steps = []
        self.count = 0
        self.names = {}        # port -> who listens there
        self.programs = []     # harness.Program, in the order of their start
        self.sent = None       # (frame, kind) that the program under test was last told
        self.received = None   # (frame, kind) that it last answered, or asked
        self.verdict = None    # (expected, got, kind)
        self.partial = None    # (bytes, kind) of a frame from the program under test that is not whole, or no message
        self.clock = 0         # grows with each verdict: which of two was the last

    def step(self, text, frame=None, kind=None):
        by_test = threading.current_thread() is threading.main_thread()
        with self.lock:
            self.count += 1
            self.steps.append(Step(self.count, text, frame, kind, by_test))
            if len(self.steps) > FIRST + 2 * LAST:
                del self.steps[FIRST:FIRST + LAST]

    def tell(self, text, frame, kind):
        """The program under test is told this."""
        last = self.steps[-1] if self.steps else None
        if last and last.by_test and last.text == text == "sent" and self.sent is not None and self.sent[0] is last.frame:
            last.frame += frame  # the same frame goes on
            last.pieces += 1
            self.sent = last.frame, kind
            return
        self.step(text, frame, kind)
        self.sent = frame, kind

    def hear(self, text, frame, kind):
        """The program under test said this."""
        self.step(text, frame, kind)
        self.received = frame, kind

    def judge(self, expected, got, kind=None):
        """What was expected just now, and what came: bytes or words."""
        self.clock += 1
        self.verdict = expected, got, kind, self.clock

    def forget_since(self, count):
        """Drop the test's own steps since that count: what it polls again."""
        with self.lock:
            self.steps = [step for step in self.steps if step.number <= count or not step.by_test]

    def name(self, port):
        return self.names.get(port, f"port {port}")

    def ended(self):
        """What is known of the programs that have ended, in words; "" if none has."""
        said = []
        for program in self.programs:
            code = program.process.poll()
            if code is not None and not program.stopped:
                lines = program.output.rstrip("\0\n").splitlines()
                said.append(f"{program.what} ended with {exit_words(code)}" + (f": {telling(lines)[:300]}" if lines else ""))
        return "; ".join(said)


def telling(lines):
    """The last line that names an error, with the place that a traceback of Python tells; without one the last line."""
    at = next((at for at in reversed(range(len(lines))) if re.match(r"[\w.]*(Error|Exception)\b", lines[at])), None)
    return lines[-1] if at is None else lines[at] + place(lines[:at])


def place(lines):
    """Where the traceback at the end of these lines ends, outside of Python's own library if it can be: " (peer.py, line 7, in send)"; or ""."""
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
    """Bytes as hex; of many only the first, and those around an offset."""
    if len(data) <= most:
        return data.hex(" ")
    head = data[:most // 2]
    if around is None or around < len(head):
        return f"{data[:most].hex(' ')} … ({len(data)} bytes)"
    start = max(len(head), around - 8)
    there = data[start:start + most // 2]
    return f"{head.hex(' ')} … at {start}: {there.hex(' ')} … ({len(data)} bytes)"


trace = Trace()
