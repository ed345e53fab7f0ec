#!/usr/bin/env python3
"""Speed and memory of peer.py and tracker.py, side by side with the raw limit and with other programs.

    make bench                               everything, three rounds, a few minutes
    make bench ARGS="--quick --only start"   smaller files, one case
    make bench ARGS="--libtorrent PYTHON"    an interpreter that can import libtorrent

It prints one table and writes bench.json, with the figures of every run. Exit code 0: all was
measured, whatever the verdicts; 1: something failed; 130: interrupted.

How it measures. In a round every program has one turn, ours first. A warm-up round that does not
count comes first, so that sources and programs are in memory for all. Each turn writes into a new
folder, which is deleted after it. `ours/its` is the ratio of the medians: 0.5 means that ours takes
half the time; `each round` shows the smallest and the largest ratio within one round. The output of
a program is compared with the source after its turn, outside of the time measured.

Reading order: constants - small programs that are measured, or that generate load - processes -
turns of each program - cases - the table - main.
"""

import hashlib
import os
import signal
import socket
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCH = os.path.abspath(__file__)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

RAW_CHUNK = 256 * KIB       # bytes that the raw path collects, hashes and then writes, as a peer must
RAW_STREAM = 2 * MIB        # bytes per recv_into of the raw path that need not collect: the fastest of 64 KiB to 4 MiB
PIECE_SIZE = 256 * KIB      # of a torrent: the size of our chunks
TORRENT_FORMAT = "v1_only"  # took 2.1 s for 1 GiB; v2_only, with SHA-256 as ours, took 2.5 s
CLIENTS = 4                 # connections that query a tracker at once: enough to keep it busy
LOAD_PEERS = 500            # that send proofs to one tracker
PROOF_SECONDS = 3.0         # between two proofs of a peer, at a lease of 10 s
PATIENCE = 600              # seconds for anything; a process that takes longer is killed, and has failed
MEMORY_TARGET = 60          # MB (10^6 bytes) of resident memory, for tracker and peer
ABSENT = "not installed"
OK_FRAME = bytes.fromhex("0000000000000002 0a00")

# (case, program): the most time ours may take, as a multiple of that program's; for ours itself, in seconds.
TARGETS = {("one", "raw limit"): 1.0, ("one", "libtorrent"): 0.5, ("eight", "libtorrent"): 0.5, ("eight", "curl"): 1.5, ("start", "ours"): 0.15}

# Small programs, each run as a process of its own: `bench.py NAME ARGUMENT...`. What only one of
# them needs is imported inside it, because their start is measured too.


def raw_send(path):
    """Send the file to whoever connects, each from a thread of its own."""
    import threading
    fd, size = os.open(path, os.O_RDONLY), os.path.getsize(path)

    def send(sock, offset=0):
        with sock:
            while offset < size:
                offset += os.sendfile(sock.fileno(), fd, offset, size - offset)

    with socket.create_server(("127.0.0.1", 0)) as server:
        print(f"listening on port {server.getsockname()[1]}", flush=True)
        while True:
            threading.Thread(target=send, args=server.accept()[:1], daemon=True).start()


def raw_receive(port, out, size, chunk, wait):
    """What one thread must do for a verified file: receive, hash, write. No protocol, no choice, no other peers.

    With `wait` it hashes and writes whole chunks, without it whatever has arrived.
    """
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.ftruncate(fd, int(size))
    buffer, seen, offset = memoryview(bytearray(int(chunk))), hashlib.sha256(), 0
    with socket.create_connection(("127.0.0.1", int(port))) as sock:
        while count := sock.recv_into(buffer, 0, socket.MSG_WAITALL if wait == "whole" else 0):
            seen.update(buffer[:count])
            offset += os.pwrite(fd, buffer[:count], offset)
    print(seen.hexdigest())


def make_torrent(path, out):
    import libtorrent as lt
    files = lt.file_storage()
    lt.add_files(files, path)
    torrent = lt.create_torrent(files, PIECE_SIZE, flags=getattr(lt.create_torrent, TORRENT_FORMAT))
    lt.set_piece_hashes(torrent, os.path.dirname(path))
    with open(out, "wb") as file:
        file.write(lt.bencode(torrent.generate()))


def torrent_peer(torrent, folder, port, *others):
    """Seed or leech with libtorrent until SIGTERM; print the time at which it became a seeder.

    Nothing slows it: no rate limit, no encryption, no uTP, no limit on unchoked peers, and a tick of 100 ms
    (500 by default), because it dials only on ticks. Larger buffers and more threads made it no faster.
    """
    import libtorrent as lt
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())  # an orderly exit writes what is still in memory
    session = lt.session({
        "listen_interfaces": f"127.0.0.1:{port}", "allow_multiple_connections_per_ip": True,
        "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
        "enable_outgoing_utp": False, "enable_incoming_utp": False, "out_enc_policy": 2, "in_enc_policy": 2,
        "unchoke_slots_limit": -1, "min_reconnect_time": 1, "smooth_connects": False, "tick_interval": 100,
        "alert_mask": lt.alert.category_t.status_notification})
    params = lt.add_torrent_params()
    params.ti, params.save_path = lt.torrent_info(torrent), folder
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    handle = session.add_torrent(params)
    for other in others:
        handle.connect_peer(("127.0.0.1", int(other)))
    while not handle.status().is_seeding:
        session.wait_for_alert(20)  # milliseconds, or until something has happened
        session.pop_alerts()
    print(f"seeding at {time.monotonic()}", flush=True)  # this clock is the same in all processes
    while True:
        signal.pause()


def proof_frames(count):
    """The frames of the Active Proofs of `count` peers."""
    sys.path.insert(0, ROOT)
    from messages_pb2 import Request
    proofs = [Request.ActiveProof(listening_addr=f"127.0.0.1:{20_000 + number}") for number in range(count)]
    bodies = [Request(active_proof=proof).SerializeToString() for proof in proofs]
    return [len(body).to_bytes(8, "big") + body for body in bodies]


def prove(sock, frame):
    """Send one request and read its answer, which must be Ok."""
    sock.sendall(frame)
    answer = sock.recv(len(OK_FRAME), socket.MSG_WAITALL)
    if answer != OK_FRAME:
        raise ConnectionError(f"expected Ok, got {answer.hex(' ') or 'the end of the connection'}")


def load_requests(kind, port, seconds):
    """Print how many proofs per second the tracker answers, on `kept` connections or on a `fresh` one each."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(frame, count=0):
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until:
            with socket.create_connection(("127.0.0.1", int(port))) as sock:
                prove(sock, frame)
                count += 1
                while kind == "kept" and time.monotonic() < until:
                    prove(sock, frame)
                    count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        print(sum(pool.map(ask, proof_frames(CLIENTS))) / float(seconds))


def load_swarm(pid, port, seconds):
    """Act as LOAD_PEERS peers that send a proof every PROOF_SECONDS; print the share of a core that the tracker uses."""
    frames = proof_frames(LOAD_PEERS)
    proofs = int(float(seconds) / PROOF_SECONDS * LOAD_PEERS)
    began = time.monotonic()
    for number in range(LOAD_PEERS + proofs):
        time.sleep(max(0, began + number * PROOF_SECONDS / LOAD_PEERS - time.monotonic()))
        if number == LOAD_PEERS:  # all are listed
            since, before = time.monotonic(), cpu_seconds(pid)
        with socket.create_connection(("127.0.0.1", int(port))) as sock:
            prove(sock, frames[number % LOAD_PEERS])
    elapsed = time.monotonic() - since
    if elapsed > 1.1 * float(seconds):
        return f"expected {proofs} proofs in {seconds} s, got them in {elapsed:.1f}"
    print((cpu_seconds(pid) - before) / elapsed)


def cpu_seconds(pid):
    """Processor time that a process has used so far."""
    if sys.platform == "linux":
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    import subprocess
    shown = subprocess.run(["ps", "-o", "time=", "-p", pid], capture_output=True, text=True, check=True).stdout
    minutes, seconds = shown.split(":")[-2:]
    return 60 * int(minutes) + float(seconds)


PROGRAMS = {"raw-send": raw_send, "raw-receive": raw_receive, "make-torrent": make_torrent,
            "torrent-peer": torrent_peer, "load-requests": load_requests, "load-swarm": load_swarm}

if __name__ == "__main__" and sys.argv[1:] and sys.argv[1] in PROGRAMS:
    sys.exit(PROGRAMS[sys.argv[1]](*sys.argv[2:]))

import argparse, contextlib, filecmp, itertools, json, platform, re, statistics, subprocess, tempfile, threading  # noqa: E401, E402
from typing import NamedTuple  # noqa: E402

# Processes.

SIGNALS = signal.SIGINT, signal.SIGTERM
NUMBERS = itertools.count()
RUNNING = set()  # processes started and not yet waited for


class Failure(Exception):
    """The measurement failed; the one line says why."""


@contextlib.contextmanager
def undisturbed():
    """Defer Ctrl-C until the block is done."""
    came = []
    for number in SIGNALS:
        signal.signal(number, lambda *_: came.append(True))
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def start(command, folder):
    """Start a process; its output goes to a file in the folder, process.log."""
    log = os.path.join(folder, f"{next(NUMBERS)}.log")
    with open(log, "wb") as out, undisturbed():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        process.log = log
        RUNNING.add(process)
    return process


def finish(process, seconds=PATIENCE):
    """Wait for a process: (exit code, its peak resident memory in bytes). It is killed after `seconds`.

    The kernel counts from before exec, so no peak is below this program's own, about 22 MB; that is
    why this program keeps nothing large in memory.
    """
    killer = threading.Timer(seconds, os.kill, (process.pid, signal.SIGKILL))
    killer.daemon = True  # an interrupt may come before the cancel
    killer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        killer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    RUNNING.discard(process)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else KIB)


def end(process):
    """End a process that would run forever; return its peak memory."""
    os.kill(process.pid, signal.SIGTERM)  # not terminate(), which may reap the process itself
    return finish(process, 60)[1]  # libtorrent may have much to write


def end_all():
    """End all processes that still run, all at once."""
    with undisturbed():
        for act in (lambda process: os.kill(process.pid, signal.SIGTERM)), (lambda process: finish(process, 5)):
            for process in list(RUNNING):
                with contextlib.suppress(ProcessLookupError, ChildProcessError):  # waited for just before a Ctrl-C
                    act(process)


def await_line(process, pattern):
    """Wait for the process to write a line that matches; return the first group."""
    give_up = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        if match := re.search(pattern, output_of(process)):
            return match[1]
        time.sleep(0.01)
    if process.returncode is not None:
        RUNNING.discard(process)
    raise Failure(f"expected {pattern!r} of {os.path.basename(process.args[0])}, got {last_line(output_of(process))!r}")


def output_of(process):
    with open(process.log, errors="replace") as log:
        return log.read()


def last_line(text):
    return (text.strip().splitlines() or ["no output"])[-1][:200]


def timed(commands, folder):
    """Start all at once: (seconds until the last has exited, their largest peak memory, the first one's output)."""
    began = time.monotonic()
    processes = [start(command, folder) for command in commands]
    peaks = [finish(process)[1] for process in processes]
    seconds = time.monotonic() - began
    for process in processes:
        if process.returncode:
            raise Failure(f"exit code {process.returncode} of {' '.join(map(os.path.basename, process.args[:3]))}: {last_line(output_of(process))}")
    return seconds, max(peaks), output_of(processes[0])


# Turns. Each function starts the server of the source and returns the turn of one program: a function
# that fetches into a folder and returns (seconds, the largest peak memory in bytes).


def make_source(folder, size):
    """Make a file of random bytes, flushed to disk so that its write-back does not disturb a turn."""
    os.mkdir(os.path.join(folder, "source"))
    with open(os.path.join(folder, "source", "file.bin"), "wb") as file:
        for offset in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - offset)))
        file.flush()
        os.fsync(file.fileno())
    return file.name


def compare_files(paths, source):
    for path in paths:
        if not filecmp.cmp(path, source, shallow=False):
            raise Failure(f"{os.path.basename(path)} differs from the file that it should have fetched")


def turn(source, count, command):
    """The turn of a program with `count` processes at once, which end by themselves; `command(out)` starts one."""
    def take(folder):
        outs = [os.path.join(folder, f"out{number}") for number in range(count)]
        seconds, peak, _ = timed([command(out) for out in outs], folder)
        compare_files(outs, source)
        return seconds, peak
    return take


def serve(source, folder):
    """(process, port) of a tracker that seeds the file. On loopback only, out of reach of a firewall."""
    process = start([sys.executable, "tracker.py", source, "--host", "127.0.0.1", "--port", "0"], folder)
    return process, await_line(process, r"listening on port (\d+)")


def peer_command(port, out):
    return [sys.executable, "peer.py", f"127.0.0.1:{port}", out, "--host", "127.0.0.1", "--leave"]


def raw_limit(args, source, count, folder, chunk=RAW_CHUNK, wait="whole"):
    port = await_line(start([sys.executable, BENCH, "raw-send", source], folder), r"listening on port (\d+)")
    return turn(source, count, lambda out: [sys.executable, BENCH, "raw-receive", port, out, str(os.path.getsize(source)), str(chunk), wait])


def raw_stream(args, source, count, folder):
    return raw_limit(args, source, count, folder, RAW_STREAM, "any")


def python_floor(args, source, count, folder):
    return lambda target: timed([[sys.executable, "-c", "import messages_pb2"]], target)[:2]


def http_url(source, folder):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", os.path.dirname(source)]
    return f"http://127.0.0.1:{await_line(start(command, folder), r' port ([0-9]+)')}/file.bin"


def aria2c(args, source, count, folder):
    seen = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(MIB):
            seen.update(block)
    command = ["aria2c", "--no-conf", "--quiet", "--file-allocation=none", f"--checksum=sha-256={seen.hexdigest()}", http_url(source, folder)]
    return turn(source, count, lambda out: command + [f"--dir={os.path.dirname(out)}", f"--out={os.path.basename(out)}"])


def curl(args, source, count, folder):
    url = http_url(source, folder)
    return turn(source, count, lambda out: ["curl", "--silent", "--show-error", "--fail", "--output", out, url])


def libtorrent(args, source, count, folder):
    """Leechers that know the seeder and one another; the turn lasts until the last of them is a seeder."""
    command = [args.libtorrent, "-W", "ignore", BENCH]  # ignore: it warns about calls that its older versions need
    torrent = os.path.join(folder, "file.torrent")
    timed([command + ["make-torrent", source, torrent]], folder)
    (seeder,) = free_ports(1)
    await_line(start(command + ["torrent-peer", torrent, os.path.dirname(source), seeder], folder), r"(seeding) at")

    def take(target):
        ports = free_ports(count)
        began = time.monotonic()
        leechers = [start(command + ["torrent-peer", torrent, os.path.join(target, port), port, seeder, *(set(ports) - {port})], target)
                    for port in ports]
        seconds = max(float(await_line(leecher, r"seeding at ([\d.]+)\n")) for leecher in leechers) - began
        peak = max([end(leecher) for leecher in leechers])
        compare_files([os.path.join(target, port, "file.bin") for port in ports], source)
        return seconds, peak

    return take


def free_ports(count):
    """Free ports, as text: libtorrent's peers are told one another's ports before they start."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


# Cases. Whatever a case leaves running is ended after it (measure).


class Case(NamedTuple):
    title: str
    sizes: tuple       # of the file, in bytes: in a full run, with --quick
    leechers: int = 1
    beside: dict = {}  # name -> the function that returns its turn
    rounds: int = 1    # for each of --runs; more if a turn takes only a tenth of a second


CASES = {
    "one": Case("one seeder to one leecher, {}, verified", (GIB, 64 * MIB),
                beside={"raw limit": raw_limit, "raw stream": raw_stream, "libtorrent": libtorrent, "aria2c": aria2c, "curl": curl}),
    "eight": Case("one seeder to eight leechers, {}, verified but by curl", (256 * MIB, 32 * MIB), 8,
                  beside={"raw limit": raw_limit, "libtorrent": libtorrent, "curl": curl}),
    "start": Case("start to finish of {}", (MIB, MIB), 1, {"import messages_pb2": python_floor, "libtorrent": libtorrent}, rounds=5),
    "crowd": Case("64 leechers of {}", (8 * MIB, MIB), 64),
    "memory": Case("peak of resident memory", (5 * GIB, GIB)),
    "tracker": Case("the tracker", (MIB, MIB)),
}


def transfer(args, report, folder, name):
    """One seeder and the case's leechers, taking turns with the other programs."""
    case = CASES[name]
    source = make_source(folder, case.sizes[args.quick])
    tracker, port = serve(source, folder)
    turns = {"ours": turn(source, case.leechers, lambda out: peer_command(port, out))}
    absent = [program for program in case.beside if not args.programs.get(program, True)]
    turns.update({program: prepare(args, source, case.leechers, folder) for program, prepare in case.beside.items() if program not in absent})
    peak = compare(report, name, turns, case.rounds * args.runs, folder, case.leechers * os.path.getsize(source))
    for program in absent:
        add(report, name, program, note=ABSENT)
    add_memory(report, name, peer=peak, tracker=end(tracker))


def touch_memory(folder, size):
    """Write `size` bytes and delete them: a VM's host may have reclaimed the memory freed by the last turn; this turn must not pay for it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(0, size, MIB):
            file.write(bytes(MIB))


def compare(report, case, turns, rounds, folder, written):
    """Take turns in rounds, and report medians and ratios; return our peak memory in bytes."""
    runs = report["runs"][case] = {name: {"seconds": [], "peak_bytes": []} for name in turns}
    for number in range(rounds + 1):
        for name, take in turns.items():
            with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as target:
                touch_memory(target, written)
                seconds, peak = take(target)
            if number:  # the first was for warming up
                runs[name]["seconds"].append(seconds)
                runs[name]["peak_bytes"].append(peak)
    ours = runs["ours"]["seconds"]
    for name, run in runs.items():
        median, ratios = statistics.median(run["seconds"]), [mine / its for mine, its in zip(ours, run["seconds"])]
        beside = {} if name == "ours" else {"ratio": statistics.median(ours) / median, "spread": [min(ratios), max(ratios)]}
        add(report, case, name, median, "s", "<=", TARGETS.get((case, name)), **beside)
    return max(runs["ours"]["peak_bytes"])


def add(report, case, what, value=None, unit="", sign="", target=None, ratio=None, **more):
    """A row of the table. The target is for the ratio if there is one, else for the value."""
    row = {"case": case, "what": what, "value": value, "unit": unit, "ratio": ratio, **more}
    if target is not None:
        judged = value if ratio is None else ratio
        row.update(target=f"{sign} {target:g}", met=judged <= target if sign == "<=" else judged >= target)
    report["rows"].append(row)


def add_memory(report, where, **peaks):
    for name, peak in peaks.items():
        add(report, "memory", f"{name}, {where}", peak / 1e6, "MB", "<=", MEMORY_TARGET)


def crowd(args, report, folder, name):
    """A transfer that leaves nothing behind."""
    transfer(args, report, folder, name)
    add(report, name, "complete, digests equal, exit code 0", CASES[name].leechers, "peers", ">=", CASES[name].leechers)
    shown = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True).stdout
    add(report, name, "processes left behind", shown.count(folder), "", "<=", 0)


def memory(args, report, folder, name):
    """A sparse file of many chunks: only what a peer writes takes space on disk."""
    size, source, out = CASES[name].sizes[args.quick], os.path.join(folder, "sparse.bin"), os.path.join(folder, "out")
    with open(source, "wb") as file:
        file.truncate(size)
    tracker, port = serve(source, folder)
    seconds, peak, _ = timed([peer_command(port, out)], folder)
    report["runs"][name] = {"ours": {"seconds": [seconds], "peak_bytes": [peak]}}
    add_memory(report, f"sparse file of {human(size)}", peer=peak, tracker=end(tracker))


def tracker(args, report, folder, name):
    """Requests per second, and what many peers cost."""
    process, port = serve(make_source(folder, MIB), folder)
    seconds = 1 if args.quick else 3
    measures = [("proofs, 4 kept connections", "/s", ">=", 2000, ["load-requests", "kept", port, seconds]),
                ("proofs, each on a fresh connection", "/s", ">=", 1000, ["load-requests", "fresh", port, seconds]),
                (f"{LOAD_PEERS} peers prove every {PROOF_SECONDS:g} s", "cores", "<=", 0.5,
                  ["load-swarm", process.pid, port, 4 if args.quick else 10])]
    runs = report["runs"][name] = {what: [] for what, *_ in measures}
    for _ in range(args.runs):
        for what, *_, command in measures:
            runs[what].append(float(timed([[sys.executable, BENCH, *map(str, command)]], folder)[2]))
    for what, unit, sign, target, _ in measures:
        add(report, name, what, statistics.median(runs[what]), unit, sign, target, spread=[min(runs[what]), max(runs[what])])
    add_memory(report, f"{LOAD_PEERS} peers", tracker=end(process))


# The table.


def human(size):
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"


def cells(row):
    """A row's texts: what, median, ours/its, each round, target, verdict."""
    if row["value"] is None:
        return row["what"], row["note"], "", "", "", ""
    digits = {"s": ".3f", "MB": ".1f", "cores": ".3f"}.get(row["unit"], ".0f")
    spread = "{:{f}} to {:{f}}".format(*row["spread"], f=".2f" if row["ratio"] else digits) if "spread" in row else ""
    return (row["what"], f"{row['value']:{digits}} {row['unit']}", f"{row['ratio']:.2f}" if row["ratio"] else "",
            spread, row.get("target", ""), {True: "met", False: "missed", None: ""}[row.get("met")])


def show(args, report):
    form = "  {:<36} {:>12} {:>9}  {:<15} {:<8} {}".format
    print(f"rounds: {args.runs}" + ("; QUICK: smaller files and shorter times, while the targets are for a full run" if args.quick else ""))
    print(form("", "median", "ours/its", "each round", "target", "verdict"))
    for name, case in CASES.items():
        rows = [form(*cells(row)).rstrip() for row in report["rows"] if row["case"] == name]
        if rows:
            print(case.title.format(human(case.sizes[args.quick])), *rows, sep="\n")
    print("raw limit: sendfile, recv, SHA-256 and pwrite on one connection, chunk by chunk; raw stream: the same without chunks.")
    print("aria2c and curl download from `python -m http.server`; aria2c checks a SHA-256, curl checks nothing.")
    print(f"libtorrent: its Python peer, {TORRENT_FORMAT} (SHA-1), from its start until it is a seeder.")


# Main.


def find_programs(args, folder):
    """{name: version, or None if it is not installed}; args.libtorrent becomes an interpreter that has libtorrent."""
    if args.install_libtorrent:
        args.libtorrent = install_libtorrent(folder)
    candidates = [args.libtorrent] if args.libtorrent else [sys.executable, "python3"]
    versions = {python: version_of([python, "-c", "import libtorrent; print(libtorrent.__version__)"]) for python in candidates}
    if args.libtorrent and not versions[args.libtorrent]:
        stop("expected --libtorrent to name an interpreter that can import libtorrent")
    args.libtorrent = next(filter(versions.get, candidates), None)
    return {"libtorrent": versions.get(args.libtorrent), "aria2c": version_of(["aria2c", "--version"]), "curl": version_of(["curl", "--version"])}


def version_of(command):
    """The first version number that a command prints; None if the command fails."""
    try:
        shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
        return re.search(r"\d+(\.\d+)+", shown)[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def install_libtorrent(folder):
    """The interpreter of a temporary environment with libtorrent; if that fails, print one line and return None."""
    python = os.path.join(folder, "venv", "bin", "python")
    try:
        for command in ([sys.executable, "-m", "venv", os.path.join(folder, "venv")], [python, "-m", "pip", "install", "--quiet", "libtorrent"]):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        return python
    except subprocess.CalledProcessError as error:
        print(f"bench.py: libtorrent cannot be installed: {last_line(error.stderr)}", file=sys.stderr)
        return None


def machine():
    """What the figures depend on, without anything that identifies the machine's owner."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "load_at_start": os.getloadavg()[0]}


def stop(line, code=2):
    print(f"bench.py: {line}", file=sys.stderr)
    sys.exit(code)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench.py", description="Measure tracker.py and peer.py beside the raw limit and other programs.")
    parser.error = lambda message: stop(f"{message}; see --help")
    parser.add_argument("--only", default=",".join(CASES), metavar="NAME[,NAME]", help="cases to run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds that count (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller files, shorter times")
    parser.add_argument("--json", default=os.path.join(ROOT, "bench.json"), metavar="FILE",
                        help="where the figures go (default: bench.json beside peer.py)")
    parser.add_argument("--dir", metavar="DIR", help="folder for everything temporary (default: the system's)")
    parser.add_argument("--libtorrent", metavar="PYTHON", help="an interpreter that can import libtorrent")
    parser.add_argument("--install-libtorrent", action="store_true", help="install it, for this run only")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(CASES):
        parser.error(f"expected --only to name some of {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    if args.runs < 1:
        parser.error(f"expected --runs to be 1 or more, got {args.runs}")
    for folder in filter(None, [args.dir, os.path.dirname(args.json)]):
        if not os.path.isdir(folder):
            parser.error(f"expected a folder, got {folder}")
    args.dir = args.dir and os.path.abspath(args.dir)  # the programs run in another folder
    args.libtorrent = os.path.abspath(args.libtorrent) if os.sep in (args.libtorrent or "") else args.libtorrent
    return args


def measure(args, folder):
    """Run the cases one after the other, each in a folder of its own; the report."""
    args.programs = find_programs(args, folder)
    report = {"machine": machine(), "quick": args.quick, "rounds": args.runs, "programs": args.programs, "runs": {}, "rows": []}
    for name in [name for name in CASES if name in args.only]:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as inner:
            try:
                {"crowd": crowd, "memory": memory, "tracker": tracker}.get(name, transfer)(args, report, inner, name)
            except (Failure, OSError) as failure:
                add(report, name, "FAILED", note=str(failure).replace(folder, "DIR"))
            finally:
                end_all()
    return report


def main():
    args = parse_arguments()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)  # also where Ctrl-C is ignored, as in a script's background
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.dir, ignore_cleanup_errors=True) as folder:
            report = measure(args, folder)
        show(args, report)
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)
    except KeyboardInterrupt:
        stop("interrupted", 130)
    except OSError as error:
        stop(f"{error.filename}: {error.strerror}", 1)
    return int(any(row["value"] is None and row["note"] != ABSENT for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
