"""Checks of training with any tool."""

import pytest
import torch


@pytest.fixture
def train_once():
    """One step of AdamW: every trainable parameter gets a gradient and moves."""

    def train_once(model, compute_loss, *, unused=()):
        model.train()
        parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(tuple(unused))
        }
        assert parameters
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
        loss = compute_loss()
        assert loss.isfinite()
        loss.backward()
        assert [name for name, p in parameters.items() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in parameters.values())
        optimizer.step()
        still = [name for name, p in parameters.items() if torch.equal(p, before[name])]
        assert still == []
        return loss

    return train_once
