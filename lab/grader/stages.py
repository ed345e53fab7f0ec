"""The stages of the lab: the name of each, its note, its tests, and the functions that a student writes in it.

Everything else in peer.py and tracker.py is given. With the functions of stages 0 to N in place, the
tests of stages 0 to N pass and those of every later stage fail (tests/test_starter.py); so a function
belongs to the first stage whose tests call it, and no test may call functions of a later stage.

A function is named as in Python, "peer.Peer.prove". A class stands for all of its methods except
__init__, which shows what it keeps, and those in GIVEN, which earlier stages already call.
"""

import collections
import pathlib

Stage = collections.namedtuple("Stage", "number title note tests functions")

STAGES = [
    Stage(0, "the wire", "lab/0-wire.md", "tests/test_0_*.py", [
        "peer.read_exactly", "peer.send_message"]),  # ten minutes: read_frame and Connection.answer are given, for reading
    Stage(1, "Join", "lab/1-join.md", "tests/test_1_*.py", [
        "tracker.Swarm.renew", "tracker.Swarm.peers", "tracker.Tracker.on_join", "tracker.Tracker.list", "tracker.Tracker.addresses_for",
        "peer.parse_ip_address", "peer.Description.from_message", "peer.Peer.listening_addr", "peer.Peer.joined",
        "peer.Peer.merge", "peer.Peer.is_self"]),
    Stage(2, "Active Proof", "lab/2-active-proof.md", "tests/test_2_*.py", [
        "tracker.Tracker.on_active_proof", "peer.Peer.prove"]),
    Stage(3, "Peer List", "lab/3-peer-list.md", "tests/test_3_*.py", [
        "tracker.Tracker.on_peer_list", "peer.Contacts.add", "peer.Contacts.ready", "peer.Peer.refresh", "peer.Peer.dial"]),
    Stage(4, "Chunks Query", "lab/4-chunks-query.md", "tests/test_4_*.py", [
        "peer.Peer.on_chunks_query", "peer.Peer.heard"]),
    Stage(5, "Fetch Chunk", "lab/5-fetch-chunk.md", "tests/test_5_*.py", [
        "peer.chunk_head", "peer.Description.index", "peer.Description.length", "peer.Store.intact",
        "peer.Store.send", "peer.Peer.on_fetch_chunk"]),
    Stage(6, "the swarm", "lab/6-swarm.md", "tests/test_6_*.py", [
        "peer.any_of", "peer.rarest_first", "peer.Picker", "peer.Store.write",
        "peer.busy_pause", "peer.Peer.unpack", "peer.Peer.keep", "peer.Peer.refused", "peer.Peer.arrived"]),
    Stage(7, "faults", "lab/7-faults.md", "tests/test_7_*.py", [
        "peer.Server.make_room", "peer.Contacts.ban", "peer.disk_error"]),
]

GIVEN = {"peer.Picker.complete", "peer.Picker.useful"}  # begin and the progress line call these before stage 6


def test_files(stage, root=pathlib.Path(__file__).resolve().parents[2]):
    """The paths of a stage's test files, relative to the repository, sorted by name."""
    return sorted(str(path.relative_to(root)) for path in root.glob(stage.tests))
