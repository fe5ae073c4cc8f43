"""The page of `lep tokenizer compare`, with nothing outside it."""

from pathlib import Path

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lep.report.page import figure_html
from lep.tokenizer.compare import Comparison


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write what `compare_tokenizers` measured as one HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lep.report", "."), autoescape=True
    )
    page = environment.get_template("tokenizers.html").render(
        record=comparison,
        curves=curve_figure(comparison.curves) if comparison.curves else "",
        plotly=get_plotlyjs(),
    )
    path.write_text(page, encoding="utf-8")


def curve_figure(curves: dict[str, dict[str, list[tuple[int, float]]]]) -> str:
    """Symbols per token against added tokens, one line a tokenizer and text, as an HTML fragment."""
    figure = go.Figure()
    for name, texts in curves.items():
        for text, points in texts.items():
            figure.add_scatter(
                x=[added for added, _ in points],
                y=[value for _, value in points],
                name=f"{name}, {text}",
            )
    return figure_html(figure, "new tokens", "symbols per token")
