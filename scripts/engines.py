"""Engines: the two ways of training encoder and decoder, and the evaluation of codes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch.optim import Optimizer

from scripts.losses import Elbo, IntrospectiveLoss, RegularizedLoss, VAELoss, kl_divergence, log_mean_exp
from scripts.networks import VariationalAutoencoder, sample

ATTRIBUTES = "attributes"
CODES = "codes"
LOG_VARIANCES = "log_variances"
TERMS = "terms"


def prepare_batch(
    batchdata: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move image (B, C, H, W) and, where there are some, attributes (B, A) to the device."""
    image = batchdata[Keys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
    attributes = batchdata.get(ATTRIBUTES)
    return image, attributes if attributes is None else attributes.to(device=device, non_blocking=non_blocking)


class AutoencoderTrainer(SupervisedTrainer):
    """What the trainers of both families share: how a batch comes in, and how its outcome goes out.

    Args:
        loss_function: moved to the trainer's device.
        kwargs: of ``SupervisedTrainer``; ``network`` is a ``VariationalAutoencoder``. The ``inferer`` is not used,
            since encoder and decoder run apart.

    Raises:
        ValueError: for ``amp`` or ``accumulation_steps``, which these engines do not support yet.
    """

    network: VariationalAutoencoder

    def __init__(self, *, loss_function: RegularizedLoss, **kwargs: Any) -> None:
        for option, neutral in (("amp", False), ("accumulation_steps", 1)):
            if kwargs.get(option, neutral) != neutral:
                name = type(self).__name__
                raise ValueError(f"{option} is not supported by {name}; remove train#trainer#{option}.")
        kwargs.setdefault("prepare_batch", prepare_batch)
        super().__init__(loss_function=loss_function, **kwargs)
        loss_function.to(self.state.device)

    def _prepare(self, batchdata: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image (B, C, H, W) and attributes (B, A) on the device, with the network in training mode."""
        self.network.train()
        return self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)

    def _reconstruct(
        self, image: torch.Tensor, attributes: torch.Tensor | None
    ) -> tuple[torch.Tensor, Elbo, torch.Tensor]:
        """The reconstruction from sampled codes, the two parts of its evidence lower bound, and the attribute loss."""
        mean, log_variance = self.network.encode(image)
        codes = sample(mean, log_variance)
        reconstruction = self.network.decode(codes)
        real = Elbo(self.loss_function.reconstruction(reconstruction, image), kl_divergence(mean, log_variance))
        return reconstruction, real, self.loss_function.attribute(codes, attributes)

    def _finish(self, image: torch.Tensor, reconstruction: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> dict:
        """Put everything into ``state.output``, detached, and tell the handlers. The first term is the loss."""
        terms = {name: term.detach() for name, term in terms.items()}
        loss = next(iter(terms.values()))
        self.state.output = {Keys.IMAGE: image, Keys.PRED: reconstruction.detach(), Keys.LOSS: loss, TERMS: terms}
        for event in (IterationEvents.LOSS_COMPLETED, IterationEvents.MODEL_COMPLETED):
            self.fire_event(event)
        return self.state.output


class VAETrainer(AutoencoderTrainer):
    """Train encoder and decoder together as a variational autoencoder (beta-VAE), or with attributes (Attri-VAE).

    Each iteration is one step of one optimizer over the whole network by Eq. 3. ``engine.state.output`` holds the
    loss and every term of the equation, detached.

    Args:
        loss_function: a ``VAELoss``.
        kwargs: of ``AutoencoderTrainer``; ``optimizer`` is that of all the network's weights.
    """

    loss_function: VAELoss

    def _iteration(self, engine: VAETrainer, batchdata: dict[str, torch.Tensor]) -> dict:
        image, attributes = engine._prepare(batchdata)
        loss, scale = engine.loss_function, 1 / image[0].numel()

        reconstruction, real, attribute = engine._reconstruct(image, attributes)
        total = loss(attribute, real, scale)

        engine.optimizer.zero_grad(set_to_none=True)
        total.backward()
        engine.optimizer.step()

        terms = {
            "loss": total,
            "attribute_loss": attribute,
            "reconstruction_loss": scale * real.error.mean(),
            "kl_real": real.kl.mean(),
        }
        return engine._finish(image, reconstruction, terms)


class IntrospectiveTrainer(AutoencoderTrainer):
    """Train encoder and decoder against each other (Soft-IntroVAE), with regularized attributes (AR-SIVAE).

    Each iteration first updates the encoder by Eq. 6 with the decoder as it is, then the decoder by Eq. 7, in which the
    updated encoder judges generated images. Real images are reconstructed from the codes that they had before, as in
    the public code of Soft-IntroVAE, so that one pass serves both updates. ``engine.state.output`` holds the two losses
    and every term of the equations, detached.

    Args:
        decoder_optimizer: of the decoder; ``optimizer`` is the encoder's.
        loss_function: an ``IntrospectiveLoss``.
        warmup_epochs: first epochs that leave out the generated images, since a decoder that has learned nothing yet
            gives the encoder nothing to tell apart. Such an epoch takes about a quarter of the time.
        kwargs: of ``AutoencoderTrainer``.
    """

    loss_function: IntrospectiveLoss

    def __init__(
        self, *, decoder_optimizer: Optimizer, loss_function: IntrospectiveLoss, warmup_epochs: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(loss_function=loss_function, **kwargs)
        self.decoder_optimizer = decoder_optimizer
        self.warmup_epochs = warmup_epochs
        if warmup_epochs >= self.state.max_epochs:
            warnings.warn(
                f"all {self.state.max_epochs} epochs are warm-up ({warmup_epochs}), without generated images: lower "
                "--warmup_epochs or raise --max_epochs for an introspective training.",
                stacklevel=2,
            )

    def _iteration(self, engine: IntrospectiveTrainer, batchdata: dict[str, torch.Tensor]) -> dict:
        image, attributes = engine._prepare(batchdata)
        network, loss, scale = engine.network, engine.loss_function, 1 / image[0].numel()

        reconstruction, real, attribute = engine._reconstruct(image, attributes)
        fakes = {} if engine.state.epoch <= engine.warmup_epochs else {"reconstructed": reconstruction}
        if fakes:
            noise = torch.randn(len(image), network.latent_dim, dtype=image.dtype, device=image.device)
            fakes["generated"] = network.decode(noise)

        judged = {name: engine._judge(fake.detach(), bool(loss.beta_rec)) for name, fake in fakes.items()}
        encoder_loss = loss.encoder(attribute, real, judged.values(), scale)
        # The graph of the reconstruction serves the decoder too: its weights do not change in this update.
        engine._update(engine.optimizer, encoder_loss, network.encoder, retain_graph=True)

        rejudged = [engine._judge(fake, bool(loss.eta), for_decoder=True) for fake in fakes.values()]
        decoder_loss = loss.decoder(real, rejudged, scale)
        engine._update(engine.decoder_optimizer, decoder_loss, network.decoder)

        terms = {
            "encoder_loss": encoder_loss,
            "decoder_loss": decoder_loss,
            "attribute_loss": attribute,
            "reconstruction_loss": scale * real.error.mean(),
            "kl_real": real.kl.mean(),
            **{f"kl_{name}": elbo.kl.mean() for name, elbo in judged.items()},
            **{f"log_exp_elbo_{name}": log_mean_exp(loss.log_exp_elbo(elbo, scale)) for name, elbo in judged.items()},
        }
        return engine._finish(image, reconstruction, terms)

    def _judge(self, fake: torch.Tensor, with_error: bool, for_decoder: bool = False) -> Elbo:
        """What the encoder makes of a generated image: its divergence and, if asked for, its reconstruction error.

        Eq. 7 takes the image and its code as given in the error, and only the divergence leads back to the image.
        """
        mean, log_variance = self.network.encode(fake)
        kl = kl_divergence(mean, log_variance)
        if not with_error:
            return Elbo(torch.zeros_like(kl), kl)
        codes = sample(mean, log_variance)
        if for_decoder:
            fake, codes = fake.detach(), codes.detach()
        return Elbo(self.loss_function.reconstruction(self.network.decode(codes), fake), kl)

    @staticmethod
    def _update(optimizer: Optimizer, loss: torch.Tensor, part: torch.nn.Module, retain_graph: bool = False) -> None:
        """One step of ``part`` alone: no gradient is computed for the other part's weights."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=list(part.parameters()), retain_graph=retain_graph)
        optimizer.step()


class CodeEvaluator(SupervisedEvaluator):
    """Encode images to their mean codes and reconstruct them from these.

    ``engine.state.output`` holds the ``image``, the ``pred`` (reconstruction), the ``codes`` and ``log_variances``
    (B, D) of q(z|x) and, where the batch has them, the ``attributes`` (B, A). Of a batch without an image, of which no
    subject could be loaded, it is empty.

    Args:
        kwargs: of ``SupervisedEvaluator``; ``network`` is a ``VariationalAutoencoder``. The ``inferer`` is not used,
            since encoder and decoder run apart.

    Raises:
        ValueError: for ``amp``, which this engine does not support yet.
    """

    network: VariationalAutoencoder

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("amp"):
            raise ValueError("amp is not supported by CodeEvaluator; remove it from the evaluator.")
        kwargs.setdefault("prepare_batch", prepare_batch)
        super().__init__(**kwargs)

    def _iteration(self, engine: CodeEvaluator, batchdata: dict[str, torch.Tensor]) -> dict | list:
        if Keys.IMAGE not in batchdata:
            engine.state.batch = engine.state.output = []
            return engine.state.output
        image, attributes = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        with engine.mode(engine.network):
            codes, log_variances = engine.network.encode(image)
            reconstruction = engine.network.decode(codes)
        engine.state.output = {
            Keys.IMAGE: image,
            Keys.PRED: reconstruction,
            CODES: codes,
            LOG_VARIANCES: log_variances,
        }
        if attributes is not None:
            engine.state.output[ATTRIBUTES] = attributes
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
