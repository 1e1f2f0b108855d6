"""Driving: a city of lanes, lights, cars and pedestrians, stepped in batches, with an exact optimum.

config.py    every parameter, and what each id sets it to
maps.py      drawings and generated cities
routes.py    shortest paths
tables.py    all that is known of the cities beforehand
rules.py     the rules, as kernels
senses.py    what the ego perceives, as kernels
batch.py     N environments on one device
oracle.py    transition table, value iteration, time to the goal
render.py    pictures
env.py       Gymnasium's classes
"""

from __future__ import annotations

import gymnasium as gym

from envs.driving.config import PRESETS


def register() -> None:
    """Makes the ids known to Gymnasium."""
    for env_id in PRESETS:
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point="envs.driving.env:DrivingEnv",
                vector_entry_point="envs.driving.env:DrivingVectorEnv",
                kwargs={"env_id": env_id},
            )
