"""The command line of `main.py`: what can be typed, read from the settings themselves, and how it is answered.

    max_steps: int = …    in a settings dataclass   ->   --max-steps INT    default …

Every field of a settings dataclass becomes a flag, and a setting that is added to one is a flag at once: so flags and
fields cannot differ, and what a setting means and may be is said and checked in one place, its dataclass. A mistake
ends in one line that says what to type next.

Nothing here needs PyTorch, which takes seconds to load: help and mistakes answer at once. What the commands do stands
in `main.py`, and in the chapters that it calls.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from chapters.ch07_config import PRESETS, GPTConfig
from chapters.ch08_config import TrainConfig
from chapters.ch09_config import DecodingConfig, SamplingConfig
from corpora.stories import OPENING


class CommandLine(argparse.ArgumentParser):
    """Reads a command line; a mistake in it ends in one line that says what to type next, and exit code 2."""

    def error(self, message: str) -> typing.NoReturn:
        """Say what is wrong. The list of all flags, which argparse puts before it, would hide it."""
        self.exit(2, f"error: {one_line(message)}; see: python {self.prog} --help\n")


def one_line(message: object) -> str:
    """Return a message without its line ends: a file's name, or a library's words, may have some."""
    return " ".join(str(message).splitlines())


def json_object(text: str) -> dict:
    """Return the JSON object that was typed, for a field that holds a dict.

    Raises argparse's own error where it is none.
    """
    # 1. Read it; what is nested without end is no object either.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    # 2. Show one that would do.
    if not isinstance(value, dict):
        like = '{"rope_type": "linear", "factor": 2}'
        raise argparse.ArgumentTypeError(f"{text[:99]!r} is no JSON object, such as {like}")
    return value


def add_fields(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """Add a flag for every field of a settings dataclass, under a title in the help.

    The dataclass itself refuses what is no possible value, when it is made from what was typed: here only the kind
    of thing is checked, a number or a text.
    """
    # 1. Read the type of each field; of "int | None" the int is what can be typed.
    group = parser.add_argument_group(title)
    for field in dataclasses.fields(config):
        kind = (typing.get_args(field.type) or (field.type,))[0]
        typed = {"type": json_object if kind is dict else kind, "metavar": kind.__name__.upper()}
        reader = {"action": argparse.BooleanOptionalAction} if kind is bool else typed

        # 2. Leave unset what was not typed: then a preset or the default speaks.
        flag = "--" + field.name.replace("_", "-")
        group.add_argument(flag, **reader, default=None, help=f"default {field.default}")


def chosen(config: type, args: argparse.Namespace) -> dict:
    """Return the fields of a settings dataclass that were given on the command line.

    The others are left to the dataclass, or to the preset that it is made from.
    """
    names = (field.name for field in dataclasses.fields(config))
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def sized(args: argparse.Namespace) -> GPTConfig:
    """Return the model that the flags of `train` ask for: a preset, changed where they say so.

    Raises ValueError, as `GPTConfig` does, for sizes that contradict each other.
    """
    # 1. Norm queries and keys: under Muon's long steps scores would grow until heads are all-or-nothing. Who
    # sets a switch that makes another family of models gets that family.
    fields = chosen(GPTConfig, args)
    if not fields.keys() & {"qk_norm", "qkv_bias", "sliding_window"}:
        fields["qk_norm"] = True
    return PRESETS[args.preset].resized(**fields)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to learn from."""
    parser.add_argument("--data", default="stories", help="'stories'; 'python', its library; a file, a folder, or a "
                        "quoted glob of text, .jsonl or .parquet; hf:NAME[:SPLIT] from the Hugging Face hub")
    parser.add_argument("--text-field", default="text", metavar="NAME", help="the field with the text, default text")
    parser.add_argument("--clean", action="store_true", help="drop documents that are exact copies of earlier ones")


def read_arguments(argv: list[str], description: str = "") -> argparse.Namespace:
    """Return the command and its settings; a mistake ends in one line and exit code 2.

    `description` is what the help says before it lists the commands. What was not typed is None among the fields of
    a dataclass, so that a flag which repeats a default can be told from one that was left out.
    """
    # 1. Describe the commands. Without one, the whole journey is meant.
    parser = CommandLine(prog="main.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser("train", help="train a model and write a run folder")
    add_data_flags(train)
    train.add_argument("--preset", default="tiny", choices=PRESETS, help="the model's sizes, before other flags")

    # 2. Let a run be named, or continued.
    train.add_argument("--name", help="name of the new folder among the runs")
    train.add_argument("--runs", type=Path, metavar="FOLDER", help="where the folders of runs are, default runs/")
    train.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an interrupted run")

    # 3. Say how it is made, by how many.
    train.add_argument("--shard", action="store_true", help="under torchrun: each process holds a part of the model")
    add_fields(train, GPTConfig, "model (with --qk-norm, unless the switches of another family are set)")
    add_fields(train, TrainConfig, "training")

    # 4. Describe what continues a text.
    generate = commands.add_parser("generate", help="continue a text")
    generate.add_argument("--prompt", default=OPENING, help="how the text begins")
    generate.add_argument("--count", type=int, default=1, help="how many continuations")
    generate.add_argument("--engine", choices=["torch", "numpy"], help="default torch; a GPT-2 runs on numpy alone")

    # 5. Describe what tells a story in turns, and what shows sizes. Then let all these, and the tools, be given a model
    # to work with.
    chat = commands.add_parser("chat", help="begin a story, the model goes on, you go on, …")
    info = commands.add_parser("info", help="parameters, work and memory of a model")
    info.add_argument("--preset", choices=PRESETS, help="a preset instead of a model folder")
    for command in (generate, chat, info, *add_tools(commands)):
        command.add_argument("--model", type=Path, metavar="FOLDER", help="a model folder, or the name of a published "
                             "model, ORG/NAME (default: newest run, or models/storyteller)")

    # 6. Give those that speak the settings of speaking; one that tells no story in turns may also search for its text.
    add_fields(generate, DecodingConfig, "decoding: search, guess ahead, or show probabilities")
    for command in (generate, chat):
        command.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")
        add_fields(command, SamplingConfig, "sampling")

    # 7. Name what no flag knows, beside the command that was meant. Bytes that are no text cannot even be named.
    args, unknown = parser.parse_known_args(argv or ["train"])
    if unknown:
        commands.choices.get(args.command, parser).error(f"unknown: {' '.join(unknown)}")
    if halves := [text for text in argv if text.encode("utf-8", "replace").decode() != text]:
        parser.error(f"{halves[0]!a} is no UTF-8 text: type it in another way")

    # 8. Hand over what was understood.
    return args


def add_tools(commands) -> list[argparse.ArgumentParser]:
    """Add the commands around a model and the machine; return those that want a model.

    A model is examined, or carried away as a GGUF file; the code leaves as one Python file; the machine is looked at.
    """
    # 1. Describe the examination.
    evaluate = commands.add_parser("eval", help="bits per byte on held-out text, with an interval")
    evaluate.add_argument("--data", help="as for train; its held-out part is read (default: what it learnt from)")
    evaluate.add_argument("--documents", type=int, default=1000, metavar="INT", help="at most so many; default 1000")
    evaluate.add_argument("--window", type=int, metavar="INT", help="tokens read together; default the context, up to "
                          "1024")

    # 2. Describe what leaves the house.
    export = commands.add_parser("export", help="write the model for other programs")
    export.add_argument("--to", choices=["gguf"], default="gguf", help="gguf, for llama.cpp")
    export.add_argument("--type", choices=["F16", "Q8_0"], default="F16", help="format of the matrices")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    onefile = commands.add_parser("onefile", help="write the whole GPT as one Python file that runs alone")

    # 3. Describe the rest.
    onefile.add_argument("--out", type=Path, default=Path("gpt.py"), metavar="FILE", help="a new file; default gpt.py")
    commands.add_parser("doctor", help="how fast this machine is, and what to train on it")
    return [evaluate, export]


def say(pieces: Iterable[str]) -> str:
    """Print a text as it is made, and return it: the words come from a stream that is read only once."""
    # 1. Print each piece at once: waiting for the last word would hide that the model works word by word.
    said = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        said += piece
    return said


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let one process speak where `torchrun` has started several: the others say and ask for nothing in the block.

    All of them run the same `main.py`, and would otherwise tell everything as often as there are processes.
    """
    # 1. Leave a process that nobody shares its work with as it is, and the first one.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0":
        yield
        return
    # 2. Send the words of the others nowhere. What is a bug still shows, outside of the block.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
