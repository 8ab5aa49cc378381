"""The names that docs/api.md asks the site's generator for."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
DIRECTIVE = re.compile(r"^\.\. (currentmodule|automodule|auto\w+):: ([\w.]+)$", re.MULTILINE)


def documented() -> dict[str, object]:
    """Each name with its module, and what it names."""
    found: dict[str, object] = {}
    module = ""
    for directive, name in DIRECTIVE.findall(PAGE.read_text(encoding="utf-8")):
        if directive == "currentmodule":
            module = name
        elif directive == "automodule":
            classes = {key: thing for key, thing in vars(import_module(name)).items() if isinstance(thing, type)}
            found.update({f"{name}.{key}": thing for key, thing in classes.items() if thing.__module__ == name})
        else:
            found[f"{module}.{name}"] = getattr(import_module(module), name)
    return found
