#!/usr/bin/env python3
"""Grade a folder of submissions, several at a time: a table of marks, and a report for each student.

    python lab/grader/class.py ../submissions --marks ../marks
    python lab/grader/class.py ../submissions --marks ../marks -- --stage 3 --hidden ../hidden
    python lab/grader/class.py ../submissions --marks ../marks -- --tracker '{dir}/tracker {file} {port} {expire}' --peer '{dir}/peer {tracker} {out}'

Every folder in ../submissions is one submission, named after the student. Options after `--` are those of
lab/grader/grade.py; {dir} in them stands for the folder of the submission. The results are in ../marks:

    marks.csv       student, stage, points, of, first failing clause, first failing test, note
    NAME.json       what grade.py has written, in Gradescope's format
    NAME.txt        the report to send to the student

After a run was killed, or a submission came late, give the same command again: a submission with marks for the same
files and options is not graded again, unless its results say "grade again" because some tests could not be tried;
marks.csv always lists every submission that has marks. Each submission is graded in a copy of its folder, which
is not changed. It runs with your rights: lab/INSTRUCTOR.md shows how to use another user's.

Exit code: 0 every submission has its marks, whatever they are; 1 some have none; 2 wrong usage.
Reading order: one submission - the table - all of them. lab/grader/marks.py reads the points.
"""

import concurrent.futures
import contextlib
import csv
import fcntl
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT / "lab"))

import ending  # noqa: E402  (after the path)
import marks  # noqa: E402

GRADER = ROOT / "lab" / "grader" / "grade.py"
JOBS = max(1, (os.cpu_count() or 1) // 2)  # gradings at a time; one keeps more than one core busy
LARGEST = 256 << 20                        # bytes of a submission, and
MOST_FILES = 20_000                        # files; more cannot be source code, and is not copied
TEMPORARY = ".grading-"                    # prefix of the folders of gradings under way
COLUMNS = ["student", "stage", "points", "of", "first failing clause", "first failing test", "note"]


# One submission.


class NotGradable(Exception):
    """Why a submission cannot be graded; its author can fix that."""


def files_of(folder):
    """The files of a submission, as (path in it, path); NotGradable if they are too many or too large."""
    found, size = [], 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in (".git", "__pycache__", "node_modules"))
        for name in sorted(names):
            path = pathlib.Path(where, name)
            if path.is_file() and not path.is_symlink():
                found.append((str(path.relative_to(folder)), path))
                size += path.stat().st_size
        if size > LARGEST or len(found) > MOST_FILES:
            raise NotGradable(f"expected at most {LARGEST >> 20} MiB and {MOST_FILES} files, got more")
    return found


def fingerprint(files, options):
    """A digest of what is graded: names, contents and modes of the files, and the options."""
    digest = hashlib.sha256(json.dumps(options).encode())
    for name, path in files:
        digest.update(f"{name}\0{path.stat().st_mode & 0o111}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        digest.update(path.read_bytes())
    return digest.hexdigest()


def copied(files, folder):
    """Copy the files into a new folder; return it."""
    for name, path in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    folder.mkdir(exist_ok=True)
    return folder


def with_folder(options, folder):
    """The options of grade.py for one submission, with its folder for {dir}; without --tracker, its two Python programs are graded."""
    words = [word.replace("{dir}", shlex.quote(str(folder))) for word in options]
    return words if "--tracker" in options else ["--dir", str(folder), *words]


def graded(files, options, temporary, running):
    """Grade a submission: (results.json, the report). Failure if the grader refuses the options."""
    results = temporary / "results.json"
    command = [sys.executable, str(GRADER), *with_folder(options, copied(files, temporary / "submission")), "--results", str(results)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    running.add(process)
    try:
        printed = process.communicate()[0].decode("utf-8", "replace")  # it ends by itself, within its --limit
    finally:
        running.discard(process)
    if process.returncode not in (0, 1, 2):  # 2, with results: a program is missing
        raise ending.Failure(f"expected grade.py to end with 0 or 1, got {process.returncode}: {last_line(printed)}", 1)
    if not results.exists():
        raise ending.Failure(last_line(printed))
    return json.loads(as_students_see(results.read_text(), temporary)), as_students_see(printed, temporary)


def as_students_see(text, temporary):
    """The text with the path of the copy replaced by ../mine, as the notes call a student's folder."""
    copy = str(temporary / "submission")
    return text.replace(shlex.quote(copy), "../mine").replace(copy, "../mine")


def last_line(text):
    return (text.strip().splitlines() or ["nothing was said"])[-1]


# The table.


def kept(folder, student):
    """The existing results.json of a student, or None."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / f"{student}.json").read_text())
        return content if "graded" in content.get("extra_data", {}) else None


def put(path, text):
    """Replace a file, atomically."""
    part = path.with_name(f".part-{path.name}")
    part.write_text(text, errors="replace")
    part.replace(path)


def rows(student, content):
    """The lines of marks.csv for one student: one for each stage, and one for all, with the grader's note about the whole run."""
    note = " ".join(content.get("output", "").split())[:300]
    return [[student, *row, note if row[0] == "all" else ""] for row in marks.rows(content)]


def write_table(folder, students):
    """Write marks.csv for all students who have marks; return those who have none."""
    part = folder / ".part-marks.csv"
    without = []
    with part.open("w", newline="", errors="replace") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for student in students:
            content = kept(folder, student)
            table.writerows(rows(student, content) if content else [])
            without += [] if content else [student]
    part.replace(folder / "marks.csv")
    return without


# All of them.


def grade(folder, into, options, running):
    """Grade one submission, unless it has whole marks for the same files and options; return what to print about it."""
    try:
        files = files_of(folder)
        of = fingerprint(files, options)
        before = kept(into, folder.name)
        if before and before["extra_data"]["graded"] == of and not before["extra_data"].get("grade_again"):
            return f"{folder.name}: {before['score']} points, as before"
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=into, ignore_cleanup_errors=True) as temporary:
            content, printed = graded(files, options, pathlib.Path(temporary), running)
    except NotGradable as why:
        of, content, printed = None, {"score": 0, "output": str(why), "tests": []}, f"{why}\n"
    content.setdefault("extra_data", {})["graded"] = of
    put(into / f"{folder.name}.txt", printed)
    put(into / f"{folder.name}.json", json.dumps(content, indent=1))
    return f"{folder.name}: {content['score']} points" + (f"; {last_line(content['output'])}" if content.get("output") else "")


def grade_all(folders, into, options, jobs):
    """Grade several at a time, and print a line as each one ends. An interruption ends the gradings under way."""
    running = set()
    ending.hold_signals()
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(grade, folder, into, options, running) for folder in folders}
        while waiting:
            ending.check_signals()
            done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
            for future in done:
                print(future.result(), flush=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()  # it ends everything it has started, and so does its thread here
        raise
    finally:
        pool.shutdown()


def parse_arguments():
    own, _, options = (sys.argv[1:], "", []) if "--" not in sys.argv else (
        sys.argv[1:sys.argv.index("--")], "--", sys.argv[sys.argv.index("--") + 1:])
    parser = ending.Arguments(prog="class.py", description="Grade a folder of submissions.", allow_abbrev=False,
                              usage="class.py SUBMISSIONS [--marks FOLDER] [--jobs N] [-- OPTIONS of grade.py]")
    parser.add_argument("submissions", metavar="SUBMISSIONS", help="a folder with a folder for each student")
    parser.add_argument("--marks", metavar="FOLDER", default="marks", help="where marks.csv and the reports go (default: %(default)s)")
    parser.add_argument("--jobs", metavar="N", type=int, default=JOBS, help="gradings at a time (default: %(default)s, one for two cores)")
    args = parser.parse_args(own)
    for taken in ("--dir", "--results"):
        if taken in options:
            raise ending.Failure(f"expected options of grade.py after --, but without {taken}, which is set for each student")
    if args.jobs < 1:
        raise ending.Failure(f"--jobs: expected a number above 0, got {args.jobs}")
    args.options = absolute(options)
    return args


def absolute(options):
    """The options with the path of --hidden made absolute."""
    return [os.path.abspath(word) if at and options[at - 1] == "--hidden" else word for at, word in enumerate(options)]


def submissions_in(path):
    """The folders of the submissions, by name; Failure if there are none."""
    folders = sorted(folder for folder in pathlib.Path(path).iterdir() if folder.is_dir() and not folder.name.startswith(".")) \
        if os.path.isdir(path) else []
    if not folders:
        raise ending.Failure(f"expected a folder with a folder for each student, got {path!r}")
    return folders


def locked(folder):
    """Make the folder of the marks and reserve it for this run; return the lock, which must be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ending.Failure(f"expected {folder} for this run alone, but another one uses it; wait for its end") from None
    for left in folder.glob(f"{TEMPORARY}*"):  # left by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    return lock


def main():
    args = parse_arguments()
    folders, into = submissions_in(args.submissions), pathlib.Path(args.marks)
    students = [folder.name for folder in folders]
    with locked(into):
        try:
            grade_all(folders, into, args.options, args.jobs)
        finally:
            without = write_table(into, students)
    print(f"{len(students) - len(without)} of {len(students)} submissions have marks: {into / 'marks.csv'}")
    return 1 if without else 0


if __name__ == "__main__":
    ending.run(main)
