"""What a client may call things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctsam3d.labelapp.names import (
    STORED_SUFFIXES,
    check_image_id,
    check_new_id,
    check_object,
    check_session_id,
    check_tag,
    decode_object,
    suffix_of,
)
from ctsam3d.labelapp.requests import RequestError

SESSION = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


@pytest.mark.parametrize(
    "image", ["scan", "1.2.840.113619", "2: Thin CT (1)", "Müller, A", "a_b-c.d", "CT@12=3 [x]+", "日本"]
)
def test_ids_of_new_images(image):
    assert check_new_id(image) == check_image_id(image) == image


@pytest.mark.parametrize("image", ["it's 50%", "a;b", "x.nii.gz", "-x", "$HOME", "a..b", "x ", "😀"])
def test_ids_that_a_file_may_have_but_no_new_one(image):
    assert check_image_id(image) == image
    with pytest.raises(RequestError):
        check_new_id(image)


@given(st.text(max_size=60) | st.text(alphabet="a./\\é", min_size=1, max_size=210))
def test_an_accepted_id_is_one_name_of_a_file(image):
    try:
        check_image_id(image)
    except RequestError as error:
        assert error.status == 400
    else:
        assert image and len(image.encode()) <= 200 and not image.startswith(".")
        assert not set(image) & set("/\\\0\n\r")


def test_tags_sessions_and_suffixes():
    assert [check_tag(tag) for tag in ("", "final", "version_2", "A-b")] == ["final", "final", "version_2", "A-b"]
    assert check_session_id(SESSION) == SESSION
    for name in ("/home/me/a.nii.gz", "C:\\x\\a.NII.GZ", ".nii.gz", "a.b.nii.gz"):
        assert suffix_of(name, STORED_SUFFIXES, "file") == ".nii.gz"
    for tag in (".", "a.b", "a/b", "-x", "é", "x" * 65):
        with pytest.raises(RequestError, match="tag must be"):
            check_tag(tag)
    for session in ("", SESSION.upper(), f"{{{SESSION}}}", SESSION.replace("-", ""), "../" + SESSION):
        with pytest.raises(RequestError, match="session_id must be") as caught:
            check_session_id(session)
        assert caught.value.status == 404
    for name in (None, "", "a.txt", "a.nii.gz/..", "../a.nii.gz", "a\0.nii.gz"):
        with pytest.raises(RequestError, match="file must"):
            suffix_of(name, STORED_SUFFIXES, "file")


@pytest.mark.parametrize("text", [None, "", "{}", '{"x": [1, 2.5, null, true, "é", {"y": []}]}', '{"x": 1e300}'])
def test_objects(text):
    assert isinstance(decode_object(text, "params"), dict)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "params must be a JSON object"),
        ("{", "params must be JSON, got '{'"),
        ('{"x": NaN}', "strict JSON"),
        ('{"x": [1e999]}', "strict JSON"),
        ('{"x": "\\ud800"}', "strict JSON"),
        ('{"a":' * 51 + "1" + "}" * 51, "at most 50 deep"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_object(text, words):
    with pytest.raises(RequestError, match=words):
        decode_object(text, "params")


def test_an_object_that_is_nested_wide_is_fine():
    assert check_object({"x": [{"y": n} for n in range(10_000)]}, "params")
