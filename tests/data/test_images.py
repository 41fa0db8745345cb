"""Data sets: small fakes of every container, and everything that can be wrong with them."""

import errno
import hashlib
import http.client
import io
import pickle
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from made import CIFAR10_NAMES, WNIDS, expect, images, same, write_folder, write_tiny, zip_tiny
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from lkca.data import classes, containers
from lkca.data import images as data


def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(data.urllib.request, "urlopen", refuse)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    no_network(monkeypatch)


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_cifar(root, kind, arrays, names, monkeypatch):
    """torchvision's pickles, and its checksums changed to those of the fake."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    fine = kind is CIFAR100
    sums = {}
    for split, files in (("train", kind.train_list), ("test", kind.test_list)):
        pixels, labels = arrays[split]
        for part, (file, _) in enumerate(files):
            rows = pixels[part :: len(files)].transpose(0, 3, 1, 2).reshape(-1, 3072)
            entry = {"data": rows, "fine_labels" if fine else "labels": list(map(int, labels[part :: len(files)]))}
            (folder / file).write_bytes(pickle.dumps(entry))
            sums[file] = md5(folder / file)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "train_list", [[file, sums[file]] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, sums[file]] for file, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    with tarfile.open(root / kind.filename, "w:gz") as tar:
        tar.add(folder, kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", md5(root / kind.filename))
    return root


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    expect(monkeypatch, "tiny-imagenet", classes=3, train=12, test=6)
    return write_tiny(tmp_path / "folder")


@pytest.fixture
def arrays():
    """Ten classes, six training and two test images each, shuffled; the last two training images are identical."""
    order = np.random.default_rng(1).permutation(60)
    train, labels = images(60)[order], (np.arange(60) % 10)[order]
    twins = np.nonzero(labels == 3)[0][:2]
    train[twins[1]] = train[twins[0]]
    return {"train": (train, labels), "test": (images(20, seed=2), np.arange(20) % 10)}


@pytest.fixture
def cifar(tmp_path, arrays, monkeypatch):
    """A root with an image folder of a small CIFAR-10."""
    expect(monkeypatch, "cifar10", train=60, test=20)
    return write_folder(tmp_path / "folder", "cifar10", arrays, CIFAR10_NAMES)


def test_cifar10_is_the_same_from_folder_pickles_and_archive(tmp_path, cifar, arrays, monkeypatch):
    root = write_cifar(tmp_path / "pickles", CIFAR10, arrays, CIFAR10_NAMES, monkeypatch)
    (tmp_path / "archive").mkdir()
    shutil.copy(root / CIFAR10.filename, tmp_path / "archive")
    ds = data.load("cifar10", cifar)
    assert ds.train_images.shape == (60, 3, 32, 32) and ds.train_images.dtype == torch.uint8
    assert ds.train_labels.shape == (60,) and ds.train_labels.dtype == torch.int64
    assert ds.test_images.shape == (20, 3, 32, 32) and (ds.image_size, ds.num_classes) == (32, 10)
    assert ds.classes == CIFAR10_NAMES
    same(ds, data.load("cifar10", root))
    same(ds, data.load("cifar10", tmp_path / "archive"))
    files = {p.name for p in (tmp_path / "archive").iterdir()}
    assert files == {CIFAR10.filename, ".cache"}  # unpacked elsewhere, nothing is left behind
    # the labels are those of the pixels
    train, labels = arrays["train"]
    label_of = {image.transpose(2, 0, 1).tobytes(): label for image, label in zip(train, labels, strict=True)}
    assert [label_of[image.numpy().tobytes()] for image in ds.train_images] == ds.train_labels.tolist()


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    names = list(classes.NAMES["cifar100"])
    arrays = {"train": (images(200), np.arange(200) % 100), "test": (images(100, seed=1), np.arange(100))}
    expect(monkeypatch, "cifar100", train=200, test=100)
    pickles = data.load("cifar100", write_cifar(tmp_path / "a", CIFAR100, arrays, names, monkeypatch))
    assert pickles.classes == names
    same(pickles, data.load("cifar100", write_folder(tmp_path / "b", "cifar100", arrays, names)))


def test_svhn_calls_ten_zero(tmp_path, monkeypatch):
    digits = {"train": np.r_[1:11, 1:11, 1], "test": np.r_[1:11]}
    pixels = {"train": images(21), "test": images(10, seed=1)}
    lists = {}
    for split, labels in digits.items():
        url, file, _ = SVHN.split_list[split]
        scipy.io.savemat(tmp_path / file, {"X": pixels[split].transpose(1, 2, 3, 0), "y": labels[:, None]})
        lists[split] = [url, file, md5(tmp_path / file)]
    monkeypatch.setattr(SVHN, "split_list", {**SVHN.split_list, **lists})
    expect(monkeypatch, "svhn", train=21, test=10)
    ds = data.load("svhn", tmp_path)
    assert ds.classes == [str(i) for i in range(10)] and ds.test_labels.tolist() == list(range(10))
    assert torch.equal(ds.test_images[0], torch.from_numpy(pixels["test"][9]).permute(2, 0, 1))
    assert ds.train_labels.bincount().tolist() == [2, 3] + [2] * 8
    (tmp_path / lists["test"][1]).unlink()  # half a data set is none
    assert not data.available("svhn", tmp_path)


def test_tiny_imagenet_is_the_same_from_folder_and_zip(tmp_path, tiny):
    ds = data.load("tiny-imagenet", tiny.parent)
    assert ds.train_images.shape == (12, 3, 64, 64) and ds.test_images.shape == (6, 3, 64, 64)
    assert ds.classes == ["goldfish", "Egyptian cat", "volleyball"]  # by sorted wnid
    assert ds.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    same(ds, data.load("tiny-imagenet", zip_tiny(tiny, tmp_path / "zip")))
    first = {
        np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes() for f in (tiny / "train/n01443537/images").iterdir()
    }
    assert {image.numpy().tobytes() for image in ds.train_images[:4]} == first


def test_tiny_imagenet_without_words_differs_in_names_only(tmp_path, tiny):
    other = data.load("tiny-imagenet", write_tiny(tmp_path / "other", words=False).parent)
    assert other.classes == sorted(WNIDS)
    same(data.load("tiny-imagenet", tiny.parent), replace(other, classes=["goldfish", "Egyptian cat", "volleyball"]))


def test_order_and_names_of_the_files_do_not_matter(tmp_path, cifar, arrays):
    ds = data.load("cifar10", cifar)
    flipped = {split: (pixels[::-1], labels[::-1]) for split, (pixels, labels) in arrays.items()}
    same(ds, data.load("cifar10", write_folder(tmp_path / "other", "cifar10", flipped, CIFAR10_NAMES, suffix="PNG")))
    (tmp_path / "other/cifar10/train/cat/._x.png").write_bytes(b"a Mac's")
    (tmp_path / "other/cifar10/README.md").write_text("")
    same(ds, data.load("cifar10", tmp_path / "other"))


@pytest.mark.parametrize("change", ["pixel", "label", "split"])
def test_any_change_changes_the_fingerprint(tmp_path, cifar, arrays, change):
    before = data.load("cifar10", cifar)
    (train, labels), (test, _) = arrays["train"], arrays["test"]
    if change == "pixel":
        train[7, 3, 4, 1] ^= 1
    elif change == "label":
        i, j = np.nonzero(labels == 0)[0][0], np.nonzero(labels == 1)[0][0]
        train[[i, j]] = train[[j, i]]
    else:
        i = np.nonzero(labels == 0)[0][0]
        train[i], test[0] = test[0].copy(), train[i].copy()
    after = data.load("cifar10", write_folder(tmp_path / "other", "cifar10", arrays, CIFAR10_NAMES))
    assert after.fingerprint != before.fingerprint


def test_other_content_than_the_known_is_refused(cifar, monkeypatch):
    known = data.load("cifar10", cifar).fingerprint
    monkeypatch.setitem(data.DATASETS, "cifar10", replace(data.DATASETS["cifar10"], fingerprint=known))
    assert data.load("cifar10", cifar).fingerprint == known
    # also where a cache of the other content is at hand
    monkeypatch.setitem(data.DATASETS, "cifar10", replace(data.DATASETS["cifar10"], fingerprint="0" * 64))
    with pytest.raises(data.DataError, match="not cifar10's .*expected 000000000000.*what was published") as error:
        data.load("cifar10", cifar)
    assert str(cifar / "cifar10") in str(error.value) and "delete" not in str(error.value)


def test_fingerprints_of_the_real_ones_are_known():
    known = {name: spec.fingerprint for name, spec in data.DATASETS.items()}
    assert known.pop("svhn") is None
    assert len(set(known.values())) == len(known) and all(len(bytes.fromhex(f)) == 32 for f in known.values())


@pytest.mark.parametrize("keep", [0, 10, 100, -30])
def test_truncated_image_is_named(cifar, keep):
    file = next((cifar / "cifar10/train/frog").iterdir())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(data.DataError, match="cannot be read") as error:
        data.load("cifar10", cifar)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("keep", [5, -2])
def test_truncated_jpeg_is_named(tiny, keep):
    file = tiny / "val/images/val_11.JPEG"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(data.DataError, match="val_11.JPEG cannot be read"):
        data.load("tiny-imagenet", tiny.parent)


@pytest.mark.parametrize("keep", [0, 1000, -10])
def test_truncated_zip_is_named(tmp_path, tiny, keep):
    file = zip_tiny(tiny, tmp_path / "zip") / "tiny-imagenet-200.zip"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(data.DataError, match="tiny-imagenet-200.zip is damaged.*delete"):
        data.load("tiny-imagenet", file.parent)


def test_damage_inside_a_zip_is_named(tmp_path, tiny):
    file = zip_tiny(tiny, tmp_path / "zip") / "tiny-imagenet-200.zip"
    content, image = bytearray(file.read_bytes()), (tiny / "val/images/val_11.JPEG").read_bytes()
    content[content.index(image) + len(image) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(data.DataError, match="val_11.JPEG cannot be read.*CRC"):
        data.load("tiny-imagenet", file.parent)


@pytest.mark.parametrize(
    "content, says",
    [
        (None, r"the class of val/images/val_00.JPEG, .* is not said: wanted is .*val_annotations.txt, or each"),
        (b"val_00.JPEG", r"val_annotations.txt: line 1 is 'val_00.JPEG', wanted is a file's name and its wnid"),
        (b"val_00.JPEG n01443537\n\nval_01.JPEG n01443537\n", "line 2 is '', wanted is"),
        (b"val_00.JPEG\tn01443537\n", "does not say the class of val/images/val_01.JPEG, .* and 2 others"),
        (b"\xff\xfe\x00", "val_annotations.txt cannot be read as text"),
    ],
)
def test_wrong_annotations_are_said_and_nothing_is_to_be_deleted(tiny, content, says):
    file = tiny / "val/val_annotations.txt"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(data.DataError, match=says) as error:
        data.load("tiny-imagenet", tiny.parent)
    assert "delete" not in str(error.value)


def test_wrong_size_of_an_image_is_named(cifar):
    file = next((cifar / "cifar10/test/ship").iterdir())
    Image.fromarray(images(1, 31)[0]).save(file)
    with pytest.raises(data.DataError, match="31 x 31 pixels, not 32 x 32") as error:
        data.load("cifar10", cifar)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "file, archive",
    [("data_batch_2", False), ("batches.meta", False), ("test_batch", None), (CIFAR10.filename, True)],
)
def test_damaged_torchvision_files_are_named_and_not_unpickled(tmp_path, arrays, monkeypatch, file, archive):
    expect(monkeypatch, "cifar10", train=60, test=20)
    root = write_cifar(tmp_path, CIFAR10, arrays, CIFAR10_NAMES, monkeypatch)
    path = root / file if archive else root / CIFAR10.base_folder / file
    if archive:
        shutil.rmtree(root / CIFAR10.base_folder)
    if archive is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(data.DataError, match="is missing" if archive is None else "MD5") as error:
        data.load("cifar10", root)
    assert str(path) in str(error.value)


def test_wrong_count_names_the_class(cifar):
    next((cifar / "cifar10/test/dog").iterdir()).unlink()
    with pytest.raises(data.DataError, match="class dog has 1 test images, expected 2"):
        data.load("cifar10", cifar)


def test_wrong_count_of_an_unbalanced_set(tmp_path, monkeypatch):
    expect(monkeypatch, "svhn", train=21, test=10)
    arrays = {"train": (images(20), np.arange(20) % 10), "test": (images(10, seed=1), np.arange(10))}
    with pytest.raises(data.DataError, match="20 train images, expected 21"):
        data.load("svhn", write_folder(tmp_path, "svhn", arrays, [str(i) for i in range(10)]))


@pytest.mark.parametrize(
    "gone, said", [(["test"], "class horse has no test images"), (["train", "test"], "9 classes, expected 10")]
)
def test_missing_class_is_named(cifar, monkeypatch, gone, said):
    for split in gone:
        shutil.rmtree(cifar / "cifar10" / split / "horse")
    with pytest.raises(data.DataError, match=said):
        data.load("cifar10", cifar)


def test_missing_split_is_said(cifar):
    shutil.rmtree(cifar / "cifar10/train")
    assert data.available("cifar10", cifar)  # something is there, and load says what is wrong with it
    with pytest.raises(data.DataError, match="class airplane has no train images"):
        data.load("cifar10", cifar)


@pytest.mark.parametrize("ask", [data.load, data.available, data.stats, data.downloadable, data.spec])
def test_unknown_name_lists_the_known(ask):
    with pytest.raises(data.DataError, match="'cifar' does not exist.*cifar10, cifar100, svhn, tiny-imagenet, digits"):
        ask("cifar")


def test_cache_gives_the_same_and_is_used(cifar, monkeypatch):
    ds = data.load("cifar10", cifar)
    monkeypatch.setattr(data, "_read", lambda *a: pytest.fail("read again"))
    same(ds, data.load("cifar10", cifar))


def test_cache_is_not_used_when_a_file_has_changed(cifar):
    before = data.load("cifar10", cifar)
    file = next((cifar / "cifar10/test/ship").iterdir())
    Image.fromarray(images(1, seed=9)[0]).save(file)
    assert data.load("cifar10", cifar).fingerprint != before.fingerprint


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "pickle"])
def test_damaged_cache_is_built_again(cifar, capsys, monkeypatch, damage):
    ds = data.load("cifar10", cifar)
    file = cifar / ".cache/cifar10.pt"
    content = bytearray(file.read_bytes())
    pixels = ds.train_images.numpy().tobytes()
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[content.index(pixels[:64]) + 1000] ^= 1
    else:
        content = b"" if damage == "empty" else pickle.dumps(print)
    file.write_bytes(content)
    same(ds, data.load("cifar10", cifar))
    assert f"{file} is damaged" in capsys.readouterr().err
    monkeypatch.setattr(data, "_read", lambda *a: pytest.fail("the cache was not written again"))
    same(ds, data.load("cifar10", cifar))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed"), KeyboardInterrupt()]
)
def test_cache_that_cannot_be_written_leaves_nothing(cifar, capsys, monkeypatch, error):
    def half(content, file):
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(data.torch, "save", half)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar10", cifar)
    else:
        assert len(data.load("cifar10", cifar).train_labels) == 60
        assert "cifar10.pt cannot be written" in capsys.readouterr().err
    assert list((cifar / ".cache").iterdir()) == []


def test_cache_folder_that_is_a_file(cifar, capsys):
    (cifar / ".cache").write_text("")
    assert len(data.load("cifar10", cifar).train_labels) == 60
    assert "cannot be written" in capsys.readouterr().err


def test_full_disk_while_unpacking(tmp_path, arrays, monkeypatch):
    expect(monkeypatch, "cifar10", train=60, test=20)
    root = write_cifar(tmp_path, CIFAR10, arrays, CIFAR10_NAMES, monkeypatch)
    shutil.rmtree(root / CIFAR10.base_folder)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(containers, "extract_archive", full)
    with pytest.raises(data.DataError, match="cifar-10-python.tar.gz cannot be unpacked.*No space.*free some space"):
        data.load("cifar10", root)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "tiny-imagenet"])
def test_missing_without_network_says_what_to_do(tmp_path, name):
    assert not data.available(name, tmp_path) and not data.downloadable(name)
    with pytest.raises(data.DataError, match=f"{name} is not in .*does not answer.*put it there by hand") as error:
        data.load(name, tmp_path / "new")
    assert data.DATASETS[name].url in str(error.value) and str(tmp_path / "new") in str(error.value)


def test_download_is_whole_or_not_at_all(tmp_path, tiny, monkeypatch):
    archive = zip_tiny(tiny, tmp_path / "zip") / "tiny-imagenet-200.zip"
    monkeypatch.setattr(data, "downloadable", lambda name: True)
    root = tmp_path / "root"

    def fetch(url, folder, md5, error=None):
        assert md5 == "90528d7ca1a48142e341f4ef8d21d0de"
        target = f"{folder}/{url.rsplit('/')[-1]}"
        shutil.copy(archive, target)
        if error:
            raise error

    for error, said in [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left.*free some space"),
        (RuntimeError("File not found or corrupted."), "corrupted.*by hand"),
        (http.client.IncompleteRead(b"x"), "IncompleteRead"),
    ]:
        monkeypatch.setattr(data, "download_url", lambda *a, e=error, **k: fetch(*a, **k, error=e))
        with pytest.raises(data.DataError, match=said):
            data.load("tiny-imagenet", root)
        assert list(root.iterdir()) == []
    monkeypatch.setattr(data, "download_url", fetch)
    same(data.load("tiny-imagenet", root), data.load("tiny-imagenet", tiny.parent))


def test_half_an_svhn_is_completed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "downloadable", lambda name: True)
    fetched = []

    def fetch(self, root, split, download):
        fetched.append(split)
        raise OSError("stop here")

    monkeypatch.setattr(SVHN, "__init__", fetch)
    (tmp_path / SVHN.split_list["train"][1]).write_bytes(b"")
    with pytest.raises(data.DataError, match="stop here"):
        data.load("svhn", tmp_path)
    assert fetched == ["test"]


def test_downloadable_asks_the_publisher_and_no_more(monkeypatch):
    asked = []

    def answer(request, timeout):
        asked.append((request.full_url, request.get_method(), timeout))
        return io.BytesIO()

    monkeypatch.setattr(data.urllib.request, "urlopen", answer)
    assert data.downloadable("tiny-imagenet")
    assert asked == [("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "HEAD", 5)]
    assert not data.downloadable("digits") and len(asked) == 1


def test_digits_are_golden(tmp_path):
    assert data.available("digits", tmp_path)
    ds = data.load("digits", tmp_path)
    assert ds.fingerprint == "cad5e2c3e839043e6c0a062ba41621748ba8e698756f3c028b721ff0547d9cdb"
    assert ds.train_images.shape == (1437, 3, 8, 8) and ds.test_images.shape == (360, 3, 8, 8)
    assert ds.test_labels.bincount().tolist() == [36] * 10
    assert ds.train_images.min() == 0 and ds.train_images.max() == 255
    assert torch.equal(ds.train_images[:, 0], ds.train_images[:, 2])
    pixels = ds.train_images.double() / 255
    mean, std = data.stats("digits")
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(mean, abs=5e-5)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx(std, abs=5e-5)
    assert not list(tmp_path.iterdir())  # nothing to cache


@pytest.mark.parametrize("n", [10, 100, 333, 1437])
def test_subset_is_stratified_and_seeded(n):
    ds = data.load("digits")
    part = ds.subset(n, seed=3)
    share = ds.train_labels.bincount() * n / 1437
    assert len(part.train_images) == len(part.train_labels) == n
    assert (part.train_labels.bincount(minlength=10) - share).abs().max() <= 1
    assert part.fingerprint == ds.fingerprint and part.test_images is ds.test_images
    same(part, ds.subset(n, seed=3))
    if n < 1437:
        assert not torch.equal(part.train_images, ds.subset(n, seed=4).train_images)
    else:
        same(part, ds)


@pytest.mark.parametrize("n", [-1, 0, 1438])
def test_subset_of_too_many_or_none(n):
    with pytest.raises(ValueError, match="digits has 1437 training images"):
        data.load("digits").subset(n)


@pytest.mark.parametrize("n", [10, 40, 360])
def test_tested_on_takes_of_every_class(n):
    ds = data.load("digits")
    part = ds.tested_on(n)
    assert len(part.test_images) == part.num_test == n
    assert (part.test_labels.bincount(minlength=10) - n / 10).abs().max() <= 1 + n / 90  # a tenth each has 33 to 37
    assert part.fingerprint == ds.fingerprint and part.train_images is ds.train_images
    whole = {(y, x.numpy().tobytes()) for x, y in zip(ds.test_images, ds.test_labels.tolist(), strict=True)}
    assert {(y, x.numpy().tobytes()) for x, y in zip(part.test_images, part.test_labels.tolist(), strict=True)} <= whole
    for wrong in (0, 361):
        with pytest.raises(ValueError, match=f"digits has 360 test images, {wrong} were asked for"):
            ds.tested_on(wrong)


def test_specs():
    for name, spec in data.DATASETS.items():
        assert data.stats(name) == (spec.mean, spec.std)
        assert not spec.balanced or (spec.train % spec.classes, spec.test % spec.classes) == (0, 0)
    assert (data.DATASETS["svhn"].train, data.DATASETS["svhn"].test) == (73_257, 26_032)
    assert data.DATASETS["cifar10"].mean == (0.4914, 0.4822, 0.4465)
