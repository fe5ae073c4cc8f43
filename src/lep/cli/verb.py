"""Commands from functions: each parameter becomes an option, settings one option per field."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lep.errors import printable
from lep.fields import FlatSettings, Setting, Settings, settings_of
from lep.publish import check_files

app = typer.Typer(
    help="Make a language cheaper for an open instruct model: the same text in fewer tokens.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
Function = Callable[..., Any]
Values = Sequence[str]  # empty by default, where a list is required
KEYWORD = inspect.Parameter.KEYWORD_ONLY
FILE = "_file"  # ends the names of parameters for files to write beside the printed result
TEXTS = {  # what parameters of verbs are
    "adapted": "Base model with new tokens, after training.",
    "after": "Model that was made from it.",
    "algorithm": "How to learn the vocabulary.",
    "answers": "Folder that lep answer wrote.",
    "base": "Base model: a local folder or a hub id.",
    "before": "Model.",
    "changes": "Changes to the recipe: SECTION.KEY=VALUE.",
    "corpus": "Text: txt, jsonl (also gz, zst) or parquet files, or folders of them.",
    "data": "Conversations: jsonl with messages.",
    "dry_run": "Only say what would be read and written.",
    "folder": "Folder of a finished run.",
    "force": "Accept a model that seems unrelated.",
    "fresh": "Count for lep tokenizer train instead of extend.",
    "gpu": "Device: h100, a100, rtx4090 ...",
    "hours": "Hours of pre-training to plan for (default: as many as the recipe takes).",
    "html_file": "Page with curves to write (default: none).",
    "in_place": "Give new tokens the ids of dropped ones; the size stays.",
    "instruct": "Instruct model that was tuned from the base.",
    "json_file": "File to write all figures to (default: none).",
    "model": "Model: a local folder or a hub id.",
    "models": "Models: local folders or hub ids, or MODEL@URL for one behind a server.",
    "new_only": "Leave out what known tokens learned.",
    "original": "Original instruct model: a local folder or a hub id.",
    "output": "Folder to write; must not exist.",
    "pack": "File that lep pack wrote.",
    "paths": "Text files, folders, hub data sets (hub:OWNER/NAME:CONFIG@SPLIT).",
    "prompts": "Prompts: jsonl with messages.",
    "protect": "Text whose tokens are all kept (default: none).",
    "recipe": "Recipe, a YAML file.",
    "tasks": "Chat and benchmark tasks, separated by commas (default: all chat tasks).",
    "tokenizer": "New tokenizer: a local folder or a hub id.",
    "tokenizers": "Tokenizers: local folders or hub ids; the first one is the reference.",
}

# Below the verbs with which one begins.
PANELS = {
    "Results": ["evaluate", "report", "inspect", "verify", "export", "import", "card", "push"],
    "Other models of the family": ["pack", "apply"],
    "Stage by stage": [
        *("corpus", "init", "prompts", "answer", "practice", "pretrain"),
        *("propagate", "calibrate", "tune"),
    ],
}


class Verb(TyperCommand):
    """A command whose list options take several values: `--corpus A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.repeated(args))

    def repeated(self, arguments: list[str]) -> list[str]:
        """`--corpus A --corpus B`; a verb with arguments does so for NAME=VALUE only."""
        lists = {flag for p in self.params if getattr(p, "multiple", False) for flag in p.opts}
        has_arguments = any(p.param_type_name == "argument" for p in self.params)
        repeated: list[str] = []
        flag, has_value = "", False
        for argument in arguments:
            if argument.startswith("-"):
                flag, has_value = argument.partition("=")[0], "=" in argument
            elif flag in lists:
                if has_value and (not has_arguments or "=" in argument):
                    repeated.append(flag)
                has_value = True
            repeated.append(argument)
        return repeated


def verb(
    group: typer.Typer,
    *,
    like: type[Settings] = Settings,
    without: type[Settings] | None = None,
    second_flags: Mapping[str, str] | None = None,
    verb_name: str = "",
    **texts: str,
) -> Callable[[Function], Function]:
    """Make a command of a function; the command prints the function's result.

    Positional-only parameters are arguments, the others options; a parameter of a settings class
    becomes one option per field, except fields that `without` declares. Parameters are described by
    `texts`, the field of their name in `like`, which also has the default, or `TEXTS`. Files
    to write must not exist. The command's name is the function's, or `verb_name`.
    """

    def add(function: Function) -> Function:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        inputs = settings_of(function.__name__, parameters, like, TEXTS | texts)
        options = FlatSettings.of(inputs, without)

        def command(context: typer.Context, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in values}
            given = {n: values[n] for n, s in sources.items() if s and s.name != "DEFAULT"}
            checked = options.read(given, _flag)
            chosen = {p.name: getattr(checked, p.name) for p in parameters}
            check_files(path for name, path in chosen.items() if name.endswith(FILE) and path)
            positional = [chosen.pop(name) for name in arguments]
            say(function(*positional, **chosen))

        arguments = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        signature = [inspect.Parameter("context", KEYWORD, annotation=typer.Context)]
        for name, (setting, *_) in options.names.items():
            flags = [_flag(name), *filter(None, [(second_flags or {}).get(name)])]
            signature.append(_parameter(setting, name, [] if name in arguments else flags))
        command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        title = verb_name or function.__name__
        panel = next((panel for panel, verbs in PANELS.items() if title in verbs), None)
        group.command(title, cls=Verb, help=function.__doc__, rich_help_panel=panel)(command)
        return function

    return add


def _parameter(setting: Setting, name: str, flags: list[str]) -> inspect.Parameter:
    """The parameter that typer makes an option of, or an argument where there are no flags."""
    if setting.type is bool and setting.default is not False:
        flags = [f"{flag}/--no-{flag[2:]}" for flag in flags]
    info: Any = typer.Option if flags else typer.Argument
    option = info(*flags, help=setting.description, rich_help_panel=setting.heading)
    scalar = setting.type if setting.type in (bool, int, float) else str
    kind: Any = list[str] if setting.is_list else scalar
    default = inspect.Parameter.empty if setting.is_required else setting.default
    if default in (None, [], {}, ()):
        kind, default = kind | None, None
    return inspect.Parameter(name, KEYWORD, default=default, annotation=Annotated[kind, option])


def _flag(name: str) -> str:
    return "--" + name.removesuffix(FILE).replace("_", "-")


def say(result: object) -> None:
    """Print a result; of several processes only the first one does."""
    if result is not None and os.environ.get("RANK", "0") == "0":
        print(printable(str(result)), flush=True)
