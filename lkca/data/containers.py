"""The samples of a data set, whatever contains them: a folder, a zip, torchvision's files or scikit-learn.

Only what names and labels the samples is read here; `lkca.data.images` decodes, counts and sorts them.
"""

import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torchvision.datasets import CIFAR10, SVHN
from torchvision.datasets.utils import check_integrity, extract_archive

from lkca.data import classes, files
from lkca.data.files import DataError, Tree

# A sample is (split, class, where, read): read() gives its encoded bytes or its pixels, uint8 (S, S, 3).
Sample = tuple[str, str, str, Callable[[], bytes | np.ndarray]]
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


@dataclass(frozen=True)
class Listing:
    """The samples of a container; ``titles``: what classes are called where that is not their own name.

    ``others``: what lies among the images and is neither one of them nor text.
    """

    samples: list[Sample]
    titles: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def splits(name: str) -> dict[str, tuple[str, ...]]:
    """What the splits of a data set may be called, the first choice first: Tiny-ImageNet's own test has no labels."""
    return {"train": TRAIN, "test": (*TEST[2:], *TEST[:2]) if name == "tiny-imagenet" else TEST}


def image_folder(name: str, path: Path) -> Listing:
    """Images in a folder of their class: ``{train,test}/<class>/*``, in a folder or a zip.

    Tiny-ImageNet also as it is published: ``train/<wnid>/images/*``, and ``val/images/*`` with their classes in
    ``val/val_annotations.txt``. All of it may lie in one more folder. Raises DataError on classes that are not those
    of data set ``name``, on a layout that does not say the classes, and on what is no regular file.
    """
    tree = files.tree(path)
    base = _base(tree)
    _check_odd(tree, base)
    samples: list[Sample] = []
    others: list[str] = []
    for split, called in splits(name).items():
        folder = next((base + c for c in called if _below(tree, f"{base}{c}/")), None)
        if folder is None:
            continue  # the counts say what is missing
        inside = [file for file in tree.names if file.startswith(f"{folder}/")]
        others += [file for file in inside if not files.is_image(file) and files.ending(file) not in files.TEXTS]
        class_of = _by_class(tree, folder, inside, name == "tiny-imagenet")
        meaning = classes.known(name, class_of.values(), f"{path}/{folder}")
        samples += [
            (split, meaning[c], f"{path}/{file}", partial(tree.read, file)) for file, c in sorted(class_of.items())
        ]
    return Listing(samples, _words(tree, f"{base}words.txt") if name == "tiny-imagenet" else {}, others)


def _check_odd(tree: Tree, base: str) -> None:
    """Raises DataError on an image that is no regular file, and on a split or class that is a link to nothing."""
    for name, what in tree.odd.items():
        matters = files.is_image(name) or what.startswith("a link")
        if matters and name.removeprefix(base).split("/")[0] in (*TRAIN, *TEST):
            raise DataError(f"{tree.path}/{name} is {what}: a regular file or folder, or a link to it, is wanted there")


def _below(tree: Tree, folder: str) -> bool:
    return any(name.startswith(folder) for name in tree.names)


def _base(tree: Tree) -> str:
    """The folder inside that has the splits: "" for the tree itself, else the outermost."""
    called = "|".join((*TRAIN, *TEST))
    found = (re.match(f"((?:[^/]+/){{0,2}}?)(?:{called})/", name) for name in tree.names)
    return min((match[1] for match in found if match), key=lambda base: (base.count("/"), base), default="")


def _by_class(tree: Tree, folder: str, inside: list[str], tiny: bool) -> dict[str, str]:
    """The images of a split, each with the name of its class's folder or, of Tiny-ImageNet, with its class as told."""
    class_of, loose = {}, []
    for name in filter(files.is_image, inside):
        parts = name[len(folder) + 1 :].split("/")
        if (len(parts) == 2 and not (tiny and parts[0] == "images")) or (len(parts) == 3 and parts[1] == "images"):
            class_of[name] = parts[0]
        else:
            loose.append(name)
    if tiny and loose and folder.rpartition("/")[2] not in TRAIN:
        return class_of | _annotated(tree, folder, loose, class_of)
    where = f"{tree.path}/{folder}"
    if loose and not class_of:
        raise DataError(
            f"{where}: the class of {files.some(loose, 2)} is not said, each image is wanted in a folder of its class "
            "(<class>/*.png)"
        )
    if not class_of:
        raise DataError(f"no PNG or JPEG in {where}; {files.ends(inside)}; {files.READ}")
    return class_of


def _annotated(tree: Tree, folder: str, loose: list[str], class_of: dict[str, str]) -> dict[str, str]:
    """The class of each validation image that lies in no folder of its class, unless it is there as well."""
    sorted_in = {name.rpartition("/")[2] for name in class_of}
    loose = [name for name in loose if name.rpartition("/")[2] not in sorted_in]
    if not loose:
        return {}
    if folder.rpartition("/")[2] in TEST[:2]:
        raise DataError(
            f"{tree.path}: the images in {folder} have no classes, as published; wanted is the folder val beside it, "
            "with val_annotations.txt or with a folder a class"
        )
    annotations = f"{folder}/val_annotations.txt"
    where = f"{tree.path}/{annotations}"
    if annotations not in tree.names:
        raise DataError(
            f"the class of {files.some(loose, 2)} is not said: wanted is {where}, or each of these images in a folder "
            "named by its wnid"
        )
    wnid_of = {}
    for i, line in enumerate(tree.text(annotations).rstrip().splitlines(), 1):
        file, *others = line.split("\t") if "\t" in line else line.split() or [""]
        if not others:
            raise DataError(f"{where}: line {i} is {line[:60]!r}, wanted is a file's name and its wnid")
        wnid_of[file] = others[0]
    if unsaid := [name for name in loose if name.rpartition("/")[2] not in wnid_of]:
        raise DataError(f"{where} does not say the class of {files.some(unsaid, 3)}: a line for each is wanted")
    return {name: wnid_of[name.rpartition("/")[2]] for name in loose}


def _words(tree: Tree, file: str) -> dict[str, str]:
    """Tiny-ImageNet's words, the first of each wnid; none where their file is missing."""
    lines = tree.text(file).splitlines() if file in tree.names else []
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    return {wnid: words.split(",")[0].strip() for wnid, words in pairs}


def tiny(path: Path) -> Listing:
    """Tiny-ImageNet as it is published, in a folder or the zip: the 10,000 validation images are the test set."""
    try:
        return image_folder("tiny-imagenet", path)
    except DataError as error:
        if isinstance(error.__cause__, zipfile.BadZipFile | zlib.error):  # which the published one is not
            raise DataError(
                f"{path} is damaged ({error.__cause__}; its MD5 is not the published one): delete it and load again"
            ) from error
        raise


def _check_md5(file: Path, md5: str, again: str) -> None:
    """Raises DataError unless a file has its publisher's MD5; ``again`` says where a sound one is to be had."""
    if not file.exists():
        raise DataError(f"{file} is missing: {again}")
    if not check_integrity(str(files.checked(file)), md5):
        raise DataError(f"{file} is damaged (its MD5 is not the published one): delete it; {again}")


def _arrays(split: str, images: np.ndarray, called: list[str], where: Path | str) -> list[Sample]:
    return [
        (split, c, f"{where} ({split} image {i})", partial(np.asarray, image))
        for i, (image, c) in enumerate(zip(images, called, strict=True))
    ]


def cifar(name: str, kind: type[CIFAR10], path: Path) -> Listing:
    """torchvision's folder or archive. It unpickles, so nothing is opened before its MD5 is that of the publisher."""
    if path.name == kind.filename:
        _check_md5(path, kind.tgz_md5, f"load {name} again, or put the file of {kind.url} there")
        try:
            with TemporaryDirectory() as aside:
                extract_archive(path, aside)
                return cifar(name, kind, Path(aside, kind.base_folder))
        except OSError as error:
            raise DataError(f"{path} cannot be unpacked ({error}): free some space, or unpack it there") from error
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        _check_md5(path / file, md5, f"the one of {kind.url} is wanted there")
    samples = []
    for split in ("train", "test"):
        part = kind(path.parent, train=split == "train")
        meaning = classes.known(name, part.classes, str(path / kind.meta["filename"]))
        samples += _arrays(split, part.data, [meaning[part.classes[label]] for label in part.targets], path)
    return Listing(samples)


def svhn(root: Path) -> Listing:
    """torchvision's two files; it gives the digit 0, which they call 10, the class 0."""
    samples = []
    for url, file, md5 in (SVHN.split_list[split] for split in ("train", "test")):
        _check_md5(root / file, md5, f"load svhn again, or put the file of {url} there")
    for split in ("train", "test"):
        part = SVHN(root, split)
        where = root / SVHN.split_list[split][1]
        samples += _arrays(split, part.data.transpose(0, 2, 3, 1), [str(label) for label in part.labels], where)
    return Listing(samples)


def digits(factor: int) -> Listing:
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
    return Listing([("test" if t else "train", *sample[1:]) for t, sample in zip(test, samples, strict=True)])
