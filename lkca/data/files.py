"""What lies in a folder or a zip: its regular files, without what file managers and other systems leave beside them.

Links are followed, nothing but a regular file is ever opened, and what is found can be said in words.
"""

import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

IMAGES = {  # ending: format, as Pillow names it
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".bmp": "BMP", ".dib": "BMP",
    ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF",
}  # fmt: skip
READ = f"what is read ends in {', '.join(IMAGES)}"
TEXTS = {".txt", ".csv", ".tsv", ".json", ".md", ".xml", ".yaml", ".yml", ".html"}  # that lie beside images
UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)
_COMPANIONS = {  # of Macs, Windows, network storage and Python; hidden ones, with a dot, are so by their name
    "__macosx", "icon\r", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "$recycle.bin", "recycler", "system volume information", "@eadir", "@recycle", "@recently-snapshot", "@tmp",
    "#recycle", "#snapshot", "~snapshot", "lost+found", "__pycache__",
}  # fmt: skip


class DataError(ValueError):
    """A data set that is missing, damaged or not what it should be: what was found, what is wanted, and where."""


def is_content(name: str) -> bool:
    """Whether a file or folder of that name is content: neither hidden nor a companion that some system left."""
    return not name.startswith(".") and name.lower() not in _COMPANIONS and not name.endswith("~")


def is_image(name: str) -> bool:
    """Whether a file's ending is that of an image that is read."""
    return ending(name) in IMAGES


def ending(name: str) -> str:
    """``.png`` of ``folder/A.PNG``, empty if there is none."""
    return PurePosixPath(name).suffix.lower()


def ends(names: Iterable[str]) -> str:
    """How files end, in words: ``20 files end in .xyz, 1 in .txt``; ``there are no files`` of none."""
    counts = Counter(ending(name) or "no ending" for name in names).most_common(3)
    if not counts:
        return "there are no files"
    (first, n), *others = counts
    words = [f"{n:,} file{'s end' if n > 1 else ' ends'} in {first}", *(f"{n:,} in {end}" for end, n in others)]
    return ", ".join(words)


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many others there are."""
    names = list(names)
    rest = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def entries(folder: Path) -> list[str]:
    """What a folder has in it, companions left out, sorted; nothing if it is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if is_content(name))
    except OSError:
        return []


@dataclass(frozen=True)
class Tree:
    """The files of a folder or a zip.

    ``names`` are relative, with "/" between folders, in order; ``odd`` says of each thing that is no regular file what
    it is instead. ``content`` opens one; use `read`.
    """

    path: Path
    names: tuple[str, ...]
    odd: Mapping[str, str]
    content: Callable[[str], bytes]

    def read(self, name: str) -> bytes:
        """A file's bytes; raises DataError, without opening it, on what is no regular file."""
        if name in self.odd:
            raise DataError(f"{self.path}/{name} is {self.odd[name]}: a regular file is wanted there")
        return self.content(name)

    def text(self, name: str) -> str:
        """A text file; raises DataError if it cannot be read, or is no UTF-8."""
        try:
            return self.read(name).decode()
        except DataError:
            raise
        except UNREADABLE as error:
            raise DataError(f"{self.path}/{name} cannot be read as text ({error}): a sound copy is wanted") from error


def tree(path: Path) -> Tree:
    """What a folder or a zip holds, nothing read but the zip's directory.

    Raises DataError on a folder that cannot be listed, and on a zip that cannot be opened.
    """
    if path.is_dir():
        found = dict(walk(path))
        odd = {name: what for name, what in found.items() if what}
        return Tree(path, tuple(sorted(found)), odd, lambda name: (path / name).read_bytes())
    if not path.is_file():
        raise DataError(f"{path} is {_kind(str(path))}: a folder or a zip is wanted there")
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be opened as a zip ({error})") from error
    inside = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}
    names = sorted(name for name in inside if all(map(is_content, name.split("/"))))
    return Tree(path, tuple(names), {}, partial(_unzipped, archive, inside))


def _unzipped(archive: zipfile.ZipFile, inside: Mapping[str, zipfile.ZipInfo], name: str) -> bytes:
    return archive.read(inside[name])


def walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file below a folder, through links, by its relative name; beside it what it is if it is no regular file.

    A link to a folder that it lies in is not followed. Raises DataError on a folder that cannot be listed.
    """
    yield from _walk(str(folder), "", ())


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    try:
        here = os.stat(folder)
        inside = [entry for entry in os.scandir(folder) if is_content(entry.name)]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror or error}): a readable folder is wanted"
        ) from error
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in inside:
        name = prefix + entry.name
        try:
            if entry.is_dir():
                yield from _walk(entry.path, f"{name}/", (*above, (here.st_dev, here.st_ino)))
            else:
                yield name, "" if entry.is_file() else _kind(entry.path)
        except OSError:  # a link to itself
            yield name, _kind(entry.path)


def _kind(path: str) -> str:
    """What a path is that is no regular file, in words."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        if os.path.islink(path):
            return f"a link to {os.readlink(path)}, which is not there"
        return "not there"
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def checked(file: Path) -> Path:
    """The file; raises DataError unless it is a regular one, or a link to one."""
    if not file.is_file():
        raise DataError(f"{file} is {_kind(str(file))}: a regular file is wanted there")
    return file


def natural(names: Iterable[str]) -> list[str]:
    """Sorted; names that are all numbers by their value, so that 10 comes after 9."""
    names = list(names)
    if all(re.fullmatch("[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
