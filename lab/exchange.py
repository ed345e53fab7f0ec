#!/usr/bin/env python3
"""Records lab/exchange.pcap: a small swarm of real programs on loopback, captured by dumpcap (it comes with Wireshark).

    python lab/exchange.py [FILE]     may need the right to capture: root, or the group wireshark

A tracker with a lease of 1 s, a peer that misses everything, and then a seeder: so the peer joins, proves, finds nobody,
asks for the peer list, finds the seeder, asks for its chunks and fetches them. The file is tiny, so that the capture is.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRACKER_PORT, PEER_PORT, SEEDER_PORT = 8000, 8001, 8002
TEXT = b"".join(b"line %3d of the file that the swarm distributes\n" % number for number in range(1, 55))  # three chunks of 1 KiB, the last one short


def start(*arguments, **options):
    return subprocess.Popen(arguments, cwd=ROOT, text=True, **options)


def wait_for(program, stream, pattern):
    for line in stream:
        if re.search(pattern, line):
            return
    raise SystemExit(f"exchange: expected {program} to print {pattern!r}, but it ended")


def record(target, folder, programs):
    ports = " or ".join(f"tcp port {port}" for port in (TRACKER_PORT, PEER_PORT, SEEDER_PORT))
    dumpcap = start("dumpcap", "-q", "-i", "lo", "-f", ports, "-P", "-w", target, stderr=subprocess.PIPE)
    programs.append(dumpcap)
    wait_for("dumpcap", dumpcap.stderr, "^File:")
    original, whole, out = (os.path.join(folder, name) for name in ("story.txt", "seeder.txt", "out.txt"))
    for path in (original, whole):
        with open(path, "wb") as file:
            file.write(TEXT)
    tracker = start(sys.executable, "tracker.py", original, "--port", str(TRACKER_PORT), "--no-seed", "--chunk-size", "1K", "--expire", "1", stdout=subprocess.PIPE)
    programs.append(tracker)
    wait_for("tracker.py", tracker.stdout, r"listening on port \d+$")
    peer = start(sys.executable, "peer.py", f"127.0.0.1:{TRACKER_PORT}", out, "--host", "127.0.0.1", "--port", str(PEER_PORT), "--quiet", "--leave")
    programs.append(peer)
    time.sleep(0.5)  # for a proof or two, and a peer list without a neighbor
    seeder = start(sys.executable, "peer.py", f"127.0.0.1:{TRACKER_PORT}", whole, "--host", "127.0.0.1", "--port", str(SEEDER_PORT), "--quiet")
    programs.append(seeder)
    if peer.wait(30):
        raise SystemExit("exchange: expected the peer to fetch the file, but it did not")
    seeder.terminate()
    time.sleep(2)  # dumpcap is told of packets in batches, up to a second late


def main(target=os.path.join(ROOT, "lab", "exchange.pcap")):
    programs = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            record(target, folder, programs)
        except FileNotFoundError:
            raise SystemExit("exchange: expected dumpcap, which comes with Wireshark; install it") from None
        finally:
            for program in reversed(programs):
                program.terminate()
                program.wait()
    os.chmod(target, 0o644)  # dumpcap lets nobody else read it
    print(f"{target}: {os.path.getsize(target):,} bytes; python lab/explain.py {target} shows what is in it")


if __name__ == "__main__":
    main(*sys.argv[1:])
