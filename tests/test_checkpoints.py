"""Official files load completely or not at all, and are identified."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

import vimamba
from tests.parity.official import filled_state, shapes_only
from vimamba.checkpoints import (
    CheckpointError,
    find_identity,
    identity,
    known_names,
    read_checkpoint,
    rename_keys,
    unwrap,
)


def create(name, file, **kwargs):
    overlay = {"file": str(file)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.fixture
def official_file(tmp_path):
    def save(name, wrap=lambda state: {"model": state}):
        torch.save(wrap(shapes_only(name)), tmp_path / "official.pth")
        return tmp_path / "official.pth"

    return save


def test_identify_reports_notes_accuracy_and_the_dense_layout(official_file):
    found = vimamba.identify(official_file("vmamba_tiny_v0_backbone"))
    assert "first generation" in found.notes
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
    assert torch.equal(mixer.scan.A_log[1], state["layers.3.mixer.A_b_log"])
    assert torch.equal(mixer.scan.dt_proj[1].weight, state["layers.3.mixer.dt_proj_b.weight"])
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


def test_rotary_weights_are_distinguished_from_plain_ones(official_file):
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


def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path):
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


def test_two_keys_never_get_one_name():
    with pytest.raises(CheckpointError, match="both renamed to 'c'"):
        rename_keys({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a|b": "c"})


def small_state():
    return timm.create_model("test_vmamba", num_classes=5).state_dict()


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


BESIDE = {
    "our own run with an average": lambda s, other: {
        "state_dict": {**prefixed("net.", other), **prefixed("average.module.", s)}
    },
    "a loss": lambda s, other: {
        "state_dict": {**prefixed("model.", s), "criterion.weight": torch.ones(1)}
    },
    "an averaged model": lambda s, other: {**prefixed("module.", s), "n_averaged": torch.ones(1)},
    "counters": lambda s, other: {
        **s, "total_ops": torch.ones(1), "stages.0.total_ops": torch.ones(1)
    },
    "an optimizer": lambda s, other: {**s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "names of one's own": lambda s, other: {
        "weights": {**prefixed("teacher_net.body.", s), "projector.weight": torch.ones(2)}
    },
    "mmengine's average in buffers": lambda s, other: {
        "state_dict": {
            **prefixed("backbone.", s),
            **{f"ema_backbone_{key.replace('.', '_')}": value for key, value in other.items()},
        }
    },
    "DeepSpeed": lambda s, other: {
        "module": prefixed("_forward_module.net.", s),
        "buffer_names": [], "optimizer": None, "ds_config": {"zero_optimization": {"stage": 2}},
    },
    "a network of nnU-Net's": lambda s, other: {
        "network_weights": prefixed("_orig_mod.network.", s), "trainer_name": "x"
    },
}  # fmt: skip


@pytest.mark.parametrize("wrap", BESIDE)
def test_entries_other_than_the_weights_are_ignored(wrap, tmp_path):
    state, other = small_state(), {k: v + 1 for k, v in small_state().items()}
    torch.save(BESIDE[wrap](state, other), tmp_path / "x.pth")
    loaded = create("test_vmamba", tmp_path / "x.pth", num_classes=5).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_ignored_entries_and_the_chosen_copy_are_reported(caplog):
    state = small_state()
    known = known_names(timm.create_model("test_vmamba", num_classes=5), {})
    both = {**prefixed("net.", state), **prefixed("average.module.", state)}
    unwrap({"state_dict": {**both, "loss.weight": torch.ones(1)}}, known)
    assert "'state_dict.average.module.' are taken, not those at 'state_dict.net.'" in caplog.text
    assert "Left out, as it is nothing of the model: 1 part: loss" in caplog.text


def test_the_average_is_taken_where_the_published_accuracy_is_its_own(tmp_path):
    state = {k: torch.zeros_like(v) for k, v in timm.create_model("test_vssd").state_dict().items()}
    average = {k: v + 1 for k, v in state.items()}
    torch.save({"model": state, "model_ema": average}, tmp_path / "official.pth")
    model = create("test_vssd", tmp_path / "official.pth")
    assert all((p == 1).all() for p in model.parameters())


def test_a_copy_with_a_missing_weight_is_not_used():
    state = small_state()
    known = known_names(timm.create_model("test_vmamba", num_classes=5), {})
    some = {k: v + 1 for k, v in list(state.items())[:-1]}
    found = unwrap(
        {"model": prefixed("average.module.", some), "ema": prefixed("net.", state)}, known
    )
    assert found.keys() == state.keys()
    assert torch.equal(found["norm.weight"], state["norm.weight"])


@pytest.mark.parametrize(("in_chans", "classes"), [(1, 4), (13, 1000)])
def test_identify_says_how_many_channels_and_classes(in_chans, classes, tmp_path):
    made = timm.create_model("vim_tiny_patch16_224", in_chans=in_chans, num_classes=classes)
    torch.save({"state_dict": prefixed("model.", made.state_dict())}, tmp_path / "x.pth")
    found = vimamba.identify(tmp_path / "x.pth")
    assert (found.variant, found.in_chans, found.num_classes) == (
        "vim_tiny_patch16_224", in_chans, classes,
    )  # fmt: skip
    assert f"in_chans={in_chans}" in found.create_line
    assert ("num_classes" in found.create_line) == (classes != 1000)


def test_identify_tells_a_backbone_without_classifier(tmp_path, caplog):
    made = timm.create_model("vmamba_tiny_v0", num_classes=0)
    torch.save(made.state_dict(), tmp_path / "x.pth")
    found = vimamba.identify(tmp_path / "x.pth")
    assert (found.variant, found.num_classes) == ("vmamba_tiny_v0", 0)
    assert "num_classes=0" in found.create_line
    assert caplog.text == "", "models that were only tried say nothing"


def test_identify_lists_all_models_with_the_same_names_and_shapes(tmp_path):
    made = timm.create_model("vim_tiny_patch16_224")
    torch.save(made.state_dict(), tmp_path / "x.pth")
    found = vimamba.identify(tmp_path / "x.pth")
    names = [found.variant, *(other.variant for other in found.others)]
    assert names == [
        "vim_tiny_patch16_224",
        "vim_tiny_rope_patch16_224",
        "videomamba_tiny_patch16_224",
    ]


def test_the_name_of_the_published_file_decides_between_equal_shapes(tmp_path):
    state = timm.create_model("vim_tiny_patch16_224").state_dict()
    torch.save(state, tmp_path / "vim_t_midclstok_76p1acc.pth")
    found = vimamba.identify(tmp_path / "vim_t_midclstok_76p1acc.pth")
    assert (found.variant, found.others) == ("vim_tiny_patch16_224", ())


def spoil(state, how):
    if how == "an unknown key":
        state["layers.2.blocks.1.ls_1"] = torch.zeros(96)
    elif how == "a block less":
        state = {key: value for key, value in state.items() if ".2.blocks.8." not in key}
    elif how == "another width":
        state["patch_embed.proj.weight"] = torch.zeros(80, 3, 4, 4)
    return state


@pytest.mark.parametrize("how", ["an unknown key", "a block less", "another width"])
def test_identify_makes_no_model_that_cannot_be_the_one(how, monkeypatch):
    made = []
    outline = identity._outline

    def spy(entrypoint, name, *args):
        made.append(name)
        return outline(entrypoint, name, *args)

    monkeypatch.setattr(identity, "_outline", spy)
    assert find_identity({"model": spoil(shapes_only("vmamba_tiny_v0"), how)}) is None
    assert [name for name in made if name.startswith("vmamba")] == []


def test_parts_that_do_not_go_together_are_no_traceback(tmp_path):
    state = shapes_only("vmamba_tiny_v0")
    state["layers.0.blocks.0.self_attention.A_logs"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="it fits no model that vimamba knows"):
        create("vmamba_tiny_v0", tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    state = small_state()
    state["norm.bias"][3] = value
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"not finite .* 1 tensor: norm\.bias"):
        create("test_vmamba", tmp_path / "x.pth", num_classes=5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64])
def test_numbers_of_another_kind_are_refused(dtype, tmp_path):
    state = small_state()
    state["norm.bias"] = state["norm.bias"].to(dtype)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"another kind of numbers: norm\.bias"):
        create("test_vmamba", tmp_path / "x.pth", num_classes=5)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("vimamba.models._builder.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("vimamba.models._builder.getproxies", dict)
    with pytest.raises(RuntimeError, match=r"fetched from https.*fetch it by hand and load a file"):
        timm.create_model("vim_tiny_patch16_224", pretrained=True)
    with pytest.raises(CheckpointError, match="No pretrained weights exist for medmamba_tiny that"):
        timm.create_model("medmamba_tiny", pretrained=True)


def test_a_classifier_for_other_classes_is_dropped_with_a_message(tmp_path, caplog):
    made = timm.create_model("test_vmamba", num_classes=4)
    torch.save(made.state_dict(), tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    timm.create_model("test_vmamba", pretrained=True, pretrained_cfg_overlay=overlay)
    assert "classifier of 4 classes is left out: the model has num_classes=1000" in caplog.text
    caplog.clear()
    same = {"pretrained": True, "num_classes": 4, "pretrained_cfg_overlay": overlay}
    timm.create_model("test_vmamba", **same)
    assert "left out" not in caplog.text


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_a_position_embedding_of_another_grid_is_a_remark(size, tmp_path, monkeypatch):
    """Of Mamba-Reg, whose registers are between the patches."""
    sizes = {"img_size": size, "num_classes": 0}
    model = timm.create_model("mambar_small_patch16_224", device="meta", **sizes)
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "small.pth")
    made, outline = set(), identity._outline
    monkeypatch.setattr(identity, "_outline", lambda *args: made.add(args) or outline(*args))
    found = vimamba.identify(tmp_path / "small.pth")
    assert (found.variant, found.others) == ("mambar_small_patch16_224", ())
    # of its own size and that of the file, not of all families with such blocks
    assert len(made) <= 6
    assert dict(found.arguments) == sizes
    assert f"images of {size} pixels" in found.notes


def test_a_file_without_names_of_its_own_is_tried_in_no_other_layout(tmp_path, monkeypatch):
    sizes = {"img_size": (256, 384), "num_classes": 0}
    model = timm.create_model("vim_tiny_patch16_224", device="meta", **sizes)
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "small.pth")
    made, outline = [], identity._outline
    monkeypatch.setattr(identity, "_outline", lambda *args: made.append(args[3]) or outline(*args))
    found = vimamba.identify(tmp_path / "small.pth")
    assert dict(found.arguments) == sizes
    assert not [arguments for arguments in made if "pyramid" in dict(arguments)]
