"""`lep corpus --executor`: no step on half of the one before, no job twice, no half of a result.

Slurm is a stand-in here that writes down what it is given; `test_build.py` has the real one.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import sample_texts

from lep.corpus.completion import LAST_STAGE, stage_logs, work_folder
from lep.corpus.files import corpus_files
from lep.corpus.read import write_records
from lep.durable import locked
from lep.errors import CorpusError, LepError, OutputError
from lep.publish import LOCK_FILE
from lep.settings import ClusterSettings

pytest.importorskip("datatrove")

from datatrove.executor import LocalPipelineExecutor

from lep.corpus.cluster import run_stages, stages

SLURM = ClusterSettings(executor="slurm", partition="cpu", tasks=2)


@pytest.fixture
def raw(tmp_path) -> str:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number, text in enumerate(sample_texts("ru")[:2]):
        write_records(folder / f"wiki{number}.jsonl", [{"text": text}])
    return str(folder)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder where `sbatch` notes its arguments in `calls`, and `squeue` does as `jobs` says."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {
        "sbatch": "echo $@ >> calls; echo Submitted batch job $((100 + $(wc -l < calls)))",
        "squeue": "echo $@ > asked; . ./jobs",
    }
    for name, command in commands.items():
        (folder / name).write_text(f"#!/bin/sh\ncd {folder}\n{command}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def complete(output: Path, stage: int, *ranks: int) -> None:
    marks = stage_logs(work_folder(output), stage) / "completions"
    marks.mkdir(parents=True, exist_ok=True)
    for rank in ranks:
        (marks / f"{rank:05}").touch()


def submissions(slurm: Path) -> list[str]:
    return [line for line in (slurm / "calls").read_text().splitlines() if "--export" in line]


def test_a_step_does_not_begin_on_half_of_the_one_before(raw, tmp_path) -> None:
    output, settings = tmp_path / "out", ClusterSettings(executor="local", tasks=2)
    (clean, _), (sign, _), *_ = stages([raw], output, settings)
    first, second = (str(stage_logs(work_folder(output), stage)) for stage in (0, 1))
    options = {"tasks": 2, "workers": 1, "logging_dir": first}
    LocalPipelineExecutor(clean, local_tasks=1, **options).run()
    after = LocalPipelineExecutor(sign, **{**options, "logging_dir": second})
    with pytest.raises(CorpusError, match=r"1 of 2 tasks of step 1 of the corpus are not complete"):
        after.run()
    assert not (work_folder(output) / "signatures").exists()
    assert after.get_incomplete_ranks() == [0, 1]
    (clean, _), (sign, _), *_ = stages([raw], output, settings)
    LocalPipelineExecutor(clean, **options).run()
    LocalPipelineExecutor(sign, **{**options, "logging_dir": second}).run()
    assert list((work_folder(output) / "signatures").rglob("*.sig"))


def test_every_step_but_the_first_waits_for_all_tasks_of_the_one_before(raw, tmp_path) -> None:
    """Clean, signatures and filter are as many as asked for, buckets are 20, clusters are one."""
    output = tmp_path / "out"
    pipelines = stages([raw], output, SLURM.model_copy(update={"tasks": 3}))
    for stage, tasks in enumerate((3, 3, 20, 1)):
        guard = pipelines[stage + 1][0][0]
        complete(output, stage, *range(tasks - 1))
        with pytest.raises(CorpusError, match=rf"1 of {tasks} tasks of step {stage + 1} "):
            guard.run()
        complete(output, stage, tasks - 1)
        assert guard.run() is None


def test_jobs_that_wait_or_run_are_not_submitted_again(raw, slurm, tmp_path) -> None:
    output = tmp_path / "out"
    run_stages([raw], output, SLURM)
    assert len(submissions(slurm)) == 5
    ranks = sorted(work_folder(output).rglob("ranks_to_run.json"))
    before = [path.read_bytes() for path in ranks]
    complete(output, 0, 0)  # a shorter list would be written now
    (slurm / "jobs").write_text("echo 103 cpu lep-corp root PD")
    for settings in (SLURM, SLURM.model_copy(update={"executor": "local"})):
        with pytest.raises(LepError, match=r"wait or run \(squeue -j 101,.*,110\).*cat .*/jobs\)"):
            run_stages([raw], output, settings)
    assert (slurm / "asked").read_text() == "-h -j 101,102,103,104,105,106,107,108,109,110\n"
    assert [path.read_bytes() for path in ranks] == before
    assert len(submissions(slurm)) == 5
    (slurm / "jobs").write_text("echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(
        LepError, match=r"squeue does not tell .*\(Unable to contact.* delete .*jobs"
    ):
        run_stages([raw], output, SLURM)
    for number, answer in enumerate(("", "echo Invalid job id specified >&2; exit 1"), start=2):
        (slurm / "jobs").write_text(answer)
        run_stages([raw], output, SLURM)
        assert len(submissions(slurm)) == 5 * number
        assert len((work_folder(output) / "jobs").read_text().split()) == 10  # the latest


def test_a_job_that_was_accepted_before_another_was_not_is_known(raw, slurm, tmp_path) -> None:
    (slurm / "sbatch").write_text(
        f"#!/bin/sh\ncd {slurm}; echo $@ >> calls; n=$(wc -l < calls)\n"
        "test $n -lt 4 && echo Submitted batch job $n\n"
    )
    with pytest.raises(LepError, match="Slurm did not accept the jobs"):
        run_stages([raw], tmp_path / "out", SLURM)
    assert (work_folder(tmp_path / "out") / "jobs").read_text().split() == ["1", "2", "3"]


def test_a_step_waits_for_all_arrays_of_the_one_before(raw, slurm, tmp_path) -> None:
    """Slurm takes 1,001 tasks in an array: each follows the one before, the step the last."""
    run_stages([raw], tmp_path / "out", SLURM.model_copy(update={"tasks": 2003}))
    jobs = (re.sub(r" /\S+$", "", job) for job in submissions(slurm)[:4])
    assert [job.removeprefix("--export=ALL,RUN_OFFSET=") for job in jobs] == [
        "0",
        "1 --dependency=afterany:101",
        "2 --dependency=afterany:102",
        "0 --dependency=afterok:103",
    ]


def test_what_a_task_asks_for_is_as_documented(raw, slurm, tmp_path) -> None:
    run_stages([raw], tmp_path / "out", SLURM)
    scripts = [path.read_text() for path in work_folder(tmp_path / "out").rglob("*.slurm")]
    assert len(scripts) == 5
    for script in scripts:
        options = re.findall(r"^#SBATCH --(\S+)$", script, re.MULTILINE)
        assert {"cpus-per-task=1", "mem-per-cpu=2G", "qos=normal", "partition=cpu"} <= {*options}
        assert not any(option.startswith("account") for option in options)


def test_a_result_is_not_read_before_it_is_complete(raw, slurm, tmp_path) -> None:
    output = tmp_path / "out"
    run_stages([raw], output, SLURM)
    output.mkdir()
    write_records(output / "wiki0-00000.jsonl", [{"text": "Снег"}])
    complete(output, LAST_STAGE, 0)
    with pytest.raises(CorpusError, match=r"1 of the 2 tasks that write .*/out are not complete"):
        corpus_files([output])
    complete(output, LAST_STAGE, 1)
    assert len(corpus_files([output])) == 1
    shutil.rmtree(stage_logs(work_folder(output), LAST_STAGE))
    begun = work_folder(output) / "begun"
    begun.write_text(begun.read_text().split()[0])  # as an older version wrote it
    assert len(corpus_files([output])) == 1
    shutil.rmtree(work_folder(output))
    assert len(corpus_files([output])) == 1


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_two_commands_do_not_write_one_corpus(raw, slurm, executor, tmp_path) -> None:
    output, settings = tmp_path / "out", SLURM.model_copy(update={"executor": executor})
    work_folder(output).mkdir()
    with (
        locked(work_folder(output) / LOCK_FILE, output),
        pytest.raises(OutputError, match="another process is writing"),
    ):
        run_stages([raw], output, settings)
    assert not (slurm / "calls").exists()
    assert not (work_folder(output) / "logs").exists()
