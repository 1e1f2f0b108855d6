"""A film of what a policy sees and why it acts: the game, what the network saw of it with the saliency as a glow, and
the numbers of the actions as bars.

The scales of bars and saliency are those of the whole episode, so that a bright spot is one wherever in the film it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from contract import ActionNet, EnvSpec, Obs, to_device
from faults import ConfigError
from training.config import SALIENCY_METHODS
from training.saliency import grad_cam, gradient, occlusion

HEIGHT, BAR_WIDTH, MARGIN = 420, 300, 16
INK, PAPER, ACCENT, FAINT = (236, 239, 241), (28, 32, 38), (255, 90, 54), (84, 92, 102)
MAX_NUMBERS = 14
"""So many inputs of a vector, or so many actions, have room."""
PATCHES = 16
"""Patches of an occlusion side by side, each as wide as two strides."""
UNITS = {"values": "Q(s, a)", "logits": "probability", "action": "action"}
Picture = NDArray[np.uint8]


class Moment(NamedTuple):
    """One step of one environment, as the policy met it."""

    obs: Obs
    """(1, *obs_shape), a copy."""
    episode_start: Tensor
    """(1,) bool."""
    action: Tensor
    """(1,) or (1, action_dim), the one taken."""

    @classmethod
    def of(cls, obs: Obs, episode_start: Tensor, action: Tensor) -> Moment:
        """Copies what the environment may overwrite."""
        kept = {name: part.clone() for name, part in obs.items()} if isinstance(obs, dict) else obs.clone()
        return cls(kept, episode_start.clone(), action.clone())


class Explained(NamedTuple):
    """One step of the game."""

    numbers: NDArray[np.float32]
    """(K,): action values, probabilities, or the continuous action."""
    chosen: int | None
    """The action taken, None for continuous ones."""
    seen: Picture | None
    """(H, W, 3): what the network saw, if it is an image."""
    heat: NDArray[np.float32]
    """(H, W), or (D,) for a vector: the saliency."""


class Explainer:
    """Says of each step what the network answered, and what in the observation the answer hangs on.

    The score that is explained is the value of the action taken, or the logarithm of its probability; of a continuous
    action it is the sum of its numbers.
    """

    def __init__(self, net: ActionNet, spec: EnvSpec, method: str) -> None:
        """Looks for the image, or the vector, to explain.

        Args:
            net: the policy's network.
            spec: of the environments, one of which is explained.
            method: one of `SALIENCY_METHODS`.

        Raises:
            ConfigError: if the method has nothing to work on.
        """
        self._net, self.method, self.meaning = net, method, net.meaning
        self._device = next(net.module.parameters()).device
        space = spec.observation_space
        self._sense: str | None = None
        if isinstance(space, Dict):
            images = [name for name, sense in space.items() if isinstance(sense, Box) and len(sense.shape) == 3]
            self._sense = images[0] if images else next(iter(space))
            space = space[self._sense]
        if not isinstance(space, Box) or len(space.shape) not in (1, 3) or _is_codes(space):
            raise ConfigError(f"explain needs images or numbers; {spec.env_id} shows {space}")
        self._image, self._high = len(space.shape) == 3, float(space.high.max())
        self._cnn = next((module for module in net.module.modules() if hasattr(module, "feature_map")), None)
        if (method == "grad_cam" and self._cnn is None) or (method == "occlusion" and not self._image):
            others = [name for name in SALIENCY_METHODS if name == "gradient" or (name == "occlusion" and self._image)]
            raise ConfigError(
                f"explain={method} needs a CNN on images, which this agent has not; use explain={' or '.join(others)}"
            )

    def __call__(self, moments: Sequence[Moment]) -> list[Explained]:
        """Explains an episode. What an occlusion covers with is what is usually there: the mean of its observations."""
        usual = torch.stack([self._inputs(moment.obs)[0].float() for moment in moments]).mean(0)
        state, explained = torch.zeros(1, self._net.state_dim, device=self._device), []
        for moment in moments:
            state = state.masked_fill(moment.episode_start.to(self._device)[:, None], 0.0)
            step, state = self._explain(moment, state, usual)
            explained.append(step)
        return explained

    def _inputs(self, obs: Obs) -> Tensor:
        """The image, or the vector, to explain."""
        part = obs[self._sense] if isinstance(obs, dict) and self._sense is not None else obs
        assert isinstance(part, Tensor)
        return part.to(self._device)

    def _explain(self, moment: Moment, state: Tensor, usual: Tensor) -> tuple[Explained, Tensor]:
        """One step, and the network's state after it."""
        whole, inputs, action = to_device(moment.obs, self._device), self._inputs(moment.obs), moment.action

        def answer(x: Tensor) -> Any:
            seen = x if self._sense is None else {k: v.expand(len(x), *v.shape[1:]) for k, v in whole.items()}
            if isinstance(seen, dict):
                seen[self._sense] = x
            if not self._net.state_dim:
                return self._net.module(seen)
            return self._net.module(seen, state.expand(len(x), -1))

        def outputs(x: Tensor) -> Tensor:
            found: Tensor = answer(x)[0] if self._net.state_dim else answer(x)
            return found.log_softmax(-1) if self.meaning == "logits" else found

        def score(x: Tensor) -> Tensor:
            found = outputs(x)
            return found.sum(1) if self.meaning == "action" else found[:, int(action)]

        with torch.no_grad():
            numbers = outputs(inputs)[0]
            next_state = answer(inputs)[1] if self._net.state_dim else state
        step = Explained(
            (numbers.exp() if self.meaning == "logits" else numbers).cpu().numpy(),
            None if self.meaning == "action" else int(action),
            self._seen(inputs[0]) if self._image else None,
            self._heat(score, inputs, usual)[0].abs().cpu().numpy(),
        )
        return step, next_state

    def _heat(self, score: Callable[[Tensor], Tensor], inputs: Tensor, usual: Tensor) -> Tensor:
        if self.method == "gradient":
            return gradient(score, inputs)
        if self.method == "grad_cam":
            assert self._cnn is not None
            return grad_cam(self._cnn, score, inputs)
        stride = max(1, min(inputs.shape[-2:]) // PATCHES)
        return occlusion(score, inputs, usual, 2 * stride, stride)

    def _seen(self, image: Tensor) -> Picture:
        """The newest frame of a stack, or a colour image: (C, H, W) -> (H, W, 3)."""
        planes = image if len(image) == 3 else image[-1:].expand(3, -1, -1)
        scaled = (planes.float() * (255 / self._high)).clamp(0, 255)
        return scaled.byte().permute(1, 2, 0).cpu().numpy()


def _is_codes(space: Box) -> bool:
    return bool(np.issubdtype(space.dtype, np.integer)) and int(space.high.max()) != 255


def explained_film(
    frames: Sequence[Picture], steps: Sequence[Explained], actions: Sequence[str], explainer: Explainer
) -> list[Picture]:
    """Puts the game, what was seen and the bars side by side.

    Args:
        frames: (H, W, 3) of the game, at the moment of each step.
        steps: the same number.
        actions: names of the numbers, K of them.
        explainer: who explained them.

    Returns:
        (420, W', 3) pictures.
    """
    numbers = np.stack([step.numbers for step in steps])
    rounding = 1e-5 * max(1.0, float(np.abs(numbers).max()))  # less than this is no saliency
    hottest = max(float(np.quantile(np.stack([step.heat for step in steps]), 0.999)), rounding)
    low, high = (0.0, 1.0) if explainer.meaning == "logits" else (float(numbers.min()), float(numbers.max()))
    names = [*actions][:MAX_NUMBERS]
    film = []
    for frame, step in zip(frames, steps, strict=True):
        heat = np.clip(step.heat / hottest, 0, 1)
        columns = [_enlarged(frame)]
        if step.seen is None:
            labels = [f"input {k}" for k in range(len(heat))][:MAX_NUMBERS]
            columns.append(bars(explainer.method, labels, heat[:MAX_NUMBERS], 0.0, 1.0, None))
        else:
            columns.append(_enlarged(overlay(step.seen, heat)))
        columns.append(bars(UNITS[explainer.meaning], names, step.numbers[:MAX_NUMBERS], low, high, step.chosen))
        film.append(np.concatenate(columns, axis=1))
    return film


def overlay(picture: Picture, heat: NDArray[np.float32]) -> Picture:
    """A picture (H, W, 3), glowing by `heat` (H, W) in [0, 1]."""
    glow = colormaps["inferno"](heat)[..., :3] * 255
    strength = np.sqrt(heat)[..., None]
    mixed: Picture = (picture * 0.85 * (1 - strength) + glow * strength).astype(np.uint8)
    return mixed


def bars(
    title: str, names: Sequence[str], numbers: NDArray[Any], low: float, high: float, chosen: int | None
) -> Picture:
    """(420, 300, 3): a titled row for each number, its bar between `low` and `high`, one of them marked."""
    image = Image.new("RGB", (BAR_WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text((MARGIN, MARGIN - 2), title, INK, ImageFont.load_default(18))
    top, row = 52, min(44, (HEIGHT - 52 - MARGIN) // max(1, len(names)))
    left, right = 110, BAR_WIDTH - 64
    span = max(high - low, 1e-9)
    for k, (name, number) in enumerate(zip(names, numbers.tolist(), strict=True)):
        y, colour = top + k * row, ACCENT if k == chosen else FAINT
        end = left + round((right - left) * min(1.0, max(0.0, (number - low) / span)))
        draw.text((MARGIN, y), name.lower()[:12], INK if k == chosen else (150, 158, 166), font)
        draw.rectangle((left, y + 2, right, y + 16), (40, 45, 52))
        draw.rectangle((left, y + 2, max(left + 2, end), y + 16), colour)
        draw.text((right + 8, y), f"{number:.2f}", INK if k == chosen else (150, 158, 166), font)
    return np.asarray(image)


def _enlarged(picture: Picture) -> Picture:
    """To the film's height: pixels stay sharp where they grow."""
    width = round(picture.shape[1] * HEIGHT / picture.shape[0])
    how = Image.Resampling.NEAREST if picture.shape[0] < HEIGHT else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((width, HEIGHT), how))
