"""Says how good a classifier is on images that it has never seen, and what it takes to fool it.

    python -m vision.evaluate run=latest
    python -m vision.evaluate run=runs/vision/cifar10/resnet/seed0-... checkpoint=best robustness_images=0 format=json

    python -m vision.evaluate run=latest explain=grad_cam       # a picture of what it looks at, and no figures
    python -m vision.evaluate run=latest export=onnx            # the classifier for machines without torch

For every label: accuracy with a 95 % interval, precision and recall of each class, a picture of the confusion matrix.
For every amount: mean absolute error, and the share within some distances. Then the same figures in noise, out of
focus, in other light and under attack. Exit codes are listed in faults.py.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import CheckpointError, ConfigError, check_choice, check_range
from training.config import EXPORTS, SALIENCY_METHODS, parse_keys, typed
from training.process import prepare, report, say, warn
from training.run import Run, find_run

if TYPE_CHECKING:
    from torch import Tensor

    from vision.data import Head, ImageData
    from vision.learner import Classifier, Outputs
    from vision.measures import Share

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class EvaluateConfig:
    """The keys of the command line."""

    run: str = "latest"
    """A run folder, or latest."""
    run_dir: str = "runs/vision"
    """Where latest is looked for."""
    checkpoint: str = "latest"
    """latest, best, or a number of updates."""
    part: str = "test"
    """test, validation or training: which images."""
    within: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    """Distances, in the unit of the amounts, within which a prediction is close."""
    robustness_images: int = 200
    """How many images to change and attack; 0 for none."""
    noise: list[float] = field(default_factory=lambda: [8.0, 32.0])
    """Standard deviations of noise, of 255."""
    blur: list[float] = field(default_factory=lambda: [1.0, 2.0])
    """Standard deviations of the blur, in pixels."""
    brightness: list[float] = field(default_factory=lambda: [-32.0, 32.0])
    """What is added to every pixel, of 255."""
    epsilon: list[float] = field(default_factory=lambda: [1.0, 8.0])
    """The largest change of a pixel by an attack (FGSM, and PGD of 10 steps), of 255."""
    batch_size: int = 256
    seed: int = 0
    """Of noise and attacks."""
    format: str = "table"
    """table, or json: one JSON object alone on standard output."""
    explain: str | None = None
    """Draw what the classifier looks at, by gradient, grad_cam or occlusion; true: gradient. Nothing is scored then."""
    explain_images: int = 12
    """How many images."""
    export: str | None = None
    """onnx: write the classifier as export/classifier.onnx, checked against torch; onnx_int8: and classifier_int8.onnx
    with weights of eight bits, and the figures of both. Nothing else is scored."""
    out: str | None = None
    """Folder for the result and the pictures; the run's own eval/ if left out."""
    device: str = "cpu"
    torch_threads: int = 0
    debug: bool = False

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)
        check_choice("format", self.format, ("table", "json"))
        check_range("robustness_images", self.robustness_images, 0, None)
        check_range("batch_size", self.batch_size, 1, 1_000_000)
        check_range("seed", self.seed, 0, 2**31 - 1)
        if self.explain is not None:
            check_choice("explain", self.explain, SALIENCY_METHODS)
        check_range("explain_images", self.explain_images, 1, 100)
        if self.export is not None:
            check_choice("export", self.export, EXPORTS)
            if self.explain is not None:
                raise ConfigError("explain= and export= exclude each other")
            if self.device != "cpu":
                raise ConfigError("export= writes what the CPU computes; set device=cpu")
        for name in ("within", "noise", "blur", "epsilon"):
            for value in getattr(self, name):
                check_range(name, value, 0, None)
        for value in self.brightness:
            check_range("brightness", value, -255, 255)
        if self.checkpoint not in ("latest", "best") and not re.fullmatch("[0-9]{1,18}", self.checkpoint):
            raise ConfigError(f"checkpoint must be latest, best or a number of updates, got '{self.checkpoint}'")


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help"}:
        say(usage())
        return 0
    config = typed(EvaluateConfig, parse_keys(arguments, "run=latest part=validation"))
    run = find_run(config.run, config.run_dir, "python -m vision.train")
    prepare(config.torch_threads)
    return evaluate(run, config)


def usage() -> str:
    lines = [__doc__.rstrip(), "", "Keys and their defaults:"]
    for key in fields(EvaluateConfig):
        default = key.default_factory() if callable(key.default_factory) else key.default
        lines.append(f"    {key.name}={'null' if default is None else default}")
    return "\n".join(lines)


def evaluate(run: Run, config: EvaluateConfig) -> int:
    """Prints and stores the figures of a run; returns the exit code."""
    import torch

    from training.process import choose_device
    from vision.command import load_parts, make_source
    from vision.learner import load_classifier, load_config, predict
    from vision.pictures import draw_confusion

    folder = destination(run, config.out)  # an unwritable folder is refused before the work
    trained = load_config(run)
    classifier, updates = load_classifier(run.path, config.checkpoint, choose_device(config.device))
    if not classifier.outputs:
        raise CheckpointError(f"{run.path} is a pretrained backbone without heads: train some with backbone_init=")
    try:
        data = load_parts(trained, make_source(trained))[PARTS.index(config.part)]
    except ConfigError as error:
        raise CheckpointError(f"{run.path / 'config.yaml'}: {error}") from None
    if data.heads != classifier.outputs:
        raise CheckpointError(f"{run.path} was trained on other labels than '{trained.data['source']}' has now")
    if config.explain:
        return explain(classifier, data, config, folder)
    outputs = predict(classifier, data.images, config.batch_size)
    if config.export:
        return export(classifier, outputs, data, config, run)
    heads = {name: figures(head, outputs[name], data, name, config.within) for name, head in data.heads.items()}
    result: dict[str, Any] = {
        "run": str(run.path),
        "backbone": trained.backbone,
        "data": trained.data,
        "data_seed": trained.data_seed,
        "part": config.part,
        "num_images": len(data),
        "num_groups": len(torch.unique(data.group)),
        "checkpoint_updates": updates,
        "heads": heads,
        "robustness": robustness(classifier, data, config) if config.robustness_images else [],
    }
    say(json.dumps(result, allow_nan=False) if config.format == "json" else table(result))
    if folder is None:
        warn("note: the run is read-only, so the result is not stored; set out=<folder>")
        return 0
    stamp = time.strftime("%Y%m%d-%H%M%S")
    (folder / f"{stamp}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    for name, found in heads.items():
        if "confusion" in found:
            path = folder / f"{stamp}-confusion-{name}.png"
            draw_confusion(found["confusion"], [row["name"] for row in found["classes"]], path)
            warn(f"picture: {path}")
    return 0


def explain(classifier: Classifier, data: ImageData, config: EvaluateConfig, folder: Path | None) -> int:
    """Draws what a classifier looks at; returns the exit code."""
    from vision.inside import draw_saliency

    assert config.explain is not None
    if folder is None:
        raise ConfigError("the run is read-only; set out=<folder> for the picture")
    if config.explain == "grad_cam" and not hasattr(classifier.backbone, "feature_map"):
        raise ConfigError("grad_cam needs a convolutional backbone; use explain=gradient or explain=occlusion")
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.explain}.png"
    draw_saliency(classifier.cpu(), data, config.explain, config.explain_images, path)
    warn(f"picture: {path}")
    return 0


def export(classifier: Classifier, outputs: Outputs, data: ImageData, config: EvaluateConfig, run: Run) -> int:
    """Writes a classifier as ONNX files with their description; returns the exit code."""
    from training import export as onnx
    from vision.export import description, export_classifier
    from vision.export import run as run_file

    folder = destination(run, config.out, "export")
    if folder is None:
        raise ConfigError("the run is read-only; set out=<folder> for the export")
    path, agreement = export_classifier(classifier, outputs, data, folder)
    warn(f"classifier: {path}")
    result: dict[str, Any] = {
        "run": str(run.path),
        **description(classifier),
        "agreement": {name: found._asdict() for name, found in agreement.items()},
    }
    if config.export == "onnx_int8":
        small = folder / "classifier_int8.onnx"
        onnx.quantise(path, small)
        warn(f"classifier: {small}")
        result["bytes"] = {p.name: p.stat().st_size for p in (path, small)}
        said = {"float32": outputs, "int8": run_file(onnx.open_session(small), data.images, list(outputs))}
        result["figures"] = {
            kind: {name: figures(head, found[name], data, name, config.within) for name, head in data.heads.items()}
            for kind, found in said.items()
        }
    (folder / "classifier.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    say(json.dumps(result, allow_nan=False) if config.format == "json" else export_lines(result))
    return 0


def export_lines(result: dict[str, Any]) -> str:
    """What a person wants to know of an export."""
    lines = []
    for name, found in result["agreement"].items():
        line = f"{name}: largest difference from torch {found['largest_difference']:.1e}"
        if result["heads"][name]["kind"] == "classes":
            same, rows, ties = (found[key] for key in ("same_choice", "observations", "near_ties"))
            line += f", same class in {same:,} of {rows:,}, {ties:,} near ties"
        lines.append(line)
    for kind, heads in result.get("figures", {}).items():
        for name, figure in heads.items():
            errors = ", ".join(
                f"{k} {e:.3g}" for k, e in figure.get("mean_absolute_error", {}).items() if e is not None
            )
            text = percent(figure["accuracy"]) if "accuracy" in figure else f"mean error {errors}"
            lines.append(f"{kind} {name}: {text}")
    return "\n".join(lines)


def destination(run: Run, out: str | None, kind: str = "eval") -> Path | None:
    """The folder to write into: `out`, or the run's own, or None if the run is read-only."""
    folder = Path(out) if out is not None else run.path / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "not writable", str(folder))
    except OSError:
        if out is not None:
            raise
        return None
    return folder


def figures(head: Head, output: Tensor, data: ImageData, name: str, distances: Sequence[float]) -> dict[str, Any]:
    """All figures of one head, as JSON values."""
    from vision import measures
    from vision.data import Amounts

    target = data.targets[name]
    if isinstance(head, Amounts):
        close = {
            f"{distance:g}": {
                "all": interval(measures.share_all_within(output, target, distance, data.group)),
                **{
                    amount: interval(measures.share_within(output[:, k], target[:, k], distance, data.group))
                    for k, amount in enumerate(head.names)
                },
            }
            for distance in distances
        }
        errors = {
            amount: finite(measures.mean_absolute_error(output[:, k], target[:, k]))
            for k, amount in enumerate(head.names)
        }
        return {"unit": head.unit, "mean_absolute_error": errors, "within": close}
    predicted = output.argmax(dim=-1)
    confusion = measures.confusion_matrix(predicted, target, len(head.names))
    precision, recall = measures.precision_and_recall(confusion)
    return {
        "accuracy": interval(measures.accuracy(predicted, target, data.group)),
        "classes": [
            {"name": n, "precision": finite(p), "recall": finite(r), "cases": c}
            for n, p, r, c in zip(
                head.names, precision.tolist(), recall.tolist(), confusion.sum(dim=1).tolist(), strict=True
            )
        ],
        "confusion": confusion.tolist(),
    }


def interval(share: Share) -> dict[str, Any]:
    """A share as JSON values."""
    return {"value": finite(share.value), "ci95": [share.low, share.high], "cases": share.cases}


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if value == value else None


def robustness(classifier: Classifier, data: ImageData, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Accuracies and errors on changed and attacked images; first on the same images as they are."""
    import torch

    from contract import Streams
    from vision.learner import losses, predict
    from vision.robustness import CHANGES

    some = data.take(data.evenly(config.robustness_images))
    device = next(classifier.parameters()).device
    strengths = {"noise": config.noise, "blur": config.blur, "brightness": config.brightness}
    wanted = [("brightness", 0.0), *((name, s) for name in CHANGES for s in strengths.get(name, config.epsilon))]
    rows = []
    for name, strength in wanted:
        generator = Streams(config.seed).torch(f"{name}/{strength:g}", device=device)
        changed = []
        for index in torch.split(torch.arange(len(some)), config.batch_size):
            part = some.take(index)
            targets = {head: target.to(device) for head, target in part.targets.items()}

            def loss(images: Tensor, targets: dict[str, Tensor] = targets) -> Tensor:
                each = losses(classifier(images), targets, data.heads)
                return torch.stack(list(each.values())).sum()

            changed.append(CHANGES[name](part.images.to(device), strength, loss, generator))
        outputs = predict(classifier, torch.cat(changed), config.batch_size)
        found = {head: figures(data.heads[head], outputs[head], some, head, []) for head in data.heads}
        row = {
            "change": name if strength else "none",
            "strength": strength,
            "images": len(some),
            "accuracy": {head: f["accuracy"] for head, f in found.items() if "accuracy" in f},
            "mean_absolute_error": {
                head: f["mean_absolute_error"] for head, f in found.items() if "mean_absolute_error" in f
            },
        }
        rows.append(row)
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as a person reads it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110, file=io.StringIO(), record=True)
    options = ", ".join(f"{key} {value}" for key, value in result["data"].items() if key != "source")
    shown = Table(
        title=f"{result['backbone']} on {result['data']['source']} after {result['checkpoint_updates']:,} updates",
        show_header=False,
        title_justify="left",
    )
    for name, found in result["heads"].items():
        if "accuracy" in found:
            shown.add_row(f"{name}: accuracy", percent(found["accuracy"]))
            for row in found["classes"]:
                shown.add_row(
                    f"    {row['name']}",
                    f"precision {percentage(row['precision'])}   recall {percentage(row['recall'])}   "
                    f"{row['cases']:,} cases",
                )
            continue
        for distance, close in found["within"].items():
            shown.add_row(f"{name}: all within {distance} {found['unit']}", percent(close["all"]))
        for amount, error in found["mean_absolute_error"].items():
            close = (percentage(c[amount]["value"]).removesuffix(" %") for c in found["within"].values())
            shown.add_row(f"    {amount}", f"mean error {number(error)}   within: {', '.join(close)} %")
    console.print(shown)
    if result["robustness"]:
        console.print(robustness_table(result["robustness"]))
    return (
        f"{console.export_text()}protocol: {result['num_images']:,} {result['part']} images in "
        f"{result['num_groups']:,} groups that no part shares, data_seed {result['data_seed']}; {options}"
    )


def robustness_table(rows: list[dict[str, Any]]) -> Any:
    """Accuracy of each head, mean error of each amount, for every change."""
    from rich.table import Table

    accuracies, errors = rows[0]["accuracy"], rows[0]["mean_absolute_error"]
    amounts = [(head, amount) for head, found in errors.items() for amount in found]
    shown = Table(title=f"on {rows[0]['images']:,} changed images", title_justify="left")
    for column in ("change", "strength", *accuracies, *(amount for _, amount in amounts)):
        shown.add_column(column)
    for row in rows:
        shown.add_row(
            row["change"],
            f"{row['strength']:g}",
            *(percentage(row["accuracy"][head]["value"]) for head in accuracies),
            *(number(row["mean_absolute_error"][head][amount]) for head, amount in amounts),
        )
    return shown


def percent(found: dict[str, Any]) -> str:
    """A share with its interval."""
    low, high = found["ci95"]
    return (
        f"{percentage(found['value'])}   95 % interval [{100 * low:.2f}, {100 * high:.2f}] %   {found['cases']:,} cases"
    )


def number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def percentage(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:]), debug="debug=true" in sys.argv[1:]))
