"""Small data sets of the real formats, for the tests of `lkca.data`."""

import hashlib
import zipfile
from dataclasses import fields, replace

import numpy as np
import torch
from PIL import Image

from lkca.data import images as data

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WNIDS = ["n02124075", "n01443537", "n04540053"]  # out of order, as wnids.txt is
WORDS = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat", "n04540053": "volleyball"}


def expect(monkeypatch, name, **changes):
    monkeypatch.setitem(data.DATASETS, name, replace(data.DATASETS[name], fingerprint=None, **changes))


def images(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def write_folder(root, name, arrays, names, suffix="png"):
    """`arrays`: split -> (images, labels). File names say nothing about the order."""
    for split, (pixels, labels) in arrays.items():
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = root / name / split / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{hashlib.md5(bytes([i])).hexdigest()}.{suffix}")
    return root


def write_tiny(root, words=True):
    """The original layout with three classes, four training and two validation images each."""
    folder = root / "tiny-imagenet-200"
    pixels = images(18, 64)
    lines = []
    for c, wnid in enumerate(WNIDS):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(4):
            Image.fromarray(pixels[c * 4 + i]).save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (folder / "val" / "images").mkdir(parents=True, exist_ok=True)
        for i in range(2):
            Image.fromarray(pixels[12 + c * 2 + i]).save(folder / "val" / "images" / f"val_{c}{i}.JPEG")
            lines.append(f"val_{c}{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "test" / "images").mkdir(parents=True)
    Image.fromarray(pixels[0]).save(folder / "test" / "images" / "test_0.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    if words:
        (folder / "words.txt").write_text("".join(f"{wnid}\t{word}\n" for wnid, word in WORDS.items()))
    return folder


def zip_tiny(folder, root):
    root.mkdir()
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as z:
        for file in sorted(folder.rglob("*"), reverse=True):
            z.write(file, file.relative_to(folder.parent))
    return root


def same(a, b):
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, f.name
