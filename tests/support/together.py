"""Tests that share a server and its contents run one after another, in one worker of pytest-xdist.

pytest-xdist's own groups have no effect with pytest 9.2, which computes a test's id on each access.
"""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "tests/system/browser/": "browser",
    "tests/deployments/test_doctor.py": "register",
    "tests/deployments/test_register.py": "register",
    "tests/deployments/test_systemd.py": "units",
}


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Assigns the tests to workers one by one, and those that belong together as one."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for path, name in TOGETHER.items() if nodeid.startswith(path)), nodeid)
