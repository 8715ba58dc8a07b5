"""Tables `[search.tasks.NAME]`: the tasks of a search, and how they are asked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from schemas import settings
from schemas.settings import setting
from train.search.objective import Split
from train.search.tasks import Task
from transforms.templates import Template


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Settings of a task of a search."""

    search: str = setting(
        help="a file of items to search on, JSON Lines", shapes_output=False
    )
    report: str = setting(help="a file of items to report on", shapes_output=False)
    weight: float = setting(
        1.0, help="bits per byte that all of its items are worth", shapes_output=False
    )
    answer_after: str | None = setting(
        None,
        help="what the line of the answer begins with, of which the last counts; left"
        " out: the answer is the first line that is not empty",
        omit_default=True,
    )
    chat_prompts: bool = setting(
        False,
        help="put prompts into the model's chat template, as turns of a user",
        omit_default=True,
    )

    def __post_init__(self) -> None:
        """Refuses files without a name, and a mark that no line or each begins with."""
        for name in ("search", "report"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be a file of items, got ''")
        mark = self.answer_after
        if mark is not None and (not mark.strip() or len(mark.splitlines()) > 1):
            raise ValueError(
                "answer_after must be what a line begins with, as 'Answer:', got"
                f" {mark!r}; leave it out where the first line is the answer"
            )


def read(tables: Mapping[str, Any]) -> dict[str, TaskConfig]:
    """Reads the tables of tasks, by name.

    Raises:
      ValueError: if one is no table, or a key is wrong; names it.
    """
    found = {}
    for name, table in tables.items():
        where = f"[search.tasks.{name}]"
        if not isinstance(table, Mapping):
            raise ValueError(f"{where} must be a table, got {table!r}")
        found[name] = settings.from_mapping(TaskConfig, table, where)
    return found


def check_templates(config: Any, asked: Mapping[str, TaskConfig]) -> None:
    """Refuses settings of a chat template where no task's prompts are put into it.

    Raises:
      ValueError: if there is one; names it.
    """
    if any(task.chat_prompts for task in asked.values()):
        return
    for name in ("chat_template", "chat_date"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"[search].{name} must stand beside a task with chat_prompts = true,"
                " there is none"
            )


def open_tasks(
    asked: Mapping[str, TaskConfig], split: Split, template: Template | None
) -> dict[str, Task]:
    """Reads the items of a split, and puts how they are asked beside them.

    Args:
      asked: how each task is asked, by name.
      split: where the items are.
      template: the chat template, where a task asks for it.

    Raises:
      SchemaError: if a line is no item, or asks for a program that may not run.
    """
    return {
        name: Task(
            items=items,
            answer_after=asked[name].answer_after,
            template=template if asked[name].chat_prompts else None,
        )
        for name, items in split.items().items()
    }


def shaping(asked: Mapping[str, TaskConfig]) -> dict[str, Any]:
    """Returns how tasks are asked, as JSON values; those that say nothing left out."""
    told = {name: settings.shaping(config) for name, config in asked.items()}
    return {name: one for name, one in told.items() if one}
