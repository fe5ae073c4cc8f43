"""The real Llama 3 tokenizer on a small random model (needs LEP_DATA, the development data)."""

import json
import os
from pathlib import Path

import pytest
import torch
import zstandard
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import read_documents
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.propagate import propagate

DATA = os.environ.get("LEP_DATA", "")
NEW_TOKENS = 4000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(DATA, "tokenizers", "llama-3").is_dir(),
        reason="LEP_DATA does not name a folder with tokenizers/llama-3",
    ),
]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory) -> Path:
    """Base and instruct folders with Llama 3's tokenizer and two random layers."""
    folder, source = tmp_path_factory.mktemp("llama3"), Path(DATA, "tokenizers", "llama-3")
    for seed, name in enumerate(("base", "instruct")):
        path = folder / name
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128_256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=128_000,
            eos_token_id=[128_001, 128_009],
        )
        model = LlamaForCausalLM(config)
        if seed:
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter) * parameter.std()
        model.to(torch.bfloat16).save_pretrained(path)
        (path / "tokenizer.json").write_bytes(
            zstandard.ZstdDecompressor()
            .stream_reader((source / "tokenizer.json.zst").open("rb"))
            .read()
        )
        (path / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text())
    return folder


def test_extend_init_propagate_reload(llama3, tmp_path) -> None:
    corpus = [
        Path(DATA, "train", "ru", "news_factrueval.jsonl.zst"),
        Path(DATA, "train", "ru", "tech_rustbook.jsonl.zst"),
    ]
    change = extend_tokenizer(llama3 / "base", corpus, NEW_TOKENS, tmp_path / "tokenizer")
    sample = change.corpus_sample
    assert sample["tokens_before"] > 1.1 * sample["tokens_after"]
    result = initialise(llama3 / "base", tmp_path / "tokenizer", tmp_path / "adapted")
    assert (result.rows, result.mixed) == (128_256 + NEW_TOKENS, NEW_TOKENS)
    propagate(llama3 / "base", llama3 / "instruct", tmp_path / "adapted", tmp_path / "result")

    raw = Tokenizer.from_file(str(tmp_path / "result" / "tokenizer.json"))
    original = Tokenizer.from_file(str(llama3 / "base" / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(tmp_path / "result")
    russian = [d.text[:3000] for d, _ in zip(read_documents(corpus), range(150), strict=False)]
    english = [
        d.text[:3000]
        for d, _ in zip(
            read_documents([Path(DATA, "train", "en", "tech_rustbook.jsonl.zst")]),
            range(100),
            strict=False,
        )
    ]
    for text in [*russian, *english]:
        assert auto(text)["input_ids"] == raw.encode(text).ids
        assert raw.decode(raw.encode(text, add_special_tokens=False).ids) == text
    for text in english:
        if not any("Ѐ" <= character <= "ӿ" for character in text):
            assert raw.encode(text).ids == original.encode(text).ids
    specials = json.loads(original.to_str())["added_tokens"]
    assert json.loads(raw.to_str())["added_tokens"] == specials
    assert len(auto) == len(Checkpoint(tmp_path / "result").vocabulary) == 128_256 + NEW_TOKENS

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "result")
    ids = torch.tensor([auto(russian[0])["input_ids"][:64]])
    assert ids.max() >= 128_256  # new tokens are used
    assert model(ids).logits.shape == (1, 64, 128_256 + NEW_TOKENS)
    assert model.config.eos_token_id == [128_001, 128_009]
