"""The policies, without network: which chunk to ask whom for, who is listed, how fast, what is refused.

These tests import peer.py and tracker.py; most others speak with them over the wire. Random choices have
a seed here, and code that needs a clock gets one that the test sets.
"""

import queue
import random
import socket
import threading
import time
import types

import pytest

import messages_pb2
import peer
import tracker
from harness import SECONDS, content_id, describe, eventually, framed, some_bytes
from messages_pb2 import File, Request, Response


def bits(*indexes):
    """The bitfield of these chunks."""
    return sum(1 << index for index in set(indexes))


def members(bitfield):
    """The indexes in a bitfield, one by one: slow, but independent of peer.indexes."""
    return {index for index in range(bitfield.bit_length()) if bitfield >> index & 1}


# Bitfields.


def test_all_of_a_file_is_each_of_its_chunks():
    assert [members(peer.all_of(count)) for count in (0, 1, 5)] == [set(), {0}, {0, 1, 2, 3, 4}]


def test_indexes_come_lowest_first_also_far_up():
    assert list(peer.indexes(bits(16_383, 0, 64, 63))) == [0, 63, 64, 16_383]
    assert list(peer.indexes(0)) == []


def test_any_of_nothing_is_none_and_any_of_one_is_that_one():
    rng = random.Random(1)
    assert peer.any_of(0, 10, rng) is None
    assert all(peer.any_of(bits(3), 10, rng) == 3 for _ in range(50)), "the search goes on from the start at the end"


def test_any_of_many_is_one_of_them_and_each_has_its_turn():
    rng = random.Random(2)
    assert {peer.any_of(bits(0, 4, 5, 9), 10, rng) for _ in range(300)} == {0, 4, 5, 9}


# Rarest first.


@pytest.mark.spec("SW-1")
def test_the_chunk_that_the_fewest_hold_is_chosen_among_those_offered():
    holdings = [bits(1, 3, 4, 5), bits(2, 3, 4, 5), bits(4, 5)]
    rng = random.Random(3)
    assert peer.rarest_first(bits(3, 4), holdings, 6, rng) == 3
    assert peer.rarest_first(bits(4), holdings, 6, rng) == 4
    assert peer.rarest_first(0, holdings, 6, rng) is None


@pytest.mark.spec("SW-1")
def test_equally_rare_chunks_all_have_their_turn():
    holdings = [bits(0, 2, 3, 4, 5, 6, 7), bits(0, 1, 2, 4, 5, 6, 7, 8)]
    rng = random.Random(4)
    assert {peer.rarest_first(peer.all_of(9), holdings, 9, rng) for _ in range(300)} == {1, 3, 8}


@pytest.mark.spec("SW-1")
@pytest.mark.parametrize("neighbors", [0, 1, 2, 3, 7, 8, 50])
def test_adding_bitfields_in_binary_agrees_with_counting_one_by_one(neighbors):
    rng = random.Random(neighbors)
    holdings = [rng.getrandbits(100) for _ in range(neighbors)]
    for _ in range(100):
        offered = rng.getrandbits(100) & rng.getrandbits(100)
        counts = {index: sum(bits >> index & 1 for bits in holdings) for index in peer.indexes(offered)}
        assert counts[peer.rarest_first(offered, holdings, 100, rng)] == min(counts.values())


@pytest.mark.spec("SW-1", "FC-8")
def test_choosing_agrees_with_counting_one_by_one():
    rng = random.Random(5)
    for _ in range(200):
        count = rng.randint(1, 40)
        picker = peer.Picker(count, held=rng.getrandbits(count), rng=rng)
        lists = {neighbor: members(rng.getrandbits(count)) for neighbor in "abcde"}
        for neighbor, listed in lists.items():
            picker.add(neighbor, bits(*listed))
        missing = set(range(count)) - members(picker.held)
        for neighbor in "abcde":
            offered = lists[neighbor] & missing - set(picker.under_way)
            index = picker.choose(neighbor, now=0)
            if not offered:
                assert index is None
                continue
            holders = {chunk: sum(chunk in listed for listed in lists.values()) for chunk in offered}
            assert index in offered and holders[index] == min(holders.values())


# The Picker's books.


def check_books(picker, lists):
    """Check that the picker knows exactly what is in `lists`, a dict of neighbor to set of chunks."""
    mine = members(picker.held)
    for neighbor, listed in lists.items():
        assert members(picker.wanted(neighbor)) == listed - mine
    assert set(picker.useful()) == {neighbor for neighbor, listed in lists.items() if listed - mine}


@pytest.mark.parametrize("seed", range(5))
def test_the_books_stay_right_whatever_neighbors_say_take_back_or_leave(seed):
    rng = random.Random(seed)
    count = rng.choice([1, 7, 64, 65])
    picker, lists = peer.Picker(count, rng=rng), {}
    for _ in range(400):
        neighbor = rng.randrange(8)
        some = rng.getrandbits(count) & rng.getrandbits(count)
        change = rng.choice(["add", "add", "withdraw", "forget", "arrived"])
        if change == "add":
            news = members(some) - lists.setdefault(neighbor, set())
            assert picker.add(neighbor, some) == len(news)
            lists[neighbor] |= news
        elif change == "withdraw":
            picker.withdraw(neighbor, some)
            lists[neighbor] = lists.get(neighbor, set()) - members(some)
        elif change == "forget":
            picker.holds.pop(neighbor, None)
            lists.pop(neighbor, None)
        elif some and rng.random() < 0.1:
            picker.arrived(min(members(some)), 1.0)
        check_books(picker, lists)


@pytest.mark.spec("CQ-4")
def test_what_a_neighbor_lists_is_added_to_what_it_listed_before():
    picker = peer.Picker(4)
    assert picker.add("a", bits(0, 1)) == 2
    assert picker.add("a", bits(1, 2)) == 1
    assert picker.add("a", bits(0, 1, 2)) == 0
    assert picker.wanted("a") == bits(0, 1, 2)


# Choosing, asking twice, letting go.


@pytest.mark.spec("FC-8")
def test_only_what_is_listed_missing_and_not_under_way_is_chosen():
    picker = peer.Picker(4, held=bits(0))
    assert picker.choose("stranger", 0) is None
    picker.add("a", bits(0, 1, 2))
    picker.add("b", bits(1, 2))
    assert {picker.choose("a", 0), picker.choose("b", 0)} == {1, 2}
    assert picker.choose("a", 0) is None, "1 and 2 are under way, 0 is held, 3 is nowhere"


def test_a_chunk_whose_exchange_failed_can_be_asked_of_another():
    picker = peer.Picker(1)
    picker.add("a", bits(0))
    picker.add("b", bits(0))
    assert picker.choose("a", 5.0) == 0
    assert picker.choose("b", 5.0) is None
    picker.release("a", 0)
    assert picker.choose("b", 6.0) == 0


@pytest.mark.spec("SW-5")
def test_endgame_asks_a_second_neighbor_when_the_first_takes_twice_as_long_as_usual_and_never_a_third():
    picker = peer.Picker(3, rng=random.Random(1))
    for neighbor in "abc":
        picker.add(neighbor, bits(0, 1))
    picker.add("a", bits(2))
    assert picker.choose("a", 0) == 2
    picker.release("a", 2)
    picker.arrived(2, 1.0)  # so that an exchange takes one second here
    under_way = {picker.choose("a", 10), picker.choose("a", 10)}
    assert under_way == {0, 1}
    assert picker.choose("b", 11.9) is None, "not yet late"
    assert {picker.choose("b", 12.1), picker.choose("b", 12.1)} == under_way
    assert picker.choose("c", 99) is None, "two are enough"
    assert picker.choose("a", 99) is None and picker.choose("b", 99) is None, "nobody is asked twice for one chunk"


@pytest.mark.spec("FC-12", "SW-5")
def test_a_chunk_that_has_come_is_written_by_one_lane_and_not_asked_for_while_it_is():
    picker = peer.Picker(1)
    for neighbor in "abc":
        picker.add(neighbor, bits(0))
    assert picker.choose("a", 0.0) == 0 and picker.choose("b", 99.0) == 0
    assert [picker.claim(0), picker.claim(0)] == [True, False]
    picker.release("b", 0)
    assert picker.choose("c", 999.0) is None, "it is being written"
    assert picker.arrived(0, 1.0) is True


@pytest.mark.spec("SW-5")
def test_there_is_no_endgame_while_a_chunk_is_left_that_nobody_was_asked_for():
    picker = peer.Picker(2, rng=random.Random(1))
    picker.add("a", bits(0))
    picker.add("b", bits(0, 1))
    assert picker.choose("a", 0) == 0
    assert picker.choose("b", 1000) == 1
    picker.release("b", 1)
    picker.arrived(1, 0.1)
    assert picker.choose("b", 1000) == 0


@pytest.mark.spec("SW-5")
def test_without_experience_a_chunk_is_late_after_a_while_and_not_at_once():
    picker = peer.Picker(1)
    picker.add("a", bits(0))
    picker.add("b", bits(0))
    picker.choose("a", 0)
    assert picker.choose("b", peer.LATE_SECONDS[0] * 0.9) is None
    assert picker.choose("b", peer.LATE_SECONDS[0] * 1.1) == 0


def test_endgame_asks_only_those_who_have_the_chunk_and_only_for_what_is_missing():
    picker = peer.Picker(2)
    picker.add("a", bits(0))
    picker.add("b", bits(1))
    assert picker.choose("a", 0) == 0
    assert picker.choose("b", 0) == 1
    assert picker.choose("b", 1000) is None, "it has not the late one"
    picker.add("b", bits(0))
    picker.arrived(0, 1.0)
    assert picker.choose("b", 1000) is None, "what has come is not late any more"


def test_a_chunk_asked_for_twice_stays_under_way_until_both_exchanges_have_ended():
    picker = peer.Picker(1)
    for neighbor in "abc":
        picker.add(neighbor, bits(0))
    picker.choose("a", 0)
    picker.choose("b", 50)
    picker.release("a", 0)
    assert list(picker.under_way) == [0]
    assert picker.choose("c", 50) is None, "the second has only just been asked"
    assert picker.choose("c", 100) == 0, "again two are under way"
    picker.release("b", 0)
    picker.release("c", 0)
    assert picker.under_way == {}


@pytest.mark.spec("FC-12")
def test_a_chunk_that_arrives_twice_counts_once():
    picker = peer.Picker(2)
    assert picker.arrived(0, 1.0) is True
    assert picker.arrived(0, 1.0) is False
    assert picker.held == bits(0) and not picker.complete()
    assert picker.arrived(1, 1.0) is True
    assert picker.complete()


def test_what_is_typical_follows_the_last_exchanges():
    picker = peer.Picker(100)
    picker.arrived(0, 8.0)
    assert picker.typical == 8.0
    for index in range(1, 50):
        picker.arrived(index, 1.0)
    assert 1.0 <= picker.typical < 1.1


def test_a_file_of_no_chunks_is_complete_and_asks_for_nothing():
    picker = peer.Picker(0)
    picker.add("a", 0)
    assert picker.complete() and picker.choose("a", 0) is None and picker.useful() == []


# Who may be dialled.


def several(count):
    return [("10.0.0.1", port) for port in range(1, count + 1)]


@pytest.mark.spec("SW-6")
def test_the_pause_before_an_address_is_dialled_again_doubles_with_each_failure_up_to_a_bound():
    contacts, (address,) = peer.Contacts(), several(1)
    contacts.add(address)
    assert contacts.ready(0.0, {}) == [address]
    pauses = []
    for _ in range(12):
        contacts.departed(address, 100.0, failed=True, gave=False)
        pauses.append(contacts.known[address][1] - 100.0 if not contacts.ready(100.0, {}) else 0)
        contacts.known[address] = contacts.known[address][0], 0.0
    assert pauses[0] >= peer.REDIAL_SECONDS[0] and pauses[-1] == peer.REDIAL_SECONDS[1]
    assert all(later == min(2 * earlier, peer.REDIAL_SECONDS[1]) for earlier, later in zip(pauses, pauses[1:]))


@pytest.mark.spec("SW-6")
def test_an_address_that_gave_a_chunk_begins_anew_with_short_pauses():
    contacts, (address,) = peer.Contacts(), several(1)
    contacts.add(address)
    for _ in range(8):
        contacts.departed(address, 0.0, failed=True, gave=False)
    contacts.departed(address, 1000.0, failed=True, gave=True)
    assert contacts.ready(1000.0 + 2 * peer.REDIAL_SECONDS[0], {}) == [address]


def test_those_that_were_never_tried_are_dialled_first_and_neighbors_not_again():
    contacts, (tried, neighbor, new, other) = peer.Contacts(), several(4)
    for address in (tried, neighbor, new, other):
        contacts.add(address)
    contacts.departed(tried, 0.0, failed=False, gave=False)
    ready = contacts.ready(1000.0, {neighbor: None})
    assert set(ready[:2]) == {new, other} and ready[2:] == [tried]


@pytest.mark.spec("FC-9", "FC-10")
def test_a_ban_outlasts_time_other_failures_being_listed_again_and_the_need_for_room(monkeypatch):
    monkeypatch.setattr(peer, "MAX_CONTACTS", 3)
    contacts, (liar, *others) = peer.Contacts(), several(9)
    contacts.add(liar)
    contacts.ban(liar)
    contacts.departed(liar, 0.0, failed=False, gave=True)  # its other connection
    contacts.departed(liar, 0.0, failed=True, gave=False)
    contacts.departed(liar, 0.0, failed=True, gave=False)
    for address in others:
        contacts.add(address)
        contacts.departed(address, 0.0, failed=True, gave=False)
    contacts.add(liar)
    assert liar in contacts.bans and liar not in contacts.ready(1e12, {})
    assert others[0] not in contacts.bans


@pytest.mark.spec("FC-9", "FC-10")
def test_a_ban_lasts_until_as_many_others_were_banned_as_may_be_remembered(monkeypatch):
    monkeypatch.setattr(peer, "MAX_CONTACTS", 3)
    contacts, liars = peer.Contacts(), several(4)
    for number, liar in enumerate(liars, start=1):
        contacts.ban(liar)
        assert list(contacts.bans) == liars[:number][-3:]


@pytest.mark.spec("PL-4")
@pytest.mark.fault(18)
def test_of_too_many_addresses_those_that_failed_most_give_way_and_good_ones_stay(monkeypatch):
    monkeypatch.setattr(peer, "MAX_CONTACTS", 3)
    contacts, (good, poor, worse, new, *others) = peer.Contacts(), several(9)
    for address, failures in [(good, 0), (poor, 1), (worse, 2)]:
        contacts.add(address)
        for _ in range(failures):
            contacts.departed(address, 0.0, failed=True, gave=False)
    contacts.add(new)
    assert set(contacts.ready(1e9, {})) == {good, poor, new}
    for address in others:
        contacts.add(address)
    known = contacts.ready(1e9, {})
    assert len(known) == 3 and {good, new} < set(known), "the one that had failed made room for one, and the others were passed over"


@pytest.mark.spec("SW-6")
@pytest.mark.fault(19)
def test_a_machine_that_lists_hundreds_of_ports_does_not_keep_anybody_from_the_others():
    contacts = peer.Contacts()
    for port in range(1, 901):
        contacts.add(("10.0.0.9", port))
    others = [("10.0.0.1", 5000), ("10.0.0.2", 5000)]
    for address in others:
        contacts.add(address)
        contacts.departed(address, 0.0, failed=True, gave=False)
    ready = contacts.ready(100.0, {})
    assert len(ready) == 902 and set(others) < set(ready[:3]) and ready[3:] == [address for address in ready if address[0] == "10.0.0.9"][1:]


# The tracker's table, with a clock that the test sets.


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


A, B, C = ("10.0.0.1", 5000), ("10.0.0.2", 5000), ("10.0.0.1", 5001)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def swarm(clock):
    return tracker.Swarm(10.0, clock)


@pytest.mark.spec("AP-1", "AP-3")
def test_a_lease_lasts_as_long_as_it_says_and_starts_again_with_each_proof(swarm, clock):
    assert swarm.renew(A) is True
    clock.now += 9.9
    assert swarm.peers() == [A]
    assert swarm.renew(A) is False
    clock.now += 9.9
    assert swarm.peers() == [A]
    clock.now += 0.1
    assert swarm.peers() == [], "not swept yet, and left out all the same"


@pytest.mark.spec("JN-5")
def test_a_peer_is_listed_once_however_often_it_joins_and_again_on_another_port(swarm):
    for _ in range(3):
        swarm.renew(A)
    swarm.renew(C)
    assert sorted(swarm.peers()) == [A, C]


@pytest.mark.spec("AP-3")
def test_sweeping_takes_out_those_whose_lease_ran_out_and_no_other(swarm, clock):
    swarm.renew(A)
    clock.now += 4
    swarm.renew(B)
    clock.now += 4
    swarm.renew(A)  # so that B is the first to go, although A was the first to come
    assert swarm.sweep() == []
    clock.now += 6
    assert swarm.sweep() == [B]
    assert swarm.peers() == [A]
    clock.now += 4
    assert swarm.sweep() == [A] and swarm.sweep() == []


@pytest.mark.spec("AP-2")
def test_a_peer_that_was_swept_is_new_when_it_proves_again(swarm, clock):
    swarm.renew(A)
    clock.now += 11
    assert swarm.sweep() == [A]
    assert swarm.renew(A) is True
    assert swarm.peers() == [A]


@pytest.mark.parametrize("seed", range(3))
def test_the_table_agrees_with_a_plain_dictionary_of_times(clock, swarm, seed):
    rng, last = random.Random(seed), {}
    for _ in range(500):
        address = f"10.0.0.{rng.randrange(4)}", rng.randrange(1, 4)
        change = rng.choice(["renew", "renew", "wait", "sweep"])
        if change == "renew":
            assert swarm.renew(address) == (address not in last)
            last[address] = clock.now
        elif change == "wait":
            clock.now += rng.choice([0, 1, 3])
        else:
            expired = {address for address, at in last.items() if at + 10 <= clock.now}
            assert set(swarm.sweep()) == expired
            last = {address: at for address, at in last.items() if address not in expired}
        assert set(swarm.peers()) == {address for address, at in last.items() if at + 10 > clock.now}
        assert swarm.per_ip == {host: sum(1 for known, _ in last if known == host) for host in {host for host, _ in last}}


@pytest.mark.spec("JN-7")
@pytest.mark.fault(18)
def test_one_ip_gets_no_more_than_its_share_and_takes_no_other_ips_place(swarm, monkeypatch):
    monkeypatch.setattr(tracker, "MAX_PEERS_PER_IP", 3)
    for port in (1, 2, 3):
        swarm.renew(("10.0.0.1", port))
    with pytest.raises(tracker.Full):
        swarm.renew(("10.0.0.1", 4))
    assert swarm.renew(("10.0.0.1", 3)) is False, "whoever is listed may go on"
    assert swarm.renew(B) is True
    assert len(swarm.peers()) == 4


@pytest.mark.spec("JN-7")
@pytest.mark.fault(18)
def test_the_table_is_bounded_and_has_room_again_after_a_sweep(swarm, clock, monkeypatch):
    monkeypatch.setattr(tracker, "MAX_PEERS", 2)
    swarm.renew(A)
    clock.now += 5
    swarm.renew(B)
    with pytest.raises(tracker.Full):
        swarm.renew(("10.0.0.3", 1))
    clock.now += 5
    swarm.sweep()
    assert swarm.renew(("10.0.0.3", 1)) is True


@pytest.mark.spec("JN-7", "PL-4", "WF-13", "SW-8")
def test_the_bounds_are_those_of_the_spec():
    assert (tracker.MAX_PEERS, tracker.MAX_PEERS_PER_IP) == (100_000, 1_000)
    assert (peer.MAX_NEIGHBORS, peer.UPLOAD_SLOTS, peer.PACED_SLOTS, peer.MAX_CONNECTIONS, peer.MAX_REQUEST) == (50, 6, 2, 512, 65_536)
    assert (peer.LEASE_SECONDS, peer.FRAME_SECONDS, peer.IDLE_SECONDS, peer.LOST_SECONDS) == (10, 10, 60, 60)
    assert peer.REFRESH_SECONDS <= 1 and peer.NEWS_SECONDS <= 1 and peer.MAX_BROKEN_PROMISES == 3


# Uploads and repeat.


def free(slots, asker, index, patient=False, count=2):
    return slots.free(asker, index, patient, count)


@pytest.mark.spec("FC-6")
def test_a_seeder_gives_what_it_gave_before_only_when_nothing_is_on_its_way_or_all_was_given_once():
    slots = peer.Slots()
    slots.sole = bits(3, 4, 7)
    slots.take("a", 7)
    slots.active -= 1
    assert free(slots, "b", 7), "a held chunk is never refused when nothing is on its way out"
    slots.take("b", 3)
    assert [free(slots, "c", index) for index in (3, 7, 4)] == [False, False, True]
    slots.take("c", 4)
    assert not free(slots, "d", 5), "there are two slots"
    slots.active -= 1
    assert free(slots, "d", 7), "all were given once"


@pytest.mark.spec("FC-6")
def test_one_that_is_not_complete_gives_a_chunk_as_often_as_it_is_asked():
    slots = peer.Slots()
    slots.take("a", 7)
    assert free(slots, "b", 7) and slots.instead(7, random.Random(1)) is None


@pytest.mark.spec("FC-7")
def test_instead_of_a_chunk_that_was_given_away_one_is_named_that_was_not():
    slots = peer.Slots()
    slots.sole = bits(*range(8))
    for index in (0, 3, 5):
        slots.take("a", index)
    assert {slots.instead(3, random.Random(seed)) for seed in range(100)} == {1, 2, 4, 6, 7}
    assert slots.instead(4, random.Random(1)) is None, "it is refused for want of a slot, and no other would have one"


def test_who_was_served_last_lets_those_go_first_who_were_turned_away_since():
    slots = peer.Slots()
    slots.take("a", 0)
    slots.take("b", 1)
    slots.active -= 1
    assert free(slots, "a", 2), "nobody else came"
    slots.turn_away()
    assert [free(slots, asker, 2) for asker in ("a", "b", "c")] == [False, False, True]
    slots.take("c", 2)
    slots.active -= 1
    assert free(slots, "a", 3), "nobody was turned away since"


@pytest.mark.spec("FC-6")
def test_whoever_allows_no_busy_is_not_put_behind():
    slots = peer.Slots()
    slots.sole = bits(6, 7)
    slots.take("a", 7)
    slots.turn_away()
    assert [free(slots, "a", 7, patient) for patient in (True, False)] == [True, False]


@pytest.mark.spec("FC-6")
def test_when_all_slots_are_taken_busy_is_said_and_remembered():
    uploads = peer.Uploads(1000)
    starts = [uploads.begin("a", index, 1000, busy_ok=True) for index in range(peer.PACED_SLOTS)]
    assert None not in starts
    assert uploads.begin("b", 9, 1000, busy_ok=True) is None and uploads.slots.turned_away
    uploads.end()
    assert uploads.begin("a", 8, 1000, busy_ok=True) is None
    assert uploads.begin("b", 9, 1000, busy_ok=True)


@pytest.mark.spec("FC-11")
def test_when_a_chunk_takes_so_long_that_whoever_waits_would_give_up_nobody_is_let_wait():
    uploads = peer.Uploads(1000)
    assert uploads.begin("a", 0, int(1000 * peer.FRAME_SECONDS), busy_ok=True)
    assert uploads.begin("b", 1, int(1000 * peer.FRAME_SECONDS), busy_ok=True) is None


def test_a_slot_that_comes_free_at_once_is_waited_for_when_chunks_are_as_short_as_that(monkeypatch):
    monkeypatch.setattr(peer, "BUSY_AFTER", 60.0)
    uploads = peer.Uploads()
    for index in range(peer.UPLOAD_SLOTS):
        uploads.begin("a", index, 1000, busy_ok=True)
    timer = threading.Timer(0.05, uploads.end)
    timer.start()
    assert uploads.begin("b", 9, 1000, busy_ok=True)
    timer.join()


class Time:
    """Stands in for the module; its clock advances when somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def limited(monkeypatch):
    """limited(rate): (Uploads, the Time in which they sleep)."""
    fake = Time()
    monkeypatch.setattr(peer, "time", fake)
    return lambda rate: (peer.Uploads(rate), fake)


@pytest.mark.spec("CL-14")
@pytest.mark.parametrize("rate", [1000, 256 * 1024, 50 << 20])
def test_uploads_keep_to_their_rate(limited, rate):
    uploads, clock = limited(rate)
    taken, began = 0, clock.now
    while clock.now < began + 5:
        uploads.pay(0, uploads.piece)
        taken += uploads.piece
    assert taken / (clock.now - began) == pytest.approx(rate, rel=0.03)


@pytest.mark.spec("CL-14")
def test_a_pause_is_not_made_up_for_by_a_burst(limited):
    uploads, clock = limited(1000)
    clock.now += 3600
    began = clock.now
    uploads.pay(0, 1000)
    assert clock.now - began == pytest.approx(1 - peer.PACE_BURST)


@pytest.mark.spec("CL-14")
def test_what_was_not_used_while_nobody_asked_is_lost(limited):
    uploads, clock = limited(1000)
    clock.now += 3600
    began = clock.now
    uploads.begin("a", 0, 1000, busy_ok=True)
    uploads.pay(1, 1000)
    assert clock.now - began == pytest.approx(1)


@pytest.mark.spec("CL-14")
def test_a_caller_that_is_slower_than_the_rate_never_waits(limited):
    uploads, clock = limited(1000)
    for _ in range(100):
        clock.now += 0.2
        before = clock.now
        uploads.pay(1, 10)
        assert clock.now == before


@pytest.mark.spec("CL-14")
def test_the_chunk_that_came_first_is_sent_first_at_the_full_rate(limited):
    uploads, clock = limited(1000)
    began = clock.now
    first, second = (uploads.begin(asker, 0, 1000, busy_ok=False) for asker in "ab")
    assert (first - began, second - began) == (0, pytest.approx(1))
    uploads.pay(second, 10)
    assert clock.now - began == pytest.approx(1.01 - peer.PACE_BURST, abs=peer.PACE_BURST)
    uploads.end()
    uploads.end()
    clock.now = began + 10
    assert uploads.begin("a", 0, 1000, busy_ok=False) == began + 10, "what was reserved and not used is nobody's"


def test_who_waits_behind_a_chunk_that_takes_long_would_hear_nothing_for_too_long():
    assert [peer.upload_slots(seconds) for seconds in (0.001, 4.9, 5, 100)] == [2, 2, 1, 1]


def test_without_a_limit_there_are_more_slots_for_one_connection_does_not_fill_a_link():
    assert peer.upload_slots(0) == peer.UPLOAD_SLOTS > peer.PACED_SLOTS


@pytest.mark.spec("FC-7")
def test_who_is_told_busy_hears_when_it_is_its_turn(monkeypatch):
    monkeypatch.setattr(peer, "time", clock := Time())
    uploads = peer.Uploads(1000)
    assert uploads.begin("a", 0, 1000, busy_ok=True) and uploads.begin("a", 1, 1000, busy_ok=True)
    for _ in range(40):
        clock.now += 0.4
        uploads.end()
        assert uploads.begin("a", 2, 1000, busy_ok=True)
    told = []
    for asker in "bcd":
        assert uploads.begin(asker, 3, 1000, busy_ok=True) is None
        told.append(uploads.busy(3)[0])
    assert told == pytest.approx([0.4, 0.8, 1.2], rel=0.01), "an upload ends every 0.4 s"


def test_an_answer_may_take_longer_the_longer_it_is(monkeypatch):
    deadlines = []
    monkeypatch.setattr(peer, "send_exactly", lambda sock, data, deadline: deadlines.append(deadline))
    for size in (0, 1 << 20):
        peer.send_message(None, Response(peer_list=Response.PeerList(file=File(digests=bytes(size)))))
    assert 250 < deadlines[1] - deadlines[0] < 300, "one second for 4 KiB"


def test_without_a_limit_nobody_waits_for_the_rate(limited):
    uploads, clock = limited(None)
    uploads.pay(1, 1 << 40)
    assert clock.now == Time().now and uploads.piece == peer.UNSENT_BYTES


def test_what_is_sent_at_a_time_is_fifty_milliseconds_worth_within_bounds():
    assert [peer.Uploads(rate).piece for rate in (1, 20_000, 1 << 30)] == [1, 1000, 32_768]


# Pauses, and requests ahead.


@pytest.mark.spec("SW-5")
def test_a_chunk_is_late_after_twice_what_an_exchange_takes_within_bounds():
    picker = peer.Picker(8)
    shortest, longest = peer.LATE_SECONDS
    assert picker.late_after() == shortest
    picker.arrived(0, 0.5)
    assert picker.late_after() == 1.0
    picker.arrived(1, 100)
    assert picker.late_after() == longest


@pytest.mark.spec("FC-7")
def test_a_pause_after_busy_is_about_as_long_as_the_neighbor_says_within_a_bound():
    for said, expected in [(0.4, 0.4), (0.003, 0.003), (3600, peer.BUSY_SECONDS[1])]:
        pauses = [peer.busy_pause(said, 1, random.Random(seed)) for seed in range(200)]
        assert len(set(pauses)) == 200 and min(pauses) >= expected * peer.RETRY_SPREAD[0] and max(pauses) <= expected * peer.RETRY_SPREAD[1]


@pytest.mark.spec("FC-7")
def test_a_neighbor_that_does_not_say_how_soon_is_asked_no_more_than_twenty_times_a_second():
    pauses = [peer.busy_pause(0, 1, random.Random(seed)) for seed in range(200)]
    assert min(pauses) >= 1 / 20 and len(set(pauses)) == 200


@pytest.mark.spec("FC-7")
def test_a_neighbor_that_always_says_that_a_slot_is_near_is_believed_ever_less():
    middle = types.SimpleNamespace(uniform=lambda low, high: 1.0)
    pauses = [peer.busy_pause(0.001, times, middle) for times in range(1, 100)]
    assert pauses == sorted(pauses) and pauses[0] < 0.004 and pauses[-1] >= 1 / 20


@pytest.mark.spec("FC-15")
@pytest.mark.parametrize("rate, round_trip, ahead", [(0, 1, 0), (1e9, 0, 0), (1e6, 0.01, 0), (12.5e6, 0.08, 7), (12.5e6, 0.16, 15)])
def test_as_many_requests_are_ahead_as_two_round_trips_hold(rate, round_trip, ahead):
    assert peer.requests_ahead(rate, round_trip, 262_144) == ahead


@pytest.mark.spec("FC-7")
def test_of_a_neighbor_that_proposed_a_chunk_only_this_one_is_taken_and_only_if_it_is_wanted_and_free():
    picker = peer.Picker(4, held=bits(0))
    picker.add("a", bits(0, 1, 2))
    assert picker.choose("a", 1.0, 2) == 2 and list(picker.under_way) == [2]
    assert picker.choose("a", 1.0, 2) is None, "it is under way, and any other waits for the end of the pause"
    assert picker.choose("a", 1.0) == 1
    assert picker.choose("a", 1.0, 0) is None, "it is held"
    assert picker.choose("a", 1.0, 3) is None, "it was not listed"


def test_only_a_neighbor_that_was_to_wait_for_news_and_did_not_is_left_alone_for_a_while():
    """A neighbor asked for chunks at the same time answers at once, and has more chunks to give."""
    for waits in (False, True):
        owner = types.SimpleNamespace(file=peer.Description("a", 4, 1, bytes(128)), lock=threading.Lock(), picker=peer.Picker(4))
        neighbor = peer.Neighbor(("10.0.0.1", 1))
        neighbor.waits = waits
        peer.Peer.heard(owner, neighbor, Response(chunks_query=Response.ChunksQuery()), time.monotonic())
        assert (neighbor.rest_until > 0) == waits


def test_a_repeat_calls_again_and_again_until_its_action_returns_false():
    called, ended, calls = threading.Semaphore(0), threading.Event(), []

    def action():
        calls.append(threading.current_thread())
        called.release()
        return not ended.is_set()

    peer.repeat(0.01, action)
    assert all(called.acquire(timeout=10) for _ in range(3))
    ended.set()
    eventually(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))
    assert all(thread.daemon for thread in calls), "a program need not wait for them"


# Chunks as protobuf writes them.


@pytest.mark.spec("FC-1", "WF-1")
@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 262_144])
def test_the_head_and_the_bytes_are_the_frame_that_protobuf_would_make(size):
    chunk = some_bytes(size)
    assert peer.chunk_head(size) + chunk == framed(Response(chunk=chunk))
    assert peer.chunk_in(Response(chunk=chunk).SerializeToString(), size) == chunk


@pytest.mark.spec("WF-11", "WF-12")
def test_a_frame_with_anything_but_a_chunk_is_left_to_protobuf():
    for body in (b"", b"\x2a", b"\x2a\x05abc", b"\x2a\x80", b"\x2a\x02abc", b"\x12\x02\x40\x06",
                 Response(chunk=b"abc").SerializeToString() + b"\x80\x01\x00", Response(chunk=b"ab").SerializeToString()):
        assert peer.chunk_in(body, 3) is None


def test_the_short_way_to_a_chunk_never_disagrees_with_protobuf():
    rng = random.Random(7)
    for _ in range(2000):
        length = rng.choice([0, 3, 130])
        body = bytearray(Response(chunk=rng.randbytes(length)).SerializeToString() + rng.randbytes(rng.choice([0, 0, 1])))
        for _ in range(rng.randrange(3)):
            body[rng.randrange(min(4, len(body)))] = rng.randrange(256)
        chunk = peer.chunk_in(bytes(body), length)
        if chunk is not None:
            assert Response.FromString(bytes(body)).chunk == bytes(chunk)


# Addresses and names.


@pytest.mark.parametrize("text, address", [
    ("127.0.0.1:5000", ("127.0.0.1", 5000)), ("[::1]:8000", ("::1", 8000)), ("host.example:1", ("host.example", 1)),
    ("10.9.9.9:65535", ("10.9.9.9", 65535)), ("[fe80::1]:80", ("fe80::1", 80))])
def test_an_address_is_read_and_written_alike(text, address):
    assert peer.parse_address(text) == address
    assert peer.format_address(address) == text
    assert peer.format_address((*address, 0, 0)) == text, "as IPv6 sockets tell it"


@pytest.mark.spec("JN-4", "PL-4")
@pytest.mark.fault(17)
@pytest.mark.parametrize("text", [
    "", "foo", ":80", "[]:80", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:70000", "1.2.3.4:-1", "1.2.3.4:+1", "1.2.3.4: 80",
    "1.2.3.4:8_0", "1.2.3.4:٣", "1.2.3.4:000080", "::1:80", "[::1]", "[::1]80", "[::1:80"])
def test_what_is_not_an_address_is_refused_with_what_was_expected(text):
    with pytest.raises(ValueError, match="expected"):
        peer.parse_address(text)


@pytest.mark.spec("JN-4", "PL-4")
@pytest.mark.parametrize("text", [
    "localhost:80", "1.2.3:80", "256.1.1.1:80", "1.2.3.4.5:80", "[1::2::3]:80", "[localhost]:80", "1.2.3.4\0:80", "\ud800:80", "é:80"])
def test_over_the_network_only_literal_ip_addresses_count(text):
    with pytest.raises(ValueError, match="expected"):
        peer.parse_ip_address(text)


@pytest.mark.spec("JN-4", "PL-4")
def test_literal_addresses_of_both_families_are_taken():
    assert peer.parse_ip_address("1.2.3.4:80") == ("1.2.3.4", 80)
    assert peer.parse_ip_address("[2001:db8::1]:80") == ("2001:db8::1", 80)


def test_a_name_is_not_looked_up_for_a_stranger(monkeypatch):
    def look_up(*args, **kwargs):
        raise AssertionError("a name was looked up")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ValueError):
        peer.parse_ip_address("example.com:80")


@pytest.mark.parametrize("host, plain", [
    ("::ffff:1.2.3.4", "1.2.3.4"), ("1.2.3.4", "1.2.3.4"), ("::1", "::1"), ("fe80::1%eth0", "fe80::1"), ("::ffff", "::ffff")])
def test_an_ipv4_address_is_told_as_one_whatever_socket_it_came_through(host, plain):
    assert peer.plain_ip(host) == plain


@pytest.mark.spec("FD-5")
@pytest.mark.fault(41)
@pytest.mark.parametrize("name, shown", [
    ("a b.bin", "a b.bin"), ("größe 漢字 🙂", "größe 漢字 🙂"),
    ("a\nb\r\t", "a\\nb\\r\\t"), ("\x1b[31mred", "\\x1b[31mred"), ("\0", "\\x00"),
    ("\u202egnp.exe", "\\u202egnp.exe"), ("\x9b1m", "\\x9b1m"), ("\udcff", "\\udcff"), ("", "")])
def test_a_name_cannot_move_the_cursor_nor_hide_a_letter(name, shown):
    assert peer.show_name(name) == shown


# Sizes and descriptions.


@pytest.mark.parametrize("text, size", [
    ("1", 1), ("262144", 262_144), ("256K", 262_144), ("256k", 262_144), ("1.5M", 1_572_864), ("2G", 2 << 30), ("0.5K", 512)])
def test_a_size_is_read_in_powers_of_1024(text, size):
    assert peer.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "K", "0", "-1", "0.2", "x", "1T", "1KK", "nan", "inf", "1e999", "1 000", "0x10"])
def test_what_is_not_a_size_is_refused_with_what_was_expected(text):
    with pytest.raises(peer.argparse.ArgumentTypeError, match="expected a size"):
        peer.size_in_bytes(text)


MAX = 16 << 20


def file(size, chunk_size, digests):
    return File(name="f", size=size, chunk_size=chunk_size, digests=bytes(32) * digests)


@pytest.mark.spec("FD-1", "FD-3")
@pytest.mark.parametrize("message, count", [
    (file(0, 262_144, 0), 0), (file(1, 262_144, 1), 1), (file(262_144, 262_144, 1), 1), (file(262_145, 262_144, 2), 2),
    (file(16_384, 1, 16_384), 16_384), (file(MAX * 3, MAX, 3), 3)],
    ids=["no_bytes", "one_byte", "one_chunk", "one_byte_more", "as_many_chunks_as_may_be", "as_large_chunks_as_may_be"])
def test_a_description_that_agrees_is_taken(message, count):
    assert peer.Description.from_message(message).count == count


@pytest.mark.spec("FD-3")
@pytest.mark.fault(42)
@pytest.mark.parametrize("message", [
    File(), file(0, 262_144, 1), file(10, 0, 1), file(10, MAX + 1, 1), file(262_145, 262_144, 1), file(10, 262_144, 2), file(16_385, 1, 16_385),
    file(2**60, MAX, 1), file(2**64 - 1, 2**64 - 1, 1), File(size=1, chunk_size=1, digests=bytes(31)), File(size=1, chunk_size=1, digests=bytes(33))],
    ids=["empty", "a_digest_of_nothing", "chunks_of_no_bytes", "chunk_too_large", "a_digest_too_few", "a_digest_too_many", "too_many_chunks",
         "an_exbibyte", "all_ones", "a_digest_cut_short", "a_byte_too_many"])
def test_a_description_that_does_not_agree_is_refused_with_exit_code_4(message):
    with pytest.raises(peer.Fatal, match="expected") as refusal:
        peer.Description.from_message(message)
    assert refusal.value.code == 4


@pytest.mark.spec("FD-4")
def test_the_content_id_is_that_of_the_spec_s_example():
    of_abc = peer.Description.from_message(describe(b"abc"))
    assert of_abc.content_id.hex() == "a352fc223dd00678c6d60ca5ea0a591257dd32c5b7b754cce0a3492f065f324f"
    assert of_abc.content_id == content_id(describe(b"abc"))
    assert peer.Description.from_message(describe(b"abc", name="other")).content_id == of_abc.content_id, "the name is no content"


@pytest.mark.spec("FC-2", "FC-4")
def test_chunks_are_found_by_their_offset_and_by_nothing_else():
    found = peer.Description.from_message(describe(some_bytes(2500), 1000))
    assert [found.index(chunk_id) for chunk_id in (0, 1000, 2000)] == [0, 1, 2]
    assert [found.index(chunk_id) for chunk_id in (1, 999, 1001, 2500, 3000, 2**63, 2**64 - 1)] == [None] * 7
    assert [found.length(index) for index in range(3)] == [1000, 1000, 500]
    assert b"".join(found.digest(index) for index in range(3)) == describe(some_bytes(2500), 1000).digests


@pytest.mark.spec("FD-2")
def test_the_chunk_size_is_doubled_until_there_are_few_enough_chunks():
    fit = tracker.fitting_chunk_size
    assert fit(0, 262_144) == fit(16_384 * 262_144, 262_144) == 262_144
    assert fit(16_384 * 262_144 + 1, 262_144) == 524_288
    assert fit(16_384 * 3 + 1, 3) == 6
    assert fit(16_384 * MAX, 262_144) == MAX
    with pytest.raises(peer.Fatal) as refusal:
        fit(16_384 * MAX + 1, 262_144)
    assert refusal.value.code == 8


class JoinsMeanwhile:
    """A peer that is asked before it knows the file, and learns about it after the first look."""

    def __init__(self):
        self.looks = 0
        self.lock = threading.Lock()
        self.picker = peer.Picker(0)

    @property
    def file(self):
        self.looks += 1
        return peer.Description("f", 5, 5, bytes(32)) if self.looks > 1 else None


@pytest.mark.spec("FC-5")
def test_a_peer_that_joins_while_it_is_asked_has_the_chunk_not_yet():
    answer = peer.Peer.on_fetch_chunk(JoinsMeanwhile(), Request.FetchChunk(chunk_id=0), None)
    assert answer.bad.code == messages_pb2.NOT_HELD
