"""transformers reads what `save_pretrained` writes, and builds on the models as backbones."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import vimamba
from tests.backbones import TEST_MODELS, kinds_first
from tests.closeness import assert_same


@pytest.fixture(params=kinds_first(TEST_MODELS))
def saved(request, tmp_path):
    """A model of three classes, an image for it, and its folder."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=3).eval()
    folder = vimamba.save_pretrained(model, tmp_path / "model", label_names=["ant", "bee", "cat"])
    return model, torch.randn(2, *model.pretrained_cfg["input_size"]), folder


def test_a_folder_is_an_image_classifier(saved, tmp_path, train_once):
    model, image, folder = saved
    net = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert_same(net(image).logits, model(image))
    assert net.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    pixels = AutoImageProcessor.from_pretrained(folder)(
        Image.fromarray(np.zeros((50, 70, 3), np.uint8))
    )["pixel_values"]
    assert pixels.shape[1:] == image.shape[1:]
    net.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()
    assert_same(again(image).logits, model(image))
    train_once(net, lambda: net(image, labels=torch.tensor([0, 2])).loss)


def test_another_number_of_labels_gets_a_new_head(saved, train_once):
    _, image, folder = saved
    net = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True
    )
    assert net(image).logits.shape == (2, 5)
    net.timm_model.set_grad_checkpointing()
    train_once(net, lambda: net(image, labels=torch.tensor([0, 4])).loss)


def test_a_folder_gives_features(saved):
    model, image, folder = saved
    out = AutoModel.from_pretrained(folder).eval()(image, output_hidden_states=True)
    assert_same(out.last_hidden_state, model.forward_features(image))
    assert len(out.hidden_states) == len(model.feature_info)
    backbone = TimmBackbone.from_pretrained(f"local-dir:{folder}", out_indices=[1, 2]).eval()
    expected = model.forward_intermediates(image, indices=[1, 2], intermediates_only=True)
    for ours, theirs in zip(backbone(image).feature_maps, expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_upernet_trains_on(name, tmp_path, train_once):
    torch.manual_seed(0)
    backbone = TimmBackboneConfig(backbone=name, out_indices=[0, 1, 2, 3])
    channels = AutoBackbone.from_config(backbone).channels
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=32,
        auxiliary_in_channels=channels[2],
        auxiliary_channels=16,
        num_labels=4,
    )
    net = UperNetForSemanticSegmentation(config)
    size = timm.get_pretrained_cfg(name).input_size
    image, mask = torch.randn(2, *size), torch.randint(0, 4, (2, *size[1:]))
    train_once(net, lambda: net(image, labels=mask).loss, unused=("backbone._backbone.model.norm",))
    net.eval().save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert_same(again(image).logits, net(image).logits)


def test_without_vimamba_the_error_blames_timm(tmp_path, monkeypatch):
    folder = vimamba.save_pretrained(timm.create_model("test_vim"), tmp_path / "model")
    monkeypatch.delitem(timm.models._registry._model_entrypoints, "test_vim")
    with pytest.raises(Exception, match="timm"):
        AutoModelForImageClassification.from_pretrained(folder)
