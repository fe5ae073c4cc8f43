"""Tasks that are generated, not read: the same questions every time."""

import operator
import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset, DatasetDict

ITEMS, SHOTS = 500, 8
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
Question = tuple[str, list[str]]  # and its choices, the right one first


def arithmetic(**_: Any) -> DatasetDict:
    """Sums, differences and products of numbers up to 99, each with three near misses."""
    return _questions(_arithmetic)


def python_output(**_: Any) -> DatasetDict:
    """Short Python expressions, each with its value and three others."""
    return _questions(_python_output)


def _arithmetic(rng: random.Random) -> Question:
    sign, a, b = rng.choice("+-*"), rng.randint(2, 99), rng.randint(2, 99)
    right = OPERATIONS[sign](a, b)
    near = rng.sample([right + step for step in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)], 3)
    return f"{a} {sign} {b} =", [str(number) for number in (right, *near)]


def _python_output(rng: random.Random) -> Question:
    a, b, n = rng.randint(0, 3), rng.randint(4, 8), rng.randint(2, 4)
    word = "".join(rng.choice("abcdexyz") for _ in range(rng.randint(3, 5)))
    upper, length = word.upper(), len(word) + a
    ranges = [list(range(a + i, b + j)) for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
    products, sums = ([x * n for x in range(b)], [x + n for x in range(b)])
    letters = sorted(word)
    options: list[tuple[str, list[Any]]] = [
        (f"list(range({a}, {b}))", ranges),
        (f"[x * {n} for x in range({b})]", [products, [*products, b * n], sums, list(range(b))]),
        (f"'{word}'[::-1]", [word[::-1], word, word[1:], upper[::-1]]),
        (f"'{word}'.upper() * {n}", [upper * n, upper * (n + 1), word * n, upper * (n - 1)]),
        (f"len('{word}') + {a}", [length, length + 1, length - 1, f"{word}{a}"]),
        (f"sorted('{word}')", [letters, sorted(word, reverse=True), sorted(upper), letters[1:]]),
    ]
    expression, values = rng.choice(options)
    return f">>> {expression}\n", [repr(value) for value in values]


def _questions(make: Callable[[random.Random], Question]) -> DatasetDict:
    """Different questions with four different choices, the right one at a random position."""
    rng = random.Random(0)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < ITEMS + SHOTS:
        question, (right, *wrong) = make(rng)
        if question not in rows and len({right, *wrong}) == 4:
            label = rng.randrange(4)
            row = {"id": question, "unit": question, "question": question, "label": label}
            rows[question] = row | {"choices": [*wrong[:label], right, *wrong[label:]]}
    splits = {"prompt": list(rows.values())[:SHOTS], "test": list(rows.values())[SHOTS:]}
    return DatasetDict({name: Dataset.from_list(split) for name, split in splits.items()})
