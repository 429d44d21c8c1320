"""Patient KD and TinyBERT: what their papers do with the layers of a transformer, beside the logits."""

from __future__ import annotations

import math

import jax.numpy as jnp

from kdjax import losses
from kdjax.losses import features
from kdjax.objectives.core import Objective, Terms, blend, stateless
from kdjax.objectives.features import evenly, layer_names, on_features
from kdjax.objectives.terms import teacher_logits
from kdjax.options import above, at_least, between, choice, hyper
from kdjax.types import Scalar


@hyper(
    layers=layer_names,
    kd=at_least(0),
    beta=at_least(0),
    T=above(0),
    T_c=above(0),
    normalization=choice("code", "paper"),
)
def pkd(
    *,
    layers: tuple[str, ...] = (),
    kd: Scalar = 0.5,
    beta: Scalar = 100.0,
    T: Scalar = 10.0,
    T_c: Scalar = 1.0,
    normalization: str = "code",
) -> Objective:
    """Patient KD: kd·T²·KL(teacher ‖ student at T) + beta·Σ_l ‖h_s/|h_s| - h_t/|h_t|‖², h the state of the first token.

    With the label term's weight 1 - kd this is the paper's loss, whose α is `kd`.

    Args:
      layers: "student:teacher" pairs of features [B, D]; () sets a transformer's layer l beside the teacher's
        l·L_t/L_s and leaves the last layer out (PKD-Skip: "cls1:cls3", "cls2:cls6", "cls3:cls9" for 4 and 12 layers),
        and compares all common names of other networks. Where the widths differ, a learned matrix comes first; the
        paper's students are as wide as their teachers.
      kd: weight of the term on logits, >= 0.
      beta: weight of the term on layers, >= 0. The authors search 10 to 1000, in units of their code.
      T, T_c: temperature of both networks, and of the teacher alone.
      normalization: "code": the mean over layers and over the D entries of a feature (all that it has, where it is no
        vector), as the authors compute it; "paper": the sums of the formula, D times the number of layers as large.

    The authors' code divides the Kullback-Leibler term by the number of classes as well; this does not.

    Source: Sun et al., EMNLP 2019, arXiv 1908.09355; intersun/PKD-for-BERT-Model-Compression.
    """

    def patience(student, teacher):
        value = features.pkd(student, teacher)
        return value if normalization == "paper" else value / math.prod(student.shape[1:])

    def logits(batch, output, clock):
        return losses.kd(output.logits, teacher_logits(batch, output, "pkd", T_c), T=T)

    usual = evenly("pkd", "cls", 1, last=False)
    layer = on_features("pkd_layers", patience, layers, usual=usual, average=normalization == "code")
    return blend((kd, stateless("pkd_logits", logits)), (beta, layer))


@hyper(
    layers=layer_names,
    scores=layer_names,
    first_stage=between(0, 1, open_high=True),
    T=above(0),
    T_c=above(0),
)
def tinybert(
    *,
    layers: tuple[str, ...] = (),
    scores: tuple[str, ...] = (),
    first_stage: Scalar = 0.75,
    T: Scalar = 1.0,
    T_c: Scalar = 1.0,
) -> Objective:
    """TinyBERT's task distillation: first the layers, then the logits, and no labels.

        progress <  first_stage:  Σ_l mean (W h_s,l - h_t,l)² + Σ_l mean (a_s,l - a_t,l)²
        progress >= first_stage:  KL(teacher ‖ student at T) / K

    The authors run the two stages one after the other, each with a learning rate schedule of its own; here one schedule
    goes through both.

    Args:
      layers: "student:teacher" pairs of hidden states; () sets a transformer's layer l = 0 (the embedding) to L_s
        beside the teacher's l·L_t/L_s, and compares all common names of other networks. One learned matrix W, shared by
        the layers, where the widths differ.
      scores: the same for attention [B, heads, S, S]; () takes the scores before the softmax of layers 1 to L_s, and
        none of other networks. Where the numbers of heads differ, a learned matrix mixes the student's; the paper's
        students have as many as their teachers.
      first_stage: the share of the run that learns the layers, in [0, 1).
      T, T_c: temperature of both networks, and of the teacher alone.

    The authors' code compares padding too, and its cross-entropy is the divergence here plus the teacher's entropy.

    Source: Jiao et al., Findings of EMNLP 2020, arXiv 1909.10351; TinyBERT of huawei-noah/Pretrained-Language-Model,
    `task_distill.py`.
    """

    def last(batch, output, clock):
        t = teacher_logits(batch, output, "tinybert", T_c)
        T_ = jnp.asarray(T, t.dtype)
        return losses.kd(output.logits, t, T=T_) / (T_**2 * t.shape[-1])

    names = "tinybert_hidden", "tinybert_attention", "tinybert_logits"
    hidden = on_features(names[0], features.hidden_state, layers, usual=evenly("tinybert", "layer", 0), shared=True)
    heads = on_features(
        names[1],
        features.attention,
        scores,
        axes=4,
        width=1,
        usual=evenly("tinybert", "scores", 1, option="scores"),
        optional=True,
    )
    logits = stateless(names[2], last)

    def apply(params, state, batch, output, clock):
        early = (clock.progress < first_stage).astype(jnp.float32)
        terms, state = blend((early, hidden), (early, heads), (1 - early, logits)).apply(
            params, state, batch, output, clock
        )
        return Terms(terms.losses, {**terms.logs, "tinybert_first_stage": early}), state

    return Objective(blend((1.0, hidden), (1.0, heads), (1.0, logits)).init, apply)
