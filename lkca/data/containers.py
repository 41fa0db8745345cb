"""The samples of a data set, whatever contains them: a folder, a zip, torchvision's files or scikit-learn.

Only what names and labels the samples is read here; `lkca.data.images` decodes, counts and sorts them.
"""

import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torchvision.datasets import CIFAR10, SVHN
from torchvision.datasets.utils import check_integrity, extract_archive

_SUFFIXES = {".png", ".jpg", ".jpeg"}
UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


class DataError(ValueError):
    """A data set that is missing, damaged or not what it should be: the message names the file and says what to do."""


# A sample is (split, class name, where, read): read() gives its encoded bytes or its pixels, uint8 (S, S, 3).
Sample = tuple[str, str, str, Callable[[], bytes | np.ndarray]]


def image_folder(folder: Path) -> list[Sample]:
    """``folder/{train,test}/<class>/*`` with PNG or JPEG images."""
    return [
        (split, file.parent.name, str(file), file.read_bytes)
        for split in ("train", "test")
        for file in (folder / split).glob("*/*")
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")  # "._x.png" is a Mac's, not an image
    ]


def tiny(path: Path) -> list[Sample]:
    """The original layout, in a folder or a zip: the 10,000 validation images are the test set."""
    base = "tiny-imagenet-200/"
    try:
        if path.is_dir():
            names = [file.relative_to(path.parent).as_posix() for file in path.rglob("*.*")]
            read = lambda name: (path.parent / name).read_bytes()  # noqa: E731
        else:
            archive = zipfile.ZipFile(path)
            names, read = archive.namelist(), archive.read
        lines = [line.split() for line in read(f"{base}val/val_annotations.txt").decode().splitlines()]
        wnid_of = {f"{base}val/images/{file}": wnid for file, wnid, *_ in lines}
        words = read(f"{base}words.txt").decode().splitlines() if f"{base}words.txt" in names else []
        word_of = dict(line.split("\t", 1) for line in words)
    except UNREADABLE as error:
        raise DataError(f"{path} is damaged or incomplete ({error}): delete it and load again") from error
    samples: list[Sample] = []
    for name in names:
        train = name.startswith(f"{base}train/")
        wnid = name.split("/")[2] if train else wnid_of.get(name)  # the test images have no label and are left out
        if wnid and Path(name).suffix.lower() in _SUFFIXES:
            readable = f"{wnid} {word_of.get(wnid, '').split(',')[0]}".strip()  # sorts as the wnid does
            samples.append(("train" if train else "test", readable, str(path.parent / name), partial(read, name)))
    return samples


def _check_md5(file: Path, md5: str, delete: Path) -> None:
    if not check_integrity(file, md5):
        state = "is damaged (its MD5 is not the published one)" if file.exists() else "is missing"
        raise DataError(f"{file} {state}: delete {delete} and load again")


def _arrays(split: str, images: np.ndarray, classes: list[str], where: Path | str) -> list[Sample]:
    return [
        (split, c, f"{where} ({split} image {i})", partial(np.asarray, image))
        for i, (image, c) in enumerate(zip(images, classes, strict=True))
    ]


def cifar(kind: type[CIFAR10], path: Path) -> list[Sample]:
    """torchvision's folder or archive. It unpickles, so nothing is opened before its MD5 is that of the publisher."""
    if path.name == kind.filename:
        _check_md5(path, kind.tgz_md5, path)
        try:
            with TemporaryDirectory() as aside:
                extract_archive(path, aside)
                return cifar(kind, Path(aside, kind.base_folder))
        except OSError as error:
            raise DataError(f"{path} cannot be unpacked ({error}): free some space, or unpack it there") from error
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        _check_md5(path / file, md5, path)
    samples = []
    for split in ("train", "test"):
        part = kind(path.parent, train=split == "train")
        samples += _arrays(split, part.data, [part.classes[label] for label in part.targets], path)
    return samples


def svhn(root: Path) -> list[Sample]:
    """torchvision's two files; it gives the digit 0, which they call 10, the class 0."""
    samples = []
    for split in ("train", "test"):
        _, file, md5 = SVHN.split_list[split]
        _check_md5(root / file, md5, root / file)
        part = SVHN(root, split)
        samples += _arrays(split, part.data.transpose(0, 2, 3, 1), [str(label) for label in part.labels], root / file)
    return samples


def digits(factor: int) -> list[Sample]:
    """The 8 x 8 digits, each pixel ``factor`` pixels a side."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    test = np.zeros(len(labels), bool)  # a fifth: 36 of each class, drawn once and for all (the fingerprint sees to it)
    rng = np.random.default_rng(0)
    for c in range(10):
        test[rng.permutation(np.nonzero(labels == c)[0])[:36]] = True
    samples = _arrays("", np.repeat(pixels[..., None], 3, axis=3), [str(c) for c in labels], "scikit-learn")
    return [("test" if t else "train", *sample[1:]) for t, sample in zip(test, samples, strict=True)]
