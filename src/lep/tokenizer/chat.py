"""Conversations as token ids, by the model's own template."""

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


def chat_ids(
    tokenizer: PreTrainedTokenizerFast, messages: list[Record], *, ask: bool = False
) -> list[int]:
    """Token ids of a conversation; with `ask`, up to where the next answer begins.

    Raises `TokenizerError` when the model has no chat template, `CorpusError` when the template
    refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise TokenizerError("the model has no chat template: give an instruct model")
    text = rendered(tokenizer, messages, add_generation_prompt=ask)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise CorpusError("the chat template makes no text of a conversation: give another model")
    return ids


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
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        CONVERSATION_BYTES.check(len(text.encode()), "a conversation in the template", CorpusError)
        return text
