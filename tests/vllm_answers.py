"""What vLLM answers, from its own tokenizer and template: see test_vllm.py. Runs in vLLM's Python.

`python vllm_answers.py QUESTION RESULT` with JSON files. The question holds `texts`,
`conversations`, `max_tokens` and `engines`: each a folder `model` and `speculative`, the settings
of speculative decoding or null. The result has, for each engine, `error`, or `answers` in the order
of texts and conversations, and `proposed` and `accepted`, the counts of draft tokens.
"""

import json
import sys
from pathlib import Path
from typing import Any

LIKELIEST = 5  # tokens whose log-probabilities are returned


def answer(output: Any) -> dict[str, Any]:
    """The ids of prompt and answer, log-probabilities by token, and what ended it."""
    completion = output.outputs[0]
    steps = [{token: p.logprob for token, p in step.items()} for step in completion.logprobs]
    return {
        "prompt": list(output.prompt_token_ids),
        "ids": list(completion.token_ids),
        "log_probabilities": steps,
        "text": completion.text,
        "finish": completion.finish_reason,
    }


def answers(engine: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(
            model=engine["model"],
            speculative_config=engine["speculative"],
            dtype="float32",
            max_model_len=256,
            max_num_seqs=1,
            enforce_eager=True,
            disable_log_stats=False,
        )
    except ValueError as error:
        return {"error": str(error)}
    greedy = SamplingParams(temperature=0, max_tokens=question["max_tokens"], logprobs=LIKELIEST)
    outputs = [llm.generate([text], greedy, use_tqdm=False)[0] for text in question["texts"]]
    for messages in question["conversations"]:
        outputs += llm.chat(messages, greedy, use_tqdm=False)
    counts = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {
        "answers": [answer(output) for output in outputs],
        "proposed": counts.get("vllm:spec_decode_num_draft_tokens", 0),
        "accepted": counts.get("vllm:spec_decode_num_accepted_tokens", 0),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = [answers(engine, given) for engine in given["engines"]]
    Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
