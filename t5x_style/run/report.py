"""The report verb: one self-contained HTML page about a pipeline's stages.

What the sections show, and how, is in evals/report; a stage that is new to the page gets an
argument here.
"""

from collections.abc import Mapping, Sequence

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.page import render_page
from t5x_style.evals.report.sections import SECTIONS

REPORT_NAME = "report.html"

Folders = str | Sequence[str] | Mapping[str, str | None]


def report(
    output_dir: str,
    title: str = "From web pages to a trained model",
    *,
    crawl: Folders | None = None,
    curate: Folders | None = None,
    statistics: Folders | None = None,
    vocabulary: Folders | None = None,
    tasks: Folders | None = None,
    runs: Folders | None = None,
    mixtures: Folders | None = None,
    evaluation: Folders | None = None,
    samples: Folders | None = None,
    needle: Folders | None = None,
    router_study: Folders | None = None,
    data_study: Folders | None = None,
    reward: Folders | None = None,
    policies: Folders | None = None,
    alignment_study: Folders | None = None,
    required: Sequence[str] = (),
) -> None:
    """Writes report.html, which needs nothing beside it.

    Each stage is given by its output folder, by several, or by names and folders (None for one that
    is not there). A stage that is not given, or has not run, leaves a note in its place on the
    page. The same files give the same page; it is made anew each time, as it is cheap and shows
    wall times, which no key covers.

    Args:
      output_dir: folder to write.
      title: heading of the page.
      crawl, curate, statistics, vocabulary, tasks: output folders of these stages.
      runs: run folders of training, in order; their names are the names of the phases.
      mixtures: run folders of trainings beside these, of models that are mixtures of experts.
      evaluation: output folders of evaluate.
      samples: output folders of generate.
      needle: output folders of needle.
      router_study: the tables of router_study, the folder `table` in its output.
      data_study: the same of data_study.
      reward: output folders of train_reward.
      policies: run folders of ppo.
      alignment_study: the same of alignment_study.
      required: names of the arguments above that must be there.

    Raises:
      ValueError: a required stage is missing, or a file of a stage is damaged.
    """
    arguments = {
        "crawl": crawl,
        "curate": curate,
        "statistics": statistics,
        "vocabulary": vocabulary,
        "tasks": tasks,
        "runs": runs,
        "mixtures": mixtures,
        "evaluation": evaluation,
        "samples": samples,
        "needle": needle,
        "router_study": router_study,
        "data_study": data_study,
        "reward": reward,
        "policies": policies,
        "alignment_study": alignment_study,
    }
    if unknown := sorted(set(required) - set(arguments)):
        raise ValueError(f"report.required names {unknown}; it may name {', '.join(arguments)}")
    inputs = Inputs.from_arguments(arguments)
    if missing := [inputs.missing(name) for name in required if not inputs.complete(name)]:
        raise ValueError(
            f"the report lacks what report.required asks for: {'; '.join(missing)}. Run those "
            "stages first, set the folders they wrote, or take the names out of report.required"
        )
    text = render_page(title, SECTIONS, inputs)
    folders = {
        name: {label: str(path) for label, path in found.items()}
        for name, found in inputs.folders.items()
    }
    settings = {"title": title, "folders": folders}
    artifact = Artifact(output_dir, stage="report", settings=settings)
    with artifact.write() as writer:
        (writer.folder / REPORT_NAME).write_text(text, encoding="utf-8")
        writer.counts.update(bytes=len(text.encode()), sections=len(SECTIONS))
    print(f"report: {artifact.folder / REPORT_NAME}")


if __name__ == "__main__":
    cli.main("t5x_style.run.report.report")
