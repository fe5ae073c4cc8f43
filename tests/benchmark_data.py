"""Small generated data sets with the fields that the hub's have."""

import json
import random
from pathlib import Path
from typing import Any

ITEMS, SHOTS = 24, 6
NAMES = ("Анна", "Пётр", "Ольга", "Иван", "Мария", "Глеб", "Вера", "Семён")
THINGS = ("яблоко", "письмо", "книгу", "ключ", "карту", "чашку", "шарф", "билет")


def sentence(rng: random.Random) -> str:
    name, first, second = rng.choice(NAMES), rng.choice(THINGS), rng.choice(THINGS)
    return f"{name} взяла с собой {first} и {second} номер {rng.randint(2, 99)}."


def example(inputs: dict[str, Any], outputs: Any, **meta: Any) -> dict[str, Any]:
    return {"inputs": inputs, "outputs": outputs, "meta": meta}


def record(name: str, rng: random.Random, number: int) -> dict[str, Any]:
    first, second = sentence(rng), sentence(rng)
    options = {f"option_{letter}": f"{rng.choice(THINGS)} {letter}" for letter in "abcd"}
    match name:
        case "multiq":
            thing = rng.choice(THINGS)
            texts = {"support_text": first, "main_text": f"{second} Потом нашли {thing}."}
            return example(texts | {"question": "Что нашли?"}, [{"segment": thing}], id=number)
        case "parus":
            inputs = {"premise": first, "choice1": second, "choice2": sentence(rng)}
            return example(
                inputs, rng.choice("12"), id=number, task=rng.choice(["cause", "effect"])
            )
        case "rcb":
            return example({"premise": first, "hypothesis": second}, rng.choice("123"), id=number)
        case "rwsd":
            spans = {"span1_text": rng.choice(NAMES), "span2_text": "собой"}
            return example({"text": first} | spans, rng.choice(["Да", "Нет"]), id=number)
        case "use":
            kind, answer = [
                ("text", "слово,слова"),
                ("matching", "1,3,2"),
                ("multiple_choice_based_on_text", "2,5"),
            ][number % 3]
            inputs = {"task": f"Задание {number}. {first}", "choices": "1) один 2) два"}
            return example(
                inputs, answer, id=number, id_task=str(number % 27), variant=number // 6, type=kind
            )
        case "rummlu":
            return example({"text": first} | options, rng.choice("ABCD"), id=number)
        case "ruopenbookqa" | "ruworldtree":
            return example({"question": first} | options, rng.choice("ABCD"), id=number)
        case "rucola":
            return {"id": number, "sentence": first, "label": rng.randint(0, 1)}
        case "mmlu_ru":
            choices = list(options.values())
            return {
                "subject": ["логика", "право"][number % 2],
                "question_ru": first,
                "choices_ru": choices,
                "question_en": first,
                "choices_en": choices,
                "answer": rng.randint(0, 3),
            }
        case "daru_treeway_eval":
            sentences = [sentence(rng) for _ in range(6)]
            best = sorted(rng.sample(range(6), 2))
            return {
                "src_sents": sentences,
                "summary_sents": [sentences[i] for i in best],
                "extractive_summary": best,
            }
        case "rublimp":
            return {
                "source_sentence": first,
                "target_sentence": first[::-1],
                "phenomenon": "порядок",
            }
        case _:
            return example(
                {"text": f"{first} {second}" if "para" in name else first}, first, id=number
            )


SPLITS = {"rucola": ("validation", "train"), "mmlu_ru": ("test", "dev")}
NAMED = [
    "multiq",
    "parus",
    "rcb",
    "rwsd",
    "use",
    "rummlu",
    "ruopenbookqa",
    "ruworldtree",
    "rucola",
    "mmlu_ru",
    "daru_treeway_eval",
    "rublimp",
    "cp_sent_ru",
    "cp_para_ru",
    "cp_sent_en",
    "cp_para_en",
]


def write_data(folder: Path, items: int = ITEMS) -> Path:
    """All data sets as folders of jsonl, the same ones every time."""
    for name in NAMED:
        rng = random.Random(name)
        data_set = folder / name
        data_set.mkdir(parents=True)
        for split, count in zip(SPLITS.get(name, ("test", "prompt")), (items, SHOTS), strict=True):
            lines = [
                json.dumps(record(name, rng, number), ensure_ascii=False) for number in range(count)
            ]
            (data_set / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
