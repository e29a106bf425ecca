"""An Ansible playbook and role around a bundle, for more boards than one."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from bnn_deploy.board.manifest import FOLDER, Manifest
from bnn_deploy.errors import InputError
from bnn_deploy.files import write_files

ROLE = Path("roles", "bnn_deploy")

_FILES = (
    Path("playbook.yml"),
    Path("inventory.example.yml"),
    *(ROLE / name / "main.yml" for name in ("tasks", "defaults", "meta")),
)
"""What is written as it is in the package."""


def require_ansible_folder(folder: str | os.PathLike[str]) -> None:
    """Check, before the work, that a playbook can be written into a folder.

    Raises:
        InputError: it is there and is no folder.
    """
    if os.path.lexists(folder) and not Path(folder).is_dir():
        raise InputError(f"{folder}: it is no folder: give the name of one, or of one to be made")


def write_ansible(folder: str | os.PathLike[str], bundle: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write playbook, example of an inventory and role; what else is in the folder, such as an inventory, stays.

    Args:
        folder: made if it is not there.
        bundle: the .tar.gz file, which is copied into the role.
        manifest: the bundle's.
    """
    folder, root = Path(folder), resources.files("bnn_deploy") / "board" / "ansible"
    variables = {
        "bnn_deploy_name": manifest.name_on_board,
        "bnn_deploy_folder": FOLDER,
        "bnn_deploy_service": manifest.service or '""',
    }
    contents = {path: root.joinpath(*path.parts).read_bytes() for path in _FILES}
    contents[ROLE / "vars" / "main.yml"] = "".join(f"{name}: {value}\n" for name, value in variables.items()).encode()
    contents[ROLE / "files" / "bundle.tar.gz"] = Path(bundle).read_bytes()
    for path in contents:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    write_files({folder / path: content for path, content in contents.items()})
