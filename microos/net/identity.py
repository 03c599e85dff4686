"""Certificates: who signs, who is named, and who that makes the other side of a link.

    cluster key ─HKDF─▶ seed of the authority (Ed25519) ─signs─▶ leaf of this start
                        the same on every node                   spiffe://shop/svc/a/node/91f3…

Every holder of the cluster key can sign, so each node issues its own certificate at its
start and nothing is asked of anybody: it works before any group exists. A certificate
says "the holder of a cluster key says it is this node"; against a member that lies it
is no proof, as with the datagrams' shared key.

| | subject alternative name, the only one, percent-encoded |
|---|---|
| node | `spiffe://<label>/svc/<name>/node/<node id>` |
| command line | `spiffe://<label>/control` |

All keys are Ed25519, and all numbers have a fixed width, so that a handshake has the same
size each time (the simulated world counts on it). Certificates end with their key, not
with time: `tls.py` tells OpenSSL to ask no clock, and the dates here are those of RFC 5280
for "none". The only importer of x509.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime  # det: fixed dates only, no clock is read
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from microos.keyring import SealError

CONTROL = ""
"""Stands for the node id of a command line, which is no node."""

SERIAL_BITS = 64

_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def uri_of(label: str, name: str, node: str) -> str:
    """Return the name of a node in its certificate; of a command line if `node` is `CONTROL`."""
    cluster = quote(label, safe="")
    if node == CONTROL:
        return f"spiffe://{cluster}/control"
    return f"spiffe://{cluster}/svc/{quote(name, safe='')}/node/{quote(node, safe='')}"


def node_of(names: Sequence[tuple[str, str]], label: str) -> str:
    """Return whom a verified certificate names: a node id, or `CONTROL`.

    Args:
        names: Its subject alternative names: (kind, value).

    Raises:
        SealError: Not exactly one name, or not one of this cluster.
    """
    if len(names) == 1 and names[0][0] == "URI":
        match names[0][1].split("/"):
            case ["spiffe:", "", cluster, "svc", _, "node", node] if node:
                if cluster == quote(label, safe=""):
                    return unquote(node)
            case ["spiffe:", "", cluster, "control"] if cluster == quote(label, safe=""):
                return CONTROL
    raise SealError(
        f"expected a certificate that names one node of cluster {label!r}, "
        f"found {len(names)} names, or one of another cluster",
        reason="unauthenticated",
    )


def authority(seed: bytes, id: int) -> x509.Certificate:
    """Return the certificate of the authority of key `id`: the same bytes wherever it is made."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key()
    return (
        _begun(_authority_name(id), _authority_name(id), 1)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, None)
    )


def leaf(seed: bytes, id: int, uri: str, *, secret: bytes, serial: int) -> tuple[bytes, bytes]:
    """Return (certificate, private key) as PEM, signed by the authority of key `id`.

    Args:
        seed: Of the authority.
        uri: As `uri_of` makes it.
        secret: 32 bytes of chance, the private key.
        serial: 64 bits; another for every leaf.
    """
    authority_key = Ed25519PrivateKey.from_private_bytes(seed)
    key = Ed25519PrivateKey.from_private_bytes(secret)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    # The bit above the serial keeps its width, and so the certificate's size, the same.
    certificate = (
        _begun(x509.Name([]), _authority_name(id), 1 << SERIAL_BITS | serial)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(signer, critical=False)
        .add_extension(names, critical=True)
        .sign(authority_key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def _authority_name(id: int) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"microos ca {id:03d}")])


def _begun(subject: x509.Name, issuer: x509.Name, serial: int) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        serial_number=serial,
        not_valid_before=_BEGIN,
        not_valid_after=_END,
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
