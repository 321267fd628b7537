"""MONAI's federated client trains this bundle: global weights come in, both optimizers live on, local ones go out."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

TINY = {
    "channels": [8, 8, 8],
    "latent_dim": 8,
    "linear_size": 8,
    "batch_size": 2,
    "perceptual_weight": 0,
    "warmup_epochs": 0,
}


@pytest.fixture
def client(packaged, cohort, tmp_path):
    """A site with its own subjects, initialized as NVFLARE does it."""
    overrides = cohort | {"output_dir": str(tmp_path)} | TINY
    algo = MonaiAlgo(
        bundle_root=packaged.name,
        local_epochs=2,
        config_train_filename=["configs/train.json", "configs/federated.json"],
        train_kwargs=overrides,
        eval_kwargs=overrides,
        best_model_filepath=str(tmp_path / "model.pt"),
    )
    algo.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(packaged.parent)})
    yield algo
    algo.finalize()


def global_weights(client, seed):
    """Weights as a server would send them: another set in every round."""
    torch.manual_seed(seed)
    own = client.trainer.network.state_dict()
    return {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in own.items()}


def steps(client):
    """How many steps each optimizer remembers."""
    optimizers = client.trainer.optimizer, client.trainer.decoder_optimizer
    return [{int(state["step"]) for state in optimizer.state.values()} for optimizer in optimizers]


def test_two_rounds_start_from_the_global_weights_and_keep_both_optimizers(client):
    trainer, started = client.trainer, []
    trainer.add_event_handler(
        Events.EPOCH_STARTED,
        lambda: started.append({name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}),
    )
    for seed in (1, 2):
        received = global_weights(client, seed)
        client.train(ExchangeObject(weights={name: tensor.numpy() for name, tensor in received.items()}))
        first = started[-2]  # of two local epochs
        assert all(torch.equal(first[name], tensor) for name, tensor in received.items())

        sent = client.get_weights()
        assert sent.weight_type == WeightType.WEIGHT_DIFF
        assert sent.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 4
        own = trainer.network.state_dict()
        assert all(
            torch.allclose(received[name] + change, own[name], atol=1e-6) for name, change in sent.weights.items()
        )
        assert sent.weights.keys() == own.keys()
        assert any(change.abs().max() > 0 for name, change in sent.weights.items() if name.startswith("encoder"))
        assert any(change.abs().max() > 0 for name, change in sent.weights.items() if name.startswith("decoder"))
        assert steps(client) == [{4 * seed}, {4 * seed}]


def test_the_frozen_twins_see_the_global_weights(client):
    client.train(ExchangeObject(weights=global_weights(client, 1)))
    trainer = client.trainer
    twins = {trainer.frozen_encoder: trainer.network.encoder, trainer.frozen_decoder: trainer.network.decoder}
    for twin, part in twins.items():
        pairs = list(zip(twin.parameters(), part.parameters(), strict=True))
        assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_it_evaluates_global_weights_without_training(client):
    before = [tensor.clone() for tensor in client.trainer.network.state_dict().values()]
    exchanged = (ExchangeObject(weights=global_weights(client, seed)) for seed in (1, 1, 2))
    results = [dict(client.evaluate(weights).metrics) for weights in exchanged]
    losses = [result["val_reconstruction_loss"] for result in results]
    assert losses[0] == losses[1] != losses[2]
    assert "val_scc" in results[0]
    assert all(torch.equal(*pair) for pair in zip(before, client.trainer.network.state_dict().values(), strict=True))


def test_the_best_weights_of_a_site_can_be_asked_for(client):
    client.train(ExchangeObject(weights=global_weights(client, 1)))
    best = client.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
    assert best.keys() == client.trainer.network.state_dict().keys()


def test_attribute_pairs_stay_within_a_site(client):
    seen = []
    loss = client.trainer.loss_function
    attribute = loss.attribute
    loss.attribute = lambda codes, attributes: seen.append(len(codes)) or attribute(codes, attributes)
    client.train(ExchangeObject(weights=global_weights(client, 1)))
    assert set(seen) == {TINY["batch_size"]}
