"""A folder of one's own images as a data set: ``FOLDER/{train,test}/<class>/*``, or ``val`` for ``test``.

It is named after the folder. Sizes, classes and statistics are found in it; its AutoAugment policy is ImageNet's, the
one that Cubuk et al. (2019, "AutoAugment-transfer") find to help on other data sets of photographs.
"""

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy

from lkca.data import canonical, decode, files, images, scenes
from lkca.data.containers import TEST, TRAIN, Sample
from lkca.data.files import DataError, Tree
from lkca.data.images import Dataset, Spec, Triple

LAYOUT = "train/<class>/* and test/<class>/* (or val)"


@dataclass(frozen=True)
class Own:
    """What was found in a folder before an image was decoded; `load` decodes."""

    name: str
    folder: Path
    samples: list[Sample]
    classes: list[str]
    image_size: int

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return sum(split == "train" for split, *_ in self.samples)

    def load(self) -> Dataset:
        """The images as a data set, with the statistics of the training images; nothing is cached.

        Raises DataError on an image that is damaged or cannot be turned into RGB, and on training images that are all
        of one value in a channel.
        """
        side, n = self.image_size, len(self.classes)
        splits, fingerprint = canonical.arrange(self.name, self.samples, self.classes, side, "file")
        mean, std = _statistics(splits["train"][0], self.folder)
        train, test = (len(splits[split][1]) for split in ("train", "test"))
        spec = Spec(side, n, train, test, mean, std, None, None, False, "file", policy=AutoAugmentPolicy.IMAGENET)
        return Dataset(self.name, *splits["train"], *splits["test"], self.classes, fingerprint, spec)


def look(folder: Path | str) -> Own:
    """What a folder has: its classes, numbered in the order of their names (numbers by value), and its images' size.

    Raises:
        DataError: on a folder of another layout or with the name of a known data set, a class without training or test
            images, what lies among the images and is not read, and images that are not all of one square size.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: one with {LAYOUT} is wanted")
    name, tree = _name(folder), files.tree(folder)
    samples: list[Sample] = []
    for split, called in (("train", TRAIN), ("test", TEST)):
        there = next((c for c in called if any(file.startswith(f"{c}/") for file in tree.names)), None)
        if there is None:
            raise DataError(f"{folder} has {files.some(files.entries(folder)) or 'nothing'}; wanted are {LAYOUT}")
        samples += _of_split(tree, split, there)
    classes = files.natural({c for _, c, *_ in samples})
    for split in ("train", "test"):
        count = Counter(c for sp, c, *_ in samples if sp == split)
        if missing := [c for c in classes if not count[c]]:
            raise DataError(
                f"{folder}: no {split} images of {files.some(missing)}; each class needs some in both splits"
            )
    if len(classes) < 2:
        raise DataError(f"{folder}: one class, {classes[0]}; two are the least that can be told apart")
    return Own(name, folder, samples, classes, _side(tree, samples))


def load(folder: Path | str) -> Dataset:
    """The images of a folder as a data set; raises what `look` and `Own.load` raise."""
    return look(folder).load()


def _name(folder: Path) -> str:
    """The folder's name as it stands in records: without spaces, slashes or the ``--`` that parts their names."""
    name = re.sub(
        r"-{2,}", "-", re.sub(r"[^\w.-]+", "_", folder.resolve().name if folder.name == ".." else folder.name)
    )
    name = name.strip("._-")
    if name.lower() in (*images.DATASETS, *scenes.DATASETS):
        raise DataError(
            f"{folder} is named as the known data set {name}: a folder, or a link to it, of another name is wanted"
        )
    if not name:
        raise DataError(f"{folder} has no name to call a data set by: a folder of another name is wanted")
    return name


def _of_split(tree: Tree, split: str, called: str) -> list[Sample]:
    """The images of a split; raises DataError on what lies among them and would be left out."""
    samples: list[Sample] = []
    others = []
    for file in (name for name in tree.names if name.startswith(f"{called}/")):
        parts, where = file.split("/"), f"{tree.path}/{file}"
        if file in tree.odd:
            raise DataError(f"{where} is {tree.odd[file]}: a regular file is wanted there")
        if files.is_image(file) and len(parts) == 3:
            samples.append((split, parts[1], where, partial(tree.read, file)))
        elif files.is_image(file):
            raise DataError(f"{where} is not in a folder of its class: {called}/<class>/{parts[-1]} is wanted")
        elif files.ending(file) not in files.TEXTS:
            others.append(file)
    if others or not samples:
        raise DataError(
            f"{'' if samples else 'no PNG or JPEG in '}{tree.path}/{called}: {files.ends(others)}; {files.READ}"
        )
    return samples


def _side(tree: Tree, samples: list[Sample]) -> int:
    """Pixels a side of all images, from their headers; raises DataError if they are not all square and of one size."""

    def size(sample: Sample) -> tuple[int, int]:
        return decode.size(Path(sample[2]), sample[2])

    with decode.guarded(), ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(size, samples))
    counts = Counter(sizes).most_common()
    (width, height), _ = counts[0]
    if len(counts) > 1 or width != height:
        words = [f"{n:,} of {w} x {h} ({samples[sizes.index((w, h))][2]})" for (w, h), n in counts[:4]]
        raise DataError(f"{tree.path}: images of one square size are wanted, found are {', '.join(words)}")
    return width


def _statistics(train_images: Tensor, folder: Path) -> tuple[Triple, Triple]:
    """Mean and standard deviation a channel of uint8 (N, 3, S, S), scaled to 0-1, exact to the last digits."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel, name in zip(train_images.unbind(1), ("red", "green", "blue"), strict=True):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(share @ levels)
        std = float(share @ (levels - mean) ** 2) ** 0.5
        if (share > 0).sum() < 2:
            raise DataError(f"{folder}: the training images are all of one value in {name}, there is nothing to learn")
        means.append(mean)
        stds.append(std)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
