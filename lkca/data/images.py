"""A data set as uint8 tensors and the fingerprint of its content, wherever it came from.

`load` takes what is on disk - torchvision's files, the original tiny-imagenet-200 folder or zip, an image folder
``root/<name>/{train,test}/<class>/*``, or Hugging Face's parquet files - and downloads what is not. Whatever the
container, the result is the same: same tensors, same class numbers (by the known classes, `lkca.data.classes`), same
order (by class, then by content), same fingerprint. That is a SHA-256 over split, class number and content of every
sample, and it is compared with the known one. The content is the pixels; for Tiny-ImageNet it is the bytes of the JPEG
files, because JPEG decoders may differ.
"""

import errno
import http.client
import os
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, SVHN
from torchvision.datasets.utils import download_url
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms.v2.functional import resized_crop

from lkca.data import augment, cache, canonical, classes, containers, files, parquet, places
from lkca.data.containers import Listing
from lkca.data.files import DataError

ROOT = places.DATA
Triple = tuple[float, float, float]
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet"}  # in words


@dataclass(frozen=True)
class Spec:
    """What a data set must look like. Means and deviations are the released recipe's, of pixels scaled to 0-1."""

    image_size: int
    classes: int
    train: int
    test: int
    mean: Triple
    std: Triple
    url: str | None
    fingerprint: str | None  # None: not known to us, recorded as found
    balanced: bool = True  # the same number of images in every class
    digest: str = "pixels"  # what the fingerprint reads: "pixels", or "file" where decoders may differ (JPEG)
    torchvision: type[CIFAR10] | type[SVHN] | None = field(default=None, repr=False)
    policy: AutoAugmentPolicy | None = None  # None: the one of `augment.POLICIES`, if it has one of that name


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


@dataclass(frozen=True)
class Dataset:
    """Images as uint8 (N, 3, S, S), labels as int64 (N,), in canonical order; ``fingerprint`` of the whole content.

    ``own`` is what was found of one's own images (`lkca.data.own`); of the others `spec` says the same.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: list[str]
    fingerprint: str
    own: Spec | None = None

    @property
    def stats(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation a channel, of pixels scaled to 0-1, by which images are normalised."""
        s = self.own or spec(self.name)
        return s.mean, s.std

    @property
    def policy(self) -> AutoAugmentPolicy | None:
        """AutoAugment's policy for these images, None if there is none."""
        s = self.own or DATASETS.get(self.name)
        return (s.policy if s else None) or augment.POLICIES.get(self.name)

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

    def tested_on(self, n: int) -> "Dataset":
        """The data set with ``n`` test images, evenly from all of them, which come by class; fingerprint of the whole.

        Raises ValueError unless ``n`` is from 1 to their number.
        """
        if not 1 <= n <= self.num_test:
            raise ValueError(f"{self.name} has {self.num_test} test images, {n} were asked for")
        keep = torch.arange(n) * self.num_test // n
        return replace(self, test_images=self.test_images[keep], test_labels=self.test_labels[keep])


def spec(name: str) -> Spec:
    """What data set ``name`` must look like; raises DataError naming those there are."""
    if name not in DATASETS:
        raise DataError(f"data set {name!r} does not exist; the data sets are {', '.join(DATASETS)}")
    return DATASETS[name]


def test_counts(name: str) -> list[int]:
    """How many test images each class of a data set has, in class order."""
    s = spec(name)
    if s.torchvision is SVHN:
        return [1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595]  # as published
    return [s.test // s.classes] * s.classes


def stats(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation a channel, of pixels scaled to 0-1, as the released recipe normalises."""
    return spec(name).mean, spec(name).std


def _find(name: str, root: Path) -> tuple[list[Path], Callable[[], Listing]] | None:
    """The files a data set is kept in under ``root``, and how to list its samples; None if it is not there."""
    kind, folder = spec(name).torchvision, root / name
    if name.startswith("digits"):
        return [], partial(containers.digits, spec(name).image_size // 8)  # scikit-learn brings it along
    if tables := _tables(name, folder):
        return tables, partial(parquet.listing, name, tables)
    if _has_splits(folder):
        return [folder], partial(containers.image_folder, name, folder)
    kept: list[tuple[list[Path], Callable[[], Listing]]] = []
    for place in (root, folder):
        if name == "tiny-imagenet":
            paths = [place / f"tiny-imagenet-200{suffix}" for suffix in ("", ".zip")]
            kept += [([path], partial(containers.tiny, path)) for path in paths]
        elif kind is not None and issubclass(kind, SVHN):
            both = [place / SVHN.split_list[split][1] for split in ("train", "test")]
            kept.append((both, partial(containers.svhn, place)))
        elif kind is not None:
            paths = [place / part for part in (kind.base_folder, kind.filename)]
            kept += [([path], partial(containers.cifar, name, kind, path)) for path in paths]
    if tables := _tables(name, parquet.in_hub_cache(root, name)):
        kept.append((tables, partial(parquet.listing, name, tables)))
    return next((there for there in kept if all(path.exists() for path in there[0])), None)


def _tables(name: str, folder: Path | None) -> list[Path]:
    return parquet.found(folder) if folder and name in classes.NAMES else []


def _has_splits(folder: Path, deeper: bool = True) -> bool:
    """Whether a folder, or one inside it, has a folder named as a split."""
    inside = [name for name in files.entries(folder) if (folder / name).is_dir()]
    if any(name in (*containers.TRAIN, *containers.TEST) for name in inside):
        return True
    return deeper and any(_has_splits(folder / name, deeper=False) for name in inside)


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


def _check_counts(name: str, listing: Listing, where: str) -> list[str]:
    """The class names in order; raises DataError on a missing class or a wrong count, naming it."""
    s, others = spec(name), f"; {files.ends(listing.others)} and are not read" if listing.others else ""
    rest = f"{others}; the whole of {name} is wanted there, or name the folder that has it with data_root"
    counts = {split: Counter(c for sp, c, *_ in listing.samples if sp == split) for split in ("train", "test")}
    found = classes.ordered(name, set().union(*counts.values()))
    for split, expected in (("train", s.train), ("test", s.test)):
        count, each = counts[split], expected // s.classes
        for c in found:
            if count[c] != each and (s.balanced or not count[c]):
                raise DataError(f"{where}: class {c} has {count[c] or 'no'} {split} images, expected {each}{rest}")
        if len(found) != s.classes:
            missing = [c for c in classes.NAMES.get(name, ()) if c not in found] if len(found) < s.classes else []
            named = f" ({files.some(missing)} not among them)" if missing else ""
            raise DataError(f"{where}: {len(found)} classes, expected {s.classes}{named}{rest}")
        if count.total() != expected:
            raise DataError(f"{where}: {count.total()} {split} images, expected {expected}{rest}")
    return found


def _read(name: str, listing: Listing, where: str) -> Dataset:
    s, found = spec(name), _check_counts(name, listing, where)
    splits, fingerprint = canonical.arrange(name, listing.samples, found, s.image_size, s.digest)
    if s.fingerprint and fingerprint != s.fingerprint:
        raise DataError(
            f"{where}: the content is not {name}'s (fingerprint {fingerprint[:12]}…, expected {s.fingerprint[:12]}…): "
            f"{_other_content(s, listing)}, or name the folder that has it with data_root"
        )
    return Dataset(name, *splits["train"], *splits["test"], [listing.titles.get(c, c) for c in found], fingerprint)


def _other_content(s: Spec, listing: Listing) -> str:
    """What may be the matter with images of the right number and size, and what is wanted."""
    if s.digest != "file":
        return "some pixels or labels differ, wanted is what was published"
    first = listing.samples[0][3]()
    jpeg = isinstance(first, bytes) and first[:2] == b"\xff\xd8"
    known = "the images may have been encoded anew" if jpeg else "the images are no JPEG, so they were encoded anew"
    return f"{known}; wanted are the published files, byte for byte"


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
    s, there = spec(name), _instead(root / name)
    if s.url is None:
        raise DataError(
            f"{name} is not in {root}{there}: wanted is {root / name} with train/<class>/* and test/<class>/*"
        )
    try:
        if not downloadable(name):  # torchvision's downloader would wait for minutes
            raise OSError("the host does not answer")
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=f".{name}-") as aside:
            if s.torchvision is None:
                download_url(s.url, aside, md5=_TINY_MD5)
            elif s.torchvision is SVHN:
                for split in ("train", "test"):
                    if not (root / SVHN.split_list[split][1]).exists():
                        SVHN(aside, split, download=True)
            else:
                s.torchvision(aside, download=True)
            for file in Path(aside).iterdir():
                if not (root / file.name).exists():  # another process may have been faster
                    os.replace(file, root / file.name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # torchvision's bad checksum is a RuntimeError
        full = getattr(error, "errno", None) == errno.ENOSPC
        todo = "free some space there" if full else "put it there by hand, or name the folder that has it"
        raise DataError(f"{name} is not in {root}{there} and downloading {s.url} failed ({error}): {todo}") from error


def _instead(folder: Path) -> str:
    """What lies where a data set could be and is not, in words."""
    if inside := files.entries(folder):
        return f" ({folder} has {files.some(inside)}, in which none of its layouts was found)"
    return f" ({folder} is a link to what is not there)" if folder.is_symlink() and not folder.exists() else ""


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
    signature, kept = cache.signature(f"{spec(name)}", paths), root / ".cache" / f"{name}.pt"
    if (saved := cache.read(kept, signature)) is not None:
        return Dataset(**saved)
    ds = _read(name, samples(), str(paths[0]) if len(paths) == 1 else str(paths[0].parent))
    cache.write(kept, vars(ds), signature)
    return ds
