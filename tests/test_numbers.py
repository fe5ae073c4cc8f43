"""Numbers are what their labels say: each is computed here by hand, with numpy or scikit-learn."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from lep.benchmark.harness import BenchmarkRecord
from lep.corpus.read import Document, write_records
from lep.errors import CorpusError
from lep.evaluation.evaluate import evaluate
from lep.evaluation.measures import figure, measures
from lep.evaluation.records import TaskRecord, TextRecord, load_records, save_records
from lep.evaluation.score import bits_per_byte
from lep.evaluation.table import comparison, comparison_table
from lep.linear_map import LinearMapFitter
from lep.mapping import VocabularyMapping
from lep.propagation import METHODS, Problem
from lep.report.data import run_table
from lep.report.paired import Original
from lep.report.run_record import CellRecord, RunRecord
from lep.selection.auto import _material
from lep.selection.figures import all_measures
from lep.selection.probe import record_half
from lep.settings import BuildSettings, EvaluateSettings, SelectSettings
from lep.tokenizer.compare import compare_tokenizers
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.corpus import build_corpus
from lep.transfer.propagate import Propagated


def noise_problem(**options: object) -> tuple[np.ndarray, np.ndarray, Problem]:
    """Tables that differ by noise alone, each row a token of its own, and the fit of a map."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 8))
    instruct = base + 0.3 * rng.normal(size=base.shape) * rng.uniform(0.5, 2, size=(200, 1)) + 0.2
    mapping = VocabularyMapping.from_rows([[i] for i in range(200)], 200)
    rows = torch.ones(200, dtype=torch.bool)
    tables = (torch.from_numpy(base), torch.from_numpy(instruct))
    return base, instruct, Problem(*tables, mapping, rows, **options)


def residual(base: np.ndarray, instruct: np.ndarray, matrix: np.ndarray) -> float:
    return float(np.linalg.norm(base @ matrix - instruct) / np.linalg.norm(instruct))


def test_the_identity_is_measured_on_the_rows_that_were_held_out() -> None:
    base, instruct, problem = noise_problem(penalty=0.0)
    report = METHODS["overlap"](problem).report
    matrix = np.linalg.lstsq(base[::2], instruct[::2])[0]
    heldout, eye = (base[1::2], instruct[1::2]), np.eye(8)
    assert report.heldout == pytest.approx(residual(*heldout, matrix), rel=1e-9)
    assert report.heldout_identity == pytest.approx(residual(*heldout, eye), rel=1e-9)
    assert report.identity == pytest.approx(residual(base, instruct, eye), rel=1e-9)
    assert (report.rows, report.heldout_rows) == (200, 100)
    figures = f"{residual(*heldout, matrix):.4f} (identity {residual(*heldout, eye):.4f})"
    assert f"input: held-out residual {figures} on 100 rows" in str(
        Propagated(Path("x"), {"input": report})
    )


def test_no_penalty_but_infinity_is_no_better_than_the_identity() -> None:
    torch.manual_seed(1)
    source = torch.randn(40, 16, dtype=torch.float64)
    target = source + 0.3 * torch.randn_like(source)
    _, report = LinearMapFitter(16).update(source, target).fit_ridge((float("inf"),))
    assert report.penalty == float("inf")
    assert report.heldout == report.heldout_identity
    assert report.heldout_rows == 40  # each half once


def test_without_a_second_half_nothing_is_held_out() -> None:
    source = torch.randn(1, 4, dtype=torch.float64)
    for fit in (LinearMapFitter.fit, LinearMapFitter.fit_ridge, LinearMapFitter.fit_procrustes):
        report = fit(LinearMapFitter(4).update(source, 2 * source))[1]
        assert (report.heldout, report.heldout_identity, report.heldout_rows) == (None, None, 0)
        assert "1 rows, none held out" in str(report)


@pytest.mark.parametrize("centred", [False, True])
def test_swap_reports_the_residual_of_weighted_and_centred_rows(centred: bool) -> None:
    weights = np.linspace(0, 3, 200)  # the first row counts nothing
    base, instruct, problem = noise_problem(weights=torch.from_numpy(weights), centred=centred)
    report = METHODS["swap"](problem).report
    shift, target = instruct - base, instruct
    if centred:
        shift, target = (t - np.average(t, axis=0, weights=weights) for t in (shift, target))
    squares = [weights @ (table**2).sum(1) for table in (shift, target)]
    assert report.identity == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-9)
    assert report.identity == pytest.approx(METHODS["conversion"](problem).report.identity)
    assert (report.rows, report.heldout) == (199, None)


NOTICE = "Подписывайтесь на наш канал и читайте самые свежие новости каждый день"
MENU = [NOTICE, *(f"{NOTICE}, раздел {name}" for name in ("первый", "второй", "третий"))]


def prose(seed: int) -> str:
    """Lines of words, longer than the shortest document that is kept."""
    rng = random.Random(seed)
    syllables = [a + b for a in "бвгдзклмнпрст" for b in "аеиоу"]
    word = lambda: "".join(rng.choices(syllables, k=3))  # noqa: E731
    return "\n".join(" ".join(word() for _ in range(12)) + "." for _ in range(6))


def raw_sources(folder: Path) -> dict[str, list[str]]:
    """Sources of text: some with a common line, and one of documents that are nothing else."""
    folder.mkdir()
    texts = {
        "menu": ["\n".join(MENU)] * 25,
        "news": [prose(seed) for seed in range(20)],
        "wiki": [f"{prose(100 + seed)}\n{NOTICE}" for seed in range(30)],
    }
    for name, each in texts.items():
        write_records(folder / f"{name}.jsonl", [{"text": text} for text in each])
    return texts


def records_of(corpus: Path) -> list[dict[str, str]]:
    parts = sorted(corpus.glob("part-*"))
    raw = b"".join(zstandard.decompress(part.read_bytes()) for part in parts)
    return [json.loads(line) for line in raw.decode().splitlines()]


def test_the_sheet_counts_what_was_written_and_each_document_once(tmp_path) -> None:
    texts = raw_sources(tmp_path / "raw")
    options = {"dedup": "none", "weights": {"wiki": 3, "news": 0.5}}
    corpus = build_corpus([tmp_path / "raw"], tmp_path / "out", BuildSettings(**options))
    records = records_of(tmp_path / "out")
    wiki, news = ([r for r in records if r["source"] == name] for name in ("wiki", "news"))
    assert len(wiki) == 3 * 30
    assert 0 < len(news) < 20
    assert len(wiki) + len(news) == len(records)
    rows = {
        "menu": "| menu | 0 | 0 | 0 | 25 |",
        "news": f"| news | 20 | {len(news)} | {sum(len(r['text']) for r in news):,} | 0 |",
        "wiki": f"| wiki | 30 | 90 | {sum(len(r['text']) for r in wiki):,} | 0 |",
    }
    sheet = (tmp_path / "out" / "sheet.md").read_text(encoding="utf-8")
    header = "| source | kept | written | characters written | only boilerplate |"
    assert sheet.splitlines()[:5] == [header, "|---|---|---|---|---|", *rows.values()]
    lines = sum(text.count(NOTICE) for each in texts.values() for text in each)
    assert lines == 25 * 4 + 30
    assert f"{lines} lines found in 20 or more documents were removed" in sheet
    assert corpus.boilerplate.characters == 25 * sum(map(len, MENU)) + 30 * len(NOTICE)


def test_the_sheet_says_that_lines_were_too_many_to_tell(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lep.corpus.boilerplate.CELLS", 8)
    monkeypatch.setattr("lep.corpus.boilerplate.MOST_CELLS", 8)
    raw_sources(tmp_path / "raw")
    corpus = build_corpus([tmp_path / "raw"], tmp_path / "out", BuildSettings(dedup="none"))
    warning = "no lines were removed: there are too many to tell which of them 20 or more documents"
    assert warning in str(corpus)
    assert warning in (tmp_path / "out" / "sheet.md").read_text(encoding="utf-8")


def test_a_document_that_is_cut_is_announced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lep.corpus.build.LONGEST", 1_000)
    (tmp_path / "raw").mkdir()
    write_records(tmp_path / "raw" / "book.jsonl", [{"text": "\n".join(map(prose, range(6)))}])
    corpus = build_corpus([tmp_path / "raw"], tmp_path / "out", BuildSettings(dedup="none"))
    assert corpus.written.documents > 1
    assert "1 very long documents were cut, and each piece is counted" in str(corpus)


@pytest.mark.parametrize(
    ("weights", "names", "message"),
    [
        ({"news": 0, "wiki": 0}, ("news", "wiki"), r"50 documents: kept 50; the weights \(news=0"),
        ({}, ("menu",), "25 documents: only boilerplate 25; give other text"),
    ],
)
def test_an_empty_corpus_says_why(tmp_path, weights, names, message) -> None:
    raw_sources(tmp_path / "raw")
    files = [tmp_path / "raw" / f"{name}.jsonl" for name in names]
    with pytest.raises(CorpusError, match=message):
        build_corpus(files, tmp_path / "out", BuildSettings(dedup="none", weights=weights))


def test_the_disk_space_that_is_required_counts_weights_and_assumes_nothing(
    tmp_path, monkeypatch
) -> None:
    raw_sources(tmp_path / "raw")
    required: list[int] = []
    monkeypatch.setattr(
        "lep.corpus.build.check_space", lambda _, needed_bytes: required.append(needed_bytes)
    )
    monkeypatch.setattr("lep.corpus.build.read_hub", lambda *_: iter(()))
    files = {name: tmp_path / "raw" / f"{name}.jsonl" for name in ("news", "wiki")}
    weights = {"wiki": 3, "news": 0.5}
    settings = BuildSettings(dedup="none", weights=weights)
    build_corpus([*files.values(), "hub:some/set"], tmp_path / "out", settings)
    expected = 2 * sum(file.stat().st_size * weights[name] for name, file in files.items())
    assert required == [expected]


def window_records(windows: list[Document]) -> list[TextRecord]:
    sizes = {"language": "ru", "nats": 1.0, "tokens": 1, "characters": 1, "bytes": 1}
    return [TextRecord(id=window.id, group=window.group, **sizes) for window in windows]


def test_a_document_is_in_one_half_of_the_probe(tmp_path) -> None:
    """Sections of a corpus are cut again into windows: `doc#6#0` is part of `doc`."""
    sections = [
        {"id": f"{book}#{part}", "group": str(book), "text": prose(100 * book + part)}
        for book in range(8)
        for part in range(6)
    ]
    write_records(tmp_path / "books.jsonl", sections)
    write_records(tmp_path / "one.jsonl", [r for r in sections if r["group"] == "3"])
    message = {"messages": [{"role": "user", "content": "?"}]}
    write_records(tmp_path / "prompts.jsonl", [message])
    select = SelectSettings(copies=0)
    text = {"ru": [tmp_path / "books.jsonl"], "uk": [tmp_path / "one.jsonl"]}
    windows = _material(text, tmp_path / "prompts.jsonl", select).windows
    halves: dict[str, set[str]] = {}
    for window, record in zip(windows["ru"], window_records(windows["ru"]), strict=True):
        halves.setdefault(window.group, set()).add(record_half(record))
    assert len(halves) == 8
    assert all(len(each) == 1 for each in halves.values())
    assert set.union(*halves.values()) == {"choose", "report"}
    alone = {record_half(record) for record in window_records(windows["uk"])}
    assert alone == {"choose", "report"}  # the windows of an only document are divided


def test_speed_is_measured_on_texts_that_fit_every_model(pair, tmp_path) -> None:
    model = pair["base"]
    small = tmp_path / "small"
    small.mkdir()
    for file in model.iterdir():
        if file.is_file():
            (small / file.name).write_bytes(file.read_bytes())
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 60}))
    lines = ["Снег идёт.", "Это длинное предложение о зиме, о снеге и о дороге домой. " * 6]
    records = [{"id": str(i), "text": lines[i % 2]} for i in range(6)]
    write_records(tmp_path / "text.jsonl", records)
    settings = EvaluateSettings(bootstrap=20, tasks=[], speed=4)
    text = {"ru": [tmp_path / "text.jsonl"]}
    with pytest.warns(match="3 of 6 texts in 'ru' fit into the context of every model"):
        evaluate([model, small], text, tmp_path / "out", settings)
    timed = [r for r in load_records(tmp_path / "out" / "records.jsonl") if r.kind == "speed"]
    assert sorted(r.id for r in timed) == sorted([f"text/{i}" for i in (0, 2, 4)] * 2)


def answers(task: str, scores: list[float], language: str = "ru") -> list[TaskRecord]:
    name = {"language": language, "task": task, "expected": "", "answer": "", "finished": True}
    return [TaskRecord(**name, question=f"{task} {i}", exact=x) for i, x in enumerate(scores)]


@pytest.mark.parametrize("right", [0, 1])
def test_five_of_five_are_not_certain(right) -> None:
    """Wilson (1927), as statsmodels' proportion_confint and scipy's proportion_ci give it."""
    from scipy.stats import binomtest

    records = answers("copy_sentence", [float(right)] * 5)
    exact = next(m for m in measures(records) if m.task == "copy_sentence")
    estimate = figure(exact, 100, 0).estimate()
    expected = binomtest(5 * right, 5).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert (estimate.value, estimate.count) == (right, 5)
    (shown,) = (row for row in comparison({"m": records}, 50, 0) if "exact" in row.title)
    assert f"{right}.000 [{expected.low:.3f}, {expected.high:.3f}]" in comparison_table(
        [shown], ["m"]
    )


def test_auto_has_the_same_interval_and_names_what_it_measures() -> None:
    from scipy.stats import binomtest

    records = answers("copy_sentence", [1.0] * 40)
    half = [r for r in records if record_half(r) == "report"]
    measured = all_measures(records, records, "report", SelectSettings())["ru exact copies"]
    expected = binomtest(len(half), len(half)).proportion_ci(method="wilson")
    assert (measured.low, measured.count) == (pytest.approx(expected.low), len(half))


def test_a_single_unit_has_no_interval_and_no_mark(pair, tmp_path) -> None:
    def texts(nats: float, count: int) -> list[TextRecord]:
        size = {"language": "ru", "tokens": 1, "characters": 1, "bytes": 1}
        return [TextRecord(id=str(i), nats=nats, **size) for i in range(count)]

    for count, outcome in ((1, ""), (2, "better")):
        original = Original(texts(2.0, count), [("bits per byte", None)], EvaluateSettings())
        assert original.contrasts(texts(1.0, count))["bits per byte", "ru", None].outcome == outcome
    (tmp_path / "text.txt").write_text("Снег идёт.", encoding="utf-8")
    result = bits_per_byte(pair["base"], [tmp_path / "text.txt"])
    assert str(result) == f"{result.value:.4f} bits per byte (one window, no interval)"
    row = comparison({"m": window_records([Document("a", "a", "s", "a")])}, 10, 0)
    assert "[" not in comparison_table(row, ["m"])


def test_bits_per_byte_say_what_their_interval_is_over(pair, tmp_path) -> None:
    texts = ["\n".join(["Это предложение о снеге и о зиме."] * 40), "Снег.", "Зима и лес."]
    write_records(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    result = bits_per_byte(pair["base"], [tmp_path / "text.jsonl"])
    assert result.windows > result.count == 3
    assert f"over 3 documents, {result.windows} windows)" in str(result)
    (tmp_path / "one.txt").write_text(texts[0], encoding="utf-8")
    assert "windows of one document)" in str(bits_per_byte(pair["base"], [tmp_path / "one.txt"]))


def test_the_benchmark_of_a_page_uses_the_seed_and_resamples_of_its_recipe(tmp_path) -> None:
    rng = random.Random(0)
    records = [
        BenchmarkRecord(
            task="daru_rwsd", language="ru", id=str(i), unit=str(i), chat=False, shots=0,
            prompt="", target="", scores={"acc": (str(i), float(rng.random() < 0.5))},
        )
        for i in range(30)
    ]  # fmt: skip
    stage = tmp_path / "evaluate-a"
    stage.mkdir()
    save_records(stage / "records.jsonl", records)
    (stage / "scores.json").write_text("[]")
    evaluation = {"bootstrap": 37, "seed": 5, "items": 3}
    recipe = {"language": "ru", "base": "x", "propagate": [], "evaluate": evaluation}
    cell = CellRecord({}, None, recipe, {"a": "evaluate-a"}, {})
    RunRecord({}, [cell]).save(tmp_path)
    expected = comparison_table(comparison({"a": records}, 37, 5), ["a"])
    other = comparison_table(comparison({"a": records}, 1000, 0), ["a"])
    assert expected != other
    assert run_table(tmp_path).endswith(expected)


def test_round_trip_is_the_share_of_lines(pair, tmp_path) -> None:
    """One line of 50 in a single piece changes under NFKC, `x²` to `x2`."""
    shutil.copytree(pair["base"], tmp_path / "nfkc")
    path = tmp_path / "nfkc" / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(spec | {"normalizer": {"type": "NFKC"}}), encoding="utf-8")
    lines = [f"Строка номер {i}" for i in range(49)] + ["Площадь равна x²"]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    comparison = compare_tokenizers([tmp_path / "nfkc"], {"ru": [tmp_path / "text.txt"]})
    (cost,) = comparison.texts[0].costs.values()
    assert cost.round_trip == 49 / 50
    assert "round trip  98.00% of the lines" in str(comparison)


def test_frequent_words_are_of_all_texts_in_any_order(pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lep.tokenizer.compare.SPEED_CHARACTERS", 8_000)
    monkeypatch.setattr("lep.tokenizer.compare.PIECE_CHARACTERS", 1_000)
    words = {"a": "снегопад", "b": "молоко"}
    for name, word in words.items():
        (tmp_path / f"{name}.txt").write_text(f"{word} {word}\n" * 3_000, encoding="utf-8")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    extend_tokenizer(pair["base"], files, 12, tmp_path / "extended")
    tokenizers = [pair["base"], tmp_path / "extended"]
    texts = {"one": [files[0]], "two": [files[1]]}
    comparison = compare_tokenizers(tokenizers, texts)
    swapped = compare_tokenizers(tokenizers, dict(reversed(texts.items())))
    assert comparison.differences == swapped.differences
    counts = {d.word.strip(): d.count for d in comparison.differences["extended"]}
    assert counts.keys() == set(words.values())
    for word in words.values():  # half of the sample each
        assert counts[word] == pytest.approx(4_000 / (len(word) + 1), rel=0.3)
    assert 6_000 <= comparison.sample_characters <= 9_000
    assert f"a sample of {comparison.sample_characters:,} symbols from all" in str(comparison)
