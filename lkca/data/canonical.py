"""Samples decoded and put in canonical order, by split, class and content: the same from every container."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from lkca.data import decode
from lkca.data.containers import Sample
from lkca.data.files import UNREADABLE, DataError


def arrange(
    name: str, samples: list[Sample], classes: list[str], side: int, digest: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], str]:
    """Decode samples and put them in order.

    Args:
        name: of the data set, for the progress bar.
        samples: all of them.
        classes: in the order of their numbers.
        side: pixels a side that every image must have.
        digest: what the fingerprint reads of a sample: "pixels", or "file" for the bytes of the file.

    Returns:
        For "train" and "test" images, uint8 (N, 3, S, S), and labels, int64 (N,); and the fingerprint of all.

    Raises:
        DataError: naming what is no image of that size.
    """
    number = {c: i for i, c in enumerate(classes)}
    decoded = _decoded(name, samples, side, digest)
    splits, everything = {}, hashlib.sha256(f"{side} {len(classes)}".encode())
    for split in ("train", "test"):
        keys = sorted((number[c], decoded[i][1], i) for i, (sp, c, *_) in enumerate(samples) if sp == split)
        for label, told, _ in keys:
            everything.update(b"%s %d " % (split.encode(), label) + told)
        images = np.empty((len(keys), 3, side, side), np.uint8)
        for image, (_, _, i) in zip(images, keys, strict=True):
            image[:] = decoded[i][0].transpose(2, 0, 1)
        splits[split] = torch.from_numpy(images), torch.tensor([label for label, *_ in keys])
    return splits, everything.hexdigest()


def _decoded(name: str, samples: list[Sample], side: int, digest: str) -> list[tuple[np.ndarray, bytes]]:
    """Of each sample its pixels (S, S, 3) and the digest that stands for it."""
    with decode.guarded(), ThreadPoolExecutor(os.cpu_count()) as pool:
        reading: Iterable[tuple[np.ndarray, bytes]] = pool.map(lambda sample: _sample(sample, side, digest), samples)
        with contextlib.suppress(ImportError):  # a machine that only trains need not have it
            from tqdm import tqdm

            quiet = name.startswith("digits")
            reading = tqdm(
                reading, total=len(samples), desc=f"reading {name}", disable=quiet, mininterval=1, leave=False
            )
        try:
            return list(reading)
        except BaseException:  # of the first that cannot be read; the others need not be waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _sample(sample: Sample, side: int, digest: str) -> tuple[np.ndarray, bytes]:
    _, _, where, read = sample
    try:
        content = read()
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{where} cannot be read ({error}): a sound image is wanted there") from error
    pixels = decode.pixels(content, where, (side, side)) if isinstance(content, bytes) else content
    if pixels.shape != (side, side, 3):
        raise DataError(f"{where} is {pixels.shape[1]} x {pixels.shape[0]} pixels, not {side} x {side}")
    told = content if digest == "file" and isinstance(content, bytes) else np.ascontiguousarray(pixels).data
    return pixels, hashlib.sha256(told).digest()
