"""Middleware: access checks before a request is read, a limit on its size, and security headers."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextpixel.server.calls import error_response

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": PAGE_POLICY,
}
OPEN = {"/", "/page.js", "/page.css", "/healthz"}  # allowed without a token


def guard(
    app: ASGIApp,
    *,
    token: str | None,
    hosts: Collection[str],
    origins: Collection[str],
    upload_bytes: int,
    root_path: str,
    observe: Callable[[str, int, float], None],
) -> ASGIApp:
    """Wrap an application; `observe` is called with the route, status and seconds of each request."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        start, status, received = time.monotonic(), 500, 0
        is_head = scope["method"] == "HEAD"  # handled as GET, without the body
        scope = {**scope, "root_path": root_path, "method": "GET" if is_head else scope["method"]}

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > upload_bytes:
                raise HTTPException(413, _too_large(upload_bytes))
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            refusal = refused(scope, token, hosts, origins, upload_bytes)
            if refusal is None:
                await app(scope, limited_receive, send_with_headers)
            else:
                headers = {"WWW-Authenticate": "Bearer"} if refusal[0] == 401 else None
                await error_response(*refusal, headers)(scope, receive, send_with_headers)
        finally:
            observe(getattr(scope.get("route"), "path", "other"), status, time.monotonic() - start)

    return guarded


def refused(
    scope: Scope, token: str | None, hosts: Collection[str], allowed: Collection[str], upload_bytes: int
) -> tuple[int, str] | None:
    """Status and message for a request that is refused, or None.

    Origin and Sec-Fetch-Site reveal requests that a page of another site makes in a user's browser, where only those of
    the `allowed` origins may. Host reveals DNS rebinding: it must be an IP address, localhost or one of `hosts`.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not _is_trusted(host, hosts):
        return 403, "the server does not accept this host name; allow it with the server's option allow_host"
    if not _is_own(scope, headers, host, allowed):
        return 403, "requests from pages of other sites are refused; allow a site with the server's option allow_origin"
    if token is not None and scope["path"].removeprefix(scope["root_path"]) not in OPEN:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(given.strip().encode(), token.encode()) or scheme.lower() != "bearer":
            return 401, "a token is required: send the header Authorization: Bearer TOKEN"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > upload_bytes:
        return 413, _too_large(upload_bytes)
    return None


def _is_own(scope: Scope, headers: Headers, host: str, allowed: Collection[str]) -> bool:
    """Whether the request comes from no page of another site, or from one of an `allowed` origin."""
    origins = headers.getlist("origin")
    if origins and all(origin in allowed for origin in origins):
        return True
    navigates = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not navigates:
        return False
    return all(origin.startswith("http") and origin.partition("://")[2] == host for origin in origins)


def _is_trusted(host: str, hosts: Collection[str]) -> bool:
    """Whether a Host header has an IP address, localhost or one of `hosts`; starlette's middleware knows names only."""
    try:
        parts = urlsplit(f"//{host}")
        if parts.netloc != host or "@" in host or parts.hostname is None:
            return False
        return parts.hostname in ("localhost", *hosts) or bool(ipaddress.ip_address(parts.hostname))
    except ValueError:
        return False


def _too_large(upload_bytes: int) -> str:
    return (
        f"expected a request of at most {upload_bytes / 1e6:g} MB (the server's max_upload_mb); send a smaller picture"
    )
