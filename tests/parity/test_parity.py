"""Outputs, stages, gradients and layouts of the original models against ours, row by row.

Both compute in float64 with weights that `fill.py` generates from the names and shapes in the
manifests.
"""

import math
import re

import pytest
import timm
import torch

import vimamba
from tests.parity.official import fill, filled_state, read_manifest, rows, shapes_only
from tests.parity.recorded import read_recording
from tests.parity.rows import VARIANTS
from tests.parity.variants import PLAIN, STAGED, Tap
from vimamba.checkpoints import identity, read_checkpoint


@pytest.fixture(autouse=True)
def recorded_orders(variant, own_orders):
    """The scan orders recorded with an original."""
    for name, tables in variant.tables.items():
        vimamba.register_scan_table(name, tables)


def params(variants, is_slow=lambda variant: False):
    marks = [pytest.mark.slow]
    return [pytest.param(v, id=v.name, marks=marks if is_slow(v) else []) for v in variants]


def load(variant, tmp_path):
    """Our model with the filled official file, in float64."""
    file = save(variant, filled_state(variant.name), tmp_path)
    return variant.create(file).eval().double()


def save(variant, state, tmp_path):
    torch.save(variant.wrap(state), tmp_path / "official.pth")
    return tmp_path / "official.pth"


def bare(model):
    """The backbone in timm's feature extractor."""
    return getattr(model, "model", model)


def run(variant, model, inputs):
    """All outputs, in the format of the original."""
    if variant.call:
        outputs = getattr(model, variant.call)(*inputs.values())
    elif isinstance(model, vimamba.networks.Segmenter):
        outputs = model.forward_all(*inputs.values())
    else:
        outputs = model(*inputs.values())
    if isinstance(outputs, vimamba.networks.Registration):
        found = (outputs.moved, outputs.velocity, outputs.flow, outputs.features)
        outputs = [output for output in found if output is not None]
    return [
        variant.finish(o) for o in (outputs if isinstance(outputs, list | tuple) else [outputs])
    ]


def find_tap(variant, model, *names):
    """Our module, and how to get its tensor; None if ours has no such tensor."""
    standard = STAGED if hasattr(model, "stages") else PLAIN
    for pattern, place in [*variant.modules.items(), *standard.items()]:
        if match := next(filter(None, (re.fullmatch(pattern, name) for name in names)), None):
            if place is None:
                return None
            if callable(place):
                return place(model, match), Tap("")
            tap = Tap(place) if isinstance(place, str) else place
            return model.get_submodule(match.expand(tap.module)), tap
    raise AssertionError(f"{variant.name}: no pattern of `modules` matches any of {names}")


def record_stages(variant, model, stages):
    """Tensors of all stages of ours; None until the model has run."""
    kept = {}

    def keep(key, tap, x):
        kept[key] = tap.then(x) if tap.then else x

    for key, recorded in stages.items():
        # two stages may use one module
        if found := find_tap(variant, model, *filter(None, (recorded.module, key))):
            module, tap = found
            kept[key] = None
            if tap.entering:
                module.register_forward_pre_hook(lambda _m, x, k=key, t=tap: keep(k, t, x[0]))
            else:
                module.register_forward_hook(lambda _m, _x, out, k=key, t=tap: keep(k, t, out))
    return kept


WITH_OUTPUTS = [v for v in VARIANTS if read_recording(v.name).outputs]
WITH_GRADIENTS = [v for v in VARIANTS if read_recording(v.name).grads]


@pytest.mark.parametrize("variant", params(WITH_OUTPUTS, lambda variant: variant.is_slow))
def test_outputs_and_stages_equal_the_official_ones(variant, tmp_path):
    recorded, model = read_recording(variant.name), load(variant, tmp_path)
    kept = record_stages(variant, bare(model), recorded.stages)
    with torch.no_grad():
        outputs = run(variant, model, recorded.inputs())
    for key, ours in kept.items():
        assert ours is not None, f"the module of stage {key!r} did not run"
        recorded.stages[key].assert_equals(ours, f"stage {key!r}")
    for ours, (key, output) in zip(outputs, recorded.outputs.items(), strict=True):
        output.assert_equals(ours, key)
    if recorded.features:
        with torch.no_grad():
            final = model.forward_features(*recorded.inputs().values())
            recorded.features.assert_equals(model.forward_head(final, pre_logits=True), "features")


def official_gradients(variant, model):
    """Gradients of the official parameters: ours, with the renaming inverted."""
    state = {
        key: value.double().requires_grad_() if value.is_floating_point() else value
        for key, value in filled_state(variant.name).items()
    }
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    renamed = model.from_official(state)
    sum((value * ours[name]).sum() for name, value in renamed.items() if name in ours).backward()
    return {key: value.grad for key, value in state.items()}


@pytest.mark.parametrize("variant", params(WITH_GRADIENTS, lambda variant: variant.slow_gradients))
def test_gradients_equal_the_official_ones(variant, tmp_path):
    recorded, model = read_recording(variant.name), load(variant, tmp_path)
    inputs = {name: x.requires_grad_() for name, x in recorded.inputs().items()}
    outputs = dict(zip(recorded.outputs, run(variant, model, inputs), strict=True))
    for key, output in outputs.items():
        cotangent = "cotangent" if len(outputs) == 1 else f"cotangent.{key}"
        output.backward(
            torch.from_numpy(fill.fill_input(output.shape, cotangent)).double(), retain_graph=True
        )
    ours = official_gradients(variant, bare(model))
    ours.update({name: x.grad for name, x in inputs.items()})
    assert len(recorded.grads) >= 4
    for key, gradient in recorded.grads.items():
        gradient.assert_equals(ours[key], f"gradient of {key}")


@pytest.mark.parametrize("variant", params(v for v in VARIANTS if v.is_loaded))
def test_the_official_layout_loads_strictly(variant, tmp_path):
    file, sizes = save(variant, shapes_only(variant.name), tmp_path), []
    for kwargs in ({}, *variant.also):
        model = bare(variant.create(file, **kwargs))
        # the files are all zeros, so missing parameters are detected
        assert [k for k, p in model.named_parameters() if p.any()] == [*variant.fresh]
        loaded = [p for k, p in model.named_parameters() if k not in variant.fresh]
        sizes.append(sum(p.numel() for p in loaded))
    assert max(sizes) + count_absorbed(variant) == read_manifest(variant.name)["num_params"]


def count_absorbed(variant):
    """Number of elements in the official file without a parameter in ours."""
    return sum(math.prod(shape) for key, shape, _ in rows(variant.name) if variant.is_absorbed(key))


@pytest.mark.parametrize("variant", params(v for v in VARIANTS if not v.is_loaded))
def test_the_published_layout_fits_strictly(variant, tmp_path):
    """As above, but on the meta device, without loading."""
    file = save(variant, shapes_only(variant.name), tmp_path)
    model = variant.outline()
    state = model.read_weights(read_checkpoint(file))
    assert model.state_dict().keys() - state.keys() == {*variant.fresh}
    count = sum(p.numel() for k, p in model.named_parameters() if k not in variant.fresh)
    assert count + count_absorbed(variant) == read_manifest(variant.name)["num_params"]


def family(variant):
    return timm.model_entrypoint(variant.model).__module__


IDENTIFIED = [v for v in VARIANTS if v.is_identified]
# one model of each family by default
FIRST = {family(v): v for v in reversed(IDENTIFIED)}


@pytest.mark.parametrize("variant", params(IDENTIFIED, lambda v: v is not FIRST[family(v)]))
def test_identify_names_the_variant_and_makes_few_models(variant, tmp_path, monkeypatch):
    made, outline = set(), identity._outline

    def spy(*args):
        made.add(args)
        return outline(*args)

    monkeypatch.setattr(identity, "_outline", spy)
    first = vimamba.identify(save(variant, shapes_only(variant.name), tmp_path))
    # Vim's tiny models and all others of 24 blocks and the same width; most files match one model
    assert len(made) <= 7
    # all models with equal names and shapes are named
    found = next(f for f in (first, *first.others) if f.variant == variant.model)
    assert found.variant in found.create_line
    family = found.family.lower().replace("-", "")
    assert variant.name.lower().replace("_", "").startswith(family)
