"""CUD's loss for a teacher that keeps its doubts."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Int

from kdjax.losses.numerics import checked, one_minus_exp, picked, power, probability
from kdjax.options import at_least, between, flag, hyper
from kdjax.targets.simple import entropy, temper
from kdjax.types import Scalar


@hyper(
    lambda_ce=at_least(0),
    lambda_f=at_least(0),
    lambda_h=at_least(0),
    gamma=at_least(0),
    alpha_y=between(0, 1, open_low=True),
    tau=between(0, 1),
    rho=at_least(0),
    beta=at_least(0),
    stop_gate=flag(),
)
def dus(
    logits: Float[Array, "B K"],
    labels: Int[Array, "B"],
    *,
    lambda_ce: Scalar = 0.1,
    lambda_f: Scalar = 1.0,
    lambda_h: Scalar = 0.1,
    gamma: Scalar = 10.0,
    alpha_y: Scalar = 1.0,
    tau: Scalar = 0.5,
    rho: Scalar = 0.0,
    beta: Scalar = 1.0,
    stop_gate: bool = True,
) -> Float[Array, "B"]:
    """Difficulty-aware uncertainty shaping (CUD eq. 3), for the teacher.

    lambda_ce CE + lambda_f alpha_y (1 - p_y)^gamma CE - lambda_h w H(p), w = 1[p_y < tau] + rho (1 - p_y)^beta.

    Published: lambda_h = 0.1, gamma = 10, alpha_y = 1. The text that could be read does not give lambda_ce, lambda_f,
    tau, rho and beta; the defaults here are ours: with lambda_ce = 1 the focal term would hardly matter above
    p_y = 0.5, against the paper's own picture, and with lambda_ce = 0 nothing holds p_y above 0.3.

    Stop-gradient: through w by default, which is our choice too. Otherwise -lambda_h rho (1 - p_y)^beta H pays the
    model for lowering p_y itself. The indicator has no gradient either way.

    Start from an ordinarily fine-tuned teacher. Expect a slightly lower accuracy and a *higher* ECE of the teacher
    (under-confidence); the gain is the student's.

    Args:
      logits, labels: [B, K]; [B] in [0, K).
      lambda_ce, lambda_f, lambda_h, rho, beta, gamma: >= 0.
      alpha_y: in (0, 1].
      tau: in [0, 1].
      stop_gate: no gradient through w.

    Raises:
      Refused: Python numbers out of range.

    Source: Trust the uncertain teacher (CUD), arXiv 2602.12687, section 3.3.
    """
    logits, labels = checked(logits, labels)
    log_p = temper(logits, 1.0)
    l_y = picked(log_p, labels)
    focal = power(one_minus_exp(l_y), gamma)
    w = (probability(logits, labels) < tau) + rho * power(one_minus_exp(l_y), beta)
    if stop_gate:
        w = jax.lax.stop_gradient(w)
    return -(lambda_ce + lambda_f * alpha_y * focal) * l_y - lambda_h * w * entropy(log_p)
