"""The zip for Gradescope: what is in it, what is not, and how it grades a submission under Gradescope's harness.

Reading order: the zip - wrong usage - the harness.
"""

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile

import pytest

import samples
import starter
import stages
from harness import ROOT

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]
SCRIPTS = ("setup.sh", "run_autograder")
OTHER_USER = pytest.mark.skipif(not shutil.which("setpriv") or os.getuid() != 0, reason="only root can start a program as another user, with setpriv")
HIDDEN_TEST = "def test_of_today():\n    assert True\n"


def make(folder, *arguments, code=0):
    """(the path of the zip, what was said) of lab/grader/autograder.py."""
    out = folder / "autograder.zip"
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", "autograder.py"), "--out", str(out), *map(str, arguments)],
                           capture_output=True, text=True, timeout=30)
    assert ended.returncode == code, ended.stderr
    return out, ended.stdout + ended.stderr


@pytest.fixture
def hidden(tmp_path):
    folder = tmp_path / "my hidden"
    folder.mkdir()
    (folder / "test_4_today.py").write_text(HIDDEN_TEST)
    return folder


# The zip.


def test_it_has_the_scripts_at_the_top_and_what_grades(tmp_path):
    with zipfile.ZipFile(make(tmp_path)[0]) as archive:
        names = archive.namelist()
        for name in SCRIPTS:
            assert archive.getinfo(name).external_attr >> 16 & stat.S_IXUSR
    tests = [path for stage in stages.STAGES for path in stages.test_files(stage)]
    assert set(tests + ["lab/grader/grade.py", "lab/SPEC.md", "tests/conftest.py", "requirements.txt"]) <= set(names)


def test_it_has_no_line_of_a_solution(tmp_path):
    with zipfile.ZipFile(make(tmp_path)[0]) as archive:
        text = "".join(archive.read(name).decode() for name in archive.namelist())
        assert not [name for name in archive.namelist() if os.path.basename(name) in ("peer.py", "tracker.py", "peer.js", "mutants.py")]
    inside = set()
    for stage in stages.STAGES:
        for name in starter.functions_of(stage):
            node = starter.all_functions()[name]
            inside |= {line.strip() for part in node.body[bool(starter.ast.get_docstring(node)):] for line in starter.ast.unparse(part).splitlines()}
    assert len(inside) > 100
    shown = {line.strip() for line in text.splitlines()}
    assert len({line for line in inside & shown if len(line) > 30}) < 3  # lines that any program has


def test_the_same_files_make_the_same_zip_and_hidden_tests_and_options_are_in_it(tmp_path, hidden):
    first = make(tmp_path)[0].read_bytes()
    assert make(tmp_path)[0].read_bytes() == first
    with zipfile.ZipFile(make(tmp_path, "--hidden", hidden, "--", "--stage", "3", "-k", "not slow")[0]) as archive:
        assert archive.read("hidden/test_4_today.py").decode() == HIDDEN_TEST
        assert archive.read("options").decode() == "--stage\n3\n-k\nnot slow\n"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_shell(name):
    path = pathlib.Path(ROOT, "lab", "instructor", "gradescope", name)
    assert subprocess.run(["bash", "-n", path]).returncode == 0 and path.read_text().startswith("#!/usr/bin/env bash\n")


# Wrong usage.


@pytest.mark.parametrize("arguments, complaint", [
    (["--hidden", "/absent"], "--hidden: expected a folder with tests"), (["--", "--results", "x"], "without --results"),
    (["x"], "unrecognized arguments"), (["--", "a\nb"], "one line each")])
def test_wrong_usage_is_told_in_one_line(tmp_path, arguments, complaint):
    said = make(tmp_path, *arguments, code=2)[1]
    assert complaint in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == []


# The harness. It unpacks the zip into /autograder/source, and runs /autograder/run_autograder as root; here the folder is another one.


@pytest.fixture
def gradescope(tmp_path, hidden):
    """gradescope(submission, options): (results.json, what was printed) of one run as root, for another user's programs.

    It has its own folder, because every pytest that starts makes the one above tmp_path unreadable for others.
    """
    def run(fill, *options):
        with tempfile.TemporaryDirectory(prefix="p2p-autograder-") as folder:
            os.chmod(folder, 0o755)
            return run_in(pathlib.Path(folder), fill, options)

    def run_in(place, fill, options):
        archive, _ = make(tmp_path, "--hidden", hidden, "--", *options)
        for name in ("source", "submission", "results"):
            (place / name).mkdir(parents=True)
        with zipfile.ZipFile(archive) as content:
            content.extractall(place / "source")
        (place / "source").chmod(0o700)
        fill(place / "submission")
        text = (place / "source" / "run_autograder").read_text().replace("/autograder/venv/bin/python", sys.executable)
        text = text.replace("/autograder/", f"{place}/").replace("=student", "=65534")
        ended = subprocess.run(["bash", "-c", text], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
        return json.loads((place / "results" / "results.json").read_text()), ended.stdout
    return run


SPY = """import subprocess
AS = 'setpriv --reuid=65534 --regid=65534 --clear-groups'.split()
def test_another_user_cannot_read_this():
    assert subprocess.run([*AS, 'true']).returncode == 0
    assert subprocess.run([*AS, 'cat', __file__], stderr=subprocess.DEVNULL).returncode
"""


@pytest.mark.long
@OTHER_USER
def test_a_submission_in_a_folder_is_graded_as_another_user_who_cannot_read_the_tests(gradescope, hidden):
    (hidden / "test_4_spy.py").write_text(SPY)
    content, printed = gradescope(lambda folder: starter.write(folder / "my lab", written=range(8)), "--stage", "4")
    assert content["score"] == content["extra_data"]["max_score"] > 0, printed
    assert content["extra_data"]["passed"] == content["extra_data"]["of"] > 4  # including both hidden ones


@OTHER_USER
def test_a_submission_without_a_program_is_told_so(gradescope):
    content, _ = gradescope(lambda folder: (folder / "tracker.py").write_text("print()"), "--stage", "4")
    assert content == {"score": 0, "output": "expected tracker.py peer.py in what is handed in, found no peer.py"}


@pytest.mark.long
@OTHER_USER
def test_a_good_and_a_hostile_submission(gradescope):
    content, printed = gradescope(lambda folder: starter.write(folder, written=range(8)), "--stages", "0-2")
    assert content["score"] == content["extra_data"]["max_score"] > 30, printed
    text = samples.HOSTILE.format(seconds=20, children=3, size=1 << 20)
    content, printed = gradescope(lambda folder: [(folder / name).write_text(text) for name in ("tracker.py", "peer.py")], "--stage", "0")
    assert content["score"] == 0 and content["tests"], printed
