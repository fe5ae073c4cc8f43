"""Conversations as token ids, by the model's own template."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.corpus.read import Record
from lep.errors import CorpusError, TokenizerError, foreign
from lep.limits import (
    CONVERSATION_BYTES,
    TEMPLATE_BYTES,
    TEMPLATE_SECONDS,
    memory_limit,
    time_limit,
)

# Ask for the answer without a chain of thought; templates that know no such option ignore it.
TEMPLATE_OPTIONS = {"enable_thinking": False}
# For templates that tell the model what day it is: those asked on two days are asked the same.
TODAY = "strftime_now", "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"
# Contents that no template writes itself, with what one could escape, collapse or put in order.
ANSWER = "Qz7"
CONTENTS = ('Qz7 "é" & <ж>\n\n {x}  ЩW', "Jx4.\tÜk")


def chat_ids(
    tokenizer: PreTrainedTokenizerFast, messages: list[Record], *, ask: bool = False
) -> list[int]:
    """Token ids of a conversation; with `ask`, up to where the next answer begins.

    Raises `TokenizerError` when the model has no chat template, `CorpusError` when the template
    refuses the conversation.
    """
    check_template(tokenizer)
    text = rendered(tokenizer, messages, add_generation_prompt=ask)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise CorpusError("the chat template makes no text of a conversation: give another model")
    return ids


def unfinished_ids(tokenizer: PreTrainedTokenizerFast, messages: list[Record]) -> list[int] | None:
    """Token ids of a conversation up to the end of its last content, without what ends a turn.

    None where the template changes the content, so that its end cannot be seen.
    """
    text, content = rendered(tokenizer, messages), messages[-1]["content"].strip()
    before, content, _ = text.rpartition(content) if content else ("", "", "")
    return tokenizer(before + content, add_special_tokens=False)["input_ids"] or None


def template_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Conversations as the template writes them, with the words that it puts into every prompt.

    Roles that it refuses are left out; none without a template.
    """
    texts: list[str] = []
    if not tokenizer.chat_template:
        return texts
    for roles in (["user"], ["system", "user"], ["user", "assistant", "user"]):
        messages = [{"role": role, "content": CONTENTS[1]} for role in roles]
        with suppress(CorpusError):
            texts.append(rendered(tokenizer, messages, add_generation_prompt=True))
    return texts


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise `TokenizerError` for a model without chat template."""
    if not tokenizer.chat_template:
        raise TokenizerError("the model has no chat template: give an instruct model")


@dataclass(frozen=True)
class UserTurn:
    """What a template writes before and after the content of a first user turn.

    `after` goes up to where the answer begins. It begins with the token `stop`, or, in templates
    that mark turns with plain words, with the text `stop_text`.
    """

    before: str
    after: str
    stop: int | None
    stop_text: str | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "UserTurn":
        """Raises `TokenizerError` for no template, and for one that changes the content."""
        check_template(tokenizer)
        cuts = set()
        for content in CONTENTS:
            messages = [{"role": "user", "content": content}]
            text = rendered(tokenizer, messages, add_generation_prompt=True)
            before, mark, after = text.partition(content)
            cuts.add((before, bool(mark), after))
        (before, is_cut, after), *others = cuts
        if others or not is_cut:
            raise TokenizerError(
                "the chat template changes, drops or repeats what the user writes, so the model "
                "cannot write prompts: give --prompts FILE or another model"
            )
        return cls(before, after, *_stop(tokenizer, after.lstrip()))


def _stop(tokenizer: PreTrainedTokenizerFast, after: str) -> tuple[int | None, str | None]:
    """The added token with which a text begins, or its first line up to an added token."""
    if (token := first_added_token(tokenizer, after)) is not None:
        return token, None
    line = after.partition("\n")[0]
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content]
    ends = [line.index(content) for content in added if content in line]
    return None, line[: min(ends, default=None)].strip() or None


def first_added_token(tokenizer: PreTrainedTokenizerFast, text: str) -> int | None:
    """The id of the longest added token with which a text begins."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    starts = [content for content in added if content and text.startswith(content)]
    return added[max(starts, key=len)] if starts else None


def turn_end(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The added token that the template writes after an answer; None where there is none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}]
    try:
        after = rendered(tokenizer, messages).partition(ANSWER)[2]
    except CorpusError:  # a template that refuses the conversation
        return None
    return first_added_token(tokenizer, after.lstrip())


def with_fixed_date(template: str) -> str:
    """A template that names the same day whenever it is filled."""
    return TODAY[1] + template if TODAY[0] in template else template


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[Record], **options: Any) -> str:
    """The text of a conversation by the model's template, with options of `apply_chat_template`.

    Raises `CorpusError` for whatever the template raises: it is a program in the model's folder.
    Raises `TokenizerError` when it takes more time or memory than the limits.
    """
    what = "rendering a conversation by the model's chat template"
    roles = ", ".join(str(message["role"]) for message in messages)
    with (
        foreign(
            f"the chat template refuses the roles {roles}",
            "give conversations that the model's template allows, or another model",
            CorpusError,
        ),
        time_limit(TEMPLATE_SECONDS, what, TokenizerError),
        memory_limit(TEMPLATE_BYTES, what, TokenizerError),
    ):
        options |= TEMPLATE_OPTIONS
        options["chat_template"] = with_fixed_date(tokenizer.get_chat_template())
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        CONVERSATION_BYTES.check(len(text.encode()), "a conversation in the template", CorpusError)
        return text
