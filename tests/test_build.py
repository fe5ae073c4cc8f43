"""`lep corpus`: plain text, a case for each filter, planted duplicates, equal files every time."""

import json
import os
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, sample_texts
from hypothesis import given
from hypothesis import strategies as st
from slurm import PARTITION, one_node_slurm, wait_for_jobs

from lep.corpus.boilerplate import Boilerplate
from lep.corpus.build import Spill
from lep.corpus.clean import FILTERS, fault, plain
from lep.corpus.cluster import run_stages
from lep.corpus.duplicates import Duplicates, Signatures
from lep.corpus.read import Document, read_documents, read_hub, write_records
from lep.errors import CheckpointError, CorpusError, LepError
from lep.settings import BuildSettings, ClusterSettings
from lep.transfer.corpus import build_corpus, clean_corpus

SAMPLE = ROOT / "lab" / "text" / "train" / "ru"
NEAR = BuildSettings().near
WORDS = sorted({word for text in sample_texts("ru") for word in text.split() if word.isalpha()})


def article(seed: int, words: int = 120) -> str:
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(words // 12))


def written(folder: Path) -> list[dict]:
    return [
        {"id": d.id.partition("/")[2], "text": d.text}
        for d in read_documents(sorted(folder.glob("part-*.jsonl.zst")))
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<div class='x'>Река <b>и</b> лес</div>", "Река и лес"),
        ("Смотри https://example.org/a?b=1 здесь", "Смотри здесь"),
        ("[река](https://example.org) и [[лес|леса]] {{шаблон}}", "река и леса"),
        ("дом\u00ad\u200bный\ufeff 🙂", "домный"),
        ("и\u0306 = й", "й = й"),
        ("a\r\nb\r\n\r\n\r\n\r\nc  \t d ", "a\nb\n\nc d"),
        ("<script>let a = 1;</script>текст<!-- нет -->", "текст"),
        ("&laquo;река&raquo; &amp; лес", "«река» & лес"),
        ("if a < b and c > d: List<String>", "if a < b and c > d: List<String>"),
        ("x[1](2) и 5 © #1*", "x[1](2) и 5 © #1*"),
    ],
)
def test_plain_text(raw, expected) -> None:
    assert plain(raw) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_plain_text_never_fails_and_hides_nothing(text) -> None:
    clean = plain(text)
    assert "\r" not in clean
    assert "  " not in clean
    assert clean == clean.strip()


def test_each_filter_has_a_document_that_it_drops() -> None:
    good = article(0)
    dropped = {
        "damaged encoding": good + "\ufffd" * 20,
        "short": "Короткий текст.",
        "other language": sample_texts("en")[0],
        "foreign scripts": good + " " + "ελληνικά κείμενα " * 8,
        "few letters": "12.50 | 33.10 | 9.99 шт |\n" * 20,
        "repeated lines": good
        + ("\nПодпишитесь на нашу рассылку, чтобы узнавать обо всём первыми." * 40),
        "broken lines": "\n".join(WORDS[:80]),
    }
    assert set(dropped) == set(FILTERS)
    assert fault(good, "ru") is None
    for name, text in dropped.items():
        assert fault(text, "ru") == name
    assert fault(dropped["other language"], None) is None  # without a language, any script will do


def test_clean_documents_stay() -> None:
    texts = [plain(text) for text in sample_texts("ru")]
    assert [fault(text, "ru") for text in texts] == [None] * len(texts)


def test_planted_duplicates_are_found_and_clean_documents_are_not_lost() -> None:
    rng = random.Random(1)
    originals = [article(seed) for seed in range(600)]
    exact = [text.upper() for text in originals[:100]]
    near = []
    for text in originals[100:300]:
        words = text.split(" ")
        words[rng.randrange(len(words))] = "замена"
        near.append(" ".join(words))
    texts = originals + exact + near
    verdicts = Duplicates("minhash", NEAR).verdicts(texts)
    assert sum(v is not None for v in verdicts[:600]) <= 6
    assert verdicts[600:700] == ["exact duplicate"] * 100
    assert sum(v == "near duplicate" for v in verdicts[700:]) >= 190
    only_exact = Duplicates("exact", NEAR).verdicts(texts)
    assert only_exact[600:700] == ["exact duplicate"] * 100
    assert sum(v is not None for v in only_exact) == 100
    assert Duplicates("none", NEAR).verdicts(texts) == [None] * len(texts)


@pytest.mark.parametrize(
    "letters", ["一丁七万丈三上下不与丐丑专且世丘丙业丛东丝", "กขคงจฉชซญดตถทนบปผฝพฟมยรลวสหอ"]
)
def test_near_duplicates_without_spaces_between_words(letters: str) -> None:
    """A clause is no word: six changed characters in 1,500 leave a near duplicate."""
    rng = random.Random(0)
    originals = ["".join(rng.choices(letters + "。", k=1_500)) for _ in range(20)]
    changed = []
    for text in originals:
        characters = list(text)
        for place in rng.sample(range(1_500), 6):
            characters[place] = rng.choice(letters)
        changed.append("".join(characters))
    verdicts = Duplicates("minhash", NEAR).verdicts(originals + changed)
    assert verdicts == [None] * 20 + ["near duplicate"] * 20


def test_duplicates_are_found_across_batches() -> None:
    memory = Duplicates("minhash", NEAR)
    assert memory.verdicts([article(1), article(2)]) == [None, None]
    assert memory.verdicts([article(3), article(1), article(2) + " Конец."]) == [
        None,
        "exact duplicate",
        "near duplicate",
    ]


def test_signatures_are_found_again_after_many_others_and_are_small() -> None:
    rng = random.Random(2)
    sets = [[f"{seed}/{i}" for i in range(60)] for seed in range(3_000)]
    near = [[*kept[:57], "a", "b", "c"] for kept in rng.sample(sets, 200)]  # 57 of 63 in common
    fillers = [f"{i}/{i}" for i in range(40)]
    other = [[*kept[:20], *fillers] for kept in rng.sample(sets, 200)]  # 20 of 100
    memory = Signatures(NEAR)
    new = [memory.add(sets[start : start + 70]) for start in range(0, len(sets), 70)]
    assert sum(map(sum, new)) == len(sets)
    assert sum(memory.add(near)) <= 4
    assert sum(memory.add(other)) >= 196
    assert memory.add([]) == []
    assert sum(keys.nbytes + owners.nbytes for keys, owners in memory.runs) <= 300 * memory.size
    assert len(memory.runs) <= 2 + memory.size.bit_length()
    assert memory.bytes.nbytes <= 2 * 128 * memory.size


def raw_corpus(folder: Path) -> Path:
    folder.mkdir()
    for name, seeds in (("wiki", range(40)), ("news", range(100, 140))):
        records = [{"id": str(seed), "text": f"<p>{article(seed)}</p>"} for seed in seeds]
        write_records(folder / f"{name}.jsonl", records)
    texts = {"a": "мало", "b": sample_texts("en")[0], "c": article(3)}
    write_records(folder / "bad.jsonl", [{"id": i, "text": text} for i, text in texts.items()])
    return folder


def test_a_corpus_is_built_and_every_document_accounted_for(tmp_path) -> None:
    raw = raw_corpus(tmp_path / "raw")
    settings = BuildSettings(language="ru", weights={"wiki": 2, "news": 0.5})
    corpus = build_corpus([raw], tmp_path / "one", settings)
    outcomes = {
        source: {outcome: count.documents for outcome, count in counts.items()}
        for source, counts in corpus.sources.items()
    }
    assert outcomes == {  # files are read by name: the copy in `bad` comes first
        "bad": {"short": 1, "other language": 1, "kept": 1},
        "news": {"kept": 40},
        "wiki": {"kept": 39, "exact duplicate": 1},
    }
    assert corpus.dropped["short"] == [{"id": "bad/a", "text": "мало"}]
    documents = written(tmp_path / "one")
    assert len(documents) == corpus.written.documents
    names = [d["id"].partition("/")[2] for d in documents]
    assert names != sorted(names)
    wiki = [d for d in documents if d["id"].startswith("wiki/")]
    assert len(wiki) == 78
    assert len({d["text"] for d in wiki}) == 39
    assert 10 <= sum(d["id"].startswith("news/") for d in documents) <= 30
    assert all("<p>" not in d["text"] for d in documents)
    assert "| wiki | 39 |" in (tmp_path / "one" / "sheet.md").read_text()
    again = build_corpus([raw], str(tmp_path / "two"), language="ru", weights=settings.weights)
    assert again == replace(corpus, output=tmp_path / "two")
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two")]
    assert files[0] == files[1]
    other = build_corpus([raw], tmp_path / "three", settings.model_copy(update={"seed": 1}))
    assert other.written.sha256 != corpus.written.sha256


def test_shards_are_one_order(tmp_path) -> None:
    documents = [Document(f"s/{i}", article(i, 24), "s", f"s/{i}") for i in range(50)]
    orders = []
    for shards in (1, 7):
        spill = Spill(tmp_path / f"work{shards}", shards, seed=0)
        for document in documents:
            spill.add(document, 1.0)
        (tmp_path / str(shards)).mkdir()
        amount = spill.publish(tmp_path / str(shards), [])
        orders.append((amount, [d["text"] for d in written(tmp_path / str(shards))]))
    assert orders[0] == orders[1]


def test_the_command_line_and_what_it_refuses(here, tmp_path) -> None:
    raw = raw_corpus(tmp_path / "raw")

    wiki, news = raw / "wiki.jsonl", raw / "news.jsonl"
    printed = here("corpus", wiki, news, "--language", "ru", "--output", tmp_path / "out")
    assert "| wiki | 40 |" in printed
    assert f"80 documents, 77,160 characters in {tmp_path / 'out'}; sha256" in printed
    assert json.loads((tmp_path / "out" / "sheet.json").read_text())["written"]["documents"] == 80
    english = tmp_path / "english.jsonl"
    write_records(english, [{"text": text} for text in sample_texts("en")])
    dropped = f"nothing is left of {len(sample_texts('en'))} documents: other language"
    unknown = "--weights names 'blogs', and the sources are bad, news, wiki"
    for message, *arguments in (
        (dropped, english, "--language", "ru"),
        (unknown, raw, "--weights", "blogs=2"),
        ("--weights: 'wiki' lacks a name or weight: write NAME=W", raw, "--weights", "wiki"),
        ("--weights", raw, "--weights", "wiki=-1"),
        ("--dedup is 'fuzzy'", raw, "--dedup", "fuzzy"),
        (f"there is no file or folder {tmp_path / 'none'}: check", tmp_path / "none"),
    ):
        assert message in here("corpus", *arguments, "--output", tmp_path / "refused", code=2)
        assert not list(tmp_path.glob("refused*"))


@pytest.mark.slow
def test_weights_and_long_documents(tmp_path) -> None:
    assert BuildSettings(weights="a=2,b=0.5").weights == {"a": 2.0, "b": 0.5}
    with pytest.raises(LepError, match="write NAME=W"):
        BuildSettings.given(None, {"weights": "=2"})
    long = "\n".join(article(seed, 240) for seed in range(700))
    (tmp_path / "long.txt").write_text(long)
    corpus = build_corpus([tmp_path / "long.txt"], tmp_path / "out", language="ru")
    documents = written(tmp_path / "out")
    assert len(documents) > 1
    assert max(len(d["text"]) for d in documents) <= 1_000_000
    assert corpus.written.characters == pytest.approx(len(long), rel=1e-3)
    (tmp_path / "latin.txt").write_bytes("река".encode("cp1251"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        build_corpus([tmp_path / "latin.txt"], tmp_path / "no")


@pytest.mark.parametrize("contexts", [1, 20])
def test_every_new_token_gets_its_contexts_and_no_more(adapted, contexts, tmp_path) -> None:
    """Counted by hand: tokens get the contexts that the text has; each document was needed."""
    from lep.checkpoint.reader import Checkpoint
    from lep.transfer.mappings import saved_mappings

    model = adapted.parent / "initialised"
    whole = build_corpus([SAMPLE], tmp_path / "all", dedup="none")
    settings = BuildSettings(dedup="none", cover=str(model), contexts=contexts)
    covered = build_corpus([SAMPLE], tmp_path / "covered", settings)
    checkpoint = Checkpoint(model)
    new = saved_mappings(checkpoint)["input"].new_rows().tolist()

    def uses(text: str) -> Counter:
        ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Counter(i for i in ids if i in set(new))

    everything = sum((uses(r["text"]) for r in written(tmp_path / "all")), Counter())
    kept = Counter()
    for record in written(tmp_path / "covered"):
        needed = uses(record["text"])
        assert any(kept[token] < contexts for token in needed)
        kept += needed
    assert all(kept[token] >= min(contexts, everything[token]) for token in new)
    assert covered.coverage.covered == sum(kept[token] >= contexts for token in new)
    assert covered.coverage.without_any == sum(everything[token] == 0 for token in new)
    assert f"of {len(new)} new tokens occur {contexts} times or more" in str(covered)
    assert 0 < covered.written.documents < whole.written.documents


def test_a_corpus_chosen_for_another_vocabulary_is_refused(pair, adapted, tmp_path) -> None:
    from lep.settings import PretrainSettings
    from lep.training.pretrain import pretrain

    settings = BuildSettings(dedup="none", cover=str(adapted.parent / "initialised"), contexts=1)
    build_corpus([SAMPLE], tmp_path / "corpus", settings)
    with pytest.raises(
        CorpusError,
        match=r"covers the new tokens of vocabulary \w{12}, and .* has \w{12}: make it again",
    ):
        pretrain(
            pair["base"], [tmp_path / "corpus"], tmp_path / "out", PretrainSettings(tokens=100)
        )
    with pytest.raises(CheckpointError, match="does not say which of its tokens are new"):
        build_corpus([SAMPLE], tmp_path / "out", BuildSettings(cover=str(pair["base"])))
    assert not (tmp_path / "out").exists()


def test_a_hub_data_set_is_streamed(tmp_path, monkeypatch) -> None:
    """The loader accepts a folder as a data set, so this needs no hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "news").mkdir()
    write_records(tmp_path / "news" / "train.jsonl", [{"text": article(seed)} for seed in range(9)])
    hub = f"hub:{tmp_path / 'news'}"
    assert [d.text for d in read_hub(hub)] == [article(seed) for seed in range(9)]
    corpus = build_corpus([SAMPLE, hub], tmp_path / "out", dedup="none", documents=5)
    assert corpus.sources["news"]["kept"].documents == 5
    for name, reason in ((f"{hub}@test", "test"), ("hub:nobody/nothing", "nobody/nothing")):
        with pytest.raises(CorpusError, match=f"cannot be read .*{reason}"):
            list(read_hub(name))
    write_records(tmp_path / "news" / "train.jsonl", [{"content": "no text"}])
    with pytest.raises(CorpusError, match=r"record 1: no field 'text' .fields: content"):
        list(read_hub(hub))


def test_lines_that_many_documents_have_are_removed(tmp_path) -> None:
    notice, short = "Подписывайтесь на наш канал и читайте новости", "Читать далее"
    texts = [f"{article(seed)}\n{notice}\n{short}" for seed in range(7)] + [article(7)]
    write_records(tmp_path / "news.jsonl", [{"text": text} for text in texts])
    for least, lines in ((7, 7), (8, 0), (0, 0)):
        out = tmp_path / f"out-{least}"
        corpus = build_corpus([tmp_path / "news.jsonl"], out, boilerplate=least, dedup="none")
        assert corpus.boilerplate.lines == lines
        assert corpus.boilerplate.samples == [notice] * bool(lines)
        assert ("7 lines found in 7 or more documents were removed" in str(corpus)) == (lines > 0)
        expected = [text.replace(f"{notice}\n", "") if lines else text for text in texts]
        assert sorted(record["text"] for record in written(out)) == sorted(expected)


def test_nothing_is_removed_when_the_counters_are_full(monkeypatch) -> None:
    monkeypatch.setattr("lep.corpus.boilerplate.CELLS", 64)
    monkeypatch.setattr("lep.corpus.boilerplate.MOST_CELLS", 64)
    few, many = Boilerplate(20), Boilerplate(20)
    for boilerplate, lines in ((few, 100), (many, 2_000)):
        for i in range(lines):
            boilerplate.add(f"строка, которая есть один раз, {i}")
    assert few.reliable
    assert not many.reliable
    assert many.report().too_many_lines_to_tell


@given(
    st.lists(st.lists(st.sampled_from([line * 7 for line in "абвгд"]), max_size=6), max_size=12),
    st.integers(1, 5),
)
def test_lines_are_counted_once_a_document(documents, least) -> None:
    counter = Boilerplate(least)
    for lines in documents:
        counter.add("\n".join(line * 3 for line in lines))
    for lines in documents:
        expected = [x * 3 for x in lines if sum(x in other for other in documents) < least]
        assert counter.without("\n".join(line * 3 for line in lines)) == "\n".join(expected)


def parts_with_near_duplicates(folder: Path) -> list[str]:
    """Three files of 90 documents, 20 near duplicates and faults; returns the documents."""
    rng, documents = random.Random(0), [article(seed) for seed in range(90)]
    near = [
        " ".join(rng.choice(WORDS) if i == 60 else word for i, word in enumerate(text.split()))
        for text in documents[:20]
    ]
    folder.mkdir()
    for part in range(3):
        texts = documents[30 * part : 30 * part + 30] + near[part::3] + ["коротко", "<b>" * 40, ""]
        write_records(folder / f"wiki{part}.jsonl", [{"text": text} for text in texts])
    return documents


@pytest.mark.slow
def test_tasks_keep_what_one_machine_keeps(here, tmp_path) -> None:
    """Cleaned in parts, near duplicates found across them; then mixed like any corpus."""
    documents = parts_with_near_duplicates(tmp_path / "raw")
    in_tasks = ("--language", "ru", "--executor", "local", "--tasks", 3)
    printed = here("corpus", tmp_path / "raw", *in_tasks, "--output", tmp_path / "clean")
    assert "Mix and shuffle the result" in printed
    assert all(d.group == d.id.partition("/")[2] for d in read_documents([tmp_path / "clean"]))
    mixing = ("--dedup", "exact", "--weights", "wiki*=2")
    here("corpus", tmp_path / "clean", *mixing, "--output", tmp_path / "out")
    records = written(tmp_path / "out")
    once = [record["text"] for record in records if not record["id"].endswith("+1")]
    assert len(records) == 2 * len(once)
    assert len(once) == 90
    families = {text.split()[0] + text.split()[5] for text in map(plain, documents)}
    # One of each, whichever it is.
    assert {text.split()[0] + text.split()[5] for text in once} == families
    (tmp_path / "broken.jsonl").write_text("{\n")
    for message, source, output, *options in (
        ("needs --partition", "raw", "no", "slurm"),
        ("Slurm did not accept the jobs", "raw", "no", "slurm", "--partition", "nowhere"),
        ("--executor is 'ray'", "raw", "no", "ray"),
        ("--weights is not for --executor", "raw", "no", "local", "--weights", "wiki=2"),
        ("was begun with other files", "raw", "clean", "local", "--tasks", "4"),
        ("broken.jsonl, line 1: not JSON", "broken.jsonl", "broken", "local", "--tasks", "1"),
    ):
        paths = (tmp_path / source, "--output", tmp_path / output)
        assert message in here("corpus", *paths, "--executor", *options, code=2)


@pytest.mark.slow
def test_slurm_keeps_what_tasks_on_one_machine_keep(tmp_path, monkeypatch) -> None:
    """On a real Slurm of one node; where a job fails, those after it do not wait for it."""
    parts_with_near_duplicates(tmp_path / "raw")
    options = {"language": "ru", "tasks": 3}
    clean_corpus([tmp_path / "raw"], tmp_path / "local", executor="local", **options)
    with one_node_slurm(tmp_path / "slurm") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        on_slurm = {"executor": "slurm", "partition": PARTITION, **options}
        corpus = clean_corpus([str(tmp_path / "raw")], tmp_path / "out", **on_slurm)
        assert str(corpus).startswith(
            "When its jobs are done, mix and shuffle the result: lep corpus"
        )
        wait_for_jobs(environment, 900)
        results = [list(read_documents([tmp_path / name])) for name in ("out", "local")]
        assert len(results[0]) == 90
        assert results[0] == results[1]
        last = tmp_path / "out.work" / "logs" / "4" / "completions" / "00002"
        for lost in (last, *(tmp_path / "out").glob("wiki2*")):
            lost.unlink()
        clean_corpus([tmp_path / "raw"], tmp_path / "out", **on_slurm)  # the last task only
        wait_for_jobs(environment, 900)
        assert list(read_documents([tmp_path / "out"])) == results[1]
        (tmp_path / "broken.jsonl").write_text("{\n")
        clean_corpus([tmp_path / "broken.jsonl"], tmp_path / "broken", **on_slurm)
        wait_for_jobs(environment, 900)
    logs = (tmp_path / "broken.work" / "logs").rglob("*.out")
    assert any("broken.jsonl, line 1: not JSON" in log.read_text() for log in logs)
    assert not (tmp_path / "broken").exists()


def test_slurm_is_given_one_job_after_another(tmp_path, monkeypatch) -> None:
    """What is handed to sbatch, by a stand-in that writes it down and numbers the jobs."""
    sbatch, calls = tmp_path / "bin" / "sbatch", tmp_path / "calls"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {calls}; wc -l < {calls}\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    raw = raw_corpus(tmp_path / "raw")
    settings = ClusterSettings(executor="slurm", partition="cpu", tasks=4)
    run_stages([str(raw)], tmp_path / "out", settings)
    jobs = [line for line in calls.read_text().splitlines() if "--export" in line]
    assert ["--dependency=afterok" in job for job in jobs] == [False, True, True, True, True]
    paths = sorted((tmp_path / "out.work").rglob("launch_script.slurm"))
    scripts = [path.read_text() for path in paths]
    arrays = [re.search(r"--array=0-(\d+)", script)[1] for script in scripts]
    assert arrays == ["3", "3", "19", "0", "3"]
    assert all("--partition=cpu" in script for script in scripts)
    assert all("--kill-on-invalid-dep=yes" in script for script in scripts)
