"""The same seed gives bitwise equal weights with torch's deterministic algorithms."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.backbones import TEST_MODELS, kinds_first
from vimamba.lightning import Trainer
from vimamba.tasks import Classification, Objective, Optimization

QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "num_sanity_val_steps": 0,
}


@pytest.fixture
def two_threads():
    """Enough for threads to finish in a different order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def train(name, folder, seed):
    """An epoch with all options that use random numbers or compute twice."""
    torch.manual_seed(seed)
    task = Classification(
        name,
        num_classes=3,
        img_size=32,
        drop_path_rate=0.3,
        optim=Optimization(lr=3e-3, ema=0.5, layer_decay=0.8),
        objective=Objective(mixup=0.4, cutmix=1.0),
        grad_checkpointing=True,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 32, 32, generator=generator)
    data = DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)
    trainer = Trainer(
        **QUIET, max_epochs=1, accelerator="cpu", deterministic=True, default_root_dir=folder
    )
    trainer.fit(task, data)
    assert torch.are_deterministic_algorithms_enabled()
    return task.state_dict()


@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_two_trainings_with_one_seed_end_bit_equal(name, tmp_path, two_threads):
    one, other, third = (train(name, tmp_path, seed) for seed in (0, 0, 1))
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert not all(torch.equal(one[key], third[key]) for key in one)
