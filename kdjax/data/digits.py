"""scikit-learn's handwritten digits: real data that needs no download."""

from __future__ import annotations

import numpy as np

from kdjax.data import checks
from kdjax.data.order import normal, permutation
from kdjax.data.source import Source
from kdjax.errors import Refused, within

TEST_EXAMPLES = 797  # leaves a round 1,000 for train and calibration


def source(*, noise: float = 0.0, noise_seed: int = 0, test_examples: int | None = None) -> Source:
    """1,797 images of 8x8 gray levels 0 ... 16, ten classes, made ambiguous by noise.

    Inputs are float32 [N, 8, 8, 1]: levels / 16, so in [0, 1], plus N(0, noise^2). The noise
    is drawn once for every image of the set, not clipped (clipping would give away which pixels were near the edge),
    and belongs to the data: it is the same in every epoch, for every split seed and number of training examples.

    The set has no official split. A fixed permutation (the same for all seeds) gives the test split; its writers are
    mixed with those of train, so this is an easier test than the original one by writer.

    Args:
      noise: standard deviation in units of the pixel range; >= 0.
      noise_seed: of the draw.
      test_examples: size of the test split; the rest is for train and calibration. 797 if not given.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its test part), as shipped
    by scikit-learn.
    """
    from sklearn.datasets import load_digits

    within("noise", noise, 0.0)
    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[..., None]
    if noise:
        images = images + np.float32(noise) * normal(images.shape, "noise", noise_seed)
    size = TEST_EXAMPLES if test_examples is None else test_examples
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= len(images) - 2:
        raise Refused(
            f"test_examples is {size!r}; expected an integer in [1, {len(images) - 2}]: digits has {len(images)} "
            "images in all, and train and calibration need some."
        )
    order = permutation(len(images), "test", 0)
    test, train = np.sort(order[:size]), np.sort(order[size:])
    return Source(
        name="digits",
        num_classes=10,
        train=checks.as_split("digits train", (images[train], data.target[train], train)),
        test=checks.as_split("digits test", (images[test], data.target[test], test)),
        label_names=tuple(str(name) for name in data.target_names),
        calibration_split="random",
    )
