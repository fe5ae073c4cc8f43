"""The two answers in a browser, by Gradio: tokens coloured as in the page of a run."""

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio

from lep.chat.stream import Reply, Speaker, side_by_side

CSS = """
.tokens { line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 8rem; }
.tokens span { border-radius: 4px; padding: .1em 0; color: #1d2129; }
.t0 { background: #cfe3ff; } .t1 { background: #ffe3c2; }
.t2 { background: #d9f2d4; } .t3 { background: #f1d9f5; }
.new { box-shadow: inset 0 -3px 0 #0a8f62; }
"""


def page(speakers: list[Speaker], max_new_tokens: int) -> gradio.Blocks:
    """A page with one prompt, and an answer of each model."""

    def answer(prompt: str) -> Iterator[list[str]]:
        if not prompt.strip():
            yield [""] * len(speakers)
            return
        asked: list[Any] = [[{"role": "user", "content": prompt}] for _ in speakers]
        for said in side_by_side(speakers, asked, max_new_tokens):
            yield [shown(reply) if reply else "" for reply in said]

    with gradio.Blocks(title="lep chat", analytics_enabled=False) as blocks:
        prompt = gradio.Textbox(label="Prompt", elem_id="prompt", submit_btn=True, autofocus=True)
        with gradio.Row():
            answers = []
            for number, speaker in enumerate(speakers):
                with gradio.Column():
                    gradio.Markdown(f"### {escape(speaker.name)}")
                    answers.append(gradio.HTML(elem_id=f"answer-{number}"))
        gradio.Markdown("Colours tell tokens apart; new tokens are underlined.")
        prompt.submit(answer, prompt, answers)
    return blocks


def shown(reply: Reply) -> str:
    """A reply as HTML, with what it took below."""
    spans = (
        f'<span class="t{i % 4}{" new" if new else ""}">{escape(piece)}</span>'
        for i, (piece, new) in enumerate(zip(reply.pieces, reply.new, strict=True))
    )
    return f'<div class="tokens" dir="auto">{"".join(spans)}</div><small>{reply.summary}</small>'


def serve(speakers: list[Speaker], max_new_tokens: int, port: int | None) -> None:
    """Serve the page on this machine until it is stopped."""
    page(speakers, max_new_tokens).launch(server_name="127.0.0.1", server_port=port, css=CSS)
