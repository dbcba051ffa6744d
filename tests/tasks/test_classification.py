import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import vimamba
from tests.closeness import assert_same
from vimamba.lightning import Trainer
from vimamba.tasks import Classification, Objective, Optimization, TaskError
from vimamba.tasks.classification.task import loss_weights

SMALL = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}


def small(**kwargs) -> Classification:
    torch.manual_seed(0)
    arguments = {"model_kwargs": SMALL, "num_classes": 3, "img_size": 16, **kwargs}
    return Classification("test_vit", **arguments)


def loader(multi_label=False, classes=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 16, 16, generator=generator)
    labels = torch.arange(12) % classes
    if multi_label:
        labels = (torch.rand(12, classes, generator=generator) < 0.4).float()
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def fit(task, tmp_path, **kwargs):
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    arguments = {"max_epochs": 2, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(**{**quiet, **arguments, **kwargs}, default_root_dir=tmp_path)
    data = loader(task.multi_label)
    trainer.fit(task, data, data)
    return trainer


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"objective": Objective(mixup=0.5, cutmix=1.0)},
        {"multi_label": True},
        {"multi_label": True, "objective": Objective(mixup=0.5, class_weights="balanced"),
         "class_counts": [3, 2, 1]},
        {"objective": Objective(class_weights=[1.0, 2.0, 3.0])},
        {"grad_checkpointing": True, "drop_path_rate": 0.2, "optim": Optimization(ema=0.9)},
    ],
)  # fmt: skip
def test_training_gives_finite_scores(kwargs, tmp_path):
    trainer = fit(small(**kwargs), tmp_path)
    scores = trainer.callback_metrics
    assert all(value.isfinite() for value in scores.values())
    assert {"train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy"} <= set(scores)
    assert {"val/macro_f1", "val/auroc", "val/ece"} <= set(scores)


def test_one_batch_is_learned_by_heart(tmp_path):
    task = small(objective=Objective(label_smoothing=0), optim=Optimization(lr=1e-2))
    trainer = fit(task, tmp_path, max_epochs=25)
    assert trainer.callback_metrics["val/accuracy"] == 1


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_stays_as_it_is(frozen, tmp_path):
    task = small(optim=Optimization(lr=1e-2, warmup_epochs=0, freeze_epochs=frozen))
    head = {id(parameter) for parameter in task.net.get_classifier().parameters()}
    before = {name: value.clone() for name, value in task.net.named_parameters()}
    fit(task, tmp_path, max_epochs=2)
    for name, value in task.net.named_parameters():
        assert value.equal(before[name]) == (frozen == 2 and id(value) not in head), name


def test_a_freeze_ends_with_its_epochs(tmp_path):
    task = small(optim=Optimization(lr=1e-2, warmup_epochs=0, freeze_epochs=1))
    body, seen = task.body_parameters()[0], []
    start = body.detach().clone()
    task.on_validation_epoch_start = lambda: seen.append(body.equal(start))
    fit(task, tmp_path, max_epochs=2, num_sanity_val_steps=0)
    assert seen == [True, False]


def test_the_optimizer_honors_the_models_rules_and_layer_decay(tmp_path):
    task = small(optim=Optimization(lr=1e-2, weight_decay=0.1, layer_decay=0.5))
    trainer = fit(task, tmp_path, max_epochs=1)
    groups = trainer.optimizers[0].param_groups
    names = {id(parameter): name for name, parameter in task.net.named_parameters()}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    free = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
    assert {"cls_token", "pos_embed"} <= free & task.net.no_weight_decay()
    assert "blocks.0.attn.qkv.weight" in decayed
    assert "blocks.0.attn.qkv.bias" in free
    scale = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert scale["head.weight"] == 1
    assert scale["blocks.0.mlp.fc1.weight"] == 0.5 * scale["blocks.1.mlp.fc1.weight"]


def test_our_models_rules_reach_the_optimizer(tmp_path):
    task = Classification("test_vim", num_classes=3, img_size=32)
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(**quiet, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path)
    images = torch.zeros(2, 3, 32, 32)
    trainer.fit(task, DataLoader(TensorDataset(images, torch.tensor([0, 1])), batch_size=2))
    groups = trainer.optimizers[0].param_groups
    names = {id(parameter): name for name, parameter in task.net.named_parameters()}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed
    assert not any("A_log" in name for name in decayed)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(tmp_path):
    rates = []

    class Watch(Classification):
        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    optim = Optimization(lr=1.0, warmup_epochs=1, warmup_lr=0.1, min_lr=0.0)
    task = Watch("test_vit", model_kwargs=SMALL, num_classes=3, img_size=16, optim=optim)
    fit(task, tmp_path, max_epochs=4)
    # 12 steps, 3 of them warm-up from 0.1 to 1
    assert rates[:4] == pytest.approx(
        [0.1, 0.4, 0.7, 0.5 * (1 + torch.cos(torch.tensor(torch.pi / 4)).item())]
    )
    assert rates[6] == pytest.approx(0.5)
    assert rates == rates[:3] + sorted(rates[3:], reverse=True)


def test_the_average_follows_the_weights_and_is_what_is_scored(tmp_path):
    task = small(optim=Optimization(lr=1e-2, ema=0.5))
    start = task.net.head.weight.clone()
    history = [start]

    update = task.average.update

    def watch(net, step):
        update(net, step=step)
        history.append(net.head.weight.detach().clone())

    task.average.update = watch
    fit(task, tmp_path)
    assert len(history) == 7  # two epochs of three steps
    assert task.scored_net is task.average.module
    assert not torch.equal(task.average.module.head.weight, task.net.head.weight)
    assert not task.average.module.training
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(task.eval()(image), task.average.module(image))


def test_a_checkpoint_loads_without_running_its_code(tmp_path):
    task = small(class_names=["a", "b", "c"], optim=Optimization(ema=0.9, lr=0.5))
    trainer = fit(task, tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert content["hyper_parameters"]["optim"]["lr"] == 0.5
    again = Classification.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.optim == task.optim
    image = torch.randn(2, 3, 16, 16)
    assert_same(again.eval()(image), task.eval()(image))


def test_weights_of_the_loss():
    assert loss_weights(None, None, 3, False) is None
    # scikit-learn's: N / (C * count)
    balanced = loss_weights("balanced", [6, 3, 1], 3, False)
    assert balanced.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert loss_weights("balanced", [6, 3, 1], 3, True).tolist() == [1, 2, 6]
    for requested, message in (("even", "class_weights='even'"), ([1.0], "1 values for 3 classes")):
        with pytest.raises(TaskError, match=message):
            loss_weights(requested, [1, 1, 1], 3, False)


def test_mixed_targets_are_smoothed_once():
    task = small(objective=Objective(mixup=1.0, label_smoothing=0.3))
    image, target = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    _, mixed = task.mix(image.clone(), target)
    assert mixed.sum(1).tolist() == pytest.approx([1] * 4)
    assert mixed.min() == pytest.approx(0.1)
    logits = torch.randn(4, 3)
    expected = -(mixed * F.log_softmax(logits, -1)).sum(1).mean()
    torch.testing.assert_close(task.loss(logits, mixed), expected)


def test_mirrored_views_are_averaged():
    task = small().eval()
    image = torch.randn(2, 3, 16, 16)
    task.tta = "hflip"
    with torch.no_grad():
        expected = (task(image).softmax(-1) + task(image.flip(3)).softmax(-1)) / 2
        torch.testing.assert_close(task.predict_step((image,), 0), expected)


def test_an_unknown_model_gets_suggestions():
    with pytest.raises(TaskError, match=r"model='test_vti' is unknown; close names are .*test_vit"):
        Classification("test_vti")


def test_an_argument_the_model_does_not_take_is_named():
    with pytest.raises(TaskError, match=r"does not take model_kwargs=\{'color': 1\}"):
        Classification("test_vit", model_kwargs={"color": 1})


def test_an_argument_that_the_task_sets_is_refused():
    with pytest.raises(TaskError, match="must not contain num_classes: the options of the task"):
        Classification("test_vit", model_kwargs={"num_classes": 3})


def test_missing_published_weights_are_an_error():
    with pytest.raises(TaskError, match="pretrained weights of 'test_vim' cannot be loaded"):
        Classification("test_vim", pretrained=True)
    with pytest.raises(TaskError, match=r"tag of model='test_vit\.in22k' .*r160_in1k"):
        Classification("test_vit.in22k", pretrained=True)


@pytest.mark.parametrize("model", ["test_vit", "test_vim", "test_vmamba"])
def test_an_export_loads_with_equal_logits(model, tmp_path):
    size = 32
    task = Classification(model, num_classes=4, img_size=size, in_chans=1).eval()
    folder = tmp_path / "export"
    names = ["ant", "bee", "cat", "dog"]
    for _ in range(2):  # an older export is replaced
        config = {"input_size": (1, size, size), "mean": (0.3,), "std": (0.4,), "crop_pct": 0.9}
        vimamba.save_pretrained(task.scored_net, folder, label_names=names, data_config=config)
    files = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert "num_classes" not in config.get("model_args", {})
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(2, 1, size, size)
    with torch.no_grad():
        assert_same(net(image), task(image))
    cfg = net.pretrained_cfg
    assert list(cfg["label_names"]) == names
    assert tuple(cfg["mean"]) == (0.3,)
    assert tuple(cfg["input_size"]) == (1, size, size)
    assert timm.data.resolve_model_data_config(net)["crop_pct"] == 0.9
