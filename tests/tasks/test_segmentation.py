import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vimamba
from tests.closeness import assert_same
from vimamba.lightning import LightningDataModule, Trainer
from vimamba.tasks import MaskObjective, Optimization, Segmentation, TaskError

SMALL = {"depths": [1, 1], "decoder_depths": [1, 1], "dims": [8, 16]}


def small(**kwargs) -> Segmentation:
    torch.manual_seed(0)
    arguments = {"model_kwargs": SMALL, "num_classes": 3, "img_size": 16, **kwargs}
    return Segmentation("vm_unet", **arguments)


def loaders(classes=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    masks = torch.randint(0, classes, (8, 16, 16), generator=generator).to(torch.uint8)
    masks[:, :2] = 255
    train = DataLoader(list(zip(images, masks, strict=True)), batch_size=4)
    # of different sizes, the last two slices of one case
    judged = [
        (image, mask.repeat_interleave(1 + i % 2, 0), f"case {min(i, 6)}", (1.0, 1.0))
        for i, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    return train, DataLoader(judged, batch_size=4, collate_fn=list)


def fit(task, tmp_path, **kwargs):
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    arguments = {"max_epochs": 2, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(**{**quiet, **arguments, **kwargs}, default_root_dir=tmp_path)
    train, judged = loaders(len(task.class_names))
    trainer.fit(task, train, judged)
    return trainer


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_classes": 2},
        {"objective": MaskObjective(lovasz=1, focal=1), "optim": Optimization(ema=0.9)},
        {"background": False, "score": "miou", "drop_path_rate": 0.3},
    ],
)
def test_training_gives_finite_scores(kwargs, tmp_path):
    task = small(**kwargs)
    trainer = fit(task, tmp_path)
    scores = trainer.callback_metrics
    assert all(value.isfinite() for value in scores.values())
    assert {"train/loss", "val/loss", "val/dice", "val/miou", "val/accuracy"} <= set(scores)
    assert task.monitor in scores


# those for hyperspectral cubes have no encoder
ENCODED = [name for name in vimamba.list_segmenters() if not name.startswith("mambahsi_")]


@pytest.mark.parametrize("name", ENCODED)
def test_every_network_tells_its_encoder_from_its_decoder(name):
    with torch.device("meta"):
        net = vimamba.create_segmenter(name, num_classes=2)
    body = sum(parameter.numel() for parameter in net.body_parameters())
    assert 0.3 < body / sum(parameter.numel() for parameter in net.parameters()) < 0.99


@pytest.mark.parametrize("model", ["vm_unet", "test_vmamba"])
def test_a_frozen_encoder_stays_as_it_is_while_the_decoder_learns(model, tmp_path):
    optim = Optimization(lr=1e-2, warmup_epochs=0, freeze_epochs=2)
    if model == "vm_unet":
        task = small(optim=optim)
    else:
        task = Segmentation(model, num_classes=3, img_size=32, optim=optim)
    body = {id(parameter) for parameter in task.body_parameters()}
    before = {name: value.clone() for name, value in task.net.named_parameters()}
    fit(task, tmp_path)
    moved = {not value.equal(before[n]) for n, value in task.net.named_parameters()
             if id(value) not in body}  # fmt: skip
    assert moved == {True}
    kept = [value.equal(before[n]) for n, value in task.net.named_parameters() if id(value) in body]
    assert kept
    assert all(kept)


def test_backbones_train_with_heads_and_an_auxiliary_output(tmp_path):
    task = Segmentation(
        "test_vmamba", head="upernet", aux=True, num_classes=3, img_size=32, model_kwargs={},
        objective=MaskObjective(dice=0, aux_weights=[0.4]), optim=Optimization(layer_decay=0.8),
    )  # fmt: skip
    image = torch.randn(2, 3, 32, 32)
    assert len(task.net.forward_all(image)) == 2
    trainer = Trainer(
        fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    mask = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8)
    trainer.fit(task, DataLoader(list(zip(image, mask, strict=True)), batch_size=2))
    groups = trainer.optimizers[0].param_groups
    scales = {group["lr_scale"] for group in groups}
    assert min(scales) < 1 == max(scales)


def test_the_poly_schedule_falls_in_a_line(tmp_path):
    rates = []

    class Watch(Segmentation):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    optim = Optimization(lr=1.0, schedule="poly", warmup_epochs=0, min_lr=0.0)
    task = Watch("vm_unet", model_kwargs=SMALL, num_classes=3, img_size=16, optim=optim)
    fit(task, tmp_path, max_epochs=4)
    assert rates == pytest.approx([1 - step / 8 for step in range(8)])


def test_scores_are_those_of_the_masks_own_size(tmp_path):
    """A network that predicts class 1 where the first channel is positive."""

    class Sign(torch.nn.Module):
        def forward(self, x):
            return torch.stack([-x[:, 0], x[:, 0], x[:, 0] * 0 - 9], 1) * 50

    task = small()
    task.net = Sign()
    half = torch.full((3, 16, 16), -1.0)
    half[:, 8:] = 1
    mask = torch.zeros(40, 20, dtype=torch.uint8)
    mask[20:] = 1
    mask[18:22] = 255  # where the border is blurred
    wrong = torch.ones(16, 16, dtype=torch.uint8)
    batch = [(half, mask, "a", (1.0, 1.0)), (half, wrong, "b", (1.0, 1.0))]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.test(task, DataLoader(batch, batch_size=2, collate_fn=list), verbose=False)
    report = task.report
    right, missed = 18 * 20 + 128, 128
    assert report["dice"] == pytest.approx(2 * right / (2 * right + missed))
    assert report["accuracy"] == pytest.approx((2 * 18 * 20 + 128) / (2 * 18 * 20 + 256))
    rows = {row["case"]: row["dice"] for row in report["cases"]["rows"] if row["class"] == "1"}
    assert rows == {"a": 1.0, "b": pytest.approx(2 * 128 / (128 + 256))}


def test_borders_and_classes_that_are_left_out_are_in_no_score(tmp_path):
    """A network that predicts class 1 from row 8 on; it starts at row 6, and class 2 at row 14."""

    class Half(torch.nn.Module):
        def forward(self, x):
            low = torch.arange(16, device=x.device)[:, None] >= 8
            lower = torch.where(low, 50.0, -50.0).expand(len(x), 16, 16)
            return torch.stack([-lower, lower, lower * 0 - 99], 1)

    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[6:14], mask[14:] = 1, 2
    batch = [(torch.zeros(3, 16, 16), mask, "a", (1.0, 1.0))]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    found = {}
    for name, variant in (("all", {}), ("some", {"left_out": ["2"], "border": 2})):
        task = small(num_classes=3, background=False, **variant)
        task.net = Half()
        trainer.test(task, DataLoader(batch, collate_fn=list), verbose=False)
        found[name] = task.report
    rows = (2 * 6 / (6 + 8), 2 * 6 / (8 + 8), 0)
    assert found["all"]["dice"] == pytest.approx(sum(rows) / 3)
    assert found["all"]["accuracy"] == 12 / 16
    assert not {"left_out", "border"} & found["all"].keys()
    # rows 4 to 7 and 12 to 15 are borders
    assert found["some"]["dice"] == found["some"]["miou"] == found["some"]["accuracy"] == 1
    assert (found["some"]["left_out"], found["some"]["border"]) == (["2"], 2)
    # for the image alone, all pixels count
    assert {row["class"] for row in found["some"]["cases"]["rows"]} == {"0", "1"}
    assert found["some"]["case_dice"] == pytest.approx(sum(rows[:2]) / 2)


def test_windows_agree_with_the_whole_where_the_output_is_local():
    task = small(overlap=0.25).eval()
    task.net = torch.nn.Conv2d(3, 3, 1)
    image = torch.randn(1, 3, 40, 29)
    with torch.no_grad():
        torch.testing.assert_close(task.windowed(image), task.net(image))


def test_mirrored_views_are_averaged():
    task = small().eval()
    image = torch.randn(3, 16, 16)
    task.tta = "hflip"
    with torch.no_grad():
        views = [task(image[None]), task(image.flip(2)[None]).flip(3)]
        mean = (views[0].softmax(1) + views[1].softmax(1)) / 2
    expected = mean.argmax(1)[0].numpy()
    np.testing.assert_array_equal(task.segment([image], [(16, 16)])[0], expected)


def test_balanced_weights_come_from_the_data_and_stay_with_the_checkpoint(tmp_path):
    class Data(LightningDataModule):
        class_counts = (60, 30, 10)

        def train_dataloader(self):
            return loaders()[0]

    task = small(objective=MaskObjective(class_weights="balanced"))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(task, Data())
    assert task.loss.class_weight.tolist() == pytest.approx([100 / 180, 100 / 90, 100 / 30])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = Segmentation.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(again.loss.class_weight, task.loss.class_weight)
    image = torch.randn(1, 3, 16, 16)
    assert_same(again.eval()(image), task.eval()(image))


def test_an_export_loads_by_its_folder(tmp_path):
    task = small(class_names=["background", "a", "b"], optim=Optimization(ema=0.9)).eval()
    for _ in range(2):  # an older export is replaced
        vimamba.save_pretrained(
            task.scored_net,
            tmp_path / "export",
            label_names=task.class_names,
            label_values=[0, 7, 9],
        )
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    net = vimamba.load_segmenter(tmp_path / "export")
    assert not net.training
    with pytest.raises(ValueError, match="does not contain a network saved by vimamba"):
        vimamba.load_segmenter(tmp_path)
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert_same(net(image), task(image))
    assert config["label_names"] == ["background", "a", "b"]
    assert config["label_values"] == [0, 7, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "vm_une"}, "model='vm_une' is unknown; close names are vm_unet"),
        ({"model_kwargs": {"color": 1}}, r"does not take model_kwargs=\{'color': 1\}"),
        ({"model_kwargs": {"img_size": 64}}, "must not contain img_size: the options of the task"),
        ({"num_classes": 1, "class_names": ["a"]}, r"only one class, \['a'\]"),
        ({"model": "umamba_bot_3d", "model_kwargs": {"patch_size": [8, 8, 8]}}, "takes volumes"),
        ({"overlap": 1.0}, r"overlap=1.0 must lie in \[0, 1\)"),
        ({"left_out": ["sky"]}, r"left_out=\['sky'\] must be some of the classes \['0', '1'\]"),
        ({"left_out": ["0", "1"]}, r"left_out=\['0', '1'\] must be some of the classes"),
        ({"border": -1}, r"border=-1 must be at least 0"),
        ({"head": "fpn"}, "head='fpn' cannot be combined with model='vm_unet'"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(TaskError, match=message):
        Segmentation(**{"model": "vm_unet", **arguments})
