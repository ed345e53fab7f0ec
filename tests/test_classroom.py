"""Points for GitHub Classroom: a results.json as input for its reporter, and the workflow that instructors copy."""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import stages
from harness import ROOT

pytestmark = pytest.mark.ours
CLASSROOM = os.path.join(ROOT, "lab", "grader", "classroom.py")
WORKFLOW = pathlib.Path(ROOT, "lab", "instructor", "classroom.yml").read_text()
LONGEST = 128 << 10  # bytes of one environment variable


def told(path):
    """{name: value} as printed by classroom.py."""
    ended = subprocess.run([sys.executable, CLASSROOM, str(path)], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) < LONGEST
    pairs = [line.split("=", 1) for line in ended.stdout.splitlines()]
    return {name: json.loads(base64.b64decode(value)) for name, value in pairs}


def written(folder, tests, **more):
    (folder / "results.json").write_text(json.dumps({"score": 0, "tests": tests, **more}))
    return folder / "results.json"


def entries(stage, passed, failed):
    named = [{"name": f"{stage}.{n} a test", "tags": [f"stage {stage}"]} for n in range(passed + failed)]
    return [{**test, "status": "passed"} for test in named[:passed]] + [{**test, "status": "failed", "output": "expected " * 200} for test in named[passed:]]


def test_each_stage_has_the_points_that_it_has_earned(tmp_path):
    points = [{"name": "FC-1", "tags": ["stage 5"], "status": "passed", "score": 3, "max_score": 4}]
    stage = told(written(tmp_path, entries(0, 5, 0) + entries(3, 2, 300) + points))
    assert list(stage) == [f"stage{one.number}" for one in stages.STAGES]
    assert (stage["stage0"]["status"], stage["stage0"]["max_score"], stage["stage0"]["version"]) == ("pass", 5, 1)
    assert (stage["stage3"]["status"], sum(test["score"] for test in stage["stage3"]["tests"])) == ("fail", 2)
    assert stage["stage3"]["max_score"] == 302 and stage["stage3"]["tests"][2]["message"].startswith("expected ")
    assert (sum(test["score"] for test in stage["stage5"]["tests"]), stage["stage5"]["max_score"]) == (3, 4)


def test_without_a_program_every_stage_fails_and_says_why(tmp_path):
    for result in told(written(tmp_path, [], output="found no peer.py")).values():
        assert (result["status"], result["max_score"]) == ("fail", 1)
        assert (result["tests"][0]["score"], result["tests"][0]["message"]) == (0, "found no peer.py")


@pytest.mark.parametrize("content", ["", "[]", '{"tests": 1}', None])
def test_what_is_no_results_file_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    ended = subprocess.run([sys.executable, CLASSROOM, str(tmp_path / "results.json")], capture_output=True, text=True, timeout=20)
    assert ended.returncode in (1, 2) and ended.stderr.count("\n") == 1 and not ended.stdout and "Traceback" not in ended.stderr


def test_the_workflow_reports_every_stage():
    names = [f"stage{stage.number}" for stage in stages.STAGES]
    assert re.search(r"runners: (.+)", WORKFLOW)[1].split(",") == names
    assert re.findall(r'(STAGE\d)_RESULTS: "\$\{\{steps\.points\.outputs\.(stage\d)\}\}"', WORKFLOW) == [(name.upper(), name) for name in names]
    assert "\t" not in WORKFLOW and "id: points" in WORKFLOW


def test_the_workflows_commands_exist():
    commands = re.findall(r"run: (.+)", WORKFLOW)
    assert [command.split()[:4] for command in commands[:2]] == [["make", "-C", "lab", ".venv/ready"], ["make", "-C", "lab", "grade"]]
    assert os.path.exists(os.path.join(ROOT, re.search(r"lab/(lab/grader/\w+\.py)", commands[2])[1]))
