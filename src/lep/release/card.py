"""The card of a model: README.md with the metadata of the hub, written from the records."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lep import __version__
from lep.checkpoint.origin import CARD, ORIGIN, Origin, license_files
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, OutputError, foreign
from lep.evaluation.records import Score
from lep.files import read_json, read_text
from lep.publish import publish_texts
from lep.release.licence import Licence
from lep.report.verdict import COST, NAMES
from lep.settings import TaskName
from lep.transfer.mappings import MAPPING_FILES, read_mapping

NOTICE = "NOTICE"
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")  # that the hub takes
LICENCE_SECTION = re.compile(r"^## Licence\n.*?(?=^## |\Z|^<!-- )", re.MULTILINE | re.DOTALL)
_SIGNATURE = re.compile(r"\n<!-- written by lep, (\w+) -->\n\Z")
UNKNOWN = {"license": "unknown"}
CHAT = """\
messages = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
PLAIN = 'inputs = tokenizer("...", return_tensors="pt")'
_RECORDS = ("init", "propagation", "selection", "pretrain", "tune")


@dataclass(frozen=True)
class Figures:
    """Scores of a model, those of the original on the same items, and what they come to."""

    scores: list[Score] = field(default_factory=list)
    original: list[Score] = field(default_factory=list)
    verdict: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a card says of the model in `folder`."""

    folder: Path
    origin: Origin
    name: str
    licence: Licence
    license: dict[str, str]  # as the metadata name it
    languages: list[str]  # the new ones
    figures: Figures = field(default_factory=Figures)
    recipe: str | None = None  # as YAML


def model_title(origin: Origin, languages: Iterable[str], licence: Licence) -> str:
    """A name for a changed model: the original's, the new languages, and what the licence asks.

    >>> model_title(Origin("Qwen/Qwen2.5-0.5B-Instruct"), ["ru"], Licence("apache-2.0"))
    'Qwen2.5-0.5B-Instruct-ru'
    """
    name = "-".join([origin.name.rpartition("/")[2], *languages])
    return name if licence.begins(name) else f"{licence.terms.prefix.replace(' ', '-')}-{name}"


def write_card(facts: Facts) -> Path:
    """Write README.md into the model's folder, and NOTICE where the licence asks for one.

    A card that this function wrote is replaced. Raises `OutputError` for any other, which a person
    may have written or changed.
    """
    path = facts.folder / CARD
    if path.exists() and not is_generated(read_text(path, CheckpointError)):
        raise OutputError(
            f"{path} is there already, and not as lep wrote it: rename or delete it, or keep it"
        )
    texts, terms = {path: card_text(facts)}, facts.licence.terms
    if terms.notice and not any(p.name.lower().startswith("notice") for p in _files(facts.folder)):
        base = facts.origin.name
        texts[facts.folder / NOTICE] = (
            f"{terms.notice}\n\nThis model is a modified version of {base}: tokens were added to "
            "its vocabulary and trained.\n"
        )
    publish_texts(texts, replace=True)
    return path


def card_text(facts: Facts) -> str:
    """The whole card, signed, so that a later version knows whether a person changed it."""
    checkpoint = Checkpoint(facts.folder)
    sections = [
        f"# {facts.name}",
        _head(facts, checkpoint),
        _evaluation(facts.figures),
        _use(facts, has_template=bool(checkpoint.tokenizer.chat_template)),
        licence_section(facts.licence, facts.origin, facts.folder),
        _making(facts),
    ]
    text = "\n\n".join(sections)
    return signed(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text}")


def signed(text: str) -> str:
    text = _SIGNATURE.sub("", text).rstrip("\n") + "\n"
    return f"{text}\n<!-- written by lep, {_digest(text)} -->\n"


def is_generated(text: str) -> bool:
    """Whether a card is as `card_text` wrote it."""
    signature = _SIGNATURE.search(text)
    return signature is not None and signature[1] == _digest(text[: signature.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file()]


def _metadata(facts: Facts) -> Any:
    from huggingface_hub import ModelCardData  # slow to import

    languages = [*facts.origin.languages, *facts.languages]
    languages += [score.language for score in facts.figures.scores]
    codes = dict.fromkeys(code for code in languages if LANGUAGE_CODE.fullmatch(code))
    base = {"base_model": facts.origin.hub_id, "base_model_relation": "finetune"}
    more: dict[str, Any] = {**(facts.license or UNKNOWN), **(base if facts.origin.hub_id else {})}
    results = list(_results(facts.figures.scores))
    return ModelCardData(
        language=list(codes) or None,
        **more,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["vocabulary-extension", "lep"],
        eval_results=results or None,
        model_name=facts.name if results else None,
    )


def _results(scores: Iterable[Score]) -> Iterable[Any]:
    """The finite scores as the hub lists them, with their intervals."""
    from huggingface_hub import EvalResult

    for score in scores:
        if not math.isfinite(score.value):
            continue
        bounds = {"low": score.low, "high": score.high, "count": score.count}
        finite = all(map(math.isfinite, (score.low, score.high)))
        benchmark = score.task if score.task and score.task not in get_args(TaskName) else None
        yield EvalResult(
            task_type="text-generation",
            dataset_type=benchmark or "held-out",
            dataset_name=benchmark or f"held-out text ({score.language})",
            dataset_config=score.language,
            metric_type=re.sub(r"\W+", "_", score.metric),
            metric_name=" ".join(filter(None, (score.metric, score.task))),
            metric_value=score.value,
            metric_args=bounds if finite else None,
        )


def _head(facts: Facts, checkpoint: Checkpoint) -> str:
    origin, count = facts.origin, _new_tokens(facts.folder)
    names = " and ".join(NAMES.get(code, code) for code in facts.languages)
    what = f"{count:,} new tokens" if count else "another vocabulary"
    base = f"[{origin.name}](https://huggingface.co/{origin.name})"
    lines = [
        f"{base if origin.hub_id else origin.name} with {what}{f' for {names}' if names else ''}: "
        f"{len(checkpoint.vocabulary):,} tokens in all. Made with lep {__version__}."
    ]
    for code in facts.languages:
        after, before = (
            next((s for s in scores if (s.metric, s.language) == (COST, code)), None)
            for scores in (facts.figures.scores, facts.figures.original)
        )
        if after and before:
            lines.append(
                f"A token of {NAMES.get(code, code)} text holds {after.value:.2f} characters; it "
                f"was {before.value:.2f}."
            )
    return "\n\n".join([*lines, *filter(None, [facts.figures.verdict])])


def _new_tokens(folder: Path) -> int:
    path = folder / MAPPING_FILES["input"]
    return len(read_mapping(path).new_rows()) if path.is_file() else 0


def _evaluation(figures: Figures) -> str:
    if not figures.scores:
        return "## Evaluation\n\nNo evaluation was given (`lep evaluate`)."
    before = {(s.metric, s.language, s.task): s for s in figures.original}
    rows = [["measure", "language", "task", "this model", "interval", "original", "n"]]
    for score in figures.scores:
        other = before.get((score.metric, score.language, score.task))
        original = f"{other.value:.3f}{_interval(other, ' ({})')}" if other else "-"
        row = [score.metric, score.language, score.task or "-", f"{score.value:.3f}"]
        rows.append([*row, _interval(score, "{}") or "-", original, f"{score.count:,}"])
    head, *lines = (f"| {' | '.join(map(_cell, row))} |" for row in rows)
    table = "\n".join([head, "|---" * len(rows[0]) + "|", *lines])
    return (
        "## Evaluation\n\nOn held-out text, and tasks made from it. Lower is better for bits, "
        "repetition, time, the cache, and the probability of new tokens (new token mass); higher "
        "is better for symbols per token, shares of right and of ended answers, and speed. "
        "Intervals are 95%, over documents or items.\n\n" + table
    )


def _interval(score: Score, form: str) -> str:
    known = score.count > 1 or score.low < score.high
    return form.format(f"{score.low:.3f} to {score.high:.3f}") if known else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _use(facts: Facts, *, has_template: bool) -> str:
    return f"""## Use

`MODEL` is this folder, or the name of this repository on the hub.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModelForCausalLM.from_pretrained("MODEL", dtype="auto")
{CHAT if has_template else PLAIN}
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

vLLM serves it as it is: `vllm serve MODEL`. For llama.cpp and Ollama, whose converters misread
changed vocabularies, write a file with `lep`, which proves its tokenizer (`--to ctranslate2` and
`--to mlx` write folders for these programs):

```
lep export --model MODEL --output model.gguf
ollama create {facts.name.lower()} -f model.Modelfile
```"""


def licence_section(licence: Licence, origin: Origin, folder: Path) -> str:
    """The licence in words, with what it asks of those who pass the model on."""
    if licence.name is None:
        text = (
            f"The licence of {origin.name} is unknown: it came with neither a card that names one "
            "nor the text of one that is known. Do not pass this model on before you know it."
        )
        return f"## Licence\n\n{text}"
    texts = ", ".join(f"[{path.name}]({path.name})" for path in license_files(folder))
    lines = [
        f"That of {origin.name}: {licence.name}. "
        + (f"Its text: {texts}." if texts else "Its text did not come with the original.")
    ]
    if conditions := licence.terms.conditions:
        lines.append(f"In short, it asks you to {conditions}. The text of the licence decides.")
    return "\n\n".join(["## Licence", *lines])


def with_licence(text: str, licence: Licence, folder: Path) -> str:
    """A card with another licence in its metadata and its section on the licence."""
    from huggingface_hub import ModelCard

    generated = is_generated(text)
    card = ModelCard(_SIGNATURE.sub("", text) if generated else text)
    for key, value in licence.metadata().items():
        setattr(card.data, key, value)
    section = licence_section(licence, Origin.of(folder), folder)
    card.text = LICENCE_SECTION.sub(lambda _: f"{section}\n\n", card.text)
    return signed(str(card)) if generated else str(card)


def _making(facts: Facts) -> str:
    lines = [line for name in _RECORDS if (line := _step(name, _record(facts.folder, name)))]
    steps = "\n".join(f"* {line}" for line in lines)
    text = f"{steps}\n\nThe folder `lep/` has the records." if lines else "No records are there."
    if facts.recipe:
        text += (
            "\n\nMade by `lep run recipe.yaml` with this recipe; of paths it has the last part:\n\n"
            f"```yaml\n{facts.recipe.rstrip()}\n```"
        )
    return f"## How it was made\n\n{text}"


def _record(folder: Path, name: str) -> dict[str, Any]:
    path = folder / ORIGIN.parent / f"{name}.json"
    return read_json(path, CheckpointError) if path.is_file() else {}


def _step(name: str, record: Mapping[str, Any]) -> str | None:
    """A step of the making in words, from its record."""
    if not record:
        return None
    with foreign(f"lep/{name}.json is damaged", "delete it", CheckpointError):
        settings = record.get("settings", {})
        match name:
            case "init" if record.get("method") == "pack":
                origin = record["pack"]["base"]
                return f"`lep apply`: rows of new tokens from a pack made on {origin}"
            case "init":
                return f"`lep init`: rows of new tokens from known rows ({record['method']})"
            case "propagation":
                return f"`lep propagate`: rows carried from the base model ({record['method']})"
            case "selection":
                return None
            case "pretrain":
                tokens = f"{record['tokens']:,} tokens in {record['steps']:,} steps"
                return f"`lep pretrain`: {TRAINED.get(settings['train'], 'tables')}, {tokens}"
            case _:
                return f"`lep tune` or `lep calibrate`: {record['samples']:,} conversations"


TRAINED = {
    "new_rows": "the rows of new tokens, all else unchanged",
    "embeddings": "both tables, the body unchanged",
    "embeddings+lora": "both tables, and the body by low-rank adapters",
    "new_rows+lora": "the rows of new tokens, and the body by low-rank adapters",
}
