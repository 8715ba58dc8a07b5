"""When the training loop logs and evaluates."""

from collections.abc import Callable
from typing import Any

import transformers


class StepEnds(transformers.TrainerCallback):
    """Logs the last step, too: a loss that is no number must not be published.

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
        """Asks for a line of metrics after the last step, and with an evaluation."""
        last = state.global_step >= state.max_steps
        if self._every is not None and (last or state.global_step % self._every == 0):
            control.should_evaluate = True
        control.should_log |= last or control.should_evaluate
        return control
