"""Recurrent cores: features and what is remembered in, features out. A core's state is one tensor (N, state_dim)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CORES = ("none", "lstm", "gru")


class Core(nn.Module):
    """Features (N, in_dim) and state (N, state_dim) -> features (N, out_dim) and next state (N, state_dim)."""

    out_dim: int
    state_dim: int

    def unroll(self, features: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """Steps through a sequence, with a zero state where an episode starts.

        Args:
            features: (T, N, in_dim).
            state: (N, state_dim) before the first step.
            episode_start: (T, N) bool.

        Returns:
            Features (T, N, out_dim) and the state after the last step (N, state_dim).
        """
        outputs = []
        for features_t, start_t in zip(features.unbind(), episode_start.unbind(), strict=True):
            output, state = self(features_t, state.masked_fill(start_t[:, None], 0.0))
            outputs.append(output)
        return torch.stack(outputs), state


class LSTMCore(Core):
    """Long short-term memory; its state is the hidden and the cell vector, side by side.

    Source:
        Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers et al. 2000.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(in_dim, out_dim)
        self.out_dim, self.state_dim = out_dim, 2 * out_dim

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = self.cell(features, tuple(state.chunk(2, dim=1)))
        return hidden, torch.cat([hidden, cell], dim=1)


class GRUCore(Core):
    """Gated recurrent unit; its state is its output.

    Source:
        Cho et al. 2014, arXiv:1406.1078.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(in_dim, out_dim)
        self.out_dim = self.state_dim = out_dim

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden: Tensor = self.cell(features, state)
        return hidden, hidden


def make_core(name: str, in_dim: int, out_dim: int) -> Core | None:
    """Builds one of `CORES`; `none` is None."""
    if name == "none":
        return None
    return {"lstm": LSTMCore, "gru": GRUCore}[name](in_dim, out_dim)
