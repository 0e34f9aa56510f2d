"""Chapter 10's experiments: each variant differs from the GPT in the one thing that its name says."""

import dataclasses

import pytest
import torch

from chapters import ch10_experiments
from chapters.ch07_gpt_model import GPT, GPTConfig, count_parameters
from chapters.ch10_experiments import (
    EXPERIMENTS,
    ByHand,
    Leaking,
    LearnedPositions,
    NoPositions,
    PostNorm,
    main,
    prepare,
    run,
)
from corpora import stories

CONFIG = GPTConfig(
    vocab_size=53, d_model=24, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=31, max_seq_len=17
)


def made(kind: type[GPT], **changes) -> GPT:
    """Return a variant with opinions strong enough that each change shows, the same numbers for each kind."""
    model = kind(dataclasses.replace(CONFIG, **changes))
    generator = torch.Generator().manual_seed(3)
    for _, parameter in sorted(model.named_parameters(), key=lambda pair: (pair[0] == "positions", pair[0])):
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def some_ids(batch: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(53, (batch, length), generator=torch.Generator().manual_seed(5))


def test_attention_by_hand_gives_the_logits_of_the_fused_kernel():
    assert torch.allclose(made(ByHand)(some_ids()), made(GPT)(some_ids()), atol=1e-5)


def test_a_leaking_mask_shows_the_next_token_in_training_and_never_in_use():
    model, ids = made(Leaking, num_layers=1), some_ids()
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 1) % 53
    for training, first in ((True, 6), (False, 7)):
        model.train(training)
        same = torch.isclose(model(ids), model(changed)).all(-1).all(0)
        assert same.tolist() == [place < first for place in range(ids.shape[1])]
    assert torch.allclose(model(ids), made(GPT, num_layers=1)(ids), atol=1e-6)


def test_without_positions_the_past_has_no_order():
    ids = some_ids()
    shuffled = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], dim=1)
    for kind, alike in ((NoPositions, True), (GPT, False), (LearnedPositions, False)):
        model = made(kind, num_layers=1)
        assert torch.allclose(model(ids)[:, -1], model(shuffled)[:, -1], atol=1e-5) == alike


def test_learnt_positions_are_vectors_that_are_added():
    model, ids = made(LearnedPositions), some_ids()
    assert count_parameters(CONFIG)["total"] + 17 * 24 == sum(p.numel() for p in model.parameters())
    torch.nn.init.zeros_(model.positions)
    assert torch.allclose(model(ids), made(NoPositions)(ids), atol=1e-6)


def test_a_post_norm_block_hands_on_a_stream_of_size_one():
    for kind, size_one in ((PostNorm, True), (GPT, False)):
        model, sizes = kind(CONFIG), []
        for block in model.blocks:
            block.register_forward_hook(lambda block, given, x, sizes=sizes: sizes.append(x.square().mean(-1)))
        model(some_ids())
        assert len(sizes) == 2
        assert all(torch.allclose(size, torch.ones(()), atol=2e-2) for size in sizes) == size_one


@pytest.fixture
def few_stories(monkeypatch):
    told = stories.generate(8, seed=0)
    monkeypatch.setattr(ch10_experiments.stories, "generate", lambda count, seed: told)
    monkeypatch.setattr(ch10_experiments, "EXPERIMENTS", {
        name: dataclasses.replace(experiment, train=experiment.train | {"max_steps": 2, "batch_size": 2})
        for name, experiment in EXPERIMENTS.items()
    })


def test_every_experiment_can_be_prepared_and_differs_from_the_baseline(few_stories, tmp_path):
    trainers = {name: prepare(name, 0, tmp_path) for name in EXPERIMENTS}
    kinds = {(type(t.whole), str(t.whole.config), str(t.config), EXPERIMENTS[name].stories)
             for name, t in trainers.items()}
    assert len(kinds) + 1 == len(EXPERIMENTS)  # here "longer" is as short as all
    assert trainers["deeper"].whole.config.num_layers == 8


def test_the_same_seed_gives_the_same_result_and_another_one_another(few_stories):
    results = [run("baseline", seed)["held_out"] for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_a_row_is_printed_for_each_experiment_named(few_stories, capsys):
    main(["one-kv-head", "baseline"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["one-kv-head", "baseline"]
    assert "held out" in rows[0] and "898,816 parameters" in rows[0]


def test_an_unknown_name_ends_in_one_line_that_lists_what_there_is(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["baseline", "deepr"])
    assert end.value.code == 2 and "'deepr' is no experiment: choose among baseline, deeper" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'deepr' is no experiment"):
        prepare("deepr", 0, tmp_path)
    main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)
