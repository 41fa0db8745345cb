"""A folder of one's own images: found out by itself, refused where it is not clear, trained like any other."""

import numpy as np
import pytest
import torch
from made import images, write_folder
from PIL import Image, ImageFile
from torchvision.transforms import AutoAugmentPolicy

from lkca.__main__ import main
from lkca.data import images as data
from lkca.data import own
from lkca.ledger import records

NAMES = ["10", "9", "1"]


@pytest.fixture
def folder(tmp_path):
    """Three classes called by numbers, ten training and two test images each."""
    arrays = {"train": (images(30), np.arange(30) % 3), "val": (images(6, seed=1), np.arange(6) % 3)}
    write_folder(tmp_path, "my flowers--2", arrays, NAMES)
    return tmp_path / "my flowers--2"


def refused(folder, look=own.look):
    with pytest.raises(data.DataError) as error:
        look(folder)
    assert "delete" not in str(error.value)
    return str(error.value)


def test_everything_is_found_in_the_folder(folder):
    ds = own.load(folder)
    assert ds.name == "my_flowers-2" and ds.classes == ["1", "9", "10"]
    assert (ds.num_train, ds.num_test, ds.image_size) == (30, 6, 32)
    of_class = [np.asarray(Image.open(file)).transpose(2, 0, 1) for file in (folder / "train/10").iterdir()]
    assert {i.tobytes() for i in of_class} == {i.numpy().tobytes() for i in ds.train_images[ds.train_labels == 2]}
    pixels, (mean, std) = ds.train_images.double() / 255, ds.stats
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(mean, abs=1e-12)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx(std, abs=1e-12)
    assert ds.policy is AutoAugmentPolicy.IMAGENET
    assert ds.subset(9).stats == ds.stats


def test_the_known_ones_keep_their_statistics_and_policies():
    ds = data.Dataset("digits", *[torch.zeros(0)] * 4, [], "")
    assert ds.stats == data.stats("digits") and ds.policy is AutoAugmentPolicy.SVHN and ds.own is None


def test_the_fingerprint_is_of_the_content(folder, tmp_path):
    known = own.load(folder)
    (tmp_path / "link").symlink_to(folder)
    other = own.load(tmp_path / "link")
    assert (other.name, other.fingerprint) == ("link", known.fingerprint)
    (folder / "train/1/.DS_Store").write_text("")
    (folder / "train/.ipynb_checkpoints").mkdir()
    (folder / "train/1/labels.csv").write_text("")
    assert own.load(folder).fingerprint == known.fingerprint
    next((folder / "train/1").glob("*.png")).rename(folder / "train/9/moved.png")
    assert own.load(folder).fingerprint != known.fingerprint


def test_what_is_not_clear_is_refused(folder, tmp_path):
    image = next((folder / "train/1").iterdir())
    assert "none is not a folder: one with train/<class>/*" in refused(tmp_path / "none")
    (folder / "train/loose.png").write_bytes(image.read_bytes())
    assert "train/loose.png is not in a folder of its class: train/<class>/loose.png is wanted" in refused(folder)
    (folder / "train/loose.png").rename(folder / "train/1/photo.heic")
    assert "my flowers--2/train: 1 file ends in .heic; what is read ends in" in refused(folder)
    (folder / "train/1/photo.heic").unlink()
    (folder / "val/10").rename(folder / "val/11")
    assert "no train images of 11; each class needs some in both splits" in refused(folder)
    (folder / "val/11").rename(folder / "val/10")
    (folder / "val").rename(folder / "eval")
    assert "has eval, train; wanted are train/<class>/* and test/<class>/* (or val)" in refused(folder)
    (folder / "eval").rename(folder / "val")
    (tmp_path / "cifar10").symlink_to(folder)
    assert "cifar10 is named as the known data set cifar10" in refused(tmp_path / "cifar10")
    assert own.look(folder).num_train == 30


@pytest.mark.parametrize("size", [(32, 16), (9_000, 9_000)])
def test_images_of_several_sizes_are_named_before_any_is_decoded(folder, monkeypatch, size):
    file = next((folder / "val/9").iterdir())
    Image.new("1", size).save(file)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(data.DataError, match="images of one square size are wanted, found are 35 of 32 x 32") as error:
        own.look(folder)
    assert f"1 of {size[0]} x {size[1]} ({file})" in str(error.value)


def test_images_without_contrast_are_refused(folder):
    for file in (folder / "train").rglob("*.png"):
        Image.new("RGB", (32, 32), (7, 8, 9)).save(file)
    assert "the training images are all of one value in red" in refused(folder, own.load)


def test_lkca_train_trains_on_it_and_leaves_a_record(folder, tmp_path, capsys):
    arguments = ["train", "--data", str(folder), "--rows", "ViT/0.5M-LKCA", "--protocol", "smoke"]
    arguments += ["--results-root", str(tmp_path / "results")]
    assert main(arguments) == 0
    (run,), broken = records.read(tmp_path / "results/scratch")
    assert not broken and f"{run.top1:.2f} top-1" in capsys.readouterr().out
    ds = own.load(folder)
    assert (run.dataset, run.num_classes, run.data_fingerprint) == (ds.name, 3, ds.fingerprint)
    assert (run.num_test, run.image_size) == (6, 32)
    next((folder / "train/1").glob("*.png")).rename(folder / "train/9/moved.png")
    assert main(arguments) == 2  # the record is of other images
    assert "has a run on other images that are called my_flowers-2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, says",
    [
        (["--protocol", "sketch"], "there are 30 training images, fewer than a batch of 128"),
        (["--table", "6"], "has images with a class each, the rows of this table segment"),
        (["--dataset", "cifar10"], "not allowed with"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_image_is_decoded(folder, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.setattr(own.Own, "load", lambda self: pytest.fail("decoded"))
    try:
        status = main(["train", "--data", str(folder), "--results-root", str(tmp_path / "results"), *more])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and says in capsys.readouterr().err


def test_lkca_data_says_what_a_folder_has(folder, tmp_path, capsys):
    assert main(["data", str(folder), "--data-root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "my_flowers-2: your own, mean " in out and "30 training and 6 test images, 32 x 32 pixels, 3 classes" in out
    assert torch.equal(own.load(folder).test_labels, torch.tensor([0, 0, 1, 1, 2, 2]))
