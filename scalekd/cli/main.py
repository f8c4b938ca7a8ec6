"""The entry point: from the command line to a command, and from errors to exit codes."""

import difflib
import itertools
import json
import os
import sys
from pathlib import Path

from scalekd.cli.commands import COMMANDS, Command
from scalekd.cli.logs import shown_logs
from scalekd.cli.output import Output, lossy_outputs, tell
from scalekd.cli.parser import read_words
from scalekd.errors import InputError, one_line
from scalekd.reading import read_mapping
from scalekd.signals import Interrupted, remember_ctrl_c
from scalekd.text import accept_all_characters

LESS_MEMORY = (
    "A training takes less memory with more micro-batches (--accumulate), a smaller --batch_size "
    "or --precision bf16-mixed; `scalekd estimate` says what fits, and --resume continues the run"
)
"""Ends the message of a command whose GPU is full."""

USAGE = """\
usage: scalekd COMMAND [options]

Knowledge distillation from vision transformers into any small network.

commands (scalekd COMMAND --help lists the options):
{commands}

examples:
  scalekd distill                                    packaged digits, on 2 CPU cores
  scalekd check --teacher swin_small_patch4_window7_224 --student resnet50
  scalekd distill --teacher swin_small_patch4_window7_224 --student resnet50 --data.root DIR
  scalekd runs
  scalekd estimate --recipe swin_large-resnet50 --devices 8 --gpu h100
  scalekd evaluate runs/digits/student --data.root digits
  scalekd export runs/digits/checkpoints/scalekd-seed4.ckpt --out student
  scalekd models "*dinov3*"
"""

NAMING = {"--teacher", "--student", "--data.root", "--config"}
"""Options that name what is trained, without which the default recipe is."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exits with 2 after bad input (one line) and with 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    accept_all_characters()
    with lossy_outputs() as stdout, shown_logs(), remember_ctrl_c() as ctrl_c:
        try:
            _run(arguments)
            _check_output(stdout, arguments)
            return
        except BaseException as error:
            ctrl_c.ignored = True
            interrupted = ctrl_c.received or isinstance(error, KeyboardInterrupt)
            code = _report(arguments, KeyboardInterrupt() if interrupted else error)
    sys.exit(code)  # here, where the error is gone, and with it the files that its frames hold open


def _report(arguments: list[str], error: BaseException) -> int:
    """Print the line of an error or a signal, and return the exit code.

    Any other exception is raised again.
    """
    if isinstance(error, KeyboardInterrupt):
        if os.environ.get("RANK", "0") == "0":
            reason = "stopped at once; what a run wrote before is in its folder"
            tell(reason)
        return 130
    if isinstance(error, Interrupted):
        if str(error):
            tell(str(error))
        return error.code
    if isinstance(error, ValueError) and not isinstance(error, InputError):
        error = error.__cause__ or error  # jsonargparse wraps that of a dataclass
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be imported yet
        error = InputError(f"{one_line(error)}. {LESS_MEMORY}")
    if isinstance(error, OSError):  # what nobody expected the system to refuse
        place = "" if error.filename is None else f"{str(error.filename)[:200]!r}: "
        error = InputError(f"{place}{error.strerror or error}")
    if not isinstance(error, InputError):
        raise error
    if arguments[:1] == ["check"] and "--json" in arguments:
        print(json.dumps({"verified": False, "reason": str(error)}))
    tell(f"error: {error}")
    return 2


def _check_output(stdout: Output, arguments: list[str]) -> None:
    """InputError where a result was printed to a full disk; a reader that went away has enough."""
    stdout.flush()
    if stdout.error is None or isinstance(stdout.error, BrokenPipeError):
        return
    reason = f"the output could not be written: {stdout.error.strerror}"
    if arguments[0] not in ("distill", "train", "transfer", "cache", "export", "convert", "push"):
        raise InputError(f"{reason}; make room, or send it elsewhere")
    tell(f"warning: {reason}; the files are complete")


def _run(arguments: list[str]) -> None:
    count = 2 if " ".join(arguments[:2]) in COMMANDS else 1  # words of the command's name
    name = " ".join(arguments[:count])
    if name in ("-h", "--help"):
        lines = [f"  {name:16} {command.summary}" for name, command in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)), end="")
        sys.exit(0)
    if command := COMMANDS.get(name):
        words = read_words(arguments[count:])
        options = command.build_parser(name).parse(_with_recipe(command, words))
        command.run(options, arguments)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        reason = f"{name!r} is no command" if name else "no command is given"
        hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(COMMANDS)}"
        raise InputError(f"{reason}; {hint}")


def _with_recipe(command: Command, options: list[str]) -> list[str]:
    """The options with `--recipe NAME`, or the default recipe, as the `--config` of its file."""
    names = {option.partition("=")[0] for option in options}
    if command.find_recipe is not None and not names & {"--help", "-h"}:
        if "--recipe" in names:
            options = [
                part
                for option in options
                for part in (option.split("=", 1) if option[:9] == "--recipe=" else [option])
            ]
            index = options.index("--recipe")
            recipe, rest = "".join(options[index + 1 : index + 2]), options[index + 2 :]
            options = ["--config", str(command.find_recipe(recipe)), *options[:index], *rest]
        elif command.has_default_recipe and not names & NAMING:
            from scalekd.recipe import DEFAULT_RECIPE

            options = ["--config", str(command.find_recipe(DEFAULT_RECIPE)), *options]
    pairs = [part.partition("=")[::2] for part in options if part.startswith("--config=")]
    for option, file in (*itertools.pairwise(options), *pairs):
        if option == "--config":
            read_mapping(Path(file), repr(file))
    return options
