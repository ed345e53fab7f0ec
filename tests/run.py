#!/usr/bin/env python3
"""All tests, one pytest for each file, one more at a time than there are cores.

    make test        or: python tests/run.py

Most tests wait for something most of the time, so three at a time take little more than a third of
the time on two cores. Those that run whole gradings, which use all cores themselves, come after them,
one at a time. Every file is a process of its own: what one leaves behind, none of the others sees. Exit
code 0: all passed.
"""

import os
import re
import subprocess
import sys
import threading
import time

TESTS = os.path.dirname(os.path.abspath(__file__))
ALONE = ["test_starter.py", "test_grade.py", "test_second.py", "test_samples.py"]  # each runs stages of tests, many at a time


def run(files, totals, lock):
    """Take files from the list until none is left; print each one's output when it is whole."""
    while True:
        with lock:
            if not files:
                return
            name = files.pop(0)
        ended = subprocess.run([sys.executable, "-m", "pytest", os.path.join(TESTS, name)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        with lock:
            print(f"{name}\n{ended.stdout}", flush=True)
            for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", ended.stdout.rstrip().rpartition("\n")[2]):
                totals[what] = totals.get(what, 0) + int(count)
            if ended.returncode and not totals.get("failed") and not totals.get("error"):
                totals["error"] = 1  # it ended before it could count


def main():
    began = time.monotonic()
    files = [name for name in os.listdir(TESTS) if re.fullmatch(r"test_\w+\.py", name)]
    files.sort(key=lambda name: -os.path.getsize(os.path.join(TESTS, name)))  # the longest first, lest the last is long
    totals, lock = {"passed": 0, "failed": 0}, threading.Lock()
    together = [name for name in files if name not in ALONE]
    workers = [threading.Thread(target=run, args=(together, totals, lock)) for _ in range(1 + (os.cpu_count() or 1))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    run([name for name in files if name in ALONE], totals, lock)
    print(f"{time.monotonic() - began:.0f} s")
    print(", ".join(f"{count} {what}" for what, count in totals.items()))
    return 0 if totals["passed"] and not totals["failed"] and not totals.get("error") else 1


if __name__ == "__main__":
    sys.exit(main())
