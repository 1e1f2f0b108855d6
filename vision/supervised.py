"""Learning from labels: the loss of a batch, and how good a classifier is on images that it does not learn from."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from contract import Metrics, State
from faults import ConfigError
from networks.backbones import Backbone
from training.logging import Writer
from vision import measures
from vision.batches import augmented
from vision.config import TrainConfig
from vision.data import Amounts, Classes, ImageData
from vision.learner import Classifier, Outputs, classifier_state, losses, predict
from vision.pictures import confusion_picture, examples_picture
from vision.robustness import fgsm, pgd

EXAMPLES = 24
"""Validation images that TensorBoard shows with what was predicted."""


class Supervised:
    """What `vision.loop` trains for `vision.train`."""

    def __init__(
        self, classifier: Classifier, train: ImageData, validation: ImageData, config: TrainConfig, device: torch.device
    ) -> None:
        """Moves everything that learning needs to the device.

        Args:
            classifier: freshly built, its backbone without gradients if that is to stay as it is.
            train: what to learn.
            validation: what tells the best.
            config: the keys.
            device: where it learns.

        Raises:
            ConfigError: if augmentation would move what labels say the place of.
        """
        for name, head in train.heads.items():
            placed = head.unit == "pixels" if isinstance(head, Amounts) else bool(head.shape)
            if placed and config.augment.moves:
                raise ConfigError(f"augment.crop, shift and flip move what the labels '{name}' say the place of")
        self.classifier = classifier.to(device)
        self.num_images = len(train)
        self._images = train.images.to(device)
        self._targets = {name: target.to(device) for name, target in train.targets.items()}
        self._validation, self._config, self._device = validation, config, device

    @property
    def backbone(self) -> Backbone:
        return self.classifier.backbone

    def parameters(self) -> list[Tensor]:
        return [weight for weight in self.classifier.parameters() if weight.requires_grad]

    def loss(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        targets = {name: target[index] for name, target in self._targets.items()}
        images = augmented(self._images[index], self._config.augment, generator)
        images = self._attacked(images, targets, generator)
        outputs = self._outputs(images)
        each = self._losses(outputs, targets)
        parts: Metrics = {f"train/loss_{name}": loss.detach() for name, loss in each.items()} if len(each) > 1 else {}
        return torch.stack(list(each.values())).sum(), parts | self._accuracies(outputs, targets)

    def _outputs(self, images: Tensor) -> Outputs:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.bfloat16):
            outputs: Outputs = self.classifier(images)
        return outputs

    def _losses(self, outputs: Outputs, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        return losses(outputs, targets, self.classifier.outputs, self._config.label_smoothing, self._config.huber_delta)

    def _attacked(self, images: Tensor, targets: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """The images as an adversary would have them who knows the network."""
        c = self._config
        if c.adversary == "none":
            return images

        def loss(changed: Tensor) -> Tensor:
            return torch.stack(list(self._losses(self._outputs(changed), targets).values())).sum()

        if c.adversary == "fgsm":
            return fgsm(loss, images, c.adversary_epsilon)
        return pgd(loss, images, c.adversary_epsilon, c.adversary_steps, generator)

    def _accuracies(self, outputs: Outputs, targets: dict[str, Tensor]) -> Metrics:
        """The share of right labels of each head of a batch, as tensors: nothing waits for the device."""
        found: Metrics = {}
        for name, head in self.classifier.outputs.items():
            if isinstance(head, Classes):
                right = (outputs[name].argmax(dim=-1) == targets[name]).sum()
                found[f"train/accuracy_{name}"] = right / (targets[name] >= 0).sum().clamp(min=1)
        return found

    def validate(self, writer: Writer, updates: int) -> float:
        data, heads = self._validation, self.classifier.outputs
        outputs = predict(self.classifier, data.images)
        each = self._losses(outputs, data.targets)
        row = {"eval/loss": float(sum(each.values()))}
        for name, head in heads.items():
            if isinstance(head, Amounts):
                row[f"eval/error_{name}"] = measures.mean_absolute_error(outputs[name], data.targets[name])
                continue
            predicted, target = outputs[name].argmax(dim=-1), data.targets[name]
            row[f"eval/accuracy_{name}"] = measures.accuracy(predicted, target, data.group).value
            confusion = measures.confusion_matrix(predicted, target, len(head.names))
            writer.picture(updates, f"confusion/{name}", partial(confusion_picture, confusion, head.names))
        writer.write(updates, row)
        shown = data.evenly(EXAMPLES)
        some, said = data.take(shown), {name: output[shown] for name, output in outputs.items()}
        writer.picture(updates, "examples", lambda: examples_picture(some, said))
        return row["eval/loss"]

    def policy_state_dict(self) -> State:
        return classifier_state(self.classifier)

    def rest_state_dict(self) -> State:
        return {}

    def load_state_dict(self, policy: State, rest: State) -> None:
        self.classifier.load_state_dict({k: v for k, v in policy.items() if isinstance(v, Tensor)})
