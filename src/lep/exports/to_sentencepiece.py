"""SentencePiece: a written `tokenizer.model`, for the converters that read one."""

import re
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lep.errors import LepError, TokenizerError, foreign
from lep.exports.job import Exported, Job, Texts, check_ids
from lep.exports.vocabulary import PREFIX, gguf_vocabulary
from lep.publish import check_files, publishing_file
from lep.tokenizer.vocabulary import Vocabulary

WAY_OUT = "give other programs tokenizer.json, or export to gguf"
NAMED = ("unk", "bos", "eos", "pad")  # tokens that a SentencePiece model names


def check(output: Path) -> None:
    """Raise `LepError` where a package is missing, `OutputError` where the file exists."""
    if find_spec("google") is None or find_spec("google.protobuf") is None:
        raise LepError(
            "lep export --to sentencepiece needs a package that is not installed (protobuf): "
            "pip install '.[spm]'"
        )
    check_files([output])


def write(job: Job) -> Exported:
    """Write a SentencePiece model whose ids on all texts are those of tokenizer.json."""
    content = sentencepiece_model(job.tokenizer, job.ends)
    prove(job.tokenizer, content, job.texts)
    with publishing_file(job.output) as file:
        file.write(content)
    return Exported(
        output=job.output,
        to="sentencepiece",
        type="SentencePiece",
        tokens=len(job.source.vocabulary),
        tokenizer="BPE with byte fallback",
        texts=len(job.texts),
        proven_by=_reader(),
        agreement="",
        stops=job.stops,
        notes=notes(job.tokenizer, content),
    )


def notes(tokenizer: PreTrainedTokenizerFast, content: bytes) -> list[str]:
    """What a file `tokenizer.model` cannot say by itself."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    lines = ["converters read it where it lies beside tokenizer.json as tokenizer.model"]
    begins_with_space = ModelProto.FromString(content).normalizer_spec.add_dummy_prefix
    if not begins_with_space and tokenizer.init_kwargs.get("add_prefix_space") is None:
        lines.append(
            'set "add_prefix_space": false in tokenizer_config.json: the tokenizer puts no space '
            "before a text, and llama.cpp's converter takes this from there"
        )
    return lines


def sentencepiece_model(tokenizer: PreTrainedTokenizerFast, ends: list[int]) -> bytes:
    """The file `tokenizer.model` of a BPE tokenizer with byte fallback.

    SentencePiece joins the neighbours whose token has the highest score, as llama.cpp does, so
    scores and types are those of a GGUF file: minus the rank of the first merge that makes a token.

    Raises `TokenizerError` for a tokenizer that SentencePiece cannot follow, with the reason.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    vocabulary = Vocabulary.of(tokenizer)
    if vocabulary.byte_level:
        raise TokenizerError(
            "the tokenizer is byte-level, and SentencePiece has whole characters with bytes for "
            f"the rest: {WAY_OUT}"
        )
    metadata = gguf_vocabulary(tokenizer, len(vocabulary), ends)
    keys = {key.removeprefix(f"{PREFIX}ggml."): value for key, value in metadata.items()}
    model = ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(vocabulary)
    model.trainer_spec.byte_fallback = True
    for name in NAMED:
        index = getattr(tokenizer, f"{name}_token_id")
        setattr(model.trainer_spec, f"{name}_id", -1 if index is None else index)
        if index is not None:
            setattr(model.trainer_spec, f"{name}_piece", getattr(tokenizer, f"{name}_token"))
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = keys["add_space_prefix"]
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    pieces = zip(keys["tokens"], keys["scores"], keys["token_type"], strict=True)
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    return model.SerializeToString()


def prove(tokenizer: PreTrainedTokenizerFast, content: bytes, texts: Texts) -> None:
    """Read the texts with the package sentencepiece.

    SentencePiece does not look for control tokens in a text, its users cut them out, and put BOS
    and EOS around the ids.

    Raises `TokenizerError` for the first text with other ids, or a model that it refuses.
    """
    from sentencepiece import SentencePieceProcessor

    with foreign("SentencePiece does not accept this tokenizer", WAY_OUT, TokenizerError):
        processor = SentencePieceProcessor(model_proto=content)
    every = range(len(processor))
    control = [i for i in every if processor.is_control(i) or processor.is_unknown(i)]
    ids = {processor.id_to_piece(i): i for i in control}
    longest_first = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    cut = re.compile(f"({longest_first or '(?!)'})")

    def read(text: str) -> list[int]:
        pieces = filter(None, cut.split(text))
        return [i for p in pieces for i in ([ids[p]] if p in ids else processor.encode(p))]

    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = len(whole) > len(plain) and whole[0] == tokenizer.bos_token_id
    before, after = whole[:start], whole[start + len(plain) :]
    results = [before + read(t) + after if inserted else read(t) for t, inserted in texts]
    check_ids(tokenizer, texts, results, _reader(), WAY_OUT)


def _reader() -> str:
    import sentencepiece

    return f"SentencePiece (sentencepiece {sentencepiece.__version__})"
