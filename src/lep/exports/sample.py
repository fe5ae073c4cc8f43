"""Texts on which an exported tokenizer must give the ids of the original."""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from lep.tokenizer.chat import rendered
from lep.tokenizer.vocabulary import Vocabulary

SENTENCES = """\
The lake was quiet in the morning, and nobody had taken the boat out yet.
She doesn't know why they've left; it's been a long day, and I'll ask again.
IT'S NOT WHAT WE'D EXPECTED, but you're welcome to try: we're open from 9 to 17.
In 1984 the price was $3.50 (about 2,75 €), 40% less than in 2024.
"Where is the key?" he asked. "Under the mat," she said, "as always..."
Naïve café owners in Zürich serve crème brûlée; façade, jalapeño, smörgåsbord.
Write to post@example.org or open https://example.org/a/b?c=d&e=f#part-2.
Temperatures fell to -12.5 °C overnight; the river froze from bank to bank.
The committee's report (see pp. 14-17, table 3.2) wasn't published until May.
Mr. O'Neill's e-mail arrived at 07:45:30 on 2031-02-28T00:00Z.
Утром на озере было тихо, и никто ещё не вывел лодку на воду.
Она не знает, почему они уехали; день был долгий, и я спрошу ещё раз.
В 1984 году цена составляла 3,50 рубля, то есть на 40% меньше, чем сейчас.
«Где ключ?» — спросил он. «Под ковриком, — ответила она, — как всегда…»
Объявление: подъезд №5 закрыт с 9:00 до 17:30, вход со двора.
Ночью похолодало до −12,5 °C; река замёрзла от берега до берега.
Съёмочная группа приехала из Санкт-Петербурга в Нижний Новгород на поезде.
ВНИМАНИЕ! Не прислоняться. Места для пассажиров с детьми и инвалидов.
Девочка насыпала птицам хлебных крошек и долго смотрела, как они клюют.
Достопримечательности, сельскохозяйственный, переосвидетельствование, человеконенавистничество.
Программа на Python 3.11 выводит "Привет, мир!" и завершается с кодом 0.
Україна, Київ, їжа, ґанок; Қазақстан, әлем, өнер; Беларусь, ўсход.
საქართველო, გამარჯობა; हिन्दी में नमस्ते; 東京は日本の首都です。한국어 문장.
Ελληνικά, مرحبا بالعالم, שלום עולם, ไทย, Tiếng Việt có dấu.
""".splitlines()
CODE = (
    "def square(x: int) -> int:\n    return x ** 2  # twice\n\n\nprint(square(12))\n",
    "for (int i = 0; i < 10; ++i) {\n\tsum += a[i] * b[i];\n}\r\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name HAVING COUNT(*) > 1;\n",
    '{"key": [1, 2.5e-3, null, true], "текст": "значение\\n"}',
    '<div class="a b"><p>Привет &amp; пока</p></div>\n<!-- конец -->',
    "$ git log --oneline | grep -v '^#' > /tmp/out.txt && echo \"$HOME\"",
    "x = (a+b)*c - d/e % f; y = ~x & 0xFF | 1 << 3; z = x != y;",
    "| a | b |\n|---|---|\n| 1 | два |\n\n* пункт\n* item\n\n\n# Заголовок\n",
)
SPACES = (
    "a",
    " a",
    "  a",
    "   a b",
    "a ",
    "a  ",
    "a  b   c    d",
    "\ta",
    "\t\ta\t",
    "a\nb",
    "a\n\nb",
    "a\n\n\n\nb",
    "\n",
    " \n ",
    "\n \n  \n",
    "a\r\nb\r\n\r\n",
    "    def",
    "a \n b",
    "\t \t x",
    "  два  слова  ",
    "конец.\n\n  Новый абзац",
    "a\u00a0b\u2009c",
    "x" * 40,
    "да" * 30,
)
NUMBERS = (
    "0",
    "7",
    "10",
    "123",
    "1234",
    "12345",
    "1234567890",
    "3.14159",
    "1,000,000",
    "1 000 000",
    "2024-01-31",
    "+7 (495) 123-45-67",
    "№12",
    "½ ² ٣",
    "a1b22c333",
    "100%",
    "0x1F4A9",
    "1e-10",
)
SYMBOLS = (
    "🙂",
    "🙂🙂",
    "привет 🙂!",
    "👩‍👩‍👧‍👦 семья",
    "🇬🇪 🇷🇺",
    "👍🏽 ok",
    "a🙂b",
    "…—–„“«»",
    "!!!???",
    "((([[[{{{",
    "----====____",
    "→ ≤ ≠ ∞ ∑",
    "© ® ™ § ¶",
    "'s 'S 't don't DON'T",
    "''''",
    "\"'\"'",
    "/a/b/c.txt",
    "C:\\dir\\file",
    "#тег @имя",
    "ﬁ Å ｆｕｌｌ",
    "$100 €5 ₽20",
    "a_b_c",
    "CamelCaseИмя",
)
MESSAGES = (
    ["Привет! Как дела?"],
    ["What is 2+2?", "4.", "And in Russian?"],
    ["Напиши код:\n\n```python\nprint('да')\n```", "Готово 🙂", "  Спасибо  "],
)
TOKENS, WORD_TEXTS, NEW_TEXTS = 12, 100, 60  # tokens of a text; texts of any, and of late tokens
SPECIALS = 24  # special tokens that are tried, first and last ones
GREEDY = 200  # and of those that take spaces, or stand for whole words


def sample(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[str, bool]]:
    """Texts, and whether BOS and EOS are put around them.

    Sentences in several languages, code, spaces, numbers, symbols; chains of the vocabulary's own
    tokens, drawn from all and from the last tenth, where new tokens are; special tokens within
    text; and conversations in the model's template.
    """
    for text in (*SENTENCES, *CODE, *SPACES, *NUMBERS, *SYMBOLS, *_chains(tokenizer)):
        yield text, True
    for name in _special_names(tokenizer):
        for text in (name, f"a{name}b", f"слово {name} word", f"{name}\n{name} ", f" {name}{name}"):
            yield text, False
    yield from ((text, False) for text in _conversations(tokenizer, False, True))


def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids that a model continues: sentences, code, and conversations up to an answer."""
    texts = [*SENTENCES[:2], *SENTENCES[10:12], CODE[0]]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    conversations = _conversations(tokenizer, True)
    return ids + [tokenizer(text, add_special_tokens=False)["input_ids"] for text in conversations]


def _chains(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Texts of tokens that were drawn at random."""
    contents = [c.decode(errors="ignore") for c in Vocabulary.of(tokenizer).contents if c]
    tokens = [text for text in contents if text]
    generator = random.Random(0)
    late = tokens[-max(1, len(tokens) // 10) :]
    for choice, count in ((tokens, WORD_TEXTS), (late, NEW_TEXTS)):
        for _ in range(count):
            yield "".join(generator.choices(choice, k=TOKENS))


def _special_names(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Some special tokens, and all those (up to a number) that take the space beside them."""
    tokens = [token for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    names = [token.content for token in tokens]
    greedy = [t.content for t in tokens if t.lstrip or t.rstrip or t.single_word]
    return list(
        dict.fromkeys([*names[: SPECIALS // 2], *names[-SPECIALS // 2 :], *greedy[:GREEDY]])
    )


def _conversations(tokenizer: PreTrainedTokenizerFast, *prompted: bool) -> Iterator[str]:
    """Conversations in the template, with and without the beginning of an answer."""
    if not tokenizer.chat_template:
        return
    for contents in MESSAGES:
        turns = zip(("user", "assistant") * 2, contents, strict=False)
        messages = [{"role": role, "content": content} for role, content in turns]
        for prompt in prompted:
            yield rendered(tokenizer, messages, add_generation_prompt=prompt)
