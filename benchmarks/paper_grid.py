"""The paper's tables beside ours, from a run of `recipes/paper-grid.yaml`.

    python lab/make_pair.py --data DATA && python lab/make_strengths.py --data DATA          (once)
    lep run recipes/paper-grid.yaml
    python benchmarks/paper_grid.py [--run runs/paper-grid]

`benchmarks/paper_grid.md` has the output. Relative scores are shares of the original instruct
model's score. Differences are paired by seed, with 95% t-intervals over the seeds (at least two). A
difference counts only if its interval excludes zero.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from lep.report.grid import COARSE, Cell, grid_blocks
from lep.report.run_record import RunRecord

# Micro-Avg and Russian copying (section 5): the original, then swap, overlap, conversion.
PAPER: dict[str, dict[str, Any]] = {
    "LLaMA-3-8B": {
        "original": (0.610, 0.972),
        "Extended": ((0.592, 0.921), (0.597, 0.936), (0.597, 0.921)),
        "Optimized": ((0.594, 0.928), (0.586, 0.925), (0.598, 0.928)),
        "BPE": ((0.565, 0.729), (0.569, 0.753), (0.570, 0.754)),
        "Unigram": ((0.582, 0.865), (0.580, 0.876), (0.584, 0.889)),
    },
    "OpenChat-3.5": {
        "original": (0.607, 0.917),
        "Extended": ((0.608, 0.907), (0.607, 0.898), (0.609, 0.909)),
        "BPE": ((0.587, 0.829), (0.584, 0.818), (0.583, 0.791)),
        "Unigram": ((0.556, 0.614), (0.572, 0.680), (0.565, 0.651)),
    },
}
PAPER_SYMBOLS = {
    "LLaMA-3-8B": {
        "original": 2.89,
        "BPE": 4.40,
        "Unigram": 4.35,
        "Extended": 3.78,
        "Optimized": 3.40,
    },
    "Mistral-7B": {"original": 2.44, "BPE": 3.76, "Unigram": 3.78, "Extended": 3.77},
}
PAPER_BASES = {  # Micro-Avg of base models after training
    "LLaMA-3-8B": {
        "original": 0.629,
        "BPE": 0.618,
        "Unigram": 0.609,
        "Extended": 0.627,
        "Optimized": 0.620,
    },
    "Mistral-7B": {"original": 0.604, "BPE": 0.616, "Unigram": 0.614, "Extended": 0.617},
}
MAPS = ("swap", "overlap", "conversion")
VOCABULARIES = ("Extended", "Optimized", "BPE", "Unigram")
STRENGTHS = ("weak", "middle", "strong")
# Methods under which known rows are the instruct model's, or moved from them.
KEEPING = {"new-rows", "exact", "residual", "task-arithmetic"}
ORIGINAL = "original instruct"
COLUMNS = {
    "bits/byte ru": "bits/byte ru",
    "answer bits/byte ru": "answers ru",
    "exact match ru": "tasks ru",
    "bits/byte en": "bits/byte en",
    "answer bits/byte en": "answers en",
    "exact match en": "tasks en",
}


class Grid:
    """The blocks of a run, by vocabulary and strength."""

    def __init__(self, folder: Path) -> None:
        self.run, self.folder = RunRecord.load(folder), folder
        self.blocks, self.bases = (
            {tuple(b.labels.values()): b for b in grid_blocks(folder, self.run, base=base)}
            for base in (False, True)
        )

    def cell(self, vocabulary: str, strength: str, model: str, column: str) -> Cell:
        return self.blocks[vocabulary, strength].models[model][column]

    @property
    def vocabularies(self) -> list[str]:
        return [v for v in VOCABULARIES if (v, "middle") in self.blocks]

    @property
    def seeds(self) -> str:
        return "; ".join(
            f"{block.title}: {', '.join(map(str, block.seeds))}" for block in self.blocks.values()
        )

    def chosen(self, vocabulary: str, strength: str) -> list[str]:
        """The choice of `auto` for each seed, with that of the output table if it differs."""
        stages = [
            cell.instruct_models["auto"].removeprefix("evaluate-")
            for cell in self.run.cells
            if tuple(cell.labels.values()) == (vocabulary, strength)
        ]
        paths = (self.folder / stage / "lep" / "selection.json" for stage in stages)
        return [json.loads(path.read_text(encoding="utf-8"))["chosen"] for path in paths]


def shown(cell: Cell, sign: str = "") -> str:
    """The mean and the half width of its interval, if it has one."""
    mean = f"{cell.mean:{sign}.3f}"
    return mean if cell.half is None else f"{mean} ± {cell.half:.3f}"


def average(cells: list[Cell]) -> Cell:
    """The mean over several models, by seed."""
    values = zip(*(cell.values.values() for cell in cells), strict=True)
    return Cell({str(seed): statistics.fmean(each) for seed, each in enumerate(values)})


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *rows]]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def costs(grid: Grid) -> str:
    """Symbols per token in the lab and in the paper, also relative to the original vocabulary."""

    def symbols(vocabulary: str, model: str) -> list[float]:
        columns = [f"symbols/token {code}" for code in ("ru", "en")]
        return [grid.cell(vocabulary, "middle", model, column).mean for column in columns]

    def times(value: float, original: float) -> str:
        return f"{value:.2f} ({value / original:.2f} times)"

    first = symbols("Extended", ORIGINAL)
    paper = [f"{s['original']:.2f}" for s in PAPER_SYMBOLS.values()]
    rows = [["original", *(f"{value:.2f}" for value in first), *paper]]
    for name in grid.vocabularies:
        lab = map(times, symbols(name, "conversion"), first)
        paper = [
            times(s[name], s["original"]) if name in s else "-" for s in PAPER_SYMBOLS.values()
        ]
        rows.append([name, *lab, *paper])
    return table(
        ["vocabulary", "lab, ru", "lab, en", *(f"{name}, ru" for name in PAPER_SYMBOLS)], rows
    )


def bases(grid: Grid) -> str:
    """Base models after training: our bits per byte, the paper's Micro-Avg, and their shares."""
    rows = []
    for name in ("original", *grid.vocabularies):
        block = grid.bases["Extended" if name == "original" else name, "middle"]
        row = block.models["original base" if name == "original" else "after training"]
        original = block.models["original base"]
        lab = [
            f"{shown(row[c])} ({_ratio(row[c], original[c]).mean:.3f})"
            for c in ("bits/byte ru", "bits/byte en")
        ]
        paper = [
            f"{s[name]:.3f} ({s[name] / s['original']:.3f})" if name in s else "-"
            for s in PAPER_BASES.values()
        ]
        rows.append([name, *lab, *paper])
    heads = ["vocabulary", "lab: bits/byte ru", "lab: bits/byte en"]
    return table([*heads, *(f"{name}: Micro-Avg" for name in PAPER_BASES)], rows)


def relative(grid: Grid) -> str:
    """Scores of the propagated models as shares of the original's."""
    rows = []
    for vocabulary in grid.vocabularies:
        for number, name in enumerate(MAPS):
            row = [vocabulary, name]
            for column in ("exact match ru", "copy ru", "exact match en", "copy en"):
                cells = (grid.cell(vocabulary, "middle", m, column) for m in (name, ORIGINAL))
                row.append(shown(_ratio(*cells)))
            for pair in PAPER.values():
                scores = pair.get(vocabulary)
                row += [
                    f"{scores[number][i] / pair['original'][i]:.3f}" if scores else "-"
                    for i in (0, 1)
                ]
            rows.append(row)
    heads = ["vocabulary", "map", "lab: tasks ru", "lab: copy ru", "lab: tasks en", "lab: copy en"]
    return table(
        [*heads, *(f"{name}: {what}" for name in PAPER for what in ("Micro-Avg", "copy ru"))], rows
    )


def repaired(grid: Grid) -> str:
    """Changes by calibration and tuning, paired by seed, averaged over the three maps."""
    columns = {"copy ru": "copy ru", "copy en": "copy en"} | COLUMNS
    rows = []
    for vocabulary in grid.vocabularies:
        changes = grid.blocks[vocabulary, "middle"].changes
        for stage in ("self-calibration", "tuning"):
            names = [f"{name} + {stage}" for name in MAPS]
            if all(name in changes for name in names):
                means = [average([changes[name][column] for name in names]) for column in columns]
                rows.append([vocabulary, stage, *(shown(mean, "+") for mean in means)])
    return table(["vocabulary", "change by", *columns.values()], rows)


def crossover(grid: Grid) -> str:
    """Scores of every method, by strength."""
    after = " + self-calibration"
    ways = (
        "mean initialisation",
        *MAPS,
        "exact",
        "task-arithmetic",
        "auto",
        "direct",
        f"conversion{after}",
        "conversion + tuning",
        f"direct{after}",
    )
    rows = [
        [
            strength,
            model,
            *(shown(grid.cell("Extended", strength, model, column)) for column in COLUMNS),
        ]
        for strength in STRENGTHS
        for model in (ORIGINAL, *ways)
    ]
    return table(["strength", "model", *COLUMNS.values()], rows)


def against_direct(grid: Grid) -> str:
    """Differences from direct training on the same text; negative bits per byte are better."""
    after = " + self-calibration"
    pairs = [(m, "direct") for m in ("conversion", "exact", "task-arithmetic", "auto")]
    rows = []
    for strength in STRENGTHS:
        models = grid.blocks["Extended", strength].models
        for first, second in [*pairs, (f"conversion{after}", f"direct{after}")]:
            differences = (models[first][c] - models[second][c] for c in COLUMNS)
            rows.append([strength, f"{first} - {second}", *(shown(d, "+") for d in differences)])
    return table(["strength", "difference", *COLUMNS.values()], rows)


def keeping(grid: Grid) -> str:
    """What keeps the old language at middle strength: the trained model, its text and its rows."""
    after = " + self-calibration"
    rows = [
        [
            label,
            *(shown(grid.cell(block, "middle", model, column)) for column in ("copy ru", *COLUMNS)),
        ]
        for label, block, model in (
            (ORIGINAL, "Extended", ORIGINAL),
            ("conversion", "Extended", "conversion"),
            ("conversion, with replay", "Replay", "conversion"),
            ("exact", "Extended", "exact"),
            ("exact, with replay", "Replay", "exact"),
            ("direct", "Extended", "direct"),
            (f"conversion{after}", "Extended", f"conversion{after}"),
            (f"conversion, with replay{after}", "Replay", f"conversion{after}"),
            (f"direct{after}", "Extended", f"direct{after}"),
            (f"direct{after} of new rows alone", "New-rows", f"direct{after}"),
        )
        if (block, "middle") in grid.blocks
    ]
    return table(["model", "copy ru", *COLUMNS.values()], rows)


def _ratio(cell: Cell, whole: Cell) -> Cell:
    return Cell({path: value / whole.mean for path, value in cell.values.items()})


def _low(cell: Cell) -> float:
    return cell.mean - (cell.half or 0.0)


def _high(cell: Cell) -> float:
    return cell.mean + (cell.half or 0.0)


Verdict = tuple[bool | None, str]  # whether it holds (None: not all runs exist), and the figures


def overlap_is_conversion(grid: Grid) -> Verdict:
    """1. Overlap = conversion with the extended and the optimised vocabulary."""
    apart = {
        v: {
            c: grid.cell(v, "middle", "overlap", c) - grid.cell(v, "middle", "conversion", c)
            for c in COLUMNS
        }
        for v in VOCABULARIES
    }
    unequal = [
        f"{v} ({c})" for v in ("Extended", "Optimized") for c, d in apart[v].items() if d.sign
    ]
    figures = [
        f"{v}: text {shown(d['bits/byte ru'], '+')}, "
        f"answers {shown(d['answer bits/byte ru'], '+')} bits/byte"
        for v, d in apart.items()
    ]
    if unequal:
        figures.append(f"significantly apart: {', '.join(unequal)}")
    return not unequal, "; ".join(figures)


def replaced_lose_more(grid: Grid) -> Verdict:
    """2. Replaced vocabularies lose more copying and answers, in both languages, and Unigram no
    less than BPE.
    """
    columns = ("copy ru", "copy en", "answer bits/byte ru", "answer bits/byte en")
    means = {
        (v, c): average([grid.cell(v, "middle", m, c) for m in MAPS])
        for v in VOCABULARIES
        for c in columns
    }

    def worse(first: str, second: str, column: str) -> int:
        """1 if the first vocabulary is significantly worse, -1 if significantly better, else 0."""
        return (means[first, column] - means[second, column]).sign * (1 if "bits" in column else -1)

    holds = all(
        worse(r, k, c) == 1
        for r in ("BPE", "Unigram")
        for k in ("Extended", "Optimized")
        for c in columns
    )
    figures = (
        f"{v}: " + ", ".join(f"{c} {shown(means[v, c])}" for c in columns) for v in VOCABULARIES
    )
    return holds and not any(worse("Unigram", "BPE", c) < 0 for c in columns), "; ".join(figures)


def strength_parts_the_maps(grid: Grid) -> Verdict:
    """3. Weak: maps within .02; strong: exact rows and task arithmetic keep English answers,
    maps do not.
    """
    means = {c: [grid.cell("Extended", "weak", m, c).mean for m in MAPS] for c in COLUMNS}
    spread = max(max(each) - min(each) for each in means.values())
    english = {
        m: _ratio(
            *(grid.cell("Extended", "strong", n, "answer bits/byte en") for n in (m, ORIGINAL))
        )
        for m in (*MAPS, "exact", "task-arithmetic")
    }
    holds = spread <= 0.02 and all(
        _high(r) <= 1.05 if m not in MAPS else _low(r) > 1.05 for m, r in english.items()
    )
    ratios = ", ".join(f"{m} {shown(ratio)}" for m, ratio in english.items())
    return holds, f"spread at most {spread:.3f}; English answers over the original's: {ratios}"


def maps_harm_english_text(grid: Grid) -> Verdict:
    """4. Published maps make English text worse by more than 1% at every strength."""
    ratios = {
        (s, m): _ratio(*(grid.cell("Extended", s, n, "bits/byte en") for n in (m, ORIGINAL)))
        for s in STRENGTHS
        for m in MAPS
    }
    figures = ", ".join(f"{s} {m} {shown(ratio)}" for (s, m), ratio in ratios.items())
    return all(_low(ratio) > 1.01 for ratio in ratios.values()), figures


def training_repairs(grid: Grid) -> Verdict:
    """5. Calibration raises Russian copying, and tuning the tasks, of every propagated model."""
    cells = [(v, "middle", m) for v in VOCABULARIES for m in MAPS]
    cells += [("Extended", s, "conversion") for s in ("weak", "strong")]
    gains, missing = {}, []
    for v, s, m in cells:
        for stage, column in (("self-calibration", "copy ru"), ("tuning", "exact match ru")):
            changes = grid.blocks[v, s].changes.get(f"{m} + {stage}")
            if changes is None:
                missing.append(v)
            else:
                gains[f"{m} + {stage}, {v}, {s}"] = changes[column]
    # Equal gains of all seeds show only how coarse the figure is, so they have no interval: the
    # report names them, and their sign counts.
    even = {n: gain for n, gain in gains.items() if gain.half is not None and gain.half <= COARSE}
    failed = [n for n, gain in gains.items() if (gain.mean <= 0 if n in even else gain.sign < 1)]
    if failed:
        return False, f"not significant: {'; '.join(failed)}"
    figures = f"each of {len(gains) - len(even)} intervals is above zero"
    figures += "".join(f"; {name}: {gain.mean:+.3f} for every seed" for name, gain in even.items())
    if missing:
        return None, f"{figures}; not run: {', '.join(dict.fromkeys(missing))}"
    return True, figures


def direct_beats_when_strong(grid: Grid) -> Verdict:
    """6. Direct beats conversion on Russian answers when strong, ties when weak, and keeps English
    exactly.
    """
    apart = {
        s: grid.cell("Extended", s, "direct", "answer bits/byte ru")
        - grid.cell("Extended", s, "conversion", "answer bits/byte ru")
        for s in STRENGTHS
    }
    moved = {
        c: max(
            abs(value)
            for s in STRENGTHS
            for value in (
                grid.cell("Extended", s, "direct", c) - grid.cell("Extended", s, ORIGINAL, c)
            ).values.values()
        )
        for c in ("exact match en", "answer bits/byte en", "bits/byte en")
    }
    holds = apart["strong"].sign < 0 and apart["weak"].sign == 0 and not any(moved.values())
    figures = "; ".join(f"{s}: {shown(d, '+')} bits/byte" for s, d in apart.items())
    english = ", ".join(f"{v:.3f} ({c})" for c, v in moved.items())
    return holds, f"{figures}; English moved by at most {english}"


def calibrated_direct_is_best(grid: Grid) -> Verdict:
    """7. Calibrated, direct is at least as good as conversion in Russian and better in English, at
    every strength.
    """
    sides = {
        (s, c): grid.cell("Extended", s, "direct + self-calibration", c)
        - grid.cell("Extended", s, "conversion + self-calibration", c)
        for s in STRENGTHS
        for c in COLUMNS
    }
    better = {key: d.sign * (-1 if "bits" in key[1] else 1) for key, d in sides.items()}
    figures = "; ".join(f"{s}, {COLUMNS[c]}: {shown(d, '+')}" for (s, c), d in sides.items())
    return all(sign >= (1 if c.endswith("en") else 0) for (_, c), sign in better.items()), figures


def auto_keeps_known_rows(grid: Grid) -> Verdict:
    """8. `auto` chooses a method that keeps known rows at the middle and strong strengths."""
    chosen = {s: grid.chosen("Extended", s) for s in STRENGTHS}
    methods = {
        s: {m for name in names for m in name.split(", output ")} for s, names in chosen.items()
    }
    holds = all(methods[s] and methods[s] <= KEEPING for s in ("middle", "strong"))
    return holds, "; ".join(f"{s}: {', '.join(names)}" for s, names in chosen.items())


def new_rows_keep_english(grid: Grid) -> Verdict:
    """9. Direct, calibrated in new rows alone: English kept (tasks to .02, text to .05), Russian
    raised, but less.
    """
    name = "direct + self-calibration"
    cells = {c: grid.cell("New-rows", "middle", name, c) for c in ("copy ru", *COLUMNS)}
    models = grid.blocks["Extended", "middle"].models
    kept = {c: cells[c] - models[ORIGINAL][c] for c in ("exact match en", "bits/byte en")}
    raised = {c: cells[c] - models["direct"][c] for c in ("copy ru", "exact match ru")}
    outer = cells["exact match ru"] - models[name]["exact match ru"]
    holds = abs(kept["exact match en"].mean) <= 0.02 and abs(kept["bits/byte en"].mean) <= 0.05
    figures = [f"{c} from the original's {shown(d, '+')}" for c, d in kept.items()]
    figures += [f"{c} from direct's {shown(d, '+')}" for c, d in raised.items()]
    figures.append(f"tasks ru from those with outer layers {shown(outer, '+')}")
    holds = holds and all(d.sign == 1 for d in raised.values()) and outer.sign < 0
    return holds, "; ".join(figures)


def replay_keeps_english(grid: Grid) -> Verdict:
    """10. Replay: English text within 3%, tasks above .65 after conversion; Russian text to .02;
    copying no better.
    """
    replay, plain = (grid.blocks[name, "middle"].models for name in ("Replay", "Extended"))
    cells = replay["conversion"]
    text = _ratio(cells["bits/byte en"], plain[ORIGINAL]["bits/byte en"])
    russian, copying = (cells[c] - plain["conversion"][c] for c in ("bits/byte ru", "copy ru"))
    name, tasks = "conversion + self-calibration", "exact match en"
    after = replay[name][tasks] - plain[name][tasks]
    holds = text.mean <= 1.03 and cells[tasks].mean > 0.65 and abs(russian.mean) <= 0.02
    holds = holds and copying.sign == 0 and after.sign == 1
    return holds, (
        f"English text {shown(text)} of the original's, tasks {shown(cells[tasks])}; "
        f"against no replay: Russian text {shown(russian, '+')}, copying {shown(copying, '+')}, "
        f"English tasks, calibrated {shown(after, '+')}"
    )


PREDICTIONS = (
    overlap_is_conversion,
    replaced_lose_more,
    strength_parts_the_maps,
    maps_harm_english_text,
    training_repairs,
    direct_beats_when_strong,
    calibrated_direct_is_best,
    auto_keeps_known_rows,
    new_rows_keep_english,
    replay_keeps_english,
)
TABLES = {
    "Symbols per token": costs,
    "Base models after training": bases,
    "Scores as shares of the original's": relative,
    "What calibration and tuning change (mean over the three maps)": repaired,
    "By strength": crossover,
    "Against direct training": against_direct,
    "What keeps the old language": keeping,
}


def itemised(prediction: str) -> str:
    """A prediction with its verdict, and each of its figures on a line of its own."""
    said, _, figures = prediction.rstrip(".").partition("**. ")
    return "\n    * ".join([f"* {said}**.", *figures.split("; ")])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/paper-grid"))
    grid = Grid(parser.parse_args().run)
    print(f"Vocabularies: {', '.join(grid.vocabularies)}; seeds: {grid.seeds}\n")
    for title, write in TABLES.items():
        print(f"## {title}\n\n{write(grid)}\n")
    print("## Predictions\n")
    one_seed = any(len(block.seeds) < 2 for block in grid.blocks.values())  # gives no intervals
    verdicts = {None: "undecided, some runs are missing", True: "holds", False: "does not hold"}
    for prediction in PREDICTIONS:
        statement = " ".join((prediction.__doc__ or "").split()).rstrip(".")
        try:
            holds, figures = prediction(grid)
            verdict = "undecided with one seed" if one_seed else verdicts[holds]
            print(itemised(f"{statement}: **{verdict}**. {figures}."))
        except KeyError as missing:
            print(f"* {statement}: not run yet ({missing}).")


if __name__ == "__main__":
    main()
