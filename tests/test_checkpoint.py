"""Reading, initialising and propagating whole checkpoints.

Every result is loaded with plain transformers.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import (
    SAMPLE,
    SPECIALS,
    TEMPLATE,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    save_model,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lep.checkpoint.adapter import save_factors
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, OutputError
from lep.propagation import METHODS
from lep.publish import publishing
from lep.settings import InitSettings, PropagateSettings
from lep.tokenizer.id_settings import remap_ids
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Token
from lep.tokenizer.write import extend_tokenizer, optimize_tokenizer, train_tokenizer
from lep.transfer.family import Family, soft_capped
from lep.transfer.initialise import initialise
from lep.transfer.inspect import inspect_checkpoint
from lep.transfer.language_pack import make_pack
from lep.transfer.mappings import MAPPING_FILES, adapted_mappings, read_mapping
from lep.transfer.propagate import propagate, token_weights


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: t
        for shard in sorted(folder.glob("*.safetensors"))
        for name, t in load_file(shard).items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"padding_rows": 7},
        {"dtype": torch.bfloat16},
        {"shard_size": "60KB"},
        {"template": TEMPLATE},
    ],
)
def test_initialising_with_the_same_tokenizer_changes_nothing(
    options, tmp_path, byte_level
) -> None:
    save_model(tmp_path / "model", byte_level, **options)
    initialise(tmp_path / "model", tmp_path / "model", tmp_path / "same")
    before, after = tensors(tmp_path / "model"), tensors(tmp_path / "same")
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
        assert before[name].dtype == after[name].dtype
    for name in ("config.json", "generation_config.json"):
        before, after = (
            json.loads((tmp_path / folder / name).read_text()) for folder in ("model", "same")
        )
        assert before == after
    ids = torch.tensor([[1, 40, 80, 120]])
    model, same = (
        AutoModelForCausalLM.from_pretrained(tmp_path / folder) for folder in ("model", "same")
    )
    assert torch.equal(model(ids).logits, same(ids).logits)


def test_a_second_copy_of_a_tied_table_is_kept_equal(tmp_path, byte_level, pair) -> None:
    save_model(tmp_path / "model", byte_level, tied=True)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "out")
    after = tensors(tmp_path / "out")
    assert len(after["lm_head.weight"]) == 600
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])


def test_special_tokens_of_an_old_style_folder_are_kept(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    names = {name: config.pop(name) for name in ("bos_token", "eos_token")}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "special_tokens_map.json").write_text(json.dumps(names))
    extend_tokenizer(tmp_path / "model", [SAMPLE / "ru"], 20, tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "tokenizer").eos_token == "</s>"


def test_new_rows_are_the_means_of_their_pieces(pair, tmp_path) -> None:
    result = initialise(pair["base"], pair["tokenizer"], tmp_path / "out")
    assert (result.rows, result.copied, result.mixed) == (600, 500, 100)
    before, after = tensors(pair["base"]), tensors(tmp_path / "out")
    extended, old = load_tokenizer(pair["tokenizer"]), load_tokenizer(pair["base"])
    for index in (500, 550, 599):
        text = extended.backend_tokenizer.decode([index])
        pieces = [
            p.id
            for p in old.backend_tokenizer.model.tokenize(extended.convert_ids_to_tokens(index))
        ]
        assert old.backend_tokenizer.decode(pieces) == text
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            torch.testing.assert_close(after[name][index], before[name][pieces].mean(0))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == 600
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("Привет")["input_ids"]
        == extended("Привет")["input_ids"]
    )
    assert read_mapping(tmp_path / "out" / MAPPING_FILES["input"]).target_size == 600


def test_body_shards_are_linked_not_copied(tmp_path, byte_level) -> None:
    save_model(tmp_path / "model", byte_level, shard_size="60KB")
    initialise(tmp_path / "model", tmp_path / "model", tmp_path / "same")
    shards = sorted(p.name for p in (tmp_path / "same").glob("*.safetensors"))
    linked = [s for s in shards if (tmp_path / "same" / s).samefile(tmp_path / "model" / s)]
    assert len(shards) > 3
    assert 0 < len(linked) < len(shards)


@pytest.mark.parametrize("method", METHODS)
def test_propagation_with_instruct_equal_to_base_gives_the_adapted_rows(
    method, pair, adapted, tmp_path
) -> None:
    fits = propagate(
        pair["base"], pair["base"], adapted, tmp_path / "out", PropagateSettings(method=method)
    ).fits
    expected, got = tensors(adapted), tensors(tmp_path / "out")
    base = tensors(pair["base"])
    added = Checkpoint(pair["base"]).vocabulary.added_ids()
    specials = [added[name] for name in SPECIALS]
    ordinary = [i for i in range(600) if i not in specials]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if method in ("swap", "overlap", "conversion", "ridge"):
            assert torch.equal(got[name][ordinary], expected[name][ordinary])
        if method != "new-rows":  # which keeps the instruct model's rows
            torch.testing.assert_close(
                got[name][ordinary], expected[name][ordinary], rtol=1e-6, atol=1e-7
            )
        assert torch.equal(got[name][specials], base[name][specials])
    assert all(report.identity == 0 for report in fits.values())


@pytest.mark.parametrize("method", METHODS)
def test_body_specials_template_and_generation_are_the_instruct_models(
    method, pair, adapted, tmp_path
) -> None:
    fits = propagate(
        pair["base"], pair["instruct"], adapted, tmp_path / "out", PropagateSettings(method=method)
    ).fits
    instruct, got = tensors(pair["instruct"]), tensors(tmp_path / "out")
    for name in instruct:
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(instruct[name], got[name]), name
    for index in Checkpoint(pair["instruct"]).vocabulary.added_ids().values():
        assert torch.equal(got["lm_head.weight"][index], instruct["lm_head.weight"][index])
    assert set(fits) == {"input", "output"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    assert len(tokenizer) == 600
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == json.loads((pair["instruct"] / "generation_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Да"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3


def test_tied_models_have_one_table_and_one_map(tmp_path, byte_level, pair) -> None:
    base = save_model(tmp_path / "base", byte_level, tied=True)
    save_model(
        tmp_path / "instruct",
        byte_level,
        seed=1,
        tied=True,
        like=base,
        noise=0.2,
        template=TEMPLATE,
    )
    initialise(tmp_path / "base", pair["tokenizer"], tmp_path / "adapted")
    fits = propagate(
        tmp_path / "base", tmp_path / "instruct", tmp_path / "adapted", tmp_path / "out"
    ).fits
    assert set(fits) == {"input"}
    models, refused = [tmp_path / name for name in ("base", "instruct", "adapted")], tmp_path / "no"
    for option in ({"output_method": "swap"}, {"ridge": 0.1, "method": "procrustes"}):
        with pytest.raises(CheckpointError, match="leave it out"):
            propagate(*models, refused, **option)
    with pytest.raises(CheckpointError, match="ties its tables, so that --output-method first"):
        initialise(models[0], pair["tokenizer"], refused, output_method="first")
    with pytest.raises(
        CheckpointError, match="--frequency-text changes nothing with --method swap"
    ):
        propagate(*models, refused, method="swap", frequency_text=["text"])
    assert not refused.exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(model.get_input_embeddings().weight) == 600


def test_tokens_that_only_the_instruct_model_has_are_carried_along(
    tmp_path, byte_level, english, russian
) -> None:
    """OpenChat-3.5 has two tokens more than Mistral-7B, at ids that the extension also uses."""
    plain = byte_level_tokenizer(english + russian[:4], 500, ["<s>", "</s>"])
    base = save_model(tmp_path / "base", plain)
    plain.add_special_tokens(["<|user|>", "<|end|>"])
    save_model(tmp_path / "instruct", plain, seed=1, like=base, noise=0.2, template=TEMPLATE)
    extend_tokenizer(tmp_path / "base", [SAMPLE / "ru"], 50, tmp_path / "tokenizer")
    initialise(tmp_path / "base", tmp_path / "tokenizer", tmp_path / "adapted")
    propagate(tmp_path / "base", tmp_path / "instruct", tmp_path / "adapted", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"]) == [550, 551]
    before, after = tensors(tmp_path / "instruct"), tensors(tmp_path / "out")
    assert torch.equal(after["lm_head.weight"][550:552], before["lm_head.weight"][500:502])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [551, 1]  # was [501, 1]
    assert tokenizer.decode(tokenizer("a<|end|>")["input_ids"], skip_special_tokens=True) == "a"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 552


def test_remapping_touches_token_ids_only() -> None:
    settings = {
        "eos_token_id": [9, 3],
        "num_attention_heads": 9,
        "tie": True,
        "bos_token_id": 1,
        "text_config": {"pad_token_id": 9, "num_hidden_layers": 9},
        "suppress_tokens": [9],
    }
    assert remap_ids(settings, {9: 60, 1: 1}) == {
        "eos_token_id": [60, 3],
        "num_attention_heads": 9,
        "tie": True,
        "bos_token_id": 1,
        "text_config": {"pad_token_id": 60, "num_hidden_layers": 9},
        "suppress_tokens": [60],
    }


def test_rows_and_settings_follow_tokens_that_move(pair, adapted, tmp_path) -> None:
    ru, en = SAMPLE / "ru", SAMPLE / "en"
    for source in (pair["base"], adapted):  # an untrained and a trained checkpoint
        size = len(Checkpoint(source).vocabulary)
        folder = tmp_path / source.name
        optimize_tokenizer(
            source, [ru, en], size - 80, size - 50, folder / "tokenizer", script="cyrillic"
        )
        initialise(source, folder / "tokenizer", folder / "model")
        before, after = tensors(source), tensors(folder / "model")
        id_map = IdMap.load(folder / "tokenizer" / "id_map.json")
        assert len(id_map.moved) > 0
        assert len(id_map.dropped) == 80
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(after[name]) == size - 50
            for old, new in enumerate(id_map.target):
                assert new is None or torch.equal(after[name][new], before[name][old])


def test_settings_follow_tokens_that_move(pair, tmp_path) -> None:
    optimize_tokenizer(
        pair["base"], [SAMPLE / "ru", SAMPLE / "en"], 440, 480, tmp_path / "t", script="cyrillic"
    )
    id_map = IdMap.load(tmp_path / "t" / "id_map.json")
    (old, new), lost = max(id_map.moved.items()), id_map.dropped[0]
    folder = tmp_path / "model"
    shutil.copytree(pair["base"], folder)
    config = json.loads((folder / "config.json").read_text())
    for eos, outcome in (([1, old], [1, new]), (lost, None)):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": eos, "suppress_tokens": [old]})
        )
        if outcome is None:
            for file in ("config.json", "generation_config.json"):
                message = f"eos_token_id in .*{file} is {lost}, a token that the new tokenizer"
                with pytest.raises(CheckpointError, match=message):
                    initialise(folder, tmp_path / "t", tmp_path / "no")
                assert not (tmp_path / "no").exists()
                # The second round has the lost token in generation_config.json alone.
                (folder / "config.json").write_text(json.dumps(config))
        else:
            initialise(folder, tmp_path / "t", tmp_path / "out")
            for file in ("config.json", "generation_config.json"):
                assert json.loads((tmp_path / "out" / file).read_text())["eos_token_id"] == outcome


@pytest.mark.parametrize("algorithm", ["bpe", pytest.param("unigram", marks=pytest.mark.slow)])
def test_propagation_into_a_new_vocabulary(algorithm, pair, tmp_path) -> None:
    train_tokenizer(pair["base"], [SAMPLE / "ru", SAMPLE / "en"], algorithm, 460, tmp_path / "t")
    initialise(pair["base"], tmp_path / "t", tmp_path / "adapted")
    propagate(
        pair["base"],
        pair["instruct"],
        tmp_path / "adapted",
        tmp_path / "out",
        PropagateSettings(method="overlap"),
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Привет"}], return_dict=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(torch.tensor([chat])).logits.shape == (1, len(chat), 460)


def test_settings_of_the_instruct_model_follow_ordinary_tokens_that_move(pair, tmp_path) -> None:
    optimize_tokenizer(
        pair["base"], [SAMPLE / "ru", SAMPLE / "en"], 440, 480, tmp_path / "t", script="cyrillic"
    )
    old, new = max(IdMap.load(tmp_path / "t" / "id_map.json").moved.items())
    shutil.copytree(pair["instruct"], tmp_path / "instruct")
    generation = tmp_path / "instruct" / "generation_config.json"
    generation.write_text(
        json.dumps(json.loads(generation.read_text()) | {"bad_words_ids": [[old], [1, old]]})
    )
    initialise(pair["base"], tmp_path / "t", tmp_path / "adapted")
    propagate(pair["base"], tmp_path / "instruct", tmp_path / "adapted", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["bad_words_ids"] == [[new], [1, new]]


@pytest.mark.parametrize("method", ["conversion", "exact", "new-rows", "task-arithmetic"])
@pytest.mark.parametrize(
    "before",
    ["reserved", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unused", "ordinary"))],
)
def test_a_token_that_the_instruct_model_names_keeps_its_id(
    before, method, tmp_path, english, russian
) -> None:
    """An unnamed duplicate of the end-of-turn row would win greedy decoding: no turn would end."""
    names = {"reserved": ["<|reserved|>"], "unused": ["<|reserved|>"], "ordinary": []}[before]
    plain = byte_level_tokenizer(english + russian[:4], 400, ["<s>", "</s>", *names])
    spec = json.loads(plain.to_str())
    if before == "unused":
        spec["added_tokens"] = [entry for entry in spec["added_tokens"] if entry["id"] != 2]
        del spec["model"]["vocab"]["<|reserved|>"]
    if before == "ordinary":
        spec["model"]["vocab"]["<|end|>"] = 400
    base = save_model(tmp_path / "base", Tokenizer.from_str(json.dumps(spec)), padding_rows=1)
    end = 400 if before == "ordinary" else 2
    vocabulary = spec["model"]["vocab"]
    spec["model"]["vocab"] = {n: i for n, i in vocabulary.items() if i != end} | {"<|end|>": end}
    entry = {
        "id": end,
        "content": "<|end|>",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    spec["added_tokens"] = [e for e in spec["added_tokens"] if e["id"] != end] + [entry]
    save_model(
        tmp_path / "instruct",
        Tokenizer.from_str(json.dumps(spec)),
        seed=1,
        like=base,
        noise=0.2,
        template=TEMPLATE,
        padding_rows=1,
    )
    extend_tokenizer(tmp_path / "base", [SAMPLE / "ru"], 30, tmp_path / "tokenizer")
    initialise(tmp_path / "base", tmp_path / "tokenizer", tmp_path / "adapted")
    propagate(
        tmp_path / "base",
        tmp_path / "instruct",
        tmp_path / "adapted",
        tmp_path / "out",
        PropagateSettings(method=method),
    )
    result, chat = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "instruct")
    instruct_row, table = chat.tensor("lm_head.weight")[end], result.tensor("lm_head.weight")
    end = 429 if before == "unused" else end  # a new token took the unused id
    assert result.vocabulary.added_ids()["<|end|>"] == end
    assert "<|reserved|>" not in result.tokenizer.get_vocab()
    assert (table == instruct_row).all(1).nonzero().flatten().tolist() == [end]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"][0] == end
    assert result.tokenizer("Привет<|end|>")["input_ids"][-1] == end


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"weights": True}])
def test_fitted_rows_are_those_of_plain_least_squares(options, tmp_path, byte_level, pair) -> None:
    """`conversion` end to end against float64 `lstsq`, with an intercept for the output table."""
    weighted, tied = options.get("weights", False), options.get("tied", False)
    base = save_model(tmp_path / "base", byte_level, tied=tied, hidden=16)
    save_model(
        tmp_path / "instruct",
        byte_level,
        seed=1,
        tied=tied,
        hidden=16,
        like=base,
        noise=0.2,
        template=TEMPLATE,
    )
    initialise(tmp_path / "base", pair["tokenizer"], tmp_path / "start")
    trained = load_file(tmp_path / "start" / "model.safetensors")
    torch.manual_seed(3)
    trained = {n: t + 0.1 * torch.randn_like(t) if len(t) == 600 else t for n, t in trained.items()}
    save_file(trained, tmp_path / "start" / "model.safetensors", metadata={"format": "pt"})
    settings = PropagateSettings(frequency_text=[str(SAMPLE / "ru")] if weighted else [])
    propagate(
        tmp_path / "base", tmp_path / "instruct", tmp_path / "start", tmp_path / "out", settings
    )
    family = Family.open(tmp_path / "base", tmp_path / "instruct", tmp_path / "start")
    weights = (
        token_weights(family, settings.frequency_text)
        if weighted
        else torch.ones(600, dtype=torch.float64)
    )
    specials = list(family.recipient.ids.values())
    for kind, name in family.base.tables.by_kind().items():
        rows = family.problem(kind).fit_rows.clone()
        assert not rows[specials].any()
        mapping, root = family.mappings[kind], weights.sqrt()[rows][:, None]
        source, target = (
            mapping(model.tensor(name).double())[rows] for model in (family.base, family.instruct)
        )
        ones = torch.ones(len(source), 1, dtype=torch.float64)
        centred = kind == "output"
        known = torch.cat([source, ones], 1) if centred else source
        solved = torch.linalg.lstsq(root * known, root * target).solution
        adapted = family.adapted.tensor(name).double()
        adapted_ones = torch.ones(600, 1, dtype=torch.float64)
        expected = (torch.cat([adapted, adapted_ones], 1) if centred else adapted) @ solved
        expected[specials] = family.instruct.tensor(name).double()[specials]
        table = Checkpoint(tmp_path / "out").tensor(name)
        torch.testing.assert_close(table, expected.float(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(table, adapted.float(), atol=1e-2)


def test_a_soft_cap_sees_the_means(pair, tmp_path) -> None:
    assert soft_capped({"text_config": {"final_logit_softcapping": 30.0}})
    assert not soft_capped({"attn_logit_softcapping": 50.0, "final_logit_softcapping": None})
    adapted = tmp_path / "adapted"
    initialise(pair["base"], pair["tokenizer"], adapted)
    family = Family.open(pair["base"], pair["instruct"], adapted)
    assert [family.problem(kind).centred for kind in ("input", "output")] == [False, True]
    family.base.config["final_logit_softcapping"] = 30.0
    assert not family.problem("output").centred


def test_a_saved_mapping_is_used_where_a_token_became_its_byte(tmp_path, english, russian) -> None:
    """SentencePiece vocabularies have the newline as a byte, others as an ordinary token."""
    base = byte_fallback_tokenizer(english + russian[:4], 600)
    save_model(tmp_path / "base", base)
    spec = json.loads(base.to_str())
    spec["model"]["vocab"]["\n"] = len(spec["model"]["vocab"])
    (tmp_path / "tokenizer").mkdir()
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(tmp_path / "tokenizer")
    initialise(
        tmp_path / "base", tmp_path / "tokenizer", tmp_path / "start", InitSettings(method="last")
    )
    source, adapted = Checkpoint(tmp_path / "base"), Checkpoint(tmp_path / "start")
    newline = adapted.vocabulary.ids[Token(b"\n")]
    mapping = adapted_mappings(source, adapted)["input"]
    assert mapping.equal(read_mapping(tmp_path / "start" / MAPPING_FILES["input"]))
    assert mapping.copies[newline]
    (tmp_path / "start" / MAPPING_FILES["output"]).unlink(missing_ok=True)
    stored = load_file(tmp_path / "start" / MAPPING_FILES["input"])
    for damage in (
        {"indices": stored["indices"] + 10_000},
        {"copies": stored["copies"][:-1]},
        {"weights": None},
    ):
        save_file(
            {n: t for n, t in (stored | damage).items() if t is not None},
            tmp_path / "start" / MAPPING_FILES["input"],
        )
        with pytest.raises(
            CheckpointError, match=r"mapping.safetensors is damaged \(.+\): delete it"
        ):
            adapted_mappings(source, adapted)


# Bad input gives one clear sentence and writes nothing.


def test_embeddings_that_were_trained_with_another_body_are_refused(
    pair, adapted, tmp_path
) -> None:
    shutil.copytree(adapted, tmp_path / "other")
    stored = load_file(adapted / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"] += 1e-3
    save_file(stored, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    message = (
        r"model.layers.1.mlp.up_proj.weight in .*other is not that of .*base: "
        "embeddings trained with another body"
    )
    with pytest.raises(CheckpointError, match=message):
        propagate(pair["base"], pair["instruct"], tmp_path / "other", tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        make_pack(pair["base"], tmp_path / "other", tmp_path / "ru.lep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_an_adapter_beside_the_weights_is_not_lost(pair, adapted, tmp_path) -> None:
    shutil.copytree(pair["instruct"], tmp_path / "chat")
    (tmp_path / "chat" / "adapter").mkdir()
    (tmp_path / "chat" / "adapter" / "adapter_config.json").write_text("{}")
    for verb in (
        lambda out: propagate(pair["base"], tmp_path / "chat", adapted, out),
        lambda out: initialise(tmp_path / "chat", pair["tokenizer"], out),
    ):
        with pytest.raises(CheckpointError, match="has an adapter beside its weights"):
            verb(tmp_path / "out")
    initialise(pair["base"], pair["tokenizer"], tmp_path / "trained")
    save_factors(
        {"model.layers.0.mlp.up_proj.weight": (torch.ones(64, 1), torch.ones(1, 32))},
        tmp_path / "trained",
    )
    initialise(tmp_path / "trained", pair["tokenizer"], tmp_path / "again")
    assert (tmp_path / "again" / "lep" / "adapter.safetensors").exists()


def test_a_text_without_the_vocabulary_gives_no_weights(pair, adapted, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("<s></s>", encoding="utf-8")
    for method in ("overlap", "conversion", "ridge", "procrustes"):
        settings = PropagateSettings(method=method, frequency_text=[str(tmp_path / "empty.txt")])
        with pytest.raises(CheckpointError, match="no ordinary token is left to fit"):
            propagate(pair["base"], pair["instruct"], adapted, tmp_path / "out", settings)


def test_a_damaged_padding_row_is_named(tmp_path, byte_level) -> None:
    save_model(tmp_path / "model", byte_level, padding_rows=3)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    stored["lm_head.weight"][-1] = float("nan")
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    record = inspect_checkpoint(tmp_path / "model").record["tables"]["lm_head.weight"]
    assert record["suspicious"]["not finite"] == {"count": 1, "first": [["", 502]]}


def test_a_changed_template_is_another_model(pair, tmp_path) -> None:
    shutil.copytree(pair["instruct"], tmp_path / "chat")
    before = Checkpoint(tmp_path / "chat").stamp()
    assert before == Checkpoint(tmp_path / "chat").stamp()
    (tmp_path / "chat" / "chat_template.jinja").write_text("{{ messages }}")
    assert before != Checkpoint(tmp_path / "chat").stamp()


def test_outputs_in_odd_places(tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with publishing(Path(".")) as partial:
        (partial / "file").touch()
    assert (tmp_path / "here" / "file").exists()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with publishing(tmp_path / "link") as partial:
        (partial / "file").touch()
    assert (tmp_path / "real" / "file").exists()
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis").touch()
    with publishing(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine.partial" / "thesis").exists()
    with (
        publishing(tmp_path / "twice") as partial,
        pytest.raises(OutputError, match="another process is writing"),
        publishing(tmp_path / "twice"),
    ):
        pass
    assert (tmp_path / "twice").is_dir()


def test_missing_folder() -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder /no/such/model"):
        Checkpoint("/no/such/model")


def test_pickled_weights_are_refused(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        Checkpoint(tmp_path / "model")


def test_more_ids_than_rows(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    shutil.copy(pair["tokenizer"] / "tokenizer.json", tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"needs 600 rows, its table .* has 500"):
        initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_hidden_sizes_differ(tmp_path, pair, adapted, byte_level) -> None:
    save_model(tmp_path / "wide", byte_level, hidden=48)
    with pytest.raises(CheckpointError, match=r"hidden sizes differ: 32 in .* 48 in"):
        propagate(pair["base"], tmp_path / "wide", adapted, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_the_same_id_for_different_tokens(tmp_path, pair, adapted, russian) -> None:
    save_model(tmp_path / "other", byte_level_tokenizer(russian, 500, SPECIALS))
    with pytest.raises(
        CheckpointError,
        match=r"id \d+ is b'.*' in .* and b'.*' in .*: the instruct model was not tuned",
    ):
        propagate(pair["base"], tmp_path / "other", adapted, tmp_path / "out")


def test_tied_and_untied_do_not_mix(tmp_path, pair, adapted, byte_level) -> None:
    save_model(tmp_path / "tied", byte_level, tied=True)
    with pytest.raises(CheckpointError, match="ties its embeddings and"):
        propagate(pair["base"], tmp_path / "tied", adapted, tmp_path / "out")


def test_a_tied_model_with_another_head_is_refused(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": True})
    )
    with pytest.raises(CheckpointError, match=r"ties its embeddings, but lm_head\.weight differs"):
        Checkpoint(tmp_path / "model").check()


def test_a_truncated_shard(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(tmp_path / "model")


def test_an_index_that_leaves_the_folder(tmp_path, pair) -> None:
    shutil.copytree(pair["base"], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../base/model.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        Checkpoint(tmp_path / "model")


def test_shards_beside_a_single_file_are_ignored_as_by_transformers(tmp_path, pair) -> None:
    """One of the two is left over, and libraries must not read different models."""
    base, model = AutoModelForCausalLM.from_pretrained(pair["base"]), tmp_path / "model"
    shutil.copytree(pair["base"], model)
    with torch.no_grad():
        base.get_input_embeddings().weight.zero_()
    base.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    for file in (tmp_path / "sharded").glob("*.safetensors*"):
        shutil.copy(file, model)
    assert (model / "model.safetensors.index.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(model)
    checkpoint = Checkpoint(model)
    rows = checkpoint.tensor(checkpoint.tables.input)
    assert rows.any()
    assert torch.equal(rows.float(), loaded.get_input_embeddings().weight.float())
    initialise(model, pair["tokenizer"], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").glob("model*")] == ["model.safetensors"]


def test_nothing_is_overwritten(tmp_path, pair) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(OutputError, match="exists already"):
        initialise(pair["base"], pair["tokenizer"], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_full_disk_is_seen_before_writing(tmp_path, pair, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(OutputError, match=r"needs 0\.\d\d GB, the disk has 0\.00 GB free"):
        initialise(pair["base"], pair["tokenizer"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_nan_rows_are_refused(tmp_path, pair, byte_level) -> None:
    model = save_model(tmp_path / "model", byte_level)
    model.get_input_embeddings().weight.data[77] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="is not finite"):
        initialise(tmp_path / "model", pair["tokenizer"], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_an_instruct_model_keeps_its_chat_template(pair, tmp_path, file) -> None:
    """The new tokenizer, extended from the base's, has no template."""
    shutil.copytree(pair["instruct"], tmp_path / "chat")
    expected = load_tokenizer(tmp_path / "chat").chat_template
    if file == "tokenizer_config.json":
        (tmp_path / "chat" / "chat_template.jinja").unlink()
        config = json.loads((tmp_path / "chat" / file).read_text()) | {"chat_template": expected}
        (tmp_path / "chat" / file).write_text(json.dumps(config))
    assert not load_tokenizer(pair["tokenizer"]).chat_template
    initialise(tmp_path / "chat", pair["tokenizer"], tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == expected
    initialise(pair["base"], pair["tokenizer"], tmp_path / "base")
    assert not load_tokenizer(tmp_path / "base").chat_template
