"""Answers, the rules and judges that drop some of them, and a whole calibration."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.calibration import answers as module
from lep.calibration.answers import Answers, answer, write_unjudged
from lep.calibration.calibrate import calibrate
from lep.calibration.filters import reason_to_drop, repeats
from lep.calibration.judge import MOST_UNGRADED, grades, load_judge
from lep.calibration.surprise import Surprise
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import write_records
from lep.corpus.trigrams import Trigrams
from lep.durable import locked
from lep.errors import CorpusError, LepError, LepWarning, OutputError
from lep.inference.generate import Answer, answers, end_tokens
from lep.inference.models import load_model
from lep.settings import AnswerSettings, CalibrateSettings
from lep.training.trainable_rows import new_token_rows
from lep.transfer.propagate import propagate

NEWS = "".join(f"Другие {i} игры, новые {i} мячи и {i} куклы. " for i in range(5))


@pytest.mark.parametrize(
    ("question", "text", "finished", "reason"),
    [
        ("Где река?", "Река за лесом.", True, None),
        ("Где река?", "  ", True, "empty"),
        ("Где река?", "Река за", False, None),
        ("Что нового?", "Новые игры. " + NEWS, True, None),
        ("Что нового?", "Новые игры. " + NEWS, False, "repeating"),
        ("Где река?", "The river is behind the wood.", True, "wrong language"),
        ("Where is it?", "Река за лесом.", True, "wrong language"),
        ("Сколько?", "12", True, None),
        ("Расскажи.", "я не знаю где " * 6, True, "repeating"),
        ("Повтори: да да да да да да да да да да", "да да да да да да да да да да", True, None),
        ("Где река?", "Где река?", True, "echo"),
        ("Где река?", "«где  РЕКА»", True, "echo"),
        ("Где река?", "Где река? Где река?", True, "echo"),
        ("Где река?", "Где река? За лесом.", True, None),
        ("Назови столицу Франции", "назови столицу Франции.", True, "echo"),
        ("Повтори: река за лесом", "Река за лесом", True, None),
        ("Здравствуйте!", "Здравствуйте!", True, None),
        ("Сколько?", "Сколько", True, "echo"),
        ("你好吗？", "你好吗", True, "echo"),
        ("日本の首都はどこですか？", "日本の首都は東京です。", True, None),
        ("日本の首都はどこですか？", "東京", True, None),
        ("日本の首都はどこですか？", "The capital is Tokyo.", True, "wrong language"),
        ("中国的首都在哪里？", "日本の首都はとうきょうです。", True, "wrong language"),
        ("这里有什么？", "我喜欢吃苹果和香蕉。" * 8, True, "repeating"),
    ],
)
def test_rules(question, text, finished, reason) -> None:
    assert reason_to_drop(question, Answer(0, text, [1, 2, 3, 4, 5], finished)) == reason


def test_the_language_of_a_record_is_that_of_its_answer(pair, tmp_path, monkeypatch) -> None:
    """A question whose wording is English asks about a word of Greek."""
    asked = "Which word comes after ποτάμι in this sentence? Το ποτάμι πηγάζει."
    records = [
        {"messages": [{"role": "user", "content": asked}]} | more
        for more in ({}, {"language": "el"})
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = [Answer(index, "πηγάζει", [1], finished=True) for index in range(2)]
    monkeypatch.setattr(module, "answers", lambda *_, **__: [given])
    monkeypatch.setattr(Surprise, "measured", lambda _, batch: batch)
    made = answer(pair["instruct"], path, tmp_path / "out", max_new_tokens=4)
    assert made.languages == {"Latin": {"wrong language": 1}, "el": {"kept": 1}}


@pytest.mark.parametrize(
    ("surprise", "text", "reason"),
    [
        (None, "бу река не как стулья", None),
        (0.9, "бу река не как стулья", None),
        (1.1, "бу река не как стулья", "word salad"),
        (1.8, "12", None),  # the mean of a few tokens is chance
    ],
)
def test_word_salad_surprises_its_own_model(surprise, text, reason) -> None:
    given = Answer(0, text, [1, 2, 3], finished=True, surprise=surprise)
    assert reason_to_drop("Где дом?", given) == reason


def test_surprise_is_nats_per_byte_beside_the_median_question(pair) -> None:
    """Against explicit sums of the model's log-probabilities."""
    model, checkpoint = load_model(pair["instruct"])
    tokenizer = checkpoint.tokenizer
    prompts = [[{"role": "user", "content": text}] for text in ("Где?", "Где дом?", "Где река?")]
    options = {"max_new_tokens": 9, "batch_size": 3}
    (given,) = answers(model, tokenizer, prompts, **options)
    written = next(answer for answer in given if answer.index == 1)
    (found,) = Surprise.of(model, checkpoint, prompts, 2).measured([written])

    def nats(before: list[int], after: list[int]) -> float:
        with torch.inference_mode():
            logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        return -sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after))

    questions = [prompt[0]["content"] for prompt in prompts]
    begin = [tokenizer.bos_token_id]
    encoded = [tokenizer(q, add_special_tokens=False)["input_ids"] for q in questions]
    shares = [nats(begin, i) / len(q.encode()) for i, q in zip(encoded, questions, strict=True)]
    asked = tokenizer.apply_chat_template(prompts[1], add_generation_prompt=True)["input_ids"]
    assert written.text
    expected = nats(asked, written.ids) / len(written.text.encode()) / sorted(shares)[1]
    assert found.surprise == pytest.approx(expected, rel=1e-4)


def test_the_median_question_is_that_of_a_sample(pair, monkeypatch) -> None:
    """Of each script at equal distances, so that measuring it does not grow with the prompts."""
    model, checkpoint = load_model(pair["instruct"])
    texts = [f"Где дом номер {i}?" for i in range(5)] + ["Where is it?"]
    prompts = [[{"role": "user", "content": text}] for text in texts]
    sampled = [prompts[i] for i in (0, 3, 5)]
    monkeypatch.setattr("lep.calibration.surprise.QUESTIONS", 2)
    of_all = Surprise.of(model, checkpoint, prompts, 2)
    of_sample = Surprise.of(model, checkpoint, sampled, 2)
    assert of_all.medians == pytest.approx(of_sample.medians, rel=1e-5)
    assert len(of_all.medians) == 2


def test_refrains_are_not_repetition() -> None:
    verse = "one two three four " + " ".join(f"word{i}" for i in range(60)) + " one two three four"
    assert not repeats(verse)
    assert not repeats("a short answer")


LAB = ROOT / "lab" / "pair" / "instruct"
WORDS = ["Где дом?", "Где река?", "Where is it?"]


def write_prompts(path: Path, questions: list[str]) -> Path:
    write_records(path, [{"messages": [{"role": "user", "content": text}]} for text in questions])
    return path


@pytest.fixture
def prompts(tmp_path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", WORDS)


@pytest.fixture
def all_pass(monkeypatch) -> None:
    """A random model's answers would all be dropped."""
    monkeypatch.setattr(module, "reason_to_drop", lambda *_: None)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_answer_is_on_record(pair, prompts, tmp_path, monkeypatch) -> None:
    verdicts = iter(["repeating", None, None])
    monkeypatch.setattr(module, "reason_to_drop", lambda *_: next(verdicts))
    result = answer(pair["instruct"], prompts, str(tmp_path / "out"), max_new_tokens=8)
    scripts = {"Cyrillic": {"repeating": 1, "kept": 1}, "Latin": {"kept": 1}}
    assert result == Answers({"repeating": 1, "kept": 2}, scripts, tmp_path / "out")
    assert str(result).splitlines() == [
        "repeating: 1, kept: 2",
        "Cyrillic: repeating: 1, kept: 1",
        "Latin: kept: 1",
        f"wrote {tmp_path / 'out'}",
    ]
    assert json.loads((tmp_path / "out" / "languages.json").read_text()) == scripts
    assert json.loads((tmp_path / "out" / "answers.json").read_text()) == result.counts
    records = read(tmp_path / "out" / "answers.jsonl")
    fields = ["messages", "sample", "grade", "dropped", "finished"]
    assert [list(r) for r in records] == [fields] * 3
    assert [r["dropped"] for r in records] == ["repeating", None, None]
    kept = read(tmp_path / "out" / "kept.jsonl")
    assert [r["messages"][0]["content"] for r in kept] == WORDS[1:]
    assert [r["finished"] for r in kept] == [r["finished"] for r in records[1:]]
    assert not any(r["finished"] for r in records)  # after 8 tokens of a random model
    assert not list(tmp_path.glob("*.answers.jsonl"))


@pytest.mark.parametrize(("longest", "ends"), [(40, True), (3, False)])
def test_answers_say_whether_they_ended(longest, ends, tmp_path, recwarn) -> None:
    """By transformers: an end token within the length. If most were cut off, the user is told."""
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32)
    texts = [f"Повтори это предложение: {text}" for text in ("Тихо.", "Он взял книгу и сел.")]
    prompts = write_prompts(tmp_path / "prompts.jsonl", texts)
    answer(LAB, prompts, tmp_path / "out", max_new_tokens=longest)
    notes = [str(each.message) for each in recwarn if each.category is LepWarning]
    assert [f"2 of 2 answers were cut off at {longest} tokens" in note for note in notes] == [
        True for _ in range(not ends)
    ]
    for text, record in zip(texts, read(tmp_path / "out" / "kept.jsonl"), strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        written = model.generate(ids, do_sample=False, max_new_tokens=longest)[0, ids.shape[1] :]
        ended = not end_tokens(model).isdisjoint(written.tolist())
        assert record["finished"] == ended == ends


def test_an_answer_that_ends_is_kept_before_one_that_was_cut_off(
    pair, prompts, tmp_path, all_pass, monkeypatch
) -> None:
    given = module.answers

    def ending(*args: Any, sampling: Any, **options: Any) -> Any:
        for batch in given(*args, sampling=sampling, **options):
            yield [replace(each, finished=sampling is not None) for each in batch]

    monkeypatch.setattr(module, "answers", ending)
    answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4, samples=3)
    kept = [r for r in read(tmp_path / "out" / "answers.jsonl") if not r["dropped"]]
    assert [(r["sample"], r["finished"]) for r in kept] == [(1, True)] * 3


def other_letters(text: str) -> str:
    """English in another language of the same script: each letter is its neighbour but one."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return text.lower().translate(str.maketrans(letters, letters[2:] + letters[:2]))


def test_answers_in_another_language_of_the_same_script(
    pair, english, tmp_path, all_pass, monkeypatch
) -> None:
    """Scripts do not tell them apart: the letters of the questions in each language do."""
    pieces = [text[i : i + 120] for text in english for i in range(0, len(text) - 120, 120)]
    assert len(pieces) >= 240
    questions = [(piece, "en") for piece in pieces[:60]]
    questions += [(other_letters(piece), "xx") for piece in pieces[60:120]]
    said = [*pieces[120:180], *map(other_letters, pieces[180:210]), *pieces[210:240]]
    given, path = module.answers, tmp_path / "prompts.jsonl"
    lines = (
        {"messages": [{"role": "user", "content": text}], "language": language}
        for text, language in questions
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def saying(*args: Any, **options: Any) -> Any:
        for batch in given(*args, **options):
            yield [replace(each, text=said[each.index]) for each in batch]

    monkeypatch.setattr(module, "answers", saying)
    result = answer(pair["instruct"], path, tmp_path / "out", max_new_tokens=2)
    expected = {"en": {"kept": 60}, "xx": {"kept": 30, "wrong language": 30}}
    assert result.languages == expected
    records = read(tmp_path / "out" / "answers.jsonl")
    assert [r["dropped"] for r in records] == [None] * 90 + ["wrong language"] * 30


def test_a_language_with_little_text_does_not_win_by_what_it_has_not_shown(english) -> None:
    """Names and code are unlike both languages; nothing is said of a language with less text."""
    whole, few = " ".join(english), other_letters(" ".join(english)[:2_200])
    trigrams = Trigrams.of({"en": [whole], "xx": [few]})
    assert trigrams.counts["en"].total() == trigrams.counts["xx"].total() > 2_000
    names = [
        "numpy, matplotlib, scikit-learn, sqlite3, Kubernetes, nginx, ffmpeg, zsh, tmux",
        "Tokyo, Kyoto, Osaka, Nagoya, Sapporo, Fukuoka, Kobe, Yokohama, Hiroshima, Sendai",
        "Tchaikovsky, Rachmaninoff, Shostakovich, Mussorgsky, Prokofiev, Scriabin, Borodin",
        "paracetamol, ibuprofen, amoxicillin, metformin, atorvastatin, omeprazole, ramipril",
    ]
    assert not any(trigrams.excludes(text, "en") for text in names)
    pieces = [whole[i : i + 80] for i in range(3_000, 11_000, 80)]
    assert not any(trigrams.excludes(text, "en") for text in pieces)
    assert sum(trigrams.excludes(other_letters(text), "en") for text in pieces) >= 95
    assert sum(trigrams.excludes(text, "xx") for text in pieces) >= 95
    less = Trigrams.of({"en": [whole], "xx": [few[:1_000]]})
    assert not any(less.excludes(text, "xx") for text in pieces)


def test_a_language_without_answers_deserves_a_warning() -> None:
    scripts = {"Cyrillic": {"cut off": 2, "echo": 3, "kept": 4}, "Latin": {"kept": 7}}
    lines = str(Answers({"kept": 11, "cut off": 2, "echo": 3}, scripts, Path("out"))).splitlines()
    (warning,) = (line for line in lines if line.startswith("warning"))
    assert "4 of 9 Cyrillic questions have an answer" in warning
    assert "most are dropped as echo" in warning
    kept = {"Cyrillic": {"cut off": 4, "kept": 4}, "Latin": {"kept": 7}}
    assert "warning" not in str(Answers({"kept": 11, "cut off": 4}, kept, Path("out")))


def test_saved_answers_are_refused_to_other_prompts_and_never_rewritten(
    pair, prompts, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "reason_to_drop", lambda *_: "empty")
    with pytest.raises(CorpusError, match="none of 3 prompts"):
        answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4)
    cache = tmp_path / "out.answers.jsonl"
    saved, inode = cache.read_bytes(), cache.stat().st_ino
    other = write_prompts(tmp_path / "other.jsonl", ["Где лес?"])
    message = r"out.answers.jsonl holds 3 answers, .*other prompts.*or delete that file"
    for source, options in ((other, {"max_new_tokens": 4}), (prompts, {"max_new_tokens": 5})):
        with pytest.raises(OutputError, match=message):
            answer(pair["instruct"], source, tmp_path / "out", **options)
        assert cache.read_bytes() == saved

    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "reason_to_drop", killed)
    with pytest.raises(KeyboardInterrupt):  # at once: a start rewrites nothing
        answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4)
    assert cache.read_bytes() == saved
    assert cache.stat().st_ino == inode
    with (
        locked(cache, tmp_path / "out"),
        pytest.raises(OutputError, match="another process is writing"),
    ):
        answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4)


def test_a_run_killed_after_its_output_was_whole_is_finished(
    pair, prompts, tmp_path, monkeypatch, all_pass
) -> None:
    unlink = Path.unlink

    def killed(path: Path, *arguments, **options) -> None:
        if path.name == "out.answers.jsonl":
            raise KeyboardInterrupt
        unlink(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4)
    assert (tmp_path / "out.answers.jsonl").exists()
    with pytest.raises(OutputError, match="exists already"):  # with other settings it is not
        answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=5)
    result = answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4)
    assert result.counts == {"kept": 3}
    assert not (tmp_path / "out.answers.jsonl").exists()


def test_answers_of_a_killed_run_are_used_again(
    pair, prompts, tmp_path, monkeypatch, all_pass
) -> None:
    settings = AnswerSettings(max_new_tokens=8, generation_batch=1, samples=2)
    answers, count = module.answers, 0

    def counting(*arguments, **options):
        nonlocal count
        for batch in answers(*arguments, **options):
            count += len(batch)
            if count == stop:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(module, "answers", counting)
    stop = 0
    answer(pair["instruct"], prompts, tmp_path / "whole", settings)
    assert count == 6
    count, stop = 0, 5  # in the middle of the second sample
    with pytest.raises(KeyboardInterrupt):
        answer(pair["instruct"], prompts, tmp_path / "out", settings)
    cache = tmp_path / "out.answers.jsonl"
    cache.write_text(cache.read_text() + '{"sample": 1, "ans')  # killed while it wrote
    count, stop = 0, 0
    answer(pair["instruct"], prompts, tmp_path / "out", settings)
    assert count == 2
    whole, resumed = (tmp_path / name / "answers.jsonl" for name in ("whole", "out"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_sampled_answers_differ_and_the_best_is_kept(
    pair, prompts, tmp_path, monkeypatch, all_pass
) -> None:
    class Longest:
        """Grades by length, so that another than the first is best."""

        name = "longest"

        def replies(self, conversations):
            return [str(1 + len(c[0]["content"]) % 5) for c in conversations]

    monkeypatch.setattr(module, "load_judge", lambda source: Longest())
    settings = AnswerSettings(max_new_tokens=8, samples=4, judge="longest", least_grade=1)
    answer(pair["instruct"], prompts, tmp_path / "out", settings)
    records = read(tmp_path / "out" / "answers.jsonl")
    kept = [[m["content"] for m in r["messages"]] for r in read(tmp_path / "out" / "kept.jsonl")]
    kept = dict(kept)
    assert [r["sample"] for r in records] == [0, 1, 2, 3] * 3
    for word in WORDS:
        samples = [r for r in records if r["messages"][0]["content"] == word]
        assert len({r["messages"][-1]["content"] for r in samples}) > 1
        best = max(samples, key=lambda r: r["grade"])
        assert best["dropped"] is None
        assert kept[word] == best["messages"][-1]["content"]
        assert {r["dropped"] for r in samples if r is not best} == {"a better answer was kept"}


def test_nothing_passes(pair, prompts, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "reason_to_drop", lambda *_: "empty")
    message = r"none of 3 prompts got a usable answer \(\{'empty': 3\}\)"
    with pytest.raises(CorpusError, match=message):
        answer(pair["instruct"], prompts, tmp_path / "out", max_new_tokens=4)
    assert list(tmp_path.glob("out*")) == [tmp_path / "out.answers.jsonl"]


class FakeJudge:
    """An OpenAI-compatible server; `reply` maps the number of a request to status and text."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.reply = lambda number: (200, "4")
        self.raw: str | None = None  # a body to send instead of a reply
        fake, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    fake.requests.append(request)
                    status, text = fake.reply(len(fake.requests))
                reply = json.dumps({"choices": [{"message": {"content": text}}]})
                body = (reply if fake.raw is None else fake.raw).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.source = f"judge@http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr("lep.calibration.judge.CONCURRENT", 1)  # replies in order
    fake = FakeJudge()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


ANSWERED = [([{"role": "user", "content": f"Вопрос {i}?"}], f"Ответ {i}.") for i in range(20)]


def test_a_served_judge_sees_question_and_answer(judge) -> None:
    given = list(grades(load_judge(judge.source), ANSWERED[:3], "cache"))
    assert given == [4, 4, 4]
    shown = judge.requests[1]["messages"][0]["content"]
    assert "user: Вопрос 1?" in shown
    assert "assistant: Ответ 1." in shown
    assert judge.requests[1]["model"] == "judge"


def test_nonsense_is_asked_for_once_more(judge) -> None:
    replies = {1: "well", 2: "well", 3: "hm", 4: "5"}  # 3 and 4 are second requests
    judge.reply = lambda number: (200, replies[number])
    assert list(grades(load_judge(judge.source), ANSWERED[:2], "cache")) == [None, 5]
    assert judge.requests[3]["messages"][-2]["content"] == "well"
    assert "digit" in judge.requests[3]["messages"][-1]["content"]


def test_a_busy_judge_is_asked_again(judge) -> None:
    judge.reply = lambda number: (503, "") if number == 1 else (200, "3")
    assert list(grades(load_judge(judge.source), ANSWERED[:1], "cache")) == [3]


def test_a_judge_of_nonsense_ends_the_run_and_grades_are_kept(
    pair, tmp_path, all_pass, judge
) -> None:
    many = write_prompts(tmp_path / "many.jsonl", [f"Где дом номер {i}?" for i in range(40)])
    settings = AnswerSettings(max_new_tokens=4, judge=judge.source)
    judge.reply = lambda number: (200, "4" if number <= 16 else "who knows")
    message = r"gives no grades: .* it said 'who knows'; answers and grades so far are kept"
    with pytest.raises(LepError, match=message):
        answer(pair["instruct"], many, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    before = len(judge.requests)
    judge.reply = lambda number: (200, "2" if number == before + 1 else "5")
    result = answer(pair["instruct"], many, tmp_path / "out", settings)
    # Judged answers are not judged again.
    assert len(judge.requests) - before == 40 - 16 - (MOST_UNGRADED - 1)
    assert result.counts == {"kept": 30, "not graded": 9, "grade below 4": 1}


def test_an_unreachable_judge_is_named(pair, prompts, tmp_path, all_pass, monkeypatch) -> None:
    monkeypatch.setattr("lep.calibration.judge.TRIES", 2)
    settings = AnswerSettings(max_new_tokens=4, judge="judge@http://127.0.0.1:9/v1")
    message = r"the judge judge does not answer after 2 tries .*: give the same command"
    with pytest.raises(LepError, match=message):
        answer(pair["instruct"], prompts, tmp_path / "out", settings)
    assert list(tmp_path.glob("out*")) == [tmp_path / "out.answers.jsonl"]


def test_a_judge_that_refuses_is_quoted_and_a_long_answer_has_no_grade(judge) -> None:
    judge.reply = lambda number: (401, "no key")
    message = r"the judge judge refuses \(401 .*no key.*: correct its name, URL or key"
    with pytest.raises(LepError, match=message):
        list(grades(load_judge(judge.source), ANSWERED[:1], "cache"))
    judge.reply = lambda number: (400, "context length") if number in (2, 4) else (200, "5")
    assert list(grades(load_judge(judge.source), ANSWERED[:2], "cache")) == [None, 5]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, "4"),
        (200, "4"),
        (200, '{"error": "try again in 3"}'),
        (200, '{"choices": [], "code": 5}'),
        (200, '{"choices": [{"message": {"content": 4}}]}'),
        (200, '{"choices": [{"message": {"content": ["4"]}}]}'),
        (200, '{"choices": [{"message": {"content": [{"type": "text", "text": "4"}]}}]}'),
        (200, '{"choices": [{"message": {"content": null}, "index": 4}]}'),
        (200, '{"choices": [{"message": {}, "index": 4}]}'),
        (200, '{"choices": {"message": {"content": "4"}}}'),
        (200, "<html>4</html>"),
    ],
)
def test_only_the_content_of_a_well_formed_reply_is_a_grade(judge, status, body) -> None:
    judge.raw = body
    judge.reply = lambda number: (status, "")
    assert list(grades(load_judge(judge.source), ANSWERED[:1], "cache")) == [None]
    judge.raw = None
    judge.reply = lambda number: (200, "4")
    assert list(grades(load_judge(judge.source), ANSWERED[:1], "cache")) == [4]


def test_another_judge_grades_the_same_answers(
    pair, tmp_path, all_pass, judge, monkeypatch
) -> None:
    questions = [f"Где дом номер {i}?" for i in range(MOST_UNGRADED + 2)]
    many = write_prompts(tmp_path / "many.jsonl", questions)
    judge.reply = lambda number: (200, "who knows")
    settings = AnswerSettings(max_new_tokens=4, judge=judge.source)
    with pytest.raises(LepError, match="gives no grades"):
        answer(pair["instruct"], many, tmp_path / "out", settings)
    monkeypatch.setattr(module, "load_writer", None)  # no answers are generated again
    other = settings.model_copy(update={"judge": judge.source.replace("judge@", "better@")})
    judge.reply = lambda number: (200, "2")
    message = r"none of 12 prompts .*'grade below 4': 12.*the answers are in .*out.answers"
    with pytest.raises(CorpusError, match=message):
        answer(pair["instruct"], many, tmp_path / "out", other)
    before = len(judge.requests)
    lower = other.model_copy(update={"least_grade": 2})
    assert answer(pair["instruct"], many, tmp_path / "out", lower).counts == {"kept": 12}
    assert len(judge.requests) == before  # nor are grades
    assert not list(tmp_path.glob("*.answers.jsonl"))


def test_unjudged_answers_are_judged_and_not_generated_again(
    pair, prompts, tmp_path, all_pass, monkeypatch
) -> None:
    settings = AnswerSettings(max_new_tokens=8, samples=2)
    answer(pair["instruct"], prompts, tmp_path / "at once", settings)
    write_unjudged(pair["instruct"], prompts, tmp_path / "unjudged", settings)
    monkeypatch.setattr(module, "load_writer", None)  # no model may answer
    answer(pair["instruct"], prompts, tmp_path / "out", settings, tmp_path / "unjudged")
    for name in ("answers.jsonl", "kept.jsonl", "answers.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
    assert not list(tmp_path.glob("*.answers.jsonl"))
    other = settings.model_copy(update={"max_new_tokens": 4})
    with pytest.raises(OutputError, match=r"unjudged.jsonl holds 6 answers, .*to other prompts"):
        answer(pair["instruct"], prompts, tmp_path / "other", other, tmp_path / "unjudged")


def test_a_local_judge(pair, prompts, tmp_path, all_pass) -> None:
    """A random model gives no grades, and needs a chat template to be asked."""
    for model, message in (
        ("instruct", r"\{'not graded': 3\}"),
        ("base", "has no chat template, so it cannot judge"),
    ):
        settings = AnswerSettings(max_new_tokens=4, judge=str(pair[model]))
        with pytest.raises(LepError, match=message):
            answer(pair["instruct"], prompts, tmp_path / "out", settings)


@pytest.fixture
def answered(pair, prompts, tmp_path, all_pass) -> Path:
    answer(pair["instruct"], prompts, tmp_path / "answers", max_new_tokens=8)
    return tmp_path / "answers"


def test_calibration_as_published(pair, answered, tmp_path) -> None:
    settings = CalibrateSettings(batch_size=2, learning_rate=1e-2)
    record = calibrate(pair["instruct"], answered, tmp_path / "out", settings)
    assert record.answers == {"kept": 3}
    recorded = tmp_path / "out" / "lep" / "answers.jsonl"
    assert recorded.read_bytes() == (answered / "answers.jsonl").read_bytes()
    folders = pair["instruct"], tmp_path / "out"
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    middle = [name for name in before if ".layers.1." in name]  # of three
    assert middle
    assert all(torch.equal(before[name], after[name]) for name in middle)
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
    ):
        assert not torch.equal(before[name], after[name]), name


def test_calibration_of_new_rows_alone(pair, adapted, answered, tmp_path) -> None:
    propagate(pair["base"], pair["instruct"], adapted, tmp_path / "propagated")
    options = {"batch_size": 2, "learning_rate": 1e-2, "train": "new_rows"}
    calibrate(str(tmp_path / "propagated"), str(answered), str(tmp_path / "out"), **options)
    rows = new_token_rows(Checkpoint(tmp_path / "propagated"))
    before, after = (load_file(tmp_path / p / "model.safetensors") for p in ("propagated", "out"))
    names = {"input": "model.embed_tokens.weight", "output": "lm_head.weight"}
    for kind, name in names.items():
        moved = (before[name] != after[name]).any(1).nonzero().flatten()
        assert len(moved)
        assert set(moved.tolist()) <= set(rows[kind].tolist())
    others = before.keys() - set(names.values())
    assert all(torch.equal(before[name], after[name]) for name in others)
    again = new_token_rows(Checkpoint(tmp_path / "out"))  # the result knows its new rows
    assert all(torch.equal(again[kind], rows[kind]) for kind in rows)


def test_faults(pair, answered, tmp_path) -> None:
    with pytest.raises(CorpusError, match=r"holds no kept.jsonl: give a folder that lep answer"):
        calibrate(pair["instruct"], tmp_path, tmp_path / "out")
    with pytest.raises(LepError, match="does not say which of its rows are new"):
        calibrate(pair["instruct"], answered, tmp_path / "out", train="new_rows")
    with pytest.raises(LepError, match="has no chat template, so it cannot be calibrated"):
        calibrate(pair["base"], answered, tmp_path / "out")
    with pytest.raises(LepError, match="unknown key 'trained'; did you mean 'train'"):
        calibrate(pair["instruct"], answered, tmp_path / "out", trained="new_rows")
    kept = answered / "kept.jsonl"
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(CorpusError, match=r"holds 2 answers, and answers.json says that 3 were"):
        calibrate(pair["instruct"], answered, tmp_path / "out")
    assert not (tmp_path / "out").exists()
