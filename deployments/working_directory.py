"""Keep Prefect from taking its settings from a folder that others can write.

Prefect reads settings from the current directory when it is imported, and such settings can make it
run any code, with the password in its environment.
"""

import os
from pathlib import Path

from a0backup.access import others_can_write
from a0backup.report import terminal

_SETTINGS = (".env", "prefect.toml", "pyproject.toml")


def leave_untrusted_directory() -> None:
    """Change to the root directory if others can write the current one, or a file of settings in it.

    Call this before Prefect is imported, when all relative paths have been made absolute. Settings that
    are ignored for this reason are named on the terminal.
    """
    try:
        here = Path.cwd()
        untrusted = others_can_write(here)
        there = [here / name for name in _SETTINGS if os.path.lexists(here / name)]
    except FileNotFoundError:  # it was removed
        os.chdir("/")
        return
    ignored = there if untrusted else [path for path in there if _is_untrusted(path)]
    for path in ignored:
        terminal.say(f"{path} is ignored: others can write it or its folder, and Prefect would take settings from it")
    if untrusted or ignored:
        os.chdir("/")


def _is_untrusted(path: Path) -> bool:
    try:
        return others_can_write(path)
    except OSError:
        return True  # a link to nothing, for example
