"""The plan verb: what a job would need on devices that are not here, from their real compilers.

    python -m t5x_style.run.plan --gin_file=recipes/pod_7b_200k.gin --gin.TOPOLOGY='"v5p:8x8x4"'

The train step, or the reading of prompts, or the step from token to token, is compiled as it would
be there, on this machine. Ends with code 1 where the job does not fit.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.config import cli
from t5x_style.infer import compiling
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.parallel.topology import Topology
from t5x_style.parallel.topology import topology as topology_of
from t5x_style.progress import progress
from t5x_style.train import flops
from t5x_style.train.job import Job
from t5x_style.train.roofline import estimate

STEPS = ("train", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a sweep tries, each with each; an empty list leaves what the job has.

    Attributes:
      remats: rematerialisation policies.
      meshes: sizes of mesh axes, as arguments of `MeshConfig`.
      head_exchanges: of the model.
      num_microbatches: parts of a batch.
    """

    remats: Sequence[str] = ("attention_mlp", "attention", "full")
    meshes: Sequence[Mapping[str, int]] = ()
    head_exchanges: Sequence[int | None] = ()
    num_microbatches: Sequence[int] = ()

    def of(self, job: Job) -> list[Job]:
        """Returns the job with every combination."""
        objective: Any = job.objective
        model = objective.model
        tried = itertools.product(
            self.remats or [model.remat],
            [MeshConfig(**sizes) for sizes in self.meshes] or [job.mesh],
            self.head_exchanges or [model.head_exchange],
            self.num_microbatches or [job.settings.num_microbatches],
        )
        return [
            dataclasses.replace(
                job,
                objective=dataclasses.replace(
                    objective,
                    model=dataclasses.replace(model, remat=remat, head_exchange=exchange),
                ),
                mesh=mesh,
                settings=dataclasses.replace(job.settings, num_microbatches=parts),
            )
            for remat, mesh, exchange, parts in tried
        ]


def plan(
    job: Job,
    topology: str,
    *,
    step: str = "train",
    output: str | None = None,
    usable_memory: float = 0.95,
    sweep: bool = False,
    choices: Choices = Choices(),
) -> None:
    """Prints, and writes as JSON, what a job would need and take.

    Args:
      job: what is trained and how; prompts of `job.length` in `job.batch_size` rows otherwise.
      topology: the devices, see `parallel.topology`.
      step: "train", "prefill" or "decode".
      output: JSON file to write; None for none.
      usable_memory: share of a device's memory that a job may fill.
      sweep: whether to try `choices` and rank what fits, the fastest first.
      choices: what a sweep tries.

    Raises:
      ValueError: there are no such devices, or the job cannot be laid over them.
      SystemExit: with 1, where nothing that was tried fits.
    """
    if step not in STEPS:
        raise ValueError(f"plan.plan.step = {step!r}: must be one of {STEPS}")
    devices = topology_of(topology)
    jobs = choices.of(job) if sweep else [job]
    results = []
    for one in progress(jobs, description="plan", unit="programs"):
        results.append(_planned(one, devices, step, usable_memory))
        print(_text(results[-1]), flush=True)
    if sweep:
        results.sort(key=lambda result: (not result["fits"], result.get("step_secs", 0)))
        print(_ranking(results), flush=True)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(results, indent=1) + "\n")
        print(f"plan: {output}")
    if not any(result["fits"] for result in results):
        sys.exit(1)


def _planned(job: Job, devices: Topology, step: str, usable_memory: float) -> dict[str, Any]:
    """Returns one plan as JSON values."""
    job = dataclasses.replace(job, devices=devices.devices)
    objective: Any = job.objective
    model, mesh = objective.model, job.device_mesh
    num_tokens = job.batch_size * (1 if step == "decode" else job.length)
    result: dict[str, Any] = {
        "topology": devices.name,
        "step": step,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch": [job.batch_size, job.length],
        "remat": model.remat,
        "head_exchange": model.head_exchange,
        "num_microbatches": job.settings.num_microbatches,
    }
    start_secs = time.perf_counter()
    try:
        compiled = _compiled(job, step)
    except Exception as error:  # the compiler's own, of no one type
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # A TPU's compiler refuses what does not fit.
        return {**result, "fits": False, "error": str(error).splitlines()[0][:300]}
    per_token = {
        "train": job.objective.flops_per_token(job.length),
        "prefill": flops.training_flops_per_token(model, job.length) / 3,
        "decode": flops.training_flops_per_token(model, 1, job.length) / 3,
    }[step]
    repeated = flops.recomputed_flops_per_token(model, job.length) if step == "train" else 0
    found = estimate(
        compiled,
        mesh,
        devices.chip,
        model_flops=per_token * num_tokens,
        executed_flops=(per_token + repeated) * num_tokens,
    )
    return {
        **result,
        "fits": found.fits(usable_memory),
        **dataclasses.asdict(found),
        "bound": found.bound,
        "step_secs": found.step_secs,
        "serial_secs": found.serial_secs,
        "mfu": found.mfu,
        "serial_mfu": found.model_secs / found.serial_secs,
        "tokens_per_sec_per_device": num_tokens / mesh.size / found.step_secs,
        "compile_secs": time.perf_counter() - start_secs,
    }


def _compiled(job: Job, step: str) -> Any:
    if step == "train":
        return job.compile_train_step()
    objective: Any = job.objective
    compile_step = {"prefill": compiling.compile_prefill, "decode": compiling.compile_decode}[step]
    with job.in_place():
        return compile_step(objective.model, job.device_mesh, job.batch_size, job.length)


def _text(result: Mapping[str, Any]) -> str:
    head = _head(result)
    if "error" in result:
        return f"{head}\n  does not fit: {result['error']}\n"
    kinds = ("peak", "memory", "argument", "temporary")
    gib = {kind: result[f"{kind}_bytes"] / 2**30 for kind in kinds}
    sent = "".join(
        f"    {name:32} {num_bytes / 2**30:9.2f} GiB\n"
        for name, num_bytes in result["sent_bytes"].items()
    )
    times = {n: 1e3 * result[f"{n}_secs"] for n in ("compute", "memory", "link", "network")}
    return (
        f"{head}\n"
        f"  {'fits' if result['fits'] else 'DOES NOT FIT'}: {gib['peak']:.2f} GiB of "
        f"{gib['memory']:.1f} on each device "
        f"(arguments {gib['argument']:.2f}, temporaries {gib['temporary']:.2f})\n"
        f"  attention: {', '.join(result['attention']) or 'none'}\n"
        f"  sent by each device:\n{sent}"
        f"  at least {', '.join(f'{name} {ms:.1f} ms' for name, ms in times.items())}: bound by "
        f"{result['bound']}\n"
        f"  MFU at most {100 * result['mfu']:.1f}% (with nothing overlapped "
        f"{100 * result['serial_mfu']:.1f}%), {result['tokens_per_sec_per_device']:,.0f} tokens/s "
        f"a device\n"
        f"  compiled in {result['compile_secs']:.0f} s\n"
    )


def _head(result: Mapping[str, Any]) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    rows, length = result["batch"]
    parts = result["num_microbatches"]
    return (
        f"{result['step']} on {result['topology']}, {mesh or 'one device'}: {rows:,} rows of "
        f"{length:,}{f' in {parts} parts' if parts > 1 else ''}, remat {result['remat']}"
    )


def _ranking(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["ranked:"]
    for result in results:
        if result["fits"]:
            about = f"{result['step_secs']:.3f} s, MFU at most {100 * result['mfu']:.1f}%"
            about += f", {result['peak_bytes'] / 2**30:.1f} GiB"
        else:
            about = "does not fit"
        lines.append(f"  {_head(result)}: {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    # The devices that compile are not those that are here.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cli.main("t5x_style.run.plan.plan")
