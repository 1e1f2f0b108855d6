"""Returns and advantages: published vectors, both kinds of episode end, edges, and equality with slow forward sums."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rules.returns import discounted_returns, gae, lambda_returns, n_step_returns

NAN = math.nan
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Every rule as a function of (reward, discount, next_value, cut).
RULES: dict[str, Rule] = {
    "discounted": discounted_returns,
    "one_step": lambda r, d, v, c: n_step_returns(r, d, v, c, n=1),
    "three_step": lambda r, d, v, c: n_step_returns(r, d, v, c, n=3),
    "lambda": lambda r, d, v, c: lambda_returns(r, d, v, c, lambda_=0.65),
    "gae": lambda r, d, v, c: gae(r, d, torch.zeros_like(r), v, c, lambda_=0.65),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def same(actual: Tensor, expected: Sequence[float] | Sequence[Sequence[float]], rtol: float = 1e-6) -> None:
    """Equal values and shape; a list of sequences is one column per sequence."""
    wanted = torch.tensor(expected, dtype=actual.dtype)
    rtol, atol = (rtol, 1e-9) if actual.dtype == torch.float64 else (max(rtol, 1e-5), 1e-5)
    assert_close(actual, wanted.T if wanted.dim() == 2 else wanted, rtol=rtol, atol=atol)


def columns(sequences: list[list[float]], dtype: torch.dtype) -> Tensor:
    """(T, B) from B sequences of length T."""
    return torch.tensor(sequences, dtype=dtype).T


# --- rlax: two sequences of five steps, a discount for each step, no cut. ---


def rlax_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reward = columns([[1, 0, -1, 0, 1], [0.5, 0.8, -0.7, 0, 2.1]], dtype)
    discount = columns([[0.5, 0.9, 1, 0.5, 0.8], [0.9, 0.5, 0.3, 0.8, 0.7]], dtype)
    next_value = columns([[3, 1, 5, -5, 3], [-1.7, 1.2, 2.3, 2.2, 2.7]], dtype)
    return reward, discount, next_value, torch.zeros(5, 2, dtype=torch.bool)


RLAX_DISCOUNTED = [[1.315, 0.63, 0.70, 1.7, 3.4], [1.33592, 0.9288, 0.2576, 3.192, 3.99]]


@both_precisions
def test_lambda_returns_reproduce_rlax(dtype: torch.dtype) -> None:
    expected = [[1.6460547, 0.7228125, 0.7375, 0.65, 3.4], [0.7866317, 0.9913063, 0.11015, 2.834, 3.99]]
    same(lambda_returns(*rlax_inputs(dtype), lambda_=0.75), expected, rtol=1e-5)


@both_precisions
def test_discounted_returns_reproduce_rlax(dtype: torch.dtype) -> None:
    # backwards, first sequence: 1 + 0.8 * 3 = 3.4, 0 + 0.5 * 3.4 = 1.7, -1 + 1 * 1.7 = 0.7, 0.9 * 0.7 = 0.63, ...
    same(discounted_returns(*rlax_inputs(dtype)), RLAX_DISCOUNTED, rtol=1e-5)


@both_precisions
def test_n_step_returns_reproduce_rlax(dtype: torch.dtype) -> None:
    # first entry: 1 + 0.5 * (0 + 0.9 * (-1 + 1 * 5)) = 2.8
    expected = [[2.8, -3.15, 0.7, 1.7, 3.4], [1.2155, 0.714, 0.2576, 3.192, 3.99]]
    same(n_step_returns(*rlax_inputs(dtype), n=3), expected, rtol=1e-5)


@pytest.mark.parametrize("n", [5, 7, 10**9])
def test_n_from_the_length_on_is_the_discounted_return(n: int) -> None:
    same(n_step_returns(*rlax_inputs(torch.float64), n=n), RLAX_DISCOUNTED, rtol=1e-5)


@both_precisions
@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        (1.0, [[-1.45118805, -4.45574551, 2.539651, 0.5249, -0.49], [3, 2, 1, 0, -4.9]]),
        (0.7, [[-0.6769795, -5.24816666, 2.48460799, 0.67043, -0.49], [2.2899, 1.73, 1, 0, -4.9]]),
        (0.4, [[0.56731873, -6.04212442, 2.34312016, 0.81596, -0.49], [1.7256, 1.46, 1, 0, -4.9]]),
    ],
)
def test_gae_reproduces_rlax(dtype: torch.dtype, lambda_: float, expected: list[list[float]]) -> None:
    values = columns([[1, 4, -3, -2, -1, -1], [-3, -2, -1, 0, 5, -1]], dtype)
    advantage = gae(
        reward=columns([[0, 0, 1, 0, -0.5], [0, 0, 0, 0, 1]], dtype),
        discount=columns([[0.99] * 5, [0.9, 0.9, 0.9, 0, 0.9]], dtype),
        value=values[:-1],
        next_value=values[1:],
        cut=columns([[0] * 5, [0, 0, 0, 1, 0]], dtype).bool(),
        lambda_=lambda_,
    )
    same(advantage, expected, rtol=1e-7)


@both_precisions
def test_lambda_returns_minus_values_reproduce_rlax_td_lambda(dtype: torch.dtype) -> None:
    value = columns([[1.1, -1.1, 3.1], [2.1, -1.1, -2.1]], dtype)
    returns = lambda_returns(
        reward=columns([[-1.3, -1.3, 2.3], [1.3, 5.3, -3.3]], dtype),
        discount=columns([[0, 0.89, 0.85], [0.88, 1, 0.83]], dtype),
        next_value=torch.cat([value[1:], torch.tensor([[2.2, -1.2]], dtype=dtype)]),
        cut=columns([[1, 0, 0], [0, 0, 0]], dtype).bool(),
        lambda_=0.75,
    )
    same(returns - value, [[-2.4, 3.273225, 1.07], [-0.01702, 2.653, -2.196]], rtol=1e-6)


# --- Tianshou, its ring storage unrolled to time order; NaN where a value must never be read. ---


@both_precisions
@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [2.6, 4, 4.4, 5.3, 6.2, 8, 8, 8.9, 9.8, 12]),
        (2, [3.4, 4, 5.53, 6.62, 7.8, 8, 9.89, 10.98, 12.2, 12]),
        (10, [3.4, 4, 5.678, 6.78, 7.8, 8, 10.122, 11.22, 12.2, 12]),
    ],
)
@pytest.mark.parametrize("time_limit_at_1", [False, True])
def test_n_step_returns_reproduce_tianshou(
    dtype: torch.dtype, n: int, expected: list[float], time_limit_at_1: bool
) -> None:
    cut = torch.tensor([0, 1, 0, 0, 0, 1, 0, 0, 0, 1]).bool()
    terminal = cut.clone()
    terminal[1] = not time_limit_at_1
    value_at_1 = -4 if time_limit_at_1 else NAN
    if time_limit_at_1:
        # step 1 bootstraps: 4 + 0.1 * -4 = 3.6; step 0, for n above 1: 3 + 0.1 * 3.6 = 3.36
        expected = [2.6 if n == 1 else 3.36, 3.6, *expected[2:]]
    returns = n_step_returns(
        reward=torch.arange(3, 13, dtype=dtype),
        discount=0.1 * (~terminal).to(dtype),
        next_value=torch.tensor([-4, value_at_1, -6, -7, -8, NAN, -10, -11, -12, NAN], dtype=dtype),
        cut=cut,
        n=n,
    )
    same(returns, expected)


TIANSHOU_LAST_EPISODE = [474.2876, 390.1027, 299.476, 202]  # the same whatever ended the two before


@both_precisions
@pytest.mark.parametrize(
    ("terminal_steps", "expected"),
    [
        ([3, 7, 11], [454.8344, 376.1143, 291.298, 200, 464.5610, 383.1085, 295.387, 201]),
        ([11], [454.0109, 375.2386, 290.3669, 199.01, 462.9138, 381.3571, 293.5248, 199.02]),
    ],
    ids=["terminals", "time limits"],
)
def test_gae_and_lambda_returns_reproduce_tianshou(
    dtype: torch.dtype, terminal_steps: list[int], expected: list[float]
) -> None:
    next_value = torch.tensor([2, 3, 4, -1, 5, 6, 7, -2, 8, 9, 10, -3], dtype=dtype)
    value = next_value.roll(1)
    reward = torch.tensor([101, 102, 103, 200, 104, 105, 106, 201, 107, 108, 109, 202], dtype=dtype)
    discount = torch.full((12,), 0.99, dtype=dtype)
    discount[terminal_steps] = 0
    cut = torch.zeros(12, dtype=torch.bool)
    cut[[3, 7, 11]] = True
    expected = expected + TIANSHOU_LAST_EPISODE
    same(gae(reward, discount, value, next_value, cut, lambda_=0.95) + value, expected)
    # next_value[t] is value[t + 1] inside an episode, so the lambda-return is advantage plus value
    same(lambda_returns(reward, discount, next_value, cut, lambda_=0.95), expected)


@both_precisions
def test_discounted_returns_reproduce_tianshou(dtype: torch.dtype) -> None:
    discount = torch.full((8,), 0.1, dtype=dtype)
    discount[[0, 3, 7]] = 0
    next_value = torch.full((8,), NAN, dtype=dtype)
    next_value[5] = 0  # the time limit: the only value that may be read
    cut = torch.tensor([1, 0, 0, 1, 0, 1, 0, 1]).bool()
    # 1 + 0.1 * (2 + 0.1 * 3) = 1.23
    same(discounted_returns(torch.arange(8, dtype=dtype), discount, next_value, cut), [0, 1.23, 2.3, 3, 4.5, 5, 6.7, 7])


# --- terminal and episode_end kept apart. ---


@both_precisions
@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        # t=2: -1 + 0.9 * 50 - 100 = -56; t=1: -1 - 2 = -3; t=0: -1 + 0.9 * 2 - 1 + 0.72 * -3 = -2.36
        (True, [-2.36, -3, -56]),
        # t=1: -1 + 0.9 * 7 - 2 = 3.3; t=0: -0.2 + 0.72 * 3.3 = 2.176
        (False, [2.176, 3.3, -56]),
    ],
    ids=["task end or life loss", "time limit"],
)
def test_gae_stops_at_both_ends_but_bootstraps_at_a_time_limit_only(
    dtype: torch.dtype, terminal: bool, expected: list[float]
) -> None:
    advantage = gae(
        reward=torch.tensor([-1, -1, -1], dtype=dtype),
        discount=torch.tensor([0.9, 0.0 if terminal else 0.9, 0.9], dtype=dtype),
        value=torch.tensor([1, 2, 100], dtype=dtype),
        next_value=torch.tensor([2, NAN if terminal else 7, 50], dtype=dtype),
        cut=torch.tensor([False, True, False]),
        lambda_=0.8,
    )
    same(advantage, expected)


# gamma 0.5, n = 3, reward 1, five steps, all values 16, an end at step 2. Bootstrap weights are gamma ** k.
@both_precisions
@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        # starts 3 and 4 run out of rollout: 1.5 + 0.25 * 16 = 5.5 and 1 + 0.5 * 16 = 9
        (True, [1.75, 1.5, 1, 5.5, 9]),
        # 1.75 + 0.125 * 16 = 3.75; 1.5 + 0.25 * 16 = 5.5; 1 + 0.5 * 16 = 9
        (False, [3.75, 5.5, 9, 5.5, 9]),
    ],
    ids=["task end", "time limit"],
)
def test_n_step_chains_shorten_before_an_end(dtype: torch.dtype, terminal: bool, expected: list[float]) -> None:
    discount = torch.full((5,), 0.5, dtype=dtype)
    discount[2] = 0.0 if terminal else 0.5
    returns = n_step_returns(
        reward=torch.ones(5, dtype=dtype),
        discount=discount,
        # starts 0 and 1 use the value at step 2, starts 3 and 4 the one at step 4; the others are not read
        next_value=torch.tensor([NAN, NAN, NAN if terminal else 16, NAN, 16], dtype=dtype),
        cut=torch.tensor([0, 0, 1, 0, 0]).bool(),
        n=3,
    )
    same(returns, expected)


@both_precisions
@pytest.mark.parametrize(
    ("terminal", "first_two"),
    [
        # t=1: 1; t=0: 1 + 0.9 * (0.35 * 2 + 0.65 * 1) = 2.215
        (True, [2.215, 1]),
        # t=1: 1 + 0.9 * 3 = 3.7; t=0: 1 + 0.9 * (0.35 * 2 + 0.65 * 3.7) = 3.7945
        (False, [3.7945, 3.7]),
    ],
    ids=["task end", "time limit"],
)
@pytest.mark.parametrize(
    ("second_episode", "last_two"),
    # t=3: r + 0.9 * 5; t=2: r + 0.9 * (0.35 * 4 + 0.65 * G)
    [(1.0, [5.4775, 5.5]), (10.0, [19.7425, 14.5])],
)
def test_lambda_returns_of_an_episode_ignore_the_next_one(
    dtype: torch.dtype, terminal: bool, first_two: list[float], second_episode: float, last_two: list[float]
) -> None:
    returns = lambda_returns(
        reward=torch.tensor([1, 1, second_episode, second_episode], dtype=dtype),
        discount=torch.tensor([0.9, 0.0 if terminal else 0.9, 0.9, 0.9], dtype=dtype),
        next_value=torch.tensor([2, 3, 4, 5], dtype=dtype),
        cut=torch.tensor([False, True, False, False]),
        lambda_=0.65,
    )
    same(returns, first_two + last_two)


def test_rewards_belong_to_the_step_that_earned_them() -> None:
    returns = discounted_returns(
        reward=torch.tensor([1.0, 20.0]),
        discount=torch.tensor([0.9, 0.0]),
        next_value=torch.zeros(2),
        cut=torch.tensor([False, True]),
    )
    same(returns, [19, 20])  # 1 + 0.9 * 20


# --- No leak: what lies beyond a cut may be NaN. ---


@each_rule
def test_nan_beyond_a_cut_or_behind_a_terminal_does_not_leak(rule: Rule) -> None:
    discount = torch.tensor([0.9, 0.0, 0.9, 0.9, 0.9])
    cut = torch.tensor([0, 1, 0, 1, 0]).bool()
    clean = rule(torch.ones(5), discount, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), cut)
    # the value behind the terminal at step 1, and everything in the episode that starts at step 4
    reward = torch.tensor([1, 1, 1, 1, NAN])
    next_value = torch.tensor([1, NAN, 3, 4, NAN])
    dirty = rule(reward, discount, next_value, cut)
    assert torch.equal(dirty[:4], clean[:4])
    assert dirty[4].isnan()


def test_discounted_returns_read_no_value_inside_a_chain() -> None:
    returns = discounted_returns(
        reward=torch.ones(4),
        discount=torch.tensor([0.5, 0.5, 0.5, 0.5]),
        next_value=torch.tensor([NAN, 2, NAN, 4]),
        cut=torch.tensor([0, 1, 0, 0]).bool(),
    )
    same(returns, [2, 2, 2.5, 3])  # 1 + 0.5 * 2 = 2, 1 + 0.5 * 2 = 2; 1 + 0.5 * 4 = 3, 1 + 0.5 * 3 = 2.5


# --- Edges. ---


@each_rule
def test_all_terminal_gives_the_rewards(rule: Rule) -> None:
    reward = torch.tensor([[1.0, -2.0], [3.5, 0.0], [-4.0, 6.0]])
    value = torch.full((3, 2), NAN)
    assert torch.equal(rule(reward, torch.zeros(3, 2), value, torch.ones(3, 2, dtype=torch.bool)), reward)


@each_rule
@pytest.mark.parametrize("cut", [False, True])
def test_a_single_step_bootstraps_whether_or_not_the_episode_ends_there(rule: Rule, cut: bool) -> None:
    # T = 1, B = 1: 2 + 0.5 * 10
    one = rule(torch.tensor([[2.0]]), torch.tensor([[0.5]]), torch.tensor([[10.0]]), torch.tensor([[cut]]))
    assert torch.equal(one, torch.tensor([[7.0]]))


@each_rule
def test_gamma_zero_gives_the_rewards(rule: Rule) -> None:
    reward = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(rule(reward, torch.zeros(3), torch.full((3,), 9.0), torch.zeros(3, dtype=torch.bool)), reward)


def test_gamma_one_adds_up_the_rewards() -> None:
    arguments = (torch.tensor([1.0, 2, 3, 4]), torch.ones(4), torch.full((4,), 100.0), torch.zeros(4).bool())
    same(discounted_returns(*arguments), [110, 109, 107, 104])
    same(n_step_returns(*arguments, n=2), [103, 105, 107, 104])
    same(lambda_returns(*arguments, lambda_=1.0), [110, 109, 107, 104])


@each_rule
def test_environments_do_not_mix(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(1)
    reward, discount, value = (torch.rand(6, 2, 3, generator=generator) for _ in range(3))
    cut = torch.rand(6, 2, 3, generator=generator) < 0.3
    together = rule(reward, discount, value, cut)
    for i in range(2):
        for j in range(3):
            alone = rule(reward[:, i, j], discount[:, i, j], value[:, i, j], cut[:, i, j])
            assert torch.equal(together[:, i, j], alone)


# --- Equality with forward sums written from the definitions, on random flags. ---


@dataclass(frozen=True)
class Rollout:
    """Random rollout of one environment in plain floats."""

    reward: list[float]
    value: list[float]
    next_value: list[float]
    terminal: list[bool]
    episode_end: list[bool]
    gamma: float

    def tensors(self) -> dict[str, Tensor]:
        terminal, end = torch.tensor(self.terminal), torch.tensor(self.episode_end)
        return {
            "reward": torch.tensor(self.reward, dtype=torch.float64),
            "discount": self.gamma * (~terminal).double(),
            "next_value": torch.tensor(self.next_value, dtype=torch.float64),
            "cut": terminal | end,
        }

    def chain(self, t: int, n: int) -> list[int]:
        """The steps of a chain of at most n that starts at t."""
        steps = []
        for k in range(t, min(t + n, len(self.reward))):
            steps.append(k)
            if self.terminal[k] or self.episode_end[k]:
                break
        return steps

    def n_step(self, t: int, n: int) -> float:
        """Discounted rewards of the chain, and the value of where it stops unless that is terminal."""
        steps = self.chain(t, n)
        total = sum(self.gamma**j * self.reward[k] for j, k in enumerate(steps))
        if not self.terminal[steps[-1]]:
            total += self.gamma ** len(steps) * self.next_value[steps[-1]]
        return total

    def lambda_return(self, t: int, lambda_: float) -> float:
        """Average of the n-step returns of the chain; the longest takes the weight of all longer ones."""
        longest = len(self.chain(t, len(self.reward)))
        total = lambda_ ** (longest - 1) * self.n_step(t, longest)
        for n in range(1, longest):
            total += (1 - lambda_) * lambda_ ** (n - 1) * self.n_step(t, n)
        return total

    def advantage(self, t: int, lambda_: float) -> float:
        """Sum of the TD errors of the chain, each (gamma * lambda) ** distance."""
        return sum(
            (self.gamma * lambda_) ** j * (self.n_step(k, 1) - self.value[k])
            for j, k in enumerate(self.chain(t, len(self.reward)))
        )


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    length = draw(st.integers(1, 12))
    numbers = st.lists(st.floats(-10, 10), min_size=length, max_size=length)
    flags = st.lists(st.sampled_from([False, False, True]), min_size=length, max_size=length)
    terminal = draw(flags)
    return Rollout(
        reward=draw(numbers),
        value=draw(numbers),
        next_value=[NAN if ends else v for ends, v in zip(terminal, draw(numbers), strict=True)],
        terminal=terminal,
        episode_end=draw(flags),
        gamma=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
    )


def agree(actual: Tensor, expected: list[float]) -> None:
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


lambdas = st.sampled_from([0.0, 0.3, 0.95, 1.0])


@settings(deadline=None)
@given(rollout=rollouts(), n=st.integers(1, 14))
def test_n_step_returns_equal_the_sums(rollout: Rollout, n: int) -> None:
    expected = [rollout.n_step(t, n) for t in range(len(rollout.reward))]
    agree(n_step_returns(**rollout.tensors(), n=n), expected)


@settings(deadline=None)
@given(rollout=rollouts())
def test_discounted_returns_equal_the_sums(rollout: Rollout) -> None:
    length = len(rollout.reward)
    agree(discounted_returns(**rollout.tensors()), [rollout.n_step(t, length) for t in range(length)])


@settings(deadline=None)
@given(rollout=rollouts(), lambda_=lambdas)
def test_lambda_returns_equal_the_average_of_n_step_returns(rollout: Rollout, lambda_: float) -> None:
    expected = [rollout.lambda_return(t, lambda_) for t in range(len(rollout.reward))]
    agree(lambda_returns(**rollout.tensors(), lambda_=lambda_), expected)


@settings(deadline=None)
@given(rollout=rollouts(), lambda_=lambdas)
def test_gae_equals_the_sum_of_td_errors(rollout: Rollout, lambda_: float) -> None:
    expected = [rollout.advantage(t, lambda_) for t in range(len(rollout.reward))]
    value = torch.tensor(rollout.value, dtype=torch.float64)
    agree(gae(value=value, **rollout.tensors(), lambda_=lambda_), expected)


# --- Special cases meet. ---


@settings(deadline=None)
@given(rollout=rollouts())
def test_lambda_zero_and_one_step_are_the_td_target(rollout: Rollout) -> None:
    inputs = rollout.tensors()
    value = torch.tensor(rollout.value, dtype=torch.float64)
    one_step = n_step_returns(**inputs, n=1)
    assert torch.equal(lambda_returns(**inputs, lambda_=0.0), one_step)
    assert torch.equal(gae(value=value, **inputs, lambda_=0.0), one_step - value)


@settings(deadline=None)
@given(rollout=rollouts())
def test_lambda_one_is_the_discounted_return(rollout: Rollout) -> None:
    inputs = rollout.tensors()
    discounted = discounted_returns(**inputs)
    assert_close(lambda_returns(**inputs, lambda_=1.0), discounted, rtol=1e-10, atol=1e-10)
    # a sum of TD errors telescopes only if next_value[t] is value[t + 1] inside a chain
    value = torch.tensor(rollout.value, dtype=torch.float64)
    inside = ~inputs["cut"][:-1]
    inputs["next_value"][:-1][inside] = value[1:][inside]
    advantage = gae(value=value, **inputs, lambda_=1.0)
    assert_close(advantage, discounted_returns(**inputs) - value, rtol=1e-10, atol=1e-10)


@settings(deadline=None)
@given(rollout=rollouts())
def test_a_life_loss_counts_as_the_end_of_a_task(rollout: Rollout) -> None:
    # terminal without episode_end cuts exactly like both together
    both = replace(
        rollout, episode_end=[a or b for a, b in zip(rollout.terminal, rollout.episode_end, strict=True)]
    ).tensors()
    assert torch.equal(n_step_returns(**rollout.tensors(), n=3), n_step_returns(**both, n=3))


# --- Gradients, device, errors. ---


@each_rule
def test_no_gradient_reaches_a_return(rule: Rule) -> None:
    reward, discount, value = (torch.ones(3, requires_grad=True) for _ in range(3))
    assert not rule(reward, discount, value, torch.zeros(3, dtype=torch.bool)).requires_grad


@each_rule
def test_inputs_are_left_alone(rule: Rule) -> None:
    inputs = [torch.rand(4), torch.rand(4), torch.rand(4), torch.tensor([True, False, True, False])]
    before = [tensor.clone() for tensor in inputs]
    rule(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@each_rule
def test_returns_never_look_at_values(rule: Rule) -> None:
    meta = torch.empty(4, 2, device="meta")
    assert rule(meta, meta, meta, torch.empty(4, 2, device="meta", dtype=torch.bool)).shape == (4, 2)


@each_rule
@pytest.mark.parametrize(("position", "name"), [(1, "discount"), (2, "next_value"), (3, "cut")])
def test_a_trailing_axis_of_one_is_refused(rule: Rule, position: int, name: str) -> None:
    inputs = [torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.bool)]
    inputs[position] = inputs[position][..., None]
    with pytest.raises(ValueError, match=rf"^{name} must have the shape of reward \(4, 2\), got \(4, 2, 1\)$"):
        rule(*inputs)


def test_gae_refuses_values_that_hold_the_bootstrap_too() -> None:
    ones, cut = torch.ones(4), torch.zeros(4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^value must have the shape of reward \(4,\), got \(5,\)$"):
        gae(ones, ones, torch.ones(5), ones, cut, lambda_=0.9)


@each_rule
def test_flags_that_are_not_boolean_are_refused(rule: Rule) -> None:
    ones = torch.ones(4)
    with pytest.raises(ValueError, match=r"^cut must be a bool tensor, got torch\.float32$"):
        rule(ones, ones, ones, torch.zeros(4))


@each_rule
@pytest.mark.parametrize("shape", [(), (0,), (0, 3)])
def test_a_rollout_needs_a_step(rule: Rule, shape: tuple[int, ...]) -> None:
    ones = torch.ones(shape)
    with pytest.raises(ValueError, match=r"^cut must have shape \(T, \.\.\.\) with T at least 1, got \("):
        rule(ones, ones, ones, torch.zeros(shape, dtype=torch.bool))


def test_numbers_out_of_range_are_refused() -> None:
    ones, cut = torch.ones(4), torch.zeros(4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^n must be at least 1, got 0$"):
        n_step_returns(ones, ones, ones, cut, n=0)
    with pytest.raises(ValueError, match=r"^lambda_ must be in \[0, 1\], got 1\.5$"):
        lambda_returns(ones, ones, ones, cut, lambda_=1.5)
    with pytest.raises(ValueError, match=r"^lambda_ must be in \[0, 1\], got -0\.1$"):
        gae(ones, ones, ones, ones, cut, lambda_=-0.1)
