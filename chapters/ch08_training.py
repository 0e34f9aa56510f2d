"""Training: show the model text, measure its surprise, and nudge every number to lower it.

One step, repeated some thousand times:

    logits   = model(x)                          guess the next token everywhere
    loss     = mean of -log p(true next token)   how surprised was it?
    gradient = d loss / d every parameter        which nudge would lower the surprise?
    AdamW moves each parameter a little way against its gradient

Nothing else happens. No rule of grammar is written down anywhere: whatever lowers the surprise stays. The samples
of a run show in which order it comes: letters, words, sentences, and at last who did what to whom.

The parts of a step stand in the order of a run: the loss, the gradient's length, the optimizer, the measure on
held-out text, the checkpoint, and the `Trainer` that calls them all.

`cross_entropy`, `clip_gradients` and `AdamW` are written out here and tested against PyTorch's, which
the `Trainer` uses because they are fused into fewer passes over memory. `ch08_data.py` makes batches of text,
`ch08_scale.py` picks device, number format and compiler, `ch08_checkpoint.py` keeps what a killed run needs to go
on, `ch08_guard.py` says what went wrong, and `ch08_distributed.py` lets several processes share the work; chapter 9
makes the trained model speak.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chapters.ch02_writing import append_durably
from chapters.ch07_gpt_model import GPT
from chapters.ch08_checkpoint import REMEDY, cut_logs, load_checkpoint, log_sizes, save_checkpoint
from chapters.ch08_config import TrainConfig, cosine_warmup_lr
from chapters.ch08_data import TokenRows, get_batch
from chapters.ch08_distributed import ALONE, Alone, whole
from chapters.ch08_guard import first_bad_tensor, stop_politely
from chapters.ch08_muon import Muon
from chapters.ch08_scale import autocast, choose_device, choose_dtype, compiler_pays, loss_scaler, one_order

__all__ = ["AdamW", "TokenRows", "TrainConfig", "Trainer", "clip_gradients", "cosine_warmup_lr", "cross_entropy",
           "get_batch", "load_checkpoint", "save_checkpoint"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean surprise, in nats, of a model that meets these true next tokens.

    The surprise of one token is -log of the probability it was given: 0 when it was certain, 10.8 when
    it was one of 50 257 equals. The specification of `F.cross_entropy`.

    Shapes: logits (B, T, V), targets (B, T) -> a single number.
    """
    # 1. Turn scores into log-probabilities. Subtracting the maximum first keeps exp from overflowing.
    shifted = logits - logits.max(dim=-1, keepdim=True).values  # (B, T, V)
    log_probs = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()  # (B, T, V)

    # 2. Pick the true token's entry at every position, and average.
    picked = log_probs.gather(-1, targets[..., None])  # (B, T, 1)
    return -picked.mean()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Shrink all gradients together so that their common length is at most `max_norm`; return the length before.

    One odd batch can have a gradient a hundred times the usual. Its direction is kept, its length is not.
    The specification of `torch.nn.utils.clip_grad_norm_`.

    Source: Pascanu, Mikolov, Bengio 2013 (arXiv 1211.5063).
    """
    # 1. Measure one length over all parameters, as if they were a single long vector.
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))

    # 2. Scale down, never up.
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    return norm


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, written out; the specification of `torch.optim.AdamW`.

    Each number keeps two running averages: of its gradient (which way?) and of the squared gradient (how
    large usually?). It moves by their ratio, so a number with small gradients moves as far as one with large.

    Source: Kingma & Ba 2014 (arXiv 1412.6980), algorithm 1; Loshchilov & Hutter 2017 (1711.05101), algorithm 2.
    """

    def __init__(self, params, lr: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        # 1. Visit each parameter with the settings of its group, and its own two averages.
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                # 2. Begin both averages at zero.
                if not state:
                    state["step"], state["mean"], state["square"] = 0, torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                # 3. Update them: 0.9 of the old plus 0.1 of the new.
                state["mean"].lerp_(p.grad, 1 - beta1)
                state["square"].lerp_(p.grad.square(), 1 - beta2)
                # 4. Undo the pull of the zeros they began with.
                mean = state["mean"] / (1 - beta1 ** state["step"])
                square = state["square"] / (1 - beta2 ** state["step"])
                # 5. Decay, then move. Decay shrinks the number itself, not its gradient: that is the W.
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * mean / (square.sqrt() + group["eps"]))


@torch.no_grad()
def bits_per_byte(model: nn.Module, data: TokenRows, batch_size: int = 32, amp=None) -> float:
    """Return the model's mean surprise on these documents, in bits for each byte of their text.

    Unlike the loss per token, it can be compared between tokenizers. The end token's bits count, its
    bytes do not (it has none): the convention of the stories' floor. The model's mode is left as found.
    """
    # 1. Read rows of similar length together, without dropout.
    training, device = model.training, next(model.parameters()).device
    model.eval()
    order, nats = np.argsort(data.counts, kind="stable"), 0.0
    # 2. Predict, a batch of rows at a time.
    for i in range(0, len(data), batch_size):
        chosen = order[i : i + batch_size]
        longest = int(data.counts[chosen].max())
        x, y = (part[:, :longest].to(device) for part in data.rows(chosen))
        # 3. Add up the surprise in float32, whatever format the products use.
        with amp or torch.no_grad():
            logits = model(x)
        # 4. Leave out what lies behind a document's end: it is another row's to count.
        counted = torch.arange(longest) < torch.from_numpy(data.counts[chosen])[:, None]
        losses = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="none")
        nats += losses[counted.to(device).flatten()].sum().item()
    model.train(training)
    return nats / math.log(2) / data.num_bytes


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Return matrices (which decay) and vectors (which do not) as two groups for an optimizer.

    Decay asks "is this number still needed?". For a norm's scale near 1, pulling it to 0 would be wrong.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizers(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a run: AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    The schedule sets one learning rate for all of them.
    """
    # 1. Let AdamW take all, or leave it what Muon is not made for: the embedding and the vectors.
    groups, optimizers = parameter_groups(model, config), []
    if config.optimizer == "muon":
        inner = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks.")]
        groups[0]["params"] = [p for p in groups[0]["params"] if all(p is not q for q in inner)]
        optimizers.append(Muon(inner, config.learning_rate, config.beta1, config.weight_decay, dtype))

    # 2. Take PyTorch's fused AdamW: the same numbers as ours, in one pass over memory.
    betas = (config.beta1, config.beta2)
    return [torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True), *optimizers]


class Trainer:
    """The loop that turns a random GPT into a trained one, and writes down how it went.

    `run_folder` receives `metrics.jsonl` (a line per evaluation) and `checkpoint/`. After each evaluation
    `on_evaluation(trainer, metrics)` is called, and may add to the metrics. `bar`, if given, is a tqdm bar.
    `team` says who shares the work; `model` takes the steps, and `whole` is all of it, which is the same model
    unless the team holds it in parts.
    """

    def __init__(self, model: GPT, train: TokenRows, validation: TokenRows, config: TrainConfig, run_folder: Path,
                 on_evaluation: Callable[["Trainer", dict], None] | None = None, team: Alone = ALONE):
        # 1. Put the model where it trains, with whoever shares the work.
        self.device, self.team = choose_device(), team
        self.team.check(config)
        self.whole, self.config, self.run_folder = model.to(self.device), config, Path(run_folder)
        self.model = self.team.spread(self.whole)
        self.train_rows, self.validation_rows, self.on_evaluation = train, validation, on_evaluation

        # 2. Choose the number format explicitly, and with it whether small slopes need help.
        self.dtype = choose_dtype(config.dtype, self.device)
        self.optimizers = make_optimizers(self.model, config, self.dtype)
        self.scaler = loss_scaler(self.device, self.dtype)

        # 3. Compile the step where that pays; the loss is the same either way.
        self.compiled = self.team.compiles and compiler_pays(config, self.device)
        self.loss_of = torch.compile(self.loss_on) if self.compiled else self.loss_on
        self.step, self.stop_requested, self.last_score = 0, False, math.nan

        # 4. Remember since the last evaluation: the losses, and the seconds spent on steps alone.
        self.losses, self.seconds = [], 0.0
        self.checkpoint = self.run_folder / "checkpoint" / "state.safetensors"

    def loss_on(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one batch as a single number with a gradient."""
        with autocast(self.device, self.dtype):
            logits = model(x)  # (B, T, V)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())

    def _batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one batch of the run, on the device."""
        x, y = get_batch(self.train_rows, index, self.config.batch_size, self.config.seed)
        return x.to(self.device), y.to(self.device)

    def gradient(self, step: int) -> float:
        """Leave the gradient of one step's whole batch in the parameters, and return the batch's loss.

        Several small batches in a row, each loss divided by their number, add up to the gradient of one
        large batch: what does not fit in memory at once is accumulated.
        """
        # 1. Read each part of the batch, and of its rows those that are this process's to learn from.
        total, parts = 0.0, self.config.grad_accum_steps
        self.team.throw_dice(self.config.seed, step)
        for part in range(parts):
            x, y = self.team.shares(self._batch(step * parts + part))[self.team.rank]
            # 2. Add its gradient to what is there, in float16 that of a larger loss. The order of the sums is fixed,
            # or no run could be repeated.
            with one_order(self.device):
                loss = self.loss_of(self.model, x, y) / parts
                self.scaler.scale(loss).backward()
            total += loss.item()
        # 3. Share what was found.
        self.team.average(self.model)
        return self.team.mean(total)

    def evaluation_due(self) -> bool:
        """Return whether to look now: every `eval_every` steps, at the end, and more often while all is new."""
        every = self.config.eval_every
        return self.step % every == 0 or self.step in (every // 4, every // 2, self.config.max_steps)

    def train_step(self) -> dict:
        """Do one step and return its loss, learning rate and gradient norm."""
        # 1. Set the rate that the schedule gives this step.
        c = self.config
        rate = cosine_warmup_lr(self.step, c.learning_rate, c.warmup_steps, c.max_steps, c.final_lr_fraction)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate

        # 2. Find the gradient. Undo what the scaler did before its length is measured, and clip it.
        loss = self.gradient(self.step)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip)).item()
        metrics = {"step": self.step + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm}

        # 3. Refuse a gradient that is no number: it would spoil every weight. Under a scale above 1, which float16
        # alone has, the scale may be to blame.
        if not math.isfinite(loss) or (not math.isfinite(norm) and self.scaler.get_scale() <= 1):
            self.team.gather(self.model, self.whole)
            raise ValueError(self.team.ask_first(self._diagnosis, metrics))
        # 4. Move, all optimizers or none: where float16 overflowed, the batch is passed over, and has no length.
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            metrics["gradient_norm"] = None

        # 5. Choose the next scale. Forget the gradient: a leftover would leak into the next step.
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        return metrics

    def _diagnosis(self, metrics: dict) -> str:
        """Return in one line at which step the numbers exploded, how, and in which tensor first."""
        # 1. Compute the batch once more, in the same pieces, with a look into the model.
        numbers = range(self.step * self.config.grad_accum_steps, (self.step + 1) * self.config.grad_accum_steps)
        batches = (share for number in numbers for share in self.team.shares(self._batch(number)))
        tensor = first_bad_tensor(self.whole, batches, functools.partial(self.loss_on, self.whole))

        # 2. Tell what was known before, and what to do.
        wider = ", or --dtype float32, for float16 ends at 65504" if self.dtype == torch.float16 else ""
        known = {name.replace("_", " "): value for name, value in metrics.items() if value is not None}
        facts = ", ".join(f"{name} {value:.6g}" for name, value in known.items())
        return (f"the run exploded at {facts}; the first tensor that went bad is {tensor}. The last checkpoint is as "
                f"it was. Begin anew with a --learning-rate below {self.config.learning_rate} or longer --warmup-steps"
                f"{wider}")

    def evaluate(self) -> float:
        """Return the bits per byte on the held-out documents."""
        return bits_per_byte(self.whole, self.validation_rows, amp=autocast(self.device, self.dtype))

    def save(self) -> None:
        """Write the checkpoint from which this run can go on."""
        self.team.gather(self.model, self.whole)
        optimizers = self.team.gather_averages(self.optimizers)
        self.team.ask_first(save_checkpoint, self.checkpoint, self.whole, optimizers, self.step, self.config,
                            losses=self.losses, seconds=self.seconds, logs=log_sizes(self.run_folder),
                            last_score=self.last_score, text=self._text_mark(), scaler=self.scaler.state_dict())

    def _text_mark(self) -> str:
        """Return a mark of the text: its first batch depends on every row's number and on the rows drawn."""
        x, y = get_batch(self.train_rows, 0, self.config.batch_size, self.config.seed)
        return hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()

    def resume(self) -> None:
        """Go back to the last checkpoint, or to the beginning where there is none yet, and forget what came after it.

        Raises ValueError when the checkpoint is damaged, or the text is not the one that this run began with.
        """
        # 1. Load. A run that was stopped before its first step looks at the untrained model again.
        notes = load_checkpoint(self.checkpoint, self.whole, self.optimizers) if self.checkpoint.exists() else {}
        if notes and not notes.keys() >= {"step", "text", "logs", "losses", "seconds", "last_score"}:
            raise ValueError(f"{self.checkpoint} was written by another version of this book: {REMEDY}")
        if notes and notes["text"] != self._text_mark():
            raise ValueError(f"the text is not the one that {self.run_folder} began with: bring it back, or train anew")
        self.team.deal_out(self.whole, self.model, self.optimizers)
        self.step = notes.get("step", 0)

        # 2. Keep the logs of the past only: the rest will be written again. A scale is known of float16 runs alone.
        cut_logs(self.run_folder, notes["logs"] if self.step else {})
        if self.step:
            self.losses, self.seconds = notes["losses"], notes["seconds"]
            self.last_score = notes["last_score"]
            self.scaler.load_state_dict(notes.get("scaler") or self.scaler.state_dict())

    def train(self, bar=None) -> bool:
        """Train until `max_steps`; return True when finished, False when interrupted (and saved).

        Ctrl-C or SIGTERM ends the run after the step in progress, so that weights and averages always belong together.
        """
        # 1. Turn an interrupt into a polite request. Save in every case: at the end to go on with more steps,
        # at an interrupt to go on at all.
        self.model.train()
        with stop_politely(self._request_stop):
            self._loop(bar)
            self.save()
        return self.step >= self.config.max_steps

    def _request_stop(self, *_) -> None:
        """Remember that somebody wants the run to stop."""
        self.stop_requested = True

    def _loop(self, bar) -> None:
        """Step, evaluate, save, until done or asked to stop."""
        # 1. Look at the untrained model first. Tokens are counted for an honest speed.
        c = self.config
        tokens_per_step = c.batch_size * self.train_rows.context * c.grad_accum_steps
        if self.step == 0:
            self._record({"step": 0, "tokens_per_second": None, "loss": None})
        # 2. Step until done, or until somebody asks to stop.
        while self.step < c.max_steps and not self.team.anyone(self.stop_requested):
            began = time.perf_counter()
            metrics = self.train_step()
            self.seconds += time.perf_counter() - began
            self.losses.append(metrics["loss"])

            # 3. Show how it goes.
            speed = tokens_per_step * len(self.losses) / self.seconds
            if bar is not None:
                bar.set_postfix_str(self._summary(speed), refresh=False)
                bar.update()
            # 4. Examine the model at intervals.
            if self.evaluation_due():
                self._record(metrics | {"loss": float(np.mean(self.losses)), "tokens_per_second": round(speed)})
                self.losses, self.seconds = [], 0.0
            # 5. Save rarely: a checkpoint is two (Muon) to three (AdamW) times as large as the model.
            if self.step % c.checkpoint_every == 0:
                self.save()

    def _summary(self, speed: float) -> str:
        """Return what stands beside the progress bar: loss, last validation, speed."""
        return f"loss {np.mean(self.losses[-20:]):.3f}, held-out {self.last_score:.3f} bits/byte, {speed:,.0f} tokens/s"

    def _record(self, metrics: dict) -> None:
        """Examine the whole model, once in a team, and let everybody know the score."""
        self.team.gather(self.model, self.whole)
        self.last_score = self.team.ask_first(self._examine, metrics)

    def _examine(self, metrics: dict) -> float:
        """Measure the validation loss, let the caller add to it, append a line to metrics.jsonl, return the loss."""
        # 1. Measure.
        score = metrics["validation_bits_per_byte"] = self.evaluate()
        if not math.isfinite(score):
            raise ValueError(self._diagnosis(metrics))

        # 2. Let the caller look (a sample, a share of stories that parse), and keep it.
        if self.on_evaluation is not None:
            self.on_evaluation(self, metrics)
        append_durably(self.run_folder / "metrics.jsonl", json.dumps(metrics) + "\n")
        return score
