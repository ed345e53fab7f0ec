"""The lab's notes say what the programs do: every byte, command, excerpt, number and link in lab/*.md is checked here.

A fenced block's first line says how it is checked; an unchecked block is a failure.

    ```bytes request tracker      an annotated dump: its bytes are sent to a tracker of `abc`, or to a peer (PEER_FILE),
    ```bytes response tracker     and the answer, as rendered by lab/tools/explain.py, is compared with this dump
    ```excerpt peer.py read_frame lines of that function, or else of the whole file, in order; a line `…` leaves some out
    ```given                      the functions that a stage's functions call in other stages, each with its arguments and its purpose
    ```picture                    lines and words; every name() in it is a function of the programs
    ```console                    commands after `$`, run in a fresh copy of the repository; <n> stands for anything, and
                                  two spaces on its line for any number, because the width of columns varies
    ```pycon                      a Python session, run there with tests/ on the path

`python tests/test_notes.py` rewrites the dumps, from the bytes of their requests, after changes to explain.py or the programs, the
output of lab/simulate.py, after changes to the rules, and the lists of given functions. Then reread the prose about the figures.

In running text, each `span` must be found in a program, a file or the standard library, or be bytes that the
note or SPEC.md shows, or be true: `2 * 262144 = 524288`. Numbers must come from SPEC.md or from a checked block.

Reading order: a note - shape - clauses and links - tasks - what is given - excerpts - bytes - commands and sessions - words - broken notes - new dumps.
"""

import ast
import contextlib
import functools
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

import harness  # noqa: E402  (after the path)
import explain  # noqa: E402
import starter  # noqa: E402
from harness import ROOT, connect, framed, receive_body, start_peer, start_tracker  # noqa: E402
from pages import LAB, NOTES, SPEC, Note, clause_errors, estimate, is_command, link_errors, note, words  # noqa: E402
from stages import STAGES  # noqa: E402

SECTIONS = ["Why", "The bytes", "Predict, run, compare, explain", "Your task", "How it is tested", "Hints", "Questions", "Answers",
            "Not tested, and why it matters"]
EXPERIMENT_SECTIONS = ["Why", "The bounds", "The rules", "Predict, run, compare, explain", "On links", "Questions", "Answers",
                       "Not measured, and why it matters"]
WORDS = range(300, 651)        # before the questions, not counting blocks
WORDS_OF_THE_LONGEST = range(600, 901)  # stage 6, which takes a student four hours
EXPERIMENT_WORDS = range(500, 1251)
QUESTIONS = range(4, 7)
LURE = r"\b(tempt|look|seem|sound|natural|appealing|plausible|easy|would be right)"  # words by which an answer explains the appeal of a wrong one
TRACKER_FILE = b"abc"          # named a
PEER_FILE = bytes(2 * harness.CHUNK) + b"abc"  # three chunks, the last of them short
COMMAND_SECONDS = 150          # for one command of a console block; most take one second, the figure 40
LIBRARY = ("socket", "socketserver", "threading", "struct", "time", "hashlib", "random", "os")  # modules whose names a note may use


# The notes.


FUNCTIONS = {function for stage in STAGES for function in stage.functions}
EXPERIMENT = note("lab/8-distribution.md")  # not a stage for the grader: nothing is to be written
PAGES = [note("lab/README.md"), *NOTES, EXPERIMENT]
BY_NAME = pytest.mark.parametrize("page", NOTES, ids=lambda page: page.name)
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Shape.


def outline_errors(page, sections, length):
    """What is wrong with the order and the length of a page, its head and its questions."""
    errors = []
    if list(page.sections) != sections:
        errors.append(f"expected the sections {sections}, got {list(page.sections)}")
        return errors
    count = words(page.head + "".join(text for title, text in page.sections.items() if title not in sections[sections.index("Questions"):]))
    if count not in length:
        errors.append(f"expected {length[0]} to {length[-1]} words before the questions, got {count}")
    if not re.match(r"# Stage \d: .+\n\n\*\*About \d+ (minutes|hours)\*\*.*?\n\n> [^\n]+[.]\n", page.head, re.S) or page.head.count("\n> ") != 1:
        errors.append("expected a title, **About N minutes**, and a hook of one sentence on one line that begins with >")
    return errors + question_errors(page.sections["Questions"], page.sections["Answers"])


def shape_errors(page):
    """What is wrong with the shape of a note; if the outline is wrong, nothing else is checked."""
    errors = outline_errors(page, SECTIONS, WORDS_OF_THE_LONGEST if page.name == NOTES[6].name else WORDS)
    if list(page.sections) != SECTIONS:
        return errors
    hints = re.findall(r"<summary>(.+?)</summary>", page.sections["Hints"])
    if [hint.split()[0] for hint in hints] != ["A", "The", "Pseudo-code"]:
        errors.append(f"expected three hints, a question, the clause, pseudo-code; got {hints}")
    if page.sections["Hints"].count("<details>") != 3 or "```" in page.text.split("## Hints")[-1].split("## Questions")[0]:
        errors.append("expected hints that are folded, without code")
    return errors


def question_errors(questions, answers):
    """Faults of the numbered questions: some must have choices, and each an answer that says why a wrong one tempts."""
    errors = []
    asked = re.findall(r"^(\d)\. ", questions, re.M)
    told = re.findall(r"^(\d)\. (.+?)(?=^\d\. |\Z)", answers, re.M | re.S)
    if asked != [number for number, _ in told] or len(asked) not in QUESTIONS:
        errors.append(f"expected {QUESTIONS[0]} to {QUESTIONS[-1]} questions, each with its answer, got questions {asked} and answers {[number for number, _ in told]}")
    if questions.count("   - (a) ") < 2:
        errors.append("expected two or more questions with choices")
    if answers.count("<details>") != 1:
        errors.append("expected the answers to be folded")
    for number, answer in told:
        if not re.search(LURE, answer):
            errors.append(f"expected answer {number} to say why the wrong answer tempts")
    return errors


@BY_NAME
def test_a_note_has_the_agreed_sections_length_questions_and_hints(page):
    assert not shape_errors(page)


def test_the_experiment_has_its_sections_length_and_questions_and_is_run_several_times():
    assert not outline_errors(EXPERIMENT, EXPERIMENT_SECTIONS, EXPERIMENT_WORDS)
    assert len(EXPERIMENT.of("console")) >= 3 and "not graded" in EXPERIMENT.head


def test_there_is_a_note_for_each_stage_and_the_experiment_and_none_beside_them():
    assert [page.name for page in PAGES[1:]] == sorted(path.name for path in LAB.glob("[0-9]*-*.md"))
    assert EXPERIMENT.head.splitlines()[0] == f"# Stage {len(STAGES)}: the experiment"
    assert [page.head.splitlines()[0] for page in NOTES] == [f"# Stage {stage.number}: {stage.title}" for stage in STAGES]


def test_the_index_lists_the_stages_with_their_times():
    rows = re.findall(r"^\| (\d) \| \[([^\]]+)\]\(([^)]+)\) \| ([^|]+) \| ", PAGES[0].text, re.M)
    experiment = (str(len(STAGES)), "the experiment", EXPERIMENT.name, estimate(EXPERIMENT))
    assert rows == [(str(stage.number), stage.title, page.name, estimate(page)) for stage, page in zip(STAGES, NOTES)] + [experiment]


# Clauses and links.


@EVERY_PAGE
def test_clauses_and_links_are_there_and_quotations_are_literal(page):
    assert not clause_errors(page) + link_errors(page)


@BY_NAME
def test_a_note_quotes_the_clause_in_its_second_hint(page):
    second = page.sections["Hints"].split("<details>")[2]
    assert re.search(r"\*\*[A-Z]{2}-\d+\*\* “", second)


# Tasks.


@pytest.mark.parametrize("stage, page", list(zip(STAGES, NOTES)), ids=lambda value: getattr(value, "note", ""))
def test_the_task_names_the_functions_of_the_stage(stage, page):
    named = re.findall(r"^- `((?:peer|tracker)\.[\w.]+)`", page.sections["Your task"], re.M)
    assert named == list(stage.functions)
    assert f"tests in `{stage.tests}` · run `make stage-{stage.number} DIR=../mine`" in page.head, "the top of a note says how its tests are run"


# What is given: everything that the stage's functions call, except each other. A function written in another stage says in which.


FIELDS = {"contacts": "Contacts", "file": "Description", "link": "Link", "picker": "Picker", "server": "Server", "store": "Store",
          "swarm": "Swarm", "uploads": "Uploads"}  # attribute of our objects -> its class
STAGE_OF = {name: stage.number for stage in STAGES for name in starter.functions_of(stage)}


def called_by(name):
    """The functions of the two programs that a function names, as far as its text shows where they belong."""
    module, _, rest = name.partition(".")
    found = set()
    for node in ast.walk(starter.all_functions()[name]):
        if isinstance(node, ast.Name):
            found |= {f"{module}.{node.id}", f"{module}.{node.id}.__init__"}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "peer":
            found |= {f"peer.{node.attr}", f"peer.{node.attr}.__init__"}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in ("self", "cls"):
            found.add(f"{module}.{rest.partition('.')[0]}.{node.attr}")
        elif isinstance(node, ast.Attribute) and getattr(node.value, "attr", None) in FIELDS:
            found |= {f"{program}.{FIELDS[node.value.attr]}.{node.attr}" for program in starter.PROGRAMS}
    return found & set(starter.all_functions())


def signature(name):
    """How a function is called: `peer.Contacts.add(address)`."""
    arguments = ast.unparse(starter.all_functions()[name].args)
    return f"{name.removesuffix('.__init__')}({arguments.removeprefix('self').removeprefix('cls').removeprefix(', ')})"


def given(stage):
    """{function given to a stage: how it is called}, in the order of the programs."""
    needed = set().union(*map(called_by, starter.functions_of(stage)))
    return {name: signature(name) for name in starter.all_functions() if name in needed and STAGE_OF.get(name) != stage.number}


def told_of(page):
    """{function: (how it is called, what is said about it)} from a note's list."""
    rows = [re.fullmatch(r"([\w.]+)(\(.*?\)) +(\S.*)", line) for _, content in page.of("given") for line in content.splitlines()]
    names = {signature(name).partition("(")[0]: name for name in starter.all_functions()}
    return {names.get(row[1], row[1]): (row[1] + row[2], row[3]) for row in rows if row}


def given_errors(stage, page):
    told = told_of(page)
    errors = [f"expected {how} in the list of what is given" for name, how in given(stage).items() if told.get(name, ("",))[0] != how]
    errors += [f"{name} is not called by what is to be written" for name in told if name not in given(stage)]
    return errors + [f"expected {name} to say that it is of stage {STAGE_OF[name]}" for name in told
                     if name in STAGE_OF and f"(stage {STAGE_OF[name]})" not in told[name][1]]


def list_of_given(stage, page):
    """The current list; what is said about a function stays, and a new one gets its docstring."""
    rows, told = [], told_of(page)
    for name, how in given(stage).items():
        docstring = (ast.get_docstring(starter.all_functions()[name]) or "what its name says").splitlines()[0]
        written = f" (stage {STAGE_OF[name]})" if name in STAGE_OF else ""
        rows.append((how, told[name][1] if name in told else re.sub(r" \[.*|[.;:]$", "", docstring) + written))
    width = max(len(how) for how, _ in rows)
    return "".join(f"{how:{width}}  {what}\n" for how, what in rows)


@pytest.mark.parametrize("stage, page", list(zip(STAGES, NOTES)), ids=lambda value: getattr(value, "note", ""))
def test_a_note_lists_what_is_given_as_it_is_called(stage, page):
    assert not given_errors(stage, page)


def test_a_list_of_what_is_given_that_is_wrong_is_found():
    stage, page = STAGES[2], NOTES[2]
    (_, content), = page.of("given")
    for old, new, complaint in [("peer.bad(code, reason)", "peer.bad(reason)", "expected peer.bad(code, reason)"),
                                ("peer.bad(code, reason)", "peer.worse(code, reason)", "peer.worse is not called"),
                                ("(stage 1)", "", "is of stage 1")]:
        assert complaint in "; ".join(given_errors(stage, Note(page.name, page.text.replace(content, content.replace(old, new, 1)))))


# The picture and the steps of a long stage.


def picture_errors(page):
    """Names in pictures that are not functions, or whose star is wrong: exactly the stage's own functions have one."""
    stage = next(stage for stage in STAGES if stage.note.endswith(page.name))
    errors = []
    for _, content in page.of("picture"):
        for name, star in re.findall(r"([\w.]+)\(\)(\*?)", content):
            found = {f"peer.{name}", f"peer.Peer.{name}"} & set(starter.all_functions())
            if not found or bool(star) != any(whole in starter.functions_of(stage) for whole in found):
                errors.append(f"{name}() with{'' if star else 'out'} a star")
    return errors


def steps(page):
    """[(the functions of a step, the kind of its block, its content)] of a note that gives the order of work."""
    found = re.findall(r"^\d\. (`peer[^:\n]*): [^\n]*\n\n```(\w+)\n(.*?)^```$", page.text, re.M | re.S)
    return [(re.findall(r"`(peer[\w.]+)`", named), kind, content) for named, kind, content in found]


def test_the_picture_of_a_neighbors_thread_names_functions_and_stars_those_of_the_stage():
    page = NOTES[6]
    assert page.of("picture") and not picture_errors(page)
    for old, new in (("goes_on()", "goes_off()"), ("keep()*", "keep()"), ("hand_over()", "hand_over()*")):
        assert picture_errors(Note(page.name, page.text.replace(old, new)))


def test_the_steps_of_the_longest_stage_have_each_of_its_functions_once():
    assert sorted(name for names, _, _ in steps(NOTES[6]) for name in names) == sorted(starter.functions_of(STAGES[6]))


def with_functions(folder, names):
    """The programs in a folder, with only these functions and those of stages 0 to 5 written."""
    written = {*names, *(name for stage in STAGES[:6] for name in starter.functions_of(stage))}
    missing = {name: stage for stage in STAGES for name in starter.functions_of(stage) if name not in written}
    for module in starter.PROGRAMS:
        text = starter.blanked(pathlib.Path(ROOT, f"{module}.py").read_text(), module, missing)
        (folder / f"{module}.py").write_text(starter.with_scaffold(text) if module == "peer" else text)
    shutil.copy(pathlib.Path(ROOT, "messages_pb2.py"), folder)
    return folder


def step_works(kind, content, folder):
    """Whether a step shows what the note says, with the programs of a folder."""
    if kind == "pycon":
        return session(content, folder)[0]
    ((command, expected),) = commands(content)
    return matches(expected, run(f"{command} DIR={folder}", ROOT))


@pytest.mark.parametrize("number", [pytest.param(at, marks=[pytest.mark.long] if kind == "console" else [])
                                    for at, (_, kind, _) in enumerate(steps(NOTES[6]))])
def test_each_step_works_with_what_stands_above_it_and_not_without_its_functions(number, tmp_path):
    names, kind, content = steps(NOTES[6])[number]
    before = [name for names, _, _ in steps(NOTES[6])[:number] for name in names]
    for name, functions in (("without", before), ("with", before + names)):
        (tmp_path / name).mkdir()
        assert step_works(kind, content, with_functions(tmp_path / name, functions)) == (name == "with"), name


# Excerpts.


@functools.cache
def parsed(path):
    return ast.parse(pathlib.Path(ROOT, path).read_text())


def definition(path, name):
    """The node of a function or a class, named as in Python: `Server.make_room`."""
    node = parsed(path)
    for part in name.split("."):
        node = next(child for child in node.body if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name == part)
    return node


def source_of(path, name=""):
    """The source of a function or a class; of the whole file without a name."""
    text = pathlib.Path(ROOT, path).read_text()
    node = definition(path, name) if name else None
    return "\n".join(text.splitlines()[node.lineno - 1:node.end_lineno]) if node else text


def is_excerpt(content, source):
    """Whether the lines are consecutive in the source, whatever the indentation; a line `…` leaves some out."""
    there = [line.strip() for line in source.splitlines()]
    at = 0
    for run in re.split(r"^\s*…\n", content, flags=re.M):
        wanted = [line.strip() for line in run.splitlines()]
        found = next((i for i in range(at, len(there) - len(wanted) + 1) if there[i:i + len(wanted)] == wanted), None)
        if found is None:
            return False
        at = found + len(wanted)
    return True


@EVERY_PAGE
def test_excerpts_are_what_the_source_says(page):
    for (_, *place), content in page.of("excerpt"):
        assert is_excerpt(content, source_of(*place)), f"{' '.join(place)} no longer says\n{content}"


def bodies():
    """The lines that students write: the bodies of the stages' functions, without docstrings and lines of every program."""
    lines = set()
    for function in FUNCTIONS:
        module, _, name = function.partition(".")
        node = definition(module + ".py", name)
        for part in node.body[bool(ast.get_docstring(node)):]:
            lines |= {line.strip() for line in ast.unparse(part).splitlines() if len(line.strip()) > 20}
    return lines


def test_no_page_gives_a_line_away_that_is_to_be_written():
    secret = bodies()
    assert len(secret) > 50
    for page in PAGES:
        shown = {line.strip() for words, content in page.blocks for line in content.splitlines() if words[0] == "excerpt"}
        spans = set(re.findall(r"`([^`\n]+)`", page.prose))
        assert not secret & (shown | spans), page.name


# Bytes. The requests that a note shows are sent to a real program, over one connection, and the answers are compared.


def bytes_of(dump):
    """The bytes of a dump as lab/tools/explain.py prints it: offset, two spaces, hex, two spaces."""
    rows = re.findall(r"^ *(\d+)  ([0-9a-f]{2}(?: [0-9a-f]{2})*)(?:  .*)?$", dump, re.M)
    data = bytes.fromhex(" ".join(digits for _, digits in rows))
    return data


def rendered(frame, kind):
    return "\n".join(explain.render(frame, kind)) + "\n"


def start_role(name, folder, ending):
    """The port or address of a tracker of `abc`, seeding nothing, or of a peer that holds PEER_FILE; ending(program) is called for each."""
    data = TRACKER_FILE if name == "tracker" else PEER_FILE
    (folder / "a").write_bytes(data)
    tracker = ending(start_tracker(folder / "a", extra=["--no-seed"]))
    if name == "tracker":
        return tracker.port
    (folder / "out").write_bytes(data)
    ending(start_peer(tracker.port, folder / "out"))
    address = harness.eventually(lambda: harness.ask(tracker.port, harness.peer_list()).peer_list.addresses, what="the peer")[0]
    harness.eventually(lambda: harness.ask(address, harness.chunks_query()).chunks_query.chunk_ids, what="its chunks")
    return address


@pytest.fixture
def role(ending, tmp_path):
    return lambda name: start_role(name, tmp_path, ending)


def exchange_errors(blocks, sock):
    """What differs when the requests of a note are sent, one after another, to the program at the other end."""
    errors = []
    for ((_, kind, _), asked), ((_, answer_kind, _), told) in zip(blocks[::2], blocks[1::2]):
        frame = bytes_of(asked)
        errors += [] if (kind, answer_kind) == ("request", "response") else [f"expected a request and its response, got {kind} and {answer_kind}"]
        errors += [] if rendered(frame, "request") == asked else [f"the request is now shown as\n{rendered(frame, 'request')}"]
        sock.sendall(frame)
        got = rendered(framed(receive_body(sock)), "response")
        errors += [] if got == told else [f"the answer is now\n{got}"]
    return errors + (["expected a response to each request"] if len(blocks) % 2 else [])


@BY_NAME
def test_the_exchanges_shown_are_those_of_the_programs(page, role):
    assert page.of("bytes"), "a note shows a real exchange"
    for name in dict.fromkeys(words[2] for words, _ in page.of("bytes")):
        with connect(role(name)) as sock:
            assert not exchange_errors([(words, content) for words, content in page.of("bytes") if words[2] == name], sock)


# Commands and sessions, in a copy of the repository.


@pytest.fixture
def copy(tmp_path):
    """A fresh folder like a clone, with this interpreter in its .venv."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.part"), symlinks=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / ".venv" / "ready").touch()
    return folder


def line_pattern(line):
    """The regular expression of one line of output: `<n>` stands for a run without spaces, and two spaces beside it for any number."""
    if line.strip() == "...":
        return r"(?:.*\n)*?"
    pattern = r"\S+".join(map(re.escape, line.rstrip().split("<n>"))) + r"[ \t]*\n"
    return re.sub(r"(?:\\ ){2,}", " +", pattern) if "<n>" in line else pattern


def matches(expected, got):
    """Whether the output is as shown; a line `...` stands for any lines."""
    pattern = "".join(map(line_pattern, expected.rstrip().splitlines()))
    return bool(re.fullmatch(pattern, got.rstrip() + "\n" if got.strip() else ""))


def commands(content):
    """[(command, expected output)] of a console block."""
    return [(command, output) for command, output in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", content, re.M)]


def run(command, folder):
    """What a command prints, stdout and stderr together, without the variables that make would pass on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST", "TRACKER", "PEER"))}
    environment["PATH"] = f"{folder}/.venv/bin{os.pathsep}{environment['PATH']}"
    ended = subprocess.run(command, shell=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, errors="replace", timeout=COMMAND_SECONDS)
    return ended.stdout


def cannot_be_measured(output):
    """Whether it says that links cannot be made here, or that the machine is too busy for them, which is acceptable."""
    return bool(re.fullmatch(r"(?:.*\n)*[\w.]+: (?:links cannot be made here|no figure, the wire was too slow): .*\n", output))


@pytest.mark.timeout(4 * COMMAND_SECONDS)
@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.long] if page in PAGES[-3:] else []) for page in PAGES], ids=lambda page: page.name)
def test_commands_print_what_is_shown(page, copy):
    for _, content in page.of("console"):
        for command, expected in commands(content):
            got = run(command, copy)
            if "--links" in command and cannot_be_measured(got):
                continue
            assert matches(expected, got), f"$ {command}\n{got}\n--- is not\n{expected}"


DOCTEST = """
import doctest, sys
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
lines = doctest.DocTestParser().get_doctest(sys.stdin.read(), {"__name__": "__main__"}, "session", None, 0)
try:
    runner.run(lines, clear_globs=False)
finally:
    for thing in lines.globs.values():
        if hasattr(thing, "process"):
            thing.stop()
sys.exit(bool(runner.failures))
"""


def session(content, folder):
    """(whether it went as shown, the output) of a Python session."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder}/tests"}
    for name in ("TRACKER", "PEER"):
        environment.pop(name, None)
    ended = subprocess.run([sys.executable, "-c", DOCTEST], input=content, cwd=folder, env=environment, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, timeout=COMMAND_SECONDS)
    return ended.returncode == 0, ended.stdout


@EVERY_PAGE
def test_sessions_go_as_shown(page, copy):
    for _, content in page.of("pycon"):
        went, said = session(content, copy)
        assert went, said


CHECKED = ("bytes", "excerpt", "given", "picture", "console", "pycon")


def block_errors(page):
    """Blocks that are not checked."""
    errors = [f"expected one of {CHECKED}, got ```{' '.join(words)}" for words, _ in page.blocks if not words or words[0] not in CHECKED]
    errors += [] if page.text.count("```") == 2 * len(page.blocks) else ["a fence is not closed, or not at the beginning of a line"]
    errors += [f"expected a command after $ in {content!r}" for _, content in page.of("console") if not content.startswith("$ ")]
    return errors + [f"expected >>> in {content!r}" for _, content in page.of("pycon") if not content.startswith(">>> ")]


@EVERY_PAGE
def test_there_is_no_block_that_is_not_checked(page):
    assert not block_errors(page)


# Words: spans between backticks, and numbers.


PROGRAMS = "".join(pathlib.Path(ROOT, path).read_text() for path in
                   ["peer.py", "tracker.py", "messages.proto", "lab/SPEC.md", "tests/harness.py", "lab/simulate.py", "lab/distribution.py"])


def is_in_library(name):
    """Whether it is a name of the standard library, such as `socket.recv` or `threading.Timer`."""
    name = name.split("(")[0]
    for module in map(importlib.import_module, LIBRARY):
        for thing in (module, getattr(module, "socket", None), getattr(module, "Timer", None)):
            value = thing
            for part in name.removeprefix(module.__name__ + ".").split("."):
                value = getattr(value, part, None)
            if value is not None:
                return True
    return False


def is_true(span):
    """Whether it is true arithmetic: `2 * 262144 = 524288`, rounded to the digits written."""
    if not re.fullmatch(r"[\d\s.+*/()-]+ = [\d.]+", span):
        return False
    left, right = span.split("=")
    value, told = eval(left), right.strip()
    return abs(value - float(told)) <= 0.5 * 10 ** -len(told.partition(".")[2]) + 1e-9


def known_span(span, page):
    shown = [content for _, content in page.blocks + PAGES[0].blocks]
    if re.fullmatch(r"[0-9a-f]{2}( [0-9a-f]{2})*", span):
        shown += [bytes_of(content).hex(" ") for _, content in page.of("bytes")] + [SPEC.replace(" |", "")]
        return any(span in text for text in shown)
    return span in PROGRAMS or span in FUNCTIONS or span in starter.all_functions() or is_true(span) or is_command(span) or is_in_library(span) or \
        any(pathlib.Path(ROOT).glob(span.strip("/"))) or any(span in content for content in shown)


def span_errors(page):
    return [f"`{span}` is in no program, file or block" for span in re.findall(r"`([^`\n]+)`", page.prose) if not known_span(span, page)]


UNITS = {"seconds": "s", "second": "s", "byte": "bytes"}


def numbers(text):
    """The numbers of a text, without commas between thousands, each with the unit that follows it or ""."""
    found = re.findall(r"(?<![\w.-])(\d[\d,]*(?:\.\d+)?)(?: (s|seconds?|bytes?|KiB|MiB|ms)\b)?", text)
    return {(number.replace(",", "").rstrip("."), UNITS.get(unit, unit)) for number, unit in found}


def number_errors(page):
    """Numbers that are neither in SPEC.md, with their units, nor in a block of the page, without.

    The time in the head, numbers of questions and stages, tables, and the choices of a question, most of them wrong, are exempt.
    """
    prose = re.sub(r"^\| .*\|$|^   - \([a-e]\) .*$|^\d\. ", "", page.prose, flags=re.M)
    prose = re.sub(r"`[^`\n]+`|\]\([^)]*\)|\*\*About [^*]+\*\*|\b[A-Z]{2}-\d+|[Ss]tages? \d|SHA-256|UTF-8", " ", prose)
    shown = {number for number, _ in numbers("".join(content for _, content in page.blocks))}
    return [f"{number} {unit} is not in SPEC.md and in no block" for number, unit in sorted(numbers(prose) - numbers(SPEC)) if number not in shown]


@EVERY_PAGE
def test_spans_and_numbers_of_the_prose_are_those_of_the_programs(page):
    assert not span_errors(page) + number_errors(page)


@EVERY_PAGE
def test_the_tone(page):
    assert "!" not in re.sub(r"`[^`\n]+`|<!--.*?-->", "", page.prose)
    assert max(map(len, page.text.splitlines())) <= 1000


# Broken notes: each check finds its fault. The text of a good note is broken in one place.


GOOD = NOTES[5]


def broken(old, new):
    """The note of stage 5 with one change."""
    assert old in GOOD.text, old
    return Note(GOOD.name, GOOD.text.replace(old, new, 1))


@pytest.mark.parametrize("check, old, new, complaint", [
    (shape_errors, "## Why", "## Reasons", "expected the sections"),
    (shape_errors, "## Hints", "word " * 300 + "\n## Hints", "words before the questions"),
    (shape_errors, "\n> ", "\n", "a hook"),
    (shape_errors, "**About ", "**Perhaps ", "About N minutes"),
    (shape_errors, "<summary>The clause", "<summary>Clause", "three hints"),
    (shape_errors, "1. A peer takes", "A peer takes", "each with its answer"),
    (shape_errors, "   - (a) ", "   - ", "with choices"),
    (shape_errors, "Option (a) seems right because every", "Option (a) is wrong: every", "wrong answer tempts"),
    (clause_errors, "FC-2", "FC-99", "FC-99 is no clause"),
    (clause_errors, "MUST be answered like", "SHOULD be answered like", "does not say"),
    (span_errors, "`self.events`", "`os.send_file`", "os.send_file"),
    (span_errors, "`2a 00`", "`2a 77`", "2a 77"),
    (span_errors, "`make bench`", "`make benches`", "make benches"),
    (span_errors, "`False`", "`3 * 4 = 13`", "3 * 4 = 13"),
    (number_errors, "has a length of 262,148", "has a length of 262,149", "262149"),
])
def test_a_note_that_is_wrong_in_one_place_is_found(check, old, new, complaint):
    assert not check(GOOD)
    assert [error for error in check(broken(old, new)) if complaint in error]


def test_links_to_what_is_not_there_are_found():
    assert not link_errors(Note("x.md", "[a](SPEC.md) [b](SPEC.md#fc-fetch-chunk) [c](../peer.py) [d](0-wire.md#why)"))
    for target in ("SPEC.txt", "SPEC.md#fetch", "../peers.py", "https://example.org/"):
        assert link_errors(Note("x.md", f"[a]({target})")), target


def test_excerpts_that_have_gone_stale_are_found():
    source = "def f():\n    a = 1\n    b = 2\n    c = 3\n"
    assert is_excerpt("a = 1\nb = 2\n", source) and is_excerpt("def f():\n…\nc = 3\n", source)
    assert not is_excerpt("a = 2\n", source) and not is_excerpt("a = 1\nc = 3\n", source) and not is_excerpt("c = 3\n…\na = 1\n", source)


@pytest.mark.parametrize("old, new", [("262,136 more", "262,135 more"), ("61 62 63", "61 62 64"), ("… ", "..."),
                                      ("80 80 20                       524,288", "80 80 10                       524,288")])
def test_bytes_that_are_not_those_of_the_programs_are_found(role, old, new):
    with connect(role("peer")) as sock:
        assert exchange_errors(broken(old, new).of("bytes"), sock)


def test_output_that_is_not_as_shown_is_found():
    assert matches("a <n> b\n...\nz\n", "a 17 b\nx\ny\nz\n") and matches("", "") and matches("...\nz\n", "z\n")
    assert matches("a  <n> %  b\n", "a      7 % b\n") and not matches("a  b\n", "a   b\n") and not matches("a  <n>\n", "a7\n")
    assert not matches("a <n> b\n", "a b\n") and not matches("a\n", "a\nb\n") and not matches("", "error\n") and not matches("a\n...\n", "b\n")
    assert commands("$ one\nout\n$ two\n") == [("one", "out\n"), ("two", "")]


def test_only_links_that_cannot_be_made_or_measured_are_passed_over():
    assert cannot_be_measured("links.py: links cannot be made here: no root\n") and cannot_be_measured("x\na.py: no figure, the wire was too slow: 3 %\n")
    assert not cannot_be_measured("") and not cannot_be_measured("a.py: expected a number\n") and not cannot_be_measured("no figure\n1 s\n")


def test_a_session_that_goes_otherwise_is_found_and_its_programs_ended(copy):
    went, said = session(">>> from harness import *\n>>> tracker = start_tracker('README.md')\n>>> print(tracker.pid)\n0\n", copy)
    assert not went
    pid = int(re.search(r"Got:\n +(\d+)", said)[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_blocks_without_a_check_and_open_fences_are_found():
    assert block_errors(Note("x.md", "```\nwords\n```\n")) and block_errors(Note("x.md", "```text\nwords\n```\n"))
    assert block_errors(Note("x.md", "```console\n$ ls\n")) and block_errors(Note("x.md", "```console\nls\n```\n"))
    assert not block_errors(Note("x.md", "```console\n$ ls\n```\n"))


# New dumps, for when explain.py or an answer has changed on purpose.


def with_new_dumps(page, sock, name):
    """The text of a note with the requests to `name` and their answers brought up to date."""
    def block(match):
        if match[1] == "request":
            frame = bytes_of(match[2])
            sock.sendall(frame)
        else:
            frame = framed(receive_body(sock))
        return f"```bytes {match[1]} {name}\n{rendered(frame, match[1])}```"
    return re.sub(rf"^```bytes (request|response) {name}\n(.*?)^```$", block, page.text, flags=re.M | re.S)


def with_new_simulations(page, folder):
    """The text of a note with the output of lab/simulate.py brought up to date."""
    def block(match):
        return "```console\n" + "".join(f"$ {command}\n" + (run(command, folder) if "lab/simulate.py" in command else output)
                                        for command, output in commands(match[1])) + "```"
    return re.sub(r"^```console\n(.*?)^```$", block, page.text, flags=re.M | re.S)


def write_new_simulations():
    pathlib.Path(ROOT, "lab", EXPERIMENT.name).write_text(with_new_simulations(EXPERIMENT, ROOT))


def write_new_dumps():
    for stage in STAGES:
        for name in ("tracker", "peer"):
            with contextlib.ExitStack() as stack:
                page, folder = note(stage.note), pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                if any(words[2] == name for words, _ in page.of("bytes")):
                    where = start_role(name, folder, lambda program: stack.callback(program.stop) and program)
                    text = with_new_dumps(page, stack.enter_context(connect(where)), name)
                    pathlib.Path(ROOT, stage.note).write_text(text)


def write_new_lists():
    for stage in STAGES:
        page = note(stage.note)
        (_, content), = page.of("given")
        pathlib.Path(ROOT, stage.note).write_text(page.text.replace(f"```given\n{content}", f"```given\n{list_of_given(stage, page)}"))


if __name__ == "__main__":
    write_new_lists()
    write_new_dumps()
    write_new_simulations()
