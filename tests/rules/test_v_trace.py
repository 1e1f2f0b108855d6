"""V-trace against rlax's vectors, and against the on-policy rules that it becomes where the policies agree."""

from __future__ import annotations

import pytest
import torch

from rules.returns import gae, lambda_returns, v_trace

# rlax's vtrace_test.py, environments as rows; everything below is turned to time first.
BEHAVIOUR = [[[8.9, 0.7], [5, 1], [0.6, 0.1], [-0.9, -0.1]], [[0.3, -5], [1, -8], [0.3, 1.7], [4.7, 3.3]]]
TARGET = [[[0.4, 0.5], [9.2, 8.8], [0.7, 4.4], [7.9, 1.4]], [[1, 0.9], [1, -1], [-4.3, 8.7], [0.8, 0.3]]]
ACTION = [[0, 1, 0, 0], [1, 0, 0, 1]]
REWARD = [[-1.3, -1.3, 2.3, 42], [1.3, 5.3, -3.3, -5]]
DISCOUNT = [[0, 0.89, 0.85, 0.99], [0.88, 1, 0.83, 0.95]]
VALUE = [[2.1, 1.1, -3.1, 0], [3.1, 0.1, -1.1, 7.4]]
BOOTSTRAP = [8.4, -1.2]
ERROR = [[-1.6155143, -3.4973226, 1.8670533, 50.316], [1.4662437, 3.6116405, -8.33e-5, -13.54]]
ADVANTAGE_CLIP_5 = [[-1.6155144, -17.4866121, 1.8670535, 162.052681], [7.3312171, 3.6116403, -8.34e-5, -25.84168]]


def rlax() -> dict[str, torch.Tensor]:
    action = torch.tensor(ACTION)[..., None]
    mu, pi = (
        torch.tensor(x, dtype=torch.float64).log_softmax(-1).gather(-1, action)[..., 0] for x in (BEHAVIOUR, TARGET)
    )
    reward, discount, value = (torch.tensor(x, dtype=torch.float64).T for x in (REWARD, DISCOUNT, VALUE))
    next_value = torch.cat([value[1:], torch.tensor([BOOTSTRAP], dtype=torch.float64)])
    return {
        "reward": reward,
        "discount": discount,
        "value": value,
        "next_value": next_value,
        "cut": discount == 0,
        "ratio": (pi - mu).exp().T,
    }


def test_rlax() -> None:
    inputs = rlax()
    target, advantage = v_trace(**inputs)
    wanted = torch.tensor(ERROR, dtype=torch.float64).T
    assert torch.allclose(target - inputs["value"], wanted, rtol=1e-3, atol=1e-6)
    assert torch.allclose(advantage, wanted, rtol=1e-3, atol=1e-6)


def test_a_wider_clip_of_the_advantages() -> None:
    inputs = rlax()
    target, advantage = v_trace(**inputs, clip_policy_rho=5.0)
    assert torch.allclose(advantage, torch.tensor(ADVANTAGE_CLIP_5, dtype=torch.float64).T, rtol=1e-3, atol=1e-6)
    assert torch.equal(target, v_trace(**inputs)[0])


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_on_policy_it_is_the_lambda_return(lambda_: float) -> None:
    inputs = rlax() | {"ratio": torch.ones(4, 2, dtype=torch.float64)}
    inputs["cut"][1, 1] = True  # a time limit: next_value and value of the next row differ from now on
    inputs["next_value"][1, 1] = 3.0
    target, _ = v_trace(**inputs, lambda_=lambda_)
    on_policy = {name: inputs[name] for name in ("reward", "discount", "next_value", "cut")}
    assert torch.allclose(target, lambda_returns(**on_policy, lambda_=lambda_))


def test_on_policy_advantages_with_lambda_one_are_those_of_gae() -> None:
    inputs = rlax() | {"ratio": torch.ones(4, 2, dtype=torch.float64)}
    _, advantage = v_trace(**inputs)
    del inputs["ratio"]
    assert torch.allclose(advantage, gae(**inputs, lambda_=1.0))


def test_nothing_is_learned_from_what_the_policy_would_never_do() -> None:
    inputs = rlax() | {"ratio": torch.zeros(4, 2, dtype=torch.float64)}
    target, advantage = v_trace(**inputs)
    assert torch.equal(target, inputs["value"])
    assert not advantage.any()


def test_a_clip_must_be_positive() -> None:
    with pytest.raises(ValueError, match="clip_rho"):
        v_trace(**rlax(), clip_rho=0.0)
