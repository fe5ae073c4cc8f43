"""CTranslate2 in a process of its own; `lep.exports.apart` starts it.

python -m lep.exports.run_ctranslate2 convert MODEL FOLDER RESULT < QUESTION
python -m lep.exports.run_ctranslate2 read FOLDER RESULT < QUESTION
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lep.exports.apart import answer

TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "q8_0": "int8"}
HIDDEN, PIECE = 8, 32  # of the tiny body that looks up ids, and tokens of its texts


def convert(model: str, folder: str, question: dict[str, Any]) -> bool:
    """Convert a model, with the token names that are given."""
    from ctranslate2.converters import TransformersConverter, transformers
    from transformers import PreTrainedTokenizerFast

    from lep.checkpoint.config import load_config

    class Converter(TransformersConverter):
        def load_tokenizer(self, tokenizer_class: Any, path: str, **options: Any) -> Any:
            return PreTrainedTokenizerFast.from_pretrained(path)

        def load_model(self, model_class: Any, path: str, **options: Any) -> Any:
            return model_class.from_pretrained(
                path, **options | {"config": load_config(Path(path))}
            )

    for loader in transformers._MODEL_LOADERS.values():
        loader.get_vocabulary = lambda model, tokenizer: question["vocabulary"]
    Converter(model).convert(folder, quantization=TYPES[question["type"]], force=True)
    return True


def read(folder: str, question: dict[str, Any]) -> dict[str, Any]:
    """Ids of texts, log-probabilities of tokens and greedy answers, as its users get them.

    The arithmetic is float32, so that only the weights' own type makes a difference: where weights
    have 8 bits, CTranslate2 otherwise rounds what it multiplies them with, too.
    """
    import ctranslate2
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))
    texts = []
    for text, inserted in question["texts"]:
        ids = tokenizer(text, add_special_tokens=inserted)["input_ids"]
        texts.append(tokenizer.convert_ids_to_tokens(ids))
    generator = ctranslate2.Generator(folder, compute_type="float32")
    ends = [names[index] for index in question["ends"]]
    settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    default = names.index(settings["eos_token"])
    values, answers, rows = [], [], 0
    for ids, likeliest in zip(question["prompts"], question["likeliest"], strict=True):
        prompt = [names[index] for index in ids]
        scores = np.array(generator.forward_batch([prompt], return_log_probs=True))[0]
        rows = scores.shape[-1]
        values.append(np.take_along_axis(scores, np.array(likeliest), -1).tolist())
        result = generator.generate_batch(
            [prompt],
            max_length=question["tokens"],
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=ends,
            return_end_token=True,
        )
        answers.append(result[0].sequences_ids[0])
    return {
        "ids": looked_up(names, texts),
        "rows": rows,
        "ends": question["ends"] if default in question["ends"] else [default],
        "log_probabilities": values,
        "answers": answers,
    }


def looked_up(names: list[str], texts: list[list[str]]) -> list[list[int]]:
    """The ids of texts of token names, by the lookup of CTranslate2.

    It looks up when it generates, so it continues each token once, in a body of one tiny layer.
    Its answers lack the end token, and BOS at the beginning: both are a token that no text has.
    """
    import ctranslate2

    tokens = sorted({token for text in texts for token in text})
    pieces = [tokens[start : start + PIECE] for start in range(0, len(tokens), PIECE)]
    end = max(names, key=len) + "."
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(folder, [*names, end])
        results = ctranslate2.Generator(folder).generate_batch(
            pieces,
            max_batch_size=PIECE,
            max_length=PIECE + 1,
            sampling_topk=1,
            end_token=[end],
            include_prompt_in_result=True,
        )
    ids: dict[str, int] = {}
    for piece, result in zip(pieces, results, strict=True):
        ids |= dict(zip(piece, result.sequences_ids[0][: len(piece)], strict=True))
    return [[ids[token] for token in text] for text in texts]


def write_tiny(folder: str, names: list[str]) -> None:
    """A model of zeros with a name for each row; the last one is BOS and the end."""
    import numpy as np
    from ctranslate2.specs.transformer_spec import TransformerDecoderModelSpec

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    spec = TransformerDecoderModelSpec.from_config(1, 1, pre_norm=True, rms_norm=True, rotary_dim=0)
    decoder, layer = spec.decoder, spec.decoder.layer[0]
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = zeros(len(names), HIDDEN)
    for norm in (decoder.layer_norm, layer.self_attention.layer_norm, layer.ffn.layer_norm):
        norm.gamma = zeros(HIDDEN)
    layer.self_attention.linear[0].weight = zeros(3 * HIDDEN, HIDDEN)
    for linear in (layer.self_attention.linear[1], layer.ffn.linear_0, layer.ffn.linear_1):
        linear.weight = zeros(HIDDEN, HIDDEN)
    spec.register_vocabulary(names)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[-1]
    spec.validate()
    spec.optimize()
    spec.save(folder)


def _main(verb: str, *arguments: str) -> None:
    *paths, result = arguments
    verbs: dict[str, Any] = {"convert": convert, "read": read}
    answer(result, verbs[verb](*paths, json.load(sys.stdin)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
