"""Packages that only some uses need: asked for by name before they are imported."""

import importlib.util


def require(package: str, extra: str, what: str) -> None:
    """Makes sure that an optional package is installed.

    Args:
      package: its import name.
      extra: the extra of this distribution that brings it.
      what: the use that needs it, as the error shall name it.

    Raises:
      ModuleNotFoundError: if it is not; says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{what} must have the package {package}, which is not installed; run"
            f" pip install 'fusebeam[{extra}]'",
            name=package,
        )
