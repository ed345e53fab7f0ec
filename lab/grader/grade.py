#!/usr/bin/env python3
"""Grade a tracker and a peer, in any language, over the wire; say for each failure where the fault is.

    make grade TRACKER='./my-tracker {file} {port} {expire}' PEER='./my-peer {tracker} {out}'
    make grade DIR=submission            the tracker.py and the peer.py of that folder
    make grade THOROUGH=1 DIR=...        with the tests that wait for half a minute or more: under four minutes
    make grade STAGES=0-3 DIR=...        a week's work: only the points of stages 0 to 3 count
    make stage-3 [DIR=...] [K=word]      one stage, without the slow tests; by default it grades the reference
    python lab/grader/grade.py --help

The conformance tests of tests/test_0_*.py to tests/test_7_*.py drive the programs as processes. No code of the
programs runs in our processes. This program learns everything from the tests' own processes
(lab/grader/verdict.py), over pipes that the programs under test cannot reach.

    this program ---starts---> pytest ---forks---> workers ---start---> the programs under test
         |  <--- one JSON line for each begin and end ---  |
         |  ---- numbers of tests still to be run -------> |

First a worker measures how fast the machine is and how long the programs take to start (lab/grader/pace.py). The number
of tests at a time, the length of waits and LIMIT follow from this. If time ran out in only a few tests, they are run again
at the end, one by one, and the second verdict counts. A test that could not be tried has no verdict: "grade again".

This program supervises the workers and runs no tests itself: whatever happens below, after LIMIT seconds
everything it started is ended, results.json is written and the report is printed. From the first moment
there is a results.json with score 0. The bounds:

    time                  LIMIT seconds for all, and EARNED more for each test that passes; in each test the waits of
                          tests/harness.py, and TEST_SECONDS of lab/grader/verdict.py
    output of a program   read to its end, kept up to a bound, and slowed beyond it (tests/harness.py)
    one file              lab/grader/verdict.py, by RLIMIT_FSIZE
    all files             DISK bytes and FILES in the folders of the run and of the submission, checked every second
    processes, memory     PROCESSES and MEMORY, checked several times a second; beyond them, the run ends with all programs
    what is left behind   everything below this process is ended (lab/grader/processes.py): after each test, and at the end

There is no protection beyond that: a submission runs with your rights. It can read what you can read, and it
could kill this program. Grade strangers' code in a container or as another user
(TRACKER='setpriv --reuid=student --regid=student --clear-groups ...'; lab/INSTRUCTOR.md).

Exit code: 0 all passed; 1 something failed or was not tried; 2 wrong usage.
Reading order: usage - the run - points - the report; then lab/grader/verdict.py, the workers' side.
"""

import json
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import socket
import string
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "lab"))

import ending  # noqa: E402  (after the path)
import processes  # noqa: E402
from pace import Pace  # noqa: E402
from stages import STAGES  # noqa: E402

LIMIT = 48         # seconds for the tests on two cores; ending everything and writing take the rest of the minute allowed
EARNED = 0.2       # seconds added by each test that passes: on a busy machine a correct program still gets its verdict, only later
THOROUGH_LIMIT = 220  # with --thorough
PROBE_LIMIT = 40   # seconds for measuring how fast the machine and the programs are
STALLED = 0.5      # seconds; if the machine stood still for longer, a test that failed meanwhile is run again
TWICE = 5          # up to this many tests in which time ran out are run again; more of them are no accident
DISK = 1 << 30     # bytes that the programs may write in total
FILES = 20_000     # and files
FREE = 256 << 20   # bytes that must stay free on the disk, whoever fills it
PROCESSES = 400    # that may run at a time; the tests need a few dozen
MEMORY = 4 << 30   # bytes of resident memory of all of them together
TWICE_SECONDS = 15 # for all tests run again; those not done by then keep their first verdict
REPORTS = 12       # printed in full, one for each reason; results.json has all of them
POINTS = {}        # clause -> points in each stage that tests it, if not 1
# Environment variables that change what pytest does. With either of the first two it shows how wrong bytes differ line by
# line, which takes ten seconds to a minute for a file.
CHANGES_PYTEST = ("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "PYTEST_PLUGINS")


# Usage.


class WrongUsage(ending.Failure):
    """One line that says what was expected, what came, and what to do."""


class Incomplete(WrongUsage):
    """A submission lacks a program: that is its author's mistake and not yours, so it gets a results.json too."""


def parse_arguments():
    parser = ending.Arguments(prog="grade.py", description="Grade a tracker and a peer over the wire.", allow_abbrev=False)
    parser.add_argument("--dir", metavar="FOLDER", help="grade the tracker.py and the peer.py of this folder")
    parser.add_argument("--tracker", metavar="COMMAND", help="what starts the tracker, with {file} and {port}, and {expire} for its lease in seconds")
    parser.add_argument("--peer", metavar="COMMAND", help="what starts a peer, with {tracker} and {out}")
    parser.add_argument("--stage", metavar="N", help="only this stage, 0 to 7, without the slow tests")
    parser.add_argument("--stages", metavar="N-M", help="only these stages, such as 0-3, with the slow tests")
    parser.add_argument("-k", metavar="WORDS", default="", help="only tests with these words in their name")
    parser.add_argument("--hidden", metavar="FOLDER", help="further tests, test_N_*.py, whose source is not shown")
    parser.add_argument("--results", metavar="FILE", default="results.json", help="where to write, in Gradescope's format (default: %(default)s)")
    parser.add_argument("--limit", metavar="S", type=float, help=f"end the run after this many seconds (default: {LIMIT}, and more on a slow machine)")
    parser.add_argument("--thorough", action="store_true", help="wait out the long deadlines too: under four minutes")
    parser.add_argument("--first", action="store_true", help="end with the first failure; slow tests are run too")
    parser.add_argument("--workers", metavar="N", type=int, help="tests at a time (default: as many as the machine can take)")
    return parser.parse_args()


def check_template(option, template, needed, known):
    """The command's words; WrongUsage if it lacks a place to fill in, has one too many, or names no program."""
    try:
        words = shlex.split(template)
        parts = [part for word in words for part in string.Formatter().parse(word)]
        places = {(name, f"{name}{f'!{how}' if how else ''}{f':{form}' if form else ''}") for _, name, form, how in parts if name is not None}
    except ValueError as error:
        raise WrongUsage(f"{option}: cannot read {template!r}: {error}") from None
    for name in needed:
        if name not in [found for found, _ in places]:
            raise WrongUsage(f"{option}: expected a command with {{{name}}} in it, got {template!r}")
    for place in sorted(place for _, place in places if place not in known):
        raise WrongUsage(f"{option}: {{{place}}} is unknown; known are {', '.join(f'{{{name}}}' for name in known)}")
    if not shutil.which(words[0]):
        raise WrongUsage(f"{option}: no program {words[0]!r} that can be run; name one that is on the PATH, or by its path")
    for word in words[1:2]:
        if word.endswith((".py", ".js", ".rb", ".jar")) and not os.path.exists(word):
            raise WrongUsage(f"{option}: no file {word!r}; paths are seen from {os.getcwd()!r}")


def commands(args):
    """(template of the tracker, of the peer, folder to run them in), as the arguments say; WrongUsage."""
    python = shlex.quote(sys.executable)
    here = args.dir or str(ROOT)
    for option, value in [("--dir", args.dir), ("--tracker", args.tracker), ("--peer", args.peer)]:
        if value == "":
            kind = "folder" if option == "--dir" else "command"
            raise WrongUsage(f"{option}: expected a {kind}, got nothing; without {option} the reference is graded")
    if args.dir and (args.tracker or args.peer):
        raise WrongUsage("expected --dir, or --tracker and --peer, got both")
    if bool(args.tracker) != bool(args.peer):
        raise WrongUsage(f"expected --tracker and --peer together, got only --{'tracker' if args.tracker else 'peer'}")
    if args.tracker:
        check_template("--tracker", args.tracker, ["file", "port"], ["file", "port", "expire"])
        check_template("--peer", args.peer, ["tracker", "out"], ["tracker", "out"])
        return args.tracker, args.peer, os.getcwd()
    if not os.path.isdir(here):
        raise WrongUsage(f"--dir: no folder {here!r}")
    for name in ("tracker.py", "peer.py"):
        if not os.path.isfile(os.path.join(here, name)):
            raise Incomplete(f"--dir: expected tracker.py and peer.py in {here!r}, found no {name}")
    return f"{python} tracker.py {{file}} --port {{port}} --expire {{expire}}", f"{python} peer.py {{tracker}} {{out}}", os.path.abspath(here)


def stages(args):
    """The numbers of the stages to run; WrongUsage."""
    known = [stage.number for stage in STAGES]
    if args.stage is not None and args.stages is not None:
        raise WrongUsage("expected --stage or --stages, got both")
    if args.stages is not None:
        found = re.fullmatch(r"(\d)(?:-(\d))?", args.stages)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not known[0] <= first <= last <= known[-1]:
            raise WrongUsage(f"--stages: expected stages such as 0-3, or one from {known[0]} to {known[-1]}, got {args.stages!r}")
        return known[first:last + 1]
    if args.stage is None:
        return known
    if args.stage not in map(str, known):
        raise WrongUsage(f"--stage: expected a number from {known[0]} to {known[-1]}, got {args.stage!r}")
    return [int(args.stage)]


def hidden_tests(folder):
    """The files of hidden tests; WrongUsage if there are none."""
    if not folder:
        return []
    found = sorted(pathlib.Path(folder).glob("test_[0-7]_*.py")) if os.path.isdir(folder) else []
    if not found:
        raise WrongUsage(f"--hidden: expected a folder with tests that are named test_N_*.py, N from 0 to 7, got {folder!r}")
    return found


def check_results(path):
    """WrongUsage if the path is not a regular file: as root, even /dev/null would be replaced."""
    if not os.path.basename(path) or os.path.lexists(path) and not os.path.isfile(path):
        raise WrongUsage(f"--results: cannot write {path!r}: expected the name of a regular file, new or not")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise WrongUsage(f"--results: cannot write {path!r}: expected an existing folder")


# The run.


class Run:
    """One run of the tests: the workers and what they have reported.

    `tests` maps a test's id to what is known about it: number, title, clauses, outcome (None if it did not run).
    """

    def __init__(self, templates, numbers, words="", hidden=(), limit=None, slow=True, thorough=False, ours=False, first=False, workers=None):
        self.tracker, self.peer, self.folder = templates
        self.numbers, self.words, self.hidden = numbers, words, hidden
        self.asked_limit, self.slow, self.thorough, self.ours, self.first, self.asked_workers = limit, slow, thorough, ours, first, workers
        self.began = time.monotonic()
        self.pace = None        # Pace, once measured
        self.limit = PROBE_LIMIT
        self.options = []       # programs and the options that they reject although the tests append them
        self.tests = {}
        self.left_out = {"slow": 0, "thorough": 0, "ours": 0}
        self.broken = []        # (file, why) for files that could not be collected
        self.misread = False    # whether `words` are not a valid pytest expression
        self.stopped = None     # why the run was ended early
        self.workers = {}       # descriptor of a worker's reports -> Worker; the first is the process that collects the tests
        self.temporary = tempfile.mkdtemp(prefix="p2p-grade-")
        os.chmod(self.temporary, 0o711)  # programs that run as another user can reach only their own files in it
        self.tokens = None      # the pipe with the numbers of the tests to run
        self.collector = None   # the process that collects the tests and forks the workers
        self.forks = None       # a socket; pipes sent through it go to a new worker
        self.disk_before = None

    def environment(self):
        """The environment of a worker, without CHANGES_PYTEST."""
        path = os.pathsep.join(str(folder) for folder in (ROOT / "tests", ROOT, ROOT / "lab", ROOT / "lab" / "grader", ROOT / "lab" / "tools"))
        return {**{name: value for name, value in os.environ.items() if name not in CHANGES_PYTEST}, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TMPDIR": self.temporary,
                "TRACKER": self.tracker, "PEER": self.peer, "PROGRAMS": self.folder, "GRADING": "ours" if self.ours else "other",
                "GRADE_HIDDEN": os.path.join(self.temporary, "hidden") if self.hidden else "",
                "GRADE_SLOW": "yes" if self.slow else "", "GRADE_THOROUGH": "yes" if self.thorough else "", "GRADE_OURS": "yes" if self.ours else ""}

    def files(self):
        """The test files; hidden ones are copied into a folder of their own, with our fixtures."""
        found = [str(path) for number in self.numbers for path in sorted((ROOT / "tests").glob(f"test_{number}_*.py"))]
        if self.hidden:
            folder = pathlib.Path(self.temporary, "hidden")
            folder.mkdir(mode=0o700, exist_ok=True)
            shutil.copy(ROOT / "tests" / "conftest.py", folder)
            for path in self.hidden:
                if int(path.name.split("_")[1]) in self.numbers:
                    copy = folder / re.sub(r"^test_(\d)_", r"test_\1_hidden_", path.name)
                    shutil.copy(path, copy)
                    found.append(str(copy))
        return found

    def start_collector(self, files):
        """Start pytest, which reads the tests once for all workers; doing so in each worker would take it half a second."""
        reports, tell = os.pipe()
        self.forks, theirs = socket.socketpair()
        passed = {"GRADE_REPORTS": tell, "GRADE_FORKS": theirs.fileno()}
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "verdict", "-p", "no:cacheprovider",
                   "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
                   *(["-k", self.words] if self.words else []), *files]
        with open(os.path.join(self.temporary, "pytest.out"), "wb") as output:
            environment = {**self.environment(), **{name: str(number) for name, number in passed.items()}}
            self.collector = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                              env=environment, pass_fds=passed.values(), start_new_session=True)
        os.close(tell)
        theirs.close()
        self.workers[reports] = Worker(reports)

    def start_worker(self):
        """Have a worker forked; it runs tests, or measures the pace if that is not known yet."""
        reports, tell = os.pipe()
        how = self.pace and self.pace._asdict()
        try:
            socket.send_fds(self.forks, [json.dumps(how).encode()], [tell, self.tokens])
        except OSError:  # a program under test has ended the forking process, so no line will come
            pass
        os.close(tell)
        self.workers[reports] = Worker(reports, measures=not self.pace)

    def hand_out(self, tests, workers):
        """Have these tests run by this many workers."""
        indexes = {test["id"]: index for index, test in enumerate(self.tests.values())}
        if self.tokens is not None:
            os.close(self.tokens)
        self.tokens, write = os.pipe()
        for test in tests:
            os.write(write, struct.pack("!I", indexes[test["id"]]))
        os.close(write)
        for _ in range(min(workers, len(tests))):
            self.start_worker()

    def run(self):
        """Run all tests, or as many as time and bounds allow. Nothing that was started still runs afterwards."""
        processes.adopt_orphans()
        try:
            files = self.files()
            self.disk_before = used([self.temporary, self.folder])
            if files:
                self.start_collector(files)
                self.follow()
                self.without_tests()
                self.try_again()
        finally:
            ending.catch_signals(signal.SIG_IGN)  # a second signal must not leave anything behind
            processes.end_all([self.collector.pid] if self.collector else [])
            self.remove()

    def follow(self):
        """Read what the workers report, and watch the bounds, until all have ended or a bound is broken."""
        looked, restarts = time.monotonic(), 0
        while self.workers and not self.stopped:
            for reports in select.select(list(self.workers), [], [], 0.2)[0]:
                worker = self.workers[reports]
                if worker.read(self):
                    continue
                del self.workers[reports]
                os.close(reports)
                if worker.measures and not self.pace:
                    self.measured(Pace())  # a program under test has ended it
                elif self.lost(worker) and restarts < 10:
                    restarts += 1
                    self.start_worker()
            self.stopped = self.bound_broken(time.monotonic() - looked > 1)
            if time.monotonic() - looked > 1:
                looked = time.monotonic()

    def lost(self, worker):
        """Whether a worker ended in the middle of a test, which then counts as failed."""
        if worker.running is None:
            return False
        self.tests[worker.running].update(outcome="failed", failure=in_words("a verdict", "the process that ran this test was ended"))
        return True

    def without_tests(self):
        """Find out why no test was collected."""
        if self.tests or self.broken or self.stopped:
            return
        self.forks.close()
        code = self.collector.wait()
        self.misread = code == 4 and bool(self.words)  # 4 means wrong usage of pytest
        if code not in (0, 5) and not self.misread:    # 5 means that no test was selected
            with open(os.path.join(self.temporary, "pytest.out"), errors="replace") as output:
                self.broken.append(("pytest", output.read()[-3000:]))

    def collected(self, found):
        """Number the tests, hand them out, the longest first, and start the workers."""
        counts = {}
        for test in found:
            stage = int(test["file"].split("_")[1])
            counts[stage] = counts.get(stage, 0) + 1
            number = f"{stage}.{counts[stage]}"
            self.tests[test["id"]] = {**test, "stage": stage, "number": number, "title": title(test["name"]),
                                      "outcome": None, "failure": None, "seconds": 0, "late": False, "stalled": 0}
        if self.first or not found:
            self.measured(Pace())
        else:
            self.tokens = os.open(os.devnull, os.O_RDONLY)  # which holds no numbers
            self.start_worker()

    def measured(self, pace):
        """Begin with the tests, as many at a time as this pace allows, the longest first."""
        self.pace = pace
        self.limit = self.asked_limit or pace.seconds(len(self.tests), THOROUGH_LIMIT if self.thorough else LIMIT)
        self.hand_out(sorted(self.tests.values(), key=lambda test: -test["takes"]), self.asked_workers or pace.workers())

    def try_again(self):
        """If time ran out in a few tests only, run these again, one by one: the machine may have been busy. Not for a student's `make stage-N`."""
        late = [test for test in self.tests.values() if test["outcome"] == "failed" and (test["late"] or test["stalled"] > STALLED)]
        if not late or len(late) > TWICE or self.stopped or not self.slow or self.first:
            return
        self.limit = min(self.limit, time.monotonic() - self.began + TWICE_SECONDS * self.pace.factor())
        self.hand_out(late, 1)
        self.follow()
        self.stopped = None if self.out_of_time() else self.stopped
        for test in late:
            if test["outcome"] == "failed" and test["stalled"] > 2 * STALLED:
                test.update(outcome=None, untried=f"this machine stood still for {test['stalled']:.1f} s meanwhile")

    def out_of_time(self):
        return bool(self.stopped) and self.stopped.startswith("the time of")

    def bound_broken(self, also_files):
        """Why the run must end now; None if it need not."""
        if self.first and any(test["failure"] for test in self.tests.values()):
            return "one failure is enough"
        if time.monotonic() - self.began > self.limit:
            return f"the time of {self.limit:.0f} s for {'the tests' if self.pace else 'measuring how fast the programs start'} was over"
        below = [pid for pid, _, ended in processes.descendants(os.getpid()) if not ended]
        if len(below) > PROCESSES:
            return f"the programs under test started more than {PROCESSES} processes"
        if resident(below) > MEMORY:
            return f"the programs under test took more than {MEMORY >> 30} GiB of memory"
        if also_files:
            size, files = used([self.temporary, self.folder])
            if size - self.disk_before[0] > DISK or files - self.disk_before[1] > FILES:
                return f"the programs under test wrote more than {DISK >> 30} GiB or {FILES} files"
            if shutil.disk_usage(self.temporary).free < FREE:
                return f"less than {FREE >> 20} MiB were left free on the disk"
        return None

    def remove(self):
        """Remove the files of the run."""
        for descriptor in [self.tokens, *self.workers]:
            if descriptor is not None:
                os.close(descriptor)
        if self.forks:
            self.forks.close()
        subprocess.run(["chmod", "-R", "u+rwX", self.temporary], stderr=subprocess.DEVNULL, timeout=10)
        subprocess.run(["rm", "-rf", self.temporary], stderr=subprocess.DEVNULL, timeout=30)


class Worker:
    """A process that runs tests, and the lines that it writes."""

    def __init__(self, reports, measures=False):
        self.reports, self.measures = reports, measures
        self.unread = b""
        self.running = None  # the id of the test under way

    def read(self, run):
        """Read what has come; False at the end."""
        data = os.read(self.reports, 1 << 20)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            self.take(visible(json.loads(line)), run)
        return bool(data)

    def take(self, told, run):
        if "collected" in told:
            run.collected(told["collected"])
        elif "power" in told:
            run.options = told["options"]
            run.measured(Pace(told["power"], told["start"]))
        elif "slow" in told:
            run.left_out = told
        elif "broken" in told and (told["broken"], told["why"]) not in run.broken:
            run.broken.append((told["broken"], told["why"]))
        elif "begin" in told:
            self.running = told["begin"]
        elif "end" in told:
            self.running = None
            run.tests[told["end"]].update({name: told[name] for name in ("outcome", "failure", "seconds", "late", "stalled")})
            if told["outcome"] == "passed" and not run.asked_limit:
                run.limit += EARNED


CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # characters that can change a terminal or break readers of JSON


def visible(value):
    """What a worker reports, with control characters escaped, because it quotes what programs have printed."""
    if isinstance(value, str):
        return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, list):
        return [visible(each) for each in value]
    return {name: visible(each) for name, each in value.items()} if isinstance(value, dict) else value


def title(name):
    """test_a_b[c_d] in words: "a b: c d"."""
    name, _, case = name.removeprefix("test_").partition("[")
    return (name + (f": {case[:-1]}" if case else "")).replace("_", " ")


def in_words(expected, got):
    """A test's failure when there are no bytes to show."""
    return {"steps": [], "step": 0, "sent": None, "expected": expected, "got": got, "offset": None, "likely": None}


def resident(pids):
    """Bytes of memory that these processes use (Linux; elsewhere 0)."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                total += int(file.read().split()[1]) * resource_page
        except OSError:
            pass
    return total


resource_page = os.sysconf("SC_PAGE_SIZE")  # bytes


def used(folders):
    """(bytes, files) below these folders; stops counting well beyond the bound."""
    size = files = 0
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                files += 1
                try:
                    size += os.lstat(os.path.join(where, name)).st_blocks * 512
                except OSError:
                    pass
            if files > 10 * FILES:
                return size, files
    return size, files


# Points: in each stage whose tests name it, a clause is worth one point, or what POINTS says, if all those tests pass. So
# a program that is right up to stage N gets the points of stages 0 to N, whatever later stages demand.


def clause_texts():
    """"FC-3" -> its text in lab/SPEC.md."""
    return dict(re.findall(r"^\*\*([A-Z]+-\d+)\*\* (.+)$", (ROOT / "lab" / "SPEC.md").read_text(), re.M))


def by_clause(tests):
    """(stage, clause) -> its tests, stage by stage in the order of the page; a skipped test says nothing about a clause."""
    page, found = list(clause_texts()), {}
    for test in tests:
        for clause in test["clauses"]:
            if test["outcome"] != "skipped":
                found.setdefault((test["stage"], clause), []).append(test)
    order = {clause: at for at, clause in enumerate(page)}
    return dict(sorted(found.items(), key=lambda pair: (pair[0][0], order.get(pair[0][1], len(page)))))


def status(test, run):
    """passed, failed, skipped, or untried, which means no verdict and no known fault of the program."""
    if test["outcome"] is None:
        return "untried" if test.get("untried") or run.out_of_time() else "failed"
    return test["outcome"]


def score(clause, its):
    return POINTS.get(clause, 1) if all(test["outcome"] == "passed" for test in its) else 0


def points(tests, numbers):
    """{stage: (points, of)}."""
    clauses = by_clause(tests).items()
    return {number: (sum(score(clause, its) for (stage, clause), its in clauses if stage == number),
                     sum(POINTS.get(clause, 1) for (stage, clause), _ in clauses if stage == number)) for number in numbers}


def results(run):
    """The content of results.json: an entry with points for each clause of a stage, then one without points for each test."""
    tests = list(run.tests.values())
    entries = [clause_entry(*key, its, run) for key, its in by_clause(tests).items()] + [test_entry(test, run) for test in tests]
    got = points(tests, run.numbers)
    return {"score": sum(score for score, _ in got.values()),
            "execution_time": round(time.monotonic() - run.began), "output": "\n".join(notes(run)), "visibility": "visible",
            "stdout_visibility": "visible", "tests": entries,
            "extra_data": {"stages": run.numbers, "points": {str(number): list(pair) for number, pair in got.items()},
                           "passed": sum(test["outcome"] == "passed" for test in tests), "of": len(tests),
                           "max_score": sum(most for _, most in got.values()), "stopped": run.stopped, "grade_again": grade_again(run),
                           "power": run.pace and round(run.pace.power, 2), "start": run.pace and run.pace.start}}


def clause_entry(stage, clause, its, run):
    """What Gradescope shows for one clause in one stage. Without a verdict it has no status."""
    bad = [test for test in its if status(test, run) != "passed"]
    lines = [f"{test['number']} {test['title']}" + (", not tried" if status(test, run) == "untried" else "") for test in bad]
    entry = {"name": f"stage {stage}: {clause} {clause_texts().get(clause, '')}", "number": clause, "score": score(clause, its),
             "max_score": POINTS.get(clause, 1), "tags": [f"stage {stage}", clause.partition("-")[0]],
             "output": "\n".join([f"{len(its) - len(bad)} of {len(its)} tests passed", *lines])}
    known = "failed" if any(status(test, run) == "failed" for test in its) else "" if bad else "passed"
    return {**entry, **({"status": known} if known else {})}


def test_entry(test, run):
    """What Gradescope shows for one test; if it failed, the report."""
    known = status(test, run)
    entry = {"name": f"{test['number']} {test['title']}", "number": test["number"], "tags": [f"stage {test['stage']}"]}
    if known != "untried":
        entry["status"] = "failed" if known == "failed" else "passed"
    if known == "failed":
        entry["output"] = report(test, run)
        shown = {name: value for name, value in failure_of(test, run).items() if not name.endswith("lines")}
        entry["extra_data"] = {"clauses": test["clauses"], **shown, **({"steps": []} if test["hidden"] else {}), "again": again(test, run)}
    elif known == "skipped":
        entry["output"] = "skipped here"
    elif known == "untried":
        entry["output"] = f"not tried: {test.get('untried') or run.stopped}"
    return entry


def write(path, content):
    """Replace results.json as a whole; a link, which a submission may have made, is not followed."""
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)  # a submission may have removed its own folder, or made a folder at this path
    if os.path.isdir(path) and not os.path.islink(path):
        os.rename(path, tempfile.mkdtemp(dir=os.path.dirname(path), prefix=".not-results-"))
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), prefix=".results-", delete=False) as file:
        json.dump(content, file, indent=1)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


# The report.


def failure_of(test, run):
    """What is known about a failure."""
    if test["outcome"] is None:
        return in_words("a verdict", f"not run: {run.stopped or 'the processes that run the tests ended before'}")
    return test["failure"]


def again(test, run):
    """The command that runs this test again."""
    if test["hidden"]:
        return "a hidden test"
    name = test["name"]
    case = name.partition("[")[2][:-1]
    alone = case.isidentifier() and sum(case in other["id"] for other in run.tests.values()) == 1
    return f"make stage-{test['stage']}{run.target} K={case if alone else name.partition('[')[0].removeprefix('test_')}"


def heading(test):
    return f"FAIL {test['number']}  {stage_title(test['stage'])}: {test['title']}"


def report(test, run):
    """The lines of a failed test: clause, steps, bytes, what is likely, how to run it again. A hidden test shows no steps."""
    failure = failure_of(test, run)
    texts = clause_texts()
    steps = [] if test["hidden"] else few(failure["steps"])
    lines = [heading(test)]
    lines += [f"  SPEC {clause}  {texts.get(clause, '')}" for clause in test["clauses"]]
    lines += [f"  {'>' if step.split()[0] == str(failure['step']) else ' '} {step}" for step in steps]
    lines += labelled("sent", failure.get("sent_lines") or [])
    lines += [f"  expected  {failure['expected']}", f"  got       {failure['got']}"]
    if failure["offset"] is not None:
        lines.append(f"  differ    at offset {failure['offset']}")
    lines += labelled("bytes", failure.get("lines") or [])
    lines += [f"  likely    {failure['likely']}"] if failure["likely"] else []
    return "\n".join([*lines, f"  again     {again(test, run)}"])


def stage_title(number):
    return next(stage.title for stage in STAGES if stage.number == number)


def few(steps):
    """The first and the last steps, if there are many."""
    return steps if len(steps) <= 12 else [*steps[:4], f"… {len(steps) - 11} more", *steps[-7:]]


def labelled(label, lines):
    return [f"  {label if at == 0 else '':8}  {line}" for at, line in enumerate(lines)]


def notes(run):
    """What to say about the run as a whole."""
    said = [f"{file}: these tests could not be read" + (f"\n{why}" if why else "") for file, why in run.broken]
    said += [f"the {words.split()[0]}'s command starts it, but not with {words.split()[1]} after it: the tests append the options of lab/SPEC.md (CL); "
             'let a wrapper pass them on, as "$@" does in a shell' for words in run.options]
    if run.stopped and not run.out_of_time():
        said.append(f"ended early: {run.stopped}")
    return said + ([grade_again(run)] if grade_again(run) else [])


def grade_again(run):
    """Why some tests have no verdict, and the option that helps; "" if all have."""
    untried = [test for test in run.tests.values() if status(test, run) == "untried"]
    if not untried:
        return ""
    said = f"grade again: {len(untried)} of {len(run.tests)} tests were not tried, because {untried[0].get('untried') or run.stopped}"
    waited = sum(test["seconds"] for test in run.tests.values() if test["late"])
    if waited > sum(test["seconds"] for test in run.tests.values()) / 2:
        return f"{said}; most of it went by in waits for what did not come, so mend what is reported first, or give it more, --limit {2 * run.limit:.0f}"
    return f"{said}; " + (f"give it more, --limit {2 * run.limit:.0f}" if run.out_of_time() else "let nothing else run on it, or fewer tests at a time, --workers 2")


def summary(run):
    """One line for each stage, and one for all."""
    tests, lines = list(run.tests.values()), []
    all_points = points(tests, run.numbers)
    for number in run.numbers:
        its = [test for test in tests if test["stage"] == number]
        if its:
            passed, (got, most) = sum(test["outcome"] == "passed" for test in its), all_points[number]
            lines.append(f"stage {number}  {stage_title(number):13} {passed:3} of {len(its):3} tests passed, {got:3} of {most:3} points")
    got, most = (sum(pair[at] for pair in all_points.values()) for at in (0, 1))
    lines.append(f"{got} of {most} points in {time.monotonic() - run.began:.1f} s; "
                 f"in each stage, a clause of lab/SPEC.md is earned when all its tests pass" + left_out(run))
    return lines


def left_out(run):
    said = [f"{run.left_out[name]} {name} tests, which make grade{words} runs" for name, words in (("slow", ""), ("thorough", " THOROUGH=1")) if run.left_out[name]]
    return f". Left out: {', '.join(said)}" if said else ""


def by_reason(failed, run):
    """[tests that failed for the same reason], judging by their reports: the first gets a report, the others a line."""
    found = {}
    for test in failed:
        failure = failure_of(test, run)
        got = re.sub(r"\d+", "#", failure["got"]) if failure["got"] and failure["likely"] and not re.match("[0-9a-f]{2}( |$)", failure["got"]) else ""
        found.setdefault((failure["likely"] or failure["expected"], got), []).append(test)
    return list(found.values())


def show(run):
    """Print the report; return the exit code."""
    if run.misread:
        raise WrongUsage(f"-k: expected words of a test's name, with and, or and not between them, got {run.words!r}")
    if not run.tests and not run.broken:
        raise WrongUsage(f"no test of stage {', '.join(map(str, run.numbers))} has {run.words!r} in its name")
    failed = [test for test in run.tests.values() if status(test, run) == "failed"]
    for count, same in enumerate(by_reason(failed, run)):
        if count < REPORTS:
            print(report(same[0], run))
            same = same[1:]
        for test in same:
            print(f"{heading(test)}  SPEC {', '.join(test['clauses'])}  again: {again(test, run)}")
        print()
    print("\n".join(notes(run) + summary(run)), flush=True)
    return 1 if failed or run.broken or run.stopped or grade_again(run) else 0


def prepared(args):
    """The Run that the arguments ask for, after writing a results.json without points; WrongUsage."""
    check_results(args.results)
    if args.limit is not None and not 0 < args.limit < 1e6:
        raise WrongUsage(f"--limit: expected a number of seconds above 0, got {args.limit:g}")
    run = Run(commands(args), stages(args), args.k, hidden_tests(args.hidden), args.limit, slow=args.stage is None or args.first, thorough=args.thorough,
              ours=not (args.dir or args.tracker), first=args.first, workers=args.workers)
    given = [("DIR", args.dir), ("TRACKER", args.tracker), ("PEER", args.peer)]
    run.target = "".join(f" {name}={shlex.quote(value)}" for name, value in given if value)
    try:
        write(args.results, {"score": 0, "output": "The grading did not come to its end.", "tests": []})
    except OSError as error:
        run.remove()
        raise WrongUsage(f"--results: cannot write {args.results!r}: {error.strerror}") from None
    except BaseException:
        run.remove()
        raise
    return run


def main():
    args = parse_arguments()
    try:
        run = prepared(args)
    except Incomplete as error:
        write(args.results, {"score": 0, "output": str(error), "tests": []})
        raise
    try:
        run.run()
    finally:
        write(args.results, results(run))
    return show(run)


if __name__ == "__main__":
    ending.run(main)
