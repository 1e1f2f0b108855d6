"""The dynamics of Gymnasium's Blackjack as a table: an infinite deck makes every probability a small sum.

`Blackjack-v1` does not tell its dynamics. With the book's rules (`sab=True`), an observation does not tell a natural
(an ace and a ten from the start) from another soft 21, and the two win differently; the table has states of their own
for it.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from envs.tables import Outcome, TabularModel

STICK, HIT = 0, 1
CARDS = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}
SUMS, DEALER_CARDS, ACES = 32, 11, 2
OBSERVATIONS = SUMS * DEALER_CARDS * ACES
NATURAL = OBSERVATIONS
"""State of a natural against the dealer's card d: NATURAL + d."""


def blackjack_model(sab: bool = True) -> tuple[TabularModel, NDArray[np.int64]]:
    """The table of `Blackjack-v1`.

    Args:
        sab: Sutton and Barto's rules, under which a natural beats everything but another natural; else naturals count
            as 21, as in `Blackjack-v1` with `sab=False, natural=False`.

    Returns:
        The model, and for each of its states the number of the observation (player's sum, dealer's card, usable ace)
        that an agent sees there, counted as `memory.table.StateIndex` does: a policy's table is `policy[observation]`.
    """
    table: dict[int, dict[int, list[Outcome]]] = {}
    for total, dealer, ace in product(range(SUMS), range(DEALER_CARDS), range(ACES)):
        state = _number(total, dealer, ace)
        if dealer == 0 or total > 21:
            table[state] = {a: [(1.0, state, 0.0, True)] for a in (STICK, HIT)}
        else:
            table[state] = {STICK: _stick(state, total, dealer), HIT: _hit(total, dealer, ace)}
    for dealer in range(DEALER_CARDS):
        state, soft = NATURAL + dealer, _number(21, dealer, 1)
        table[state] = dict(table[soft])
        if sab and dealer > 0:
            draw = _dealer(dealer)["natural"]
            table[state][STICK] = [(draw, state, 0.0, True), (1 - draw, state, 1.0, True)]

    start = np.zeros(OBSERVATIONS + DEALER_CARDS)
    for (first, p), (second, q), (dealer, r) in product(CARDS.items(), repeat=3):
        ace = int(1 in (first, second))
        total = first + second + 10 * ace
        natural = total == 21
        start[NATURAL + dealer if natural else _number(total, dealer, ace)] += p * q * r
    observation = np.arange(OBSERVATIONS + DEALER_CARDS)
    observation[NATURAL:] = [_number(21, dealer, 1) for dealer in range(DEALER_CARDS)]
    return TabularModel.from_outcomes(table, start), observation


def _number(total: int, dealer: int, ace: int) -> int:
    return (total * DEALER_CARDS + dealer) * ACES + ace


def _hit(total: int, dealer: int, ace: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for card, p in CARDS.items():
        new, usable = _add(total, ace, card)
        outcomes.append((p, _number(new, dealer, usable), -1.0 if new > 21 else 0.0, new > 21))
    return outcomes


def _stick(state: int, total: int, dealer: int) -> list[Outcome]:
    final = _dealer(dealer)
    lose = sum(p for score, p in final.items() if isinstance(score, int) and score > total)
    draw = final.get(total, 0.0) + (final["natural"] if total == 21 else 0.0)
    lose += final["natural"] if total < 21 else 0.0
    return [(lose, state, -1.0, True), (draw, state, 0.0, True), (1 - lose - draw, state, 1.0, True)]


@cache
def _dealer(card: int) -> dict[int | str, float]:
    """Probability of the dealer's final sum (0: bust; "natural" apart from other 21s), given the card that is seen."""
    final: dict[int | str, float] = {"natural": 0.0}

    def draw(total: int, ace: int, cards: int, probability: float) -> None:
        if total >= 17 or total > 21:
            score: int | str = "natural" if total == 21 and cards == 2 else 0 if total > 21 else total
            final[score] = final.get(score, 0.0) + probability
            return
        for following, p in CARDS.items():
            draw(*_add(total, ace, following), cards + 1, probability * p)

    draw(*_add(0, 0, card), 1, 1.0)
    return final


def _add(total: int, ace: int, card: int) -> tuple[int, int]:
    """Sum and usable ace after one more card."""
    raw = total - 10 * ace + card
    has_ace = bool(ace) or card == 1
    return (raw + 10, 1) if has_ace and raw + 10 <= 21 else (raw, 0)
