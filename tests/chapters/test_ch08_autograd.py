"""Chapter 8: slopes from numbers that remember equal PyTorch's and those found by trying, and they teach."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chapters.ch08_autograd import Network, Neuron, Value, as_value, chance, slope_by_trying, surprise, train

EITHER = [((1, 1), True), ((1, -1), True), ((-1, 1), True), ((-1, -1), False)]
AGREE = [((1, 1), True), ((1, -1), False), ((-1, 1), False), ((-1, -1), True)]

# Each step of a random calculation takes two of the numbers that are there. All keep the numbers of moderate size.
OPERATIONS = {
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a * b,
    "difference": lambda a, b: a - b,
    "quotient": lambda a, b: a / (b * b + 1.5),
    "turned round": lambda a, b: 1 - 2 / (a * a + 1.0) + 3 * b,
    "tanh": lambda a, b: (a - b).tanh(),
    "exp": lambda a, b: (a.tanh() + 0.5).exp(),
    "log": lambda a, b: (a * a + 0.7).log(),
    "power": lambda a, b: (b**3 + a) * 0.1,
}
numbers = st.floats(-2, 2, allow_subnormal=False)
programs = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 99), st.integers(0, 99)), max_size=7)


def calculate(made: list, program: list) -> object:
    """Run a random calculation; a number may be used again and again, so that many ways lead to it."""
    made = list(made)
    for name, i, j in program:
        result = OPERATIONS[name](made[i % len(made)], made[j % len(made)])
        made.append(result.tanh() if abs(getattr(result, "data", 0.0)) > 3 else result)
    return made[-1] + made[-1] * made[0]


@settings(deadline=None, max_examples=80)
@given(st.lists(numbers, min_size=3, max_size=3), programs)
def test_slopes_of_any_calculation_equal_those_of_torch(starts, program):
    ours = [Value(start) for start in starts]
    theirs = [torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in starts]
    result, expected = calculate(ours, program), calculate(theirs, program)
    result.backward()
    expected.backward()
    assert result.data == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)
    slopes = [0.0 if t.grad is None else t.grad.item() for t in theirs]
    assert [v.grad for v in ours] == pytest.approx(slopes, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("truth", [True, False])
def test_slopes_of_a_network_equal_those_found_by_trying(truth):
    network = Network(3, 4, random.Random(5))
    inputs = [0.3, -1.2, 2.0]
    surprise(network(inputs), truth).backward()
    for number in network.parameters():
        tried = slope_by_trying(lambda: surprise(network(inputs), truth), number)
        assert number.grad == pytest.approx(tried, rel=1e-6, abs=1e-9)


def test_a_network_takes_the_very_steps_of_torch():
    # 1. Give PyTorch the same two layers.
    network, steps, rate = Network(2, 3, random.Random(1)), 25, 0.8
    first, second = torch.nn.Linear(2, 3).double(), torch.nn.Linear(3, 1).double()
    with torch.no_grad():
        for layer, neurons in ((first, network.hidden), (second, [network.output])):
            weights = [[weight.data for weight in neuron.weights] for neuron in neurons]
            layer.weight.copy_(torch.tensor(weights, dtype=torch.float64))
            layer.bias.zero_()
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate)

    # 2. Train both.
    x = torch.tensor([inputs for inputs, _ in AGREE], dtype=torch.float64)
    y = torch.tensor([[float(truth)] for _, truth in AGREE], dtype=torch.float64)
    expected = []
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(second(first(x).tanh()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert train(network, AGREE, steps, rate) == pytest.approx(expected, rel=1e-9)


def test_a_second_way_back_adds_to_the_first_as_in_torch():
    x, y = Value(3.0), torch.tensor(3.0, requires_grad=True)
    ours, theirs = x * x * x + x, y * y * y + y
    for _ in range(2):
        ours.backward()
        theirs.backward(retain_graph=True)
    assert x.grad == y.grad.item() == 2 * (3 * 9 + 1)


def test_the_slope_of_surprise_is_chance_minus_truth():
    for truth in (True, False):
        answer = Value(0.7)
        surprise(answer, truth).backward()
        assert answer.grad == pytest.approx(chance(Value(0.7)).data - truth)


def test_softmax_with_cross_entropy_has_the_slopes_p_minus_y():
    scores = [Value(score) for score in (2.0, -1.0, 0.5, 0.0)]
    grown = [score.exp() for score in scores]
    (-(grown[2] / sum(grown)).log()).backward()
    shares = torch.tensor([2.0, -1.0, 0.5, 0.0]).softmax(0) - F.one_hot(torch.tensor(2), 4)
    assert [score.grad for score in scores] == pytest.approx(shares.tolist(), abs=1e-6)


def test_a_sum_longer_than_pythons_stack_can_be_walked_back():
    x, total = Value(2.0), Value(0.0)
    for _ in range(5000):
        total = total + x
    total.backward()
    assert x.grad == 5000


def test_one_neuron_learns_either_and_never_learns_whether_two_agree():
    assert train(Neuron([0.5, -0.5]), EITHER, 100, 1.0)[-1] < 0.04
    assert train(Neuron([0.5, -0.5]), AGREE, 100, 1.0)[-1] == pytest.approx(math.log(2))


def test_two_layers_learn_whether_two_agree():
    network = Network(2, 4, random.Random(0))
    train(network, AGREE, 100, 1.0)
    assert [chance(network(inputs)).data > 0.5 for inputs, _ in AGREE] == [truth for _, truth in AGREE]


def test_impossible_requests_are_refused_in_a_line():
    with pytest.raises(ValueError, match="log of -1.0: only a number above 0"):
        Value(-1.0).log()
    with pytest.raises(ValueError, match="3 inputs for 2 weights"):
        Neuron([1.0, 2.0])([1, 2, 3])


def test_a_number_is_wrapped_once_and_shows_itself():
    number = Value(2.5)
    assert as_value(number) is number and repr(as_value(1)) == "Value(1, grad 0)"
