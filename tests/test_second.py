"""The second implementation, lab/second/ in JavaScript: one swarm with ours, and its own promises.

To see its verdict:

    make grade TRACKER='node lab/second/tracker.js {file} --port {port} --expire {expire}' PEER='node lab/second/peer.js {tracker} {out}'
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from harness import ROOT, Program, ask, chunks_query, eventually, peer_list, some_bytes

pytestmark = [pytest.mark.ours, pytest.mark.skipif(not shutil.which("node"), reason="node is not installed: lab/second/ needs Node.js 18 or newer")]

SECOND = os.path.join(ROOT, "lab", "second")
NODE, PYTHON = ["node", SECOND + os.sep], [sys.executable, ""]
DATA = some_bytes(20 * 16 * 1024 + 7)


def command(language, name, *arguments):
    """The arguments that start one of our two programs, in one of the two languages."""
    runner, folder = language
    return [runner, f"{folder}{name}.{'js' if language is NODE else 'py'}", *map(str, arguments)]


@pytest.fixture
def start(ending):
    return lambda *arguments: ending(Program(command(*arguments)))


@pytest.mark.parametrize("language", [PYTHON, NODE], ids=["our_tracker", "the_second_tracker"])
def test_peers_of_both_are_in_one_swarm_and_give_each_other_the_file(make_file, start, tmp_path, language):
    path, _ = make_file(DATA)
    tracker = start(language, "tracker", path, "--port", 0, "--chunk-size", "16K")
    port = tracker.wait_for(r"listening on port (\d+)$")[1]
    outs = [tmp_path / f"{number}.bin" for number in range(4)]
    peers = [start(kind, "peer", f"127.0.0.1:{port}", out) for kind, out in zip(2 * [NODE, PYTHON], outs)]
    for peer in peers:
        peer.wait_for("^complete")
    assert [out for out in outs if out.read_bytes() != DATA] == []
    assert len(ask(int(port), peer_list()).peer_list.addresses) == 5


@pytest.mark.parametrize("giver, taker", [(NODE, PYTHON), (PYTHON, NODE)], ids=["from_the_second", "to_the_second"])
def test_one_fetches_the_whole_file_from_the_other(make_file, start, tmp_path, giver, taker):
    path, _ = make_file(DATA)
    tracker = start(PYTHON, "tracker", path, "--port", 0, "--no-seed")
    port = tracker.wait_for(r"listening on port (\d+)$")[1]
    start(giver, "peer", f"127.0.0.1:{port}", path).wait_for("^complete")
    start(taker, "peer", f"127.0.0.1:{port}", tmp_path / "out.bin", "--leave").ends_with(0)
    assert (tmp_path / "out.bin").read_bytes() == DATA


@pytest.mark.long
@pytest.mark.timeout(200)
def test_it_passes_all_that_is_graded_but_for_what_it_lacks_on_purpose(tmp_path):
    templates = ["--tracker", "node lab/second/tracker.js {file} --port {port} --expire {expire}", "--peer", "node lab/second/peer.js {tracker} {out}"]
    grading = subprocess.run([sys.executable, "lab/grader/grade.py", *templates, "--results", tmp_path / "results.json", "--limit", "150"],
                             cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    entries = json.loads((tmp_path / "results.json").read_text())["tests"]
    failed = {clause for entry in entries if entry["status"] == "failed" for clause in entry.get("extra_data", {}).get("clauses", ["?"] if "." in entry["number"] else [])}
    said = {clause for name in ("peer.js", "tracker.js") for clause in re.findall(r"[A-Z]+-\d+", source(name).partition("on purpose:")[2].partition("*/")[0])}
    assert failed <= said, grading.stdout + grading.stderr


def test_what_one_left_in_out_part_the_other_goes_on_with(make_file, start, fake_tracker, fake_peer, tmp_path):
    half = fake_peer(DATA, range(10), chunk_size=16 * 1024)
    tracker = fake_tracker(DATA, [half.address], chunk_size=16 * 1024)
    peer = start(NODE, "peer", tracker.address, tmp_path / "out.bin")
    address = tracker.joiner()
    eventually(lambda: len(ask(address, chunks_query()).chunks_query.chunk_ids) == 10, what="ten chunks")
    peer.process.kill()
    peer.wait()
    rest = fake_peer(DATA, chunk_size=16 * 1024)
    tracker.peers[:] = [rest.address]
    start(PYTHON, "peer", tracker.address, tmp_path / "out.bin", "--leave").ends_with(0)
    assert (tmp_path / "out.bin").read_bytes() == DATA
    assert sorted(set(rest.fetched())) == [index * 16 * 1024 for index in range(10, 21)]


def source(name):
    with open(os.path.join(SECOND, name), encoding="utf-8") as text:
        return text.read()


def test_it_needs_nothing_but_node():
    required = [name for file in ("peer.js", "tracker.js") for name in re.findall(r"\b(?:require|import)\((.*?)\)", source(file))]
    assert len(required) > 5
    assert [name for name in required if not re.fullmatch(r"'(node:[\w/]+|\./peer\.js)'", name)] == []


def test_it_can_be_read_at_a_sitting():
    lines = source("peer.js").splitlines() + source("tracker.js").splitlines()
    assert len(lines) < 440
    assert max(map(len, lines)) <= 120
