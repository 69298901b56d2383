"""Whether a manager brings TLS of its own. Then its calls pass through untouched. In the words of urllib3."""

from __future__ import annotations

import ssl
from typing import Any

from urllib3.poolmanager import PoolKey
from urllib3.util.ssl_ import resolve_cert_reqs

from headrace.adapters.bundles import is_bundle_of
from headrace.adapters.own_connections import TLS_SETTINGS
from headrace.policy.plan import TlsPlan

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# A rule has these, too. Anything else that a key says about TLS differs from the rule: an SSL context, a fingerprint, …
_COMPARED = frozenset(
    {"cert_file", "key_file", "key_password", "cert_reqs", "ca_certs", "ca_cert_dir", "assert_hostname"}
    | {"server_hostname", "ssl_minimum_version", "ssl_version"}
)
_NOT_IN_A_RULE = tuple(f"key_{name}" for name in TLS_SETTINGS if name not in _COMPARED)


def brings_own_tls(key: PoolKey, tls: TlsPlan, pool: Any) -> bool:
    """Whether what *key* says about TLS differs from the rule: another CA, a client certificate, no check, …

    A context always does: what it trusts and presents cannot be read from it.

    Args:
        pool: The pool made by that key. What was written on it since then counts as well, except for the fields
            that requests' own `cert_verify` writes on every pool. Its host's certificate is checked where the rule
            has no `server_name`.
    """
    if (pool.assert_hostname, pool.assert_fingerprint) != (
        key.key_assert_hostname,
        key.key_assert_fingerprint,
    ):
        return True
    if any(getattr(key, field, None) is not None for field in _NOT_IN_A_RULE):
        return True
    if (key.key_cert_file, key.key_key_file) not in ((None, None), (tls.cert, tls.key)):
        return True
    if key.key_cert_reqs is not None:
        verifies = resolve_cert_reqs(key.key_cert_reqs)
        if verifies != ssl.CERT_REQUIRED and (verifies != ssl.CERT_NONE or tls.verify):
            return True
    for ca in (key.key_ca_certs, key.key_ca_cert_dir):
        if ca is not None and not is_bundle_of(tls, ca):
            return True
    name = tls.server_name or pool.host
    if key.key_assert_hostname not in (None, name) or key.key_server_hostname not in (None, name):
        return True
    if key.key_ssl_minimum_version not in (None, _MINIMUM[tls.min_version]):
        return True
    return key.key_ssl_version not in (None, ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_CLIENT)
