"""Fine-tuning on conversations, the whole path on a small scale; then with adapters alone."""

import json
from pathlib import Path

import pytest

from t5x_style.config import cli
from t5x_style.data.batches import Component, epoch_steps
from t5x_style.models import lora
from t5x_style.train import checkpoint, run_folder
from t5x_style.train import state as states

ROOT = Path(__file__).resolve().parents[2]
SMALL = str(ROOT / "tests" / "e2e" / "small_sft.gin")

SIZES = ("num_layers", "embed_dim", "head_dim", "num_query_heads", "num_kv_heads", "mlp_dim")


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["eval/chat/loss"] for line in lines if "eval/chat/loss" in line]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    cli.main(
        "t5x_style.run.pipeline.pipeline", [f"--gin_file={SMALL}", f"--gin.RUN_DIR='{folder}'"]
    )
    return folder


@pytest.mark.slow
def test_from_repositories_and_conversations_to_answers(made):
    assert losses(made / "sft")[-1] < losses(made / "base")[-1] - 0.5
    components = [
        Component(str(made / "tasks/chat/train"), 0.9),
        Component(str(made / "tasks/documents/train"), 0.1),
    ]
    num_steps = epoch_steps(components, 512, 8, seed=0, epochs=5)
    assert checkpoint.committed_steps(made / "sft" / run_folder.CHECKPOINTS) == [num_steps]
    rows = json.loads((made / "samples" / "samples.json").read_text())
    assert [row["name"] for row in rows] == ["base"] * 4 + ["sft"] * 4
    for row in rows:
        assert row["prompt"].startswith("<s><|im_start|>")
        assert row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert row["is_stopped"] == row["text"].endswith(("<|im_end|>", "</s>"))


@pytest.mark.slow
def test_adapters_alone_learn_too_and_leave_the_base_as_it_is(made):
    run_dir = made / "lora"
    of_base = json.loads((made / "base" / run_folder.MODEL).read_text())
    cli.main(
        "t5x_style.run.train.train",
        [
            "--gin_scope=sft",
            "--gin_file=models/internlm2_tiny.gin",
            "--gin_file=stages/sft_lora.gin",
            *(f"--gin.config.TransformerConfig.{name}={of_base[name]}" for name in SIZES),
            "--gin.VOCAB_SIZE=640",
            f"--gin.BASE_RUN_DIR='{made}/base'",
            f"--gin.SFT_RUN_DIR='{run_dir}'",
            f"--gin.CHAT_STORE='{made}/tasks/chat/train'",
            f"--gin.LONG_TEXT_STORE='{made}/tasks/documents/train'",
            f"--gin.SFT_VALIDATION_STORES={{'chat': '{made}/tasks/chat/validation'}}",
            "--gin.SFT_EPOCHS=5",
            "--gin.SFT_LENGTH=512",
            "--gin.SFT_ROPE_BASE=50_000.0",
            "--gin.SFT_BATCH_SIZE=8",
            "--gin.SFT_LEARNING_RATE=3e-2",
            "--gin.LORA_RANK=4",
            "--gin.LORA_ALPHA=8.0",
        ],
    )
    assert losses(run_dir)[-1] < losses(made / "base")[-1] - 0.2
    _, base = checkpoint.load_model(made / "base")
    _, merged = checkpoint.load_model(run_dir)
    base, merged = states.named_leaves(base), states.named_leaves(merged)
    assert list(base) == list(merged) and not any(lora.ADAPTERS in name for name in merged)
    changed = {name for name in base if (base[name] != merged[name]).any()}
    assert {name.rpartition("/")[2] for name in changed} == {"wqkv", "wo", "w1", "w2", "w3"}
