"""Many devices: two processes on a CPU compute the same as one with the same global batch.

torch's nn.DataParallel runs only on GPUs; its requirements are checked here without one.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.parallel import replicate

from tests.backbones import TEST_MODELS, kinds_first
from tests.distributed_worker import Job, train, write_jobs
from vimamba.cli import main
from vimamba.data.errors import DataError
from vimamba.data.loading import EpochSampler, ShardedBatches

ROOT = Path(__file__).parents[1]


def has_batch_norm(name):
    """Whether a model has batch norms, which every process then computes over its own part."""
    model = timm.create_model(name, device="meta")
    return any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


WITHOUT_BATCH_NORM = [name for name in TEST_MODELS if not has_batch_norm(name)]
# sums over a batch are computed in two halves; measured 2e-7 after two epochs
SAME = {"rtol": 5e-6, "atol": 5e-6}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of 16 noisy stripes; 15 of all images, an odd number, are for validation."""
    root = tmp_path_factory.mktemp("distributed") / "images"
    rng = np.random.default_rng(0)
    for name, step in (("broad", 8), ("fine", 2), ("middle", 4)):
        (root / name).mkdir(parents=True)
        for number in range(16):
            stripes = (np.arange(40) // step % 2 * 200)[None, :, None]
            pixels = (stripes + rng.integers(0, 50, (36, 40, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return str(root)


def finish(command, **settings):
    """Run a command, which must succeed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done


def launch(*args):
    """Start two processes and wait for them."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return finish([*run, *args])


def launch_jobs(folder, jobs):
    write_jobs(folder / "jobs.json", jobs)
    launch(ROOT / "tests" / "distributed_worker.py", folder / "jobs.json")


def read(job):
    return json.loads(Path(job.out).with_suffix(".json").read_text())


def weights(job):
    return torch.load(job.out, weights_only=True)["state_dict"]


def assert_same_training(found, expected):
    torch.testing.assert_close(found["losses"], expected["losses"], **SAME)
    assert len(found["scores"]) == len(expected["scores"])
    for ours, theirs in zip(found["scores"], expected["scores"], strict=True):
        assert ours == pytest.approx(theirs, rel=5e-6, abs=5e-6)
    # every image is counted once
    assert found["report"]["confusion"] == expected["report"]["confusion"]
    assert sum(map(sum, found["report"]["confusion"])) == 15


def test_two_ddp_processes_train_as_one_and_score_every_image_once(images, tmp_path):
    single = Job("test_vmamba", images, str(tmp_path / "single.ckpt"), epochs=1)
    ddp = Job("test_vmamba", images, str(tmp_path / "ddp.ckpt"), "ddp", epochs=1)
    launch_jobs(tmp_path, [ddp])
    assert_same_training(read(ddp), train(single))
    ours, theirs = weights(ddp), weights(single)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], **SAME, msg=key)


@pytest.mark.slow
def test_ddp_and_fsdp2_train_as_one_process_and_read_each_others_checkpoints(images, tmp_path):
    single = {
        name: Job(name, images, str(tmp_path / f"{name}_single.ckpt"))
        for name in WITHOUT_BATCH_NORM
    }
    for job in single.values():
        train(job)
    first = [
        Job(name, images, str(tmp_path / f"{name}_{way}.ckpt"), way)
        for name in WITHOUT_BATCH_NORM
        for way in ("ddp", "fsdp2", "fsdp2_one_file")
    ]
    name = "test_vim"
    start = single[name].out
    # checkpoints of one process resume in two
    further = [
        Job(name, images, str(tmp_path / f"{way}_further.ckpt"), way, epochs=3, start=start)
        for way in ("ddp", "fsdp2")
    ]
    averaged = [
        Job(name, images, str(tmp_path / f"{way}_ema.ckpt"), way, epochs=1, ema=0.5)
        for way in ("single", "ddp", "fsdp2_one_file")
    ]
    launch_jobs(tmp_path, [*first, *further, *averaged[1:]])

    for job in first:
        assert_same_training(read(job), read(single[job.model]))
    straight = train(Job(name, images, str(tmp_path / "straight.ckpt"), epochs=3))
    last = {key: straight[key][-len(straight[key]) // 3 :] for key in ("losses", "scores")}
    last["report"] = straight["report"]
    for job in further:
        assert_same_training(read(job), last)

    # and those of two in one process
    for way in ("ddp", "fsdp2_one_file"):
        start, out = (str(tmp_path / f"{name}_{way}{end}") for end in (".ckpt", "_single.ckpt"))
        assert_same_training(train(Job(name, images, out, epochs=3, start=start)), last)
    shards = tmp_path / f"{name}_fsdp2.ckpt"
    tool = [sys.executable, "-m", "lightning_fabric.utilities.consolidate_checkpoint"]
    subprocess.run([*tool, str(shards)], check=True, capture_output=True)
    whole = torch.load(f"{shards}.consolidated", weights_only=True)["state_dict"]
    for key, value in weights(single[name]).items():
        torch.testing.assert_close(whole[key], value, **SAME, msg=key)

    expected = train(averaged[0])
    for job in averaged[1:]:
        assert_same_training(read(job), expected)
        ours, theirs = (
            torch.load(j.out, weights_only=True)["state_dict"] for j in (job, averaged[0])
        )
        for key in (k for k in theirs if k.startswith("average.")):
            torch.testing.assert_close(ours[key], theirs[key], **SAME, msg=key)


def start_ddp(args, recipe, out):
    """Start `configs/cluster/torchrun.sh` as on a cluster of one machine."""
    script = [ROOT / "configs" / "cluster" / "torchrun.sh", recipe, out, *args]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "HEAD": "localhost:0", "NODES": "1", "GPUS": "2"}
    return finish(script, **settings)


def start_fsdp2(args, recipe, out):
    shared = ["-c", "cluster/fsdp2", "--trainer.devices", "2"]
    return launch("-m", "vimamba", "fit", "-c", recipe, *shared, "--out", out, *args)


@pytest.mark.slow
@pytest.mark.parametrize("start", [start_ddp, start_fsdp2])
def test_the_command_trains_with_two_processes(start, images, tmp_path, capsys):
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(f"data:\n  init_args:\n    root: {images}\n    batch_size: 4\n")
    args = ["--model", "test_vim", "--img-size", "32", "--epochs", "2", "--workers", "1"]
    done = start([*args, "--trainer.accelerator", "cpu"], recipe, out)
    # one process prints
    assert done.stdout.count("writing to") == 1
    assert done.stdout.count("epoch 1/2") == 1
    assert {path.name for path in out.iterdir()} >= {
        "checkpoints",
        "config.yaml",
        "export",
        "metrics.csv",
        "metrics.json",
        "split.csv",
    }
    assert list(out.rglob(".*part*")) == []
    assert timm.create_model(f"local-dir:{out / 'export'}", pretrained=True).num_classes == 3
    report = json.loads((out / "metrics.json").read_text())["test"]
    assert sum(map(sum, report["confusion"])) == report["images"]
    # one process reads the run
    assert main(["test", str(out), "--trainer.devices", "1", "--trainer.strategy", "auto"]) == 0
    again = json.loads((out / "metrics.json").read_text())["test"]
    assert again["confusion"] == report["confusion"]


@pytest.mark.slow
def test_processes_started_from_outside_need_the_name_of_the_run(images, tmp_path):
    args = ["fit", "--data", images, "--model", "test_vim", "--trainer.accelerator", "cpu"]
    with pytest.raises(AssertionError, match="name the run's folder with --out"):
        launch("-m", "vimamba", *args, "--trainer.devices", "2")


def test_the_slurm_script_starts_one_task_per_gpu(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s " "$@"\n')
    srun.chmod(0o755)
    settings = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_CPUS_PER_TASK": "12",
    }
    script = ROOT / "configs" / "cluster" / "slurm.sbatch"
    done = finish([script, "my/recipe", "runs/x", "--lr", "1e-3"], **settings)
    assert done.stdout.split("vimamba ")[1].split() == [
        *("fit", "-c", "my/recipe", "--out", "runs/x", "--resume", "auto"),
        *("--trainer.num_nodes", "2", "--trainer.devices", "8", "--trainer.strategy", "ddp"),
        *("--workers", "11", "--lr", "1e-3"),
    ]


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [
    (15, 4, 2), (16, 4, 2), (5, 1, 4), (7, 3, 3), (100, 8, 3), (4, 64, 4),
])  # fmt: skip
def test_evaluation_is_shared_in_equally_many_batches(size, batch_size, world_size):
    shares = [
        list(ShardedBatches(size, batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert sorted(index for batch in batches for index in batch) == list(range(size))
    assert all(1 <= len(batch) <= max(batch_size, 2) for batch in batches)


def test_too_few_images_for_the_processes_are_refused():
    with pytest.raises(DataError, match="3 images cannot be shared by 4 processes"):
        ShardedBatches(3, 8, rank=0, world_size=4)


def test_a_step_of_all_processes_reads_what_one_process_would():
    whole = list(EpochSampler(24, seed=5, epoch=3))
    halves = [list(EpochSampler(24, seed=5, epoch=3, rank=r, world_size=2)) for r in (0, 1)]
    for step in range(3):
        together = {pair for half in halves for pair in half[4 * step : 4 * step + 4]}
        assert together == set(whole[8 * step : 8 * step + 8])


def replicas_of(model, others, monkeypatch):
    """A replica of a model as in nn.DataParallel, with weights from another model."""

    def tensors_of(model):
        return dict([*model.named_parameters(), *model.named_buffers()])

    keys = {id(tensor): key for key, tensor in tensors_of(model).items()}
    states = [tensors_of(other) for other in others]

    def broadcast(tensors, devices, detach=False):
        return [[state[keys[id(tensor)]] * 1 for tensor in tensors] for state in states]

    module = sys.modules["torch.nn.parallel.replicate"]  # its name refers to the function
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", broadcast)
    return replicate(model, list(range(len(others))))


@pytest.mark.parametrize("name", kinds_first(TEST_MODELS))
def test_replicas_compute_with_their_own_weights(name, monkeypatch):
    model, *others = (timm.create_model(name, num_classes=3).eval() for _ in range(3))
    image = torch.randn(2, *model.pretrained_cfg["input_size"])
    expected = [other(image) for other in others]
    for output in expected:
        output.square().sum().backward()
    grads = [{k: p.grad.clone() for k, p in other.named_parameters()} for other in others]
    for other in others:
        other.zero_grad()

    replicas = replicas_of(model, others, monkeypatch)
    outputs = [None] * len(replicas)

    def work(index):
        outputs[index] = replicas[index](image)

    # DataParallel runs them in parallel
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(replicas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for output, wanted, other, grad in zip(outputs, expected, others, grads, strict=True):
        torch.testing.assert_close(output, wanted)
        output.square().sum().backward()
        for key, parameter in other.named_parameters():
            torch.testing.assert_close(parameter.grad, grad[key], msg=key)
    assert all(parameter.grad is None for parameter in model.parameters())
