"""One command for a new language: it decides what a recipe needs, writes the recipe, and runs it.

Nothing heavy is imported before models and text have been looked at.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lep.checkpoint.config import read_config
from lep.corpus.files import Text, corpus_files, several
from lep.corpus.language import SCRIPTS, dominant_script, script_share
from lep.corpus.read import read_messages, stream_texts
from lep.errors import (
    CheckpointError,
    CorpusError,
    LepError,
    OutputError,
    RecipeError,
    note,
    printable,
)
from lep.fields import file_part
from lep.files import read_json, read_text
from lep.hub import local_folder, weights_advice
from lep.pipeline.recipe_file import Draft, Origins, as_yaml, load_grid
from lep.publish import created, publish_text

if TYPE_CHECKING:
    from lep.pipeline.run import FinishedRun

RECIPE = "recipe.yaml"
SCRIPT_TEXTS, SCRIPT_CHARACTERS, LEAST_SCRIPT = 200, 5_000, 0.05  # texts read, of each, of letters
# Characters of a language that are used: so many at least, and so many for each that is trained on.
LEAST_LIMIT, SPARE_TEXT = 20_000_000, 2


def adapt(
    model: str | Path,
    text: Text,
    output: str | Path,
    *,
    language: str | None = None,
    new_tokens: int | None = None,
    tokens: int | None = None,
    prompts: str | Path | None = None,
    hours: float | None = None,
    from_pack: str | Path | None = None,
    title: str = "",
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> "FinishedRun | str":
    """Teach an instruct model a new language by joint training, in the folder `output`.

    `text` has paths by language code, the new one first unless `language` names it, and at least
    one that the model knows. What is not given is decided: new tokens by what they save, tokens to
    train on by what new tokens need (`lep.pipeline.budget`). `hours` is for the whole run on this
    device. The recipe is written to `output`; the same call continues a run that was killed, and
    `lep run` with that recipe continues, repeats or changes it. With `dry_run` nothing is written,
    and the result is the recipe that would be.

    Raises `CheckpointError` for a model without chat template, `CorpusError` for text that is
    missing or in another script, `OutputError` where the output holds another run, `LepError` and
    `RecipeError` for settings, and what the stages raise.
    """
    request = _Request.of(model, text, language, prompts=prompts, from_pack=from_pack, title=title)
    options = {"new_tokens": new_tokens, "tokens": tokens, "hours": hours}
    output = Path(output)
    path, command = output / RECIPE, request.command(output, options, overrides)
    is_begun = _is_begun(path, command)
    if not is_begun:
        if hours is not None and tokens is not None:
            raise LepError(f"give --hours ({hours:g}) or --tokens ({tokens:,}), not both")
        if hours is not None and not hours > 0:
            raise LepError(f"--hours is {hours:g}: give a time above 0")
        content = _decided(request, path, options, overrides, say)
    if dry_run:
        return (read_text(path, RecipeError) if is_begun else f"{command}\n{content}").rstrip()
    from lep.pipeline.run import run_recipe

    with created(output):
        if not is_begun and not _is_begun(path, command):  # nor since, by another process
            publish_text(path, f"{command}\n{content}")
        try:
            return run_recipe(load_grid(path), output, say=say)
        except BaseException:
            if not is_begun and [file.name for file in output.iterdir()] == [RECIPE]:
                path.unlink()  # nothing is built: another command may take the folder
            raise


def _is_begun(path: Path, command: str) -> bool:
    """Whether the same command wrote the recipe. Raises `OutputError` if anything else did."""
    folder = path.parent
    if path.is_file():
        first = read_text(path, RecipeError).partition("\n")[0]
        if first == command:
            return True
        change = shlex.join(["lep", "run", str(path), "--output", str(folder)])
        raise OutputError(
            f"{path} is the recipe of another command ({first.removeprefix('# ')[:300]}): change "
            f"or continue its run with `{change} KEY=VALUE`, or give another --output"
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output {folder} is a file: choose another path")
    others = [] if not folder.exists() else [p.name for p in folder.iterdir()]
    if any(not name.startswith(f"{RECIPE}.") for name in others):  # which a kill may leave
        raise OutputError(
            f"the output {folder} exists already, without a {RECIPE}: delete it or choose another"
        )
    return False


@dataclass(frozen=True)
class _Request:
    """What is given: the model, text by language (the new one first), and other files."""

    model: str
    text: dict[str, list[str]]
    language: str
    prompts: str | None
    from_pack: str | None
    title: str

    @classmethod
    def of(
        cls,
        model: str | Path,
        text: Text,
        language: str | None,
        *,
        prompts: str | Path | None,
        from_pack: str | Path | None,
        title: str,
    ) -> "_Request":
        """Raises `LepError` without text of two languages."""
        texts = {
            code: [str(Path(path).resolve()) for path in several(paths)]
            for code, paths in text.items()
        }
        names = ", ".join(texts) or "no language"
        if language is not None and language not in texts:
            raise LepError(
                f"--language is '{language}', and --text has {names}: give --text {language}=PATH"
            )
        new = language or next(iter(texts), "")
        if len(texts) < 2:
            raise LepError(
                f"--text has {names}, and two languages are needed: the new one, and one that the "
                "model knows, so that it does not lose it; for example --text ru=PATH --text "
                "en=PATH"
            )
        folder = Path(model)
        name = str(folder.resolve()) if folder.exists() else str(model)
        files = [str(Path(p).resolve()) if p else None for p in (prompts, from_pack)]
        return cls(name, texts, new, files[0], files[1], title)

    def command(self, output: Path, options: Mapping[str, Any], overrides: Sequence[str]) -> str:
        """The command line that asks for the same, as a comment; paths are absolute."""
        words = ["lep", "adapt", self.model]
        for code, paths in self.text.items():
            words += ["--text", *(f"{code}={path}" for path in paths)]
        named = {"language": self.language} | dict(options)
        named |= {"prompts": self.prompts, "from-pack": self.from_pack, "title": self.title or None}
        for name, value in named.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--output", str(output.resolve()), *overrides]
        return "# " + " ".join(printable(shlex.join(words)).split())

    def check(self) -> None:
        """Raise `LepError` for what can be seen to be missing without loading anything."""
        language_of = dict[Path, str]()
        for code, paths in self.text.items():
            for file in corpus_files(paths):
                if (other := language_of.setdefault(file.resolve(), code)) != code:
                    both = f"both {other} and {code}"
                    raise LepError(f"{file} is text of {both}: give each language its own")
            _check_script(code, paths)
        folder = local_folder(self.model, weights=False)
        read_config(folder)
        if Path(self.model).is_dir() and (advice := weights_advice(folder)):
            raise CheckpointError(advice)
        if not _has_template(folder):
            raise CheckpointError(
                f"{self.model} has no chat template, so it cannot be asked anything: give an "
                "instruct model (a base model learns a language by a recipe with base and pretrain)"
            )
        if self.prompts:
            read_messages(self.prompts)
        if self.from_pack and not Path(self.from_pack).is_file():
            raise CheckpointError(f"there is no pack {self.from_pack}: check the path")

    def values(self, output: Path) -> dict[str, Any]:
        """The sections of a recipe, without what is to be decided."""
        texts = {c: paths[0] if len(paths) == 1 else paths for c, paths in self.text.items()}
        try:
            name = file_part(output.resolve().name)
        except ValueError:
            name = "adapt"
        files = {"prompts": self.prompts, "from_pack": self.from_pack}
        given = {key: value for key, value in files.items() if value}
        title = {"title": self.title} if self.title else {}
        head = {"name": name, **title, "instruct": self.model, "language": self.language}
        return head | {"text": texts, "corpus": {}, "tokenizer": {}, "adapt": given}


def _check_script(language: str, paths: Sequence[str]) -> None:
    """Raise `CorpusError` for text with next to no letter of the language's script."""
    script = SCRIPTS.get(language)
    if script is None:
        note(
            f"'{language}' is no code whose script is known, so text in another script would not "
            "be noticed (codes are of ISO 639, two letters where there are two)"
        )
        return
    sample = "".join(t[:SCRIPT_CHARACTERS] for t in islice(stream_texts(paths), SCRIPT_TEXTS))
    if (share := script_share(sample, script)) < LEAST_SCRIPT:
        other = dominant_script(sample)
        letters = f"most are {other}" if other else "there are no letters"
        raise CorpusError(
            f"{share:.0%} of the letters in {', '.join(paths)} are {script} ({letters}), and "
            f"'{language}' is written in {script}: give other text, or the code of its language"
        )


def _has_template(folder: Path) -> bool:
    """Whether a model's files hold a chat template, without loading its tokenizer."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config, CheckpointError).get("chat_template"))


def _decided(
    request: _Request,
    path: Path,
    options: Mapping[str, Any],
    overrides: Sequence[str],
    say: Callable[[str], None],
) -> str:
    """The text of the recipe with all that is decided. Writes nothing."""
    values = request.values(path.parent)
    draft = Draft(values, Origins(path), overrides)
    for section, key in (("tokenizer", "new_tokens"), ("adapt", "tokens")):
        if options[key] is not None:
            values[section][key] = str(options[key])
    for override in overrides:
        draft.override(override)
    for section in ("tokenizer", "adapt"):
        if not isinstance(values.get(section), dict):
            raise RecipeError(f"lep adapt needs the section {section}, and a change removes it")
    tokenizer, training = values["tokenizer"], values["adapt"]
    is_nested = tokenizer.get("method", "continue") == "continue"  # other methods need a size
    open_size = is_nested and tokenizer.get("new_tokens") is None
    open_tokens = training.get("tokens") is None and training.get("epochs") is None
    if options["hours"] is not None and not open_tokens:
        raise LepError(
            f"--hours is {options['hours']:g}, and adapt.tokens or adapt.epochs says how long to "
            "train: give one of them"
        )
    tried = values | {
        "tokenizer": tokenizer | ({"new_tokens": "1"} if open_size else {}),
        "adapt": training | ({"tokens": "1"} if open_tokens else {}),
    }
    provisional = Draft(tried, draft.origins, overrides).recipe()
    request.check()
    say("reading text and measuring this device ...")
    # Only here, because they import torch.
    from lep.pipeline.budget import CHARACTERS_READ, budget
    from lep.pipeline.recipe_stages import recipe_stages
    from lep.transfer.language_pack import LanguagePack

    recipe_stages(provisional)  # faults of models and data
    size = None if open_size else provisional.tokenizer.added
    if training.get("from_pack"):
        size = len(LanguagePack.load(Path(training["from_pack"])).mappings["input"].new_rows())
    stage = provisional.adapt
    assert stage is not None
    given = None if open_tokens else stage.tokens
    epochs = None if open_tokens else stage.epochs
    hours = options["hours"]
    chosen = budget(provisional, new_tokens=size, tokens=given, epochs=epochs, hours=hours)
    old = ", ".join(provisional.old_languages)
    say(f"languages: new tokens for {provisional.language}, none for {old}")
    say(chosen.reason)
    if open_size:
        tokenizer["new_tokens"] = str(chosen.new_tokens)
    if open_tokens:
        training["tokens"] = str(chosen.tokens)
    elif epochs and stage.share("practice"):  # else it ends where each token has enough practice
        training["practice_tokens"] = str(stage.practice_for(chosen.tokens))
    for name, count in chosen.counts.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = str(count)
    limit = max(LEAST_LIMIT, SPARE_TEXT * chosen.read_characters)
    is_large = chosen.text_characters >= min(limit + 1, CHARACTERS_READ)  # of which no more is read
    if is_large and not epochs and provisional.corpus.limit_characters is None:
        values["corpus"]["limit_characters"] = str(limit)  # the split holds it in memory
    return as_yaml(values)
