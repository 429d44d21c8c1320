"""Two forced host devices for every test, so that sharding and pmap are exercised rather than skipped."""

import os

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The count of golden cases must reach the controller of xdist, which loads no conftest of a subfolder.
pytest_plugins = ["tests.parity.counter"]
