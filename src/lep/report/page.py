"""Write the page: `report.html` in the run folder, with nothing outside it."""

import json
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lep import __version__
from lep.evaluation.table import benchmark_table
from lep.publish import publish_text
from lep.report import data
from lep.report.grid import grid_blocks


def write_report(folder: Path) -> Path:
    """Gather what the run left in its folder and write `report.html` there; returns its path."""
    run = data.read_run(folder)
    if "cells" in run:
        return write_grid(folder, run)
    instruct = data.model_tables(folder, run, "instruct_models")
    page = (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            recipe=run["recipe"],
            version=__version__,
            instruct=instruct,
            base=data.model_tables(folder, run, "base_models"),
            saving=data.saving(instruct, run["recipe"]["language"]),
            coloured=data.coloured(folder, run),
            examples=data.examples(folder, run),
            new_tokens=data.new_tokens(folder),
            changes=data.changes(folder),
            fits=data.fits(folder, run["recipe"]["propagate"]),
            losses=loss_figure(data.losses(folder, run)),
            benchmark=benchmark_table(folder, run["instruct_models"]),
            counts=json.loads((folder / "corpus" / "counts.json").read_text()),
            plotly=get_plotlyjs(),
        )
    )
    report = folder / "report.html"
    publish_text(report, page)
    return report


def write_grid(folder: Path, run: dict[str, Any]) -> Path:
    """The page of a recipe with a grid: a table for each combination."""
    page = (
        _environment()
        .get_template("grid.html")
        .render(
            run=run,
            recipe=run["cells"][0]["recipe"],
            version=__version__,
            instruct=grid_blocks(folder, run),
            base=grid_blocks(folder, run, "base_models"),
        )
    )
    report = folder / "report.html"
    publish_text(report, page)
    return report


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lep.report", "."), autoescape=True
    )
    environment.filters["heads"] = data.heads
    return environment


def loss_figure(losses: dict[str, list[dict[str, float]]]) -> str:
    """Training loss against optimizer steps, one line a stage, as an HTML fragment."""
    figure = go.Figure()
    for stage, entries in losses.items():
        figure.add_scatter(
            x=[entry["step"] for entry in entries],
            y=[entry["loss"] for entry in entries],
            name=stage,
            mode="lines",
        )
    return figure_html(figure, "optimizer step", "loss, nats per token")


def figure_html(figure: go.Figure, x: str, y: str) -> str:
    """A figure in the style of the pages, as an HTML fragment; `x` and `y` name the axes."""
    axes: dict[str, Any] = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
    figure.update_layout(
        height=340,
        margin={"l": 55, "r": 10, "t": 10, "b": 45},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7a7f87"},
        legend={"orientation": "h", "y": 1.12},
        xaxis={"title": x} | axes,
        yaxis={"title": y} | axes,
    )
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
