"""A cache may cost time, never correctness: damage is noticed and rebuilt, an unwritable folder is survived."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from kdjax.data.cache import cached, default_folder
from kdjax.data.contents import digest

ARRAYS = {"image": np.arange(4096, dtype=np.uint8).reshape(16, 256), "label": np.arange(16, dtype=np.int32)}


class Build:
    """Counts how often the arrays had to be made."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {name: array.copy() for name, array in ARRAYS.items()}


def check(arrays):
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert digest(arrays[name]) == digest(array)


def test_the_second_read_builds_nothing_and_cannot_be_written_to(tmp_path):
    build = Build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(cached(tmp_path / "new" / "folder", "set", build))
        arrays = cached(tmp_path / "new" / "folder", "set", build)
    check(arrays)
    assert build.calls == 1
    with pytest.raises(ValueError, match="read-only"):
        arrays["image"][0, 0] = 1
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["set-1"]  # no scratch is left


def entry_files(tmp_path):
    return sorted((tmp_path / "set-1").iterdir())


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["flip first", "flip last", "truncate", "empty", "remove"])
def test_damage_is_noticed_and_rebuilt(tmp_path, name, damage):
    build = Build()
    cached(tmp_path, "set", build)
    path = tmp_path / "set-1" / name
    content = path.read_bytes()
    middle = content.index(b"sha256") + 12 if name == "meta.json" else len(content) - 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            {
                "flip first": bytes([content[0] ^ 1]) + content[1:],
                "flip last": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "truncate": content[: len(content) // 2],
                "empty": b"",
            }[damage]
        )
    with pytest.warns(UserWarning, match="is damaged"):
        check(cached(tmp_path, "set", build))
    assert build.calls == 2
    check(cached(tmp_path, "set", build))
    assert build.calls == 2  # the rebuilt entry is whole


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"short"), lambda path: path.unlink()])
def test_what_happens_to_the_files_of_a_running_process_changes_nothing(tmp_path, damage):
    """They were mapped once: a truncated file ended the process by SIGBUS, a flipped byte changed test pixels."""
    cached(tmp_path, "set", Build())
    arrays = cached(tmp_path, "set", Build())
    for path in entry_files(tmp_path):
        damage(path)
    check(arrays)


def test_a_changed_key_is_another_entry(tmp_path):
    build = Build()
    cached(tmp_path, "one", build)
    cached(tmp_path, "two", build)
    assert build.calls == 2


def test_folder_that_cannot_be_written_degrades_to_memory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")  # a file where a folder should be: fails for every user, root as well
    build = Build()
    for calls in (1, 2):
        with pytest.warns(UserWarning, match="is not cached: .* cannot be written .* KDJAX_CACHE"):
            check(cached(blocked / "cache", "set", build))
        assert build.calls == calls


def test_full_disk_degrades_to_memory_and_leaves_nothing(tmp_path):
    program = f"""
import resource, signal, sys, warnings
sys.path.insert(0, {os.path.dirname(__file__)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import test_cache
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from pathlib import Path
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    arrays = test_cache.cached(Path({str(tmp_path)!r}), "set", test_cache.Build())
test_cache.check(arrays)
assert "File too large" in str(caught[0].message), caught
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_quicker_wins(tmp_path):
    def slow():
        cached(tmp_path, "set", Build())  # another process finishes the same entry meanwhile
        return Build()()

    check(cached(tmp_path, "set", slow))
    check(cached(tmp_path, "set", lambda: pytest.fail("the entry is there")))
    assert [path.name for path in tmp_path.iterdir()] == ["set-1"]


def test_unfinished_scratch_is_no_entry(tmp_path):
    cached(tmp_path, "set", Build())
    (tmp_path / "set-1").rename(tmp_path / ".set-1-killed")
    build = Build()
    check(cached(tmp_path, "set", build))
    assert build.calls == 1
    assert json.loads((tmp_path / "set-1" / "meta.json").read_text())["format"] == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("KDJAX_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert str(default_folder("/c")) == "/c" and str(default_folder(None)) == "/a"
    monkeypatch.delenv("KDJAX_CACHE")
    assert str(default_folder(None)) == "/b/kdjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder(None) == tmp_path / ".cache" / "kdjax"
