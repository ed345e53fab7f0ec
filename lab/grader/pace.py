"""How fast this machine is, and what the grader does about it: tests at a time, patience, the time for all of them.

Half a core is what a course's container often has. The same tests, as many at a time and as impatient as on two cores,
fail there for no fault of the program's. So before the tests begin, a process of ours measures what processor time it
gets, and how long the two programs take to start; from these two numbers everything else follows.
"""

import json
import os
import time
import typing

POWER = 2.0      # cores of the machine for which the waits of the tests were chosen; one core does
WORK = 0.022     # seconds for COUNT steps of a loop there
COUNT = 1_000_000
MEASURE = 0.5    # seconds: a quota is given out by tenths of a second
MOST = 16        # processes that are tried at once: more are never needed
SLOWEST = 0.2    # power below which a wait is no longer made longer: no verdict is possible there


class Pace(typing.NamedTuple):
    """`power`: cores, each as fast as one of that machine; `start`: seconds that the slower of the two programs takes to start."""

    power: float = POWER
    start: float = 0.0

    def factor(self):
        """By how much longer to wait for what is expected: every wait has several times what it needs, so half a core needs twice of it."""
        return max(1.0, POWER / max(self.power, SLOWEST)) ** 0.5

    def starting(self):
        """What a wait in which a program starts is longer by: it is not the only one that starts."""
        return 2 * self.start

    def workers(self):
        """Tests at a time: most of a test is waiting."""
        return max(2, min(4 * (os.cpu_count() or 1) + 2, round(5 * self.power)))

    def seconds(self, tests, base):
        """The time for a run of so many tests that may last `base` seconds on two cores: their work and their starts take longer."""
        return base * max(1.0, POWER / max(self.power, SLOWEST)) + 1.5 * tests * self.start / self.workers()


def power():
    """How many cores this process would get for several processes at once, counted in those of POWER."""
    count = min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    pipes = [spinning() for _ in range(count)]
    got = 0.0
    for pid, pipe in pipes:
        with open(pipe, "rb") as file:
            got += float(file.read() or 0)
        os.waitpid(pid, 0)
    return got / MEASURE * WORK / work()


def share(start):
    """Have each of the gradings that this process will start take for granted what it finds now; `start` as in Pace.

    Several at a time would each measure what the measuring of the others leaves, with all cores for half a second. For
    programs that are known to start, and to take all options.
    """
    os.environ["GRADE_PACE"] = json.dumps({"power": power(), "start": start})


def spinning():
    """(pid, pipe) of a process that counts for MEASURE seconds and tells how many of them it ran."""
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
    """Seconds of processor time that COUNT steps of a loop take: the least of three times."""
    def once():
        began = time.process_time()
        for _ in range(COUNT):
            pass
        return time.process_time() - began
    return min(once() for _ in range(3))
