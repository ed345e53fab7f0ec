"""Reading the project's pages (SPEC.md, the notes of the lab, the page for instructors, the Makefile), and the marks of its tests.

Tests are read with ast, whichever of them are selected. A note is a page with sections and blocks; test_notes.py says how notes are checked.
"""

import ast
import functools
import html
import pathlib
import re

from harness import ROOT
from stages import STAGES

LAB = pathlib.Path(ROOT, "lab")
SPEC = (LAB / "SPEC.md").read_text()
CLAUSES = dict(re.findall(r"^\*\*([A-Z]+-\d+)\*\* (.+)$", SPEC, re.M))  # "WF-1" -> its text
MAKEFILE = pathlib.Path(ROOT, "Makefile").read_text()


class Note:
    """One page: its text, the sections [(title, text)], the blocks [(words of the first line, content)], and the prose without them."""

    def __init__(self, name, text):
        self.name = name
        self.text = text
        self.blocks = [(info.split(), content) for info, content in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)]
        self.prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        parts = re.split(r"^## (.+)$", self.prose, flags=re.M)
        self.head = parts[0]
        self.sections = dict(zip(parts[1::2], parts[2::2]))

    def of(self, *kinds):
        """The blocks of these kinds, as (words, content)."""
        return [(words, content) for words, content in self.blocks if words and words[0] in kinds]


def note(path):
    return Note(pathlib.Path(path).name, pathlib.Path(ROOT, path).read_text())


NOTES = [note(stage.note) for stage in STAGES]


def plain(text):
    """Markdown without link targets and tags."""
    return html.unescape(re.sub(r"</?\w+>", " ", re.sub(r"\]\([^)]*\)", "]", text)))


def words(text):
    return len(re.findall(r"[\w'’]+(?:[-.,:/][\w'’]+)*", plain(text)))


def estimate(page):
    """The time that a note takes, according to its head."""
    return re.search(r"\*\*About (\d+ (?:minutes|hours))\*\*", page.head)[1]


def clause_errors(page):
    """Clauses that are not in SPEC.md, and quotations that are not literal. A quotation may leave out words, marked by …"""
    errors = [f"{name} is no clause" for name in re.findall(r"\b([A-Z]{2}-\d+)\b", page.text) if name not in CLAUSES and name != "UTF-8"]
    for name, quoted in re.findall(r"\*\*([A-Z]{2}-\d+)\*\* “(.+?)”", page.prose, re.S):
        pieces = [re.sub(r"\s+", " ", piece).strip() for piece in quoted.split("…")]
        pattern = ".*".join(map(re.escape, pieces))
        if name in CLAUSES and not re.search(pattern, CLAUSES[name]):
            errors.append(f"{name} does not say “{quoted}” but: {CLAUSES[name]}")
    return errors


def anchors(path):
    """The anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", pathlib.Path(path).read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_errors(page):
    errors = []
    for target in re.findall(r"\]\(([^)]+)\)", page.prose):
        path, _, anchor = target.partition("#")
        path = (LAB / path).resolve() if path else LAB / page.name
        if "://" in target or not path.exists() or anchor and anchor not in anchors(path):
            errors.append(f"nothing is at {target}")
    return errors


def is_command(span):
    """Whether this is a target of the Makefile, with variables that the Makefile knows."""
    match = re.fullmatch(r"make ([a-z]+)(-[0-7])?(?: ([A-Z]+)=\S+)?", span)
    return bool(match) and re.search(rf"^{match[1]}{'-%' if match[2] else ''}:", MAKEFILE, re.M) is not None and \
        (match[3] is None or f"$({match[3]})" in MAKEFILE or f'"$${match[3]}"' in MAKEFILE)


def marks(function):
    """The (name, values) of the spec and fault marks of a test function, as ast shows them."""
    found = []
    for decorator in function.decorator_list:
        match = re.fullmatch(r"pytest\.mark\.(spec|fault)\((.*)\)", ast.unparse(decorator))
        if match:
            found.append((match[1], ast.literal_eval(f"[{match[2]}]")))
    return found


def functions_of(source):
    """The test functions of a source, including those in classes."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@functools.cache
def all_tests(pattern="test_*.py"):
    """Every (file name, test function) in tests/; wire_tests.py counts for each file that runs it."""
    found = []
    for path in sorted(pathlib.Path(ROOT, "tests").glob(pattern)):
        sources = [(path.name, path.read_text())]
        if re.search(r"^from wire_tests import \*", sources[0][1], re.M):
            sources.append(("wire_tests.py", (path.parent / "wire_tests.py").read_text()))
        found += [(name, function) for name, source in sources for function in functions_of(source)]
    return found
