"""What a long study has found so far, so that it goes on after a stop."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from entropy_optax.experiments import report
from entropy_optax.experiments.settings import SettingsError


class Memo:
    """Results by name, written to a file after each.

    Args:
      path: of the file.
      basis: whatever all results rest on, besides the versions of the packages.

    Raises:
      SettingsError: if the file was made on another basis.
    """

    def __init__(self, path: pathlib.Path, basis: Any):
        self._path = path
        self._basis = report.to_json([report.versions(), basis])
        self._results: dict[str, Any] = {}
        if path.exists():
            content = json.loads(path.read_text())
            if content["basis"] != self._basis:
                raise SettingsError(
                    f"{path}: holds results of other settings or versions, remove it"
                )
            self._results = content["results"]

    def __call__(self, name: str, find: Callable[[], Any]) -> Any:
        """Returns the kept result, or finds it and keeps it.

        Args:
          name: of the result.
          find: from nothing to lists, dicts and scalars as JSON has them; numbers
            that are not finite are kept.

        Returns:
          What `find` returned, now or before.
        """
        if name not in self._results:
            self._results[name] = find()
            content = {"basis": self._basis, "results": self._results}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            report.replace_text(self._path, json.dumps(content))
        return self._results[name]

    def remove(self) -> None:
        """Removes the file, once the record that it was for is written."""
        self._path.unlink(missing_ok=True)
