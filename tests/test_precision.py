"""Half precision: close to float32 for images of realistic size, and stable in a long training."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from tests.backbones import KINDS, TEST_MODELS, kinds_first
from tests.networks.test_segmenter import NETWORKS
from vimamba.layers import GATED_SS2D
from vimamba.lightning import Trainer
from vimamba.tasks.classification import Classification, Objective
from vimamba.tasks.errors import TaskError
from vimamba.tasks.segmentation.loss import MaskLoss, MaskObjective
from vimamba.tasks.segmentation.task import Segmentation
from vimamba.tasks.task import Optimization

DTYPES = [torch.bfloat16, torch.float16]


def build(name, side, **kwargs):
    torch.manual_seed(0)
    fixed = timm.create_model(name, device="meta").pretrained_cfg["fixed_input_size"]
    return timm.create_model(name, **({"img_size": side} if fixed else {}), **kwargs)


def results(model, image, dtype):
    """Logits and the concatenated gradient of all parameters, of a loss scaled against underflow.

    It is scaled less if the gradients overflow, as by a GradScaler: with untrained batch norms,
    some are as large as 13,000.
    """
    enabled = dtype is not None
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=enabled):
        logits = model(image).float()
    loss = (logits * torch.linspace(-1, 1, logits.shape[1])).sum()
    gradient = torch.tensor(torch.inf)
    for scale in (2.0**10, 1.0):
        if not gradient.isfinite().all():
            model.zero_grad()
            (scale * loss).backward(retain_graph=True)
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()]) / scale
    return logits.detach(), gradient


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_outputs_and_gradients_follow_float32(name, dtype):
    model = build(name, 224).eval()
    image = torch.randn(1, 3, 224, 224)
    # every number is rounded several times by up to half an eps; measured: 1.3 eps for
    # Vim and VMamba, also in their published sizes, and 4.6 for MedMamba's convolutions
    tolerance = 8 * torch.finfo(dtype).eps
    pairs = zip(results(model, image, dtype), results(model, image, None), strict=True)
    for found, expected in pairs:
        assert found.isfinite().all()
        assert (found - expected).norm() < tolerance * expected.norm()


def train(name, dtype, steps):
    """Fit four images; returns the first and the last loss."""
    model = build(name, 32, num_classes=4).train()
    image, label = torch.randn(4, 3, 32, 32), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype):
            loss = F.cross_entropy(model(image).float(), label)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(loss == loss for loss in losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return losses[0], losses[-1]


@pytest.mark.parametrize(
    # the others in the long training
    ("name", "dtype"),
    [
        pytest.param("test_vim", torch.bfloat16, marks=pytest.mark.slow),
        ("test_vmamba", torch.float16),
    ],
    ids=str,
)
def test_training_fits_without_a_nan(name, dtype):
    first, last = train(name, dtype, 100)
    assert last < 0.5 * first


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TEST_MODELS)
def test_a_long_training_stays_finite(name, dtype):
    _, last = train(name, dtype, 1000)
    assert last < 0.05


def fit(task, images, targets, precision):
    """One epoch of two batches with Lightning; returns the logged values."""
    loader = DataLoader(list(zip(images, targets, strict=True)), batch_size=4)
    trainer = Trainer(
        max_epochs=1,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, loader, loader if isinstance(task, Classification) else None)
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


TRUE_HALVES = pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
FIRST_GENERATION = {**GATED_SS2D, "mlp_ratio": 0.0, "overlapping": False}
CLASSIFIERS = [(name, {}) for name in TEST_MODELS] + [("test_vmamba", FIRST_GENERATION)]
CLASSIFIERS = [
    pytest.param(*c, marks=[] if c[0] in KINDS and not c[1] else pytest.mark.slow)
    for c in CLASSIFIERS
]


@TRUE_HALVES
@pytest.mark.parametrize(("name", "kwargs"), CLASSIFIERS)
def test_every_model_trains_in_true_half_precision(name, kwargs, precision):
    torch.manual_seed(0)
    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    losses = {}
    for chosen in ("32-true", precision):
        objective = Objective(class_weights=[1.0, 2.0, 3.0], mixup=0.2)
        task = Classification(
            name, num_classes=3, img_size=32, objective=objective, model_kwargs=kwargs, seed=1
        )
        with torch.no_grad():
            for parameter in task.net.parameters():
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        losses[chosen] = fit(task, images, targets, chosen)["val/loss"]
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.05)
    assert {parameter.dtype for parameter in task.parameters()} == {
        torch.bfloat16 if precision == "bf16-true" else torch.float16
    }


# torch's convolutions in half precision are slow on a CPU
SOME = [
    "vm_unet",
    *(pytest.param(n, marks=pytest.mark.slow) for n in [*NETWORKS, "test_vim"] if n != "vm_unet"),
]


@TRUE_HALVES
@pytest.mark.parametrize("model", SOME)
def test_every_network_trains_in_true_half_precision(model, precision):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    masks = torch.randint(0, 3, (4, 32, 32), dtype=torch.uint8)
    objective = MaskObjective(focal=1.0, lovasz=1.0)
    kwargs = NETWORKS.get(model, {})
    aux = model != "vm_unet"
    task = Segmentation(model, num_classes=3, model_kwargs=kwargs, objective=objective, aux=aux)
    logged = fit(task, images, masks, precision)
    assert 2 < logged["train/loss"] < 20


def test_more_pixels_than_float16_counts_do_not_lose_the_mask_loss():
    loss = MaskLoss(MaskObjective(dice=0.0), 3)
    logits, mask = torch.randn(1, 3, 300, 300), torch.randint(0, 3, (1, 300, 300))
    expected = loss([logits], mask)
    torch.testing.assert_close(loss.half()([logits], mask), expected)


def test_the_mean_loss_of_many_images_is_exact_in_true_half_precision():
    task = Classification("test_vim", num_classes=3, img_size=32).to(torch.bfloat16)
    for _ in range(300):
        task.mean_loss.update(torch.tensor(0.5), 1)
    task.mean_loss.update(torch.tensor(301 * 1.0 - 150.0), 1)
    assert task.mean_loss.compute().item() == pytest.approx(1.0)


def test_an_average_of_weights_that_could_not_follow_them_is_refused():
    task = Classification("test_vim", num_classes=3, img_size=32, optim=Optimization(ema=0.999))
    images, targets = torch.randn(4, 3, 32, 32), torch.arange(4) % 3
    with pytest.raises(TaskError, match=r"optim\.ema=0\.999 needs weights in float32"):
        fit(task, images, targets, "bf16-true")
