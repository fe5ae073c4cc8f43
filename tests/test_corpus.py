"""Reading, splitting, cutting, sampling, and the tasks made from text."""

import hashlib
import json
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lep.corpus.clean import fault, plain
from lep.corpus.files import corpus_files, source_names
from lep.corpus.language import dominant_script, in_language, script_share
from lep.corpus.prepare import _Bounded, drawn, prepare, sample, sections, unit_hash, windows
from lep.corpus.read import Document, read_documents
from lep.corpus.tasks import TASKS, make_tasks, paragraphs, sentences
from lep.errors import CorpusError, LepError
from lep.settings import TaskName

SAMPLE = Path(__file__).parent.parent / "lab" / "text" / "train"


def document(text: str, name: str = "d", source: str = "s") -> Document:
    return Document(name, text, source, name)


def test_every_format_reads_the_same(tmp_path) -> None:
    records = ({"id": i, "text": text} for i, text in enumerate(["один", "two"]))
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "c.txt").write_text("три", encoding="utf-8")
    (tmp_path / "readme.md").write_text("not a corpus file")
    assert [d.text for d in read_documents([tmp_path])] == ["один", "two", "один", "two", "три"]
    (tmp_path / "d.txt.jsonl").write_bytes(lines)  # the last ending counts
    assert [d.text for d in read_documents([tmp_path / "d.txt.jsonl"])] == ["один", "two"]
    assert next(iter(read_documents([tmp_path / "b.jsonl.zst"]))).id == "b/0"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"tex', r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "a"}\n', r"a.jsonl, line 1: no field 'text' \(fields: body\)"),
        ("a.jsonl", b"[1]\n", r"line 1: a list where an object was expected"),
        ("a.txt", "день".encode("cp1251"), r"a.txt is not UTF-8"),
        ("a.jsonl", "день".encode("cp1251"), r"a.jsonl is not UTF-8"),
        ("a.jsonl.zst", b"nonsense", r"is not a readable zst file"),
        ("a.txt", b"  \n ", r"the corpus holds no text at all"),
        ("a.txt", "день ".encode("utf-16-le") * 50, r"a.txt is UTF-16 or no text"),
        (
            "a.txt.zst",
            zstandard.compress("".join(map(chr, range(97, 123))).encode("utf-16-le") * 9_000),
            r"a.txt.zst is UTF-16 or no text",
        ),
        ("a.doc", b"text", r"a.doc is none of .txt"),
    ],
)
def test_bad_corpora_are_named(name, content, message, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents([tmp_path / name]))


def test_rows_without_text_are_empty_documents(tmp_path) -> None:
    lines = ['{"text": null}', '{"text": ""}', '{"text": "день"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [(d.id, d.text) for d in read_documents([tmp_path])] == [("a/3", "день")]


def test_missing_corpora(tmp_path) -> None:
    with pytest.raises(CorpusError, match="there is no file or folder"):
        list(read_documents([tmp_path / "none.txt"]))
    with pytest.raises(CorpusError, match=r"holds no \.txt"):
        list(read_documents([tmp_path]))


@given(st.text("ab \n", max_size=200), st.integers(1, 50))
def test_sections_keep_all_text_but_white_space_between(text, limit) -> None:
    pieces = sections(document(text), limit)
    if text.strip():
        assert "".join("".join(p.text.split()) for p in pieces) == "".join(text.split())
    for piece in pieces:
        assert len(piece.text) <= max(limit, *(len(line) for line in text.split("\n")), 0) + 1


def test_windows_of_text_without_line_ends() -> None:
    """Windows come from many documents, at the ends of sentences or words where there are any."""
    sentences = ["The lake was quiet in the morning. ", "湖边很安静。", "ทะเลสาบ"]
    for sentence, end in zip(sentences, (". ", "。", ""), strict=True):
        books = [document(sentence * 4_000, name=f"book {i}", source="s") for i in range(5)]
        cut = windows(books, 24_000, 800)
        assert max(len(window.text) for window in cut) <= 6_400
        assert len({window.id.split("#")[0] for window in cut}) >= 3
        assert all((window.text + " ").endswith(end) or window.id.count("#") > 1 for window in cut)
        whole = sum(
            window.text.replace(" ", "") in books[0].text.replace(" ", "") for window in cut
        )
        assert whole == len(cut)
    short = document("\n".join(["A line of a poem."] * 400))
    assert windows([short], 10**6, 800) == windows([short], 10**6, 800)
    assert max(len(window.text) for window in windows([short], 10**6, 800)) <= 800


def test_files_of_one_name_are_sources_of_their_own(tmp_path) -> None:
    """The hub's data sets have `train-00000-of-00001.parquet` in every folder."""
    for folder in ("wiki", "news"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(json.dumps({"text": folder * 9}) + "\n")
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": "own"}) + "\n")
    read = list(read_documents([tmp_path]))
    assert {d.source for d in read} == {"wiki/train", "news/train", "own"}
    assert len({d.id for d in read}) == 3
    for folder in ("wiki", "news"):  # as the hub's cache has them
        (tmp_path / "cache" / folder).mkdir(parents=True)
        link = tmp_path / "cache" / folder / "train.jsonl"
        link.symlink_to(tmp_path / folder / "train.jsonl")
    files = corpus_files([tmp_path / "cache"])
    assert [*source_names(files).values()] == ["news/train", "wiki/train"]
    formats = [Path("a/x.jsonl"), Path("a/x.parquet"), Path("b/x.jsonl")]
    assert [*source_names(formats).values()] == ["a/x", "a/x", "b/x"]


def test_groups_are_never_split() -> None:
    documents = [Document(f"d{i}", f"text {i}", "s", f"author{i % 7}") for i in range(100)]
    split = prepare(documents, heldout_share=0.4)
    assert {d.group for d in split.train}.isdisjoint({d.group for d in split.heldout})
    assert len(split.train) + len(split.heldout) == 100


@pytest.mark.parametrize("limit", [None, 30])
def test_of_few_groups_one_is_held_out(limit: int | None) -> None:
    """The one with the smallest hash, whole, wherever its documents stand."""
    documents = [Document(f"d{i}", f"text {i}", "s", f"author{i % 5}") for i in range(15)]
    groups = {document.group for document in documents}
    smallest = min(groups, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    split = prepare(documents, heldout_share=1e-6, limit_characters=limit)
    assert {d.id for d in split.heldout} == {d.id for d in documents if d.group == smallest}
    assert smallest not in {d.group for d in split.train}
    assert len(split.train) == 12 if limit is None else split.train


def test_of_one_text_the_end_is_held_out() -> None:
    """A tenth of its sections, the last ones."""
    book = document("".join(f"{number:04}" * 900 + "\n" for number in range(40)), "book", "s")
    split = prepare([book], heldout_share=0.1)
    assert [d.text[:4] for d in sorted(split.heldout, key=lambda d: d.text)] == [
        "0036", "0037", "0038", "0039",
    ]  # fmt: skip
    assert {d.text[:4] for d in split.train} == {f"{number:04}" for number in range(36)}


@pytest.mark.parametrize("group", ["wiki", "data"])  # whose hashes are .073 and more than .1
def test_of_one_text_the_end_is_held_out_whatever_its_name(group: str) -> None:
    assert (unit_hash(group) < 0.1) is (group == "wiki")
    book = document("".join(f"{number:04}" * 900 + "\n" for number in range(40)), group, "s")
    split = prepare([replace(book, group=group)], heldout_share=0.1)
    assert {d.text[:4] for d in split.heldout} == {"0036", "0037", "0038", "0039"}
    assert len(split.train) == 36


def test_windows_come_from_many_documents() -> None:
    """Of fifty books, not all windows are of the one with the smallest hash."""
    books = [document(("ж" * 79 + "\n") * 2_000, f"book{i}") for i in range(50)]
    found = windows(books, 100_000, 800)
    assert sum(len(window.text) for window in found) >= 100_000
    assert len({window.group for window in found}) > 15


def test_what_is_trained_on_word_for_word_is_not_held_out(recwarn) -> None:
    twice = [Document(f"d{i}", f"text {i % 40}", "s", f"d{i}") for i in range(80)]
    split = prepare(twice, heldout_share=0.3)
    trained = {d.text for d in split.train}
    held = [d for d in twice if unit_hash(d.group) < 0.3]
    assert {d.text for d in split.heldout} == {d.text for d in held} - trained
    assert len(split.heldout) < len(held)
    (warning,) = recwarn
    dropped = len(held) - len(split.heldout)
    assert f"{dropped} of {len(held)} held-out sections are trained on word" in str(warning.message)


def test_the_split_is_fixed_forever() -> None:
    # If this number changes, models have seen what is held out.
    assert unit_hash("novels/Anton") == pytest.approx(0.376642, abs=1e-6)


def test_sampling_respects_limits() -> None:
    documents = [document("x" * 100, f"{source}{i}", source) for source in "ab" for i in range(50)]
    taken = sample(documents, 2000, source_share=0.3)
    assert sum(len(d.text) for d in taken) == 1200
    assert taken == sample(list(reversed(documents)), 2000, source_share=0.3)
    with pytest.raises(CorpusError, match="held-out side of the split is empty"):
        prepare(documents[:1], heldout_share=1e-6)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=4, max_size=60),
    st.floats(0.2, 1),
)
def test_what_a_limit_leaves_out_is_not_remembered(shapes, share) -> None:
    documents = [
        Document(f"{s}/{i}", "ж" * size, str(s), f"{i}") for i, (s, size) in enumerate(shapes)
    ]
    for each, most in ((None, 100), (share, 100 * share)):
        kept = _Bounded(100, each)
        kept.extend(documents)
        assert sample(kept.documents, 100, share) == sample(documents, 100, share)
        for source in "012":
            assert sum(len(d.text) for d in kept.documents if d.source == source) < most + 40
    kept = _Bounded(100, 1)
    kept.extend(documents)
    assert sample(kept.documents, 100) == sample(documents, 100)
    assert sum(len(d.text) for d in kept.documents) < 100 + 40
    whole = _Bounded(None)
    whole.extend(documents)
    assert sample(whole.documents, None) == sample(documents, None)


def split_in_memory(documents: list[Document], share: float) -> tuple[list, list]:
    """Training and held-out sections of all text: by hash, one group at least on each side."""
    hashes = {d.group: unit_hash(d.group) for d in documents}
    cut = [section for each in documents for section in sections(each)]
    if len(hashes) == 1:
        stop = len(cut) - max(1, round(share * len(cut)))
        return cut[: max(1, stop)], cut[max(1, stop) :]
    first, *_, last = sorted(hashes, key=hashes.__getitem__)
    low = {g for g in hashes if g != last and (hashes[g] < share or g == first)}
    return [s for s in cut if s.group not in low], [s for s in cut if s.group in low]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(1, 60)), min_size=2, max_size=60
    ),
    st.sampled_from([1e-6, 0.1, 0.4, 0.999999]),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([None, 1, 50, 400]),
    st.sampled_from([None, 1, 50]),
)
def test_limits_choose_what_they_would_choose_of_all_text(
    shapes, share, part, train, heldout
) -> None:
    documents = [
        Document(f"{s}/{i}", f"{i} " + "ж" * size, str(s), f"g{group}")
        for i, (s, group, size) in enumerate(shapes)
    ]
    sides = split_in_memory(documents, share)
    limits = {"limit_characters": train, "limit_heldout_characters": heldout}
    split = prepare(iter(documents), heldout_share=share, source_share=part, **limits)
    assert split.train == sample(sides[0], train, part)
    assert split.heldout == sample(sides[1], heldout, part)


def test_memory_holds_the_limit_of_training_text_once_for_all_sources() -> None:
    alive, most = weakref.WeakSet[Document](), 0

    def documents() -> Iterator[Document]:
        nonlocal most
        for i in range(2_000):
            each = Document(f"{i % 50}/{i}", f"{i:>500}", f"{i % 50}", f"g{i}")
            alive.add(each)
            most = max(most, len(alive))
            yield each

    split = prepare(documents(), limit_characters=20_000, limit_heldout_characters=500)
    assert len(split.train) == 40
    assert most <= 40 + 50 + 5  # held-out text is held for each source


def test_documents_are_drawn_in_a_fixed_random_order() -> None:
    documents = [Document(f"d{i}", "x" * 10, "s", f"d{i}") for i in range(100)]
    chosen = drawn(documents, 201, "en")
    assert len(chosen) == 21
    assert len(drawn(documents, 200, "en")) == 20
    assert chosen == drawn(reversed(documents), 201, "en") != documents[:21]
    assert chosen == drawn(documents, 500, "en")[:21]  # more adds to the same
    message = "asks for 1,001 characters of 'en', and its training text has 1,000: lower"
    with pytest.raises(CorpusError, match=message):
        drawn(documents, 1001, "en")


def test_scripts() -> None:
    assert dominant_script("Привет, world! Мир.") == "Cyrillic"
    assert dominant_script("123 ...") is None
    assert script_share("аb", "Cyrillic") == 0.5
    assert in_language("Hello there", "en")
    assert not in_language("Hello there", "ru")
    assert in_language("anything", "xx")


def test_sentences_and_paragraphs() -> None:
    text = "Первое предложение.  Второе!\nещё строка? «Третье…» Конец\n\nНовый абзац."
    assert paragraphs(text) == [
        "Первое предложение. Второе! ещё строка? «Третье…» Конец",
        "Новый абзац.",
    ]
    assert sentences(text)[:2] == ["Первое предложение.", "Второе! ещё строка?"]


@pytest.mark.parametrize("language", ["ru", "en"])
def test_tasks_have_one_correct_answer(language) -> None:
    documents = list(read_documents([SAMPLE / language]))
    items = make_tasks(documents, language, list(TASKS), count=40, seed=1)
    assert {item.task for item in items} == set(TASKS)
    text = " ".join(" ".join(d.text.split()) for d in documents)
    for item in items:
        shown = item.question.split(": " if item.task.startswith("copy") else "? ", 1)[1]
        assert shown in text
        if item.task.startswith("copy"):
            assert item.answer == shown
        elif item.task == "word_after":
            word = item.question.split("? ")[0].removesuffix(" in this sentence").split()[-1]
            words = re.findall(r"[^\W\d_][\w'’-]*", shown)
            assert words.count(word) == 1
            assert words[words.index(word) + 1] == item.answer
        else:
            assert item.answer in shown
    assert items == make_tasks(documents, language, list(TASKS), count=40, seed=1)
    assert items != make_tasks(documents, language, list(TASKS), count=40, seed=2)


# Two sentences of each language, and the last word of the first; None where words have no spaces.
SCRIPTS = {
    "ar": (
        "ينبع النهر من الجبال ويصب في البحر بعد رحلة طويلة.",
        "هل تعرف اسم هذا النهر القديم؟",
        "طويلة",
    ),
    "am": ("ወንዙ ከተራሮች ይነሳል እና ወደ ባሕር ይፈስሳል።", "በዳርቻው ብዙ ጥንታዊ መንደሮች አሉ ይባላል።", "ይፈስሳል"),
    "el": (
        "Το ποτάμι πηγάζει από τα βουνά της χώρας.",
        "Στις όχθες του υπάρχουν παλιά χωριά.",
        "χώρας",
    ),
    "es": ("¿Sabes cómo se llama este río?", "Nace en las montañas y desemboca en el mar.", "río"),
    "he": ("הנהר זורם מן ההרים אל הים ועובר ליד כפרים.", "האם אתה יודע את שם הנהר הזה?", "כפרים"),
    "hi": ("नदी पहाड़ों से निकलती है और समुद्र में मिलती है।", "उसके किनारे पर कई पुराने गाँव बसे हैं।", "है"),
    "ja": (
        "この川は山から流れ出て、最後に海に注ぎます。",
        "コーヒーを飲みながら川の話をしました。",
        None,
    ),
    "ka": (
        "მდინარე მთებიდან მოედინება და ზღვაში ჩაედინება.",
        "მის ნაპირზე ბევრი ძველი სოფელია.",
        "ჩაედინება",
    ),
    "km": ("ទន្លេហូរចេញពីភ្នំហើយហូរចូលសមុទ្រ។", "នៅតាមច្រាំងមានភូមិចាស់ៗជាច្រើន។", None),
    "ko": (
        "이 강은 산에서 시작되어 바다로 흘러갑니다.",
        "우리는 강가에서 자주 놀았습니다.",
        "흘러갑니다",
    ),
    "my": ("မြစ်သည် တောင်များမှ စီးဆင်းလာပြီး ပင်လယ်ထဲသို့ စီးဝင်သည်။", "ကမ်းနားတွင် ရွာဟောင်းများစွာ ရှိသည်။", None),
    "th": ("แม่น้ำสายนี้ไหลมาจากภูเขาและไหลลงสู่ทะเล", "เราเคยเล่นน้ำริมแม่น้ำตอนเป็นเด็กบ่อยมาก", None),
    "ur": (
        "یہ دریا پہاڑوں سے نکل کر سمندر میں گرتا ہے۔",
        "اس کے کنارے بہت پرانے گاؤں آباد ہیں۔",
        "ہے",
    ),
    "zh": ("这条河从山里流出来，最后流进大海。", "你知道这条河叫什么名字吗？", None),
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_tasks_in_every_script(language) -> None:
    """Sentences end and begin with other signs; where words have no spaces they are not asked."""
    first, second, last = SCRIPTS[language]
    assert sentences(f"{first} {second}") == [first, second]
    documents = [Document("1", f"{first} {second} " * 4, "file", "1")]
    items = make_tasks(documents, language, list(TASKS), count=5, seed=0)
    words = {"first_word", "last_word", "word_after"} if last else set()
    assert {item.task for item in items} == {"copy_sentence", "copy_paragraph"} | words
    assert {i.answer for i in items if i.task == "copy_sentence"} == {first, second}
    if last:
        assert last in {i.answer for i in items if i.task == "last_word"}
        assert first.lstrip("¿").split()[0] in {i.answer for i in items if i.task == "first_word"}
    else:
        with pytest.raises(CorpusError, match="no spaces between words, so it gives no item of"):
            make_tasks(documents, language, ["last_word"], count=5, seed=0)


@pytest.mark.parametrize("language", SCRIPTS)
def test_prose_of_every_script_is_kept(language) -> None:
    """Vowel signs are spelling, and a wide character is as much as two."""
    first, second, _ = SCRIPTS[language]
    text = f"{first} {second} " * 5
    assert fault(text, language) is None
    assert plain(text) == text.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("می\u200cخواهم", "می\u200cخواهم"),  # joiners are spelling
        ("ශ්\u200dරී", "ශ්\u200dරී"),
        ("ab\u200ccd \u200d", "abcd"),  # and elsewhere not
        ("详见：https://example.com/a。下一句", "详见：。下一句"),  # the sentence goes on
        ("详见https://example.com/a。", "详见。"),
        ("See https://example.com/a?b=c, and go on.", "See and go on."),
    ],
)
def test_what_plain_text_keeps(text, expected) -> None:
    assert plain(text) == expected


def test_records_without_an_id_are_told_apart(tmp_path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text('{"id": null, "text": "a"}\n{"id": null, "text": "b"}\n')
    assert len({(d.id, d.group) for d in read_documents([path])}) == 2
    path.write_text('{"id": 1, "text": 7}\n')
    with pytest.raises(CorpusError, match="the field 'text' is 7, and no string"):
        list(read_documents([path]))


def test_tasks_from_text_in_another_language() -> None:
    with pytest.raises(CorpusError, match="the ru text gives no copy_sentence item"):
        make_tasks(read_documents([SAMPLE / "en"]), "ru", ["copy_sentence"], count=5, seed=0)
    with pytest.raises(LepError, match="unknown task 'dance'"):
        make_tasks([], "ru", ["dance"], count=5, seed=0)


def test_settings_name_the_tasks_there_are() -> None:
    assert get_args(TaskName) == tuple(TASKS)
