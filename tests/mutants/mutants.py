"""Famous bugs of reinforcement-learning code, one line each, and the tests that must notice them."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One wrong line."""

    bug: str
    """What is wrong, and where it has happened."""
    file: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]
    """Each must fail."""


REPLAY, PRIORITIZED, HOST = "memory/replay.py", "memory/prioritized.py", "envs/host.py"
RETURNS, TARGETS = "rules/returns.py", "rules/targets.py"

MUTANTS = [
    Mutant(
        "a time limit cuts the bootstrap, as if the task had ended (Stable-Baselines3 #633, CleanRL #198)",
        REPLAY,
        "discount = torch.where(alive, power * ~terminal, discount)",
        "discount = torch.where(alive, power * ~(terminal | self._episode_end[row, envs]), discount)",
        ("tests/memory/test_replay.py::test_n_step_rows_by_hand",),
    ),
    Mutant(
        "the empty row of a resetting environment is stored as experience (CleanRL #499)",
        HOST,
        "valid = ~self._resetting",
        "valid = np.ones_like(self._resetting)",
        ("tests/envs/test_host.py::test_transitions_are_exact_in_every_mode",),
    ),
    Mutant(
        "the next observation of an episode's end is that of the reset (CleanRL #499)",
        HOST,
        "if self._mode is not AutoresetMode.SAME_STEP or not episode_end.any():",
        "if self._mode is not None:",
        ("tests/envs/test_host.py::test_transitions_are_exact_in_every_mode",),
    ),
    Mutant(
        "a replay of single frames continues into the next episode at a time limit (Stable-Baselines3 #934)",
        REPLAY,
        "if slot in self._last_frame:",
        "if slot in ():",
        ("tests/memory/test_replay.py::test_every_sampleable_transition_over_three_wraps",),
    ),
    Mutant(
        "a stack of frames reaches across a time limit (Dopamine #213)",
        REPLAY,
        "torch.where(transition.episode_end | ~transition.valid, 0, self._next_age + 1)",
        "torch.where(transition.terminal | ~transition.valid, 0, self._next_age + 1)",
        ("tests/memory/test_replay.py::test_every_sampleable_transition_over_three_wraps",),
    ),
    Mutant(
        "a stack of frames reaches across the head of the ring",
        REPLAY,
        "return (oldest + self._store.history if oldest else 0), self._added - 1",
        "return oldest, self._added - 1",
        ("tests/memory/test_replay.py::test_every_sampleable_transition_over_three_wraps",),
    ),
    Mutant(
        "an n-step sum runs across a time limit (RLlib PR #2929, FastTD3 #6)",
        REPLAY,
        "alive = alive & ~terminal & ~self._episode_end[row, envs]",
        "alive = alive & ~terminal",
        ("tests/memory/test_replay.py::test_n_step_rows_by_hand",),
    ),
    Mutant(
        "a shortened n-step sum is discounted by gamma**n (FastTD3 #6, tf-agents #939)",
        REPLAY,
        "discount = torch.where(alive, power * ~terminal, discount)",
        "discount = torch.where(alive, self._gamma**self._n_step * ~terminal, discount)",
        ("tests/memory/test_replay.py::test_n_step_rows_by_hand",),
    ),
    Mutant(
        "the replay keeps a reference to the environment's buffer (SuperSuit PR #116, baselines PR #418)",
        REPLAY,
        "self._last_frame[first + i] = newest[i].clone()",
        "self._last_frame[first + i] = newest[i]",
        ("tests/memory/test_replay.py::test_stored_rows_do_not_follow_the_environments_buffers",),
    ),
    Mutant(
        "advantages run across the end of an episode (RoboVerse PR #814)",
        RETURNS,
        "total = term_t + factor_t * torch.where(cut_t, 0.0, total)",
        "total = term_t + factor_t * total",
        ("tests/rules/test_returns.py::test_gae_stops_at_both_ends_but_bootstraps_at_a_time_limit_only",),
    ),
    Mutant(
        "rewards are shifted by one step (Spinning Up #50)",
        RETURNS,
        "return _accumulate(td_target(reward, discount, bootstrap), discount, cut)",
        "return _accumulate(td_target(reward.roll(1, dims=0), discount, bootstrap), discount, cut)",
        ("tests/rules/test_returns.py::test_rewards_belong_to_the_step_that_earned_them",),
    ),
    Mutant(
        "the end of a chain bootstraps with a share of its value only (CleanRL #494)",
        RETURNS,
        "bootstrap = torch.where(_chain_stops(cut), next_value, (1 - lambda_) * next_value)",
        "bootstrap = (1 - lambda_) * next_value",
        ("tests/rules/test_returns.py::test_lambda_returns_of_an_episode_ignore_the_next_one",),
    ),
    Mutant(
        "a column of targets is broadcast against a row of values (Tianshou PR #155)",
        "rules/checks.py",
        "if tensor.shape != yardstick.shape:",
        "if tensor.numel() != yardstick.numel():",
        ("tests/rules/test_losses.py::test_a_target_that_would_broadcast_is_refused",),
    ),
    Mutant(
        "Double DQN lets the target network choose (RLHive PR #212)",
        TARGETS,
        "return sarsa_target(reward, discount, next_q_target, next_action=next_q_online.argmax(dim=-1))",
        "return sarsa_target(reward, discount, next_q_target, next_action=next_q_target.argmax(dim=-1))",
        ("tests/rules/test_targets.py::test_double_q_reproduces_rlax_and_avoids_its_decoys",),
    ),
    Mutant(
        "the target network is synchronised by gradient steps (CleanRL #323, Stable-Baselines3 #1373)",
        "networks/q_learner.py",
        "due = self.env_steps // self._settings.target_sync_every_env_steps",
        "due = self.updates // self._settings.target_sync_every_env_steps",
        ("tests/agents/test_dqn.py::test_updates_and_target_syncs_follow_environment_steps",),
    ),
    Mutant(
        "epsilon falls by vector steps (Stable-Baselines3 #1629)",
        "agents/dqn.py",
        "self.learner.env_steps += int(transition.valid.sum())",
        "self.learner.env_steps += 1",
        ("tests/agents/test_dqn.py::test_epsilon_is_a_function_of_environment_steps",),
    ),
    Mutant(
        "a new transition enters at a mean priority (TorchRL, a regression there)",
        PRIORITIZED,
        "self._max_priority**self._alpha, 0.0)",
        "self._tree.total / self._tree.size, 0.0)",
        ("tests/memory/test_prioritized.py::test_a_new_transition_has_the_highest_priority_so_far",),
    ),
    Mutant(
        "the exponent of priorities is applied twice (TorchRL)",
        PRIORITIZED,
        "self._tree.set(self._drawn, priority**self._alpha)",
        "self._tree.set(self._drawn, (priority**self._alpha) ** self._alpha)",
        ("tests/memory/test_prioritized.py::test_probabilities_and_weights",),
    ),
    Mutant(
        "weights are raised to alpha in place of beta (ptan #36)",
        PRIORITIZED,
        "weight = (priority.min() / priority) ** beta",
        "weight = (priority.min() / priority) ** self._alpha",
        ("tests/memory/test_prioritized.py::test_probabilities_and_weights",),
    ),
    Mutant(
        "the weighted error becomes the priority (RLlib #11750)",
        "agents/dqn.py",
        "return Learned(huber_loss(q, target, weight=weight), q.detach(), (target - q).detach())",
        "return Learned(huber_loss(q, target, weight=weight), q.detach(), (target - q).detach() * weight)",
        ("tests/agents/test_dqn_parts.py::test_an_update_uses_the_weights_and_returns_unweighted_errors",),
    ),
    Mutant(
        "importance weights are drawn and not used (Tianshou with Huber's loss)",
        "agents/dqn.py",
        "return Learned(huber_loss(q, target, weight=weight), q.detach(), (target - q).detach())",
        "return Learned(huber_loss(q, target), q.detach(), (target - q).detach())",
        ("tests/agents/test_dqn_parts.py::test_an_update_uses_the_weights_and_returns_unweighted_errors",),
    ),
    Mutant(
        "the projection of C51 loses what falls on an atom (rainbow-is-all-you-need PR #76)",
        "rules/distributional.py",
        "projected.scatter_add_(-1, lower.long(), probability * (1 - share))",
        "projected.scatter_add_(-1, lower.long(), probability * (position.ceil() - position))",
        ("tests/rules/test_distributional.py::test_projection_reproduces_dopamine",),
    ),
    Mutant(
        "clipped rewards are logged as the score (baselines #667)",
        HOST,
        "self._return += np.where(valid, reward, 0.0)",
        "self._return += np.where(valid, np.clip(reward, -1, 1), 0.0)",
        ("tests/envs/test_host.py::test_rewards_stay_raw",),
    ),
    Mutant(
        "all environments share one seed (RLlib #46986)",
        "contract.py",
        "SeedSequence(self._seed, spawn_key=(zlib.crc32(name.encode()), *index, *own))",
        "SeedSequence(self._seed, spawn_key=(zlib.crc32(name.encode()), *own))",
        ("tests/envs/test_host.py::test_episode_seeds_are_distinct",),
    ),
]
