"""The plane of three classes: penultimate features as Müller, Kornblith and Hinton draw them, and what is seen there.

The plane goes through the columns w_a, w_b, w_c of the last layer's weights. With z = Wᵀx + b its coordinates of an
example need no features: x·(w_j - w_a) = (z_j - b_j) - (z_a - b_a), and an orthonormal basis of the two differences is
a 2x2 change of coordinates.

Source: Müller, Kornblith & Hinton, When does label smoothing help?, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from kdjax.errors import Refused


class Plane(NamedTuple):
    """The coordinates of a plane through three class weights.

    Attributes:
      classes: a, b, c.
      differences: [F, 2], w_b - w_a and w_c - w_a.
      bias: [3], the biases of the three logits.
    """

    classes: tuple[int, int, int]
    differences: np.ndarray
    bias: np.ndarray


def plane(head: Any, classes: Sequence[int]) -> Plane:
    """The plane of three classes.

    Args:
      head: {"kernel": [F, K], "bias": [K]} of the last layer.

    Raises:
      Refused: other than three different classes; weights on one line.
    """
    if len(classes) != 3 or len({*classes}) < 3:
        raise Refused(f"the plane is of the classes {tuple(classes)}; expected three different ones.")
    kernel = np.asarray(head["kernel"], np.float64)
    weights = kernel.reshape(-1, kernel.shape[-1])[:, list(classes)]
    differences = weights[:, 1:] - weights[:, :1]
    if np.linalg.matrix_rank(differences) < 2:
        raise Refused(f"the weights of the classes {tuple(classes)} lie on one line, so that they span no plane.")
    bias = np.asarray(head.get("bias", np.zeros(kernel.shape[-1])), np.float64)[list(classes)]
    a, b, c = classes
    return Plane((a, b, c), differences, bias)


def projected(logits: Float[np.ndarray, "N K"], of: Plane) -> Float[np.ndarray, "N 2"]:
    """Coordinates x·q of the penultimate features x on an orthonormal basis q of the plane's directions.

    The first axis points from w_a to w_b, and w_c lies above it. In units of the features.
    """
    z = np.asarray(logits, np.float64)[:, list(of.classes)] - of.bias
    _, triangle = np.linalg.qr(of.differences)
    signs = np.sign(np.diag(triangle))
    return (z[:, 1:] - z[:, :1]) @ np.linalg.inv(triangle * signs[:, None])


def shape(points: Float[np.ndarray, "N 2"], label: Int[np.ndarray, "N"], classes: Sequence[int]) -> dict[str, float]:
    """What the picture shows, as numbers, in units of the features.

    Returns:
      `plane_spread`: root mean square distance of an example from the middle of its class, the mean of three classes;
      `plane_near`: distance of the middles of a and b, the classes that look alike; `plane_far`: the mean distance of
      c's middle from theirs; `plane_ratio`: spread over the mean of the three distances; `plane_alike`: near over far.

    Raises:
      Refused: a class without examples.
    """
    groups = [points[label == c] for c in classes]
    if empty := [c for c, group in zip(classes, groups, strict=True) if not len(group)]:
        raise Refused(f"the test split has no example of class {empty[0]}; show another one.")
    a, b, c = (group.mean(0) for group in groups)
    middles = zip(groups, (a, b, c), strict=True)
    spread = float(np.mean([np.sqrt(((group - middle) ** 2).sum(1).mean()) for group, middle in middles]))
    near = float(np.linalg.norm(a - b))
    far = float((np.linalg.norm(a - c) + np.linalg.norm(b - c)) / 2)
    return {
        "plane_spread": spread,
        "plane_near": near,
        "plane_far": far,
        "plane_ratio": spread / max((near + 2 * far) / 3, 1e-30),
        "plane_alike": near / max(far, 1e-30),
    }
