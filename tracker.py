#!/usr/bin/env python3
"""The tracker of one file: it knows who is in the swarm, and what the file must be. It seeds the file too.

    python tracker.py FILE      prints the command with which other machines join

What it promises is written in lab/SPEC.md; the numbers in brackets, such as [JN-3], are its clauses.
Read peer.py first: wire, server and clock are there, and a tracker is little else.

Reading order: the swarm (leases and nothing else) - the tracker (what it answers) - main.

Threads. One accepts connections, and each connection has one (Server in peer.py). A timer sweeps out
the peers whose lease has run out. The seeder is an ordinary Peer in this process, with threads of
its own, which joins over TCP like any other. The main thread waits for the end.

Locks. Swarm.lock guards the table of leases; it is never held during network traffic.
"""

import argparse
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
import peer
from messages_pb2 import Response
from peer import Fatal

MAX_PEERS = 100_000        # listed at a time; an answer with all of them stays under peer.MAX_ANSWER
MAX_PEERS_PER_IP = 1_000   # one machine, or all that is behind one router [JN-7]
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # --host for all addresses: where the seeder finds it
MAX_LEASE_MS = 2**32 - 1    # what the answer to Join has room for: 49 days
SWEEP_SHARE = 0.25         # of a lease, between two sweeps; answers leave out the expired at once anyway


# ---------------------------------------------------------------------------------------------
# The swarm.


class Full(Exception):
    """No more peers are listed, of this address or of all."""


class Swarm:
    """The live peers, as (host, port), each with the time at which its lease runs out.

    `lease` is in seconds, `clock` returns seconds and never goes back. Every lease is as long as
    every other, so a table in the order of the last renewal is in the order of expiry too.
    """

    def __init__(self, lease, clock=time.monotonic):
        self.lease = lease
        self.clock = clock
        self.lock = threading.Lock()
        # guarded by lock:
        self.expires = {}  # address -> when its lease runs out, the earliest first
        self.per_ip = {}   # host -> how many peers of it are listed

    def renew(self, address):
        """List a peer, or start its lease again; whether it is new. Full [JN-5, JN-7, AP-1, AP-2]."""
        with self.lock:
            new = address not in self.expires
            if new:
                count = self.per_ip.get(address[0], 0)
                if count >= MAX_PEERS_PER_IP or len(self.expires) >= MAX_PEERS:
                    raise Full(f"expected room for another peer, but {count} of {address[0]} and {len(self.expires)} in all are listed")
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
        """Take out the peers whose lease has run out; their addresses."""
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
        self.sweeper = peer.Repeat(min(1.0, lease * SWEEP_SHARE), self.sweep)

    def on_join(self, request, sock):
        """List the peer; the peer list, the file's description and the lease, or the answer that refuses it [JN-1 to JN-7]."""
        refusal = self.list(request, sock, "joined")
        if refusal:
            return refusal
        lease_ms = min(max(1, int(self.swarm.lease * 1000)), MAX_LEASE_MS)
        return Response(peer_list=Response.PeerList(addresses=self.addresses_for(sock), file=self.message, lease_ms=lease_ms))

    def on_active_proof(self, request, sock):
        """Start the peer's lease again, or list it; Ok, or the answer that refuses it, as it does a peer of another file [AP-1, AP-2, AP-5, AP-6]."""
        if request.content_id and request.content_id != self.file.content_id:
            return peer.bad(messages_pb2.OTHER_FILE, f"expected a peer of {self.file.content_id.hex()}, got one of {request.content_id[:32].hex()}")
        return self.list(request, sock, "listed") or Response(ok=Response.Ok())

    def on_peer_list(self, request, sock):
        """The peer list, for whoever asks: nobody is listed for it [PL-1, PL-2]."""
        return Response(peer_list=Response.PeerList(addresses=self.addresses_for(sock)))

    def list(self, request, sock, event):
        """List the sender of a Join or an Active Proof; None, or the answer that refuses it.

        What counts is the port that was announced, and the IP address that the request came from:
        whoever announces a stranger's address does not send the swarm there [JN-3].
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

        A peer on the tracker's own machine may have joined over loopback; an asker from elsewhere
        reaches it where it reached the tracker [JN-6].
        """
        asker, here = peer.peer_address(sock)[0], peer.plain_ip(sock.getsockname()[0])
        peers = self.swarm.peers()
        if not peer.is_loopback(asker):
            peers = [(here if peer.is_loopback(host) else host, port) for host, port in peers]
        return [peer.format_address(address) for address in peers]

    def sweep(self):
        for address in self.swarm.sweep():
            self.events("expired", peer=peer.format_address(address))
            self.say(f"expired {peer.format_address(address)}, {len(self.swarm)} in the swarm")


# ---------------------------------------------------------------------------------------------
# Main.


def open_file(path):
    """The descriptor of the file to distribute; Fatal [CL-12]."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold us up
    except OSError as error:
        raise Fatal(peer.EXIT_FILE, f"cannot read {peer.show_name(path)}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Fatal(peer.EXIT_FILE, f"cannot distribute {peer.show_name(path)}: expected a regular file")
    return fd


def fitting_chunk_size(size, chunk_size):
    """The chunk size asked for, doubled until the file has no more than MAX_CHUNKS of them [FD-2]."""
    while -(-size // chunk_size) > peer.MAX_CHUNKS:
        chunk_size *= 2
    if chunk_size > peer.MAX_CHUNK_SIZE:
        most = peer.human(peer.MAX_CHUNKS * peer.MAX_CHUNK_SIZE)
        raise Fatal(peer.EXIT_FILE, f"expected chunks of at most {peer.human(peer.MAX_CHUNK_SIZE)} and a file of at most {most},"
                                    f" got {peer.human(size)} and chunks of {peer.human(chunk_size)}")
    return chunk_size


def describe(path, store_fd, chunk_size, screen):
    """The Description of an open file: all of it is read and hashed [FD-1]."""
    size = os.fstat(store_fd).st_size
    chunk_size = fitting_chunk_size(size, chunk_size)
    try:
        digests = peer.hash_chunks(store_fd, size, chunk_size, lambda done: screen.status(f"hashed {peer.human(done)} of {peer.human(size)}"))
    except OSError as error:
        raise Fatal(peer.EXIT_FILE, f"cannot read {peer.show_name(path)}: {error.strerror}") from None
    name = os.path.basename(path).encode("utf-8", "replace").decode()
    return peer.Description(name, size, chunk_size, digests)


def own_addresses():
    """The IP addresses at which this machine may be reached, loopback last."""
    found = []
    request = 0x8915 if sys.platform.startswith("linux") else 0xC0206921  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, request, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
            except OSError:
                pass  # an interface that has no IPv4 address
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:db8::1", 9))  # sends nothing: it asks which address would be used
            found.append(probe.getsockname()[0])
    except OSError:
        pass  # no IPv6 here
    return sorted(dict.fromkeys(found), key=peer.is_loopback)


def join_commands(host, port, name):
    """The commands with which others join, one for each address of this machine [CL-2]."""
    hosts = own_addresses() if host in EVERYWHERE else [host]
    out = shlex.quote(("./" if name.startswith("-") else "") + peer.show_name(name))
    return [f"python peer.py {peer.format_address((host, port))} {out}" for host in hosts]


def start_seeder(args, port, store, events):
    """An ordinary Peer that holds every chunk and joins over TCP."""
    host = EVERYWHERE.get(args.host, args.host)
    seeder = peer.Peer((host, port), args.host, 0, args.upload_limit, events)
    seeder.join()
    seeder.begin(store, peer.all_of(store.file.count))
    return seeder


def chunk_size(text):
    """A size, up to the largest that a chunk may have."""
    size = peer.size_in_bytes(text)
    if size > peer.MAX_CHUNK_SIZE:
        raise argparse.ArgumentTypeError(f"expected a chunk size of at most {peer.human(peer.MAX_CHUNK_SIZE)}, got {text}")
    return size


def parse_arguments(argv=None):
    parser = peer.Arguments(prog="tracker.py", description="Track the swarm of one file, and seed it.")
    parser.add_argument("file", metavar="FILE", help="the file to distribute")
    parser.add_argument("--chunk-size", type=chunk_size, default=peer.CHUNK_SIZE, metavar="SIZE", help="bytes in a chunk (default: 256K)")
    parser.add_argument("--expire", type=peer.seconds_above_zero, default=peer.LEASE_SECONDS, metavar="S",
                        help="lease: forget a peer that was silent for so many seconds (default: %(default)g)")
    parser.add_argument("--no-seed", action="store_true", help="track only: some peer has the file already")
    peer.add_common_arguments(parser, 8000)
    return parser.parse_args(argv)


def announce(args, file, port, screen):
    """Say what is distributed, and how to get it."""
    screen.say(f"{peer.show_name(file.name)}: {peer.human(file.size)} in {file.count} chunks of {peer.human(file.chunk_size)}")
    screen.say(f"content id {file.content_id.hex()}")
    screen.say("join with")
    for command in join_commands(args.host, port, file.name):
        screen.say(f"  {command}")
    screen.say(f"listening on port {port}")


def run():
    """The program: hash FILE, listen, seed, until it is interrupted."""
    args = parse_arguments()
    screen = peer.Screen(args.quiet)
    events = peer.Events(args.events) if args.events else None
    fd = open_file(args.file)
    store = peer.Store(fd, None)
    store.seal()  # what changes from here on, also while it is hashed, is noticed
    store.file = describe(args.file, fd, args.chunk_size, screen)
    tracker = Tracker(store.file, args.expire, events, screen.say)
    server = peer.Server(args.host, args.port, tracker)
    server.start()
    tracker.sweeper.start()
    tracker.events("start", wall=time.time(), port=server.port, file=store.file.name, content_id=store.file.content_id.hex(),
                   upload_limit=args.upload_limit)
    announce(args, store.file, server.port, screen)
    if args.no_seed:
        peer.wait_for(threading.Event())
    seeder = start_seeder(args, server.port, store, events)
    peer.wait_for(seeder.failed)
    raise seeder.failure


if __name__ == "__main__":
    peer.run_to_exit("tracker.py", run)
