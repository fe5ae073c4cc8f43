"""Answer prompts with the original instruct model, keep the good answers, train the adapted model on them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lep.calibration.filters import reason_to_drop
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import question, read_messages
from lep.errors import CheckpointError, CorpusError
from lep.inference.generate import Answer, answers
from lep.inference.load import load_model
from lep.publish import check_output, fingerprint
from lep.settings import CalibrateSettings
from lep.training.tune import CALIBRATION, copy_records, train_adapter


def calibrate(
    model: str | Path,
    original: str | Path,
    prompts: str | Path,
    output: Path,
    settings: CalibrateSettings,
    copy_text: dict[str, list[str | Path]] | None = None,
) -> dict[str, Any]:
    """Tune `model` on the greedy answers of `original` to the prompts, and on copy tasks.

    Prompts are `messages` records; a final assistant message is ignored. Answers are kept beside the output while
    the run is unfinished, so that an interrupted one does not ask again. `lep/tune.json` counts what was kept and
    dropped, `lep/answers.jsonl` holds all answers.

    Raises `CorpusError` when no answer passes the rules.
    """
    conversations = [question(record["messages"]) for record in read_messages(prompts)]
    check_output(output)
    if not Checkpoint(model).check().tokenizer.chat_template:
        raise CheckpointError(f"{model} has no chat template, so it cannot be calibrated: give an instruct model")
    cache = output.with_name(output.name + ".answers.jsonl")
    answered = _answers(original, conversations, cache, settings)
    records, kept, dropped = [], [], Counter[str]()
    for conversation, answer in zip(conversations, answered, strict=True):
        reason = reason_to_drop(conversation[-1]["content"], answer)
        dropped[reason or "kept"] += 1
        messages = [*conversation, {"role": "assistant", "content": answer.text}]
        records.append({"messages": messages, "dropped": reason})
        if reason is None:
            kept.append({"messages": messages})
    if not kept:
        cache.unlink()
        raise CorpusError(f"none of {len(records)} answers passes the rules ({dict(dropped)}): check the prompts")
    data = kept + copy_records(copy_text or {}, settings.copy_tasks, settings.seed)
    counts = {"answers": dict(dropped), "copy_tasks": len(data) - len(kept)}
    record = train_adapter(model, data, output, settings, CALIBRATION, facts=counts, answers=records)
    cache.unlink(missing_ok=True)
    return record


def _answers(
    original: str | Path, conversations: list[list[dict[str, Any]]], cache: Path, settings: CalibrateSettings
) -> list[Answer]:
    """One answer for each conversation, from the cache of an interrupted run where it has them."""
    key = fingerprint(
        ["ids", Checkpoint(original).stamp(), conversations, settings.max_new_tokens, settings.generation_batch]
    )
    done = _read_cache(cache, key)
    if len(done) < len(conversations):
        model, checkpoint = load_model(original)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("w", encoding="utf-8") as out:
            out.write(json.dumps({"key": key}) + "\n")
            out.writelines(json.dumps(vars(a), ensure_ascii=False) + "\n" for a in done.values())
            for batch in answers(
                model, checkpoint.tokenizer, conversations, max_new_tokens=settings.max_new_tokens,
                batch_size=settings.generation_batch, done=done.keys(),
            ):  # fmt: skip
                done |= {answer.index: answer for answer in batch}
                out.writelines(json.dumps(vars(a), ensure_ascii=False) + "\n" for a in batch)
                out.flush()
    return [done[i] for i in range(len(conversations))]


def _read_cache(cache: Path, key: str) -> dict[int, Answer]:
    if not cache.exists():
        return {}
    whole = cache.read_text(encoding="utf-8").rpartition("\n")[0]  # a killed run may have left half a line
    entries = [json.loads(line) for line in whole.split("\n") if line]
    if not entries or entries[0].get("key") != key:
        return {}
    return {entry["index"]: Answer(**entry) for entry in entries[1:]}
