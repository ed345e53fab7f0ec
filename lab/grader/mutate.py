#!/usr/bin/env python3
"""Let a machine look for what the tests miss, by changing the functions that students write, one small thing at a time.

    python lab/grader/mutate.py                        continue where it stopped, for 480 s
    python lab/grader/mutate.py --stages 0-3 --seconds 60
    python lab/grader/mutate.py --list                 show the changes without running them
    python lab/grader/mutate.py --table                write lab/grader/mutations.md from the results so far

A change is made to the reference, inside a function that a stage asks for (lab/grader/stages.py): a comparison, a constant, an
operator or a condition is replaced by another, a statement is left out, branches are swapped. The tests of that stage are run
on it, without the slow ones, up to the first failure. lab/grader/mutations.csv has a line for each change, with the test that
caught it. People judge the survivors, in the last column: "equivalent: why", "free: why" (no clause demands it),
"later: test" (one of a later stage, or a slow one, catches it) or "missing: what a test would have to see". A judgement stays as long as its change does.

The same source gives the same changes, in the same order. Only functions that have changed are run again.
Exit code: 0 nothing is left to run; 1 something is; 2 wrong usage.

Reading order: changes of one node - all changes of a function - running them - the table - main.
"""

import argparse
import ast
import collections
import copy
import csv
import functools
import hashlib
import json
import os
import pathlib
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "lab"))

import ending  # noqa: E402  (after the path)
import processes  # noqa: E402
import stages  # noqa: E402
import starter  # noqa: E402

RESULTS = ROOT / "lab" / "grader" / "mutations.csv"
TABLE = ROOT / "lab" / "grader" / "mutations.md"
PROGRAMS = ("peer.py", "tracker.py", "messages_pb2.py")
SECONDS = 480     # for one call, so that the work can be done in slices
LIMIT = 40        # for one test
LIMIT_ALL = 400   # for the tests of one change
MEMORY = 8 << 30  # bytes of address space of each process: the stacks of five hundred threads reserve four GiB
JOBS = 2 * (os.cpu_count() or 1)  # tests spend most of their time waiting
COLUMNS = ["stage", "function", "digest", "number", "kind", "before", "after", "outcome", "judgement"]

Change = collections.namedtuple("Change", "start end new kind")  # bytes `start` to `end` of a source are replaced by the text `new`
Mutation = collections.namedtuple("Mutation", "stage function digest number kind before after text")  # `text` is that of the whole program


# Changes of one node: each function yields (text that replaces the node, kind).

OTHERS = {ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
          ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In]}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
             ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Pow: ast.Mult}


def other(node, **fields):
    """The text of a node with these fields replaced, in parentheses."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"


def of_comparison(node):
    for at, operator in enumerate(node.ops):
        for kind in OTHERS.get(type(operator), []):
            yield other(node, ops=[*node.ops[:at], kind(), *node.ops[at + 1:]]), "comparison"


def of_constant(node):
    if isinstance(node.value, bool):
        yield str(not node.value), "constant"
    elif isinstance(node.value, int):
        yield f"({node.value + 1})", "constant"
        if node.value > 0:
            yield f"({node.value - 1})", "constant"
    elif isinstance(node.value, float):
        yield f"({node.value * 2 + 1})", "constant"
    elif isinstance(node.value, (str, bytes)) and node.value and " " not in str(node.value):  # the wording for people is free
        yield repr(node.value + type(node.value)(b"x" if isinstance(node.value, bytes) else "x")), "constant"


def of_operation(node):
    if type(node.op) in OPERATORS:
        yield other(node, op=OPERATORS[type(node.op)]()), "arithmetic"


def of_junction(node):
    yield other(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or()), "condition"
    for value in node.values:
        yield other(node, values=[kept for kept in node.values if kept is not value]) if len(node.values) > 2 else \
            f"({ast.unparse(next(kept for kept in node.values if kept is not value))})", "condition"


def of_unary(node):
    yield f"({ast.unparse(node.operand)})", "condition" if isinstance(node.op, ast.Not) else "arithmetic"


def of_choice(node):
    yield other(node, body=node.orelse, orelse=node.body), "branches"


def of_condition(node):
    """Of an if: its test is always true, or never; negating the test swaps the branches."""
    yield "True", "branches"
    yield "False", "branches"
    if node.orelse:
        yield f"not ({ast.unparse(node.test)})", "branches"


def of_statement(node):
    """Of a statement that can be left out as a whole."""
    if isinstance(node, ast.Return):
        yield "return None", "statement"
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield "continue" if isinstance(node, ast.Break) else "break", "statement"
    else:
        yield "pass", "statement"


def changes_of(node):
    """(node that is replaced, text, kind) for a node of a function's body."""
    of = {ast.Compare: of_comparison, ast.Constant: of_constant, ast.BinOp: of_operation, ast.BoolOp: of_junction, ast.UnaryOp: of_unary,
          ast.IfExp: of_choice}.get(type(node))
    if of:
        yield from ((node, text, kind) for text, kind in of(node))
    elif isinstance(node, (ast.If, ast.While)):
        yield from ((node.test, text, kind) for text, kind in of_condition(node) if isinstance(node, ast.If) or text != "True")
    elif isinstance(node, ast.comprehension):
        yield from ((test, "True", "condition") for test in node.ifs)
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Raise, ast.Delete, ast.Break, ast.Continue)) or isinstance(node, ast.Return) and node.value:
        yield from ((node, text, kind) for text, kind in of_statement(node))


# All changes of a function.


def parts_of(function):
    """The nodes of a function's body in which something may change, without its docstring and its messages."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    found, left = [], list(reversed(body))
    while left:
        node = left.pop()
        found.append(node)
        if not isinstance(node, (ast.JoinedStr, ast.Lambda)):  # older Pythons do not give the positions of nodes in them, or give wrong ones
            left += reversed(list(ast.iter_child_nodes(node)))
    return found


def changes(source, function):
    """The Changes of a function, given as a node of the source (text), in order and without repeated texts."""
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, seen = [], set()
    for part in parts_of(function):
        for node, new, kind in changes_of(part):
            start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            if (start, end, new) not in seen and data[start:end].decode() != new:
                seen.add((start, end, new))
                found.append(Change(start, end, new, kind))
    return sorted(found, key=lambda change: (change.start, change.end))


def changed(source, change):
    """The source with a change."""
    data = source.encode()
    return (data[:change.start] + change.new.encode() + data[change.end:]).decode()


def line_around(source, start, end):
    """The lines that hold the bytes `start` to `end`, joined into one."""
    data = source.encode()
    first, last = data.rfind(b"\n", 0, start) + 1, data.find(b"\n", end)
    return " ".join(data[first:last].decode().split())


def digest_of(function):
    """A digest of a function that changes with its code, but not with its comments or its docstring."""
    return hashlib.sha256(ast.dump(ast.Module(function.body[ast.get_docstring(function) is not None:], [])).encode()).hexdigest()[:8]


def mutations(number):
    """The Mutations of a stage; one that does not compile is left out."""
    found = []
    for name in starter.functions_of(stages.STAGES[number]):
        source, node = texts()[name.partition(".")[0]], starter.all_functions()[name]
        digest, lines = digest_of(node), source.splitlines(keepends=True)
        first = sum(len(line.encode()) for line in lines[:node.lineno - 1])  # offset of the function in bytes
        alone = "".join(lines[node.lineno - 1:node.end_lineno])
        for at, change in enumerate(changes(source, node), start=1):
            try:  # compile the function alone, which is a hundred times quicker
                compile(textwrap.dedent(changed(alone, change._replace(start=change.start - first, end=change.end - first))), name, "exec")
            except SyntaxError:
                continue
            text = changed(source, change)
            after = line_around(text, change.start, change.start + len(change.new.encode()))
            found.append(Mutation(number, name, digest, at, change.kind, line_around(source, change.start, change.end), after, text))
    return found


@functools.cache
def texts():
    return {module: (ROOT / f"{module}.py").read_text() for module in starter.PROGRAMS}


# Running them: pytest, with this file as a plugin, collects the tests of a stage once; a child for each mutation runs them one by one.


def run_stage(number, keys, jobs, seconds, take):
    """Run mutations [(function, number)] of a stage, some at a time, for `seconds`; call take(function, number, outcome) as each one ends."""
    reports, tell = os.pipe()
    asked = {"stage": number, "keys": keys, "jobs": jobs, "seconds": seconds, "tell": tell}
    path = os.pathsep.join(str(folder) for folder in (ROOT / "lab" / "grader", ROOT / "tests", ROOT, ROOT / "lab", ROOT / "lab" / "tools"))
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "mutate", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
               "--timeout", str(LIMIT), *(str(ROOT / name) for name in stages.test_files(stages.STAGES[number]))]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[tell],
                               env={**os.environ, "PYTHONPATH": path, "GRADING": "other", "MUTATE": json.dumps(asked)})
    os.close(tell)
    with open(reports) as lines:
        for line in lines:
            take(**json.loads(line))
    if process.wait():
        raise ending.Failure(f"the tests of stage {number} could not be run: pytest ended with exit code {process.returncode}", 1)


@pytest.fixture
def tmp_path():
    """A folder for this child alone."""
    with tempfile.TemporaryDirectory(prefix="test-", ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


failed = []  # tests that have failed in this child


def pytest_runtest_logreport(report):
    if report.failed:
        failed.append(report.nodeid.rpartition("::")[2])


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if not item.get_closest_marker("slow") and not item.get_closest_marker("ours")]


pytest_collection_modifyitems = pytest.hookimpl(trylast=True)(pytest_collection_modifyitems)  # after tests/conftest.py has marked them


def pytest_runtestloop(session):
    asked = json.loads(os.environ["MUTATE"])
    todo = {(found.function, found.number): found for found in mutations(asked["stage"])}
    run_children([todo[tuple(key)] for key in asked["keys"]], session.items, asked)
    return True


def run_children(todo, items, asked):
    """Run a child for each mutation, `jobs` at a time. Tests that have caught changes of the same function go first."""
    processes.adopt_orphans()
    give_up = time.monotonic() + asked["seconds"]
    running, kills = {}, collections.Counter()  # pipe -> (mutation, its child, when it must end, folder); (function, test) -> times
    todo = collections.deque(todo)
    while running or todo and time.monotonic() < give_up:
        while todo and len(running) < asked["jobs"] and time.monotonic() < give_up:
            mutation = todo.popleft()
            order = sorted(items, key=lambda item: -kills[mutation.function, item.name])
            reports, child, folder = start_child(mutation, order)
            running[reports] = mutation, child, time.monotonic() + LIMIT_ALL, folder
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for reports in [*ready, *(reports for reports, (_, _, end, _) in running.items() if time.monotonic() > end and reports not in ready)]:
            mutation, child, _, folder = running.pop(reports)
            name = os.read(reports, 1000).decode() if reports in ready else f"(no end within {LIMIT_ALL:g} s)"
            os.close(reports)
            end(child)
            folder.cleanup()
            kills[mutation.function, name] += 1
            outcome = "survived" if name == "-" else f"caught: {name or '(the tests could not be run)'}"
            os.write(asked["tell"], json.dumps({"function": mutation.function, "number": mutation.number, "outcome": outcome}).encode() + b"\n")


def end(child):
    """Kill a child and everything below it; a child that reached its end has ended its programs itself."""
    below = [pid for pid, _, _ in processes.descendants(child)]
    for pid in [child, *below]:
        processes.send(signal.SIGKILL, pid)
    os.waitpid(child, 0)


def start_child(mutation, items):
    """(a pipe that will hold the name of the test that failed, or "-"; the child's pid; its folder)."""
    folder = tempfile.TemporaryDirectory(prefix="p2p-mutate-", ignore_cleanup_errors=True)
    for name in PROGRAMS:
        shutil.copy(ROOT / name, folder.name)
    pathlib.Path(folder.name, mutation.function.partition(".")[0] + ".py").write_text(mutation.text)
    reports, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            processes.adopt_orphans()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
            import harness  # imported here, because only children run tests
            harness.PROGRAMS = folder.name
            for item in items:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if failed:
                    break
            os.write(tell, (failed[0] if failed else "-").encode())
        finally:
            os._exit(0)
    os.close(tell)
    return reports, child, folder


# The results: {key: row}.


def key_of(row):
    return row["function"], row["digest"], int(row["number"])


def read_results(path=RESULTS):
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {key_of(row): row for row in csv.DictReader(file)}


def write_results(rows, path=RESULTS):
    """Write all rows, in the order of the stages and functions, either whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, newline="", delete=False) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (int(row["stage"]), row["function"], int(row["number"]))))
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def row_of(mutation, outcome, judgements):
    words = {name: getattr(mutation, name) for name in COLUMNS[:-2]}
    same = (mutation.function, mutation.before, mutation.after)
    return {**words, "outcome": outcome, "judgement": judgements.get(same, "") if outcome == "survived" else ""}


def summary(rows):
    """Lines that say how many were run, caught and judged, by stage."""
    lines = ["| stage | changes | caught | survived | equivalent or free | later | missing | not judged |", "|---|---|---|---|---|---|---|---|"]
    for number in sorted({int(row["stage"]) for row in rows}) + [None]:
        its = [row for row in rows if number is None or int(row["stage"]) == number]
        left = [row for row in its if row["outcome"] == "survived"]
        words = collections.Counter(row["judgement"].partition(":")[0] for row in left)
        counts = len(its), len(its) - len(left), len(left), words["equivalent"] + words["free"], words["later"], words["missing"], words[""]
        lines.append(f"| {'all' if number is None else number} | {' | '.join(map(str, counts))} |")
    return lines


def table(rows):
    """lab/grader/mutations.md."""
    def cell(text):
        return text.replace("|", "\\|")
    lines = ["# What the tests do not see", "",
             "Made by `python lab/grader/mutate.py --table` from `mutations.csv`, where the last column is a person's: change it there.", "",
             *summary(rows), "", "| function | before | after | judgement |", "|---|---|---|---|"]
    for row in rows:
        if row["outcome"] == "survived":
            before, after = (f"`{cell(row[name])}`" for name in ("before", "after"))
            lines.append(f"| `{row['function']}` | {before} | {after} | {cell(row['judgement']) or '**not judged yet**'} |")
    return "\n".join(lines) + "\n"


# Main.


def stage_numbers(text):
    """The stages of "0-3", "5" or "0-3,5"."""
    try:
        ends = [part.split("-") for part in text.split(",")]
        found = [number for part in ends for number in range(int(part[0]), int(part[-1]) + 1) if len(part) < 3]
    except ValueError:
        found = []
    if not found or not set(found) <= {stage.number for stage in stages.STAGES}:
        raise argparse.ArgumentTypeError(f"expected stages such as 0-3 or 5, got {text!r}")
    return found


def parse_arguments():
    parser = ending.Arguments(prog="mutate.py", description="Change the reference systematically, and see whether its stage notices.")
    parser.add_argument("--stages", type=stage_numbers, default=[stage.number for stage in stages.STAGES], metavar="N-M", help="only these (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="begin nothing new after this many seconds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help="at a time (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the changes without running them")
    parser.add_argument("--table", action="store_true", help="write mutations.md without running anything")
    return parser.parse_args()


def run_all(todo, rows, judgements, args):
    """Run the mutations, stage by stage, until time is up; each one is added to the rows and to the file."""
    give_up = time.monotonic() + args.seconds
    for number in sorted({found.stage for found in todo}):
        its = {(found.function, found.number): found for found in todo if found.stage == number}

        def take(function, number, outcome):
            found = its[function, number]
            rows.append(row_of(found, outcome, judgements))
            write_results(rows)
            print(f"{function:28} {number:3}  {outcome[:60]:60}  {found.after[:80]}", flush=True)
        if time.monotonic() < give_up:
            run_stage(number, list(its), args.jobs, give_up - time.monotonic(), take)


def main():
    args = parse_arguments()
    wanted = {(found.function, found.digest, found.number): found for stage in stages.STAGES for found in mutations(stage.number)}
    before = read_results()
    judgements = {(row["function"], row["before"], row["after"]): row["judgement"] for row in before.values() if row["judgement"]}
    rows = [row for key, row in before.items() if key in wanted]
    todo = [found for key, found in wanted.items() if key not in before and found.stage in args.stages]
    if args.list:
        for found in todo:
            print(f"{found.stage} {found.function:28} {found.kind:10} {found.before[:70]:70} -> {found.after[:70]}")
    elif args.table:
        TABLE.write_text(table(rows))
    else:
        run_all(todo, rows, judgements, args)
        todo = [found for key, found in wanted.items() if key not in set(map(key_of, rows)) and found.stage in args.stages]
    print("\n".join(summary(rows)) + f"\n{len(todo)} to run")
    return 1 if todo and not args.list else 0


if __name__ == "__main__":
    ending.run(main)
