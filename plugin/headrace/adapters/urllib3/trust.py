"""Whether a manager brings TLS of its own. Then its calls pass through untouched. In the words of urllib3."""

from __future__ import annotations

import ssl
from typing import Any

from urllib3.poolmanager import PoolKey
from urllib3.util.ssl_ import resolve_cert_reqs

from headrace.adapters.bundles import is_bundle_of, is_bundle_of_environment
from headrace.adapters.own_connections import TLS_SETTINGS
from headrace.policy.plan import TlsPlan

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# A rule has these, too. Anything else that a key says about TLS differs from the rule: an SSL context, a fingerprint, …
_COMPARED = frozenset(
    {"cert_file", "key_file", "key_password", "cert_reqs", "ca_certs", "ca_cert_dir", "assert_hostname"}
    | {"server_hostname", "ssl_minimum_version", "ssl_version"}
)
_BUNDLES = frozenset({"ca_certs", "ca_cert_dir"})
_BOTOCORE = "botocore.awsrequest"
_NOT_IN_A_RULE = tuple(f"key_{name}" for name in TLS_SETTINGS if name not in _COMPARED)


def brings_own_tls(key: PoolKey, tls: TlsPlan, pool: Any, *, named: frozenset[str]) -> bool:
    """Whether what *key* says about TLS differs from the rule: another CA, a client certificate, no check, …

    A context does: what it trusts and presents cannot be read from it. Only botocore's does not. That SDK makes one for
    each client, with nothing in it, and says what to trust on the pool before each call.

    Args:
        pool: The pool made by that key. What was written on it since then counts as well, except for the fields
            that requests' own `cert_verify` writes on every pool. Its host's certificate is checked where the rule
            has no `server_name`.
        named: What the manager was made with. All else in *key* is requests', which writes CERT_REQUIRED into every
            key, and the bundle of the environment where nobody has named one.
    """
    if (pool.assert_hostname, pool.assert_fingerprint) != (
        key.key_assert_hostname,
        key.key_assert_fingerprint,
    ):
        return True
    is_botocores = type(pool).__module__ == _BOTOCORE and type(key.key_ssl_context) is ssl.SSLContext
    for field in _NOT_IN_A_RULE:
        if getattr(key, field, None) is not None and not (is_botocores and field == "key_ssl_context"):
            return True
    if is_botocores and not _trusts_as(tls, pool):
        return True
    if (key.key_cert_file, key.key_key_file) not in ((None, None), (tls.cert, tls.key)):
        return True
    if key.key_cert_reqs is not None:
        verifies = resolve_cert_reqs(key.key_cert_reqs)
        if verifies != ssl.CERT_REQUIRED and (verifies != ssl.CERT_NONE or tls.verify):
            return True
        if verifies == ssl.CERT_REQUIRED and not tls.verify and "cert_reqs" in named:
            return True  # who asks for a check never gets less
    for ca in (key.key_ca_certs, key.key_ca_cert_dir):
        if ca is None or (named.isdisjoint(_BUNDLES) and is_bundle_of_environment(ca)):
            continue
        if not is_bundle_of(tls, ca):
            return True
    if key.key_assert_hostname is not None and (not tls.verify or tls.identities):
        return True  # likewise: identities take the place of the host's name
    name = tls.server_name or pool.host
    if key.key_assert_hostname not in (None, name) or key.key_server_hostname not in (None, name):
        return True
    if key.key_ssl_minimum_version not in (None, _MINIMUM[tls.min_version]):
        return True
    return key.key_ssl_version not in (None, ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_CLIENT)


def _trusts_as(tls: TlsPlan, pool: Any) -> bool:
    """Whether *pool*, by what is written on it, verifies its peer against what the rule trusts."""
    if pool.cert_reqs is None or resolve_cert_reqs(pool.cert_reqs) != ssl.CERT_REQUIRED or not tls.verify:
        return False
    return pool.ca_certs is not None and is_bundle_of(tls, pool.ca_certs)
