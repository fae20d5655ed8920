"""C2PA manifests (Content Credentials, c2pa.org): signing outputs, and reading who signed a file.

The extra `c2pa` installs what this needs; with it, every marked output is signed. Nothing is asked of the
network: no timestamps, no revocation lists, no manifests kept elsewhere.
"""

import contextlib
import functools
import importlib.util
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from magicedit import __version__
from magicedit.errors import OutputError, needs_extra, reason_of
from magicedit.files import open_regular, read_bytes, replacing, shown

if TYPE_CHECKING:
    import c2pa

FORMATS = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".tif": "image/tiff", ".tiff": "image/tiff", ".gif": "image/gif", ".mp4": "video/mp4",
    ".mov": "video/quicktime",
}  # fmt: skip  # what can be signed, by suffix
SWITCH = "MAGICEDIT_C2PA"  # "off": outputs are not signed
CERTIFICATE, KEY = "MAGICEDIT_C2PA_CERT", "MAGICEDIT_C2PA_KEY"  # PEM files of the user's own
ANCHORS = "MAGICEDIT_C2PA_TRUST"  # a PEM file of certificates whose holders are trusted
CONFIG = "MAGICEDIT_CONFIG"  # the folder of our own certificate
SELF_SIGNED = "magicedit, self-signed"  # the organisation in our own certificates
RECORD = "org.magicedit.edit"  # our assertion
_YEARS = 10  # that our own certificate is valid
_LARGEST_PEM = 100_000  # bytes


class Parent(NamedTuple):
    """The file that was edited. keeps: whether its own manifests are kept within the new one."""

    path: Path
    keeps: bool = True


def signs() -> bool:
    """Whether marked outputs are signed: where the extra is installed, unless SWITCH is off."""
    return os.environ.get(SWITCH, "").lower() not in ("0", "off", "no", "false") and installed()


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("c2pa") is not None


def sign(
    content: IO[bytes],
    output: IO[bytes],
    suffix: str,
    title: str,
    record: Mapping[str, Any],
    source_type: str,
    parent: Parent | None,
) -> None:
    """Copies a file with a signed manifest added; nothing in it is encoded again.

    Args:
        content: the file, from its start. output: to write and to read.
        suffix: one of FORMATS. title: its name.
        record: JSON-ready, of the edit.
        source_type: of IPTC's digital source types.
        parent: what was edited.

    Raises:
        OutputError: where the certificate cannot be used, or signing fails.
    """
    import c2pa

    agent = {"name": "magicedit", "version": __version__}
    action = {"action": "c2pa.edited", "digitalSourceType": source_type, "softwareAgent": agent}
    claim = {"claim_generator_info": [agent], "title": title, "format": FORMATS[suffix]}
    claim["assertions"] = [{"label": RECORD, "data": dict(record)}]
    try:
        builder = c2pa.Builder(claim, _context())
        if parent is not None and _add_parent(builder, parent):
            builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        else:
            kind = c2pa.C2paDigitalSourceType.COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA
            builder.set_intent(c2pa.C2paBuilderIntent.CREATE, kind)
        builder.add_action(action)
        content.seek(0)
        algorithm, chain, key = _identity()
        with c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None)) as signer:
            builder.sign(signer, FORMATS[suffix], content, output)
    except c2pa.C2paError as error:
        raise OutputError(
            f"{title} could not be signed ({reason_of(error)}); check the certificate in "
            f"{shown(os.environ.get(CERTIFICATE) or own_identity())}, or switch signing off by {SWITCH}=off"
        ) from error


def _add_parent(builder: "c2pa.Builder", parent: Parent) -> bool:
    """Tells the file that was edited; False where it has gone or cannot be read."""
    import c2pa

    told = {"title": shown(parent.path.name), "relationship": "parentOf"}
    suffix = parent.path.suffix.lower()
    with contextlib.suppress(OSError, c2pa.C2paError):
        if not parent.keeps:
            builder.add_ingredient(told, "application/octet-stream", io.BytesIO())
            return True
        with open_regular(parent.path) as file:
            builder.add_ingredient(told, FORMATS.get(suffix, suffix[1:]), file)
            return True
    return False


def _context() -> "c2pa.Context":
    return _settled(os.environ.get(ANCHORS))


@functools.cache
def _settled(anchors: str | None) -> "c2pa.Context":
    import c2pa

    trust = {} if not anchors else {"user_anchors": read_bytes(anchors, limit=10**7).decode("latin-1")}
    network = {"ocsp_fetch": False, "remote_manifest_fetch": False}
    settings = {
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"verify_after_sign": False, "verify_trust": bool(anchors)} | network,
    }
    return c2pa.Context(c2pa.Settings.from_dict(settings | ({"trust": trust} if trust else {})))


# --- certificates ---


def own_identity() -> Path:
    """Returns the path of our own key and certificates, made at first use."""
    folder = os.environ.get(CONFIG)
    if folder is None:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "magicedit"
    return Path(folder) / "c2pa.pem"


def _identity() -> tuple[bytes, bytes, bytes]:
    """Returns the algorithm's name, the chain of certificates and the key, both as PEM."""
    paths = os.environ.get(CERTIFICATE), os.environ.get(KEY)
    if not any(paths):
        return _own(own_identity())
    if not all(paths):
        raise OutputError(f"{CERTIFICATE} and {KEY} belong together; set both, or none of them")
    chain, key = (read_bytes(path, OutputError, limit=_LARGEST_PEM) for path in paths)
    return _algorithm(key), chain, key


@functools.cache
def _own(path: Path) -> tuple[bytes, bytes, bytes]:
    """As `_identity`, of our own certificates in a file, which are made where there are none that can be
    used; a damaged file is kept beside."""
    damaged = False
    with contextlib.suppress(OSError), open_regular(path) as file:
        if time.time() - os.fstat(file.fileno()).st_mtime < (_YEARS - 1) * 365 * 86_400:
            parts = _parts(file.read(_LARGEST_PEM))
            if _usable(*parts):
                return parts
            damaged = True
    made = _new_identity()
    # Where there is no place for it, as in a container without a home, it lasts as long as this process
    with contextlib.suppress(OSError, OutputError):
        if damaged:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o600)
            file.write(made)
    return _parts(made)


def _parts(content: bytes) -> tuple[bytes, bytes, bytes]:
    key, mark, chain = content.partition(b"-----BEGIN CERTIFICATE-----")
    return b"es256", mark + chain, key


def _usable(algorithm: bytes, chain: bytes, key: bytes) -> bool:
    """Whether the key is of the algorithm and of the first of two or more certificates."""
    with needs_extra("c2pa", "signing needs the package cryptography"):
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        belongs = certificates[0].public_key() == load_pem_private_key(key, None).public_key()
        return belongs and len(certificates) > 1 and _algorithm(key) == algorithm
    except (ValueError, TypeError, OutputError):  # TypeError: it has a password
        return False


def _algorithm(key: bytes) -> bytes:
    """Returns C2PA's name of the algorithm of a private key; OutputError for others."""
    with needs_extra("c2pa", "a certificate of your own needs the package cryptography"):
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        loaded = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise OutputError(f"{KEY} is not a private key without a password in PEM ({error})") from error
    if isinstance(loaded, ec.EllipticCurvePrivateKey):
        names = {256: b"es256", 384: b"es384", 521: b"es512"}
        if loaded.curve.name.startswith("secp") and loaded.key_size in names:
            return names[loaded.key_size]
    if isinstance(loaded, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise OutputError(f"{KEY} is of a kind that C2PA does not take; use ECDSA (P-256), RSA or Ed25519")


def _new_identity() -> bytes:
    """Returns a new key and two certificates for it as PEM: the signer's, and that of the authority that
    vouches for it and whose key is forgotten. C2PA takes no certificate that vouches for itself."""
    import datetime

    with needs_extra("c2pa", "making a certificate needs the package cryptography"):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    usages = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    usages += ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")

    def named(name: str) -> x509.Name:
        parts = (NameOID.ORGANIZATION_NAME, SELF_SIGNED), (NameOID.COMMON_NAME, name)
        return x509.Name([x509.NameAttribute(*part) for part in parts])

    def certificate(
        subject: str, key: ec.EllipticCurvePrivateKey, path: int | None, *used: str
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer_name=named("authority"), subject_name=named(subject))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + _YEARS * 365 * day)
            .add_extension(x509.BasicConstraints(path is not None, path), critical=True)
            .add_extension(x509.KeyUsage(**{name: name in used for name in usages}), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("authority", authority, 0, "key_cert_sign", "crl_sign")
    signer = certificate("signer", key, None, "digital_signature")
    for extension in (
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
    ):
        signer = signer.add_extension(extension, critical=False)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + b"".join(
        made.sign(authority, hashes.SHA256()).public_bytes(pem) for made in (signer, root)
    )


# --- reading ---


def manifests(file: IO[bytes], suffix: str) -> dict[str, Any] | None:
    """Returns a file's manifests and their validation, as c2pa's reader reports them.

    None where the file has none, or is of a kind that can have none.

    Raises:
        OutputError: where what it has cannot be read.
    """
    import c2pa

    known = suffix if suffix[1:] in c2pa.Reader.get_supported_mime_types() else None
    try:
        file.seek(0)
        reader = c2pa.Reader.try_create(known and known[1:], file, None, _context())
        return None if reader is None else json.loads(reader.json())
    except c2pa.C2paError.NotSupported:
        return None
    except (c2pa.C2paError, ValueError) as error:
        raise OutputError(reason_of(error)) from error
