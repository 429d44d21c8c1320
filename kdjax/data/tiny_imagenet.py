"""Tiny-ImageNet as its archive is published: images of the validation split in one folder, their classes in a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdjax.data.folders import class_folders, image_names, images_by_class
from kdjax.data.image_files import Listed, files_source
from kdjax.data.labels import check_num_classes
from kdjax.data.paths import existing
from kdjax.data.source import Source
from kdjax.errors import Refused, nearest

ANNOTATIONS = Path("val") / "val_annotations.txt"
NAME = "tiny_imagenet"


def source(
    *,
    path: str | os.PathLike | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    resolution: int | None = None,
    skip_bad: bool = False,
    feed: str = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> Source:
    """The unpacked archive:

        wnids.txt                      one class a line
        words.txt                      class, tab, its names; may be missing
        train/CLASS/images/*.JPEG      other files there, such as CLASS_boxes.txt, are left alone
        val/images/*.JPEG
        val/val_annotations.txt        file, tab, class, and a box that is not read

    `val` is the test split, and calibration is held out of `train`; `test`, which has no labels, is not read. Classes
    are numbered by their sorted ids, as in `folders.source`, which describes the other options; they are called by
    their first name in words.txt, or by their id where there is none or another class has it too.

    Raises:
      Refused: no folder; a file of the list above that is missing or holds something else; a class that is not in
        wnids.txt, or has no folder; an image of `val` without its class, named twice, or named and not there;
        whatever the images do (`folders.source`).
    """
    if path is None:
        raise Refused(f"data set {NAME!r} needs its unpacked archive; set data.path=tiny-imagenet-200.")
    root = existing(path, expected="the unpacked archive of Tiny-ImageNet", example="tiny-imagenet-200", folder=True)
    classes = _classes(root)
    if num_classes is not None and num_classes != len(classes):
        raise Refused(
            f"{root / 'wnids.txt'} has {len(classes)} classes and num_classes is {num_classes!r}; leave it out."
        )
    folders = class_folders(root / "train")
    for name in folders:
        _known(root / "train", "the class folder", name, classes)
    if missing := [name for name in classes if name not in folders]:
        raise Refused(
            f"{root / 'train'} has no folder {missing[0]!r}, which is in wnids.txt; expected one for each class: "
            "unpack the archive again."
        )
    names = _names(root, classes)
    check_num_classes(len(classes), names)
    return files_source(
        NAME,
        {
            "train": images_by_class(root, root / "train", classes, warn=False),
            "test": _validation(root, classes),
        },
        names,
        image_size=image_size,
        resolution=resolution,
        skip_bad=skip_bad,
        feed=feed,
        cache_dir=cache_dir,
    )


def _lines(path: Path, holds: str) -> list[list[str]]:
    """The values of each line that is not empty, split at tabs."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{path} cannot be read ({reason}); expected {holds}: unpack the archive again.") from error
    return [[value.strip() for value in line.split("\t")] for line in text.splitlines() if line.strip()]


def _classes(root: Path) -> list[str]:
    path = root / "wnids.txt"
    classes = [line[0] for line in _lines(path, "one class a line, such as n01443537")]
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise Refused(f"{path} has the class {twice[0]!r} twice; expected each once.")
    return sorted(classes)


def _known(where: Path, what: str, name: str, classes: list[str]) -> None:
    if name not in classes:
        raise Refused(f"{where} has {what} {name!r}, which is not in wnids.txt; {nearest(name, classes)}")


def _names(root: Path, classes: list[str]) -> tuple[str, ...]:
    path = root / "words.txt"
    words: Mapping[str, str] = {}
    if path.is_file():
        words = {line[0]: line[1] for line in _lines(path, "a class, a tab and its names a line") if len(line) > 1}
    first = [words.get(name, name).split(",")[0].strip() or name for name in classes]
    return tuple(name if first.count(word) > 1 else word for name, word in zip(classes, first, strict=True))


def _validation(root: Path, classes: list[str]) -> Listed:
    """The images of `val`, class by class and by name within a class."""
    table, folder = root / ANNOTATIONS, root / "val" / "images"
    there, label = image_names(folder), dict[str, int]()
    for number, line in enumerate(_lines(table, "a file, a tab and its class a line"), start=1):
        if len(line) < 2 or not all(line[:2]):
            raise Refused(f"{table} has {' '.join(line)!r} in line {number}; expected a file, a tab and its class.")
        file, name = line[:2]
        _known(table, f"in line {number} the class", name, classes)
        if file in label:
            raise Refused(f"{table} names {file} a second time in line {number}; expected each image once.")
        label[file] = classes.index(name)
    if absent := sorted(label.keys() - there):
        raise Refused(
            f"{table} names {absent[0]}, which is not in {folder} ({len(absent)} such files); expected every file that "
            "it names: unpack the archive again, or take the lines out."
        )
    if unnamed := sorted(there - label.keys()):
        raise Refused(
            f"{folder} has {unnamed[0]}, whose class {table.name} does not say ({len(unnamed)} such files); expected a "
            "line for each image: add it, or remove the file."
        )
    files = sorted(label, key=lambda file: (label[file], file))
    places = [str((folder / file).relative_to(root)) for file in files]
    return Listed(root, places, np.array([label[file] for file in files], np.int64))
