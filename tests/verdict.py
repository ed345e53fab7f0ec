"""pytest as a worker of lab/grade.py: takes tests one by one from a pipe, and tells over another how each of them ended.

    python -m pytest -p verdict ...      with GRADE_TOKENS and GRADE_REPORTS, the two descriptors

Several workers collect the same tests. Each number in the pipe of tokens is the index of one test, and
whoever reads it runs that test, so that none waits for another. What is told is one JSON object a line:
{"collected": [...]}, then {"begin": id} and {"end": id, "outcome": ..., "failure": ...} for each test.

The program under test gets neither pipe: subprocess closes them.
"""

import json
import os
import resource
import struct
import time

import pytest

import processes

TOKENS, REPORTS = (int(os.environ.pop(name)) for name in ("GRADE_TOKENS", "GRADE_REPORTS"))
HIDDEN = os.environ.pop("GRADE_HIDDEN", "")
SLOW = os.environ.pop("GRADE_SLOW", "") == "yes"
OURS = os.environ.pop("GRADE_OURS", "") == "yes"
FILE_LIMIT = 256 << 20  # bytes in one file; no test needs more than a tenth of it


def tell(**line):
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(REPORTS, data):]


def limit(what, value):
    """Bound what this process and all that it starts may have, as far as that is allowed."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def pytest_configure(config):
    processes.adopt_orphans()
    if not OURS:
        limit(resource.RLIMIT_FSIZE, FILE_LIMIT)
    limit(resource.RLIMIT_CORE, 0)


def clauses_of(item):
    return [clause for mark in item.iter_markers("spec") for clause in mark.args]


def described(item):
    """What the grader must know of a test before it runs."""
    return {"id": item.nodeid, "file": os.path.basename(item.location[0]), "name": item.name, "clauses": clauses_of(item),
            "hidden": bool(HIDDEN) and str(item.path).startswith(HIDDEN)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if not SLOW and item.get_closest_marker("slow")]
    foreign = [item for item in items if not OURS and (item.get_closest_marker("ours") or "run_patched" in item.fixturenames)]
    items[:] = [item for item in items if item not in left_out and item not in foreign]
    tell(slow=len(left_out), ours=len(foreign))


def pytest_collectreport(report):
    if report.failed:
        tell(broken=os.path.basename(report.nodeid.partition("::")[0]), why=str(report.longrepr)[-1500:])


def pytest_runtestloop(session):
    tell(collected=[described(item) for item in session.items])
    while True:
        token = os.read(TOKENS, 4)
        if len(token) < 4:
            return True
        item = session.items[struct.unpack("!I", token)[0]]
        tell(begin=item.nodeid)
        ending[item.nodeid] = {"outcome": "passed", "failure": None}
        began = time.monotonic()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        tell(end=item.nodeid, seconds=round(time.monotonic() - began, 2), **ending.pop(item.nodeid))


ending = {}  # test id -> how it ended so far


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    now = ending.get(item.nodeid)
    if now is None or report.passed or now["outcome"] == "failed":
        return
    now["outcome"] = report.outcome
    if report.failed:
        now["failure"] = {"steps": [], "step": 0, "sent": None, "expected": "", "got": str(call.excinfo.value)[:2000], "offset": None, "likely": None}
