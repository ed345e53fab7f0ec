"""The page for instructors is true: the marks of the three samples, its hidden test, and every command (lab/INSTRUCTOR.md).

Reading order: the page - marks - the hidden test - commands - wrong usage.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from harness import ROOT
from pages import MAKEFILE, NOTES, clause_errors, estimate, link_errors, note
import pace
import samples
from stages import STAGES

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what leaves its session and its parent is found on Linux only")
NAMES = ("good", "partial", "hostile")
MINUTE = 60  # seconds until a hostile submission has its verdict, on a machine of pace.POWER; the grader's limit grows on a slower one

# The page.

PAGE = note("lab/INSTRUCTOR.md")
FILES = {words[1]: content for words, content in PAGE.blocks if len(words) == 2}  # name of a file on the page -> its content
COMMANDS = "".join(content for words, content in PAGE.blocks if words == ["sh"]) + "\n".join(re.findall(r"`([^`\n]+)`", PAGE.prose))


def marks_on_the_page():
    """{sample: (points, of, stages that it passes)}, from the page."""
    rows = re.findall(r"^\| `\.\./samples/(\w+)` \| (\d+) of (\d+) \| (none|[\d ]+) \|", PAGE.text, re.M)
    return {name: (int(points), int(most), [int(number) for number in re.findall(r"\d", passed)]) for name, points, most, passed in rows}


def test_the_page_has_the_stages_of_the_index_and_nothing_that_is_not_there():
    rows = re.findall(r"^\| (\d) ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.text, re.M)
    index = re.findall(r"^\| (\d) \| \[([^\]]+)\]\([^)]+\) \| ([^|]+) \| ([^|]+) \|$", note("lab/README.md").text, re.M)
    assert rows == index[:len(STAGES)] and [row[2] for row in rows] == [estimate(page) for page in NOTES] and len(rows) == len(STAGES)
    assert not clause_errors(PAGE) + link_errors(PAGE)


# Marks.


def grade(*arguments, limit=100):
    """(seconds, exit code, what was printed) of lab/grader/grade.py."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TRACKER", "PEER", "PROGRAMS", "GRADING", "GRADE_PACE")}
    began = time.monotonic()
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", "grade.py"), *map(str, arguments)], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=limit)
    return time.monotonic() - began, ended.returncode, ended.stdout


def marks(content):
    """(points, of, the stages with all tests passed), from results.json."""
    def with_tests_that(status):
        tests = [test for test in content["tests"] if test.get("status") == status and "max_score" not in test]
        return {int(re.search(r"stage (\d)", " ".join(test["tags"]))[1]) for test in tests}
    return content["score"], content["extra_data"]["max_score"], sorted(with_tests_that("passed") - with_tests_that("failed"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the three samples, readable for other users; it is removed at the end, with what the hostile one wrote."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="p2p-samples-"))
    folder.chmod(0o755)
    samples.write(folder / "samples")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def graded(folder):
    """{sample: (seconds, exit code, printed, results.json)}, graded one after the other: side by side they would lose marks."""
    def run(name):
        ended = grade("--dir", folder / "samples" / name, "--results", folder / f"{name}.json")
        return (*ended, json.loads((folder / f"{name}.json").read_text()))

    return {name: run(name) for name in NAMES}


@pytest.mark.long
@LINUX
def test_the_samples_get_the_marks_of_the_page(graded):
    got = {name: marks(content) for name, (*_, content) in graded.items()}
    assert got == marks_on_the_page(), "\n".join(graded[name][2][:3000] for name in NAMES if got[name] != marks_on_the_page()[name])
    assert {name: ended[1] for name, ended in graded.items()} == {"good": 0, "partial": 1, "hostile": 1}
    assert "JN-3" in [test["number"] for test in graded["partial"][3]["tests"] if test["status"] == "failed"]


def alive(words):
    """The running processes with these words in their command."""
    rows = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True).stdout.splitlines()
    return [row for row in rows if words in row and "ps -axo" not in row]


@pytest.mark.long
@LINUX
def test_the_hostile_sample_has_its_verdict_within_a_minute_and_leaves_nothing_running(graded, folder):
    seconds, _, printed, content = graded["hostile"]
    assert seconds < MINUTE * max(1, pace.POWER / content["extra_data"]["power"]) and content["score"] == 0
    assert len(printed) < 1 << 20 and len(json.dumps(content)) < 4 << 20
    assert not alive(str(folder))
    assert 0 < (folder / "samples" / "hostile" / "filling").stat().st_size <= samples.BYTES


TOP = {"score", "execution_time", "output", "output_format", "test_output_format", "test_name_format", "visibility", "stdout_visibility", "extra_data", "tests",
       "leaderboard"}
TEST = {"score": (int, float), "max_score": (int, float), "status": str, "name": str, "name_format": str, "number": str, "output": str, "output_format": str,
        "tags": list, "visibility": str, "extra_data": dict}  # what Gradescope documents for one test


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("name", NAMES)
def test_results_are_what_gradescope_documents(graded, name):
    content = graded[name][3]
    assert set(content) <= TOP and isinstance(content["score"], (int, float)) and isinstance(content["execution_time"], int) and isinstance(content["output"], str)
    assert content["visibility"] == content["stdout_visibility"] == "visible"
    for test in content["tests"]:
        assert all(isinstance(value, TEST[key]) for key, value in test.items()), test
        assert test.get("status", "passed") in ("passed", "failed") and all(isinstance(tag, str) for tag in test["tags"])
    points = [test for test in content["tests"] if "max_score" in test]
    assert content["score"] == sum(test["score"] for test in points) and all(0 <= test["score"] <= test["max_score"] for test in points)


# The hidden test.


HIDDEN_TEST = FILES["hidden/test_4_fresh.py"]


def hidden_in(folder):
    """A folder with the page's hidden test."""
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "test_4_fresh.py").write_text(HIDDEN_TEST)
    return hidden


def test_the_hidden_test_of_the_page_passes_the_good_sample_fails_another_and_is_never_shown(folder, tmp_path):
    hidden = hidden_in(tmp_path)
    for name, code in (("good", 0), ("partial", 1)):
        _, ended, printed = grade("--dir", folder / "samples" / name, "--stage", 4, "-k", "today", "--hidden", hidden, "--results", tmp_path / "results.json")
        shown = printed + (tmp_path / "results.json").read_text()
        assert ended == code and "a file and a chunk size of today" in shown, printed
        secret = {line.strip() for line in HIDDEN_TEST.splitlines() if len(line.strip()) > 15}
        assert not [line for line in secret if line in shown] and "randrange" not in shown and "joiner" not in shown


# Commands: targets, their variables, programs, their options, files.


def unknown_in(commands):
    """Targets, variables, files and options that do not exist. Words after -- are options of grade.py."""
    commands = re.sub(r"(?m) -- (?=-)", "; lab/grader/grade.py ", commands)
    wrong = [target for target in re.findall(r"\bmake (?:-C \S+ )?([\w./-]+)", commands)
             if not re.search(rf"^{re.sub(r'stage-[0-7N]$', 'stage-%', target)}:", MAKEFILE.replace("$(VENV)", ".venv"), re.M)]
    wrong += [name for name in re.findall(r"\b(DIR|HIDDEN|TRACKER|PEER|K|ARGS|[A-Z]+)='?[.\w-]", commands) if f"$({name})" not in MAKEFILE and f'"$${name}"' not in MAKEFILE and name not in ("S", "AS")]
    for program, rest in re.findall(r"(lab/[\w/]+\.py)((?: [^\n;`]*)?)", commands):
        path = os.path.join(ROOT, program)
        source = open(path).read() if os.path.exists(path) else ""
        wrong += [f"{program} {option}" for option in ["", *re.findall(r"(?<= )--[a-z]+", rest.split(" #")[0])] if f'"{option}"' not in source and (option or not source)]
    return wrong


def test_every_command_of_the_page_exists():
    texts = COMMANDS + "".join(FILES.values())
    own = re.sub(r" # .*|^apt-get.*", "", re.sub(r"\\\n", " ", texts), flags=re.M)
    assert len(re.findall(r"\bmake ", texts)) > 10 and len(re.findall(r"lab/[\w/]+\.py", texts)) > 4
    assert not [wrong for wrong in unknown_in(own) if wrong.split()[-1] not in ("--port", "--expire")]  # these are the tracker's
    paths = [span for span in re.findall(r"`((?:lab|tests)/[\w./-]+)`", PAGE.prose)]
    assert paths and all(os.path.exists(os.path.join(ROOT, path)) for path in paths)
    assert all(f"\n{name} =" in pathlib.Path(ROOT, "lab", "grader", "grade.py").read_text() for name in ("POINTS",))


@pytest.mark.parametrize("command, complaint", [
    ("make grades DIR=../x", "grades"), ("make stage-9", "stage-9"), ("make grade FOLDER=../x", "FOLDER"), ("python lab/grades.py", "lab/grades.py "),
    ("python lab/grader/grade.py --directory x", "lab/grader/grade.py --directory")])
def test_commands_that_do_not_exist_are_found(command, complaint):
    assert complaint in unknown_in(command)
    assert not unknown_in("make stage-3 DIR=../x K=word\npython lab/grader/grade.py --dir x\nmake gauntlet ARGS=--list")


# Wrong usage.


@pytest.mark.parametrize("arguments", [[], [""], ["a", "b"], ["--help"], [__file__], [os.path.dirname(__file__)], ["/dev/null/x"]])
def test_without_a_good_folder_the_samples_are_refused_in_one_line(arguments):
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", "samples.py"), *arguments], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and "samples.py: expected" in ended.stderr
