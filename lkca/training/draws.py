"""Streams of random numbers, each a function of the seed, a purpose and an index alone."""

import numpy as np


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """The random numbers for one purpose at one index (a stage, a step): the same in every process."""
    return np.random.default_rng([seed, *name.encode(), index])


def order(seed: int, stage: int, n: int, images: int) -> np.ndarray:
    """Which of n images a stage shows, one after the other: permutation after permutation, cut off at ``images``."""
    rng = stream(seed, "order", stage)
    return np.concatenate([rng.permutation(n) for _ in range(-(-images // n))])[:images]
