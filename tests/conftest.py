"""Makes ``factories`` importable; every test starts from the same random state on one thread, long files first."""

import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def pytest_configure(config):
    """Lets pytest-xdist take files as they come: the longest have few tests, and by number they would all be last."""
    if hasattr(config.option, "loadscopereorder"):  # from pytest-xdist 3.7 on
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Puts the tests into the order in which they are to start."""
    import order

    order.sort(items)


@pytest.fixture(autouse=True)
def seeded():
    """One seed a test, so that tests pass in any order; one thread, because the models here are tiny."""
    torch.set_num_threads(1)
    torch.manual_seed(20240721)
