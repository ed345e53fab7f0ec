"""The exam: its answer sheet agrees with the programs, for many seeds, and no answer appears on the exam by mistake.

Reading order: each question against the programs - many seeds - the pages - wrong usage.
"""

import itertools
import os
import random
import re
import subprocess
import sys
import types

import pytest

import exam
import explain
import harness
import peer
import simulate
import tracker
from harness import ROOT
from messages_pb2 import Response

pytestmark = pytest.mark.ours
QUESTIONS = {question.name: question for question in exam.QUESTIONS}
SEEDS = [f"test-{n}" for n in range(60)]


def each(name):
    """(values, answer) of a question, for many seeds."""
    question = QUESTIONS[name]
    for seed in SEEDS:
        values = exam.values_of(question, seed)
        yield values, question.solve(values)


# Each question against the programs.


def test_the_bytes_to_write_are_the_request():
    for values, answer in each("request"):
        frame = harness.framed(harness.fetch_chunk(values["index"] * values["size"], values["busy_ok"]))
        assert bytes.fromhex(answer) == frame


def test_the_bytes_to_read_are_an_answer_of_each_kind():
    kinds = set()
    for values, answer in each("answer"):
        message = Response.FromString(exam.bytes_of(values)[8:])
        kinds.add(message.WhichOneof("type"))
        assert answer["next"] == 8 + int.from_bytes(exam.bytes_of(values)[:8], "big")
        assert "no multiple" not in "".join(answer["lines"])
        assert exam.bytes_of(values)[:8].hex(" ") in QUESTIONS["answer"].ask(values)
    assert kinds == {"chunks_query", "peer_list", "bad"}


def listed_by_the_tracker(values):
    """The peers listed by our tracker when it gets the events of a question."""
    now = types.SimpleNamespace(time=0.0)
    swarm = tracker.Swarm(values["lease"] / 10, clock=lambda: now.time)
    moments = [(at, name, kind) for at, name, kind in values["events"]] + [(at, None, "look") for at in values["asked"]]
    lists = []
    for at, name, kind in sorted(moments, key=lambda moment: moment[0]):
        now.time = at / 10
        if kind == "look":
            lists.append(sorted(host for host, _ in swarm.peers()))
        elif kind != "Peer List":
            swarm.renew((name, 1))
    return lists


def test_who_is_listed_is_who_the_tracker_lists():
    for values, answer in each("leases"):
        assert answer["lists"] == listed_by_the_tracker(values)
        assert len(set(map(tuple, answer["lists"]))) == 3


def test_sizes_are_those_of_a_description():
    for values, answer in each("sizes"):
        chunk = tracker.fitting_chunk_size(values["size"], values["chunk"])
        file = peer.Description("a", values["size"], chunk, bytes(32 * answer["count"]))
        assert (answer["chunk"], answer["count"], answer["digests"]) == (chunk, file.count, len(file.digests))
        assert answer["last"] == file.length(file.count - 1) and answer["chunk"] > values["chunk"]
        assert answer["length"] == int.from_bytes(peer.chunk_head(answer["last"])[:8], "big")


def chosen(values, gone):
    """Every chunk that a peer's picker chooses for neighbor A with any seed, while B is gone, or being asked."""
    found = set()
    for seed in range(80):
        picker = peer.Picker(values["count"], peer.bits_of(values["held"]), random.Random(seed))
        for name, indexes in values["holds"].items():
            picker.add(name, peer.bits_of(indexes))
        assert picker.choose("B", 0.0, values["asked"]) == values["asked"]
        if gone:
            picker.release("B", values["asked"])
            picker.holds.pop("B")
        found.add(picker.choose("A", 0.0))
    return sorted(found)


def test_the_rarest_are_those_that_a_picker_chooses():
    for values, answer in itertools.islice(each("rarest"), 20):
        assert answer["first"] == chosen(values, gone=False) and answer["then"] == chosen(values, gone=True)
        held, asked = peer.bits_of(values["held"]), 1 << values["asked"]
        assert answer["bits"] == peer.bits_of(values["holds"]["A"]) & ~held & ~asked


def test_the_floor_is_that_of_the_simulator():
    binding = set()
    for values, answer in each("floor"):
        assert answer["floor"] == pytest.approx(simulate.floor(values["leechers"], values["chunks"], answer["tau"]))
        size, rate = values["chunks"] * values["chunk"], values["rate"]
        assert answer["server"] == pytest.approx(values["leechers"] * size / rate)
        uplinks = values["seeder"] + values["leechers"] * rate
        assert answer["bound"] == pytest.approx(max(size / values["seeder"], values["leechers"] * size / uplinks))
        binding.add(answer["binds"])
    assert binding == {"F/u_s", "N·F/(u_s + Σu_i)"}


def test_pauses_that_grow_are_those_of_the_loop():
    for values, answer in each("pauses"):
        assert len(answer["begin"]) == 6 and answer["begin"] == sorted(answer["begin"])
        gaps = [after - before - values["fails"] for before, after in zip(answer["begin"], answer["begin"][1:])]
        assert gaps == [min(values["pause"] << n, values["most"]) for n in range(5)]
        assert 5 < answer["count"] < answer["flat"]
        at, count, pause = 0, 0, values["pause"]
        while at <= values["end"]:
            at, count, pause = at + values["fails"] + pause, count + 1, min(2 * pause, values["most"])
        assert answer["count"] == count


# Many seeds.


@pytest.mark.parametrize("name", QUESTIONS)
def test_values_are_fresh_for_each_seed_and_the_same_for_the_same(name):
    question = QUESTIONS[name]
    asked = [question.ask(exam.values_of(question, seed)) for seed in SEEDS]
    assert len(set(asked)) > 0.8 * len(SEEDS)
    assert asked == [question.ask(exam.values_of(question, seed)) for seed in SEEDS]


# The pages.


def run(folder, *arguments, code=0):
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", "exam.py"), "--out", str(folder), *arguments],
                           capture_output=True, text=True, timeout=20)
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def test_two_pages_are_written_the_same_for_the_same_seed_and_no_answer_is_in_the_exam(tmp_path):
    for folder in ("one", "two"):
        run(tmp_path / folder, "--seed", "group-b")
    names = ["exam-group-b-answers.md", "exam-group-b.md"]
    assert sorted(os.listdir(tmp_path / "one")) == names
    answers, questions = [(tmp_path / "one" / name).read_text() for name in names]
    assert [(tmp_path / "two" / name).read_text() for name in names] == [answers, questions]
    assert re.findall(r"^## .+", answers, re.M) == re.findall(r"^## .+", questions, re.M) and len(re.findall(r"^## ", answers, re.M)) == len(QUESTIONS)
    assert exam.values_of(QUESTIONS["request"], "group-b") and QUESTIONS["request"].solve(exam.values_of(QUESTIONS["request"], "group-b")) not in questions
    assert "group-b" not in questions, "a seed on the exam tells next year's students how to make its answers"


def test_without_a_seed_one_is_drawn_and_some_questions_can_be_left_out(tmp_path):
    said = {run(tmp_path, "--only", "leases", "rarest") for _ in range(2)}
    assert len(said) == 2
    page = next(path for path in tmp_path.iterdir() if "answers" not in path.name).read_text()
    assert re.findall(r"^## \d\. ([\w ]+) \(", page, re.M) == ["Leases", "Rarest first"]


def test_the_answer_sheet_explains_bytes_as_the_notes_do():
    values = exam.values_of(QUESTIONS["answer"], "x")
    assert "\n".join(explain.render(exam.bytes_of(values), "response")).splitlines()[0].strip() in QUESTIONS["answer"].show(QUESTIONS["answer"].solve(values))


# Wrong usage.


@pytest.mark.parametrize("arguments, complaint", [
    (["--seed", "../x"], "--seed: expected at most 40 letters"), (["--seed", ""], "--seed: expected"), (["--only", "nothing"], "invalid choice"), (["x"], "unrecognized")])
def test_wrong_usage_is_told_in_one_line(tmp_path, arguments, complaint):
    said = run(tmp_path, *arguments, code=2)
    assert complaint in said and said.count("\n") == 1 and os.listdir(tmp_path) == []
