"""A server that authenticates connections, as NTLM and Negotiate do, and what a client needs to speak to it."""

from __future__ import annotations

from typing import Any

import requests
from requests.auth import AuthBase

from support.talker import Asked, Line, Talker


class Authenticating(Talker):
    """The one that has authenticated a connection is served by name on it, whatever comes over it; others get 401.

    `Authorization: NTLM hello` is answered with a challenge for this connection, `NTLM <challenge> <user>` on the same
    one authenticates it; `Negotiate <user>` and `Kerberos <user>` do so at once. `Basic` and `Bearer` are for one
    request.

    Attributes:
        handshakes: Users that have authenticated a connection, in order.
    """

    def __init__(self, *, tls: Any = None) -> None:
        super().__init__(self._answer, tls=tls)
        self.handshakes: list[str] = []
        self._user_on: dict[int, str] = {}

    def _answer(self, line: Line, asked: Asked) -> None:
        given = asked.headers.get("authorization") or asked.headers.get("proxy-authorization", "")
        scheme, _, words = given.partition(" ")
        match scheme.lower(), words.split():
            case "ntlm", ["hello"]:
                line.send(_head(401, f"WWW-Authenticate: NTLM challenge-{line.number}"))
                return
            case "ntlm", [challenge, user] if challenge == f"challenge-{line.number}":
                self._authenticate(line, user)
            case "ntlm", [_, _]:
                line.send(_head(401, "X-Why: another connection's challenge"))
                return
            case (("negotiate" | "kerberos"), [user]):
                self._authenticate(line, user)
            case (("basic" | "bearer"), [user]):
                line.send(_head(200, body=user))
                return
        user = self._user_on.get(line.number, "")
        line.send(_head(200, body=user) if user else _head(401, "WWW-Authenticate: NTLM"))

    def _authenticate(self, line: Line, user: str) -> None:
        self._user_on[line.number] = user
        self.handshakes.append(user)


def _head(status: int, *lines: str, body: str = "") -> bytes:
    more = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n{more}\r\n{body}".encode()


class NtlmLike(AuthBase):
    """As requests-ntlm does it: a hook on the 401, which sends the request twice more through the same adapter."""

    def __init__(self, user: str) -> None:
        self.user = user

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Connection"] = "Keep-Alive"
        request.register_hook("response", self._on_401)
        return request

    def _on_401(self, response: requests.Response, **kw: Any) -> requests.Response:
        if response.status_code != 401 or "Authorization" in response.request.headers:
            return response
        challenged = self._again(response, "NTLM hello", kw)
        challenge = challenged.headers["WWW-Authenticate"].partition(" ")[2]
        return self._again(challenged, f"NTLM {challenge} {self.user}", kw)

    def _again(self, response: requests.Response, credentials: str, kw: dict[str, Any]) -> requests.Response:
        response.content  # noqa: B018 - frees the connection, which the next message must meet
        response.raw.release_conn()
        request = response.request.copy()
        request.headers["Authorization"] = credentials
        answer: requests.Response = response.connection.send(request, **kw)  # type: ignore[attr-defined]
        answer.history.append(response)
        return answer
