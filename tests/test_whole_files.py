"""A file is whole or absent, and what stood in its place stays until then."""

import json
import os
import stat
import threading

import pytest

from sd_fairseq.errors import InputError
from sd_fairseq.whole_files import check_places, whole, write_json, write_text


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


def test_a_link_stays_a_link_and_the_mode_of_a_file_is_kept(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_text(str(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_regular_file_is_written_into(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    write_text(str(path), "text")
    reader.join(10)
    assert read == ["text"] and stat.S_ISFIFO(path.stat().st_mode) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("same", ["path", "spelling", "symbolic link", "hard link"])
def test_an_output_over_an_input_is_refused_however_it_is_named(tmp_path, same):
    (tmp_path / "in").write_text("mine")
    other = tmp_path / "other"
    if same == "symbolic link":
        other.symlink_to("in")
    elif same == "hard link":
        os.link(tmp_path / "in", other)
    else:
        other = tmp_path / "in" if same == "path" else os.path.join(str(tmp_path), ".", "in")
    with pytest.raises(InputError, match="same file as the input"):
        check_places([str(other)], [None, str(tmp_path / "in")])


def test_two_outputs_in_one_new_file_are_refused_and_devices_are_not(tmp_path):
    new = str(tmp_path / "new")
    with pytest.raises(InputError, match="same file as the output"):
        check_places([new, None, new], [])
    check_places([os.devnull, os.devnull, new], [os.devnull])
