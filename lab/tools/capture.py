"""Captures: from a pcap or pcapng file, as tcpdump and Wireshark write it, to the bytes of each TCP connection.

    connections(packets(path))

Reading order: files (pcap, pcapng) - packets (link layer, IP, TCP) - connections (segments put in order).

A capture is read into memory as a whole. IP fragments are left out, because TCP on a local network does not need them.
"""

import bisect
import collections
import ipaddress
import struct

MAX_PACKET = 1 << 24  # bytes; anything that claims more is not a packet
MAGICS = {b"\xa1\xb2\xc3\xd4": (">", 10**6), b"\xd4\xc3\xb2\xa1": ("<", 10**6),
          b"\xa1\xb2\x3c\x4d": (">", 10**9), b"\x4d\x3c\xb2\xa1": ("<", 10**9)}  # -> byte order, parts of a second
PCAPNG = b"\x0a\x0d\x0d\x0a"
SYN, RST, ACK = 0x02, 0x04, 0x10
READ = (0, 1, 12, 14, 101, 108, 113, 228, 229, 276)  # link types that ip_of() knows, and the names of others
NOT_READ = {9: "PPP", 50: "PPP", 105: "802.11 (a card in monitor mode)", 119: "802.11 behind Prism headers", 127: "802.11 behind radiotap headers (a card in monitor mode)",
            163: "802.11 behind AVS headers", 189: "USB", 192: "PPI", 220: "USB", 258: "PKTAP (macOS: capture one interface, not all)"}
CUT = "their ends, which were cut off when they were recorded (tcpdump -s 0 keeps all)"
TAGS = (0x8100, 0x88a8, 0x9100, 0x9200)  # of a VLAN, and of one around another
NEAR = 1 << 24  # bytes; a late SYN is this near to what it begins, and one of another connection hardly ever is


class NotACapture(Exception):
    """The file is in no format that we can read."""


class CutShort(Exception):
    """The file ends, or stops making sense, in the middle of a packet. The packets before it were good."""


# ---------------------------------------------------------------------------------------------
# Files.


def packets(path):
    """Each packet of a file as (seconds, link type, bytes). OSError, NotACapture, CutShort."""
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic in MAGICS:
            yield from pcap_packets(file, *MAGICS[magic])
        elif magic == PCAPNG:
            yield from pcapng_packets(file)
        else:
            hint = ": it is packed, unpack it with gunzip" if magic[:2] == b"\x1f\x8b" else ""
            raise NotACapture(f"expected a pcap or pcapng capture, got a file that {'begins with ' + magic.hex(' ') if magic else 'is empty'}{hint}")


def exactly(file, size, what, number):
    """Exactly `size` bytes of the file; b"" at its end. CutShort if it ends in the middle of them."""
    if size > MAX_PACKET:
        raise CutShort(f"expected {what} after packet {number:,}, got a size of {size:,} bytes, which cannot be")
    data = file.read(size)
    if len(data) < size and (data or what != "a packet"):
        raise CutShort(f"cut short after packet {number:,}: {len(data):,} of {size:,} bytes of {what}")
    return data


def pcap_packets(file, order, parts):
    header = exactly(file, 20, "the header", 0)
    link = struct.unpack(order + "HHiIII", header)[5] & 0x0fffffff  # the upper bits describe checksums
    number = 0
    while True:
        header = exactly(file, 16, "a packet", number)
        if not header:
            return
        seconds, fraction, size, _ = struct.unpack(order + "IIII", header)
        data = exactly(file, size, "the next packet", number)
        number += 1
        yield seconds + fraction / parts, link, data


def pcapng_packets(file):
    """Sections of blocks; packets are in blocks of type 6, 3 (without a time) and 2 (obsolete)."""
    file.seek(0)
    order, interfaces, number = "<", [], 0
    while True:
        header = exactly(file, 8, "a packet", number)
        if not header:
            return
        if header[:4] == PCAPNG:
            magic = exactly(file, 4, "a section", number)
            order = ">" if magic == b"\x1a\x2b\x3c\x4d" else "<"
            interfaces = []
            rest = exactly(file, struct.unpack(order + "I", header[4:])[0] - 12 & 0xffffffff, "a section", number)
            continue
        type_, size = struct.unpack(order + "II", header)
        block = exactly(file, size - 8 & 0xffffffff, "the next block", number)[:-4]
        try:
            if type_ == 1:
                interfaces.append(interface(block, order))
            elif type_ in (2, 3, 6):
                number += 1
                yield pcapng_packet(type_, block, order, interfaces)
        except (struct.error, IndexError):
            raise CutShort(f"after packet {number:,}: a block that is too short, or of an interface that was not described") from None


def interface(block, order):
    """(link type, parts of a second, seconds to add) of an interface description."""
    link, = struct.unpack(order + "H", block[:2])
    parts, offset, at = 10**6, 0, 8
    while at + 4 <= len(block):
        code, size = struct.unpack(order + "HH", block[at:at + 4])
        value = block[at + 4:at + 4 + size]
        if code == 9 and value:    # if_tsresol: a power of ten, or of two
            parts = 2 ** (value[0] & 0x7f) if value[0] & 0x80 else 10 ** value[0]
        elif code == 14 and size == 8:  # if_tsoffset
            offset, = struct.unpack(order + "q", value)
        at += 4 + (size + 3) // 4 * 4
    return link, parts, offset


def pcapng_packet(type_, block, order, interfaces):
    if type_ == 3:
        return 0.0, interfaces[0][0], block[4:]
    if type_ == 2:
        which, _, high, low, size, _ = struct.unpack(order + "HHIIII", block[:20])
    else:
        which, high, low, size, _ = struct.unpack(order + "IIIII", block[:20])
    link, parts, offset = interfaces[which]
    return (high << 32 | low) / parts + offset, link, block[20:20 + size]


# ---------------------------------------------------------------------------------------------
# Packets.


def ip_of(link, data):
    """The IP packet within a packet of this link type; b"" if it holds none. struct.error if it is cut."""
    if link == 1:  # Ethernet
        at = 12
        while struct.unpack_from("!H", data, at)[0] in TAGS:
            at += 4
        if struct.unpack_from("!H", data, at)[0] == 0x8864:  # PPPoE: six bytes of its own, then what PPP carries
            return data[at + 10:] if struct.unpack_from("!H", data, at + 8)[0] in (0x0021, 0x0057) else b""
        return data[at + 2:] if struct.unpack_from("!H", data, at)[0] in (0x0800, 0x86dd) else b""
    if link == 113:  # Linux cooked, v1
        return data[16:] if struct.unpack_from("!H", data, 14)[0] in (0x0800, 0x86dd) else b""
    if link == 276:  # Linux cooked, v2
        return data[20:] if struct.unpack_from("!H", data)[0] in (0x0800, 0x86dd) else b""
    if link in (0, 108):  # BSD loopback: four bytes of address family, which the IP version repeats
        return data[4:]
    return data if link in (12, 14, 101, 228, 229) else b""  # raw IP


def tcp_of(packet):
    """(source, destination, TCP segment without padding, how many bytes of it were not recorded) of an IP packet; None if it is not TCP,
    or a fragment of it. Addresses are (host, port)."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        size, fragment, protocol = struct.unpack_from("!2xH2xHxB", packet)
        start, hosts, fragmented = 4 * (packet[0] & 15), (packet[12:16], packet[16:20]), fragment & 0x3fff
    elif version == 6:
        size, protocol = struct.unpack_from("!4xHB", packet)
        size, start, hosts, fragmented = size and size + 40, 40, (packet[8:24], packet[24:40]), False
        while protocol in (0, 43, 51, 60):  # options, routing, authentication, options
            protocol, start = packet[start], start + (8 + 4 * packet[start + 1] if protocol == 51 else 8 + 8 * packet[start + 1])
    if version not in (4, 6) or protocol != 6 or fragmented:
        return None
    segment = packet[start:size or None]  # the size is 0 if the network card was to segment it
    ports = struct.unpack_from("!HH", segment)
    source, destination = ((str(ipaddress.ip_address(host)), port) for host, port in zip(hosts, ports))
    return source, destination, segment, max(0, size - len(packet))


def not_read(link, data):
    """Why a packet that is not read may hold TCP, in words; "" if it certainly holds none."""
    if link not in READ:
        return f"link type {link}" + (f", {NOT_READ[link]}" if link in NOT_READ else "")
    packet = ip_of(link, data)
    if packet and packet[0] >> 4 == 4:
        fragment, protocol = struct.unpack_from("!6xHxB", packet)
        return "IP fragments" if fragment & 0x3fff else {50: "encrypted (ESP)", 51: "IP with authentication headers"}.get(protocol, "")
    return {44: "IP fragments", 50: "encrypted (ESP)"}.get(packet[6], "") if packet and packet[0] >> 4 == 6 else ""


def payload_of(link, packet):
    """The bytes that a TCP packet of this link type carries; b"" if it is not TCP."""
    try:
        _, _, segment, _ = tcp_of(ip_of(link, packet)) or (None, None, b"", 0)
        return segment[4 * (segment[12] >> 4):] if segment else b""
    except (struct.error, IndexError):
        return b""


# ---------------------------------------------------------------------------------------------
# Connections.


class Side:
    """What one end of a connection sent: segments (place in the stream, seconds, bytes), in order of arrival."""

    def __init__(self):
        self.first = None  # where the stream begins, once a SYN has shown it
        self.last = None   # the latest sequence number, counted on beyond 2**32
        self.end = None    # the end of the stream so far, captured or not
        self.segments = []

    def add(self, sequence, flags, seconds, data, cut):
        """Add a segment; `cut` bytes of it were not recorded."""
        if self.last is None:
            self.last = sequence + 2**32
        place = self.last + (sequence - self.last + 2**31) % 2**32 - 2**31
        self.last = max(self.last, place)
        if flags & SYN:
            place += 1
            self.first = place
        if not flags & RST:  # its number may be anything
            self.end = max(self.end or place, place + len(data) + cut)
        if data:
            self.segments.append((place, seconds, data))

    def pieces(self):
        """[(seconds, number of uncaptured bytes before the piece, bytes)] in stream order, each byte once. The last one has no bytes if
        the end of the stream was not captured."""
        ordered = in_order(self.segments)
        at = self.first if self.first is not None else ordered[0][0] if ordered else 0
        seconds, pieces = 0.0, []
        for place, arrived, data in ordered:
            if place >= at:
                seconds = max(seconds, arrived)  # bytes that came early have to wait for those before them
                pieces.append((seconds, place - at, data))
                at = place + len(data)
        return pieces + ([(seconds, self.end - at, b"")] if pieces and self.end and self.end > at else [])


def in_order(segments):
    """[(place, seconds, bytes)] by place; of bytes that came twice, the first copy."""
    places, pieces = [], []
    for place, seconds, data in segments:
        while data:
            after = bisect.bisect_right(places, place)
            begun = pieces[after - 1] if after else (place, 0, b"")
            known = max(0, begun[0] + len(begun[2]) - place)
            room = places[after] - place - known if after < len(places) else len(data)
            new = data[known:known + max(0, room)]
            if new:
                places.insert(after, place + known)
                pieces.insert(after, (place + known, seconds, new))
            place, data = place + known + len(new), data[known + len(new):]
    return pieces


class Connection:
    """One TCP connection: two addresses, each with its Side. `client` is the one that sent SYN; None if that was not captured."""

    def __init__(self, one, other):
        self.sides = {one: Side(), other: Side()}
        self.client = None
        self.began = None  # the client's first sequence number

    def may_begin_with(self, client, sequence):
        """Whether this SYN belongs to this connection: repeated, or captured after what it begins."""
        if self.began is None and self.sides[client].last is not None:
            return (self.sides[client].last - sequence) % 2**32 < NEAR
        return self.began in (None, sequence)

    def other(self, address):
        return next(end for end in self.sides if end != address)


def connections(packets):
    """([Connection], number of packets, {reason: number of packets not read}, why it ended early or ""); packets as from packets()."""
    found, current, count, passed = [], {}, 0, collections.Counter()
    packets = iter(packets)
    while True:
        try:
            seconds, link, data = next(packets)
        except StopIteration:
            return found, count, passed, ""
        except CutShort as error:
            return found, count, passed, str(error)
        count += 1
        try:
            parts = tcp_of(ip_of(link, data))
            if parts is None and (why := not_read(link, data)):
                passed[why] += 1
            cut = add(found, current, seconds, parts)
        except (struct.error, IndexError):
            cut = True  # a packet that ends within its headers
        passed.update([CUT] if cut else [])


def add(found, current, seconds, parts):
    """Give a segment to its connection, a new one if this is its SYN; return whether its end was not recorded."""
    if parts is None or parts[0] == parts[1]:  # a socket connected to itself does not have two sides
        return False
    source, destination, segment, cut = parts
    sequence, offset, flags = struct.unpack_from("!4xI4xBB", segment)
    key = frozenset((source, destination))
    connection = current.get(key)
    begins = flags & (SYN | ACK) == SYN
    if connection is None or begins and not connection.may_begin_with(source, sequence):  # the ports are reused
        connection = current[key] = Connection(source, destination)
        found.append(connection)
    if begins:
        connection.client, connection.began = source, sequence
    connection.sides[source].add(sequence, flags, seconds, segment[4 * (offset >> 4):], cut)
    return cut > 0
