#!/usr/bin/env python3
"""Real links on one machine: hosts, and between them a wire that is slow, far and lossy.

    python lab/links.py run 3 -- cat /proc/net/dev            a program in host 3
    python lab/links.py run 2 --links up=2M,delay=40ms -- sh  a shell in host 2, on such links
    python lab/links.py swarm --leechers 8 --links up=20M,down=100M,delay=10ms
    python lab/links.py table [--quick] [--libtorrent PYTHON] lines and swarms, each over its bound

Links are written as KEY=VALUE, separated by commas; HOST: before a key means that host
alone:

    up=20M down=100M   rates in bits per second (default: endless); 20M is 20,000,000
    delay=10ms         one way, from host to host (default: 0)
    loss=1%            share of the packets that get lost, at random with a fixed seed (default: 0)
    queue=200ms        limit of each of the two queues, or in bytes: 64K (default: 200ms)
    mtu=1500           bytes of the largest packet
    tcp=bbr            congestion control of the host (default: cubic where there is one)
    3:up=2M            host 3 alone uploads at 2 Mbit/s

Delay and loss apply to what a host sends. Nothing needs to be installed. It runs on Linux, as root,
or as any user if user namespaces are allowed and /dev/net/tun can be opened. Exit code 0:
measured; 1: a run failed; 2: wrong arguments; 3: it cannot run here; 4: the wire was too slow, so
there is no figure; 130, 143: interrupted. `run` ends with the exit code of its command.

What is simulated and what is real. The programs and TCP are real: each host is a network
namespace with its own network stack and one TUN device. The wire reads what a host sends from
that device, packet by packet, and the host receives what the wire writes to it.

    host 1 --> [queue] up --- delay ---> [queue] down --> host 2
                                   \\---> [queue] down --> host 3

A packet waits in the queue of its sender's uplink, takes length / up to leave, travels for
`delay`, and then waits in the queue of its receiver's downlink, where packets are served in the
order in which they arrive. A full queue drops further packets.

The order of arrival matters. A simpler wire would compute all times when it reads a packet, and
so reserve the downlink for a packet that is still in its sender's queue. Then one long queue on
one uplink would delay what everyone else sends to that receiver, although its downlink is idle.

A device is always read at once, even when the queue of its uplink is full. A computer behind a
home router is in the same position: its own link is fast, the narrow one lies beyond the router,
and all it learns about the queue there is that packets are late or lost. With a wire that stopped
reading, the computer's own device would be the narrow link; its kernel would see the queue and
keep it short, and there would be no bufferbloat.

Two other designs were considered. tc with netem does the same in the kernel and costs less, but
needs iproute2 and a kernel module, which many machines and containers lack. A proxy between
sockets needs no rights at all, but delays bytes and not packets: it has no loss, no slow start
and no queue, which are what these experiments are about.

Processes. The process that enters `with Links(...)` forks one other, the wire. It makes the
hosts, hands their namespaces over as descriptors, and carries packets in one thread with one heap
of events. Nothing has a name in the file system: a namespace lives as long as a process in it or
a descriptor of it. The kernel kills the wire and the programs in the hosts when the process that
started them ends, even by SIGKILL. `run` starts its command in a PID namespace too, so that
whatever the command has started ends with it.

The wire reports when it was the bottleneck. A packet handed over long after it was due is late,
and with too many late packets, or if the wire kept a core busy, no figure is given
(Report.refusal).

Reading order: constants - links - kernel - a host - counters and report - the wire - Links - run
- programs to measure - one swarm - tables - the picture - main.
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import heapq
import itertools
import math
import mmap
import os
import random
import re
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "lab"))

import ending  # noqa: E402  (after the path)
import svg  # noqa: E402

NETWORK = "10.99.0"       # .0/24; host i has the address .i
DEVICE = "link0"          # in every host
MOST_HOSTS = 200          # limited by the descriptors that fit into one message
PORT = 8000               # of the tracker, in host 1
MTU = 1500                # bytes
QUEUE_SECONDS = 0.2       # of each queue: usual for a home router
SEED = 1                  # of the losses
TICK = 0.00025            # seconds that the wire sleeps while there is traffic
BURST = 32                # packets read from one host before the next one has its turn
LATE_SECONDS = 0.005      # a packet handed over this long after it was due is late
LATE_SHARE = 0.02         # of all packets; with more late ones, the wire was the bottleneck
CPU_SHARE = 0.9           # of a core; above it, the wire was the bottleneck too
START_SECONDS = 30        # for a tracker to be ready
PATIENCE = 20             # times the bound, and START_SECONDS more: then a run has failed
LOOK_SECONDS = 0.01       # between two checks of which hosts are complete
EXIT_RUN, EXIT_CANNOT, EXIT_SLOW = 1, 3, 4
MIB = 1 << 20


# Links. Rates in bytes per second, times in seconds.


class Link(NamedTuple):
    """How one host is connected."""

    up: float = math.inf
    down: float = math.inf
    delay: float = 0.0
    loss: float = 0.0            # share of the packets
    queue: float = QUEUE_SECONDS
    queue_bytes: float = 0.0     # instead of `queue`, if it is not 0
    mtu: int = MTU
    tcp: str = ""                # congestion control; empty: cubic, or else what the system has


class Spec(NamedTuple):
    """What --links says: the usual link, and the hosts that have another."""

    usual: Link
    others: dict  # host -> Link

    def of(self, host):
        return self.others.get(host, self.usual)

    def with_host(self, host, **changes):
        """A copy with other values for one host."""
        return Spec(self.usual, {**self.others, host: self.of(host)._replace(**changes)})


def quantity(text, units, least, most):
    """Parse a number with one of these units; ValueError says what was expected."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([A-Za-z%]*)", text)
    if not match or match[2] not in units:
        known = ", ".join(unit or "no unit" for unit in units)
        raise ValueError(f"expected a number with {known}, got {shown(text)}")
    value = float(match[1]) * units[match[2]]
    if not least <= value <= most:
        raise ValueError(f"expected from {least:g} to {most:g}, got {shown(text)}")
    return value


def shown(text):
    """The user's text, made safe for a terminal."""
    return ascii(text)[1:-1][:60]


BITS = {"": 1 / 8, "K": 1e3 / 8, "M": 1e6 / 8, "G": 1e9 / 8}
TIMES = {"ms": 1e-3, "s": 1.0, "us": 1e-6}
BYTES = {"": 1, "K": 1e3, "M": 1e6}


def parse_queue(text):
    """The fields of a Link for queue=…, a time or a size, depending on the unit."""
    if text.endswith("s"):
        return {"queue": quantity(text, TIMES, 1e-4, 60), "queue_bytes": 0.0}
    return {"queue_bytes": quantity(text, BYTES, 1500, 1e9)}


def parse_tcp(text):
    if not re.fullmatch(r"[a-z_]{1,15}", text):
        raise ValueError(f"expected the name of a congestion control, got {shown(text)}")
    return {"tcp": text}


KEYS = {
    "up": lambda text: {"up": quantity(text, BITS, 1e3, 1e10)},
    "down": lambda text: {"down": quantity(text, BITS, 1e3, 1e10)},
    "delay": lambda text: {"delay": quantity(text, TIMES, 0, 10)},
    "loss": lambda text: {"loss": quantity(text, {"%": 0.01}, 0, 1)},
    "queue": parse_queue,
    "mtu": lambda text: {"mtu": int(quantity(text, {"": 1}, 576, 65_000))},
    "tcp": parse_tcp,
}


def parse_item(item):
    """(host or None, fields of its Link) of `[HOST:]KEY=VALUE`."""
    match = re.fullmatch(r"(?:([0-9]{1,3}):)?([a-z]+)=(.*)", item, re.S)
    if not match or match[2] not in KEYS:
        known = ", ".join(KEYS)
        raise ValueError(f"expected [HOST:]KEY=VALUE with one of {known}, got {shown(item)}")
    host = match[1] and int(match[1])
    if host is not None and not 1 <= host <= MOST_HOSTS:
        raise ValueError(f"expected a host from 1 to {MOST_HOSTS}, got {shown(item)}")
    try:
        return host, KEYS[match[2]](match[3])
    except ValueError as error:
        raise ValueError(f"{match[2]}: {error}") from None


def parse_links(text):
    """The Spec of `up=20M,delay=10ms,3:up=2M`. ArgumentTypeError, so that argparse can use it."""
    try:
        items = [parse_item(item.strip()) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    usual, others = Link(), {}
    for host, fields in items:
        usual = usual._replace(**fields) if host is None else usual
    for host, fields in items:
        if host is not None:
            others[host] = others.get(host, usual)._replace(**fields)
    return Spec(usual, others)


def bound(spec, leechers, size):
    """Seconds that no swarm can beat, seeder in host 1: the textbook's bound and one round trip."""
    links = [spec.of(host) for host in range(1, leechers + 2)]
    slowest = min(link.down for link in links[1:])
    round_trip = links[0].delay + min(link.delay for link in links[1:])
    uplinks = sum(link.up for link in links)
    return max(size / links[0].up, size / slowest, leechers * size / uplinks) + round_trip


# Kernel: what `ip` would do, but without it. The numbers are from the Linux headers.

CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_TIMERSLACK = 1, 29
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
SIOCSIFMTU = 0x8922
IFF_UP, CAP_SYS_ADMIN = 0x1, 21
NETLINK_ROUTE, RTM_NEWROUTE, NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 0, 24, 1, 4, 0x400
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 253, 1
RTA_DST, RTA_OIF, RTA_PREFSRC, RTA_METRICS, RTAX_CC_ALGO = 1, 4, 7, 8, 16

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """Call a function of libc that returns -1 for an error; OSError."""
    if getattr(LIBC, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with(parent):
    """Have the kernel kill this process, just forked, when `parent` ends, even by SIGKILL."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it has ended already


def cannot(what):
    return ending.Failure(f"links cannot be made here: {what}", EXIT_CANNOT)


def may_make_hosts():
    with open("/proc/self/status") as file:
        capabilities = next(line.split()[1] for line in file if line.startswith("CapEff"))
    return int(capabilities, 16) >> CAP_SYS_ADMIN & 1


def be_able():
    """Get the right to make namespaces, in a user namespace if need be; Failure if impossible.

    In it we are root, but only over what belongs to it. We still own the files that we write.
    """
    if sys.platform != "linux":
        raise cannot(f"they need network namespaces of Linux, and this is {sys.platform}")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        missing = "may not be opened" if os.path.exists("/dev/net/tun") else "is missing"
        raise cannot(f"/dev/net/tun {missing} (run as root, or load the module tun)")
    if may_make_hosts():
        return
    user, group = os.geteuid(), os.getegid()
    try:
        call("unshare", CLONE_NEWUSER)
        maps = {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}
        for name, line in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    except OSError as error:
        raise cannot(f"no root, and no user namespace ({error.strerror})") from None


def set_device(sock, request, name, value):
    """One ioctl on a network device; `value` is what follows its name in a struct ifreq."""
    fcntl.ioctl(sock, request, struct.pack("16s16s", name.encode(), value))


def ipv4(text):
    """A struct sockaddr_in."""
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(text))


def attribute(kind, data):
    """One attribute of a netlink message, padded to a multiple of four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def add_route(host, tcp):
    """Add the route to all hosts, by netlink.

    A route may name any congestion control; the sysctl of a namespace accepts only some.
    """
    route = struct.pack("=BBBBBBBBI", socket.AF_INET, 24, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC,
                        RT_SCOPE_LINK, RTN_UNICAST, 0)
    route += attribute(RTA_DST, socket.inet_aton(address(0)))
    route += attribute(RTA_PREFSRC, socket.inet_aton(address(host)))
    route += attribute(RTA_OIF, struct.pack("=I", socket.if_nametoindex(DEVICE)))
    if tcp:
        route += attribute(RTA_METRICS, attribute(RTAX_CC_ALGO, tcp.encode() + b"\0"))
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    head = struct.pack("=IHHII", 16 + len(route), RTM_NEWROUTE, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as sock:
        sock.send(head + route)
        number, = struct.unpack_from("=i", sock.recv(4096), 16)
    if number:
        raise OSError(-number, os.strerror(-number))


# A host.


def address(host):
    return f"{NETWORK}.{host}"


def congestion_control(link):
    """What the link says, else cubic, as nearly everywhere, else "", the system's default."""
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control") as file:
        available = file.read().split()
    if link.tcp and link.tcp not in available:
        there = ", ".join(available)
        raise cannot(f"this kernel has no congestion control {link.tcp}, but {there}")
    return link.tcp or ("cubic" if "cubic" in available else "")


def make_host(host, link):
    """Move this process into a new network namespace with a device; return descriptors of both."""
    call("unshare", CLONE_NEWNET)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    up = struct.pack("=H", IFF_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        set_device(sock, SIOCSIFFLAGS, "lo", up)
        set_device(sock, SIOCSIFADDR, DEVICE, ipv4(address(host)))
        set_device(sock, SIOCSIFNETMASK, DEVICE, ipv4("255.255.255.255"))
        set_device(sock, SIOCSIFMTU, DEVICE, struct.pack("=i", link.mtu))
        set_device(sock, SIOCSIFFLAGS, DEVICE, up)
    add_route(host, congestion_control(link))
    return tun, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


# Counters and report.


class Counters(ctypes.Structure):
    """What the wire counts, in memory that it shares with the process that started it."""

    _fields_ = [("cpu", ctypes.c_double),        # seconds of processor time
                ("packets", ctypes.c_double),    # handed over
                ("late", ctypes.c_double),       # of them
                ("dropped", ctypes.c_double),    # because a queue was full
                ("lost", ctypes.c_double),       # at random
                ("worst", ctypes.c_double),      # seconds by which a packet was late
                ("measured", ctypes.c_double),   # measurements begun; written by the other process
                ("sent", ctypes.c_double * (MOST_HOSTS + 1)),  # bytes that left on each uplink
                ("waited", ctypes.c_double * (MOST_HOSTS + 1))]  # seconds in its queue, times bytes

    def snapshot(self):
        found = {name: getattr(self, name) for name, _ in self._fields_}
        return found | {"sent": list(self.sent), "waited": list(self.waited)}


class Report(NamedTuple):
    """What the wire did during a measurement."""

    seconds: float
    cpu: float      # share of a core
    packets: int
    late: float     # share of the packets
    worst: float    # seconds
    dropped: int
    lost: int
    sent: list      # bytes, by host
    queue: list     # average seconds that a byte waited in the queue of its uplink, by host

    def refusal(self):
        """Why there is no figure, if the wire was the bottleneck; otherwise empty."""
        if self.late > LATE_SHARE:
            return (f"no figure, the wire was too slow: {100 * self.late:.0f} % of the packets "
                    f"were more than {1000 * LATE_SECONDS:g} ms late, {100 * LATE_SHARE:g} % may be")
        if self.cpu > CPU_SHARE:
            return (f"no figure, the wire was too slow: it kept {100 * self.cpu:.0f} % of a core, "
                    f"{100 * CPU_SHARE:g} % may be")
        return ""

    def __str__(self):
        return f"wire {100 * self.cpu:.0f} % of a core, worst {1000 * self.worst:.1f} ms late"


# The wire.


class Wire:
    """Carries packets between the devices; one thread, one heap of events.

    An event is (when, number, host, packet, whether it has passed the downlink): a packet arrives
    at that host's downlink, or has come through it. Numbers order events that are due at once.
    """

    def __init__(self, tuns, spec, counters):
        self.tuns = tuns                           # host -> descriptor
        self.links = {host: spec.of(host) for host in tuns}
        self.hosts = {socket.inet_aton(address(host)): host for host in tuns}
        self.up_free = dict.fromkeys(tuns, 0.0)    # when the uplink has sent all of its queue
        self.down_free = dict.fromkeys(tuns, 0.0)
        self.chance = {host: random.Random(f"{SEED} {host}") for host in tuns}
        self.events, self.numbers = [], itertools.count()
        self.counters, self.measured = counters, 0.0

    def carry(self):
        """The life of the wire: sleep until an event is due or a packet comes, then handle them.

        It sleeps at least one TICK, because waking up costs more than a packet does.
        """
        owner = {tun: host for host, tun in self.tuns.items()}
        woken = time.monotonic()
        while True:
            self.hand_over(time.monotonic())
            self.counters.cpu = time.process_time()
            due = self.events[0][0] - time.monotonic() if self.events else LATE_SECONDS
            time.sleep(TICK)
            wait = min(max(0.0, due - TICK), LATE_SECONDS)
            readable, _, _ = select.select(list(owner), [], [], wait)
            slept, woken = time.monotonic() - woken, time.monotonic()
            for tun in readable:
                self.read(owner[tun], tun, slept)

    def hand_over(self, now):
        """Handle all events that are due."""
        while self.events and self.events[0][0] <= now:
            due, _, host, packet, passed = heapq.heappop(self.events)
            if passed:
                self.deliver(host, packet, due)
            else:
                self.arrive(host, packet, due)

    def read(self, host, tun, slept):
        """Read what this host sends. It has waited for at most `slept` seconds."""
        for _ in range(BURST):
            try:
                packet = os.read(tun, 65_536)
            except BlockingIOError:
                return
            if slept > 2 * LATE_SECONDS:
                self.count_late(slept - LATE_SECONDS)
            to = self.hosts.get(packet[16:20])
            if to is not None and packet[0] >> 4 == 4:  # no broadcast, no IPv6
                self.leave(host, to, packet)

    def leave(self, host, to, packet):
        """The sender's uplink: the queue, the rate, the delay, the loss."""
        link, now = self.links[host], time.monotonic()
        begin = max(now, self.up_free[host])
        if is_full(link, link.up, begin - now):
            self.counters.dropped += 1
            return
        gone = self.up_free[host] = begin + len(packet) / link.up
        self.counters.sent[host] += len(packet)
        self.counters.waited[host] += len(packet) * (begin - now)
        if link.loss and self.chance[host].random() < link.loss:
            self.counters.lost += 1
            return
        heapq.heappush(self.events, (gone + link.delay, next(self.numbers), to, packet, False))

    def arrive(self, host, packet, now):
        """The receiver's downlink, in order of arrival; `now` is when it was due."""
        link = self.links[host]
        begin = max(now, self.down_free[host])
        if is_full(link, link.down, begin - now):
            self.counters.dropped += 1
            return
        came = self.down_free[host] = begin + len(packet) / link.down
        heapq.heappush(self.events, (came, next(self.numbers), host, packet, True))

    def deliver(self, host, packet, due):
        """Hand a packet over, and note how late it is."""
        try:
            os.write(self.tuns[host], packet)
        except OSError:
            pass  # the packet is lost if the host's device is full
        self.counters.packets += 1
        self.count_late(time.monotonic() - due)

    def count_late(self, seconds):
        """Note that a packet was handed over, or read, this many seconds too late."""
        counters = self.counters
        if counters.measured != self.measured:
            self.measured, counters.worst = counters.measured, 0.0
        if seconds > LATE_SECONDS:
            counters.late += 1
        if seconds > counters.worst:
            counters.worst = seconds


def is_full(link, rate, waiting):
    """Whether a queue is full in which a packet would wait for `waiting` seconds."""
    return waiting > (link.queue_bytes / rate if link.queue_bytes else link.queue)


def be_the_wire(parent, sock, spec, hosts, counters):
    """The life of the forked process: make the hosts, hand their namespaces over, carry packets."""
    die_with(parent)
    os.setsid()  # Ctrl-C is for the others
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        made = {host: make_host(host, spec.of(host)) for host in range(1, hosts + 1)}
    except (OSError, ending.Failure) as error:
        why = str(error) if isinstance(error, ending.Failure) else str(cannot(error.strerror))
        sock.send(why.encode())
        return
    call("prctl", PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # nanoseconds: wake up on time
    with contextlib.suppress(OSError):  # without the right, it is scheduled like any program
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    socket.send_fds(sock, [b"made"], [namespace for _, namespace in made.values()])
    sock.close()
    Wire({host: tun for host, (tun, _) in made.items()}, spec, counters).carry()


# Links.


class Links:
    """Hosts 1 … `hosts` and the wire between them, for a `with` block; Failure if impossible.

    Entering it may move the process into a user namespace (be_able), so it must have no threads.
    """

    def __init__(self, spec, hosts):
        self.spec, self.hosts = spec, hosts
        self.namespaces = []
        self.wire = None       # pid
        self.counters = Counters.from_buffer(mmap.mmap(-1, ctypes.sizeof(Counters)))

    def __enter__(self):
        if not 1 <= self.hosts <= MOST_HOSTS:
            raise ending.Failure(f"expected from 1 to {MOST_HOSTS} hosts, got {self.hosts}")
        be_able()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.wire = self.fork(theirs)
            said, self.namespaces, _, _ = socket.recv_fds(ours, 1000, self.hosts)
        if said != b"made":
            self.__exit__()
            raise ending.Failure(said.decode() or "the wire ended early", EXIT_CANNOT)
        self.begin()
        return self

    def fork(self, sock):
        """Start the wire; return its pid."""
        sys.stdout.flush() if sys.stdout else None
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            be_the_wire(parent, sock, self.spec, self.hosts, self.counters)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)

    def __exit__(self, *_):
        for namespace in self.namespaces:
            os.close(namespace)
        self.namespaces = []
        os.kill(self.wire, signal.SIGKILL)
        os.waitpid(self.wire, 0)

    def move_to(self, host):
        """Move this process into a host."""
        call("setns", self.namespaces[host - 1], CLONE_NEWNET)

    def enter(self, host):
        """For preexec_fn: make the new process end with us, and move it into the host."""
        parent = os.getpid()

        def move():
            die_with(parent)
            self.move_to(host)
        return move

    def start(self, host, command, **options):
        """A subprocess.Popen of this command in a host."""
        return subprocess.Popen(command, preexec_fn=self.enter(host), **options)

    def begin(self):
        """Begin a measurement."""
        self.counters.measured += 1
        self.before, self.began = self.counters.snapshot(), time.monotonic()

    def report(self):
        """What the wire did since begin()."""
        if os.waitpid(self.wire, os.WNOHANG)[0]:
            raise RuntimeError("the wire has ended")
        before, now, seconds = self.before, self.counters.snapshot(), time.monotonic() - self.began
        cpu, packets, late, dropped, lost = (
            now[name] - before[name] for name in ("cpu", "packets", "late", "dropped", "lost"))
        sent, waited = ([after - earlier for after, earlier in zip(now[name], before[name])]
                        for name in ("sent", "waited"))
        queue = [time / max(1, size) for time, size in zip(waited, sent)]
        return Report(seconds, cpu / seconds, int(packets), late / max(1, packets), now["worst"],
                      int(dropped), int(lost), sent[:self.hosts + 1], queue[:self.hosts + 1])


# run: one program in one host.


def exit_code(status):
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def be_the_first(links, host, command):
    """The life of process 1 in a PID namespace: start the command, end with its exit code.

    Then the kernel ends whatever is left in the namespace. The parent, outside, shows as number 0.
    """
    die_with(0)
    pid = os.fork()
    if not pid:
        try:
            links.move_to(host)
            os.execvp(command[0], command)
        except OSError as error:
            print(f"links.py: cannot run {shown(command[0])}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    while True:
        ended, status = os.wait()
        if ended == pid:
            os._exit(exit_code(status))


def run_in_host(links, host, command):
    """Run the command in the host with our stdin and stdout until it ends: its exit code."""
    call("unshare", CLONE_NEWPID)  # for processes forked from now on
    first = os.fork()
    if not first:
        be_the_first(links, host, command)
    try:
        while True:
            ended, status = os.waitpid(first, os.WNOHANG)
            if ended:
                return exit_code(status)
            ending.check_signals()
            time.sleep(LOOK_SECONDS)
    except ending.Interrupted:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        raise


# Programs to measure. Each is a function that makes a Plan of a Job.


class Job(NamedTuple):
    """What to distribute to hosts 2 …, and where; no other run uses `folder`."""

    folder: str
    source: str
    leechers: int
    libtorrent: str  # an interpreter

    def hosts(self):
        return range(2, self.leechers + 2)

    def path(self, name):
        return os.path.join(self.folder, name)

    def out(self, host):
        return self.path(os.path.join(str(host), os.path.basename(self.source)))

    def says(self, name, word):
        """Whether a file of this run already contains the word."""
        try:
            with open(self.path(name), errors="replace") as file:
                return word in file.read()
        except FileNotFoundError:
            return False


class Plan(NamedTuple):
    seeder: list   # the command in host 1
    ready: object  # function: whether that is serving yet
    leech: object  # function: the command in that host
    done: object   # function: whether that host has the file


def ours(job):
    """This project's tracker.py, which seeds, and peer.py."""
    seeder = [sys.executable, os.path.join(ROOT, "tracker.py"), job.source, "--host", address(1),
              "--port", str(PORT), "--quiet", "--events", job.path("seeder.events")]

    def leech(host):
        return [sys.executable, os.path.join(ROOT, "peer.py"), f"{address(1)}:{PORT}",
                job.out(host), "--quiet", "--events", job.path(f"host {host}.events")]
    return Plan(seeder, lambda: job.says("seeder.events", '"complete"'),
                leech, lambda host: os.path.exists(job.out(host)))


LIBTORRENT = """
import os, sys, time
import libtorrent as lt
source, folder, own, *others = sys.argv[1:]
if not others:  # the seeder, before the leechers start
    files = lt.file_storage()
    lt.add_files(files, source)
    torrent = lt.create_torrent(files, 0, flags=lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, os.path.dirname(source))
    with open(source + ".torrent", "wb") as file:
        file.write(lt.bencode(torrent.generate()))
session = lt.session({"listen_interfaces": own + ":6881", "outgoing_interfaces": own,
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    "in_enc_policy": 2, "out_enc_policy": 2,
    "alert_mask": lt.alert.category_t.status_notification})
params = lt.add_torrent_params()
params.ti, params.save_path = lt.torrent_info(source + ".torrent"), folder
params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
handle = session.add_torrent(params)
for other in others:
    handle.connect_peer((other, 6881))
while not handle.status().is_seeding:
    session.wait_for_alert(20)
    session.pop_alerts()
print("DONE", flush=True)
while True:
    time.sleep(60)
"""


def libtorrent(job):
    """libtorrent over TCP with its own settings; every peer knows all others from the start."""
    command = [job.libtorrent, "-W", "ignore", "-c", LIBTORRENT, job.source]

    def leech(host):
        others = [address(other) for other in (1, *job.hosts()) if other != host]
        return [*command, job.path(str(host)), address(host), *others]
    seeder = [*command, os.path.dirname(job.source), address(1)]
    return Plan(seeder, lambda: job.says("host 1.log", "DONE"),
                leech, lambda host: job.says(f"host {host}.log", "DONE"))


def aria2(job):
    """aria2c and Python's HTTP server: client–server, because there is no torrent."""
    folder, name = os.path.split(job.source)
    seeder = [sys.executable, "-u", "-m", "http.server", str(PORT), "--bind", address(1),
              "--directory", folder]

    def leech(host):
        return ["aria2c", "--no-conf", "--quiet", "--file-allocation=none",
                f"--dir={job.path(str(host))}", f"http://{address(1)}:{PORT}/{name}"]

    def done(host):
        return os.path.exists(job.out(host)) and not os.path.exists(job.out(host) + ".aria2")
    return Plan(seeder, lambda: job.says("host 1.log", "Serving"), leech, done)


# One swarm.


class Run(NamedTuple):
    """What one run took."""

    seconds: float  # from the start of the first leecher's program until the last has the file
    times: list     # of each leecher
    files: float    # that left host 1 on the wire, including headers and answers
    report: Report


class Programs:
    """The programs of one run, each in its host with a log; all are ended after `with`."""

    def __init__(self, links, job):
        self.links, self.job, self.running = links, job, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, process in self.running:
            process.kill()
        for _, process in self.running:
            process.wait()

    def start(self, host, command):
        with open(self.job.path(f"host {host}.log"), "wb") as log:
            process = self.links.start(host, command, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, cwd=self.job.folder)
        self.running.append((host, process))

    def check(self):
        """Failure if one has ended with an error."""
        for host, process in self.running:
            if process.poll():
                with open(self.job.path(f"host {host}.log"), errors="replace") as log:
                    said = log.read().strip().splitlines() or ["it said nothing"]
                raise ending.Failure(f"expected the program in host {host} to go on, "
                                     f"but it ended: {said[-1][:200]}", EXIT_RUN)

    def wait(self, condition, seconds, what):
        """Wait until condition() is true; Failure after this many seconds."""
        give_up = time.monotonic() + seconds
        while not condition():
            ending.check_signals()
            self.check()
            if time.monotonic() > give_up:
                raise ending.Failure(f"expected {what} within {seconds:.0f} s", EXIT_RUN)
            time.sleep(LOOK_SECONDS)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()


def measure(links, job, program, seconds):
    """Distribute the file to every leecher, once: Run, or Failure; `seconds` is the bound."""
    plan, times = program(job), {}
    for host in job.hosts():
        os.makedirs(job.path(str(host)))

    def all_done():
        for host in job.hosts():
            if host not in times and plan.done(host):
                times[host] = time.monotonic() - began
        return len(times) == job.leechers
    with Programs(links, job) as programs:
        programs.start(1, plan.seeder)
        programs.wait(plan.ready, START_SECONDS, "a seeder that is ready")
        links.begin()
        began = time.monotonic()
        for host in job.hosts():
            programs.start(host, plan.leech(host))
        programs.wait(all_done, START_SECONDS + PATIENCE * seconds, "the file everywhere")
        report = links.report()
    if {digest(job.out(host)) for host in job.hosts()} != {digest(job.source)}:
        raise ending.Failure("expected the original file everywhere, got others", EXIT_RUN)
    return Run(max(times.values()), [times[host] for host in job.hosts()],
               report.sent[1] / os.path.getsize(job.source), report)


def several(spec, leechers, size, programs, runs, libtorrent="", events=None):
    """{name of a program: [Run]}: the programs take turns, with the same file on the same links."""
    found, seconds = {name: [] for name in programs}, bound(spec, leechers, size)
    with tempfile.TemporaryDirectory(prefix="links-") as folder, Links(spec, leechers + 1) as links:
        source = os.path.join(folder, "file.bin")
        with open(source, "wb") as file:
            file.write(random.Random(size).randbytes(size))
        for number, name in itertools.product(range(runs), programs):
            job = Job(os.path.join(folder, f"{name} {number}"), source, leechers, libtorrent)
            os.makedirs(job.folder)
            found[name].append(measure(links, job, programs[name], seconds))
            keep_events(job, events)
            shutil.rmtree(job.folder)
    return found


def keep_events(job, folder):
    """Copy everybody's events to a folder, for lab/timeline.py."""
    if folder:
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(job.folder):
            if name.endswith(".events"):
                shutil.copy(job.path(name), folder)


# Tables.


class Row(NamedTuple):
    """A line of the table."""

    name: str
    mib: int
    leechers: int
    links: str


ROWS = [Row("one-40ms", 64, 1, "up=100M,down=100M,delay=40ms"),
        Row("one-80ms", 64, 1, "up=100M,down=100M,delay=80ms"),
        Row("one-300M", 64, 1, "up=300M,down=300M,delay=10ms,mtu=9000"),
        Row("one-lossy", 32, 1, "up=100M,down=100M,delay=20ms,loss=1%,tcp=bbr"),
        Row("classroom", 32, 8, "up=50M,down=50M,delay=0.3ms,mtu=9000"),
        Row("homes", 16, 8, "up=20M,down=100M,delay=10ms"),
        Row("far", 16, 8, "up=20M,down=100M,delay=40ms"),
        Row("lossy", 16, 8, "up=20M,down=100M,delay=20ms,loss=1%")]
QUICK_ROWS = "one-40ms", "one-300M", "homes"
HEAD = f"{'':<11} {'program':<11} {'slowest':>9} {'bound':>9} {'over bound':>10}  of the seeder"


class Figure(NamedTuple):
    """What a line of the table says: medians of runs."""

    row: str
    program: str
    seconds: float
    bound: float
    files: float
    refusal: str
    wire: str

    def __str__(self):
        head = f"{self.row:<11} {self.program:<11} "
        if self.refusal:
            return head + self.refusal
        over = self.seconds / self.bound
        return (f"{head}{self.seconds:>7.2f} s {self.bound:>7.2f} s {over:>10.3f}  "
                f"{self.files:>7.2f} files   {self.wire}")


def figure_of(name, program, runs, seconds):
    """The Figure of these runs: refused if the wire was the bottleneck in any of them."""
    refusal = next(filter(None, (run.report.refusal() for run in runs)), "")
    busiest = max((run.report for run in runs), key=lambda report: report.cpu)
    busiest = busiest._replace(worst=max(run.report.worst for run in runs))
    return Figure(name, program, statistics.median(run.seconds for run in runs), seconds,
                  statistics.median(run.files for run in runs), refusal, str(busiest))


def code_of(figures):
    return EXIT_SLOW if any(figure.refusal for figure in figures) else 0


def swarm(args):
    """`swarm`: one configuration, with a line for each run."""
    seconds = bound(args.links, args.leechers, args.size)
    print(f"{args.size / MIB:g} MiB to {args.leechers} leechers\n{HEAD}", flush=True)
    runs = several(args.links, args.leechers, args.size, {"this": ours}, args.runs or 1,
                   events=args.events)["this"]
    figures = [figure_of(f"run {number}", "this", [run], seconds)
               for number, run in enumerate(runs, 1)]
    print(*figures, sep="\n")
    if len(runs) > 1:
        print(figure_of("median", "this", runs, seconds))
    return code_of(figures)


def programs_of(row, args):
    """What is measured in a row; aria2 only with one leecher, because it is client–server here."""
    found = {"this": ours}
    if args.libtorrent:
        found["libtorrent"] = libtorrent
    if row.leechers == 1 and shutil.which("aria2c"):
        found["aria2"] = aria2
    return found


def table(args):
    """`table`: every row, and the picture of them."""
    names = args.rows or (QUICK_ROWS if args.quick else [row.name for row in ROWS])
    rows = [row for row in ROWS if row.name in names]
    runs = args.runs or (1 if args.quick else 3)
    prefix_can_be_written(args.out)
    print(f"medians of {runs}\n{HEAD}" if runs > 1 else HEAD, flush=True)
    figures = []
    for row in rows:
        print(f"{row.name}: {row.mib} MiB to {row.leechers}, {row.links}", flush=True)
        spec, size = parse_links(row.links), row.mib * MIB
        found = several(spec, row.leechers, size, programs_of(row, args), runs, args.libtorrent)
        new = [figure_of(row.name, name, of, bound(spec, row.leechers, size))
               for name, of in found.items()]
        print(*new, sep="\n", flush=True)
        figures += new
    draw(figures, args.out)
    print(f"wrote {args.out}", flush=True)
    return code_of(figures)


# The picture.


def prefix_can_be_written(path):
    """Check before anything is measured, rather than fail minutes later."""
    open(path, "a").close()


def draw(figures, path):
    """Bars: time over the bound, for each row and program."""
    told = [figure for figure in figures if not figure.refusal]
    programs = list(dict.fromkeys(figure.program for figure in told))
    longest = max([figure.seconds / figure.bound for figure in told], default=1.0)
    height = 100 + 22 * len(told)
    picture = svg.Picture(1000, height + 60, "Distribution time on links, over the bound",
                          "One bar for each row and program; a bar of length 1 would be the bound.")
    picture.heading("How long until the slowest has the file, over the bound",
                    "bound: max{F/u, F/d, N·F/Σu} and one round trip; real programs on real TCP")
    plot = svg.Plot(picture, (220, 70, 800, height), (0, longest * 1.05), (0, 1))
    for number, figure in enumerate(told):
        y, ratio = 76.0 + 22 * number, figure.seconds / figure.bound
        picture.text(210, y + 12, f"{figure.row} {figure.program}", text_anchor="end")
        picture.add("rect", x=220.0, y=y, width=float(plot.x(ratio) - 220), height=16.0,
                    class_=f"s{programs.index(figure.program)}",
                    tip=f"{figure.seconds:.2f} s, bound {figure.bound:.2f} s")
        picture.text(float(plot.x(ratio)) + 6, y + 12, f"{ratio:.2f}", class_="dim")
    plot.x_axis("measured ÷ bound")
    svg.legend(picture, 850, 90, [(number, None, name) for number, name in enumerate(programs)])
    picture.save(path)


# Main.


def whole(least, most):
    def parse(text):
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, got {shown(text)}")
        return int(text)
    return parse


def size_of_file(text):
    try:
        return int(quantity(text, {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30}, 1, 1 << 32))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def row_name(text):
    names = [row.name for row in ROWS]
    if text not in names:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {shown(text)}")
    return text


def add_run(parser):
    parser.add_argument("host", type=whole(1, MOST_HOSTS), metavar="HOST",
                        help="number of the host; its address is 10.99.0.HOST")
    parser.add_argument("--hosts", type=whole(1, MOST_HOSTS), metavar="N",
                        help="how many there are (default: up to this one)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")


def add_swarm(parser):
    parser.add_argument("--leechers", type=whole(1, MOST_HOSTS - 1), default=8, metavar="N",
                        help="(default: %(default)s)")
    parser.add_argument("--size", type=size_of_file, default=16 * MIB, metavar="SIZE",
                        help="of the file (default: 16M)")
    parser.add_argument("--events", metavar="FOLDER",
                        help="leave the events of the last run there, for lab/timeline.py")


def add_table(parser):
    parser.add_argument("--quick", action="store_true", help="three rows, once: under a minute")
    parser.add_argument("--rows", type=row_name, action="append", metavar="ROW",
                        help="only this one; again for another")
    parser.add_argument("--libtorrent", metavar="PYTHON",
                        help="an interpreter that can import libtorrent, to be measured beside")
    parser.add_argument("--out", default="links.svg", metavar="FILE",
                        help="the picture (default: %(default)s)")


COMMANDS = {  # name -> (what it does, function that adds its arguments, whether it takes --links)
    "run": ("run a program in a host", add_run, True),
    "swarm": ("measure a tracker, which seeds, and peers, each in a host", add_swarm, True),
    "table": ("measure lines and swarms, each over its bound", add_table, False)}


def parse_arguments(argv=None):
    parser = ending.Arguments(prog="links.py", description="Hosts with links between them.")
    what = parser.add_subparsers(dest="what", required=True, metavar="run|swarm|table",
                                 parser_class=ending.Arguments)
    for name, (does, add, links) in COMMANDS.items():
        each = what.add_parser(name, help=does, description=does)
        add(each)
        if links:
            each.add_argument("--links", type=parse_links, default=parse_links(""), metavar="SPEC",
                              help="such as up=20M,down=100M,delay=10ms,loss=1%%,3:up=2M")
        if name != "run":
            each.add_argument("--runs", type=whole(1, 100), metavar="K", help="of each")
    args = parser.parse_args(argv)
    if args.what == "run" and (args.hosts or args.host) < args.host:
        parser.error(f"expected at least {args.host} hosts")
    return args


def run(args):
    """`run`: its exit code is the command's."""
    with Links(args.links, args.hosts or args.host) as links:
        return run_in_host(links, args.host, args.command)


def main():
    args = parse_arguments()
    ending.hold_signals()
    return {"run": run, "swarm": swarm, "table": table}[args.what](args)


if __name__ == "__main__":
    ending.run(main)
