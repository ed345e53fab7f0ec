"""lab/links.py: its arguments, what its wire does, what it leaves behind, and when it refuses to report.

The wire's arithmetic is tested without devices and with a clock of its own. Tests that need hosts run where these can be made,
and are skipped elsewhere, with the reason.
"""

import argparse
import os
import re
import signal
import subprocess
import sys

import pytest

import processes
from harness import ROOT, Program, events_in, eventually

sys.path.insert(0, os.path.join(ROOT, "lab"))

import links  # noqa: E402  (after the path)

pytestmark = pytest.mark.ours
PROGRAM = [sys.executable, os.path.join(ROOT, "lab", "links.py")]


def run_links(*words, **options):
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=60, **options)


def why_not():
    """Why hosts cannot be made here; empty if they can."""
    ended = run_links("run", "1", "--", "true")
    return ended.stderr.strip() if ended.returncode == links.EXIT_CANNOT else ""


WHY_NOT = why_not()
with_hosts = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "hosts can be made here")


# Its arguments.


def test_links_are_read_with_their_units():
    spec = links.parse_links("up=20M,down=1G,delay=10ms,loss=1%,queue=50ms,mtu=9000,tcp=bbr")
    assert spec == links.Spec(links.Link(2.5e6, 125e6, 0.01, 0.01, 0.05, 0.0, 9000, "bbr"), {})
    assert links.parse_links("up=8000").usual.up == 1000
    assert links.parse_links("queue=64K").usual.queue_bytes == 64_000
    assert links.parse_links("").usual == links.Link()


def test_one_host_differs_in_what_is_said_of_it_wherever_that_stands():
    spec = links.parse_links("3:up=2M,up=20M,delay=10ms,3:loss=5%")
    assert spec.of(3) == spec.of(2)._replace(up=250_000.0, loss=0.05) and spec.of(2) == spec.usual
    assert spec.with_host(2, up=1.0).of(2).up == 1.0 and spec.with_host(2, up=1.0).of(3) == spec.of(3)


@pytest.mark.parametrize("text, said", [
    ("up", "expected [HOST:]KEY=VALUE with one of up, down"), ("speed=3", "got speed=3"), ("up=20Q", "up: expected a number with no unit, K, M, G"),
    ("up=-1M", "got -1M"), ("up=nan", "got nan"), ("up=0", "up: expected from 1000"), ("delay=10", "delay: expected a number with ms, s"),
    ("delay=11s", "from 0 to 10"), ("loss=0.5", "loss: expected a number with %"), ("loss=101%", "from 0 to 1"), ("mtu=100", "from 576"),
    ("queue=10", "from 1500"), ("0:up=1M", "expected a host from 1 to 200"), ("201:up=1M", "a host from 1"), ("tcp=../x", "the name of a congestion control"),
    ("up=1M\n0", "got 1M\\n0"), ("\x1b=1", "got \\x1b=1")])
def test_what_is_wrong_in_links_is_told(text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(said)):
        links.parse_links(text)


@pytest.mark.parametrize("words, code, said", [
    ([], 2, "the following arguments are required"), (["run", "0", "--", "true"], 2, "expected a whole number from 1 to 200, got 0"),
    (["run", "3", "--hosts", "2", "--", "true"], 2, "expected at least 3 hosts"), (["run", "3"], 2, "COMMAND"),
    (["swarm", "--links", "up=fast"], 2, "up: expected a number"), (["swarm", "--size", "1X"], 2, "expected a number"),
    (["swarm", "--leechers", "200"], 2, "from 1 to 199"), (["table", "--rows", "moon"], 2, "expected one of one-40ms"),
    (["table", "--rows", "homes", "--out", "/absent/x.svg"], 1, "/absent/x.svg"), (["fly"], 2, "invalid choice")])
def test_wrong_arguments_are_one_line_and_an_exit_code(words, code, said):
    ended = run_links(*words)
    assert (ended.returncode, ended.stderr.count("\n")) == (code, 1) and said in ended.stderr and "Traceback" not in ended.stderr


def test_the_bound_is_the_textbooks_and_a_round_trip():
    spec = links.parse_links("up=8M,down=80M,delay=10ms")
    assert links.bound(spec, 1, 10 ** 6) == pytest.approx(1.02), "the seeder must send each byte once"
    assert links.bound(spec, 8, 10 ** 6) == pytest.approx(1.02), "F/u for every N: 8 F over 9 uplinks is less"
    assert links.bound(links.parse_links("up=8M,1:up=80M,down=4M"), 2, 10 ** 6) == pytest.approx(2.0), "the slowest downlink"
    assert links.bound(links.parse_links("up=8M,1:up=80M,3:up=1M"), 2, 10 ** 6) == pytest.approx(2e6 / (89e6 / 8)), "all uplinks together"


# The wire's arithmetic, without a device and with a clock of its own.


class Clock:
    """A wire whose packets and time the test controls."""

    def __init__(self, monkeypatch, text, hosts=3):
        self.now, self.came = 100.0, []
        self.wire = links.Wire(dict.fromkeys(range(1, hosts + 1), -1), links.parse_links(text), links.Counters())
        monkeypatch.setattr(links.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(self.wire, "deliver", lambda host, packet, due: self.came.append((round(due - 100.0, 6), host, packet)))

    def send(self, host, to, packet, at=None):
        self.now = self.now if at is None else 100.0 + at
        self.wire.leave(host, to, packet)

    def run(self):
        """All packets delivered, as (when, host, packet)."""
        self.wire.hand_over(1e9)
        return self.came


@pytest.fixture
def clock(monkeypatch):
    return lambda *args, **options: Clock(monkeypatch, *args, **options)


def test_a_packet_takes_both_rates_and_the_delay(clock):
    wire = clock("up=8M,down=80M,delay=10ms")
    wire.send(1, 2, b"x" * 1000)
    wire.send(1, 2, b"y" * 1000)
    assert [(at, host, packet[:1]) for at, host, packet in wire.run()] == [(0.0111, 2, b"x"), (0.0121, 2, b"y")]


def test_a_downlink_serves_in_the_order_of_arrival_and_a_queue_elsewhere_delays_nobody(clock):
    wire = clock("up=80M,down=8M,1:up=80K,queue=1s")
    for packet in (b"a" * 1000, b"b" * 1000):  # they leave at 0.1 and at 0.2
        wire.send(1, 3, packet)
    wire.send(2, 3, b"c" * 1000, at=0.01)
    assert [(at, packet[:1]) for at, _, packet in wire.run()] == [(0.0111, b"c"), (0.101, b"a"), (0.201, b"b")]


@pytest.mark.parametrize("queue, taken", [("queue=105ms", 11), ("queue=5500", 6)])
def test_a_full_queue_drops_what_comes_last(clock, queue, taken):
    wire = clock(f"up=800K,{queue}")
    for number in range(20):
        wire.send(1, 2, bytes([number]) * 1000)  # 10 ms each
    assert [packet[0] for _, _, packet in wire.run()] == list(range(taken)) and wire.wire.counters.dropped == 20 - taken
    assert wire.wire.counters.sent[1] == 1000 * taken


def test_what_waits_in_the_queue_of_an_uplink_is_counted_byte_by_byte(clock):
    wire = clock("up=800K")
    for size in (1000, 1000, 3000):  # they wait 0, 10 and 20 ms
        wire.send(1, 2, b"x" * size)
    assert wire.wire.counters.waited[1] == pytest.approx(1000 * 0.01 + 3000 * 0.02) and not wire.wire.counters.waited[2]


def test_a_downlink_has_a_queue_too(clock):
    wire = clock("up=80M,down=800K,queue=100ms")
    for host in (1, 2):
        for _ in range(20):
            wire.send(host, 3, b"x" * 1000)
    assert 11 <= len(wire.run()) <= 13 and wire.wire.counters.dropped >= 27


def test_losses_are_as_frequent_as_told_the_same_each_time_and_of_one_host_alone(clock):
    def lost(text, host):
        wire = clock(text)
        for number in range(5000):
            wire.send(host, 3, bytes(4), at=number / 1000)
        assert len(wire.run()) + wire.wire.counters.lost == 5000
        return wire.wire.counters.lost
    assert 120 <= lost("loss=3%", 1) <= 180 and lost("loss=3%", 1) == lost("loss=3%", 1) != lost("loss=3%", 2)
    assert lost("2:loss=3%", 1) == 0 < lost("2:loss=3%", 2)


# When it refuses to report.


REPORT = links.Report(10.0, 0.4, 1000, 0.001, 0.004, 0, 0, [0], [0.0])


@pytest.mark.parametrize("changes, said", [({}, ""), ({"cpu": 0.95}, "95 % of a core"), ({"late": 0.05}, "5 % of the packets were more than 5 ms late")])
def test_a_wire_that_was_the_bottleneck_gives_no_figure(changes, said):
    run = links.Run(7.0, [7.0], 1.2, REPORT._replace(**changes))
    figure = links.figure_of("homes", "this", [links.Run(7.0, [7.0], 1.2, REPORT), run], 6.7)
    assert (said in figure.refusal) if said else figure.refusal == ""
    assert ("7.00 s" in str(figure)) == (not said) and links.code_of([figure]) == (links.EXIT_SLOW if said else 0)


@with_hosts
def test_a_wire_that_is_stopped_for_a_while_refuses():
    code = """
import os, signal, subprocess, sys, time
import links
with links.Links(links.parse_links("delay=1ms"), 2) as made:
    ask = "import socket; socket.create_connection(('10.99.0.1', 9)) "
    made.start(2, [sys.executable, "-c", ask], stderr=subprocess.DEVNULL).wait()
    made.begin()
    stopper = subprocess.Popen([sys.executable, "-c", f"import os, time\\nfor _ in range(5): os.kill({made.wire}, 19); time.sleep(0.1); os.kill({made.wire}, 18); time.sleep(0.01)"])
    while stopper.poll() is None:
        made.start(2, [sys.executable, "-c", ask], stderr=subprocess.DEVNULL).wait()
    print(made.report().refusal())
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=os.path.join(ROOT, "lab"), capture_output=True, text=True, timeout=60)
    assert "the wire was too slow" in ended.stdout, ended


# Hosts.


TRANSFER = """
import socket, sys, time
import links
spec, size = links.parse_links(sys.argv[1]), int(sys.argv[2])
serve = "import socket\\ns, _ = socket.create_server(('10.99.0.1', 5000)).accept()\\nwhile s.recv(1 << 20): pass\\n"
send = '''
import socket, sys, time
while True:
    try:
        s = socket.create_connection(("10.99.0.1", 5000))
        break
    except ConnectionRefusedError:
        time.sleep(0.01)
began = time.monotonic()
s.sendall(bytes(int(sys.argv[1])))
s.shutdown(socket.SHUT_WR)
s.recv(1)
print(time.monotonic() - began)
'''
with links.Links(spec, 3) as made:
    server = made.start(1, [sys.executable, "-c", serve])
    made.start(int(sys.argv[3]), [sys.executable, "-c", send, str(size)]).wait()
    server.wait()
    report = made.report()
    print(report.lost, report.sent[int(sys.argv[3])])
"""


def transfer(text, size, host=2):
    """(seconds, packets lost, bytes sent by the host) of a transfer to host 1."""
    ended = subprocess.run([sys.executable, "-c", TRANSFER, text, str(size), str(host)], cwd=os.path.join(ROOT, "lab"),
                           capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    seconds, lost, sent = ended.stdout.split()
    return float(seconds), int(lost), float(sent)


@with_hosts
def test_a_transfer_is_no_faster_than_the_rate_and_one_host_can_be_slower():
    seconds, _, sent = transfer("up=8M", 1_000_000)
    assert 1.0 <= seconds < 4 and 1_000_000 < sent < 1_400_000, "a load makes it slower, never faster"
    assert 1.0 <= transfer("3:up=4M", 500_000, host=3)[0] < 4 and transfer("3:up=4M", 500_000, host=2)[0] < 1.0


@with_hosts
def test_a_round_trip_takes_twice_the_delay_and_slow_start_several():
    seconds, _, _ = transfer("delay=50ms", 200_000)
    assert 4 * 0.1 - 0.05 <= seconds < 3, "10, 20, 40 and 80 segments, and the end"


@with_hosts
def test_what_is_lost_is_sent_again():
    seconds, lost, sent = transfer("up=50M,delay=1ms,loss=3%", 2_000_000)
    assert lost > 20 and sent > 2_000_000 * 1.02


@with_hosts
def test_a_command_has_its_host_its_stdin_and_its_exit_code():
    show = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('10.99.0.1', 9)); print(s.getsockname()[0], sys.stdin.read()); sys.exit(7)"
    ended = run_links("run", "3", "--", sys.executable, "-c", show, input="hello")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "10.99.0.3 hello\n", "")
    missing = run_links("run", "1", "--", "/absent/program")
    assert (missing.returncode, missing.stderr) == (127, "links.py: cannot run /absent/program: No such file or directory\n")


@with_hosts
def test_a_congestion_control_is_the_one_that_was_named_and_a_missing_one_is_told():
    ask = "import socket; s = socket.create_server(('10.99.0.1', 5)); c = socket.create_connection(('10.99.0.1', 5)); print('up')"
    assert run_links("run", "1", "--links", "tcp=reno", "--", sys.executable, "-c", ask).stdout == "up\n"
    ended = run_links("run", "1", "--links", "tcp=nosuch", "--", "true")
    assert ended.returncode == links.EXIT_CANNOT and "no congestion control nosuch" in ended.stderr and ended.stderr.count("\n") == 1


@with_hosts
def test_a_user_namespace_does_where_there_is_no_right():
    """Root gives up its rights but can still open the device."""
    code = ("import links, sys\nlinks.may_make_hosts = lambda: False\n"
            "with links.Links(links.parse_links(''), 2) as made: made.start(2, ['cat', '/proc/net/route']).wait()\n")
    ended = subprocess.run([sys.executable, "-c", code], cwd=os.path.join(ROOT, "lab"), capture_output=True, text=True, timeout=60)
    if "no user namespace" in ended.stderr:
        pytest.skip(ended.stderr.splitlines()[-1])
    assert ended.returncode == 0 and "link0" in ended.stdout, ended.stderr


def test_what_is_missing_is_told_in_one_line():
    code = "import sys, ending, links\nsys.platform = 'plan9'\nsys.argv = ['links.py', 'run', '1', '--', 'true']\nending.run(links.main)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=os.path.join(ROOT, "lab"), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (links.EXIT_CANNOT, "links.py: links cannot be made here: they need network namespaces of Linux, and this is plan9\n")


# What it leaves behind.


def namespaces():
    """The network namespaces of all processes."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            pass  # it has ended, or is not ours
    return found


@with_hosts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_is_gone_afterwards_however_it_ends_also_what_a_command_has_left_running(ending, number):
    processes.adopt_orphans()
    program = ending(Program([*PROGRAM, "run", "3", "--", "sh", "-c", "setsid sleep 300 & echo begun; sleep 300"]))
    program.wait_for("begun")
    started = eventually(lambda: len(found := [pid for pid, _, _ in processes.descendants(program.pid)]) >= 4 and found,
                         what="the wire, process 1, the command and what that has started")
    inside = {os.readlink(f"/proc/{pid}/ns/net") for pid in started}
    program.signal(number)
    program.ends_with(-9 if number == signal.SIGKILL else 128 + number)
    eventually(lambda: not processes.running(), what="the end of all that it has started")
    assert len(inside) >= 2 and namespaces() & inside <= {os.readlink("/proc/self/ns/net")}


@with_hosts
def test_no_program_of_a_swarm_outlives_a_measurement_that_is_killed(ending, tmp_path):
    words = ["swarm", "--leechers", "2", "--size", "64M", "--links", "up=1M"]
    program = ending(Program([*PROGRAM, *words], env={**os.environ, "TMPDIR": str(tmp_path)}))
    eventually(lambda: len([pid for pid, _, _ in processes.descendants(program.pid)]) == 4, what="the wire, a tracker and two peers")
    program.signal(signal.SIGKILL)
    program.ends_with(-9)
    eventually(lambda: not processes.running(), what="the end of all that it has started")


@with_hosts
def test_a_swarm_that_is_interrupted_leaves_no_file_behind(ending, tmp_path):
    program = ending(Program([*PROGRAM, "swarm", "--leechers", "2", "--size", "64M", "--links", "up=1M"], env={**os.environ, "TMPDIR": str(tmp_path)}))
    eventually(lambda: len([pid for pid, _, _ in processes.descendants(program.pid)]) == 4, what="the wire, a tracker and two peers")
    program.signal(signal.SIGTERM)
    program.ends_with(143)
    assert os.listdir(tmp_path) == []


# A swarm.


@with_hosts
def test_a_small_swarm_has_a_line_with_all_that_was_measured(tmp_path):
    ended = run_links("swarm", "--leechers", "2", "--size", "512K", "--links", "up=8M,delay=5ms", "--events", str(tmp_path / "run"))
    assert ended.returncode in (0, links.EXIT_SLOW), ended.stderr
    line = ended.stdout.splitlines()[2]
    if ended.returncode == 0:
        seconds, least, over, files = map(float, re.fullmatch(
            r"run 1 +this +([\d.]+) s +([\d.]+) s +([\d.]+) +([\d.]+) files +wire \d+ % of a core, worst [\d.]+ ms late", line).groups())
        assert least == 0.53 and over == pytest.approx(seconds / least, rel=0.02) and over >= 1 and 1 <= files < 3
    else:
        assert "the wire was too slow" in line  # a machine that is busy with other tests
    assert sorted(os.listdir(tmp_path / "run")) == ["host 2.events", "host 3.events", "seeder.events"]


@with_hosts
@pytest.mark.fault(53)
@pytest.mark.spec("SW-1", "SW-8")
@pytest.mark.long
def test_on_links_with_losses_and_deep_queues_the_fast_do_not_wait_for_the_slow(tmp_path):
    """Host 4 has a tenth of the others' rate, or less. The program itself checks that every file is exact."""
    ended = run_links("swarm", "--leechers", "3", "--size", "1M", "--events", str(tmp_path / "run"),
                      "--links", "up=20M,down=20M,delay=20ms,loss=1%,queue=1s,4:up=1M,4:down=1M")
    assert ended.returncode in (0, links.EXIT_SLOW), ended.stderr
    took = {}
    for host in (2, 3, 4):
        (start,), (complete,) = (events_in(tmp_path / "run" / f"host {host}.events", kind) for kind in ("start", "complete"))
        took[host] = complete["t"] - start["t"]
    assert max(took[2], took[3]) < took[4]
