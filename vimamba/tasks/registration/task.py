"""Deformable registration of volumes and images with any registration network."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg
from torch import Tensor, nn

from vimamba.data.lists import LIST_SUFFIXES
from vimamba.names import unknown_name
from vimamba.networks import Registrar, Registration, create_network, list_networks
from vimamba.networks.registration import RegistrarEnsemble
from vimamba.tasks.errors import NotFiniteError, TaskError
from vimamba.tasks.optim import DEFAULT_OPTIMIZATION, Optimization
from vimamba.tasks.registration.objective import (
    DEFAULT_REGISTRATION_OBJECTIVE,
    RegistrationObjective,
)
from vimamba.tasks.registry import register_task
from vimamba.tasks.task import Task

Batch = tuple[Tensor, Tensor, Tensor, Sequence[str]]


@register_task("registration")
class ImageRegistration(Task):
    """Trains and scores a network that aligns a moving image to a fixed one.

    Args:
        model: A network of `vimamba.list_networks("registration")`.
        model_kwargs: Additional arguments of the network, such as {embed_dim: 24}.
        pretrained: There are no published weights; must be False.
        in_chans: Channels of either image.
        dims: Axes of an image, 2 or 3; set by the data module.
        class_names: Names of the labels in use; set by the data module. Without any there are no
            overlap scores.
        label_values: Values of the labels in use; set by the data module.
        optim: Optimizer and schedule.
        objective: The losses.
        distances: Outside of training, also score surface distances.
        grad_checkpointing: Recompute activations to save memory.
        compile: Compile the network.
        seed: Seed of all random streams.
    """

    tools = "vimamba.tasks.registration.report"
    headline_scores: ClassVar = {"dice": "Dice", "ncc": "NCC", "folded": "folded"}
    lower_is_better = ("loss", "folded")
    of_the_data = ("in_chans", "dims", "class_names", "label_values")

    def __init__(
        self,
        model: str = "mambamorph",
        *,
        model_kwargs: dict[str, Any] | None = None,
        pretrained: bool = False,
        in_chans: int = 1,
        dims: int = 3,
        class_names: list[str] | None = None,
        label_values: list[int] | None = None,
        optim: Optimization = DEFAULT_OPTIMIZATION,
        objective: RegistrationObjective = DEFAULT_REGISTRATION_OBJECTIVE,
        distances: bool = True,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pretrained:
            raise TaskError(f"pretrained={pretrained}: no weights are published for registration")
        self.save_hyperparameters()
        self.objective = (
            RegistrationObjective(**objective) if isinstance(objective, dict) else objective
        )
        self.hparams["objective"] = asdict(self.objective)
        self.class_names = class_names or []
        self.distances = distances
        if not self.class_names and (self.objective.dice or self.objective.contrastive):
            raise TaskError(
                "objective.dice and objective.contrastive compare labels, and the data has none; "
                "set them to 0"
            )
        net = build_registrar(model, in_chans=in_chans, dims=dims, model_kwargs=model_kwargs)
        self.prepare(net, optim, seed=seed, grad_checkpointing=grad_checkpointing, compile=compile)
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def find_data(cls, path: Path) -> str:
        """Decide between a list of pairs and a folder of cases."""
        name = "PairCSV" if path.suffix.lower() in LIST_SUFFIXES else "CaseFolder"
        return f"vimamba.data.{name}"

    @classmethod
    def find_cfg(cls, model: str, model_kwargs: dict[str, Any] | None) -> PretrainedCfg:
        """An empty config: nothing is published, and any size works."""
        return PretrainedCfg()

    def logged_scores(self) -> list[str]:
        """Scores logged in every validation."""
        overlap = ["dice", "dice_before"] if self.class_names else []
        return ["loss", *overlap, "ncc", "ncc_before", "folded"]

    @property
    def monitor(self) -> str:
        """Overlap of labels, or image similarity without labels."""
        return "val/dice" if self.class_names else "val/ncc"

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the network's body, if it has one."""
        return cast(Any, self.net).body_parameters()

    def forward(self, images: Tensor) -> Registration:  # type: ignore[override]
        """Pairs (N, 2, C, *grid), moving and fixed, registered by the scored network."""
        return self.scored_net(images[:, 0], images[:, 1])

    def forward_training(self, image: Tensor) -> Registration:
        """Pairs (N, 2, C, *grid), registered by the network in training."""
        return self.net(image[:, 0], image[:, 1])

    def blank_images(self, size: int) -> Tensor:
        """`size` blank pairs, two cells of the coarsest map along each axis."""
        sides = [2 * cells for cells in cast(Any, self.net).cell]
        shape = (size, 2, cast(Any, self.hparams)["in_chans"], *sides)
        return torch.zeros(shape, dtype=None, device="cpu")

    def one_hot(self, labels: Tensor) -> Tensor | None:
        """Labels (N, *grid) to maps (N, K, *grid) of those in use; None if there are none."""
        if not self.class_names:
            return None
        maps = F.one_hot(labels.long(), len(self.class_names) + 1).movedim(-1, 1)
        return maps[:, 1:].to(torch.get_default_dtype())

    def losses(self, found: Registration, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses by name; see `registration_loss`.

        Args:
            found: The network's output for the pairs.
            images: (N, 2, C, *grid).
            labels: (N, 2, *grid), or (N, 2, 0) without labels.
        """
        from vimamba.tasks.registration.loss import registration_loss

        maps = [self.one_hot(side) for side in labels.unbind(1)]
        both = None if maps[0] is None or maps[1] is None else (maps[0], maps[1])
        with torch.autocast(images.device.type, enabled=False):
            # half precision is too coarse for sums over windows and differences of neighbors
            kept = {k: in_full(x) for k, x in found._asdict().items() if x is not None}
            exact = Registration(**kept)
            return registration_loss(exact, in_full(images[:, 1]), self.objective, both)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of some pairs."""
        images, labels = batch[:2]
        found = self.run_training(images)
        loss = torch.stack(list(self.losses(found, images, labels).values())).sum()
        self.log_training(loss, len(images))
        return loss

    def register(self, images: Tensor) -> Registration:
        """Pairs (N, 2, C, *grid), registered by the scored network.

        Raises:
            NotFiniteError: A displacement is not finite.
            TaskError: Flipped views are requested, which registration does not support.
        """
        if self.tta != "none":
            raise TaskError(f"--tta {self.tta} is for classification and segmentation runs")
        found = self(images)
        bad = int((~found.flow.isfinite()).flatten(1).any(1).sum())
        if bad:
            raise NotFiniteError(
                f"the network's output is not finite for {bad} of {len(images)} pairs: its weights "
                "are damaged, or its values overflow the precision"
            )
        return found

    @staticmethod
    def join_networks(networks: Sequence[nn.Module]) -> RegistrarEnsemble:
        """One network that answers by the mean of several fields."""
        return RegistrarEnsemble(cast(Any, networks))

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Displacements of pairs (N, 2, C, *grid), or of a batch that starts with them.

        Returns:
            (N, n, *grid), cells along each axis; see `Registration`.
        """
        return self.register(batch if isinstance(batch, Tensor) else batch[0]).flow

    def score_batch(self, batch: Batch, stage: str) -> None:
        """Score each pair."""
        from vimamba.tasks.registration.scores import score_pair

        images, labels, spacing, names = batch
        found = self.register(images)
        losses = self.losses(found, images, labels)
        self.log_scoring(stage, torch.stack(list(losses.values())).sum(), len(images))
        distances = self.distances and (stage == "test" or self.trainer.state.fn == "validate")
        for place, name in enumerate(names):
            row = score_pair(
                in_full(images[place]),
                in_full(found.flow[place]),
                labels[place] if self.class_names else None,
                self.class_names,
                spacing=spacing[place].tolist() if distances else None,
                window=self.objective.ncc_window,
            )
            self.rows.append({"pair": name, **row})

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """Means over the pairs, those of each class, and a row for each pair."""
        from vimamba.tasks.registration.scores import summarize

        rows, self.rows = self.rows, []
        return summarize(rows, self.class_names)


def in_full(x: Tensor) -> Tensor:
    """Convert to float32 unless it has higher precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def build_registrar(
    model: str, *, in_chans: int, dims: int, model_kwargs: dict[str, Any] | None
) -> Registrar:
    """A registration network by name, for images with `dims` axes.

    Raises:
        TaskError: No network has this name, or an argument does not fit.
    """
    names = list_networks("registration")
    if model not in names:
        raise TaskError(unknown_name("model", model, names))
    arguments = dict(model_kwargs or {})
    if dims != 3:  # a user's own network may not take the argument
        arguments.setdefault("dims", dims)
    try:
        net = create_network(model, in_chans=in_chans, **arguments)
    except (TypeError, ValueError) as error:
        raise TaskError(f"model={model!r} with model_kwargs={arguments}: {error}") from None
    if not isinstance(net, Registrar) or len(net.cell) != dims:
        raise TaskError(f"model={model!r} does not register images of {dims} axes")
    return net
