"""What `headrace check` says about code that retries by itself: its attempts and ours multiply.

They are hints and no findings. Nothing in the file is wrong, and nobody can see from here whether such code runs at
all.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.config.check.problems import Path, Problem
from headrace.config.settings import Settings, Upstream
from headrace.config.source.written import Written
from headrace.policy.frozen import frozen


@frozen
class Sdk:
    """A library for one provider that makes further attempts of its own.

    Attributes:
        hosts: Domains it calls; their subdomains too.
        says: What it does, to go on from its name.
        fix: How its own attempts are turned off.
        decides: It calls over urllib3, with pool classes and attempts of its own, which stay the only ones.
    """

    name: str
    hosts: tuple[str, ...]
    says: str
    fix: str
    decides: bool = False


SDKS = (
    Sdk(
        # stripe-python, stripe/__init__.py: max_network_retries = 2; _http_client.py prefers requests.
        "stripe",
        ("stripe.com",),
        "makes up to 3 attempts by itself",
        "write in the application: stripe.max_network_retries = 0",
    ),
    Sdk(
        # azure-core, pipeline/policies/_retry.py: retry_total 10, retry_status 3; its default transport is requests.
        "the Azure SDK",
        ("azure.com", "azure.net", "windows.net"),
        "makes up to 4 attempts by itself",
        "give its clients retry_total=0",
    ),
    Sdk(
        # "Configuring Timeouts and Retries" of google-cloud-storage, which calls over requests.
        "google-cloud's clients over requests",
        ("googleapis.com",),
        "retry by themselves for minutes",
        "give their methods retry=None",
    ),
    Sdk(
        # boto3 guide, "Retries": 5 attempts in legacy mode, the default; botocore/config.py: total_max_attempts.
        "boto3",
        ("amazonaws.com",),
        "makes up to 5 attempts by itself",
        'to have fewer, give its clients Config(retries={"total_max_attempts": 2})',
        decides=True,
    ),
)


def hints(settings: Settings, written: Written) -> Iterator[Problem]:
    """For each upstream that is retried, what else may retry calls to it. One more hint if urllib3 is governed.

    And for each that an SDK over urllib3 calls, what becomes of those calls.
    """
    if not (settings.install.requests or settings.install.urllib3):
        return  # only calls by name are governed, and no SDK makes one
    retried = {name: one for name, one in settings.upstreams.items() if _retries(one)}
    for name, upstream in settings.upstreams.items():
        if upstream.mode != "off":
            yield from _of_upstream(
                upstream, ("upstreams", name), written, is_urllib3_governed=settings.install.urllib3
            )
    if settings.install.urllib3 and retried:
        most = max(upstream.retry.max_attempts for upstream in retried.values())
        yield written.problem(
            ("install", "urllib3"),
            "governs SDKs over urllib3 as well. Those that retry by themselves, and decorators such as tenacity's,"
            f" multiply with max_attempts here (up to {most})",
            "turn theirs off, or write max_attempts: 1 under the upstreams that they call",
        )


def _retries(upstream: Upstream) -> bool:
    return upstream.mode != "off" and upstream.retry.max_attempts > 1


def _of_upstream(
    upstream: Upstream, base: Path, written: Written, *, is_urllib3_governed: bool
) -> Iterator[Problem]:
    named: set[str] = set()
    places = [((*base, "base_url"), upstream.base_url)]
    places += [((*base, "match", index), prefix) for index, prefix in enumerate(upstream.match)]
    for path, prefix in places:
        sdk = _sdk_of(prefix.origin.host)
        # A host may be a secret, and the name of its provider would give it away.
        if sdk is None or sdk.name in named or written.is_secret(path):
            continue
        named.add(sdk.name)
        if sdk.decides and not is_urllib3_governed:
            told = "calls over urllib3, which is not governed here: its calls are neither changed nor counted"
            yield written.problem(
                path, f"{sdk.name} {told}", "to govern them, write install: {urllib3: true}"
            )
            continue
        if sdk.decides:
            told = f"{sdk.says}, and these stay the only ones: retry does not apply to its calls"
            yield written.problem(path, f"{sdk.name} {told}", sdk.fix)
            continue
        if not _retries(upstream):
            continue
        attempts = written.shown((*base, "retry", "max_attempts"), str(upstream.retry.max_attempts))
        yield written.problem(
            path,
            f"{sdk.name} {sdk.says}. Such attempts multiply with the {attempts} of retry.max_attempts",
            sdk.fix,
        )


def _sdk_of(host: str) -> Sdk | None:
    for sdk in SDKS:
        if any(host == known or host.endswith(f".{known}") for known in sdk.hosts):
            return sdk
    return None
