"""Files that are only appended to: what a killed process leaves costs one line."""

from ctsam3d.data.files import append_json, read_json_lines


def test_lines_come_back_and_a_torn_one_is_left_out(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    assert list(read_json_lines(path)) == []
    append_json(path, [])
    assert not path.exists()
    append_json(path, [{"a": 1}, {"b": "\u00e4"}])
    append_json(path, [{"c": [1, 2]}])
    assert list(read_json_lines(path)) == [{"a": 1}, {"b": "\u00e4"}, {"c": [1, 2]}]
    path.write_bytes(path.read_bytes()[:-4] + b"\xff")
    append_json(path, [{"d": None}])
    path.write_bytes(path.read_bytes() + b"[3]\n")
    assert list(read_json_lines(path)) == [{"a": 1}, {"b": "\u00e4"}, {"d": None}]
