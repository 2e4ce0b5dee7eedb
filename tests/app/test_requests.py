"""`requests.py` against payloads written by hand as 3D Slicer and OHIF send them."""

import json

import pytest

from ctsam3d.labelapp.requests import ReplyOptions, check_labels, decode_params, parse_request

LABELS = ("spleen", "kidney_right", "kidney_left", "gallbladder", "liver")
SHAPE = (100, 90, 80)

OHIF_DEEPEDIT = """{"background": [[10, 11, 12]], "liver": [[50, 40, 30], [51, 41, 31]], "spleen": [],
  "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": false, "restore_label_idx": false}"""
OHIF_DEEPGROW = """{"foreground": [[50, 40, 30]], "background": [],
  "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": false, "restore_label_idx": false}"""
SLICER_DEEPEDIT = """{"spleen": [[1, 2, 3]], "kidney_right": [], "kidney_left": [], "gallbladder": [],
  "liver": [[50, 40, 30], [51, 41, 31]], "label": "liver", "expand": true, "result_extension": ".nrrd",
  "result_dtype": "uint8", "client_id": "user-xyz"}"""
SLICER_DEEPGROW = """{"label": "my lesion", "foreground": [[50, 40, 30]], "background": [[9, 9, 9]], "expand": true,
  "result_extension": ".nrrd", "result_dtype": "uint8", "client_id": null}"""


def parse(text, labels=LABELS, shape=SHAPE, client="address:10.0.0.1", **more):
    return parse_request({**decode_params(text), **more}, labels, shape, client)


def test_ohif_deepedit_takes_background_as_negative():
    request = parse(OHIF_DEEPEDIT)
    (liver,) = request.structures
    assert (liver.name, liver.value) == ("liver", 5)
    assert liver.positive == ((50, 40, 30), (51, 41, 31))
    assert liver.negative == ((10, 11, 12),)
    assert request.client == "address:10.0.0.1"
    assert request.reply == ReplyOptions(".nrrd", "uint8", False, True)


def test_slicer_deepedit_takes_the_other_labels_as_negative():
    request = parse(SLICER_DEEPEDIT)
    spleen, liver = request.structures
    assert (spleen.value, spleen.positive, spleen.negative) == (1, ((1, 2, 3),), ((50, 40, 30), (51, 41, 31)))
    assert (liver.value, liver.positive, liver.negative) == (5, ((50, 40, 30), (51, 41, 31)), ((1, 2, 3),))
    assert request.client == "id:user-xyz"
    assert request.expand


def test_replies_are_compressed_unless_a_client_says_no():
    assert not parse(OHIF_DEEPGROW, labels=()).reply.compress  # as OHIF does
    assert parse('{"liver": [[5, 5, 5]], "result_extension": ".nrrd"}').reply.compress


def test_background_comes_after_the_other_labels():
    request = parse(
        '{"background": [[7, 7, 7]], "liver": [[5, 5, 5]], "spleen": [[1, 1, 1]], "gallbladder": [[4, 4, 4]]}'
    )
    assert request.structures[1].negative == ((1, 1, 1), (5, 5, 5), (7, 7, 7))


def test_label_names_name_every_value_of_the_model_as_slicer_counts_them():
    names = dict(parse(SLICER_DEEPEDIT).label_names)
    assert [name for name, _ in sorted(names.items(), key=lambda item: item[1])] == list(LABELS)
    assert names["liver"] == 5


def test_deepgrow_takes_any_name_and_none():
    slicer, ohif = parse(SLICER_DEEPGROW, labels=()), parse(OHIF_DEEPGROW, labels=())
    assert slicer.label_names == (("my lesion", 1),)
    assert slicer.structures[0].positive == ((50, 40, 30),)
    assert slicer.structures[0].negative == ((9, 9, 9),)
    assert slicer.client == "address:10.0.0.1"  # client_id null is none
    assert ohif.label_names == (("structure", 1),)
    assert ohif.structures[0].negative == ()


def test_whole_valued_floats_are_voxels():
    click = parse('{"liver": [[50.0, 40, 3e1]]}').structures[0].positive[0]
    assert click == (50, 40, 30)
    assert all(type(index) is int for index in click)


@pytest.mark.parametrize("sent", ["image", "model", "device", "session"])
def test_params_cannot_choose_image_model_or_device(sent):
    assert parse('{"liver": [[1, 2, 3]]}', **{sent: "/etc/passwd"}) == parse('{"liver": [[1, 2, 3]]}')


def test_flags():
    assert not parse('{"liver": [[1, 2, 3]], "expand": "false"}').expand
    assert not parse('{"liver": [[1, 2, 3]], "result_write_to_file": false}').reply.write_file
    assert not parse('{"liver": [[1, 2, 3]]}').reply.box_only
    assert parse('{"liver": [[1, 2, 3]], "result_box": true}').reply.box_only


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ('{"liver": [[100, 3, 4]]}', ["click liver[0]", "(100, 3, 4)", "outside", "(100, 90, 80)"]),
        ('{"liver": [[1, 2, 3], [-1, 3, 4]]}', ["click liver[1]", "(-1, 3, 4)", "outside"]),
        ('{"liver": [[1, 2]]}', ["click liver[0]", "three", "[1, 2]"]),
        ('{"liver": [[1, 2, 3, 4]]}', ["click liver[0]", "three", "4"]),
        ('{"liver": [[]]}', ["click liver[0]", "three"]),
        ('{"liver": [[NaN, 2, 3]]}', ["click liver[0]", "finite", "nan"]),
        ('{"liver": [[1, 2, Infinity]]}', ["click liver[0]", "finite", "inf"]),
        ('{"liver": [[1.5, 2, 3]]}', ["click liver[0]", "whole", "1.5"]),
        ('{"liver": [["1", 2, 3]]}', ["click liver[0]", "numbers", "'1'"]),
        ('{"liver": [[true, 2, 3]]}', ["click liver[0]", "numbers", "True"]),
        ('{"liver": ["abc"]}', ["click liver[0]", "three", "'abc'"]),
        ('{"liver": [1, 2, 3]}', ["click liver[0]", "three", "1"]),
        ('{"liver": "here"}', ["liver", "list", "'here'"]),
        ('{"liver": {"i": 1}}', ["liver", "list", "'i'"]),
        ('{"liver": [[1' + "0" * 400 + ", 2, 3]]}", ["click liver[0]", "outside the volume"]),
        ('{"background": [[NaN, 2, 3]], "liver": [[1, 2, 3]]}', ["click background[0]", "finite"]),
        ('{"background": [[1, 2, 3]]}', ["positive click", "none", "spleen"]),
        ('{"liver": [], "label": "liver"}', ["positive click", "none"]),
        ("{}", ["positive click", "none"]),
        ('{"livr": [[1, 2, 3]]}', ["'livr'", "label", "[[1, 2, 3]]"]),
        ('{"null": [[1, 2, 3]]}', ["'null'", "label"]),
        ('{"foreground": [[1, 2, 3]], "label": "liver"}', ["'foreground'", "label"]),
        ('{"liver": [[1, 2, 3]], "background": [[1, 2, 3]]}', ["(1, 2, 3)", "background[0]", "liver"]),
        ('{"liver": [[1, 2, 3]], "spleen": [[1, 2, 3]]}', ["(1, 2, 3)", "liver[0]", "spleen"]),
        ('{"liver": [[1, 2, 3]], "result_extension": "/../x"}', ["result_extension", ".nrrd", "'/../x'"]),
        ('{"liver": [[1, 2, 3]], "result_extension": [1]}', ["result_extension", "[1]"]),
        ('{"liver": [[1, 2, 3]], "result_dtype": "object"}', ["result_dtype", "uint8", "'object'"]),
        ('{"liver": [[1, 2, 3]], "result_box": [[0, 0, 0], [1, 1, 1]]}', ["result_box", "true or false", "[[0"]),
        ('{"liver": [[1, 2, 3]], "expand": "maybe"}', ["expand", "true or false", "'maybe'"]),
        ('{"liver": [[1, 2, 3]], "client_id": ["a"]}', ["client_id", "['a']"]),
        ('{"liver": [[1, 2, 3]], "save_label": true}', ["save_label", "/datastore/label"]),
    ],
)
def test_rejected_with_names_rule_and_value(params, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        parse(params)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ('{"foreground": [], "background": [[1, 2, 3]], "label": "liver"}', ["foreground", "positive click", "none"]),
        ('{"foreground": null}', ["foreground", "positive click", "none"]),
        ('{"liver": [[1, 2, 3]]}', ["'liver'", "foreground", "background"]),
        ('{"foreground": [[100, 0, 0]]}', ["click foreground[0]", "(100, 0, 0)", "outside"]),
        ('{"foreground": [[1, 2, 3]], "background": [[1, 2, 3]]}', ["(1, 2, 3)", "background[0]", "foreground"]),
        ('{"foreground": [[1, 2, 3]], "label": 3}', ["label", "name", "3"]),
    ],
)
def test_rejected_points(params, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        parse(params, labels=())
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_too_many_clicks():
    clicks = json.dumps({"liver": [[i % 100, i // 100, 0] for i in range(1001)]})
    with pytest.raises(ValueError, match=r"liver must hold at most 1000 clicks, got 1001"):
        parse(clicks)


@pytest.mark.parametrize("text", ["{", "not json", "[1, 2]", '"liver"', "3", "null", "[" * 100_000])
def test_params_that_are_no_json_object(text):
    with pytest.raises(ValueError, match="params must be"):
        decode_params(text)


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_params_may_be_absent(text):
    assert decode_params(text) == {}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([""], "at least one"),
        (["liver", ""], "empty"),
        (["liver", " liver"], "'liver' twice"),
        (["liver", "background"], "'background'"),
        (["liver", "image"], "'image'"),
        ([f"label {n}" for n in range(256)], "at most 255"),
    ],
)
def test_labels_of_a_model(labels, words):
    with pytest.raises(ValueError, match=words):
        check_labels(labels)
