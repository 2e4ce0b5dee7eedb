"""Tokens: their file, their cookies, and the ways in which they come with a request."""

import base64

import pytest

from ctsam3d.labelapp.access import ADMIN, ANNOTATOR, COOKIE_SECONDS, Tokens, find_person, take_credentials

CHIEF, READER = "the-chiefs~token", "reader-token-0123456789"

# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# people\nadmin chief {CHIEF}\nannotator reader {READER}  # since May\n\n")
    path.chmod(0o600)
    return path


def test_whose_token_it_is(token_file):
    tokens = Tokens(token_file)
    chief, reader = tokens.person(CHIEF), tokens.person(READER)
    assert (chief.name, chief.role, reader.name, reader.role) == ("chief", ADMIN, "reader", ANNOTATOR)
    assert chief.key != reader.key and CHIEF not in chief.key
    for other in ("", CHIEF[:-1], CHIEF + "x", "chief", "\ud800", "é"):
        assert tokens.person(other) is None


@pytest.mark.parametrize(
    ("line", "role", "name"),
    [("abcdefgh", ADMIN, ADMIN), ("annotator abcdefgh", ANNOTATOR, ANNOTATOR), ("admin me abcdefgh", ADMIN, "me")],
)
def test_a_line_may_leave_out_name_and_role(tmp_path, line, role, name):
    (tmp_path / "tokens").write_text(line)
    person = Tokens(tmp_path / "tokens").person("abcdefgh")
    assert (person.role, person.name) == (role, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one token"),
        ("# none\n", "at least one token"),
        ("chief me abcdefgh", "role must be admin or annotator, got 'chief'"),
        ("admin me short", "at least 8 letters"),
        ("admin me with/slash", "letters, digits and"),
        ("admin a b abcdefgh", "got 4 words"),
        ("admin abcdefgh\nannotator abcdefgh", "each token once"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        Tokens(tmp_path / "tokens")
    assert "abcdefgh" not in str(caught.value)


def test_a_file_that_is_not_there_is_made_for_the_owner_alone(tmp_path):
    Tokens(tmp_path / "new" / "tokens")
    path = tmp_path / "new" / "tokens"
    assert path.stat().st_mode & 0o777 == 0o600
    found = dict(line.split()[::2] for line in path.read_text().splitlines() if not line.startswith("#"))
    assert set(found) == {ADMIN, ANNOTATOR} and all(len(token) == 32 for token in found.values())
    assert Tokens(path).person(found[ADMIN]).role == ADMIN


def test_a_changed_file_counts_at_once_and_a_broken_one_not_at_all(token_file):
    tokens = Tokens(token_file)
    cookie = tokens.cookie(READER, now=1000)
    token_file.write_text(f"admin chief {CHIEF}\n")
    assert tokens.person(READER) is None and tokens.person_of_cookie(cookie, now=1001) is None
    token_file.write_text("nonsense nonsense nonsense nonsense")
    assert tokens.person(CHIEF).role == ADMIN
    token_file.unlink()
    assert tokens.person(CHIEF).role == ADMIN


def test_a_cookie_ends_and_cannot_be_made_longer(token_file):
    tokens = Tokens(token_file)
    assert tokens.cookie("unknown-token", now=1000) is None
    cookie = tokens.cookie(READER, now=1000)
    assert READER not in cookie
    assert tokens.person_of_cookie(cookie, now=1000 + COOKIE_SECONDS - 1).name == "reader"
    assert tokens.person_of_cookie(cookie, now=1000 + COOKIE_SECONDS) is None
    expiry, _, signature = cookie.partition(".")
    for forged in (
        f"{int(expiry) + 1}.{signature}",
        f"{expiry}.{'0' * 64}",
        f"{expiry}.",
        expiry,
        "",
        f"-1.{signature}",
        f"{'9' * 5000}.{signature}",
        f"٣.{signature}",
        f"{expiry}.\ud800",
    ):
        assert tokens.person_of_cookie(forged, now=1001) is None
    assert Tokens(token_file).person_of_cookie(cookie, now=1001).name == "reader"  # also after a restart


# ---- the request ---------------------------------------------------------------------------------------------------


def scope(path="/info/", query="", **headers):
    return {
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
    }


BASIC = base64.b64encode(f"me:{READER}".encode()).decode()


@pytest.mark.parametrize(
    ("request_scope", "address"),
    [
        (scope(authorization=f"Bearer {READER}"), ("/info/", b"")),
        (scope(authorization=f"bearer  {READER} "), ("/info/", b"")),
        (scope(authorization=f"Basic {BASIC}"), ("/info/", b"")),
        (scope(query=f"token={READER}"), ("/info/", b"")),
        (scope(query=f"image=a%20b&token={READER}&x="), ("/info/", b"image=a+b&x=")),
        (scope(f"/token/{READER}/info/"), ("/info/", b"")),
        (scope(f"/token/{READER}"), ("/", b"")),
        (scope(f"/token/{READER}/", "x=1"), ("/", b"x=1")),
        (scope(authorization="Bearer undefined", query=f"token={READER}"), ("/info/", b"")),
        (scope(query=f"token=x&token={READER}"), ("/info/", b"")),
    ],
)
def test_a_token_is_found_and_taken_out_of_the_address(token_file, request_scope, address):
    found = take_credentials(request_scope)
    assert find_person(Tokens(token_file), found, now=0).name == "reader"
    assert (request_scope["path"], request_scope["query_string"]) == address
    assert READER.encode() not in request_scope["raw_path"] and request_scope["raw_path"].startswith(b"/")


@pytest.mark.parametrize(
    "request_scope",
    [
        scope(),
        scope(authorization="Bearer"),
        scope(authorization="Bearer wrong"),
        scope(authorization=READER),
        scope(authorization=f"Digest {READER}"),
        scope(authorization="Basic ???"),
        scope(authorization="Basic " + base64.b64encode(b"\xff\xfe:x").decode()),
        scope(cookie=f"ctsam3d={READER}"),
        scope(cookie="ctsam3d=1.x; ctsam3d"),
        scope(cookie="=;;;\x01"),
        scope(f"/x/token/{READER}/info/"),
        scope(f"/token//{READER}/info/"),
        scope(query=f"Token={READER}"),
    ],
)
def test_what_is_no_token(token_file, request_scope):
    assert find_person(Tokens(token_file), take_credentials(request_scope), now=0) is None
