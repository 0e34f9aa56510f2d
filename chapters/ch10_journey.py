"""The whole journey of `python main.py`: text, tokenizer, model, training, stories.

Every step is a chapter; this file calls them in order and tells the reader what happens. A run folder keeps
all that is needed to repeat or to continue the run, and everything the run has shown.

What could only fail later is asked first: whether the text fills a row, the machine has the memory, the model can be
saved. A mistake then costs seconds, and leaves nothing behind. The answers stand where they are known, in the
modules of chapters 7 and 8.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch02_writing import append_durably, write_atomically
from chapters.ch07_families import family_of
from chapters.ch07_gpt_model import GPT, GPTConfig, count_parameters
from chapters.ch08_checkpoint import same_dice
from chapters.ch08_distributed import ALONE, Alone
from chapters.ch08_run import draw_loss_curve, new_run_folder, read_metrics, write_card
from chapters.ch08_scale import check_machine, tokens_per_second
from chapters.ch08_store import TokenStore, check_text, open_store
from chapters.ch08_training import TrainConfig, Trainer, bits_per_byte
from chapters.ch09_inference import SamplingConfig, generate_batch, stream_story
from chapters.ch10_costs import clock, write_costs
from corpora import stories
from corpora.documents import TRAIN, VALIDATION, Corpus, load_corpus

# Characters the tokenizer learns from; held-out tokens examined at each look and at the end, and stories sampled.
TOKENIZER_CHARACTERS = 2_000_000
LOOK_TOKENS, EXAMINED_TOKENS, LOOK_STORIES, EXAMINED_STORIES = 16_000, 400_000, 32, 200

# The folder of tokenized texts, beside the runs that use them. It may be deleted; the next run makes it again.
TOKENS = ".tokens"


class Journey:
    """One training run, from its text to its stories, told to the reader as it happens.

    `Journey.begin` starts a new one and `Journey.resume` goes on with an interrupted one; `train` and `tell`
    do what their names say. What it holds:

    settings      data, command, model and training, as they stand in the run folder's settings.json
    corpus        documents to learn from and held-out ones
    model         chapter 7's GPT, with fresh random weights until `train` or `resume`
    trainer       chapter 8's loop, which calls `look` at every examination
    """

    def __init__(self, settings: dict, folder: Path, corpus: Corpus, tokenizer: BPETokenizer, store: TokenStore,
                 team: Alone):
        # 1. Build what the settings describe. The seed decides the first weights, before anything else draws numbers.
        self.settings, self.folder, self.corpus, self.tokenizer = settings, folder, corpus, tokenizer
        self.train_config, self.remembers = TrainConfig(**settings["train"]), False
        torch.manual_seed(self.train_config.seed)
        self.model = GPT(GPTConfig(**settings["model"]))

        # 2. Cut the tokens into rows, and hand all to the trainer of chapter 8. An even part of the held-out texts
        # is enough for a look during training; at the end more of them are examined.
        self.store, context = store, self.model.config.max_seq_len
        rows, self.validation = (store.rows(side, context) for side in (TRAIN, VALIDATION))
        look = self.validation.sample(LOOK_TOKENS, tokenizer)
        self.trainer = Trainer(self.model, rows, look, self.train_config, folder, self.look, team)

        # 3. Say how much there is. The bytes of a token, an average, turn a loss per token into one per byte.
        learnt, held_out = store.about[TRAIN], store.about[VALIDATION]
        self.bytes_per_token = learnt["bytes"] / learnt["tokens"]
        copies = f", {store.about['duplicates']:,} exact copies dropped" if settings["clean"] else ""
        print(f"Text   {learnt['documents']:,} documents to learn from, {held_out['documents']:,} held out{copies}, "
              f"{rows.num_bytes / 1e6:.1f} MB in {learnt['tokens']:,} tokens of {self.bytes_per_token:.1f} bytes")
        print(f"Model  {count_parameters(self.model.config)['total']:,} parameters, context {context} tokens")

        # 4. Say how to go on before anything can happen: a run that is killed says nothing more.
        self.how_to_go_on = f"{team.launcher} main.py train{team.flags} --resume {folder}"
        print(f"Run    {folder}: whenever it stops, it goes on with\n       {self.how_to_go_on}")

    @classmethod
    def begin(cls, data: str, name: str, model: GPTConfig, train: TrainConfig, runs: Path, command: str,
              text_field: str = "text", clean: bool = False, team: Alone = ALONE) -> "Journey":
        """Return a new journey: corpus made or read, tokenizer trained, run folder named and its settings written.

        `data`, `text_field` and `clean` are what `load_corpus` takes, `team` shares the training. Tokens are kept in
        `runs/.tokens`. Raises ValueError for data that cannot be learnt from, before there is a run folder.
        """
        # 1. Refuse at once what could not be saved at the end. Then say what will happen, and read or make the text.
        family_of(model)
        team.check(train)
        source = "tell children's stories by a grammar" if data == "stories" else f"read {data}"
        print(f"I will {source}, train a tokenizer on the text, then a GPT, and let the GPT speak.\n")
        corpus = load_corpus(data, train.seed, text_field, clean)

        # 2. Train the tokenizer on a part that is large enough to know the words. A short text may hold
        # fewer pairs than asked for, and the model's table is made for what there is.
        tokenizer = BPETokenizer.train(corpus.beginning(TOKENIZER_CHARACTERS), model.vocab_size)
        model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)

        # 3. Refuse a text or a machine that is too small, before anything is written.
        check_text(data, corpus, tokenizer, model.max_seq_len)
        check_machine(model, train)
        store = open_store((runs / name).parent / TOKENS, corpus, tokenizer)

        # 4. Save the tokenizer, and then what the run is: a folder with settings is a run that can go on.
        folder = new_run_folder(runs, name)
        settings = {"data": data, "text_field": text_field, "clean": clean, "tokens": store.digest, "command": command,
                    "model": dataclasses.asdict(model), "train": dataclasses.asdict(train)}
        tokenizer.save(folder)
        write_atomically(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
        return cls(settings, folder, corpus, tokenizer, store, team)

    @classmethod
    def resume(cls, folder: Path, team: Alone = ALONE) -> "Journey":
        """Return the journey of a run folder, at its last checkpoint, or at its beginning where there is none yet.

        Text and tokenizer are the same again, and so is the order of the batches: the run goes on as if it
        had never stopped, in as many processes as there are now.

        Raises ValueError when the folder holds no run that can go on.
        """
        # 1. Read the settings. They are the last thing that is written before a run begins.
        try:
            settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            train, model, _ = TrainConfig(**settings["train"]), GPTConfig(**settings["model"]), settings["command"]
            data, text_field, clean, tokens = (settings[key] for key in ("data", "text_field", "clean", "tokens"))
            if [type(value) for value in (data, text_field, clean)] != [str, str, bool]:
                raise ValueError(f"data {data!r}, text_field {text_field!r}, clean {clean!r}")
        except (OSError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"--resume {folder}: no run to go on with ({error}); begin a new one") from error

        # 2. Find the same text again. With another one, the run would not be the same run, and batch number 200
        # would hold other rows than it would have held.
        check_machine(model, train)
        corpus = load_corpus(data, train.seed, text_field, clean)
        tokenizer = BPETokenizer.load(folder)
        store = open_store(folder.parent / TOKENS, corpus, tokenizer)
        if store.digest != tokens:
            raise ValueError(f"--resume {folder}: the text of --data {data} is not what it was when the "
                             "run began; put the old text back, or begin a new run")

        # 3. Go back to the last checkpoint.
        journey = cls(settings, folder, corpus, tokenizer, store, team)
        journey.trainer.resume()
        print(f"Step   {journey.trainer.step} of {journey.train_config.max_steps} is where the last checkpoint stands")
        # 4. Remember whether the great moment has been announced.
        lines = read_metrics(folder) if journey.trainer.step else []
        journey.remembers = any(line.get("stories_that_parse", 0) >= 0.5 for line in lines)
        return journey

    def predict(self) -> tuple[float, float]:
        """Measure a step in each number format, compiled and not; print and return how many seconds the run will take.

        A step is measured forward and backward, in tokens per second. The weights do not move. The prediction
        is a range, because a laptop slows down when it gets warm, and because other programs want to work too;
        what the run computes does not depend on any of this.
        """
        # 1. Measure without the compiler.
        trainer = self.trainer
        tokens = self.train_config.batch_size * self.model.config.max_seq_len
        print(f"\nThis machine ({torch.get_num_threads()} threads, {trainer.device.type}), steps of {tokens} tokens:")
        formats = dict.fromkeys((torch.float32, torch.bfloat16, trainer.dtype))
        speeds = {dtype: self._measure(dtype, False, tokens) for dtype in formats}

        # 2. Measure with it, in the format in use: the first call pays for compiling.
        used = speeds[trainer.dtype]
        if trainer.compiled:
            used = self._measure(trainer.dtype, True, tokens)
        trainer.model.zero_grad(set_to_none=True)

        # 3. Predict as a range. The optimizer, the looks and the samples come on top of the gradient, and a busy
        # machine takes its share.
        steps = self.train_config.max_steps - trainer.step
        seconds = steps * self.train_config.grad_accum_steps * tokens / used
        print(f"So {steps} steps will take about {clock(1.2 * seconds)} to {clock(1.8 * seconds)} minutes.\n")
        return 1.2 * seconds, 1.8 * seconds

    def _measure(self, dtype: torch.dtype, compiled: bool, tokens: int) -> float:
        """Print and return the tokens per second of the gradient in one number format.

        Without the compiler the trainer's plain function is called, with it the compiled one.
        """
        # 1. Lend the trainer this format, and take it back.
        trainer = self.trainer
        saved = trainer.dtype, trainer.loss_of
        trainer.dtype, trainer.loss_of = dtype, trainer.loss_of if compiled else trainer.loss_on
        speed, first = tokens_per_second(lambda: trainer.gradient(0), tokens)
        trainer.dtype, trainer.loss_of = saved

        # 2. Say which line is the one in use.
        label = str(dtype).removeprefix("torch.") + (", compiled" if compiled else "")
        used = "  used" if dtype == trainer.dtype and compiled == trainer.compiled else ""
        print(f"  {label:20}{speed:8,.0f} tokens/s{used}" + (f"; compiling took {first:.0f} s" if compiled else ""))
        return speed

    def look(self, trainer: Trainer, metrics: dict) -> None:
        """Show what the model says now, and how many of its stories the grammar accepts.

        The same prompt and the same dice at every look, so that what changes is the model alone.
        """
        # 1. Continue the prompt. Of another text nobody knows how it begins: then the model begins.
        speak = SamplingConfig(seed=1, max_new_tokens=60)
        prompt = "" if self.corpus.floor is None else stories.OPENING
        text = prompt + "".join(stream_story(self.model, self.tokenizer, prompt, speak))
        note = f"step {trainer.step}, {metrics['validation_bits_per_byte']:.3f} bits per byte"

        # 2. For the book's own stories, ask the grammar about many samples.
        if self.corpus.floor is not None:
            results = [stories.parse(story) for story in self.sample_stories(LOOK_STORIES, seed=2)]
            metrics["stories_that_parse"] = sum(result.ok for result in results) / LOOK_STORIES
            note += "\n   " + self._remember(results)

        # 3. Say it above the progress bar, and keep it.
        tqdm.write(f"\n── {note}\n{text}\n", file=sys.stdout)
        append_durably(self.folder / "samples.txt", f"── {note}\n{text}\n\n")

    def _remember(self, results: list[stories.ParseResult]) -> str:
        """Return in one line how many samples are stories, and a slip, if names and things do not stay right yet.

        A story is right as a whole or not at all: one wrong name in sixty words, and the grammar refuses it.
        """
        # 1. Prefer a slip of memory: a wrong name or thing says that no head looks back.
        accepted = sum(result.ok for result in results)
        slips = [result.reason for result in results if result.kind in ("name", "thing", "pronoun")]
        line = f"{accepted} of {len(results)} samples are stories from beginning to end"

        # 2. Announce the moment once: when half of the samples hold together, the looking back works.
        if accepted >= len(results) / 2 and not self.remembers:
            self.remembers = True
            return line + ": from here on names and things mostly stay right: the model has learnt to look back"
        return line + (f"; a slip: {slips[0]}" if slips else "")

    def sample_stories(self, count: int, seed: int, temperature: float = 0.8, batch_size: int = 100) -> list[str]:
        """Return `count` stories told from their first letter, many at a time.

        A story ends at its end token; one that never ends is cut where the context ends.
        """
        # 1. Draw a batch at a time, each row beginning with nothing but the end token of a story before.
        told, eot = [], self.tokenizer.eot_id
        for first in range(0, count, batch_size):
            config = SamplingConfig(temperature, seed=seed + first, max_new_tokens=self.model.config.max_seq_len)
            prompts = torch.full((min(batch_size, count - first), 1), eot, device=self.trainer.device)
            rows = torch.stack(list(generate_batch(self.model, prompts, config)), dim=1).tolist()

            # 2. Keep what each row said before its end.
            told += [self.tokenizer.decode(row[: row.index(eot)] if eot in row else row) for row in rows]
        return told

    def train(self) -> bool:
        """Train with a progress bar, then write the model folder; return False when interrupted.

        An interrupted run has saved its state, and the reader is told how to go on. Raises ValueError with the
        same advice when the disk refuses a file, and as the Trainer does.
        """
        # 1. Do all there is to do. An interrupt outside of the loop finds everything saved already.
        try:
            finished = self._train_and_write()
        except KeyboardInterrupt:
            finished = False
        except OSError as error:
            raise ValueError(f"{error}, then go on with: {self.how_to_go_on}") from error

        # 2. Say how to go on.
        if not finished:
            print(f"\nStopped at step {self.trainer.step}, and all is saved. Go on with:\n  {self.how_to_go_on}")
        return finished

    def _train_and_write(self) -> bool:
        """Predict, train and write the model folder; return False when the training was interrupted.

        What was predicted and what came is written down, so that a reader can hold one against the other.
        Of a run that was stopped after its last step, only the writing is done.
        """
        # 1. Predict without touching the random numbers: the run shall not depend on whether it was predicted.
        steps, trainer = self.train_config.max_steps, self.trainer
        if (ahead := steps - trainer.step) > 0:
            with same_dice(trainer.device):
                predicted = self.predict()

        # 2. Train. The bar shows step, loss, speed and the time left.
        began = time.perf_counter()
        with tqdm(total=steps, initial=trainer.step, unit="step", desc="training", dynamic_ncols=True) as bar:
            finished = trainer.train(bar)
        took = time.perf_counter() - began

        # 3. Let one process write, however many have trained: what they hold is equal.
        if finished:
            if ahead > 0 and trainer.team.first:
                write_costs(self.folder, trainer.device, ahead, predicted, took)
            trainer.team.ask_first(lambda: self._write(self._examine()))
        return finished

    def _examine(self) -> dict[str, str]:
        """Return what the card says of the model, measured in float32.

        Of many held-out texts an even part is examined: a gigabyte would take longer than the training.
        Sampled stories are counted at temperature 0.8, the default of `generate`.
        """
        # 1. Measure the surprise, beside the least that any model could have.
        examined = self.validation.sample(EXAMINED_TOKENS, self.tokenizer)
        share, score = examined.num_bytes / self.validation.num_bytes, bits_per_byte(self.model, examined)
        results = {"held-out documents": f"{self.store.about[VALIDATION]['documents']:,}",
                   "share of their text that was examined": f"{share:.0%}", "bits per byte": f"{score:.4f}"}

        # 2. Compare with the floor, where a grammar has one.
        if self.corpus.floor is not None:
            results["floor of the grammar, bits per byte"] = f"{self.corpus.floor:.4f}"
            results["ratio to the floor"] = f"{score / self.corpus.floor:.3f}"

        # 3. Count what a reader would ask of stories: are they stories, and are they new?
        if self.corpus.floor is not None:
            told = self.sample_stories(EXAMINED_STORIES, seed=100)
            accepted = sum(stories.parse(story).ok for story in told)
            results["samples at temperature 0.8 that the grammar accepts"] = f"{accepted} of {len(told)}"

            # 4. A copy would be memory, not language.
            results["samples that copy a training story"] = str(len(set(told) & set(self.corpus.train)))
        return results

    def _write(self, results: dict[str, str]) -> None:
        """Write the model folder, its card and the loss curve, and print the results.

        The folder opens in Hugging Face Transformers, and `python main.py generate --model FOLDER` opens it here.
        """
        # 1. Write weights, sizes and card.
        config, train, folder = self.model.config, self.train_config, self.folder
        tokens = train.batch_size * train.grad_accum_steps * config.max_seq_len
        self.model.save_pretrained(folder, end_token=self.tokenizer.eot_id)
        write_card(folder, results, name=folder.name, parameters=count_parameters(config)["total"],
                   data=self.settings["data"], steps=train.max_steps, tokens_per_step=tokens, seed=train.seed,
                   command=self.settings["command"])

        # 2. Draw the curve, and show everything once.
        draw_loss_curve(read_metrics(folder), folder / "loss.png", self.bytes_per_token, self.corpus.floor)
        for name, value in results.items():
            print(f"  {name}: {value}")
        print(f"All of it is in {folder}: the model folder, loss.png, samples.txt, metrics.jsonl.")

    def tell(self, count: int) -> None:
        """Let the trained model tell stories, word by word.

        The KV cache of chapter 9 makes this faster than one can read.
        """
        # 1. Begin each with nothing but an end token, as every training story began.
        for number in range(count):
            print(f"\n── Story {number + 1}\n")

            # 2. Print each piece as it is made.
            for piece in stream_story(self.model, self.tokenizer, "", SamplingConfig(seed=number)):
                print(piece, end="", flush=True)
            print()
