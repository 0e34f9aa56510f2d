"""`generate` in other ways than drawing token after token: a search, a draft model, probabilities shown."""

import re
from pathlib import Path

import pytest
import torch

import main
from chapters.ch02_tokenization import BPETokenizer
from chapters.ch07_gpt_model import GPT
from chapters.ch09_decoding import score

STORYTELLER, DRAFT = main.STORYTELLER, main.ROOT / "models" / "ladder" / "step_400"
COMMAND = ["generate", "--model", str(STORYTELLER), "--prompt", "Once upon", "--max-new-tokens", "12"]


def said(capsys, *flags: str) -> tuple[str, str]:
    """Return what `generate` prints with these flags, and what it says aside."""
    assert main.main([*COMMAND, *flags]) == 0
    return capsys.readouterr()


def log_probability(text: str) -> float:
    """Return how likely the storyteller finds a text."""
    model, tokenizer = GPT.from_pretrained(STORYTELLER), BPETokenizer.load(STORYTELLER)
    return score(model, [*tokenizer.start_ids, *tokenizer.encode(text)]).sum().item()


def test_a_search_tells_a_likelier_text_and_the_same_one_each_time(capsys):
    greedy, _ = said(capsys, "--temperature", "0")
    found, _ = said(capsys, "--beams", "5")
    assert found == said(capsys, "--beams", "5")[0] and found.startswith("Once upon a time")
    assert log_probability(found.rstrip("\n")) >= log_probability(greedy.rstrip("\n"))


def test_a_draft_changes_no_greedy_text_and_its_guesses_are_counted(capsys):
    plain, _ = said(capsys, "--temperature", "0")
    guessed, aside = said(capsys, "--temperature", "0", "--draft", str(DRAFT))
    assert guessed == plain
    accepted, guesses = map(int, re.search(r"\((\d+) of (\d+) guesses accepted\)", aside).groups())
    assert 0 < accepted <= guesses and "guesses ahead" in aside


def test_each_token_is_shown_with_its_probability(capsys):
    plain, _ = said(capsys)
    lines = said(capsys, "--logprobs")[0].splitlines()
    pairs = [re.fullmatch(r" +([\d.]+)  '(.*)'", line).groups() for line in lines[1:13]]
    assert lines[0] == "Once upon" and lines[0] + "".join(text for _, text in pairs) == plain.rstrip("\n")
    whole = sum(torch.tensor(float(p)).log().item() for p, _ in pairs)
    assert whole == pytest.approx(log_probability(plain.rstrip("\n")) - log_probability("Once upon"), abs=0.05)


@pytest.mark.parametrize(("flags", "words"), [
    (["--beams", "2", "--temperature", "0.5"], "--temperature has no meaning beside --beams"),
    (["--beams", "2", "--count", "2"], "--count"),
    (["--beams", "2", "--stop", "x"], "--stop"),
    (["--logprobs", "--stop", "x"], "--stop has no meaning beside --logprobs"),
    (["--beams", "2", "--draft", "x"], "--beams and --draft"),
    (["--draft-tokens", "2"], "--draft-tokens is a setting of --draft"),
    (["--beams", "-2"], "beams is -2"),
    (["--draft", "/nowhere"], "/nowhere"),
])
def test_flags_that_contradict_each_other_end_in_one_line(flags, words, capsys):
    assert main.main([*COMMAND, *flags]) == 2
    out, error = capsys.readouterr()
    assert error.splitlines()[-1].startswith("error: ") and words in error.splitlines()[-1] and out == ""


def test_a_draft_with_other_tokens_is_refused(tmp_path: Path, capsys):
    model = GPT.from_pretrained(DRAFT)
    model.save_pretrained(tmp_path)
    tokenizer = BPETokenizer.train(["quite another text, of the same size"] * 3, 300)
    tokenizer.save(tmp_path)
    assert main.main([*COMMAND, "--draft", str(tmp_path)]) == 2
    assert "tokens" in capsys.readouterr().err.splitlines()[-1]
