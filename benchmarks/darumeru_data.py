"""Convert the data folder's benchmark items to the fields that the tasks read.

    python benchmarks/darumeru_data.py --data DATA --output runs/darumeru

RuCoLA, PARus, RWSD, RCB, USE and MMLU (English) are real items. The labels of PARus, RWSD and RCB
are majority votes of crowd workers; USE has 100 whole exams without their essays. XQuAD stands in
for MultiQ, news with titles for the summaries of Gazeta, and the sentences nearest to the title for
the extractive summaries. Sentences and paragraphs to copy come from Wikipedia. RuBLiMP is complete.
"""

import argparse
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

from lep.benchmark.metrics import lemma, words
from lep.corpus.read import read_documents, write_records
from lep.corpus.tasks import PARAGRAPH_CHARACTERS, make_tasks, sentences

COPIES, SHOTS, EXTRACTED, DOCUMENTS = 200, 10, 3, 2_000
RCB = ["entailment", "contradiction", "neutral"]
Record = dict[str, Any]


def lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for line in io.TextIOWrapper(
            zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"
        ):
            yield json.loads(line)


def task_record(inputs: Record, outputs: Any, **meta: Any) -> Record:
    return {"inputs": inputs, "outputs": outputs, "meta": meta}


def parus(bench: Path) -> Iterator[Record]:
    for i, r in enumerate(lines(bench / "parus_human.jsonl.zst")):
        inputs = {name: r[name] for name in ("premise", "choice1", "choice2")}
        yield task_record(inputs, str(r["label"] + 1), id=i, task=r["question"])


def rcb(bench: Path) -> Iterator[Record]:
    for i, r in enumerate(lines(bench / "rcb_human.jsonl.zst")):
        inputs = {"premise": r["premise"], "hypothesis": r["hypothesis"]}
        yield task_record(inputs, str(RCB.index(r["label"]) + 1), id=i)


def rwsd(bench: Path) -> Iterator[Record]:
    for i, r in enumerate(lines(bench / "rwsd_human.jsonl.zst")):
        marked = re.findall(r"<b>(.*?)</b>", r["text"])
        inputs = {
            "text": re.sub(r"</?b>", "", r["text"]),
            "span1_text": r["span"],
            "span2_text": " ".join(marked),
        }
        yield task_record(inputs, "Да" if r["label"] == "true" else "Нет", id=i)


def use(bench: Path) -> Iterator[Record]:
    """Answers in the exam's format: sorted numbers, words between commas, right sides of pairs."""
    for r in lines(bench / "use.jsonl.zst"):
        solution = r["solution"]
        right = solution.get("correct") or solution.get("correct_variants")
        if right is None:  # the essay
            continue
        variants = right if isinstance(right, list) else [right]
        if r["type"] == "text":
            answer = ",".join(re.sub(r"[\d\W]+", "", str(each)).lower() for each in variants)
        elif r["type"] == "matching":
            answer = ",".join(str(right[key]) for key in sorted(right))
        else:
            answer = ",".join(
                sorted(variants[0] if isinstance(variants[0], list) else map(str, variants))
            )
        options = [
            f"{c['id']}) {c['text']}"
            for c in r["choices"] or []
            if "text" in c and c["text"] not in r["text"]
        ]
        number = re.search(r"\d+", r["file"])
        assert number
        inputs = {"task": html.unescape(r["text"]), "choices": "\n".join(options)}
        yield task_record(
            inputs,
            answer,
            id=f"{r['file']}/{r['id']}",
            id_task=r["id"],
            variant=number[0],
            type=r["type"],
        )


def mmlu(bench: Path, part: str) -> Iterator[Record]:
    for r in lines(bench / "mmlu_en.jsonl.zst"):
        if r["split"] == part:
            options = [r[letter] for letter in "ABCD"]
            yield {
                "subject": r["subject"],
                "question_en": r["question"],
                "choices_en": options,
                "question_ru": r["question"],
                "choices_ru": options,
                "answer": "ABCD".index(r["label"]),
            }


def rucola(bench: Path, parts: list[str]) -> Iterator[Record]:
    for r in lines(bench / "rucola.jsonl.zst"):
        if r["split"] in parts and "acceptable" in r:
            yield {"id": r["id"], "sentence": r["sentence"], "label": int(r["acceptable"])}


def gazeta(bench: Path) -> Iterator[Record]:
    for r in lines(bench / "tg_news_ru.jsonl.zst"):
        sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[А-ЯA-Z«])", r["text"]) if s.strip()]
        if len(sentences) <= EXTRACTED:
            continue
        title = {lemma(word) for word in words(r["title"])}
        near = [len(title & {lemma(w) for w in words(s)}) for s in sentences]
        best = sorted(sorted(range(len(sentences)), key=lambda i: -near[i])[:EXTRACTED])
        yield {"src_sents": sentences, "summary_sents": [r["title"]], "extractive_summary": best}


def multiq(bench: Path) -> Iterator[Record]:
    with (bench / "xquad_ru.json.zst").open("rb") as file:
        articles = json.load(
            io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        )["data"]
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        for question in paragraph["qas"]:
            inputs = {
                "support_text": "",
                "main_text": paragraph["context"],
                "question": question["question"],
            }
            yield task_record(
                inputs,
                [{"segment": answer["text"]} for answer in question["answers"]],
                id=question["id"],
            )


def rublimp(bench: Path) -> Iterator[Record]:
    for r in lines(bench / "rublimp.jsonl.zst"):
        yield {
            "source_sentence": r["good"],
            "target_sentence": r["bad"],
            "phenomenon": r["phenomenon"],
        }


def copies(data: Path, language: str, task: str) -> Iterator[Record]:
    """Items from Wikipedia, whose long paragraphs are cut to the length of the chat tasks' ones."""
    name = {"ru": "eval/ru/wiki_xquad.jsonl.zst", "en": "train/en/wiki.jsonl.zst"}[language]
    documents = list(islice(read_documents([data / name]), DOCUMENTS))
    if task == "copy_paragraph":
        documents = [
            replace(document, text="\n\n".join(pieces(sentences(document.text))))
            for document in documents
        ]
    for item in make_tasks(documents, language, [task], count=COPIES + SHOTS, seed=0):
        yield task_record({"text": item.answer}, item.answer, id=item.question)


def pieces(parts: list[str]) -> Iterator[str]:
    """Join whole sentences into pieces of at most a paragraph's length."""
    piece = ""
    for part in parts:
        if piece and len(piece) + 1 + len(part) > PARAGRAPH_CHARACTERS[1]:
            yield piece
            piece = ""
        piece = f"{piece} {part}".strip()
    yield piece


def halves(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Split off the first records as examples: `SHOTS`, or the first whole exam."""
    rows = list(records)
    first = rows[0].get("meta", {}).get("variant")
    shots = SHOTS if first is None else sum(record["meta"]["variant"] == first for record in rows)
    return {"prompt": rows[:shots], "test": rows[shots:]}


def write(output: Path, name: str, splits: dict[str, Iterable[Record]]) -> None:
    (output / name).mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        rows = list(records)
        write_records(output / name / f"{split}.jsonl", rows)
        print(f"{name}/{split}: {len(rows):,}")


def data_sets(data: Path) -> dict[str, Callable[[], dict[str, Iterable[Record]]]]:
    """The splits of each folder that tasks read, made when they are asked for."""
    bench = data / "bench"
    halved = {"multiq": multiq, "parus": parus, "rcb": rcb, "rwsd": rwsd, "use": use}
    dev = ["in_domain_dev", "out_of_domain_dev"]
    splits: dict[str, Callable[[], dict[str, Iterable[Record]]]] = {
        name: lambda make=make: halves(make(bench))
        for name, make in (halved | {"daru_treeway_eval": gazeta}).items()
    }
    splits["mmlu_ru"] = lambda: {part: mmlu(bench, part) for part in ("dev", "test")}
    splits["rucola"] = lambda: {
        "validation": rucola(bench, dev),
        "train": rucola(bench, ["in_domain_train"]),
    }
    splits["rublimp"] = lambda: {"test": rublimp(bench)}
    for language in ("ru", "en"):
        for short, task in {"sent": "copy_sentence", "para": "copy_paragraph"}.items():
            splits[f"cp_{short}_{language}"] = lambda of=(language, task): halves(copies(data, *of))
    return splits


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    for name, splits in data_sets(args.data).items():
        write(args.output, name, splits())


if __name__ == "__main__":
    main()
