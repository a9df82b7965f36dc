"""The stages of pre-training are the paper's, and what a dry run says of them is right."""

import pytest

from t5x_style.config import cli
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import description
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from tests.unit.test_train_step import SCHEDULE
from tests.unit.train_toy import Bigram

GIVEN = (
    "--gin.VALIDATION_STORES={}",
    "--gin.SHORT_RUN_DIR='runs/short'",
    "--gin.LONG_RUN_DIR='runs/long'",
    "--gin.ENHANCE_RUN_DIR='runs/enhance'",
    "--gin.TRAIN_STORE='tasks/train'",
    "--gin.ENHANCE_STORE='tasks/chosen'",
)
READ_BY = {
    "short": ("VALIDATION_STORES", "SHORT_RUN_DIR", "TRAIN_STORE"),
    "long": ("VALIDATION_STORES", "SHORT_RUN_DIR", "LONG_RUN_DIR", "TRAIN_STORE"),
    "enhance": ("VALIDATION_STORES", "LONG_RUN_DIR", "ENHANCE_RUN_DIR", "ENHANCE_STORE"),
}


@pytest.fixture
def job_of(monkeypatch):
    """A function that gives the job of a phase, as the command line makes it."""
    jobs = []

    def keep(job):
        jobs.append(job)
        return ""

    monkeypatch.setattr(description, "dry_run_text", keep)

    def job_of(phase):
        flags = [flag for flag in GIVEN if flag[6:].partition("=")[0] in READ_BY[phase]]
        cli.main(
            "t5x_style.run.train.train",
            [
                f"--gin_scope={phase}",
                "--gin_file=models/internlm2_7b.gin",
                f"--gin_file=stages/pretrain_{phase}.gin",
                *flags,
                "--dry_run",
            ],
        )
        return jobs.pop()

    return job_of


@pytest.mark.parametrize(
    ("phase", "first_step", "end_step", "num_tokens", "length", "rope_base"),
    [
        ("short", 0, 522_000, 4 << 20, 4096, 50_000.0),
        ("long", 522_000, 574_200, 4 << 20, 32768, 1_000_000.0),
        ("enhance", 574_200, 580_000, 1 << 20, 32768, 1_000_000.0),
    ],
)
def test_phases_have_the_papers_settings(
    job_of, phase, first_step, end_step, num_tokens, length, rope_base
):
    job = job_of(phase)
    assert job.total_steps == end_step
    assert job.batch_size * job.length == num_tokens
    assert (job.length, job.objective.model.rope_base) == (length, rope_base)
    assert job.optimizer == AdamW(
        b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, decayed_kinds=("matrix",), clip_norm=1.0
    )
    rates = [float(job.schedule(step)) for step in (first_step, end_step - 1)]
    if phase == "short":
        assert rates[0] == pytest.approx(3e-4 / 2000)
        assert float(job.schedule(2000)) == pytest.approx(3e-4)
    elif phase == "long":
        assert rates == pytest.approx([3.664e-5, 3.0067e-5], rel=1e-3)
    else:
        assert rates == pytest.approx([3e-5, 3e-6], rel=2e-3)
    assert rates[1] >= 0.1 * (3e-4 if phase != "enhance" else 3e-5)


def test_a_dry_run_shows_parameters_operations_bytes_and_the_batch():
    job = Job(
        objective=Bigram(),
        optimizer=AdamW(),
        schedule=SCHEDULE,
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        total_steps=100,
        batch_size=16,
        length=32,
        seed=0,
        settings=LoopSettings(num_microbatches=2),
    )
    text = description.dry_run_text(job)
    lines = {line.partition("  ")[0]: line.split() for line in text.splitlines()}
    assert " ".join(lines["output/kernel"][1:]) == "16x48 float32 embed, vocab fsdp, tensor 768"
    assert "1,536 parameters" in text
    assert "of 512 tokens (16 rows of 32), 8 rows at a time" in text
    assert f"{6 * 16 * 48} a token, {6 * 16 * 48 * 512:.4g} a step" in text
    # A quarter of 1,536 fp32 values, twice that and two counts, and a quarter of the batch.
    assert lines["parameters"][-1] == "1,536"
    assert lines["optimizer state"][-1] == "3,076"
    assert lines["batch"][-1] == f"{3 * 4 * 512 // 4:,}"
    assert "inputs: int32[16, 32], [4, 32] on a device" in text
