"""Load tokenizers verbatim, and write them so that every loader gives the same ids."""

import shlex
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lep.errors import CheckpointError, TokenizerError, foreign, printable
from lep.files import read_json, write_json
from lep.hub import GGUF, gguf_advice, import_command, local_folder
from lep.limits import GROWTH, JSON_BYTES
from lep.tokenizer.id_settings import remap_ids
from lep.tokenizer.vocabulary import described

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
CARRIED_FILES = (CONFIG, TEMPLATE, TEMPLATES)
# Other formats, which would contradict a changed tokenizer.json.
SENTENCEPIECE = "tokenizer.model"
MODEL_FILES = ("vocab.json", "merges.txt", SENTENCEPIECE)
OTHER_FORMATS = (*MODEL_FILES, "added_tokens.json", "special_tokens_map.json")
# On which all loaders must give the same ids.
LOADER_TEXTS = [
    "Hello, world! 1234\n\tdef f(x):",
    "Съешь ещё этих мягких булок.",
    "ქართული, 中文, हिन्दी 🙂",
    " a  b",
]
# What transformers notes of where a tokenizer was loaded.
MACHINE_SETTINGS = ("is_local", "local_files_only", "name_or_path", "_name_or_path")
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a local folder or hub id, exactly as its tokenizer.json says.

    (`AutoTokenizer` rebuilds some tokenizers by model type, which changes their ids.) Truncation,
    padding and the dropout of training are switched off.

    Raises `CheckpointError` when the folder or tokenizer.json is missing, `TokenizerError` when the
    file is broken.
    """
    folder = local_folder(source, weights=False)
    if not (folder / TOKENIZER).exists():
        raise CheckpointError(f"{folder} has no {TOKENIZER}: {_advice(folder)}")
    for name in (TOKENIZER, CONFIG):
        if (path := folder / name).exists():
            JSON_BYTES.check(path.stat().st_size, str(path), TokenizerError)
    advice = "download it again, or save it in the fast format"
    with foreign(f"{folder / TOKENIZER} cannot be read", advice, TokenizerError):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        normalizer = described(tokenizer.backend_tokenizer.normalizer)
        GROWTH.check(_growth(normalizer or {}), f"a text normalised by {folder}", TokenizerError)
        tokenizer("a")  # settings of odd types show when they are used
    template = tokenizer.chat_template
    texts = [*template, *template.values()] if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise TokenizerError(f"the chat template of {folder} is no text: correct {CONFIG}")
    raw = tokenizer.backend_tokenizer
    raw.no_truncation()
    raw.no_padding()
    if getattr(raw.model, "dropout", None):
        raw.model.dropout = None
    return tokenizer


def write_tokenizer(
    spec: dict[str, Any],
    like: Path,
    output: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    moved: Mapping[int, int] | None = None,
) -> None:
    """Write `spec` (the content of tokenizer.json) with the settings and template of folder `like`.

    The class is set to the one that loads tokenizer.json verbatim. `tokenizer` is the tokenizer of
    `like` if already loaded; `moved` the token ids that changed, `{id: new id}`.
    """
    output.mkdir(parents=True, exist_ok=True)
    _copy(CARRIED_FILES, like, output)
    write_json(output / TOKENIZER, spec)
    settings = _special_names(tokenizer or load_tokenizer(like)) | _read_config(output)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("added_tokens_decoder", None)  # tokenizer.json has it, with the right ids
    settings = remap_ids(settings, moved or {})
    _write_config(output, settings)


def copy_tokenizer(source: Path, output: Path) -> None:
    """Copy the files of a tokenizer, without what its settings note of the machine."""
    _copy((TOKENIZER, *CARRIED_FILES, *OTHER_FORMATS), source, output)
    if not {*MACHINE_SETTINGS}.isdisjoint(settings := _read_config(output)):
        _write_config(output, settings)


def keep_chat_template(source: Path, output: Path) -> None:
    """Copy the chat template of the folder `source` to a tokenizer that has none."""
    settings = _read_config(output)
    if "chat_template" in settings or (output / TEMPLATE).exists():
        return
    _copy((TEMPLATE, TEMPLATES), source, output)
    template = _read_config(source).get("chat_template")
    if template and not (output / TEMPLATE).exists():
        _write_config(output, settings | {"chat_template": template})


def check_loaders(
    folder: Path, texts: list[str], fast: PreTrainedTokenizerFast | None = None
) -> None:
    """Raise `TokenizerError` unless AutoTokenizer, the fast class and `tokenizers` give equal ids.

    `fast` is the folder's tokenizer if already loaded.
    """
    with foreign(f"{folder} cannot be loaded by all loaders", "save it again", TokenizerError):
        raw = Tokenizer.from_file(str(folder / TOKENIZER))
        auto = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    raw.no_truncation()
    raw.no_padding()
    loaded = {"AutoTokenizer": auto, "PreTrainedTokenizerFast": fast or load_tokenizer(folder)}
    for text in texts:
        expected = raw.encode(text).ids
        for name, tokenizer in loaded.items():
            if (ids := tokenizer(text)["input_ids"]) != expected:
                raise TokenizerError(
                    f"{name} reads {folder} differently from its {TOKENIZER} (on {text[:40]!r}: "
                    f"{ids[:8]} instead of {expected[:8]}): the model type rebuilds tokenizers; "
                    "load it with PreTrainedTokenizerFast"
                )


def loader_note(folder: Path, fast: PreTrainedTokenizerFast) -> str | None:
    """A line where `AutoTokenizer` gives other ids than tokenizer.json (`fast`), else None."""
    used = f"lep reads {TOKENIZER}, and its results are the same in all loaders"
    try:
        auto = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ends = (name for name in (fast.bos_token, fast.eos_token) if name)
        for text in (*LOADER_TEXTS, " a ".join(ends)):
            if (ids := auto(text)["input_ids"]) != (expected := fast(text)["input_ids"]):
                return (
                    f"AutoTokenizer reads this folder differently from its {TOKENIZER} (on "
                    f"{text!r}: {ids[:8]} instead of {expected[:8]}); {used}"
                )
    except Exception as error:  # whatever a foreign class raises
        reason = printable((str(error).splitlines() or [type(error).__name__])[0][:200])
        return f"AutoTokenizer cannot read this folder ({reason}); {used}"
    return None


def _advice(folder: Path) -> str:
    """How to make a tokenizer.json from other formats."""
    if ggufs := sorted(folder.glob(f"*{GGUF}")):
        return gguf_advice(ggufs[0])
    if not any((folder / name).exists() for name in (*MODEL_FILES, "tekken.json")):
        return "give the folder of a tokenizer"
    if (folder / SENTENCEPIECE).exists():
        output = folder.with_name(folder.resolve().name + "-fast")
        return f"make it from {SENTENCEPIECE}: {import_command(folder, output)}"
    command = (
        "import sys; from transformers import AutoTokenizer as T; "
        "T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
    )
    return f"make it with transformers: {shlex.join(['python', '-c', command, str(folder)])}"


def _growth(normalizer: dict[str, Any]) -> int:
    """How many times longer a normaliser's replacements can make a text, in characters."""
    inner = map(_growth, normalizer.get("normalizers") or [])
    replaced = (normalizer.get("pattern") or {}).get("String") or "?"  # of a pattern: one character
    return prod(inner) * max(1, len(normalizer.get("content") or "") // len(replaced))


def _copy(names: Iterable[str], source: Path, output: Path) -> None:
    for name in names:
        if (source / name).is_dir():
            (output / name).mkdir(exist_ok=True)  # with the permissions that all files get
            _copy((f.name for f in (source / name).iterdir()), source / name, output / name)
        elif (source / name).exists():
            shutil.copyfile(source / name, output / name)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    return read_json(path, TokenizerError) if path.exists() else {}


def _write_config(folder: Path, settings: dict[str, Any]) -> None:
    kept = {name: value for name, value in settings.items() if name not in MACHINE_SETTINGS}
    write_json(folder / CONFIG, kept, indent=2)


def _special_names(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Names of the special tokens, including those of an older folder's special_tokens_map.json."""
    names = {name: getattr(tokenizer, name, None) for name in SPECIAL_NAMES}
    return {name: str(value) for name, value in names.items() if value is not None}
