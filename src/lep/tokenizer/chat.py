"""Conversations as token ids, by the model's own template."""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from lep.errors import CorpusError, TokenizerError

ASKED = {
    "enable_thinking": False
}  # answers are asked for, not the way to them; other templates pass over it


def chat_ids(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], *, ask: bool = False
) -> list[int]:
    """Token ids of a conversation; with `ask`, up to where the next answer begins.

    Raises `TokenizerError` for a model without a chat template, `CorpusError` for a conversation it refuses.
    """
    if not tokenizer.chat_template:
        raise TokenizerError(
            "the model has no chat template, so it cannot be asked: give an instruct model"
        )
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=ask, return_dict=False, **ASKED
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CorpusError(
            f"the chat template refuses a conversation of the roles {roles}: {error}"
        ) from error
