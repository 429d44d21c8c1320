"""`kdjax prepare`: a public data set is written once, so that reading it needs neither network nor TensorFlow."""

from __future__ import annotations

from kdjax import data


def prepare(name: str, data_dir: str | None, cache_dir: str | None) -> list[str]:
    """Prepares a tfds set by tfds's own downloader, array_record out; one that is there already is only verified.

    Args:
      name: cifar10, cifar100, name/config or name:version.
      data_dir: by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      cache_dir: by default $KDJAX_CACHE, else $XDG_CACHE_HOME/kdjax, else ~/.cache/kdjax.

    Returns:
      The counts and the fingerprint of the default split, to print.

    Raises:
      Refused: an unknown name, TensorFlow is absent, or what is there is prepared in another form.
      OSError: the download or the disk failed.
    """
    try:
        done = data.prepare(name, data_dir)
        ready = data.load(name, data_dir=data_dir, cache_dir=cache_dir)
    except OSError as error:
        raise OSError(f"{name} could not be downloaded or written: {error}") from error
    sizes = [len(split.label) for split in (ready.train, ready.calibration, ready.test)]
    return [
        f"prepare: {name} {'prepared' if done else 'was there already'}, verified: {sizes[0]:,} train, "
        f"{sizes[1]:,} calibration, {sizes[2]:,} test examples in {ready.num_classes} classes; "
        f"fingerprint {ready.fingerprint}"
    ]
