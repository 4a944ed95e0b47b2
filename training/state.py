"""Everything that training changes: networks, optimisers, ADA, averages, counters and random states, as one object to step, save and restore."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from dnnlib import EasyDict, UserError
from pairing.adaptive import PairingController, PairingWarmUp
from pairing.network import PairingNetwork
from pairing.term import PairingTerm
from torch_utils.checkpoint import NetworkRecord
from torch_utils.distributed import gather_objects, mean_over_ranks_, rank, sum_over_ranks_, world_size
from torch_utils.pixels import from_uint8
from training.ada import ADA_KIMG, AdaController
from training.augment import AugmentPipe
from training.data_loader import LabelTable
from training.dataset import ImageFolderDataset
from training.ema import ema_beta, update_ema
from training.graphs import CudaRecorder, PhaseGraphs
from training.loss import StyleGAN2Loss
from training.networks import Discriminator, Generator, network_record
from training.phases import Batch, Phase, build_phases, report_times, run_phase, timed

CONTROL_INTERVAL = 4  # batches between two steps of the controllers
COUNTERS = ("cur_nimg", "batch_idx", "cur_tick", "nonfinite", "bad_streak", "told_nonfinite", "snapshot_nimg")


def without_class(kwargs: dict) -> dict:
    """Constructor arguments without the class name that the configuration file carries."""
    return {key: value for key, value in kwargs.items() if key != "class_name"}


def build_networks(args: EasyDict, dataset: ImageFolderDataset) -> dict[str, nn.Module]:
    """G, D and, with a pairing weight, P, initialised by the seed alone: the same on all ranks, and G and D the same with or without P."""
    torch.manual_seed(args.random_seed)
    common = dict(c_dim=dataset.label_dim, img_resolution=dataset.resolution, img_channels=dataset.num_channels)
    networks: dict[str, nn.Module] = {
        "G": Generator(**without_class(args.G_kwargs), **common),
        "D": Discriminator(**without_class(args.D_kwargs), **common),
    }
    if "P_kwargs" in args:
        latent = args.G_kwargs.w_dim if args.loss_kwargs.pairing_space == "w" else args.G_kwargs.z_dim
        features = dict(feature_channels=networks["D"].feature_channels) if args.loss_kwargs.get("pairing_features") else {}
        networks["P"] = PairingNetwork(latent, dataset.resolution, dataset.num_channels, **without_class(args.P_kwargs), **features)
    return networks


class TrainingState:
    """The networks of a run and all that moves them.

    Args:
        args: configuration as made by `training.config.resolve`.
        dataset: the training set, for its sizes and labels.
        device: of this rank.
    """

    def __init__(self, args: EasyDict, dataset: ImageFolderDataset, device: torch.device):
        self.args, self.device = args, device
        networks = {name: module.train().requires_grad_(False).to(device) for name, module in build_networks(args, dataset).items()}
        self.G, self.D, self.P = networks["G"], networks["D"], networks.get("P")
        self.G_ema = copy.deepcopy(self.G).eval()
        self.augment_pipe = None
        if "augment_kwargs" in args:
            self.augment_pipe = AugmentPipe(**without_class(args.augment_kwargs)).to(device)
            self.augment_pipe.p.fill_(args.get("augment_p", 0.0))
        self.ada = None
        if "ada_target" in args:
            self.ada = AdaController(self.augment_pipe.p, args.ada_target, CONTROL_INTERVAL, args.get("ada_kimg", ADA_KIMG))
        self.loss = self._build_loss()
        self.pairing_control = None
        if "pairing_target" in args:
            self.pairing_control = PairingController(self.loss.pairing.weight, args.pairing_target, CONTROL_INTERVAL)
            self.loss.pairing.on_accuracy = self.pairing_control.record
        elif "pairing_warmup" in args:
            self.pairing_control = PairingWarmUp(self.loss.pairing.weight, args.pairing_warmup)
        optimizers, as_graphs = (args.G_opt_kwargs, args.D_opt_kwargs, args.get("P_opt_kwargs")), args.get("graphs") == "on"
        self.phases: list[Phase] = build_phases(self.G, self.D, self.P, *optimizers, self.loss, device, capturable=as_graphs)
        self.graphs = PhaseGraphs(CudaRecorder(device), [phase.name for phase in self.phases]) if as_graphs else None
        self.labels = LabelTable(dataset, device)
        self.cur_nimg = self.batch_idx = self.cur_tick = 0
        # Gradient values that were not finite so far, and on how many steps up to the last one there were some.
        self.nonfinite = torch.zeros([], dtype=torch.int64, device=device)
        self.bad_streak = torch.zeros([], dtype=torch.int64, device=device)
        self.told_nonfinite = 0  # of nonfinite, at the end of the last tick
        self.snapshot_nimg = -1  # cur_nimg of the last snapshot; -1: there is none
        self._pending_times: list = []
        # From here on every rank draws its own latents, noise and augmentations.
        torch.manual_seed(args.random_seed * world_size() + rank())

    def _build_loss(self) -> StyleGAN2Loss:
        G_mapping, G_synthesis, D = self.G.mapping, self.G.synthesis, self.D
        compiled = None
        if self.args.get("compile"):
            # Double backward does not compose with torch.compile, so the regularisation phases run the plain modules.
            compiled = torch.compile(G_mapping), torch.compile(G_synthesis), torch.compile(D)
        kwargs = without_class(self.args.loss_kwargs)
        pairing_kwargs = {name.removeprefix("pairing_"): kwargs.pop(name) for name in list(kwargs) if name.startswith("pairing_")}
        return StyleGAN2Loss(
            self.device,
            G_mapping,
            G_synthesis,
            D,
            augment_pipe=self.augment_pipe,
            pairing=None if self.P is None else PairingTerm(self.P, **pairing_kwargs),
            on_real_logits=None if self.ada is None else self.ada.record,
            compiled=compiled,
            **kwargs,
        )

    # One step.

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and labels for `count` images to generate; labels as frequent as in the data set."""
        z = torch.randn([count, self.G.z_dim], device=self.device)
        if self.G.c_dim == 0:
            return z, z.new_zeros([count, 0])
        return z, self.labels[torch.randint(len(self.labels), [count], device=self.device)]

    def run_phase(self, phase: Phase, batch: Batch) -> None:
        """One run of a phase on (real images [N, C, H, W], their labels, latents, labels of generated images), as a CUDA graph if asked for."""

        def body(*inputs: torch.Tensor) -> None:
            self.nonfinite.add_(run_phase(phase, self.loss, inputs, self.args.batch_gpu))

        if self.graphs is None:
            body(*batch)
        else:
            self.graphs.run(phase.name, body, batch)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One training step on a batch of this rank: uint8 images [N, C, H, W] and labels [N, c_dim]. The host never waits for the device."""
        real = from_uint8(images)
        nonfinite_before = self.nonfinite.clone()
        for phase in self.phases:
            if self.batch_idx % phase.interval == 0:
                z, c = self.draw(len(real))
                with timed(phase.name, self.device, self._pending_times):
                    self.run_phase(phase, (real, labels, z, c))
        self.bad_streak.copy_(torch.where(self.nonfinite > nonfinite_before, self.bad_streak + 1, 0))
        batch_size = self.args.batch_size
        update_ema(self.G_ema, self.G, ema_beta(batch_size, self.cur_nimg, self.args.ema_kimg, self.args.ema_rampup))
        self.cur_nimg += batch_size
        self.batch_idx += 1
        for controller in self._controllers().values():
            controller.update(self.batch_idx, batch_size, sum_over_ranks_)

    @torch.no_grad()
    def share_averages(self) -> None:
        """Averages the running mean of w over ranks, in G and G_ema: each rank takes only the latents into it that it draws. All ranks must call."""
        mean_over_ranks_(self.G.mapping.w_avg)
        self.G_ema.mapping.w_avg.copy_(self.G.mapping.w_avg)

    def _controllers(self) -> dict:
        named = {"ada": self.ada, "pairing": self.pairing_control}
        return {name: controller for name, controller in named.items() if controller is not None}

    def report_times(self) -> None:
        """Reports the phases' times since the last call."""
        report_times(self._pending_times)

    def trained_networks(self) -> dict[str, nn.Module]:
        """G, D and, if there is one, P: the networks that have optimisers."""
        named = {"G": self.G, "D": self.D, "P": self.P}
        return {name: module for name, module in named.items() if module is not None}

    def networks(self) -> dict[str, nn.Module]:
        """G_ema and the trained networks, as files hold them."""
        return {"G_ema": self.G_ema, **self.trained_networks()}

    # Files.

    def network_records(self) -> dict[str, NetworkRecord]:
        """The networks as a snapshot holds them."""
        return {name: network_record(module) for name, module in self.networks().items()}

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values. Every rank must call; what differs between ranks is gathered."""
        per_rank = {
            "torch_rng": torch.get_rng_state(),
            "device": self.device.type,
            "device_rng": torch.get_device_module(self.device).get_rng_state(self.device) if self.device.type != "cpu" else None,
            "controllers": {
                # On the CPU, or each rank would open the GPUs of all others to read what they have gathered.
                name: {key: value.cpu() for key, value in controller.state_dict().items()}
                for name, controller in self._controllers().items()
            },
            "w_avg": self.G.mapping.w_avg.cpu(),
            "pl_mean": self.loss.pl_mean.cpu(),
        }
        optimizers = {phase.name: phase.optimizer.state_dict() for phase in self.phases if phase.name.endswith("main")}
        return {
            "networks": {name: module.state_dict() for name, module in self.networks().items()},
            "optimizers": optimizers,
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "ranks": gather_objects(per_rank),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict` so that the next step is the one that would have followed.

        Raises:
            UserError: the state is of another number of processes or of another device kind.
        """
        if len(state["ranks"]) != world_size():
            raise UserError(f"the state was saved by {len(state['ranks'])} processes, this run has {world_size()}; use the same --gpus")
        own = state["ranks"][rank()]
        if own["device"] != self.device.type:
            raise UserError(f"the state was saved on {own['device']}, this run is on {self.device.type}; continue where the run began")
        for name, module in self.networks().items():
            module.load_state_dict(state["networks"][name])
        for phase in self.phases:
            if phase.name in state["optimizers"]:
                phase.optimizer.load_state_dict(state["optimizers"][phase.name])
        self.loss.pl_mean.copy_(own["pl_mean"])
        self.G.mapping.w_avg.copy_(own["w_avg"])
        for name, controller in self._controllers().items():
            controller.load_state_dict(own["controllers"][name])
        for name, value in state["counters"].items():
            if isinstance(value, torch.Tensor):
                getattr(self, name).copy_(value)
            else:
                setattr(self, name, value)
        if self.graphs is not None:
            self.graphs.reset()  # the optimisers hold other tensors now
        torch.set_rng_state(own["torch_rng"].cpu())
        if own["device_rng"] is not None:
            torch.get_device_module(self.device).set_rng_state(own["device_rng"].cpu(), self.device)
