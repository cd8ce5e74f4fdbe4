"""Content Credentials: signed by keys made here, read back by c2pa's own reader, and wrong keys in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.video import credentials
from ea_runtime.video.credentials import MEDIA_TYPES, read_signing_key, sign
from ea_runtime.video.marks import DIGITAL_SOURCE_TYPE, Marks, is_signed, read_recipe
from ea_runtime.video.output import write_video
from ea_runtime.video.reader import read_frames

WHY = "needs c2pa-python: pip install 'ea-runtime[c2pa]'"
c2pa = pytest.importorskip("c2pa", reason=WHY)
x509 = pytest.importorskip("cryptography.x509", reason=WHY)
hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes", reason=WHY)
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason=WHY)
asymmetric = "cryptography.hazmat.primitives.asymmetric"
ec, ed25519, rsa = (
    pytest.importorskip(f"{asymmetric}.{name}", reason=WHY) for name in ("ec", "ed25519", "rsa")
)

PEM = serialization.Encoding.PEM
KEYS: dict[str, Callable[[], Any]] = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}
_USES = [
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
]


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock)


def certificate(subject: str, key: Any, issuer: str, by: Any, *, is_authority: bool, days: int = 30) -> bytes:
    """A certificate as C2PA wants it, PEM. by: the issuer's key."""
    name = {
        who: x509.Name(
            [
                x509.NameAttribute(x509.oid.NameOID.ORGANIZATION_NAME, "Test"),
                x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, who),
            ]
        )
        for who in (subject, issuer)
    }
    now = datetime.now(UTC)
    used = {"key_cert_sign", "crl_sign"} if is_authority else {"digital_signature"}
    made = (
        x509.CertificateBuilder()
        .subject_name(name[subject])
        .issuer_name(name[issuer])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, None), True)
        .add_extension(x509.KeyUsage(**{use: use in used for use in _USES}), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    )
    if not is_authority:
        made = made.add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False
        )
    return made.sign(by, None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()).public_bytes(
        PEM
    )


def key_file(folder: Path, key: Any, days: int = 30) -> Path:
    """A signer's key, its certificate and its authority's, in one PEM file."""
    authority = ec.generate_private_key(ec.SECP256R1())
    above = certificate("Authority", authority, "Authority", authority, is_authority=True)
    own = certificate("Signer", key, "Authority", authority, is_authority=False, days=days)
    path = folder / "key.pem"
    path.write_bytes(private_pem(key) + own + above)
    return path


def manifest_of(path: Path) -> tuple[str, dict[str, Any]]:
    """The state that c2pa's reader finds a file in, and its manifest."""
    with c2pa.Reader(str(path)) as reader:
        found = json.loads(reader.json())
    return found["validation_state"], found["manifests"][found["active_manifest"]]


def video(path: Path) -> Path:
    frames = [np.full((32, 48, 3), 9 * number, np.uint8) for number in range(4)]
    return write_video(path, frames, 8, marks=Marks('{"prompt": "x"}'))


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_a_signed_file_is_valid_and_the_same_to_look_at(tmp_path: Path, kind: str) -> None:
    key = read_signing_key(key_file(tmp_path, KEYS["es256"]()))
    path = video(tmp_path / f"out.{kind}")
    before = [frame.copy() for frame in read_frames(path)] if kind in ("mp4", "mov") else []
    assert not is_signed(path)
    sign(path, kind, key)
    assert is_signed(path)
    state, manifest = manifest_of(path)
    assert state == "Valid"
    actions = next(one["data"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))
    assert actions["actions"][0]["digitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert read_recipe(path, kind) == '{"prompt": "x"}'
    if before:
        after = list(read_frames(path))
        assert all((one == other).all() for one, other in zip(before, after, strict=True))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["key.pem", f"out.{kind}"]


@pytest.mark.parametrize("algorithm", KEYS)
def test_every_kind_of_key(tmp_path: Path, algorithm: str) -> None:
    key = read_signing_key(key_file(tmp_path, KEYS[algorithm]()))
    assert key.algorithm == algorithm
    path = video(tmp_path / "out.png")
    sign(path, "png", key)
    assert manifest_of(path)[0] == "Valid"


def test_a_changed_file_is_no_longer_valid(tmp_path: Path) -> None:
    path = video(tmp_path / "out.mp4")
    sign(path, "mp4", read_signing_key(key_file(tmp_path, KEYS["es256"]())))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"mdat") + 40] ^= 1
    path.write_bytes(content)
    assert manifest_of(path)[0] == "Invalid"


def test_wrong_keys_are_one_line_before_anything_is_made(tmp_path: Path) -> None:
    key, other = KEYS["es256"](), KEYS["es256"]()
    good = key_file(tmp_path, key).read_bytes()
    own = certificate("Self", key, "Self", key, is_authority=True)
    wrong = {
        b"": "private key",
        b"no PEM at all": "private key",
        private_pem(key): "certificate",
        good[good.index(b"-----BEGIN CERT") :]: "private key",
        private_pem(other) + good[good.index(b"-----BEGIN CERT") :]: "another key",
        private_pem(key, b"secret") + own: "password",
        private_pem(key) + own: "cannot be used",  # signed itself
        good.replace(b"MI", b"XX"): "cannot be used",
        key_file(tmp_path, key, days=-1).read_bytes(): "valid today",
    }
    path = tmp_path / "wrong.pem"
    for content, word in wrong.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"`sign`.*wrong\.pem.*{word}") as error:
            read_signing_key(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"`sign` .*none\.pem.*cannot be read"):
        read_signing_key(tmp_path / "none.pem")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"ea-runtime\[c2pa\]"):
        read_signing_key(tmp_path / "key.pem")
