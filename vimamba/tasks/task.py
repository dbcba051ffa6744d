"""Base class of tasks: optimizer, schedule, seeds and a running average of the weights."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import timm.optim
import torch
from timm.models import PretrainedCfg
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric

from vimamba.errors import UsageError
from vimamba.lightning import LightningModule, TrainerFn
from vimamba.sizes import sides_of
from vimamba.tasks.backbone import model_cfg
from vimamba.tasks.errors import NotFiniteError, TaskError
from vimamba.tasks.finite import LOWEST_SCALE, WAY_OUT, are_finite, find_broken, find_layer
from vimamba.tasks.freezing import frozen_layers, keep_modes
from vimamba.tasks.optim import Optimization, check_optimization
from vimamba.tasks.schedule import Schedule
from vimamba.tasks.sharding import shard

# axes to flip for each view of an image, by the value of `tta`
FLIPS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (3,)],
    "flips": [(), (3,), (2,), (2, 3)],
}


# settings that a run keeps from its first step to its last, even if resumed
FIXED_SETTINGS = (
    "model",
    "head",
    "model_kwargs",
    "aux",
    "in_chans",
    "num_classes",
    "class_names",
    "label_values",
    "multi_label",
    "optim.opt",
    "optim.layer_decay",
)
FIXED_PRESENCE = ("optim.weight_decay", "optim.ema")


class Task(LightningModule):
    """Base of the tasks: trains `net`, scores and exports `scored_net`.

    Random generators in training (drop path, mixing) are reseeded at every step from the seed, the
    epoch and the step number, so a resumed run continues bit for bit.

    Non-finite values end training or evaluation with `NotFiniteError` before they reach the
    weights, and are not saved.

    A subclass calls `save_hyperparameters` and `prepare` in its constructor, and defines
    `training_step` (with `forward_training`), `score_batch`, `compute_scores`, `predict_step`,
    `monitor` and `body_parameters`. For use by the command it also declares the module of its
    tables and pictures (`tools`), the names of its scores and its data, and is registered by
    `register_task`.
    """

    # dotted name of the module of tables and pictures; see `vimamba.tasks.tools`
    tools: ClassVar[str] = ""
    # scores for the epoch line and the curves: key in the report, display name
    headline_scores: ClassVar[dict[str, str]] = {}
    # logged scores where lower is better
    lower_is_better: ClassVar[tuple[str, ...]] = ("loss",)
    # arguments set by the data set
    of_the_data: ClassVar[tuple[str, ...]] = (
        "num_classes",
        "class_names",
        "class_counts",
        "multi_label",
        "label_values",
        "background",
        "img_size",
        "in_chans",
    )

    # number of dates in one tensor before the channels, if it is not a single image
    stack: ClassVar[tuple[int, ...]] = ()
    # spatial axes
    axes: ClassVar[int] = 2

    net: nn.Module
    average: ModelEmaV3 | None
    tta: str
    report: dict[str, Any]

    def prepare(
        self,
        net: nn.Module,
        optim: Optimization | dict[str, Any],
        *,
        seed: int,
        grad_checkpointing: bool,
        compile: bool,
    ) -> None:
        """Set the network and the optimizer's settings.

        Args:
            net: Network to train.
            optim: Optimizer and schedule; plain values after loading a checkpoint.
            seed: Seed of all random streams.
            grad_checkpointing: Recompute activations to save memory.
            compile: Compile the network.

        Raises:
            TaskError: A setting of the optimizer is invalid.
        """
        # a checkpoint stores settings as plain dicts, so that loading it runs no code
        self.optim = Optimization(**optim) if isinstance(optim, dict) else optim
        check_optimization(self.optim)
        self.hparams["optim"] = asdict(self.optim)
        self.seed = seed
        self.tta = "none"
        self.report = {}
        self.net = net
        self._batch: Any = None
        self._losses: list[Tensor] = []
        self._origin: str | None = None
        self._held: tuple[nn.Module, ...] = ()
        # keep NaN; "disable" would also ignore the weights
        self.mean_loss = MeanMetric(nan_strategy=float("nan"))
        decay = self.optim.ema
        self.average = None if decay is None else ModelEmaV3(net, decay, use_warmup=True)
        if self.average is not None:
            self.average.requires_grad_(False)  # DDP would wait for its gradients
        if grad_checkpointing:
            cast(Any, net).set_grad_checkpointing()
        if compile:
            net.compile()

    @property
    def monitor(self) -> str:
        """The score, higher is better, that decides which checkpoint is best."""
        raise NotImplementedError

    @property
    def lr(self) -> float:
        """Highest learning rate; settable, as Lightning's `Tuner.lr_find` requires."""
        return self.optim.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim = replace(self.optim, lr=float(value))
        self.hparams["optim"] = asdict(self.optim)

    @classmethod
    def find_data(cls, path: Path) -> str:
        """Class path of the kind of data set at `--data PATH`."""
        raise UsageError(
            f"--data {path}: {cls.__name__} does not say how to read it; name the data set with "
            "--data.class_path"
        )

    @classmethod
    def find_cfg(cls, model: str, model_kwargs: dict[str, Any] | None) -> PretrainedCfg:
        """Published settings of a model: its input size, mean and standard deviation."""
        return model_cfg(model, model_kwargs)

    def check_folds(self) -> None:
        """Fail on settings with which the folds of a cross-validation cannot be reported.

        Raises:
            UsageError: A setting must be changed.
        """

    def logged_scores(self) -> list[str] | None:
        """Names of the scores a validation logs, without "val/"; None if not known in advance."""
        return None

    def body_parameters(self) -> list[nn.Parameter]:
        """The parameters that can be pretrained: all except the classifier or decoder."""
        raise NotImplementedError

    @property
    def is_frozen(self) -> bool:
        """Whether this is one of the first epochs, in which the body is frozen."""
        return self.current_epoch < self.optim.freeze_epochs

    @property
    def scored_net(self) -> nn.Module:
        """The network to score and export: the average if there is one."""
        return self.net if self.average is None else self.average.module

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to logits."""
        return self.scored_net(image)

    def finite_logits(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to logits, checked to be finite.

        Raises:
            NotFiniteError: A logit is not finite, so there is no probability or class.
        """
        logits = self(image)
        bad = int((~logits.isfinite()).flatten(1).any(1).sum())
        if bad:
            raise NotFiniteError(
                f"the network's output is not finite for {bad} of {len(logits)} inputs: its "
                "weights are damaged, or its values overflow the precision; `vimamba "
                "doctor` names the layer"
            )
        return logits

    def forward_training(self, image: Tensor) -> Any:
        """The input of the loss, from a batch of images (N, C, H, W)."""
        return self.net(image)

    def score_batch(self, batch: Any, stage: str) -> None:
        """Add one batch of "val" or "test" to the scores and log its loss."""
        raise NotImplementedError

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """The full report of an evaluation; resets the metrics."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Shard the weights if the strategy provides a mesh: `ModelParallelStrategy`."""
        if self.device_mesh is not None:
            for net in (self.net, self.scored_net):
                shard(net, self.device_mesh["data_parallel"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Number the optimizer's parameters in the task's order, not in that of their groups.

        Lightning assumes this order when reading sharded checkpoints; torch's own loading goes by
        the groups and accepts both.

        Raises:
            NotFiniteError: Weights are not finite.
        """
        ours = {name for name, _ in self.named_parameters()}
        saved = {key: value for key, value in checkpoint["state_dict"].items() if key in ours}
        if not are_finite(saved.values()):
            name = find_broken(saved.items())
            raise NotFiniteError(
                f"the weights of {name} are not finite and are not saved; {WAY_OUT}"
            )
        if self.device_mesh is not None:
            return  # Lightning has already numbered them
        place = {id(parameter): index for index, parameter in enumerate(self.parameters())}
        states = checkpoint.get("optimizer_states", ())
        for optimizer, state in zip(self.trainer.optimizers, states, strict=bool(states)):
            number = {}
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
                new = [place[id(parameter)] for parameter in group["params"]]
                number.update(zip(saved["params"], new, strict=True))
                saved["params"] = new
            state["state"] = {number[old]: content for old, content in state["state"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fail if a run is resumed with incompatible settings.

        Raises:
            TaskError: The network or the optimizer differs from that of the checkpoint.
        """
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.check_continues(checkpoint.get("hyper_parameters", {}))

    def check_continues(self, begun: Mapping[str, Any]) -> None:
        """Fail if a run started with other settings cannot continue with these.

        Args:
            begun: The hyperparameters of its checkpoint.

        Raises:
            TaskError: Names the setting.
        """
        before, now = list_fixed(begun), list_fixed(self.hparams)
        for name in sorted(before.keys() & now.keys()):
            # some settings may change, but not be added or removed: other tensors would be trained
            one, other = before[name], now[name]
            same = bool(one) == bool(other) if name in FIXED_PRESENCE else one == other
            if not same:
                raise TaskError(
                    f"{name}={other!r}: the resumed run was started with {one!r} and must keep it"
                )

    def _seed_step(self, batch_idx: int) -> None:
        """Restart every generator from (seed, epoch, step, rank)."""
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        state = np.random.SeedSequence(key).generate_state(2)
        torch.manual_seed(int(state[0]))
        np.random.seed(int(state[1]))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restart every generator."""
        self._batch = batch
        self._seed_step(batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Release the batch, and stop training if its time is over."""
        self._batch = None
        configs = self.trainer.lr_scheduler_configs
        if any(isinstance(c.scheduler, Schedule) and c.scheduler.is_over for c in configs):
            self.trainer.should_stop = True

    def on_train_epoch_start(self) -> None:
        """Keep frozen layers fixed: statistics, dropout and drop path."""
        body = {id(parameter) for parameter in self.body_parameters()} if self.is_frozen else set()
        fixed = {
            id(parameter) for parameter in self.net.parameters() if not parameter.requires_grad
        }
        layers = frozen_layers(self.net, body | fixed, in_between=self.is_frozen)
        for layer in self._held:
            layer.training = True
        self._held = tuple(layer for layer in layers if layer.training)
        for layer in self._held:
            layer.training = False

    def log_training(self, loss: Tensor, batch_size: int) -> None:
        """Log a training loss: every step in the progress bar, the epoch's mean in metrics.csv."""
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=False, logger=False)
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True
        )

    def log_scoring(self, stage: str, loss: Tensor, batch_size: int) -> None:
        """Log the loss of a scored batch; images of all processes have equal weight."""
        # Lightning's own mean over processes rounds the number of images down
        self.mean_loss.update(loss, batch_size)
        self.log(f"{stage}/loss", self.mean_loss)
        if self._origin is None and not loss.isfinite():
            self._origin = self._find_origin(lambda: self.predict_step(self._batch, 0))

    def on_before_backward(self, loss: Tensor) -> None:
        """Record whether the loss is finite; read at the step, to wait for a GPU only once."""
        self._losses.append(loss.detach().isfinite().all())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients of frozen parameters; stop before non-finite values reach the weights.

        The optimizer skips parameters without a gradient.

        Raises:
            NotFiniteError: Names the step and the first layer.
        """
        if self.is_frozen:
            for parameter in self.body_parameters():
                parameter.grad = None
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        checks = [*self._losses, are_finite(gradients)]
        self._losses = []
        broken = torch.stack([check.to(self.device) for check in checks]).logical_not().float()
        broken = torch.stack([broken[:-1].sum(), broken[-1]])
        if self.trainer.world_size > 1:
            broken = cast(Tensor, self.trainer.strategy.reduce(broken, reduce_op="sum"))
        loss, gradient = (broken > 0).tolist()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > LOWEST_SCALE:
            gradient = False  # the step is skipped and the scale lowered
        if loss or gradient:
            self._stop_training("loss" if loss else "gradient")

    def _stop_training(self, what: str) -> None:
        """Stop because the loss or the gradient is not finite."""
        modules = [type(callback).__module__ for callback in cast(Any, self.trainer).callbacks]
        if any(name.endswith(("tuner.lr_finder", "tasks.rate_finder")) for name in modules):
            self.trainer.should_stop = True  # it searches for a rate that is too high
            self.zero_grad()
            return

        def again() -> Any:
            self._seed_step(self.trainer.fit_loop.epoch_loop.batch_idx)
            images = images_of(self._batch)
            return self.forward_training(images[0]) if images else None

        place = f"step {self.global_step + 1}, epoch {self.current_epoch + 1}"
        origin = self._find_origin(again)
        raise NotFiniteError(
            f"training stops at {place}: the {what} is not finite; {origin}; {WAY_OUT}"
        )

    def _find_origin(self, run: Callable[[], Any]) -> str:
        """The first non-finite value: weights, images, the output of a layer or a gradient."""
        if name := find_broken(self.net.named_parameters()):
            return f"the weights of {name} are already not finite"
        if not all(are_finite([image]) for image in images_of(self._batch)):
            return "the images have values that are not finite"
        with keep_modes(self), self.trainer.precision_plugin.forward_context():
            layer = find_layer(self.scored_net if not self.training else self.net, run)
        if layer:
            return f"the first layer whose output is not: {layer}"
        parameters = list(self.net.named_parameters())
        gradients = [(name, p.grad) for name, p in reversed(parameters) if p.grad is not None]
        if name := find_broken(gradients):
            return f"all layers' outputs are finite; the first gradient that is not: that of {name}"
        return "all layers' outputs are finite"

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the weight average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.net, step=self.global_step)

    def _apply(self, fn: Any, recurse: bool = True) -> "Task":
        """Convert the weights, but not the mean loss: half precision only counts to 256 or 2048."""
        super()._apply(fn, recurse)
        self.mean_loss.set_dtype(torch.float32)
        return self

    def train(self, mode: bool = True) -> "Task":
        """Set the mode of the network; the average is always in eval mode."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        for layer in self._held:
            layer.training = False
        return self

    def _start_scoring(self, batch: Any, stage: str) -> None:
        """Score one batch.

        Raises:
            NotFiniteError: An output is not finite.
        """
        self._batch = batch
        try:
            self.score_batch(batch, stage)
        except NotFiniteError as error:
            if self.trainer.state.fn != TrainerFn.FITTING:
                raise
            epoch = self.current_epoch + 1
            text = f"{stage}/loss is not finite after epoch {epoch}; {error}"
            raise NotFiniteError(text) from None
        self._batch = None

    def _finish_evaluation(self, stage: str) -> None:
        """Log the scores and keep the full report.

        Raises:
            NotFiniteError: The loss is not finite.
        """
        if self.mean_loss.update_called and not self.mean_loss.compute().isfinite():
            origin, self._origin = self._origin or "in another process", None
            fitting = self.trainer.state.fn == TrainerFn.FITTING
            epoch = f" after epoch {self.current_epoch + 1}" if fitting else ""
            raise NotFiniteError(f"{stage}/loss is not finite{epoch}; {origin}; {WAY_OUT}")
        self.report = self.compute_scores(stage)
        scores = {name: value for name, value in self.report.items() if isinstance(value, float)}
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self._start_scoring(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores."""
        self._finish_evaluation("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self._start_scoring(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the test scores."""
        self._finish_evaluation("test")

    def configure_optimizers(self) -> Any:
        """Optimizer from timm, with the model's own rules for weight decay, and the schedule."""
        optim = self.optim
        dtypes = {parameter.dtype for parameter in self.net.parameters()}
        if optim.ema is not None and dtypes & {torch.bfloat16, torch.float16}:
            raise TaskError(
                f"optim.ema={optim.ema} needs weights in float32, because in half precision the "
                "average could not follow them; use precision='bf16-mixed' or no ema"
            )
        optimizer = timm.optim.create_optimizer_v2(
            self.net,
            opt=optim.opt,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            layer_decay=optim.layer_decay,
        )
        if torch.float16 in dtypes:
            for group in optimizer.param_groups:
                # the usual 1e-8 would be zero, like squares of small gradients
                least = torch.finfo(torch.float16).tiny
                group.update({"eps": max(group["eps"], least)} if "eps" in group else {})
        schedule = Schedule(optimizer, optim, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate for the next step, with a scheduler of timm or torch."""
        if isinstance(scheduler, Scheduler):
            scheduler.step_update(self.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Lightning's method, without downloading the weights that training started from."""
        return super().load_from_checkpoint(*args, **{"pretrained": False, **kwargs})

    def blank_images(self, size: int) -> Tensor:
        """`size` blank images for `forward_training`."""
        hparams = cast(Any, self.hparams)
        sides = sides_of(hparams["img_size"] or 224, self.axes)
        shape = (size, *self.stack, hparams["in_chans"], *sides)
        return torch.zeros(shape, dtype=None, device="cpu")

    def check_batch(self, size: int) -> None:
        """Fail if the network cannot be trained with a batch this small.

        Args:
            size: Images in a batch.

        Raises:
            TaskError: A norm over the batch would have a single value.
        """
        net = self.net
        try:
            self.net = deepcopy(net).train()
            with torch.no_grad():
                self.run_training(self.blank_images(size))
        finally:
            self.net = net

    def run_training(self, image: Tensor) -> Any:
        """`forward_training`, with our own error message for a batch that is too small."""
        try:
            return self.forward_training(image)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TaskError(
                f"a batch of {len(image)} is too small to train this network: a BatchNorm has "
                "only one value per channel; use --batch-size 2 or more (batch_size)"
            ) from None


def images_of(batch: Any) -> list[Tensor]:
    """The images of a batch: of images, of (images, ...), or of a list of (image, ...)."""
    items = batch if isinstance(batch, list | tuple) else [batch]
    firsts = [item[0] if isinstance(item, list | tuple) else item for item in items]
    return [first for first in firsts if isinstance(first, Tensor)]


def list_fixed(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a task that a resumed run cannot change."""
    optim = hparams.get("optim") or {}
    settings = {**hparams, **{f"optim.{name}": value for name, value in optim.items()}}
    return {name: settings[name] for name in (*FIXED_SETTINGS, *FIXED_PRESENCE) if name in settings}


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Inverse frequencies with mean 1 over all samples, as in scikit-learn."""
    found = torch.tensor(counts, dtype=torch.float32, device=None).clamp(min=1)
    return found.sum() / (len(found) * found)
