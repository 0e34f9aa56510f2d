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
import dataclasses
import shlex
import signal
import sys
from pathlib import Path

from chapters.ch07_config import PRESETS, GPTConfig
from chapters.ch08_config import TrainConfig
from chapters.ch09_config import DecodingConfig, SamplingConfig
from chapters.ch10_command_line import chosen, one_line, one_voice, read_arguments, say, sized
from corpora.documents import short_name

# Everything is found from this file, wherever the command was typed.
ROOT = Path(__file__).resolve().parent
RUNS, STORYTELLER = ROOT / "runs", ROOT / "models" / "storyteller"

# The exit code of a run that was stopped by Ctrl-C or SIGTERM, as shells give it.
INTERRUPTED = 130


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
    config = SamplingConfig(**chosen(SamplingConfig, args))
    model, tokenizer = open_model(args.model)
    from chapters.ch10_chat import chat

    chat(model, tokenizer, config, args.stop)
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print a model's sizes, its parameters by part, and what it costs to run and to train."""
    # 1. Read sizes from a preset, or from a folder's config.json.
    if args.preset:
        name, config = args.preset, PRESETS[args.preset]
    else:
        model, _ = open_model(args.model)
        name, config = str(args.model or default_model().name), model.config
    from chapters.ch10_costs import compare, describe

    # 2. Print what follows from them; and of a run, what was expected and what came.
    print(f"{name}: {config}\n", *describe(config), sep="\n")
    if not args.preset:
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


@one_voice()
def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    # 1. Turn what the reader can mend into one line; a traceback is for bugs in the book.
    args = read_arguments(sys.argv[1:] if argv is None else argv, __doc__)
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
