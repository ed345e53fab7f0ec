"""The repository keeps its own rules: sizes of the programs, which files import which, and pages name only what exists.

Nothing is run here. Reading order: sizes - imports - commands and files - the list of faults.
"""

import ast
import functools
import pathlib
import re

import pytest

from harness import ROOT
from pages import CLAUSES, LAB, MAKEFILE, all_tests, anchors, marks

TESTS = pathlib.Path(ROOT, "tests")
PROGRAMS = ["peer.py", "tracker.py"]

# The limits. They may only be lowered.
LINES = {"peer.py": 1850, "tracker.py": 338}
LONGEST_FUNCTION = 25                    # lines, with its docstring
COLUMNS = 100
PART_ONE = 1000                          # lines of peer.py before its second part


# Sizes.


def lines_of(name):
    return pathlib.Path(ROOT, name).read_text().splitlines()


def functions_in(source):
    """[(lines, name)] of all functions; several may have the same name."""
    return [(node.end_lineno - node.lineno + 1, node.name) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_stays_short(name):
    assert len(lines_of(name)) <= LINES[name]


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_line_is_wide(name):
    wide = [number for number, line in enumerate(lines_of(name), start=1) if len(line) > COLUMNS]
    assert not wide, f"lines {wide} of {name} have more than {COLUMNS} columns"


def test_part_one_is_read_in_an_afternoon():
    (begins,) = [number for number, line in enumerate(lines_of("peer.py")) if line.startswith("# PART TWO")]
    assert begins <= PART_ONE


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_function_is_long(name):
    length, longest = max(functions_in("\n".join(lines_of(name))))
    assert length <= LONGEST_FUNCTION, longest


# Imports.


def imports_of(source):
    """The names of the modules that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_nothing_imports_a_test_file():
    tests = {path.stem for path in TESTS.glob("test_*.py")}
    for path in [*TESTS.glob("*.py"), *pathlib.Path(ROOT, "lab").rglob("*.py")]:
        assert not tests & imports_of(path.read_text()), f"{path}: what two test files share goes into a module that is none"


# Commands and files.


PAGES = [pathlib.Path(ROOT, "README.md"), *sorted(pathlib.Path(ROOT, "lab").glob("*.md")), *sorted(TESTS.glob("*.md"))]


def code_of(text):
    """The code blocks and spans of a page: only in these is `make` a command."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```$", text, re.M | re.S)
    return [line.strip() for block in blocks for line in block.splitlines()] + [found[0] or found[1] for found in re.findall(r"^    (.+)$|`([^`\n]+)`", text, re.M)]


def missing_in(text):
    """The make targets and the paths in this repository that a text names but that do not exist."""
    targets = [match[1] for code in code_of(text) if (match := re.match(r"(?:\$ )?make (?:-C \w+ )?([a-z][\w-]*)(?!\S)", code))]
    wrong = [f"make {target}" for target in targets if not re.search(rf"^{re.sub(r'-[0-9N]$', '-%', target)}:", MAKEFILE, re.M)]
    paths = re.findall(r"(?<![\w./-])((?:lab|tests|\.ci|\.github)/[\w./*-]*\w)", text)
    return wrong + [path for path in paths if not list(pathlib.Path(ROOT).glob(path))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_and_file_that_a_page_names_exists(page):
    known = {".github/workflows/classroom.yml"}  # a file in a classroom's repository
    assert not set(missing_in(page.read_text())) - known


@pytest.mark.parametrize("text", ["`make nothing`", "`make stage3`", "see `lab/nothing.py`", "[x](tests/test_nothing.py)"])
def test_what_does_not_exist_is_found(text):
    assert missing_in(text)
    assert not missing_in("`make test`, `make stage-3 DIR=x` and `make stage-N`, lab/grader/grade.py, tests/test_0_*.py")


# The list of faults.


FAULTS = (LAB / "FAULTS.md").read_text()


def rows_of(page):
    """{number of a fault: the text of its row}."""
    return {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)$", page, re.M)}


@functools.cache
def tried():
    """{number of a fault: the files with a test that is marked with it}."""
    found = {}
    for file, function in all_tests():
        for number in (number for name, values in marks(function) if name == "fault" for number in values):
            found.setdefault(number, set()).add(file)
    return found


def test_the_faults_are_numbered_without_a_gap():
    assert list(rows_of(FAULTS)) == list(range(1, len(rows_of(FAULTS)) + 1))


def test_every_fault_that_a_test_names_is_in_the_list():
    assert not set(tried()) - set(rows_of(FAULTS))


@pytest.mark.parametrize("number, row", rows_of(FAULTS).items(), ids=map(str, rows_of(FAULTS)))
def test_a_fault_names_its_clauses_and_the_files_with_its_tests(number, row):
    clauses = re.findall(r"\[([A-Z]+-\d+)\]\(SPEC\.md#([\w-]+)\)", row)
    assert clauses and all(clause in CLAUSES and anchor in anchors(LAB / "SPEC.md") for clause, anchor in clauses)
    assert set(re.findall(r"\(\.\./tests/(\w+\.py)\)", row)) == tried().get(number, set())
    assert ("no test yet" in row) == (number not in tried())


def test_the_slides_are_twelve_and_their_pictures_are_there():
    slides = (LAB / "instructor" / "slides.md").read_text().split("\n---\n")
    pictures = [name for slide in slides for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", slide)]
    assert len(slides) == 12 and all("\n# " in slide for slide in slides)
    assert len(pictures) >= 2 and all((LAB / "instructor" / name).read_text().startswith("<svg") for name in pictures)
