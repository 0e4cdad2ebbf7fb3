"""Which tests one worker of pytest-xdist runs one after another: those that share a server and what is on it.

pytest-xdist's own groups do nothing with pytest 9.2, which computes a test's id each time it is asked for.
"""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "tests/system/browser/": "browser",
    "tests/deployments/test_doctor.py": "register",
    "tests/deployments/test_register.py": "register",
    "tests/deployments/test_systemd.py": "units",
}


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Gives out the tests one by one, and those that belong together as one."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for path, name in TOGETHER.items() if nodeid.startswith(path)), nodeid)
