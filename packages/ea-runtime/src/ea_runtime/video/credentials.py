"""Content Credentials (C2PA): a signed statement in a file that AI made it, by c2pa-python (extra `c2pa`).

Nothing is fetched: no time stamp of an authority is asked for. A signature differs each time it is made.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.files.atomic import temporary_sibling
from ea_runtime.video.marks import CREATOR, DIGITAL_SOURCE_TYPE

#: Kinds of output (output.KINDS) that can hold a signature, and their media types.
MEDIA_TYPES = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "gif": "image/gif",
    "png": "image/png",
    "webp": "image/webp",
}
_MAX_BYTES = 1 << 20
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)
_KEY = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """certificates: the signer's, then those above it, PEM. key: PKCS #8, PEM. algorithm: as C2PA names it."""

    certificates: str
    key: str
    algorithm: str


def read_signing_key(path: str | os.PathLike[str]) -> SigningKey:
    """The key in a PEM file that holds a private key and its chain of certificates.

    Raises MissingPackageError without the extra `c2pa`, UserError for a file that cannot be used.
    """
    name = repr(os.fspath(path))
    if find_spec("c2pa") is None:
        raise MissingPackageError("`--sign` needs c2pa-python; run `pip install 'ea-runtime[c2pa]'`")
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise UserError(
            f"`sign` {name} cannot be read: {error.strerror or error}; give a PEM file"
        ) from error
    key, certificates = _KEY.search(text), _CERTIFICATE.findall(text)
    if key is None or not certificates:
        missing = "private key" if key is None else "certificate"
        raise UserError(
            f"`sign` must be a PEM file with a private key and its certificates, got {name} without a {missing}; "
            "join them by `cat key.pem chain.pem`"
        )
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509 import load_pem_x509_certificate

    try:
        private = serialization.load_pem_private_key(key[0].encode(), None)
        certificate = load_pem_x509_certificate(certificates[0].encode())
    except (ValueError, TypeError) as error:
        raise UserError(
            f"`sign` {name} cannot be used: {error}; give a PEM file without a password"
        ) from error
    forms = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*forms) != certificate.public_key().public_bytes(*forms):
        raise UserError(f"`sign` {name}: its first certificate is of another key; put the signer's own first")
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise UserError(
            f"`sign` {name}: its certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}; give one that is valid today"
        )
    pkcs8 = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    signing = SigningKey("".join(certificates), pkcs8.decode(), _algorithm(private, name))
    _check(signing, name)
    return signing


def sign(path: Path, kind: str, key: SigningKey) -> None:
    """Signs a finished file of one of MEDIA_TYPES in its place. Raises UserError if that fails; the file stays then."""
    temporary = temporary_sibling(path)
    try:
        with path.open("rb") as source, temporary.open("w+b") as signed:
            _sign(source, signed, kind, key, path.name)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{str(path)!r} cannot be signed: {error}; it is complete without a signature"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sign(source: BinaryIO, target: BinaryIO, kind: str, key: SigningKey, title: str) -> None:
    """Raises RuntimeError with c2pa's reason."""
    from c2pa import Builder, C2paError, C2paSignerInfo, Signer

    # no time-stamping authority: it would be asked over the network
    info = C2paSignerInfo(key.algorithm.encode(), key.certificates.encode(), key.key.encode(), None)
    try:
        with Signer.from_info(info) as signer, Builder(json.dumps(_manifest(title))) as builder:
            builder.sign(signer, MEDIA_TYPES[kind], source, target)
    except C2paError as error:
        raise RuntimeError(str(error)) from error


def _check(key: SigningKey, name: str) -> None:
    """Raises UserError if c2pa does not sign with a key: found before a video is made with it."""
    from PIL import Image

    picture = BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    picture.seek(0)
    try:
        _sign(picture, BytesIO(), "png", key, "")
    except RuntimeError as error:
        raise UserError(
            f"`sign` {name} cannot be used: {error}; C2PA wants a certificate for signing documents or mail, not one "
            "that signed itself"
        ) from error


def _manifest(title: str) -> dict[str, Any]:
    """The statement: created by this program, as trained algorithmic media."""
    action = {
        "action": "c2pa.created",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": {"name": CREATOR},
    }
    return {
        "title": title,
        "claim_generator_info": [{"name": CREATOR}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _algorithm(key: Any, name: str) -> str:
    """C2PA's name of the signature that a key makes. Raises UserError for one that makes none of them."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise UserError(
        f"`sign` {name} must hold a key for Ed25519, ECDSA (P-256, P-384, P-521) or RSA of 2048 bits or more; "
        "make another"
    )
