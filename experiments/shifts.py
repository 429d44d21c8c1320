"""The test split after a shift: one of our corruptions, or the published folders of CIFAR-10-C and CIFAR-100-C."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import common, corruptions
from kdjax import stages
from kdjax.data.images import area_means
from kdjax.data.lazy import in_memory
from kdjax.errors import Refused, one_of
from kdjax.options import integer
from kdjax.recipes import Data
from kdjax.types import Dataset, Split

PUBLISHED = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The fifteen corruptions that the mean over CIFAR-10-C is taken of: .npy of 5 x N images, slightest first."""

WHERE = "Hendrycks & Dietterich publish them at zenodo.org/record/2535967 (CIFAR-10-C) and 3555552 (CIFAR-100-C)"


class Shift(NamedTuple):
    """A shifted test split.

    Attributes:
      severity: 1 to 5.
    """

    kind: str
    severity: int
    images: np.ndarray
    label: np.ndarray


class Shifts(NamedTuple):
    """What the test split is shifted by, checked before anything is trained.

    Attributes:
      kinds: names of the corruptions.
      dataset: the data set whose test split is shifted.
      which: its recipe section.
      folder: published files, or None for our own corruptions.
      seed: of our own.
    """

    kinds: tuple[str, ...]
    dataset: Dataset
    which: Data
    folder: Path | None
    seed: int

    def __iter__(self) -> Iterator[Shift]:  # type: ignore[override]
        for kind in self.kinds:
            for severity in corruptions.SEVERITIES:
                yield Shift(kind, severity, *self._one(kind, severity))

    def _one(self, kind: str, severity: int) -> tuple[np.ndarray, np.ndarray]:
        if self.folder is None:
            test = self.dataset.test
            return corruptions.corrupted(_images(test), kind, severity, seed=self.seed), test.label
        label = _labels(self.folder)
        n = len(label) // 5
        rows = slice((severity - 1) * n, severity * n)
        wanted = label[rows] < self.dataset.num_classes
        images = np.load(self.folder / f"{kind}.npy", mmap_mode="r", allow_pickle=False)[rows][wanted]
        if self.which.resolution:
            images = area_means(images, self.which.resolution)
        return np.asarray(images), label[rows][wanted].astype(np.int32)

    def digest(self) -> str:
        """What the shifted images depend on, as a hash."""
        about = [*self.kinds, self.dataset.fingerprint, str(self.seed), str(corruptions.VERSION)]
        if self.folder is not None:
            files = [self.folder / f"{name}.npy" for name in ("labels", *self.kinds)]
            about += [f"{path.name} {_hashed(path)}" for path in files]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()

    def sentence(self) -> str:
        """Whose corruptions these are."""
        if self.folder is not None:
            return f"Shift: {len(self.kinds)} corruptions of the published {self.folder.name}, five severities each."
        return (
            f"Shift: kdjax's own corruptions ({', '.join(self.kinds)}) at five severities, not those of CIFAR-10-C: "
            "numbers under shift are not comparable with published ones."
        )


def shifts(config: ConfigDict) -> Shifts:
    """The shifts of `config.recipe.shift` on the test split of `config.recipe.data`.

    Raises:
      Refused: an unknown corruption, with the nearest; a folder that is absent or holds other files; no images; a
        seed below 0.
    """
    which = common.recipe(config, "teacher", 0).data
    dataset, given = stages.dataset(which), config.recipe.shift
    folder = Path(given.folder).expanduser() if given.folder else None
    known = [*corruptions.KINDS]
    if folder is not None:
        label = _labels(folder)
        stored = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
        known = [kind for kind in PUBLISHED if kind in stored] if not given.corruptions else stored
        if not known:
            raise Refused(f"{folder} holds none of {', '.join(PUBLISHED)} as .npy; {WHERE}.")
    integer(0)("config.recipe.shift.seed", given.seed)
    kinds = tuple(one_of("config.recipe.shift.corruptions", kind, known) for kind in given.corruptions) or (*known,)
    made = Shifts(kinds, dataset, which, folder, int(given.seed))
    if folder is None:
        corruptions.corrupted(_images(dataset.test)[:1], kinds[0], 1)
        return made
    _of_this_set(folder, label, which)
    shape = _images(dataset.test).shape[1:]
    for kind in kinds:
        try:
            images = np.load(folder / f"{kind}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise Refused(f"{folder / f'{kind}.npy'} cannot be read as an array; fetch it again. {WHERE}.") from error
        after = images.shape[1:]
        if which.resolution and len(after) == 3 and not after[0] % which.resolution:
            after = (which.resolution, which.resolution, after[-1])
        if images.dtype != np.uint8 or len(images) != len(label) or after != shape:
            raise Refused(
                f"{folder / f'{kind}.npy'} holds {images.dtype} {list(images.shape)}; expected uint8 images like those "
                f"of {dataset.name}'s test split ({list(shape)} each), one for each of {len(label)} labels."
            )
    return made


def foreign(config: ConfigDict, test: Dataset) -> np.ndarray | None:
    """Images of another data set's test split, at most as many as ours; None where none is asked for.

    Raises:
      Refused: it is not prepared (naming folder and command), unknown, or of other image sizes.
    """
    name = config.recipe.shift.ood
    if not name:
        return None
    if name == config.recipe.data.name:
        raise Refused(f"config.recipe.shift.ood is {name!r}, the data set itself; name another one, or ''.")
    other = stages.dataset(Data(name=name, resolution=config.recipe.data.resolution))
    images, ours = _images(other.test), _images(test.test)
    if images.shape[1:] != ours.shape[1:] or images.dtype != ours.dtype:
        raise Refused(
            f"config.recipe.shift.ood is {name!r}, whose images are {images.dtype} {list(images.shape[1:])}, and "
            f"{test.name}'s are {ours.dtype} {list(ours.shape[1:])}; name a data set of that size, or ''."
        )
    return images[: len(ours)]


def _of_this_set(folder: Path, label: np.ndarray, which: Data) -> None:
    """Refuses labels that are not those of all classes of the data set, before anything is trained for them."""
    classes = stages.dataset(dataclasses.replace(which, classes=0)).num_classes
    low, high = int(label.min()), int(label.max())
    if (low, high) != (0, classes - 1):
        raise Refused(
            f"{folder / 'labels.npy'} holds labels from {low} to {high}; expected 0 to {classes - 1}, those of "
            f"{which.name}; name the folder of that data set. {WHERE}."
        )


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _images(split: Split) -> np.ndarray:
    images = in_memory(split).inputs
    if isinstance(images, Mapping):
        raise Refused("only images are shifted, and this data set holds texts; name another data set.")
    return np.asarray(images)


def _labels(folder: Path) -> np.ndarray:
    """Labels of the published files, [5 N], the same N at every severity."""
    path = folder / "labels.npy"
    if not path.is_file():
        raise Refused(f"{folder} holds no labels.npy; expected the unpacked CIFAR-10-C or CIFAR-100-C folder. {WHERE}.")
    try:
        label = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"{path} cannot be read as an array; fetch it again. {WHERE}.") from error
    if label.ndim != 1 or label.dtype.kind not in "iu" or not len(label) or len(label) % 5:
        raise Refused(f"{path} holds {label.dtype} {list(label.shape)}; expected labels of 5 x N images.")
    return label
