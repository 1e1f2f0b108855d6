"""Training: configuration, loop, evaluation, checkpoints, logging. Knows agents and environments by contract only."""
