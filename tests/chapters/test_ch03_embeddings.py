"""Chapter 3: a lookup is a product with one-hot rows, and nearness is the cosine."""

import pytest
import torch
import torch.nn.functional as F

from chapters.ch03_embeddings import TokenEmbedding, analogy, nearest_tokens, one_hot_lookup


@pytest.fixture
def table() -> torch.Tensor:
    """Eleven rows of five numbers, of very unequal lengths."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(11, 5, generator=generator) * torch.arange(1, 12)[:, None]


def test_lookup_equals_the_one_hot_product_and_torch(table):
    embedding = TokenEmbedding(11, 5)
    embedding.weight.data.copy_(table)
    ids = torch.tensor([[0, 10, 4], [4, 4, 7]])
    torch.testing.assert_close(embedding(ids), F.embedding(ids, table), rtol=0, atol=0)
    torch.testing.assert_close(embedding(ids), one_hot_lookup(ids, table), rtol=0, atol=0)


def test_lookup_has_the_gradient_of_the_one_hot_product(table):
    ids, pull = torch.tensor([[2, 2, 9]]), torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(1))
    fast, slow = TokenEmbedding(11, 5), table.clone().requires_grad_()
    (fast(ids) * pull).sum().backward()
    (one_hot_lookup(ids, slow) * pull).sum().backward()
    torch.testing.assert_close(fast.weight.grad, slow.grad)
    assert set(fast.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()) == {2, 9}


def test_rows_begin_as_noise_of_standard_deviation_two_hundredths():
    weight = TokenEmbedding(997, 61).weight
    assert abs(weight.std().item() - 0.02) < 0.0005
    assert abs(weight.mean().item()) < 0.0005


def test_nearest_tokens_are_those_of_greatest_cosine(table):
    vector = torch.tensor([0.3, -1.0, 2.0, 0.1, -0.7])
    cosines = F.cosine_similarity(table, vector[None], dim=-1)
    expected = cosines.argsort(descending=True).tolist()
    found = nearest_tokens(table, vector, k=4)
    assert [i for i, _ in found] == expected[:4]
    assert [value for _, value in found] == pytest.approx(cosines[expected[:4]].tolist(), abs=1e-6)


def test_the_length_of_rows_and_vector_does_not_count(table):
    vector = table[6] + 1
    stretched = nearest_tokens(table * torch.linspace(0.1, 9, 11)[:, None], 100 * vector, k=11)
    assert [i for i, _ in stretched] == [i for i, _ in nearest_tokens(table, vector, k=11)]


def test_excluded_ids_are_never_named_and_the_table_stays_as_it_was(table):
    before = table.clone()
    assert nearest_tokens(table, table[8], k=1)[0] == (8, pytest.approx(1.0))
    assert not {8, 2} & {i for i, _ in nearest_tokens(table, table[8], k=9, exclude=(8, 2))}
    assert torch.equal(table, before)


def test_a_trained_parameter_in_half_precision_can_be_asked():
    weight = torch.nn.Parameter(torch.eye(7, 3, dtype=torch.bfloat16) + 0.125)
    assert nearest_tokens(weight, weight[1], k=2)[0][0] == 1


def test_king_minus_man_plus_woman_is_queen():
    # Axes: royal, female, adult. Every row is stretched: only directions may count.
    words = {
        "king": (1, 0, 1),
        "queen": (1, 1, 1),
        "man": (0, 0, 1),
        "woman": (0, 1, 1),
        "boy": (0, 0, 0.2),
        "princess": (1, 1, 0),
        "prince": (1, 0, 0),
    }
    ids = {word: i for i, word in enumerate(words)}
    rows = torch.tensor(list(words.values())) * torch.tensor([3, 1, 5, 2, 1, 4, 2])[:, None]
    answer = analogy(rows, ids["king"], ids["man"], ids["woman"], k=4)
    assert answer[0][0] == ids["queen"]
    assert not {ids["king"], ids["man"], ids["woman"]} & {i for i, _ in answer}
    assert [cosine for _, cosine in answer] == sorted((cosine for _, cosine in answer), reverse=True)
