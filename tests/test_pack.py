"""What a machine needs before the first command: lab/tools/pack.py, whose two files need only Python, and what make installs.

Reading order: the interpreters available - the packed programs - the programs in a Python that lacks something - what make installs.
"""

import glob
import hashlib
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import pytest

from harness import ROOT, Program, events_in, some_bytes
import pack

pytestmark = pytest.mark.ours
PLACES = ["/usr/bin/python3.*", "/usr/local/bin/python3.*", "/opt/homebrew/bin/python3.*", os.path.expanduser("~/.pyenv/versions/*/bin/python")]
NO_PACKAGES = "-S"  # an interpreter that ignores site-packages: as good as one without any


def interpreters():
    """{(major, minor): path} of all other Pythons found on this machine."""
    found = {}
    for path in [path for place in PLACES for path in glob.glob(place)]:
        told = subprocess.run([path, "-c", "import sys; print('%d %d' % sys.version_info[:2])"], capture_output=True, text=True, timeout=20, check=False)
        if told.returncode == 0:
            found[tuple(map(int, told.stdout.split()))] = path
    return found


OTHERS = interpreters()
NEW_ENOUGH = {**{version: path for version, path in OTHERS.items() if version >= (3, 10)}, sys.version_info[:2]: sys.executable}
TOO_OLD = {version: path for version, path in OTHERS.items() if version < (3, 10)}


def named(version):
    return "{}.{}".format(*version)


# The packed programs.


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder with tracker.pyz and peer.pyz."""
    folder = tmp_path_factory.mktemp("dist")
    pack.pack(str(folder))
    return folder


def run(command, **options):
    return subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False, **options)


@pytest.mark.parametrize("version", sorted({min(NEW_ENOUGH), sys.version_info[:2], max(NEW_ENOUGH)}), ids=named)
def test_a_file_is_brought_over_by_a_bare_python_in_an_empty_environment(version, packed, ending, tmp_path):
    data = some_bytes(600_000)
    (tmp_path / "a file").write_bytes(data)
    bare = [NEW_ENOUGH[version], NO_PACKAGES]
    tracker = ending(Program([*bare, packed / "tracker.pyz", tmp_path / "a file", "--port", "0"], env={}))
    assert tracker.wait_for(r"^  python3 peer\.pyz --expect [0-9a-f]{64} 127\.0\.0\.1:\d+ 'a file'$")
    port = tracker.wait_for(r"listening on port (\d+)$")[1]
    peer = run([*bare, packed / "peer.pyz", f"127.0.0.1:{port}", "out", "--leave", "--events", "events"], env={}, cwd=tmp_path)
    assert (peer.returncode, peer.stderr) == (0, "") and "every chunk verified" in peer.stdout
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(data).digest()
    assert len(events_in(tmp_path / "events", "fetched")) == 3


@pytest.mark.parametrize("name", pack.PROGRAMS)
def test_a_packed_program_takes_what_its_source_takes(name, packed):
    ours, zipped = (run([*command, "--help"]) for command in ([sys.executable, os.path.join(ROOT, f"{name}.py")], [sys.executable, packed / f"{name}.pyz"]))
    assert zipped.stdout == ours.stdout and "--events" in zipped.stdout
    refused = run([sys.executable, packed / f"{name}.pyz"])
    assert refused.returncode == 2 and refused.stderr.startswith(f"{name}.pyz: ") and refused.stderr.count("\n") == 1


def test_a_packed_program_can_be_started_by_its_name(packed):
    assert (packed / "peer.pyz").read_bytes().startswith(b"#!/usr/bin/env python3\n") and (packed / "peer.pyz").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("version", [(3, 9), *sorted(TOO_OLD)], ids=[f"as_if_{named((3, 9))}", *map(named, sorted(TOO_OLD))])
def test_a_python_that_is_too_old_is_told_in_one_line(version, packed):
    as_if = "import sys, runpy; sys.version_info = (3, 9, 1); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [TOO_OLD[version]] if version in TOO_OLD else [sys.executable, "-c", as_if]
    told = run([*command, packed / "peer.pyz", "--help"])
    assert told.returncode == 1 and told.stderr == (f"peer.pyz: expected Python 3.10 or newer, got {named(version)}; name another,"
                                                    f" as in: python3.12 {packed / 'peer.pyz'} ...\n")


def test_a_protobuf_that_the_machine_has_is_not_used(packed, tmp_path):
    package = tmp_path / "google" / "protobuf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")  # like old ones: without internal/builder.py
    (tmp_path / "sitecustomize.py").write_text("import google.protobuf\n")  # as a .pth file may do, before any program begins
    shown = run([sys.executable, packed / "peer.pyz", "--version"],
                env={"PYTHONPATH": str(tmp_path), "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb"})
    assert (shown.returncode, shown.stderr) == (0, "")


def test_a_python_without_protobuf_packs_nothing(tmp_path):
    told = run([sys.executable, NO_PACKAGES, os.path.join(ROOT, "lab", "tools", "pack.py"), tmp_path / "dist"])
    assert told.returncode == 2 and told.stderr == ("pack.py: expected protobuf among this Python's packages;"
                                                    " type make dist, which installs it in .venv\n")


# The programs themselves, in a Python that lacks something.

AS_IF = "import sys, runpy; {change}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
LACKING = {
    "no_protobuf": ("sys.modules['google'] = None", "No module named 'google"),
    "old_protobuf": ("sys.modules['google.protobuf.internal.builder'] = None", "builder"),
    "old_python": ("sys.version_info = (3, 9, 18)", "Python "),
    "windows": ("sys.modules['fcntl'] = None", "import of fcntl halted")}


@pytest.mark.parametrize("name", pack.PROGRAMS)
@pytest.mark.parametrize("change, got", LACKING.values(), ids=LACKING)
def test_what_a_machine_lacks_is_told_in_one_line(name, change, got):
    told = run([sys.executable, "-c", AS_IF.format(change=change), f"{name}.py", "--help"], cwd=ROOT)
    assert told.returncode == 1 and told.stderr.count("\n") == 1 and told.stderr.startswith(f"{name}.py: expected Python 3.10 or newer with protobuf 3.20")
    assert got in told.stderr.partition(", got: ")[2]


# What make installs.

FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *pip*) echo "$*" >> pip; env | grep ^PIP_ >> pip; exit 0 ;;
    *"import google.protobuf"*) exit {missing} ;;
esac
"""


@pytest.fixture
def makes_venv(tmp_path):
    """makes_venv(missing, variables): (the finished make, what pip was told) with a Python that installs nothing."""
    def run_make(missing=0, **variables):
        for name in ("Makefile", "requirements.txt"):
            shutil.copy(os.path.join(ROOT, name), tmp_path)
        python = tmp_path / "python"
        python.write_text(FAKE_PYTHON.format(missing=missing))
        python.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS"))}
        made = run(["make", ".venv/ready", f"PYTHON={python}"], cwd=tmp_path, env={**environment, **variables})
        return made, pathlib.Path(tmp_path, "pip").read_text().splitlines()
    return run_make


def test_make_installs_into_its_own_folder_wherever_pip_usually_does(makes_venv, tmp_path):
    made, told = makes_venv(PIP_USER="1", PIP_TARGET="x", PIP_PREFIX="x", PIP_ROOT="x", PIP_DRY_RUN="1", PIP_INDEX_URL="kept")
    assert made.returncode == 0 and (tmp_path / ".venv" / "ready").exists()
    assert "install" in told[0] and sorted(told[1:]) == ["PIP_INDEX_URL=kept", "PIP_USER=0"]


def test_make_does_not_take_for_installed_what_is_not(makes_venv, tmp_path):
    made, _ = makes_venv(missing=1)
    assert made.returncode == 2 and not (tmp_path / ".venv" / "ready").exists()
    assert "expected pip to install into .venv, but it did not" in made.stderr
