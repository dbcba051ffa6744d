"""nnU-Net: plans that name our networks, trainers, the folder for nnU-Net 2.8, and the command.

tests/integrations/test_nnunet_docs.py runs all of it on a data set, with nnU-Net's own commands.
"""

import importlib
import json
import os
import pydoc
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.documents import ROOT
from tests.nnunet_plans import CHANNELS, CLASSES, DATASET, write_plans
from tests.parity.official import filled_state, read_manifest
from tests.parity.recorded import read_recording
from vimamba.integrations.nnunet import PlansNetwork, add_configuration, register, trainer_folder

SMALL = {"depths": [1, 1], "decoder_depths": [1, 1], "dims": [8, 16]}


@pytest.fixture
def plans_json(tmp_path):
    return write_plans(tmp_path / "preprocessed")


@pytest.fixture
def make_trainer(plans_json, tmp_path, monkeypatch):
    """Makes a trainer as `nnUNetv2_train` does."""
    host = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    monkeypatch.setattr(host, "nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setattr(host, "nnUNet_results", str(tmp_path / "results"))
    data = plans_json.parent / "nnUNetPlans_2d"
    data.mkdir()
    (data / "case.b2nd").touch()  # nnU-Net determines the file format from names
    register()

    def make(name, plans_file=plans_json, configuration="2d", initialize=True):
        plans = {**json.loads(plans_file.read_text()), "continue_training": False}
        trainer_class = getattr(host, name)
        trainer = trainer_class(plans, configuration, 0, DATASET, torch.device("cpu"))
        if initialize:
            torch.manual_seed(0)
            trainer.initialize()
        return trainer

    return make


def arch_of(added):
    plans = json.loads(added.plans_file.read_text())
    return plans["configurations"][added.name]["architecture"]


def build(added, deep_supervision):
    """The network as `nnUNetv2_train` builds it from plans."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    arch = arch_of(added)
    return get_network_from_plans(
        arch["network_class_name"],
        arch["arch_kwargs"],
        arch["_kw_requires_import"],
        CHANNELS,
        CLASSES,
        deep_supervision=deep_supervision,
    )


def step(trainer):
    """One training step on fixed noise; returns the loss."""
    torch.manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales()
    sizes = [[round(p * s) for p, s in zip(patch, scale, strict=True)] for scale in scales]
    target = [torch.randint(0, CLASSES, (2, 1, *size)).float() for size in sizes]
    batch = {"data": torch.randn(2, CHANNELS, *patch), "target": target}
    trainer.network.train()
    trainer.set_deep_supervision_enabled(True)
    return float(trainer.train_step(batch)["loss"])


VOLUMES = {"base": "3d_fullres"}
# networks, with the strides of their outputs; the loss ignores the last
NETWORKS = {
    "plain": ({"network": "vm_unet", **SMALL}, [1, 2]),
    "auxiliary": ({"network": "test_vmamba", "head": "unet", "aux": True}, [1, 16, 32]),
    "vim": ({"network": "test_vim", "head": "fpn"}, [1, 2]),
    "bot": ({"network": "umamba_bot_2d"}, [1, 2, 4]),
    "enc": ({"network": "umamba_enc_2d"}, [1, 2, 4]),
    "segmamba": (
        {"network": "segmamba", "depths": (1, 1), "dims": (4, 8), "hidden_size": 8, **VOLUMES},
        [1, 2],
    ),
    # the loss would ignore one of its two outputs
    "vss_unet": ({"network": "vss_unet_3d_nano", **VOLUMES}, [1, 2, 4]),
}


@pytest.mark.parametrize(("kwargs", "scales"), NETWORKS.values(), ids=NETWORKS)
def test_nnunet_builds_a_planned_network(kwargs, scales, plans_json):
    added = add_configuration(plans_json, **kwargs)
    train, predict = build(added, True), build(added, False)
    predict.load_state_dict(train.state_dict())
    image = torch.randn(1, CHANNELS, *added.patch_size)
    with torch.no_grad():
        outputs, logits = train.eval()(image), predict.eval()(image)
        train.decoder.deep_supervision = False
        torch.testing.assert_close(train(image), logits)
    assert logits.shape == (1, CLASSES, *added.patch_size)
    torch.testing.assert_close(outputs[0], logits)
    sizes = [tuple(side // scale for side in added.patch_size) for scale in scales]
    assert [tuple(y.shape[2:]) for y in outputs] == sizes
    strides = arch_of(added)["arch_kwargs"]["strides"]
    assert np.cumprod(strides, axis=0)[:-1].tolist() == [
        [scale] * len(added.patch_size) for scale in scales
    ]


def test_a_volume_is_segmented(plans_json):
    added = add_configuration(plans_json, network="umamba_enc_3d", base="3d_fullres")
    outputs = build(added, True)(torch.randn(1, CHANNELS, 16, 32, 16))
    assert [tuple(y.shape[2:]) for y in outputs] == [(16, 32, 16), (8, 16, 8)]


def test_strides_follow_the_spacing(plans_json):
    plans = json.loads(plans_json.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [5.0, 1.0, 1.0]
    plans_json.write_text(json.dumps(plans))
    added = add_configuration(plans_json, network="vss_unet_3d_tiny", base="3d_fullres")
    outputs = build(added, True)(torch.randn(1, CHANNELS, *added.patch_size))
    assert [tuple(y.shape[2:]) for y in outputs][:2] == [(16, 32, 16), (16, 16, 8)]


def test_a_patch_is_rounded_up_to_whole_cells(plans_json):
    added = add_configuration(plans_json, network="test_vmamba", patch_size=[33, 64])
    assert added.patch_size == (64, 64)
    added = add_configuration(plans_json, network="umamba_bot_2d", patch_size=[8, 33])
    # at least two cells of 8 pixels: an instance norm of one cell is undefined
    assert added.patch_size == (16, 40)


def test_a_configuration_inherits_and_the_plans_stay_as_they_are(plans_json):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    before = plans_json.read_bytes()
    added = add_configuration(plans_json, network="vm_unet", batch_size=3, **SMALL)
    add_configuration(plans_json, network="umamba_bot_2d", name="second")
    assert plans_json.read_bytes() == before
    manager = PlansManager(str(added.plans_file))
    assert manager.plans_name == "nnUNetPlans_vimamba"
    names = ["2d", "3d_fullres", "2d_vm_unet", "second"]
    assert list(manager.plans["configurations"]) == names
    found = manager.get_configuration("2d_vm_unet")
    assert (found.batch_size, found.data_identifier) == (3, "nnUNetPlans_2d")
    assert manager.get_configuration("second").batch_size == 2
    assert [file.name for file in plans_json.parent.glob(".*")] == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"network": "vm_unet", "base": "4d"}, r"base='4d' must be one of \['2d', '3d_fullres'\]"),
        ({"network": "vm_unet", "base": "3d_fullres"}, "has 2 dimensions and the base 3"),
        ({"network": "umamba_bot_3d"}, "network='umamba_bot_3d' must have 2 dimensions"),
        ({"network": "vm_unet", "name": "2d"}, "name='2d' is a configuration of nnUNetPlans.json"),
        ({"network": "vm_unet", "name": "a__b"}, "name='a__b' must be letters, digits and single"),
        (
            {"network": "vm_unet", "patch_size": [32]},
            r"patch_size=\[32\] must have the dimensions of '2d'",
        ),
        ({"network": "vm_unett"}, "model='vm_unett' is unknown; close names are vm_unet"),
        ({"network": "vm_unet", "aux": True}, "vm_unet has no auxiliary outputs"),
    ],
)
def test_what_cannot_be_planned_is_refused(kwargs, message, plans_json):
    with pytest.raises(ValueError, match=message):
        add_configuration(plans_json, **kwargs)
    assert not plans_json.with_name("nnUNetPlans_vimamba.json").exists()


@pytest.mark.slow
def test_a_compiled_network_switches_deep_supervision(plans_json):
    """nnU-Net compiles networks on GPUs, and sets the switch on the inner module."""
    added = add_configuration(plans_json, network="umamba_enc_2d")
    net = build(added, True).eval()
    compiled = torch.compile(net, backend="aot_eager")
    image = torch.randn(1, CHANNELS, *added.patch_size)
    with torch.no_grad():
        for enabled in (True, False):
            compiled._orig_mod.decoder.deep_supervision = enabled
            torch.testing.assert_close(compiled(image), net(image))
    torch.compiler.reset()


def test_float32_is_kept_under_autocast(plans_json):
    added = add_configuration(plans_json, network="vm_unet", amp=False, **SMALL)
    image = torch.randn(1, CHANNELS, 32, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert build(added, False)(image).dtype == torch.float32
        added = add_configuration(plans_json, network="vm_unet", **SMALL)
        assert build(added, False)(image).dtype == torch.bfloat16


TRAINERS = [
    pytest.param("nnUNetTrainerUMambaBot", "2d", marks=pytest.mark.slow),
    ("nnUNetTrainerUMambaEncNoAMP", "2d"),
    ("nnUNetTrainerUMambaEnc", "3d_fullres"),
    ("nnUNetTrainerVimambaEncoder", "2d_vm_unet"),
    ("nnUNetTrainer", "2d_vm_unet"),
]


@pytest.mark.parametrize(("name", "planned"), TRAINERS)
def test_a_trainer_trains_and_its_checkpoint_predicts(
    name, planned, make_trainer, plans_json, tmp_path, monkeypatch
):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans_file = add_configuration(plans_json, network="vm_unet", **SMALL).plans_file
    trainer = make_trainer(name, plans_file, planned)
    before = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
    first, *_, last = (step(trainer) for _ in range(4))
    assert last < first
    still = [k for k, p in trainer.network.named_parameters() if torch.equal(p, before[k])]
    # the loss ignores the coarsest output
    assert [k for k in still if "aux_classifiers" not in k] == []
    for file, content in (("plans", trainer.plans_manager.plans), ("dataset", DATASET)):
        (tmp_path / "results" / f"{file}.json").write_text(json.dumps(content))
    (tmp_path / "results" / "fold_0").mkdir()
    trainer.inference_allowed_mirroring_axes = (0, 1)
    trainer.save_checkpoint(str(tmp_path / "results" / "fold_0" / "checkpoint_final.pth"))

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / "results"), (0,))
    predictor.network.eval()
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn(1, CHANNELS, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        logits = predictor.network(image)
        torch.testing.assert_close(logits, trainer.network.eval()(image))
    if image.ndim == 4:
        # larger than a patch, so it is read in windows
        image = np.random.default_rng(0).normal(size=(CHANNELS, 1, 50, 70)).astype(np.float32)
        labels = predictor.predict_single_npy_array(image, {"spacing": [999, 1, 1]})
        assert labels.shape == (1, 50, 70)
        assert set(np.unique(labels)) <= {0, 1, 2}


def test_the_environment_sets_how_long_is_trained(make_trainer, monkeypatch):
    trainer = make_trainer("nnUNetTrainerUMambaBot", initialize=False)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1000, 250)
    assert trainer.num_val_iterations_per_epoch == 50
    monkeypatch.setenv("VIMAMBA_NNUNET_EPOCHS", "3")
    monkeypatch.setenv("VIMAMBA_NNUNET_ITERS", "12")
    trainer = make_trainer("nnUNetTrainerUMambaBot", initialize=False)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (3, 12)
    assert trainer.num_val_iterations_per_epoch == 2
    monkeypatch.setenv("VIMAMBA_NNUNET_ITERS", "many")
    with pytest.raises(ValueError, match="VIMAMBA_NNUNET_ITERS=many must be a whole number"):
        make_trainer("nnUNetTrainerUMambaBot", initialize=False)


def test_weight_decay_spares_scans_and_norms(make_trainer):
    trainer = make_trainer("nnUNetTrainerUMambaBot")
    assert type(trainer.optimizer) is torch.optim.AdamW
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    decays = {
        names[id(p)]: g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]
    }
    assert len(decays) == len(names)
    assert {name.rsplit(".", 1)[1] for name, decay in decays.items() if decay} == {"weight"}
    assert decays["network.classifier.weight"] == 0.05
    trainer.lr_scheduler.step(500)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-4 * 0.5**0.9}


def test_a_twin_without_mixed_precision_runs_in_float32(make_trainer):
    image = torch.randn(1, CHANNELS, 32, 48)
    for name, dtype in (("", torch.bfloat16), ("NoAMP", torch.float32)):
        trainer = make_trainer(f"nnUNetTrainerUMambaBot{name}")
        trainer.set_deep_supervision_enabled(False)
        with torch.autocast("cpu", torch.bfloat16):
            assert trainer.network(image).dtype == dtype
    assert trainer.grad_scaler is None


def test_a_stock_configuration_is_no_network_of_ours(make_trainer):
    with pytest.raises(ValueError, match="PlainConvUNet; add one with `vimamba nnunet plan`"):
        make_trainer("nnUNetTrainerVimambaEncoder")


@pytest.mark.parametrize(
    ("recorded", "trainer"),
    [
        ("umamba_bot_2d_test", "nnUNetTrainerUMambaBot"),
        ("umamba_enc_3d_test", "nnUNetTrainerUMambaEnc"),
    ],
)
def test_a_model_of_the_fork_predicts_what_it_did(recorded, trainer, make_trainer):
    """Its plans are of nnU-Net 2.1, and its parameters have the authors' names."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    names = ("patch_size", "conv_kernel_sizes", "pool_op_kernel_sizes", "UNet_base_num_features")
    names += ("unet_max_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder")
    manifest = read_manifest(recorded)
    plan = {name: manifest["config"][name] for name in names}
    plan |= {"UNet_class_name": "PlainConvUNet", "num_pool_per_axis": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plans have an old format
        manager = ConfigurationManager(plan)
    host = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    channels = [
        manifest["config"][f"num_{name}"] for name in ("input_channels", "segmentation_heads")
    ]
    net = getattr(host, trainer).build_network_architecture(None, manager, *channels, False)
    net.load_state_dict(filled_state(recorded))
    recording = read_recording(recorded)
    logits = net.eval().double()(*recording.inputs().values())
    recording.outputs["logits"].assert_equals(logits, "logits")


def test_a_checkpoint_that_does_not_fit_is_refused(plans_json):
    added = add_configuration(plans_json, network="umamba_bot_2d")
    net = build(added, False)
    state = net.state_dict()
    del state["network.classifier.weight"]
    with pytest.raises(RuntimeError, match=r"network\.classifier\.weight"):
        net.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({"decoder.stages.0.0.conv1.weight": torch.zeros(1)})


def test_nnunet_finds_the_trainers_after_registration():
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    trainers = importlib.import_module("vimamba.integrations.nnunet.trainers")
    for name in register():
        found = recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
        assert found is getattr(trainers, name)
        assert found.__doc__


def test_the_folder_for_later_versions_holds_one_module_with_the_trainers(monkeypatch):
    """nnU-Net 2.8 adds it to the path and imports its modules."""
    (module,) = trainer_folder().glob("*.py")
    monkeypatch.syspath_prepend(str(trainer_folder()))
    found = importlib.import_module(module.stem)
    trainers = importlib.import_module("vimamba.integrations.nnunet.trainers")
    for name in trainers.__all__:
        assert getattr(found, name) is getattr(trainers, name)
    monkeypatch.delitem(sys.modules, module.stem)


def test_the_class_of_the_plans_is_found_by_its_name(plans_json):
    added = add_configuration(plans_json, network="vm_unet", **SMALL)
    assert pydoc.locate(arch_of(added)["network_class_name"]) is PlansNetwork
    # nnU-Net would reinitialize it with this
    assert not hasattr(PlansNetwork, "initialize")
    assert issubclass(PlansNetwork, nn.Module)


WITHOUT = """
import sys
import warnings
sys.modules["nnunetv2"] = None
from vimamba.cli import main
from vimamba.integrations.nnunet import register
try:
    register()
except ModuleNotFoundError as error:
    print(error)
print(main(["nnunet", "path"]), main(["nnunet", "check"]))
"""


def test_without_nnunet_the_extra_is_named():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    message, folder, codes = done.stdout.splitlines()
    assert message == 'nnunetv2 is not installed; install it with: pip install "vimamba[nnunet]"'
    assert folder == str(trainer_folder())
    assert codes == "0 2"
    assert done.stderr.count('run `pip install "vimamba[nnunet]"`') == 1
