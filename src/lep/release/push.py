"""Push a model's folder to the hub, if its card and its licence allow it."""

import glob
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from lep.checkpoint.origin import CARD, HUB_ID
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError, OutputError, foreign, printable, redacted
from lep.files import read_text
from lep.publish import publish_text
from lep.release.card import with_licence
from lep.release.licence import Licence
from lep.result import Result

# What belongs to a run, is unfinished, or repeats the user's prompts and what was answered to them;
# the client leaves .git and its own cache out.
LEFT_OUT = ["lep_stage.json", "*.partial", "*.partial/*", ".DS_Store", "lep/*.jsonl"]
# What an earlier push may have left and a program that loads the model would read: files of a
# repository's first level and of lep/.
REPLACED = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*", "added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("tekken.json", "*.model", "chat_template*", "lep/*"),
)
LONGEST_REASON = 500  # characters of the hub's


@dataclass(frozen=True)
class Pushed(Result):
    """A model on the hub."""

    url: str
    commit: str
    private: bool

    def __str__(self) -> str:
        seen = "only you and your organisation see it" if self.private else "everybody can see it"
        return f"pushed to {self.url} ({seen}); commit {self.commit}"


def push(
    folder: str | Path, repository: str, *, private: bool = False, licence: str | None = None
) -> Pushed:
    """Upload a model's folder to the hub as `repository`, OWNER/NAME, which is created if need be.

    `licence` states a licence that the card does not name, or that a licence which is not known
    here allows changed copies to be published. The token is that of `hf auth login` or HF_TOKEN.
    When the same call is repeated after an interruption, what has arrived is not sent again.
    Weights, settings and tokenizer files of an earlier push that the folder lacks are removed.

    Raises `CheckpointError` for a folder without model or card, `LepError` where the licence or the
    name is in the way or nobody is logged in, `OutputError` where the hub takes it not.
    """
    from huggingface_hub import HfApi, get_token

    folder = Path(folder)
    if not HUB_ID.fullmatch(repository):
        raise LepError(f"the repository is '{repository}': give OWNER/NAME")
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}: check the path")
    Checkpoint(folder)
    _check_card(folder, repository, licence)
    if get_token() is None:
        raise LepError("nobody is logged in at the hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        is_private = bool(api.model_info(repository).private)
        if private and not is_private:
            raise OutputError(
                f"{repository} exists and everybody can see it: make it private there, leave "
                "--private out, or choose another name"
            )
        message = "Upload a model with lep"
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=[*LEFT_OUT],
            delete_patterns=_replaced(api.list_repo_files(repository)),
        )
    except LepError:
        raise
    except Exception as error:  # the hub client raises many kinds; all mean that it did not arrive
        reason = printable(redacted(" ".join(str(error).split())[:LONGEST_REASON]))
        raise OutputError(
            f"{folder} did not arrive at {repository} ({reason or type(error).__name__}): repeat "
            "the command, and what has arrived is not sent again"
        ) from error
    return Pushed(f"{api.endpoint}/{repository}", commit.oid, is_private)


def _replaced(files: list[str]) -> list[str]:
    """Those of a repository's files that the model's replace, as patterns."""
    near = (name for name in files if "/" not in name.removeprefix("lep/"))
    return [glob.escape(name) for name in near if any(map(partial(fnmatch, name), REPLACED))]


def _check_card(folder: Path, repository: str, stated: str | None) -> None:
    """Raise `LepError` unless there is a card, and its licence allows to publish the model.

    A licence that is `stated` is written into a card that names none.
    """
    text = _card(folder)
    licence = Licence.of(_metadata(folder, text))
    given = Licence(stated.lower()) if stated else None
    if given and licence.name not in (None, given.name):
        raise LepError(
            f"the card of {folder} names the licence {licence.name}, and --licence is "
            f"{given.name}: correct one of them (lep card {folder} --licence NAME)"
        )
    chosen = given or licence
    chosen.check_redistribution(folder, repository.partition("/")[2], stated=given is not None)
    if licence.name is None and given:
        publish_text(folder / CARD, with_licence(text, given, folder))


def _card(folder: Path) -> str:
    if not (folder / CARD).is_file():
        raise CheckpointError(f"{folder} has no card ({CARD}): write it with lep card {folder}")
    return read_text(folder / CARD, CheckpointError)


def _metadata(folder: Path, text: str) -> dict[str, Any]:
    """The metadata of a card, as the hub's client reads them."""
    from huggingface_hub import ModelCard

    advice = f"correct it, or rename it and write another with lep card {folder}"
    with foreign(f"the metadata of {folder / CARD} cannot be read", advice, CheckpointError):
        return ModelCard(text).data.to_dict()
