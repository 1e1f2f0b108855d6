"""The rules of the road, as Warp kernels: one thread per environment on CUDA, the same source on the CPU.

All state is integer and all randomness is a hash of (episode key, time, purpose, index), so that one key gives one
episode on every device and in every batch.

One environment step:

    1. the ego is pushed sideways, if drift strikes while it moves
    2. the ego acts: `accelerate` and `brake` change the speed by one, up to the top speed, and it drives that many
       cells ahead, entering them one by one; `left` and `right` drive into the cell on that side at speed 1. Where its
       cell permits that direction the car turns with it; elsewhere it changes lane and keeps its heading
    3. the other cars, one after the other, move one cell each: along their lane, into junctions on green only, never
       into a cell that is taken; where several ways are open, one is drawn
    4. pedestrians cross one cell each, and wait for what stands in their way
    5. events begin, move and pass

Whatever is in the ego's way when it enters a cell, it collides with: nothing ever runs into the ego. A car at speed 1
can always stop.

Each kernel takes environments `first` to `last`, a thread every `lanes`-th of them: on CUDA that is one. The CPU runs
the threads of a launch one after the other, and each unpacks all its arguments: there one thread takes them all.

Cells are numbers in a grid with a margin: `cell = row * width + column`. A pose is `cell * 4 + heading`. Loops over a
number that is known only at run time are `while` loops: Warp's `range` costs much more on the CPU. Structs are passed
by value, and only a function that is called from one place is sure to be compiled without a copy of them: those that
take `Maps` or `State` are called once in a module, others take what they need.
"""

from __future__ import annotations

import warp as wp

from envs.device.endings import SLOTS
from envs.device.random import below, draw, episode_key, happens, instant

wp.set_module_options({"enable_backward": False, "fuse_fp": False, "max_unroll": 4, "optimization_level": 3})

KEEP, LEFT, RIGHT, ACCELERATE, BRAKE = (wp.constant(i) for i in range(5))
FIRST_DRIVABLE, LAST_DRIVABLE, PLAIN_ROAD = wp.constant(2), wp.constant(5), wp.constant(3)
NO_EVENT, STOPPED_CAR, CLOSURE, CHILD = (wp.constant(i) for i in range(4))
FIRST_EVENT_DISTANCE = wp.constant(3)

# Columns of `State.tally`.
TIME, PATH, SHORTEST, RED_LIGHT, WRONG_WAY, OFF_LANE, ARRIVED, COLLIDED = (wp.constant(i) for i in range(8))
TALLIES = ("time", "path_length", "shortest_length", "red_light", "wrong_way", "off_lane", "success", "collision")

# Purposes of random numbers.
DRAW_CITY, DRAW_GOAL, DRAW_START, DRAW_CAR, DRAW_WALKER, DRAW_SIDE = (wp.constant(i) for i in range(6))
DRAW_DRIFT, DRAW_TURN, DRAW_WALK, DRAW_EVENT, DRAW_EVENT_KIND, DRAW_EVENT_PLACE, DRAW_EVENT_END = (
    wp.constant(i) for i in range(6, 13)
)
SPAWN_TRIES = wp.constant(8)


@wp.struct
class Maps:
    """The cities, read-only. M cities, K goals each, cells counted with the margin."""

    width: wp.int32
    """Cells in a row."""
    row: wp.array(dtype=wp.int32)
    """(cells,)."""
    ground: wp.array2d(dtype=wp.uint16)
    """(M, cells): bits 0-2 kind, 3-6 lanes, 7-14 signal, 15 signpost."""
    ways: wp.array2d(dtype=wp.uint8)
    """(M, poses): where a car may go from there: bits 0-2 ahead, right, left; bits 3-5 the same, past a light."""
    goal: wp.array2d(dtype=wp.int32)
    """(M, K) cell."""
    start: wp.array3d(dtype=wp.int32)
    """(M, K, any) pose."""
    spawn: wp.array2d(dtype=wp.int32)
    """(M, any) pose where cars begin."""
    crossings: wp.array(dtype=wp.int32)
    """(M,) number of crosswalks."""
    crossing: wp.array3d(dtype=wp.int32)
    """(M, any, 3): cell of the first kerb, difference between neighbouring cells, number of cells on the road."""
    route: wp.array2d(dtype=wp.uint32)
    """(M * K, poses): bits 0-15 length of the shortest route, 16-17 the next manoeuvre on it, the rest the cells before
    that, see `routes.manoeuvres`. One number, because each look at this table misses the cache."""


@wp.struct
class Rules:
    """The parameters; chances are in units of 2**-24."""

    green_steps: wp.int32
    clear_steps: wp.int32
    walk_chance: wp.int32
    event_chance: wp.int32
    drift_chance: wp.int32
    top_speed: wp.int32
    time_limit: wp.int32
    far: wp.int32
    reward_time: wp.float32
    reward_goal: wp.float32
    reward_collision: wp.float32
    reward_red_light: wp.float32
    reward_wrong_way: wp.float32
    reward_off_lane: wp.float32
    shaping: wp.float32
    shaping_gamma: wp.float32


@wp.struct
class State:
    """All that changes: N environments, C cars, P pedestrians."""

    seed: wp.array(dtype=wp.uint32)
    """(N,) what the keys of an environment's episodes follow from."""
    episode: wp.array(dtype=wp.int32)
    """(N,) number of the running episode."""
    key: wp.array(dtype=wp.uint32)
    """(N,) what the running episode follows from."""
    city: wp.array(dtype=wp.int32)
    goal: wp.array(dtype=wp.int32)
    """(N,) index among the city's goals."""
    pose: wp.array(dtype=wp.int32)
    speed: wp.array(dtype=wp.int32)
    tally: wp.array2d(dtype=wp.int32)
    """(N, 8): counts of the running episode, see TIME and following."""
    episode_return: wp.array(dtype=wp.float64)
    car: wp.array2d(dtype=wp.int32)
    """(N, C) pose, -1 for a car that found no place."""
    walker: wp.array3d(dtype=wp.int32)
    """(N, P, 3): crosswalk (-1 for none), place along it (-1 and its length are the kerbs), direction (+1 or -1)."""
    event: wp.array2d(dtype=wp.int32)
    """(N, 3): kind, pose, time at which it passes."""
    taken: wp.array2d(dtype=wp.uint32)
    """(N, words): a bit per cell, set where a car, a pedestrian or an event stands."""


@wp.struct
class Outcome:
    """What a step answers, and the log of ended episodes."""

    reward: wp.array(dtype=wp.float32)
    terminal: wp.array(dtype=wp.bool)
    episode_end: wp.array(dtype=wp.bool)
    ended: wp.array(dtype=wp.int32)
    """(N,) episodes that ended since the log was last read, see `envs.device.endings`."""
    ended_tally: wp.array3d(dtype=wp.int32)
    """(N, SLOTS, 8)."""
    ended_return: wp.array2d(dtype=wp.float64)
    ended_key: wp.array2d(dtype=wp.uint32)


@wp.struct
class Ego:
    """The ego during one step, and what it did in it."""

    cell: wp.int32
    heading: wp.int32
    speed: wp.int32
    path: wp.int32
    red_light: wp.int32
    wrong_way: wp.int32
    off_lane: wp.int32
    arrived: wp.int32
    collided: wp.int32


@wp.func
def kind_of(ground: int) -> int:
    return ground & 7


@wp.func
def permits(ground: int, heading: int) -> bool:
    return ((ground >> (3 + heading)) & 1) != 0


@wp.func
def signal_of(ground: int) -> int:
    return (ground >> 7) & 255


@wp.func
def is_drivable(ground: int) -> bool:
    return kind_of(ground) >= FIRST_DRIVABLE and kind_of(ground) <= LAST_DRIVABLE


@wp.func
def southward(heading: int) -> int:
    """Rows from a cell to its neighbour in the direction of `heading`. No branch: a processor could not predict it."""
    return (1 - (heading & 1)) * (heading - 1)


@wp.func
def eastward(heading: int) -> int:
    """Columns from a cell to its neighbour in the direction of `heading`."""
    return (heading & 1) * (2 - heading)


@wp.func
def step_towards(heading: int, width: int) -> int:
    """The difference between a cell and its neighbour in the direction of `heading`."""
    return southward(heading) * width + eastward(heading)


@wp.func
def moment_of(green_steps: int, clear_steps: int, time: int) -> int:
    """How far the cycle of the lights has come."""
    return time % (2 * (green_steps + clear_steps))


@wp.func
def is_green(green_steps: int, clear_steps: int, signal: int, heading: int, moment: int) -> bool:
    """North-south has green first, then east-west; both see red in the clearing times between. Signals differ in when
    their cycle begins."""
    half = green_steps + clear_steps
    phase = moment + ((signal - 1) * 2 * half) // 255
    phase -= wp.where(phase >= 2 * half, 2 * half, 0) + (heading & 1) * half
    return phase >= 0 and phase < green_steps


@wp.func
def may_cross(green_steps: int, clear_steps: int, here: int, ahead: int, heading: int, moment: int) -> bool:
    """False for an entry into a junction against a red light; `here` and `ahead` are grounds."""
    if signal_of(ahead) == 0 or signal_of(here) != 0:
        return True
    return is_green(green_steps, clear_steps, signal_of(ahead), heading, moment)


@wp.func
def is_taken(taken: wp.array2d(dtype=wp.uint32), i: int, cell: int) -> bool:
    return ((taken[i, cell >> 5] >> wp.uint32(cell & 31)) & wp.uint32(1)) != wp.uint32(0)


@wp.func
def flip(taken: wp.array2d(dtype=wp.uint32), i: int, cell: int) -> None:
    """Takes a free cell, or frees a taken one."""
    taken[i, cell >> 5] = taken[i, cell >> 5] ^ (wp.uint32(1) << wp.uint32(cell & 31))


@wp.func
def enter(ego: Ego, maps: Maps, rules: Rules, state: State, i: int, direction: int, moment: int) -> Ego:
    """The ego enters the next cell in `direction`, with whatever heading it has. Does nothing after the end."""
    if ego.collided + ego.arrived > 0:
        return ego
    city = state.city[i]
    cell = ego.cell + step_towards(direction, maps.width)
    ahead = int(maps.ground[city, cell])
    if not is_drivable(ahead) or is_taken(state.taken, i, cell):
        ego.collided = 1
        return ego
    here = int(maps.ground[city, ego.cell])
    if not may_cross(rules.green_steps, rules.clear_steps, here, ahead, direction, moment):
        ego.red_light += 1
    if not permits(ahead, ego.heading):
        if permits(ahead, (ego.heading + 2) & 3):
            ego.wrong_way += 1
        else:
            ego.off_lane += 1
    ego.cell = cell
    ego.path += 1
    if cell == maps.goal[city, state.goal[i]]:
        ego.arrived = 1
    return ego


@wp.func
def drive(maps: Maps, rules: Rules, state: State, i: int, action: int, push: int) -> Ego:
    """What the ego would do under `action`; changes nothing.

    `push` is the side to which drift pushes it: 0 for none, 1 right, 3 left.
    """
    ego = Ego()
    ego.cell = state.pose[i] >> 2
    ego.heading = state.pose[i] & 3
    ego.speed = state.speed[i]
    moment = moment_of(rules.green_steps, rules.clear_steps, state.tally[i, TIME])
    direction = (ego.heading + push) & 3
    cells = int(0)
    if push != 0 and ego.speed > 0:
        cells = 1
    part = int(0)  # 0: the push, 1: the action's first cell, 2: its second
    while part < 3:
        if part == 1:
            direction = ego.heading
            if action == LEFT or action == RIGHT:
                direction = (ego.heading + 1) & 3
                if action == LEFT:
                    direction = (ego.heading + 3) & 3
                ego.speed = 1
                if permits(int(maps.ground[state.city[i], ego.cell]), direction):
                    ego.heading = direction
            elif action == ACCELERATE:
                ego.speed = wp.min(ego.speed + 1, rules.top_speed)
            elif action == BRAKE:
                ego.speed = wp.max(ego.speed - 1, 0)
            cells = ego.speed
        if cells > 0:
            ego = enter(ego, maps, rules, state, i, direction, moment)
            cells -= 1
        part += 1
    return ego


@wp.func
def move_cars(maps: Maps, rules: Rules, state: State, i: int, ego_cell: int, now: wp.uint32) -> None:
    city = state.city[i]
    moment = moment_of(rules.green_steps, rules.clear_steps, state.tally[i, TIME])
    j = int(0)
    while j < state.car.shape[1]:
        pose = state.car[i, j]
        if pose >= 0:
            cell = pose >> 2
            ways = int(maps.ways[city, pose])
            found = int(0)
            chosen = int(-1)
            for k in range(3):
                if ((ways >> k) & 1) != 0:
                    side = k + (k >> 1)  # 0 ahead, 1 right, 3 left
                    direction = (pose + side) & 3
                    next_cell = cell + step_towards(direction, maps.width)
                    if next_cell != ego_cell and not is_taken(state.taken, i, next_cell):
                        may_go = bool(True)
                        if ((ways >> (k + 3)) & 1) != 0:
                            signal = signal_of(int(maps.ground[city, next_cell]))
                            may_go = is_green(rules.green_steps, rules.clear_steps, signal, direction, moment)
                        if may_go:
                            found += 1
                            if found == 1 or below(draw(now, DRAW_TURN, j * 4 + side), found) == 0:
                                chosen = direction
            if chosen >= 0:
                flip(state.taken, i, cell)
                cell += step_towards(chosen, maps.width)
                flip(state.taken, i, cell)
                state.car[i, j] = cell * 4 + chosen
        j += 1


@wp.func
def along(crossing: wp.array3d(dtype=wp.int32), city: int, which: int, place: int) -> int:
    """The cell at a place along a crosswalk; -1 and the crosswalk's length are the kerbs."""
    return crossing[city, which, 0] + (place + 1) * crossing[city, which, 1]


@wp.func
def move_walkers(maps: Maps, rules: Rules, state: State, i: int, ego_cell: int, now: wp.uint32) -> None:
    city = state.city[i]
    j = int(0)
    while j < state.walker.shape[1]:
        crossing = state.walker[i, j, 0]
        if crossing >= 0:
            length = maps.crossing[city, crossing, 2]
            place = state.walker[i, j, 1]
            direction = state.walker[i, j, 2]
            on_road = place >= 0 and place < length
            if on_road or happens(draw(now, DRAW_WALK, j), rules.walk_chance):
                cell = along(maps.crossing, city, crossing, place)
                next_place = place + direction
                next_cell = cell + direction * maps.crossing[city, crossing, 1]
                reaches_kerb = next_place < 0 or next_place == length
                if reaches_kerb or not (is_taken(state.taken, i, next_cell) or next_cell == ego_cell):
                    if on_road:
                        flip(state.taken, i, cell)
                    if reaches_kerb:
                        state.walker[i, j, 2] = -direction
                    else:
                        flip(state.taken, i, next_cell)
                    state.walker[i, j, 1] = next_place
        j += 1


@wp.func
def begin_event(maps: Maps, state: State, i: int, ego_cell: int, heading: int, now: wp.uint32) -> None:
    """Something happens 3 to 5 cells ahead, if a plain, free lane leads there."""
    city = state.city[i]
    distance = FIRST_EVENT_DISTANCE + below(draw(now, DRAW_EVENT_PLACE, 0), 3)
    cell = ego_cell
    clear = bool(True)
    for _k in range(distance):
        cell += step_towards(heading, maps.width)
        if clear and not permits(int(maps.ground[city, cell]), heading):
            clear = False
        if not clear:
            cell = ego_cell
    if (
        clear
        and kind_of(int(maps.ground[city, cell])) == PLAIN_ROAD
        and not is_taken(state.taken, i, cell)
        and cell != maps.goal[city, state.goal[i]]
    ):
        kind = 1 + below(draw(now, DRAW_EVENT_KIND, 0), 3)
        lasts = 10 + below(draw(now, DRAW_EVENT_END, 0), 20)
        if kind == CLOSURE:
            lasts += 20
        flip(state.taken, i, cell)
        state.event[i, 0] = kind
        state.event[i, 1] = cell * 4 + heading
        state.event[i, 2] = state.tally[i, TIME] + lasts


@wp.func
def move_event(maps: Maps, rules: Rules, state: State, i: int, ego_cell: int, ego_heading: int, now: wp.uint32) -> None:
    """A child runs across the road to the ego's left; cars and closures stay for their time."""
    time = state.tally[i, TIME]
    kind = state.event[i, 0]
    cell = state.event[i, 1] >> 2
    heading = state.event[i, 1] & 3
    if kind == NO_EVENT:
        if happens(draw(now, DRAW_EVENT, 0), rules.event_chance):
            begin_event(maps, state, i, ego_cell, ego_heading, now)
    elif kind == CHILD:
        next_cell = cell + step_towards((heading + 3) & 3, maps.width)
        if not is_drivable(int(maps.ground[state.city[i], next_cell])):
            flip(state.taken, i, cell)
            state.event[i, 0] = NO_EVENT
        elif next_cell != ego_cell and not is_taken(state.taken, i, next_cell):
            flip(state.taken, i, cell)
            flip(state.taken, i, next_cell)
            state.event[i, 1] = next_cell * 4 + heading
    elif time >= state.event[i, 2]:
        flip(state.taken, i, cell)
        state.event[i, 0] = NO_EVENT


@wp.func
def route_length(route: wp.uint32) -> int:
    return int(route & wp.uint32(65535))


@wp.func
def potential(distance: int, far: int) -> float:
    """Phi: falls with the length of the shortest route, from 1 at the goal to 0 at `far`."""
    return 1.0 - float(wp.min(distance, far)) / float(far)


@wp.func
def begin(maps: Maps, state: State, i: int) -> None:
    """Begins the next episode of environment i."""
    key = episode_key(state.seed[i], state.episode[i])
    state.key[i] = key
    now = instant(key, 0)
    city = below(draw(now, DRAW_CITY, 0), maps.goal.shape[0])
    goal = below(draw(now, DRAW_GOAL, 0), maps.goal.shape[1])
    pose = maps.start[city, goal, below(draw(now, DRAW_START, 0), maps.start.shape[2])]
    state.city[i] = city
    state.goal[i] = goal
    state.pose[i] = pose
    state.speed[i] = 0
    state.episode_return[i] = wp.float64(0.0)
    k = int(0)
    while k < state.tally.shape[1]:
        state.tally[i, k] = 0
        k += 1
    state.tally[i, SHORTEST] = route_length(maps.route[city * maps.goal.shape[1] + goal, pose])
    k = int(0)
    while k < state.taken.shape[1]:
        state.taken[i, k] = wp.uint32(0)
        k += 1
    state.event[i, 0] = NO_EVENT
    state.event[i, 1] = 0
    state.event[i, 2] = 0
    j = int(0)
    while j < state.car.shape[1]:
        state.car[i, j] = -1
        k = int(0)
        moment = now
        while k < SPAWN_TRIES:
            spot = maps.spawn[city, below(draw(moment, DRAW_CAR, j), maps.spawn.shape[1])]
            if is_taken(state.taken, i, spot >> 2) or (spot >> 2) == (pose >> 2):
                k += 1
                moment = instant(key, k)
            else:
                state.car[i, j] = spot
                flip(state.taken, i, spot >> 2)
                k = SPAWN_TRIES
        j += 1
    j = int(0)
    while j < state.walker.shape[1]:
        state.walker[i, j, 0] = -1
        if maps.crossings[city] > 0:
            crossing = below(draw(now, DRAW_WALKER, j), maps.crossings[city])
            state.walker[i, j, 0] = crossing
            state.walker[i, j, 1] = -1
            state.walker[i, j, 2] = 1
            if below(draw(now, DRAW_SIDE, j), 2) == 1:
                state.walker[i, j, 1] = maps.crossing[city, crossing, 2]
                state.walker[i, j, 2] = -1
        j += 1


@wp.func
def log_episode(state: State, outcome: Outcome, i: int) -> None:
    """The figures of environment i's episode go into the log; the next one is up."""
    slot = outcome.ended[i] % SLOTS
    k = int(0)
    while k < state.tally.shape[1]:
        outcome.ended_tally[i, slot, k] = state.tally[i, k]
        k += 1
    outcome.ended_return[i, slot] = state.episode_return[i]
    outcome.ended_key[i, slot] = state.key[i]
    outcome.ended[i] += 1
    state.episode[i] += 1


@wp.kernel
def reset(first: int, last: int, lanes: int, maps: Maps, state: State, outcome: Outcome, everywhere: int) -> None:
    """Begins the episode that `state.seed` and `state.episode` name in every environment; or, if `everywhere` is 0, the
    next one where an episode has ended, whose figures go into the log."""
    i = first + wp.tid()
    while i < last:
        if everywhere == 0 and outcome.episode_end[i]:
            log_episode(state, outcome, i)
        if everywhere != 0 or outcome.episode_end[i]:
            begin(maps, state, i)
        i += lanes


@wp.func
def advance(maps: Maps, rules: Rules, state: State, i: int, action: int, outcome: Outcome) -> None:
    """One step of environment i."""
    time = state.tally[i, TIME]
    now = instant(state.key[i], time)
    task = state.city[i] * maps.goal.shape[1] + state.goal[i]
    before = float(0.0)
    if rules.shaping > 0.0:
        before = potential(route_length(maps.route[task, state.pose[i]]), rules.far)

    push = int(0)
    if rules.drift_chance > 0:
        gust = draw(now, DRAW_DRIFT, 0)
        if happens(gust, rules.drift_chance):
            push = 1 + 2 * int(gust & wp.uint32(1))
    ego = drive(maps, rules, state, i, action, push)
    state.pose[i] = ego.cell * 4 + ego.heading
    state.speed[i] = ego.speed
    terminal = ego.arrived + ego.collided > 0
    if not terminal:
        move_cars(maps, rules, state, i, ego.cell, now)
        move_walkers(maps, rules, state, i, ego.cell, now)
        if rules.event_chance > 0:
            move_event(maps, rules, state, i, ego.cell, ego.heading, now)

    state.tally[i, TIME] = time + 1
    state.tally[i, PATH] += ego.path
    state.tally[i, RED_LIGHT] += ego.red_light
    state.tally[i, WRONG_WAY] += ego.wrong_way
    state.tally[i, OFF_LANE] += ego.off_lane
    state.tally[i, ARRIVED] = ego.arrived
    state.tally[i, COLLIDED] = ego.collided

    reward = (
        rules.reward_time
        + float(ego.arrived) * rules.reward_goal
        + float(ego.collided) * rules.reward_collision
        + float(ego.red_light) * rules.reward_red_light
        + float(ego.wrong_way) * rules.reward_wrong_way
        + float(ego.off_lane) * rules.reward_off_lane
    )
    if rules.shaping > 0.0:
        after = float(0.0)
        if not terminal:
            after = potential(route_length(maps.route[task, state.pose[i]]), rules.far)
        reward += rules.shaping * (rules.shaping_gamma * after - before)
    state.episode_return[i] += wp.float64(reward)
    outcome.reward[i] = reward
    outcome.terminal[i] = terminal
    outcome.episode_end[i] = terminal or time + 1 >= rules.time_limit


@wp.kernel
def step(
    first: int,
    last: int,
    lanes: int,
    maps: Maps,
    rules: Rules,
    state: State,
    action: wp.array(dtype=wp.int64),
    outcome: Outcome,
) -> None:
    """One step of every environment, without the reset."""
    i = first + wp.tid()
    while i < last:
        advance(maps, rules, state, i, int(action[i]), outcome)
        i += lanes
