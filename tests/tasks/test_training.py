"""Every task in a trainer, ours or any other, with any of Lightning's callbacks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from vimamba.data import ImageFolder, MaskFolder
from vimamba.lightning import Trainer, callbacks, plugins, tuner
from vimamba.tasks import Classification, NotFiniteError, Optimization, Segmentation, TaskError

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
VIT = {"patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}
UNET = {"depths": [1, 1], "decoder_depths": [1, 1], "dims": [8, 16]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 16 images; 24 are for training, 4 for validation and 4 for the test."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("bright", "dark"):
        (root / name).mkdir()
        for number in range(16):
            pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8) + 100 * (name == "bright")
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Twelve images of different heights with masks."""
    root = tmp_path_factory.mktemp("scans")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(12):
        mask = np.zeros((16 + 2 * number, 20), np.uint8)
        mask[4:12, 4:12] = 1
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
        Image.fromarray(np.stack([mask * 200] * 3, -1)).save(root / "images" / f"{number}.png")
    return root


def images(root, **kwargs):
    return ImageFolder(str(root), **{"img_size": 16, "batch_size": 4, "workers": 0, **kwargs})


def classifier(kind=Classification, **kwargs):
    torch.manual_seed(0)
    return kind("test_vit", model_kwargs=VIT, num_classes=2, img_size=16, **kwargs)


def segmenter(**kwargs):
    return Segmentation("vm_unet", model_kwargs=UNET, num_classes=2, img_size=16, **kwargs)


def rates_of(trainer_options, tmp_path, data, **optim):
    """The learning rate of every step."""
    rates = []

    class Watch(Classification):
        def on_before_zero_grad(self, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    task = classifier(Watch, optim=Optimization(**{"lr": 1.0, "min_lr": 0.0, **optim}))
    trainer = Trainer(**{**QUIET, **trainer_options}, default_root_dir=tmp_path)
    trainer.fit(task, data)
    return rates, trainer


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "max_epochs": 30}, 7),
        ({"max_steps": 70, "max_epochs": 2}, 12),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 2, "callbacks": [callbacks.GradientAccumulationScheduler({1: 5})]}, 8),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
    ],
)
def test_the_schedule_ends_with_the_last_step(options, steps, photos, tmp_path):
    settings = {"schedule": "poly", "warmup_epochs": 0}
    rates, trainer = rates_of(options, tmp_path, images(photos), **settings)
    assert trainer.global_step == steps
    assert rates == pytest.approx([1 - step / steps for step in range(steps)])


def test_a_training_without_an_end_needs_a_rate_that_stays(photos, tmp_path):
    endless = {"max_epochs": -1, "max_time": {"seconds": 1}}
    with pytest.raises(TaskError, match="give max_epochs or max_steps, or use schedule='constant"):
        rates_of(endless, tmp_path, images(photos))
    rates, _ = rates_of(endless, tmp_path, images(photos), schedule="constant", warmup_epochs=0)
    assert set(rates) == {1.0}


def resume(tmp_path, photos, options, **settings):
    """Two epochs of six steps, then resume with other options; the rates of the further steps."""
    begun = {"optim": Optimization(lr=1.0, min_lr=0.0, schedule="poly", warmup_epochs=0)}
    trainer = Trainer(**QUIET, max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(classifier(**begun), images(photos))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rates = []

    class Watch(Classification):
        def on_before_zero_grad(self, optimizer):
            rates.append(
                (optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["weight_decay"])
            )

    data = images(photos, batch_size=options.pop("batch_size", 4))
    trainer = Trainer(**QUIET, **options, default_root_dir=tmp_path)
    task = classifier(Watch, **{**begun, **settings})
    trainer.fit(task, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    return rates


def test_a_longer_training_follows_the_longer_schedule(photos, tmp_path):
    rates = [rate for rate, _ in resume(tmp_path, photos, {"max_epochs": 4})]
    assert rates == pytest.approx([1 - step / 24 for step in range(12, 24)])


def test_the_schedule_of_a_resumed_training_counts_the_steps_that_were(photos, tmp_path):
    # twelve earlier steps, then two epochs of twelve
    rates = [rate for rate, _ in resume(tmp_path, photos, {"max_epochs": 4, "batch_size": 2})]
    assert rates == pytest.approx([1 - step / 36 for step in range(12, 36)])


def test_a_resumed_training_takes_the_optimizers_new_settings(photos, tmp_path):
    optim = Optimization(lr=3.0, min_lr=0, schedule="constant", warmup_epochs=0, weight_decay=0.3)
    found = resume(tmp_path, photos, {"max_epochs": 3}, optim=optim)
    assert found == [(3.0, 0.3)] * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": Optimization(opt="sgd")}, "optim.opt='sgd': .* started with 'adamw'"),
        ({"optim": Optimization(ema=0.9)}, "optim.ema=0.9: .* started with None"),
        ({"class_names": ["dark", "bright"]}, "class_names=.*started with"),
    ],
)
def test_what_a_resumed_training_cannot_change_is_named(settings, message, photos, tmp_path):
    with pytest.raises(TaskError, match=message):
        resume(tmp_path, photos, {"max_epochs": 3}, **settings)


@pytest.mark.parametrize("kind", [StepLR, ReduceLROnPlateau])
def test_a_subclass_may_have_any_scheduler_of_torch(kind, photos, tmp_path):
    class Mine(Classification):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            if kind is StepLR:
                return [optimizer], [StepLR(optimizer, 1)]
            plateau = {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)}
            return {"optimizer": optimizer, "lr_scheduler": plateau | {"monitor": "val/loss"}}

    trainer = Trainer(**QUIET, max_epochs=2, default_root_dir=tmp_path)
    trainer.fit(classifier(Mine), images(photos))
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize(
    "callback",
    [callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1), callbacks.EMAWeightAveraging()],
)
def test_lightnings_averages_of_weights_run(callback, photos, tmp_path):
    trainer = Trainer(**QUIET, max_epochs=2, callbacks=[callback], default_root_dir=tmp_path)
    trainer.fit(classifier(), images(photos))
    assert trainer.global_step == 12


def test_the_tuner_finds_a_rate_and_a_batch_size(photos, tmp_path):
    task, data = classifier(), images(photos)
    found = tuner.Tuner(Trainer(**QUIET, max_epochs=3, default_root_dir=tmp_path)).lr_find(
        task, datamodule=data, num_training=30
    )
    assert found is not None
    assert task.lr == task.optim.lr == task.hparams["optim"]["lr"] == found.suggestion()
    finder = tuner.Tuner(Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path))
    size = finder.scale_batch_size(task, datamodule=data, max_trials=1, steps_per_trial=1)
    assert data.batch_size == size


@pytest.mark.parametrize("way", ["loss", "gradient", "weights"])
def test_a_training_that_is_not_finite_stops_with_step_and_layer(way, photos, tmp_path):
    class Breaks(Classification):
        def training_step(self, batch, batch_idx):
            late = self.global_step == 6
            if late and way == "weights":
                self.net.blocks[0].mlp.fc1.weight.data[0, 0] = torch.inf
            loss = super().training_step(batch, batch_idx)
            if late and way == "loss":
                return loss * torch.nan
            if late and way == "gradient":
                self.net.norm.bias.register_hook(lambda grad: grad * torch.nan)
            return loss

    task = classifier(Breaks)
    keep = callbacks.ModelCheckpoint(tmp_path, filename="kept")
    options = {**QUIET, "enable_checkpointing": True, "callbacks": [keep]}
    trainer = Trainer(**options, max_epochs=3, default_root_dir=tmp_path)
    where = {
        "loss": "the loss is not finite; all layers' outputs are",
        "gradient": "the gradient is not finite; .*first gradient that is not: that of norm.bias",
        "weights": "the weights of blocks.0.mlp.fc1.weight are already not finite",
    }
    with pytest.raises(NotFiniteError, match=f"step 7, epoch 2: .*{where[way]}"):
        trainer.fit(task, images(photos))
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())


def test_the_first_layer_is_named(photos, tmp_path):
    class Breaks(Classification):
        def on_train_start(self):
            self.net.blocks[0].attn.proj.forward = lambda x: x * torch.inf

    trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    with pytest.raises(
        NotFiniteError, match=r"step 1, .*output is not: blocks\.0\.attn\.proj \(Linear"
    ):
        trainer.fit(classifier(Breaks), images(photos))


def test_weights_that_are_not_finite_are_not_saved(photos, tmp_path):
    task = classifier()
    trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(task, images(photos))
    task.net.head.bias.data[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"net.head.bias are not finite and are not saved"):
        trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_an_overflow_handled_by_the_loss_scale_is_no_error(photos, tmp_path):
    class Overflows(Classification):
        def on_after_backward(self):
            if self.global_step == 1 and not self.seen:
                self.seen = True
                self.net.head.bias.grad[0] = torch.inf

    task = classifier(Overflows)
    task.seen = False
    # on a CPU, Lightning itself would use bfloat16, without a scale
    scaling = plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = Trainer(**QUIET, max_epochs=1, plugins=[scaling], default_root_dir=tmp_path)
    trainer.fit(task, images(photos))
    assert task.seen
    assert trainer.precision_plugin.scaler.get_scale() < 65536


def test_a_frozen_body_keeps_statistics_and_drops_nothing(tmp_path):
    task = Segmentation(
        "resnet18", head="fpn", num_classes=2, img_size=32, drop_path_rate=0.5,
        optim=Optimization(freeze_epochs=1, ema=0.5),
    )  # fmt: skip
    batch = torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.uint8)
    body = task.net.body
    seen = []
    before = {name: value.clone() for name, value in body.state_dict().items()}

    def look(*_):
        seen.append({module.training for module in body.modules()})

    next(m for m in body.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(look)
    trainer = Trainer(**QUIET, max_epochs=2, default_root_dir=tmp_path)
    task.on_train_epoch_end = lambda: seen.append(
        all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    )
    trainer.fit(task, torch.utils.data.DataLoader([(batch[0][i], batch[1][i]) for i in (0, 1)], 2))
    assert seen == [{False}, True, {True}, False]


def test_layers_that_the_user_froze_stay_as_they_are(tmp_path):
    task = Segmentation("resnet18", head="fpn", num_classes=2, img_size=32)
    body = task.net.body.requires_grad_(False)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    items = [(torch.randn(3, 32, 32), torch.zeros(32, 32, dtype=torch.uint8)) for _ in range(2)]
    Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path).fit(
        task, torch.utils.data.DataLoader(items, 2)
    )
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())


def test_a_trainer_predicts_the_images_of_a_data_module(photos, scans, tmp_path):
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    data = images(photos)
    probabilities = torch.cat(trainer.predict(classifier(), datamodule=data))
    assert probabilities.shape == (len(data.items("test")), 2)
    data = MaskFolder(str(scans), img_size=16, batch_size=4, workers=0)
    task = segmenter().eval()
    found = [mask for batch in trainer.predict(task, datamodule=data) for mask in batch]
    sizes = [item.mask().shape for item in data.items("test")]
    assert [mask.shape for mask in found] == sizes
    # only images, as one tensor or separately
    image = torch.randn(2, 3, 24, 16)
    together = task.predict_step(image, 0)
    assert together[0].shape == (24, 16)
    single = task.predict_step(list(image), 0)
    assert all(torch.equal(a, b) for a, b in zip(single, together, strict=True))
    assert classifier().eval().predict_step(image[:, :, :16], 0).shape == (2, 2)


def test_tasks_and_data_sets_load_from_a_checkpoint(photos, scans, tmp_path):
    for task, data in (
        (classifier(), images(photos, val_fraction=0.3)),
        (segmenter(), MaskFolder(str(scans), img_size=16, batch_size=4, augmentation="aerial")),
    ):
        assert data.state_dict() == {"epochs": 0}
        trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(task, data)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        again = type(data).load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
        assert again.augmentation == data.augmentation
        assert again.fractions == data.fractions
        assert again.state_dict() == {"epochs": 1}
        loaded = type(task).load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
        assert torch.equal(next(loaded.parameters()), next(task.parameters()))


def test_nothing_need_be_held_out(photos, tmp_path):
    data = images(photos, val_fraction=0, test_fraction=0)
    data.check()
    trainer = Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(classifier(), data)
    assert set(trainer.callback_metrics) == {"loss", "train/loss"}


def test_a_batch_that_is_too_small_for_a_norm_is_named():
    task = Segmentation("test_vmamba", num_classes=2, img_size=32)
    state = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(TaskError, match=r"a batch of 1 is too small .*batch_size"):
        task.check_batch(1)
    task.check_batch(2)
    assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items())
