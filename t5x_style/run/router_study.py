"""The router study verb: one dense run made a mixture of, trained with each of several routers.

For each seed the dense model is upcycled once; from there every router is trained at every capacity
factor, on the same batches, and so is the dense model itself. Called again, the study goes on with
the first run that is not finished.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.config import cli
from t5x_style.data.batches import Component
from t5x_style.evals.router_study import as_text, read_result, summed_up
from t5x_style.models.config import MoEConfig
from t5x_style.ops.routing import Router
from t5x_style.run.studies import Study, quietly
from t5x_style.run.upcycle import upcycle
from t5x_style.train import run_folder
from t5x_style.train.job import InitialRun, Job
from t5x_style.train.trained_model import Named, TrainedModel

DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Arm:
    """A router to be studied.

    Attributes:
      name: what tables call it.
      router: the router; its capacity factor is that of the study.
      plain: name of the arm that it is to improve on, at the same capacity factor; "" for none.
    """

    name: str
    router: Router
    plain: str = ""

    def routers(self, capacity_factors: Sequence[float]) -> dict[float | None, Router]:
        """Returns the router by capacity factor; None is the one of a router without."""
        if not hasattr(self.router, "capacity_factor"):
            return {None: self.router}
        replace: Any = dataclasses.replace
        return {factor: replace(self.router, capacity_factor=factor) for factor in capacity_factors}


def router_study(
    output_dir: str,
    dense: Named,
    job: Job,
    moe: MoEConfig,
    arms: Sequence[Arm],
    components: Sequence[Component],
    validation: Mapping[str, str],
    *,
    capacity_factors: Sequence[float] = (0.5, 1.0, 1.5),
    seeds: Sequence[int] = (0, 1, 2),
    keep_checkpoints: bool = False,
) -> None:
    """Trains all arms and writes their table, study.json.

    Args:
      output_dir: folder of the study; the runs lie in it, by arm, capacity factor and seed.
      dense: the run folder to start from (its newest step), or (run folder, step).
      job: how each arm is trained; its model, which is the dense one, gets each arm's router.
      moe: which layers become mixtures, and of what; its router is not used.
      arms: the routers.
      components: the mixture of token stores.
      validation: name to the token store that losses are measured on, just one.
      capacity_factors: see above.
      seeds: of routers and of the order of the data.
      keep_checkpoints: whether the runs' weights are kept.

    Raises:
      ValueError: names of arms are not there or stand twice, or a run does not fit.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names) or DENSE in names:
        raise ValueError(f"router_study.arms: names {names} must differ, also from {DENSE!r}")
    if unknown := sorted({arm.plain for arm in arms} - {*names, ""}):
        raise ValueError(f"router_study.arms: Arm.plain names {unknown}, which are not among them")
    if len(validation) != 1:
        raise ValueError(f"router_study.validation: names {sorted(validation)}; give one")
    folder, (held_out,) = Path(output_dir), validation
    model = TrainedModel(DENSE, dense, "router_study.router_study.dense")
    settings = {
        "dense": model.identity(),
        "moe": moe,
        "arms": arms,
        "steps": job.total_steps,
        "components": [component.store for component in components],
        "capacity_factors": list(capacity_factors),
        "seeds": list(seeds),
    }
    study = Study("router study", folder, validation, _as_text, keep_checkpoints)
    table = study.table(settings)
    if table.is_current():
        return

    def run(name: str, factor: float | None, seed: int, router: Router | None) -> Any:
        run_dir = study.run_dir(name, "any" if factor is None else f"{factor:g}", str(seed))
        start = dense
        if router is not None:
            start = str(folder / "upcycled" / str(seed))
            quietly(functools.partial(upcycle, dense, moe, start, seed=seed))
        study.train(run_dir, _of_arm(job, moe, router, seed), components, _initial(start))
        study.drop_weights(run_dir)
        return read_result(run_dir / run_folder.METRICS, held_out)

    results: dict[tuple[str, float | None], list[Any]] = {}
    # Seed by seed, so that a study that is broken off has whole rows of fewer seeds to look at.
    for seed in seeds:
        results.setdefault((DENSE, None), []).append(run(DENSE, None, seed, None))
        for arm in arms:
            for factor, router in arm.routers(capacity_factors).items():
                found = run(arm.name, factor, seed, router)
                results.setdefault((arm.name, factor), []).append(found)
    plain = {arm.name: arm.plain for arm in arms}
    rows = [
        {"router": name, "capacity_factor": factor, "plain": plain.get(name, "")}
        | summed_up(of_seeds, results.get((plain.get(name, ""), factor)))
        for (name, factor), of_seeds in results.items()
    ]
    contents = {"held_out": held_out, "arms": rows}
    study.write(table, contents, sum(map(len, results.values())))


def _as_text(contents: Mapping[str, Any]) -> str:
    return as_text(contents["arms"])


def _of_arm(job: Job, moe: MoEConfig, router: Router | None, seed: int) -> Job:
    """Returns the job with an arm's router in its model, or with the dense model."""
    objective: Any = job.objective
    of_model = None if router is None else dataclasses.replace(moe, router=router)
    model = dataclasses.replace(objective.model, moe=of_model)
    return dataclasses.replace(
        job, objective=dataclasses.replace(objective, model=model), seed=seed
    )


def _initial(start: Named) -> InitialRun:
    run_dir, step = (start, None) if isinstance(start, str) else start
    return InitialRun(run_dir, mode="params", step=step)


if __name__ == "__main__":
    cli.main("t5x_style.run.router_study.router_study")
