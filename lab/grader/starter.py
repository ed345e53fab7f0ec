#!/usr/bin/env python3
"""Make the starter: tracker.py and peer.py without the bodies of the functions that students write.

    make starter DIR=../my-p2p        or: python lab/grader/starter.py ../my-p2p

lab/grader/stages.py lists these functions. Signature, decorators, docstring and everything around a function
stay; its body becomes one line that raises NotImplementedError and names the stage's note.

Reading order: names of functions - blanking a source - writing the folder - main.
"""

import ast
import functools
import pathlib
import shlex
import shutil
import sys

sys.path[:0] = [str(folder) for folder in pathlib.Path(__file__).resolve().parents[:2]]

import ending  # noqa: E402  (after the path)
import stages  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ["tracker", "peer"]
COPIED = ["messages.proto", "messages_pb2.py", "requirements.txt"]

# What the starter's peer.py adds after its imports. tracker.py imports peer.py, so it applies to both.
SCAFFOLD = '''

# Of the starter only, yours to remove at the end: a function that is not written yet ends the program with
# one line, which names the note to read, and with the exit code of a bug.


def not_written(kind, error, trace):
    if kind is NotImplementedError:
        print(f"NotImplementedError: {error}", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


def not_answered(server, sock, address, show=socketserver.BaseServer.handle_error):
    if sys.exc_info()[0] is NotImplementedError:
        not_written(*sys.exc_info())
        os._exit(70)
    show(server, sock, address)


sys.excepthook = not_written
socketserver.BaseServer.handle_error = not_answered
'''

README = '''# Your tracker and your peer

This folder holds a tracker and a peer in which {count} functions are still to be written, in eight stages; the
rest is given. A function that is not written yet raises `NotImplementedError` with its stage and its note.

1. In the folder of the lab, from which this one was made: `make stage-0 DIR={folder}`. The tests of the first
   stage fail, as they should: nothing is written yet.
2. Read `lab/0-wire.md` there, write the functions of stage 0 here, and run the same command again.

Then `make stage-1 DIR={folder}`, and so on. `lab/SPEC.md` is the authority on what must happen.

| stage | note | functions |
|---|---|---|
{rows}

To run the programs themselves: `.venv/bin/python` in the folder of the lab has the packages that they need. With it, type `tracker.py FILE` and `peer.py TRACKER:PORT OUT`.
'''


# ---------------------------------------------------------------------------------------------
# Names.


def functions_in(source, module):
    """{"module.Class.method" or "module.function": its ast node} of a source, in its order."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[f"{module}.{node.name}"] = node
        elif isinstance(node, ast.ClassDef):
            found.update((f"{module}.{node.name}.{inner.name}", inner) for inner in node.body if isinstance(inner, ast.FunctionDef))
    return found


@functools.cache
def all_functions():
    """The functions of both programs."""
    found = {}
    for module in PROGRAMS:
        found.update(functions_in((ROOT / f"{module}.py").read_text(), module))
    return found


def expanded(names, known):
    """The functions meant by a stage's names: a class means all of its methods except __init__ and those that are given."""
    found = []
    for name in names:
        methods = [function for function in known if function.startswith(name + ".")
                   and not function.endswith(".__init__") and function not in stages.GIVEN]
        if name not in known and not methods:
            raise LookupError(f"expected a function or a class of tracker.py or peer.py in lab/grader/stages.py, got {name}")
        found += [name] if name in known else methods
    return found


def functions_of(stage):
    """The qualified names of all functions that a student writes in a stage."""
    return expanded(stage.functions, all_functions())


# ---------------------------------------------------------------------------------------------
# Blanking. The tree says where a body is; everything else is kept as text, so that comments and blank lines stay.


def body_lines(node, lines):
    """The first and the last line of a function's body, counted from 1, with the comments above it but without its docstring."""
    if ast.get_docstring(node) is not None:
        return node.body[0].end_lineno + 1, node.end_lineno
    first = min([node.body[0].lineno] + [decorator.lineno for decorator in getattr(node.body[0], "decorator_list", [])])
    while lines[first - 2].strip().startswith("#") or not lines[first - 2].strip():
        first -= 1
    return first, node.end_lineno


def blanked(source, module, stage_of):
    """The source without the bodies of the functions in `stage_of`, which is {qualified name: Stage}."""
    lines = source.splitlines()
    for name, node in reversed(functions_in(source, module).items()):  # from the end, so that line numbers stay right
        if name in stage_of:
            first, last = body_lines(node, lines)
            where = f"stage {stage_of[name].number}: {stage_of[name].note}"
            lines[first - 1:last] = [f'{" " * (node.col_offset + 4)}raise NotImplementedError("{where}")']
    return "\n".join(lines) + "\n"


def with_scaffold(source):
    """The source with SCAFFOLD after its imports."""
    last = max(node.end_lineno for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom)))
    lines = source.splitlines()
    return "\n".join(lines[:last]) + SCAFFOLD + "\n".join(lines[last:]) + "\n"


def programs(written=()):
    """{"peer.py": its text in the starter, ...}; the functions of the stages with the numbers in `written` keep their bodies."""
    stage_of = {name: stage for stage in stages.STAGES if stage.number not in written for name in functions_of(stage)}
    made = {f"{module}.py": blanked((ROOT / f"{module}.py").read_text(), module, stage_of) for module in PROGRAMS}
    made["peer.py"] = with_scaffold(made["peer.py"])
    return made


# ---------------------------------------------------------------------------------------------
# Main.


def readme(folder):
    """The starter's README; `folder` is quoted for a shell."""
    functions = [(stage, functions_of(stage)) for stage in stages.STAGES]
    rows = [f"| {stage.number} {stage.title} | `{stage.note}` | {', '.join(f'`{name}`' for name in names)} |" for stage, names in functions]
    return README.format(folder=shlex.quote(str(folder)), count=sum(len(names) for _, names in functions), rows="\n".join(rows))


def write(folder, written=()):
    """Make the starter in a folder that is empty or does not exist yet; OSError if it cannot be written."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in programs(written).items():
        (path / name).write_text(text)
    for name in COPIED:
        shutil.copyfile(ROOT / name, path / name)
    (path / "README.md").write_text(readme(folder))


def folder_made(fill, usage):
    """Call fill(path) for the folder that the command line names; return its path, or raise Failure. lab/grader/samples.py uses this too."""
    if len(sys.argv) != 2 or not sys.argv[1] or sys.argv[1].startswith("-"):
        raise ending.Failure(f"expected the folder to make, got none or several; {usage}")
    path = pathlib.Path(sys.argv[1])
    try:
        sys.argv[1].encode()  # it will appear in README.md
        if path.is_file() or path.is_dir() and any(path.iterdir()):
            raise ending.Failure(f"expected a folder that is empty or does not exist, got {path}, which is not empty; choose another")
        fill(path)
    except OSError as error:
        raise ending.Failure(f"expected a folder that can be written, got {path}: {error.strerror}; choose another") from None
    except UnicodeError:
        raise ending.Failure(f"expected the name of a folder in UTF-8, got {sys.argv[1]!a}; choose another") from None
    return path


def main():
    path = folder_made(write, "make starter DIR=../my-p2p")
    print(f"made {path}; read {path / 'README.md'}, then try: make stage-0 DIR={shlex.quote(str(path))}")


if __name__ == "__main__":
    ending.run(main)
