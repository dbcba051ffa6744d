"""EfficientViM of timm: its models against the original code, its files, our heads."""

import pytest
import timm
import torch

import vimamba
from tests.parity.official import fill, filled_state, shapes_only
from tests.parity.recorded import read_recording
from vimamba.checkpoints import read_checkpoint
from vimamba.hub import save_pretrained

pytest.importorskip("timm.models.efficientvim", reason="of later versions of timm")
from vimamba.models.efficientvim import match_efficientvim

SIZES = [f"efficientvim_m{size}{kind}" for size in (1, 2, 3, 4) for kind in ("", "_dist")]
TEST = {"depths": (1, 2, 1), "embed_dim": (32, 48, 64), "state_dim": (16, 9, 4), "num_classes": 10}


def save(state, tmp_path):
    torch.save({"model": state}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


def load(recording, name, tmp_path, **kwargs):
    file = save(filled_state(recording), tmp_path)
    overlay = {"file": str(file), "num_classes": kwargs.get("num_classes", 1000)}
    made = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    return made.eval().double()


def keep_stages(model):
    """Outputs of the stages before downsampling, and the states of their last blocks."""
    kept = {}
    model.patch_embed.register_forward_hook(lambda _m, _x, out: kept.setdefault("stem", out))
    for i, stage in enumerate(model.stages):

        def keep(_m, _x, out, i=i):
            kept[str(i)], kept[f"hidden{i}"] = out[:2]

        stage.blocks[-1].register_forward_hook(keep)
    return kept


@pytest.mark.parametrize(
    ("recording", "name", "kwargs"),
    [
        ("efficientvim_test", "efficientvim_m1", TEST),
        ("efficientvim_m1_dist", "efficientvim_m1_dist", {}),
        pytest.param("efficientvim_m1", "efficientvim_m1", {}, marks=pytest.mark.slow),
        pytest.param("efficientvim_m3", "efficientvim_m3", {}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_timms_models_give_the_original_outputs(recording, name, kwargs, tmp_path):
    recorded, model = read_recording(recording), load(recording, name, tmp_path, **kwargs)
    kept = keep_stages(model)
    with torch.no_grad():
        logits = model(*recorded.inputs().values())
    recorded.outputs["logits"].assert_equals(logits, "logits")
    assert recorded.stages.keys() == kept.keys()
    for key, stage in recorded.stages.items():
        stage.assert_equals(kept[key], f"stage {key}")


def test_timms_model_gives_the_original_gradients(tmp_path):
    recorded = read_recording("efficientvim_test")
    model = load("efficientvim_test", "efficientvim_m1", tmp_path, **TEST)
    image = recorded.inputs()["input"].requires_grad_()
    logits = model(image)
    cotangent = torch.from_numpy(fill.fill_input(logits.shape, "cotangent")).double()
    logits.backward(cotangent)
    for key, gradient in recorded.grads.items():
        found = image.grad if key == "input" else model.get_parameter(key).grad
        gradient.assert_equals(found, f"gradient of {key}")


@pytest.mark.parametrize("name", SIZES)
def test_identify_names_timms_model(name, tmp_path):
    found = vimamba.identify(save(shapes_only(name), tmp_path))
    assert (found.variant, found.others) == (name, ())
    assert (found.family, found.license) == ("EfficientViM", "mit")
    assert "ImageNet-1k top-1" in found.accuracy


def test_a_file_of_other_classes_and_channels_is_converted(tmp_path):
    theirs = timm.create_model("efficientvim_m1_dist", num_classes=5, in_chans=4)
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"model": shapes_only("efficientvim_m1"), "model_ema": state}, tmp_path / "one.pth")
    torch.save({"state_dict": state}, tmp_path / "two.pth")
    found = vimamba.identify(tmp_path / "two.pth")
    assert found.all_arguments == {"in_chans": 4, "num_classes": 5}
    for file in ("one.pth", "two.pth"):
        weights = found.read_weights(read_checkpoint(tmp_path / file))
        assert all(torch.equal(weights[key], value) for key, value in theirs.state_dict().items())


def test_a_model_of_other_sizes_is_none_of_timms():
    assert match_efficientvim({"model": shapes_only("efficientvim_test")}) == []


@pytest.mark.parametrize("head", vimamba.list_heads())
def test_heads_take_its_maps(head):
    model = vimamba.create_segmenter("efficientvim_m1", head=head, num_classes=3)
    logits = model(torch.randn(2, 3, 75, 101))
    assert logits.shape == (2, 3, 75, 101)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_a_saved_folder_makes_the_same_model(tmp_path):
    model = timm.create_model("efficientvim_m1", num_classes=3).eval()
    save_pretrained(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(image), model(image))
