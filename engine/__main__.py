"""Continue a text with a model, in Python and without PyTorch.

    python -m engine models/storyteller --prompt "Once upon a time"
    python -m engine stories260K.bin --tokenizer tok512.bin --temperature 0
    python -m engine models/storyteller --dtype int8 --threads 2

The model is a Hugging Face folder (GPT-2, Llama, Mistral, Qwen, SmolLM2, TinyLlama) or a .bin file of llama2.c.
"""

import argparse
import dataclasses
import json
import signal
import sys
import typing
from collections.abc import Iterable
from pathlib import Path

from engine.sampling import SamplingConfig

# The exit code of a run that was stopped by Ctrl-C or SIGTERM, as shells give it.
INTERRUPTED = 130


class CommandLine(argparse.ArgumentParser):
    """Reads a command line; a mistake in it ends in one line that says what to type next, and exit code 2."""

    def error(self, message: str) -> typing.NoReturn:
        """Say what is wrong, without the list of all flags, which would hide it."""
        self.exit(2, f"error: {one_line(message)}; see: {self.prog} --help\n")


def one_line(message: object) -> str:
    """Return a message without its line ends: the name of a file may have some."""
    return " ".join(str(message).splitlines())


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return what was typed; a mistake ends in one line and exit code 2."""
    # 1. Describe what is continued, with what, by what.
    parser = CommandLine(prog="python -m engine", description=__doc__,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder, or a .bin file of llama2.c")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer in place of the model's own")
    parser.add_argument("--prompt", default="", help="how the text begins; default: the model begins it")
    parser.add_argument("--count", type=int, default=1, help="how many continuations, each with the next seed")

    # 2. Describe when to end, and how to compute.
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")
    parser.add_argument("--dtype", default="fp32", help="what matrices are kept in: fp32, bf16, int8 or int4")
    parser.add_argument("--threads", type=int, metavar="INT", help="of the compiled loops; default: one for each core")
    parser.add_argument("--plain", action="store_true", help="NumPy alone, without compiled loops")

    # 3. Add a flag for each setting of sampling, so that flags and settings cannot differ.
    group = parser.add_argument_group("sampling")
    for field in dataclasses.fields(SamplingConfig):
        flag, kind = "--" + field.name.replace("_", "-"), field.type
        group.add_argument(flag, type=kind, default=field.default, metavar=kind.__name__.upper(),
                           help=f"default {field.default}")
    return parser.parse_args(argv)


def is_gpt2(folder: Path | None) -> bool:
    """Return whether a model folder holds a GPT-2, which the engine computes and the chapters do not."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "gpt2"
    except (TypeError, OSError, ValueError, KeyError, RecursionError):
        return False


def tell(path: Path, prompt: str, config, count: int = 1, stop: Iterable[str] = (),
         tokenizer: Path | None = None, **options) -> None:
    """Print the prompt and what a model makes of it, piece by piece, `count` times with one seed after the other.

    `config` is a `SamplingConfig`, the engine's or chapter 9's; `options` are those of `load_model`.
    Raises ValueError and OSError, in one line, for what cannot be done.
    """
    # 1. Check before the model is loaded: a mistake should not cost a wait.
    if count < 1:
        raise ValueError(f"count is {count}: it must be 1 or above")
    from engine.generation import load_model

    engine = load_model(path, tokenizer=tokenizer, **options)
    print(f"({path} speaks)", file=sys.stderr)

    # 2. Say the prompt too: the reader wants the whole text. A mistake in it shows before it is printed.
    for number in range(count):
        dice = dataclasses.replace(config, seed=config.seed + number)
        pieces = engine.generate(prompt, stop, **dataclasses.asdict(dice))
        print(prompt, end="", flush=True)

        # 3. Print each piece at once: waiting for the last word would hide that the model works word by word.
        for piece in pieces:
            print(piece, end="", flush=True)
        print("\n" if number + 1 < count else "")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    # 1. Read what was typed.
    args = read_arguments(argv)
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingConfig)}
    loading = {"dtype": args.dtype, "fast": False if args.plain else None, "threads": args.threads}

    # 2. Turn what the reader can mend into one line; a traceback is for bugs in the book.
    try:
        tell(args.model, args.prompt, SamplingConfig(**settings), args.count, args.stop, args.tokenizer, **loading)
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2

    # 3. Say in a line what this machine has not, and leave quietly when asked to.
    except MemoryError as error:
        print(f"error: not enough memory ({one_line(error)}): choose a smaller model or dtype", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    # Not every terminal or file can hold every letter: one that it cannot must not end a run.
    sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
