from __future__ import annotations

import copy

import pytest
import torch

from scripts.engines import (
    CodeEvaluator,
    IntrospectiveTrainer,
    VAETrainer,
    autocast_options,
    frozen_twin,
    set_tf32,
)
from scripts.losses import IntrospectiveLoss, ReconstructionLoss, VAELoss, attribute_loss, kl_divergence
from scripts.networks import Blocks, VariationalAutoencoder

WEIGHTS = {"beta_rec": 0.8, "beta_kl": 1.5, "beta_neg": 8.0, "gamma": 0.3, "delta": 10}


def make_network(norm=("group", {"num_groups": 4})):
    torch.manual_seed(0)
    return VariationalAutoencoder(2, (16, 16), (4, 8), 6, norm).double()


def make_batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(5, 2, 16, 16, generator=generator, dtype=torch.float64),
        "attributes": torch.rand(5, 3, generator=generator, dtype=torch.float64),
    }


def make_trainer(network, loss, **kwargs):
    return IntrospectiveTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[make_batch()],
        network=network,
        optimizer=torch.optim.SGD(network.encoder.parameters(), 1e-3),
        decoder_optimizer=torch.optim.SGD(network.decoder.parameters(), 1e-3),
        loss_function=loss,
        decollate=False,
        **kwargs,
    )


def test_each_update_leaves_the_other_part_alone():
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    trainer = make_trainer(network, IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS))
    steps = []
    for optimizer in (trainer.optimizer, trainer.decoder_optimizer):
        step = optimizer.step
        optimizer.step = lambda step=step: steps.append(copy.deepcopy(network.state_dict())) or step()
    trainer.run()
    assert all(torch.equal(steps[0][name], before[name]) for name in before)
    assert all(torch.equal(steps[1][name], before[name]) for name in before if name.startswith("decoder"))
    assert any(not torch.equal(steps[1][name], before[name]) for name in before if name.startswith("encoder"))
    after = network.state_dict()
    assert all(torch.equal(steps[1][name], after[name]) for name in before if name.startswith("encoder"))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("decoder"))


def test_every_term_is_reported():
    trainer = make_trainer(make_network(), IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS))
    trainer.run()
    terms = trainer.state.output["terms"]
    assert set(terms) == {
        *("encoder_loss", "decoder_loss", "attribute_loss", "reconstruction_loss", "kl_real"),
        *("kl_reconstructed", "kl_generated", "log_exp_elbo_reconstructed", "log_exp_elbo_generated"),
    }
    assert not any(term.requires_grad for term in terms.values())


def test_attribute_loss_is_reported_without_its_weight():
    terms = {}
    for gamma in (0.3, 3.0):
        trainer = make_trainer(make_network(), IntrospectiveLoss(ReconstructionLoss(1), **(WEIGHTS | {"gamma": gamma})))
        torch.manual_seed(2)
        trainer.run()
        terms[gamma] = trainer.state.output["terms"]["attribute_loss"]
    assert terms[0.3] == pytest.approx(float(terms[3.0]))


def test_accumulation_is_refused_in_favor_of_micro_batches():
    with pytest.raises(ValueError, match="set --micro_batch_size"):
        make_vae_trainer(make_network(), accumulation_steps=2)


def test_a_batch_without_attributes_is_told():
    trainer = make_vae_trainer(make_network())
    with pytest.raises(ValueError, match="needs 'attributes' in each batch; set --gamma 0"):
        trainer._iteration(trainer, {"image": make_batch()["image"]})


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision '{precision}' is unknown; choose float32"):
        autocast_options(precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_is_what_it_says(precision):
    assert autocast_options(precision) == {"dtype": getattr(torch, precision)}


def test_tf32_is_one_switch():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    for allowed in (True, False):
        set_tf32(allowed)
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert (torch.get_float32_matmul_precision() == "high") == allowed
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def test_a_step_whose_gradient_overflows_is_left_out():
    network = make_network().float()
    trainer = make_vae_trainer(network, amp=True, amp_kwargs={"dtype": torch.float16})
    batch = {name: values.float() for name, values in make_batch().items()}
    before = copy.deepcopy(network.state_dict())
    trainer._iteration(trainer, batch | {"image": batch["image"] * 1e4})
    assert all(torch.equal(before[name], values) for name, values in network.state_dict().items())
    scale = trainer.loss_scaler.get_scale()
    assert scale < 2.0**16
    trainer._iteration(trainer, batch)
    assert any(not torch.equal(before[name], values) for name, values in network.state_dict().items())


def test_micro_batches_need_statistics_of_their_own():
    with pytest.raises(ValueError, match="need a network without batch normalization"):
        make_vae_trainer(make_network("batch"), micro_batch_size=2)
    for wrong in (0, 1.5, "abc"):
        with pytest.raises(ValueError, match=f"micro_batch_size is {wrong!r}; expected a whole number"):
            make_vae_trainer(make_network(), micro_batch_size=wrong)


def test_statistics_of_a_part_of_the_batch_are_refused_with_processes_too(monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="several processes need a network without batch normalization"):
        make_vae_trainer(make_network("batch"))


def test_a_step_forgets_the_gradients_of_the_one_before():
    trainer = make_introspective(make_network())
    for optimizer in (trainer.optimizer, trainer.decoder_optimizer):
        optimizer.param_groups[0]["lr"] = 0
    trainer.state.epoch = 1
    gradients = []
    for _ in range(2):
        torch.manual_seed(7)
        trainer._iteration(trainer, make_batch())
        gradients.append([parameter.grad.clone() for parameter in trainer.network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_warmup_ends_with_its_last_epoch():
    trainer = make_trainer(make_network(), IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS), warmup_epochs=0)
    trainer.warmup_epochs = 1
    for epoch, generates in ((1, False), (2, True)):
        trainer.state.epoch = epoch
        assert ("kl_generated" in trainer._iteration(trainer, make_batch())["terms"]) == generates


def test_the_evaluator_gives_full_precision_whatever_it_computes_in():
    network, seen = make_network().float(), []
    network.encoder[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    batch = {name: values.float() for name, values in make_batch().items()}
    evaluator = CodeEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=network,
        decollate=False,
        amp=True,
        amp_kwargs={"dtype": torch.bfloat16},
    )
    evaluator.run()
    assert seen == [torch.bfloat16]
    assert all(evaluator.state.output[key].dtype == torch.float32 for key in ("pred", "codes", "log_variances"))


def one_step(make, network, **kwargs):
    """Outcome and gradients of one step with noise that is always the same."""
    trainer = make(network, **kwargs)
    trainer.state.epoch = 1
    torch.manual_seed(7)
    dtype = next(network.parameters()).dtype
    output = trainer._iteration(trainer, {name: values.to(dtype) for name, values in make_batch().items()})
    return output, [parameter.grad for parameter in network.parameters()]


def numbers(output):
    """The terms of a step as numbers."""
    return {name: term.item() for name, term in output["terms"].items()}


def make_introspective(network, **kwargs):
    return make_trainer(network, IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS, eta=0.5), **kwargs)


@pytest.mark.parametrize("make", [make_introspective, lambda *args, **kwargs: make_vae_trainer(*args, **kwargs)])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_micro_batches_change_nothing_but_memory(make, size):
    output, gradients = one_step(make, make_network())
    other_output, other_gradients = one_step(make, make_network(), micro_batch_size=size)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert numbers(other_output) == pytest.approx(numbers(output), rel=1e-10)
    assert torch.allclose(output["pred"], other_output["pred"], atol=1e-12)
    assert torch.equal(output["image"], other_output["image"])


@pytest.mark.parametrize("architecture", ["residual", "bilinear", "plain"])
@pytest.mark.parametrize("norm", ["batch", ("group", {"num_groups": 4})])
@pytest.mark.parametrize("linear_size", [0, 4])
def test_checkpointing_changes_nothing_but_memory(linear_size, norm, architecture):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = VariationalAutoencoder(
            2, (16, 16), (4, 8), 6, norm, architecture, checkpointing, linear_size=linear_size
        ).double()
        passes = []
        first = next(part for part in network.encoder.modules() if isinstance(part, Blocks))[0]
        first.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        results.append((*one_step(make_introspective, network), len(passes)))
    (output, gradients, passes), (other_output, other_gradients, other_passes) = results
    assert other_passes > passes  # it does compute again
    for one, other in zip(gradients, other_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert numbers(other_output) == pytest.approx(numbers(output), rel=1e-10)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_what_is_frozen_does_not_learn_and_changes_no_gradient(micro_batch_size):
    results = []
    for frozen in (False, True):
        torch.manual_seed(0)
        network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, ("group", {"num_groups": 4}), linear_size=4).double()
        network.decoder[0].linear.requires_grad_(not frozen)
        one_step(make_introspective, network, micro_batch_size=micro_batch_size)
        results.append({name: weight.grad for name, weight in network.named_parameters()})
    learning, frozen = results
    none = {name for name, gradient in frozen.items() if gradient is None}
    assert none == {"decoder.0.linear.weight", "decoder.0.linear.bias"}
    assert all(torch.allclose(frozen[name], learning[name], atol=1e-12) for name in learning.keys() - none)


@pytest.mark.parametrize("norm", ["batch", ("group", {"num_groups": 4})])
def test_compiling_changes_nothing_but_speed(norm):
    torch.compiler.reset()
    output, gradients = one_step(make_introspective, make_network(norm))
    # The backend that differentiates as the default one does, but needs no compiler of C++.
    other_output, other_gradients = one_step(
        make_introspective, make_network(norm), compile=True, compile_kwargs={"backend": "aot_eager"}
    )
    for one, other in zip(gradients, other_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert numbers(other_output) == pytest.approx(numbers(output), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_keeps_sums_in_full_precision(dtype):
    output, gradients = one_step(make_introspective, make_network().float())
    network = make_network().float()
    seen = []
    network.decoder[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half, half_gradients = one_step(make_introspective, network, amp=True, amp_kwargs={"dtype": dtype})
    assert set(seen) == {dtype}
    assert all(term.dtype == torch.float32 for term in half["terms"].values())
    assert numbers(half) == pytest.approx(numbers(output), rel=0.05, abs=0.01)
    one, other = (torch.cat([gradient.flatten() for gradient in list_]) for list_ in (gradients, half_gradients))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99
    assert 0.9 < other.norm() / one.norm() < 1.1


def test_the_step_never_waits_for_the_device(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the host reads a value of the device within the step")

    trainer = make_introspective(make_network())
    trainer.state.epoch = 1
    batch = make_batch()
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    trainer._iteration(trainer, batch)


def test_a_frozen_twin_follows_without_learning():
    network = make_network("batch")
    twin = frozen_twin(network.encoder)
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter += 1
    network.encoder.train()(make_batch()["image"])
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    for mine, theirs in zip(twin.state_dict().values(), network.encoder.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_training_of_warmup_only_is_told():
    with pytest.warns(UserWarning, match="all 1 epochs are warm-up"):
        make_trainer(make_network(), IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS), warmup_epochs=1)


def test_postprocessing_sees_the_finished_output():
    seen = []
    loss = IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS)
    make_trainer(make_network(), loss, postprocessing=lambda item: seen.append(set(item)) or item).run()
    assert {"image", "pred", "loss", "terms"} <= seen[0]


def test_evaluator_encodes_the_mean_in_evaluation_mode():
    network, batch = make_network("batch"), make_batch()
    evaluator = CodeEvaluator(device=torch.device("cpu"), val_data_loader=[batch], network=network, decollate=False)
    evaluator.run()
    network.eval()
    assert torch.equal(evaluator.state.output["codes"], network.encode(batch["image"])[0])
    assert torch.equal(evaluator.state.output["pred"], network(batch["image"]))
    assert torch.equal(evaluator.state.output["attributes"], batch["attributes"])


def test_terms_are_what_their_names_say():
    network, batch = make_network(), make_batch()
    trainer = make_trainer(network, IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS))
    for optimizer in (trainer.optimizer, trainer.decoder_optimizer):
        optimizer.param_groups[0]["lr"] = 0
    trainer.state.epoch = 1
    torch.manual_seed(7)
    terms = trainer._iteration(trainer, batch)["terms"]
    torch.manual_seed(7)
    z_noise, prior, _, e = (torch.randn(5, 6, dtype=torch.float64) for _ in range(4))
    mean, log_variance = network.encode(batch["image"])
    error = (network.decode(mean + z_noise * (0.5 * log_variance).exp()) - batch["image"]).square().sum((1, 2, 3))
    assert terms["kl_real"] == pytest.approx(kl_divergence(mean, log_variance).mean().item())
    assert terms["reconstruction_loss"] == pytest.approx(error.mean().item() / 512)
    fake = network.decode(prior)
    mean, log_variance = network.encode(fake)
    error = (network.decode(mean + e * (0.5 * log_variance).exp()) - fake).square().sum((1, 2, 3))
    exponent = -2 / 512 * (0.8 * error + 8 * kl_divergence(mean, log_variance))
    assert terms["kl_generated"] == pytest.approx(kl_divergence(mean, log_variance).mean().item())
    assert terms["log_exp_elbo_generated"] == pytest.approx(exponent.exp().mean().log().item())


def test_training_is_in_training_mode():
    network = make_network("batch").eval()
    make_trainer(network, IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS)).run()
    assert network.training


def make_vae_trainer(network, batch=None, gamma=0.3, **kwargs):
    return VAETrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch or make_batch()],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=VAELoss(ReconstructionLoss(1), beta_kl=2, gamma=gamma, delta=10),
        decollate=False,
        **kwargs,
    )


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_a_vae_step_is_that_of_equation_3(architecture):
    torch.manual_seed(0)
    network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, "batch", architecture).double().eval()
    oracle, batch = copy.deepcopy(network).train(), make_batch()
    torch.manual_seed(7)
    make_vae_trainer(network, batch).run()
    torch.manual_seed(7)
    mean, log_variance = oracle.encode(batch["image"])
    z = mean + torch.randn(5, 6, dtype=torch.float64) * (0.5 * log_variance).exp()
    error = (oracle.decode(z) - batch["image"]).square().sum((1, 2, 3))
    loss = ((error + 2 * kl_divergence(mean, log_variance)) / 512).mean()
    (loss + 0.3 * attribute_loss(z, batch["attributes"], 10)).backward()
    assert network.training
    for parameter, expected in zip(network.parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(parameter, expected - 0.1 * expected.grad, atol=1e-10)


def test_terms_of_a_vae_add_up():
    seen = []
    trainer = make_vae_trainer(make_network(), postprocessing=lambda item: seen.append(set(item)) or item)
    trainer.run()
    terms = trainer.state.output["terms"]
    assert set(terms) == {"loss", "attribute_loss", "reconstruction_loss", "kl_real"}
    assert terms["attribute_loss"] > 0
    total = terms["reconstruction_loss"] + 2 / 512 * terms["kl_real"] + 0.3 * terms["attribute_loss"]
    assert terms["loss"] == trainer.state.output["loss"] == pytest.approx(total.item())
    assert not any(term.requires_grad for term in (*terms.values(), trainer.state.output["pred"]))
    assert {"image", "pred", "loss", "terms"} <= seen[0]


def test_a_beta_vae_needs_no_attributes():
    trainer = make_vae_trainer(make_network(), {"image": make_batch()["image"]}, gamma=0)
    trainer.run()
    assert trainer.state.output["terms"]["attribute_loss"] == 0


def test_a_batch_without_any_image_gives_nothing():
    evaluator = CodeEvaluator(device=torch.device("cpu"), val_data_loader=[{}], network=make_network())
    evaluator.run()
    assert evaluator.state.output == []
