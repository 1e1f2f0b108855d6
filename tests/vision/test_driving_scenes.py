"""Labels against the picture itself, against another sense of the same moment, and against a hand-drawn street."""

from __future__ import annotations

import numpy as np
import torch

from envs.driving.batch import DrivingBatch, window_shape
from envs.driving.config import DrivingConfig
from vision.data import MISSING, ImageData, load, split
from vision.driving_scenes import CELL_NAMES, SCENE_NAMES, Labels

SMALL = {"num_images": 600, "num_cities": 4, "size": 20}
SEEN_BY_WINDOW = {
    0: {"building", "park", "outside"}, 1: {"roadworks", "barrier"}, 7: {"junction"},
    8: {"crosswalk", "red light", "green light"},
    9: {"junction"}, 10: {"junction"}, 11: {"goal"}, 16: {"person"},
    **{lane: {"road", "junction", "red light", "green light"} for lane in range(3, 7)},
    **{vehicle: {"car"} for vehicle in range(12, 16)},
}  # fmt: skip
"""Code of the semantic window (`envs.driving.senses`) -> what the camera may show there."""


def scenes(seed: int = 0) -> ImageData:
    return load("driving_scenes", SMALL, seed)


def test_labels_are_a_function_of_the_picture() -> None:
    """What is not visible is not labelled: equal pictures, of a cell or of the whole, have equal labels."""
    data = scenes()
    patches = data.images.view(-1, 3, 7, 12, 7, 12).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * 12 * 12).numpy()
    meaning: dict[bytes, int] = {}
    for patch, label in zip(patches, data.targets["cells"].flatten().tolist(), strict=True):
        if label != MISSING:
            assert meaning.setdefault(patch.tobytes(), label) == label
    assert len(meaning) > 200
    scene: dict[bytes, int] = {}
    for image, label in zip(data.images.numpy(), data.targets["scene"].tolist(), strict=True):
        assert scene.setdefault(image.tobytes(), label) == label
    cells = data.targets["cells"]
    assert (cells[:, 5, 3] == MISSING).all()
    assert (cells == MISSING).sum() == len(data)
    for k, name in enumerate(("car", "person")):
        assert torch.equal(data.targets["counts"][:, k], (cells == CELL_NAMES.index(name)).sum(dim=(1, 2)).float())


def test_the_semantic_window_of_the_same_moment_agrees() -> None:
    config = DrivingConfig(
        size=20, num_cities=3, cars=16, pedestrians=12, lights=True, walk_chance=0.2, event_chance=0.1, obs="fusion"
    )
    batch, rng = DrivingBatch(config, 64), np.random.default_rng(0)
    batch.reset(np.arange(64, dtype=np.uint32), np.zeros(64, np.int32))
    look, met = Labels(batch), set()
    rows, columns = window_shape(config.view_range)
    for _ in range(12):
        batch.action_tensor.copy_(torch.from_numpy(rng.integers(5, size=64)))
        batch.step_and_reset()
        window = batch.obs["map"].numpy().reshape(64, rows, columns)
        ego = config.view_range
        view = window[:, ego - 5 : ego + 2, columns // 2 - 3 : columns // 2 + 4]
        _, cells, _, _ = look.labels()
        for code, cell in zip(view.flatten().tolist(), cells.flatten().tolist(), strict=True):
            if code >= 20:
                assert cell == MISSING
            elif code < 17:  # an arrow and the window's mark of the route stand for different things
                assert CELL_NAMES[cell] in SEEN_BY_WINDOW[code], (code, CELL_NAMES[cell])
                met.add(CELL_NAMES[cell])
    assert met >= {"car", "person", "barrier", "red light", "green light", "junction", "crosswalk", "park", "outside"}


def test_unseen_cities_are_other_cities() -> None:
    data = scenes()
    train, test = split(data, [0.75, 0.25], 0)
    assert sorted([*train.group.unique().tolist(), *test.group.unique().tolist()]) == [0, 1, 2, 3]
    assert torch.equal(data.images, scenes().images)
    assert not torch.equal(data.images, scenes(1).images)
    assert len(data) == 600
    assert data.images.shape == (600, 3, 84, 84)


def street(text: str, pose: tuple[int, int, int], **state: object) -> tuple[str, np.ndarray]:
    """The scene and the cells (7, 7) that an ego at (row, column, heading) of a drawn map sees."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "street.txt"
        path.write_text(text)
        batch = DrivingBatch(DrivingConfig(city=str(path), obs="camera", lights=True, cars=1, min_route=1), 1)
    batch.reset(np.zeros(1, np.uint32), np.zeros(1, np.int32))
    now, tables = batch.state_dict(), batch.tables
    row, column, heading = pose
    now["pose"][:] = ((row + tables.margin) * tables.width + column + tables.margin) * 4 + heading
    for name, value in state.items():
        now[name][:] = value
    batch.load_state_dict(now)
    scene, cells, _, _ = Labels(batch).labels()
    return SCENE_NAMES[int(scene[0])], cells[0]


CROSSING = """
###v^###
###v^###
###v^###
<<<**<<<
>>>**>>>
###v^###
###v^###
###v^#GT
###v^#^#
###v^#^#
###v^#^#
###v^#S#
"""


def test_a_drawn_street() -> None:
    north = (8, 4, 0)
    away = {"car": -1, "goal": 0}
    green = {"tally": 0}
    scene, cells = street(CROSSING, north, **away, **green)
    assert scene in ("red light", "green light")
    light = CELL_NAMES.index(scene)
    assert cells[2, 3] == light  # the last cell before the junction, three ahead of the ego in row 5
    names = np.array(CELL_NAMES)[np.where(cells == MISSING, 0, cells)]
    assert names[1].tolist()[2:4] == ["junction", "junction"]
    assert names[4].tolist() == ["building", "building", "road", "road", "building", "goal", "park"]
    assert cells[5, 3] == MISSING
    # a car in front hides the light, one behind the ego does not
    for row, expected in ((6, "car"), (9, scene)):
        at = ((row + 6) * (8 + 12) + 4 + 6) * 4
        assert street(CROSSING, north, car=at, goal=0, **green)[0] == expected
    # driving south out of the junction: the lights of the others, behind and beside, are not the ego's
    south, _ = street(CROSSING, (5, 3, 2), **away, **green)
    assert south == "open road"
    lane_end, _ = street(CROSSING, (1, 4, 0), **away, **green)
    assert lane_end == "road end"
