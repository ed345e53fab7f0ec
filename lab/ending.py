"""How the tools in lab/ end: with an exit code, at most one line on stderr, and a traceback only for a bug.

    if __name__ == "__main__":
        ending.run(main)

Signals end a tool in one of two ways. Under run(), they raise Interrupted wherever the tool is. A tool that starts
processes calls hold_signals() first: then only check_signals(), which it calls while it waits, raises Interrupted,
and never between the start of a process and its entry in the list of processes.

This module imports nothing of ours, because explain.py, grade.py and starter.py must work without peer.py.
"""

import argparse
import contextlib
import os
import signal
import sys


class Failure(Exception):
    """A problem that the user can fix: the line says what was expected, what came and what to do. `code` is the exit code."""

    def __init__(self, line, code=2):
        super().__init__(line)
        self.code = code


class Arguments(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message):
        raise Failure(f"{message}; see --help")


class Interrupted(KeyboardInterrupt):
    """A signal that ends the tool."""

    def __init__(self, number):
        super().__init__(number)
        self.code = 128 + number


held = []  # signals that came since hold_signals()


def catch_signals(handler):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(number, handler)


def interrupt(number, frame):
    raise Interrupted(number)


def hold_signals():
    catch_signals(lambda number, frame: held.append(number))


def check_signals():
    """Raise Interrupted if a signal came since hold_signals()."""
    if held:
        raise Interrupted(held[0])


def outcome(main, told=()):
    """(exit code, line for stderr) of main(), which returns its exit code or None. The line is empty if there is nothing to say."""
    try:
        return main() or 0, ""
    except (Failure, Interrupted, *told) as failure:
        return failure.code, "" if isinstance(failure, Interrupted) else str(failure)
    except SystemExit as end:  # of argparse, after --help
        return end.code or 0, ""
    except BrokenPipeError:  # the reader, such as head, has seen enough
        return 1, ""
    except OSError as error:
        return 1, f"cannot {f'use {error.filename}' if error.filename else 'write to stdout'}: {error.strerror or error}"


def run(main, *told):
    """Run a tool's main() and end the process. `told`: further exceptions to be shown as one line, like Failure; each has a `code`."""
    catch_signals(interrupt)
    if sys.stdout:  # None if it was closed from the start
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show … shows ?
    code, line = outcome(main, told)
    unwritten, why = outcome(lambda: print(end="", flush=True))
    if unwritten:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the flush at the end of the process would complain
    if line or why:
        with contextlib.suppress(OSError):
            print(f"{os.path.basename(sys.argv[0])}: {line or why}", file=sys.stderr)
    sys.exit(code or int(why != ""))
