"""Pure functions of tensors: Bellman targets, returns, losses, exploration and schedules."""
