#!/usr/bin/env python3
"""Make three sample submissions, to see what the grader says about them: good, partial and hostile.

    python lab/grader/samples.py ../samples        then: make grade DIR=../samples/partial

good      the starter with the functions of all stages written
partial   only those of stages 0 to 3, one of them with a mistake, MISTAKE of lab/grader/mutants.py
hostile   programs that resist being ended: HOSTILE says what they do

The hostile ones do no lasting harm even outside the grader: at most CHILDREN processes for each start,
one file of at most BYTES in their own folder, and after SECONDS they end by themselves.
lab/INSTRUCTOR.md shows the marks, and tests/test_samples.py compares them with what the grader says.
"""

import pathlib
import shlex
import sys

sys.path[:0] = [str(folder) for folder in pathlib.Path(__file__).resolve().parents[:2]]

import ending  # noqa: E402  (after the path)
import starter  # noqa: E402
from mutants import MUTANTS  # noqa: E402

MISTAKE = "announced_ip_trusted"
WRITTEN = range(4)   # the stages written in the partial one
CHILDREN = 10        # a grading has up to eight tests at a time, and the grader bounds processes
BYTES = 300 << 20    # a little more than the grader allows in one file, so that the limit is reached
SECONDS = 90         # longer than a grading

HOSTILE = '''#!/usr/bin/env python3
"""A hostile submission: it ignores SIGTERM, forks children that leave its session, fills the disk, takes the
tracker's port and writes to stdout without end. It ends by itself after {seconds} seconds."""

import os
import re
import signal
import socket
import sys
import time

GIVE_UP = time.monotonic() + {seconds}


def take_the_port():
    """Listen where the tracker listens, or will, or did; never answer."""
    ports = re.findall(r"(?:--port |:)([1-9][0-9]*)", " ".join(sys.argv))
    while ports and time.monotonic() < GIVE_UP:
        try:
            return socket.create_server(("127.0.0.1", int(ports[0])))
        except (OSError, OverflowError):
            time.sleep(0.1)


def be_a_child():
    os.setsid()
    if os.fork():
        os._exit(0)  # the child's child has lost its parent
    server = take_the_port()  # noqa: F841  (kept open)
    time.sleep(max(0, GIVE_UP - time.monotonic()))
    os._exit(0)


def fill_the_disk():
    with open("filling", "ab", buffering=0) as file:
        while file.tell() < {size} and time.monotonic() < GIVE_UP:
            file.write(b"x" * (1 << 20))


for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
for _ in range({children}):
    if os.fork() == 0:
        be_a_child()
try:
    fill_the_disk()
except OSError:
    pass
while time.monotonic() < GIVE_UP:
    try:
        os.write(1, b"there is no end to this line " * 1000)
    except OSError:
        time.sleep(1)
'''


def mistaken(folder, name):
    """Put a mistake of lab/grader/mutants.py into the program of a folder."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    program = folder / mutant.program
    text = program.read_text()
    if text.count(mutant.old) != 1:
        raise LookupError(f"expected the words that {name} replaces once in {program}, found them {text.count(mutant.old)} times")
    program.write_text(text.replace(mutant.old, mutant.new))


def write(folder):
    """Make the three in a folder that is empty or not there yet; OSError if it cannot be written."""
    folder = pathlib.Path(folder)
    starter.write(folder / "good", written=[stage.number for stage in starter.stages.STAGES])
    starter.write(folder / "partial", written=WRITTEN)
    mistaken(folder / "partial", MISTAKE)
    (folder / "hostile").mkdir(parents=True)
    for name in ("tracker.py", "peer.py"):
        (folder / "hostile" / name).write_text(HOSTILE.format(seconds=SECONDS, children=CHILDREN, size=BYTES))


def main():
    folder = starter.folder_made(write, "python lab/grader/samples.py ../samples")
    print(f"made good, partial and hostile in {folder}; try: make grade DIR={shlex.quote(str(folder / 'partial'))}")


if __name__ == "__main__":
    ending.run(main)
