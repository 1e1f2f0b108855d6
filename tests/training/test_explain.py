"""Explaining an agent: which score, which part of the observation, whose memory; and the film of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor, nn

from contract import ActionNet, EnvSpec
from faults import ConfigError
from tests.runs import Line, run_evaluate, single_error
from training.explain import Explained, Explainer, Moment, bars, explained_film, overlay

ROOT = Path(__file__).resolve().parent.parent.parent
VECTOR, IMAGE = Box(-1, 1, (3,), np.float32), Box(0, 255, (4, 16, 16), np.uint8)


def spec(space: Any) -> EnvSpec:
    return EnvSpec("x", space, Discrete(2), 1)


def moment(obs: Any, action: int, start: bool = False) -> Moment:
    return Moment(obs, torch.tensor([start]), torch.tensor([action]))


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight).float()
    return layer


def test_the_value_of_the_action_taken_is_explained() -> None:
    explainer = Explainer(ActionNet(linear([[1, -2, 3], [0, 5, 0]]), "values"), spec(VECTOR), "gradient")
    (step,) = explainer([moment(torch.tensor([[1.0, 1.0, 1.0]]), action=1)])
    assert step.numbers.tolist() == [2, 5]
    assert step.heat.tolist() == [0, 5, 0]
    assert step.chosen == 1
    assert step.seen is None


def test_logits_become_probabilities_and_the_log_probability_is_explained() -> None:
    net = ActionNet(linear([[2, 0, 0], [0, 0, 0]]), "logits")
    (step,) = Explainer(net, spec(VECTOR), "gradient")([moment(torch.zeros(1, 3), action=0)])
    assert step.numbers.tolist() == [0.5, 0.5]
    assert step.heat.tolist() == pytest.approx([2 * (1 - 0.5), 0, 0])  # d log softmax = (1 - p) d logit


class Counter(nn.Module):
    """Says how many steps it has seen, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return state + obs.sum(1, keepdim=True) * self.one, state + 1


def test_a_memory_is_carried_along_and_cleared_at_an_episodes_start() -> None:
    explainer = Explainer(ActionNet(Counter(), "values", state_dim=1), spec(VECTOR), "gradient")
    obs = torch.zeros(1, 3)
    steps = explainer([moment(obs, 0, start) for start in (True, False, False, True, False)])
    assert [step.numbers.tolist() for step in steps] == [[0], [1], [2], [0], [1]]


def test_of_several_senses_the_image_is_explained_with_the_others_as_they_are() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, obs: dict[str, Tensor]) -> Tensor:
            gain = obs["radar"].sum(1)  # (N,)
            return (gain * obs["camera"].float()[:, :, 3, 5].sum(1) * self.weight)[:, None]

    space = Dict({"camera": IMAGE, "radar": VECTOR})
    image = torch.zeros(1, 4, 16, 16, dtype=torch.uint8)
    image[0, 3] = 9
    obs = {"camera": image, "radar": torch.tensor([[1.0, 1.0, 0.0]])}
    expected = torch.zeros(16, 16)
    expected[3, 5] = 2
    (step,) = Explainer(ActionNet(Both(), "values"), spec(space), "gradient")([moment(obs, 0)])
    assert torch.equal(torch.from_numpy(step.heat), expected)
    assert step.seen is not None
    assert step.seen.shape == (16, 16, 3)
    assert (step.seen == 9).all()  # the newest frame


def test_an_occlusion_covers_with_what_is_usually_there() -> None:
    class Sees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, obs: Tensor) -> Tensor:
            return obs.float().mean((1, 2, 3))[:, None] * self.weight

    still = torch.full((1, 4, 16, 16), 100, dtype=torch.uint8)
    other = still.clone()
    other[..., 8:, 8:] = 200
    first, second = Explainer(ActionNet(Sees(), "values"), spec(IMAGE), "occlusion")(
        [moment(still, 0), moment(other, 0)]
    )
    assert first.heat[:7, :7].max() == 0  # nothing ever happens there
    assert second.heat[9:, 9:].min() > 0


@pytest.mark.parametrize(
    ("space", "method", "line"),
    [
        (Discrete(4), "gradient", "explain needs images or numbers"),
        (Box(0, 20, (3, 5, 5), np.uint8), "occlusion", "explain needs images or numbers"),
        (VECTOR, "occlusion", "use explain=gradient$"),
        (IMAGE, "grad_cam", "use explain=gradient or occlusion"),
    ],
)
def test_what_cannot_be_explained_is_refused(space: Any, method: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Explainer(ActionNet(nn.Linear(3, 2), "values"), spec(space), method)


def test_a_bar_is_as_long_as_its_number() -> None:
    def length(number: float) -> int:
        picture = bars("Q", ["a"], np.array([number]), -1.0, 3.0, 0)
        return int((picture[60] == (255, 90, 54)).all(-1).sum())

    whole = length(3.0)
    assert length(1.0) == pytest.approx(whole / 2, abs=2)
    assert length(-1.0) <= 3


def test_the_glow_lies_where_the_heat_is() -> None:
    picture = np.full((4, 4, 3), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    shown = overlay(picture, heat).astype(int)
    assert (shown[0, 0] == 85).all()
    assert shown[1, 2].sum() > 600


def test_the_scale_is_that_of_the_episode() -> None:
    explainer = Explainer(ActionNet(linear([[1, 0, 0], [0, 1, 0]]), "values"), spec(VECTOR), "gradient")
    steps = [Explained(np.array([k, 10.0]), 0, None, np.array([k, 0.0, 0.0])) for k in (1.0, 10.0)]
    frames = [np.zeros((50, 40, 3), np.uint8)] * 2
    first, second = explained_film(frames, steps, ["left", "right"], explainer)
    assert first.shape == second.shape == (420, 336 + 300 + 300, 3)
    assert ((first != second).any(-1)).sum() > 1000


def test_rounding_is_no_saliency() -> None:
    explainer = Explainer(ActionNet(linear([[1, 0, 0], [0, 1, 0]]), "values"), spec(VECTOR), "gradient")
    dark, noise = (
        explained_film(
            [np.zeros((50, 40, 3), np.uint8)],
            [Explained(np.array([5.0, 3.0]), 0, np.zeros((8, 8, 3), np.uint8), np.full((8, 8), heat))],
            ["left", "right"],
            explainer,
        )[0]
        for heat in (0.0, 1e-7)
    )
    assert np.abs(dark.astype(int) - noise).max() < 10


def test_the_command_writes_a_film(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [f"run={ROOT / 'pretrained/cartpole'}", f"out={tmp_path}", "explain_env_steps=20"]
    assert run_evaluate(*command, "explain=true") == 0
    (film,) = tmp_path.glob("*-gradient-cut.mp4")
    assert film.stat().st_size > 5_000
    capfd.readouterr()
    for asked, line in (
        (["explain=grad_cam"], "explain=grad_cam needs a CNN"),
        (["explain=smooth"], "explain must be one of gradient, grad_cam, occlusion"),
        (["explain=true", "export=onnx"], "exclude each other"),
    ):
        code = run_evaluate(*command, *asked)
        captured = capfd.readouterr()
        assert code == 2
        assert line in single_error(Line(code, captured.out, captured.err))
