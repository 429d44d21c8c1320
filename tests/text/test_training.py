"""Six steps of AdamW on a golden network: decay mask, warm-up, linear decay and clipping of `kdjax.optim`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import optim
from tests.processes import but_first
from tests.text import golden, networks

pytestmark = pytest.mark.fused


@pytest.mark.parametrize("dtype", but_first(golden.DTYPES))
def test_training(dtype):
    case = golden.read(golden.index()["training"])
    arrays, limits, o, s = (case[key] for key in ("arrays", "tolerance", "optimizer", "schedule"))
    arrays, limits = golden.arrays(arrays), limits[dtype]
    shape = {"schedule": "linear", "lr": o["lr"], "warmup_steps": s["warmup_steps"], "total_steps": s["total_steps"]}
    optimizer = optim.build(
        name="adamw",
        momentum=o["b1"],
        weight_decay=o["weight_decay"],
        decay_mask="kernels",
        clip_norm=o["clip_norm"],
        **shape,
    )
    rate = optim.schedule(**shape)
    with jax.enable_x64(dtype == "float64"):
        model, params = networks.network(case["model"], dtype)

        def total(params, inputs, label):
            return networks.mean_loss(model.apply({"params": params}, inputs, train=False)[0].logits, label)

        @networks.compiled
        def step(params, state, inputs, label):
            loss, grads = jax.value_and_grad(total)(params, inputs, label)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss, optax.tree.norm(grads)

        state = optimizer.init(params)
        for i in range(case["steps"]):
            label = jnp.asarray(arrays[f"in/{i}/label"])
            golden.close(rate(i), arrays["lr"][i], f"learning rate of step {i}", rtol=1e-6)
            params, state, loss, norm = step(params, state, networks.inputs(arrays, f"in/{i}/"), label)
            golden.close(loss, arrays["loss"][i], f"loss of step {i}", atol=limits["loss"])
            golden.close(norm, arrays["grad_norm"][i], f"gradient of step {i}", atol=limits["grad_norm"])
        found = networks.in_file_layout(networks.load(case["model"]), params)
    assert {f"final/{name}" for name in found} == {key for key in arrays if key.startswith("final/")}
    for name, array in found.items():
        # The key projection's bias has no effect: softmax does not see it, and Adam makes full steps of rounding noise.
        if not name.endswith(("key.bias", "k_lin.bias")):
            golden.close(array, arrays[f"final/{name}"], name, atol=limits["final"])
    assert np.abs(found["classifier.bias"]).max() < 10
    golden.compared("text training", f"training-{dtype}")
