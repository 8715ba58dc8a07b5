"""When the training loop logs and evaluates."""

from collections.abc import Callable
from typing import Any

import transformers


class StepEnds(transformers.TrainerCallback):
    """Logs the last step, too: a loss that is no number must not be published.

    Says when to evaluate. The target as it came is evaluated before the first step.
    """

    def __init__(self, every: int | None, evaluate_first: Callable[[], Any]) -> None:
        """Takes the steps between evaluations; None where there are none at all."""
        self._every, self._evaluate_first = every, evaluate_first

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: Any,
    ) -> None:
        """Evaluates where nothing is trained yet; the model is on its device by now."""
        if self._every is not None and state.global_step == 0:
            self._evaluate_first()

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
