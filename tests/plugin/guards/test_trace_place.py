"""A trace may stand beside the data, and not in the place of what fairseq reads of them."""

import pytest

pytest.importorskip("fairseq")
from sd_fairseq.plugin.guards.errors import InputError  # noqa: E402
from sd_fairseq.plugin.guards.trace_place import check_trace, data_files  # noqa: E402

SPLIT = "test.source-target."
READ = ["dict.source.txt", SPLIT + "source.bin", SPLIT + "target.idx", SPLIT + "source"]


@pytest.mark.parametrize("name", READ)
def test_a_file_of_the_data_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="--sd-trace .*same file as the input"):
        check_trace(str(tmp_path / name), data_files(f"no/such/folder:{tmp_path}"))


@pytest.mark.parametrize("name", ["trace.jsonl", "test.trace.jsonl", "trace"])
def test_a_trace_of_before_is_written_anew(tmp_path, name):
    (tmp_path / name).write_text("of before")
    check_trace(str(tmp_path / name), data_files(str(tmp_path)))
