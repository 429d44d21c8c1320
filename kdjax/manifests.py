"""Manifests: what belongs to a finished directory, and to whom.

A directory is finished iff its `manifest.json` verifies; it is written last.

A manifest protects against accidents (a flipped bit, a torn copy, a folder under another's name) and is no signature:
`kdjax.signing` makes one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax.errors import Refused, printable
from kdjax.files import FORMAT, LOCK, canonical, read_json, write_json

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"


def write_manifest(directory: Path, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes `manifest.json`: FORMAT, owner, size and SHA-256 of every file below `directory`, and its own SHA-256.

    Every listed file is flushed to disk first. Call it last; from then on the directory is finished.

    Args:
      owner: what the files belong to, as JSON: a stage's id, the hash of its recipe, its parents.

    Returns:
      The manifest, {"format": int, "owner": {...}, "files": {relative path: {"size": bytes, "sha256": hex}},
      "sha256": hex}.
    """
    directory = Path(directory)
    with contextlib.suppress(OSError):  # it was of another manifest
        (directory / SIGNATURE).unlink(missing_ok=True)
    listed = {name: _entry(path.path, flush=True) for name, path in _walk(directory).items() if path.is_file()}
    body = {"format": FORMAT, "owner": dict(owner or {}), "files": listed}
    manifest = {**body, "sha256": _seal(body)}
    write_json(directory / MANIFEST, manifest)
    return manifest


def verify_manifest(directory: Path, owner: Mapping[str, Any] | None = None, *, contents: bool = True) -> list[str]:
    """What is wrong with a directory, each problem on one line that names the file; `[]` means that it verifies.

    Args:
      owner: what the manifest must name; None asks for nobody.
      contents: False looks at the sizes of the listed files alone, and opens nothing but the manifest.
    """
    return [printable(problem) for problem in _problems(Path(directory), owner, contents)]


def _problems(directory: Path, owner: Mapping[str, Any] | None, contents: bool) -> list[str]:
    manifest, problem = _manifest(directory)
    if manifest is None:
        return [problem]
    if problem := _foreign(manifest, owner):
        return [problem]
    if owner and not manifest["owner"]:
        return [f"{MANIFEST} does not say what it belongs to"]
    if not contents:
        sizes = ((name, _size(f"{directory}/{name}"), entry["size"]) for name, entry in manifest["files"].items())
        return [f"{name} is missing or of another size" for name, size, listed in sizes if size != listed]
    paths, problems = _walk(directory), []
    for name, entry in manifest["files"].items():
        if name not in paths:
            problems.append(f"{name} is missing")
            continue
        path = paths.pop(name)
        if not path.is_file(follow_symlinks=False):
            problems.append(f"{name} is not a plain file")
        elif (size := path.stat(follow_symlinks=False).st_size) != entry["size"]:
            problems.append(f"{name} has {size} bytes instead of {entry['size']}")
        elif _entry(path.path) != entry:
            problems.append(f"{name} does not have its SHA-256 (a byte changed)")
    return problems + [f"{name} is not in the manifest" for name in sorted(paths)]


def refuse_foreign(directory: Path, owner: Mapping[str, Any] | None = None) -> None:
    """Refuses to go on where files of a newer FORMAT or of another owner are, which must not be written over.

    Raises:
      Refused: if there is a manifest with its own SHA-256 that says so.
    """
    manifest, _ = _manifest(Path(directory))
    if manifest is None:
        return
    if manifest["format"] > FORMAT:
        raise Refused(f"{directory} is {_foreign(manifest, owner)}; upgrade kdjax, or use another directory.")
    if problem := _foreign(manifest, owner):
        raise Refused(f"{directory} is {problem}; move it back to where it belongs, or delete it to begin anew.")


def refuse_links(directory: Path) -> None:
    """Refuses a directory that is, or has below it, a symbolic link: what is written must not end up elsewhere. And one
    with a folder in the manifest's place, which would be found only when all is computed."""
    if (Path(directory) / MANIFEST).is_dir():
        raise Refused(f"{Path(directory) / MANIFEST} is a directory where a stage writes its manifest; remove it.")
    if Path(directory).is_symlink():
        raise Refused(f"{directory} is a symbolic link where a stage writes its own folder; remove the link.")
    for name, path in _walk(Path(directory)).items():
        if path.is_symlink():
            raise Refused(
                f"{printable(path.path)} is a symbolic link where {printable(name)} should be a file of its own; "
                "remove the link."
            )


def _manifest(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """(the manifest, "") if it has its own SHA-256 and the expected form, else (None, what is wrong)."""
    try:
        manifest = read_json(directory / MANIFEST)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        sealed = manifest["sha256"] == _seal(body)
        newer = sealed and _whole(manifest["format"]) and manifest["format"] > FORMAT
    except (FileNotFoundError, NotADirectoryError):
        return None, "no manifest"
    except (OSError, TypeError, KeyError, AttributeError, ValueError):
        return None, f"{MANIFEST} is not readable"
    if not sealed:
        return None, f"{MANIFEST} does not have its own SHA-256"
    if not newer and not _well_formed(body):
        return None, f"{MANIFEST} does not list files as a manifest of format 1 to {FORMAT} does"
    return {"owner": {}, **body}, ""


def _well_formed(body: Mapping[str, Any]) -> bool:
    keys = {"format", "files"} if body["format"] == 1 else {"format", "files", "owner"}
    listed = body.get("files")
    return (
        _whole(body["format"])
        and body["format"] >= 1
        and body.keys() == keys
        and isinstance(body.get("owner", {}), dict)
        and isinstance(listed, dict)
        and all(isinstance(e, dict) and e.keys() == {"size", "sha256"} and _whole(e["size"]) for e in listed.values())
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _foreign(manifest: Mapping[str, Any], owner: Mapping[str, Any] | None) -> str:
    """Why a manifest is not for this program or this owner, or ""; one that names nobody may be anybody's."""
    if manifest["format"] > FORMAT:
        return f"written in format {manifest['format']}, and this kdjax reads format {FORMAT}"
    if not owner or not manifest["owner"]:
        return ""
    for key in (*owner, *sorted(manifest["owner"].keys() - owner.keys())):
        there, here = (canonical(who.get(key)) for who in (manifest["owner"], owner))
        if there != here:
            return f"written for {key} {_short(there)}, and here is {key} {_short(here)}"
    return ""


def _short(text: str) -> str:
    text = text.strip('"')
    return text if len(text) <= 80 else f"{text[:77]}..."


def _walk(directory: Path) -> dict[str, os.DirEntry[str]]:
    """Everything below a directory that is not a directory, but manifest, signature and lock."""
    entries, folders = {}, [("", os.fspath(directory))]
    while folders:
        prefix, folder = folders.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as listed:  # what cannot be listed is missing
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    entries[prefix + entry.name] = entry
    return {name: entries[name] for name in sorted(entries) if name not in (MANIFEST, SIGNATURE, LOCK)}


def _size(path: str) -> int:
    """Of a plain file; -1 for anything else."""
    try:
        about = os.lstat(path)
    except (OSError, ValueError):  # a name that no file can have
        return -1
    return about.st_size if stat.S_ISREG(about.st_mode) else -1


def _entry(path: str | Path, flush: bool = False) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush and sys.platform != "win32":
            os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()
