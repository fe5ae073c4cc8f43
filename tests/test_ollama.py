"""What Ollama makes of a conversation, against transformers' rendering of the model's template."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from lep.exports.ollama import Turns, messages_of, modelfile
from lep.exports.to_gguf import notes

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOS = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} \\\"\"\" "
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
FOLDED = (  # the system's words stand before the user's
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}"
    "{% for m in rest %}<t>{{ m['role'] }}\n"
    "{{ (first if loop.first else '') + m['content'] }}</t>"
    "{% endfor %}{% if add_generation_prompt %}<t>model\n{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['content'] }}\n{% endfor %}"
UPPER = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}\n{% endfor %}"
TEMPLATES = {"chatml": CHATML, "bos": BOS, "no system": NO_SYSTEM, "folded": FOLDED}

CONVERSATIONS = [
    [("user", "Где река?")],
    [("system", "Отвечай кратко."), ("user", "Где {{ .X }}?")],
    [("user", "a\nb"), ("assistant", '"c"'), ("user", "d"), ("assistant", "e"), ("user", "f")],
]

PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var given struct {
		Template      string
		Conversations [][]*Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		panic(err)
	}
	filled := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
	for _, messages := range given.Conversations {
		values := map[string]any{"Messages": messages, "System": "", "Response": ""}
		if err := filled.Execute(os.Stdout, values); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("\\x00")
	}
}
"""


@pytest.fixture
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "lab" / "pair" / "instruct")
    tokenizer.bos_token = "<s>"
    return tokenizer


def conversations(name: str) -> list[list[dict[str, str]]]:
    wanted = [c for c in CONVERSATIONS if name != "no system" or c[0][0] != "system"]
    return [[{"role": role, "content": text} for role, text in each] for each in wanted]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_write_what_the_template_writes(tokenizer, name, adds_bos) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    turns = Turns.of(tokenizer, adds_bos=adds_bos)
    assert turns is not None
    for messages in conversations(name):
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert ("<s>" if adds_bos and name == "bos" else "") + str(turns.text(messages)) == expected


@pytest.mark.parametrize("template", [NUMBERED, UPPER])
def test_what_cannot_be_told_is_not(tokenizer, template) -> None:
    tokenizer.chat_template = template
    turns = Turns.of(tokenizer, adds_bos=False)
    assert turns is None
    assert "TEMPLATE" not in modelfile("m.gguf", ["</s>"], turns)
    assert "cannot express the model's template" in notes(tokenizer, [], turns)[0]


@pytest.mark.skipif(not shutil.which("go"), reason="needs Go")
@pytest.mark.slow
def test_go_fills_the_template_of_the_modelfile(tokenizer, tmp_path: Path) -> None:
    """In the program's own language, as Ollama does: with a map of values, over pointers."""
    (tmp_path / "main.go").write_text(PROGRAM)
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        turns = Turns.of(tokenizer, adds_bos=False)
        text = modelfile("m.gguf", ["</s>"], turns)
        _, _, rest = text.partition('TEMPLATE """')
        filled, _, rest = rest.partition('"""\n')
        assert rest == 'PARAMETER stop "</s>"\n'
        given = {"Template": filled, "Conversations": conversations(name)}
        command = ["go", "run", str(tmp_path / "main.go")]
        done = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, check=True
        )
        expected = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in conversations(name)
        ]
        assert done.stdout.split("\x00")[:-1] == expected, name


def test_contents_are_no_words_of_templates(tokenizer) -> None:
    tokenizer.chat_template = CHATML
    messages = messages_of(("system", "user"))
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert all(text.count(message["content"]) == 1 for message in messages)
