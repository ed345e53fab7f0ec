"""The systematic changes of lab/grader/mutate.py: what is changed, always in the same way, and that a run can continue where it stopped."""

import ast
import subprocess
import sys

import pytest

from harness import ROOT
import ending
import mutate
import stages

pytestmark = pytest.mark.ours

SAMPLE = '''import os


def f(a, b=1):
    """What it does, for a < b."""
    # a hint
    total = 0  # é: a byte more than a character
    if a < b and not total:
        total += a * 2
        print(f"a < {b}", "words for people", "key")
    while a >= 0:
        break
    return [x for x in range(b) if x] if total == 1 else None


class C:
    def m(self):
        return True
'''


def made(body, name="f"):
    """The texts that changes make from a function body of one line."""
    source = f"def {name}(a, b):\n    {body}\n"
    found = [mutate.changed(source, change) for change in mutate.changes(source, ast.parse(source).body[0])]
    for text in found:
        compile(text, "sample", "exec")
    return [text.splitlines()[1].strip() for text in found]


@pytest.mark.parametrize("body, expected", [
    ("return a < b", {"return (a <= b)", "return (a >= b)", "return None"}),
    ("return a == b", {"return (a != b)", "return None"}),
    ("return a is None", {"return (a is not None)", "return None"}),
    ("return a in b", {"return (a not in b)", "return None"}),
    ("a = 2", {"a = (3)", "a = (1)", "pass"}),
    ("a = 0", {"a = (1)", "pass"}),
    ("a = True", {"a = False", "pass"}),
    ("a = 0.5", {"a = (2.0)", "pass"}),
    ("a = 'key'", {"a = 'keyx'", "pass"}),
    ("a = 'words for people'", {"pass"}),
    ("a = a - b", {"a = (a + b)", "pass"}),
    ("a = a << b", {"a = (a >> b)", "pass"}),
    ("a = a and b", {"a = (a or b)", "a = (a)", "a = (b)", "pass"}),
    ("a = not b", {"a = (b)", "pass"}),
    ("a = ~b", {"a = (b)", "pass"}),
    ("a = a if b else None", {"a = (None if b else a)", "pass"}),
    ("a += b", {"pass"}),
    ("a(b)", {"pass"}),
    ("raise a", {"pass"}),
    ("del a[b]", {"pass"}),
    ("return", set()),
    ("if a: b()", {"if True: b()", "if False: b()", "if a: pass"}),
    ("a = [b for b in a if b]", {"a = [b for b in a if True]", "pass"}),
    ("while a: break", {"while False: break", "while a: continue"}),
    ("a = f'{b + 1}'", {"pass"}),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_made_of_a_line(body, expected):
    found = made(body)
    assert set(found) == expected and len(found) == len(expected)


def test_swapped_branches_are_a_condition_with_a_not():
    source = "def f(a):\n    if a:\n        return 1\n    else:\n        return 2\n"
    assert any("if not (a):" in mutate.changed(source, change) for change in mutate.changes(source, ast.parse(source).body[0]))


def test_only_the_body_changes_and_neither_docstring_nor_messages_nor_defaults():
    function = ast.parse(SAMPLE).body[1]
    for change in mutate.changes(SAMPLE, function):
        text = mutate.changed(SAMPLE, change)
        compile(text, "sample", "exec")
        assert text != SAMPLE and text.startswith(SAMPLE[:SAMPLE.index("    # a hint")]) and text.endswith(SAMPLE[SAMPLE.index("class C"):])
        assert 'f"a < {b}"' in text and '"words for people"' in text or change.new == "pass"


def test_a_place_is_found_also_behind_a_character_of_several_bytes():
    source = "def f(a):\n    return 'é', a < 1\n"
    assert "    return 'é', (a <= 1)\n" in [mutate.changed(source, change).splitlines(True)[1] for change in mutate.changes(source, ast.parse(source).body[0])]


def test_a_function_is_known_by_its_code_and_not_by_its_words():
    digest = mutate.digest_of(ast.parse(SAMPLE).body[1])
    assert mutate.digest_of(ast.parse(SAMPLE.replace("# a hint", "# another").replace("What it does", "What")).body[1]) == digest
    assert mutate.digest_of(ast.parse(SAMPLE.replace("a * 2", "a * 3")).body[1]) != digest


def test_the_same_source_has_the_same_changes_each_of_which_compiles_and_is_another_program():
    found = mutate.mutations(2)
    assert found == mutate.mutations(2) and len(found) > 20
    assert len({(one.function, one.number) for one in found}) == len({one.text for one in found}) == len(found)
    for one in found:
        compile(one.text, one.function, "exec")
        assert one.text != mutate.texts()[one.function.partition(".")[0]] and one.before != one.after


def test_all_stages_together_have_five_hundred():
    assert sum(len(mutate.mutations(stage.number)) for stage in stages.STAGES) >= 500


# The results.


def a_row(outcome, judgement="", number=1, before="a < b"):
    return {"stage": 2, "function": "peer.Peer.prove", "digest": "0123abcd", "number": number, "kind": "comparison", "before": before, "after": "a | b",
            "outcome": outcome, "judgement": judgement}


def test_what_was_written_is_read_again(tmp_path):
    rows = [a_row("caught: test_a", number=10), a_row("survived", "equivalent: a is b, \"here\"", number=9)]
    mutate.write_results(rows, tmp_path / "x.csv")
    read = mutate.read_results(tmp_path / "x.csv")
    assert list(read) == [("peer.Peer.prove", "0123abcd", 9), ("peer.Peer.prove", "0123abcd", 10)]
    assert [row["judgement"] for row in read.values()] == [rows[1]["judgement"], ""]
    assert mutate.read_results(tmp_path / "none.csv") == {}


def test_a_judgement_stays_with_its_change_though_the_function_has_become_another_one():
    one = mutate.Mutation(2, "peer.Peer.prove", "ffffffff", 7, "comparison", "a < b", "a | b", "")
    judgements = {("peer.Peer.prove", "a < b", "a | b"): "free: no clause"}
    assert mutate.row_of(one, "survived", judgements)["judgement"] == "free: no clause"
    assert mutate.row_of(one, "caught: test_a", judgements)["judgement"] == ""
    assert mutate.row_of(one._replace(after="a + b"), "survived", judgements)["judgement"] == ""


def test_the_table_shows_what_survived_and_counts_all():
    text = mutate.table([a_row("caught: test_a"), a_row("survived", "equivalent: so"), a_row("survived", "", before="x | y")])
    assert "| 2 | 3 | 1 | 2 | 1 | 0 | 0 | 1 |" in text
    assert "| `a < b` | `a \\| b` | equivalent: so |" in text and "| `x \\| y` | `a \\| b` | **not judged yet** |" in text


def test_the_table_in_the_repository_is_of_the_results_and_each_judgement_is_of_a_known_kind():
    rows = list(mutate.read_results().values())
    assert mutate.TABLE.read_text() == mutate.table(rows)
    left = [row for row in rows if row["outcome"] == "survived"]
    assert all(row["judgement"].partition(":")[0] in ("", "equivalent", "free", "later", "missing") for row in left)


# The command.


@pytest.mark.parametrize("text, found", [("0-3", [0, 1, 2, 3]), ("5", [5]), ("0-1,7", [0, 1, 7])])
def test_stages_are_numbers_or_ranges(text, found):
    assert mutate.stage_numbers(text) == found


@pytest.mark.parametrize("arguments", [["--stages", "8"], ["--stages", "x"], ["--stages", "3-1"], ["--seconds", "x"], ["more"]], ids=" ".join)
def test_wrong_usage_is_one_line(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["mutate.py", *arguments])
    code, line = ending.outcome(mutate.main)
    assert code == 2 and line and "\n" not in line
