"""Folders of images by class, in memory or streamed from disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdjax.data.hold_out import carve
from kdjax.data.image_files import Listed, files_source
from kdjax.data.labels import check_num_classes
from kdjax.data.paths import CALIBRATION, existing
from kdjax.data.source import Source
from kdjax.errors import Refused, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(CALIBRATION, "val")
"""What a folder of this name, in lower case, was meant as -> what it has to be called."""
NO_CLASSES = ("__MACOSX",)
"""Folders that an unpacked archive of macOS brings along."""


def source(
    *,
    path: str | os.PathLike | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    resolution: int | None = None,
    test_examples: int | None = None,
    skip_bad: bool = False,
    feed: str = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> Source:
    """Images in folders named after their classes.

    Either `path/train/CLASS/*.png`, with `path/test` and `path/val` in the same form (`valid`, `validation` and
    `calibration` serve as `val`; without `test`, `val` is the test split, as in tfds); or one tree `path/CLASS/*.png`,
    of which a fixed fifth of every class becomes the test split. Classes are numbered by their sorted names. Folders
    inside a class are searched too, links to folders as well. Images of one channel stay so when all are; else all
    become RGB.

    Every file is read and hashed once a session and verified again whenever it is decoded, so a file that changes
    cannot give other numbers under the same name. Which files decode, and the pixel sums that normalization needs, are
    kept in `cache_dir`. Above `images.MEASURED_FULLY` images only a sample is decoded for that.

    Args:
      num_classes: checked against the number of class folders, where given.
      image_size: resize and cut to squares of that side; needed unless all images have one size.
      resolution: then means over squares, see `images.area_means`.
      test_examples: of one tree, that many for testing instead of a fifth.
      skip_bad: leave out files that cannot be decoded, and say how many, instead of refusing.
      feed: "resident" decodes into memory, "streamed" reads files when they are needed, "auto" streams above 1 GiB.

    Raises:
      Refused: no folder, no class, one class; a file that is missing or no image, by name; images of several sizes.
    """
    root = _root(path)
    classes, listed = _list(root, test_examples)
    if num_classes is not None and num_classes != len(classes):
        raise Refused(f"{root} has {len(classes)} class folders and num_classes is {num_classes!r}; leave it out.")
    check_num_classes(len(classes), classes)
    _warn_of_empty_classes(root, classes, listed)
    return files_source(
        "folder",
        listed,
        tuple(classes),
        image_size=image_size,
        resolution=resolution,
        skip_bad=skip_bad,
        feed=feed,
        cache_dir=cache_dir,
    )


def _root(path: str | os.PathLike | None) -> Path:
    if path is None:
        raise Refused("data set 'folder' needs a folder of images by class; set data.path=my_images.")
    return existing(path, expected="images in folders by class", example="my_images", folder=True)


def _list(root: Path, test_examples: int | None) -> tuple[list[str], dict[str, Listed]]:
    folders = class_folders(root)
    if (root / "val" / "val_annotations.txt").is_file():
        raise Refused(f"{root} is the archive of Tiny-ImageNet; set data.name=tiny_imagenet.")
    _refuse_misnamed(root, folders)
    if "train" not in folders:
        if misplaced := sorted({"test", *CALIBRATION} & set(folders)):
            raise Refused(
                f"{root} has {', '.join(misplaced)} and no train; expected train/CLASS/*.png beside it, or one tree of "
                "class folders."
            )
        tree = images_by_class(root, root, folders)
        test, train = carve(str(root), tree.label, test_examples)
        return folders, {"train": tree.take(train), "test": tree.take(test)}
    validation = [name for name in CALIBRATION if name in folders]
    if len(validation) > 1:
        raise Refused(f"{root} has {' and '.join(validation)}; expected one folder for calibration: remove the other.")
    if "test" not in folders and not validation:
        raise Refused(f"{root} has train and neither test nor val; expected one of them, in the same form.")
    if unused := sorted({*folders} - {"train", "test", *validation}):
        warnings.warn(f"{root} also holds {', '.join(unused)}, which nothing uses.", stacklevel=5)
    classes = class_folders(root / "train")
    listed = {"train": images_by_class(root, root / "train", classes)}
    if "test" in folders and validation:
        listed["calibration"] = images_by_class(root, root / validation[0], classes)
    if "test" not in folders:
        warnings.warn(
            f"{root} has no test folder, so {validation[0]} is the test split and calibration is held out of train.",
            stacklevel=5,
        )
    listed["test"] = images_by_class(root, root / ("test" if "test" in folders else validation[0]), classes)
    return classes, listed


def _warn_of_empty_classes(root: Path, classes: list[str], listed: dict[str, Listed]) -> None:
    empty = np.setdiff1d(np.arange(len(classes)), np.concatenate([part.label for part in listed.values()])).tolist()
    if empty:
        shown = ", ".join(classes[i] for i in empty[:5]) + (", ..." if len(empty) > 5 else "")
        warnings.warn(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no image ({shown}), and each is a class all "
            "the same; remove those that are none.",
            stacklevel=4,
        )


def _refuse_misnamed(root: Path, folders: list[str]) -> None:
    """Refuses what would become classes named Training and Testing."""
    for name in folders:
        wanted = SPLITS.get(name.lower())
        # A class may well be called training, but then its images lie in it, and not in class folders.
        if wanted is None or name in ("train", "test", *CALIBRATION) or not class_folders(root / name):
            continue
        raise Refused(
            f"{root} has a folder {name!r} of class folders, which is neither a split nor a class; expected the names "
            f"train, test and val, as they stand here: rename {name} to {wanted}, or take it away."
        )


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
      Refused: it cannot be read.
    """
    try:
        names = (entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        return sorted(name for name in names if name not in NO_CLASSES)
    except OSError as error:
        raise Refused(f"{root} cannot be read ({error.strerror}); expected a folder of class folders.") from error


def image_names(folder: Path) -> set[str]:
    """Names of the images in a folder.

    Raises:
      Refused: it cannot be read, or holds none.
    """
    try:
        names = {entry.name for entry in os.scandir(folder) if _is_image(Path(entry.name))}
    except OSError as error:
        raise Refused(f"{folder} cannot be read ({error.strerror}); expected a folder of images.") from error
    if not names:
        raise Refused(f"{folder} has no images; expected .jpg, .png or another form that Pillow reads.")
    return names


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_by_class(root: Path, split: Path, classes: list[str], *, warn: bool = True) -> Listed:
    """The images in the class folders of a split.

    Args:
      warn: of files that are no images by their names.

    Raises:
      Refused: a class folder that is not among the classes; no images.
    """
    here = class_folders(split)
    if unknown := [name for name in here if name not in classes]:
        raise Refused(
            f"{split} has the class folder {unknown[0]!r}, which train lacks; {nearest(unknown[0], classes)}"
            if classes
            else f"{split} has no class folders; expected {split}/CLASS/*.png."
        )
    files: list[str] = []
    label: list[int] = []
    left_out = 0
    for number, name in enumerate(classes):
        for path in _walk(split / name):
            if _is_image(path):
                files.append(str(path.relative_to(root)))
                label.append(number)
            else:
                left_out += 1
    if not files:
        raise Refused(f"{split} has no images in class folders; expected {split}/CLASS/*.png or .jpg.")
    if left_out and warn:
        warnings.warn(f"{split}: {left_out} files are no images by their names and were left out.", stacklevel=5)
    return Listed(root, files, np.array(label, np.int64))


def _walk(folder: Path) -> Iterator[Path]:
    home = Path(os.path.realpath(folder))
    seen = {home}

    def entered(inner: Path) -> bool:
        real = Path(os.path.realpath(inner))
        # A link to what holds this folder, or lies in it, would give the same images once more.
        around = real in home.parents or (home in real.parents and inner.is_symlink())
        if around or real in seen:
            return False
        seen.add(real)
        return True

    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in sorted(inner) if not name.startswith(".") and entered(Path(place) / name)]
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))
