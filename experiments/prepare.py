"""Prepares a tfds set once: tfds's own downloader, array_record out; the same as `kdjax prepare`.

    python -m experiments.prepare cifar100

Needs a network and the extra `kdjax[prepare]` (TensorFlow); everything afterwards needs neither. A set that is there
already is only verified. Prints the counts and the fingerprint of the default split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kdjax import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 refused, 74 when download or disk failed."""
    return cli.main(["prepare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
