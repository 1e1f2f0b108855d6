"""Tabular learners as kernels: environment step, update rule and next action in one function, for many seeds at once.

One thread is one independent learner with its own table, and takes many steps per launch. The dynamics are a known
model P[s][a]; the rules are those of `rules/tabular.py`, in float64, operation for operation.

    rule                     acts                next_value in td_update
    q_learning               epsilon-greedily    max_a' Q(s', a')
    double_q_learning        epsilon-greedily    Q2(s', argmax_a' Q1(s', a')), either table by the toss of a coin
    sarsa                    epsilon-greedily    Q(s', a')
    expected_sarsa           epsilon-greedily    sum_a' pi(a'|s') Q(s', a')
    softmax_sarsa            by softmax(Q/tau)   Q(s', a')
    softmax_expected_sarsa   by softmax(Q/tau)   sum_a' pi(a'|s') Q(s', a')
    softmax_soft             by softmax(Q/tau)   tau log sum_a' exp(Q(s', a') / tau)

Random numbers are counter-based: a hash of a learner's key and of its step. What a learner does depends on nothing
else: neither on how many there are, nor on how they share the cores, nor on how many steps a launch takes. Outcomes are
drawn by the alias method in constant time; every probability is met to 2**-32 times the number of outcomes.

Kernels are made for one rule, one number of actions and one number of outcomes, so that loops over actions unroll. They
compile on first use, in a second or two, and are cached on disk. Float32 tables were tried: within the caches they
gained nothing.

Sources:
    Walker 1977, "An efficient method for generating discrete random variables with general distributions", ACM TOMS 3;
    Vose 1991, IEEE Transactions on Software Engineering 17 (alias tables).
    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA (the hash: `mix64`, variant 13
    of David Stafford).
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import warp as wp
from numpy.typing import NDArray

OPTIONS = {"enable_backward": False, "fuse_fp": False, "optimization_level": 3}
wp.set_module_options(OPTIONS)
wp.config.log_level = wp.LOG_ERROR  # a machine without a GPU is no reason for a warning

RULES = (
    "q_learning",
    "double_q_learning",
    "sarsa",
    "expected_sarsa",
    "softmax_sarsa",
    "softmax_expected_sarsa",
    "softmax_soft",
)
LANES = 4
"""Learners that one CPU thread interleaves, so that their chains of dependent operations overlap."""

GOLDEN, MIX_1, MIX_2 = (wp.constant(wp.uint64(x)) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
DRAWS = wp.constant(wp.uint64(4))
"""Hashes that a step may use."""
UNIT = wp.constant(wp.float64(2.0**-32))
ZERO, ONE = wp.constant(wp.float64(0.0)), wp.constant(wp.float64(1.0))


@dataclass(frozen=True)
class Variant:
    """What kernels are made for."""

    rule: str
    """One of RULES."""
    num_actions: int
    num_outcomes: int
    """K, the most that a state and action have."""
    step_size_schedule: str = "constant"
    """constant, linear or visits, as in `memory.table.TableSettings`."""
    rate_decays: bool = False
    """Whether epsilon, or tau, falls over time."""

    @property
    def num_tables(self) -> int:
        """Tables of each learner."""
        return 2 if self.rule == "double_q_learning" else 1


@wp.struct
class Model:
    """The dynamics. S states, A actions, K outcomes, M states in which episodes may begin."""

    num_states: int
    limit: int
    """Time limit in steps, 2**31 - 1 if there is none."""
    successor: wp.array(dtype=wp.int32)
    """(S * A * K): next state times 2, plus 1 if the outcome is terminal."""
    reward: wp.array(dtype=wp.float64)
    """(S * A * K)."""
    threshold: wp.array(dtype=wp.uint32)
    """(S * A * K): a column of the alias table keeps the draws below it."""
    other: wp.array(dtype=wp.int32)
    """(S * A * K): the outcome, as an index of these arrays, of the other draws."""
    start: wp.array(dtype=wp.int32)
    """(M): states."""
    start_threshold: wp.array(dtype=wp.uint32)
    """(M): as above."""
    start_other: wp.array(dtype=wp.int32)
    """(M): as above."""


@wp.struct
class Numbers:
    """What the settings come to. Schedules count the learner's own steps."""

    gamma: wp.float64
    step_size: wp.float64
    step_size_end: wp.float64
    step_size_power: wp.float64
    total_steps: wp.float64
    """Length of the linear schedule of the step size."""
    rate_start: wp.float64
    """epsilon or tau."""
    rate_end: wp.float64
    rate_steps: wp.float64
    """Over which it falls."""


def alias_table(probability: NDArray[np.float64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Columns that make a draw a matter of one comparison: of a uniform column k, keep k below the threshold.

    Args:
        probability: (..., K), summing to 1 over K.

    Returns:
        threshold: (..., K) in units of 2**-32; 1 is rounded down by one unit, and `other` is then k itself.
        other: (..., K) the outcome above the threshold.

    Source:
        Vose 1991.
    """
    num_outcomes = probability.shape[-1]
    share = probability.reshape(-1, num_outcomes) * num_outcomes
    other = np.tile(np.arange(num_outcomes), (len(share), 1))
    for row, alias in zip(share, other, strict=True) if num_outcomes > 1 else ():
        small, large = [k for k in range(num_outcomes) if row[k] < 1], [k for k in range(num_outcomes) if row[k] >= 1]
        while small and large:
            poor, rich = small.pop(), large[-1]
            alias[poor] = rich
            row[rich] -= 1 - row[poor]
            if row[rich] < 1:
                small.append(large.pop())
        row[small + large] = 1.0
    threshold = np.minimum(np.rint(share * 2.0**32), 2.0**32 - 1).astype(np.uint32)
    return threshold.reshape(probability.shape), other.reshape(probability.shape)


# --- random numbers -----------------------------------------------------------------------------------------------


@wp.func
def mix(x: wp.uint64) -> wp.uint64:
    x = (x ^ (x >> wp.uint64(30))) * MIX_1
    x = (x ^ (x >> wp.uint64(27))) * MIX_2
    return x ^ (x >> wp.uint64(31))


@wp.func
def draw(key: wp.uint64, time: wp.int64, index: wp.uint64) -> wp.uint64:
    """64 random bits."""
    return mix(key + (wp.uint64(time) * DRAWS + index) * GOLDEN)


@wp.func
def high(bits: wp.uint64) -> wp.uint32:
    return wp.uint32(bits >> wp.uint64(32))


@wp.func
def unit(bits: wp.uint32) -> wp.float64:
    """A number in [0, 1)."""
    return wp.float64(bits) * UNIT


@wp.func
def below(bits: wp.uint32, n: int) -> int:
    """A number in [0, n)."""
    return wp.int32((wp.uint64(bits) * wp.uint64(wp.uint32(n))) >> wp.uint64(32))


@wp.func
def at(index: int) -> int:
    """The same index; the compiler now knows that it is not negative, and spares the test at each access."""
    return index & 0x7FFFFFFF


@wp.func
def from_alias(
    bits: wp.uint32,
    first: int,
    count: int,
    threshold: wp.array(dtype=wp.uint32),
    other: wp.array(dtype=wp.int32),
) -> int:
    """An index in [first, first + count), drawn by an alias table."""
    spread = wp.uint64(bits) * wp.uint64(wp.uint32(count))
    column = at(first + wp.int32(spread >> wp.uint64(32)))
    return wp.where(wp.uint32(spread) < threshold[column], column, other[column])


# --- learners -----------------------------------------------------------------------------------------------------


@functools.cache
def make_kernels(variant: Variant) -> Any:
    """Compiles nothing yet; see `Kernels` for what it returns."""
    A, K, T = variant.num_actions, variant.num_outcomes, variant.num_tables  # noqa: N806
    softmax, double = variant.rule.startswith("softmax"), variant.rule == "double_q_learning"
    sampled = variant.rule.endswith("sarsa") and "expected" not in variant.rule
    schedule, decays = variant.step_size_schedule, variant.rate_decays
    Row = wp.types.vector(length=A, dtype=wp.float64)  # noqa: N806
    backup = {
        "q_learning": "greedy",
        "double_q_learning": "greedy",
        "sarsa": "sampled",
        "softmax_sarsa": "sampled",
        "expected_sarsa": "epsilon_soft",
        "softmax_expected_sarsa": "boltzmann",
        "softmax_soft": "soft",
    }[variant.rule]

    @wp.struct
    class Population:
        """N learners. Rows of q are numbered ((learner * S) + state) * tables + table."""

        q: wp.array(dtype=Row)
        visits: wp.array(dtype=wp.int32)
        """(N * S * A): updates of each entry, of either table."""
        key: wp.array(dtype=wp.uint64)
        time: wp.array(dtype=wp.int64)
        """Steps taken so far."""
        state: wp.array(dtype=wp.int32)
        action: wp.array(dtype=wp.int32)
        """What it will do next."""
        length: wp.array(dtype=wp.int32)
        """Of the running episode."""
        episode_return: wp.array(dtype=wp.float64)
        """Of the running episode."""
        episodes: wp.array(dtype=wp.int64)
        """Finished ones."""
        return_sum: wp.array(dtype=wp.float64)
        """Over finished episodes."""
        length_sum: wp.array(dtype=wp.int64)
        """Over finished episodes."""
        history: wp.array2d(dtype=wp.float64)
        """(N, E): returns of the first E episodes."""
        last_outcome: wp.array(dtype=wp.int32)
        """Of the last step, as an index of (S, A, K)."""
        last_drawn: wp.array(dtype=wp.int32)
        """The a' that the last update was made with, where the rule draws one."""
        last_table: wp.array(dtype=wp.int32)
        """Which table the last step updated."""

    @wp.struct
    class Learner:
        """One learner while it runs: all of it in registers."""

        base: int
        key: wp.uint64
        time: wp.int64
        state: int
        action: int
        length: int
        episode_return: wp.float64
        outcome: int
        drawn: int
        table: int

    @wp.func
    def values(p: Population, index: int) -> Row:
        """The row that the learner acts by: of two tables, their mean."""
        if wp.static(double):
            return (p.q[at(2 * index)] + p.q[at(2 * index + 1)]) / wp.float64(2.0)
        return p.q[at(index)]

    @wp.func
    def greatest(row: Row) -> wp.float64:
        best = row[0]
        for j in range(1, A):
            best = wp.where(row[j] > best, row[j], best)
        return best

    @wp.func
    def best_action(row: Row, bits: wp.uint32) -> int:
        """A best action, ties broken at random."""
        best = greatest(row)
        ties = int(0)
        action = int(0)
        for j in range(A):
            ties += wp.where(row[j] == best, 1, 0)
            action = wp.where(row[j] == best, j, action)
        if ties > 1:
            skip = below(bits, ties)
            for j in range(A):
                tied = row[j] == best
                action = wp.where(tied and skip == 0, j, action)
                skip -= wp.where(tied, 1, 0)
        return action

    @wp.func
    def weights(row: Row, temperature: wp.float64) -> Row:
        """exp((q - max q) / tau)."""
        best = greatest(row)
        weight = Row()
        for j in range(A):
            weight[j] = wp.exp((row[j] - best) / temperature)
        return weight

    @wp.func
    def total(row: Row) -> wp.float64:
        result = row[0]
        for j in range(1, A):
            result += row[j]
        return result

    @wp.func
    def choose(row: Row, rate: wp.float64, first: wp.uint32, second: wp.uint32) -> int:
        """The next action: epsilon-greedy, or by softmax."""
        if wp.static(softmax):
            weight = weights(row, rate)
            mark = unit(first) * total(weight)
            action = int(0)
            cumulative = weight[0]
            for j in range(1, A):
                action = wp.where(cumulative > mark, action, j)
                cumulative += weight[j]
            return action
        greedy = best_action(row, second)
        return wp.where(unit(first) < rate, below(second, A), greedy)

    @wp.func
    def expectation(row: Row, rate: wp.float64) -> wp.float64:
        """The backups that need no a'."""
        best = greatest(row)
        if wp.static(backup == "epsilon_soft"):
            return (ONE - rate) * best + rate * (total(row) / wp.float64(A))
        if wp.static(backup == "boltzmann"):
            weight = weights(row, rate)
            return wp.dot(weight, row) / total(weight)
        if wp.static(backup == "soft"):
            return best + rate * wp.log(total(weights(row, rate)))
        return best

    @wp.func
    def rate_at(c: Numbers, time: wp.int64) -> wp.float64:
        """epsilon or tau."""
        if wp.static(decays):
            progress = wp.min(wp.float64(time) / c.rate_steps, ONE)
            return (ONE - progress) * c.rate_start + progress * c.rate_end
        return c.rate_end

    @wp.func
    def step_size_at(c: Numbers, time: wp.int64, visits: int) -> wp.float64:
        if wp.static(schedule == "linear"):
            progress = wp.min(wp.float64(time) / c.total_steps, ONE)
            return c.step_size + (c.step_size_end - c.step_size) * progress
        if wp.static(schedule == "visits"):
            return wp.min(ONE, c.step_size / wp.pow(wp.float64(visits), c.step_size_power))
        return c.step_size

    @wp.func
    def first_state(m: Model, bits: wp.uint32) -> int:
        return m.start[from_alias(bits, 0, m.start.shape[0], m.start_threshold, m.start_other)]

    @wp.func
    def step(p: Population, m: Model, c: Numbers, i: int, l: Learner) -> Learner:  # noqa: E741
        """Acts, learns, and chooses what to do next."""
        chance = draw(l.key, l.time, wp.uint64(0))
        choice = draw(l.key, l.time, wp.uint64(1))
        time = l.time + wp.int64(1)
        rate = rate_at(c, time)
        index = l.base + l.state
        outcome = (l.state * A + l.action) * K
        if wp.static(K > 1):
            outcome = from_alias(high(chance), outcome, K, m.threshold, m.other)
        successor = m.successor[at(outcome)]
        reward = m.reward[at(outcome)]
        next_state = successor >> 1
        terminal = (successor & 1) != 0

        n = Learner()
        n.base = l.base
        n.key = l.key
        n.time = time
        n.outcome = outcome
        n.drawn = 0
        n.table = 0
        if wp.static(sampled):  # a' is drawn before the update, also for the state behind a time limit
            n.drawn = choose(values(p, l.base + next_state), rate, wp.uint32(chance), high(choice))
            next_value = p.q[at(l.base + next_state)][n.drawn]
        elif wp.static(double):
            n.table = wp.int32(choice & wp.uint64(1))
            row_index = 2 * (l.base + next_state)
            best = best_action(p.q[at(row_index + n.table)], wp.uint32(choice))
            next_value = p.q[at(row_index + 1 - n.table)][best]
        else:
            next_value = expectation(p.q[at(l.base + next_state)], rate)
        entry = at(index * A + l.action)
        visits = p.visits[entry] + 1
        p.visits[entry] = visits
        q_sa = p.q[at(index * T + n.table)][l.action]
        discount = wp.where(terminal, ZERO, c.gamma)
        new = q_sa + step_size_at(c, time, visits) * (reward + discount * next_value - q_sa)
        p.q[at(index * T + n.table)][l.action] = new

        n.state = next_state
        n.action = n.drawn
        n.length = l.length + 1
        n.episode_return = l.episode_return + reward
        if terminal or n.length >= m.limit:
            episode = p.episodes[i]
            if episode < wp.int64(p.history.shape[1]):
                p.history[i, wp.int32(episode)] = n.episode_return
            p.episodes[i] = episode + wp.int64(1)
            p.return_sum[i] += n.episode_return
            p.length_sum[i] += wp.int64(n.length)
            n.length = 0
            n.episode_return = ZERO
            n.state = first_state(m, high(draw(l.key, l.time, wp.uint64(2))))
            if wp.static(sampled):
                bits = draw(l.key, l.time, wp.uint64(3))
                n.action = choose(values(p, l.base + n.state), rate, wp.uint32(bits), high(bits))
        if wp.static(not sampled):
            n.action = choose(values(p, l.base + n.state), rate, wp.uint32(chance), high(choice))
        return n

    @wp.func
    def load(p: Population, m: Model, i: int) -> Learner:
        l = Learner()  # noqa: E741
        l.base = i * m.num_states
        l.key = p.key[i]
        l.time = p.time[i]
        l.state = p.state[i]
        l.action = p.action[i]
        l.length = p.length[i]
        l.episode_return = p.episode_return[i]
        return l

    @wp.func
    def store(p: Population, i: int, l: Learner):  # noqa: E741
        p.time[i] = l.time
        p.state[i] = l.state
        p.action[i] = l.action
        p.length[i] = l.length
        p.episode_return[i] = l.episode_return
        p.last_outcome[i] = l.outcome
        p.last_drawn[i] = l.drawn
        p.last_table[i] = l.table

    @wp.kernel(module="unique", module_options=OPTIONS)
    def begin(p: Population, m: Model, c: Numbers) -> None:
        """Begins the first episode of each learner."""
        i = wp.tid()
        bits = draw(p.key[i], wp.int64(-1), wp.uint64(0))
        state = first_state(m, high(draw(p.key[i], wp.int64(-1), wp.uint64(1))))
        p.state[i] = state
        row = values(p, i * m.num_states + state)
        p.action[i] = choose(row, rate_at(c, wp.int64(0)), wp.uint32(bits), high(bits))

    @wp.kernel(module="unique", module_options=OPTIONS)
    def advance_one(first: int, steps: int, p: Population, m: Model, c: Numbers) -> None:
        """One learner per thread takes `steps` steps."""
        i = first + wp.tid()
        learner = load(p, m, i)
        for _t in range(steps):
            learner = step(p, m, c, i, learner)
        store(p, i, learner)

    @wp.kernel(module="unique", module_options=OPTIONS)
    def advance_four(first: int, steps: int, p: Population, m: Model, c: Numbers) -> None:
        """Four learners per thread take turns."""
        i = first + 4 * wp.tid()
        one = load(p, m, i)
        two = load(p, m, i + 1)
        three = load(p, m, i + 2)
        four = load(p, m, i + 3)
        for _t in range(steps):
            one = step(p, m, c, i, one)
            two = step(p, m, c, i + 1, two)
            three = step(p, m, c, i + 2, three)
            four = step(p, m, c, i + 3, four)
        store(p, i, one)
        store(p, i + 1, two)
        store(p, i + 2, three)
        store(p, i + 3, four)

    return Kernels(Population, Row, begin, advance_one, advance_four)


@dataclass(frozen=True)
class Kernels:
    """What `make_kernels` makes."""

    Population: Any
    """The struct that the kernels work on."""
    Row: Any
    """One row of a table: A float64."""
    begin: Any
    advance_one: Any
    advance_four: Any
