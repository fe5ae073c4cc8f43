"""Every causal architecture of the installed transformers: found, initialised, propagated, loaded again.

`python tests/test_architectures.py > docs/architectures.md` runs them all and writes the page.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SAMPLE, SPECIALS, byte_level_tokenizer, sample_texts
from safetensors.torch import load_file
from tiny_configs import tiny_config
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as auto

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import write_checkpoint
from lep.errors import LepError
from lep.settings import PropagateSettings
from lep.tokenizer.load import copy_tokenizer, load_tokenizer
from lep.tokenizer.write import extend_tokenizer
from lep.transfer.initialise import initialise
from lep.transfer.propagate import initialise_instruct, propagate

NAMES = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
SAMPLED = ["gpt2", "gpt_neox", "gemma3", "phi", "qwen3_moe", "mamba", "gemma3n_text"]
ROWS = 512  # of the base tables: padded, the tokenizer has 500

# Architectures whose tiny model cannot be made by this test, and why.
NOT_BUILT = {
    "gemma3n": "its vision tower needs the package timm (its text model, `gemma3n_text`, is covered)",
    "gemma4_assistant": "a drafting head, which needs the hidden states of the model that it drafts for",
    "gemma4_unified_assistant": "a drafting head, which needs the hidden states of the model that it drafts for",
    "musicgen": "its configuration is that of a text encoder, a decoder and a codec; it writes sound, not text",
    "musicgen_melody": "its configuration is that of a text encoder, a decoder and a codec; it writes sound, not text",
}
# Architectures that are refused, and words of the sentence that the user reads.
REFUSED = {
    "blt": "has 0 tables with a row per token in its input embeddings",
    "cpmant": "makes 1,536 rows for a vocab_size of 512",
    "mllama": "makes 520 rows for a vocab_size of 512",
    "moshi": "makes 513 rows for a vocab_size of 512",
}


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the class that checkpoints of this type name: the one with images and sound if there is one."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = tiny_config(model_type, ROWS, ids)
    kinds = (auto.MODEL_FOR_MULTIMODAL_LM_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING)
    kind = next(kind[type(config)] for kind in kinds if type(config) in kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind._from_config(config).parameters())
    if size > 200_000_000:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(seed)
    return kind._from_config(config).eval()


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def load(folder: Path) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """The model of the class that config.json names, and what its loading complained about."""
    kind = getattr(transformers, Checkpoint(folder).config["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {
        key: set(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }


def outputs(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the head, and the logits."""
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return seen[-1], logits


def check_architecture(model_type: str, tokenizer: Any, extended: Path, place: Path) -> None:
    """The laws that hold for every architecture; see the comments."""
    model = tiny_model(model_type)
    base = save(model, tokenizer, place / "base")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    instruct = save(model, tokenizer, place / "instruct")

    # The same tokenizer changes no tensor.
    initialise(base, base, place / "same")
    before, after = tensors(base), tensors(place / "same")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    # An extended one gives each vocabulary tensor more rows, and propagation by swap the adapted rows.
    initialise(base, extended, place / "initialised")
    source = Checkpoint(place / "initialised")
    names = [*source.tables.names, *source.tables.others]
    torch.manual_seed(2)
    trained = {name: source.tensor(name) for name in names}
    trained = {
        name: t + 0.01 * torch.randn(t.shape) if t.is_floating_point() else t
        for name, t in trained.items()
    }
    write_checkpoint(source, trained, place / "adapted")
    copy_tokenizer(extended, place / "adapted")
    propagate(base, instruct, place / "adapted", place / "out", PropagateSettings(method="swap"))
    old, chat, result = tensors(base), tensors(instruct), tensors(place / "out")
    specials = list(Checkpoint(base).vocabulary.added_ids().values())
    rows = len(load_tokenizer(extended))
    for name, tensor in result.items():
        if name in names:
            assert len(tensor) == rows
            assert torch.equal(tensor[specials], chat[name][specials])
            kept = [i for i in range(500) if i not in specials]
            learned = trained[name][kept] - old[name][kept]
            expected = trained[name] if name in source.tables.names else chat[name][kept] + learned
            expected = expected[kept] if name in source.tables.names else expected
            torch.testing.assert_close(tensor[kept], expected, rtol=1e-5, atol=1e-6)
        elif name not in source.tables.aliases:
            assert torch.equal(tensor, chat[name]), name
    loaded, complaints = load(place / "out")
    assert complaints == load(instruct)[1]
    assert not complaints["mismatched_keys"]
    assert len(loaded.get_output_embeddings().weight) == rows

    # On text without new tokens, the instruct model's own rows give the instruct model's own answers.
    initialise_instruct(base, instruct, place / "adapted", place / "untrained")
    ids = torch.tensor([[i for i in range(5, 400, 17) if i < 500]])
    hidden, logits = outputs(load(instruct)[0], ids)
    same_hidden, same_logits = outputs(load(place / "untrained")[0], ids)
    assert torch.equal(hidden, same_hidden)
    torch.testing.assert_close(same_logits[..., :500], logits[..., :500], rtol=1e-5, atol=1e-6)
    assert same_logits.shape[-1] == rows
    new = torch.tensor([[5, rows - 1, rows - 2, 40]])
    assert outputs(loaded, new)[1].isfinite().all()


def make_extended(tokenizer: Any, place: Path) -> Path:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(place / "t")
    extend_tokenizer(place / "t", [SAMPLE / "ru"], 30, place / "extended")
    return place / "extended"


@pytest.fixture(scope="session")
def extended(byte_level: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_extended(byte_level, tmp_path_factory.mktemp("extended"))


@pytest.mark.parametrize("model_type", SAMPLED)
def test_typical_architectures(
    model_type: str, byte_level: Any, extended: Path, tmp_path: Path
) -> None:
    check_architecture(model_type, byte_level, extended, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in NAMES if name not in NOT_BUILT | REFUSED])
def test_every_architecture(
    model_type: str, byte_level: Any, extended: Path, tmp_path: Path
) -> None:
    check_architecture(model_type, byte_level, extended, tmp_path)
    shutil.rmtree(tmp_path)


def test_the_page_names_every_architecture() -> None:
    page = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text()
    assert {line.split("`")[1] for line in page.splitlines() if line.startswith("* ")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", NOT_BUILT)
def test_what_is_not_built_still_cannot_be(model_type: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - any failure is the reason to list it
        outputs(tiny_model(model_type), torch.tensor([[5, 9, 30]]))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_refused_is_refused_by_name(
    model_type: str, byte_level: Any, extended: Path, tmp_path: Path
) -> None:
    base = save(tiny_model(model_type), byte_level, tmp_path / "base")
    with pytest.raises(LepError, match=REFUSED[model_type]):
        initialise(base, extended, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def main() -> None:
    """Run every architecture and print the page of documentation; progress and failures go to the other stream."""
    transformers.logging.set_verbosity_error()
    tokenizer = byte_level_tokenizer(sample_texts("en") + sample_texts("ru")[:4], 500, SPECIALS)
    passed = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        target = make_extended(tokenizer, place)
        for model_type in sys.argv[1:] or [
            name for name in NAMES if name not in NOT_BUILT | REFUSED
        ]:
            try:
                check_architecture(model_type, tokenizer, target, place / "work")
                passed.append(model_type)
            except Exception as error:  # the page is a list of what works: every failure is one
                print(
                    f"{model_type}: {type(error).__name__}: {str(error)[:400]!r}",
                    file=sys.stderr,
                    flush=True,
                )
            shutil.rmtree(place / "work", ignore_errors=True)
    print(PAGE.format(version=transformers.__version__, passed=len(passed), of=len(NAMES)))
    print("\n".join(f"* `{name}` ({NAMES[name]})" for name in passed))
    for title, listed in (
        ("Refused, with a sentence that says so", REFUSED),
        ("Not tested", NOT_BUILT),
    ):
        print(
            f"\n## {title}\n\n"
            + "\n".join(f"* `{name}` ({NAMES[name]}): {why}" for name, why in listed.items())
        )


PAGE = """# Architectures

Made by `python tests/test_architectures.py > docs/architectures.md`; do not edit by hand.

A tiny random model of each architecture of transformers {version} ({passed} of its {of} causal ones pass) is saved,
initialised with its own tokenizer (no tensor changes), initialised with an extended one, propagated, loaded again
without complaint, and compared with the instruct model on text without new tokens: bit-equal hidden states, logits
equal within 1e-5. The tests are in `tests/test_architectures.py` (`make check` runs them all).

## Covered
"""

if __name__ == "__main__":
    main()
