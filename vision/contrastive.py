"""Learning to see without labels: each image must find its partner, the next one of the film, among a whole batch.

Compared are the features of an image with every place of its partner's feature map, and every place with the same place
of the partner. So a small thing that moves is as well worth knowing as what fills the picture.

Source:
    Anand et al. 2019, "Unsupervised State Representation Learning in Atari", arXiv:1906.08226, section 3 (ST-DIM);
    van den Oord, Li and Vinyals 2018, arXiv:1807.03748, equation 4 (InfoNCE).

Deviations from the source:
    1. Places are those of the backbone's last feature map; the paper takes the one after its second of four layers.
    2. The partner may be any stated number of images further on. Images that are no film are partnered with themselves,
       both changed by augmentation, as in Chen et al. 2020, arXiv:2002.05709.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract import Metrics, State
from faults import ConfigError
from networks.backbones import Backbone
from training.logging import Writer
from vision.batches import augmented
from vision.config import PretrainConfig
from vision.data import ImageData
from vision.learner import Classifier, classifier_state, map_shape, see


def info_nce(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """How well each query finds its own key among those of the batch.

    Equation:
        -mean over p, i of log(exp(q_pi . k_pi) / sum_j exp(q_pi . k_pj))

    Args:
        query: (P, B, D).
        key: (P, B, D): of each query the one with the same p and i.

    Returns:
        The loss (), log B where nothing is known, and the share () of queries that score their own key highest.
    """
    places, batch, _ = query.shape
    scores = torch.bmm(query, key.transpose(1, 2)).float()  # (P, B, B)
    own = torch.arange(batch, device=query.device).expand(places, batch)
    loss = F.cross_entropy(scores.flatten(0, 1), own.flatten())
    return loss, (scores.argmax(dim=2) == own).float().mean()


class SpatioTemporal(nn.Module):
    """A backbone and the two bilinear forms that score pairs. Two batches of images -> loss and matches."""

    def __init__(self, backbone: Backbone, image_shape: tuple[int, ...]) -> None:
        """Adds the forms.

        Args:
            backbone: with a feature map.
            image_shape: channels, height and width of the images.

        Raises:
            ConfigError: if the backbone has no feature map.
        """
        super().__init__()
        self.backbone = backbone
        channels = map_shape(backbone, image_shape)[0]
        self.from_features = nn.Linear(backbone.out_dim, channels)
        self.from_place = nn.Linear(channels, channels)

    def forward(self, images: Tensor, partners: Tensor) -> tuple[Tensor, Metrics]:
        """Args: images and partners, (B, C, H, W) each. Returns the loss () and its metrics."""
        features, feature_map = see(self.backbone, torch.cat([images, partners]))
        batch = len(images)
        place, partner_place = torch.split(feature_map.flatten(2).permute(2, 0, 1), batch, dim=1)  # (P, B, C) each
        query = self.from_features(features[:batch]).expand(len(place), batch, -1)
        global_loss, global_found = info_nce(query, partner_place)
        local_loss, local_found = info_nce(self.from_place(place), partner_place)
        metrics: Metrics = {"accuracy_global": global_found.detach(), "accuracy_local": local_found.detach()}
        return global_loss + local_loss, metrics


def find_pairs(group: Tensor, distance: int) -> Tensor:
    """The images (B,) int64 that have a partner `distance` images further on in their group.

    Raises:
        ConfigError: if there is none.
    """
    first = torch.arange(max(0, len(group) - distance))
    pairs = first[group[first] == group[first + distance]]
    if not len(pairs):
        raise ConfigError(f"no image has another {distance} further on in its group: lower distance, or set it to 0")
    return pairs


class Contrastive:
    """What `vision.loop` trains for `vision.pretrain`."""

    def __init__(
        self, net: SpatioTemporal, train: ImageData, validation: ImageData, config: PretrainConfig, device: torch.device
    ) -> None:
        """Moves everything that learning needs to the device.

        Args:
            net: freshly built.
            train: the film to learn from; its labels are not looked at.
            validation: what tells the best.
            config: the keys.
            device: where it learns.
        """
        self.net = net.to(device)
        self._pairs = find_pairs(train.group, config.distance).to(device)
        find_pairs(validation.group, config.distance)  # refused now rather than after the first epoch
        self.num_images = len(self._pairs)
        self._images = train.images.to(device)
        self._shape = tuple(train.images.shape[1:])
        self._validation, self._config, self._device = validation, config, device

    @property
    def backbone(self) -> Backbone:
        return self.net.backbone

    def parameters(self) -> list[Tensor]:
        return list(self.net.parameters())

    def loss(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        first = self._pairs[index]
        images, partners = (
            augmented(self._images[which], self._config.augment, generator)
            for which in (first, first + self._config.distance)
        )
        loss, metrics = self._compare(images, partners)
        return loss, {f"train/{name}": value for name, value in metrics.items()}

    def _compare(self, images: Tensor, partners: Tensor) -> tuple[Tensor, Metrics]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.bfloat16):
            loss, metrics = self.net(images, partners)
        return loss, metrics

    def validate(self, writer: Writer, updates: int) -> float:
        """In batches of the same size as in training, since the loss depends on it."""
        data, c = self._validation, self._config
        pairs = find_pairs(data.group, c.distance)
        generator = torch.Generator().manual_seed(0)
        mixed = pairs[torch.randperm(len(pairs), generator=generator)]
        size = min(c.batch_size, len(mixed))
        rows = []
        with torch.inference_mode():
            for index in torch.split(mixed[: len(mixed) // size * size], size):
                images, partners = (
                    augmented(data.images[which], c.augment, generator) for which in (index, index + c.distance)
                )
                loss, metrics = self._compare(images.to(self._device), partners.to(self._device))
                rows.append({"loss": loss, **metrics})
        row = {f"eval/{name}": float(torch.stack([torch.as_tensor(r[name]) for r in rows]).mean()) for name in rows[0]}
        writer.write(updates, row)
        return row["eval/loss"]

    def policy_state_dict(self) -> State:
        return classifier_state(Classifier(self.net.backbone, self._shape, {}))

    def rest_state_dict(self) -> State:
        return {
            "from_features": self.net.from_features.state_dict(),
            "from_place": self.net.from_place.state_dict(),
        }

    def load_state_dict(self, policy: State, rest: State) -> None:
        own = {name.removeprefix("backbone."): value for name, value in policy.items() if name.startswith("backbone.")}
        self.net.backbone.load_state_dict(own)
        self.net.from_features.load_state_dict(rest["from_features"])
        self.net.from_place.load_state_dict(rest["from_place"])
