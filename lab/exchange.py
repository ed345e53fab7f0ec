#!/usr/bin/env python3
"""Records lab/exchange.pcap: a small swarm of real programs on loopback, captured by dumpcap (it comes with Wireshark).

    python lab/exchange.py [FILE]     may need the right to capture: root, or the group wireshark

A tracker with a lease of 1 s, a peer with no chunks, and then a seeder: so the peer joins, sends proofs, asks for the peer
list, finds nobody and later the seeder, asks for its chunks and fetches them. Finally this script asks the seeder for a chunk
that does not exist, which neither program would do, and is refused. The file is tiny to keep the capture small.

Exit codes: 0; 1 if the swarm failed; 2 for wrong arguments; 3 if nothing can be captured here.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time

import ending  # beside this file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PORTS = TRACKER_PORT, PEER_PORT, SEEDER_PORT = 8000, 8001, 8002  # fixed, so that the capture shows who is who
TEXT = b"".join(b"line %3d of the file that the swarm distributes\n" % number for number in range(1, 55))  # three chunks of 1 KiB, the last one short


def start(programs, *arguments, **options):
    """Start one of our programs and note it; a signal waits until that is done, or nobody would end the program."""
    ending.hold_signals()
    programs.append(subprocess.Popen(arguments, cwd=ROOT, text=True, **options))
    ending.catch_signals(ending.interrupt)
    ending.check_signals()
    return programs[-1]


def wait_for(program, pattern):
    """Wait until the program prints a line like this; if it ends first, return what it printed."""
    seen = []
    for line in program.stdout:
        seen.append(line.strip())
        if re.search(pattern, line):
            return ""
    return seen[-1] if seen else "nothing"


def check_ports():
    for port in PORTS:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise ending.Failure(f"expected port {port} to be free, got: {error.strerror}", 3)


def ask_for_no_chunk():
    with socket.create_connection(("127.0.0.1", SEEDER_PORT)) as sock:
        sock.sendall(bytes.fromhex("00 00 00 00 00 00 00 06  2a 04 08 80 80 10"))
        length = sock.recv(8, socket.MSG_WAITALL)
        sock.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)


def start_capture(target, programs):
    ports = " or ".join(f"tcp port {port}" for port in PORTS)
    dumpcap = start(programs, "dumpcap", "-q", "-i", "lo", "-f", ports, "-P", "-w", target, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = wait_for(dumpcap, "^File:")
    if told:
        raise ending.Failure(f"expected dumpcap to capture on lo, got: {told}", 3)


def start_tracker(path, programs):
    tracker = start(programs, sys.executable, "tracker.py", path, "--port", str(TRACKER_PORT), "--no-seed", "--chunk-size", "1K", "--expire", "1",
                    stdout=subprocess.PIPE)
    told = wait_for(tracker, r"listening on port \d+$")
    if told:
        raise ending.Failure(f"expected the tracker to listen, got: {told}", 1)


def start_peer(out, port, programs, *options):
    return start(programs, sys.executable, "peer.py", f"127.0.0.1:{TRACKER_PORT}", out, "--host", "127.0.0.1", "--port", str(port),
                 "--quiet", *options)


def record(target, folder, programs):
    check_ports()
    start_capture(target, programs)
    original, whole, out = (os.path.join(folder, name) for name in ("story.txt", "seeder.txt", "out.txt"))
    for path in (original, whole):
        with open(path, "wb") as file:
            file.write(TEXT)
    start_tracker(original, programs)
    peer = start_peer(out, PEER_PORT, programs, "--leave")
    time.sleep(0.5)  # for a proof or two, and a peer list without a neighbor
    seeder = start_peer(whole, SEEDER_PORT, programs)
    try:
        complete = peer.wait(30) == 0
    except subprocess.TimeoutExpired:
        complete = False
    if not complete:
        raise ending.Failure("expected the peer to fetch the file within 30 s, but it did not", 1)
    ask_for_no_chunk()
    seeder.terminate()
    time.sleep(2)  # dumpcap gets packets in batches, up to a second late


def main():
    if len(sys.argv) > 2 or sys.argv[1:] and sys.argv[1].startswith("-"):
        raise ending.Failure("expected at most the name of one file; python lab/exchange.py [FILE]")
    target = os.path.abspath((sys.argv[1:] or [os.path.join(ROOT, "lab", "exchange.pcap")])[0])  # the programs run in another folder
    programs = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            record(target, folder, programs)
        except FileNotFoundError:
            raise ending.Failure("expected dumpcap, which comes with Wireshark; install it", 3)
        finally:
            for program in reversed(programs):
                program.terminate()
                program.wait()
                if program.stdout:
                    program.stdout.close()
    os.chmod(target, 0o644)  # dumpcap lets nobody else read it
    print(f"{target}: {os.path.getsize(target):,} bytes; python lab/tools/explain.py {target} shows what is in it")


if __name__ == "__main__":
    ending.run(main)
