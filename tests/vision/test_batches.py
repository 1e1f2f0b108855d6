"""Every image is learned from once an epoch, in an order that depends on the seed and the epoch alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import Streams
from vision.batches import Batches, augmented
from vision.config import AugmentConfig


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
def test_an_epoch_takes_each_image_at_most_once(num_images: int, batch_size: int, seed: int) -> None:
    batches = Batches(num_images, batch_size, Streams(seed))
    per_epoch = max(1, num_images // batch_size)
    size = min(batch_size, num_images)
    for epoch in range(2):
        taken = torch.cat([batches.index(epoch * per_epoch + k) for k in range(per_epoch)])
        assert len(taken) == per_epoch * size
        assert len(taken.unique()) == len(taken)
        assert 0 <= int(taken.min()) <= int(taken.max()) < num_images


def test_a_batch_depends_on_its_number_alone() -> None:
    straight, jumping = (Batches(50, 8, Streams(3)) for _ in range(2))
    in_turn = [straight.index(k) for k in range(20)]
    assert all(torch.equal(jumping.index(k), in_turn[k]) for k in (19, 4, 7, 0, 13))
    assert not torch.equal(in_turn[0], in_turn[6])  # the first batches of two epochs
    assert not torch.equal(Batches(50, 8, Streams(4)).index(0), in_turn[0])


def test_only_what_is_asked_for_is_changed() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def changed(**keys: float) -> torch.Tensor:
        return augmented(images, AugmentConfig(**keys), torch.Generator().manual_seed(1))  # type: ignore[arg-type]

    assert torch.equal(changed(), images)
    mirrored = changed(flip=True)
    assert {torch.equal(a, b) for a, b in zip(mirrored, images, strict=True)} == {True, False}
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(mirrored, images, strict=True))
    assert torch.equal(changed(flip=True), mirrored)
    moved = changed(shift=2)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    assert not torch.equal(changed(crop=2), moved)  # black around, not the edge
