"""No connection, wrong arguments, and bundles that are changed on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bnn_deploy.board import connection
from bnn_deploy.board.archive import check_bundle
from bnn_deploy.board.deployment import deploy, look
from bnn_deploy.board.manifest import Manifest
from bnn_deploy.errors import InputError, SetupError
from support.deployment import MakeBundle, refused, report_of
from support.ssh_server import HOST, SshServer, wait_for


def test_an_unreachable_port(board: SshServer, make: MakeBundle) -> None:
    message = refused(make(), "-o", "Port=1")
    assert message.startswith("error: board: no connection, ssh says 'ssh: connect to host 127.0.0.1 port 1:")
    assert message.endswith("Connection refused': is the board on, in this network, and its SSH server enabled?")


def test_a_name_that_is_unknown(board: SshServer, make: MakeBundle) -> None:
    assert refused(make(), "-o", "HostName=no-such-board.invalid").endswith("check the name, or give the address")


def test_a_refused_key(board: SshServer, make: MakeBundle) -> None:
    board.write_config(IdentityFile=f'"{board.folder / "other_key"}"')
    message = refused(make())
    assert "Permission denied (publickey)" in message
    assert message.endswith("put your key on the board with 'ssh-copy-id board'")


def test_an_unknown_host_key(board: SshServer, make: MakeBundle) -> None:
    board.know_host(None)
    message = refused(make())
    assert "ssh says 'Host key verification failed.'" in message
    assert message.endswith("run 'ssh board' once, to see and accept its host key")


def test_a_changed_host_key(board: SshServer, make: MakeBundle) -> None:
    board.know_host("other_key")
    message = refused(make())
    assert "the host key is not the one that this machine knows" in message
    assert re.search(r"ssh-keygen -R '?(\[127\.0\.0\.1\]:\d+|board)'?;", message)
    assert board.tree() == []


def test_no_ssh_on_the_laptop(board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(board.tools))
    assert refused(make()) == "error: ssh is not on this machine: sudo apt install openssh-client"


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "-x@board", "", "a b", "board\n"])
def test_hosts_that_are_none(board: SshServer, make: MakeBundle, tmp_path: Path, host: str) -> None:
    bundle = make()
    with pytest.raises(InputError, match=r"is not a host: give it as \[USER@\]HOST"):
        deploy(host, bundle)
    assert not board.calls.exists()
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]


@pytest.mark.parametrize("directory", ["", "~pi/models", "a\nb", "\x1b"])
def test_directories_that_are_none(board: SshServer, make: MakeBundle, directory: str) -> None:
    with pytest.raises(InputError, match="directory"):
        look(HOST, make(), directory=directory)
    assert not board.calls.exists()


def test_other_usage_errors(board: SshServer, make: MakeBundle) -> None:
    bundle = make()
    assert "is not an option of ssh" in refused(bundle, "-o", "Port", code=2)
    assert "does not exist" in refused(bundle, "--report", "absent/r.json", code=2)
    assert not board.calls.exists()


@pytest.mark.parametrize("where", [10, 200, 0.5, -6])
def test_a_changed_bundle_is_refused_before_a_connection_is_made(
    board: SshServer, make: MakeBundle, where: float
) -> None:
    bundle = make()
    content = bytearray(bundle.read_bytes())
    content[where if isinstance(where, int) else int(len(content) * where)] ^= 1
    bundle.write_bytes(content)
    refused(bundle, code=2)
    assert not board.calls.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-20] + bytes(20), "board: the copy of the bundle is damaged; nothing of it is left"),
        (lambda content: content[:-20], "it was changed while it was copied"),
    ],
)
def test_a_bundle_that_is_changed_after_its_check(
    board: SshServer,
    make: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    """What is sent is not what was checked."""
    bundle = make()

    def check(path: Path) -> Manifest:
        manifest = check_bundle(path)
        path.write_bytes(change(path.read_bytes()))
        return manifest

    monkeypatch.setattr(connection, "check_bundle", check)
    with pytest.raises(InputError if "while" in message else SetupError, match=message):
        deploy(HOST, bundle)
    assert not report_of(bundle).exists()
    wait_for(lambda: not board.left_over(), "the board has cleaned up")
    assert board.tree() == []


def test_a_bundle_that_grows_after_its_check(
    board: SshServer, make: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just what was checked is sent, and runs to its end; then this machine finds the file changed."""
    bundle = make()

    def check(path: Path) -> Manifest:
        manifest = check_bundle(path)
        path.write_bytes(path.read_bytes() + bytes(20))
        return manifest

    monkeypatch.setattr(connection, "check_bundle", check)
    with pytest.raises(InputError, match=re.escape(str(bundle))):
        deploy(HOST, bundle)
    assert json.loads(report_of(bundle).read_text())["passed"] is True
