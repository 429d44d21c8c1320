"""Signatures of published runs: Ed25519 over the bytes of `manifest.json`, by the keys that people have for SSH.

A manifest lists the SHA-256 of every file, so a signature of it vouches for all of them: nobody without the private key
can make a folder that verifies. The 64 bytes of `manifest.json.sig` are what any tool for Ed25519 makes and checks.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from kdjax import files, manifests
from kdjax.errors import Refused

_MAKE = "ssh-keygen -t ed25519 -f key makes key and key.pub"


class Key:
    """A private key that signs runs.

    Args:
      path: an Ed25519 key as `ssh-keygen -t ed25519` or `openssl genpkey -algorithm ed25519` writes it.
      what: how the flag that named it is called.

    Raises:
      Refused: the package cryptography is not there; no such file; no private Ed25519 key, or one with a passphrase.
    """

    def __init__(self, path: str | Path, what: str = "--key"):
        serialization, kinds = _library()
        data = _content(path, what)
        load = (
            serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
        )
        try:
            key = load(data, password=None)
        except TypeError as error:
            raise Refused(
                f"{what} is {str(path)!r}, which is protected by a passphrase; give a copy without one "
                "(ssh-keygen -p -N '' -f COPY)."
            ) from error
        except Exception as error:  # every library below has its own, and a key that is damaged is only that
            raise Refused(f"{what} is {str(path)!r}, which holds no readable private key; {_MAKE}.") from error
        if not isinstance(key, kinds.Ed25519PrivateKey):
            raise Refused(f"{what} is {str(path)!r}, which is no Ed25519 key; {_MAKE}.")
        self._key = key
        self.public = Public(key.public_key(), str(path))

    def sign(self, directory: str | Path) -> None:
        """Writes `manifest.json.sig` into a finished run's directory, unless this key's is there.

        Raises:
          Refused: the run is not finished, or its files no longer verify.
        """
        directory = Path(directory)
        if problems := manifests.verify_manifest(directory):
            raise Refused(f"{directory} is not signed: it is not a finished run, or damaged ({problems[0]}).")
        signature = self._key.sign(files.read_bytes(directory / manifests.MANIFEST))
        if not _holds(directory / manifests.SIGNATURE, signature):  # Ed25519 gives the same one every time
            files.write_bytes(directory / manifests.SIGNATURE, signature)


class Public:
    """A public key, which checks signatures."""

    def __init__(self, key: Any, name: str):
        self._key, self.name = key, name

    @classmethod
    def read(cls, path: str | Path, what: str = "--verify-with") -> Public:
        """The public key in a file, as `ssh-keygen` (key.pub) or `openssl pkey -pubout` writes it.

        Raises:
          Refused: the package cryptography is not there; no such file; no public Ed25519 key.
        """
        serialization, kinds = _library()
        data = _content(path, what)
        if b"PRIVATE KEY" in data:
            raise Refused(f"{what} is {str(path)!r}, a private key; give the public one, such as {path}.pub.")
        load = serialization.load_pem_public_key if data.startswith(b"-----") else serialization.load_ssh_public_key
        try:
            key = load(data)
        except Exception as error:  # as in Key
            raise Refused(f"{what} is {str(path)!r}, which holds no readable public key; {_MAKE}.") from error
        if not isinstance(key, kinds.Ed25519PublicKey):
            raise Refused(f"{what} is {str(path)!r}, which is no Ed25519 key; {_MAKE}.")
        return cls(key, str(path))

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it: SHA256:..."""
        kind, raw = b"ssh-ed25519", self._key.public_bytes_raw()
        packed = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, raw))
        return "SHA256:" + base64.b64encode(hashlib.sha256(packed).digest()).decode().rstrip("=")

    def verify(self, directory: str | Path) -> None:
        """Returns if every file of a run is what the owner of this key signed.

        Raises:
          Refused: a file was changed, there is no signature, or it is of another key or another manifest.
        """
        from cryptography.exceptions import InvalidSignature

        directory = Path(directory)
        try:
            manifest = files.read_bytes(directory / manifests.MANIFEST)
            signature = files.read_bytes(directory / manifests.SIGNATURE)
        except FileNotFoundError as error:
            raise Refused(
                f"{directory} is not signed: there is no {Path(error.filename).name}; ask its author for one."
            ) from error
        try:
            self._key.verify(signature, manifest)
        except InvalidSignature as error:
            raise Refused(
                f"{directory / manifests.SIGNATURE} is not the signature of {self.name} ({self.fingerprint}): another "
                "key signed it, or the manifest or the signature was changed."
            ) from error
        if problems := manifests.verify_manifest(directory):
            raise Refused(f"{directory} is not what was signed: {problems[0]}.")


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise Refused("signatures need the package cryptography; type pip install 'kdjax[sign]'.") from error
    return serialization, ed25519


def _content(path: str | Path, what: str) -> bytes:
    try:
        return files.read_bytes(Path(path))
    except OSError as error:
        reason = error.strerror or "it is no plain file"
        raise Refused(f"{what} is {os.fspath(path)!r}, which cannot be read ({reason}); {_MAKE}.") from error


def _holds(path: Path, data: bytes) -> bool:
    try:
        return not path.is_symlink() and files.read_bytes(path) == data
    except OSError:
        return False
