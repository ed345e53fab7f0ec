"""Marks, stage by stage, read only from a results.json of lab/grader/grade.py.

An entry with points counts for the stage it is tagged with; in a stage without such entries, each test is worth a point.
"""

from stages import STAGES


def of_stage(content, number):
    """The entries of one stage that have points, and its tests. If no entry has points, each test is worth one."""
    tagged = [test for test in content["tests"] if f"stage {number}" in test.get("tags", [])]
    tests = [test for test in tagged if "max_score" not in test]
    points = [test for test in tagged if "max_score" in test]
    return points or [{**test, "score": int(test.get("status") == "passed"), "max_score": 1} for test in tests], tests


def summed(points):
    """(points, of) of some entries."""
    return sum(entry["score"] for entry in points), sum(entry["max_score"] for entry in points)


def first_failure(tests):
    """(clause, test) that failed first; two empty strings if none did."""
    for test in tests:
        if test.get("status") == "failed":
            clauses = test.get("extra_data", {}).get("clauses") or [""]
            return clauses[0], test["name"]
    return "", ""


def rows(content):
    """[(stage or "all", points, of, first failing clause, first failing test)]: a row for each stage that was graded, and one for all."""
    found = []
    for stage in STAGES:
        points, tests = of_stage(content, stage.number)
        if points:
            found.append((stage.number, *summed(points), *first_failure(tests)))
    tests = [test for test in content["tests"] if "max_score" not in test]
    return [*found, ("all", content["score"], content.get("extra_data", {}).get("max_score", ""), *first_failure(tests))]
