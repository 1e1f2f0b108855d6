"""The rules of the driving environments once more: plain Python over rows, columns and sets, written from their
description, to compare the kernels with."""

from __future__ import annotations

import numpy as np

STEPS = [(-1, 0), (0, 1), (1, 0), (0, -1)]
BUILDING, PARK, VERGE, ROAD, JUNCTION, CROSSWALK, ROADWORKS = range(7)
MASK = 0xFFFFFFFF
# purposes of random numbers
CITY, GOAL, START, CAR, WALKER, SIDE, DRIFT, TURN, WALK, EVENT, EVENT_KIND, EVENT_PLACE, EVENT_END = range(13)


def mix(x):
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


def draw(key, time, purpose, index=0):
    when = mix((key + time * 0x9E3779B9) & MASK)
    return mix((when + purpose * 0x85EBCA6B + index * 0xC2B2AE35) & MASK)


def below(bits, n):
    return bits * n >> 32


class PlainDriving:
    """One episode. Positions are (row, column) without margins."""

    def __init__(self, config, tables, seed, episode=0):
        self.config, self.tables = config, tables
        self.key = seed if episode == 0 else mix((mix(seed) + episode * 0x9E3779B9) & MASK) & 0x7FFFFFFF
        self.city_index = below(draw(self.key, 0, CITY), len(tables.cities))
        self.goal_index = below(draw(self.key, 0, GOAL), tables.goal.shape[1])
        self.city = tables.cities[self.city_index]
        self.goal = tables.position(int(tables.goal[self.city_index, self.goal_index]))
        starts = tables.start[self.city_index, self.goal_index]
        pose = int(starts[below(draw(self.key, 0, START), len(starts))])
        self.at, self.heading, self.speed = tables.position(pose // 4), pose % 4, 0
        self.count = dict.fromkeys(
            ("time", "path_length", "shortest_length", "red_light", "wrong_way", "off_lane", "success", "collision"), 0
        )
        self.count["shortest_length"] = self.route_length(pose)
        self.event = None  # (kind, position, heading, passes at)
        self.cars = []  # [position, heading] or None
        for j in range(config.cars):
            self.cars.append(None)
            for attempt in range(8):
                spots = tables.spawn[self.city_index]
                spot = int(spots[below(draw(self.key, attempt, CAR, j), len(spots))])
                place = tables.position(spot // 4)
                if place != self.at and place not in [car[0] for car in self.cars if car]:
                    self.cars[j] = [place, spot % 4]
                    break
        self.walkers = []  # [crosswalk index, place, direction]
        crossings = self.city.crossings
        for j in range(config.pedestrians if len(crossings) else 0):
            x = below(draw(self.key, 0, WALKER, j), len(crossings))
            far_side = below(draw(self.key, 0, SIDE, j), 2) == 1
            self.walkers.append([x, int(crossings[x][3]) if far_side else -1, -1 if far_side else 1])

    # The map.

    def kind(self, at):
        r, c = at
        inside = 0 <= r < self.city.kind.shape[0] and 0 <= c < self.city.kind.shape[1]
        return int(self.city.kind[r, c]) if inside else BUILDING

    def permits(self, at, heading):
        return self.kind(at) in (ROAD, JUNCTION, CROSSWALK) and bool(self.city.lanes[at] >> heading & 1)

    def drivable(self, at):
        return self.kind(at) in (VERGE, ROAD, JUNCTION, CROSSWALK)

    def signal(self, at):
        return int(self.city.signal[at]) if self.config.lights and self.kind(at) == JUNCTION else 0

    @staticmethod
    def ahead(at, heading):
        return at[0] + STEPS[heading % 4][0], at[1] + STEPS[heading % 4][1]

    def route_length(self, pose):
        task = self.city_index * self.tables.goal.shape[1] + self.goal_index
        return int(self.tables.distance[task, pose])

    def pose(self):
        margin, width = self.tables.margin, self.tables.width
        return ((self.at[0] + margin) * width + self.at[1] + margin) * 4 + self.heading

    # What is where.

    def walker_at(self, walker):
        r, c, direction, _ = (int(v) for v in self.city.crossings[walker[0]])
        return r + STEPS[direction][0] * walker[1], c + STEPS[direction][1] * walker[1]

    def on_road(self, walker):
        return 0 <= walker[1] < self.city.crossings[walker[0]][3]

    def taken(self):
        places = {car[0] for car in self.cars if car}
        places |= {self.walker_at(w) for w in self.walkers if self.on_road(w)}
        return places | ({self.event[1]} if self.event else set())

    def red(self, here, there, heading):
        if self.signal(here) or not self.signal(there):
            return False
        green, clear = self.config.green_steps, self.config.clear_steps
        cycle = 2 * (green + clear)
        phase = (self.count["time"] + (self.signal(there) - 1) * cycle // 255) % cycle
        start = 0 if heading in (0, 2) else green + clear
        return not start <= phase < start + green

    # One step.

    def step(self, action):
        """Returns reward (float32), terminal, truncated."""
        c, before = self.config, self.potential()
        self.figures = dict.fromkeys(("red_light", "wrong_way", "off_lane"), 0)
        self.ended = None
        gust = draw(self.key, self.count["time"], DRIFT)
        if self.speed > 0 and (gust >> 8) < round(c.drift_chance * 2**24):
            self.enter(self.heading + (3 if gust & 1 else 1))
        if action in (1, 2):
            side = (self.heading + (3 if action == 1 else 1)) % 4
            self.speed = 1
            if self.permits(self.at, side):
                self.heading = side
            self.enter(side)
        else:
            self.speed = min(c.top_speed, max(0, self.speed + {0: 0, 3: 1, 4: -1}[action]))
            for _ in range(self.speed):
                self.enter(self.heading)
        if self.ended is None:
            self.move_cars()
            self.move_walkers()
            self.move_event()
        self.count["time"] += 1
        for name, n in self.figures.items():
            self.count[name] += n
        self.count["success"], self.count["collision"] = int(self.ended == "goal"), int(self.ended == "collision")
        f = np.float32
        reward = f(c.reward_time)
        reward += f(self.count["success"]) * f(c.reward_goal)
        reward += f(self.count["collision"]) * f(c.reward_collision)
        reward += f(self.figures["red_light"]) * f(c.reward_red_light)
        reward += f(self.figures["wrong_way"]) * f(c.reward_wrong_way)
        reward += f(self.figures["off_lane"]) * f(c.reward_off_lane)
        if c.shaping > 0:
            after = f(0) if self.ended else self.potential()
            reward += f(c.shaping) * (f(c.shaping_gamma) * after - before)
        return reward, self.ended is not None, self.ended is None and self.count["time"] >= c.time_limit

    def potential(self):
        far = 2 * sum(self.city.kind.shape)
        return np.float32(1) - np.float32(min(self.route_length(self.pose()), far)) / np.float32(far)

    def enter(self, direction):
        if self.ended:
            return
        there = self.ahead(self.at, direction)
        if not self.drivable(there) or there in self.taken():
            self.ended = "collision"
            return
        self.figures["red_light"] += self.red(self.at, there, direction % 4)
        if not self.permits(there, self.heading):
            against = self.permits(there, (self.heading + 2) % 4)
            self.figures["wrong_way" if against else "off_lane"] += 1
        self.at = there
        self.count["path_length"] += 1
        if there == self.goal:
            self.ended = "goal"

    def move_cars(self):
        for j, car in enumerate(self.cars):
            if car is None:
                continue
            here, heading = car
            chosen, ways = None, 0
            for side in (0, 1, 3):
                way = (heading + side) % 4
                there = self.ahead(here, way)
                if (
                    self.permits(here, way) and self.permits(there, way) and there not in self.taken()
                    and there != self.at and not self.red(here, there, way)
                ):  # fmt: skip
                    ways += 1
                    if ways == 1 or below(draw(self.key, self.count["time"], TURN, 4 * j + side), ways) == 0:
                        chosen = way
            if chosen is not None:
                self.cars[j] = [self.ahead(here, chosen), chosen]

    def move_walkers(self):
        for j, walker in enumerate(self.walkers):
            length = int(self.city.crossings[walker[0]][3])
            if not self.on_road(walker):
                bits = draw(self.key, self.count["time"], WALK, j)
                if (bits >> 8) >= round(self.config.walk_chance * 2**24):
                    continue
            goes_to = [walker[0], walker[1] + walker[2], walker[2]]
            if not self.on_road(goes_to):
                assert goes_to[1] in (-1, length)
                goes_to[2] = -walker[2]
            elif self.walker_at(goes_to) in self.taken() or self.walker_at(goes_to) == self.at:
                continue
            self.walkers[j] = goes_to

    def move_event(self):
        time = self.count["time"]
        if self.event is None:
            if (draw(self.key, time, EVENT) >> 8) < round(self.config.event_chance * 2**24):
                self.begin_event()
            return
        kind, at, heading, passes = self.event
        if kind == 3:
            there = self.ahead(at, heading + 3)
            if not self.drivable(there):
                self.event = None
            elif there != self.at and there not in self.taken():
                self.event = (kind, there, heading, passes)
        elif time >= passes:
            self.event = None

    def begin_event(self):
        time, at = self.count["time"], self.at
        for _ in range(3 + below(draw(self.key, time, EVENT_PLACE), 3)):
            at = self.ahead(at, self.heading)
            if not self.permits(at, self.heading):
                return
        if self.kind(at) != ROAD or at in self.taken() or at == self.goal:
            return
        kind = 1 + below(draw(self.key, time, EVENT_KIND), 3)
        lasts = 10 + below(draw(self.key, time, EVENT_END), 20) + (20 if kind == 2 else 0)
        self.event = (kind, at, self.heading, time + lasts)

    # What the ego perceives.

    def relative(self, ahead, right):
        """The position so many cells ahead of the ego and to its right."""
        (dr, dc), (er, ec) = STEPS[self.heading], STEPS[(self.heading + 1) % 4]
        return self.at[0] + ahead * dr + right * er, self.at[1] + ahead * dc + right * ec

    def advice(self):
        """Next manoeuvre (0 none, 1 straight on, 2 left, 3 right) and the cells before it."""
        if self.config.guidance == "none" or (self.config.guidance == "signs" and not self.city.sign[self.at]):
            return 0, 0
        task = self.city_index * self.tables.goal.shape[1] + self.goal_index
        route = int(self.tables.route[task, self.pose()]) >> 16
        return route & 3, route >> 2

    def is_green(self, there):
        return not self.red((-1, -1), there, self.heading)

    def window(self):
        """Rows of codes, see `envs.driving.senses.NUM_CODES`."""
        half = (self.config.view_range + 2) // 2
        seen = {self.goal: 11}
        move, cells = self.advice()
        if move:
            seen[self.relative(cells, 0)] = 16 + move
        seen |= {at: 12 + (heading - self.heading) % 4 for at, heading in filter(None, self.cars)}
        seen |= {self.walker_at(w): 16 for w in self.walkers}
        if self.event:
            kind, at, heading, _ = self.event
            seen[at] = {1: 12 + (heading - self.heading) % 4, 2: 1, 3: 16}[kind]
        seen[self.at] = 20 + 4 * self.speed + move
        return [
            [
                self.code(at) if at not in seen else seen[at]
                for at in (self.relative(a, r) for r in range(-half, half + 1))
            ]
            for a in range(self.config.view_range, -3, -1)
        ]

    def code(self, at):
        kind = self.kind(at)
        if kind in (BUILDING, PARK):
            return 0
        if kind == ROADWORKS:
            return 1
        if self.signal(at):
            return 10 if self.is_green(at) else 9
        if kind == CROSSWALK:
            return 8
        sides = [side for side in range(4) if self.permits(at, self.heading + side & 3)]
        return 2 if not sides else 3 + sides[0] if len(sides) == 1 else 7

    def features(self):
        """The numbers of `envs.driving.senses.NUM_FEATURES`."""
        view_range = self.config.view_range
        move, cells = self.advice()
        size, goal = max(self.city.kind.shape), (self.goal[0] - self.at[0], self.goal[1] - self.at[1])
        offset = [
            sum(g * s for g, s in zip(goal, STEPS[way % 4], strict=True))
            for way in range(self.heading, self.heading + 2)
        ]
        light, near = None, 0.0
        for distance in range(1, view_range + 1) if not self.signal(self.at) else ():
            there = self.relative(distance, 0)
            if self.signal(there):
                light, near = self.is_green(there), 1 - (distance - 1) / view_range
            if light is not None or not self.drivable(there):
                break
        known = self.config.guidance == "route"
        numbers = [float(self.speed == v) for v in range(3)] + [float(self.heading == h) for h in range(4)]
        numbers += [float(self.permits(self.at, self.heading + side & 3)) for side in range(4)]
        numbers += [float(move == m) for m in (1, 2, 3)] + [1 / (1 + cells) if move else 0.0]
        numbers += [min(self.route_length(self.pose()), 100) / 100 if known else 0.0]
        numbers += [part / size if known else 0.0 for part in offset]
        numbers += [float(light is False), float(light is True), near, float(self.kind(self.at) == JUNCTION)]
        for ray in range(16):
            numbers += self.ray(2 * np.pi * ray / 16)
        return numbers

    def ray(self, angle):
        """Distance / view_range, and whether it ends at something fixed, a vehicle, a person."""
        cars = {car[0] for car in self.cars if car}
        people = {self.walker_at(w) for w in self.walkers if self.on_road(w)}
        kind, at = (self.event[0], self.event[1]) if self.event else (0, None)
        for distance in range(1, self.config.view_range + 1):
            there = self.relative(round(np.cos(angle) * distance), round(np.sin(angle) * distance))
            met = [
                not self.drivable(there) or (there == at and kind == 2),
                there in cars or (there == at and kind == 1),
                there in people or (there == at and kind == 3),
            ]
            if any(met):
                return [distance / self.config.view_range, *map(float, met)]
        return [1.0, 0.0, 0.0, 0.0]
