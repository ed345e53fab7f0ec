"""Grading a folder of submissions: lab/grader/class.py as instructors run it, with very short gradings.

Reading order: marks - again, and after a kill - what is wrong - from results.json to rows.
"""

import csv
import fcntl
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest

import samples
import starter
from harness import ROOT, Program, eventually

pytestmark = pytest.mark.ours
CLASS = os.path.join(ROOT, "lab", "grader", "class.py")
ONE_TEST = ("--", "--stage", "0", "-k", "does_not_count")


def run(*arguments, code=0):
    """What class.py prints."""
    ended = subprocess.run([sys.executable, CLASS, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def table(marks):
    """{(student, stage): the other columns} of marks.csv."""
    with open(marks / "marks.csv", newline="") as file:
        return {(row["student"], row["stage"]): row for row in csv.DictReader(file)}


@pytest.fixture
def submissions(tmp_path):
    """A folder with a good submission, one that is not written yet, and one without programs."""
    folder = tmp_path / "submissions"
    starter.write(folder / "Ada L, 12", written=range(8))
    starter.write(folder / "bob")
    (folder / "carol").mkdir()
    return folder


# Marks.


def test_each_student_has_marks_for_each_stage_the_first_failing_clause_and_a_report(submissions, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in submissions.rglob("*")}
    said = run(submissions, "--marks", tmp_path / "marks", "--jobs", "2", *ONE_TEST)
    assert "3 of 3 submissions have marks" in said
    rows = table(tmp_path / "marks")
    assert list(rows) == [("Ada L, 12", "0"), ("Ada L, 12", "all"), ("bob", "0"), ("bob", "all"), ("carol", "all")]
    assert rows["Ada L, 12", "all"]["points"] == rows["Ada L, 12", "all"]["of"] != "0" and not rows["Ada L, 12", "0"]["first failing clause"]
    assert (rows["bob", "0"]["points"], rows["bob", "0"]["first failing clause"]) == ("0", "WF-1")
    assert rows["carol", "all"]["points"] == "0" and "found no tracker.py" in rows["carol", "all"]["note"]
    report = (tmp_path / "marks" / "bob.txt").read_text()
    assert "NotImplementedError: stage 0" in report and "make stage-0 DIR=../mine K=" in report and str(tmp_path) not in report
    assert {path: path.stat().st_mtime_ns for path in submissions.rglob("*")} == before, "a submission was changed"
    assert not [name for name in os.listdir(tmp_path / "marks") if name.startswith((".grading", ".part"))]


def test_programs_in_another_language_are_named_by_templates_with_the_students_folder(tmp_path):
    folder = tmp_path / "my submissions"
    starter.write(folder / "ada", written=range(8))
    python = shlex.quote(sys.executable)
    run(folder, "--marks", tmp_path / "marks", *ONE_TEST, "--tracker", python + " {dir}/tracker.py {file} --port {port} --expire {expire}",
        "--peer", python + " {dir}/peer.py {tracker} {out}")
    assert table(tmp_path / "marks")["ada", "0"]["points"] != "0"


# Again, and after a kill.


def test_only_what_has_changed_is_graded_again(submissions, tmp_path):
    arguments = (submissions, "--marks", tmp_path / "marks")
    run(*arguments, *ONE_TEST)
    first = table(tmp_path / "marks")
    with open(submissions / "bob" / "peer.py", "a") as file:
        file.write("# another line\n")
    said = run(*arguments, *ONE_TEST)
    assert said.count("as before") == 2 and "bob: 0 points\n" in said
    assert table(tmp_path / "marks") == first


def test_a_mark_that_says_grade_again_is_graded_again(grade_class, submissions, tmp_path, monkeypatch):
    untried = {"grade_again": "grade again: 1 of 6 tests were not tried"}
    graded = [{"score": 1, "extra_data": untried}, {"score": 2}]
    monkeypatch.setattr(grade_class, "graded", lambda *_: (graded.pop(0), "a report"))
    said = [grade_class.grade(submissions / "bob", tmp_path, [], set()) for _ in range(3)]
    assert said == ["bob: 1 points", "bob: 2 points", "bob: 2 points, as before"]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_run_that_was_killed_goes_on_where_it_was(ending, submissions, tmp_path, number):
    """A tracker that never prints its port holds up the run until it is killed."""
    marks = tmp_path / "marks"
    starter.write(submissions / "slow")
    (submissions / "slow" / "tracker.py").write_text("import time\ntime.sleep(60)\n")
    options = ("--", "--stage", "0", "-k", "does_not_count", "--limit", "30")
    program = ending(Program([sys.executable, CLASS, str(submissions), "--marks", str(marks), "--jobs", "1", *options]))
    eventually(lambda: program.output.count("points") == 3 and list(marks.glob(".grading-*")), seconds=30, what="the marks of three")
    graders = [pid for pid in children(program.pid)]
    program.signal(number)
    assert program.wait() == {signal.SIGKILL: -9, signal.SIGINT: 130}[number]
    if number == signal.SIGKILL:
        for pid in graders:
            os.kill(pid, signal.SIGTERM)  # nobody else ends it; by itself it would end within its limit
    else:
        assert [student for student, _ in table(marks)] == ["Ada L, 12"] * 2 + ["bob"] * 2 + ["carol"]
    starter.write(submissions / "Zoe", written=range(8))
    (submissions / "slow" / "tracker.py").write_text("raise SystemExit(3)\n")
    said = run(submissions, "--marks", marks, *options)
    assert said.count("as before") == 3 and "5 of 5" in said
    assert table(marks)["Zoe", "0"]["points"] != "0" and table(marks)["slow", "0"]["points"] == "0"
    assert not [path for path in marks.glob(".grading-*") if (path / "submission").exists()]


def children(pid):
    rows = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    return [int(row.split()[0]) for row in rows if row.split()[1] == str(pid)]


# What is wrong.


@pytest.mark.parametrize("arguments, complaint", [
    (["/absent"], "expected a folder with a folder for each student"), ([], "SUBMISSIONS"), (["{here}", "--jobs", "0"], "above 0"),
    (["{here}", "--", "--dir", "x"], "without --dir"), (["{here}", "--", "--stage", "9"], "--stage: expected a number"),
    (["{here}", "--", "--stagex", "1"], "unrecognized arguments")])
def test_wrong_usage_is_told_in_one_line(submissions, tmp_path, arguments, complaint):
    words = [word.format(here=submissions) for word in arguments]
    separator = words.index("--") if "--" in words else len(words)
    said = run(*words[:separator], "--marks", tmp_path / "marks", *words[separator:], code=2)
    assert complaint in said and len([line for line in said.splitlines() if line.startswith("class.py:")]) == 1 and "Traceback" not in said


def test_two_runs_do_not_share_a_folder_of_marks(submissions, tmp_path):
    (tmp_path / "marks").mkdir()
    with open(tmp_path / "marks" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another one uses it" in run(submissions, "--marks", tmp_path / "marks", code=2)


# From results.json to rows.


@pytest.fixture(scope="module")
def grade_class():
    spec = importlib.util.spec_from_file_location("class_py", CLASS)  # class is a keyword and cannot be imported by name
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(stage, status, **more):
    return {"name": f"{stage}.1 a test", "status": status, "tags": [f"stage {stage}"], **more}


FAILED = {"extra_data": {"clauses": ["PL-5", "PL-1"]}}


@pytest.mark.parametrize("tests, expected", [
    ([entry(3, "passed"), entry(3, "failed", **FAILED)], ["Ada", 3, 1, 2, "PL-5", "3.1 a test", ""]),
    ([entry(3, "passed", score=2, max_score=2), entry(3, "failed", score=0, max_score=1), entry(3, "failed", **FAILED)],
     ["Ada", 3, 2, 3, "PL-5", "3.1 a test", ""]),
    ([entry(3, "passed", score=0.5, max_score=1)], ["Ada", 3, 0.5, 1, "", "", ""])])
def test_a_stage_has_the_points_of_its_clauses_or_else_its_tests(grade_class, tests, expected):
    content = {"score": 7, "output": "ended early:\n no time", "tests": tests, "extra_data": {"max_score": 9}}
    stage, total = grade_class.rows("Ada", content)
    assert stage == expected, stage
    assert total == ["Ada", "all", 7, 9, *expected[4:6], "ended early: no time"]


def test_a_mark_is_of_the_files_their_modes_and_the_options(grade_class, submissions):
    folder = submissions / "bob"
    marked = {grade_class.fingerprint(grade_class.files_of(folder), [])}
    for change in (lambda: (folder / "peer.py").chmod(0o755), lambda: (folder / "peer.py").rename(folder / "Peer.py"),
                   lambda: (folder / "Peer.py").write_text("")):
        change()
        marked.add(grade_class.fingerprint(grade_class.files_of(folder), []))
    marked.add(grade_class.fingerprint(grade_class.files_of(folder), ["--stage", "0"]))
    assert len(marked) == 5


def test_what_is_too_large_is_not_copied(grade_class, submissions, monkeypatch):
    monkeypatch.setattr(grade_class, "LARGEST", 1000)
    with pytest.raises(grade_class.NotGradable, match="got more"):
        grade_class.files_of(submissions / "bob")
