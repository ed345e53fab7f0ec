#!/usr/bin/env python3
"""Write the zip file that Gradescope takes for an autograder.

    make autograder                                    autograder.zip, with all stages
    make autograder HIDDEN=../hidden ARGS='--stage 3'  with tests of your own; with options of lab/grader/grade.py
    python lab/grader/autograder.py --out ../week-3.zip -- --stage 3

It holds the two scripts of lab/instructor/gradescope/, the grader and the tests of the stages. It holds no solution of the
exercise: not the reference, nor the wrong programs derived from it, nor the implementation in JavaScript.

The same files give the same zip, byte for byte. Exit code: 0, or 2 for wrong usage.
"""

import os
import pathlib
import stat
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "lab"))

import ending  # noqa: E402  (after the path)

# The parts of the grader. Everything else stays out.
INCLUDED = ["requirements.txt", "pyproject.toml", "messages.proto", "messages_pb2.py", "lab/SPEC.md", "lab/ending.py",
            "lab/grader/*.py", "lab/tools/*.py", "tests/*.py"]
EXCLUDED = ["lab/grader/mutants.py", "lab/grader/gauntlet.py", "lab/grader/samples.py", "tests/test_[!0-7]*.py"]
SCRIPTS = ROOT / "lab" / "instructor" / "gradescope"  # its files go to the top folder
WHEN = (1980, 1, 1, 0, 0, 0)  # of every file: the earliest date possible in a zip


def files(hidden):
    """{name in the zip: path} of every file that goes into it."""
    found = {str(path.relative_to(ROOT)): path for pattern in INCLUDED for path in ROOT.glob(pattern)
             if not any(path.relative_to(ROOT).match(out) for out in EXCLUDED)}
    found.update((path.name, path) for path in SCRIPTS.iterdir())
    found.update((f"hidden/{path.name}", path) for path in hidden)
    return dict(sorted(found.items()))


def write(out, found, options):
    """Write the zip, either whole or not at all."""
    part = out.with_name(f".part-{out.name}")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in found.items():
            add(archive, name, path.read_bytes(), os.access(path, os.X_OK))
        if options:
            add(archive, "options", "".join(f"{word}\n" for word in options).encode(), False)
    part.replace(out)


def add(archive, name, data, executable):
    entry = zipfile.ZipInfo(name, WHEN)
    entry.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)


def hidden_tests(folder):
    """The files of hidden tests; Failure if there are none."""
    found = sorted(pathlib.Path(folder).glob("*.py")) if folder else []
    if folder is not None and not any(path.match("test_[0-7]_*.py") for path in found):
        raise ending.Failure(f"--hidden: expected a folder with tests that are named test_N_*.py, N from 0 to 7, got {folder!r}")
    return found


def parse_arguments():
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = ending.Arguments(prog="autograder.py", description="Write Gradescope's autograder.", allow_abbrev=False,
                              usage="autograder.py [--out FILE] [--hidden FOLDER] [-- OPTIONS of grade.py]")
    parser.add_argument("--out", metavar="FILE", default="autograder.zip", help="where to write (default: %(default)s)")
    parser.add_argument("--hidden", metavar="FOLDER", help="further tests, whose source is not shown")
    args = parser.parse_args(sys.argv[1:at])
    args.options = sys.argv[at + 1:]
    for taken in ("--dir", "--tracker", "--peer", "--results", "--hidden"):
        if taken in args.options:
            raise ending.Failure(f"expected options of grade.py after --, but without {taken}, which run_autograder gives")
    if any("\n" in word for word in args.options):
        raise ending.Failure("expected options of one line each after --")
    return args


def main():
    args = parse_arguments()
    found = files(hidden_tests(args.hidden))
    out = pathlib.Path(args.out)
    write(out, found, args.options)
    print(f"wrote {out}: {len(found)} files, {out.stat().st_size >> 10} KiB. Upload it to Gradescope, and set the time limit to 10 minutes")


if __name__ == "__main__":
    ending.run(main)
