"""The verdict on a run: what it says on each side of each margin, from intervals known by hand."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lep.errors import CheckpointError, CorpusError
from lep.evaluation.records import Record, Score, TaskRecord, TextRecord, encode
from lep.report.paired import Original
from lep.report.run_record import CellRecord, RunRecord
from lep.report.verdict import best, run_verdict, verdict
from lep.settings import EvaluateSettings
from lep.statistics import paired_difference

SETTINGS = EvaluateSettings(bootstrap=400)


def answers(language: str, scores: list[float], nats: float = 1.0) -> list[Record]:
    fixed = {"language": language, "task": "first_word", "expected": "a", "answer": "a"}
    return [
        TaskRecord(**fixed, question=str(i), finished=True, exact=score, nats=nats, bytes=10)
        for i, score in enumerate(scores)
    ]


def texts(language: str, nats: list[float], tokens: int = 100, mass: float = 0.0) -> list[Record]:
    """Windows of 400 characters; new tokens take `mass` of the probability of each token."""
    size = {"tokens": tokens, "characters": 400, "bytes": 800}
    new = {"old_tokens": 50, "new_mass": 50 * mass} if mass else {}
    return [
        TextRecord(language=language, id=str(i), nats=value, **size, **new)
        for i, value in enumerate(nats)
    ]


def test_a_whole_verdict() -> None:
    """Every item changes alike, so that each interval is a point."""
    original = [
        *texts("ru", [300.0, 500.0]), *answers("ru", [0.9] * 50),
        *texts("en", [200.0, 400.0]), *answers("en", [0.91] * 400),
    ]  # fmt: skip
    adapted = [
        *texts("ru", [300.0, 500.0], tokens=73), *answers("ru", [0.83] * 50),
        *texts("en", [200.8, 401.6]), *answers("en", [0.91] * 400),
    ]  # fmt: skip
    assert verdict(original, adapted, ["ru"], SETTINGS) == (
        "Russian takes 27% fewer tokens. "
        "Russian answers lost 7 points (83% right, the original 90%; 95% -7 to -7 points). "
        "English is as good as before within 2% "
        "(the same 91% of 400 answers are right; text +0.4% bits)."
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([0.03], "gained 3 points (93% right, the original 90%; 95% +3 to +3 points)"),
        ([0.01, 0.03] * 10, "gained 2 points (92% right, the original 90%; 95% +1.5 to +2.5 "),
        ([-0.019], "are as good as the original's within 2 points (88.1% right, "),
        ([-0.01, 0.01] * 10, "within 2 points (90% right, the original 90%; "),
        ([-0.019, 0.029] * 10, "within 2 points (90.5% right, the original 90%; "),
        (
            [-0.08, 0.06] * 10,
            "are not distinguishable from the original's (89% right, the original",
        ),
        ([-0.021], "lost 2.1 points (87.9% right, the original 90%; 95% -2.1 to -2.1 points)"),
        ([-0.3, -0.1] * 10, "lost 20 points (70% right, the original 90%; 95% -2"),
        (
            [-0.01, 0.01],
            "not distinguishable from the original's (90% right, the original 90%; 95% ",
        ),
        ([-0.1, 0.1], "not distinguishable from the original's (90% right, the original 90%; "),
    ],
)
def test_answers_on_each_side_of_the_margin(changes: list[float], says: str) -> None:
    """Two items that differ bear out nothing, however little they do."""
    changes = changes * 2 if len(changes) == 1 else changes
    adapted = answers("ru", [0.9 + change for change in changes])
    sentence = verdict(answers("ru", [0.9] * len(changes)), adapted, ["ru"], SETTINGS)
    assert sentence is not None
    assert sentence.startswith("Russian answers ")
    assert says in sentence


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ((1.019, 1.019), "as many bits as before within 2% (+1.9%, 95% +1.9% to +1.9%)"),
        ((1.021, 1.021), "2.1% more bits (95% +2.1% to +2.1%)"),
        ((0.9, 0.9), "10% fewer bits (95% -10% to -10%)"),
        ((0.9, 1.1) * 10, "bits not distinguishable from before (0%, 95% -"),
        ((0.7, 0.9, 1.01) * 10, "13% fewer bits"),
        (
            (0.55, 0.6, 0.9, 1.02, 1.0, 0.6, 0.9, 1.0),
            "no more bits than before within 2% (-17.9%, 95% -",
        ),
    ],
)
def test_text_on_each_side_of_the_margin(factors: tuple[float, ...], says: str) -> None:
    """Without answers, as of base models, text of the new language is what counts."""
    adapted = texts("kk", [400 * factor for factor in factors])
    sentences = verdict(texts("kk", [400.0] * len(factors)), adapted, ["kk"], SETTINGS)
    assert sentences is not None
    assert sentences.startswith(f"Kazakh takes as many tokens as before. Kazakh text: {says}")


@pytest.mark.parametrize(
    ("tokens", "says"),
    [(50, "50% fewer tokens"), (125, "25% more tokens"), (100, "as many tokens as before")],
)
def test_tokens(tokens: int, says: str) -> None:
    adapted = texts("xx", [400.0, 500.0], tokens=tokens)
    sentences = verdict(texts("xx", [400.0, 500.0]), adapted, ["xx"], SETTINGS)
    assert sentences is not None
    assert sentences.startswith(f"xx takes {says}. ")


def test_no_interval_of_tokens_is_impossible() -> None:
    """Two documents whose tokens fall by 66% and 54%: no end is a loss of more than all."""
    adapted = [texts("ru", [400.0], tokens=n)[0] for n in (170, 230)]
    adapted = [replace(record, id=str(i)) for i, record in enumerate(adapted)]
    sentences = verdict(texts("ru", [400.0, 400.0], tokens=500), adapted, ["ru"], SETTINGS)
    found = re.search(r"takes 60% fewer tokens, .*95% (-[\d.]+)% to \+([\d.]+)%", str(sentences))
    assert found is not None
    assert -100 < float(found[1]) < -60


def test_a_sure_change_within_the_margin_is_not_called_indistinguishable() -> None:
    adapted = texts("ru", [400.0] * 30, tokens=404)
    sentences = verdict(texts("ru", [400.0] * 30, tokens=400), adapted, ["ru"], SETTINGS)
    assert str(sentences).startswith(
        "Russian takes as many tokens as before within 2% (1% more tokens). "
    )


def test_the_best_of_models_that_answer_nothing_has_fewest_bits() -> None:
    def scores(right: float, bits: float) -> list[Score]:
        names = {"exact match": right, "answer bits per byte": bits}
        return [Score(m, "ru", None, "x", v, v, v, 10) for m, v in names.items()]

    assert best({"swap": scores(0.01, 2.0), "conversion": scores(0.0, 0.9)}, "ru") == "conversion"
    assert best({"swap": scores(0.5, 2.0), "conversion": scores(0.0, 0.9)}, "ru") == "swap"


@pytest.mark.parametrize("count", [180, 200])
def test_that_no_item_changed_is_no_proof_but_a_fact(count: int) -> None:
    """Wilson's bound for 0 changed of `count` is on the one or the other side of two points."""
    from scipy.stats import binomtest

    bound = binomtest(0, count).proportion_ci(method="wilson").high
    right = answers("en", [1.0] * (count - 20) + [0.0] * 20)
    gain = (
        Original(right, [("exact match", None)], SETTINGS)
        .contrasts(right)["exact match", "en", None]
        .gain
    )
    assert (gain.low, gain.high) == (pytest.approx(-bound), pytest.approx(bound))
    sentence = verdict(right, right, ["ru"], SETTINGS)
    head = "as good as before within 2%" if bound < 0.02 else "as before"
    share = {180: "88.9%", 200: "90%"}[count]
    assert sentence == f"English is {head} (the same {share} of {count} answers are right)."


def test_all_of_two_items_lost_are_not_all_items() -> None:
    """Up to two thirds of others may be kept, and as many gained: Zou & Donner's (2008) bound."""
    from scipy.stats import binomtest

    kept = 1 - binomtest(2, 2).proportion_ci(method="wilson").low
    low = 1 - math.hypot(kept, kept)
    sentence = verdict(answers("ru", [1.0] * 2), answers("ru", [0.0] * 2), ["ru"], SETTINGS)
    assert sentence == (
        "Russian answers lost 100 points (0% right, the original 100%; "
        f"95% -100 to -{100 * low:.0f} points)."
    )


@pytest.mark.parametrize(
    ("count", "gained", "lost"),
    [(20, 0.04, 0.06), (40, 0.02, 0.04), (100, 0.2, 0.0), (100, 0.0, 0.9), (100, 0.3, 0.3)],
)
def test_intervals_of_paired_items_cover_the_truth(count: int, gained: float, lost: float) -> None:
    """In 95% of draws or more; and few call a loss of just the margin none, where items changed."""
    rng, truth = np.random.default_rng(0), gained - lost
    covered, none = [], []
    for _ in range(400):
        chances = [gained, lost, 1 - gained - lost]
        changes = rng.choice([1.0, -1.0, 0.0], size=count, p=chances)
        gain = paired_difference(changes)
        assert gain is not None
        covered.append(gain.low <= truth <= gain.high)
        none.append(gain.low > -0.02 and changes.any())
    assert np.mean(covered) > 0.93
    assert truth != pytest.approx(-0.02) or np.mean(none) < 0.05


def test_one_item_gained_of_twenty_excludes_no_loss() -> None:
    """None of the others was lost, and up to a sixth may be."""
    before, after = answers("ru", [0.0] + [1.0] * 19), answers("ru", [1.0] * 20)
    sentence = verdict(before, after, ["ru"], SETTINGS)
    assert sentence is not None
    assert "not distinguishable" in sentence
    assert "95% -11.6 to +23.6 points" in sentence


def test_all_right_after_is_no_bound_on_what_was_gained() -> None:
    sentence = verdict(
        answers("ru", [1.0] * 80 + [0.0] * 20), answers("ru", [1.0] * 100), ["ru"], SETTINGS
    )
    assert sentence is not None
    gain = re.search(r"gained 20 points .* 95% \+([\d.]+) to \+([\d.]+) points", sentence)
    assert gain is not None
    assert float(gain[1]) < 13
    assert float(gain[2]) > 27


def test_what_the_old_language_lost_is_told() -> None:
    """Few right answers all lost, and more tokens, as in a vocabulary that was replaced."""
    original = [*texts("en", [100.0] * 3), *answers("en", [1.0] * 9 + [0.0] * 91)]
    adapted = [*texts("en", [100.0] * 3, tokens=150), *answers("en", [0.0] * 100)]
    sentence = verdict(original, adapted, ["ru"], SETTINGS)
    assert sentence is not None
    assert sentence.startswith("English answers lost 9 points (0% right, the original 9%; ")
    assert sentence.endswith("; English takes 50% more tokens.")


def test_new_languages_are_told_one_by_one() -> None:
    before = [*texts("kk", [400.0] * 3), *texts("ru", [400.0] * 3), *texts("en", [400.0] * 3)]
    after = [*texts("kk", [400.0] * 3, 50), *texts("ru", [400.0] * 3, 80), *before[-3:]]
    assert verdict(before, after, ["ru", "kk"], SETTINGS) == (
        "Russian takes 20% fewer tokens. Russian text: as many bits as before within 2% (0%, 95% "
        "0% to 0%). Kazakh takes 50% fewer tokens. Kazakh text: as many bits as before within 2% "
        "(0%, 95% 0% to 0%). English is as good as before within 2% (text 0% bits)."
    )


def test_a_language_that_lost_is_told_by_answers_and_text() -> None:
    original = [*answers("en", [0.9] * 9), *texts("en", [100.0] * 3), *texts("de", [100.0] * 3)]
    adapted = [*answers("en", [0.5] * 9), *texts("en", [101.0] * 3), *texts("de", [101.0] * 3)]
    assert verdict(original, adapted, ["ru"], SETTINGS) == (
        "German is as good as before within 2% (text +1% bits); "
        "English answers lost 40 points (50% right, the original 90%; 95% -40 to -40 points), "
        "and its text is as before (+1% bits)."
    )


LESS = "though right ones became less likely"


@pytest.mark.parametrize(
    ("gain", "nats", "says"),
    [
        (0.0, 1.1, f"are right where the original's are (90% of 20), {LESS} (10% more bits)."),
        (0.0, 1.01, "are right where the original's are (90% of 20)."),
        (-0.01, 1.5, f"95% -1 to -1 points), {LESS} (50% more bits)."),
        (-0.1, 1.5, "lost 10 points (80% right, the original 90%; 95% -10 to -10 points)."),
        (0.05, 1.5, "gained 5 points (95% right, the original 90%; 95% +5 to +5 points)."),
    ],
)
def test_right_answers_that_cost_more_are_told(gain: float, nats: float, says: str) -> None:
    """Where the share of right answers does not tell the models apart, in either language."""
    original = [*answers("ru", [0.9] * 20), *answers("en", [0.9] * 20)]
    adapted = [*answers("ru", [0.9 + gain] * 20, nats), *answers("en", [0.9] * 20, nats)]
    russian, english = re.split(
        r"(?<=\.) (?=English)", verdict(original, adapted, ["ru"], SETTINGS)
    )
    assert says in russian
    figures = "the same 90% of 20 answers are right"
    if nats == 1.01:
        assert english == f"English is as before ({figures})."
    else:
        same = "English answers are right where the original's are (90% of 20), though right ones"
        assert english.startswith(same)


@pytest.mark.parametrize(("mass", "told"), [(0.009, False), (0.042, True)])
def test_what_new_tokens_take_is_told_above_one_percent(mass: float, told: bool) -> None:
    adapted = texts("en", [101.0] * 3, mass=mass)
    sentence = verdict(texts("en", [100.0] * 3), adapted, ["ru"], SETTINGS)
    assert sentence is not None
    note = ", and new tokens take 4.2% of the probability in its text."
    assert sentence.endswith(note if told else "(text +1% bits).")


def test_answers_that_are_never_right_are_compared_by_their_bits() -> None:
    """0% right of both is not `as good as the original's`."""
    for scores in ([0.0] * 9, [1.0] + [0.0] * 19):
        less_sure = answers("ru", [0.0] * len(scores), nats=1.5)
        sentence = verdict(answers("ru", scores), less_sure, ["ru"], SETTINGS)
        assert sentence == "Russian answers: 50% more bits (95% +50% to +50%)."
    sentence = verdict(answers("ru", [0.0] * 9), answers("ru", [0.5] * 9), ["ru"], SETTINGS)
    assert sentence is not None
    assert "gained 50 points" in sentence


def test_a_single_item_has_no_interval() -> None:
    original = [*texts("ru", [400.0]), *answers("ru", [1.0])]
    adapted = [*texts("ru", [500.0], tokens=80), *answers("ru", [0.0])]
    assert verdict(original, adapted, ["ru"], SETTINGS) == (
        "Russian takes 20% fewer tokens (in one text). "
        "Russian answers: 0% right, the original 100% (a single one)."
    )
    sentence = verdict(original[:1], adapted[:1], ["ru"], SETTINGS)
    assert sentence is not None
    assert sentence.endswith("Russian text: 25% more bits (a single one).")


def test_a_model_without_likelihoods_is_not_as_good() -> None:
    original, broken = texts("en", [400.0] * 3), texts("en", [float("nan")] * 3)
    sentence = verdict(original, broken, ["ru"], SETTINGS)
    assert sentence == "English text: no bits, for the model gives no probabilities."


def test_models_without_common_items_have_no_verdict() -> None:
    assert verdict(texts("en", [1.0]), answers("en", [1.0]), ["en"], SETTINGS) is None
    assert verdict([], [], ["ru"], SETTINGS) is None


def write_run(folder: Path, models: dict[str, list[Record]], *, seed: int | None = None) -> Path:
    """A finished run of these models, without anything but their scores and records."""
    stages = {title: f"evaluate-{i}" for i, title in enumerate(models)}
    for title, records in models.items():
        stage = folder / stages[title]
        stage.mkdir(parents=True)
        lines = (json.dumps(encode(record)) + "\n" for record in records)
        (stage / "records.jsonl").write_text("".join(lines))
        right = [record.exact for record in records if isinstance(record, TaskRecord)]
        value = sum(right) / len(right)
        score = {"metric": "exact match", "language": "ru", "task": None, "unit": "share"}
        score |= {"value": value, "low": 0, "high": 1, "count": len(right)}
        (stage / "scores.json").write_text(json.dumps([score]))
    recipe = {"language": "ru", "propagate": [], "evaluate": {"bootstrap": 50, "seed": 1}}
    labels = {} if seed is None else {"rate": "low"}
    RunRecord({}, [CellRecord(labels, seed, recipe, stages, {})]).save(folder)
    return folder


MODELS = {
    "original instruct": answers("ru", [0.9] * 4),
    "mean initialisation": answers("ru", [0.1] * 4),
    "direct": answers("ru", [0.6] * 4),
    "joint training": answers("ru", [0.5] * 4),
}


def test_a_run_is_judged_by_its_joint_training(tmp_path: Path) -> None:
    sentence = run_verdict(write_run(tmp_path, MODELS))
    assert sentence == (
        "Russian answers lost 40 points (50% right, the original 90%; 95% -40 to -40 points)."
    )


def test_without_joint_training_the_best_model_is_named(tmp_path: Path) -> None:
    lost = "Russian answers lost 30 points (60% right, the original 90%; 95% -30 to -30 points)."
    models = {title: MODELS[title] for title in list(MODELS)[:3]}
    assert (
        run_verdict(write_run(tmp_path / "a", models))
        == f"direct (the best of 2 models, chosen on the same items): {lost}"
    )
    models = {title: MODELS[title] for title in ("original instruct", "direct")}
    assert run_verdict(str(write_run(tmp_path / "b", models))) == f"direct: {lost}"


def test_a_grid_is_judged_by_its_first_cell(tmp_path: Path) -> None:
    sentence = run_verdict(write_run(tmp_path, MODELS, seed=3))
    assert sentence is not None
    assert sentence.startswith("low, seed 3: Russian answers lost 40 points")


def test_runs_without_verdict(tmp_path: Path) -> None:
    first = {"original instruct": MODELS["original instruct"]}
    assert run_verdict(write_run(tmp_path / "one", first)) is None
    with pytest.raises(CheckpointError, match=r"has no run\.json"):
        run_verdict(tmp_path)
    run = write_run(tmp_path / "broken", MODELS)
    (run / "evaluate-3" / "records.jsonl").unlink()
    with pytest.raises(CorpusError, match="holds no records"):
        run_verdict(run)
