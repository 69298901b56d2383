"""One event of each type, for the tests of what becomes of them."""

from __future__ import annotations

from headrace.observe import events

OPENED = events.CircuitChanged(
    upstream="billing",
    from_state="closed",
    to_state="open",
    reason="failure_rate",
    failure_rate=0.62,
    calls=40,
    failures=25,
    consecutive_failures=3,
    threshold=0.5,
    open_for_s=5.2,
)

EVERY_EVENT: list[events.Event] = [
    events.TlsRotated(
        upstream="billing",
        certificate="0123456789abcdef",
        not_after_s=1_800_000_000,
        was="fedcba9876543210",
        closed=3,
        draining=1,
        drain_s=30.0,
        chain=1,
        was_chain=2,
    ),
    events.TlsRotationRefused(
        upstream="billing",
        reason="/etc/tls/key.pem: this key does not belong to the certificate /etc/tls/cert.pem\n    renew both",
        in_force="0123456789abcdef",
        not_after_s=None,
    ),
    events.LeaseLeaked(upstream="billing", call_site="app.py:7"),
    events.LeaseHeld(upstream="billing", call_site="app.py:7", held_s=31.04),
    events.HeadraceStarted(files=("/etc/u.yaml",), digest="abc123", upstreams=1, mode_override="observe"),
    events.HeadraceStopped(files=("/etc/u.yaml",)),
    events.ModeOverridden(mode="off"),
    events.ConfigApplied(
        files=("/etc/u.yaml",),
        digest="abc123",
        added=("a",),
        removed=(),
        changed=tuple(f"u{n}" for n in range(12)),
        unchanged=3,
        duration_s=0.012,
    ),
    events.ConfigRejected(
        files=("/etc/u.yaml",),
        problems="u.yaml:3:5: upstreams.a\n    no such key\nu.yaml:9:1: upstreams.b\n    100 % wrong",
        problem_count=2,
        digest_in_force="abc123",
        loaded_at="14:02:11",
    ),
    events.ConfigHeld(files=("/etc/u.yaml",), removed=("a", "b", "c"), upstreams=4, hold_s=5.0),
    OPENED,
    events.CircuitChanged(
        upstream="billing", from_state="open", to_state="half_open", reason="open_for elapsed"
    ),
    events.UpstreamReset(upstream="billing", state="half_open", tokens=0.0),
    events.PoolResized(
        upstream="billing",
        from_size=10,
        to_size=14,
        reason="waiting",
        waiting=12,
        peak_inuse=10,
        rate_rps=40.0,
        baseline_rps=20.7,
    ),
    events.CallUngoverned(reason="tls", upstream="billing", call_site="app.py:12"),
    events.RetriesDelegated(upstream="billing", call_site="app.py:12"),
    events.PredicateFailed(upstream="billing", function="shop.billing:is_error", error="KeyError"),
    events.RetriesWithheld(
        upstream="billing",
        method="POST",
        reason="method",
        why="not retried: POST may have arrived",
        call_site="app.py:12",
    ),
    events.CallOnEventLoop(upstream="billing", wanted="wait for a connection", call_site="app.py:12"),
    events.PatchedLate(),
    events.CertificateExpires(
        file="/etc/tls/client.pem", kind="client", upstreams=("billing",), left_s=86400.0
    ),
    events.CertificateExpires(file="/etc/tls/ca.pem", kind="ca", upstreams=("billing",), left_s=-7200.0),
    events.SecretOld(
        file="/run/secrets/token", kind="header", upstreams=("billing",), age_s=3e5, max_age_s=259200.0
    ),
    events.SecretRenewed(file="/run/secrets/token", upstream="billing"),
    events.PoolFault(upstream="billing", error="TypeError: no", raised_at="lease.py:1"),
    events.PoolSuspect(upstream="billing", misses=3, closed=2),
    events.WatchDegraded(reason="inotify: too many watches"),
    events.DeadlineRefused(header="X-Request-Timeout"),
    events.DeadlinesDistrusted(header="X-Request-Timeout"),
    events.ErrorMapped(upstream="billing", status=503, error="CircuitOpenError", request_id="r-1"),
    events.ThreadLingers(thread_name="headrace-warmup", waited_s=1.0),
    events.LifespanUnsupported(
        error="ValueError: Django can only handle ASGI/HTTP connections, not lifespan."
    ),
    events.TlsVerificationDisabled(upstream="billing"),
    events.TlsWouldRefuse(
        upstream="billing",
        host="billing.internal:443",
        issuer="CN=Corporate Root, O=Acme",
        reason="unable to get local issuer certificate",
    ),
    events.ConfigWarning(text="HEADRACE_MOED is not a variable of headrace; did you mean HEADRACE_MODE?"),
]
