#!/usr/bin/env python3
"""The tracker of one file: it knows who is in the swarm and what the file is, and seeds it.

    python3 tracker.py FILE     prints the command with which other machines join

lab/SPEC.md says what it promises; the numbers in brackets, such as [JN-3], are its clauses. Read
peer.py first: frames, server and timer are there, and a tracker adds little.

Reading order: the swarm (leases and nothing else) - the tracker (what it answers) - main.

Threads. One accepts connections, and each connection has one (Server in peer.py). A timer sweeps
out the peers whose lease has run out. The seeder is an ordinary Peer in this process, with threads
of its own, which joins over TCP like any other. The main thread waits for the end.

Locks. Swarm.lock guards the table of leases; it is never held during network traffic.
"""

import peer  # before all others: it reports in one line what this machine lacks
import array
import contextlib
import fcntl
import os
import shlex
import socket
import stat
import struct
import sys
import threading
import time

import messages_pb2
from messages_pb2 import Response
from peer import Fatal

MAX_PEERS = 100_000        # listed at a time; their addresses fit in peer.MAX_ANSWER
MAX_PEERS_PER_IP = 1_000   # one machine, or all that is behind one router [JN-7]
EVERYWHERE = {"": "127.0.0.1", "0": "127.0.0.1", "0.0.0.0": "127.0.0.1",
              "::": "::1"}  # --host: where to join
MAX_LEASE_MS = 2**32 - 1    # the most that the answer to Join can hold: 49 days
SWEEP_SHARE = 0.25         # of a lease, between two sweeps; answers leave out the expired at once
PEER = "peer.py"           # what others type; make dist puts another name into tracker.pyz


# ---------------------------------------------------------------------------------------------
# The swarm.


class Full(Exception):
    """There is no room for another peer, of this IP address or of any."""


class Swarm:
    """The live peers, as (host, port), each with the time at which its lease runs out.

    `lease` is in seconds, `clock` returns seconds and never goes back. All leases have the same
    length, so a table in the order of the last renewal is also in the order of expiry.
    """

    def __init__(self, lease, clock=time.monotonic):
        self.lease = lease
        self.clock = clock
        self.lock = threading.Lock()
        # guarded by lock:
        self.expires = {}  # address -> when its lease runs out, the earliest first
        self.per_ip = {}   # host -> how many of its peers are listed

    def renew(self, address):
        """List a peer or renew its lease; True if new. Raises Full [JN-5, JN-7, AP-1, AP-2]."""
        with self.lock:
            new = address not in self.expires
            if new:
                count = self.per_ip.get(address[0], 0)
                if count >= MAX_PEERS_PER_IP or len(self.expires) >= MAX_PEERS:
                    raise Full(f"expected room for another peer, but {count} of {address[0]} and"
                               f" {len(self.expires)} in all are listed")
                self.per_ip[address[0]] = count + 1
            else:
                del self.expires[address]
            self.expires[address] = self.clock() + self.lease
            return new

    def __len__(self):
        with self.lock:
            return len(self.expires)

    def peers(self):
        """The addresses of all peers whose lease has not run out [AP-3]."""
        with self.lock:
            now = self.clock()
            return [address for address, expires in self.expires.items() if expires > now]

    def sweep(self):
        """Remove the peers whose lease has run out; returns their addresses."""
        with self.lock:
            now = self.clock()
            expired = []
            for address, expires in self.expires.items():
                if expires > now:
                    break
                expired.append(address)
            for address in expired:
                del self.expires[address]
                self.per_ip[address[0]] -= 1
                if not self.per_ip[address[0]]:
                    del self.per_ip[address[0]]
            return expired


# ---------------------------------------------------------------------------------------------
# The tracker.


class Tracker:
    """Answers Join, Active Proof and Peer List for the swarm of one file."""

    def __init__(self, file, lease, events, say):
        self.file = file
        self.message = file.to_message()
        self.swarm = Swarm(lease)
        self.events = events or (lambda event, **fields: None)
        self.say = say
        self.own = set()  # addresses at which this machine was reached; only grows

    def on_join(self, request, sock):
        """List the peer; answer with peer list, description and lease, or refuse [JN-1 to JN-7]."""
        refusal = self.list(request, sock, "joined")
        if refusal:
            return refusal
        lease_ms = min(max(1, int(self.swarm.lease * 1000)), MAX_LEASE_MS)
        return Response(peer_list=Response.PeerList(
            addresses=self.addresses_for(sock), file=self.message, lease_ms=lease_ms))

    def on_active_proof(self, request, sock):
        """Restart the peer's lease, or list it; answer Ok, or refuse [AP-1, AP-2, AP-5, AP-6]."""
        if request.content_id and request.content_id != self.file.content_id:
            return peer.bad(messages_pb2.OTHER_FILE,
                            f"expected a peer of {self.file.content_id.hex()},"
                            f" got one of {request.content_id[:32].hex()}")
        return self.list(request, sock, "listed") or Response(ok=Response.Ok())

    def on_peer_list(self, request, sock):
        """The peer list, for anyone: asking for it lists nobody [PL-1, PL-2]."""
        return Response(peer_list=Response.PeerList(addresses=self.addresses_for(sock)))

    def list(self, request, sock, event):
        """List the sender of a Join or an Active Proof; None, or the answer that refuses it.

        What counts is the port that was announced, and the IP address that the request came from:
        nobody can send the swarm to a stranger by announcing its address [JN-3].
        """
        try:
            _, port = peer.parse_ip_address(request.listening_addr)
            address = peer.peer_address(sock)[0], port
            new = self.swarm.renew(address)
        except ValueError as error:
            return peer.bad(messages_pb2.BAD_ADDRESS, str(error)[:200])
        except Full as error:
            return peer.bad(messages_pb2.FULL, str(error))
        if new:
            self.events(event, peer=peer.format_address(address))
            self.say(f"{event} {peer.format_address(address)}, {len(self.swarm)} in the swarm")
        return None

    def addresses_for(self, sock):
        """All live peers, as this asker can reach them.

        A peer on the tracker's own machine may have joined over loopback, or at an address of a
        network that the asker is not in; it is listed where the asker reached the tracker [JN-6].
        A link-local address means nothing beyond its link.
        """
        asker, here = peer.peer_address(sock)[0], peer.plain_ip(sock.getsockname()[0])
        self.own.add(here)
        peers = self.swarm.peers()
        if not peer.is_loopback(asker):
            peers = [(here if peer.is_loopback(host) or host in self.own else host, port)
                     for host, port in peers]
            if not asker.startswith("fe80:"):
                peers = [address for address in peers if not address[0].startswith("fe80:")]
        return [peer.format_address(address) for address in peers]

    def sweep(self):
        for address in self.swarm.sweep():
            self.events("expired", peer=peer.format_address(address))
            self.say(f"expired {peer.format_address(address)}, {len(self.swarm)} in the swarm")


# ---------------------------------------------------------------------------------------------
# Main.


def open_file(path):
    """The descriptor of the file to distribute; Fatal [CL-12]."""
    name = peer.show_name(path)
    with peer.fatal_if_it_fails(peer.EXIT_FILE, f"cannot read {name}"):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block us
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Fatal(peer.EXIT_FILE, f"cannot distribute {name}: expected a regular file")
    return fd


def fitting_chunk_size(size, chunk_size):
    """The chunk size asked for, doubled until the file has at most MAX_CHUNKS of them [FD-2]."""
    while -(-size // chunk_size) > peer.MAX_CHUNKS:
        chunk_size *= 2
    if chunk_size > peer.MAX_CHUNK_SIZE:
        chunk, file = peer.human(peer.MAX_CHUNK_SIZE), peer.human(
            peer.MAX_CHUNKS * peer.MAX_CHUNK_SIZE)
        raise Fatal(peer.EXIT_FILE, f"expected chunks of at most {chunk} and a file of at most"
                    f" {file}, got {peer.human(size)} and chunks of {peer.human(chunk_size)}")
    return chunk_size


def describe(path, store_fd, chunk_size, screen):
    """The Description of an open file: all of it is read and hashed [FD-1]."""
    size = os.fstat(store_fd).st_size
    chunk_size = fitting_chunk_size(size, chunk_size)
    with peer.fatal_if_it_fails(peer.EXIT_FILE, f"cannot read {peer.show_name(path)}"):
        digests = peer.hash_chunks(store_fd, size, chunk_size, lambda done: screen.status(
            f"hashed {peer.human(done)} of {peer.human(size)}"))
    name = os.path.basename(path).encode("utf-8", "replace").decode()
    return peer.Description(name, size, chunk_size, b"".join(digests))


def interfaces():
    """(name, IPv4 address) of each interface that is up, second addresses included; on Linux."""
    if not sys.platform.startswith("linux"):
        return
    size, name_size = 40, 16  # of struct ifreq, and of the name at its beginning
    room = array.array("B", bytes(256 * size))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        asked = struct.pack("iP", len(room), room.buffer_info()[0])
        used, _ = struct.unpack("iP", fcntl.ioctl(probe, 0x8912, asked))  # SIOCGIFCONF
        for entry in (room[at:at + size].tobytes() for at in range(0, used, size)):
            flags = fcntl.ioctl(probe, 0x8913, entry)[name_size]  # SIOCGIFFLAGS
            if flags & 0x1 and flags & 0x40:  # up, and running: a bridge without members is not
                name = entry[:name_size].rstrip(b"\0").decode(errors="replace")
                yield name, socket.inet_ntoa(entry[20:24])


def own_addresses():
    """{IP address: interface} of this machine; the one that reaches the Internet comes first."""
    found = {}
    for family, elsewhere in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing: it asks which address would be used
            found[probe.getsockname()[0]] = "IPv6" if ":" in elsewhere else "the default route"
    with contextlib.suppress(OSError):
        found.update((address, name) for name, address in interfaces())
    return dict(sorted(found.items(), key=lambda item: peer.is_loopback(item[0])))


def join_commands(host, port, file):
    """{command with which others join: its interface}, for each address of this machine [CL-2]."""
    hosts = own_addresses() if host in EVERYWHERE else {host: ""}
    out = shlex.quote(("./" if file.name.startswith("-") else "") + peer.show_name(file.name))
    expect = f"--expect {file.content_id.hex()}"
    return {f"python3 {PEER} {expect} {shlex.quote(peer.format_address((host, port)))} {out}": name
            for host, name in hosts.items()}


def make_seeder(args, port, events, say):
    """An ordinary Peer, listening on the port after the tracker's, if it was given and is free."""
    host = EVERYWHERE.get(args.host, args.host)

    def make(seed_port):
        return peer.Peer((host, port), args.host, seed_port, args.upload_limit, events, say)
    if args.seed_port is not None:
        return make(args.seed_port)
    try:
        return make((port + 1) % 65536 if args.port else 0)
    except Fatal:  # it is taken, but nobody asked for this one
        return make(0)


def chunk_size(text):
    """A size, up to the largest that a chunk may have."""
    size = peer.size_in_bytes(text)
    if size > peer.MAX_CHUNK_SIZE:
        raise peer.expected(f"a chunk size of at most {peer.human(peer.MAX_CHUNK_SIZE)}", text)
    return size


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="tracker.py",
                            description="Track the swarm of one file, and seed it.")
    parser.add_argument("file", metavar="FILE", help="the file to distribute")
    parser.add_argument("--chunk-size", type=chunk_size, default=peer.CHUNK_SIZE, metavar="SIZE",
                        help="bytes in a chunk (default: 256K)")
    parser.add_argument("--expire", type=peer.seconds_above_zero, default=peer.LEASE_SECONDS,
                        metavar="S", help="lease: forget a peer after this many seconds of silence"
                        " (default: %(default)g)")
    parser.add_argument("--no-seed", action="store_true",
                        help="track only: some peer has the file already")
    parser.add_argument("--seed-port", type=peer.port_number, metavar="N",
                        help="port of its seeder, 0: any free one (default: the next, 8001)")
    peer.add_common_arguments(parser, peer.TRACKER_PORT)
    return parser.parse_args(argv)


def announce(args, file, port, seeder, screen):
    """Say what is distributed, and how to get it."""
    screen.say(f"{peer.show_name(file.name)}: {peer.human(file.size)} in {file.count}"
               f" chunk{'s' * (file.count != 1)} of {peer.human(file.chunk_size)}")
    screen.say(f"content id {file.content_id.hex()}")
    for command, name in join_commands(args.host, port, file).items():
        screen.say(f"join over {name} with" if name else "join with")
        screen.say(f"  {command}")
    screen.say(f"others must reach port {port} of this machine"
               + (f", and {seeder.server.port} for the seeder" if seeder else ""))
    screen.say(f"listening on port {port}")


def run():
    """The program: hash FILE, listen, seed, until it is interrupted."""
    args = parse_arguments()
    screen = peer.Screen(args.quiet)
    events = peer.Events(args.events, args.file) if args.events else None
    fd = open_file(args.file)
    store = peer.Store(fd, None)
    store.seal()  # any change from here on, even while it is hashed, is noticed
    store.file = describe(args.file, fd, args.chunk_size, screen)
    tracker = Tracker(store.file, args.expire, events, screen.say)
    server = peer.Server(args.host, args.port, tracker)
    server.start()
    peer.repeat(min(1.0, args.expire * SWEEP_SHARE), tracker.sweep)
    tracker.events("start", wall=time.time(), port=server.port, file=store.file.name,
                   content_id=store.file.content_id.hex(), upload_limit=args.upload_limit)
    seeder = None if args.no_seed else make_seeder(args, server.port, events, screen.say)
    announce(args, store.file, server.port, seeder, screen)
    if seeder:
        seeder.join()
        seeder.begin(store, peer.all_of(store.file.count))
        peer.show_given(seeder, screen)
    threading.Event().wait()


if __name__ == "__main__":
    peer.run_to_exit("tracker.py", run)
