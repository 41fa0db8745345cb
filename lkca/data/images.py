"""A data set as uint8 tensors and the fingerprint of its content, wherever it came from.

`load` takes what is on disk - torchvision's files, the original tiny-imagenet-200 folder or zip, or an image folder
``root/<name>/{train,test}/<class>/*`` - and downloads what is not. Whatever the container, the result is the same: same
tensors, same class numbers (by sorted class name), same order (by class, then by content), same fingerprint. That is a
SHA-256 over split, class number and content of every sample, and it is compared with the known one. The content is the
pixels; for Tiny-ImageNet it is the bytes of the JPEG files, because JPEG decoders may differ.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import os
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, SVHN
from torchvision.datasets.utils import download_url
from torchvision.transforms.v2.functional import resized_crop

from lkca.data import containers, places
from lkca.data.containers import UNREADABLE, DataError, Sample

ROOT = places.DATA
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet"}  # in words


@dataclass(frozen=True)
class Spec:
    """What a data set must look like. Means and deviations are the released recipe's, of pixels scaled to 0-1."""

    image_size: int
    classes: int
    train: int
    test: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str | None
    fingerprint: str | None  # None: not known to us, recorded as found
    balanced: bool = True  # the same number of images in every class
    digest: str = "pixels"  # what the fingerprint reads: "pixels", or "file" where decoders may differ (JPEG)
    torchvision: type[CIFAR10] | type[SVHN] | None = field(default=None, repr=False)


DATASETS = {
    "cifar10": Spec(
        32, 10, 50_000, 10_000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), CIFAR10.url,
        "96ac581d115cdb8913f73431c9c310ae39a68db1921278ce05b07acb2ea6ffdf", torchvision=CIFAR10,
    ),
    "cifar100": Spec(
        32, 100, 50_000, 10_000, (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), CIFAR100.url,
        "015254366c663ecc8dcc8ae7a72dd034e31830ff4c7324ae531febd2b51fa307", torchvision=CIFAR100,
    ),
    "svhn": Spec(
        32, 10, 73_257, 26_032, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), SVHN.split_list["train"][0],
        None, balanced=False, torchvision=SVHN,
    ),
    "tiny-imagenet": Spec(
        64, 200, 100_000, 10_000, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821),
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "61fbbb38ee4e696676cfd188ba810eb346ad7bd8504b88db6f6a6381bab1c89a", digest="file",
    ),
    "digits": Spec(
        8, 10, 1_437, 360, (0.3055, 0.3055, 0.3055), (0.3759, 0.3759, 0.3759), None,
        "cad5e2c3e839043e6c0a062ba41621748ba8e698756f3c028b721ff0547d9cdb", balanced=False,
    ),
}  # fmt: skip
for _size, _fingerprint in {  # the digits enlarged, for models that cannot take 8 x 8 pixels
    32: "087a064b6ca122f0f8a1e5250e02d829774ac9d67dd52886bd2cb56930ab97ef",
    64: "d7b2ea3381a44d7e1632b2e0836006ed0badeb390720c98bd2250f5597a913ee",
}.items():
    DATASETS[f"digits-{_size}"] = replace(DATASETS["digits"], image_size=_size, fingerprint=_fingerprint)
_TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_CACHE_FORMAT = 2  # raise it when reading changes what is cached


@dataclass(frozen=True)
class Dataset:
    """Images as uint8 (N, 3, S, S), labels as int64 (N,), in canonical order; ``fingerprint`` of the whole content."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: list[str]
    fingerprint: str

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.train_images.shape[-1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    def to(self, device: str) -> "Dataset":
        """The same data set with its tensors on ``device``."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def subset(self, n: int, seed: int = 0) -> "Dataset":
        """A fixed, seeded draw of ``n`` training images, each class in proportion; the test set stays whole.

        The fingerprint stays that of the whole. Raises ValueError unless ``n`` is from 1 to their number.
        """
        total = len(self.train_labels)
        if not 1 <= n <= total:
            raise ValueError(f"{self.name} has {total} training images, {n} were asked for")
        # give every image its quantile within its class, at a random rank, and take the n smallest
        labels, rng = self.train_labels.numpy(), np.random.default_rng([seed, n])
        quantile = np.empty(total)
        for c in range(self.num_classes):
            (members,) = np.nonzero(labels == c)
            quantile[members] = (rng.permutation(len(members)) + rng.random()) / max(len(members), 1)
        keep = torch.from_numpy(np.sort(np.argsort(quantile, kind="stable")[:n]))
        return replace(self, train_images=self.train_images[keep], train_labels=self.train_labels[keep])


def spec(name: str) -> Spec:
    """What data set ``name`` must look like; raises DataError naming those there are."""
    if name not in DATASETS:
        raise DataError(f"data set {name!r} does not exist; the data sets are {', '.join(DATASETS)}")
    return DATASETS[name]


def stats(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation a channel, of pixels scaled to 0-1, as the released recipe normalises."""
    return spec(name).mean, spec(name).std


def _find(name: str, root: Path) -> tuple[list[Path], Callable[[], list[Sample]]] | None:
    """The files a data set is kept in under ``root``, and how to list its samples; None if it is not there."""
    kind, folder = spec(name).torchvision, root / name
    if name.startswith("digits"):
        return [], partial(containers.digits, spec(name).image_size // 8)  # scikit-learn brings it along
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return [folder], partial(containers.image_folder, folder)
    if kind is SVHN:
        files = [root / SVHN.split_list[split][1] for split in ("train", "test")]
        return (files, partial(containers.svhn, root)) if all(file.exists() for file in files) else None
    kept: list[tuple[Path, Callable[[Path], list[Sample]]]]
    if kind:
        kept = [(root / part, partial(containers.cifar, kind)) for part in (kind.base_folder, kind.filename)]
    else:
        kept = [(root / f"tiny-imagenet-200{suffix}", containers.tiny) for suffix in ("", ".zip")]
    return next((([path], partial(read, path)) for path, read in kept if path.exists()), None)


def photographs(n: int, size: int, seed: int = 0) -> Tensor:
    """Squares of 64 to 256 pixels cut at random from scikit-learn's two photographs, scaled to ``size``.

    Real images that are always at hand: uint8 (n, 3, size, size).
    """
    from sklearn.datasets import load_sample_images

    whole = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        image, side = whole[i % len(whole)], int(rng.integers(64, 257))
        top, left = (int(rng.integers(limit - side + 1)) for limit in image.shape[1:])
        made.append(resized_crop(image, top, left, side, side, [size, size], antialias=True))
    return torch.stack(made)


def _decode(sample: Sample, s: Spec) -> tuple[np.ndarray, bytes]:
    """Pixels (S, S, 3) and the digest that stands for the sample."""
    _, _, where, read = sample
    try:
        content = read()
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) if isinstance(content, bytes) else content
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be read ({error}): delete it and load the data set again") from error
    if pixels.shape != (s.image_size, s.image_size, 3):
        raise DataError(f"{where} is {pixels.shape[1]} x {pixels.shape[0]} pixels, not {s.image_size} x {s.image_size}")
    told = content if s.digest == "file" and isinstance(content, bytes) else np.ascontiguousarray(pixels).data
    return pixels, hashlib.sha256(told).digest()


def _check_counts(name: str, samples: list[Sample], where: str) -> list[str]:
    """The sorted class names; raises DataError on a missing class or a wrong count, naming it."""
    s, todo = spec(name), f"delete {where} and load {name} again"
    counts = {split: Counter(c for sp, c, *_ in samples if sp == split) for split in ("train", "test")}
    classes = sorted(set().union(*counts.values()))
    for split, expected in (("train", s.train), ("test", s.test)):
        found, each = counts[split], expected // s.classes
        for c in classes:
            if found[c] != each and (s.balanced or not found[c]):
                raise DataError(f"{where}: class {c} has {found[c] or 'no'} {split} images, expected {each}: {todo}")
        if len(classes) != s.classes:
            raise DataError(f"{where}: {len(classes)} classes, expected {s.classes}: {todo}")
        if found.total() != expected:
            raise DataError(f"{where}: {found.total()} {split} images, expected {expected}: {todo}")
    return classes


def _read(name: str, samples: list[Sample], where: str) -> Dataset:
    s, classes = spec(name), _check_counts(name, samples, where)
    number = {c: i for i, c in enumerate(classes)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading: Iterable[tuple[np.ndarray, bytes]] = pool.map(lambda sample: _decode(sample, s), samples)
        with contextlib.suppress(ImportError):  # a machine that only trains need not have it
            from tqdm import tqdm

            reading = tqdm(
                reading,
                total=len(samples),
                desc=f"reading {name}",
                disable=name.startswith("digits"),
                mininterval=1,
                leave=False,
            )
        decoded = list(reading)
    splits, everything = {}, hashlib.sha256(f"{s.image_size} {s.classes}".encode())
    for split in ("train", "test"):
        # by class, then by content: the same in every container
        keys = sorted((number[c], decoded[i][1], i) for i, (sp, c, *_) in enumerate(samples) if sp == split)
        for label, digest, _ in keys:
            everything.update(b"%s %d " % (split.encode(), label) + digest)
        images = np.empty((len(keys), 3, s.image_size, s.image_size), np.uint8)
        for image, (_, _, i) in zip(images, keys, strict=True):
            image[:] = decoded[i][0].transpose(2, 0, 1)
        splits[split] = torch.from_numpy(images), torch.tensor([label for label, *_ in keys])
    fingerprint = everything.hexdigest()
    if s.fingerprint and fingerprint != s.fingerprint:
        raise DataError(
            f"{where}: the content is not {name}'s (fingerprint {fingerprint[:12]}…, expected {s.fingerprint[:12]}…): "
            f"delete {where} and load {name} again"
        )
    if name == "tiny-imagenet":
        classes = [c.partition(" ")[2] or c for c in classes]
    return Dataset(name, *splits["train"], *splits["test"], classes, fingerprint)


def _signature(name: str, paths: list[Path]) -> str:
    """Changes when a file of the source does: names, sizes and times, nothing is read."""
    lines = [f"{_CACHE_FORMAT} {spec(name)}"]
    for path in paths:
        # Path.rglob would take three times as long
        inside = [os.path.join(at, file) for at, _, files in os.walk(path) for file in files]
        for file in sorted(inside) if path.is_dir() else [path]:
            stat = os.stat(file)
            lines.append(f"{os.path.relpath(file, path.parent)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _load_cache(file: Path, signature: str) -> Dataset | None:
    if not file.exists():
        return None
    try:
        saved = torch.load(file, weights_only=True)
        if saved.pop("signature") != signature:
            return None
        content_hash = saved.pop("content")
        ds = Dataset(**saved)
        if content_hash != _content(ds):
            raise ValueError("its content has changed")
        return ds
    except Exception as error:  # torch raises many kinds for a damaged file
        print(f"the cache {file} is damaged ({error}): reading the data set again", file=sys.stderr)
        return None


def _content(ds: Dataset) -> str:
    h = hashlib.sha256(ds.fingerprint.encode())
    for t in (ds.train_images, ds.train_labels, ds.test_images, ds.test_labels):
        h.update(t.numpy().data)
    return h.hexdigest()


def _save_cache(file: Path, ds: Dataset, signature: str) -> None:
    """Write aside and rename; a cache that cannot be written is only slower, so it is said and not raised."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.aside")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**vars(ds), "signature": signature, "content": _content(ds)}, aside)
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        print(f"the cache {file} cannot be written ({error}): every load will decode again", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):  # it is there after an error or an interrupt only
            aside.unlink()


def available(name: str, root: Path | str = ROOT) -> bool:
    """Whether the data set is on disk, without reading it."""
    return _find(name, Path(root).expanduser()) is not None


def answers(url: str, seconds: float = 5) -> bool:
    """Whether the host of ``url`` answers within ``seconds``; asks for no data."""
    try:  # as the download will ask, so that a proxy is respected
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except (OSError, http.client.HTTPException):
        return False
    return True


def downloadable(name: str, seconds: float = 5) -> bool:
    """Whether the host that publishes the data set answers within ``seconds``; asks for no data."""
    url = spec(name).url
    return url is not None and answers(url, seconds)


def _download(name: str, root: Path) -> None:
    """Fetch into a folder aside with checksums and a progress bar, then move into place: whole or not at all."""
    s = spec(name)
    try:
        if not downloadable(name):  # torchvision's downloader would wait for minutes
            raise OSError("the host does not answer")
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=f".{name}-") as aside:
            if s.torchvision is SVHN:
                for split in ("train", "test"):
                    if not (root / SVHN.split_list[split][1]).exists():
                        SVHN(aside, split, download=True)
            elif s.torchvision:
                s.torchvision(aside, download=True)
            else:
                download_url(s.url, aside, md5=_TINY_MD5)
            for file in Path(aside).iterdir():
                if not (root / file.name).exists():  # another process may have been faster
                    os.replace(file, root / file.name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # torchvision's bad checksum is a RuntimeError
        full = getattr(error, "errno", None) == errno.ENOSPC
        todo = "free some space there" if full else "put it there by hand, or name the folder that has it"
        raise DataError(f"{name} is not in {root} and downloading {s.url} failed ({error}): {todo}") from error


def load(name: str, root: Path | str = ROOT) -> Dataset:
    """Load a data set, from ``root`` if it is there, else from where it is published.

    Args:
        name: "cifar10", "cifar100", "svhn", "tiny-imagenet" or "digits" (scikit-learn's 1,797 digits of 8 x 8 pixels,
            split here into 1,437 and 360: the data set that needs no download), "digits-32" and "digits-64" (the same,
            enlarged by whole factors).
        root: a folder; decoded images are cached in its ``.cache``.

    Returns:
        The whole data set. Tiny-ImageNet is tested on its validation images, its classes are numbered by sorted wnid
        and named as in words.txt (by wnid where that is missing); SVHN trains on "train" alone, as released.

    Raises:
        DataError: on an unknown name, a damaged or truncated file, a missing class, a wrong count, content that is not
            the known one, a full disk, or no way to download. The fingerprint of SVHN is not known to us: its files'
            MD5 is checked, and the fingerprint is reported as found. A cache that is damaged or cannot be written is
            no error: standard error says so.
    """
    root = Path(root).expanduser()
    found = _find(name, root)
    if found is None:
        _download(name, root)
        found = _find(name, root)
    if found is None:
        raise DataError(f"{name} is not in {root}, where it was downloaded to: put it there by hand")
    paths, samples = found
    if not paths:
        return _read(name, samples(), "scikit-learn")
    signature, cache = _signature(name, paths), root / ".cache" / f"{name}.pt"
    ds = _load_cache(cache, signature)
    if ds is None:
        ds = _read(name, samples(), str(paths[0]))
        _save_cache(cache, ds, signature)
    return ds
