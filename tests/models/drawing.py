"""Variables for networks under test, without a compilation."""

import jax
import jax.numpy as jnp
import numpy as np


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def variables_of(model, x):
    """Some variables of the model, of a size that keeps activations near 1."""
    return drawn(jax.eval_shape(model.init, jax.random.key(0), x))


def drawn(shapes):
    """Some arrays of these shapes: kernels He fan-in, scales and variances 1, all others 0."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        size = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.0
        return (size * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
