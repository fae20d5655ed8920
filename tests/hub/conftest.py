"""A hub on loopback, a machine that talks to it, and a folder to push."""

from pathlib import Path

import pytest
from hub_server import HubServer
from machines import ACCOUNTS, Machine, write_small_folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub"), ACCOUNTS) as server:
        yield server
    assert server.unknown == []  # the client asked for nothing that this hub does not speak


@pytest.fixture
def machine(tmp_path, hub) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, hub.url)


@pytest.fixture
def small_folder(tmp_path) -> Path:
    return write_small_folder(tmp_path / "pipeline")
