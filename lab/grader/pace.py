"""How fast this machine is, and what follows for the grader: tests at a time, length of waits, time for all tests.

A course's container often has half a core. With as many tests at a time and waits as short as on two cores, tests fail
there through no fault of the program. So before the tests begin, a process of ours measures how much processor time it
gets and how long the two programs take to start; everything else follows from these two numbers.
"""

import json
import os
import time
import typing

POWER = 2.0      # cores of the machine for which the tests' waits were chosen; one core is enough
WORK = 0.022     # seconds for COUNT steps of a loop there
COUNT = 1_000_000
MEASURE = 0.5    # seconds; a quota is allotted by tenths of a second
MOST = 16        # processes tried at once; more are never needed
SLOWEST = 0.2    # power below which waits no longer grow: no verdict is possible there


class Pace(typing.NamedTuple):
    """`power`: number of cores, in units of that machine's; `start`: seconds that the slower of the two programs takes to start."""

    power: float = POWER
    start: float = 0.0

    def factor(self):
        """How much longer to wait for what is expected; every wait already has a large margin, so half a core needs only twice the time."""
        return max(1.0, POWER / max(self.power, SLOWEST)) ** 0.5

    def starting(self):
        """Extra seconds for a wait in which a program starts; others start at the same time."""
        return 2 * self.start

    def workers(self):
        """Tests at a time; tests spend most of their time waiting."""
        return max(2, min(4 * (os.cpu_count() or 1) + 2, round(5 * self.power)))

    def seconds(self, tests, base):
        """The time limit for a run of `tests` tests that may last `base` seconds on two cores: work and starts take longer here."""
        return base * max(1.0, POWER / max(self.power, SLOWEST)) + 1.5 * tests * self.start / self.workers()


def power():
    """How many cores several processes of ours would get at once, in units of the cores of POWER."""
    count = min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    pipes = [spinning() for _ in range(count)]
    got = 0.0
    for pid, pipe in pipes:
        with open(pipe, "rb") as file:
            got += float(file.read() or 0)
        os.waitpid(pid, 0)
    return got / MEASURE * WORK / work()


def share(start):
    """Measure now, for all gradings that this process will start; `start` as in Pace.

    If several measured at the same time, each would find only what the others leave, and keep all cores busy for half a
    second. Only for programs that are known to start and to accept all options.
    """
    os.environ["GRADE_PACE"] = json.dumps({"power": power(), "start": start})


def spinning():
    """(pid, pipe) of a process that spins for MEASURE seconds and reports for how many of them it ran."""
    pipe, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, pipe
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - began < MEASURE:
        pass
    os.write(tell, str(time.process_time() - cpu).encode())
    os._exit(0)


def work():
    """Seconds of processor time that COUNT steps of a loop take, the least of three measurements."""
    def once():
        began = time.process_time()
        for _ in range(COUNT):
            pass
        return time.process_time() - began
    return min(once() for _ in range(3))
