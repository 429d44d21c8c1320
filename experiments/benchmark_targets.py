"""Accelerators to compile for without having one: their compilers run ahead of time, on any machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from kdjax.errors import Refused, one_of

# The fields of XLA's GpuTargetConfig that its compiler reads, for an H100 SXM.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
    """An accelerator, several of them where `devices` says so.

    Attributes:
      package: the module whose presence means that its compiler is here.
      extra: of kdjax, which installs it.
      flops: compute dtype -> dense operations a second of one device, from its maker's data sheet.
      bandwidth: bytes a second between one device and its memory, likewise.
      memory: bytes of one device.
      launch: seconds between the starts of two kernels in one stream; 0 where a program is one kernel.
    """

    platform: str
    topology: str
    arguments: Mapping[str, Any]
    devices: int
    package: str
    extra: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: int
    launch: float


def _h100(devices: int) -> Target:
    shape = f"1x1x{devices}"
    return Target(
        platform="cuda",
        topology=shape,
        arguments={"topology": shape, "target_config": _H100},
        devices=devices,
        package="jax_plugins.xla_cuda12",
        extra="cuda",
        # float32 products and convolutions run as TF32 at JAX's default precision.
        flops={"bfloat16": 989e12, "float32": 495e12},
        bandwidth=3.352e12,
        memory=84_942_979_072,
        launch=2e-6,
    )


def _v5e(devices: int) -> Target:
    return Target(
        platform="tpu",
        topology="v5e:2x2",
        arguments={},
        devices=devices,
        package="libtpu",
        extra="tpu",
        # float32 products and convolutions take bfloat16 operands at JAX's default precision.
        flops={"bfloat16": 197e12, "float32": 197e12},
        bandwidth=0.819e12,
        memory=16 * 2**30,
        launch=0.0,
    )


TARGETS: Mapping[str, Target] = {"h100": _h100(1), "h100x8": _h100(8), "v5e": _v5e(1), "v5e:2x2": _v5e(4)}


def find(name: str) -> Target:
    """The target of that name, whose compiler is installed.

    Raises:
      Refused: an unknown name, or a compiler that is not here, with what installs it.
    """
    target = TARGETS[one_of("--target", name, TARGETS)]
    if not installed(target.package):
        raise Refused(
            f"--target is {name!r} and its compiler, {target.package}, is not installed; type "
            f"pip install 'kdjax[{target.extra}]'. No {'GPU' if target.platform == 'cuda' else 'TPU'} is needed."
        )
    return target


def installed(package: str) -> bool:
    """Whether a compiler is here; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def mesh(target: Target) -> Mesh:
    """The mesh `data` over devices of the target, for which programs can be compiled and not run."""
    # libtpu asks the metadata server of a cloud machine otherwise, and holds a lock that other processes wait for.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(target.topology, target.platform, **target.arguments)
    return Mesh(np.asarray(topology.devices[: target.devices]), ("data",))
