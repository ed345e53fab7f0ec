"""Fixtures: files, programs and fakes that end with their test, whatever happens in the test.

    spec("FC-1", ...)   the clauses of lab/SPEC.md that a test checks (test_spec.py keeps count)
    fault(12)           the row of lab/FAULTS.md that a test tries
    takes(2)            about how many seconds a test waits; the grader begins with the longest
    ours                a test of our own programs only; set here for tests that import them or run them with other constants
    slow, thorough      waits for a deadline of the SPEC: left out of make stage-N; thorough also of make grade, unless THOROUGH=1
    long                runs whole gradings or experiments: make check runs it, make test does not

They are declared in pyproject.toml.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import types

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

pytest.register_assert_rewrite("checks", "wire_tests")
import harness  # noqa: E402  (after the paths)


def pytest_collection_modifyitems(items):
    for item in items:
        if "run_patched" in item.fixturenames or {"peer", "tracker"} & imported(item.module):
            item.add_marker(pytest.mark.ours)


def imported(module):
    """The names of the modules that a test file has imported whole."""
    return {value.__name__ for value in vars(module).values() if isinstance(value, types.ModuleType)}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the output of the programs under test in the report of a failed test."""
    report = (yield).get_result()
    if report.failed:
        for program in harness.trace.programs:
            if program.process.poll() is not None:
                program.reader.join(1)  # until all of it has been read
            report.sections.append((f"output of {' '.join(map(str, program.process.args))}", program.output))


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a thread or a child process behind."""
    before = set(threading.enumerate())
    harness.trace.begin()
    yield
    harness.trace.programs = []
    if os.environ.get("GRADING") == "other":
        harness.processes.end_all()  # what a program left behind must not count against the next test
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
def recording_alone():
    """Keep other tests on this machine from running lab/exchange.py meanwhile, because its ports are fixed."""
    with open(os.path.join(tempfile.gettempdir(), f"p2p-recording-{os.getuid()}"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    """run_patched(module, changes, arguments): our program with other constants; see harness.patched."""
    return lambda *args, **kwargs: ending(harness.patched(*args, **kwargs))


@pytest.fixture
def fake_tracker(ending):
    """fake_tracker(data, ...): see harness.FakeTracker."""
    return lambda *args, **kwargs: ending(harness.FakeTracker(*args, **kwargs))


@pytest.fixture
def fake_peer(ending):
    """fake_peer(data, ...): see harness.FakePeer."""
    return lambda *args, **kwargs: ending(harness.FakePeer(*args, **kwargs))


# A file of five chunks and the peer under test.


@pytest.fixture
def data(make_file):
    """The bytes of a file of five chunks."""
    return make_file(harness.FIVE_SIZE)[1]


@pytest.fixture
def start(data, fake_tracker, run_peer, tmp_path):
    """start(neighbors): (the address of a peer under test whose tracker lists these, OUT)."""
    def run(*neighbors, complete=False):
        if complete:
            (tmp_path / "out.bin").write_bytes(data)
        run.tracker = tracker = fake_tracker(data, [neighbor.address for neighbor in neighbors])
        run_peer(tracker.port, tmp_path / "out.bin")
        return tracker.joiner(), tmp_path / "out.bin"
    return run


@pytest.fixture
def leeching(make_file, fake_tracker, run_peer, tmp_path):
    """leeching(peers): (fake tracker that lists these, OUT, the bytes of the file) for a peer under test without chunks.

    more(address) gives further addresses to list, from the address of the peer under test; `host` is the tracker's.
    """
    def run(peers=(), size=harness.CHUNK, more=lambda address: [], host="127.0.0.1", extra=()):
        _, data = make_file(size)
        tracker = fake_tracker(data, peers, host=host)

        def on_join(request, sock):
            tracker.peers += more(f"{host}:{request.listening_addr.rpartition(':')[2]}")
            return tracker.on_join(request, sock)
        tracker.answers["join"] = on_join
        run_peer(f"{host}:{tracker.port}", tmp_path / "out.bin", extra)
        return tracker, tmp_path / "out.bin", data
    return run


@pytest.fixture
def here():
    """An address of this machine that is not loopback."""
    return harness.outward_address() or pytest.skip("this machine has loopback addresses only")


# A file of nine small chunks, a fake tracker and fake neighbors, each of which may be faulty.


@pytest.fixture
def tracker(fake_tracker):
    return fake_tracker(harness.NINE_CHUNKS, chunk_size=harness.SMALL_CHUNK)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.bin"


@pytest.fixture
def neighbor(fake_peer, tracker):
    """neighbor(): a fake peer that the tracker lists."""
    def make(held=None):
        fake = fake_peer(harness.NINE_CHUNKS, held, chunk_size=harness.SMALL_CHUNK)
        tracker.peers.append(fake.address)
        return fake
    return make


@pytest.fixture
def gate():
    """An event for fakes to wait for; it is set when the test ends, if not before."""
    event = threading.Event()
    yield event
    event.set()
