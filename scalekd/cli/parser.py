"""The command line's parsers: options from signatures and docstrings, grouped by topic."""

import argparse
import difflib
import itertools
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NoReturn, get_args, get_origin

import jsonargparse
import yaml

from scalekd.cli.output import tell
from scalekd.errors import InputError, one_line
from scalekd.kinds import describe_kind
from scalekd.reading import UnwantedYamlError, parse_yaml

# fmt: off
TOPICS = {
    "model": (
        "teacher", "teacher_weights", "teacher_weights_key", "teacher_args", "teacher_size",
        "teacher_mean", "teacher_std", "teacher_classes", "teacher_features",
        "student", "student_weights", "student_weights_key", "student_args", "student_features",
        "more_students",
    ),
    "data": ("data",),
    "optimisation": ("epochs", "batch_size", "optim", "task", "label_smoothing", "ema"),
    "method": (
        "method", "weights", "temperature", "heads", "separable_stem", "teacher_prefix",
        "one_token", "fd", "dist", "ofa", "rsd", "relations", "vkd",
    ),
    "precision and memory": (
        "precision", "accumulate", "checkpoint_tail", "checkpoint_projectors", "compile",
        "channels_last", "deterministic", "sync_batchnorm", "fsdp", "cache",
    ),
    "run": (
        "seeds", "compare", "validate_every", "max_skipped", "log_every", "trackers",
        "save_minutes", "save_steps",
    ),
}
# fmt: on
"""The settings of a recipe by topic, in the order in which `--help` lists them."""


HOME = re.compile(r"^((?:--[\w.]+=)?(?:local-dir:|hf:)?)(~(?=/|$))")
"""A word that names a place below the home folder, as a shell does not expand it after = or :."""


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """An option's description, and its default value where the description does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if action.required and action.option_strings:
            return text if "Required unless" in text else f"{text} (required)"
        if action.nargs == 0 or default in (None, "", [], {}, argparse.SUPPRESS):
            return text
        return f"{text} (default: {str(default).lower() if isinstance(default, bool) else default})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # Lists also have an option that appends to them, --seeds+.
        shown = argparse.Action(
            [option for option in action.option_strings if not option.endswith("+")],
            action.dest,
            action.nargs,
            choices=action.choices,
            metavar=action.metavar,
        )
        return super()._format_action_invocation(shown)


class Parser(jsonargparse.ArgumentParser):
    """A command's parser, which refuses in one line what it cannot parse."""

    typed: ClassVar[Sequence[str]] = ()
    """The options on the command line: of a nested one, jsonargparse reports the last part."""

    def add_recipe(self) -> dict[str, Any]:
        """Add `--recipe`, `--config` and all settings of a recipe; gives the groups by topic."""
        self.add_recipe_files("docs/recipes.md")
        return self.add_settings([name for names in TOPICS.values() for name in names])

    def add_recipe_files(self, page: str) -> None:
        """Add `--recipe`, whose help names the `page` of the packaged ones, and `--config`."""
        self.add_argument("--recipe", type=str | None, help=f"Name of a packaged recipe ({page}).")
        self.add_argument(
            "--config",
            action="config",
            help="A recipe of your own, a YAML file. Options on the command line override it.",
        )

    def add_settings(self, names: Collection[str]) -> dict[str, Any]:
        """Add the settings of a recipe in `names`, in a group for each topic; gives the groups."""
        from scalekd.recipe import Recipe

        settings = {field.name for field in fields(Recipe)}
        groups = {}
        for topic, members in TOPICS.items():
            shown = set(members) & set(names)
            group = groups[topic] = self.add_argument_group(topic)
            group.add_class_arguments(Recipe, as_group=False, skip=settings - shown)
            for name in (n for n in members if n in (self.groups or ()) and n in shown):
                self.entitle(name, name if name == topic else f"{topic}, {name}")
        return groups

    def entitle(self, name: str, title: str) -> None:
        """Give the group of a nested setting a title; its description is the setting's."""
        assert self.groups is not None
        group = self.groups[name]
        group.title, group.description = title, f"{group.title}."
        file = next(action for action in self._actions if action.dest == name)
        file.help = f"A YAML file with the settings {name}.*, in place of the options below."

    def parse(self, arguments: list[str]) -> jsonargparse.Namespace:
        """The options by name, dataclasses as objects. Refuses what is wrong in one line."""
        kinds = dict(self._kinds())
        Parser.typed = [part.partition("=")[0] for part in arguments if part[:2] == "--"]
        # The keys of a dictionary are anything: --teacher_args.img_size.
        mappings = tuple(f"{name}." for name, kind in kinds.items() if get_origin(kind) is dict)
        for option in self.typed:
            if option in kinds or option.startswith(mappings):
                continue
            group = option.rpartition(".")[0]
            names = [name for name in kinds if not name.endswith(".help")]
            names = [name for name in names if name.rpartition(".")[0] == group] or names
            near = difflib.get_close_matches(option, names, n=2, cutoff=0.75)
            hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the options"
            refuse(f"there is no option {option}; {hint}")
        try:
            parsed = self.parse_args(arguments)
            for name in self.groups or ():
                if name in parsed and not isinstance(parsed[name], jsonargparse.Namespace | dict):
                    raise InputError(f"{name} is {parsed[name]!r}: expected a mapping of settings")
            options: jsonargparse.Namespace = self.instantiate(parsed)
        except ValueError as error:
            raise InputError(_reason(error)) from error
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse in one line. All that jsonargparse's exceptions carry is their text."""
        cause: BaseException | None = ex
        names = []
        while cause is not None:
            message = " ".join(str(cause).split())
            if isinstance(cause, TypeError) and message.startswith('Parser key "'):
                names.append(message.split('"')[1])
            cause = cause.__cause__
        kinds = dict(self._kinds())
        if names:  # a value of another type than its option's, or a file that cannot be read
            option = kind = f"--{names[-1]}"
            if not self.exit_on_error:  # jsonargparse's own parser of a dataclass's fields
                option = next((t for t in self.typed if t.endswith(f".{names[-1]}")), option)
            _, _, reason = message.rpartition('": ')
            if kinds.get(kind) is None:
                refuse(f"{option}: {reason}")
            value = message.rpartition(": ")[2]
            refuse(f"{option} is {value!r}: expected {describe_kind(kinds[kind])}")
        if isinstance(ex, TypeError):  # the following arguments are required: NAMES
            missing = message.rpartition(": ")[2].split(", ")
            options = [f"--{name}" if f"--{name}" in kinds else name for name in missing]
            refuse(f"required, and not given: {', '.join(options)}")
        refuse(message)

    def _kinds(self) -> Iterator[tuple[str, Any]]:
        """Each option, nested ones included, and the type of its value."""
        for action in self._actions:
            kind = getattr(action, "_typehint", action.type)
            yield from ((option, kind) for option in action.option_strings)
            if f"--{action.dest}" in action.option_strings:
                for part in filter(is_dataclass, get_args(kind)):
                    yield from ((f"--{action.dest}.{f.name}", f.type) for f in fields(part))


def read_words(words: Sequence[str]) -> list[str]:
    """The words of a command line with ~ expanded.

    Raises:
        InputError: one is empty, which a variable of the shell that is not set makes, or an option
            is given twice. An argument of timm's create_model may be empty.
    """
    given: set[str] = set()
    for before, word in itertools.pairwise(["", *words]):
        option, _, value = word.partition("=")
        is_empty = not word or (option[:2] == "--" and word.endswith("=") and not value)
        if is_empty and "_args." not in (option or before):
            raise InputError(
                f"{option or 'an argument'} is empty: give it a value, or leave it out"
            )
        if option[:2] == "--" and not option.endswith("+"):
            if option in given:
                raise InputError(f"{option} is given twice: give it once")
            given.add(option)
        setting = value if option[:2] == "--" and value else word
        if setting.startswith(("{", "[")):
            try:
                parse_yaml(setting)
            except UnwantedYamlError as error:
                raise InputError(f"{setting[:100]!r} is no setting: {error}") from error
            except yaml.YAMLError:  # perhaps a name
                pass
    return [HOME.sub(lambda home: home[1] + os.path.expanduser(home[2]), word) for word in words]


def _reason(error: ValueError) -> str:
    """Why a value was refused: of the reasons that jsonargparse lists, one for each kind that the
    value may have, the one that tells more than that it is of another kind."""
    if isinstance(error.__cause__, InputError):
        return str(error.__cause__)
    reasons = [line[4:] for line in str(error).splitlines() if line.startswith("  - ")]
    told = [reason for reason in reasons if not reason.startswith("Expected a ")]
    return told[-1] if told else one_line(error)


_load_yaml = jsonargparse.get_loader("yaml")


def _load_checked_yaml(text: str) -> Any:
    parse_yaml(text)
    return _load_yaml(text)


# For all YAML, also that of files such as --optim FILE.
jsonargparse.set_loader("yaml", _load_checked_yaml, exceptions=(yaml.YAMLError,))


def refuse(reason: str) -> NoReturn:
    """Print one line on stderr and exit with 2."""
    tell(f"error: {reason}")
    sys.exit(2)
