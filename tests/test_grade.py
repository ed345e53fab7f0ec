"""The grader graded: small wrong programs, hostile ones, wrong usage, and what results.json and the report say (lab/grader/grade.py)."""

import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import types

import pytest

import grade
import harness
import processes
import starter
from harness import ROOT, Program, active_proof, chunks_query, describe, eventually, framed, join, peer_list
from messages_pb2 import Response
from mistakes import BY_CLAUSE, LIKELY, Facts, likely, mended
from pace import Pace

ROOT = pathlib.Path(ROOT)
OK = framed(Response(ok=Response.Ok()))


class Graded:
    """One run of lab/grader/grade.py: exit code, output, results."""

    def __init__(self, folder, *arguments):
        self.results = folder / "results.json"
        environment = {name: value for name, value in os.environ.items() if name not in ("TRACKER", "PEER", "DIR", "K", "HIDDEN", "GRADING")}
        began = time.monotonic()
        process = subprocess.run([sys.executable, ROOT / "lab" / "grader" / "grade.py", "--results", self.results, *map(str, arguments)], cwd=ROOT,
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, env=environment)
        self.seconds = time.monotonic() - began
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    def content(self):
        return json.loads(self.results.read_text())

    def failed(self):
        """The facts about each failed test, by its number."""
        return {entry["number"]: entry["extra_data"] for entry in self.content()["tests"] if entry.get("status") == "failed" and "extra_data" in entry}


@pytest.fixture
def measuring(monkeypatch):
    """Let the grader measure the pace, although the tests run with one pace for all gradings."""
    monkeypatch.delenv("GRADE_PACE", raising=False)


@pytest.fixture
def submission(tmp_path):
    """submission({file: (old, new) or a whole program}): a folder with the reference, changed."""
    def make(changes):
        folder = tmp_path / "submission"
        folder.mkdir()
        for name in ("tracker.py", "peer.py", "messages_pb2.py"):
            shutil.copy(ROOT / name, folder)
        for name, change in changes.items():
            if isinstance(change, tuple):
                text = (folder / name).read_text()
                assert change[0] in text
                change = text.replace(*change)
            (folder / name).write_text(change)
        return folder
    return make


# Verdicts.


def test_the_reference_gets_all_points_of_a_stage(tmp_path):
    graded = Graded(tmp_path, "--stage", 3)
    content = graded.content()
    assert graded.code == 0, graded.out
    clauses = [entry for entry in content["tests"] if "max_score" in entry]
    assert {"PL-1", "PL-2"} <= {entry["number"] for entry in clauses} and all(entry["status"] == "passed" for entry in content["tests"])
    assert content["score"] == len(clauses) == content["extra_data"]["max_score"] == sum(entry["score"] for entry in clauses)
    assert f"{len(clauses)} of {len(clauses)} points" in graded.out


@pytest.mark.long
def test_what_is_right_up_to_a_stage_is_worth_the_points_of_these_stages(tmp_path):
    """Even though later stages fail tests that name the same clauses."""
    starter.write(tmp_path / "mine", written=[0, 1])
    content = Graded(tmp_path, "--dir", tmp_path / "mine", "--stages", "0-3").content()
    got = {int(number): pair for number, pair in content["extra_data"]["points"].items()}
    assert list(got) == content["extra_data"]["stages"] == [0, 1, 2, 3]
    assert got[0][0] == got[0][1] > 5 and got[1][0] == got[1][1] > 5 and got[2][0] < got[2][1] and got[3][0] < got[3][1]
    assert content["score"] == sum(pair[0] for pair in got.values()) and content["extra_data"]["max_score"] == sum(pair[1] for pair in got.values())
    for number, pair in got.items():
        clauses = [entry for entry in content["tests"] if "max_score" in entry and f"stage {number}" in entry["tags"]]
        assert [sum(entry[name] for entry in clauses) for name in ("score", "max_score")] == pair
    both = {stage: next(entry["status"] for entry in content["tests"] if entry["number"] == "WF-8" and f"stage {stage}" in entry["tags"]) for stage in (0, 3)}
    assert both == {0: "passed", 3: "failed"}


@pytest.mark.long
def test_a_wrong_length_is_shown_with_its_bytes_and_what_to_do(submission, tmp_path):
    folder = submission({"peer.py": ('struct.pack(">Q", len(body))', 'struct.pack("<Q", len(body))')})
    graded = Graded(tmp_path, "--dir", folder, "--stage", 0, "-k", "does_not_count_its_own")
    (failure,) = graded.failed().values()
    expected, got = (bytes.fromhex(failure[side]) for side in ("expected", "got"))
    assert graded.code == 1 and failure["clauses"] == ["WF-1"] and failure["offset"] == 0
    assert expected[:8] == got[:8][::-1] and expected[8:] == got[8:]
    assert "little-endian" in failure["likely"] and failure["again"].startswith(f"make stage-0 DIR={folder} K=")
    assert bytes.fromhex(failure["sent"]) == framed(chunks_query())
    assert failure["steps"][failure["step"] - 1] == f"{failure['step']} sent Chunks Query"
    for line in ("SPEC WF-1  A message travels", f"> {failure['step']} sent Chunks Query", "expected  00 00", "likely    the length is little", "again     make stage-0"):
        assert line in graded.out
    assert [entry["score"] for entry in graded.content()["tests"] if entry["number"] == "WF-1"] == [0]


@pytest.mark.long
def test_the_command_of_a_report_runs_that_test_again(submission, tmp_path):
    text = re.sub(r"^( +)def on_active_proof\(self.*$", r"\g<0>\n\1    return peer.Response(peer_list=peer.Response.PeerList())", (ROOT / "tracker.py").read_text(), flags=re.M)
    folder = submission({"tracker.py": text})
    graded = Graded(tmp_path, "--dir", folder, "--stage", 2, "-k", "the_bytes_of_the_spec")
    (failure,) = graded.failed().values()
    assert bytes.fromhex(failure["expected"]) == OK and failure["got"] == "00 00 00 00 00 00 00 02 1a 00" and failure["offset"] == 8
    words = failure["again"].rpartition("K=")[2]
    (once_more,) = Graded(tmp_path, "--dir", folder, "--stage", 2, "-k", words).failed().values()
    assert (once_more["got"], once_more["again"]) == (failure["got"], failure["again"])


def test_a_program_that_is_not_written_yet_fails_at_once_and_names_the_note(submission, tmp_path):
    broken = 'raise NotImplementedError("stage 3: lab/3-peer-list.md")\n'
    graded = Graded(tmp_path, "--dir", submission({"tracker.py": broken, "peer.py": broken}), "--stage", 3)
    failures = graded.failed().values()
    assert failures and all("lab/3-peer-list.md" in failure["got"] and "not written yet" in failure["likely"] for failure in failures)
    assert graded.content()["score"] == 0


def test_a_crash_is_told_by_the_last_line_of_the_program_whatever_was_seen_of_it_on_the_wire(tmp_path):
    starter.write(tmp_path / "mine")
    failures = Graded(tmp_path, "--dir", tmp_path / "mine", "--stage", 0).failed().values()
    assert len(failures) > 5
    for failure in failures:
        assert failure["got"] == "the tracker under test ended with exit code 70: NotImplementedError: stage 0: lab/0-wire.md", failure
        assert "not written yet" in failure["likely"]


def test_tests_that_fail_for_one_reason_are_one_report_and_a_line_for_each_other(tmp_path):
    starter.write(tmp_path / "mine")
    graded = Graded(tmp_path, "--dir", tmp_path / "mine", "--stage", 0)
    assert graded.out.count("  likely    ") == 1 and graded.out.count("\nFAIL ") + 1 == len(graded.failed()) > 5
    assert all("  likely    " in entry["output"] for entry in graded.content()["tests"] if "max_score" not in entry)


@pytest.mark.long
def test_the_step_that_failed_is_marked_and_not_the_last_one(submission, tmp_path):
    """The peer under test keeps talking to the fake tracker, but an earlier answer was judged."""
    text = re.sub(r"^( +)def on_chunks_query\(self.*$", r"\g<0>\n\1    return Response(chunks_query=Response.ChunksQuery(chunk_ids=[7]))",
                  (ROOT / "peer.py").read_text(), flags=re.M)
    graded = Graded(tmp_path, "--dir", submission({"peer.py": text}), "--stage", 4, "-k", "complete_peer_lists")
    (failure,) = graded.failed().values()
    marked = failure["steps"][failure["step"] - 1]
    assert marked.split(maxsplit=1)[1] == "waited in vain for the list of all chunks" and "bytes" not in failure["expected"]
    assert bytes.fromhex(failure["sent"]) == framed(chunks_query()) and failure["expected"].startswith("the list of all chunks, within ")
    assert bytes.fromhex(failure["got"]) == answer(chunks_query=Response.ChunksQuery(chunk_ids=[7]))


def test_an_exception_in_a_handler_is_told_with_its_place_though_the_program_goes_on(submission, tmp_path):
    """Otherwise a slip such as an undefined name would look on the wire like a hundred other mistakes."""
    text = re.sub(r"^( +)def on_peer_list\(self.*$", r"\g<0>\n\1    return request.no_such_field", (ROOT / "tracker.py").read_text(), flags=re.M)
    line = text[:text.index("request.no_such_field")].count("\n") + 1
    graded = Graded(tmp_path, "--dir", submission({"tracker.py": text}), "--stage", 3, "-k", "present_and_empty or byte_by_byte")
    assert len(graded.failed()) == 2
    for failure in graded.failed().values():
        assert "the tracker under test printed: AttributeError: " in failure["got"] and f" (tracker.py, line {line}, in on_peer_list)" in failure["got"]
        assert "an exception" in failure["likely"]


@pytest.mark.long
def test_a_tracker_that_does_not_answer_a_request_of_peers_is_told_that_bad_was_due(submission, tmp_path):
    folder = submission({"peer.py": ("return bad(messages_pb2.WRONG_ROLE, ", "return None and bad(messages_pb2.WRONG_ROLE, ")})
    graded = Graded(tmp_path, "--dir", folder, "--stage", 0, "-k", "comes_byte_by_byte")
    (failure,) = graded.failed().values()
    assert failure["expected"].startswith("Bad with code WRONG_ROLE")


def test_a_program_that_ends_otherwise_than_it_should_is_told_with_its_last_line(submission, tmp_path):
    text = re.sub(r"^( +)def listening_addr\(self\).*$", r"\g<0>\n\1    return self.no_such_field", (ROOT / "peer.py").read_text(), flags=re.M)
    graded = Graded(tmp_path, "--dir", submission({"peer.py": text}), "--stage", 1, "-k", "without_a_description")
    (failure,) = graded.failed().values()
    assert failure["expected"].startswith("the end with exit code 4") and re.search(r"no_such_field.* \(peer.py, line \d+, in listening_addr\)$", failure["got"])


LATE = '''
import os, signal, time
import pytest

@pytest.mark.parametrize("turn", range(120))
def test_mine(make_file, tmp_path, turn):
    path, data = make_file(1000)
    if turn < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)  # until other workers have begun
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == data
'''


@pytest.mark.long
def test_a_worker_that_was_lost_is_replaced_by_one_that_takes_no_files_away_from_the_others(tmp_path):
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "test_2_mine.py").write_text(LATE)
    graded = Graded(tmp_path, "--stage", 2, "-k", "mine", "--hidden", folder, "--workers", 12)
    tests = {entry["name"].split()[-1]: entry for entry in graded.content()["tests"]}
    assert sorted(name for name, entry in tests.items() if entry["status"] == "failed") == ["0", "1", "2"]
    assert all("was ended" in tests[name]["extra_data"]["got"] for name in "012")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = [sys.executable, ROOT / "lab" / "grader" / "grade.py", "--stage", "2", "-k", "the_bytes_of_the_spec", "--results", tmp_path / "results.json"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 1
    process.stderr.close()
    assert json.loads((tmp_path / "results.json").read_text())["score"] > 0


def test_commands_are_graded_too_and_need_not_be_python(tmp_path):
    script = tmp_path / "my tracker"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {ROOT}/tracker.py \"$1\" --port \"$2\" --expire \"$3\"\n")
    script.chmod(0o755)
    graded = Graded(tmp_path, "--tracker", f"'{script}' {{file}} {{port}} {{expire}}", "--peer", f"{sys.executable} peer.py {{tracker}} {{out}}",
                    "--stage", 2, "-k", "the_bytes_of_the_spec")
    assert (graded.code, graded.failed()) == (0, {})


SECRET = '''
import pytest
from harness import active_proof, ask, receive_body, connect, framed

@pytest.mark.spec("AP-1")
def test_my_secret(make_file, run_tracker):
    xyzzy = run_tracker(make_file(1)[0]).port
    with connect(xyzzy) as sock:
        sock.sendall(framed(active_proof("127.0.0.1:4444")))
        assert receive_body(sock) == b"plugh", "this is xyzzy"
        assert xyzzy
'''


PLAIN = '''
def test_time():
    assert 5.0066907 < 2.5

def test_place():
    assert "127.0.0.1:1" in []
'''


def test_a_comparison_is_told_in_words(tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "test_2_mine.py").write_text(PLAIN)
    graded = Graded(tmp_path, "--stage", 2, "-k", "test_time or test_place", "--hidden", tmp_path / "hidden")
    told = {(failure["expected"], failure["got"]) for failure in graded.failed().values()}
    assert told == {("at most 2.5 s", "5.01 s"), ("127.0.0.1:1, among others", "[]")}


def test_what_changes_pytest_does_not_reach_it(tmp_path, monkeypatch):
    """With CI set, pytest took ten seconds, or on a busy machine all of the test's time, to show how the bytes of two files differ."""
    for name, value in {"CI": "true", "BUILD_NUMBER": "1", "PYTEST_ADDOPTS": "--collect-only"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "test_2_mine.py").write_text("import os\n\ndef test_environment():\n    assert sorted({'CI', 'BUILD_NUMBER'} & set(os.environ)) == []\n")
    graded = Graded(tmp_path, "--stage", 2, "-k", "test_environment", "--hidden", tmp_path / "hidden")
    assert (graded.code, graded.failed()) == (0, {}), graded.out


@pytest.mark.parametrize("source", [SECRET, SECRET + "xyzzy = = 1"], ids=["that_fails", "that_is_broken"])
def test_the_source_of_a_hidden_test_is_nowhere(tmp_path, source):
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "test_2_mine.py").write_text(source)
    graded = Graded(tmp_path, "--stage", 2, "-k", "secret", "--hidden", folder)
    assert graded.code == 1
    if source == SECRET:
        assert "my secret" in graded.out and "0a 00" in graded.out and "AP-1" in graded.out
    for text in (graded.out, graded.err, graded.results.read_text()):
        assert "xyzzy" not in text and "receive_body" not in text


# Hostile programs. Each gets a verdict, and leaves nothing behind.


HOSTILE = '''
import os, signal, socket, subprocess, sys, time
MARK = "{mark}"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000) #" + MARK], {{}})
try:
    socket.create_server(("127.0.0.1", int(sys.argv[1].rpartition(":")[2])))
except (OSError, ValueError):
    pass
with open("filling", "wb") as file:
    try:
        while True:
            file.write(bytes(1 << 20))
    except OSError:
        pass
if os.fork() == 0:
    os.killpg(0, signal.SIGKILL)
while True:
    try:
        os.write(1, b"x" * 65536)
    except OSError:
        time.sleep(1)
'''


def alive(mark):
    """The command lines of running processes with this mark."""
    rows = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True).stdout.splitlines()
    return [row for row in rows if mark in row and "ps -axo" not in row]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="what leaves its session and its parent is found on Linux only")
def test_a_hostile_program_gets_a_verdict_and_everything_that_it_started_is_ended(submission, tmp_path):
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    program = HOSTILE.format(mark=mark)
    graded = Graded(tmp_path, "--dir", submission({"tracker.py": program, "peer.py": program}), "--stage", 4, "--limit", 16)  # of which the probe may take 7 s
    content = graded.content()
    assert graded.code == 1 and graded.seconds < 60
    assert content["score"] == 0 and len(graded.failed()) >= 2 and all(failure["clauses"] and failure["again"] for failure in graded.failed().values())
    assert not alive(mark)
    assert len(graded.out) < 200_000 and graded.results.stat().st_size < 2_000_000


AWAY = '''
import os, shutil, signal, sys
here = os.getcwd()
print("\\x1b[2J\\x1b]0;x\\x07", '{"score": 100, "tests": []}', flush=True)
os.write(1, bytes(range(128, 256)) * 50)
shutil.rmtree(here, ignore_errors=True)
os.makedirs(os.path.join(here, "results.json", "x"), exist_ok=True)
kept = []
try:
    while len(kept) < 100_000:
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
os.killpg(0, signal.SIGKILL)
'''


@pytest.mark.long
def test_a_program_that_takes_away_its_folder_and_the_place_of_the_results_gets_a_verdict(submission, tmp_path):
    folder = submission({"tracker.py": AWAY, "peer.py": AWAY})
    graded = Graded(folder, "--dir", folder, "--stage", 3, "--limit", 15)
    assert graded.code == 1 and graded.seconds < 80 and graded.content()["score"] == 0, graded.err
    assert "Traceback" not in graded.err and "\x1b" not in graded.out
    assert all("\x1b" not in entry.get("output", "") for entry in graded.content()["tests"])


# Correct programs that print the unexpected; programs that do not even start.


LOUD = """#!/bin/sh
printf '\\000\\033[2J\\007\\342\\200\\256 hello\\n'
{} {} {}/{} "$@"
"""
WIDE = """
import subprocess, sys
ended = subprocess.run([sys.executable, "{}/{}", *sys.argv[1:]], stderr=subprocess.PIPE, text=True)
sys.stderr.buffer.write(ended.stderr.encode("{}"))
sys.exit(ended.returncode)
"""


@pytest.fixture
def script(tmp_path):
    """script(text): the path of a program with this text; script(None): of a program that does not exist."""
    def write(text, name="script"):
        path = tmp_path / name
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            path.chmod(0o755)
        return path
    return write


@pytest.mark.parametrize("then", ["exec", "exit 1 #"], ids=["a_right_program", "one_that_ends"])
def test_control_characters_in_the_output_cost_nothing_and_are_told_escaped(script, tmp_path, then):
    tracker, peer = (script(LOUD.format(then, sys.executable, ROOT, name), name) for name in ("tracker.py", "peer.py"))
    graded = Graded(tmp_path, "--tracker", f"{tracker} {{file}} --port {{port}} --expire {{expire}}", "--peer", f"{peer} {{tracker}} {{out}}",
                    "--stage", 1, "-k", "whatever_ip_address or accepts_connections or a_byte_less")
    assert len(graded.failed()) == (0 if then == "exec" else 3), graded.out
    said = graded.out + "".join(entry.get("output", "") for entry in graded.content()["tests"])
    assert ("\\x00\\x1b[2J\\x07" in said) == (then != "exec") and not set(said) & set("\0\x1b\7\u202e")


@pytest.mark.parametrize("encoding", ["utf-16", pytest.param("utf-16-le", marks=pytest.mark.long)])
def test_a_line_for_people_may_be_in_utf_16(script, tmp_path, encoding):
    peer = script(WIDE.format(ROOT, "peer.py", encoding))
    graded = Graded(tmp_path, "--tracker", f"{sys.executable} tracker.py {{file}} --port {{port}}", "--peer", f"{sys.executable} {peer} {{tracker}} {{out}}",
                    "--stage", 1, "-k", "a_byte_less or expects_another_file")
    assert graded.code == 0 and "2 of   2 tests passed" in graded.out, graded.out


@pytest.mark.parametrize("text, got, hint", [
    ("#!/no/such/python\n", "asks for '/no/such/python'", "the program that its first line names is not there"),
    ("#!/bin/sh\r\nexit 0\r\n", r"asks for '/bin/sh\r'", "ends in CR LF"),
    ("#!/usr/bin/env python3\r\nexit()\r\n", "exit code 127", "ends in CR LF"),
    ("print('hello')\n", "Exec format error", "#!/usr/bin/env python3"),
    (f"#!{sys.executable}\nprint('hello'\n", "SyntaxError: '(' was never closed", "does not begin to run"),
    ("#!/bin/sh\nexec no-such-program\n", "exit code 127", "a command was not found"),
], ids=["no_interpreter", "crlf", "crlf_with_env", "no_first_line", "syntax_error", "no_command"])
def test_a_program_that_does_not_start_is_told_why(script, tmp_path, text, got, hint):
    program = script(text)
    graded = Graded(tmp_path, "--tracker", f"{program} {{file}} --port {{port}}", "--peer", f"{program} {{tracker}} {{out}}",
                    "--stage", 1, "-k", "whatever_ip_address or expects_another_file or accepts_connections")
    assert graded.code == 1 and len(graded.failed()) == 3
    for failure in graded.failed().values():
        assert got in failure["got"] and hint in failure["likely"], failure


@pytest.mark.skipif(sys.platform != "linux", reason="what leaves its session and its parent is found on Linux only")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_grading_without_a_traceback_and_leaves_nothing(tmp_path, ending, number, code):
    command = [sys.executable, "lab/grader/grade.py", "--stage", "0", "--results", str(tmp_path / "results.json")]
    (tmp_path / "tmp").mkdir()
    program = ending(Program(command, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}))
    started = eventually(lambda: len(found := [pid for pid, _, _ in processes.descendants(program.pid)]) > 2 and found, what="tests under way")
    program.signal(number)
    program.ends_with(code)
    assert json.loads((tmp_path / "results.json").read_text())["score"] == 0 and os.listdir(tmp_path / "tmp") == []
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")]


@pytest.mark.long
def test_programs_that_start_processes_without_end_are_stopped(submission, tmp_path):
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    program = f"import subprocess, sys\nwhile True:\n    subprocess.Popen(['sleep', '1000.{mark[-6:]}'])\n"
    graded = Graded(tmp_path, "--dir", submission({"tracker.py": program, "peer.py": program}), "--stage", 4)
    assert graded.code == 1 and "processes" in graded.content()["extra_data"]["stopped"] and "ended early" in graded.out
    assert not alive(f"1000.{mark[-6:]}")


@pytest.mark.skipif(sys.platform != "linux", reason="who its parent's parent is a program finds out on Linux only")
@pytest.mark.parametrize("above, codes", [(1, {1, -9}), (2, {1, -9}), (3, {-9})], ids=["the_worker", "the_process_that_forks_workers", "the_grader"])
def test_a_grader_of_which_a_process_is_killed_leaves_a_verdict_of_no_points(measuring, submission, tmp_path, above, codes):
    """Once the process that forks workers is gone, the grader is two levels above the next program, and is killed as well.

    When it measures how fast programs start, the grader starts them itself, and so is one level above them.
    """
    program = (f"import os, signal\npid = os.getpid()\nfor _ in range({above}):\n"
               "    pid = int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1])\nos.kill(pid, signal.SIGKILL)\n")
    graded = Graded(tmp_path, "--dir", submission({"tracker.py": program, "peer.py": program}), "--stage", 3, "-k", "list_of_no_peers or everyone")
    assert graded.code in codes
    assert graded.content()["score"] == 0


# The clock: how fast the machine is, and what is said about tests that could not be tried.


def test_a_slow_machine_gets_more_patience_and_time_and_fewer_tests_at_a_time():
    quick, slow, none = Pace(), Pace(power=0.5, start=0.5), Pace(power=0)
    assert quick.factor() == Pace(power=64).factor() == 1 and 1.5 < slow.factor() < none.factor() < 5
    assert 2 <= none.workers() <= slow.workers() < quick.workers()
    assert quick.seconds(200, 50) == 50 < 200 < slow.seconds(200, 50)
    assert Pace(start=2).seconds(200, 50) > 50


@pytest.mark.parametrize("power, expected", [(2, [0.05, 1, 3, 7, 10, 20]), (0.5, [0.1, 2, 6, 9.5, 20, 40])])
def test_a_wait_that_is_to_end_before_ten_seconds_stays_below_them(monkeypatch, power, expected):
    monkeypatch.setattr(harness, "pace", Pace(power))
    assert [harness.patience(seconds) for seconds in (0.05, 1, 3, 7, 10, 20)] == expected


@pytest.mark.parametrize("asked, earned", [(None, grade.EARNED), (30, 0)], ids=["as_usual", "with_a_limit_asked_for"])
def test_a_test_that_passes_adds_to_the_time_for_all_and_one_that_fails_does_not(asked, earned):
    run, worker = types.SimpleNamespace(asked_limit=asked, limit=30, tests={"x": {}}), grade.Worker(None)
    for outcome in ("passed", "failed"):
        worker.take({"end": "x", "outcome": outcome, "failure": None, "seconds": 1, "late": False, "stalled": 0}, run)
    assert run.limit == 30 + earned


def test_what_time_did_not_suffice_for_is_not_tried_and_has_no_verdict(tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "test_2_mine.py").write_text('import time, pytest\n\n@pytest.mark.spec("AP-1")\n@pytest.mark.parametrize("turn", range(6))\n'
                                                        'def test_slow(turn):\n    time.sleep(turn)\n')
    graded = Graded(tmp_path, "--stage", 2, "-k", "slow", "--hidden", tmp_path / "hidden", "--limit", 1.5, "--workers", 6)
    content = graded.content()
    tests = [entry for entry in content["tests"] if "max_score" not in entry]
    (clause,) = [entry for entry in content["tests"] if "max_score" in entry]
    untried = [entry for entry in tests if "status" not in entry]
    assert len(untried) >= 3 and all("not tried: the time of 2 s" in entry["output"] for entry in untried) and not graded.failed()
    assert "status" not in clause and clause["score"] == 0 and "slow: 5, not tried" in clause["output"]
    said = f"grade again: {len(untried)} of 6 tests were not tried, because the time of 2 s for the tests was over; give it more, --limit 3"
    assert graded.code == 1 and said in graded.out and said in content["output"] and said == content["extra_data"]["grade_again"]


SECOND = """
import pathlib, pytest
from harness import gave_up

@pytest.mark.parametrize("turn", range({}))
def test_mine(turn):
    path = pathlib.Path({!r}, str(turn))
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    if path.read_text() == "x":
        raise gave_up("an answer")
"""


@pytest.mark.parametrize("count, failed", [(3, 0), pytest.param(9, 9, marks=pytest.mark.long)])
def test_a_few_tests_in_which_time_ran_out_are_run_once_more(tmp_path, count, failed):
    """If there are many, it is no accident."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "test_2_mine.py").write_text(SECOND.format(count, str(tmp_path)))
    graded = Graded(tmp_path, "--stages", 2, "-k", "mine", "--hidden", tmp_path / "hidden")
    assert len(graded.failed()) == failed, graded.out


def test_a_wrapper_that_takes_the_documented_words_alone_is_told_to_pass_options_on(measuring, script, tmp_path):
    tracker = script(f'#!/bin/sh\n[ $# = 3 ] || {{ echo usage >&2; exit 2; }}\nexec {sys.executable} {ROOT}/tracker.py "$1" --port "$2" --expire "$3"\n')
    graded = Graded(tmp_path, "--tracker", f"{tracker} {{file}} {{port}} {{expire}}", "--peer", f"{sys.executable} peer.py {{tracker}} {{out}}",
                    "--stage", 2, "-k", "the_bytes_of_the_spec")
    said = "the tracker's command starts it, but not with --no-seed after it"
    assert graded.code == 1 and said in graded.out and said in graded.content()["output"]
    assert "pass them on" in graded.failed()["2.1"]["likely"]


@pytest.mark.long
def test_a_program_that_takes_two_seconds_to_start_loses_no_points(measuring, script, tmp_path):
    tracker, peer = (script(f'#!/bin/sh\nsleep 2\nexec {sys.executable} {ROOT}/{name} "$@"\n', name) for name in ("tracker.py", "peer.py"))
    graded = Graded(tmp_path, "--tracker", f"{tracker} {{file}} --port {{port}} --expire {{expire}}", "--peer", f"{peer} {{tracker}} {{out}}", "--stages", "6-7",
                    "-k", "silent or slow or hangs or dawdles or limit or changed or idle or failed or successor")
    assert graded.code == 0 and graded.content()["score"] > 10, graded.out


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("taskset"), reason="no taskset here")
def test_on_half_a_core_the_reference_loses_no_points(measuring, tmp_path):
    core = str(min(os.sched_getaffinity(0)))
    spinning = subprocess.Popen(["taskset", "-c", core, sys.executable, "-c", "while True: pass"])
    try:
        results = tmp_path / "results.json"
        subprocess.run(["taskset", "-c", core, sys.executable, ROOT / "lab" / "grader" / "grade.py", "--stages", "2-4", "--results", results],
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=200)
    finally:
        spinning.kill()
        spinning.wait()
    content = json.loads(results.read_text())
    assert content["score"] == content["extra_data"]["max_score"] > 20, content["output"]


# Wrong usage.


@pytest.mark.parametrize("arguments, said", [
    (["--stage", "9"], "expected a number from 0 to 7, got '9'"),
    (["--stage", "x"], "expected a number from 0 to 7, got 'x'"),
    (["--stages", "3-1"], "expected stages such as 0-3, or one from 0 to 7, got '3-1'"),
    (["--stages", "0-8"], "got '0-8'"),
    (["--stages", ""], "got ''"),
    (["--stages", "1", "--stage", "1"], "got both"),
    (["--dir", "no/such"], "no folder 'no/such'"),
    (["--dir", "lab"], "found no tracker.py"),
    (["--dir", ".", "--tracker", "x"], "got both"),
    (["--tracker", "python3 x {file} {port}"], "got only --tracker"),
    (["--tracker", "sh {file}", "--peer", "sh {tracker} {out}"], "with {port} in it"),
    (["--tracker", "sh {port}", "--peer", "sh {tracker} {out}"], "with {file} in it"),
    (["--tracker", "sh {file} {port}", "--peer", "sh {out}"], "with {tracker} in it"),
    (["--tracker", "sh {file} {port}", "--peer", "sh {tracker}"], "with {out} in it"),
    (["--tracker", "sh {file} {port} {prot}", "--peer", "sh {tracker} {out}"], "{prot} is unknown"),
    (["--tracker", "sh {file} {port", "--peer", "sh {tracker} {out}"], "cannot read"),
    (["--tracker", "sh '{file} {port}", "--peer", "sh {tracker} {out}"], "cannot read"),
    (["--tracker", "no-such-program {file} {port}", "--peer", "sh {tracker} {out}"], "no program 'no-such-program'"),
    (["--tracker", "sh {file} {port}", "--peer", "python3 nowhere.py {tracker} {out}"], "no file 'nowhere.py'"),
    (["--tracker", "sh {file} {port:d}", "--peer", "sh {tracker} {out}"], "{port:d} is unknown"),
    (["--tracker", "sh {file!x} {port}", "--peer", "sh {tracker} {out}"], "{file!x} is unknown"),
    (["--tracker", "", "--peer", ""], "expected a command, got nothing"),
    (["--dir", ""], "expected a folder, got nothing"),
    (["--stage", "2", "-k", "two words"], "with and, or and not between them, got 'two words'"),
    (["--stage", "2", "-k", "no_such"], "no test of stage 2 has 'no_such'"),
    (["--hidden", "lab"], "expected a folder with tests"),
    (["--hidden", "x" * 5000], "expected a folder with tests"),
    (["--limit", "x"], "invalid float"),
    (["--limit", "nan"], "expected a number of seconds above 0, got nan"),
    (["--colour"], "unrecognized"),
])
def test_wrong_usage_is_told_in_one_line(tmp_path, arguments, said):
    graded = Graded(tmp_path, *arguments)
    assert graded.code == 2 and said in graded.err and graded.err.count("\n") == 1 and not graded.out, graded.err


def test_a_submission_without_a_program_has_results_of_no_points_that_say_so(submission, tmp_path):
    folder = submission({})
    (folder / "peer.py").unlink()
    graded = Graded(tmp_path, "--dir", folder)
    assert graded.code == 2 and graded.err.count("\n") == 1 and "found no peer.py" in graded.err
    assert graded.content()["score"] == 0 and "found no peer.py" in graded.content()["output"]


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("target, words", [("grade", "DIR="), ("stage-0", "DIR="), ("grade", "TRACKER=")])
def test_a_name_that_is_empty_is_refused_by_make_too_and_not_taken_for_the_reference(target, words):
    environment = {name: value for name, value in os.environ.items() if name not in ("TRACKER", "PEER", "DIR", "K", "HIDDEN")}
    said = subprocess.run(["make", "-n", target, words], cwd=ROOT, capture_output=True, text=True, env=environment).stdout
    assert f'--{words[:-1].lower()} "${words[:-1]}"' in said


def test_a_results_file_that_cannot_be_written_is_told_in_one_line(tmp_path):
    process = subprocess.run([sys.executable, ROOT / "lab" / "grader" / "grade.py", "--results", tmp_path / "no" / "results.json"], capture_output=True, text=True)
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "cannot write" in process.stderr


@pytest.mark.parametrize("path", ["", ".", "folder", "fifo", "link"])
def test_no_results_are_written_in_the_place_of_what_is_no_file(tmp_path, path):
    os.mkfifo(tmp_path / "fifo")  # stands for /dev/null too, which a failing test must not replace
    os.symlink("fifo", tmp_path / "link")
    os.mkdir(tmp_path / "folder")
    before = sorted(os.listdir(tmp_path))
    process = subprocess.run([sys.executable, ROOT / "lab" / "grader" / "grade.py", "--stage", "0", "--results", path], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "cannot write" in process.stderr
    assert sorted(os.listdir(tmp_path)) == before and stat.S_ISFIFO(os.stat(tmp_path / "link").st_mode)


# Facts: what was sent, what came back, and in which step.


def test_what_a_fake_says_meanwhile_is_not_taken_for_the_request(fake_peer):
    """Otherwise the report on an unanswered Fetch Chunk would expect the answer to the fake tracker's last message."""
    peer = fake_peer(b"abc")
    harness.trace.names[peer.port] = "the peer under test"

    def hang_up(request, sock):
        harness.trace.tell("the fake tracker answered:", OK, "response")
    peer.answers["fetch_chunk"] = hang_up
    with harness.connect(peer.address) as sock, pytest.raises(EOFError):
        harness.ask(sock, harness.fetch_chunk(0))
    expected, got, _, _, request, _ = harness.trace.verdict
    assert (expected, got, request) == ("a chunk", "end of stream", (FETCH, "request"))


def test_what_is_sent_over_two_connections_is_not_told_as_two_pieces(fake_peer):
    peer = fake_peer(b"abc")
    with harness.connect(peer.address) as one, harness.connect(peer.address) as other:
        one.sendall(FETCH[:9])
        other.sendall(FETCH)
        one.sendall(FETCH[9:])
        said = [step.words() for step in harness.trace.steps if step.text == "sent"]
        assert len(said) == 3 and not [words for words in said if "pieces" in words]
        one.sendall(FETCH[:9])
        one.sendall(FETCH[9:])
        assert [step.words() for step in harness.trace.steps if step.text == "sent"][-1].endswith("(in 3 pieces)")  # since its last answer


def test_a_wait_that_ran_out_is_told_as_such_with_the_answer_that_came_last(fake_peer, monkeypatch):
    monkeypatch.setattr(harness, "patience", lambda seconds, starts=False: 0.1)
    peer = fake_peer(b"abc", held=[])
    with pytest.raises(AssertionError):
        harness.eventually(lambda: harness.held(peer.address), what="the chunk")
    expected, got, _, _, request, step = harness.trace.verdict
    assert expected.startswith("the chunk, within ") and got == answer(chunks_query=Response.ChunksQuery()) and request[0] == framed(chunks_query())
    assert step == harness.trace.steps[-1].number and harness.trace.steps[-1].words() == "waited in vain for the chunk"


# Mistakes.


@pytest.mark.parametrize("came, word", [
    (OK[:8][::-1] + OK[8:], "little-endian"),
    ((10).to_bytes(8, "big") + OK[8:], "counts its own"),
    (OK[4:], "4 bytes"),
    (OK[4:8][::-1] + OK[8:], "4 bytes, and little"),
    (OK[6:], "2 bytes"),
    (OK[7:], "varint"),
    (OK[8:], "without its length"),
    ((10).to_bytes(8, "big") + OK[8:] + bytes(8), "counts its own"),  # the next frame's length is taken for its end
])
def test_a_wrong_length_is_known_by_its_bytes_and_mended(came, word):
    frame, hint = mended(came)
    assert frame == OK and word in hint


@pytest.mark.parametrize("came", [OK, b"", b"\xff" * 20, framed(describe(b"abc"))])
def test_what_is_well_framed_or_past_help_is_left_as_it_is(came):
    assert mended(came) == (None, None)


def answer(**fields):
    return framed(Response(**fields))


def addresses(*ports):
    return answer(peer_list=Response.PeerList(addresses=[f"127.0.0.1:{port}" for port in ports]))


def ids(*indexes):
    return answer(chunks_query=Response.ChunksQuery(chunk_ids=indexes))


BAD = answer(bad=Response.Bad(code=5, reason="why"))
FETCH = bytes.fromhex("00 00 00 00 00 00 00 02 2a 00")
EXITS_WITH_8 = "the end with exit code 8, and one line on stderr that says why"
FETCH_LATER = bytes.fromhex("00 00 00 00 00 00 00 06 2a 04 08 80 80 10")


@pytest.mark.parametrize("sent, expected, got, clause, word", [
    (FETCH, "a chunk", "end of stream", "FC-3", "0 is false"),
    (FETCH, "a chunk", BAD, "FC-3", "0 is false"),
    (FETCH_LATER, answer(chunk=b"ab"), answer(chunk=b"ab" + bytes(7)), "FC-2", "padded"),
    (FETCH_LATER, answer(chunk=b"abcd"), answer(chunk=b"ab"), "FC-1", "cut short"),
    (FETCH_LATER, answer(chunk=b"abcd"), answer(chunk=b"wxyz"), "FC-1", "byte offset"),
    (FETCH_LATER, BAD, answer(chunk=bytes(9)), "FC-5", "zeros"),
    (FETCH_LATER, BAD, OK, "FC-5", "everything is answered Ok"),
    (FETCH_LATER, BAD, "end of stream", "FC-5", "closed where Bad is due"),
    (FETCH_LATER, BAD, answer(bad=Response.Bad(reason="x")), "FC-5", "no code"),
    (FETCH_LATER, BAD, answer(bad=Response.Bad(code=4, reason="x")), "FC-5", "another code"),
    (framed(join("127.0.0.1:5001")), addresses(5001), addresses(), "JN-1", "lacks the peer that joins"),
    (framed(join("10.9.9.9:5001")), addresses(5001), answer(peer_list=Response.PeerList(addresses=["10.9.9.9:5001"])), "JN-3", "that it announced"),
    (framed(peer_list()), addresses(5001), addresses(5001, 5002), "AP-3", "run out"),
    (framed(peer_list()), addresses(5001), addresses(), "AP-1", "forgotten"),
    (framed(peer_list()), addresses(5001), addresses(5001, 5001), "JN-5", "twice"),
    (framed(active_proof("127.0.0.1:5001")), OK, addresses(5001), "AP-1", "its answer is Ok"),
    (None, ids(0, 262144, 524288), ids(0, 1, 2), "CQ-1", "by index"),
    (None, ids(524288, 0), ids(0, 524288), "CQ-2", "sorted"),
    (None, ids(0), ids(0, 262144), "CQ-1", "not held"),
    (None, "4 times Active Proof within 1 s", "1 of them", "AP-4", "fires once"),
    (None, "4 times Active Proof within 1 s", "0 of them", "AP-4", "no proof is sent"),
    (None, "a line", "the peer under test ended with exit code 1: KeyError: 3", "FC-1", "an exception"),
    (OK, OK, "the peer under test ended with exit code 70: queue.Empty", "FC-1", "an exception"),
    (None, EXITS_WITH_8, "exit code 1: FileNotFoundError: [Errno 2] (tracker.py, line 7, in run)", "CL-12", "an exception"),
    (None, EXITS_WITH_8, "exit code 1: tracker.py: cannot read file.bin: No such file or directory", "CL-12", "exit code 8 for FILE"),
    (None, EXITS_WITH_8, "exit code 2: tracker.py: cannot read file.bin: No such file or directory", "CL-12", "exit code 8 for FILE"),
    (None, EXITS_WITH_8, "exit code 2: tracker.py: error: unrecognized arguments: --no-seed", "CL-12", "does not take these arguments"),
    (None, "a test that comes to its end", "ValueError: No closing quotation", "CL-2", "quoted as a shell needs it"),
    (None, "a test that comes to its end", "ValueError: x; the tracker under test ended with exit code 70: KeyError: 3", "CL-2", "an exception"),
    (None, "a complete file", "nothing of the kind, until the wait was over", "WF-11", "a chunk ends where its own length says"),
    (None, "no answer", "the tracker under test printed: NameError: name 'x' is not defined (tracker.py, line 7, in list)", "JN-1", "an exception"),
    (None, "an answer", "struct.error: unpack requires a buffer of 8 bytes (peer.py, line 7, in read)", "WF-2", "recv() returns what is there"),
    (None, "an end with exit code 4", "exit code 3: no tracker", "FD-3", "number of digests"),
    (None, "a connection", "the peer under test ended with exit code 70: NotImplementedError: stage 6: lab/6-swarm.md", "PL-3", "later stage"),
    (None, "a connection", "the peer under test ended with exit code 70: NotImplementedError: stage 3: lab/3-peer-list.md", "PL-3", "not written yet"),
    (framed(join("10.9.9.9:5001")), addresses(5001), addresses(), "JN-3", "lacks the peer that joins"),
    (framed(join("10.9.9.9:5001")), addresses(4000, 5001), addresses(4000), "JN-3", "called from"),
    (framed(join("127.0.0.1:5001")), answer(peer_list=Response.PeerList(addresses=["192.0.2.1:5001"])), addresses(5001), "JN-6", "loopback"),
    (framed(chunks_query()), "Bad with code WRONG_ROLE", "nothing more, until the wait was over", "WF-8", "other role"),
    (framed(active_proof("127.0.0.1:0")), BAD, OK, "AP-5", "as if it were right"),
    (None, "2 times Peer List within 10 s, at a fake tracker", "0 of them", "PL-4", "asked for again"),
    (None, "anything", "nothing that is known", "FC-12", "held already"),
    (framed(join("127.0.0.1:9")), "the end of all leases, within 10 s", addresses(5001), "AP-1", "lease has run out"),
    (framed(peer_list()), "the end of a lease that only lists were asked for in, within 10 s", addresses(5001), "PL-2", "lease has run out"),
    (FETCH, "a chunk", "end of stream", "FC-5", "closed where Bad is due"),
    (FETCH, "a chunk", answer(bad=Response.Bad(code=6, reason="busy")), "FC-6", "did not say busy_ok"),
    (FETCH[:7] + bytes.fromhex("04 2a 02 40 01"), answer(chunk=b"ab"), answer(bad=Response.Bad(code=6, reason="busy")), "FC-6", "nothing on its way out"),
    (FETCH_LATER, BAD, answer(chunk=b"ab"), "FC-13", "changed since they were verified"),
    (FETCH_LATER, "a chunk", bytes.fromhex("00 00 00 00 00 00 00 0f 2a 0d 61"), "FC-2", "announces more bytes than come"),
    (framed(active_proof("127.0.0.1:5001")), OK, BAD, "AP-2", "thrown away"),
    (None, "at most 1.01 s", "5.01 s", "AP-3", "lease has run out"),
    (None, ">= 0.99", "0.3", "AP-3", "before their lease has run out"),
    (None, "exit code 0", "exit code 4: wrong", "FC-9", "never the program"),
    (None, "the end of all connections to the neighbor that sends zeros", "nothing of the kind, until the wait was over", "FC-9", "ban its address"),
    (None, "room for 28 more than 512", "nothing of the kind, until the wait was over", "WF-13", "waited longest"),
    (None, "accepted", "ConnectionRefusedError(111, 'Connection refused')", "JN-8", "at the announced port"),
    (None, "assert not x", "the peer connected to its own port", "PL-3", "leave out your own port"),
    (None, f"a line of the tracker under test like '{'ab' * 32}'", "its output: content id 1234", "JN-2", "another content id"),
    (None, "the end with exit code 4, and one line on stderr that says why", "exit code 0", "FD-4", "compared with --expect"),
])
def test_a_mistake_is_known_by_what_was_sent_expected_and_got(sent, expected, got, clause, word):
    hint = likely(Facts(sent and (sent, "request"), expected, got, [clause], "test_it", ["1 connected to it", "2 sent this"], stage=3))
    assert hint and word in hint, hint


def test_a_chunk_that_is_asked_of_two_neighbors_is_known_by_the_test_and_its_count():
    hint = likely(Facts(None, "1", "2", ["SW-1"], "test_a_chunk_that_is_under_way_is_asked_of_nobody_else", ["1 started it"], 2, 1))
    assert "two neighbors are asked for one chunk" in hint


def test_hints_are_one_line_and_clauses_are_known():
    clauses = set(re.findall(r"^\*\*([A-Z]+-\d+)\*\*", (ROOT / "lab" / "SPEC.md").read_text(), re.M))
    assert len(LIKELY) > 40 and all("\n" not in hint for hint, _ in LIKELY)
    assert {clause for clause in clauses if not clause.startswith("CL")} <= set(BY_CLAUSE) <= clauses


# Ending everything that was started.


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_everything_below_a_process_is_ended_also_what_left_its_session():
    code = ("import os, subprocess, sys, time\nsys.path.insert(0, sys.argv[1])\nimport processes\nprocesses.adopt_orphans()\n"
            "subprocess.run(['sh', '-c', 'setsid sleep 1000 & setsid sh -c \"sleep 1000; sleep 1000\" & true'])\n"
            "while len(processes.running()) < 3: time.sleep(0.01)\nprint(processes.end_all(), processes.running())")
    process = subprocess.run([sys.executable, "-c", code, ROOT / "lab" / "grader"], capture_output=True, text=True, timeout=30)
    assert re.fullmatch(r"[34] \[\]\n", process.stdout), process
    assert processes.descendants(os.getpid()) is not None
