"""One zoo of checkpoints for all drop-in tests."""

import pytest


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    pytest.importorskip("fairseq")
    from dropin.commands import make_zoo

    return make_zoo(tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("zoo"))
