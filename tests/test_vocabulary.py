"""Tokens as bytes, across families of vocabularies."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from lep.errors import TokenizerError
from lep.tokenizer.vocabulary import BYTE_TO_CHARACTER, Token, Vocabulary
from lep.transfer.mappings import build_mapping


def byte_ids(vocabulary: Vocabulary) -> dict[int, int]:
    """Id of each single byte: the byte-fallback token where there is one."""
    ids = {}
    for index, token in enumerate(vocabulary.tokens):
        single = token is not None and not token.added and len(token.content) == 1
        if single and (vocabulary.byte_level or token.is_byte):
            ids[token.content[0]] = index
    return ids


def test_byte_alphabet_is_the_tokenizers_librarys() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(BYTE_TO_CHARACTER.values()) == set(ByteLevel.alphabet())
    encoded = ByteLevel(False, use_regex=False).pre_tokenize_str("Ж \n")[0][0]
    assert encoded == "".join(BYTE_TO_CHARACTER[byte] for byte in "Ж \n".encode())


def test_every_byte_maps_to_the_same_byte_between_families(
    byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    first, second = Vocabulary.of(byte_level), Vocabulary.of(byte_fallback)
    assert (first.byte_level, second.byte_level) == (True, False)
    for source, target in ((first, second), (second, first), (first, first), (second, second)):
        pieces, bytes_of_target = source.pieces(target), byte_ids(target)
        assert len(bytes_of_target) == 256
        for byte, index in bytes_of_target.items():
            (piece,) = pieces[index]
            assert source.tokens[piece].content == bytes([byte])  # type: ignore[union-attr]


@pytest.mark.parametrize("pairing", ["level-fallback", "fallback-level"])
def test_pieces_spell_the_bytes_of_the_token(
    pairing: str, byte_level: Tokenizer, byte_fallback: Tokenizer
) -> None:
    source, target = Vocabulary.of(byte_level), Vocabulary.of(byte_fallback)
    if pairing == "fallback-level":
        source, target = target, source
    for token, pieces in zip(target.tokens, source.pieces(target), strict=True):
        spelled = b"".join(source.tokens[piece].content for piece in pieces)  # type: ignore[union-attr]
        assert spelled == token.content  # type: ignore[union-attr]


def test_the_same_vocabulary_maps_to_itself(byte_level, byte_fallback) -> None:
    for tokenizer in (byte_level, byte_fallback):
        vocabulary = Vocabulary.of(tokenizer)
        assert vocabulary.pieces(vocabulary) == [[index] for index in range(len(vocabulary))]


def test_byte_fallback_keeps_a_letter_and_its_byte_apart(byte_fallback: Tokenizer) -> None:
    vocabulary = Vocabulary.of(byte_fallback)
    letter, byte = byte_fallback.token_to_id("a"), byte_fallback.token_to_id("<0x61>")
    assert vocabulary.tokens[letter] == Token(b"a")
    assert vocabulary.tokens[byte] == Token(b"a", is_byte=True)


def test_special_tokens_are_names_not_bytes(byte_level: Tokenizer) -> None:
    vocabulary = Vocabulary.of(byte_level)
    assert vocabulary.added_ids()["<|user|>"] == byte_level.token_to_id("<|user|>")
    assert vocabulary.find(Token(b"<|user|>")) is None


def test_bytes_without_a_token_are_refused_and_not_lost() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.decoder = decoders.ByteLevel()
    assert Vocabulary.of(tokenizer).spell(b"abba") == [0, 1, 1, 0]
    for content in (b"c", b"abc"):
        with pytest.raises(TokenizerError, match=r"lacks bytes of .*c.: it is not lossless"):
            Vocabulary.of(tokenizer).spell(content)


@pytest.mark.parametrize("unknown", [None, "b"])
def test_bytes_that_the_source_lacks_get_the_mean_of_all_bytes(unknown) -> None:
    """SmolLM2 lacks 21 bytes; a new vocabulary has all 256, and tokens that hold them."""
    source = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], unk_token=unknown))
    target = Tokenizer(models.BPE({"c": 0, "ab": 1, "abc": 2, "a": 3, "ca": 4}, []))
    source.decoder = target.decoder = decoders.ByteLevel()
    for method in ("mean", "length-weighted", "first", "last"):
        mapping = build_mapping(Vocabulary.of(source), Vocabulary.of(target), 3, method)
        table = torch.tensor([[1.0, 0.0], [0.0, 4.0], [8.0, 8.0]])
        expected = [[0.5, 2.0], [8.0, 8.0], [8.0, 8.0], [1.0, 0.0], [1.0, 0.0]]
        assert mapping(table).tolist() == expected
        assert mapping.copies.tolist() == [False, True, False, True, False]


def test_fallback_bytes_that_the_source_lacks() -> None:
    names = {"<unk>": 0, "<0x0A>": 1, "<0xD0>": 2, "a": 3}
    source = Tokenizer(models.BPE(names, [], unk_token="<unk>", byte_fallback=True))
    source.decoder = decoders.ByteFallback()
    target = Tokenizer(models.BPE({c: i for i, c in enumerate(["Ð", "±", "a"])}, []))
    target.decoder = decoders.ByteLevel()
    assert Vocabulary.of(source).pieces(Vocabulary.of(target)) == [[2], [1, 3, 2], [3]]


def test_other_models_are_refused() -> None:
    with pytest.raises(TokenizerError, match="is a WordPiece model"):
        Vocabulary.of(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
