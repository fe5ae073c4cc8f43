"""The two answers in a terminal: side by side while they are written, tokens coloured in turn."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lep.chat.stream import Messages, Reply, Speaker, side_by_side
from lep.errors import CheckpointError, printable
from lep.progress import announce

COLOURS = ("on #cfe3ff", "on #ffe3c2", "on #d9f2d4", "on #f1d9f5")  # as in the page of a run
PROMPT = "> "


def talk(speakers: list[Speaker], max_new_tokens: int) -> None:
    """Read prompts, a line each, and show what each model answers; an empty line starts anew.

    Each model's earlier answers are part of its own conversation.
    """
    console = Console(highlight=False)
    conversations: list[Messages] = [[] for _ in speakers]
    for line in _lines(console):
        if not (asked := line.strip()):
            conversations = [[] for _ in speakers]
            continue
        for messages in conversations:
            messages.append({"role": "user", "content": asked})
        said: Sequence[Reply | None] = []
        if not console.is_terminal:  # a file gets the answers when they are whole
            announce(f"answering, up to {max_new_tokens} tokens each ...")
        try:
            with Live(console=console, refresh_per_second=8, transient=False) as live:
                for said in side_by_side(speakers, conversations, max_new_tokens):
                    live.update(columns(speakers, said))
        except CheckpointError as error:  # a conversation has filled a context
            console.print(printable(str(error)), markup=False)
            conversations = [[] for _ in speakers]
            continue
        console.print()
        for messages, reply in zip(conversations, said, strict=True):
            messages.append({"role": "assistant", "content": reply.text if reply else ""})


def columns(speakers: Sequence[Speaker], said: Sequence[Reply | None]) -> Table:
    """A column for each model: its name, its tokens, and what they took."""
    table = Table(expand=True, show_lines=True)
    for speaker in speakers:
        table.add_column(Text(printable(speaker.name)), ratio=1)
    table.add_row(*(coloured(reply) if reply else Text() for reply in said))
    table.add_row(*(Text(reply.summary if reply else "", "dim") for reply in said))
    return table


def coloured(reply: Reply) -> Text:
    """The tokens of a reply in turns of colour; new ones are underlined."""
    text = Text()
    for i, (piece, new) in enumerate(zip(reply.pieces, reply.new, strict=True)):
        style = f"black {COLOURS[i % len(COLOURS)]}{' underline' if new else ''}"
        text.append(printable(piece), style)
    return text


def _lines(console: Console) -> Iterable[str]:
    """Lines of standard input: with a prompt where someone types them, shown where a file does."""
    while True:
        console.print(PROMPT, end="")
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            console.print(printable(line.rstrip("\n")), markup=False)
        if not line:
            return
        yield line
