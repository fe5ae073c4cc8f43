"""Conversations as token ids, by the model's own template."""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from lep.corpus.read import Record
from lep.errors import CorpusError, TokenizerError

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
    options = {"add_generation_prompt": ask, "return_dict": False, **TEMPLATE_OPTIONS}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CorpusError(f"the chat template refuses the roles {roles}: {error}") from error
