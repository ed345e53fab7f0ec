#!/usr/bin/env python3
"""Grade the grader: wrong programs with one mistake each, every one of which must fail a test of its stage.

    make gauntlet                        all of them, and the reference, which must pass every test
    make gauntlet ARGS=if_chunk_id       some of them, by name, each with the report that a student would read
    make gauntlet ARGS=--list            list them

They are listed in lab/grader/mutants.py. A wrong program is the reference with a few words replaced, in its own folder, and
is graded like a submission, by lab/grader/grade.py, in its stage, but only with the tests that name its clause. It is caught
when one of them fails with a complete report (PARTS), whose hint is not that it crashed: a crash hides the mistake. A line is
printed for each: name, stage, clause, the test that caught it, the hint. Survivors come last.

Exit code: 0 all caught, and the reference passes all tests; 1 something to fix; 2 wrong usage. If a mutant no longer fits
the reference, nothing runs: fix it in lab/grader/mutants.py. If one survives, a test is missing: write it.

Reading order: the tests of a clause - one grading - verdicts - all of them.
"""

import ast
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "lab"))

import ending  # noqa: E402  (after the path)
import pace  # noqa: E402
from mutants import MUTANTS  # noqa: E402
from stages import STAGES, test_files  # noqa: E402

PROGRAMS = ("peer.py", "tracker.py", "messages_pb2.py")  # the files of a submission
LIMIT = 480        # seconds for all; a mutant not run by then is not caught
GRADING = 100      # seconds for one grading, which takes five on an idle machine
JOBS = 5 * (os.cpu_count() or 1)  # gradings at a time: tests spend most of their time waiting
START = 0.3        # seconds that the reference, slightly changed, takes to start, with a core to itself
THOROUGH = ("SW-7",)              # clauses that only a thorough grading tries: their tests wait out a minute
REFERENCE_WORKERS = 2             # tests at a time in each grading of the reference
PARTS = ("clauses", "step", "expected", "got", "likely", "again")  # the parts that each report must have

Verdict = collections.namedtuple("Verdict", "name caught line report")  # one line for people; the report that a student would read


class NotOnce(ending.Failure):
    """A mutant's old text does not occur exactly once in the reference; exit code 1."""


# The tests of a clause, and the text of a mutant.


def mutated(mutant):
    """The text of a mutant's program; NotOnce."""
    text = (ROOT / mutant.program).read_text()
    if text.count(mutant.old) != 1:
        raise NotOnce(f"{mutant.name}: expected its old text once in {mutant.program}, found it {text.count(mutant.old)} times: "
                      f"the reference has changed, mend this mutant in lab/grader/mutants.py: {mutant.old.strip().splitlines()[0]!r}", 1)
    return text.replace(mutant.old, mutant.new)


def clauses_named(function):
    """The clauses in the spec mark of a test, as ast shows it."""
    calls = [mark for mark in function.decorator_list if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.spec"]
    return {clause for call in calls for clause in map(ast.literal_eval, call.args)}


def tests_of(number, clause):
    """The names of the tests of a stage that name a clause, including those that a file imports from wire_tests.py."""
    sources = [(ROOT / path).read_text() for path in test_files(STAGES[number])]
    if any(re.search(r"^from wire_tests import \*", source, re.M) for source in sources):
        sources.append((ROOT / "tests" / "wire_tests.py").read_text())
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef) and clause in clauses_named(node)]


# One grading.

running = set()  # gradings under way; when told to end, a grading ends everything it has started


def grade(number, replaced, *options):
    """Grade one stage of the reference with some files replaced, {name: text}: (results.json, what was printed)."""
    with tempfile.TemporaryDirectory(prefix="p2p-gauntlet-") as folder:
        for name in PROGRAMS:
            shutil.copy(ROOT / name, folder)
        for name, text in replaced.items():
            pathlib.Path(folder, name).write_text(text)
        results = pathlib.Path(folder, "results.json")
        command = [sys.executable, str(ROOT / "lab" / "grader" / "grade.py"), "--dir", folder, "--stage", str(number),
                   "--results", str(results), "--limit", str(GRADING), *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        running.add(process)
        try:
            printed = process.communicate()[0]  # it ends by itself, because of --limit
        finally:
            running.discard(process)
        return json.loads(results.read_text()) if results.exists() else {"tests": []}, printed


def failures(results, clause=None):
    """The failed tests that did run, for all clauses or for one."""
    failed = [test for test in results["tests"] if test.get("status") == "failed" and "extra_data" in test]
    failed = [test for test in failed if not str(test["extra_data"]["got"]).startswith("not run")]
    return [test for test in failed if clause is None or clause in test["extra_data"]["clauses"]]


def is_bytes(value):
    """Whether a report's value is bytes in hexadecimal rather than words."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{2}( [0-9a-f]{2})+( … .*)?", value) is not None  # 50 alone would be a number


def lacking(report):
    """The parts that a failure's report lacks."""
    missing = [part for part in PARTS if not report.get(part)]
    both = is_bytes(report.get("expected")) and is_bytes(report.get("got"))
    crashed = str(report.get("likely")).startswith("an exception")  # as a mutant does that uses a name the reference no longer has
    missing += ["a hint but that it crashed"] if crashed else []
    return missing + (["offset"] if both and report["expected"] != report["got"] and report.get("offset") is None else [])


# Verdicts.


def verdict_on(mutant):
    """Whether a mutant is caught by its stage, with a complete report."""
    head = f"{mutant.name:34} stage {mutant.stage}  {mutant.clause:6}"
    names = tests_of(mutant.stage, mutant.clause)
    if not names:
        return Verdict(mutant.name, False, f"{head} SURVIVED: no test of this stage names the clause", "")
    options = ["--thorough"] if mutant.clause in THOROUGH else []
    results, printed = grade(mutant.stage, {mutant.program: mutated(mutant)}, "-k", " or ".join(names), "--first", "--workers", "1", *options)
    failed = failures(results, mutant.clause)
    if not failed:
        return Verdict(mutant.name, False, f"{head} SURVIVED {', '.join(names)}", printed)
    best = min(failed, key=lambda test: len(lacking(test["extra_data"])))
    lacks = lacking(best["extra_data"])
    end = f"REPORT WITHOUT {', '.join(lacks)}" if lacks else f"hint: {best['extra_data']['likely']}"
    return Verdict(mutant.name, not lacks, f"{head} {best['name']}  {end}", best["output"])


def verdict_on_reference(number):
    """Whether the reference passes all tests of a stage."""
    results, printed = grade(number, {}, "--workers", str(REFERENCE_WORKERS))
    failed = failures(results)
    passed = sum(test.get("status") == "passed" and "extra_data" not in test and "." in test["number"] for test in results["tests"])
    good = not failed and passed > 0
    line = f"{'the reference':34} stage {number}  {'passes' if good else 'FAILS'} {passed} tests"
    return Verdict(f"the reference, stage {number}", good, line, "" if good else printed)


# All of them.


def arguments(prog, description, limit):
    """A parser with the options that the gauntlet and the variants share."""
    parser = ending.Arguments(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, with their reports (default: all)")
    parser.add_argument("--list", action="store_true", help="list the names without running anything")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help="gradings at a time (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=limit, metavar="S", help="seconds for all (default: %(default)s)")
    return parser


def parse(parser, entries):
    """The arguments; each name must be that of an entry."""
    args = parser.parse_args()
    unknown = sorted(set(args.names) - {entry.name for entry in entries})
    if unknown:
        parser.error(f"expected names that --list shows, got {', '.join(unknown)}")
    return args


def run_all(tasks, jobs, limit, show):
    """The verdicts of all tasks [(name, function, argument)], several at a time; calls show(verdict) for each as it comes."""
    give_up = time.monotonic() + limit
    verdicts = []

    def run(name, judge, what):
        if time.monotonic() > give_up:
            return Verdict(name, False, f"{name:34} NOT RUN: the {limit:g} s for all were over", "")
        return judge(what)

    with concurrent.futures.ThreadPoolExecutor(max(1, jobs)) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(run, *task) for task in tasks]):
                verdicts.append(future.result())
                show(verdicts[-1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return verdicts


def show(verdict, with_report):
    print(f"{'ok  ' if verdict.caught else 'FAIL'} {verdict.line}", flush=True)
    if with_report and verdict.report:
        print(f"\n{verdict.report}\n", flush=True)


def conclude(verdicts, seconds, with_reports):
    """Show what needs fixing and the count; return the exit code."""
    bad = [verdict for verdict in verdicts if not verdict.caught]
    if bad:
        print("\nTo mend:")
        for verdict in bad:
            show(verdict, with_reports)
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} as they should be, in {seconds:.0f} s")
    return 1 if bad else 0


def main():
    args = parse(arguments("gauntlet.py", "Grade the grader with wrong programs.", LIMIT), MUTANTS)
    chosen = [mutant for mutant in MUTANTS if mutant.name in args.names or not args.names]
    if args.list:
        for mutant in chosen:
            print(f"{mutant.name:34} stage {mutant.stage}  {mutant.clause:6} {mutant.thought}", flush=True)
        return 0
    began = time.monotonic()
    for mutant in chosen:
        mutated(mutant)
    tasks = [] if args.names else [(f"the reference, stage {stage.number}", verdict_on_reference, stage.number) for stage in STAGES]
    tasks += [(mutant.name, verdict_on, mutant) for mutant in sorted(chosen, key=lambda mutant: mutant.clause not in THOROUGH)]  # those that take longest first
    pace.share(START)
    verdicts = run_all(tasks, args.jobs, args.limit, lambda verdict: show(verdict, bool(args.names)))
    return conclude(verdicts, time.monotonic() - began, not args.names)


if __name__ == "__main__":
    ending.run(main)
