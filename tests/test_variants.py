"""The table of programs that differ as the page allows agrees with the reference, the stages and the page. `make variants` runs them."""

import ast
import builtins
import os
import subprocess
import sys

import pytest

from harness import ROOT
import gauntlet
import variants
from pages import CLAUSES
from variants import GROUPS, VARIANTS


def test_there_are_many_and_each_has_a_name_of_its_own():
    assert len(VARIANTS) >= 30
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert sum(map(len, GROUPS.values())) == len(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_each_fits_the_reference_compiles_and_names_a_clause_that_allows_it(variant):
    (text,) = variants.programs([variant]).values()
    names = {"__name__": "not to be run", **vars(builtins)}
    exec(compile(text, variant.program, "exec"), names)  # so everything that it builds on exists
    nodes = list(ast.walk(ast.parse(variant.new if not variant.old else "")))
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)} | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not {node.id for node in nodes if isinstance(node, ast.Name)} - bound - set(names)
    assert variant.clauses in [*CLAUSES, "free"] and set(variant.stages) <= set(variants.ALL)
    assert variant.thought.endswith(".") and "\n" not in variant.thought


@pytest.mark.parametrize("group", GROUPS)
def test_those_of_a_group_fit_into_one_program(group):
    for program, text in variants.programs(GROUPS[group]).items():
        compile(text, program, "exec")


def test_a_variant_that_no_longer_fits_is_named():
    with pytest.raises(gauntlet.NotOnce, match="two_upload_slots.*mend this variant"):
        variants.programs([next(variant for variant in VARIANTS if variant.name == "two_upload_slots")._replace(old="no such words")])


def test_a_program_that_loses_a_point_is_told_with_its_test(monkeypatch):
    failed = {"number": "5.1", "status": "failed", "extra_data": {"clauses": ["FC-1"], "got": "2a 00"}}
    monkeypatch.setattr(gauntlet, "grade", lambda number, *_: ({"score": 18, "extra_data": {"max_score": 19}, "tests": [failed]}, "its report"))
    verdict = variants.alone(VARIANTS[0])
    assert not verdict.caught and verdict.report.startswith("its report") and "5.1 ['FC-1']" in verdict.line
    monkeypatch.setattr(gauntlet, "grade", lambda number, *_: ({"score": 19, "extra_data": {"max_score": 19}, "tests": []}, ""))
    assert variants.alone(VARIANTS[0]).caught
    monkeypatch.setattr(gauntlet, "grade", lambda number, *_: ({"tests": []}, "it did not run"))
    assert not variants.alone(VARIANTS[0]).caught


def test_a_name_that_there_is_none_of_is_wrong_usage():
    command = [sys.executable, os.path.join(ROOT, "lab", "grader", "variants.py"), "no_such_difference"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "no_such_difference" in ended.stderr
