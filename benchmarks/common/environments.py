"""Peers that are not among the project's requirements, each in a virtual environment of its own.

Such an environment lies over the project's: it holds what the peer needs in other versions or beside it, and sees
torch and the rest. Invariant: a peer that cannot be installed is named as absent with the reason, never faked.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ENVIRONMENTS = Path("build/peers")
_INSTALL_S = 900.0


class Absent(Exception):
    """A peer cannot be had on this machine; the text says why."""


def interpreter(requirement: str) -> str:
    """Return the Python that has a requirement, installing it on first use.

    Raises:
        Absent: It cannot be installed.
    """
    if not requirement:
        return sys.executable
    folder = ENVIRONMENTS / requirement
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists():
        _install(folder, python, requirement)
        stamp.write_text(requirement)
    return str(python)


def _install(folder: Path, python: Path, requirement: str) -> None:
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    below = sysconfig.get_path("purelib")
    (packages / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    try:
        ended = subprocess.run(
            [*command, requirement], capture_output=True, text=True, check=False, timeout=_INSTALL_S
        )
    except subprocess.TimeoutExpired as error:
        raise Absent(f"installing {requirement} took more than {_INSTALL_S:.0f} s") from error
    if ended.returncode:
        raise Absent(f"{requirement} cannot be installed: {last_line(ended.stderr)}")


def last_line(text: str) -> str:
    """Return what a program said last."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
