"""Charts as SVG: bars in groups, and lines over logarithmic sizes. The same input gives the same
bytes."""

import math
from collections import namedtuple
from xml.sax.saxutils import escape

WIDTH = 800
MARGIN = 24
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# What a letter takes at the most, as a part of its size: fonts differ from reader to reader.
LETTER = 0.6
INK, FAINT, GRID, PAPER = "#1f2328", "#57606a", "#d8dee4", "#ffffff"

# Those of Okabe and Ito, whom the colour-blind can tell apart as well.
GREY, BLUE, SKY, GREEN = "#8c959f", "#0072b2", "#56b4e9", "#009e73"
ORANGE, VERMILION, PURPLE = "#e69f00", "#d55e00", "#cc79a7"

# `text` stands beside the bar; `lower` and `upper` are quartiles, or `None`.
Bar = namedtuple("Bar", "label value color text lower upper", defaults=(None, None))
Group = namedtuple("Group", "heading bars")
# `side` is where the values stand: above the points, below them, or nowhere (0).
Line = namedtuple("Line", "label color points side")
# Ticks are values with their labels.
Axis = namedtuple("Axis", "label ticks is_logarithmic")


def coordinate(number):
    """Without digits that nobody sees."""
    return f"{number:.1f}".removesuffix(".0")


def duration(ns):
    """Of three digits or four, with its unit."""
    for unit, size in (("ms", 1e6), ("µs", 1e3)):
        if ns >= 10 * size:
            number = ns / size
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.1f} {unit}"
    return f"{ns:,.0f} ns"


def linear_ticks(most, about=6):
    """Round numbers from 0 on, of which the last is no less than `most`."""
    power = 10 ** math.floor(math.log10(most / about))
    step = next(power * each for each in (1, 2, 5, 10) if power * each * about >= most)
    # Without the last digits of a product, which are an accident.
    return [round(step * each, 9) for each in range(math.ceil(round(most / step, 6)) + 1)]


def decades(least, most):
    """Powers of ten, from one that is no more than `least` to one that is no less than `most`."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10**power for power in range(first, last + 1)]


def scale(axis, start, end):
    """Where a value is between `start` and `end`, which are those of the outermost ticks."""
    measure = math.log10 if axis.is_logarithmic else float
    low, high = (measure(axis.ticks[at][0]) for at in (0, -1))
    return lambda value: start + (measure(value) - low) / (high - low) * (end - start)


class Drawing:
    def __init__(self):
        self.parts = []

    def text(self, x, y, text, anchor="start", size=13, fill=INK, weight="normal", turned=False):
        turn = f' transform="rotate(-90 {coordinate(x)} {coordinate(y)})"' if turned else ""
        bold = f' font-weight="{weight}"' if weight != "normal" else ""
        # Around the letters there is paper, so that no line runs through them.
        self.parts.append(
            f'<text x="{coordinate(x)}" y="{coordinate(y)}" font-size="{size}" fill="{fill}" '
            f'text-anchor="{anchor}" stroke="{PAPER}" stroke-width="4" stroke-linejoin="round" '
            f'paint-order="stroke"{bold}{turn}>{escape(text)}</text>'
        )

    def line(self, x1, y1, x2, y2, stroke=GRID, width=1, dashes=None):
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        x1, y1, x2, y2 = map(coordinate, (x1, y1, x2, y2))
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{stroke}" '
            f'stroke-width="{width}"{dashed}/>'
        )

    def bar(self, x, y, width, height, fill):
        x, y, width, height = map(coordinate, (x, y, width, height))
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>'
        )

    def path(self, points, stroke):
        places = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
        self.parts.append(
            f'<polyline points="{places}" fill="none" stroke="{stroke}" stroke-width="2"/>'
        )
        for x, y in points:
            self.parts.append(
                f'<circle cx="{coordinate(x)}" cy="{coordinate(y)}" r="3.5" fill="{stroke}"/>'
            )

    def heads(self, title, notes):
        """The title and what is to be known; says where they end."""
        self.text(MARGIN, 34, title, size=17, weight="bold")
        y = 34
        for note in notes:
            y += 19
            self.text(MARGIN, y, note, fill=FAINT)
        return y + 14

    def svg(self, height, title, description):
        height = coordinate(height)
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="{FONT}" role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{PAPER}"/>',
            *self.parts,
            "</svg>\n",
        ])


def bar_chart(title, notes, groups, axis_label, tick_label, reference=None):
    """Bars from left to right, in groups with headings; a line at `reference`."""
    bars = [bar for group in groups for bar in group.bars]
    left = MARGIN + 13 * LETTER * max(len(bar.label) for bar in bars) + 10
    right = WIDTH - MARGIN - 13 * LETTER * max(len(bar.text) for bar in bars) - 8
    ticks = linear_ticks(max(bar.upper or bar.value for bar in bars))
    axis = Axis(axis_label, [(tick, tick_label(tick)) for tick in ticks], False)
    place = scale(axis, left, right)

    drawing = Drawing()
    top = drawing.heads(title, notes)
    thick, row, heading = 15, 21, 30
    bottom = top + sum(heading + row * len(group.bars) for group in groups) + 8
    for tick, label in axis.ticks:
        drawing.line(place(tick), top, place(tick), bottom)
        drawing.text(place(tick), bottom + 17, label, anchor="middle", size=12, fill=FAINT)
    drawing.text((left + right) / 2, bottom + 38, axis_label, anchor="middle")
    if reference is not None:
        drawing.line(place(reference), top, place(reference), bottom, stroke=INK, dashes="4 3")
    y = top
    for group in groups:
        y += heading
        drawing.text(left, y - 7, group.heading, weight="bold")
        for bar in group.bars:
            middle = y + thick / 2
            drawing.text(left - 8, middle + 4.5, bar.label, anchor="end")
            drawing.bar(left, y, place(bar.value) - left, thick, bar.color)
            end = place(bar.value)
            if bar.lower is not None:
                low, high = place(bar.lower), place(bar.upper)
                drawing.line(low, middle, high, middle, stroke=INK)
                for at in (low, high):
                    drawing.line(at, middle - 4, at, middle + 4, stroke=INK)
                end = max(end, high)
            drawing.text(end + 6, middle + 4.5, bar.text)
            y += row
    description = " ".join([
        *notes,
        *(
            f"{group.heading}: " + ", ".join(f"{bar.label} {bar.text}" for bar in group.bars) + "."
            for group in groups
        ),
    ])
    return drawing.svg(bottom + 54, title, description)


def line_chart(title, notes, lines, x_axis, y_axis):
    """Lines through points, with the values at them."""
    drawing = Drawing()
    top = drawing.heads(title, notes)
    x = MARGIN
    for line in lines:
        drawing.bar(x, top + 1, 22, 4, line.color)
        drawing.text(x + 28, top + 8, line.label)
        x += 28 + 13 * LETTER * len(line.label) + 24
    top += 34
    left, right, bottom = MARGIN + 84, WIDTH - MARGIN, top + 360
    # Values at the outermost points need room beside them.
    across = scale(x_axis, left + 42, right - 42)
    up = scale(y_axis, bottom, top)
    for tick, label in y_axis.ticks:
        drawing.line(left, up(tick), right, up(tick))
        drawing.text(left - 8, up(tick) + 4.5, label, anchor="end", size=12, fill=FAINT)
    for tick, label in x_axis.ticks:
        drawing.line(across(tick), bottom, across(tick), bottom + 5, stroke=FAINT)
        drawing.text(across(tick), bottom + 20, label, anchor="middle", size=12, fill=FAINT)
    drawing.line(left, bottom, right, bottom, stroke=FAINT)
    drawing.text((left + right) / 2, bottom + 42, x_axis.label, anchor="middle")
    drawing.text(MARGIN + 8, (top + bottom) / 2, y_axis.label, anchor="middle", turned=True)
    for line in lines:
        drawing.path([(across(size), up(ns)) for size, ns in line.points], line.color)
    for line in lines:
        for size, ns in line.points:
            if line.side:
                y = up(ns) + (-10 if line.side > 0 else 21)
                drawing.text(across(size), y, duration(ns), anchor="middle", size=12)
    sizes = dict(x_axis.ticks)
    description = " ".join([
        *notes,
        *(
            f"{line.label}: "
            + ", ".join(f"{sizes[size]} {duration(ns)}" for size, ns in line.points) + "."
            for line in lines
        ),
    ])
    return drawing.svg(bottom + 58, title, description)
