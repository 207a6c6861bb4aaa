"""Dagster's SQLite storage, created by one process at a time, completely or not at all.

dagster.yaml names this class, so it applies to every command that opens the instance: `ft-pipeline
run`, `dagster asset materialize`, the UI, the daemon. Of ten first runs started together on a fresh
checkout, four failed in Dagster's own class because they created the same tables.
"""

import shutil
from pathlib import Path
from typing import Any

# Dagster has no public name for it; `storage: custom` in dagster.yaml is documented.
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData

from ft_pipeline.assets.sqlite_tuning import hold_databases_open
from ft_pipeline.base.locks import hold_lock


class LockedSqliteStorage(DagsterSqliteStorage):
    """Dagster's storage for runs, events and schedules; opened under a lock."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Any
    ) -> "LockedSqliteStorage":
        base = Path(config_value["base_dir"])
        with hold_lock(base.with_name(f"{base.name}.lock")):
            if not base.exists():
                _create(base)
            # Under the lock as well: it completes what an older version left half made.
            return cls.from_local(str(base), inst_data)


def _create(base: Path) -> None:
    """Create the tables in a draft folder and rename it, so that a kill leaves no half of them."""
    draft = base.with_name(f"{base.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a killed process; the lock is ours
    with hold_databases_open():
        DagsterSqliteStorage.from_local(str(draft)).dispose()
    draft.rename(base)
