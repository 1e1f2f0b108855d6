"""Counter-based random numbers for kernels: a hash of (key, time, purpose, index), equal on every device."""

from __future__ import annotations

import warp as wp

wp.set_module_options({"enable_backward": False})

MIX_1, MIX_2, GOLDEN, SPREAD_1, SPREAD_2 = (
    wp.constant(wp.uint32(x)) for x in (0x7FEB352D, 0x846CA68B, 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35)
)


@wp.func
def mix(x: wp.uint32) -> wp.uint32:
    """A 32-bit integer hash with low bias (Wellons 2018, "Prospecting for hash functions", `lowbias32`)."""
    x = x ^ (x >> wp.uint32(16))
    x = x * MIX_1
    x = x ^ (x >> wp.uint32(15))
    x = x * MIX_2
    return x ^ (x >> wp.uint32(16))


@wp.func
def instant(key: wp.uint32, time: int) -> wp.uint32:
    """What the numbers follow from that are drawn at one time of an episode."""
    return mix(key + wp.uint32(time) * GOLDEN)


@wp.func
def draw(instant: wp.uint32, purpose: int, index: int) -> wp.uint32:
    """32 random bits."""
    return mix(instant + wp.uint32(purpose) * SPREAD_1 + wp.uint32(index) * SPREAD_2)


@wp.func
def below(bits: wp.uint32, n: int) -> int:
    """A number in [0, n)."""
    return wp.int32((wp.uint64(bits) * wp.uint64(n)) >> wp.uint64(32))


@wp.func
def happens(bits: wp.uint32, chance: int) -> bool:
    return wp.int32(bits >> wp.uint32(8)) < chance


@wp.func
def episode_key(seed: wp.uint32, episode: int) -> wp.uint32:
    """The seed itself for the first episode, then a hash in [0, 2**31)."""
    if episode == 0:
        return seed
    return mix(mix(seed) + wp.uint32(episode) * GOLDEN) & wp.uint32(0x7FFFFFFF)
