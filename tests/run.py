#!/usr/bin/env python3
"""All tests, one pytest for each file, several files at a time.

    make test        python tests/run.py             without those marked long
    make check       python tests/run.py --all       with them; make runs the gauntlet first

Most tests spend their time waiting, so it pays to run several files at a time. Long tests run whole gradings and
experiments, which use all cores themselves: they come after the others, two files at a time. Every file is a
process of its own, so that no file sees what another one leaves behind.

Each file gives one line, with its seconds, or everything pytest says if it has failures. At the end come the slowest files,
what was skipped and why, and the totals on a line of their own. --require WORDS: a test skipped for a reason with one
of these words (a regular expression) counts as failed; .ci/run names what it has installed. Exit code 0: all passed.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
import time

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(1, os.path.join(os.path.dirname(TESTS), "lab", "grader"))

import pace  # noqa: E402  (after the path)

FIRST = ["test_grade.py", "test_starter.py", "test_faults_network.py", "test_faults_system.py", "test_command_line.py", "test_tools.py",
         "test_simulate.py", "test_6_fetching.py", "test_7_faults.py", "test_notes.py"]  # the slowest, so that short files begin last
AT_A_TIME = 2 * (os.cpu_count() or 1) + 1  # files
LONG_ALONE = ["test_samples.py"]  # it tests how soon a grading ends
LONG_FIRST = ["test_starter.py", "test_notes.py"]
LONG_AT_A_TIME = 2  # files with long tests: one waits while the other computes; with more, a grading would lose marks
SLOWEST = 8  # files named at the end


class Results:
    """The results of all files' runs."""

    def __init__(self, require):
        self.require = require
        self.lock = threading.Lock()
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.seconds = {}   # file -> seconds of both its runs
        self.skipped = []   # (file, reason)

    def add(self, name, seconds, ended):
        """Count a run, and print its line or all of its output."""
        last = ended.stdout.rstrip().rpartition("\n")[2]
        found = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|error|deselected)", last)}
        reasons = re.findall(r"^SKIPPED \[(\d+)\] [^:]+:\d+: (.*)$", ended.stdout, re.M)
        missed = sum(int(count) for count, reason in reasons if self.require and re.search(self.require, reason))
        failed = found.get("failed", 0) + found.get("error", 0)
        if ended.returncode not in (0, 5) or ended.returncode == 5 and not found.get("deselected"):  # 5 means that no test was selected
            failed = failed or 1  # pytest ended before it could count
        told = ", ".join(f"{found[what]} {what}" for what in ("passed", "failed", "error", "skipped") if found.get(what))
        with self.lock:
            self.seconds[name] = self.seconds.get(name, 0) + seconds
            self.skipped += [(name, f"{reason} ({count} tests)" if count != "1" else reason) for count, reason in reasons]
            self.counts["passed"] += found.get("passed", 0)
            self.counts["failed"] += failed + missed
            self.counts["skipped"] += found.get("skipped", 0) - missed
            if told or failed:
                print(f"{seconds:4.0f} s  {name:26} {told}", flush=True)
            if failed:
                print(ended.stdout, flush=True)

    def show(self, seconds):
        slowest = sorted(self.seconds, key=self.seconds.get, reverse=True)[:SLOWEST]
        print("slowest: " + ", ".join(f"{name} {self.seconds[name]:.0f} s" for name in slowest))
        for name, reason in sorted(set(self.skipped)):
            print(f"skipped: {name}: {reason}")
        if self.require and any(re.search(self.require, reason) for _, reason in self.skipped):
            print(f"these count as failed, for they could have run: {self.require}")
        print(f"{seconds:.0f} s")
        print(", ".join(f"{count} {what}" for what, count in self.counts.items()))


def run(names, marks, results):
    """Run files from the list until none is left."""
    while True:
        with results.lock:
            if not names:
                return
            name = names.pop(0)
        began = time.monotonic()
        ended = subprocess.run([sys.executable, "-m", "pytest", "-rs", "-m", marks, os.path.join(TESTS, name)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        results.add(name, time.monotonic() - began, ended)


def run_all(names, marks, at_a_time, results):
    """Run the tests of these files with, or without, a mark, several files at a time."""
    left = list(dict.fromkeys(names))
    workers = [threading.Thread(target=run, args=(left, marks, results)) for _ in range(at_a_time)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def mentions_long(name):
    with open(os.path.join(TESTS, name), encoding="utf-8") as source:
        return "mark.long" in source.read()


def main():
    parser = argparse.ArgumentParser(description="Run the tests.")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--require", metavar="WORDS", default="", help="count what is skipped for such a reason as failed")
    args = parser.parse_args()
    began, results = time.monotonic(), Results(args.require)
    pace.share(0.3)  # for the gradings that tests run
    names = sorted(name for name in os.listdir(TESTS) if re.fullmatch(r"test_\w+\.py", name))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    run_all(names, "not long", AT_A_TIME, results)
    if args.all:
        run_all(LONG_ALONE, "long", 1, results)
        run_all([name for name in LONG_FIRST + names if mentions_long(name) and name not in LONG_ALONE], "long", LONG_AT_A_TIME, results)
    results.show(time.monotonic() - began)
    return 0 if results.counts["passed"] and not results.counts["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
