"""A file is whole or absent, and what stood in its place stays until then."""

import json

import pytest

from sd_fairseq.whole_files import whole, write_json


@pytest.mark.parametrize("before", [None, "old"])
def test_a_block_that_fails_changes_nothing(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt):
        with whole(str(path)) as part:
            with open(part, "w") as text:
                text.write("half")
                raise KeyboardInterrupt
    assert [place.read_text() for place in tmp_path.iterdir()] == ([before] if before else [])


def test_what_stood_there_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with whole(str(path)) as part:
        with open(part, "w") as text:
            text.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(str(tmp_path / "file"), {"a": object()})
    assert not list(tmp_path.iterdir())
    write_json(str(tmp_path / "file"), {"a": [1]})
    assert json.loads((tmp_path / "file").read_text()) == {"a": [1]}
