"""Two steps of every trainer, and a start from components, in each process of ``torchrun``, or in one without it.

``python -m tests.distributed_steps <file>`` writes gradients, weights and terms of the first process to the file.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset

from scripts.components import PrincipalComponents, components
from scripts.distributed import GatheredMetric, own_rows
from scripts.engines import AutoencoderTrainer, IntrospectiveTrainer, VAETrainer
from scripts.losses import IntrospectiveLoss, ReconstructionLoss, VAELoss
from scripts.networks import VariationalAutoencoder

BATCH = 8


def batches() -> list[dict[str, torch.Tensor]]:
    """The whole batches, of which each process takes its rows; one attribute is missing."""
    generator = torch.Generator().manual_seed(1)
    rows = own_rows(BATCH // idist.get_world_size())
    found = []
    for _ in range(2):
        image = torch.rand(BATCH, 2, 16, 16, generator=generator, dtype=torch.float64)
        attributes = torch.rand(BATCH, 3, generator=generator, dtype=torch.float64)
        attributes[5, 1] = torch.nan
        found.append({"image": image[rows], "attributes": attributes[rows]})
    return found


def trainers() -> dict[str, AutoencoderTrainer]:
    """Trainers of both families, and one with micro-batches."""
    reconstruction, shared = ReconstructionLoss(1), {"gamma": 0.3, "delta": 10}

    def common() -> dict:
        # Weights that differ between the processes at first: the trainer has to share those of the first one.
        torch.manual_seed(idist.get_rank())
        network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, ("group", {"num_groups": 4})).double()
        network.to(memory_format=torch.channels_last)
        return {
            "device": torch.device("cpu"),
            "max_epochs": 1,
            "train_data_loader": batches(),
            "network": network,
            "decollate": False,
        }

    def vae() -> VAETrainer:
        options = common()
        optimizer = torch.optim.SGD(options["network"].parameters(), 0.1)
        return VAETrainer(optimizer=optimizer, loss_function=VAELoss(reconstruction, beta_kl=2, **shared), **options)

    def introspective(**kwargs) -> IntrospectiveTrainer:
        options = common()
        optimizer, decoder_optimizer = (
            torch.optim.SGD(part.parameters(), 0.1) for part in (options["network"].encoder, options["network"].decoder)
        )
        loss = IntrospectiveLoss(reconstruction, beta_rec=0.8, beta_kl=1.5, beta_neg=8.0, eta=0.5, **shared)
        return IntrospectiveTrainer(
            optimizer=optimizer, decoder_optimizer=decoder_optimizer, loss_function=loss, **options, **kwargs
        )

    return {"vae": vae(), "introspective": introspective(), "micro-batches": introspective(micro_batch_size=3)}


def mirrored(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Components of other signs, without the last one."""
    mean, directions = components(values, count)
    return mean, -directions[:-1]


def principal_components() -> dict[str, torch.Tensor]:
    """Weights of both linear maps after a start from ten images, of which each process has its rows.

    Processes but the first find components of other signs, and one less, as another machine's arithmetic may.
    """
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(10, 2, 16, 16, generator=generator)[own_rows(10 // idist.get_world_size())]
    network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, ("group", {"num_groups": 4}), linear_size=8)
    engine = Engine(lambda engine, batch: None)
    engine.data_loader = DataLoader(Dataset([{"image": image} for image in images]), batch_size=3)
    with patch("scripts.components.components", components if idist.get_rank() == 0 else mirrored):
        PrincipalComponents(network, reserved=2, count=10).start(engine)
    return {key: value for key, value in network.state_dict().items() if "linear." in key}


def uneven_metric() -> float:
    """A metric over the numbers 0 to 4, of which the last process has one and the others share the rest."""
    metric = GatheredMetric(lambda predictions, targets: float((predictions * targets).sum()), check_compute_fn=False)
    mine = [torch.arange(4), torch.arange(4, 5)]
    for values in mine if idist.get_world_size() == 1 else mine[idist.get_rank() : idist.get_rank() + 1]:
        metric.update((values[:, None].double(), torch.full((len(values), 1), 2.0).double()))
    return metric.compute()


def main() -> None:
    """Train and write."""
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")
    found = {}
    for name, trainer in trainers().items():
        torch.manual_seed(7)
        trainer.run()
        parameters = dict(trainer.network.named_parameters())
        found[name] = {
            "gradients": {key: parameter.grad for key, parameter in parameters.items()},
            "weights": {key: parameter.detach() for key, parameter in parameters.items()},
            "terms": trainer.state.output["terms"],
        }
    found["components"] = {"weights": principal_components()}
    found["metric"] = {"terms": {"value": torch.tensor(uneven_metric())}}
    if idist.get_rank() == 0:
        torch.save(found, sys.argv[1])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
