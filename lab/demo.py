#!/usr/bin/env python3
"""A swarm on one machine: a tracker, a seeder and six peers; at the end there are six more copies of the file.

    make demo        or: .venv/bin/python lab/demo.py

The programs run as processes, as a user would start them; the bars show what the peers' --events
files say. Uploads are limited, or it would be over before there is anything to see.

Reading order: constants - processes - what is shown - main.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import ending  # beside this file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZE = 10 << 20            # bytes of random file
PEERS = 6                  # leechers, besides the seeder
UPLOAD_LIMIT = 3 << 20     # bytes per second for each peer: the swarm takes about 5 s
GIVE_UP_SECONDS = 60       # it takes a tenth of that
SHOW_SECONDS = 0.1         # between two looks at the events
BAR = 40                   # characters, if the terminal has room for them


def start(arguments, **options):
    """Start one of our Python programs in the repository's folder, in a session of its own so that Ctrl-C does not reach it."""
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, text=True, start_new_session=True, **options)


def start_tracker(path, processes):
    """Start the tracker without seeding; return the port on which it says it listens."""
    tracker = start(["tracker.py", path, "--port", "0", "--no-seed"], stdout=subprocess.PIPE)
    processes.append(tracker)
    for line in tracker.stdout:
        found = re.search(r"listening on port (\d+)$", line.strip())
        if found:
            return int(found[1])
    raise ending.Failure("expected the tracker to listen, but it ended", 1)


def start_peer(folder, name, port, processes):
    """A peer that writes its file and its events into the folder under its name."""
    out = os.path.join(folder, name + ".bin")
    events = os.path.join(folder, name + ".events")
    open(events, "w").close()
    processes.append(start(["peer.py", f"127.0.0.1:{port}", out, "--quiet", "--upload-limit", str(UPLOAD_LIMIT), "--events", events]))
    return out, events


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Progress:
    """What one peer's events say: bytes fetched, from how many neighbors, complete or not."""

    def __init__(self, name, events):
        self.name = name
        self.file = open(events)
        self.rest = ""  # the beginning of an unfinished line
        self.fetched = 0
        self.neighbors = set()
        self.complete = False

    def read(self):
        """Read what was written since the last call."""
        *lines, self.rest = (self.rest + self.file.read()).split("\n")
        for event in map(json.loads, lines):
            if event["event"] == "fetched":
                self.fetched += event["bytes"]
                self.neighbors.add(event["of"])
            self.complete |= event["event"] == "complete"

    def line(self, width):
        """This peer's line, at most `width` characters wide: the bar shrinks before the words do."""
        state = "complete" if self.complete else f"{100 * self.fetched / SIZE:5.1f} %  "
        words = f" {state}  {len(self.neighbors)} source{'s' * (len(self.neighbors) != 1)}"
        bar = max(0, min(BAR, width - len(self.name) - len(words) - 4))
        done = self.fetched * bar // SIZE
        return f"{self.name}  [{'#' * done}{'.' * (bar - done)}]{words}"[:width]


def on_terminal():
    """Whether stdout is a terminal that can overwrite earlier lines."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def width_of_terminal():
    """The terminal's current number of columns."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, AttributeError, ValueError):
        return 80


def show(all_progress, again):
    """Print one line for each peer; on a terminal, over the previous ones."""
    if again and on_terminal():
        print(f"\x1b[{len(all_progress)}A", end="")
    width = width_of_terminal()
    for progress in all_progress:
        print(("\x1b[K" if on_terminal() else "") + progress.line(width))
    print(end="" if on_terminal() else "\n", flush=True)


def watch(all_progress, processes):
    """Show progress until every peer is complete."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    shown_at = 0.0
    while not all(progress.complete for progress in all_progress):
        ending.check_signals()
        if time.monotonic() > give_up or any(process.poll() is not None for process in processes):
            raise ending.Failure("expected every peer to become complete, but one ended or time ran out", 1)
        time.sleep(SHOW_SECONDS)
        for progress in all_progress:
            progress.read()
        if on_terminal() or time.monotonic() - shown_at > 1:
            show(all_progress, again=shown_at > 0)
            shown_at = time.monotonic()
    show(all_progress, again=True)


def distribute(folder, processes):
    """Run a whole swarm in one folder: start it, watch it, compare what arrived."""
    original = os.path.join(folder, "original.bin")
    with open(original, "wb") as file:
        file.write(os.urandom(SIZE))
    shutil.copyfile(original, os.path.join(folder, "seeder.bin"))  # its OUT is already complete, so it is a seeder
    port = start_tracker(original, processes)
    began = time.monotonic()
    start_peer(folder, "seeder", port, processes)
    peers = [start_peer(folder, f"peer {number}", port, processes) for number in range(1, PEERS + 1)]
    print(f"a tracker, a seeder and {PEERS} peers on {SIZE >> 20} MiB; each uploads at most {UPLOAD_LIMIT >> 20} MiB a second\n")
    watch([Progress(os.path.basename(out)[:-4], events) for out, events in peers], processes)
    seconds = time.monotonic() - began
    compare(original, [out for out, _ in peers])
    print(f"{seconds:.1f} s; the seeder alone, at its limit, would have needed {PEERS * SIZE / UPLOAD_LIMIT:.0f} s", flush=True)


def compare(original, outs):
    """Check that all files have the digest of the first."""
    expected = digest(original)
    wrong = [out for out in outs if digest(out) != expected]
    if wrong:
        raise ending.Failure(f"expected {len(outs)} equal files, but {len(wrong)} differ", 1)
    print(f"\nall {len(outs)} files have sha256 {expected}")


def main():
    ending.hold_signals()
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            distribute(folder, processes)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
                if process.stdout:
                    process.stdout.close()


if __name__ == "__main__":
    ending.run(main)
