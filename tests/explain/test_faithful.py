"""Maps show what a trained network uses, and depend on its weights."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from vimamba import explain


@pytest.fixture(scope="module")
def trained():
    """A tiny Vim trained on digits, and unseen digits."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images, labels = F.interpolate(images, size=(32, 32)), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=10, in_chans=1, img_size=32, patch_size=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=100)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = torch.randint(1200, (64,), generator=generator)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), images[1200:]


def explanations(model, image):
    maps = {method: explain.cam(model, image, method=method) for method in explain.METHODS}
    maps["attention"] = explain.attention(model, image).sum(0)
    maps["rollout"] = explain.rollout(model, image).sum(0)
    maps["delta"] = list(explain.delta(model, image).values())[-1].mean(0)
    maps["erf"] = explain.erf(model, image[None]).map
    return maps


def advantage(model, image, importance):
    """Mean probability under insertion minus that under deletion: 0 for an uninformative map."""
    curves = [
        explain.deletion_curve(model, image, importance, steps=16, kind=kind)
        for kind in ("insertion", "deletion")
    ]
    return float(curves[0].mean() - curves[1].mean())


@pytest.mark.slow
def test_every_map_is_ahead_of_a_random_one(trained):
    model, images = trained
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {}
    for image in images[:30]:
        maps = explanations(model, image)
        maps |= {f"random {i}": rng.random((8, 8)).astype(np.float32) for i in range(3)}
        for name, importance in maps.items():
            scores.setdefault(name, []).append(advantage(model, image, importance))
    means = {name: np.mean(values) for name, values in scores.items()}
    chance = max(value for name, value in means.items() if name.startswith("random"))
    behind = {name: value for name, value in means.items() if value <= chance}
    assert {name for name in behind if not name.startswith("random")} == set(), means


def test_a_blank_image_is_where_the_curves_end(trained_free):
    model, image = trained_free
    rank = np.arange(64, dtype=np.float32).reshape(8, 8)
    deleted = explain.deletion_curve(model, image, rank, target=1, steps=4)
    inserted = explain.deletion_curve(model, image, rank, target=1, steps=4, kind="insertion")
    full, blank = (float(model(x[None]).softmax(1)[0, 1]) for x in (image, torch.zeros_like(image)))
    np.testing.assert_allclose([deleted[0], deleted[-1]], [full, blank], rtol=1e-5)
    np.testing.assert_allclose([inserted[0], inserted[-1]], [blank, full], rtol=1e-5)


@pytest.fixture
def trained_free():
    torch.manual_seed(0)
    return timm.create_model("test_vim", num_classes=3).eval(), torch.randn(3, 96, 96)


@pytest.mark.slow
def test_weights_of_chance_make_other_maps(trained):
    # the check of Adebayo et al. 2018, arXiv:1810.03292, which edge detectors fail
    model, images = trained
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    other.init_weights()
    alike: dict[str, list[float]] = {}
    for image in images[:10]:
        ours, theirs = explanations(model, image), explanations(other.eval(), image)
        for name in ours:
            ranks = [m.ravel().argsort().argsort() for m in (ours[name], theirs[name])]
            alike.setdefault(name, []).append(np.corrcoef(ranks)[0, 1])
    # the receptive field is around the center for any weights
    means = {name: np.mean(values) for name, values in alike.items() if name != "erf"}
    assert max(means.values()) < 0.6, means
