"""The services of the compose file."""

from typing import Any

import yaml

from tests.support.paths import REPOSITORY

COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "deployments/compose.yaml").read_text())


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
