"""Who may do what: tokens of a file, two roles, and the four ways in which a token comes with a request.

* a header, ``Authorization: Bearer TOKEN`` (or Basic, with the token as password);
* the query of the address, ``?token=TOKEN``;
* the beginning of the path, ``/token/TOKEN/…``: the one part of a server's address that MONAI Label's client, and so
  3D Slicer, sends with every request;
* a cookie, which the sign-in page sets. It holds no token: an expiry and its HMAC, with the token as key, so that it
  ends with the token and outlives a restart.

Without a file of tokens everybody is an admin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, HTTPException
from starlette.requests import HTTPConnection, Request

from ctsam3d.data.files import atomic_path, file_signature

logger = logging.getLogger(__name__)

ADMIN, ANNOTATOR = "admin", "annotator"
COOKIE = "ctsam3d"
COOKIE_SECONDS = 12 * 3600  # a working day
_PERSON = "ctsam3d.person"  # key of the ASGI scope
_MIN_TOKEN = 8
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")  # what needs no escape in an address
_PREFIX = re.compile(r"/token/([^/]+)(/.*)?")
_RAW_PREFIX = re.compile(rb"/token/[^/]+")


@dataclass(frozen=True)
class Person:
    """Whose request it is; `name` as the file of tokens says, empty for anybody; `key` differs for each token."""

    name: str
    role: str
    key: str = ""


ANYBODY = Person("", ADMIN)  # where there are no tokens


@dataclass(frozen=True)
class _Entry:
    person: Person
    digest: bytes  # SHA-256 of the token
    key: bytes  # of its cookies


class Tokens:
    """The tokens of a file, read again when it changes; a file that cannot be used leaves the tokens as they were.

    Each line is ``ROLE NAME TOKEN``, ``ROLE TOKEN``, or ``TOKEN`` alone, which is an admin's; ``#`` begins a comment.
    Where there is no file yet, one is made with a token for each role.

    Raises:
        ValueError: the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock = threading.Lock()
        if not self.path.exists():
            _make(self.path)
        self._signature = file_signature(self.path)
        self._entries = _read(self.path)

    def person(self, token: str) -> Person | None:
        """Whose token it is; takes as long whichever it is."""
        digest, found = _digest(token), None
        for entry in self._current():
            if hmac.compare_digest(entry.digest, digest):
                found = entry.person
        return found

    def person_of_cookie(self, value: str, now: float) -> Person | None:
        """Whose cookie it is, until it ends.

        Args:
            now: seconds since the epoch.
        """
        expiry, _, signature = value.partition(".")
        if not (expiry.isascii() and expiry.isdecimal()) or len(expiry) > 15 or int(expiry) <= now:
            return None
        found = None
        for entry in self._current():
            if hmac.compare_digest(_sign(entry.key, expiry).encode(), signature.encode("utf-8", "replace")):
                found = entry.person
        return found

    def cookie(self, token: str, now: float) -> str | None:
        """A cookie of whoever has the token; None where nobody has it."""
        digest, found, expiry = _digest(token), None, str(int(now) + COOKIE_SECONDS)
        for entry in self._current():
            if hmac.compare_digest(entry.digest, digest):
                found = f"{expiry}.{_sign(entry.key, expiry)}"
        return found

    def _current(self) -> tuple[_Entry, ...]:
        signature = file_signature(self.path)
        if signature != self._signature:
            with self._lock:
                self._signature = signature
                try:
                    self._entries = _read(self.path)
                    logger.info("tokens: %d, read again from %s", len(self._entries), self.path)
                except ValueError as error:
                    logger.error("the tokens stay as they were: %s", error)
        return self._entries


# ---- the file ------------------------------------------------------------------------------------------------------


def _make(path: Path) -> None:
    lines = [
        "# ROLE NAME TOKEN, a line for each person; roles are admin and annotator.",
        *(f"{role} {role}1 {secrets.token_urlsafe(24)}" for role in (ADMIN, ANNOTATOR)),
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)
    logger.warning("%s was made, with a token for an admin and one for an annotator", path)


def _read(path: Path) -> tuple[_Entry, ...]:
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--conf token_file must be a text file that can be read, got {path}: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("%s can be read by other users of this machine: chmod 600 it", path)
    entries: list[_Entry] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            entries.append(_entry(words, f"{path}, line {number}"))
    if not entries:
        raise ValueError(f"--conf token_file must hold at least one token, {path} holds none")
    if len({entry.digest for entry in entries}) < len(entries):
        raise ValueError(f"--conf token_file must give each token once, {path} repeats one")
    return tuple(entries)


def _entry(words: list[str], where: str) -> _Entry:
    if len(words) > 3:
        raise ValueError(f"a line must be ROLE NAME TOKEN, got {len(words)} words in {where}")
    role, name, token = {1: [ADMIN, "", *words], 2: [words[0], "", words[-1]]}.get(len(words), words)
    if role not in (ADMIN, ANNOTATOR):
        raise ValueError(f"a token's role must be {ADMIN} or {ANNOTATOR}, got {role!r} in {where}")
    if not _TOKEN.fullmatch(token) or len(token) < _MIN_TOKEN:
        raise ValueError(f"a token must be at least {_MIN_TOKEN} letters, digits and ._~-, see {where}")
    digest = _digest(token)
    person = Person(name or role, role, hashlib.sha256(digest).hexdigest()[:16])
    return _Entry(person, digest, hashlib.sha256(f"cookie of {token}".encode()).digest())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _sign(key: bytes, expiry: str) -> str:
    return hmac.new(key, expiry.encode(), "sha256").hexdigest()


# ---- the request ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Credentials:
    """What a request brings: tokens, in the order of their places, and cookies; and whether the address holds one."""

    tokens: tuple[str, ...]
    cookies: tuple[str, ...]
    in_address: bool


def take_credentials(scope: MutableMapping[str, Any]) -> Credentials:
    """The credentials of an ASGI request; those in its address are taken out of it, so that nobody keeps them."""
    headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    tokens = [token for name, value in headers if name == b"authorization" and (token := _authorization(value))]
    cookies = [morsel for name, value in headers if name == b"cookie" for morsel in _cookies(value)]
    found = _PREFIX.fullmatch(scope["path"])
    if found:
        scope["path"] = found[2] or "/"
        scope["raw_path"] = _RAW_PREFIX.sub(b"", scope.get("raw_path") or b"", count=1) or b"/"
        tokens.append(found[1])
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=None)
    asked = [value for key, value in query if key == "token"]
    if asked:
        scope["query_string"] = urlencode([(k, v) for k, v in query if k != "token"]).encode("ascii")
    return Credentials((*tokens, *asked), tuple(cookies), bool(found or asked))


def _authorization(value: str) -> str | None:
    scheme, _, text = value.partition(" ")
    if scheme.lower() == "bearer":
        return text.strip() or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(text.strip(), validate=True).decode("utf-8").partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _cookies(value: str) -> Iterable[str]:
    try:
        found = SimpleCookie(value).get(COOKIE)
    except CookieError:
        return ()
    return (found.value,) if found else ()


def find_person(tokens: Tokens | None, found: Credentials, now: float) -> Person | None:
    """Whose request it is: of several credentials one that is good is enough; None where there is none."""
    if tokens is None:
        return ANYBODY
    people = [tokens.person(token) for token in found.tokens]
    people += [tokens.person_of_cookie(cookie, now) for cookie in found.cookies]
    return next(filter(None, people), None)


def set_person(scope: MutableMapping[str, Any], person: Person) -> None:
    """Notes whose request it is, for the routes."""
    scope[_PERSON] = person


# ---- in routes -----------------------------------------------------------------------------------------------------


def person_of(scope: MutableMapping[str, Any]) -> Person | None:
    """Whose request it is; None where nobody was let in."""
    return scope.get(_PERSON)


def client_of(http: Request) -> str:
    """Who sends a request: whose token it has and from which address; the bearer of any token where there are none."""
    address = f"address:{http.client.host if http.client else 'unknown'}"
    person = person_of(http.scope)
    if person is not None and person.key:
        return f"token:{person.key} {address}"
    scheme, _, token = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return f"token:{hashlib.sha256(token.strip().encode()).hexdigest()}"
    return address


async def _annotator(connection: HTTPConnection) -> Person:
    person = person_of(connection.scope)
    if person is None:
        raise HTTPException(401, "a good token is needed, see the README", {"www-authenticate": "Bearer"})
    return person


async def _admin(connection: HTTPConnection) -> Person:
    person = await _annotator(connection)
    if person.role != ADMIN:
        raise HTTPException(403, f"role must be {ADMIN} for this, the token of {person.name!r} has {person.role}")
    return person


Annotator = Annotated[Person, Depends(_annotator)]  # anybody who was let in
Admin = Annotated[Person, Depends(_admin)]
