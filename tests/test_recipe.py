"""Recipes: what is wrong is named with file, line and the nearest valid key."""

import re
from pathlib import Path

import pytest

from lep.errors import RecipeError
from lep.pipeline.recipe_file import as_yaml, load_grid, load_recipe

RECIPE = """\
name: test
base: models/base
instruct: models/instruct
language: ru
text:
  ru: text
  no: text
tokenizer: {new_tokens: 1_000}
pretrain:
  tokens: 10_000_000
  learning_rate: 1e-4
tune:
  after: swap
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    (folder / "text").mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_values_are_typed(tmp_path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.pretrain.learning_rate == 1e-4  # a string to plain PyYAML
    assert (recipe.pretrain.tokens, recipe.tokenizer.new_tokens) == (10_000_000, 1000)
    assert list(recipe.text) == ["ru", "no"]  # Norwegian, not False
    assert recipe.text["ru"] == [str(tmp_path / "text")]
    assert recipe.base == "models/base"  # not there: perhaps a hub id
    assert recipe.tune is not None
    assert recipe.tune.copy_tasks == 2000


def test_octal_looking_numbers_are_decimal(tmp_path) -> None:
    recipe = load_recipe(write(tmp_path, RECIPE.replace("1_000", "012")))
    assert recipe.tokenizer.new_tokens == 12


def test_overrides(tmp_path) -> None:
    recipe = load_recipe(
        write(tmp_path), ["pretrain.tokens=500", "tune.learning_rate=3e-4", "propagate=[swap]"]
    )
    assert load_recipe(write(tmp_path), ["tune=null"]).tune is None
    assert (recipe.pretrain.tokens, recipe.tune.learning_rate, recipe.propagate) == (
        500,
        3e-4,
        ["swap"],
    )


def test_environment(tmp_path, monkeypatch) -> None:
    text = RECIPE.replace("ru: text", "ru: ${LEP_TEST_DATA:-text}/x")
    assert load_recipe(write(tmp_path, text)).text["ru"] == ["text/x"]
    monkeypatch.setenv("LEP_TEST_DATA", "/data")
    assert load_recipe(write(tmp_path, text)).text["ru"] == ["/data/x"]
    monkeypatch.delenv("LEP_TEST_DATA")
    with pytest.raises(
        RecipeError, match="line 6: the environment variable LEP_TEST_DATA is not set"
    ):
        load_recipe(write(tmp_path, text.replace(":-text", "")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  tokens:",
            "  tokns:",
            r"recipe.yaml, line 10: unknown key 'pretrain.tokns'; did you mean 'tokens'\?",
        ),
        (
            "tokenizer:",
            "tokeniser:",
            r"recipe.yaml, line 8: unknown key 'tokeniser'; did you mean 'tokenizer'\?",
        ),
        ("name: test", "xyzzy: test", r"unknown key 'xyzzy'; the valid ones are name, title"),
        (
            "base: models/base\n",
            "",
            r"recipe.yaml, line 8: pretrain is part of training a base model, and base is not set",
        ),
        (
            "pretrain:\n  tokens: 10_000_000\n  learning_rate: 1e-4\n",
            "",
            r"recipe.yaml, line 2: base has no pretrain: say there how the base model is trained",
        ),
        (
            "10_000_000",
            "many",
            r"recipe.yaml, line 10: pretrain.tokens is 'many': input should be a valid integer",
        ),
        (
            "10_000_000",
            "-5",
            r"recipe.yaml, line 10: pretrain.tokens is '-5': input should be greater than 0",
        ),
        ("language: ru", "language: fr", r"line 4: language is 'fr', and text has only ru, no"),
        (
            "10_000_000",
            "10_000_000\n  replay: {ru: 1}",
            r"line 11: replay has 'ru', and the old languages of text are no",
        ),
        (
            "10_000_000",
            "10_000_000\n  replay: {no: 0}",
            r"line 11: pretrain.replay.no is '0': input should be greater",
        ),
        (
            "after: swap",
            "after: jump",
            r"line 13: tune.after is 'jump': input should be 'swap', 'overlap', 'conversion'",
        ),
        (
            "name: test",
            "name: test\nevaluate:\n  tasks: [last_word, sing]",
            r"line 3: evaluate.tasks.1 is 'sing': input should be 'copy_sentence', .*'word_after'",
        ),
        ("name: test", "name: test\nname: again", r"line 2: the key 'name' is there twice"),
        ("name: test", "name: [", r"is not valid YAML"),
    ],
)
def test_faults_are_located(old, new, message, tmp_path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, RECIPE.replace(old, new)))
    assert re.search(message, str(caught.value)), str(caught.value)


def test_wrong_overrides(tmp_path) -> None:
    path = write(tmp_path)
    with pytest.raises(
        RecipeError,
        match=r"command line, pretrain.tkens=5: unknown key 'pretrain.tkens'; did you mean",
    ):
        load_recipe(path, ["pretrain.tkens=5"])
    with pytest.raises(RecipeError, match="'tokens' is not of the form key=value"):
        load_recipe(path, ["tokens"])
    with pytest.raises(RecipeError, match="tune comes after 'swap', which propagate does not list"):
        load_recipe(path, ["propagate=[overlap]"])
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "recipe",
    sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml")),
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_the_repositorys_recipes_are_valid(recipe, monkeypatch) -> None:
    monkeypatch.setenv("LEP_DATA", "/data")
    assert load_recipe(recipe).name == recipe.stem


SHORT = """\
name: x
base: b
instruct: i
language: ru
text: {ru: t}
tokenizer: {new_tokens: 1}
pretrain: {epochs: 1}
"""


ADAPT = """\
name: x
instruct: i
language: ru
text: {ru: t, en: e}
tokenizer: {new_tokens: 1}
adapt: {tokens: 500}
"""


def test_a_recipe_without_a_base(tmp_path) -> None:
    """Only `adapt`: no base model, and nothing is carried over. `adapt` beside a base: both."""
    path = tmp_path / "r.yaml"
    path.write_text(ADAPT)
    recipe = load_recipe(path)
    assert (recipe.base, recipe.pretrain, recipe.propagate) == (None, None, [])
    assert recipe.adapt is not None
    assert (recipe.adapt.train, recipe.adapt.relative_rate) == ("new_rows", 0.12)
    assert load_recipe(path, ["adapt.epochs=2"]).adapt.tokens is None
    both = load_recipe(path, ["base=b", "pretrain.tokens=7"])
    assert both.propagate == ["swap", "overlap", "conversion"]
    path.write_text(f"{ADAPT}grid: {{seeds: [3, 4]}}\n")
    assert [cell.recipe.adapt.seed for cell in load_grid(path).cells] == [3, 4]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapt=null"], "line 1: the recipe trains nothing: give adapt .* or base and pretrain"),
        (["pretrain.tokens=5"], "pretrain is part of training a base model, and base is not set"),
        (["base=b"], "base=b: base has no pretrain: say there how the base model is trained"),
        (["base=b", "pretrain.tokens=5", "propagate=[]"], "propagate is empty: name how the base"),
        (["propagate=[swap]"], "propagate is part of training a base model, and base is not set"),
        (["direct=true"], "direct is part of training a base model, and base is not set: give the"),
        (["calibrate={}"], "calibrate is part of training a base model, and base is not set"),
        (["tune={}"], "tune is part of training a base model, and base is not set"),
        (
            ["text={ru: t}"],
            "line 6: text has only ru, and the mixture has text and answers of a language that the "
            "model knows: give its text, or set adapt.shares=old_text=0,old_answers=0",
        ),
        (["text={ru: t}", "adapt.shares=old_text=0"], "or set adapt.shares=old_answers=0"),
        (["adapt.shares=txt=1"], "adapt.shares=txt=1: no stream is 'txt'; did you mean 'text'"),
        (["adapt.shares=text=0"], "the share of text is 0: the training needs new text"),
        (
            ["adapt.prompt_tasks=0", "adapt.own_prompts=0"],
            "there is nothing to answer: give prompt",
        ),
        (["adapt.tokens=null"], "line 6: adapt: give tokens or epochs .* neither is given"),
        (["adapt.old_text=e"], "unknown key 'adapt.old_text'"),  # a stage fills it in
        (["adapt.eval_text.ru=e"], "unknown key 'adapt.eval_text'"),
        (["adapt.looks_share=1"], "adapt.looks_share is '1': input should be less than 1"),
        (
            ["adapt.from_pack=p", "base=b", "pretrain.tokens=5"],
            "a pack brings its own tokens, not those of a base: leave base and pretrain out",
        ),
        (["adapt.after=swap"], "adapt comes after 'swap', which propagate does not list"),
        (
            ["adapt.after=direct", "base=b", "pretrain.tokens=5"],
            "adapt.after is 'direct': input should be 'swap'",
        ),
    ],
)
def test_faults_of_joint_training(overrides, message, tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(ADAPT)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_one_language_is_enough_without_old_streams(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(ADAPT)
    changes = ["text={ru: t}", "adapt.shares=old_text=0,old_answers=0"]
    assert load_recipe(path, changes).old_languages == []


def test_the_last_word_on_how_much_is_trained_counts(tmp_path) -> None:
    """`tokens` and `epochs` exclude each other: the command line replaces that of the recipe."""
    path = tmp_path / "r.yaml"
    path.write_text(SHORT)
    assert load_recipe(path, ["pretrain.tokens=500"]).pretrain.tokens == 500
    with pytest.raises(RecipeError, match="both are given"):
        load_recipe(path, ["pretrain.tokens=500", "pretrain.epochs=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("propagate=[swap", r"cannot be read \(while parsing .*\): close its brackets"),
        (
            "evaluate.speed=8",
            r"evaluate.speed compares models: give --speed to lep evaluate after the run",
        ),
    ],
)
def test_overrides_that_cannot_be_followed(override, message, tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SHORT)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, [override])


def test_a_recipe_that_was_read_takes_no_more_overrides(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SHORT)
    recipe = load_recipe(path)
    assert load_grid(recipe).cells[0].recipe is recipe
    assert load_grid(load_grid(path)).is_single
    with pytest.raises(RecipeError, match=r"give pretrain.tokens=5 when the recipe is read"):
        load_grid(recipe, ["pretrain.tokens=5"])


def test_paths_are_found_beside_the_recipe(tmp_path) -> None:
    """Those of every setting that names a file; what is not there may be a hub id."""
    (tmp_path / "f").mkdir()
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\nbase: f\ninstruct: f\nlanguage: ru\ntext: {ru: [f, g]}\nheldout: {ru: f}\n"
        "tokenizer: {new_tokens: 1}\npretrain: {epochs: 1, eval_text: {ru: [f]}}\n"
        "calibrate: {prompts: f, judge: f}\ntune: {data: f}\nevaluate: {benchmark: {data: f}}\n"
    )
    recipe, folder = load_recipe(path), str(tmp_path / "f")
    assert recipe.calibrate is not None
    assert recipe.tune is not None
    assert recipe.text == {"ru": [folder, "g"]}
    assert recipe.heldout == recipe.pretrain.eval_text == {"ru": [folder]}
    assert {recipe.base, recipe.instruct, recipe.calibrate.prompts, recipe.calibrate.judge} == {
        folder
    }
    assert recipe.tune.data == recipe.evaluate.benchmark.data == folder


def test_files_of_joint_training_lie_beside_the_recipe(tmp_path) -> None:
    (tmp_path / "f").mkdir()
    path = tmp_path / "r.yaml"
    path.write_text(
        ADAPT.replace("{tokens: 500}", "{tokens: 1, prompts: f, judge: f, from_pack: f}")
    )
    adapt = load_recipe(path).adapt
    assert {adapt.prompts, adapt.judge, adapt.from_pack} == {str(tmp_path / "f")}


@pytest.mark.parametrize(
    ("given", "rate", "nats", "old"),
    [
        ("", 0.12, 3, 0.06),
        (", from_pack: f", 0.015, 0.375, 0.3),
        (", from_pack: f, relative_rate: 0.03, shares: {old_text: 0.1}", 0.03, 3, 0.3),
        (", from_pack: f, shares: {old_answers: 0.2}", 0.015, 0.375, 0.2),
        (", learning_rate: 1e-3", None, 3, 0.06),
        (", from_pack: f, learning_rate: 1e-3", None, 3, 0.3),
    ],
)
def test_rows_of_a_pack_are_trained_gently(given, rate, nats, old, tmp_path) -> None:
    """And on more of the old language, unless the recipe says otherwise."""
    (tmp_path / "f").touch()
    path = tmp_path / "r.yaml"
    path.write_text(ADAPT.replace("{tokens: 500}", f"{{tokens: 500{given}}}"))
    adapt = load_recipe(path).adapt
    assert (adapt.relative_rate, adapt.logit_step) == (rate, nats)
    assert adapt.share("old_answers") == old


def test_data_of_a_benchmark_lie_beside_the_recipe(tmp_path) -> None:
    (tmp_path / "bench").mkdir()
    path = tmp_path / "r.yaml"
    path.write_text(SHORT + "evaluate: {benchmark: {tasks: [rublimp], data: bench}}\n")
    assert load_recipe(path, []).evaluate.benchmark.data == str(tmp_path / "bench")


@pytest.mark.parametrize(
    ("section", "key"),
    [("calibrate: {after: swap}", "calibrate.prompts"), ("propagate: [auto]", "propagate")],
)
def test_prompts_that_no_task_can_make(section, key, tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"{SHORT}evaluate: {{tasks: []}}\n{section}\n")
    with pytest.raises(RecipeError, match=r"takes tasks made from the text, and eval") as fault:
        load_recipe(path)
    assert key.partition(".")[0] in str(fault.value)


@pytest.mark.parametrize("word", ["2024_06", "1_000", "1_0 is", "x_1"])
def test_words_keep_their_underscores(word, tmp_path) -> None:
    """Numbers do not: `tokens: 1_000` is a thousand."""
    path = tmp_path / "r.yaml"
    rest = ADAPT.partition("\n")[2]
    path.write_text(as_yaml({"name": word, "title": word}) + rest.replace("500", "1_000"))
    recipe = load_recipe(path)
    assert (recipe.name, recipe.title, recipe.adapt.tokens) == (word, word, 1_000)
