"""Official files load wholly or not at all, and say what they are."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

import vimamba
from tests.parity.official import filled_state, shapes_only
from vimamba.checkpoints import CheckpointError, read_checkpoint, rename_keys, unwrap

# every manifest of the two families: the model, and what the layout asks for besides
DENSE_VIM = {"class_token": "none", "num_classes": 0, "img_size": 512}
LAYOUTS = {
    "vim_tiny_patch16_224": ("vim_tiny_patch16_224", {}),
    "vim_small_patch16_224": ("vim_small_patch16_224", {}),
    "vim_base_patch16_224": ("vim_base_patch16_224", {}),
    "vim_tiny_plus_patch16_stride8_224": ("vim_tiny_patch16_stride8_224", {}),
    "vim_small_plus_patch16_stride8_224": ("vim_small_patch16_stride8_224", {}),
    "vim_tiny_rope_v1": ("vim_tiny_rope_patch16_224", {}),
    "vim_tiny_det_backbone": ("vim_tiny_rope_patch16_224", DENSE_VIM),
    "vim_tiny_seg_backbone": ("vim_tiny_patch16_224", {**DENSE_VIM, "pyramid": (5, 11, 17, 23)}),
    "vmamba_tiny_s1l8": ("vmamba_tiny_s1l8", {}),
    "vmamba_small_s1l20": ("vmamba_small_s1l20", {}),
    "vmamba_base_s1l20": ("vmamba_base_s1l20", {}),
    "vmamba_tiny_s2l5": ("vmamba_tiny_s2l5", {}),
    "vmamba_small_s2l15": ("vmamba_small_s2l15", {}),
    "vmamba_base_s2l15": ("vmamba_base_s2l15", {}),
    "vmamba_tiny_0220": ("vmamba_tiny_s2l4", {}),
    "vmamba_tiny_v0": ("vmamba_tiny_v0", {}),
    "vmamba_small_v0": ("vmamba_small_v0", {}),
    "vmamba_base_v0": ("vmamba_base_v0", {}),
    "vmamba_tiny_m2": ("vmamba_tiny_m2", {}),
    "vmamba_tiny_s1l8_backbone": ("vmamba_tiny_s1l8", {"stage_norm": True}),
    "vmamba_tiny_v0_backbone": ("vmamba_tiny_v0", {"stage_norm": True}),
}
CLASSIFIERS = [n for n, (_, args) in LAYOUTS.items() if not args]


def create(name, file, **kwargs):
    overlay = {"file": str(file)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.fixture
def official_file(tmp_path):
    def save(name, wrap=lambda state: {"model": state}):
        torch.save(wrap(shapes_only(name)), tmp_path / "official.pth")
        return tmp_path / "official.pth"

    return save


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_official_layout_loads_strictly(name, official_file):
    timm_name, args = LAYOUTS[name]
    model = create(timm_name, official_file(name), **args)
    # the files are all zeros, so whatever was not loaded stands out
    fresh = {k for k, p in model.named_parameters() if k != "norm.weight" and p.abs().sum() > 0}
    assert not fresh


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_identify_names_the_variant(name, official_file):
    found = vimamba.identify(official_file(name))
    assert found.variant == LAYOUTS[name][0]
    assert found.family == ("Vim" if name.startswith("vim") else "VMamba")
    assert found.variant in found.create_line


def test_identify_tells_generation_accuracy_and_the_dense_layout(official_file):
    found = vimamba.identify(official_file("vmamba_tiny_v0_backbone"))
    assert "first generation" in found.generation
    assert "82.2" in found.accuracy
    assert found.license == "mit"
    assert "stage_norm=True" in found.create_line


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "model_ema": {k: v + 1 for k, v in s.items()}, "epoch": 3},
        lambda s: {"model_ema": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {
            "meta": {"seed": 0},
            "state_dict": {
                **{f"backbone.{k}": v for k, v in s.items()},
                "decode_head.conv_seg.weight": torch.ones(3),
            },
        },
        lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    ],
    ids=["bare", "model-over-ema", "ema-only", "ddp", "mmseg", "compiled"],
)
def test_nesting_and_prefixes_are_taken_off(wrap, official_file):
    model = create("vmamba_tiny_s1l8", official_file("vmamba_tiny_s1l8", wrap))
    assert not model.stem.conv1.weight.any()


def test_weights_survive_the_way_bit_for_bit(tmp_path):
    state = filled_state("vim_tiny_patch16_224")
    save_file(state, tmp_path / "official.safetensors")
    model = create("vim_tiny_patch16_224", tmp_path / "official.safetensors")
    mixer = model.blocks[3].mixer
    assert torch.equal(mixer.A_log[1], state["layers.3.mixer.A_b_log"])
    assert torch.equal(mixer.dt_proj[1].weight, state["layers.3.mixer.dt_proj_b.weight"])
    assert torch.equal(mixer.conv.weight[:384], state["layers.3.mixer.conv1d.weight"])


def test_another_variant_is_refused_by_its_name(official_file):
    with pytest.raises(
        CheckpointError, match=r"does not fit vmamba_tiny_s2l5.*it is vmamba_tiny_s1l8"
    ):
        create("vmamba_tiny_s2l5", official_file("vmamba_tiny_s1l8"))


def test_the_stride_8_file_is_refused_by_the_stride_16_model(official_file):
    file = official_file("vim_tiny_plus_patch16_stride8_224")
    with pytest.raises(CheckpointError, match="it is vim_tiny_patch16_stride8_224"):
        create("vim_tiny_patch16_224", file)


def test_another_family_is_refused_by_its_name(official_file):
    with pytest.raises(CheckpointError, match="it is vim_small_patch16_224"):
        create("vmamba_tiny_s1l8", official_file("vim_small_patch16_224"))


def test_rotary_weights_are_told_from_plain_ones(official_file):
    with pytest.raises(CheckpointError, match="it is vim_tiny_rope_patch16_224"):
        create("vim_tiny_patch16_224", official_file("vim_tiny_rope_v1"))


def test_missing_and_unexpected_keys_are_listed(official_file):
    def damage(state):
        del state["layers.1.blocks.0.norm.weight"]
        state["layers.1.blocks.0.extra"] = torch.zeros(1)
        return {"model": state}

    with pytest.raises(CheckpointError, match=r"1 unknown key: layers\.1\.blocks\.0\.extra"):
        create("vmamba_tiny_s1l8", official_file("vmamba_tiny_s1l8", damage))


def test_a_missing_key_is_listed(official_file):
    def damage(state):
        return {k: v for k, v in state.items() if k != "layers.1.blocks.0.norm.weight"}

    with pytest.raises(
        CheckpointError, match=r"1 missing key: stages\.1\.blocks\.0\.norm1\.weight"
    ):
        create("vmamba_tiny_s1l8", official_file("vmamba_tiny_s1l8", damage))


def test_features_only_is_as_strict(official_file):
    with pytest.raises(CheckpointError, match="it is vmamba_tiny_s1l8"):
        create("vmamba_tiny_s2l5", official_file("vmamba_tiny_s1l8"), features_only=True)


def test_classes_and_channels_adapt(official_file):
    model = create("vmamba_tiny_s1l8", official_file("vmamba_tiny_s1l8"), num_classes=7, in_chans=4)
    assert model.head.fc.weight.any(), "a classifier of another size starts fresh"
    assert not model.stem.conv1.weight.any()


def test_a_classifier_of_the_models_own_size_is_never_thrown_away(tmp_path):
    state = shapes_only("vmamba_tiny_s1l8")
    state["classifier.head.weight"] = torch.zeros(7, 768)
    state["classifier.head.bias"] = torch.arange(7.0)
    torch.save({"model": state}, tmp_path / "tuned.pth")
    model = create("vmamba_tiny_s1l8", tmp_path / "tuned.pth", num_classes=7)
    assert torch.equal(model.head.fc.bias, torch.arange(7.0))


def test_a_dense_vmamba_starts_from_a_classifier_and_says_so(official_file, caplog):
    file = official_file("vmamba_tiny_s1l8")
    create("vmamba_tiny_s1l8", file, stage_norm=True, features_only=True)
    assert "stage_norms.0.weight" in caplog.text


def test_a_dense_vim_drops_the_class_tokens_own_row(tmp_path):
    state = shapes_only("vim_tiny_patch16_224")
    rows = torch.arange(197.0).view(1, 197, 1)
    state["pos_embed"] = rows.expand(1, 197, 192).contiguous()
    torch.save({"model": state}, tmp_path / "official.pth")
    model = create("vim_tiny_patch16_224", tmp_path / "official.pth", class_token="none")
    assert torch.equal(
        model.pos_embed, torch.cat([rows[:, :98], rows[:, 99:]], 1).expand(1, 196, 192)
    )


def test_the_position_embedding_is_resampled_around_the_class_token(tmp_path):
    state = shapes_only("vim_tiny_patch16_224")
    rows = torch.zeros(1, 197, 192)
    rows[:, 98] = 5.0
    state["pos_embed"] = rows
    torch.save({"model": state}, tmp_path / "official.pth")
    model = create("vim_tiny_patch16_224", tmp_path / "official.pth", img_size=(96, 160))
    assert model.pos_embed.shape == (1, 61, 192)
    assert (model.pos_embed[:, 30] == 5).all()
    assert model.pos_embed.sum() == 5 * 192


def test_code_in_a_checkpoint_never_runs(tmp_path):
    class Config:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    state = shapes_only("vim_tiny_patch16_224")
    stuff = {"model": state, "args": argparse.Namespace(lr=0.1), "config": Config()}
    torch.save(stuff, tmp_path / "official.pth")
    create("vim_tiny_patch16_224", tmp_path / "official.pth")


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page\.pth' is no checkpoint"):
        read_checkpoint(tmp_path / "page.pth")
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        read_checkpoint(tmp_path / "gone.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no weights among the entries"):
        unwrap({"epoch": 3})


def test_an_unknown_model_is_said_to_be_unknown(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="fits no model that vimamba knows"):
        vimamba.identify(tmp_path / "vit.pth")


def test_the_file_of_a_whole_network_is_sent_to_what_loads_it(tmp_path):
    net = vimamba.create_segmenter("vm_unet", num_classes=1, dims=(8, 16, 24, 32))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"create_segmenter\(.*\.load_pretrained\(FILE\)"):
        vimamba.identify(tmp_path / "net.pth")
    net.load_pretrained(tmp_path / "net.pth")


def test_two_keys_never_get_one_name():
    with pytest.raises(CheckpointError, match="both renamed to 'c'"):
        rename_keys({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a|b": "c"})
