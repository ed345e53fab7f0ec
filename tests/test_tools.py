"""What all tools in lab/ do when nobody reads their output, when there is no room for it, and when they are interrupted."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

import processes
from harness import ROOT, Program, Terminal, eventually

pytestmark = pytest.mark.ours
SAY_SOMETHING = {
    "explain_hex": ["lab/tools/explain.py", "0000000000000002 2a00"],
    "explain_a_capture": ["lab/tools/explain.py", "lab/exchange.pcap"],
    "explain_what_is_wrong": ["lab/tools/explain.py", "--port", "1", "lab/exchange.pcap"],
    "timeline": ["lab/timeline.py", "{events}", "--out", "{folder}/x.svg"],
    "starter": ["lab/grader/starter.py", "{folder}/starter"],
    "samples": ["lab/grader/samples.py", "{folder}/samples"],
    "gauntlet": ["lab/grader/gauntlet.py", "--list"],
    "variants": ["lab/grader/variants.py", "--list"],
    "grade": ["lab/grader/grade.py", "--stage", "0", "-k", "does_not_count", "--results", "{folder}/results.json"],
    "demo": ["lab/demo.py"],
    "simulate": ["lab/simulate.py", "--leechers", "2", "--chunks", "2", "--runs", "1"],
    "links": ["lab/links.py", "--help"],
    "watch": ["lab/tools/watch.py", "--help"],
    "distribution": ["lab/distribution.py", "--point", "1", "2", "--limit", "1M", "--chunk-size", "1K"],
}
SIGNALS = [signal.SIGINT, signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)  # under nohup it stays ignored
NO_READER = {"nobody_reads": '"$0" "$@" | true; exit ${PIPESTATUS[0]}', "no_room": '"$0" "$@" > /dev/full', "closed": '"$0" "$@" >&-'}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("how", NO_READER)
@pytest.mark.parametrize("tool", [pytest.param(tool, marks=[pytest.mark.long] if tool in ("distribution", "grade") else []) for tool in SAY_SOMETHING])
def test_a_stdout_that_takes_nothing_costs_at_most_one_line(tool, how, tmp_path):
    (tmp_path / "x.events").write_text('{"t": 1, "event": "fetched", "chunk": 0, "bytes": 10, "of": "127.0.0.1:1", "seconds": 0.5}\n')
    words = [word.format(folder=tmp_path, events=tmp_path / "x.events") for word in SAY_SOMETHING[tool]]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("PYTHONUNBUFFERED", None)  # then printing fails only at the very end
    ended = subprocess.run(["bash", "-c", NO_READER[how], sys.executable, *words], cwd=ROOT, env=environment,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60)
    if (tool, how) in (("watch", "closed"), ("links", "closed")):
        return  # then argparse shows its help on stderr
    assert ended.returncode in (0, 1, 2) and ended.stderr.count("\n") <= 1 and not re.search(r"Traceback|Exception", ended.stderr), ended.stderr
    assert how != "nobody_reads" or tool == "explain_what_is_wrong" or not ended.stderr, "a reader that has gone is nothing to talk about"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


@pytest.mark.parametrize("tool", ["explain_a_capture", "distribution"])
def test_a_terminal_that_lacks_a_sign_is_shown_another(tool):
    ended = subprocess.run([sys.executable, *SAY_SOMETHING[tool]], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"},
                           capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "") and "?" in ended.stdout


ENDING = "import sys, time; sys.path.insert(0, 'lab'); import ending; "


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("held", [False, True])
def test_a_signal_ends_a_tool_without_a_word(ending, number, held):
    wait = "while True: ending.check_signals() or time.sleep(0.01)" if held else "time.sleep(60)"
    code = f"{ENDING}\ndef main():\n {'ending.hold_signals(); ' * held}print('begun', flush=True)\n {wait}\nending.run(main)"
    program = ending(Program([sys.executable, "-c", code]))
    program.wait_for("begun")
    program.signal(number)
    program.ends_with(128 + number)
    assert program.output == "begun\n"


@pytest.mark.parametrize("main, code, said", [
    ("print('all')", 0, ""), ("sys.exit(3)", 3, ""), ("1 / 0", 1, "ZeroDivisionError: division"), ("open('/absent/x')", 1, "-c: cannot use /absent/x: No such file"),
    ("(_ for _ in ()).throw(ending.Failure('expected one, got two'))", 2, "-c: expected one, got two")])
def test_what_ends_a_tool_is_its_exit_code_and_one_line_unless_it_is_a_bug(main, code, said):
    ended = subprocess.run([sys.executable, "-c", f"{ENDING}ending.run(lambda: {main})"], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert ended.returncode == code and said in ended.stderr and (ended.stderr.count("\n") <= 1) == ("Traceback" not in ended.stderr) == (main != "1 / 0")


SHOWN = """
import json, sys
sys.path.insert(0, "lab")
import demo
with open(sys.argv[1], "w") as file:
    file.write(json.dumps({"event": "fetched", "bytes": demo.SIZE // 2, "of": "127.0.0.1:1"}) + chr(10))
progress = demo.Progress("peer 1", sys.argv[1])
progress.read()
demo.show([progress, progress], again=True)
"""


@pytest.mark.parametrize("columns, shown", [
    (200, f"peer 1  [{'#' * 20}{'.' * 20}]  50.0 %    1 source"), (60, f"peer 1  [{'#' * 15}{'.' * 15}]  50.0 %    1 source"),
    (40, f"peer 1  [{'#' * 5}{'.' * 5}]  50.0 %    1 source"), (20, "peer 1  []  50.0 %  ")])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_the_bars_of_the_demo_are_one_line_each_on_a_narrow_terminal_too(ending, tmp_path, columns, shown, term):
    terminal = ending(Terminal([sys.executable, "-c", SHOWN, str(tmp_path / "x.events")], columns, term=term, COLUMNS="132"))
    assert len(shown) <= columns
    assert terminal.read() == ("\x1b[2A" + 2 * f"\x1b[K{shown}\n" if term == "xterm" else 2 * f"{shown}\n" + "\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_demo_that_is_interrupted_leaves_nothing_behind(ending, tmp_path, number):
    program = ending(Program([sys.executable, "lab/demo.py"], env={**os.environ, "TMPDIR": str(tmp_path)}))
    started = eventually(lambda: len(found := [pid for pid, _, _ in processes.descendants(program.pid)]) >= 4 and found, what="a tracker and some peers")
    program.signal(number)
    program.ends_with(128 + number)
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")] and os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by their parents")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_that_is_interrupted_leaves_nothing_behind(ending, tmp_path, recording_alone, number):
    program = ending(Program([sys.executable, "lab/exchange.py", str(tmp_path / "x.pcap")], env={**os.environ, "TMPDIR": str(tmp_path)}))

    def under_way():
        return len(found := [pid for pid, _, _ in processes.descendants(program.pid)]) >= 2 and found or program.process.poll() is not None

    started = eventually(under_way, what="dumpcap and a tracker, or the end")
    if started is True:
        pytest.skip("nothing can be captured here")
    program.signal(number)
    program.ends_with(128 + number)
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")] and os.listdir(tmp_path) in ([], ["x.pcap"])


@pytest.mark.parametrize("tool", ["starter", "samples"])
@pytest.mark.parametrize("name", [b"\xff", b"x" * 5000], ids=["no_utf8", "too_long"])
def test_a_folder_that_cannot_be_named_is_told_in_one_line(tool, name, tmp_path):
    ended = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "grader", f"{tool}.py"), name], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and f"{tool}.py: expected" in ended.stderr, ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments", [["--jobs", "x"], ["--limit"], ["-x"]])
def test_wrong_arguments_of_the_gauntlet_are_told_in_one_line(arguments):
    ended = subprocess.run([sys.executable, pathlib.Path(ROOT, "lab", "grader", "gauntlet.py"), *arguments], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "gauntlet.py: " in ended.stderr, ended.stderr
