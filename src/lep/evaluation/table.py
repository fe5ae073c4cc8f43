"""The table of models: one row a model, the columns that decide."""

from collections.abc import Iterable
from typing import Any

# column title -> (metric, task)
COLUMNS = {
    "symbols/token": ("symbols per token", None),
    "bits/byte": ("bits per byte", None),
    "copy": ("exact match", "copy_sentence"),
    "copy paragraph": ("exact match", "copy_paragraph"),
    "exact match": ("exact match", None),
    "answer bits/byte": ("answer bits per byte", None),
}


def cells(scores: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`{"bits/byte ru": score, ...}` of the scores that the table shows, in its order."""
    found = {(s["metric"], s["task"], s["language"]): s for s in scores}
    languages = sorted({language for _, _, language in found}, key=lambda code: (code == "en", code))
    return {
        f"{title} {language}": found[metric, task, language]
        for title, (metric, task) in COLUMNS.items()
        for language in languages
        if (metric, task, language) in found
    }


def text_table(models: dict[str, list[dict[str, Any]]]) -> str:
    """The table as aligned text, two lines of heading; a dash where a model has no such score."""
    rows = {name: cells(scores) for name, scores in models.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    widths = {column: max(6, *(len(word) for word in column.rsplit(" ", 1))) for column in columns}
    first = max([5, *(len(name) for name in rows)])
    lines = [
        " ".join([" " * first, *(column.rsplit(" ", 1)[0].rjust(widths[column]) for column in columns)]),
        " ".join(["model".ljust(first), *(column.rsplit(" ", 1)[1].rjust(widths[column]) for column in columns)]),
    ]
    for name, row in rows.items():
        values = [f"{row[c]['value']:.3f}" if c in row else "-" for c in columns]
        lines.append(" ".join([name.ljust(first), *(v.rjust(widths[c]) for v, c in zip(values, columns, strict=True))]))
    return "\n".join(lines)
