"""Which tokens no text reaches, by asking the tokenizer itself."""

import json
from collections.abc import Iterable, Iterator
from itertools import product

from tokenizers import Tokenizer

from lep.tokenizer.vocabulary import Vocabulary, byte_level_name

# A token may need a neighbour: without one, SentencePiece puts a space before it, and with another
# one, it may be merged.
ALONE = ("{}", "a{}", ".{}", "1{}", "{}a", "a{}a", "1{}1", "\u4e2d{}\u4e2d", "\u044f{}\u044f")
AMONG_MARKS = (" {}", "{} ", "a {} a", "\n{}\n", "{}.", "({})", '"{}"', "'{}", "-{}", "={}", "_{}")
CONTEXTS = (*ALONE, *AMONG_MARKS)
# Bytes before 0 to 3 continuation bytes, and behind a character that is cut off.
HEADS = (
    (b"",),
    (b"\xd0", b"\xc3", b"\xe2\x80", b"\xe1\x83", b"\xe3\x81", b"\xf0\x9f\x98"),
    (b"\xe2", b"\xe1", b"\xe4", b"\xf0\x9f"),
    (b"\xf0",),
)
TAILS = (b"\x80", b"\x90", b"\xa0", b"\xb2", b"\xbf")


def unreachable_tokens(tokenizer: Tokenizer, ids: Iterable[int] | None = None) -> list[int]:
    """Ids of ordinary tokens that no text yields: of all, or of some.

    The text of each token is encoded alone and between several neighbours. A token that cuts a
    character has no text: it is reachable if the model yields it for its bytes, and texts that
    complete it are not cut inside it. Reaching a token by a whole-word shortcut (`ignore_merges`)
    does not count.
    """
    spec = json.loads(tokenizer.to_str())
    if spec["model"].get("ignore_merges"):
        spec["model"]["ignore_merges"] = False
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    vocabulary = Vocabulary.of(tokenizer)
    chosen = range(len(vocabulary)) if ids is None else ids
    contents = {i: content for i in chosen if (content := vocabulary.contents[i]) is not None}
    texts = {i: text for i, content in contents.items() if (text := _decoded(content)) is not None}
    parts = {i: content for i, content in contents.items() if i not in texts}
    lost = [i for i, content in parts.items() if not _is_whole(vocabulary, i, content)]
    return sorted([*lost, *_not_yielded(tokenizer, texts)])


def _not_yielded(tokenizer: Tokenizer, texts: dict[int, str]) -> list[int]:
    """The ids that no context of their text yields."""
    for context in CONTEXTS:
        inserted = [context.format(text) for text in texts.values()]
        encoded = tokenizer.encode_batch_fast(inserted, add_special_tokens=False)
        pairs = zip(texts.items(), encoded, strict=True)
        texts = {i: text for (i, text), yielded in pairs if i not in yielded.ids}
    return list(texts)


def _is_whole(vocabulary: Vocabulary, index: int, content: bytes) -> bool:
    """Whether the model yields a token that cuts a character, where nothing else cuts it."""
    tokenizer, name = vocabulary.tokenizer, byte_level_name(content)
    if [piece.id for piece in tokenizer.model.tokenize(name)] != [index]:
        return False
    if tokenizer.pre_tokenizer is None or len(content) == 1:
        return True
    for text in _completed(content):
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        if any(name in piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)):
            return True
    return False


def _completed(content: bytes) -> Iterator[str]:
    """Texts of whole characters around bytes that begin or end inside of one."""
    start = len(content) - len(content.lstrip(bytes(range(0x80, 0xC0))))
    for head, length, tail in product(HEADS[min(start, 3)], range(4), TAILS):
        if (text := _decoded(head + content + tail * length)) is not None:
            yield text


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
