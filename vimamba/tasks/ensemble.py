"""Several trained tasks as one: the mean of their probabilities, or as a task joins networks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vimamba.tasks.errors import TaskError
from vimamba.tasks.task import Task


class _Voting(Task):
    """Mixin for a kind of task: all networks' views are averaged."""

    voters: nn.ModuleList

    @property
    def scored_net(self) -> nn.Module:
        """The network currently in use."""
        return self.voters[self.turn]

    def views(self, image: Any, **how: Any) -> list[Tensor]:
        """Logits of all networks' views."""
        found: list[Tensor] = []
        for turn in range(len(self.voters)):
            self.turn = turn
            found += super().views(image, **how)  # type: ignore[misc]
        return found


def can_join(task: type) -> bool:
    """Whether several tasks of a kind can form an ensemble."""
    return hasattr(task, "views") or hasattr(task, "join_networks")


def join_tasks(tasks: Sequence[Task]) -> Task:
    """A task that answers as several do together: by the mean of their probabilities.

    A task whose answers are not probabilities has `join_networks`, which makes one network of them.

    Args:
        tasks: Tasks of one kind with the same classes and sizes.

    Raises:
        TaskError: They were created with different settings, or the task has neither `views` nor
            `join_networks`.
    """
    if not can_join(type(tasks[0])):
        raise TaskError(
            f"{type(tasks[0]).__name__} cannot combine several networks: it has no `views`, "
            "the outputs to average, and no `join_networks`"
        )
    first, settings = tasks[0], [shared_settings(task) for task in tasks]
    for other in settings[1:]:
        if differing := [name for name in settings[0] if settings[0][name] != other.get(name)]:
            name = differing[0]
            raise TaskError(
                f"networks to combine must agree in {name}: they have "
                f"{settings[0][name]} and {other.get(name)}"
            )
    nets = [task.scored_net for task in tasks]
    arguments = {**task_arguments(first), "pretrained": False}
    # the networks just created are replaced
    if hasattr(first, "join_networks"):
        joined: Any = type(first)(**arguments)
        joined.net = joined.join_networks(nets)
    else:
        kind = type(f"{type(first).__name__}Ensemble", (_Voting, type(first)), {})
        joined = kind(**arguments)
        joined.voters, joined.turn = nn.ModuleList(nets), 0
        joined.net = joined.voters[0]
    joined.average = None
    return joined.eval()


def task_arguments(task: Task) -> dict[str, Any]:
    """The arguments a task was created with."""
    return {key: value for key, value in task.hparams.items() if not key.startswith("_")}


def shared_settings(task: Task) -> dict[str, Any]:
    """The settings that predictions depend on, apart from the weights."""
    names = (name for name in task.of_the_data if name != "class_counts")
    return {name: task.hparams[name] for name in names if name in task.hparams}
