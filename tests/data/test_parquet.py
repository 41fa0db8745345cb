"""Hugging Face's parquet copies, made here in their form; the published files have not been at hand."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from made import CIFAR10_NAMES, WNIDS, expect, images, same, write_folder, write_tiny
from PIL import Image

from lkca.data import classes
from lkca.data import images as data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(encoded, labels, image="img", label="label", names=None, **others):
    columns = {image: [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(encoded)], label: labels, **others}
    made = pa.table(columns)
    if names:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(file, made):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, file)
    return file


def refused(name, root):
    with pytest.raises(data.DataError) as error:
        data.load(name, root)
    assert "delete" not in str(error.value)
    return str(error.value)


@pytest.fixture
def arrays():
    return {"train": (images(20), np.arange(20) % 10), "test": (images(10, seed=1), np.arange(10))}


@pytest.fixture
def cifar(tmp_path, arrays, monkeypatch):
    """A small CIFAR-10 in an image folder, and a function that writes it as parquet."""
    expect(monkeypatch, "cifar10", train=20, test=10)
    known = data.load("cifar10", write_folder(tmp_path / "folder", "cifar10", arrays, CIFAR10_NAMES))

    def files(folder, shards=1, **options):
        for split, (pixels, labels) in arrays.items():
            for i in range(shards):
                made = table([*map(png, pixels[i::shards])], labels[i::shards].tolist(), **options)
                write(folder / f"{split}-{i:05d}-of-{shards:05d}.parquet", made)

    return known, files


@pytest.mark.parametrize("below", [".", "plain_text", "a/plain_text"])
@pytest.mark.parametrize("shards, names", [(1, None), (2, CIFAR10_NAMES)])
def test_cifar10_is_the_same_from_parquet(tmp_path, cifar, below, shards, names):
    known, files = cifar
    files(tmp_path / "cifar10" / below, shards, names=names)
    assert data.available("cifar10", tmp_path)
    same(known, data.load("cifar10", tmp_path))


def test_the_names_in_the_file_number_the_classes(tmp_path, cifar, arrays):
    known, files = cifar
    back = CIFAR10_NAMES[::-1]
    for split, (pixels, labels) in arrays.items():
        made = table([*map(png, pixels)], (9 - labels).tolist(), names=back)
        write(tmp_path / "cifar10" / split / "0000.parquet", made)  # as the hub's converter names them
    same(known, data.load("cifar10", tmp_path))


def test_the_hub_s_cache_is_read(tmp_path, cifar):
    known, files = cifar
    repository = tmp_path / "datasets--uoft-cs--cifar10"
    files(tmp_path / "blobs")
    snapshot = repository / "snapshots/0a1b/plain_text"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    same(known, data.load("cifar10", tmp_path))
    (repository / "snapshots/2c3d").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0a1b")
    same(known, data.load("cifar10", tmp_path))


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    """Its card calls class 26 "cra"."""
    names = list(classes.NAMES["cifar100"])
    arrays = {"train": (images(100), np.arange(100)), "test": (images(100, seed=1), np.arange(100))}
    expect(monkeypatch, "cifar100", train=100, test=100)
    for split, (pixels, labels) in arrays.items():
        card = [*names[:26], "cra", *names[27:]]
        made = table([*map(png, pixels)], labels.tolist(), label="fine_label", names=card, coarse_label=[0] * 100)
        write(tmp_path / f"a/cifar100/cifar100/{split}-00000-of-00001.parquet", made)
    ds = data.load("cifar100", tmp_path / "a")
    assert ds.classes == names and ds.classes[26] == "crab"
    same(ds, data.load("cifar100", write_folder(tmp_path / "b", "cifar100", arrays, names)))


def test_tiny_imagenet_s_valid_is_its_test_set(tmp_path, monkeypatch):
    expect(monkeypatch, "tiny-imagenet", classes=3, train=12, test=6)
    folder = write_tiny(tmp_path / "a", words=False)
    known = data.load("tiny-imagenet", tmp_path / "a")
    lines = [line.split("\t")[:2] for line in (folder / "val/val_annotations.txt").read_text().splitlines()]
    pairs = {
        "train": [(file.read_bytes(), file.parent.parent.name) for file in sorted((folder / "train").rglob("*.JPEG"))],
        "valid": [((folder / "val/images" / name).read_bytes(), wnid) for name, wnid in lines],
    }
    order = sorted(classes.NAMES["tiny-imagenet"])
    for split, samples in pairs.items():
        encoded, wnids = zip(*samples, strict=True)
        for where, names in (("b", None), ("c", sorted(WNIDS))):
            labels = [(names or order).index(wnid) for wnid in wnids]
            made = table(encoded, labels, image="image", names=names)
            write(tmp_path / where / f"tiny-imagenet/data/{split}-00000-of-00001-abc.parquet", made)
    same(known, data.load("tiny-imagenet", tmp_path / "b"))
    same(known, data.load("tiny-imagenet", tmp_path / "c"))
    spec = data.DATASETS["tiny-imagenet"]
    monkeypatch.setitem(data.DATASETS, "tiny-imagenet", replace(spec, fingerprint=known.fingerprint))
    same(known, data.load("tiny-imagenet", tmp_path / "c"))
    anew = [png(np.asarray(Image.open(io.BytesIO(encoded)))) for encoded, _ in pairs["valid"]]
    labels = [order.index(wnid) for _, wnid in pairs["valid"]]
    write(tmp_path / "b/tiny-imagenet/data/valid-00000-of-00001-abc.parquet", table(anew, labels, image="image"))
    said = refused("tiny-imagenet", tmp_path / "b")
    assert "may have been encoded anew; wanted are the published files, byte for byte" in said


def test_what_is_wrong_with_the_files_is_said(tmp_path, cifar, arrays, monkeypatch):
    _, files = cifar
    folder, labels = tmp_path / "cifar10", arrays["test"][1]
    test, encoded = folder / "test-00000-of-00001.parquet", [*map(png, arrays["test"][0])]
    files(folder)

    def says(made):
        write(test, made)
        return refused("cifar10", tmp_path)

    assert "row 9 is no class of cifar10; wanted are airplane" in says(table(encoded, [*range(9), 10]))
    assert "label -1 of row 0 is no class" in says(table(encoded, [-1] * 10))
    assert "label None of row 0 is no class" in says(table(encoded, [None] * 10))
    assert "has the columns img, y; wanted are img or image and label" in says(table(encoded, [0] * 10, label="y"))
    assert "the image of row 3 is not in the file" in says(table([*encoded[:3], None, *encoded[4:]], labels.tolist()))
    plank = [*CIFAR10_NAMES[:9], "plank"]
    assert "no class of cifar10 is called 'plank'" in says(table(encoded, [0] * 10, names=plank))
    assert "test-00000-of-00001.parquet (row 2) cannot be read" in says(
        table([*encoded[:2], b"none", *encoded[3:]], labels.tolist())
    )
    test.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert "is a pointer of Git LFS and not the data: git lfs pull" in refused("cifar10", tmp_path)
    test.write_bytes(b"PAR1")
    assert "test-00000-of-00001.parquet cannot be read as parquet" in refused("cifar10", tmp_path)
    test.rename(folder / "test-00000-of-00002.parquet")
    assert "of the 2 test files that of number 1 is missing" in refused("cifar10", tmp_path)
    (folder / "test-00000-of-00002.parquet").rename(folder / "other.parquet")
    assert "no parquet file of the test split among other.parquet, train-00000" in refused("cifar10", tmp_path)


def test_without_pyarrow_it_says_what_to_install(tmp_path, cifar, monkeypatch):
    _, files = cifar
    files(tmp_path / "cifar10")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "reading parquet needs pyarrow, which is not installed: pip install 'lkca[parquet]'" in refused(
        "cifar10", tmp_path
    )
