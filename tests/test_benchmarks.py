"""The benchmark engine: it refuses wrong providers, keeps what it measured, and reads it back."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tables import relative_error

from benchmarks import __main__ as cli
from benchmarks import (
    accuracy,
    against,
    breadth,
    ceilings,
    cpu,
    engine,
    evaluating,
    many_pairs,
    originals,
    providers,
    readme,
    results,
    switching,
    train_step,
    vae_losses,
)
from benchmarks.engine import Workload
from benchmarks.worker import Worker
from examples.cvae.data import digits
from release import tables as release_tables
from ssim_fused.evaluation.pairs import Pair

ROOT = Path(__file__).resolve().parent.parent
TINY = Workload("step", (2, 1, 24, 30))


@pytest.fixture
def planted(monkeypatch):
    """A provider that computes something else."""

    def plant(loss, **settings):
        provider = providers.Provider("planted", lambda: loss, **settings)
        monkeypatch.setitem(providers.BY_NAME, "planted", provider)
        return provider

    return plant


@pytest.mark.parametrize("name", ["ssim_fused", "ssim_fused.reference", "usual code"])
def test_providers_agree_with_float64(name):
    provider = providers.BY_NAME[name]
    for shape in ((2, 3, 40, 50), (1, 1, 28, 28)):
        error, agrees = engine.verify(provider, provider.make(), Workload("value", shape))
        assert agrees, error


def test_pytorch_msssim_agrees_with_its_border():
    provider = providers.BY_NAME["pytorch-msssim"]
    if reason := provider.missing():
        pytest.skip(reason)
    error, agrees = engine.verify(provider, provider.make(), Workload("value", (2, 3, 40, 50)))
    assert agrees, error


def test_a_wrong_provider_is_marked(planted):
    planted(lambda x, y: (x - y).square().mean())
    (measurement,), finished = engine.measure(TINY, ["planted"], 0.01)
    assert finished
    assert not measurement.agrees
    assert measurement.problem == "computes another value"
    assert measurement.seconds  # timed, and marked


def test_another_border_is_another_value(planted):
    ours = providers.BY_NAME["ssim_fused"].make()
    provider = planted(lambda x, y: ours(x, y, padding="valid"), padding="same", tolerance=1e-6)
    assert not engine.verify(provider, provider.make(), TINY)[1]
    provider = planted(lambda x, y: ours(x, y, padding="valid"), padding="valid", tolerance=1e-6)
    assert engine.verify(provider, provider.make(), TINY)[1]


def test_a_failing_provider_does_not_stop_the_others(planted):
    def fail(x, y):
        raise RuntimeError("no kernel for this")

    planted(fail)
    found, finished = engine.measure(TINY, ["planted", "ssim_fused"], 0.01)
    assert finished
    assert "no kernel for this" in found[0].problem
    assert not found[0].seconds
    assert len(found[1].seconds) >= 15


def test_a_missing_library_says_how_to_get_it(planted):
    planted(None, package="no-such-package", version="1.2.3")
    (measurement,), _ = engine.measure(TINY, ["planted"], 0.01)
    assert "pip install no-such-package==1.2.3" in measurement.problem


def test_an_interrupt_keeps_what_was_measured(planted, tmp_path, capsys):
    calls = []

    def loss(x, y):
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return (x - y).square().mean()

    planted(loss)
    arguments = ["--providers", "planted", "--shapes", "1x1x16x16", "--modes", "value"]
    cli.main([*arguments, "--budget", "60", "--out", str(tmp_path)])
    assert "interrupted" in capsys.readouterr().err
    (row,) = results.load(tmp_path / "run.csv")
    assert int(row["runs"]) > 0


def test_an_interrupt_while_a_library_starts_keeps_what_was_measured(planted, tmp_path, capsys):
    seen = []

    def loss(x, y):
        if seen and x.shape != seen[0]:
            raise KeyboardInterrupt
        seen.append(x.shape)
        return (x - y).square().mean()

    planted(loss)
    arguments = ["--providers", "planted", "--modes", "value", "--budget", "0.01"]
    cli.main([*arguments, "--shapes", "1x1x16x16", "1x1x20x20", "--out", str(tmp_path)])
    assert "interrupted" in capsys.readouterr().err
    (row,) = results.load(tmp_path / "run.csv")
    assert row["shape"] == "1x1x16x16"


def test_results_are_whole_or_as_they_were(tmp_path, monkeypatch):
    path = results.save(tmp_path, "kept", [{"a": 1}, {"a": 2}])
    before = path.read_text()
    with pytest.raises(ValueError, match=r"no rows for .*kept\.csv"):
        results.save(tmp_path, "kept", [])
    assert path.read_text() == before

    class Interrupting:
        def __str__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.save(tmp_path, "kept", [{"a": 3}, {"a": Interrupting()}])
    assert path.read_text() == before


def test_a_library_that_is_not_there_has_no_accuracy(tmp_path, capsys):
    assert cli.main(["accuracy", "--providers", "fussim", "--out", str(tmp_path)]) == 1
    assert "fussim: runs on CUDA only" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


TINY_RUN = ["--shapes", "1x1x16x16", "--providers", "ssim_fused", "--budget", "0.01"]


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        (["--quick", *TINY_RUN], "quick-partial", "run with --shapes, --providers, --budget"),
        (["--quick", *TINY_RUN, "--name", "mine"], "mine", ""),
        (["accuracy", "--providers", "ssim_fused"], "accuracy-partial", "run with --providers"),
    ],
)
def test_a_part_does_not_replace_the_whole(monkeypatch, tmp_path, capsys, options, name, why):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "SHAPE", (1, 1, 64, 64))
    assert cli.main(options) == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{name}.csv", f"{name}.json"]
    assert why in capsys.readouterr().err


def test_an_interrupted_run_does_not_replace_the_whole(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    measured = engine.Measurement("ssim_fused", TINY, [1.0], agrees=True)
    monkeypatch.setattr(cli, "_lacking", lambda names: "")
    for finished, name in ((True, "full"), (False, "full-partial")):
        monkeypatch.setattr(cli, "measure", lambda *_, end=finished: ([measured], end))
        assert cli.main(["--full"]) == 0
        assert (tmp_path / f"{name}.csv").exists()
    assert "full.csv is left as it is: saved as full-partial (interrupted)" in (
        capsys.readouterr().err
    )
    assert len(results.load(tmp_path / "full.csv")) > len(
        results.load(tmp_path / "full-partial.csv")
    )


def test_a_run_without_a_library_does_not_replace_the_whole(planted, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(cli, "QUICK", ["ssim_fused", "planted"])
    monkeypatch.setattr(cli, "SMALL", ["1x1x16x16"])
    monkeypatch.setattr(cli, "LARGE", [])
    planted(None, package="no-such-package", version="1.2.3")
    monkeypatch.setattr(cli, "measure", lambda w, names, *_: engine.measure(w, names, 0.01))
    assert cli.main(["--quick"]) == 0
    assert (tmp_path / "quick-partial.csv").exists()
    assert "without planted" in capsys.readouterr().err


def test_fewer_rounds_do_not_replace_the_committed_results(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(breadth, "FEATURES", [breadth.Feature("one", shape=(1, 1, 16, 16))])
    assert breadth.main(["--rounds", "2", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "breadth-partial.csv").exists()
    assert breadth.main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "breadth.csv").exists()


def test_quick_run_writes_results_that_can_be_shown(tmp_path, capsys):
    arguments = ["--quick", "--shapes", "1x1x20x24", "--budget", "0.01", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    path = tmp_path / "quick.csv"
    rows = results.load(path)
    assert {row["mode"] for row in rows} == {"value", "step"}
    ours = [row for row in rows if row["provider"] == "ssim_fused"]
    assert all(float(row["ratio_to_ours"]) == 1.0 and row["agrees"] == "True" for row in ours)
    machine = json.loads(path.with_suffix(".json").read_text())
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    capsys.readouterr()
    assert cli.main(["table", str(path)]) == 0
    assert "| usual code |" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert cli.main(["plot", str(path)]) == 0
    assert path.with_suffix(".png").stat().st_size > 1000


def test_peak_memory_sees_what_the_usual_code_keeps():
    workload = Workload("step", (1, 1, 1024, 1024))
    image = 4 * workload.pixels
    ours = engine.peak_bytes("ssim_fused", workload)
    usual = engine.peak_bytes("usual code", workload)
    if ours is None or usual is None:
        pytest.skip("needs Linux's /proc")
    assert image <= ours < 4 * image
    assert usual > 2 * ours


def test_accuracy_rows(monkeypatch):
    monkeypatch.setattr(accuracy, "SHAPE", (1, 1, 64, 64))
    rows = accuracy.measure(["ssim_fused", "usual code"])
    ours = {row["family"]: row for row in rows if row["provider"] == "ssim_fused"}
    apart = ours.pop("black and white")  # docs/accuracy.md says why
    assert apart["value_error"] < 7e-4
    assert apart["gradient_error"] < 3e-4
    assert all(row["value_error"] < 2e-6 for row in ours.values())
    assert all(row["gradient_error"] < 2e-5 for row in ours.values())
    usual = {row["family"]: row for row in rows if row["provider"] == "usual code"}
    assert usual["noise 1e-4"]["value_error"] > 1e-4
    assert "| usual code |" in accuracy.markdown(rows, "value_error")


def test_memory_is_a_mode(tmp_path, capsys):
    arguments = ["--providers", "ssim_fused", "usual code", "--shapes", "1x1x512x512"]
    assert cli.main([*arguments, "--modes", "memory", "--out", str(tmp_path)]) == 0
    rows = {row["provider"]: row for row in results.load(tmp_path / "run.csv")}
    if not rows["ssim_fused"]["peak_bytes"]:
        pytest.skip("needs Linux's /proc")
    assert float(rows["ssim_fused"]["ratio_to_ours"]) == 1.0
    assert float(rows["usual code"]["ratio_to_ours"]) > 2
    assert "MiB" in capsys.readouterr().out


def test_a_build_for_cuda_is_left_out_on_a_cpu():
    for name in ("fused-ssim", "fussim"):
        assert providers.BY_NAME[name].missing("cpu") == "runs on CUDA only"
        if importlib.util.find_spec(providers.BY_NAME[name].module) is None:
            assert "not installed" in providers.BY_NAME[name].missing("cuda")


@pytest.mark.parametrize("name", ["separable", "separable, channels last"])
def test_separable_code_agrees_with_float64(name):
    provider = providers.BY_NAME[name]
    error, agrees = engine.verify(provider, provider.make(), Workload("value", (2, 3, 40, 50)))
    assert agrees, error


@pytest.mark.parametrize("page", readme.PAGES)
def test_pages_show_the_committed_results(page):
    text = (readme.ROOT / page).read_text()
    assert readme.with_tables(text, page) == text, "run python -m benchmarks readme"


def test_readme_is_seen_to_differ(tmp_path):
    names = ("quick.csv", "accuracy.csv", "train_step.csv", "gpu_cost.csv", "breadth.csv")
    for name in names:
        rows = results.load(results.RESULTS / name)
        for row in rows:
            for column in ("ns_per_pixel", "value_error", "step_ms"):
                if row.get(column):
                    row[column] = str(7 * float(row[column]))
        results.save(tmp_path, name.removesuffix(".csv"), rows)
    text = (readme.ROOT / "README.md").read_text()
    assert readme.with_tables(text, folder=tmp_path) != text
    with pytest.raises(ValueError, match="no place for the table 'speed'"):
        readme.with_tables("nothing")


def test_tables_say_where_their_figures_are_from(tmp_path):
    path = results.save(tmp_path, "quick", results.load(results.RESULTS / "quick.csv"))
    made = json.loads(path.with_suffix(".json").read_text())
    said = results.origin(path)
    for part in (made["cpu"], made["torch"], made["commit"], made["date"][:10]):
        assert part in said
    assert results.origin(results.RESULTS / "quick.csv") in (ROOT / "README.md").read_text()
    path.with_suffix(".json").unlink()  # counts need no machine
    assert results.origin(path) == ""


def test_tables_say_what_was_timed_once():
    row = next(row for row in results.load(results.RESULTS / "quick.csv") if row["median_us"])
    assert "timed once" not in results.markdown([row])
    row["problem"] = "timed once, not interleaved"
    assert "timed once" in results.markdown([row])


def test_a_table_of_the_release_says_what_it_was_made_of(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- wheel -->\nold\n<!-- end -->\n")
    release_tables.write(page, "wheel", [("part", "MiB"), ("a", "1")], "commit abc of 2026-01-01")
    table = "| part | MiB |\n|---|---|\n| a | 1 |\n\n*commit abc of 2026-01-01*\n"
    assert page.read_text() == f"<!-- wheel -->\n{table}<!-- end -->\n"
    page = (ROOT / "docs" / "installing.md").read_text()
    assert re.search(r"MiB.*\n\*commit \w+ of [\d-]+\*\n<!-- end -->", page, re.S)
    with (ROOT / "release" / "matrix.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert re.fullmatch(r"\w+(-dirty)? of [\d-]+", row["wheel"])
            assert f"| {row['tests']} | {row['wheel']} |\n" in page


def test_commit_is_dirty_where_code_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(release_tables, "ROOT", tmp_path)
    assert release_tables.commit() == "unknown"
    for name in ("csrc/kernel.cpp", "benchmarks/engine.py", "benchmarks/results/quick.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    clean = release_tables.commit()
    (tmp_path / "benchmarks/results/quick.csv").write_text("after")
    assert release_tables.commit() == clean
    for name in ("csrc/kernel.cpp", "benchmarks/engine.py"):
        (tmp_path / name).write_text("after")
        assert release_tables.commit() == f"{clean}-dirty"
        (tmp_path / name).write_text("before")


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    rows = results.load(results.RESULTS / "quick.csv")
    for row in rows[:4]:
        row["peak_bytes"] = "1000"
    errors = results.load(results.RESULTS / "accuracy.csv")
    for draw, data in (
        (results.plot_sizes, rows),
        (results.plot_memory, rows),
        (results.plot_accuracy, errors),
        (results.plot_roofline, rows),
    ):
        assert draw(data, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000
        (tmp_path / "picture.png").unlink()


def test_ceilings_are_above_what_is_reached():
    found = ceilings.measure(0.05)
    assert found["gflops"] > 1
    assert found["cache_gb_s"] > 0
    assert found["memory_gb_s"] > 0


def test_the_cache_is_read_longer_than_threads_take_to_start(monkeypatch):
    read = []
    monkeypatch.setattr(ceilings, "_best", lambda call, seconds: read.append(call()) or 1.0)
    found = ceilings.measure()
    assert found["cache_gb_s"] >= found["memory_gb_s"] / 2  # bytes of a call, a second each
    one_pass = read[-1].item() / ceilings.PASSES
    assert one_pass == pytest.approx(ceilings.CACHED / 2, rel=0.01)  # the same numbers each time


def test_committed_ceilings_have_a_cache_faster_than_memory():
    with open(results.RESULTS / "ceilings.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["threads"] for row in found] == ["1", "2"]
    for row in found:
        assert float(row["cache_gb_s"]) > float(row["memory_gb_s"])


def test_the_roofline_has_what_its_title_says(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row for row in results.load(results.RESULTS / "full.csv") if row["mode"] != "memory"]
    path = tmp_path / "picture.png"
    assert results.plot_roofline(rows, path)
    for column, other in (("dtype", "float64"), ("agrees", "False"), ("shape", "1x1x28x28")):
        assert not results.plot_roofline([row | {column: other} for row in rows], path)


def test_what_a_whole_step_gains(tmp_path, capsys, monkeypatch):
    small = {"CVAE": train_step.cvae, "super-resolution": train_step.super_resolution}
    monkeypatch.setattr(train_step, "TASKS", small)
    assert train_step.main(["--budget", "0.01", "--out", str(tmp_path)]) == 0
    rows = results.load(tmp_path / "train_step.csv")
    assert len(rows) == 4
    assert all(0 < float(row["loss_ms"]) < float(row["step_ms"]) for row in rows)
    assert "| CVAE |" in capsys.readouterr().out


def test_every_instruction_set_is_measured(tmp_path, capsys):
    assert cpu.main(["--shapes", "1x1x40x40", "--rounds", "1", "--out", str(tmp_path)]) == 0
    rows = results.load(tmp_path / "cpu.csv")
    assert {row["isa"] for row in rows} == set(cpu.available())
    assert all(float(r["gain_over_baseline"]) == 1 for r in rows if r["isa"] == "baseline")
    assert "x one thread" in capsys.readouterr().out


def test_both_losses_train_alike():
    gradients = []
    for loss in train_step.LOSSES.values():
        torch.manual_seed(0)
        task = train_step.super_resolution()
        train_step.one_step(task, loss, torch.optim.SGD(task[0].parameters(), lr=0.0))
        gradients.append(task[0][0].weight.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-3


def test_what_has_moved():
    generator = torch.Generator().manual_seed(0)

    def times(median):
        return (median * (1 + 0.1 * torch.rand(150, generator=generator))).tolist()

    assert not against.moved(times(1.0), times(1.0))
    assert against.moved(times(1.0), times(1.1))
    assert against.moved(times(1.1), times(1.0))
    assert not against.moved(times(1.0), times(1.01))  # beyond noise, but not worth a word
    assert not against.moved([1.0, 2.0, 3.0, 4.0], [1.2, 2.2, 3.2, 4.2])  # lost in noise


class _Fixed:
    def __init__(self, seconds):
        self.seconds = seconds

    def times(self, mode, shape, threads):
        return [self.seconds * (1 + 0.01 * i) for i in range(5)]


def test_a_commit_that_is_slower_is_told(capsys):
    assert (
        against.compare({"before": _Fixed(1.0), "now": _Fixed(1.0)}, ["step"], ["1x1x8x8"], 4) == 0
    )
    assert (
        against.compare({"before": _Fixed(1.0), "now": _Fixed(1.2)}, ["step"], ["1x1x8x8"], 4) == 1
    )
    assert "+20.0% moved" in capsys.readouterr().out


class _Disturbed:
    """Five runs in which the machine does the same beside them; another thing in the next round."""

    def __init__(self, seconds, generator):
        self.seconds, self.generator = seconds, generator

    def times(self, mode, shape, threads):
        beside = 0.1 * abs(self.generator.gauss(0, 1))
        return [self.seconds * (1 + beside + 0.01 * self.generator.random()) for _ in range(5)]


def test_disturbed_rounds_of_equal_code_have_not_moved(capsys):
    generator = random.Random(0)

    def slower(now):
        sides = {"before": _Disturbed(1.0, generator), "now": _Disturbed(now, generator)}
        return against.compare(sides, ["step"], ["1x1x8x8"] * 200, 30)

    slower(1.0)
    assert capsys.readouterr().out.count("moved") <= 3
    assert slower(1.2) >= 198


def test_a_commit_that_is_faster_is_no_failure(capsys):
    sides = {"before": _Fixed(1.2), "now": _Fixed(1.0)}
    assert against.compare(sides, ["step"], ["1x1x8x8"], 4) == 0
    assert "-16.7% moved" in capsys.readouterr().out


def test_another_commits_library_is_timed_by_this_trees_benchmark(tmp_path):
    library, old = tmp_path / "ssim_fused", tmp_path / "benchmarks"
    for folder in (library, old):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (old / "engine.py").write_text("raise ImportError('the benchmark of before')\n")
    (library / "reference.py").touch()
    (library / "__init__.py").write_text(
        "from pathlib import Path\n"
        "def ssim_loss(x, y):\n"
        "    Path(__file__).with_name('called').touch()\n"
        "    return (x - y).square().mean()\n"
    )
    worker = Worker(tmp_path)
    try:
        assert len(worker.times("step", "1x1x8x8", 1)) == 5
    finally:
        worker.close()
    assert (library / "called").exists()


@pytest.mark.parametrize("text", ["16x3", "axbxcxd", "0x1x2x3"])
def test_bad_shapes(text, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--shapes", text])
    assert "is not a shape like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cudax"], "'cudax' is none of cpu, cuda and cuda:NUMBER"),
        (["--device", "cuda:x"], "cannot use 'cuda:x'"),
        (["--threads", "-2"], "must be at least 1, got -2"),
        (["--threads", "0"], "must be at least 1, got 0"),
        (["--dtypes", "foo"], "invalid choice: 'foo' (choose from"),
        (["plot", "accuracy.csv"], "accuracy.csv has no mode, shape, dtype, device, median_us"),
        (["table", "accuracy.csv"], "table takes times as `python -m benchmarks` saves them"),
        (["plot", "gpu_cost.csv"], "gpu_cost.csv has no provider, mode"),
        (["table", "of-memory"], "needs a saved CSV file, got of-memory"),
    ],
)
def test_bad_arguments(monkeypatch, arguments, message, call_main):
    monkeypatch.chdir(results.RESULTS)
    assert message in call_main(cli.main, arguments, code=2).err


def test_a_run_without_times_has_no_picture(tmp_path, call_main):
    row = engine.Measurement("ssim_fused", TINY, problem="no gradient").row(None)
    path = results.save(tmp_path, "untimed", [row])
    assert "untimed.csv was timed" in call_main(cli.main, ["plot", str(path)], code=2).err
    assert not path.with_suffix(".png").exists()


def test_a_call_that_tries_the_patience_is_timed_once(monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    workload = engine.Workload("value", (1, 1, 20, 20))
    (measured,), finished = engine.measure(workload, ["ssim_fused"], 0.01)
    assert finished
    assert len(measured.seconds) == 1
    assert measured.agrees
    assert measured.problem == "timed once, not interleaved"


def test_breadth_times_a_feature_beside_the_plain_loss():
    settings = {"window_size": 35, "sigma": 5.0}  # more taps than CUDA's kernels serve
    slow = breadth.Feature("slow", settings, (1, 1, 24, 30), mask=True)
    row = breadth.measure(slow, 2)
    assert row["value_ns"] > 0
    assert row["step_ns"] > 0
    assert (row["cpu"], row["cuda"]) == ("native", "plain PyTorch")
    shown = breadth.markdown([{name: str(value) for name, value in row.items()}])
    assert "| slow | 1x1x24x30 | native | plain PyTorch |" in shown


def _small(feature):
    return feature._replace(
        shape=(*feature.shape[:1], 1, *(min(size, 176) for size in feature.shape[2:]))
    )


def test_rivals_compute_the_same():
    pytest.importorskip("pytorch_msssim")
    rivals = [_small(feature) for feature in breadth.FEATURES if feature.rival]
    assert {feature.rival for feature in rivals} == {"ssim", "ms_ssim"}
    for feature in rivals:
        assert breadth.measure(feature, 1)["pytorch_msssim_step"] > 0
    other = breadth.Feature("zeros outside", shape=(1, 1, 24, 30), rival="ssim")
    with pytest.raises(RuntimeError, match=r"zeros outside: 0\.\d+, pytorch-msssim's ssim 0\.\d+"):
        breadth.measure(other, 1)


def test_committed_rivals_are_those_that_compute_the_same():
    rows = results.load(results.RESULTS / "breadth.csv")
    assert [row["feature"] for row in rows] == [feature.name for feature in breadth.FEATURES]
    for row, feature in zip(rows, breadth.FEATURES):
        assert feature.rival or not row["pytorch_msssim_step"], feature


def test_every_feature_is_computed():
    for feature in map(_small, breadth.FEATURES):
        x, y = breadth._images(feature)
        loss = feature.function(x, y, **feature.settings, **breadth._beside(feature))
        assert torch.isfinite(loss).all(), feature.name


def test_a_changed_import_is_timed_beside_the_original():
    if reason := originals.missing("pytorch_msssim"):
        pytest.skip(reason)
    line = switching.LINES[0]._replace(shape=(1, 1, 24, 30))
    value, step = switching.measure(line, 0.01)
    assert (value["mode"], step["mode"]) == ("value", "step")
    assert value["runs"] >= 5
    assert value["gain"] == value["original_ms"] / value["ours_ms"] > 0


def test_a_stand_in_with_another_value_is_not_timed(monkeypatch):
    if reason := originals.missing("pytorch_msssim"):
        pytest.skip(reason)
    shim = originals.shim("pytorch_msssim")
    monkeypatch.setattr(shim, "ssim", lambda x, y, data_range: (x - y).square().mean())
    with pytest.raises(RuntimeError, match="the stand-in 0"):
        switching.measure(switching.LINES[0]._replace(shape=(1, 1, 24, 30)), 0.01)


def test_gains_stand_beside_the_lines_that_they_are_of():
    rows = [
        {"library": "lib", "name": "a", "mode": "value", "gain": "12.34"},
        {"library": "lib", "name": "a", "mode": "step", "gain": "3.21"},
        {"library": "lib", "name": "b", "mode": "value", "gain": "2"},
    ]
    assert switching.gain("`from lib import a, b, c`", rows) == "`a` 12x, 3.2x; `b` 2x, no step"
    assert switching.gain("`from lib.x import a`", rows) == "12x, 3.2x"
    assert switching.gain("`from fussim import a`", rows) == "not on a CPU"
    assert switching.gain("`from kornia import a`", rows) == "not measured"
    with pytest.raises(ValueError, match="no import line"):
        switching.gain("import lib", rows)


def test_every_line_of_switching_names_what_the_library_has():
    for line in switching.LINES:
        assert hasattr(originals.shim(line.library), line.name)


def test_vae_losses_are_means_over_seeds():
    pytest.importorskip("sklearn")
    row = {"trained_with": "MSE", "beta": 0.006, "held_out_psnr": 20.0, "held_out_kl": 5.0}
    row |= {"recognised": 0.5}
    rows = [row | {"seed": seed, "held_out_ssim": 0.5 + 0.2 * seed} for seed in (0, 1)]
    shown = vae_losses.markdown(rows)
    assert "| MSE | 0.006 | 0.600 (0.500 to 0.700) | 20.0 (20.0 to 20.0) |" in shown
    pictures = digits(32)
    judge = vae_losses.Judge(pictures)
    assert judge.accuracy > 0.9

    class Painter:  # the real pictures are recognised, noise is not
        classes, latent = 10, 4

        def __init__(self, pictures):
            self.pictures = pictures

        def decode(self, z, labels):
            found = [self.pictures.train[self.pictures.train_labels == k][:1] for k in labels]
            return torch.cat(found)

    assert judge.recognised(Painter(pictures)) >= 0.9
    noise = pictures.train[torch.randperm(len(pictures.train))]
    assert judge.recognised(Painter(dataclasses.replace(pictures, train=noise))) < 0.3


def test_runs_of_other_code_are_trained_again(monkeypatch, tmp_path):
    made, commands = {"commit": "abc1234", "torch": "2.13.0"}, []
    monkeypatch.setattr(results, "machine", lambda: dict(made))
    folder = tmp_path / "run"

    def trained(command, check):
        commands.append(command)
        (folder / "checkpoint.pt").touch()
        (folder / "metrics.csv").write_text("epoch\n1\n")

    monkeypatch.setattr(vae_losses.subprocess, "run", trained)

    def resumed():
        assert vae_losses.train(folder, 0.5, 6e-3, 0, 2) == {"epoch": "1"}
        return "--resume" in commands[-1]

    assert not resumed()
    assert resumed()
    for change in ({"commit": "def5678"}, {"torch": "2.14.1"}):
        made.update(change)
        (folder / "of-before").touch()
        assert not resumed()
        assert not (folder / "of-before").exists()
        assert resumed()
    for commit in ("def5678-dirty", "unknown"):  # may be other code each time
        made["commit"] = commit
        assert not resumed()
        assert not resumed()
    (folder / "made_by.json").unlink()  # a run from before there were stamps
    made["commit"] = "def5678"
    assert not resumed()


def test_what_the_command_costs(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluating, "SIZE", (40, 200))
    pairs = evaluating.photographs(tmp_path, 2)
    sizes = {Image.open(file).size for pair in pairs for file in pair[:2]}
    assert sizes == {(200, 40)}
    rows = evaluating.measure(pairs, repeat=2, rounds=3, threads=2)
    assert [row["work"] for row in rows] == list(evaluating.WORK)
    assert all(row["clock_ms"] > 0 and row["pairs"] == 4 for row in rows)
    by_work = {row["work"]: row for row in rows}
    assert by_work[evaluating.PILLOW]["to_pillow"] == by_work[evaluating.OWN]["to_own_decoder"] == 1
    table = evaluating.markdown([{k: str(v) for k, v in row.items()} for row in rows])
    assert len(table.splitlines()) == 2 + len(rows)


def test_what_a_long_list_costs(tmp_path):
    rows = many_pairs.measure(tmp_path, [3, 1], rounds=1)
    assert [row["pairs"] for row in rows] == [3, 1]
    for row in rows:
        assert row["processor_s"] > 0
        assert row["clock_s"] > 0
        assert 50e6 < row["peak_bytes"] < 2e9  # torch itself has more than the one
    pair = [Image.open(tmp_path / name).size for name in ("0-a.png", "0-b.png")]
    assert pair == [(64, 64)] * 2
    assert len(results.load(tmp_path / "results.csv")) in (1, 3)
    with pytest.raises(subprocess.CalledProcessError):  # the command's exit code is not overlooked
        many_pairs.compare(tmp_path, [Pair("0-a.png", "none.png")])

    row = {"processor_s": "2", "peak_bytes": "279e6"}
    short, long = row | {"pairs": "1000", "clock_s": "2"}, row | {"pairs": "10000", "clock_s": "20"}
    table = many_pairs.markdown([short, long]).splitlines()
    assert table[3] == "| 10,000 | 20.0 s | 2.0 s | 279 MB |"
    assert table[4] == "| 1,000,000, projected | 33 minutes | 0 minutes |  |"


def test_the_long_benchmark_needs_its_own_requirements_alone():
    """Not what others do: `make bench-full` has an environment of its own."""
    absent = ["imagecodecs", "pyarrow", "click", "av", "sklearn"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        "import benchmarks.__main__; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
