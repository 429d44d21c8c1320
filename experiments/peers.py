"""What the train step is measured against: the same distillation step by hand in JAX, and in PyTorch eager.

Both do student and teacher forward, (1 - α) CE + α T² KL, and SGD with Nesterov momentum, and nothing else: no logs, no
registry, no mesh. A peer has `advance(n) -> loss`, which runs n steps and waits for the last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.torch_networks import Absent, network
from kdjax.types import Batch, Model, PyTree, Transform


class Hyper(NamedTuple):
    """The numbers of the step that all contestants share; KD(C)'s optimizer, and a rate at which noise is harmless."""

    T: float = 4.0
    alpha: float = 0.9
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4


class Plain:
    """A training loop as one writes it in an afternoon: one `jax.jit`, the same Flax networks, optax's SGD.

    Args:
      images, labels: one batch, ready for the network and on the device; with `transform`, the whole raw training set.
      transform: with it, step i gathers row i of `order` from the set, transforms it under a key of its own, and
        applies `prepare`.
      order: [steps, B] positions, visited round and round.
    """

    def __init__(
        self,
        student: Model,
        variables: PyTree,
        teacher: Model,
        teacher_variables: PyTree,
        images: Any,
        labels: Any,
        *,
        hyper: Hyper,
        transform: Transform | None = None,
        prepare: Callable[[Any], Any] = lambda images: images,
        order: np.ndarray | None = None,
        seed: int = 0,
    ):
        decay = optax.add_decayed_weights(hyper.weight_decay)
        optimizer = optax.chain(decay, optax.sgd(hyper.lr, hyper.momentum, nesterov=True))
        # A copy, because the step donates it and the caller may start another peer from the same numbers.
        params, stats = jax.tree.map(jnp.array, (variables["params"], variables["batch_stats"]))
        self.state = (params, stats, optimizer.init(params))
        self.at = 0
        self._order = order
        self._seed = np.uint32(seed)
        self._fixed = jax.device_put((teacher_variables, images, labels))

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state, teacher_variables, images, labels, rows, seed, at):
            params, stats, opt = state
            if transform is not None:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), at), 0)
                images, labels = prepare(transform(key, Batch(inputs=images[rows])).inputs), labels[rows]
            targets = teacher.apply(teacher_variables, images, train=False)[0].logits

            def loss(params):
                output, new = student.apply({"params": params, "batch_stats": stats}, images, train=True)
                return distillation(output.logits, labels, targets, hyper.T, hyper.alpha), new

            (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt = optimizer.update(grads, opt, params)
            return (optax.apply_updates(params, updates), stats, opt), value

        self._step = step

    def advance(self, n: int) -> float:
        """Runs n steps and waits; the last loss."""
        loss = jnp.nan
        for _ in range(n):
            rows = None if self._order is None else self._order[self.at % len(self._order)]
            self.state, loss = self._step(self.state, *self._fixed, rows, self._seed, np.int32(self.at))
            self.at += 1
        jax.block_until_ready(self.state)
        return float(loss)


def distillation(logits: Any, labels: Any, teacher_logits: Any, T: float, alpha: float) -> Any:
    """mean of (1 - α) CE(y, p) + α T² KL(q_T || p_T), the softmaxes spelled out."""
    log_p = logits - jax.nn.logsumexp(logits, -1, keepdims=True)
    cross_entropy = -jnp.take_along_axis(log_p, labels[:, None], -1)[:, 0]
    soft, hard = jax.nn.log_softmax(logits / T), jax.nn.log_softmax(teacher_logits / T)
    divergence = jnp.sum(jnp.exp(hard) * (hard - soft), -1)
    return jnp.mean((1 - alpha) * cross_entropy + alpha * T**2 * divergence)


class Torch:
    """The same step in PyTorch eager, channels-last, its batches on the device; bfloat16 by autocast.

    Args:
      student, teacher: names that `experiments.torch_networks` knows.
      images, labels: one batch, normalized [B, H, W, C] and integers, on the host; or M of them, [M, B, H, W, C] and
        [M, B], visited round and round.

    Raises:
      Absent: no torch, a network it does not know, or no CUDA build where JAX runs on a GPU.
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        num_classes: int,
        hyper: Hyper,
        precision: str,
        threads: int,
    ):
        try:
            import torch
        except ImportError:
            raise Absent("torch is not installed") from None
        gpu = jax.default_backend() == "gpu"
        if gpu and not torch.cuda.is_available():
            raise Absent("this torch has no CUDA")
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        device = torch.device("cuda" if gpu else "cpu")
        layout = {"device": device, "memory_format": torch.channels_last}
        self.torch, self.hyper, self.device = torch, hyper, device
        self.bfloat16 = precision == "bfloat16"
        self.student = network(torch, student, num_classes).to(**layout).train()
        self.teacher = network(torch, teacher, num_classes).to(**layout).eval().requires_grad_(False)
        several = np.array(images).reshape(-1, *np.shape(images)[-4:]).transpose(0, 1, 4, 2, 3)
        self.images = [torch.from_numpy(batch).to(**layout) for batch in several]
        self.labels = [torch.from_numpy(np.array(y, np.int64)).to(device) for y in np.atleast_2d(labels)]
        self.at = 0
        given = {"lr": hyper.lr, "momentum": hyper.momentum, "weight_decay": hyper.weight_decay, "nesterov": True}
        try:
            self.optimizer = torch.optim.SGD(self.student.parameters(), fused=True, **given)
        except RuntimeError:  # before PyTorch 2.4 on a CPU
            self.optimizer = torch.optim.SGD(self.student.parameters(), **given)

    def advance(self, n: int) -> float:
        """Runs n steps and waits; the last loss."""
        torch, T, alpha = self.torch, self.hyper.T, self.hyper.alpha
        functional = torch.nn.functional
        for _ in range(n):
            images, labels = (batches[self.at % len(self.images)] for batches in (self.images, self.labels))
            self.at += 1
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                with torch.no_grad():
                    targets = self.teacher(images)
                logits = self.student(images)
            soft = functional.log_softmax(logits.float() / T, 1)
            hard = functional.log_softmax(targets.float() / T, 1)
            divergence = functional.kl_div(soft, hard, reduction="batchmean", log_target=True)
            loss = (1 - alpha) * functional.cross_entropy(logits.float(), labels) + alpha * T**2 * divergence
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return float(loss.detach())


def macs(model: Model, variables: PyTree, inputs: Any) -> int:
    """Multiply-accumulates of one evaluation forward pass: convolutions and matrix products, from their shapes.

    Args:
      inputs: a prepared batch; only shapes and dtypes are used. The result is for the whole batch.
    """
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0].logits)(variables, inputs)
    return _macs(traced.jaxpr)


def _macs(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            out_channels = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += eqn.outvars[0].aval.size * kernel.size // out_channels
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += eqn.outvars[0].aval.size * int(np.prod([left[i] for i in contracted]))
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            total += _macs(inner) if hasattr(inner, "eqns") else 0
    return total
