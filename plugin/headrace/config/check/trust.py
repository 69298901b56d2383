"""Files of TLS: which apply, whether they can be read, and what they hold at this moment."""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace

from headrace.bounded import MAX_TRUST_FILE_BYTES
from headrace.config.check.problems import Path, Problem
from headrace.config.settings import Tls, Upstream
from headrace.config.source.files import Reader, ReadingError
from headrace.config.source.tree import MASK, Mark, problem_at
from headrace.config.source.written import Written
from headrace.policy.certificate import Dates, certificates_in, dates_of, first_to_end, short_print_of
from headrace.policy.plan import CertificatePlan, SessionPlan, TlsPlan
from headrace.policy.secret import Secret

BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""In the order of requests, which knows the first two. OpenSSL knows the third."""
MAX_DIRECTORY_FILES = 2000
MAX_PASSPHRASE_BYTES = 1024
"""Python's ssl takes no longer one (PEM_BUFSIZE of OpenSSL)."""


class Trust:
    """Makes the TLS plan of each upstream. Reads each file once, through *reader*.

    Args:
        before: The TLS plans of the load before, by upstream.

    Attributes:
        problems: What keeps the configuration from being taken into force.
        refused: By upstream: what would be a problem, had the load before not read the very same files. That upstream
            keeps what they held then, and the rest of the configuration can take force.
        findings: What deserves a second look.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        reader: Reader,
        written: Written,
        *,
        before: Mapping[str, TlsPlan],
    ) -> None:
        self.reader = reader
        self.written = written
        self.problems: list[Problem] = []
        self.refused: dict[str, str] = {}
        self.findings: list[Problem] = []
        self._before = before
        self._plans: dict[tuple[object, ...], TlsPlan] = {}
        self._bundle = next(((name, env[name]) for name in BUNDLE_VARIABLES if env.get(name)), None)

    def plan(self, name: str, upstream: Upstream) -> TlsPlan | None:
        """The TLS plan of upstream *name*; None when all its URLs are http."""
        if all(prefix.origin.scheme == "http" for prefix in (upstream.base_url, *upstream.match)):
            return None
        # A list cannot be looked up by.
        key = tuple(tuple(one) if isinstance(one, list) else one for one in vars(upstream.tls).values())
        known = self._plans.get(key)
        if known is None:
            before = len(self.problems)
            known = self._build(("upstreams", name, "tls"), upstream.tls)
            # A plan with a problem is built again for the next upstream: each place is reported.
            if len(self.problems) == before:
                self._plans[key] = known
            else:
                known = self._last_good(name, known, self.problems[before:])
        self._look_at_dates(name, known)
        return known

    def _last_good(self, name: str, found: TlsPlan, problems: list[Problem]) -> TlsPlan:
        """The plan of the load before, if it goes by the same files as *found*, which has *problems*; else *found*."""
        last = self._before.get(name)
        if last is None or not found.has_policy_of(last):
            return found
        del self.problems[-len(problems) :]
        self.refused[name] = "; ".join(one.message for one in problems)
        return replace(last, rotation_drain_s=found.rotation_drain_s, sessions=found.sessions)

    def _look_at_dates(self, name: str, plan: TlsPlan) -> None:
        certificate, now = plan.certificate, time.time()
        path: Path = ("upstreams", name, "tls", "cert")
        if certificate is None or not self.written.is_usable(path):
            return
        if now >= certificate.not_after:
            told = f"has expired on {_day(certificate.not_after)}"
        elif now < certificate.not_before:
            told = f"does not hold before {_day(certificate.not_before)}"
        else:
            return
        self.findings.append(
            self.written.problem(
                path, f"is a client certificate that {told}", "renew it; a change of the file is noticed"
            )
        )

    def _build(self, path: Path, tls: Tls) -> TlsPlan:
        total = hashlib.sha256()
        files: dict[str, str | None] = {}
        digests: dict[str, str | None] = {}
        dates: dict[str, Dates | None] = {}
        certificate = None
        for role, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
            if file is None:
                files[role] = None
                continue
            files[role] = self.reader.absolute(file)
            try:
                content = self._content(file, may_be_directory=role == "ca")
                _hash_part(total, role, content)
                digests[role] = self._digest(file, content)
                dates[role] = first_to_end(content)
                if role == "cert":
                    certificate = _certificate(content)
            except ReadingError as error:
                self._report((*path, role), file, error)
        if files["ca"] is None and tls.verify and self._bundle is not None:
            files["ca"], digests["ca"], dates["ca"] = self._bundled(total)
        if files["ca"] is None and tls.verify:
            # Who has put another class there, as truststore does, decides what is trusted: another plan.
            _hash_part(total, "store", ssl.SSLContext.__module__.encode())
        passphrase = None
        if tls.key_passphrase is not None:
            passphrase = Secret(_without_newline(tls.key_passphrase))
            _hash_part(total, "passphrase", passphrase.encode(errors="surrogateescape"))
            self._measure((*path, "key_passphrase"), passphrase)
        return TlsPlan(
            verify=tls.verify,
            ca=files["ca"],
            cert=files["cert"],
            key=files["key"],
            server_name=tls.server_name,
            min_version=tls.min_version,
            fingerprint=total.hexdigest(),
            ca_digest=digests.get("ca"),
            cert_digest=digests.get("cert"),
            key_digest=digests.get("key"),
            key_passphrase=passphrase,
            rotation_drain_s=float(tls.rotation_drain),
            certificate=certificate,
            cert_dates=dates.get("cert"),
            ca_dates=dates.get("ca"),
            sessions=SessionPlan(size=tls.session_cache.size, ttl_s=float(tls.session_cache.ttl))
            if tls.session_resumption
            else None,
            identities=tuple(tls.identities),
        )

    def _measure(self, path: Path, passphrase: str) -> None:
        length = len(passphrase.encode(errors="surrogateescape"))
        if length > MAX_PASSPHRASE_BYTES and self.written.is_usable(path):
            self.problems.append(
                self.written.problem(
                    path,
                    f"has {length} bytes, and OpenSSL takes no passphrase of more than {MAX_PASSPHRASE_BYTES}",
                    "encrypt the key with a shorter one; is it perhaps the key itself?",
                )
            )

    def _bundled(self, total: hashlib._Hash) -> tuple[str, str | None, Dates | None]:
        assert self._bundle is not None
        digest = dates = None
        variable, file = self._bundle
        self.reader.note(variable, file)
        try:
            content = self._content(file, may_be_directory=True)
            _hash_part(total, "ca", content)
            digest, dates = self._digest(file, content), first_to_end(content)
        except ReadingError as error:
            self.problems.append(
                problem_at(
                    Mark(f"environment {variable}"),
                    "",
                    f"names the CA bundle {file}, which {error}",
                    "unset it, or give tls.ca in the file",
                )
            )
        return self.reader.absolute(file), digest, dates

    def _digest(self, file: str, content: bytes) -> str | None:
        return None if os.path.isdir(self.reader.absolute(file)) else hashlib.sha256(content).hexdigest()

    def _content(self, file: str, *, may_be_directory: bool) -> bytes:
        folder = self.reader.absolute(file)
        if not may_be_directory or not os.path.isdir(folder):
            return self.reader.read(file, limit_bytes=MAX_TRUST_FILE_BYTES)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise ReadingError(f"cannot be read ({os.strerror(error.errno or 0)})") from None
        if len(names) > MAX_DIRECTORY_FILES:
            raise ReadingError(f"has more than {MAX_DIRECTORY_FILES} files")
        total = hashlib.sha256()
        for name in names:
            full = os.path.join(folder, name)
            if os.path.isfile(full):
                # The name counts: OpenSSL finds a certificate in a directory by the hash that is its name.
                content = self.reader.read(full, limit_bytes=MAX_TRUST_FILE_BYTES, known_by=name)
                _hash_part(total, name, content)
        return total.digest()

    def _report(self, path: Path, file: str, error: ReadingError) -> None:
        if not self.written.is_usable(path):
            return
        # A path may come out of ${…}, and the reason may repeat it.
        hidden = self.written.is_secret(path)
        text = f"the file {MASK} cannot be used" if hidden else f"the file {file} {error}"
        self.problems.append(self.written.problem(path, text, "check the path, and who may read the file"))


def _without_newline(text: str) -> str:
    """As `${file:…}` is read; a block of YAML has one at its end, too."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _certificate(pem: bytes) -> CertificatePlan | None:
    try:
        not_before, not_after = dates_of(pem)
    except ValueError:
        return None  # what is wrong with it, comes to light when it is loaded
    return CertificatePlan(
        print=short_print_of(pem) or "",
        not_before=not_before,
        not_after=not_after,
        chain=len(certificates_in(pem)),
    )


def _day(epoch_s: int) -> str:
    """*epoch_s* as a date and a time of UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(epoch_s))
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s} s after 1970"


def _hash_part(total: hashlib._Hash, role: str, content: bytes) -> None:
    for part in (role.encode(errors="surrogateescape"), content):
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
