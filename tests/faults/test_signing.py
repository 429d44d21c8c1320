"""Signatures of runs: what the owner of a key signed verifies, and everything else is one sentence."""

from __future__ import annotations

import builtins
import dataclasses
import os
import shutil

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from experiments import command, distill
from experiments.common import call
from kdjax import files, manifests, runs, signing
from kdjax.cli import main
from kdjax.errors import Refused
from kdjax.settings import Settings
from kdjax.stages import Stage
from tests import tiny


def write_pair(folder, name, key=None, private=form.PrivateFormat.OpenSSH, passphrase=b""):
    """KEY and KEY.pub, as ssh-keygen or openssl writes them."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    locked = form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption()
    path = folder / name
    path.write_bytes(key.private_bytes(form.Encoding.PEM, private, locked))
    ssh = private is form.PrivateFormat.OpenSSH
    encoding = form.Encoding.OpenSSH if ssh else form.Encoding.PEM
    public = form.PublicFormat.OpenSSH if ssh else form.PublicFormat.SubjectPublicKeyInfo
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(encoding, public))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    stage = Stage(tiny.recipe(tiny.npz(folder), epochs=1))
    settings = Settings(workdir=str(folder / "runs"), checkpoint_epochs=1, devices=1)
    return stage, settings, runs.run_all([stage], settings).results[stage.id].directory


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[2], tmp_path / "runs" / trained[2].name)


@pytest.mark.parametrize("private", [form.PrivateFormat.OpenSSH, form.PrivateFormat.PKCS8], ids=["ssh", "openssl"])
def test_a_signed_run_verifies_and_stays_a_finished_one(run, tmp_path, capsys, private):
    key = write_pair(tmp_path, "key", private=private)
    assert main(["sign", str(run.parent), "--key", str(key)]) == 0
    assert len((run / manifests.SIGNATURE).read_bytes()) == 64 and manifests.verify_manifest(run) == []
    assert main(["show", str(run), "--verify-with", f"{key}.pub"]) == 0
    said = capsys.readouterr().out
    assert f"signed by {key}.pub (SHA256:" in said and "finished; every file verified" in said
    before = os.stat(run / manifests.SIGNATURE).st_mtime_ns
    signing.Key(key).sign(run)
    assert os.stat(run / manifests.SIGNATURE).st_mtime_ns == before, "the same signature is not written again"


def test_any_tool_for_ed25519_checks_the_signature(run, tmp_path):
    key = ed25519.Ed25519PrivateKey.generate()
    signing.Key(write_pair(tmp_path, "key", key)).sign(run)
    key.public_key().verify((run / manifests.SIGNATURE).read_bytes(), (run / manifests.MANIFEST).read_bytes())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forge(run):
    """A number that is better, under a manifest made anew: no checksum is wrong."""
    (run / "result.json").write_text((run / "result.json").read_text().replace("0.", "0.9", 1))
    signature = (run / manifests.SIGNATURE).read_bytes()
    manifests.write_manifest(run, files.read_json(run / manifests.MANIFEST)["owner"])
    assert manifests.verify_manifest(run) == []
    (run / manifests.SIGNATURE).write_bytes(signature)


TAMPERING = {
    "another's signature": (
        lambda run: signing.Key(write_pair(run.parent, "other")).sign(run),
        "is not the signature of",
    ),
    "a forged result": (forge, "is not the signature of"),
    "a flipped signature": (lambda run: flip(run / manifests.SIGNATURE), "is not the signature of"),
    "a cut signature": (lambda run: (run / manifests.SIGNATURE).write_bytes(b"x"), "is not the signature of"),
    "an empty signature": (lambda run: (run / manifests.SIGNATURE).write_bytes(b""), "is not the signature of"),
    "no signature": (lambda run: (run / manifests.SIGNATURE).unlink(), "is not signed: there is no manifest.json.sig"),
    "no manifest": (lambda run: (run / manifests.MANIFEST).unlink(), "is not signed: there is no manifest.json"),
    "a flipped byte": (lambda run: flip(run / "result.json"), r"is not what was signed: result.json does not have its"),
    "a file more": (lambda run: (run / "more").write_text(""), "is not what was signed: more is not in the manifest"),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_what_was_not_signed_is_refused_in_one_sentence(run, tmp_path, capsys, case):
    key = write_pair(tmp_path, "key")
    signing.Key(key).sign(run)
    act, sentence = TAMPERING[case]
    act(run)
    with pytest.raises(Refused, match=sentence):
        signing.Public.read(f"{key}.pub").verify(run)
    assert main(["show", str(run), "--verify-with", f"{key}.pub"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_signature_that_is_a_pipe_is_one_sentence(run, tmp_path, capsys):
    key = write_pair(tmp_path, "key")
    os.mkfifo(run / manifests.SIGNATURE)
    assert main(["show", str(run), "--verify-with", f"{key}.pub"]) == 74
    assert "is not a plain file" in capsys.readouterr().err


def keys(folder):
    (folder / "text").write_text("no key")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    write_pair(folder, "good")
    write_pair(folder, "locked", private=form.PrivateFormat.PKCS8, passphrase=b"secret")
    write_pair(folder, "rsa", rsa.generate_private_key(65537, 2048), form.PrivateFormat.PKCS8)
    (folder / "torn").write_bytes((folder / "good").read_bytes()[:90])


@pytest.mark.parametrize(
    ("name", "private", "public"),
    [
        ("none", r"cannot be read \(No such file", r"cannot be read \(No such file"),
        ("text", "holds no readable private key", "holds no readable public key"),
        ("torn", "holds no readable private key", "a private key; give the public one"),
        ("folder", "cannot be read", "cannot be read"),
        ("pipe", "cannot be read .it is no plain file", "cannot be read .it is no plain file"),
        ("locked", "is protected by a passphrase; give a copy without", "a private key; give the public one"),
        ("rsa", "which is no Ed25519 key", "a private key; give the public one"),
        ("rsa.pub", "holds no readable private key", "which is no Ed25519 key"),
        ("good.pub", "holds no readable private key; ssh-keygen", None),
        ("good", None, r"a private key; give the public one, such as .*good\.pub"),
    ],
)
def test_a_wrong_key_is_one_sentence(tmp_path, name, private, public):
    keys(tmp_path)
    for load, sentence in ((signing.Key, private), (signing.Public.read, public)):
        if sentence:
            with pytest.raises(Refused, match=sentence):
                load(tmp_path / name)


def test_an_unfinished_run_is_not_signed(run, tmp_path):
    flip(run / "result.json")
    with pytest.raises(Refused, match=r"is not signed: it is not a finished run, or damaged \(result.json"):
        signing.Key(write_pair(tmp_path, "key")).sign(run)
    assert not (run / manifests.SIGNATURE).exists()


def test_a_stage_that_is_computed_again_is_no_longer_signed(trained, tmp_path):
    stage, settings, directory = trained
    signing.Key(write_pair(tmp_path, "key")).sign(directory)
    again = dataclasses.replace(settings)
    assert runs.run_all([stage], again).results[stage.id].reused, "a signature is no foreign file"
    (directory / "result.json").unlink()
    assert not runs.run_all([stage], again).results[stage.id].reused and not (directory / manifests.SIGNATURE).exists()


def test_without_the_library(monkeypatch, tmp_path):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(Refused, match=r"signatures need the package cryptography; type pip install 'kdjax\[sign\]'"):
        signing.Key(tmp_path / "key")


@pytest.mark.slow
def test_an_experiment_signs_what_it_finished(tmp_path, monkeypatch, capsys):
    """--sign-with, with a hyphen or an underscore; a wrong key is refused before anything is computed."""
    key = write_pair(tmp_path, "key")
    words = ["x", "--config=configs/digits.py:mlp", "--config.recipe.data.name=arrays", "--config.seeds=(0,)"]
    words += [f"--config.recipe.data.path={tiny.npz(tmp_path)}", "--config.recipe.data.num_classes=4"]
    words += ["--config.recipe.teacher.epochs=1", "--config.recipe.student.epochs=1", f"--workdir={tmp_path / 'runs'}"]
    words += [f"--config.recipe.{who}.batch_size=16" for who in ("teacher", "student")]
    assert call(distill.run, [*words, "--sign-with=nothing"], "configs/digits.py") == 2
    assert "--sign-with is 'nothing', which cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert call(distill.run, [*words, f"--sign_with={key}"], "configs/digits.py") == 0
    finished = [path.parent for path in (tmp_path / "runs").glob("*/recipe.json")]
    assert len(finished) == 3
    for directory in finished:
        signing.Public.read(f"{key}.pub").verify(directory)
    assert "--sign" not in command.read([*words, "--sign-with", str(key)], default="configs/digits.py").text
