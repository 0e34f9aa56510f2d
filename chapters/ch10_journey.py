"""The whole journey of `python main.py`: text, tokenizer, model, training, stories.

Every step is a chapter; this file calls them in order and tells the reader what happens. A run folder keeps
all that is needed to repeat or to continue the run, and everything the run has shown.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT, GPTConfig, count_parameters
from chapters.ch07_pretrained import write_atomically
from chapters.ch08_run import draw_loss_curve, new_run_folder, read_metrics, write_card
from chapters.ch08_scale import tokens_per_second
from chapters.ch08_training import TokenRows, TrainConfig, Trainer, bits_per_byte
from chapters.ch09_inference import SamplingConfig, generate, generate_batch, stream_text
from corpora import stories
from corpora.documents import Corpus, load_corpus

PROMPT = "Once upon a time"
# Documents the tokenizer learns from, documents examined during training, stories sampled at each look.
TOKENIZER_BYTES, LOOK_DOCUMENTS, LOOK_STORIES = 2_000_000, 100, 32


class Journey:
    """One training run, from its text to its stories, told to the reader as it happens."""

    def __init__(self, settings: dict, folder: Path, corpus: Corpus, tokenizer: BPETokenizer):
        # 1. Build what the settings describe. The seed decides the first weights.
        self.settings, self.folder, self.corpus, self.tokenizer = settings, folder, corpus, tokenizer
        self.train_config = TrainConfig(**settings["train"])
        torch.manual_seed(self.train_config.seed)
        self.model = GPT(GPTConfig(**settings["model"]))

        # 2. Turn the texts into rows of ids.
        context = self.model.config.max_seq_len
        rows = TokenRows(corpus.train, tokenizer, context)
        self.validation = TokenRows(corpus.validation, tokenizer, context)
        look = TokenRows(corpus.validation[:LOOK_DOCUMENTS], tokenizer, context)
        self.bytes_per_token = rows.num_bytes / rows.counts.sum()

        # 3. Hand all to the trainer of chapter 8.
        self.trainer = Trainer(self.model, rows, look, self.train_config, folder, self.look)
        print(f"Text   {len(corpus.train):,} documents to learn from, {len(corpus.validation):,} held out, "
              f"{rows.num_bytes / 1e6:.1f} MB in {rows.counts.sum():,} tokens of {self.bytes_per_token:.1f} bytes")
        print(f"Model  {count_parameters(self.model.config)['total']:,} parameters, context {context} tokens")

    @classmethod
    def begin(cls, data: str, name: str, model: GPTConfig, train: TrainConfig, runs: Path, command: str) -> "Journey":
        """Return a new journey: corpus made or read, tokenizer trained, run folder named and its settings written."""
        # 1. Say what will happen, and read or make the text.
        print(f"I will make or read a text ({data}), train a tokenizer, then a GPT, and let it speak.\n")
        corpus = load_corpus(data, train.seed)

        # 2. Train the tokenizer on a part that is large enough to know the words.
        sample, size = [], 0
        for document in corpus.train:
            sample.append(document)
            size += len(document)
            if size >= TOKENIZER_BYTES:
                break
        # 3. Write down what the run is, before it begins: an interrupted run must know.
        tokenizer = BPETokenizer.train(sample, model.vocab_size)
        model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
        folder = new_run_folder(runs, name)
        settings = {"data": data, "command": command,
                    "model": dataclasses.asdict(model), "train": dataclasses.asdict(train)}
        write_atomically(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
        # 4. Save the tokenizer: without it the weights mean nothing.
        tokenizer.save(folder)
        return cls(settings, folder, corpus, tokenizer)

    @classmethod
    def resume(cls, folder: Path) -> "Journey":
        """Return the journey of a run folder, at its last checkpoint.

        Raises ValueError when the folder holds no run that can go on.
        """
        # 1. Read the settings, make the same text again, and go back to the last checkpoint.
        try:
            settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"--resume {folder}: no run to go on with ({error})") from error
        corpus = load_corpus(settings["data"], settings["train"]["seed"])
        journey = cls(settings, folder, corpus, BPETokenizer.load(folder))
        journey.trainer.resume()
        return journey

    def predict(self) -> None:
        """Measure a step in each number format, compiled and not, and print how long the run will take."""
        # 1. Measure on real batches; the weights do not move, and the random numbers start afresh after it.
        trainer, chosen = self.trainer, self.trainer.dtype
        tokens, random_state = self.train_config.batch_size * self.model.config.max_seq_len, torch.get_rng_state()
        print(f"\nThis machine ({torch.get_num_threads()} threads, {trainer.device.type}), one step of {tokens} tokens:")
        for dtype in (torch.float32, torch.bfloat16):
            trainer.dtype, loss_of, trainer.loss_of = dtype, trainer.loss_of, trainer._loss
            speed, _ = tokens_per_second(lambda: trainer.gradient(0), tokens)
            trainer.loss_of, trainer.dtype = loss_of, chosen
            # 2. Say which of them is the one in use.
            self._show_speed(dtype, False, speed, used=dtype == chosen and not trainer.compiled)
            if dtype == chosen:
                used = speed
        # 3. Compile in the format in use. The first call pays for it.
        if trainer.compiled:
            used, seconds = tokens_per_second(lambda: trainer.gradient(0), tokens)
            self._show_speed(chosen, True, used, used=True, note=f"compiling took {seconds:.0f} s")
        trainer.model.zero_grad(set_to_none=True)
        torch.set_rng_state(random_state)

        # 4. Predict as a range: evaluations, samples and a busy machine take their share.
        steps = self.train_config.max_steps - trainer.step
        fastest = steps * self.train_config.grad_accum_steps * tokens / used
        print(f"So {steps} steps will take about {clock(fastest)} to {clock(1.4 * fastest)} minutes.\n")

    def _show_speed(self, dtype: torch.dtype, compiled: bool, speed: float, used: bool, note: str = "") -> None:
        """Print one line of the table of speeds."""
        label = str(dtype).removeprefix("torch.") + (", compiled" if compiled else "")
        remarks = ", ".join(filter(None, ["used" if used else "", note]))
        print(f"  {label:20} {speed:10,.0f} tokens/s  {remarks}")

    def look(self, trainer: Trainer, metrics: dict) -> None:
        """Show what the model says now, and how many of its stories the grammar accepts."""
        # 1. Continue the same prompt with the same dice at every look.
        speak = SamplingConfig(seed=1, max_new_tokens=60)
        ids = [self.tokenizer.eot_id, *self.tokenizer.encode(PROMPT)]
        text = PROMPT + "".join(stream_text(self.tokenizer, generate(self.model, ids, speak, [self.tokenizer.eot_id])))
        note = f"step {trainer.step}, {metrics['validation_bits_per_byte']:.3f} bits per byte"

        # 2. For the book's own stories, ask the grammar about many samples, and name a slip.
        if self.corpus.name == "stories":
            results = [stories.parse(story) for story in self.sample_stories(LOOK_STORIES, seed=2)]
            metrics["stories_that_parse"] = sum(result.ok for result in results) / len(results)
            note += f", {sum(result.ok for result in results)} of {len(results)} samples are stories"
            slips = [result.reason for result in results if result.kind in ("name", "thing", "pronoun")]
            note += f" (a slip: {slips[0]})" if slips else ""
        # 3. Say it above the progress bar, and keep it.
        tqdm.write(f"\n── {note}\n{text}\n", file=sys.stdout)
        with open(self.folder / "samples.txt", "a", encoding="utf-8") as file:
            file.write(f"── {note}\n{text}\n\n")

    def sample_stories(self, count: int, seed: int, temperature: float = 0.8, batch_size: int = 100) -> list[str]:
        """Return `count` stories told from their first letter, many at a time."""
        # 1. Draw whole batches; a story ends at its end token, and one that never ends is cut by the context.
        told, eot = [], self.tokenizer.eot_id
        for first in range(0, count, batch_size):
            rows = min(batch_size, count - first)
            config = SamplingConfig(temperature, seed=seed + first, max_new_tokens=self.model.config.max_seq_len)
            prompts = torch.full((rows, 1), eot, device=self.trainer.device)
            done, columns = torch.zeros(rows, dtype=torch.bool, device=self.trainer.device), []
            # 2. Stop early when every row has ended.
            for token in generate_batch(self.model, prompts, config):
                columns.append(token)
                done |= token == eot
                if done.all():
                    break
            # 3. Keep what each row said before its end.
            for row in torch.stack(columns, dim=1).tolist():
                told.append(self.tokenizer.decode(row[: row.index(eot)] if eot in row else row))
        return told

    def train(self) -> bool:
        """Train with a progress bar, then write the model folder; return False when interrupted."""
        # 1. Predict, then train. The bar shows step, loss, speed and the time left.
        self.predict()
        steps = self.train_config.max_steps
        with tqdm(total=steps, initial=self.trainer.step, unit="step", desc="training", dynamic_ncols=True) as bar:
            finished = self.trainer.train(bar)
        if not finished:
            print(f"\nStopped at step {self.trainer.step}, and all is saved. Go on with:")
            print(f"  python main.py train --resume {self.folder}")
            return False

        # 2. Examine on all held-out documents, in float32, and keep everything in the run folder.
        score = bits_per_byte(self.model, self.validation)
        results = {"held-out documents": f"{len(self.corpus.validation):,}", "bits per byte": f"{score:.4f}"}
        if self.corpus.floor is not None:
            results["floor of the grammar, bits per byte"] = f"{self.corpus.floor:.4f}"
            results["ratio to the floor"] = f"{score / self.corpus.floor:.3f}"
        if self.corpus.name == "stories":
            told = self.sample_stories(200, seed=100)
            # 3. Count what a reader would ask: are they stories, and are they new?
            accepted = sum(stories.parse(story).ok for story in told)
            results["of 200 samples at temperature 0.8, accepted by the grammar"] = str(accepted)
            results["of 200 samples, copies of a training story"] = str(len(set(told) & set(self.corpus.train)))
        self._write(results)
        return True

    def _write(self, results: dict[str, str]) -> None:
        """Write the model folder, its card and the loss curve, and print the results."""
        # 1. Weights, sizes, card.
        config, train = self.model.config, self.train_config
        self.model.save_pretrained(self.folder)
        tokens = train.batch_size * train.grad_accum_steps * config.max_seq_len
        write_card(self.folder, results, name=self.folder.name, parameters=count_parameters(config)["total"],
                   data=self.settings["data"], steps=train.max_steps, tokens_per_step=tokens, seed=train.seed,
                   command=self.settings["command"])

        # 2. The curve.
        draw_loss_curve(read_metrics(self.folder), self.folder / "loss.png", self.bytes_per_token, self.corpus.floor)
        for name, value in results.items():
            print(f"  {name}: {value}")
        print(f"All of it is in {self.folder}: the model folder, loss.png, samples.txt, metrics.jsonl.")

    def tell(self, count: int) -> None:
        """Let the trained model tell stories, word by word."""
        # 1. Stream them: the cache makes this faster than one can read.
        for number in range(count):
            print(f"\n── Story {number + 1}\n")
            ids = generate(self.model, [self.tokenizer.eot_id], SamplingConfig(seed=number), [self.tokenizer.eot_id])
            for piece in stream_text(self.tokenizer, ids):
                print(piece, end="", flush=True)
            print()


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
