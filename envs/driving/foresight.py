"""What the privileged view needs to know, as a Warp kernel: the outcome of every action, if nothing else moved."""

from __future__ import annotations

import warp as wp

from envs.driving.rules import PLAIN_ROAD, Maps, Rules, State, drive, is_taken, kind_of, permits, step_towards

wp.set_module_options({"enable_backward": False, "fuse_fp": False, "max_unroll": 1, "optimization_level": 3})


@wp.kernel
def foresee(
    maps: Maps,
    rules: Rules,
    state: State,
    after: wp.array3d(dtype=wp.int32),
    arrives: wp.array2d(dtype=wp.bool),
    safe: wp.array2d(dtype=wp.bool),
) -> None:
    """What each action would do now if nothing else moved.

    Writes the pose and the speed after the action, whether it reaches the goal, and whether it breaks no rule, hits
    nothing, and leaves the ego able to stop: at speed 2 braking still takes one cell, which must be a free, plain lane.
    """
    i = wp.tid()
    for action in range(5):
        ego = drive(maps, rules, state, i, action, 0)
        fine = ego.collided + ego.red_light + ego.wrong_way + ego.off_lane == 0
        if fine and ego.speed == 2 and ego.arrived == 0:
            next_cell = ego.cell + step_towards(ego.heading, maps.width)
            ahead = int(maps.ground[state.city[i], next_cell])
            fine = (
                kind_of(ahead) == PLAIN_ROAD and permits(ahead, ego.heading) and not is_taken(state.taken, i, next_cell)
            )
        after[i, action, 0] = ego.cell * 4 + ego.heading
        after[i, action, 1] = ego.speed
        arrives[i, action] = ego.arrived > 0
        safe[i, action] = fine
