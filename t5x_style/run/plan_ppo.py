"""The plan_ppo verb: whether PPO's models fit devices that are not here, program by program.

    python -m t5x_style.run.plan_ppo --gin_file=recipes/pod_7b_ppo.gin --gin.TOPOLOGY='"h200:8"'

Actor, critic, reference, reward model and sampling copy stay on the devices all the time; which of
the iteration's programs needs the most beside them decides. Each is compiled as it would be there,
on this machine. Ends with code 1 where they do not fit.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.align.layouts import Layouts
from t5x_style.align.ppo import PPO, PPOSettings
from t5x_style.config import cli
from t5x_style.infer import compiling
from t5x_style.infer.pool import bucket
from t5x_style.objectives.reward import Reward
from t5x_style.parallel import rules
from t5x_style.parallel.topology import Topology
from t5x_style.parallel.topology import topology as topology_of
from t5x_style.progress import progress
from t5x_style.train import state as states
from t5x_style.train.job import Job

_COPY = "sampling copy"
_KINDS = ("brought", "temporary", "result", "peak")


@dataclasses.dataclass(frozen=True)
class Program:
    """One of the iteration's programs.

    Attributes:
      compile: returns it compiled.
      brought: abstract arrays that it reads and that are not on the devices all the time.
      replaces: what is kept that its results take the place of.
    """

    compile: Callable[[], jax.stages.Compiled]
    brought: Any = ()
    replaces: str | None = None


def plan_ppo(
    actor: Job,
    critic: Job,
    topology: str,
    *,
    settings: PPOSettings = PPOSettings(),  # noqa: B008 (frozen)
    layouts: Layouts = Layouts(),  # noqa: B008 (frozen)
    output: str | None = None,
    usable_memory: float = 0.95,
) -> None:
    """Prints, and writes as JSON, what an iteration of PPO would need of each device.

    Args:
      actor: the actor's job; the longest rows are as long as it says.
      critic: the critic's; the reward model has the sizes of its model.
      topology: the devices, see `parallel.topology`.
      settings: how the policy is sampled.
      layouts: of the other three models.
      output: JSON file to write; None for none.
      usable_memory: share of a device's memory that may be filled.

    Raises:
      ValueError: there are no such devices, or the jobs cannot be laid over them.
      SystemExit: with 1, where it does not fit.
    """
    devices = topology_of(topology)
    actor, critic = (dataclasses.replace(job, devices=devices.devices) for job in (actor, critic))
    ppo = PPO(settings, actor, critic)
    result = _planned(ppo, layouts, devices, usable_memory)
    print(_text(result), flush=True)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(result, indent=1) + "\n")
        print(f"plan: {output}")
    if not result["fits"]:
        sys.exit(1)


def _planned(ppo: PPO, layouts: Layouts, devices: Topology, usable_memory: float) -> dict[str, Any]:
    """Returns the plan as JSON values."""
    kept, programs = parts(ppo, layouts)
    kept_bytes = {name: bytes_on_device(tree) for name, tree in kept.items()}
    limit = usable_memory * devices.chip.memory_bytes
    needed: dict[str, dict[str, Any]] = {}
    for name, program in progress(
        programs.items(), description="plan", unit="programs", total=len(programs)
    ):
        try:
            memory: Any = program.compile().memory_analysis()
        except Exception as error:  # the compiler's own, of no one type
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # A TPU's compiler refuses what does not fit even alone.
            needed[name] = {"fits": False, "error": str(error).splitlines()[0][:300]}
            continue
        others = sum(size for key, size in kept_bytes.items() if key != program.replaces)
        own = {
            "brought_bytes": bytes_on_device(program.brought),
            "temporary_bytes": memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
            "result_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        }
        peak = others + sum(own.values())
        needed[name] = {**own, "peak_bytes": peak, "fits": peak <= limit}
        print(_line(name, needed[name]), flush=True)
    policy: Any = ppo.actor.objective
    return {
        "topology": devices.name,
        "mesh": {axis: size for axis, size in ppo.actor.device_mesh.shape.items() if size > 1},
        "answers": ppo.settings.num_rollouts,
        "rows": [ppo.actor.batch_size, ppo.actor.length],
        "sampled_rows": min(ppo.settings.num_rollouts, layouts.sampled_rows),
        "num_microbatches": ppo.actor.settings.num_microbatches,
        "remat": policy.model.remat,
        "memory_bytes": devices.chip.memory_bytes,
        "kept_bytes": kept_bytes,
        "programs": needed,
        "fits": all(one["fits"] for one in needed.values()),
    }


def parts(ppo: PPO, layouts: Layouts) -> tuple[dict[str, Any], dict[str, Program]]:
    """Returns what is on the devices all the time, as abstract arrays, and what runs over it.

    Args:
      ppo: the iteration.
      layouts: of the models that do not learn.
    """
    actor, critic, settings = ppo.actor, ppo.critic, ppo.settings
    policy: Any = actor.objective
    value: Any = critic.objective
    sampling_rules = actor.table(layouts.sampling_rules)
    reward_rules = critic.table(layouts.reward_rules)
    num_new = bucket(settings.max_new_tokens)
    with _placed(actor, sampling_rules):
        rollout = compiling.Rollout(
            policy.model,
            actor.device_mesh,
            num_rows=min(settings.num_rollouts, layouts.sampled_rows),
            num_prompt=bucket(actor.length + 1 - settings.max_new_tokens),
            num_new=num_new,
            sampling=settings.sampling,
        )
    kept = {
        "actor": actor.abstract_state,
        "critic": critic.abstract_state,
        "reference": ppo.abstract_reference(layouts),
        "reward model": states.abstract_params(
            Reward(value.model), critic.device_mesh, reward_rules
        ),
        _COPY: rollout.params,
    }
    rows = ppo.abstract_rows(actor.length)
    scores = jax.ShapeDtypeStruct((actor.batch_size,), jnp.float32)
    scored = (critic.device_mesh, min(bucket(actor.length + 2), value.model.trained_length))

    def in_place(job: Job, table: rules.Rules, compile_it: Callable[[], Any]) -> Any:
        def compiled() -> Any:
            with _placed(job, table):
                return compile_it()

        return compiled

    def assess() -> Any:
        return (
            ppo.assess_program(actor.length)
            .lower(
                kept["actor"].params,
                kept["reference"],
                kept["critic"].params,
                rows,
                scores,
                jax.ShapeDtypeStruct((), jnp.float32),
            )
            .compile()
        )

    programs = {
        "weights to the sampler": Program(
            in_place(actor, sampling_rules, lambda: rollout.compile_weights(kept["actor"].params)),
            replaces=_COPY,
        ),
        "prefill": Program(in_place(actor, sampling_rules, rollout.compile_prefill), rollout.state),
        "decode": Program(in_place(actor, sampling_rules, rollout.compile_decode), rollout.state),
        "scoring": Program(
            in_place(
                critic,
                reward_rules,
                lambda: compiling.compile_scores(value.model, kept["reward model"], *scored),
            )
        ),
        "assess": Program(in_place(actor, actor.table(), assess), rows),
        "critic step": Program(critic.compile_train_step, critic.train_batch),
        "actor step": Program(actor.compile_train_step, actor.train_batch),
    }
    return kept, programs


@contextlib.contextmanager
def _placed(job: Job, table: rules.Rules) -> Iterator[None]:
    with jax.set_mesh(job.device_mesh), rules.axis_rules(table):
        yield


def bytes_on_device(tree: Any) -> int:
    """Returns the bytes that a tree of arrays, or of abstract ones with shardings, has on each."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        size = jax.ShapeDtypeStruct(shape, leaf.dtype).size
        total += size * leaf.dtype.itemsize
    return total


def _text(result: Mapping[str, Any]) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    rows, length = result["rows"]
    gib = 2**30
    lines = [
        f"PPO on {result['topology']}, {mesh or 'one device'}: {result['answers']:,} answers, "
        f"{result['sampled_rows']} decoded together; {rows:,} rows of {length:,} in "
        f"{result['num_microbatches']} parts, remat {result['remat']}",
        f"  kept on each device, of {result['memory_bytes'] / gib:.1f} GiB:",
    ]
    lines += [f"    {name:22} {n / gib:9.2f} GiB" for name, n in result["kept_bytes"].items()]
    lines.append(f"    {'together':22} {sum(result['kept_bytes'].values()) / gib:9.2f} GiB")
    lines.append(f"  {'beside them, GiB:':24} {' '.join(f'{kind:>9}' for kind in _KINDS)}")
    lines += [_line(name, one) for name, one in result["programs"].items()]
    lines.append(f"  {'fits' if result['fits'] else 'DOES NOT FIT'}")
    return "\n".join(lines)


def _line(name: str, one: Mapping[str, Any]) -> str:
    if "error" in one:
        return f"    {name:22} does not fit: {one['error']}"
    sizes = " ".join(f"{one[f'{kind}_bytes'] / 2**30:9.2f}" for kind in _KINDS)
    return f"    {name:22} {sizes}{'' if one['fits'] else '  DOES NOT FIT'}"


if __name__ == "__main__":
    # The devices that compile are not those that are here.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cli.main("t5x_style.run.plan_ppo.plan_ppo")
