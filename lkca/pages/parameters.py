"""The parameters of a notebook: one that it does not have is refused, where papermill only warns."""

import ast
from collections.abc import Mapping

INJECTED = "# Parameters"  # how the cell begins that papermill adds


def refuse_others(namespace: Mapping[str, object], *names: str) -> None:
    """Raise ValueError if papermill has given a notebook what is none of its parameters.

    To be called in the cell after the parameters', with ``globals()`` and their names. What a reader defines in a
    notebook is no parameter.
    """
    cells = namespace.get("In", ())
    injected = [cell for cell in cells if str(cell).startswith(INJECTED)] if isinstance(cells, list) else []
    given = [
        target.id
        for cell in injected
        for statement in ast.parse(cell).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"there is no parameter {unknown[0]!r} in this notebook; its parameters are {', '.join(names)}"
        )
