"""When the training loop logs and evaluates."""

from collections.abc import Callable
from typing import Any

import transformers


class StepEnds(transformers.TrainerCallback):
    """Logs the last step, too: a loss that is no number must not be published.

    A line of metrics is of the steps since the line before, so every checkpoint has
    one: what a run that goes on from it logs is of the same steps as without the break.
    Says when to evaluate.
    """

    def __init__(self, every: int | None, begin: Callable[[], None]) -> None:
        """Notes what to go by.

        Args:
          every: steps between evaluations; None where there are none at all.
          begin: is called before the first step of this process, when the model is on
            its device.
        """
        self._every, self._begin = every, begin

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: Any,
    ) -> None:
        """Says that the training begins."""
        self._begin()

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: Any,
    ) -> transformers.TrainerControl:
        """Asks for a line after the last step, at evaluations and at checkpoints."""
        last = state.global_step >= state.max_steps
        if self._every is not None and (last or state.global_step % self._every == 0):
            control.should_evaluate = True
        control.should_log |= last or control.should_evaluate or control.should_save
        return control
