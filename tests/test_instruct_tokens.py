"""`lep init` of an instruct model whose tokenizer was made from its base: nothing of it is lost."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SAMPLE, byte_fallback_tokenizer, byte_level_tokenizer, save_model, weights
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from lep.errors import TokenizerError
from lep.tokenizer.write import (
    extend_tokenizer,
    optimize_tokenizer,
    prune_tokenizer,
    train_tokenizer,
)
from lep.transfer.initialise import initialise

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "Hello, мир!"}]
TEXTS = [SAMPLE / "ru", SAMPLE / "en"]


def make_tokenizer(change: str, base: Path, output: Path) -> None:
    """A tokenizer made from the base: of another size, of the same size, or new altogether."""
    size = len(AutoTokenizer.from_pretrained(base))
    if change == "extend":
        extend_tokenizer(base, TEXTS, 60, output, script="cyrillic")
    elif change == "prune":
        prune_tokenizer(base, TEXTS, size - 40, output)
    elif change == "in place":
        optimize_tokenizer(base, TEXTS, size - 40, size, output, in_place=True)
    else:
        train_tokenizer(base, TEXTS, change, 400, output)


def write_settings(folder: Path, name: str, **changes: object) -> None:
    settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(settings | changes))


def save_pair(folder: Path, plain: Tokenizer) -> None:
    """A base with a reserved token, and an instruct model that renamed it and has two more."""
    plain.add_special_tokens(["<|reserved_0|>"])
    base = save_model(folder / "base", plain)
    spec = json.loads(plain.to_str().replace("<|reserved_0|>", "<|tool|>"))
    chat = Tokenizer.from_str(json.dumps(spec))
    chat.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    end = chat.token_to_id("<|im_end|>")
    chat.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)]
    )
    instruct = folder / "instruct"
    save_model(instruct, chat, seed=1, like=base, noise=0.2, template=CHATML)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    write_settings(
        instruct, "tokenizer_config.json", padding_side="left", model_max_length=77, **names
    )
    write_settings(instruct, "config.json", eos_token_id=end)
    write_settings(instruct, "generation_config.json", eos_token_id=[end, 1], pad_token_id=end)


@pytest.fixture(scope="module", params=["byte-level", "byte fallback"])
def models(request, tmp_path_factory, english, russian) -> Path:
    folder, texts = tmp_path_factory.mktemp("models"), english + russian[:4]
    if request.param == "byte-level":
        save_pair(folder, byte_level_tokenizer(texts, 499, ["<s>", "</s>"]))
    else:
        save_pair(folder, byte_fallback_tokenizer(texts, 499))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        *("extend", "in place", "bpe"),
        *(pytest.param(change, marks=pytest.mark.slow) for change in ("prune", "unigram")),
    ],
)
def test_special_tokens_and_settings_are_the_instruct_models(models, change, tmp_path) -> None:
    base, instruct, out = models / "base", models / "instruct", tmp_path / "out"
    make_tokenizer(change, base, tmp_path / "t")
    initialise(instruct, tmp_path / "t", out)
    before, after = (AutoTokenizer.from_pretrained(each) for each in (instruct, out))
    for name in ("eos_token", "pad_token", "bos_token", "padding_side", "model_max_length"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.chat_template == CHATML
    names = [token.content for token in before.added_tokens_decoder.values()]
    assert set(names) <= {token.content for token in after.added_tokens_decoder.values()}
    ids = {name: after.convert_tokens_to_ids(name) for name in names}
    for name in names:
        assert after(name, add_special_tokens=False)["input_ids"] == [ids[name]]
    prompt = after.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert prompt.count(ids["<|im_start|>"]) == 2
    assert prompt.count(ids["<|im_end|>"]) == 1
    assert after("a")["input_ids"][-1] == ids["<|im_end|>"]  # the post-processor's
    config, generation = (
        json.loads((out / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert config["eos_token_id"] == generation["pad_token_id"] == ids["<|im_end|>"]
    assert generation["eos_token_id"][0] == ids["<|im_end|>"]
    old, new = weights(instruct), weights(out)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(new[table]) > max(ids.values())
        for name, index in ids.items():
            row = old[table][before.convert_tokens_to_ids(name)]
            assert torch.equal(new[table][index], row), name
    # Nothing of the new vocabulary went away for it.
    raw = Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    sample = "Съешь ещё этих мягких булок, eat some more"
    expected = raw.encode(sample, add_special_tokens=False).ids
    assert after(sample, add_special_tokens=False)["input_ids"] == expected


def test_a_renamed_reserved_token_keeps_its_id_and_no_row_is_left_unnamed(models, tmp_path) -> None:
    extend_tokenizer(models / "base", [SAMPLE / "ru"], 50, tmp_path / "t")
    initialise(models / "instruct", tmp_path / "t", tmp_path / "out")
    before, after = (
        AutoTokenizer.from_pretrained(each) for each in (models / "instruct", tmp_path / "out")
    )
    index = before.convert_tokens_to_ids("<|tool|>")
    assert after.convert_tokens_to_ids("<|tool|>") == index
    assert sorted(after.get_vocab().values()) == list(range(len(after)))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(after)


def test_what_the_user_adds_to_the_new_tokenizer_stays(models, tmp_path) -> None:
    """Tokens of the folder are vocabulary; which of them ends a text is the model's choice."""
    raw = Tokenizer.from_file(str(models / "base" / "tokenizer.json"))
    raw.add_special_tokens(["<|mine|>"])  # the id that <|im_start|> has in the instruct model
    folder = tmp_path / "t"
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|mine|>"}
    template = "{{ '<|mine|>' + messages[0]['content'] }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    initialise(models / "instruct", folder, tmp_path / "out")
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    names = ["<|mine|>", "<|im_start|>", "<|im_end|>"]
    size = raw.get_vocab_size()
    assert after.convert_tokens_to_ids(names) == [size - 1, size, size + 1]
    assert after.eos_token == "<|im_end|>"
    assert after.chat_template == CHATML
    # A model without a template takes the folder's, with its token.
    initialise(models / "base", folder, tmp_path / "base")
    after = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert after.apply_chat_template(CHAT, return_dict=False)[0] == size - 1
    assert after.eos_token == "</s>"


def test_a_token_of_the_template_that_would_fall_apart_is_an_error(models, tmp_path) -> None:
    """The folder cuts out `<|im`, before the model's own token is looked for."""
    chat = Tokenizer.from_file(str(models / "instruct" / "tokenizer.json"))
    spec = json.loads(chat.to_str())
    for entry in spec["added_tokens"]:
        entry["normalized"] = entry["content"] == "<|im_start|>"  # looked for in a second pass
    instruct = tmp_path / "instruct"
    save_model(instruct, Tokenizer.from_str(json.dumps(spec)), template=CHATML)
    raw = Tokenizer.from_file(str(models / "base" / "tokenizer.json"))
    raw.add_special_tokens(["<|im"])
    (tmp_path / "t").mkdir()
    raw.save(str(tmp_path / "t" / "tokenizer.json"))
    message = r"the chat template uses the token '<\|im_start\|>', which the new tokenizer would"
    with pytest.raises(TokenizerError, match=message):
        initialise(instruct, tmp_path / "t", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
