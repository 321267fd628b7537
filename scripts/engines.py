"""Engines: the two ways of training encoder and decoder, and the evaluation of codes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from scripts.allocator import keep_freed_memory
from scripts.changes import ChangeLoss
from scripts.distributed import average_gradients, gather_rows, own_rows, share_weights
from scripts.losses import (
    Elbo,
    IntrospectiveLoss,
    RegularizedLoss,
    VAELoss,
    full_precision,
    kl_divergence,
    log_mean_exp,
)
from scripts.networks import VariationalAutoencoder, sample
from scripts.reading import HeartReader

ATTRIBUTES = "attributes"
CODES = "codes"
MOVES = "moves"
LOG_VARIANCES = "log_variances"
TERMS = "terms"


def prepare_batch(
    batchdata: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move image (B, C, H, W) and, where there are some, attributes (B, A) to the device."""
    image = batchdata[Keys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
    attributes = batchdata.get(ATTRIBUTES)
    return image, attributes if attributes is None else attributes.to(device=device, non_blocking=non_blocking)


def autocast_options(precision: str) -> dict[str, torch.dtype]:
    """Arguments of ``torch.autocast`` for a config's ``precision``.

    Raises:
        ValueError: for another precision than float32, bfloat16 and float16.
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision '{precision}' is unknown; choose float32, bfloat16 or float16.")
    return {"dtype": getattr(torch, precision)}


def images_at_a_time(micro_batch_size: int | None, batch_size: int) -> int:
    """How many images are computed on at once.

    Raises:
        ValueError: for a ``micro_batch_size`` that is no whole number of at least 1.
    """
    if micro_batch_size is None:
        return batch_size
    if type(micro_batch_size) is not int or micro_batch_size < 1:
        raise ValueError(f"micro_batch_size is {micro_batch_size!r}; expected a whole number of at least 1, or none.")
    return micro_batch_size


def set_tf32(allowed: bool) -> None:
    """Let NVIDIA GPUs round the factors of float32 products to ten bits, in convolutions and matrix products alike."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")


@dataclass
class Part:
    """A micro-batch, or the whole batch of this process where that is not split.

    Args:
        image: (b, C, H, W).
        noise: name to values (b, D) drawn from N(0, I).
        rows: which rows of the batch of all processes it is.
        share: its share of this process's batch.
    """

    image: torch.Tensor
    noise: Mapping[str, torch.Tensor]
    rows: slice
    share: float


@dataclass
class Batch:
    """A batch in its parts, and what pairs of all its images need.

    Args:
        parts: micro-batches.
        attributes: of the images of all processes, (processes * B, A).
        codes: of the same images, (processes * B, D), without gradient; None where each process has one part, whose
            codes are known as soon as they are needed.
        reading: error of the reader on this process's scans, without gradient; None where there is no reader.
    """

    parts: list[Part]
    attributes: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    reading: torch.Tensor | None = None


@dataclass
class Outcome:
    """What one part gave.

    Args:
        codes: drawn from q(z|x), (b, D).
        reconstruction: of the image, (b, C, H, W).
        real: of the image.
        attribute: attribute loss over the whole batch.
        fakes: generated images by name, (b, C, H, W).
        judged: name to what the encoder made of them.
        change: errors of moved codes (b,), without gradient; None while they have no weight.
    """

    codes: torch.Tensor
    reconstruction: torch.Tensor
    real: Elbo
    attribute: torch.Tensor
    fakes: dict[str, torch.Tensor] = field(default_factory=dict)
    judged: dict[str, Elbo] = field(default_factory=dict)
    change: torch.Tensor | None = None

    def detach(self) -> Outcome:
        """The same without what leads to gradients, but for that of generated images: these are made anew."""
        return Outcome(
            self.codes.detach(),
            self.reconstruction.detach(),
            self.real.detach(),
            self.attribute.detach(),
            judged={name: elbo.detach() for name, elbo in self.judged.items()},
            change=self.change,
        )


class AutoencoderTrainer(SupervisedTrainer):
    """What the trainers of both families share: how a batch comes in, is split, and how its outcome goes out.

    A batch may be split into micro-batches, and each process of a distributed training has one of its own. Losses and
    gradients are those of the whole batch of all processes: means are over it, and so are the pairs of the attribute
    loss.

    Args:
        loss_function: moved to the trainer's device.
        change_loss: what else the decoder has to learn, if anything.
        micro_batch_size: images to compute on at a time; None takes the whole batch. Fewer need less memory.
        amp: run the networks in half precision; losses, sums over pixels and divergences stay in full precision.
        amp_kwargs: of ``torch.autocast``, such as ``dtype``. With float16, gradients are scaled.
        compile: compile encoder and decoder with ``torch.compile``.
        compile_kwargs: of ``torch.compile``.
        kwargs: of ``SupervisedTrainer``; ``network`` is a ``VariationalAutoencoder``. The ``inferer`` is not used,
            since encoder and decoder run apart.

    Raises:
        ValueError: for ``accumulation_steps``, in place of which there is ``micro_batch_size``; for micro-batches or
            several processes and a network with batch normalization, which would see other statistics than the batch's;
            or for a ``change_loss`` without ``magnitude``.
    """

    network: VariationalAutoencoder
    noises: tuple[str, ...] = (CODES,)

    def __init__(
        self,
        *,
        loss_function: RegularizedLoss,
        change_loss: ChangeLoss | None = None,
        micro_batch_size: int | None = None,
        amp: bool = False,
        compile: bool = False,
        compile_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("accumulation_steps", 1) != 1:
            raise ValueError("accumulation_steps is not supported; to save memory, set --micro_batch_size.")
        kwargs.setdefault("prepare_batch", prepare_batch)
        super().__init__(loss_function=loss_function, **kwargs)
        self.batch_norm = any(isinstance(module, _BatchNorm) for module in self.network.modules())
        images_at_a_time(micro_batch_size, 1)  # checked before anything else is made of it
        if self.batch_norm and (micro_batch_size or idist.get_world_size() > 1):
            raise ValueError(
                "micro_batch_size and several processes need a network without batch normalization, whose statistics "
                "would be those of a part of the batch: choose another --norm, such as the default."
            )
        self.micro_batch_size = micro_batch_size
        if change_loss and not loss_function.magnitude:
            raise ValueError(
                "change_weight is not 0, so that magnitude_weight must not be 0 either: it gives dimensions the unit "
                "in which moved codes ask for volumes."
            )
        self.change_loss = change_loss
        device = self.state.device
        # Not `amp` and `scaler`: with these, the base class makes a scaler for CUDA, whatever device and precision are.
        self.half_precision = amp
        half = self.amp_kwargs.get("dtype", torch.get_autocast_dtype(device.type))
        self.loss_scaler = torch.amp.GradScaler(device.type, enabled=amp and half == torch.float16)
        loss_function.to(device)
        if change_loss:
            change_loss.to(device)
        self.reader = change_loss.reader if change_loss else None
        share_weights(self.network)
        if self.reader:
            share_weights(self.reader)
        if device.type == "cpu":
            keep_freed_memory()
        self.compiled = compile
        if compile:
            # All parts run the same code, each with and without gradients and for the last batch's size.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            for part in self._to_compile():
                part.compile(**(compile_kwargs or {}))

    def _to_compile(self) -> list[nn.Module]:
        """The modules that ``compile`` is for."""
        return [self.network.encoder, self.network.decoder]

    def draw_noise(self, count: int) -> dict[str, torch.Tensor]:
        """Draw all that is random in one step: name to (count, D) from N(0, I).

        Every process draws that of all from the same seed, and keeps its own rows: the same row of the whole batch gets
        the same noise, however many processes share it.
        """
        size = (count * idist.get_world_size(), self.network.latent_dim)
        dtype = full_precision(next(self.network.parameters())).dtype
        names = (*self.noises, MOVES) if self.change_loss else self.noises
        return {name: torch.randn(size, dtype=dtype, device=self.state.device)[own_rows(count)] for name in names}

    def _prepare(self, batchdata: Mapping[str, Any]) -> Batch:
        """The batch in its parts on the device, with the network in training mode."""
        self.network.train()
        image, attributes = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        count, first = len(image), own_rows(len(image)).start
        noise, size = self.draw_noise(count), self.micro_batch_size or count
        batch = Batch([])
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            own = {name: values[rows] for name, values in noise.items()}
            share = (rows.stop - rows.start) / count
            batch.parts.append(Part(image[rows], own, slice(first + rows.start, first + rows.stop), share))
        if self.loss_function.gamma:
            if attributes is None:
                raise ValueError("the attribute loss needs 'attributes' in each batch; set --gamma 0 to train without.")
            batch.attributes = gather_rows(attributes)
            if len(batch.parts) > 1:
                with torch.no_grad():
                    batch.codes = gather_rows(torch.cat([self._encode(part)[0] for part in batch.parts]))
        if self.reader:
            self._teach(self.reader, batch)
        return batch

    @staticmethod
    def _teach(reader: HeartReader, batch: Batch) -> None:
        """One step of the reader, on the scans of the batch."""
        reader.optimizer.zero_grad(set_to_none=True)
        blur = reader.draw_blur(batch.parts[0].image.device)
        batch.reading = torch.zeros((), device=batch.parts[0].image.device)
        for part in batch.parts:
            error = reader.scan_error(part.image, blur).mean() * part.share
            error.backward()
            batch.reading = batch.reading + error.detach()
        average_gradients(reader.parameters())
        reader.optimizer.step()

    def _scale(self, batch: Batch) -> float:
        """s = 1/N, with the N values of an image."""
        return 1 / self.loss_function.reconstruction.image_values(batch.parts[0].image)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, enabled=self.half_precision, **self.amp_kwargs)

    def _encode(self, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (b, D) drawn from q(z|x) for the images of a part, and their divergence (b,)."""
        with self._autocast():
            mean, log_variance = self.network.encode(part.image)
        return sample(mean, log_variance, part.noise[CODES]), kl_divergence(mean, log_variance)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self.network.decode(codes)

    def _reconstruct(self, part: Part, batch: Batch) -> Outcome:
        """Reconstruct from sampled codes."""
        codes, kl = self._encode(part)
        reconstruction = self._decode(codes)
        with self._autocast():
            error = self.loss_function.reconstruction(reconstruction, part.image)
        return Outcome(codes, reconstruction, Elbo(error, kl), self._attribute(codes, part, batch))

    def _change(self, codes: torch.Tensor, part: Part) -> torch.Tensor | None:
        """Add the gradient of ``change_loss`` to the decoder; gives its errors (b,), or None while it has no weight."""
        weight = self.change_loss.weight_at(self.state.epoch) if self.change_loss else 0
        if not weight:
            return None
        errors = self.change_loss(self._decode, codes, part.noise[MOVES])
        self._backward(weight * errors.mean(), part, inputs=self._decoder_weights())
        return errors.detach()

    def _decoder_weights(self) -> list[nn.Parameter]:
        """What of the decoder learns."""
        return [weight for weight in self.network.decoder.parameters() if weight.requires_grad]

    def _attribute(self, codes: torch.Tensor, part: Part, batch: Batch) -> torch.Tensor:
        """L_attr over all pairs of the whole batch, with a gradient to the codes of this part."""
        if not self.loss_function.gamma:
            return codes.new_zeros(())
        everyone = gather_rows(codes) if batch.codes is None else batch.codes
        codes = torch.cat([everyone[: part.rows.start], codes, everyone[part.rows.stop :]])
        return self.loss_function.attribute(codes, batch.attributes)

    @staticmethod
    def _sum_of_parts(attribute: torch.Tensor, part: Part) -> torch.Tensor:
        """The attribute loss as it enters the mean over parts and processes.

        Each of them has the gradient of its own codes only, and these are to be summed: sum = processes / share * mean.
        """
        return attribute * (idist.get_world_size() / part.share)

    def _backward(self, loss: torch.Tensor, part: Part, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss * part.share).backward(**kwargs)

    def _step(self, optimizer: Optimizer) -> None:
        average_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
        self.loss_scaler.step(optimizer)

    def _finish(self, batch: Batch, outcomes: Sequence[Outcome], terms: Mapping[str, torch.Tensor]) -> dict:
        """Put everything into ``state.output``, and tell the handlers. The first term is the loss."""
        self.loss_scaler.update()
        if batch.reading is not None:
            terms = {**terms, "reading_loss": gather_rows(batch.reading[None]).mean()}
        if outcomes[0].change is not None:
            changes = torch.cat([outcome.change for outcome in outcomes])
            terms = {**terms, "change_loss": gather_rows(changes[:, None]).mean()}
        self.state.output = {
            Keys.IMAGE: torch.cat([part.image for part in batch.parts]),
            Keys.PRED: torch.cat([outcome.reconstruction.detach() for outcome in outcomes]),
            Keys.LOSS: next(iter(terms.values())),
            TERMS: terms,
        }
        for event in (IterationEvents.LOSS_COMPLETED, IterationEvents.MODEL_COMPLETED):
            self.fire_event(event)
        return self.state.output


def whole(elbos: Sequence[Elbo]) -> Elbo:
    """The evidence lower bounds of all parts of all processes, without gradient."""
    both = torch.stack([torch.cat(values) for values in zip(*elbos, strict=True)], dim=1)
    return Elbo(*gather_rows(both).unbind(1))


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
        batch = engine._prepare(batchdata)
        loss, scale = engine.loss_function, engine._scale(batch)

        engine.optimizer.zero_grad(set_to_none=True)
        outcomes = []
        for part in batch.parts:
            outcome = engine._reconstruct(part, batch)
            engine._backward(loss(engine._sum_of_parts(outcome.attribute, part), outcome.real, scale), part)
            outcome.change = engine._change(outcome.codes, part)
            outcomes.append(outcome.detach())
        engine._step(engine.optimizer)

        real, attribute = whole([outcome.real for outcome in outcomes]), outcomes[0].attribute
        terms = {
            "loss": loss(attribute, real, scale),
            "attribute_loss": attribute,
            "reconstruction_loss": scale * real.error.mean(),
            "kl_real": real.kl.mean(),
        }
        return engine._finish(batch, outcomes, terms)


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
        self,
        *,
        decoder_optimizer: Optimizer,
        loss_function: IntrospectiveLoss,
        network: VariationalAutoencoder,
        warmup_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        self.frozen_encoder, self.frozen_decoder = frozen_twin(network.encoder), frozen_twin(network.decoder)
        super().__init__(loss_function=loss_function, network=network, **kwargs)
        again = ("reconstructed_again", "generated_again") if loss_function.eta else ()
        self.noises = (CODES, "prior", "reconstructed", "generated", *again)
        self.decoder_optimizer = decoder_optimizer
        self.warmup_epochs = warmup_epochs
        if warmup_epochs >= self.state.max_epochs:
            warnings.warn(
                f"all {self.state.max_epochs} epochs are warm-up ({warmup_epochs}), without generated images: lower "
                "--warmup_epochs or raise --max_epochs for an introspective training.",
                stacklevel=2,
            )

    def _to_compile(self) -> list[nn.Module]:
        return [*super()._to_compile(), self.frozen_encoder, self.frozen_decoder]

    def _iteration(self, engine: IntrospectiveTrainer, batchdata: dict[str, torch.Tensor]) -> dict:
        batch = engine._prepare(batchdata)
        loss, scale = engine.loss_function, engine._scale(batch)

        # Gradients of the encoder pass: all of Eq. 6 to the encoder, the first term of Eq. 7 to the decoder. Those of
        # the decoder pass: the rest of Eq. 7 to the decoder.
        engine.optimizer.zero_grad(set_to_none=True)
        engine.decoder_optimizer.zero_grad(set_to_none=True)
        outcomes = [engine._encoder_pass(part, batch, scale) for part in batch.parts]
        engine._step(engine.optimizer)
        rejudged = [
            engine._decoder_pass(part, result, scale) for part, result in zip(batch.parts, outcomes, strict=True)
        ]
        engine._step(engine.decoder_optimizer)

        real, attribute = whole([outcome.real for outcome in outcomes]), outcomes[0].attribute
        judged = {name: whole([outcome.judged[name] for outcome in outcomes]) for name in outcomes[0].judged}
        again = [whole([elbos[name] for elbos in rejudged]) for name in judged]
        terms = {
            "encoder_loss": loss.encoder(attribute, real, judged.values(), scale),
            "decoder_loss": loss.decoder(real, again, scale),
            "attribute_loss": attribute,
            "reconstruction_loss": scale * real.error.mean(),
            "kl_real": real.kl.mean(),
            **{f"kl_{name}": elbo.kl.mean() for name, elbo in judged.items()},
            **{f"log_exp_elbo_{name}": log_mean_exp(loss.log_exp_elbo(elbo, scale)) for name, elbo in judged.items()},
        }
        return engine._finish(batch, outcomes, terms)

    def _encoder_pass(self, part: Part, batch: Batch, scale: float) -> Outcome:
        """Add one part's gradient of Eq. 6 to the encoder, and that of the same error of real images to the decoder.

        Eq. 7 has s * beta_rec * L_r(x, D(z)) as Eq. 6 has it, so that one way back serves both. Nothing else of Eq. 6
        leads to the decoder: it is frozen where generated images are judged.
        """
        outcome = self._reconstruct(part, batch)
        if self.state.epoch > self.warmup_epochs:
            outcome.fakes = {"reconstructed": outcome.reconstruction, "generated": self._decode(part.noise["prior"])}
            detached = {name: fake.detach() for name, fake in outcome.fakes.items()}
            outcome.judged = self._judge(detached, part)
        attribute = self._sum_of_parts(outcome.attribute, part)
        loss = self.loss_function.encoder(attribute, outcome.real, outcome.judged.values(), scale)
        # The decoder pass needs the graph again, unless there would be many, or compiled code has given up its memory.
        reuse = len(batch.parts) == 1 and bool(outcome.fakes) and not self.compiled
        self._backward(loss, part, retain_graph=reuse)
        outcome.change = self._change(outcome.codes, part)
        fakes = outcome.fakes if reuse else {}
        outcome = outcome.detach()
        outcome.fakes = fakes
        return outcome

    def _decoder_pass(self, part: Part, outcome: Outcome, scale: float) -> dict[str, Elbo]:
        """Add one part's gradient of Eq. 7 to the decoder: that of the generated images, since the rest is there."""
        if not outcome.judged:
            return {}
        fakes = outcome.fakes
        if not fakes:  # given up with their graph
            fakes = {"reconstructed": self._decode(outcome.codes), "generated": self._decode(part.noise["prior"])}
        judged = self._judge(fakes, part, for_decoder=True)
        # The error of real images has no gradient any more: the encoder pass has given it to the decoder.
        loss = self.loss_function.decoder(outcome.real, judged.values(), scale)
        # The graph of the reconstruction leads on to the encoder, which is not to learn here.
        self._backward(loss, part, inputs=self._decoder_weights())
        return {name: elbo.detach() for name, elbo in judged.items()}

    def _judge(self, fakes: Mapping[str, torch.Tensor], part: Part, for_decoder: bool = False) -> dict[str, Elbo]:
        """What the encoder makes of generated images: their divergence and, where it has a weight, their error.

        Eq. 7 takes image and code as given in the error, and only the divergence leads back to the image.
        """
        loss, network = self.loss_function, self.network
        encoder, decoder = (
            (self.frozen_encoder, network.decoder) if for_decoder else (network.encoder, self.frozen_decoder)
        )
        # Batch normalization takes the statistics of each kind of images apart.
        groups = [[name] for name in fakes] if self.batch_norm else [list(fakes)]
        judged = {}
        for names in groups:
            images = torch.cat([fakes[name] for name in names])
            with self._autocast():
                mean, log_variance = encoder(images).chunk(2, dim=1)
            kl = kl_divergence(mean, log_variance)
            error = torch.zeros_like(kl)
            if loss.beta_rec and (loss.eta or not for_decoder):
                noise = torch.cat([part.noise[f"{name}_again" if for_decoder else name] for name in names])
                codes = sample(mean, log_variance, noise)
                if for_decoder:
                    images, codes = images.detach(), codes.detach()
                with self._autocast():
                    error = loss.generated_error(decoder(codes), images)
            for name, *elbo in zip(names, error.chunk(len(names)), kl.chunk(len(names)), strict=True):
                judged[name] = Elbo(*elbo)
        return judged


def frozen_twin(part: nn.Module) -> nn.Module:
    """The same network, whose weights and statistics share their memory with it and never get a gradient.

    The network must stay where it is: moved to another device or type, it would leave its twin behind.
    """
    twin = copy.deepcopy(part).requires_grad_(False).train()
    shared = zip([*twin.parameters(), *twin.buffers()], [*part.parameters(), *part.buffers()], strict=True)
    for mine, theirs in shared:
        mine.data = theirs.data
    return twin


class CodeEvaluator(SupervisedEvaluator):
    """Encode images to their mean codes and reconstruct them from these.

    ``engine.state.output`` holds the ``image``, the ``pred`` (reconstruction), the ``codes`` and ``log_variances``
    (B, D) of q(z|x) and, where the batch has them, the ``attributes`` (B, A). Of a batch without an image, of which no
    subject could be loaded, it is empty.

    Args:
        kwargs: of ``SupervisedEvaluator``; ``network`` is a ``VariationalAutoencoder``. The ``inferer`` is not used,
            since encoder and decoder run apart. With ``amp`` the networks run in half precision.
    """

    network: VariationalAutoencoder

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", prepare_batch)
        super().__init__(**kwargs)

    def _iteration(self, engine: CodeEvaluator, batchdata: dict[str, torch.Tensor]) -> dict | list:
        if Keys.IMAGE not in batchdata:
            engine.state.batch = engine.state.output = []
            return engine.state.output
        image, attributes = engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        with (
            engine.mode(engine.network),
            torch.autocast(engine.state.device.type, enabled=engine.amp, **engine.amp_kwargs),
        ):
            codes, log_variances = map(full_precision, engine.network.encode(image))
            reconstruction = full_precision(engine.network.decode(codes))
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
