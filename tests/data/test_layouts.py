"""A sound data set in another layout is read the same or refused in a sentence; what is no content is ignored."""

import os
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from made import CIFAR10_NAMES, WNIDS, expect, images, same, write_folder, write_tiny, zip_tiny
from PIL import Image

from lkca.data import classes, files
from lkca.data import images as data

COMPANIONS = ["._x.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".x.png.swp", "Icon\r"]
FOLDERS = ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "lost+found", "$RECYCLE.BIN", ".Trash-0"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    expect(monkeypatch, "tiny-imagenet", classes=3, train=12, test=6)
    return write_tiny(tmp_path / "folder")


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    expect(monkeypatch, "svhn", train=30, test=10)
    arrays = {"train": (images(30), np.arange(30) % 10), "test": (images(10, seed=1), np.arange(10))}
    return lambda root, names: write_folder(tmp_path / root, "svhn", arrays, names)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Writes a small CIFAR-10 in an image folder whose classes are called so."""
    expect(monkeypatch, "cifar10", train=20, test=10)
    arrays = {"train": (images(20), np.arange(20) % 10), "test": (images(10, seed=1), np.arange(10))}

    def write(root, names=CIFAR10_NAMES, **options):
        return write_folder(tmp_path / root, "cifar10", arrays, names, **options)

    return write


def refused(name, root):
    with pytest.raises(data.DataError) as error:
        data.load(name, root)
    assert "delete" not in str(error.value)
    return str(error.value)


def sort_val(folder, images="images", annotations=True):
    """The validation images of Tiny-ImageNet sorted into a folder a class, as many scripts do."""
    file = folder / "val/val_annotations.txt"
    for line in file.read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (folder / "val" / wnid / images).mkdir(parents=True, exist_ok=True)
        (folder / "val/images" / name).rename(folder / "val" / wnid / images / name)
    (folder / "val/images").rmdir()
    if not annotations:
        file.unlink()


@pytest.mark.parametrize("annotations", [True, False])
@pytest.mark.parametrize("below", ["images", "."])
def test_tiny_imagenet_with_val_sorted_by_class(tmp_path, tiny, below, annotations):
    known = data.load("tiny-imagenet", tiny.parent)
    sort_val(tiny, below, annotations)
    same(known, data.load("tiny-imagenet", tiny.parent))
    same(known, data.load("tiny-imagenet", zip_tiny(tiny, tmp_path / "zip")))


def test_tiny_imagenet_with_train_sorted_alike_and_in_one_more_folder(tmp_path, tiny):
    known = data.load("tiny-imagenet", tiny.parent)
    for wnid in WNIDS:
        for file in (tiny / "train" / wnid / "images").iterdir():
            file.rename(tiny / "train" / wnid / file.name)
    same(known, data.load("tiny-imagenet", tiny.parent))
    (tmp_path / "twice").mkdir()
    shutil.copytree(tiny, tmp_path / "twice/tiny-imagenet-200/tiny-imagenet-200")
    same(known, data.load("tiny-imagenet", tmp_path / "twice"))
    (tmp_path / "named").mkdir()
    tiny.rename(tmp_path / "named/tiny-imagenet")  # with val, whose test has no classes
    same(known, data.load("tiny-imagenet", tmp_path / "named"))


def test_tiny_imagenet_s_test_images_have_no_classes(tiny):
    shutil.rmtree(tiny / "val")
    assert "the images in test have no classes, as published; wanted is the folder val" in refused(
        "tiny-imagenet", tiny.parent
    )


@pytest.mark.parametrize("what", ["splits", "classes", "files", "whole"])
def test_links_are_followed(tmp_path, tiny, what):
    known = data.load("tiny-imagenet", tiny.parent)
    there = tmp_path / "links/tiny-imagenet-200"
    if what == "files":
        shutil.copytree(tiny, there, copy_function=lambda source, target: os.symlink(os.path.abspath(source), target))
    elif what == "classes":
        shutil.copytree(tiny, there, ignore=lambda folder, names: WNIDS if folder.endswith("train") else [])
        for wnid in WNIDS:
            (there / "train" / wnid).symlink_to(tiny / "train" / wnid)
    elif what == "splits":
        there.mkdir(parents=True)
        for entry in tiny.iterdir():
            (there / entry.name).symlink_to(entry)
        (there / "train/again").symlink_to(there)  # one that would never end
    else:
        there.parent.mkdir()
        there.symlink_to(tiny)
    same(known, data.load("tiny-imagenet", there.parent))


def test_a_change_behind_a_link_is_seen(tmp_path, cifar):
    root = cifar("a")
    (tmp_path / "b/cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "b/cifar10" / split).symlink_to(root / "cifar10" / split)
    before = data.load("cifar10", tmp_path / "b").fingerprint
    cifar("c", suffix="png")
    (file,) = (root / "cifar10/test/ship").iterdir()
    (other,) = (root / "cifar10/test/frog").iterdir()
    shutil.copy(other, file)
    assert data.load("cifar10", tmp_path / "b").fingerprint != before


@pytest.mark.parametrize("link", ["train", "train/ship", "train/ship/x.png"])
def test_a_link_to_what_is_not_there_is_named(cifar, link):
    root = cifar("a")
    if (root / "cifar10" / link).is_dir():
        shutil.rmtree(root / "cifar10" / link)
    (root / "cifar10" / link).symlink_to("gone")
    assert f"{link} is a link to gone, which is not there" in refused("cifar10", root)


def litter(folder):
    """What other systems leave, in every folder; and images where they are none of ours."""
    for at in [folder, *(f for f in folder.rglob("*") if f.is_dir())]:
        image = next(folder.rglob("*.[pJ]*"))
        for name in COMPANIONS:
            (at / name).write_bytes(b"\0" * 160)
        for name in FOLDERS:
            (at / name).mkdir()
            shutil.copy(image, at / name / f"a{image.suffix}")


def test_companions_are_ignored_everywhere(tmp_path, tiny, cifar):
    root = cifar("a")
    known = data.load("tiny-imagenet", tiny.parent), data.load("cifar10", root)
    litter(tiny), litter(root / "cifar10")
    for file in list(tiny.rglob("*.JPEG")):
        file.with_name(f"._{file.name}").write_bytes(bytes(160))
    same(known[0], data.load("tiny-imagenet", tiny.parent))
    same(known[1], data.load("cifar10", root))
    same(known[0], data.load("tiny-imagenet", zip_tiny(tiny, tmp_path / "zip")))


def test_a_zip_that_a_mac_or_windows_made(tmp_path, tiny):
    known = data.load("tiny-imagenet", tiny.parent)
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(tmp_path / "zip/tiny-imagenet-200.zip", "w") as z:
        for file in sorted(tiny.rglob("*")):
            name = str(file.relative_to(tiny.parent))
            if file.is_file():
                z.write(file, name.replace("/", "\\"))
                z.writestr(f"__MACOSX/{os.path.dirname(name)}/._{file.name}", b"\0" * 160)
    same(known, data.load("tiny-imagenet", tmp_path / "zip"))


NAMINGS = {
    "numbers": lambda i, name: str(i),
    "two digits": lambda i, name: f"{i:02d}",
    "both": lambda i, name: f"{i}_{name}",
    "both, other order": lambda i, name: f"{name}-{i:03d}",
    "prefixed": lambda i, name: f"class_{i}",
    "upper case": lambda i, name: name.upper(),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_cifar_classes_by_name_and_by_number_are_the_same(cifar, naming):
    called = [NAMINGS[naming](i, name) for i, name in enumerate(CIFAR10_NAMES)]
    same(data.load("cifar10", cifar("a")), data.load("cifar10", cifar("b", called)))


@pytest.mark.parametrize(
    "called, says",
    [
        ([*"0123456789"][::-1][:9] + ["plank"], "no class of cifar10 is called 'plank'; wanted are airplane, auto"),
        (["0", *CIFAR10_NAMES[:9]], "'0' and 'airplane' both mean the class airplane of cifar10"),
        ([f"{(i + 1) % 10}_{name}" for i, name in enumerate(CIFAR10_NAMES)], "is called '0_truck', '1_airplane'"),
        ([str(i) for i in range(1, 11)], "is called '10'; wanted are .* or the numbers 0 to 9 in that order"),
    ],
)
def test_classes_that_are_not_the_known_ones_are_refused(cifar, called, says):
    root = cifar("b", called)
    with pytest.raises(data.DataError, match=says):
        data.load("cifar10", root)


def test_svhn_s_digit_0_may_be_called_10(svhn):
    known = data.load("svhn", svhn("a", [*"0123456789"]))
    same(known, data.load("svhn", svhn("b", ["10", *"123456789"])))
    same(known, data.load("svhn", svhn("c", [f"{i:02d}" for i in (10, *range(1, 10))])))
    root = svhn("d", [*"0123456789"])
    (root / "svhn/test/0").rename(root / "svhn/test/10")  # one split alone
    same(known, data.load("svhn", root))
    (root / "svhn/test/0").mkdir()
    (file,) = (root / "svhn/test/10").iterdir()
    shutil.copy(file, root / "svhn/test/0")
    assert "'0' and '10' both mean the class 0 of svhn" in refused("svhn", root)


def test_wnids_are_known_and_may_have_words_behind(tiny):
    known = data.load("tiny-imagenet", tiny.parent)
    (tiny / "train" / WNIDS[0]).rename(tiny / "train" / f"{WNIDS[0]}_Egyptian cat")
    same(known, data.load("tiny-imagenet", tiny.parent))
    (tiny / "train" / WNIDS[1]).rename(tiny / "train/n00000001")
    assert "no class of tiny-imagenet is called 'n00000001'; wanted are its 200 wnids, n01443537" in refused(
        "tiny-imagenet", tiny.parent
    )


def test_the_known_classes():
    sizes = {name: len(set(names)) for name, names in classes.NAMES.items()}
    assert sizes == {"cifar10": 10, "cifar100": 100, "svhn": 10, "tiny-imagenet": 200}
    assert all(list(names) == sorted(names) for names in classes.NAMES.values())
    for name, names in classes.NAMES.items():
        assert [classes.meaning(name, c) for c in names] == list(names)
        assert sizes[name] == data.DATASETS[name].classes
    assert classes.NAMES["cifar100"][26] == classes.meaning("cifar100", "cra") == "crab"
    assert classes.meaning("cifar100", "Aquarium Fish") == "aquarium_fish"


def own_spec(monkeypatch, **changes):
    monkeypatch.setitem(data.DATASETS, "mine", data.Spec(32, 2, 4, 2, (0.5,) * 3, (0.2,) * 3, None, None, **changes))


@pytest.mark.parametrize("suffix", ["ppm", "bmp", "webp", "tiff", "gif", "PNG", "jpg", "JPEG"])
def test_formats_are_read_by_their_ending(tmp_path, monkeypatch, suffix):
    own_spec(monkeypatch)
    arrays = {"train": (images(4), [0, 1, 0, 1]), "test": (images(2, seed=1), [0, 1])}
    ds = data.load("mine", write_folder(tmp_path / "a", "mine", arrays, ["yes", "no"], suffix=suffix))
    assert ds.classes == ["no", "yes"]
    if suffix in ("ppm", "bmp", "tiff", "PNG"):
        same(ds, data.load("mine", write_folder(tmp_path / "b", "mine", arrays, ["yes", "no"])))


def test_an_unknown_ending_is_named(tmp_path, monkeypatch, cifar):
    own_spec(monkeypatch)
    arrays = {"train": (images(4), [0, 1, 0, 1]), "test": (images(2, seed=1), [0, 1])}
    root = write_folder(tmp_path / "a", "mine", arrays, ["yes", "no"])
    for file in root.rglob("*.png"):
        file.rename(file.with_suffix(".xyz"))
    said = refused("mine", root)
    assert f"no PNG or JPEG in {root}/mine/train; 4 files end in .xyz; what is read ends in .png, .jpg" in said
    root = cifar("b")
    for file in (root / "cifar10/train/cat").iterdir():
        file.rename(file.with_suffix(".avif"))
    said = refused("cifar10", root)
    assert "class cat has no train images, expected 2; 2 files end in .avif and are not read" in said


def test_images_without_a_folder_of_their_class(cifar):
    root = cifar("a")
    for file in list((root / "cifar10/train").glob("*/*.png")):
        file.rename(root / "cifar10/train" / f"{file.parent.name}_{file.name}")
    said = refused("cifar10", root)
    assert "cifar10/train: the class of train/airplane_" in said and "wanted in a folder of its class" in said


def test_a_data_set_below_its_name_and_a_folder_that_is_none(tmp_path, cifar, monkeypatch):
    root = cifar("a")
    known = data.load("cifar10", root)
    (root / "cifar10").rename(root / "inner")
    (root / "cifar10").mkdir()
    (root / "inner").rename(root / "cifar10/CIFAR-10-images")
    same(known, data.load("cifar10", root))
    (tmp_path / "c/cifar10/pictures").mkdir(parents=True)
    monkeypatch.setattr(data, "downloadable", lambda name: False)
    assert not data.available("cifar10", tmp_path / "c")
    assert "cifar10 has pictures, in which none of its layouts was found" in refused("cifar10", tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/cifar10").symlink_to("gone")
    assert "cifar10 is a link to what is not there" in refused("cifar10", tmp_path / "d")


def test_only_regular_files_are_opened(cifar, tiny, tmp_path):
    root = cifar("a")
    os.mkfifo(root / "cifar10/train/cat/0.png")
    assert "train/cat/0.png is a named pipe: a regular file or folder" in refused("cifar10", root)
    (tiny / "val/val_annotations.txt").unlink()
    os.mkfifo(tiny / "val/val_annotations.txt")
    assert "val_annotations.txt is a named pipe" in refused("tiny-imagenet", tiny.parent)
    (tmp_path / "z").mkdir()
    os.mkfifo(tmp_path / "z/tiny-imagenet-200.zip")
    said = refused("tiny-imagenet", tmp_path / "z")
    assert "tiny-imagenet-200.zip is a named pipe: a folder or a zip is wanted" in said
    os.mkfifo(tmp_path / "z/cifar-10-python.tar.gz")
    assert "cifar-10-python.tar.gz is a named pipe" in refused("cifar10", tmp_path / "z")


def test_a_zip_that_may_not_be_opened_is_not_called_damaged(tmp_path, tiny, monkeypatch):
    file = zip_tiny(tiny, tmp_path / "zip") / "tiny-imagenet-200.zip"

    def denied(*args):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as m:
        m.setattr(files.zipfile, "ZipFile", denied)
        assert "Permission denied" in refused("tiny-imagenet", file.parent)


def test_tiny_imagenet_encoded_anew_is_named(tiny, monkeypatch):
    known = data.load("tiny-imagenet", tiny.parent).fingerprint
    expect(monkeypatch, "tiny-imagenet", classes=3, train=12, test=6)
    spec = data.DATASETS["tiny-imagenet"]
    monkeypatch.setitem(data.DATASETS, "tiny-imagenet", replace(spec, fingerprint=known))
    for file in tiny.rglob("*.JPEG"):
        Image.open(file).save(file, "PNG")
    said = refused("tiny-imagenet", tiny.parent)
    assert "the images are no JPEG, so they were encoded anew; wanted are the published files, byte for byte" in said
