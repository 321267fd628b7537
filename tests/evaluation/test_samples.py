import numpy as np
import torch
from torch import nn

from scripts.evaluation.samples import GeneratedSamples
from scripts.networks import VariationalAutoencoder


def samples(network, dataset, count=12):
    return GeneratedSamples(network, nn.Flatten(), dataset, count, 5, 0, "cpu", shown=3)


def test_pairs_show_the_training_image_that_is_nearest():
    network = VariationalAutoencoder(1, (8, 8), [4], 3, norm="batch").eval()
    drawn = torch.cat(list(samples(network, []).images()))
    assert len(drawn) == 12
    dataset = [{"image": image} for image in torch.cat([torch.rand(20, 1, 8, 8) + 5, drawn[:1]])]
    features = torch.stack([item["image"] for item in dataset]).flatten(1).double().numpy()
    metrics, pairs = samples(network, dataset).judge(features, features[:20] + 1)
    torch.testing.assert_close(pairs.nearest[0], drawn[0])
    torch.testing.assert_close(pairs.samples[0], drawn[0])
    assert pairs.distances[0] < 1e-3
    assert len(pairs.samples) == 3
    assert set(metrics) == {"kid", "kid_reference", "frechet", "frechet_reference", "memorization"}
    assert metrics["kid"]["value"] > metrics["kid_reference"]["value"]
    # the bias of the Fréchet distance is that of its reference
    assert metrics["frechet"]["n_generated"] == metrics["frechet_reference"]["n_generated"] == 12


def test_too_few_subjects_leave_no_pairs():
    network = VariationalAutoencoder(1, (8, 8), [4], 3, norm="batch").eval()
    metrics, pairs = samples(network, []).judge(np.zeros((3, 64)), np.zeros((3, 64)))
    assert len(pairs.samples) == 0
    assert "3 " in metrics["kid"]["undefined"]


def test_the_images_asked_for_are_drawn_again_in_their_order():
    network = VariationalAutoencoder(1, (8, 8), [4], 3, norm="batch").eval()
    drawn = torch.cat(list(samples(network, []).images()))
    assert torch.equal(samples(network, []).pick([11, 0, 6]), drawn[[11, 0, 6]])
