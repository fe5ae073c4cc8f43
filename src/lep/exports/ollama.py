"""A Modelfile for Ollama, which fills a template of Go's instead of the one in the GGUF file.

Ollama knows a Jinja template only if it is nearly one of its own. For any other, a model without a
TEMPLATE gets the user's words alone. So the Modelfile has one, made of what the model's template
writes between the contents of messages.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerFast

from lep.corpus.read import Record
from lep.errors import CorpusError
from lep.tokenizer.chat import rendered

START, END = "start", "end"  # in place of the role before the first message and after the last
# Contents that no template writes itself, without white space around them.
CONTENTS = ("Qz7 «é»\n\n {x}", "Jx4.\tÜk", "Kv9 & <ж>", "Wp3", "Zr8 {{ y }}")
LEARNED: Sequence[Sequence[str]] = (
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
# In these roles a filled template is compared with the model's own.
PROVEN: Sequence[Sequence[str]] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    *LEARNED,
)


@dataclass(frozen=True)
class Turns:
    """What stands between two contents, by the roles of their messages."""

    between: dict[tuple[str, str], str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, *, adds_bos: bool) -> "Turns | None":
        """None for a template that writes conversations in a way which this cannot repeat.

        With `adds_bos` the program puts BOS before each text, so that none is written here.
        """
        between: dict[tuple[str, str], str] = {}
        for roles in LEARNED:
            known = _text(tokenizer, messages_of(roles), adds_bos=adds_bos)
            if known is None:
                continue
            rest: str = known
            pairs = list(pairwise((START, *roles, END)))
            for pair, content in zip(pairs[:-1], CONTENTS, strict=False):
                piece, found, rest = rest.partition(content)
                if not found:
                    return None
                between.setdefault(pair, piece)
            between.setdefault(pairs[-1], rest)
        turns = cls(between)
        conversations = [messages_of(roles) for roles in PROVEN]
        for messages in conversations:
            expected = _text(tokenizer, messages, adds_bos=adds_bos)
            if expected is not None and turns.text(messages) != expected:
                return None
        return turns

    def text(self, messages: Sequence[Record]) -> str | None:
        """A conversation up to where the next answer begins; None for roles that are not known."""
        roles = [START, *(message["role"] for message in messages), END]
        pairs = list(pairwise(roles))
        if not self.between.keys() >= {*pairs}:
            return None
        pieces = [self.between[pair] for pair in pairs]
        contents = [*(message["content"] for message in messages), ""]
        return "".join(f"{piece}{text}" for piece, text in zip(pieces, contents, strict=True))

    def go_template(self) -> str:
        """The same as a template of Go's text/template, over `.Messages`."""
        lines = ['{{- $before := "start" -}}', "{{- range .Messages -}}"]
        for (before, role), piece in self.between.items():
            if role != END:
                written = f"{{{{- {_go(piece)} -}}}}" if piece else ""
                match = f'and (eq $before "{before}") (eq .Role "{role}")'
                lines.append(f"{{{{- if {match} -}}}}{written}{{{{- .Content -}}}}{{{{- end -}}}}")
        lines += ["{{- $before = .Role -}}", "{{- end -}}"]
        if last := self.between.get(("user", END)):
            lines.append(f'{{{{- if eq $before "user" -}}}}{{{{- {_go(last)} -}}}}{{{{- end -}}}}')
        return "\n".join(lines)


def modelfile(name: str, stops: Sequence[str], turns: Turns | None) -> str:
    """What Ollama makes a model of."""
    lines = [f"FROM ./{name}"]
    if turns:
        lines.append(f'TEMPLATE """{turns.go_template()}"""')
    lines += [f"PARAMETER stop {_go(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def messages_of(roles: Sequence[str]) -> list[Record]:
    """A conversation of these roles, with `CONTENTS`."""
    pairs = zip(roles, CONTENTS, strict=False)
    return [{"role": role, "content": content} for role, content in pairs]


def _text(
    tokenizer: PreTrainedTokenizerFast, messages: list[Record], *, adds_bos: bool
) -> str | None:
    """A conversation by the model's template; None for roles that it refuses."""
    try:
        text = rendered(tokenizer, messages, add_generation_prompt=True)
    except CorpusError:
        return None
    return text.removeprefix(tokenizer.bos_token or "") if adds_bos else text


def _go(text: str) -> str:
    """A string literal of Go, of which JSON's is one."""
    return json.dumps(text, ensure_ascii=False)
