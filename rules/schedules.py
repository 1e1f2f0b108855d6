"""Numbers that change while training: plain floats, functions of a counter and of nothing else.

`step` and `duration` count environment steps summed over all environments, so a schedule does not depend on how many
environments run side by side, nor on where a run was resumed.
"""

from rules.checks import check_positive


def linear_schedule(step: float, start: float, end: float, duration: float) -> float:
    """A straight line from start to end, flat before and after.

    Equation:
        value = start + (end - start) * clip(step / duration, 0, 1)

    Source:
        Mnih et al. 2015, Nature 518, Methods: epsilon "annealed linearly".

    Args:
        step: environment steps so far, summed over all environments.
        start: value at step 0 and before.
        end: value from step `duration` on, returned exactly.
        duration: environment steps from start to end, at least 0; 0 gives end at once.

    Returns:
        The value at this step.

    Raises:
        ValueError: if duration is negative.
    """
    progress = _progress(step, duration)
    return (1 - progress) * start + progress * end


def annealed(step: float, start: float, end: float | None, duration: float) -> float:
    """`linear_schedule`, or start for ever where end is None: what the `*_end` keys of agents mean."""
    return start if end is None else linear_schedule(step, start, end, duration)


def exponential_schedule(step: float, start: float, end: float, duration: float) -> float:
    """A constant percentage per step from start to end, flat before and after.

    Equation:
        value = start * (end / start) ** clip(step / duration, 0, 1)

    Source:
        Geometric interpolation; no paper.

    Args:
        step: environment steps so far, summed over all environments.
        start: value at step 0 and before, positive.
        end: value from step `duration` on, positive.
        duration: environment steps from start to end, at least 0; 0 gives end at once.

    Returns:
        The value at this step.

    Raises:
        ValueError: if duration is negative, or start or end is not positive.
    """
    check_positive(start=start, end=end)
    progress = _progress(step, duration)
    return float(start ** (1 - progress) * end**progress)


def _progress(step: float, duration: float) -> float:
    """Share of the duration that has passed, in [0, 1]."""
    if not duration >= 0:
        raise ValueError(f"duration must be at least 0 environment steps, got {duration}")
    return 1.0 if step >= duration else max(step, 0) / duration
