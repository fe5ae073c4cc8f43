"""Token ids in settings follow their tokens, or the result is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import transformers
from conftest import SAMPLE
from transformers import AutoTokenizer, GenerationConfig

from lep.errors import CheckpointError
from lep.tokenizer.id_settings import known_ids, possible_ids, remap_ids
from lep.tokenizer.write import optimize_tokenizer
from lep.transfer.initialise import initialise

MODELS = Path(transformers.__file__).parent / "models"
FIELD = re.compile(r"^    (\w+): ([^=\n#]+) = ", re.MULTILINE)
# Fields of transformers with such names that hold no ids of text tokens.
NO_TOKENS = re.compile(r"layer|hook|attn|visual_index|ignore|lang_id|prompt_id|label|head_in|kpool")


def fields() -> set[str]:
    """Integer fields of all configurations of transformers whose names are like those of ids."""
    names = set()
    for file in MODELS.glob("*/configuration_*.py"):
        for name, annotation in FIELD.findall(file.read_text(encoding="utf-8")):
            if "int" in annotation and re.search(r"(^|_)(ids?|index|suppress_tokens)$", name):
                names.add(name)
    return names


def test_every_field_of_transformers_is_known() -> None:
    names = fields()
    assert len(names) > 90
    tokens = {name for name in names if not NO_TOKENS.search(name)}
    held = {name for name, _ in known_ids(dict.fromkeys(tokens, 7))}
    other = {name for name in tokens - held if re.search("codec|codebook|t2u|audio_stream", name)}
    assert tokens - held - other <= {"tag_pad_id", "subs_pad_id", "merge_index", "decode_index"}
    assert not list(possible_ids(dict.fromkeys(names, 7)))


def test_every_setting_of_generation_is_known() -> None:
    """Each argument of `GenerationConfig` whose name is that of ids or biases of tokens."""
    text = (MODELS.parent / "generation" / "configuration_utils.py").read_text(encoding="utf-8")
    arguments = set(re.findall(r"self\.(\w*(?:_ids?|suppress_tokens|_bias)) = kwargs", text))
    kept = {"eos_token_id", "bad_words_ids", "sequence_bias", "begin_suppress_tokens"}
    assert kept <= arguments
    held = known_ids({name: [[[1, 2], 0.5]] for name in arguments})
    assert {name for name, _ in held} == arguments


def test_each_form() -> None:
    settings = {
        "sequence_bias": {"(9, 3)": 9.0, "(9,)": -1.5},
        "force_words_ids": [[9, 3], [[9], [4, 9]]],
        "forced_decoder_ids": [[9, 9], [3, None]],
        "begin_suppress_tokens": [-1, 9],
        "decoder_start_token_id": 9,
        "lang_to_id": {"<|ru|>": 9, "<|9|>": 3},
        "max_length": 9,
        "num_assistant_tokens": 9,
        "exponential_decay_length_penalty": [9, 1.1],
        "text_config": {"vocab_size": 50, "image_start_id": 9, "num_experts_per_tok": 9},
        "audio_config": {"vocab_size": 8, "pad_token_id": 9},
        "parts": [{"pad_token_id": 9}],
    }
    assert remap_ids(settings, {9: 60}, rows=50) == {
        "sequence_bias": {"(60, 3)": 9.0, "(60,)": -1.5},
        "force_words_ids": [[60, 3], [[60], [4, 60]]],
        "forced_decoder_ids": [[9, 60], [3, None]],
        "begin_suppress_tokens": [-1, 60],
        "decoder_start_token_id": 60,
        "lang_to_id": {"<|ru|>": 60, "<|9|>": 3},
        "max_length": 9,
        "num_assistant_tokens": 9,
        "exponential_decay_length_penalty": [9, 1.1],
        "text_config": {"vocab_size": 50, "image_start_id": 60, "num_experts_per_tok": 9},
        "audio_config": {"vocab_size": 8, "pad_token_id": 9},
        "parts": [{"pad_token_id": 60}],
    }
    listed = {"sequence_bias": [[[9, 3], 9.0], [[3], 1]]}
    assert remap_ids(listed, {9: 60}) == {"sequence_bias": [[[60, 3], 9.0], [[3], 1]]}


@pytest.fixture(scope="module")
def moving(pair, tmp_path_factory) -> tuple[Path, Path, int, int, int]:
    """A model, a smaller tokenizer, an id that moves, its new id, and one that is dropped."""
    folder = tmp_path_factory.mktemp("moving")
    texts = [SAMPLE / "ru", SAMPLE / "en"]
    optimize_tokenizer(pair["base"], texts, 440, 480, folder / "t", script="cyrillic")
    id_map = json.loads((folder / "t" / "id_map.json").read_text())
    old, new = id_map["moved"][-1]
    return pair["base"], folder / "t", old, new, id_map["dropped"][0]


def test_settings_that_transformers_writes_keep_their_tokens(moving, tmp_path) -> None:
    model, tokenizer, old, _, _ = moving
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    before = AutoTokenizer.from_pretrained(folder)
    bias = [[[old, 5], -3.0]]
    GenerationConfig(
        sequence_bias=bias, bad_words_ids=[[old]], begin_suppress_tokens=[old], eos_token_id=[1]
    ).save_pretrained(folder)
    for file in ("processor_config.json", "tokenizer_config.json"):  # copied with the weights
        path = folder / file
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(settings | {"image_token_id": old, "text": [old]}))
    (folder / "words.json").write_text("[1, 2]")  # no settings
    initialise(folder, tokenizer, tmp_path / "out")
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")

    def same(index: int) -> bool:
        return after.convert_ids_to_tokens(index) == before.convert_ids_to_tokens(old)

    [[[first, second], value]] = generation.sequence_bias
    assert same(first)
    assert (second, value) == (5, -3.0)
    assert same(generation.bad_words_ids[0][0])
    assert same(generation.begin_suppress_tokens[0])
    for file in ("processor_config.json", "tokenizer_config.json"):
        settings = json.loads((tmp_path / "out" / file).read_text())
        assert same(settings["image_token_id"])
        assert settings["text"] == [old]
    assert (tmp_path / "out" / "words.json").read_text() == "[1, 2]"


@pytest.mark.parametrize(
    "setting",
    [
        "sequence_bias", "force_words_ids", "forced_decoder_ids", "begin_suppress_tokens",
        "image_start_id",
    ],
)  # fmt: skip
def test_a_dropped_token_is_refused_whatever_the_setting(setting, moving, tmp_path) -> None:
    model, tokenizer, _, _, dropped = moving
    shutil.copytree(model, tmp_path / "model")
    forms = {"sequence_bias": [[[5, dropped], 1.0]], "force_words_ids": [[[dropped]]]}
    forms |= {"forced_decoder_ids": [[1, dropped]], "image_start_id": dropped}
    settings = {setting: forms.get(setting, [dropped])}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    message = f"{setting} in .*generation_config.json is {dropped}, a token that the new tokenizer"
    with pytest.raises(CheckpointError, match=message):
        initialise(tmp_path / "model", tokenizer, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_unknown_setting_that_may_hold_ids_is_refused(moving, tmp_path) -> None:
    model, tokenizer, old, new, dropped = moving
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for index, fate in ((old, f"moves to {new}"), (dropped, "is dropped")):
        path.write_text(json.dumps(config | {"steering": {"magic_tokens": [5, index]}}))
        message = f"magic_tokens in .*config.json holds {index}, which .* that token {fate}: delete"
        with pytest.raises(CheckpointError, match=message):
            initialise(tmp_path / "model", tokenizer, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    # Numbers that no token's move touches, and settings that are about something else, stay.
    harmless = {"magic_tokens": [5, 10_000], "layer_ids": [old], "tokens_per_second": old}
    path.write_text(json.dumps(config | harmless))
    initialise(tmp_path / "model", tokenizer, tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert harmless.items() <= after.items()


def test_an_id_without_a_token_does_not_become_a_new_token(pair, tmp_path) -> None:
    """Every text would otherwise end at the Russian word that gets the id."""
    shutil.copytree(pair["base"], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    size = len(AutoTokenizer.from_pretrained(pair["base"]))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, size]}))
    message = f"eos_token_id in .*config.json is {size}, which is no token of the model but would"
    with pytest.raises(CheckpointError, match=message):
        initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
