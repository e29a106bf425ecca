"""The applications of bundles: what the service of each is called, needs, and is told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from bnn_deploy.apps import camera, folder, http
from bnn_deploy.apps.program import OptionParser, require_picture_model
from bnn_deploy.errors import InputError, about

SERVICE_PREFIX = "bnn-deploy-"
"""A service is called by this and the name of its application."""

UNIT = "app.service"
"""The systemd unit in a bundle, and its template; where it is installed, it gets the name of the service."""

_PLAIN = re.compile(r"[A-Za-z0-9 ./_:=,@+?&~-]*")
"""Options that systemd's unit files hold as they are: without quotes, $, % and backslashes."""


@dataclass(frozen=True)
class App:
    """An application, `bnn_deploy.apps.NAME`.

    Attributes:
        description: of its service.
        extra: of bnn-deploy, which it needs.
        bytes: disk that the packages of the extra take.
        options: what its program is told beside the model.
        parser: makes its options.
        require_fit: raises InputError for the path of a model that it cannot use.
    """

    description: str
    extra: str
    bytes: int
    options: str
    parser: Callable[[], OptionParser]
    require_fit: Callable[[str], None]


APPS = {
    "camera": App("classes of what the camera sees", "camera", 200_000_000, "0", camera.parser, camera.require_fit),
    "folder": App(
        "classes of new images in a folder",
        "images",
        30_000_000,
        "~/bnn-deploy/inbox",
        folder.parser,
        require_picture_model,
    ),
    "http": App("classes of images over HTTP", "images", 30_000_000, "", http.parser, require_picture_model),
}


def require_app(name: str, options: str | None, model: str | os.PathLike[str]) -> bytes:
    """The unit file of an application's service.

    Args:
        name: of the application.
        options: what its program is told beside the model, words with blanks between them; None for those of APPS.
        model: the .onnx file, which it must be able to use.

    Raises:
        InputError: there is no such application; it takes no such options, or no such model.
        SetupError: a package is missing that looking at the model needs.
    """
    if name not in APPS:
        raise InputError(f"app {name}: choose {', '.join(APPS)}")
    app = APPS[name]
    text = app.options if options is None else " ".join(options.split())
    if not _PLAIN.fullmatch(text):
        raise InputError(f"--app-options {text}: they may have letters, digits, blanks and . / _ : = , @ + ? & ~ -")
    with about(f"--app-options {text}"):
        if {"-h", "--help"} & {*text.split()}:
            raise InputError(f"this is for python -m bnn_deploy.apps.{name} --help")
        app.parser().parse_args(["model.onnx", *text.split()])
    app.require_fit(os.fspath(model))
    return unit_file(name, text)


def unit_file(name: str, options: str) -> bytes:
    """The systemd unit of an application, of which the options are known to be good."""
    template = (resources.files("bnn_deploy") / "board" / "scripts" / UNIT).read_text(encoding="utf-8")
    return template.format(
        app=name, service=SERVICE_PREFIX + name, description=APPS[name].description, options=options
    ).encode()
