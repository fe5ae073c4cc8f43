"""Folders for CTranslate2 and MLX: the original's ids and answers there, or there is no folder."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE, TEMPLATE, save_model, weights
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PersimmonConfig,
    PersimmonForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import lep
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, LepError, TokenizerError
from lep.exports import agreement, folder, to_ctranslate2, to_mlx
from lep.exports.agreement import Behaviour, behaviour, check_agreement
from lep.exports.apart import apart
from lep.exports.job import Job
from lep.tokenizer.load import load_tokenizer

LAB = ROOT / "lab" / "pair" / "instruct"
PADDING, NEW_TOKENS = 3, 200
QUESTIONS = ("Кошка сидит на", "Write the word of the day: sun")
TARGETS = [
    pytest.param(to, marks=pytest.mark.skipif(not find_spec(module), reason=f"needs lep[{to}]"))
    for to, module in (("ctranslate2", "ctranslate2"), ("mlx", "mlx_lm"))
]


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> Path:
    """The lab's instruct model with new tokens and padding rows."""
    path = tmp_path_factory.mktemp("lab")
    lep.extend_tokenizer(LAB, [SAMPLE / "ru"], NEW_TOKENS, path / "tokenizer")
    lep.initialise(LAB, path / "tokenizer", path / "model")
    tensors = weights(path / "model")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        zeros = torch.zeros(PADDING, tensors[name].shape[1], dtype=tensors[name].dtype)
        tensors[name] = torch.cat([tensors[name], zeros])
    (path / "model" / "model.safetensors").unlink()  # it may be a link
    save_file(tensors, path / "model" / "model.safetensors", {"format": "pt"})
    settings = json.loads((path / "model" / "config.json").read_text())
    settings["vocab_size"] += PADDING
    (path / "model" / "config.json").write_text(json.dumps(settings))
    return path / "model"


@pytest.fixture
def job(tmp_path: Path, byte_level: Tokenizer) -> Job:
    """A small model with two padding rows."""
    save_model(tmp_path / "small", byte_level, template=TEMPLATE, padding_rows=2)
    return Job(Checkpoint(tmp_path / "small"), tmp_path / "out", "f32", [])


def greedy(path: Path, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
    """Answers by transformers, without the token that ends them."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    answers = []
    for ids in prompts:
        result = model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=ends
        )
        answers.append([i for i in result[0, len(ids) :].tolist() if i not in ends])
    return answers


def prompts(tokenizer) -> list[list[int]]:
    texts = [f"<|user|> {question}<|end|><|assistant|>" for question in QUESTIONS]
    return [tokenizer(text)["input_ids"] for text in (*texts, "The lake was quiet", "Утром на")]


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_an_extended_model_answers_there_as_here(padded: Path, here, tmp_path: Path, to) -> None:
    """Greedy answers by the program's own functions, from what it reads in the folder."""
    output = tmp_path / "out"
    printed = here("export", "--model", padded, "--to", to, "--type", "f32", "--output", output)
    assert int(printed.split("ids equal on ")[1].split()[0]) >= 200
    assert "greedy answers equal" in printed
    assert not list(output.glob("*.py")) + list(output.glob("*.lock"))
    tokenizer = AutoTokenizer.from_pretrained(padded)
    texts = prompts(tokenizer)
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("</s>", "<|end|>")]
    answers = by_ctranslate2 if to == "ctranslate2" else by_mlx
    assert answers(output, texts) == greedy(padded, texts, ends)
    size = len(tokenizer) + PADDING
    assert f"{size:,} tokens" in printed
    spec = json.loads((padded / "tokenizer.json").read_text())
    assert json.loads((output / "tokenizer.json").read_text()) == spec
    if to == "ctranslate2":
        names = json.loads((output / "vocabulary.json").read_text())
        assert len(names) == size == len(set(names))
        ids = spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"]}
        assert all(names[index] == name for name, index in ids.items())
        settings = json.loads((output / "config.json").read_text())
        assert settings["eos_token"] == "<|end|>"  # that of a turn
    else:
        tensors, original = load_file(output / "model.safetensors"), weights(padded)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(tensors[name], original[name].float()), name


def by_ctranslate2(path: Path, texts: list[list[int]]) -> list[list[int]]:
    import ctranslate2

    generator, tokenizer = ctranslate2.Generator(str(path)), AutoTokenizer.from_pretrained(path)
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in texts]
    options = {"end_token": ["</s>", "<|end|>"], "include_prompt_in_result": False}
    results = generator.generate_batch(tokens, max_length=12, sampling_topk=1, **options)
    return [tokenizer.convert_tokens_to_ids(result.sequences[0]) for result in results]


def by_mlx(path: Path, texts: list[list[int]]) -> list[list[int]]:
    from mlx_lm import load, stream_generate

    model, tokenizer = load(str(path))
    assert {tokenizer.convert_ids_to_tokens(i) for i in tokenizer.eos_token_ids} == {
        "</s>",
        "<|end|>",
    }
    replies = (stream_generate(model, tokenizer, ids, max_tokens=12) for ids in texts)
    return [[r.token for r in reply if r.token not in tokenizer.eos_token_ids] for reply in replies]


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_positions_under_their_present_name(padded: Path, tmp_path: Path, to: str) -> None:
    """A base of the rotary angles that no program takes by itself, as transformers 5 writes it."""
    model = Path(shutil.copytree(padded, tmp_path / "model"))
    settings = json.loads((model / "config.json").read_text())
    assert not {"rope_theta", "rope_scaling"} & set(settings)
    settings["rope_parameters"] = {"rope_theta": 500.0, "rope_type": "default"}
    (model / "config.json").write_text(json.dumps(settings))
    lep.export(model, tmp_path / "out", to=to, type="f32")
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts, ends = prompts(tokenizer), tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])
    answers = by_ctranslate2 if to == "ctranslate2" else by_mlx
    assert greedy(model, texts, ends) != greedy(padded, texts, ends)
    assert answers(tmp_path / "out", texts) == greedy(model, texts, ends)


def test_positions_under_earlier_names() -> None:
    """What mlx-lm's models read, beside what transformers 5 writes."""
    llama = {"rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"}}
    assert to_mlx.with_earlier_names(llama) == llama | {"rope_theta": 100_000.0}
    slowed = {"rope_type": "llama3", "factor": 32.0, "rope_theta": 500_000.0}
    assert to_mlx.with_earlier_names({"rope_parameters": slowed}) == {
        "rope_parameters": slowed,
        "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0},
    }
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    gemma = {"text_config": {"rope_parameters": kinds}}
    assert to_mlx.with_earlier_names(gemma) == {
        "text_config": {"rope_parameters": kinds, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    }
    earlier = {"rope_theta": 5.0, "rope_scaling": None}
    assert to_mlx.with_earlier_names(earlier) == earlier


@pytest.fixture
def plain_qwen(tmp_path: Path, byte_level: Tokenizer) -> Path:
    """A model of type Qwen 2, whose class composes characters, with a tokenizer that does not."""
    raw = Tokenizer.from_str(byte_level.to_str())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    raw.post_processor = None
    save_model(tmp_path / "qwen", raw)
    ids = {"bos_token_id": raw.token_to_id("<s>"), "eos_token_id": raw.token_to_id("</s>")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = Qwen2Config(vocab_size=raw.get_vocab_size(), **ids, **sizes, **heads)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_where_the_class_of_a_type_composes(plain_qwen: Path, tmp_path: Path, to: str) -> None:
    """MLX reads the tokenizer by the model's type: its ids are those of composed text."""
    result = lep.export(plain_qwen, tmp_path / "out", to=to, type="f32")
    assert any("mlx-lm composes characters" in note for note in result.notes) == (to == "mlx")
    there, raw = AutoTokenizer.from_pretrained(tmp_path / "out"), load_tokenizer(plain_qwen)
    apart, together = "\u0438\u0306", "\u0439"
    expected = together if to == "mlx" else apart
    assert there(apart)["input_ids"] == raw(expected)["input_ids"]
    assert raw(apart)["input_ids"] != raw(together)["input_ids"]


def test_who_composes_is_asked(plain_qwen: Path, tmp_path: Path, monkeypatch) -> None:
    """Ids of composed text pass where the program composes, and nowhere else."""
    job = Job(Checkpoint(plain_qwen), tmp_path / "out", "f32", [("\u0438\u0306", True)])
    expected = Behaviour([], [], [], [])
    answered = {"log_probabilities": [], "answers": [], "rows": job.rows, "ends": job.ends}
    answered["ids"] = [job.tokenizer("\u0439")["input_ids"]]
    monkeypatch.setattr(folder, "version", lambda package: "1")
    monkeypatch.setattr(folder, "behaviour", lambda job: expected)
    monkeypatch.setattr(folder, "check_agreement", lambda *given: "near")
    for composes in (False, True):
        answers = answered | {"composes": composes}
        monkeypatch.setattr(folder, "apart", lambda *given, answers=answers, **options: answers)
        if composes:
            agreement, notes = to_mlx.PROGRAM._prove(job, tmp_path)
            assert agreement == "near"
            assert "mlx-lm composes characters (NFC)" in notes[0]
        else:
            with pytest.raises(TokenizerError, match="would give other ids"):
                to_mlx.PROGRAM._prove(job, tmp_path)


def test_ctranslate2_looks_up_every_name() -> None:
    """The first name too, at any point of a text: answers of CTranslate2 lack BOS and ends."""
    pytest.importorskip("ctranslate2", reason="needs lep[ctranslate2]")
    from lep.exports.run_ctranslate2 import looked_up

    names = [f"t{index}" for index in range(100)]
    texts = [["t0", "t7", "t0"], ["t99", "t0"], names[::-1]]
    assert looked_up(names, texts) == [[0, 7, 0], [99, 0], list(range(99, -1, -1))]


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_eight_bits(padded: Path, tmp_path: Path, to: str) -> None:
    """The weights take about half as much as in bf16, and probabilities are near."""
    result = lep.export(padded, tmp_path / "out", to=to, type="q8_0")
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("model.*"))
    assert size < 0.75 * (padded / "model.safetensors").stat().st_size
    assert "within 0." in result.agreement


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_what_the_converter_does_not_know_is_refused(
    byte_level: Tokenizer, here, tmp_path: Path, to: str
) -> None:
    save_model(tmp_path / "model", byte_level)
    config = PersimmonConfig(
        vocab_size=byte_level.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    PersimmonForCausalLM(config).save_pretrained(tmp_path / "model")
    output = here(
        "export", "--model", tmp_path / "model", "--to", to, "--output", tmp_path / "out", code=2
    )
    assert len(output.splitlines()) == 1
    assert "ersimmon" in output
    assert "cannot be converted" in output
    assert "serve the folder as it is" in output
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_another_model_or_tokenizer_leaves_no_folder(
    padded: Path, tmp_path: Path, monkeypatch, to: str
) -> None:
    """A converter that mixes up two rows is found by the answers, two tokens by their ids."""
    original, staged = weights(padded), folder.stage

    def mixed(job: Job, path: Path, settings) -> None:
        staged(job, path, settings)
        tensors = dict(original)
        name = "model.layers.1.self_attn.q_proj.weight"
        tensors[name] = tensors[name].flip(0).contiguous()
        (path / "model.safetensors").unlink()
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(folder, "stage", mixed)
    with pytest.raises(CheckpointError, match="gives other probabilities"):
        lep.export(padded, tmp_path / "out", to=to)
    monkeypatch.undo()
    if to == "ctranslate2":  # which looks up names
        names = to_ctranslate2.row_names

        def swapped(job: Job) -> list[str]:
            rows = names(job)
            first, second = rows.index("Ġthe"), rows.index("Ġand")
            rows[first], rows[second] = rows[second], rows[first]
            return rows

        monkeypatch.setattr(to_ctranslate2, "row_names", swapped)
    else:
        carried = folder.carry

        def changed(job: Job, path: Path) -> None:
            carried(job, path)
            spec = json.loads((path / "tokenizer.json").read_text())
            ids = spec["model"]["vocab"]
            ids["Ġthe"], ids["Ġand"] = ids["Ġand"], ids["Ġthe"]
            (path / "tokenizer.json").write_text(json.dumps(spec))

        monkeypatch.setattr(folder, "carry", changed)
    with pytest.raises(TokenizerError, match="would give other ids"):
        lep.export(padded, tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


def test_each_row_has_a_name_of_its_own(job: Job) -> None:
    spec = json.loads((job.source.folder / "tokenizer.json").read_text())
    size = len(spec["model"]["vocab"])
    names = to_ctranslate2.row_names(job)
    assert len(names) == size + 2 == len(set(names))
    assert all(names[index] == name for name, index in spec["model"]["vocab"].items())
    assert not set(names[size:]) & set(spec["model"]["vocab"])
    to_ctranslate2.check_names(names, list(names))
    for written, row in (
        ([*names[:5], "x", *names[6:]], "row 5 "),
        (names[:-1], f"row {size + 1} "),
    ):
        with pytest.raises(CheckpointError, match=row):
            to_ctranslate2.check_names(written, names)


def test_a_turn_ends_where_the_template_ends_it(job: Job, byte_level: Tokenizer) -> None:
    assert job.stops == ["</s>", "<|end|>"]
    assert to_ctranslate2.end_token(job) == "<|end|>"
    save_model(job.source.folder.parent / "base", byte_level)
    base = Job(Checkpoint(job.source.folder.parent / "base"), job.output, "f32", [])
    assert to_ctranslate2.end_token(base) == "</s>"


def test_a_model_without_an_end_is_refused(tmp_path: Path, byte_level: Tokenizer) -> None:
    save_model(tmp_path / "base", byte_level)
    for name, key in (("tokenizer_config", "eos_token"), ("config", "eos_token_id")):
        path = tmp_path / "base" / f"{name}.json"
        settings = json.loads(path.read_text())
        del settings[key]
        path.write_text(json.dumps(settings))
    (tmp_path / "base" / "generation_config.json").unlink()
    base = Job(Checkpoint(tmp_path / "base"), tmp_path / "out", "f32", [])
    for target, name in ((to_ctranslate2, "CTranslate2"), (to_mlx, "mlx-lm")):
        with pytest.raises(TokenizerError, match=f"no token ends an answer, and {name} would"):
            target.write(base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_converter_sees_weights_settings_and_tokenizer_only(job: Job, tmp_path: Path) -> None:
    """Neither code nor files that no index names; the tokenizer as tokenizer.json says."""
    source = job.source.folder
    (source / "modeling_x.py").write_text("raise SystemExit")
    (source / "LICENSE.txt").write_text("terms")
    shutil.copy(source / "model.safetensors", source / "model-other.safetensors")
    spec = json.loads((source / "tokenizer.json").read_text())
    truncation = {"max_length": 3, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
    (source / "tokenizer.json").write_text(json.dumps(spec | {"truncation": truncation}))
    folder.stage(job, tmp_path / "staged")
    assert {path.name for path in (tmp_path / "staged").iterdir()} == {
        "LICENSE.txt",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    text = "The lake was quiet in the morning."
    expected = Tokenizer.from_str(json.dumps(spec)).encode(text).ids
    assert len(expected) > 3
    assert AutoTokenizer.from_pretrained(tmp_path / "staged")(text)["input_ids"] == expected
    generation = json.loads((tmp_path / "staged" / "generation_config.json").read_text())
    names = [load_tokenizer(source).convert_ids_to_tokens(i) for i in generation["eos_token_id"]]
    assert names == ["</s>", "<|end|>"]


def test_behaviour_is_that_of_transformers(job: Job, monkeypatch) -> None:
    """Log-probabilities of the likeliest tokens, and answers up to a close call."""
    given = [load_tokenizer(job.source.folder)("The lake was quiet")["input_ids"]]
    monkeypatch.setattr(agreement, "prompts", lambda tokenizer: given)
    expected = behaviour(job)
    model = AutoModelForCausalLM.from_pretrained(job.source.folder, dtype=torch.float32)
    ids = torch.tensor([expected.prompts[0]])
    with torch.no_grad():
        scores = model(ids).logits[0].log_softmax(-1)
    best = scores.argsort(-1, descending=True)[:, : agreement.LIKELIEST]
    assert best.tolist() == expected.likeliest[0]
    values = torch.tensor(expected.log_probabilities[0])
    torch.testing.assert_close(scores.gather(1, best), values, rtol=0, atol=1e-5)
    whole = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    monkeypatch.setitem(agreement.TOLERANCE, "f32", 0.0)
    assert behaviour(job).answers[0] == whole
    monkeypatch.setitem(agreement.TOLERANCE, "f32", 100.0)
    assert behaviour(job).answers[0] == []
    first, second = scores[-1].topk(2).values.tolist()
    monkeypatch.setitem(agreement.TOLERANCE, "f32", (first - second) / 2 - 1e-4)
    assert behaviour(job).answers[0][:1] == whole[:1]


def test_what_is_not_near_is_refused() -> None:
    expected = Behaviour([[1, 2]], [[[5], [6]]], [[[-1.0], [-2.0]]], [[6, 7]])
    near = [[[-1.01], [-2.0]]]
    told = check_agreement(expected, near, [[6, 7, 8]], "bf16", "way out")
    assert told.startswith("log-probabilities within 0.0100 nat")
    for values in ([[[-1.03], [-2.0]]], [[[float("nan")], [-2.0]]]):
        with pytest.raises(CheckpointError, match=r"more than 0\.02\), nothing was written: way"):
            check_agreement(expected, values, [[6, 7]], "bf16", "way out")
    check_agreement(expected, [[[-1.03], [-2.0]]], [[6, 7]], "q8_0", "way out")
    with pytest.raises(CheckpointError, match=r"with \[6, 8\], transformers with \[6, 7\]"):
        check_agreement(expected, near, [[6, 8]], "bf16", "way out")


@pytest.mark.parametrize("to", ["ctranslate2", "mlx"])
def test_a_missing_package_is_one_sentence(here, tmp_path: Path, monkeypatch, to: str) -> None:
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    output = here("export", "--model", LAB, "--to", to, "--output", tmp_path / "out", code=2)
    assert f"pip install '.[{to}]'" in output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_gives_its_last_line() -> None:
    with pytest.raises(LepError, match=r"^fault \(.*No module named lep\.nothing\): way out$"):
        apart("lep.nothing", fault="fault", way_out="way out")
