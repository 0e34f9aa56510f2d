"""The running example: the numbers on paper are the numbers of the code and of PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F

from chapters import running_example as example
from chapters.ch04_positional_encoding import rope_tables
from chapters.ch05_attention import causal_mask, scaled_dot_product_attention

# Worked out with a pencil from the vectors and recipes alone, rows "Lily", "lost", "her".
SCORES = torch.tensor([
    [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [3.0, 0.0, 1.0]],
    [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]],
])
POINT = math.exp(1 / math.sqrt(2))  # one point of score multiplies a share by this


def heads_of(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Apply one matrix and cut the result into heads, in explicit loops."""
    recipes, tokens = matrix.tolist(), x.tolist()
    rows = [[sum(w * v for w, v in zip(row, token, strict=True)) for row in recipes] for token in tokens]
    return torch.tensor([[row[2 * h : 2 * h + 2] for row in rows] for h in range(2)])[None]


def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Output and weights by the pencil's way: shares are powers of POINT, divided by their sum."""
    x = example.embed()
    values = heads_of(example.W_V, x)[0]
    weights = torch.zeros(2, 3, 3)
    for head in range(2):
        for row in range(3):
            shares = [POINT ** float(SCORES[head, row, column]) for column in range(row + 1)]
            weights[head, row, : row + 1] = torch.tensor(shares) / sum(shares)
    gathered = torch.cat([weights[0] @ values[0], weights[1] @ values[1]], dim=-1)
    return gathered @ example.W_O.T, weights


def test_scores_on_paper_are_the_dot_products():
    x = example.embed()
    q, k = heads_of(example.W_Q, x), heads_of(example.W_K, x)
    assert torch.equal((q @ k.transpose(-2, -1))[0], SCORES)


def test_by_hand_weights_and_output_equal_the_chapters_code():
    x = example.embed()
    q, k, v = (heads_of(matrix, x) for matrix in (example.W_Q, example.W_K, example.W_V))
    gathered, weights = scaled_dot_product_attention(q, k, v, causal_mask(3, 3))
    output, expected = by_hand()
    torch.testing.assert_close(weights[0], expected)
    torch.testing.assert_close(gathered[0].transpose(0, 1).flatten(1) @ example.W_O.T, output)


def test_by_hand_output_equals_pytorchs_fused_kernel():
    x = example.embed()
    q, k, v = (heads_of(matrix, x) for matrix in (example.W_Q, example.W_K, example.W_V))
    gathered = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0]
    torch.testing.assert_close(gathered.transpose(0, 1).flatten(1) @ example.W_O.T, by_hand()[0])


def test_by_hand_output_equals_the_models_own_layer():
    output = example.attention_layer()(example.embed()[None], *example.no_rotation(3))
    torch.testing.assert_close(output[0], by_hand()[0])


def test_the_first_head_looks_for_the_name_and_the_second_for_the_action():
    q, k, v = example.attention_layer().project(example.embed()[None], *example.no_rotation(3))
    weights = scaled_dot_product_attention(q, k, v, causal_mask(3, 3))[1][0]
    name, action = example.TOKENS.index("Lily"), example.TOKENS.index("lost")
    assert weights[0, 2].argmax() == name and weights[0, 2, name] > 0.7
    assert weights[1, 2].argmax() == action and weights[1, 2, action] > 0.6


def test_each_entry_of_a_matrix_can_be_held_in_the_head():
    for matrix in (example.W_Q, example.W_K, example.W_V, example.W_O):
        assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 0.5, 1.0}
        assert matrix.shape == (example.D_MODEL, example.D_MODEL)
    assert example.embed().shape == (len(example.TOKENS), len(example.COLUMNS))


def test_turning_by_nothing_is_chapter_4_at_position_zero():
    cos, sin = rope_tables(example.HEAD_DIM, 1)
    still_cos, still_sin = example.no_rotation(1)
    assert torch.equal(cos, still_cos) and torch.equal(sin, still_sin)


def test_a_token_the_example_does_not_know_is_refused_by_name():
    with pytest.raises(ValueError, match="'dog' is not in the running example: use one of Lily"):
        example.embed("Lily", "dog")


def test_by_hand_thoughts_equal_the_models_feed_forward():
    x = torch.tensor([[1.5, 0.25, -0.5, 2.0], [0.0, 3.0, 2.0, -1.0]])
    expected = torch.zeros(2, 4)
    for row, (names, acts, asks, girl) in enumerate(x.tolist()):
        opened = [gate / (1 + math.exp(-gate)) for gate in (asks, names - asks)]
        expected[row] = torch.tensor([0.0, 0.0, opened[0] * acts, opened[1] * girl])
    torch.testing.assert_close(example.feed_forward_layer()(x), expected)


def test_the_block_adds_both_layers_of_the_example_to_the_stream():
    x, tables = example.embed()[None], example.no_rotation(3)
    copy = F.rms_norm(x, (4,), eps=1e-5)
    middle = x + example.attention_layer()(copy, *tables)
    expected = middle + example.feed_forward_layer()(F.rms_norm(middle, (4,), eps=1e-5))
    torch.testing.assert_close(example.block()(x, *tables), expected)
