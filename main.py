"""Train a GPT, and let it tell a story: this file reads the command line and stitches the chapters together.

    python main.py                   train the tiny model on children's stories, then hear three
    python main.py train --help      every setting of model and training
    python main.py generate --prompt "Once upon a time"
    python main.py chat              begin a story, the model goes on
    python main.py info              sizes, parameters, memory
    python main.py eval              how surprised a model is by text that it has not seen
    python main.py doctor            how fast this machine is, and what to train on it
    python main.py export --to gguf  the model for llama.cpp
    python main.py onefile           the whole GPT in one Python file

PyTorch is imported after the arguments are read, so that help and mistakes answer at once.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from chapters.ch07_config import PRESETS, GPTConfig, count_parameters, flops_per_token, memory_bytes
from chapters.ch08_config import TrainConfig
from chapters.ch09_config import DecodingConfig, SamplingConfig
from corpora.documents import short_name
from corpora.stories import OPENING

# Everything is found from this file, wherever the command was typed.
ROOT = Path(__file__).resolve().parent
RUNS, STORYTELLER = ROOT / "runs", ROOT / "models" / "storyteller"
PROMPT = OPENING

# The exit code of a run that was stopped by Ctrl-C or SIGTERM, as shells give it.
INTERRUPTED = 130


class CommandLine(argparse.ArgumentParser):
    """Reads a command line; a mistake in it ends in one line that says what to type next, and exit code 2."""

    def error(self, message: str) -> typing.NoReturn:
        """Say what is wrong. The list of all flags, which argparse puts before it, would hide it."""
        self.exit(2, f"error: {one_line(message)}; see: python {self.prog} --help\n")


def one_line(message: object) -> str:
    """Return a message without its line ends: a file's name, or a library's words, may have some."""
    return " ".join(str(message).splitlines())


def json_object(text: str) -> dict:
    """Return the JSON object that was typed. Raises argparse's own error where it is none."""
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
    """Add a flag for every field of a settings dataclass, so that flags and fields cannot differ."""
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
    """Return the fields of a settings dataclass that were given on the command line."""
    names = (field.name for field in dataclasses.fields(config))
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def sized(args: argparse.Namespace) -> GPTConfig:
    """Return the model that the flags of `train` ask for: a preset, changed where they say so."""
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


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the command and its settings; a mistake ends in one line and exit code 2."""
    # 1. Describe the commands. Without one, the whole journey is meant.
    parser = CommandLine(prog="main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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

    # 4. Describe what can be done with a trained model.
    generate = commands.add_parser("generate", help="continue a text")
    generate.add_argument("--prompt", default=PROMPT, help="how the text begins")
    generate.add_argument("--count", type=int, default=1, help="how many continuations")
    generate.add_argument("--engine", choices=["torch", "numpy"], help="default torch; a GPT-2 runs on numpy alone")

    # 5. Describe what shows a model, or talks with it.
    chat = commands.add_parser("chat", help="begin a story, the model goes on, you go on, …")
    info = commands.add_parser("info", help="parameters, work and memory of a model")

    # 6. Give these a model to work with.
    info.add_argument("--preset", choices=PRESETS, help="a preset instead of a model folder")
    for command in (generate, chat, info, *add_tools(commands)):
        command.add_argument("--model", type=Path, metavar="FOLDER", help="a model folder, or the name of a published "
                             "model, ORG/NAME (default: newest run, or models/storyteller)")

    # 7. Give those that speak the settings of speaking; one that tells no story in turns may also search for its text.
    add_fields(generate, DecodingConfig, "decoding: search, guess ahead, or show probabilities")
    for command in (generate, chat):
        command.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")
        add_fields(command, SamplingConfig, "sampling")

    # 8. Name what no flag knows, beside the command that was meant. Bytes that are no text cannot even be named.
    args, unknown = parser.parse_known_args(argv or ["train"])
    if unknown:
        commands.choices.get(args.command, parser).error(f"unknown: {' '.join(unknown)}")
    if halves := [text for text in argv if text.encode("utf-8", "replace").decode() != text]:
        parser.error(f"{halves[0]!a} is no UTF-8 text: type it in another way")

    # 9. Hand over what was understood.
    return args


def add_tools(commands) -> list[argparse.ArgumentParser]:
    """Add the commands around a model and the machine; return those that want a model."""
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


def default_model() -> Path:
    """Return the folder of the newest finished run, or of the storyteller that comes with the book."""
    finished = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    return finished[-1].parent if finished else STORYTELLER


def open_model(folder: Path | None, role: str = "speaks"):
    """Return a model and its tokenizer, ready to speak, and say which they are."""
    # 1. Import here: by now the arguments have been read.
    from chapters.ch07_hub import model_folder

    name = folder or default_model()
    folder = model_folder(name)

    # 2. Open both from one folder; ids of one tokenizer mean nothing to another model. PyTorch comes last: whether
    # the folder is here at all should not cost a wait.
    from chapters.ch02_published import open_tokenizer
    from chapters.ch07_gpt_model import GPT
    from chapters.ch08_scale import choose_device

    model, tokenizer = GPT.from_pretrained(folder).to(choose_device()), open_tokenizer(folder)
    print(f"({name.relative_to(ROOT) if name.is_relative_to(ROOT) else name} {role})", file=sys.stderr)
    return model, tokenizer


def open_draft(decoding: DecodingConfig, tokenizer):
    """Return the model that guesses ahead, or None. Raises ValueError when its tokens are not the model's."""
    if decoding.draft is None:
        return None
    draft, other = open_model(Path(decoding.draft), "guesses ahead")
    if other.vocab != tokenizer.vocab:
        raise ValueError(f"--draft {decoding.draft}: its tokens are not the model's; take a model with the same ones")
    return draft


def say(pieces: Iterable[str]) -> str:
    """Print a text as it is made, and return it."""
    # 1. Print each piece at once: waiting for the last word would hide that the model works word by word.
    said = ""
    for piece in pieces:
        print(piece, end="", flush=True)
        said += piece
    return said


def run_generate(args: argparse.Namespace) -> int:
    """Continue a prompt, `--count` times with different seeds."""
    # 1. Check the settings before the model is loaded: a mistake should not cost a wait.
    config, decoding = SamplingConfig(**chosen(SamplingConfig, args)), DecodingConfig(**chosen(DecodingConfig, args))
    if args.count < 1:
        raise ValueError(f"count is {args.count}: it must be 1 or above")
    given = [*chosen(SamplingConfig, args), *["stop"] * bool(args.stop), *["count"] * (args.count > 1)]
    decoding.check_beside(given)

    # 2. Let the engine of Part II compute where that is asked for, and for GPT-2, which the chapters do not build.
    from engine.__main__ import is_gpt2

    if args.engine == "numpy" or (args.engine is None and is_gpt2(args.model)):
        return run_on_engine(args, config, decoding)

    # 3. Open the model, and the one that guesses ahead.
    model, tokenizer = open_model(args.model)
    draft = open_draft(decoding, tokenizer)
    from chapters.ch09_decoding import Acceptance, stream_decoded

    # 4. Say the prompt too: the reader wants the whole text. Lines of probabilities begin below it.
    for number in range(args.count):
        print(args.prompt, end="\n" if decoding.logprobs else "", flush=True)
        dice, guesses = dataclasses.replace(config, seed=config.seed + number), Acceptance()
        say(stream_decoded(model, tokenizer, args.prompt, dice, decoding, draft, args.stop, guesses))
        print("\n" if number + 1 < args.count else "")

        # 5. Report how good the guesses were.
        if draft is not None:
            print(f"({guesses.accepted} of {guesses.guessed} guesses accepted)", file=sys.stderr)
    return 0


def run_on_engine(args: argparse.Namespace, config: SamplingConfig, decoding: DecodingConfig) -> int:
    """Continue a prompt with the engine, which never loads PyTorch."""
    if decoding != DecodingConfig():
        raise ValueError("--beams, --draft and --logprobs need PyTorch: leave them out, or choose --engine torch")
    from chapters.ch07_hub import model_folder
    from engine.__main__ import tell

    name = args.model or default_model()
    tell(name if name.is_file() else model_folder(name), args.prompt, config, args.count, args.stop)
    return 0


def run_chat(args: argparse.Namespace) -> int:
    """Tell a story in turns: you write, the model goes on from all that was said."""
    # 1. Explain the game once.
    config = SamplingConfig(**chosen(SamplingConfig, args))
    model, tokenizer = open_model(args.model)
    from chapters.ch09_inference import stream_story

    print(f"Begin a story, for example: {PROMPT}. An empty line starts a new one, Ctrl-D ends.")
    story = ""
    # 2. Take turns until there is no more to read.
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        # 3. Start anew on an empty line; otherwise go on. The story so far is the prompt: so the model remembers.
        story = f"{story} {line}".strip() if line.strip() else ""
        if len(tokenizer.encode(story)) + 1 >= model.config.max_seq_len:
            print(f"(The story fills the model's {model.config.max_seq_len} tokens. Begin a new one.)")
            story = ""
        # 4. Draw with other dice each time, or the same words would come again.
        if story:
            story += say(stream_story(model, tokenizer, story, config, args.stop))
            print()
            config = dataclasses.replace(config, seed=config.seed + 1)


def run_info(args: argparse.Namespace) -> int:
    """Print a model's sizes, its parameters by part, and what it costs to run and to train."""
    # 1. Read sizes from a preset, or from a folder's config.json.
    if args.preset:
        name, config = args.preset, PRESETS[args.preset]
    else:
        model, _ = open_model(args.model)
        name, config = str(args.model or default_model().name), model.config
    print(f"{name}: {config}\n")

    # 2. Print the parameters by part, and their shares.
    parts, context = count_parameters(config), config.max_seq_len
    for part, number in parts.items():
        print(f"  {part:14} {number:>13,} parameters {number / parts['total']:7.1%}")

    # 3. Print what follows from them.
    for kind, flops in flops_per_token(config, context).items():
        print(f"  {kind:14} {flops / 1e6:>13,.1f} million operations per token at a context of {context}")
    for kind, size in memory_bytes(config, context).items():
        print(f"  {kind:14} {size / 2**20:>13,.1f} MiB")
    # 4. Of a run, print what was expected and what came.
    if not args.preset:
        from chapters.ch10_costs import compare

        print(*compare(args.model or default_model(), config), sep="\n")
    return 0


def run_eval(args: argparse.Namespace) -> int:
    """Print how surprised a model is by held-out text, and how sure that is."""
    # 1. Open the model, and find the text that it has not seen.
    model, tokenizer = open_model(args.model)
    from chapters.ch09_evaluation import evaluate, held_out

    documents, floor = held_out(args.model or default_model(), args.data, args.documents)
    # 2. Measure.
    for line in evaluate(model, tokenizer, documents, args.window, floor):
        print(line)
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a model as a GGUF file."""
    model, tokenizer = open_model(args.model)
    from chapters.ch07_gguf import save_gguf

    save_gguf(model, tokenizer, args.out, args.type)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB. In llama.cpp: llama-completion -m {args.out}")
    return 0


def run_onefile(args: argparse.Namespace) -> int:
    """Write the whole GPT as one Python file."""
    from chapters.ch10_onefile import write_onefile

    write_onefile(args.out)
    print(f"{args.out}: the whole GPT. Try it anywhere with: python {args.out.name}")
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Print what this machine is and can do, as it is found out."""
    from chapters.ch10_doctor import examine

    for line in examine():
        print(line, flush=True)
    return 0


def open_journey(args: argparse.Namespace, team):
    """Return the training run that the flags ask for, an old one or a new one, shared by a team of processes."""
    from chapters.ch08_run import name_of_run
    from chapters.ch10_journey import Journey

    # 1. Go on with an old run. A setting that it would not heed is refused, not passed over in silence.
    if args.resume:
        unset, of_new = read_arguments(["train"]), ("data", "text_field", "clean", "preset", "name", "runs")
        given = [*chosen(GPTConfig, args), *chosen(TrainConfig, args)]
        if given := given + [name for name in of_new if getattr(args, name) != getattr(unset, name)]:
            raise ValueError(f"--resume keeps the run's own settings: leave out {', '.join(given)}, or begin a new run")
        return Journey.resume(args.resume, team)
    # 2. Or settle all settings of a new one: a contradiction must not cost three minutes.
    model_config = sized(args)
    train_config = TrainConfig(**chosen(TrainConfig, args))
    command = f"{team.launcher} {shlex.join(['main.py', *sys.argv[1:]])}"
    # 3. Begin it in a folder of its own.
    runs = args.runs or RUNS
    name = name_of_run(args.name, f"{short_name(args.data)[:40]}-{args.preset}", runs)
    return Journey.begin(args.data, name, model_config, train_config, runs, command, args.text_field, args.clean, team)


def run_train(args: argparse.Namespace) -> int:
    """Train a model, watch it learn, write the run folder, and let the model speak."""
    from chapters.ch08_distributed import team_of_processes
    from chapters.ch10_journey import Journey

    # 1. Begin in one process. Those that share the work, if any, join when the run folder is there.
    with team_of_processes(args.shard) as team:
        journey = team.assemble(lambda: open_journey(args, team), lambda folder: Journey.resume(folder, team))
        # 2. Train together, then tell.
        finished = journey.train()
        if finished and team.first:
            journey.tell(count=3)
    return 0 if finished else INTERRUPTED


# What each command does.
COMMANDS = {
    "train": run_train, "generate": run_generate, "chat": run_chat, "info": run_info, "eval": run_eval,
    "export": run_export, "onefile": run_onefile, "doctor": run_doctor,
}


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let one process speak where `torchrun` has started several: the others say and ask for nothing in the block."""
    # 1. Leave a process that nobody shares its work with as it is, and the first one.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0":
        yield
        return
    # 2. Send the words of the others nowhere. What is a bug still shows, outside of the block.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@one_voice()
def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    # 1. Turn what the reader can mend into one line; a traceback is for bugs in the book.
    args = read_arguments(sys.argv[1:] if argv is None else argv)
    try:
        return COMMANDS[args.command](args)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    # 2. Count sizes that no machine has among the mistakes.
    except MemoryError as error:
        print(f"error: there is not enough memory ({one_line(error)}): choose smaller sizes", file=sys.stderr)
        return 2
    # 3. Leave quietly when asked to.
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    # Not every terminal or file can hold every letter: one that it cannot must not end a run.
    sys.stdout.reconfigure(errors="replace")
    # A computing centre ends a job by SIGTERM: here it does what Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
