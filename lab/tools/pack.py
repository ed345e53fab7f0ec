#!/usr/bin/env python3
"""tracker.pyz and peer.pyz: each program in one file that needs only Python 3.10 or newer.

    make dist        or: .venv/bin/python lab/tools/pack.py FOLDER

Python runs a zip file that has a __main__.py (zipapp). These also hold tracker.py, peer.py,
messages_pb2.py and protobuf from this Python's packages without its compiled part: the rest is pure
Python and runs anywhere. That it is slower does not matter, because chunks do not pass through it.
Nothing is installed, unpacked or fetched when they run.

Reading order: what a zip starts with - what is in it - main.
"""

import compileall
import contextlib
import importlib.metadata
import io
import os
import py_compile
import shutil
import sys
import tempfile
import zipapp

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ending  # noqa: E402  (after the path)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = ("tracker", "peer")
SOURCES = ("tracker.py", "peer.py", "messages_pb2.py")
LEFT_OUT = ("__pycache__", "compiler", "pyext", "testdata", "util")  # folders of protobuf that neither program imports

# What a zip starts with. Even the oldest Python can read it, up to the line that says which version is needed. A package
# named google on the machine (some load it before any program begins) must not be mixed with the one in the zip.
MAIN = '''\
import os
import sys

if sys.version_info < (3, 10):
    sys.exit("NAME.pyz: expected Python 3.10 or newer, got %d.%d; name another, as in: python3.12 %s ..." % (sys.version_info[:2] + (sys.argv[0],)))

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
for name in list(sys.modules):
    if name.split(".")[0] == "google":
        del sys.modules[name]

import peer
import tracker

tracker.PEER = "peer.pyz"
peer.run_to_exit("NAME.pyz", NAME.run)
'''


def copy_protobuf(folder):
    """Copy the Python sources of protobuf and its licence into a folder; Failure if this Python has no protobuf."""
    try:
        import google.protobuf
        licence = importlib.metadata.distribution("protobuf").read_text("LICENSE")
    except ImportError:
        raise ending.Failure("expected protobuf among this Python's packages; type make dist, which installs it in .venv") from None
    os.mkdir(os.path.join(folder, "google"))
    open(os.path.join(folder, "google", "__init__.py"), "w").close()

    def left_out(where, names):
        return [name for name in names if name in LEFT_OUT or not name.endswith(".py") and not os.path.isdir(os.path.join(where, name))]

    shutil.copytree(os.path.dirname(google.protobuf.__file__), os.path.join(folder, "google", "protobuf"), ignore=left_out)
    with open(os.path.join(folder, "google", "protobuf", "LICENSE"), "w") as file:
        file.write(licence or "")


def compile_sources(folder):
    """Put this Python's bytecode beside each source: with it, a program starts in 0.1 s instead of 0.5 s.

    Another version of Python ignores it and compiles the source at every start. Unchecked, because a zip has no time zone.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        compileall.compile_dir(folder, quiet=1, legacy=True, ddir="", invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def pack(folder):
    """Make a folder and write both files into it; return their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"{name}.pyz") for name in PROGRAMS]
    with tempfile.TemporaryDirectory() as inside:
        for name in SOURCES:
            shutil.copy(os.path.join(ROOT, name), inside)
        copy_protobuf(inside)
        compile_sources(inside)
        for name, path in zip(PROGRAMS, paths):
            with open(os.path.join(inside, "__main__.py"), "w") as file:
                file.write(MAIN.replace("NAME", name))
            zipapp.create_archive(inside, path, interpreter="/usr/bin/env python3", compressed=True)
    return paths


def main():
    parser = ending.Arguments(prog="pack.py", description="Write tracker.pyz and peer.pyz, which need Python alone.")
    parser.add_argument("folder", metavar="FOLDER", help="where to write; it is made if it does not exist")
    for path in pack(parser.parse_args().folder):
        print(f"{path}: {os.path.getsize(path):,} bytes; python3 {path} --help")


if __name__ == "__main__":
    ending.run(main)
