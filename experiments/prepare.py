"""Prepares a tfds set once: tfds's own downloader, array_record out.

    python -m experiments.prepare cifar100 [--data_dir FOLDER]

Needs a network and the extra `kdjax[prepare]` (TensorFlow); everything afterwards needs neither. A set that is there
already is only verified. Prints the counts and the fingerprint of the default split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kdjax import data
from kdjax.errors import Refused


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 refused, 74 when download or disk failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="tfds name: cifar10, cifar100, name/config, name:version")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    parser.add_argument("--cache_dir", help="default: $KDJAX_CACHE, else $XDG_CACHE_HOME/kdjax, else ~/.cache/kdjax")
    args = parser.parse_args(argv)
    try:
        done = data.prepare(args.name, args.data_dir)
        ready = data.load(args.name, data_dir=args.data_dir, cache_dir=args.cache_dir)
    except Refused as refusal:
        print(f"prepare: {refusal}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"prepare: {args.name} could not be downloaded or written: {error}", file=sys.stderr)
        return 74
    sizes = [len(split.label) for split in (ready.train, ready.calibration, ready.test)]
    print(
        f"prepare: {args.name} {'prepared' if done else 'was there already'}, verified: {sizes[0]:,} train, "
        f"{sizes[1]:,} calibration, {sizes[2]:,} test examples in {ready.num_classes} classes; "
        f"fingerprint {ready.fingerprint}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
