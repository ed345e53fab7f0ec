"""What people paste when they mean bytes: the columns of a hex dump, a string with escapes, a C array, or bare hex digits.

    streams(text)    the bytes; several where a dump shows both sides of a connection, one of them indented

Dumps are those of Wireshark (also "Follow TCP stream"), xxd, hexdump, hexdump -C, od and tcpdump -X. Offsets and
characters beside the bytes are left out: the offsets tell how many bytes each line holds.
Reading order: strings - dumps - digits.
"""

import ast
import re
import warnings

USUAL = 16  # bytes in a line of a dump, at most, if no offset tells
LINE = re.compile(r"([ \t]*)(0x)?([0-9A-Fa-f]{4,8})(:?)([ \t]+|$)(.*)")
ESCAPE = r"\\x[0-9A-Fa-f]{2}"


class NoBytes(ValueError):
    """The text cannot be read as bytes; the line says what was expected."""


# Strings.


def of_string(text):
    """The bytes of a string with escapes, in quotes unless a shell has removed them; None if it is not such a string."""
    text = re.sub(r"^bytearray\((.*)\)$", r"\1", text.strip(), flags=re.S)
    if not re.match(r"[bB]?['\"]", text) and (not re.search(ESCAPE, text) or re.fullmatch(rf"(?:{ESCAPE}|[\s,:|])*", text)):
        return None  # escapes alone are digits like any others
    for written in (f"({text})", "b'" + re.sub(r"^b(?=\\)", "", text).replace("'", r"\'") + "'"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about an escape that Python does not know
                value = ast.literal_eval(written)
            if isinstance(value, (bytes, str)):
                return value if isinstance(value, bytes) else value.encode("latin-1")
        except (SyntaxError, ValueError):
            continue
    return None


# Dumps.


def taken(words, most):
    """The bytes before a line's characters: at most `most`, up to a word that is not hex or a gap of three spaces."""
    found = []
    for gap, word in re.findall(r"(\s*)(\S+)", words.expandtabs()):
        if sum(map(len, found)) >= most or found and len(gap) > 2 or not re.fullmatch(r"(?:[0-9A-Fa-f]{2}){1,8}", word):
            break
        found.append(bytes.fromhex(word))
    return found


class Row:
    """One line of a dump."""

    def __init__(self, match):
        indent, _, self.offset, self.colon, self.gap, self.words = match.groups()
        self.indent = len(indent.expandtabs())
        self.repeated = False  # up to the next line, because a line * follows

    def bytes(self, most):
        words = taken(self.words, most)
        if not self.colon and words and {len(word) for word in words[:-1]} | {2} == {2} and len(words[0]) == 2:
            words = [word[::-1] for word in words]  # hexdump and od without options: 16-bit numbers in native byte order
        return b"".join(words)[:most]


def rows_of(text):
    """The rows of a dump; None if the text is not a dump."""
    rows = []
    for line in filter(str.strip, text.splitlines()):
        match = LINE.fullmatch(line.rstrip())
        if match:
            rows.append(Row(match))
        elif line.strip() == "*" and rows:
            rows[-1].repeated = True
        else:
            return None
    return rows or None


def joined(rows, base):
    """The bytes of one side's rows, with their offsets in this base; None if the offsets do not match the bytes."""
    data, width, first = b"", USUAL, None
    for row, following in zip(rows, [*rows[1:], None]):
        try:
            offset, until = int(row.offset, base), following and int(following.offset, base)
        except ValueError:
            return None
        first = offset if first is None else first
        if offset - first != len(data):
            return None
        some = row.bytes(until - offset if until is not None and not row.repeated and until > offset else width)
        width = max(len(some), 1) if until is not None else width
        data += some
        if row.repeated and some and until is not None:
            data += some * ((until - offset) // len(some) - 1)
    return data


def of_dump(text):
    """(the bytes of each side of a dump, whether it can hardly be anything else); None if it is not a dump."""
    rows = rows_of(text)
    if rows is None:
        return None
    sides = {}
    for row in rows:
        sides.setdefault(row.indent, []).append(row)
    for base in (16, 8):
        found = [joined(side, base) for side in sides.values()]
        if None not in found and any(found):
            sure = len(rows) > 1 or bool(rows[0].colon) or len(rows[0].gap) > 1 or len(rows[0].offset) % 2 == 1
            return [data for data in found if data], sure
    return None


# Digits.


def of_digits(text):
    """The bytes of hex digits; spaces, colons, commas, | and 0x are skipped, and so is the C around an array. NoBytes if there is a typo."""
    within = re.search(r"\{(.*)\}", text, re.S)
    plain = re.sub(r"/\*.*?\*/", " ", within[1], flags=re.S) if within else text
    plain = re.sub(r"\b0[xX]|\\x|[\s:,|]", lambda match: " " * len(match[0]), plain)
    typo = re.search(r"[^0-9a-fA-F ]", plain)
    if typo:
        raise NoBytes(f"got {typo[0]!r} at character {typo.start() + 1} of ")
    digits = plain.replace(" ", "")
    if len(digits) % 2:
        raise NoBytes(len(digits))
    return bytes.fromhex(digits)


def streams(text, whole):
    """The bytes that a text means. whole(data) tells whether they are whole frames; it decides if a text can be read in two ways."""
    string, dump = of_string(text), of_dump(text)
    if string is not None:
        return [string]
    if dump and (dump[1] or all(map(whole, dump[0]))):
        try:
            if dump[1] or not whole(of_digits(text)):
                return dump[0]
        except NoBytes:
            return dump[0]
    return [of_digits(text)]
