"""Installed distributions."""

from importlib.metadata import PackageNotFoundError, version


def find_version(name: str) -> str:
    """Return the version of an installed distribution, or "absent"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
