"""The distillation step of texts in PyTorch eager: the same BERT networks, from the same parameters, by AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.peers import Absent, Hyper
from kdjax.models import transformer_names
from kdjax.types import PyTree
from kdjax.variables import named


class Torch:
    """Student and teacher forward, (1 - α) CE + α T² KL, clipping at norm 1 and AdamW; bfloat16 by autocast.

    Attention is `scaled_dot_product_attention`, what eager PyTorch has fastest.

    Args:
      student, teacher: (name `bert_<L>l_<H>`, model options, parameters as `kdjax.models` has them).
      inputs, labels: one batch, {"input_ids", "attention_mask"} [B, S] and integers [B], on the host.

    Raises:
      Absent: no torch, a network of another family, or no CUDA build where JAX runs on a GPU.
    """

    def __init__(
        self,
        student: tuple[str, Mapping[str, Any], PyTree],
        teacher: tuple[str, Mapping[str, Any], PyTree],
        inputs: Mapping[str, np.ndarray],
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
        self.torch, self.hyper, self.device = torch, hyper, device
        self.bfloat16 = precision == "bfloat16"
        nets = [torch_bert(torch, name, options, num_classes) for name, options, _ in (student, teacher)]
        for net, (_, _, params) in zip(nets, (student, teacher), strict=True):
            load(torch, net, params)
        self.student = nets[0].to(device).train()
        self.teacher = nets[1].to(device).eval().requires_grad_(False)
        self.inputs = {key: torch.from_numpy(np.array(value, np.int64)).to(device) for key, value in inputs.items()}
        self.labels = torch.from_numpy(np.array(labels, np.int64)).to(device)
        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": hyper.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, hyper.lr, (hyper.momentum, 0.999))

    def advance(self, n: int) -> float:
        """Runs n steps and waits; the last loss."""
        torch, T, alpha = self.torch, self.hyper.T, self.hyper.alpha
        functional = torch.nn.functional
        for _ in range(n):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                with torch.no_grad():
                    targets = self.teacher(self.inputs)
                logits = self.student(self.inputs)
            soft = functional.log_softmax(logits.float() / T, 1)
            hard = functional.log_softmax(targets.float() / T, 1)
            divergence = functional.kl_div(soft, hard, reduction="batchmean", log_target=True)
            loss = (1 - alpha) * functional.cross_entropy(logits.float(), self.labels) + alpha * T**2 * divergence
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self.optimizer.step()
        return float(loss.detach())


def torch_bert(torch: Any, name: str, options: Mapping[str, Any], num_classes: int) -> Any:
    """BERT of `kdjax.models.transformer` as a PyTorch module whose parts have the same names.

    Raises:
      Absent: a network of another family.
    """
    attributes = transformer_names.named(name)
    if attributes is None or attributes["family"] != "bert":
        raise Absent(f"the PyTorch peer of texts knows bert_<L>l_<H> only, not {name}")
    net = transformer_names.Architecture(**{**attributes, **options})
    nn, functional = torch.nn, torch.nn.functional
    width, heads = net.hidden_size, net.num_attention_heads

    def norm() -> Any:
        return nn.LayerNorm(width, eps=net.layer_norm_eps)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, net.intermediate_size), nn.Linear(net.intermediate_size, width)
            self.attention_norm, self.output_norm = norm(), norm()
            self.drop = nn.Dropout(net.hidden_dropout_prob)

        def forward(self, x: Any, mask: Any) -> Any:
            b, s, _ = x.shape
            q, k, v = (f(x).view(b, s, heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
            rate = net.attention_probs_dropout_prob if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
            h = self.attention_norm(x + self.drop(self.out(mixed.transpose(1, 2).reshape(b, s, width))))
            return self.output_norm(h + self.drop(self.down(functional.gelu(self.up(h)))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tables = {
                "word": nn.Embedding(net.vocab_size, width),
                "position": nn.Embedding(net.max_position_embeddings, width),
                "segment": nn.Embedding(net.type_vocab_size, width),
            }
            self.embed = nn.ModuleDict({**tables, "norm": norm()})
            for i in range(net.num_hidden_layers):
                setattr(self, f"layer{i + 1}", Layer())
            self.pool, self.head = nn.Linear(width, width), nn.Linear(width, num_classes)
            self.drop, self.last = nn.Dropout(net.hidden_dropout_prob), nn.Dropout(net.classifier_dropout)

        def forward(self, inputs: Mapping[str, Any]) -> Any:
            ids = inputs["input_ids"]
            at = torch.arange(ids.shape[1], device=ids.device)
            x = self.embed["word"](ids) + self.embed["segment"](torch.zeros_like(ids)) + self.embed["position"](at)
            x = self.drop(self.embed["norm"](x))
            mask = inputs["attention_mask"].bool()[:, None, None, :]
            for i in range(net.num_hidden_layers):
                x = getattr(self, f"layer{i + 1}")(x, mask)
            return self.head(self.last(torch.tanh(self.pool(x[:, 0]))))

    return Network()


def load(torch: Any, network: Any, params: PyTree) -> None:
    """Copies parameters into the module, every one: kernels are stored [in, out] here and [out, in] there."""
    own = dict(network.named_parameters())
    leaves = named(params)
    assert len(own) == len(leaves)
    for path, leaf in leaves.items():
        node, _, kind = path.replace("/", ".").rpartition(".")
        array = np.asarray(leaf, np.float32)
        target = own[f"{node}.{'bias' if kind == 'bias' else 'weight'}"]
        array = array.T if kind == "kernel" else array
        assert tuple(target.shape) == array.shape
        target.data = torch.from_numpy(array.copy())
