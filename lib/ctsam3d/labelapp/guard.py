"""What every request meets before any route: an id, a look at who sends it and from where, and a count of the reply."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Collection, Iterable
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctsam3d.labelapp.access import ANYBODY, Credentials, Tokens, find_person, set_person, take_credentials
from ctsam3d.labelapp.errors import REQUEST_ID, error_reply
from ctsam3d.labelapp.monitor import OTHER, Monitor
from ctsam3d.labelapp.signin import SIGN_IN, set_cookie

logger = logging.getLogger(__name__)

OPEN = (SIGN_IN, "/auth/", "/auth/token")  # where one gets a token accepted, or asks whether one is needed
_MAX_HEADERS = 16_384  # bytes of all headers of a request
_MAX_ADDRESS = 8192  # bytes of a path with its query
_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_SAFE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",  # an address may have held a token
    "cache-control": "private, no-cache",
}


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        tokens: None where anybody may do anything.
        monitor: counts the replies.
        max_body: bytes of a request.
        origins: of other sites whose pages may use the server, e.g. ``https://viewer.hospital.org``.
        hosts: names under which the server is known beside ``localhost``, addresses, and those of `origins`.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens | None,
        monitor: Monitor,
        max_body: int,
        origins: Iterable[str] = (),
        hosts: Collection[str] = (),
    ):
        self._app, self._tokens, self._monitor, self._max_body = app, tokens, monitor, max_body
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._hosts = {"localhost", *map(str.lower, hosts), *(urlsplit(o).hostname or "" for o in self._origins)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        scope[REQUEST_ID] = given if _ID.fullmatch(given) else uuid.uuid4().hex
        if scope["type"] == "websocket":
            refusal = self._refusal(scope)
            if refusal is None:
                return await self._app(scope, receive, send)
            return await send({"type": "websocket.close", "code": 1008})
        return await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = scope[REQUEST_ID]
                for name, value in _SAFE.items():
                    headers.setdefault(name, value)
            await send(message)

        sending_json = _Reasons(scope, receive, sending)
        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive, sending_json)
        except Exception as error:
            if not status:  # else the application has answered, and logged, already
                logger.error("request %s failed", scope[REQUEST_ID], exc_info=error)
                await error_reply(500, "the server failed; its log says why", scope[REQUEST_ID])(
                    scope, receive, sending
                )
        finally:
            route = getattr(scope.get("route"), "path", OTHER)
            self._monitor.request(scope["method"], route, status or 499, time.perf_counter() - begin)

    def _refusal(self, scope: Scope) -> Response | None:
        """The reply to a request that must not reach the application."""
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADERS:
            return self._error(scope, 431, f"headers must have at most {_MAX_HEADERS} bytes")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _MAX_ADDRESS:
            return self._error(scope, 414, f"the address must have at most {_MAX_ADDRESS} bytes")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_body:
            return self._error(scope, 413, f"the body must have at most {self._max_body} bytes, got {length[:20]}")
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._tokens is None and not self._known_host(host):
            # A page that has its name resolved to this machine's address would be let in by its browser.
            return self._error(scope, 421, f"host must be an address or a known name of this server, got {host[:80]!r}")
        if origin is not None and not self._own_origin(origin, host):
            return self._error(scope, 403, f"origin must be this server's own, got a page of {origin[:80]!r}")
        if origin is not None and "access-control-request-method" in headers and scope.get("method") == "OPTIONS":
            return None  # a browser asks on behalf of one of `origins`, and never with a token
        return self._stranger(scope, headers)

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """The reply to whoever brings no good token; a browser that brought one in the address goes on without it."""
        if self._tokens is None:
            set_person(scope, ANYBODY)
            return None
        found: Credentials = take_credentials(scope)
        now = time.time()
        person = find_person(self._tokens, found, now)
        page = scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        if person is not None:
            set_person(scope, person)
            if page and found.in_address:
                return self._without_token(scope, found, now)
            return None
        if scope["path"] in OPEN:
            return None
        if found.tokens or found.cookies:
            self._monitor.refused()
            logger.warning("request %s: no good token from %s", scope[REQUEST_ID], (scope.get("client") or "?")[0])
        if page:
            return RedirectResponse(f"{SIGN_IN}?next={quote(_address(scope))}", 303)
        return self._error(scope, 401, "a good token is needed, see the README", {"www-authenticate": "Bearer"})

    def _without_token(self, scope: Scope, found: Credentials, now: float) -> Response | None:
        reply = RedirectResponse(_address(scope), 303)
        for token in found.tokens:
            cookie = self._tokens.cookie(token, now)
            if cookie:
                set_cookie(reply, cookie, secure=scope["scheme"] == "https")
                return reply
        return None

    def _known_host(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "") if _plain(host) else ""
        try:
            ipaddress.ip_address(name.partition("%")[0])
            return True
        except ValueError:
            return name in self._hosts

    def _own_origin(self, origin: str, host: str) -> bool:
        return origin.lower() in self._origins or urlsplit(origin).netloc.lower() == host.lower() != ""

    @staticmethod
    def _error(scope: Scope, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        return error_reply(status, detail, scope[REQUEST_ID], headers)


class _Reasons:
    """An ASGI ``send`` that makes JSON of the errors that the libraries below say in plain text."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self._scope, self._receive, self._send = scope, receive, send
        self._held: Message | None = None
        self._text = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            if Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain"):
                self._held = message
                return
        if self._held is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._text += message.get("body", b"")
        if not message.get("more_body"):
            held, self._held = self._held, None
            kept = {
                k: v for k, v in Headers(raw=held["headers"]).items() if k not in ("content-type", "content-length")
            }
            text = self._text.decode("utf-8", "replace").strip()
            reply = error_reply(held["status"], text or "refused", self._scope[REQUEST_ID], kept)
            await reply(self._scope, self._receive, self._send)


def _plain(host: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9._%\[\]:-]+", host))


def _address(scope: Scope) -> str:
    """Path and query, as they are sent."""
    query = scope["query_string"].decode("latin-1")
    path = "/" + quote(scope["path"]).lstrip("/")  # two slashes would begin the name of another server
    return f"{path}?{query}" if query else path
