"""Lines as a figure within a page: drawn by matplotlib, in the colours of the page around it."""

import io
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, GRID = "#010203", "#040506"  # stand for the page's colours
WIDTH, HEIGHT = 9.0, 3.4  # inches of 72 points
# Told apart without red and green, on white and on black.
COLOURS = ("#2f7fc1", "#d98324", "#3a9b6b", "#b35fb0", "#8a8f98", "#c9485b", "#7b6bd6")
STYLE: Any = {
    "svg.fonttype": "none",  # text is text: it can be read aloud, and found
    "svg.hashsalt": "lep",  # the same figure has the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": GRID,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
}


def line_figure(
    lines: Iterable[tuple[str, Iterable[Any]]], x: str, y: str, *, points: bool = False
) -> str:
    """Named lines, each an x and a y sequence, as an SVG fragment; `x` and `y` name the axes.

    Empty without lines. `points` are marked where a line is made of few.
    """
    named = {name: [list(axis) for axis in both] for name, both in lines}
    if not named:
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        mark = "o" if points else ""
        drawn = [axes.plot(*both, marker=mark, markersize=3)[0] for both in named.values()]
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend = figure.legend(drawn, [*named], loc="outside upper left", ncols=min(len(named), 6))
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may have two dollar signs
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _fragment(buffer.getvalue(), f"{y} by {x}: {', '.join(named)}")


def _fragment(svg: str, label: str) -> str:
    """What stands in a page: without header and names of parts, as wide as its column."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<(metadata|style).*?</\1>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # of all figures of a page the same
    body = re.sub(r'font-family: [^;"]*', "font-family: inherit", body)
    body = body.replace(INK, "var(--soft)").replace(GRID, "var(--line)")
    body = body.replace("xlink:href", "href")
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None
    head = f'<svg class="figure" role="img" aria-label="{escape(label)}" {view[0]}'
    return re.sub(r"<svg[^>]*", lambda _: head, body, count=1)  # a name may have backslashes
