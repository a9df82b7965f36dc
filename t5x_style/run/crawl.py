"""The crawl verb: publishes the documentation of this machine as a web archive."""

from collections.abc import Sequence

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.guard import GuardLimits
from t5x_style.corpus.publish import PublishSettings, installed_versions, plan, publish

# Importing a package takes longer, and maps more memory, than parsing a page.
_LIMITS = GuardLimits(cpu_secs=60.0, wall_secs=240.0, memory_bytes=1 << 36)


def crawl(
    output_dir: str,
    settings: PublishSettings | None = None,
    limits: GuardLimits = _LIMITS,
    num_workers: int | None = None,
    warc_files: str | Sequence[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Writes `crawl-00000.warc.gz`, ... into a folder: pages of the documentation installed here.

    Args:
      output_dir: where the web archive goes.
      settings: what is published.
      limits: what one page may cost before it is given up and counted.
      num_workers: processes; one for each core by default.
      warc_files: one's own web archives, which `raw` reads instead: there is nothing to do.
      dry_run: say what would be done and stop.
    """
    if warc_files:
        print(f"crawl: nothing to do, the web archives are {warc_files}")
        return
    settings = settings or PublishSettings()
    # The pages follow from the packages that are installed, so another version is another crawl.
    artifact = Artifact(
        output_dir,
        stage="crawl",
        settings={"publish": settings, "limits": limits, "versions": installed_versions()},
    )
    if artifact.is_current():
        print(f"crawl: {output_dir} is there already")
        return
    if dry_run:
        batches, missing = plan(settings)
        num_pages = sum(len(batch) for batch in batches)
        print(f"crawl: about {num_pages} pages into {output_dir}; {missing.total()} packages amiss")
        return
    with artifact.write() as writer:
        writer.counts.update(publish(writer.folder, settings, limits, num_workers))
    counts = writer.counts
    print(
        f"crawl: {counts['pages']} pages, {counts['html_bytes'] / 1e6:.1f} MB of HTML, "
        f"{counts['warc_bytes'] / 1e6:.1f} MB in {counts['files']} files of {output_dir}; "
        f"failed: {counts['failed'] or 'none'}"
    )


if __name__ == "__main__":
    cli.main("t5x_style.run.crawl.crawl")
