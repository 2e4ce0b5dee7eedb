"""Signing in: a page for browsers, and the questions that MONAI Label's client and 3D Slicer ask for the same."""

from __future__ import annotations

import html
import time
from typing import Annotated

from fastapi import APIRouter, Form, HTTPException
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import HTTPConnection, Request

from ctsam3d.labelapp.access import COOKIE, COOKIE_SECONDS, Annotator, Tokens, person_of

SIGN_IN = "/signin"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>CT-SAM3D: sign in</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px system-ui,sans-serif;margin:15vh auto;max-width:22em;padding:0 1em}}
input,button{{font:inherit;box-sizing:border-box;width:100%;margin:.4em 0;padding:.5em}}.bad{{color:#b00020}}</style>
</head><body><h1>CT-SAM3D</h1>
<form method="post" action="{action}"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input name="next" type="hidden" value="{next}"><button>Sign in</button></form>
<p class="bad" role="alert">{reason}</p></body></html>
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"


def set_cookie(reply: Response, cookie: str, secure: bool) -> None:
    """Signs a browser in; scripts cannot read the cookie, and other sites' pages cannot send it."""
    reply.set_cookie(COOKIE, cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="lax", secure=secure)


def signin_router(tokens: Tokens | None) -> APIRouter:
    """The routes that need no token, and the one that ends a browser's session."""
    router = APIRouter(tags=["Sign in"])

    @router.get(SIGN_IN, response_class=HTMLResponse)
    def page(next: str = "/"):
        """A form for the token."""
        return _page(next, "")

    @router.post(SIGN_IN)
    def sign_in(http: Request, token: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "/"):
        """Sets the cookie and goes on to `next`, a path of this server."""
        if tokens is None:
            return RedirectResponse(_local(next), 303)
        cookie = tokens.cookie(token.strip(), time.time())
        if cookie is None:
            return _page(next, "This token is not known.", 401)
        reply = RedirectResponse(_local(next), 303)
        set_cookie(reply, cookie, secure=http.url.scheme == "https")
        return reply

    @router.post("/signout")
    def sign_out(person: Annotator):
        """Ends a browser's session."""
        reply = RedirectResponse(SIGN_IN, 303)
        reply.delete_cookie(COOKIE, httponly=True, samesite="lax")
        return reply

    _add_monai_label(router, tokens)
    return router


def _add_monai_label(router: APIRouter, tokens: Tokens | None) -> None:
    """What MONAI Label's client asks where Keycloak keeps the users: here the password is the token."""

    @router.get("/auth/")
    def enabled(http: HTTPConnection):
        """Whether whoever asks still has to sign in."""
        return {"enabled": person_of(http.scope) is None, "realm": ""}

    @router.post("/auth/token")
    def token(username: Annotated[str, Form()] = "", password: Annotated[str, Form()] = ""):
        """The token again, as MONAI Label's client will send it, where it is a good one."""
        if tokens is None:
            return {"access_token": None, "token_type": None}
        if tokens.person(password.strip()) is None:
            raise HTTPException(401, "the password must be a token of this server", {"www-authenticate": "Bearer"})
        return {"access_token": password.strip(), "token_type": "bearer"}

    @router.get("/auth/token/valid")
    def valid(person: Annotator):
        """Whose token a request has."""
        return {"username": person.name or person.role, "roles": [person.role]}


def _page(next: str, reason: str, status: int = 200) -> HTMLResponse:
    body = _PAGE.format(action=SIGN_IN, next=html.escape(_local(next)), reason=html.escape(reason))
    return HTMLResponse(body, status, {"content-security-policy": _POLICY, "cache-control": "no-store"})


def _local(address: str) -> str:
    """`address` where it is a path of this server, else the first page."""
    plain = address.startswith("/") and address.isprintable() and "\\" not in address
    return address if plain and not address.startswith("//") else "/"
