"""The table of wrong programs agrees with the reference, the stages and the page. `make gauntlet` runs them."""

import os
import subprocess
import sys

import pytest

from harness import ROOT
import gauntlet
from mutants import MUTANTS
from stages import STAGES
from pages import CLAUSES


def test_there_are_many_and_each_has_a_name_of_its_own():
    assert len(MUTANTS) >= 36
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.program, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fits_the_reference_once_compiles_and_names_a_clause_that_its_stage_tests(mutant):
    compile(gauntlet.mutated(mutant), mutant.program, "exec")
    assert mutant.clause in CLAUSES and mutant.stage in [stage.number for stage in STAGES]
    assert gauntlet.tests_of(mutant.stage, mutant.clause)
    assert mutant.thought.endswith(".") and "\n" not in mutant.thought


def test_every_stage_has_wrong_programs():
    assert {mutant.stage for mutant in MUTANTS} == {stage.number for stage in STAGES}


@pytest.mark.parametrize("old", ["def", "no such words"], ids=["too_often", "not_at_all"])
def test_a_mutant_that_no_longer_fits_is_named(old):
    with pytest.raises(gauntlet.NotOnce, match="(?s)digests_ignored.*mend this mutant"):
        gauntlet.mutated(next(mutant for mutant in MUTANTS if mutant.name == "digests_ignored")._replace(old=old))


WHOLE = {"clauses": ["FC-3"], "steps": ["connected"], "step": 1, "sent": "2a 00", "expected": "2a 03 61 62 63", "got": "12 00", "offset": 0, "likely": "x", "again": "make"}


@pytest.mark.parametrize("change, missing", [
    ({}, []),
    ({"likely": None}, ["likely"]),
    ({"offset": None}, ["offset"]),
    ({"offset": None, "got": "end of stream"}, []),
    ({"offset": None, "got": "12 00 … (70 bytes)"}, ["offset"]),
    ({"likely": "an exception that was not caught – its last line is shown"}, ["a hint but that it crashed"]),
    ({"clauses": [], "step": 0, "expected": "", "again": ""}, ["clauses", "step", "expected", "again"]),
])
def test_a_report_that_lacks_a_part_is_seen(change, missing):
    assert gauntlet.lacking({**WHOLE, **change}) == missing


def test_a_failure_of_another_clause_or_one_that_did_not_run_catches_nothing():
    def failed(clause, got):
        return {"status": "failed", "extra_data": {**WHOLE, "clauses": [clause], "got": got}}
    tests = [failed("FC-1", "1200"), failed("FC-3", "not run: one failure is enough"), {"status": "passed"}]
    assert gauntlet.failures({"tests": tests}, "FC-3") == []
    assert gauntlet.failures({"tests": [*tests, failed("FC-3", "1200")]}, "FC-3") == [failed("FC-3", "1200")]


def test_a_name_that_there_is_none_of_is_wrong_usage():
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", "gauntlet.py"), "no_such_mistake"], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "no_such_mistake" in ended.stderr
