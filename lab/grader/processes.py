"""Finding and ending everything that a process has started, even what tried to get away.

A program that forks, calls setsid and lets its parent end is in no process group or session that we
know, and it can remove any mark from its environment. But it has a parent. On Linux a process may become a
"subreaper", which adopts the orphans among its descendants; whatever they did, they are then found below it
in the tree of parents. Elsewhere process 1 adopts orphans, and only those that still have their parent are found.

Used by lab/grader/grade.py, for the whole run, and by the tests, after each of them.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>


def adopt_orphans():
    """From now on every descendant that loses its parent becomes a child of this process (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def all_processes():
    """[(pid, parent's pid, whether it is a zombie)] of all processes on this machine."""
    if sys.platform != "linux":
        rows = [line.split() for line in subprocess.run(["ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True).stdout.splitlines()]
        return [(int(pid), int(parent), "Z" in state) for pid, parent, state in rows]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]  # the name before it may contain anything
            except OSError:
                continue  # it has ended meanwhile
            found.append((int(name), int(parent), state == b"Z"))
    return found


def descendants(root):
    """[(pid, parent's pid, ended)] of everything below `root`, parents first."""
    below = {}
    for row in all_processes():
        below.setdefault(row[1], []).append(row)
    found, look_at = [], [root]
    for pid in look_at:
        found += below.get(pid, [])
        look_at += [row[0] for row in below.get(pid, [])]
    return found


def send(number, pid):
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def running(spare=()):
    """The pids of running processes below this one, except `spare` and what is below those."""
    kept, found = set(spare), []
    for pid, parent, ended in descendants(os.getpid()):
        if pid in kept or parent in kept:
            kept.add(pid)
        elif not ended:
            found.append(pid)
    return found


def freeze():
    """Stop everything below this process until nothing new appears: a stopped process cannot start others."""
    stopped = set()
    for _ in range(100):
        new = set(running()) - stopped
        if not new:
            break
        for pid in new:
            send(signal.SIGSTOP, pid)
        stopped |= new


def bury(spare=()):
    """Wait for the adopted orphans that have ended, but not for `spare`, which is waited for elsewhere."""
    for pid, parent, ended in descendants(os.getpid()):
        if ended and parent == os.getpid() and pid not in spare:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def end_all(waited_for=(), seconds=10):
    """End everything that runs below this process; return how many there were. `waited_for`: `spare` of bury()."""
    give_up, ended = time.monotonic() + seconds, set()
    while time.monotonic() < give_up:
        found = running()
        if not found:
            break
        if len(found) > 20:
            freeze()  # something forks faster than it can be ended
            found = running()
        for pid in found:
            send(signal.SIGKILL, pid)
        ended.update(found)
        time.sleep(0.005)
        bury(waited_for)
    bury(waited_for)
    return len(ended)
