"""Pictures for lab/distribution.py and lab/timeline.py: one self-contained SVG, legible in light and in dark.

Colours are classes, so that one style sheet serves both: `s0` … `s7` are eight series that most
colour-blind readers can tell apart, to be used in this order; `ink`, `dim` and `grid` are text,
secondary text and lines. Series also differ in their markers or dashes, never in colour alone.

Reading order: numbers on axes - the picture - a plot with two axes - labels and legend.
"""

import math
from xml.sax.saxutils import escape

FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SIZE = 13            # pixels: text of axes and legends
LETTER = 0.56        # of the font size: the average width of a letter in such fonts
PAPER = "#ffffff", "#14171c"   # light, dark
INK = "#1b1f24", "#e8eaed"
DIM = "#59626d", "#a5aeb9"
GRID = "#e1e4e8", "#31363d"
SERIES = [("#0a63b0", "#5aa9f0"), ("#c2500a", "#ff9757"), ("#0b7f5c", "#3fc79a"), ("#a2348c", "#e683d2"),
          ("#8a6d00", "#dcb733"), ("#5b50c7", "#a79df8"), ("#b3242f", "#ff7b80"), ("#3f7d8c", "#78c3d4")]
MARKERS = "circle", "square", "triangle", "diamond"
DASHES = "", "7 4", "2 3", "9 3 2 3"


# Numbers on axes.


def step_for(low, high, most):
    """1, 2 or 5 times a power of ten, so that about `most` steps fit between `low` and `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def multiples(step, first, last):
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def ticks(low, high, most=6):
    """Round numbers from `low` to `high`, at most `most` of them and one more."""
    if not high > low:
        return [low]
    step = step_for(low, high, most)
    return multiples(step, math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9))


def ticks_around(low, high, most=6):
    """Round numbers for an axis: the first is not above `low`, and the last is above `high`."""
    step = step_for(low, high if high > low else low + 1, most)
    return multiples(step, math.floor(low / step + 1e-9), math.floor(high / step + 1e-9) + 1)


def number(value):
    """A number as an axis shows it: no more digits than it needs."""
    return f"{value:.6g}"


# The picture.


def two_themes():
    """The style sheet, with every colour once for light mode and once for dark."""
    def rules(theme):
        series = "".join(f".s{n}{{fill:{pair[theme]}}}.l{n}{{stroke:{pair[theme]}}}" for n, pair in enumerate(SERIES))
        return (f".paper{{fill:{PAPER[theme]}}}.halo{{stroke:{PAPER[theme]}}}.ink{{fill:{INK[theme]}}}.dim{{fill:{DIM[theme]}}}"
                f".axis{{stroke:{DIM[theme]}}}.grid{{stroke:{GRID[theme]}}}.band{{fill:{GRID[theme]}}}{series}")
    return rules(0) + "@media (prefers-color-scheme: dark){" + rules(1) + "}"


class Picture:
    """Collects shapes, in pixels from the top left; `save` writes them. `title` and `description` are for readers who cannot see it."""

    def __init__(self, width, height, title, description=""):
        self.width, self.height = width, height
        self.parts = [f"<title>{escape(title)}</title><desc>{escape(description)}</desc>",
                      f"<style>text{{font:{SIZE}px {FONT}}}.line{{fill:none;stroke-width:2}}.thin{{stroke-width:1}}"
                      f".halo{{stroke-width:1.5}}{two_themes()}</style>",
                      f'<rect class="paper" width="{number(width)}" height="{number(height)}"/>']

    def add(self, tag, text=None, tip=None, **attributes):
        """One element; `class_` and `stroke_width` become class and stroke-width, floats are rounded to a tenth of a pixel."""
        words = [f'{name.rstrip("_").replace("_", "-")}="{escape(str(round(value, 1) if isinstance(value, float) else value), {chr(34): "&quot;"})}"'
                 for name, value in attributes.items()]
        inside = (f"<title>{escape(tip)}</title>" if tip else "") + (escape(text) if text is not None else "")
        self.parts.append(f"<{tag} {' '.join(words)}" + (f">{inside}</{tag}>" if inside else "/>"))

    def text(self, x, y, text, class_="ink", **attributes):
        self.add("text", text, x=float(x), y=float(y), class_=class_, **attributes)

    def heading(self, text, below=""):
        """The picture's title and, under it, what was measured and how."""
        self.text(16, 26, text, font_weight="600", style="font-size:16px")
        for row, line in enumerate(below.splitlines()):
            self.text(16, 46 + 18 * row, line, class_="dim")

    def mark(self, x, y, series, tip=None, size=5.0):
        """The marker of a series, centred at a point, with a rim that keeps it apart from what lies under it."""
        corners = {1: [(-1, -1), (1, -1), (1, 1), (-1, 1)], 2: [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)], 3: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)]}
        style = {"class_": f"s{series % len(SERIES)} halo", "tip": tip}
        shape = series % len(MARKERS)
        if shape == 0:
            self.add("circle", cx=float(x), cy=float(y), r=size, **style)
        else:
            self.add("polygon", points=" ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners[shape]), **style)

    def path(self, points, series, dash=""):
        """A line through some points."""
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.add("path", d=d, class_=f"line l{series % len(SERIES)}", **({"stroke_dasharray": dash} if dash else {}))

    def markup(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(self.width)} {number(self.height)}" '
                f'width="{number(self.width)}" height="{number(self.height)}" role="img">\n' + "\n".join(self.parts) + "\n</svg>\n")

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.markup())


# A plot with two axes.


class Plot:
    """A rectangle of a picture in which x and y have a scale: box = (left, top, right, bottom) in pixels, x and y = (low, high).

    With `log_x`, equal distances along x mean equal factors.
    """

    def __init__(self, picture, box, x, y, log_x=False):
        self.picture, self.box, self.x_range, self.y_range, self.log_x = picture, box, x, y, log_x

    def x(self, value):
        left, _, right, _ = self.box
        low, high, value = map(math.log2, (*self.x_range, value)) if self.log_x else (*self.x_range, value)
        return left + (value - low) / ((high - low) or 1) * (right - left)

    def y(self, value):
        _, top, _, bottom = self.box
        low, high = self.y_range
        return bottom - (value - low) / ((high - low) or 1) * (bottom - top)

    def x_axis(self, title, marks=None, grid=False):
        """The line under the plot, with its ticks, their numbers and a title that names the unit."""
        left, top, right, bottom = self.box
        for value in ticks(*self.x_range) if marks is None else marks:
            x = float(self.x(value))
            if grid:
                self.picture.add("line", x1=x, x2=x, y1=float(top), y2=float(bottom), class_="grid")
            self.picture.add("line", x1=x, x2=x, y1=float(bottom), y2=bottom + 5.0, class_="axis")
            self.picture.text(x, bottom + 20, number(value), class_="dim", text_anchor="middle")
        self.picture.add("line", x1=float(left), x2=float(right), y1=float(bottom), y2=float(bottom), class_="axis")
        self.picture.text((left + right) / 2, bottom + 40, title, text_anchor="middle")

    def y_axis(self, title, marks=None):
        """Lines across the plot at round numbers, and a title that names the unit."""
        left, top, right, bottom = self.box
        for value in ticks(*self.y_range) if marks is None else marks:
            y = float(self.y(value))
            self.picture.add("line", x1=float(left), x2=float(right), y1=y, y2=y, class_="grid")
            self.picture.text(left - 8, y + 4, number(value), class_="dim", text_anchor="end")
        middle = (top + bottom) / 2
        self.picture.text(left - 54, middle, title, text_anchor="middle", transform=f"rotate(-90 {left - 54:.1f} {middle:.1f})")

    def curve(self, points, series, dash=""):
        self.picture.path([(self.x(x), self.y(y)) for x, y in points], series, dash)

    def marks(self, points, series, tip=lambda x, y: None):
        for x, y in points:
            self.picture.mark(self.x(x), self.y(y), series, tip(x, y))


# Names of the lines: labels at their ends, or a legend.


def spread(wanted, apart, low, high):
    """Places between `low` and `high`, at least `apart` from each other, each near the wanted one, in the same order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups = []  # for each group of places that touch: [sum of where each member would put the first one, number of members]
    for index in order:
        groups.append([wanted[index], 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] + groups[-2][1] * apart > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total - count * groups[-1][1] * apart
            groups[-1][1] += count
    places = [total / count + apart * number for total, count in groups for number in range(count)]
    for rank in range(len(places)):  # a place beyond an end pushes the others
        places[rank] = max(places[rank], low + rank * apart)
    for rank in reversed(range(len(places))):
        places[rank] = min(places[rank], high - (len(places) - 1 - rank) * apart)
    found = dict(zip(order, places))
    return [found[index] for index in range(len(wanted))]


def line_labels(picture, ends, x, low, high):
    """A label at the end of each line: `ends` are (x, y, series, dash, text), labels stand at `x`, between the heights `low` and `high`."""
    for (from_x, from_y, series, dash, text), y in zip(ends, spread([end[1] for end in ends], 17, low, high)):
        picture.add("path", d=f"M{from_x + 6:.1f} {from_y:.1f}L{x - 22:.1f} {y:.1f}", class_=f"line thin l{series}", stroke_opacity=0.5)
        picture.path([(x - 22, y), (x - 4, y)], series, dash)
        picture.text(x, y + 4.5, text)


def legend(picture, x, y, entries):
    """Rows of (series, dash or None for a marker, text) from a point downwards."""
    for row, (series, dash, text) in enumerate(entries):
        middle = y + row * 21
        if dash is None:
            picture.mark(x + 14, middle, series)
        else:
            picture.path([(x, middle), (x + 28, middle)], series, dash)
        picture.text(x + 37, middle + 4.5, text)
