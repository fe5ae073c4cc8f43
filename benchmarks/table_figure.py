"""A table of a markdown page as a figure: a panel for each column, a dot for each value.

    python benchmarks/table_figure.py PAGE HEADING --output FIGURE.svg \\
        [--rows model] [--colours strength] [--columns "bits/byte ru" ...] [--without ROW ...]

`--rows` names the column whose entries stand at the left (the first, unless given), `--colours` one
that is told apart by colour. `1.2 ± 0.1`, `1.2 (1.1 - 1.3)` and a ratio, `2.4 (x1.2, 1.1 to 1.3)`,
are dots with an interval, a number alone is a dot; cells without a number are left out.
"""

import argparse
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from lep.report.figure import COLOURS

Row = dict[str, str]
NUMBER = r"([+-]?[\d,]*\.?\d+)"
RATIO = re.compile(rf"\(x{NUMBER}, {NUMBER} to {NUMBER}\)")
INTERVAL = re.compile(rf"^{NUMBER} \({NUMBER} (?:-|to) {NUMBER}\)")
ERROR = re.compile(rf"^{NUMBER} ± {NUMBER}")
PLAIN = re.compile(rf"^{NUMBER}")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lep",  # the same figure has the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def table_of(page: str, heading: str) -> list[Row]:
    """The first table below a heading, a row for each of its lines."""
    _, found, below = page.partition(f"# {heading}\n")
    if not found:
        raise SystemExit(f'the page has no heading "{heading}"')
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()
    ]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def value_of(cell: str) -> tuple[float, float, float] | None:
    """The number of a cell with the ends of its interval, or with itself twice."""
    for pattern in (RATIO, INTERVAL, ERROR, PLAIN):
        if match := pattern.search(cell):
            value, *ends = (float(number.replace(",", "")) for number in match.groups())
            if pattern is ERROR:
                ends = [value - ends[0], value + ends[0]]
            low, high = ends or (value, value)
            return value, low, high
    return None


def plain(name: str) -> str:
    """A cell's words, without backquotes and without the addresses of links."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", name).replace("`", "")


def draw(table: list[Row], rows: str, colours: str | None, columns: list[str]) -> Figure:
    names = list(dict.fromkeys(row[rows] for row in table))[::-1]
    groups = list(dict.fromkeys(row[colours] for row in table)) if colours else [""]
    figure = Figure(
        figsize=(
            max(2.2, 0.4 + 0.075 * max(map(len, names))) + 1.7 * len(columns),
            1.0 + 0.26 * len(names),
        ),
        layout="constrained",
    )
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        for number, group in enumerate(groups):
            here = [row for row in table if not colours or row[colours] == group]
            known = [(row[rows], value) for row in here if (value := value_of(row[column]))]
            shift = 0.22 * (number - (len(groups) - 1) / 2)
            panel.errorbar(
                [value for _, (value, _, _) in known],
                [names.index(name) - shift for name, _ in known],
                xerr=[
                    [value - low for _, (value, low, _) in known],
                    [high - value for _, (value, _, high) in known],
                ],
                fmt="o",
                markersize=3.5,
                linewidth=1,
                color=COLOURS[number],
                label=group,
            )
        panel.set_title(column, fontsize=9)
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    for panel in panels:
        panel.tick_params(left=False)
    if colours:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(groups), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("heading")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows")
    parser.add_argument("--colours")
    parser.add_argument("--columns", nargs="+")
    parser.add_argument("--without", nargs="*", default=[], help="rows to leave out")
    a = parser.parse_args()
    table = table_of(a.page.read_text(encoding="utf-8"), a.heading)
    rows = a.rows or next(iter(table[0]))
    table = [row | {rows: plain(row[rows])} for row in table]
    table = [row for row in table if row[rows] not in a.without]
    columns = a.columns or [name for name in table[0] if name not in (rows, a.colours)]
    with mpl.rc_context(STYLE):
        draw(table, rows, a.colours, columns).savefig(a.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
