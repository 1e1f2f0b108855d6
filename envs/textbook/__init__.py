"""Environments of Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), that Gymnasium does not have."""

from __future__ import annotations

import gymnasium as gym

IDS = {
    "Textbook/WindyGridworld-v0": "envs.textbook.windy_gridworld:WindyGridworldEnv",
    "Textbook/RandomWalk-v0": "envs.textbook.random_walk:RandomWalkEnv",
    "Textbook/MaximizationBias-v0": "envs.textbook.maximization_bias:MaximizationBiasEnv",
    "Textbook/DynaMaze-v0": "envs.textbook.dyna_maze:DynaMazeEnv",
}


def register() -> None:
    """Makes the ids known to Gymnasium. None of them has a time limit, as in the book."""
    for env_id, entry_point in IDS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=entry_point)
