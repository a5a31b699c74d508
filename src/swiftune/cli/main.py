"""The ``swift`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from swiftune import __version__
from swiftune.errors import ArgumentsError, Interrupted, SwiftuneError
from swiftune.runtime import stop

if TYPE_CHECKING:
    from swiftune.config import Arguments


@dataclass(frozen=True)
class Command:
    """A sub-command. What it needs is imported when it is called: ``swift --help`` imports next to nothing."""

    summary: str
    arguments: str
    """Class of its arguments in ``swiftune.config``."""
    recipe: str
    """``module:function`` that is called with them."""
    usage: str
    distributed: bool = False
    """Starts again as NPROC_PER_NODE processes where that is asked for."""
    parser: str = "swiftune.config.parse:parse"
    """``module:function`` that makes what the recipe is called with of the class and the words."""


_TRAIN = "[run.yaml] --dataset NAME ... [--model NAME] [--train_type lora|full] [--flag VALUE ...]"

_SERVE = "[run.yaml] [--model NAME] [--adapters NAME=FOLDER ...] [--host ADDRESS] [--port N] [--flag VALUE ...]"

COMMANDS = {
    "sft": Command(
        "fine-tune a chat model on conversations", "SftArguments", "swiftune.recipes.sft:sft", _TRAIN, distributed=True
    ),
    "pt": Command(
        "go on training a model on raw text", "PtArguments", "swiftune.recipes.sft:pt", _TRAIN, distributed=True
    ),
    "infer": Command(
        "chat with a model, or answer the rows of a data set",
        "InferArguments",
        "swiftune.cli.chat:infer",
        "[run.yaml] [--model NAME] [--adapters FOLDER] [--val_dataset NAME ...] [--flag VALUE ...]",
    ),
    "inspect": Command(
        "look at rows before training: lengths, copies, what is set aside",
        "InspectArguments",
        "swiftune.cli.inspect:inspect",
        "[run.yaml] --dataset NAME ... [--model NAME] [--val_dataset NAME ...] [--flag VALUE ...]",
    ),
    "export": Command(
        "write a model that serves: merged, quantized, checked",
        "ExportArguments",
        "swiftune.recipes.export:export",
        "[run.yaml] [--adapters FOLDER --merge_lora true] [--quant_method NAME] [--flag VALUE ...]",
    ),
    "merge-lora": Command(
        "the same as export --merge_lora true",
        "MergeLoraArguments",
        "swiftune.recipes.export:export",
        "[run.yaml] --adapters FOLDER [--output_dir FOLDER] [--flag VALUE ...]",
    ),
    "sweep": Command(
        "run a training with every combination of values, and compare",
        "SweepArguments",
        "swiftune.cli.sweep:sweep",
        "sft|pt [sweep.yaml] --flag VALUE VALUE ... [--zip flag flag] [every flag of that command]",
        parser="swiftune.config.combinations:parse",
    ),
    "deploy": Command(
        "serve a model and its adapters to programs that speak OpenAI's protocol",
        "DeployArguments",
        "swiftune.recipes.deploy:deploy",
        _SERVE,
    ),
    "app": Command(
        "the same server with a page to chat on",
        "AppArguments",
        "swiftune.recipes.deploy:app",
        _SERVE,
    ),
    "eval": Command(
        "put questions with known answers to a model, or to several side by side",
        "EvalArguments",
        "swiftune.cli.evaluate:evaluate",
        "--eval_dataset TASK ... [--model NAME] [--adapters FOLDER] [--compare base FOLDER ...] [--flag VALUE ...]",
    ),
    "doctor": Command(
        "look at this machine: devices, memory, versions, what is missing",
        "DoctorArguments",
        "swiftune.cli.doctor:doctor",
        "[--as_json true]",
    ),
}
NOT_BUILT = ("rlhf", "web-ui", "plan")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Threads that wait for each other spin briefly, then sleep. On a machine where something else runs, too, GNU
    # OpenMP's default (milliseconds) takes the processor from the very thread that is waited for. Measured in tokens/s,
    # default against this: 478 and 458 on an idle machine, 138 and 168 beside two busy processes. Read when PyTorch is
    # imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with stop.heeded():
        return _code_of(words)


def _code_of(words: list[str]) -> int:
    """The exit code of ``swift`` with these words, once the user knows what it means."""
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SwiftuneError as error:
        _show(error)
        return error.exit_code
    except KeyboardInterrupt as asked:
        print("interrupted", file=sys.stderr)
        return stop.exit_code(asked)
    except BrokenPipeError:
        # Whoever read our output has left (`swift sft --help | head`). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from swiftune.runtime import launch

        if launch.has_lost_peer(error):
            print("error: another process of this run has ended.", file=sys.stderr)
            return launch.LOST_PEER
        _show_fault(error)
        return 1


def _run(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("--help", "-h", "help"):
        from swiftune.cli.help import overview

        print(overview({name: command.summary for name, command in COMMANDS.items()}))
        return 0
    if name in ("--version", "-V", "version"):
        print(f"swiftune {__version__}")
        return 0
    if name not in COMMANDS:
        raise _no_such(name)
    command = COMMANDS[name]
    arguments: type[Arguments] = _named(f"swiftune.config:{command.arguments}")
    if "--help" in rest or "-h" in rest:
        from swiftune.cli.help import page

        print(page(f"swift {name} {command.usage}".strip(), command.summary, arguments))
        return 0
    from swiftune.runtime import console, garbage, launch, log_file, optional

    optional.put_off(optional.BITSANDBYTES)

    parse: Callable[[type[Arguments], list[str]], Any] = _named(command.parser)
    if command.distributed and launch.is_wanted():
        with console.silent():  # the first process says it
            parse(arguments, rest)
        return launch.launch(words)
    with log_file.of(words):
        launch.end_with_launcher()
        args = parse(arguments, rest)
        garbage.look_rarely()
        recipe: Callable[..., int | None] = _named(command.recipe)
        return recipe(args) or 0


def _named(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def _no_such(name: str) -> ArgumentsError:
    from difflib import get_close_matches

    commands = f"commands are {', '.join(COMMANDS)}"
    if name in NOT_BUILT:
        return ArgumentsError([f"swift {name} is not built yet; {commands}."])
    if name.startswith("-"):
        return ArgumentsError([f"{name} stands where a command was expected; {commands}."])
    near = next(iter(get_close_matches(name[:100], COMMANDS, n=1)), "")
    return ArgumentsError(
        [f"there is no command {name!r}; " + (f"did you mean swift {near}?" if near else f"{commands}.")]
    )


def _show(error: SwiftuneError) -> None:
    """A user's mistake: a line or a few, no traceback (SWIFTUNE_DEBUG=1 shows where it was noticed)."""
    if os.environ.get("SWIFTUNE_DEBUG") == "1":
        _trace(error)
    label = _label("interrupted" if isinstance(error, Interrupted) else "error")
    for sentence in error.mistakes if isinstance(error, ArgumentsError) else [str(error)]:
        print(label, sentence, file=sys.stderr)


def _show_fault(error: Exception) -> None:
    """What nobody expected: what it was and where its traceback is (here, with SWIFTUNE_DEBUG=1)."""
    from swiftune.runtime import log_file

    log = log_file.fault(error)
    if log is None or os.environ.get("SWIFTUNE_DEBUG") == "1":
        _trace(error)
    what = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    print(_label("error"), f"this is a fault of Swiftune {__version__}, not yours: {what}", file=sys.stderr)
    print(f"Please report it with {log or 'the lines above'}.", file=sys.stderr)


def _trace(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)


def _label(word: str) -> str:
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    return f"\x1b[31m{word}:\x1b[0m" if colour else f"{word}:"


if __name__ == "__main__":
    sys.exit(main())
