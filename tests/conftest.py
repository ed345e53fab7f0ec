"""Fixtures: files, programs and fakes that end with their test, whatever happens in it.

    spec("FC-1", ...)   the clauses of lab/SPEC.md that a test checks (test_spec.py keeps count)
    fault(12)           the row of the list of faults that a test tries
    takes(2)            about how many seconds a test waits for; the grader begins with the longest
    ours                a test of our own programs only; set here for what imports them or runs them with other constants
"""

import os
import subprocess
import sys
import threading
import types

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import harness  # noqa: E402  (after the paths)


def pytest_configure(config):
    config.addinivalue_line("markers", "spec(*clauses): the clauses of lab/SPEC.md that this test checks")
    config.addinivalue_line("markers", "slow: waits out a real deadline of the SPEC; make grade runs it, make stage-N does not")
    config.addinivalue_line("markers", "takes(seconds): about how long this test waits for; lab/grade.py begins with the longest")
    config.addinivalue_line("markers", "fault(*rows): the rows of the list of faults that this test tries")
    config.addinivalue_line("markers", "ours: a test that can only run on tracker.py and peer.py, not on another implementation")


def pytest_collection_modifyitems(items):
    for item in items:
        if "run_patched" in item.fixturenames or {"peer", "tracker"} & imported(item.module):
            item.add_marker(pytest.mark.ours)


def imported(module):
    """The names of the modules that a test file has imported whole."""
    return {value.__name__ for value in vars(module).values() if isinstance(value, types.ModuleType)}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show in the report of a failed test what the programs under test have said."""
    report = (yield).get_result()
    if report.failed:
        for program in harness.trace.programs:
            if program.process.poll() is not None:
                program.reader.join(1)  # until all of it was read
            report.sections.append((f"output of {' '.join(map(str, program.process.args))}", program.output.rstrip("\0")))


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a thread or a child process behind."""
    before = set(threading.enumerate())
    harness.trace.begin()
    yield
    harness.trace.programs = []
    if os.environ.get("GRADING") == "other":
        harness.processes.end_all()  # what a program left behind is its own fault, not the next test's
    harness.eventually(lambda: set(threading.enumerate()) <= before, what="the end of all threads")
    if sys.platform == "linux":
        left = harness.processes.running()
        assert not left, subprocess.run(["ps", "-o", "pid=,stat=,command=", "-p", ",".join(map(str, left))], capture_output=True, text=True).stdout


@pytest.fixture
def ending(request):
    """ending(thing): have thing.stop() called at the end of the test; returns the thing."""
    def register(thing):
        request.addfinalizer(thing.stop)
        return thing
    return register


@pytest.fixture
def make_file(tmp_path):
    """make_file(size or bytes): (path, bytes) of a file to distribute."""
    def make(what, name="file.bin", seed=1):
        data = what if isinstance(what, bytes) else harness.some_bytes(what, seed)
        path = tmp_path / name
        path.write_bytes(data)
        return path, data
    return make


@pytest.fixture
def run_tracker(ending):
    """run_tracker(file, ...): the tracker under test, listening; see harness.start_tracker."""
    return lambda *args, **kwargs: ending(harness.start_tracker(*args, **kwargs))


@pytest.fixture
def run_peer(ending):
    """run_peer(tracker, out, ...): the peer under test; see harness.start_peer."""
    return lambda *args, **kwargs: ending(harness.start_peer(*args, **kwargs))


@pytest.fixture
def run_patched(ending):
    """run_patched(module, changes, arguments): ours with other constants; see harness.patched."""
    return lambda *args, **kwargs: ending(harness.patched(*args, **kwargs))


@pytest.fixture
def fake_tracker(ending):
    """fake_tracker(data, ...): see harness.FakeTracker."""
    return lambda *args, **kwargs: ending(harness.FakeTracker(*args, **kwargs))


@pytest.fixture
def fake_peer(ending):
    """fake_peer(data, ...): see harness.FakePeer."""
    return lambda *args, **kwargs: ending(harness.FakePeer(*args, **kwargs))
