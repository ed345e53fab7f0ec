#!/usr/bin/env python3
"""Turn a results.json of lab/grader/grade.py into input for GitHub Classroom's reporter, so that each stage gives partial credit.

    python lab/grader/classroom.py results.json >> "$GITHUB_OUTPUT"

It prints a line for each stage: `stage3=` and, in Base64, a JSON object with the points of the stage. The workflow in
lab/instructor/classroom.yml passes these to classroom-resources/autograding-grading-reporter, which adds them up and shows
them. Reasons are cut, because the size of an environment variable is limited; the report of the grading step has them whole.

Exit code: 0, or 2 for wrong usage.
"""

import base64
import json
import os
import pathlib
import sys

sys.path.insert(1, str(pathlib.Path(__file__).resolve().parents[1]))

import ending  # noqa: E402  (after the path)
import marks  # noqa: E402
from stages import STAGES  # noqa: E402

MESSAGE = 300  # characters of a reason
REASONS = 20   # entries of a stage with a reason


def outcome(content, stage):
    """The reporter's input for one stage. If there is nothing to report, as when a program is missing, it says why."""
    points, _ = marks.of_stage(content, stage.number)
    if not points:
        why = content.get("output") or "this stage was not graded"
        points = [{"name": f"stage {stage.number}", "status": "failed", "score": 0, "max_score": 1, "output": why}]
    tests = []
    for entry in points:
        failed = entry["score"] < entry["max_score"]
        said = failed and sum(test["message"] != "" for test in tests) < REASONS
        tests.append({"name": entry["name"][:100], "status": "fail" if failed else "pass", "score": entry["score"],
                      "message": entry.get("output", "")[:MESSAGE] if said else "", "test_code": "", "filename": "", "line_no": 0, "duration": 0})
    got, most = marks.summed(points)
    return {"version": 1, "status": "pass" if got == most else "fail", "max_score": most, "tests": tests}


def lines(content):
    return [f"stage{stage.number}={base64.b64encode(json.dumps(outcome(content, stage)).encode()).decode()}" for stage in STAGES]


def main():
    if len(sys.argv) != 2:
        raise ending.Failure("expected a results.json of lab/grader/grade.py, got none or several")
    try:
        content = json.loads(pathlib.Path(sys.argv[1]).read_text())
        told = lines(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ending.Failure(f"expected a results.json of lab/grader/grade.py, got {os.path.basename(sys.argv[1])!r}, which is not one") from None
    print("\n".join(told))


if __name__ == "__main__":
    ending.run(main)
