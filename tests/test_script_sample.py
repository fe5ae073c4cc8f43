"""The script of new tokens is the one of most letters, wherever in the files they are."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from lep.corpus.read import sample_texts, write_records
from lep.tokenizer import count

EN, RU = "a river and a forest\n", "река и лес, поле и дом\n"
CORPORA = {  # texts of the files, in order of their names
    "the first file is longer than the sample": [EN * 2_000, *[RU * 500] * 6],
    "most files are small and in another script": [*[EN * 10] * 60, RU * 2_000],
    "most bytes are of the script of fewer letters": [RU * 1_000, EN * 1_500],
    "a few files among very many": [*[EN] * 300, *[RU * 2] * 300, *[EN] * 100],
}


def script_of_most_letters(texts: list[str]) -> str:
    names = Counter(unicodedata.name(c).split()[0] for t in texts for c in t if c.isalpha())
    return names.most_common(1)[0][0].capitalize()


def written(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        if number % 2:
            (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")
        else:
            write_records(
                folder / f"{number:04}.jsonl", [{"text": text[:400]}, {"text": text[400:]}]
            )
    return folder


@pytest.mark.parametrize("texts", CORPORA.values(), ids=CORPORA)
def test_the_script_is_that_of_most_letters_in_all_files(
    byte_level, texts, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(count, "SCRIPT_SAMPLE_BYTES", 20_000)
    monkeypatch.setattr(count, "SCRIPT_SAMPLE_CHARACTERS", 10_000)
    expected = script_of_most_letters(texts)
    words = count.count_words(byte_level, [written(tmp_path / "text", texts)])
    assert words.script == expected
    assert words.characters == sum(map(len, texts))
    assert count.count_texts(byte_level, texts).script == expected  # a list, as samples are


def test_a_sample_is_bounded_and_takes_more_of_larger_files(tmp_path) -> None:
    letters = [chr(ord("一") + i) for i in range(500)]
    folder = written(tmp_path / "text", [letter * 3_000 for letter in letters])
    taken = Counter("".join(sample_texts([folder], 60_000)))
    assert sum(taken.values()) == 20_000  # of three bytes
    assert len(taken) == 200
    assert set(taken.values()) == {100}
    numbers = sorted(letters.index(letter) for letter in taken)
    assert numbers[0] < 5
    assert numbers[-1] >= 495
    uneven = written(tmp_path / "uneven", ["a" * 30_000, "b" * 10_000])
    assert Counter("".join(sample_texts([uneven], 4_000))) == {"a": 3_000, "b": 1_000}
