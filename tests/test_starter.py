"""The starter: it agrees with lab/grader/stages.py, it shows no solution, and it turns green stage by stage.

Reading order: names - text - the command - the stages, in runs of pytest of their own.
"""

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import ROOT
import stages
import starter

pytestmark = pytest.mark.ours
STAGES = {stage.number: stage for stage in stages.STAGES}


def read(*parts):
    with open(os.path.join(*map(str, parts)), encoding="utf-8") as text:
        return text.read()


# Names.


def test_stages_are_numbered_from_0_to_7_and_each_has_a_note_tests_and_functions():
    assert list(STAGES) == list(range(8))
    for stage in stages.STAGES:
        assert re.fullmatch(rf"lab/{stage.number}-[a-z-]+\.md", stage.note)
        assert stages.test_files(stage) and starter.functions_of(stage)


def test_every_function_that_is_listed_exists_and_belongs_to_one_stage():
    listed = [name for stage in stages.STAGES for name in starter.functions_of(stage)]
    assert len(listed) == len(set(listed)) > 40
    assert set(listed) <= set(starter.all_functions())
    assert stages.GIVEN <= set(starter.all_functions())


@pytest.mark.parametrize("name", ["peer.no_such", "peer.Peer.no_such", "tracker.read_frame", "Peer", "peer.Piker"])
def test_a_name_of_nothing_is_refused_and_said(name):
    with pytest.raises(LookupError, match=f"got {name}$"):
        starter.expanded([name], starter.all_functions())


def test_a_class_stands_for_its_methods_but_not_for_what_it_keeps_nor_for_what_is_given():
    methods = starter.expanded(["peer.Picker"], starter.all_functions())
    assert "peer.Picker.choose" in methods
    assert not {"peer.Picker", "peer.Picker.__init__", *stages.GIVEN} & set(methods)


# Text.


SAMPLE = '''import os

# before
@property
def f(a,
      b):  # the signature
    """What it does."""
    # a hint
    return a + b  # the sum

# between
class C:
    """A class."""
    def __init__(self):
        self.x = 1

    @staticmethod
    def m(a,
          b=1): # how

        # another hint
        @property
        def inner():
            return a
        return inner

    # after m


def given():
    return f(1, 2)
'''

BLANKED = '''import os

# before
@property
def f(a,
      b):  # the signature
    """What it does."""
    raise NotImplementedError("stage 3: lab/3-peer-list.md")

# between
class C:
    """A class."""
    def __init__(self):
        self.x = 1

    @staticmethod
    def m(a,
          b=1): # how
        raise NotImplementedError("stage 6: lab/6-swarm.md")

    # after m


def given():
    return f(1, 2)
'''


def test_only_bodies_are_taken_out():
    assert starter.blanked(SAMPLE, "x", {"x.f": STAGES[3], "x.C.m": STAGES[6]}) == BLANKED


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of an untouched starter."""
    folder = tmp_path_factory.mktemp("starter") / "p2p"
    starter.write(folder)
    return folder


def test_no_line_of_a_body_that_was_taken_out_is_in_the_starter(made):
    """Except for lines that also occur in a given function, such as `with self.lock:`."""
    for module in starter.PROGRAMS:
        lines = read(ROOT, f"{module}.py").splitlines()
        inside = set()
        for stage in stages.STAGES:
            for name in starter.functions_of(stage):
                if name.startswith(module + "."):
                    node = starter.all_functions()[name]
                    code = [inner for inner in node.body if not (hasattr(inner, "value") and isinstance(getattr(inner.value, "value", None), str))]
                    inside |= set(range(code[0].lineno, node.end_lineno + 1))
        outside = {line.strip() for number, line in enumerate(lines, 1) if number not in inside}
        secret = {lines[number - 1].strip() for number in inside} - outside
        assert len(secret) > 20
        assert not secret & {line.strip() for line in read(made, f"{module}.py").splitlines()}


def test_signatures_decorators_and_docstrings_stay(made):
    for module in starter.PROGRAMS:
        ours, theirs = (starter.functions_in(read(folder, f"{module}.py"), module) for folder in (ROOT, made))
        assert [name for name in theirs if name not in ours] == (["peer.not_written", "peer.not_answered"] if module == "peer" else [])
        for name, node in ours.items():
            assert starter.ast.dump(node.args) == starter.ast.dump(theirs[name].args)
            assert list(map(starter.ast.dump, node.decorator_list)) == list(map(starter.ast.dump, theirs[name].decorator_list))
            assert starter.ast.get_docstring(node) == starter.ast.get_docstring(theirs[name])


def test_with_all_functions_in_place_it_is_the_reference_and_the_scaffold():
    texts = starter.programs(written=STAGES)
    assert texts["tracker.py"] == read(ROOT, "tracker.py")
    assert texts["peer.py"].replace(starter.SCAFFOLD, "\n", 1) == read(ROOT, "peer.py")


def test_it_has_what_is_needed_to_run_and_says_what_to_do_first(made):
    assert sorted(os.listdir(made)) == ["README.md", "messages.proto", "messages_pb2.py", "peer.py", "requirements.txt", "tracker.py"]
    text = read(made, "README.md")
    assert f"make stage-0 DIR={made}" in text
    for stage in stages.STAGES:
        assert f"`{stage.note}`" in text and all(f"`{name}`" in text for name in starter.functions_of(stage))


def test_it_imports_and_each_function_that_is_not_written_names_its_note(made):
    code = "import peer, tracker\nfor name in {names!r}:\n    found = peer if name.startswith('peer.') else tracker\n" \
           "    for word in name.split('.')[1:]:\n        found = getattr(found, word)\n    found = getattr(found, '__func__', getattr(found, '__wrapped__', found))\n" \
           "    try:\n        found(*[None] * found.__code__.co_argcount)\n    except NotImplementedError as error:\n        print(error)\n"
    names = [name for stage in stages.STAGES for name in starter.functions_of(stage)]
    said = subprocess.run([sys.executable, "-c", code.replace("{names!r}", repr(names))], cwd=made, capture_output=True, text=True, timeout=20)
    assert said.stdout.splitlines() == [f"stage {stage.number}: {stage.note}" for stage in stages.STAGES for _ in starter.functions_of(stage)], said.stderr


# The command.


def run_starter(*arguments):
    return subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", "starter.py"), *map(str, arguments)], capture_output=True, text=True, timeout=20)


def test_the_command_makes_the_folder_also_in_one_that_is_empty(tmp_path, made):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "inner"):
        ended = run_starter(folder)
        assert (ended.returncode, ended.stderr) == (0, "") and f"make stage-0 DIR={folder}" in ended.stdout
        assert read(folder, "peer.py") == read(made, "peer.py")


def test_the_commands_that_it_names_can_be_typed_though_the_folder_has_a_space_in_its_name(tmp_path):
    ended = run_starter(tmp_path / "my lab")
    for said in (ended.stdout, read(tmp_path / "my lab", "README.md")):
        assert f"make stage-0 DIR={shlex.quote(str(tmp_path / 'my lab'))}" in said


def test_a_folder_that_holds_something_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "mine").write_text("a week of work")
    for folder in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "below"):
        ended = run_starter(folder)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and "expected a folder" in ended.stderr
    assert os.listdir(tmp_path) == ["mine"] and (tmp_path / "mine").read_text() == "a week of work"


@pytest.mark.parametrize("arguments", [[], [""], ["a", "b"], ["--help"]])
def test_without_a_folder_it_says_how_to_name_one(arguments):
    ended = run_starter(*arguments)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1) and "make starter DIR=" in ended.stderr


# The stages. Each run of pytest drives the programs of a folder, like any implementation.


def run_stage(folder, number, *extra):
    """Run the tests of a stage, except those for our programs only, on the programs in a folder."""
    python = shlex.quote(sys.executable)
    environment = {**os.environ, "TRACKER": f"{python} {folder}/tracker.py {{file}} --port {{port}} --expire {{expire}}", "PEER": f"{python} {folder}/peer.py {{tracker}} {{out}}"}
    files = [os.path.join(ROOT, name) for name in stages.test_files(STAGES[number])]
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "not ours and not slow", "--tb=short", f"--basetemp={folder}-{number}", *extra, *files],
                          cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)


def in_parallel(run, numbers):
    """{number: run(number)}; more at a time than there are cores, because tests mostly wait."""
    with ThreadPoolExecutor(1 + (os.cpu_count() or 1)) as pool:
        return dict(zip(numbers, pool.map(run, numbers)))


def fails_cleanly(ended, number, stage):
    """Check that a run of stage `number` failed at a function of `stage`, and that one line in the report says so."""
    assert ended.returncode == 1, f"stage {number} does not fail:\n{ended.stdout}"
    assert f"NotImplementedError: stage {stage.number}: {stage.note}" in ended.stdout, f"stage {number} does not name {stage.note}:\n{ended.stdout}"
    assert 'raise NotImplementedError("stage' not in ended.stdout, f"a traceback of the program in stage {number}:\n{ended.stdout}"


@pytest.mark.long
def test_each_stage_of_the_untouched_starter_fails_and_names_a_note(made):
    for number, ended in in_parallel(lambda number: run_stage(made, number, "--maxfail=1"), list(STAGES)).items():
        assert ended.returncode == 1, ended.stdout
        assert re.search(r"NotImplementedError: stage [01]: lab/", ended.stdout), ended.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
def test_with_the_functions_up_to_a_stage_that_stage_passes_and_the_next_fails(tmp_path):
    """More functions do not make a test fail, so the earlier stages pass too."""
    def run(number):
        folder = tmp_path / f"up_to_{number}"
        starter.write(folder, written=range(number + 1))
        next_one = run_stage(folder, number + 1, "--maxfail=1") if number + 1 in STAGES else None
        return run_stage(folder, number), next_one

    for number, (this, next_one) in in_parallel(run, sorted(STAGES, reverse=True)).items():
        assert this.returncode == 0, f"stage {number} fails with all of its functions:\n{this.stdout}"
        if next_one:
            fails_cleanly(next_one, number + 1, STAGES[number + 1])
