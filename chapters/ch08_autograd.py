"""Autograd, small enough to read in one sitting: numbers that remember how they were made.

    forward     c = a · b            c remembers: a counts with slope b, and b with slope a
    backward    a.grad += b · c.grad     the slope of the loss, carried from c to what c was made from

A loss that was computed with such numbers can say how it would change if any of them changed a little, and
training needs nothing else: `train` at the end moves each parameter against its slope. PyTorch does the same with
tensors in place of single numbers; `ch08_training.py` leaves it to PyTorch and goes on from there.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence


class Value:
    """A number that remembers what it was made from, and how fast it changes with each of these.

    data      the number
    grad      the slope of the loss with respect to it, once `backward` has been called on the loss
    parents   the numbers it was made from, each with the slope of this number with respect to that one

    Source: Rumelhart, Hinton, Williams 1986, "Learning representations by back-propagating errors".
    """

    # Numbers the Values in the order in which they are made.
    _numbers = itertools.count()

    def __init__(self, data: float, parents: Sequence[tuple["Value", float]] = ()):
        # 1. Count births: a number is always younger than those it was made from.
        self.data, self.grad, self.parents = data, 0.0, parents
        self.born = next(Value._numbers)

    def __repr__(self) -> str:
        """Return number and slope, to be read by people."""
        return f"Value({self.data:.4g}, grad {self.grad:.4g})"

    def __add__(self, other: "Value | float") -> "Value":
        """Return a sum. It changes as fast as each of its parts: both slopes are 1."""
        other = as_value(other)
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other: "Value | float") -> "Value":
        """Return a product. Its slope with respect to one factor is the other factor."""
        other = as_value(other)
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])

    def __pow__(self, power: float) -> "Value":
        """Return a power. Its slope is power · x^(power - 1)."""
        return Value(self.data**power, [(self, power * self.data ** (power - 1))])

    def exp(self) -> "Value":
        """Return exp of this number, which is its own slope."""
        result = math.exp(self.data)
        return Value(result, [(self, result)])

    def log(self) -> "Value":
        """Return the natural logarithm. Its slope is 1/x. Raises ValueError for a number that has none."""
        if not self.data > 0:
            raise ValueError(f"log of {self.data}: only a number above 0 has a logarithm; look at what came before")
        return Value(math.log(self.data), [(self, 1 / self.data)])

    def tanh(self) -> "Value":
        """Return the number squeezed between -1 and 1. Its slope is 1 - tanh(x)²: steep in the middle, flat outside."""
        result = math.tanh(self.data)
        return Value(result, [(self, 1 - result**2)])

    # The rest is made of these six, so it has its slopes from them.

    def __neg__(self) -> "Value":
        """Return -x, which is -1 times x."""
        return self * -1.0

    def __sub__(self, other: "Value | float") -> "Value":
        """Return a difference: add the negative."""
        return self + -as_value(other)

    def __truediv__(self, other: "Value | float") -> "Value":
        """Return a quotient: multiply by other^-1, one divided by it."""
        return self * as_value(other) ** -1.0

    # Python asks the right side where the left one is a plain number, as in 1 - x. Order is free in + and *.

    def __rsub__(self, other: float) -> "Value":
        """Return other - x."""
        return -self + other

    def __rtruediv__(self, other: float) -> "Value":
        """Return other / x."""
        return self**-1.0 * other

    __radd__, __rmul__ = __add__, __mul__

    def backward(self) -> None:
        """Add to the `grad` of every number behind this one the slope of this one with respect to it.

        It adds: set the `grad` of the parameters to 0 before the next step.
        """
        # 1. Find all that this number was made from, directly or not.
        found, waiting = {self}, [self]
        while waiting:
            new = {parent for parent, _ in waiting.pop().parents} - found
            found |= new
            waiting.extend(new)

        # 2. Begin at the end: this number changes as fast as itself.
        slopes = dict.fromkeys(found, 0.0)
        slopes[self] = 1.0

        # 3. Walk back, the youngest first: then all ways to a number have arrived before it is passed on.
        for value in sorted(found, key=lambda value: value.born, reverse=True):
            value.grad += slopes[value]
            # 4. Along one way slopes multiply; where several ways meet, they add.
            for parent, slope in value.parents:
                slopes[parent] += slope * slopes[value]


def as_value(number: Value | float) -> Value:
    """Return the number as a Value: one that is a Value already as it is."""
    return number if isinstance(number, Value) else Value(number)


class Neuron:
    """A weight for each input and a bias: its answer to some inputs is w₁x₁ + w₂x₂ + … + bias."""

    def __init__(self, weights: Sequence[float], bias: float = 0.0):
        self.weights, self.bias = [Value(weight) for weight in weights], Value(bias)

    def __call__(self, inputs: Sequence[Value | float]) -> Value:
        """Return the weighted sum of the inputs. Raises ValueError when there are not as many as weights."""
        if len(inputs) != len(self.weights):
            raise ValueError(f"{len(inputs)} inputs for {len(self.weights)} weights: give one input for each weight")
        return sum((weight * x for weight, x in zip(self.weights, inputs, strict=True)), self.bias)

    def parameters(self) -> list[Value]:
        """Return the numbers that training may change."""
        return [*self.weights, self.bias]


class Network:
    """Two layers: hidden neurons read the inputs, each squeezed by tanh, and one neuron reads the hidden ones.

    Weights begin at random: neurons that begin alike would learn alike, and be one neuron.
    """

    def __init__(self, num_inputs: int, num_hidden: int, dice: random.Random):
        self.hidden = [Neuron([dice.gauss(0, 1) for _ in range(num_inputs)]) for _ in range(num_hidden)]
        self.output = Neuron([dice.gauss(0, 1) for _ in range(num_hidden)])

    def __call__(self, inputs: Sequence[Value | float]) -> Value:
        """Return the answer of the last neuron."""
        return self.output([neuron(inputs).tanh() for neuron in self.hidden])

    def parameters(self) -> list[Value]:
        """Return the numbers that training may change."""
        return [number for neuron in [*self.hidden, self.output] for number in neuron.parameters()]


def chance(answer: Value) -> Value:
    """Return how probable "yes" is by an answer, a number between 0 and 1: half where the answer is 0."""
    return 1 / (1 + (-answer).exp())


def surprise(answer: Value, truth: bool) -> Value:
    """Return -log of the chance that the answer gave to what was true."""
    return -chance(answer if truth else -answer).log()


def train(
    model: Neuron | Network, examples: Sequence[tuple[Sequence[float], bool]], steps: int, rate: float
) -> list[float]:
    """Teach a model the examples, pairs of inputs and truth, and return its mean surprise before each step."""
    # 1. Look how surprised the model is, on average.
    losses = []
    for _ in range(steps):
        loss = sum(surprise(model(inputs), truth) for inputs, truth in examples) / len(examples)
        losses.append(loss.data)

        # 2. Forget the slopes of the step before, and find those of now.
        for number in model.parameters():
            number.grad = 0.0
        loss.backward()
        # 3. Move each parameter against its slope: where more would be worse, take less.
        for number in model.parameters():
            number.data -= rate * number.grad
    return losses


def slope_by_trying(loss_of: Callable[[], Value], number: Value, nudge: float = 1e-4) -> float:
    """Return the slope of a loss with respect to one of its numbers, found by moving the number both ways.

    No calculus, so it is the judge of `backward`; but it computes the whole loss twice for every number.
    """
    # 1. Try a little more and a little less, and put the number back.
    middle, losses = number.data, []
    for moved in (middle + nudge, middle - nudge):
        number.data = moved
        losses.append(loss_of().data)
    number.data = middle

    # 2. Divide what came of it by how far it was moved.
    return (losses[0] - losses[1]) / (2 * nudge)
