"""Rollouts that never leave the device: T steps of N environments with nobody looking, then one round of learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract import Agent, Episode, LearnsFromRollouts, Metrics, Obs, Policy, Progress, State, StepsOnDevice, VecEnv


class RolloutInteraction:
    """Act, launch, observe until the rollout is full; then update, and ask which episodes have ended.

    On a GPU the first rollout is played step by step, the second is captured as one CUDA graph while it is played, and
    all later ones are replays of that graph: one call for all of their T steps.
    """

    def __init__(self, agent: Agent, env: VecEnv, policy: Policy, generator: torch.Generator) -> None:
        """Prepares; nothing is played yet.

        Args:
            agent: a `LearnsFromRollouts`.
            env: a `StepsOnDevice`.
            policy: of the agent, for as many environments.
            generator: what the policy draws from.
        """
        assert isinstance(agent, LearnsFromRollouts)
        assert isinstance(env, StepsOnDevice)
        self._agent, self._env, self._policy, self._generator = agent, env, policy, generator
        self._launch, self._drain, self._rollout = env.launch, env.drain, agent.rollout
        self._obs: Any = None
        self._episode_start = torch.ones(0, dtype=torch.bool)
        self._rollouts = 0  # since the memory was last arranged anew
        self._graph: torch.cuda.CUDAGraph | None = None
        self._carried: list[tuple[Tensor, Tensor]] = []  # where a replay leaves what the next one looks for elsewhere

    def __call__(self, env_steps: int) -> Progress:
        taken, episodes, metrics = 0, list[Episode](), list[Metrics]()
        while taken < env_steps:
            self.collect()
            metrics.append(self._agent.update())
            episodes += self._drain()
            taken += self._rollout.length * self._env.spec.num_envs
        return Progress(taken, episodes, metrics)

    def collect(self) -> None:
        """Fills the rollout."""
        if self._obs is None:
            self._begin(self._env.reset())
        if self._graph is None and self._rollouts > 0 and self._can_be_captured():
            self._capture()
        if self._graph is None:
            self._play()
        else:
            self._graph.replay()
            for begin, end in self._carried:
                begin.copy_(end)
            self._rollout.position = self._rollout.length
        self._rollouts += 1

    def _begin(self, obs: Obs) -> None:
        device = tensors(obs)[0].device
        self._obs, self._graph, self._rollouts = obs, None, 0
        self._episode_start = torch.ones(self._env.spec.num_envs, dtype=torch.bool, device=device)

    def _play(self) -> None:
        for _ in range(self._rollout.length - self._rollout.position):
            acted = self._policy.act(self._obs, self._episode_start)
            transition, self._obs = self._launch(acted.action)
            self._agent.observe(transition, acted)
            self._episode_start = transition.episode_end

    def _can_be_captured(self) -> bool:
        """Whether environments and policy live on the same GPU."""
        devices = {part.device for part in tensors(self._obs)} | {self._generator.device}
        return len(devices) == 1 and next(iter(devices)).type == "cuda"

    def _capture(self) -> None:
        """Records a rollout; nothing of it happens before the graph is replayed."""
        first, before = (self._obs, self._episode_start), self._carries()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph):
            self._play()
        pairs = zip(before, self._carries(), strict=True)
        self._carried = [(begin, end) for begin, end in pairs if begin.data_ptr() != end.data_ptr()]
        (self._obs, self._episode_start), self._graph = first, graph

    def _carries(self) -> list[Tensor]:
        """What one step hands to the next: the observation, where episodes start, a recurrent state."""
        state = self._policy.state_dict()
        recurrent = [state[name] for name in sorted(state) if isinstance(state[name], Tensor)]
        return [*tensors(self._obs), self._episode_start, *(part for part in recurrent if part.is_cuda)]

    def state_dict(self) -> State:
        return {
            "env": self._env.state_dict(),
            "policy": self._policy.state_dict(),
            "episode_start": self._episode_start,
        }

    def load_state_dict(self, state: State) -> None:
        self._begin(self._env.load_state_dict(state["env"]))
        self._policy.load_state_dict(state["policy"])
        self._episode_start.copy_(state["episode_start"])


def tensors(obs: Obs) -> list[Tensor]:
    """The tensors of an observation."""
    return list(obs.values()) if isinstance(obs, dict) else [obs]
