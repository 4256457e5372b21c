"""Other SAE libraries beside ours: one class a library and architecture, each driving that library's own training step.

Nothing of a step is written here where the library has it: overcomplete's ``train_sae`` on a loader of one batch,
dictionary_learning's ``trainer.update``, SAELens' ``SAETrainer.step``. sparsify's trainer cannot be had without a
language model, so its ``SparseCoder`` is driven in the order of its ``Trainer.fit``. Options are a library's defaults,
but for the size, k and, where asked for, the learning rate and the weight of the sparsity penalty.

A library that is not installed, or does not import, is named by :func:`peer.missing`.
"""

# N vectors  D width  F features

from __future__ import annotations

import importlib
import tempfile
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from peer import Peer, missing, quiet
from torch import Tensor

# ---- overcomplete: a model, a loss function and a training loop; rate and loss of its README's example.


class Overcomplete(Peer):
    monitoring: ClassVar[int] = 0

    def build(self) -> None:
        self.sae = self.make(importlib.import_module("overcomplete.sae"), self.job.width, self.job.n_features)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=self.job.lr or 5e-4)

    @abstractmethod
    def make(self, library: Any, width: int, n_features: int) -> Any: ...

    def loss(self, x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
        return (x - x_hat).square().mean()

    def advance(self, x_bd: Tensor) -> None:
        train = importlib.import_module("overcomplete.sae.train").train_sae
        train(self.sae, [x_bd], self.loss, self.optimizer, nb_epochs=1, monitoring=self.monitoring)

    def dictionary(self) -> Tensor:
        return self.sae.eval().get_dictionary().detach()

    def encode(self, x_nd: Tensor) -> Tensor:
        return self.sae.eval().encode(x_nd)[1]

    def decode(self, codes_nf: Tensor) -> Tensor:
        return self.sae.eval().decode(codes_nf)


class OvercompleteRelu(Overcomplete):
    name = "overcomplete/relu"
    penalised = True

    def make(self, library: Any, width: int, n_features: int) -> Any:
        return library.SAE(width, n_features)

    def loss(self, x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
        # Its mse_l1 sums |codes| over the whole batch beside a mean of squares; mse_elastic takes means of both.
        losses = importlib.import_module("overcomplete.sae.losses")
        if self.job.sparsity is None:
            return losses.mse_elastic(x, x_hat, pre_codes, codes, dictionary)
        return losses.mse_l1(x, x_hat, pre_codes, codes, dictionary, penalty=self.job.sparsity / codes.numel())


class OvercompleteTopK(Overcomplete):
    name = "overcomplete/topk"

    def make(self, library: Any, width: int, n_features: int) -> Any:
        return library.TopKSAE(width, n_features, top_k=self.job.k)


class OvercompleteTopKUntied(OvercompleteTopK):
    """Its opt-in initialisation: the encoder starts at the dictionary."""

    name = "overcomplete/topk:untied"

    def make(self, library: Any, width: int, n_features: int) -> Any:
        return super().make(library, width, n_features).untied()


class OvercompleteTopKAux(OvercompleteTopK):
    name = "overcomplete/topk:aux"

    def loss(self, x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
        losses = importlib.import_module("overcomplete.sae.losses")
        return losses.top_k_auxiliary_loss(x, x_hat, pre_codes, codes, dictionary)


class OvercompleteTopKMonitored(OvercompleteTopK):
    """With the numbers that ``train_sae`` gathers by default."""

    name = "overcomplete/topk:monitored"
    monitoring = 1


class OvercompleteBatchTopK(Overcomplete):
    name = "overcomplete/batch_topk"

    def make(self, library: Any, width: int, n_features: int) -> Any:
        return library.BatchTopKSAE(width, n_features, top_k=self.job.k * self.job.batch_size)  # of a batch


# ---- dictionary_learning: a trainer an architecture.


class DictionaryLearning(Peer):
    trainer: ClassVar[str]
    module: ClassVar[str] = "dictionary_learning.trainers"
    penalty: ClassVar[str] = ""

    def build(self) -> None:
        job = self.job
        options = self.options(lr=job.lr, **({self.penalty: job.sparsity} if self.penalty else {}))
        self.training = getattr(importlib.import_module(self.module), self.trainer)(
            steps=job.n_steps,
            activation_dim=job.width,
            dict_size=job.n_features,
            layer=0,
            lm_name="none",
            device="cpu",
            seed=job.seed,
            **self.own(),
            **options,
        )
        self.sae = self.training.ae

    def own(self) -> dict[str, Any]:
        return {}

    def advance(self, x_bd: Tensor) -> None:
        self.training.update(self.n_done, x_bd)

    def dictionary(self) -> Tensor:
        return (self.sae.W_dec if hasattr(self.sae, "W_dec") else self.sae.decoder.weight.T).detach()

    def encode(self, x_nd: Tensor) -> Tensor:
        return self.sae.encode(x_nd)

    def decode(self, codes_nf: Tensor) -> Tensor:
        return self.sae.decode(codes_nf)


class DictionaryLearningRelu(DictionaryLearning):
    name, trainer, penalised, penalty = "dictionary_learning/relu", "StandardTrainer", True, "l1_penalty"


class DictionaryLearningTopK(DictionaryLearning):
    name, trainer = "dictionary_learning/topk", "TopKTrainer"

    def own(self) -> dict[str, Any]:
        return {"k": self.job.k}


class DictionaryLearningBatchTopK(DictionaryLearningTopK):
    name, trainer = "dictionary_learning/batch_topk", "BatchTopKTrainer"


class DictionaryLearningMatryoshka(DictionaryLearningTopK):
    name, trainer = "dictionary_learning/matryoshka", "MatryoshkaBatchTopKTrainer"
    module = "dictionary_learning.trainers.matryoshka_batch_top_k"

    def own(self) -> dict[str, Any]:
        return {"k": self.job.k, "group_fractions": [0.25, 0.25, 0.5]}


class DictionaryLearningJumpRelu(DictionaryLearning):
    """Its penalty pulls the number of active features to a target: our k."""

    name, trainer, penalised, penalty = "dictionary_learning/jump_relu", "JumpReluTrainer", True, "sparsity_penalty"

    def own(self) -> dict[str, Any]:
        return {"target_l0": float(self.job.k)}


class DictionaryLearningGated(DictionaryLearning):
    name, trainer, penalised, penalty = "dictionary_learning/gated", "GatedSAETrainer", True, "l1_penalty"


# ---- SAELens: a configuration an architecture, one trainer.


class SaeLens(Peer):
    architecture: ClassVar[str]  # as in its registry
    penalty: ClassVar[str] = ""

    def build(self) -> None:
        library = importlib.import_module("sae_lens")
        registry = importlib.import_module("sae_lens.registry")
        trainer = importlib.import_module("sae_lens.training.sae_trainer")
        settings = importlib.import_module("sae_lens.config").SAETrainerConfig
        job = self.job
        sae_class, config_class = registry.get_sae_training_class(self.architecture)
        options = self.options(**({self.penalty: job.sparsity} if self.penalty else {}))
        self.library = library
        self.sae = sae_class(config_class(d_in=job.width, d_sae=job.n_features, **self.own(), **options))
        config = settings(
            total_training_samples=job.n_steps * job.batch_size,
            train_batch_size_samples=job.batch_size,
            lr_end=3e-5,  # of no effect at its constant rate; its runner sets a tenth of lr
            **self.options(lr=job.lr),
        )
        self.training = trainer.SAETrainer(config, self.sae, data_provider=iter(()))
        self.inference: Any = None

    def own(self) -> dict[str, Any]:
        return {}

    def advance(self, x_bd: Tensor) -> None:
        self.training.step(x_bd)
        self.training.n_training_steps += 1
        self.inference = None

    def trained(self) -> Any:
        """What it saves for use: batch-wise TopK becomes a JumpReLU with the threshold it kept."""
        if self.inference is None:
            state = {name: tensor.clone() for name, tensor in self.sae.state_dict().items()}
            with tempfile.TemporaryDirectory() as folder, quiet():
                self.sae.save_inference_model(folder)
                self.inference = self.library.SAE.load_from_disk(folder)
            self.sae.load_state_dict(state)  # saving folds norms into the live weights
        return self.inference

    def dictionary(self) -> Tensor:
        return self.trained().W_dec.detach()

    def encode(self, x_nd: Tensor) -> Tensor:
        return self.trained().encode(x_nd)

    def decode(self, codes_nf: Tensor) -> Tensor:
        return self.trained().decode(codes_nf)


class SaeLensRelu(SaeLens):
    name, architecture, penalised, penalty = "sae_lens/relu", "standard", True, "l1_coefficient"


class SaeLensTopK(SaeLens):
    name, architecture = "sae_lens/topk", "topk"

    def own(self) -> dict[str, Any]:
        return {"k": self.job.k}


class SaeLensBatchTopK(SaeLensTopK):
    name, architecture = "sae_lens/batch_topk", "batchtopk"


class SaeLensMatryoshka(SaeLensTopK):
    name, architecture = "sae_lens/matryoshka", "matryoshka_batchtopk"

    def own(self) -> dict[str, Any]:
        return {"k": self.job.k, "matryoshka_widths": [self.job.n_features // 4, self.job.n_features // 2]}


class SaeLensJumpRelu(SaeLens):
    name, architecture, penalised, penalty = "sae_lens/jump_relu", "jumprelu", True, "l0_coefficient"


class SaeLensGated(SaeLens):
    name, architecture, penalised, penalty = "sae_lens/gated", "gated", True, "l1_coefficient"


# ---- sparsify: TopK, with sign descent (its default) or Adam.


class SparsifyTopK(Peer):
    name = "sparsify/topk"
    adam: ClassVar[bool] = False

    def build(self) -> None:
        library, job = importlib.import_module("sparsify"), self.job
        self.sae = library.SparseCoder(job.width, library.SparseCoderConfig(num_latents=job.n_features, k=job.k))
        lr = job.lr or (2e-4 if self.adam else 5e-3) / (job.n_features / 2**14) ** 0.5
        self.optimizer: Any
        self.scheduler: Any = None
        if self.adam:
            schedule = importlib.import_module("transformers").get_linear_schedule_with_warmup
            self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr)
            self.scheduler = schedule(self.optimizer, 1000, job.n_steps)
        else:
            signum = importlib.import_module("sparsify.sign_sgd").SignSGD(self.sae.parameters(), lr=lr)
            self.optimizer = importlib.import_module("schedulefree").ScheduleFreeWrapper(signum, momentum=0.95)
            self.optimizer.train()
        self.silent_f = torch.zeros(job.n_features, dtype=torch.long)

    def advance(self, x_bd: Tensor) -> None:
        if self.n_done == 0:
            self.sae.b_dec.data = x_bd.mean(0)
        self.sae.set_decoder_norm_to_unit_norm()
        variance = (x_bd - x_bd.mean(0)).pow(2).sum()
        fired_f = torch.zeros_like(self.silent_f, dtype=torch.bool)
        out = self.sae(x=x_bd, y=x_bd, dead_mask=None, total_variance=variance)
        fired_f[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        self.silent_f += len(x_bd)
        self.silent_f[fired_f] = 0

    def trained(self) -> Any:
        """Sign descent keeps the weights to use beside those it moves."""
        if not self.adam:
            self.optimizer.eval()
        return self.sae

    def step(self, x_bd: Tensor) -> None:
        if not self.adam:
            self.optimizer.train()
        super().step(x_bd)

    def dictionary(self) -> Tensor:
        return self.trained().W_dec.detach()

    def encode(self, x_nd: Tensor) -> Tensor:
        codes = self.trained().encode(x_nd)
        return torch.zeros(len(x_nd), self.job.n_features).scatter(1, codes.top_indices, codes.top_acts)

    def decode(self, codes_nf: Tensor) -> Tensor:
        sae = self.trained()
        return codes_nf @ sae.W_dec + sae.b_dec


class SparsifyTopKAdam(SparsifyTopK):
    name, adam = "sparsify/topk:adam", True


def _all(kind: type[Peer]) -> list[type[Peer]]:
    return [leaf for each in kind.__subclasses__() for leaf in (*([each] if "name" in vars(each) else []), *_all(each))]


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in _all(Peer)}


def usable() -> dict[str, type[Peer]]:
    """Peers whose library is here."""
    gone = missing()
    return {name: peer for name, peer in PEERS.items() if name.partition("/")[0] not in gone}
