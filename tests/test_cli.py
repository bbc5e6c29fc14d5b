"""The command line: every command, its JSON, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcompress
from fastcompress.cli import main

MODELS = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def other():
    return nn.Sequential(nn.Linear(8, 8))

def batch():
    return torch.rand(2, 8, generator=torch.Generator().manual_seed(1))

def batches():
    return [batch() for _ in range(3)]

def number():
    return 3

constant = 5

class Nested:
    make = staticmethod(model)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with models in the current directory, under a name of its own."""
    name = f"cli_models_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


@pytest.fixture
def checkpoint(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    data = ["--calibration", f"{models}:batches"]
    assert main(["quantize", f"{models}:model", "--out", "out", "--always", *data]) == 0
    assert "out: 2 quantized, 1 fused" in capsys.readouterr().out
    return "out"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict:
    assert main([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_quantize_reports_sizes_and_honours_options(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(
        capsys,
        "quantize",
        f"{models}:Nested.make",
        "--out",
        "d",
        "--scheme",
        "W8A8-dynamic",
        "--always",
        "--ignore",
        "2",
    )
    assert found["layers"]["quantized"] == 1
    assert found["bytes_before"] == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    info = answer(capsys, "info", "d")
    assert info["scheme"] == "W8A8-dynamic"
    assert info["modules"] == {"QuantLinear": 1, "Linear": 1}


def test_info_about_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "info")
    assert found["environment"]["fastcompress"] == fastcompress.__version__
    assert found["cpu"]["isa"] == fastcompress.cpu_info().isa
    assert main(["info"]) == 0
    assert found["cpu"]["isa"] in capsys.readouterr().out


def test_info_about_a_checkpoint(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "info", checkpoint)["layers"] == {"quantized": 2, "fused": 1}
    assert main(["info", checkpoint]) == 0
    assert "scheme             W8A8" in capsys.readouterr().out


def test_verify(models: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "verify", checkpoint)["layers"] is None
    assert answer(capsys, "verify", checkpoint, "--model", f"{models}:model")["layers"] == ["0", "2"]
    path = next((tmp_path / checkpoint).glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)
    assert main(["verify", checkpoint]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastcompress: CheckpointError: load: ")
    assert "SHA-256" in error
    assert answer(capsys, "verify", checkpoint, status=1)["error"] == "CheckpointError"


def test_explain(models: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--checkpoint", checkpoint, "--inputs", f"{models}:batch"]
    found = answer(capsys, "explain", f"{models}:model", *where)
    assert [row["action"] for row in found["rows"]] == ["quantized", "fused", "quantized"]
    assert found["total_seconds"] > 0
    assert main(["explain", f"{models}:model"]) == 0
    assert "2 dense" in capsys.readouterr().out


def test_bench(models: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--checkpoint", checkpoint, "--inputs", f"{models}:batch", "--threads", "1"]
    found = answer(capsys, "bench", f"{models}:model", *where)
    assert found["speedup"] > 0
    assert found["environment"]["threads"] == 1
    assert {row["name"] for row in found["rows"]} == {"fp32 eager", "bf16", "compressed"}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nocolon", "is not of the form module:callable"),
        ("{}:missing", "has no attribute 'missing'"),
        ("{}:constant", "is a int, not a callable"),
        ("{}:number", "returned a int, not a torch.nn.Module"),
        ("no_such_module_here:model", "ModuleNotFoundError"),
    ],
)
def test_wrong_reference(models: str, capsys: pytest.CaptureFixture[str], reference: str, message: str) -> None:
    assert main(["explain", reference.format(models)]) == 1
    assert message in capsys.readouterr().err


def test_wrong_model_for_a_checkpoint(models: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{models}:other", "--checkpoint", checkpoint]) == 1
    assert "is it the same architecture?" in capsys.readouterr().err


def test_calibration_is_needed(models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", f"{models}:model", "--out", "x"]) == 1
    assert "needs calibration_data" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arguments", [[], ["train"], ["bench", "a:b"], ["quantize", "a:b"], ["info", "--what"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: fastcompress" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastcompress {fastcompress.__version__}\n"
    assert main(["quantize", "--help"]) == 0
    assert "--calibration" in capsys.readouterr().out


def test_traceback_on_request(models: str) -> None:
    with pytest.raises(ValueError, match="module:callable"):
        main(["explain", "nocolon", "--traceback"])


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastcompress.cli.commands.cpu_info", stop)
    assert main(["info"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_runs_as_a_program(checkpoint: str, tmp_path: Path) -> None:
    root = Path(fastcompress.__file__).parents[1]
    command = [sys.executable, "-m", "fastcompress.cli", "verify", "nowhere"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert done.stdout == ""


TRAINING = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def loader():
    x = torch.rand(32, 8, generator=torch.Generator().manual_seed(1))
    return [(x[i:i + 8], x[i:i + 8, :4].argmax(1)) for i in range(0, 32, 8)]

def score(model):
    return 1.0

def batch():
    return loader()[0][0]

def standing(parameters):
    return torch.optim.SGD(parameters, lr=1e-30)
"""

RECIPE = "epochs: 2\nstages:\n  - pruning: {sparsity: 0.5, pattern: 4x4, end: 1}\n  - qat: {start: 1}\n"


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a model and training data, and a recipe, in the current directory."""
    name = f"cli_training_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TRAINING)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def test_prune_saves_sparse_layers(training: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sparsity", "0.75", "--pattern", "4x1", "--always", "--out", "sparse"]
    found = answer(capsys, "prune", f"{training}:model", *options)
    assert [layer["achieved"] for layer in found["pruned"]] == [0.75, 0.75]
    assert found["layers"] == {"sparse": 2}
    fastcompress.load("sparse", model=fastcompress.cli.references.model(f"{training}:model"))


def test_compress_trains_saves_and_reports(training: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", "recipe.yaml", "--train", f"{training}:loader", "--eval", f"{training}:score", "--always"]
    found = answer(capsys, "compress", f"{training}:model", *options, "--out", "out", "--report", "report.json")
    assert (found["dense_score"], found["score"], len(found["history"])) == (1.0, 1.0, 2)
    assert found["layers"]["quantized"] == 2
    shown = answer(capsys, "report", "report.json", "--out", "report.html")
    assert shown["accuracy"]["dense"] == 1.0
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["report", "report.json"]) == 0
    assert "Every stage" in capsys.readouterr().out


def test_compress_takes_an_optimizer(training: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(
        "epochs: 1\nstages:\n  - pruning: {sparsity: 0.5, pattern: 4x4, schedule: one-shot}\n"
    )
    options = ["--recipe", "recipe.yaml", "--train", f"{training}:loader", "--optimizer", f"{training}:standing"]
    answer(capsys, "compress", f"{training}:model", *options, "--out", "out")
    start = fastcompress.cli.references.model(f"{training}:model")
    trained = fastcompress.load("out", model=fastcompress.cli.references.model(f"{training}:model"))
    weight, before = trained[0].weight, start[0].weight
    assert torch.equal(weight, torch.where(weight == 0, weight, before))  # so small a rate changes nothing


def test_compress_says_what_is_wrong_in_the_recipe(training: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("sparsity", "sparsness"))
    arguments = ["--recipe", "recipe.yaml", "--train", f"{training}:loader", "--out", "out"]
    found = answer(capsys, "compress", f"{training}:model", *arguments, status=1)
    assert found["error"] == "ValueError"
    assert found["message"].startswith("recipe.yaml:3: Pruning: unknown field 'sparsness'")
    assert not Path("out").exists()


def test_a_report_must_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text("[1]")
    assert answer(capsys, "report", str(path), status=1)["message"].startswith("load_compression_report")


def test_a_hugging_face_directory_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=30, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    found = answer(
        capsys, "quantize", str(tmp_path / "bert"), "--scheme", "W8A8-dynamic", "--always", "--out", str(tmp_path / "q")
    )
    assert found["layers"]["quantized"] >= 7
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    wrong = answer(capsys, "explain", str(tmp_path / "bert"), status=1)
    assert "no model class 'NoSuchModel'" in wrong["message"]


@pytest.mark.parametrize("command", ["info", "verify", "explain", "bench", "report", "quantize", "prune", "compress"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "None" not in text
