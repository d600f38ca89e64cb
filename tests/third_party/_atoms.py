"""Published models of atoms as they are, the forces of their batch, and what a term is by values.

Each case gives a LightningModule with plain SGD, whose step shows the gradient. ``errors`` are the
squared errors of every atom, from first derivatives or differences: nothing is differentiated
twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from lightning_sobolev import BatchTeacher, DirectionalTeacher
from tests.kinds._by_hand import numbers
from tests.third_party._modules import sgd

SIZES = (3, 2, 4)
INDEX = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
POS = 1.3 * numbers(9, 3, seed=3)
FORCES, COLUMNS = numbers(9, 3, seed=4), numbers(9, 3, seed=5)
V = torch.nn.functional.one_hot(torch.tensor([5, 12, 16]), 27).sum(0).double().reshape(9, 3)
"""One coordinate of each molecule, of which a column of the Hessian is known."""


@dataclass
class Atoms:
    """A module, its batch, what teaches it, and its squared error at every atom."""

    module: L.LightningModule
    batch: Any
    teacher: Any
    errors: Callable[[L.LightningModule], torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    side: str = "cotangent"
    index: torch.Tensor = field(default_factory=lambda: INDEX)


class Energies(L.LightningModule):
    """Mean squared error of energies."""

    def __init__(self, net, energies):
        super().__init__()
        self.net, self.energies = net, energies

    def training_step(self, batch, batch_idx):
        return mse_loss(self.energies(self.net, batch), batch.energy)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def forces(energy, pos, known=FORCES):
    """Return the squared error of minus the derivative of the sum of all energies."""
    pos = pos.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(pos).sum(), pos)
    return (known + slope).square().sum(-1)


def columns(force, pos, v=V, known=COLUMNS, step=1e-4):
    """Return the squared error of the derivative of the forces along v, by differences."""
    pushed = (force(pos + step * v) - force(pos - step * v)) / (2 * step)
    return (pushed.detach() - known).square().sum(-1)


# torch-geometric


def edges(size):
    return torch.tensor([(i, j) for i in range(size) for j in range(size) if i != j]).T


def molecules(**more):
    """Return a batch of three molecules, whose energies, forces and more are its attributes."""
    data = pytest.importorskip("torch_geometric.data")
    stop = torch.tensor(SIZES).cumsum(0).tolist()
    parts = [slice(end - size, end) for end, size in zip(stop, SIZES, strict=True)]
    atoms = {"pos": POS, "forces": FORCES, "z": torch.arange(9) % 3 + 1, **more}
    return data.Batch.from_data_list([
        data.Data(
            edge_index=edges(size), energy=numbers(1, seed=number),
            **{name: table[part] for name, table in atoms.items()},
        )
        for number, (size, part) in enumerate(zip(SIZES, parts, strict=True))
    ])  # fmt: skip


def messages():
    """A network of one's own from torch-geometric's parts, called with the batch."""
    nn = pytest.importorskip("torch_geometric.nn")

    class Passing(nn.MessagePassing):
        def __init__(self):
            super().__init__(aggr="add")
            self.embed = torch.nn.Embedding(4, 4)
            self.between = torch.nn.Sequential(
                torch.nn.Linear(9, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
            )
            self.out = torch.nn.Linear(4, 1)

        def forward(self, batch):
            h = self.embed(batch.z)
            h = h + self.propagate(batch.edge_index, h=h, pos=batch.pos)
            return nn.global_add_pool(self.out(h.tanh()), batch.batch).squeeze(-1)

        def message(self, h_i, h_j, pos_i, pos_j):
            distance = (pos_i - pos_j).square().sum(-1, keepdim=True).sqrt()
            return self.between(torch.cat([h_i, h_j, distance], -1))

    return Passing().double()


def with_pos(batch, pos):
    """Return a copy of a batch with other positions."""
    changed = batch.clone()
    changed.pos = pos
    return changed


def message_passing():
    """Forces by ``wrt="batch.pos"``; the argument has the name of the index."""
    batch = molecules()
    return Atoms(
        Energies(messages(), lambda net, b: net(b)), batch, BatchTeacher(forces="forces"),
        lambda m: forces(lambda pos: m.net(with_pos(batch, pos)), batch.pos),
        {"module": "net", "wrt": "batch.pos", "groups": "batch"},
    )  # fmt: skip


class OfForces(torch.nn.Module):
    """Returns forces, as the networks of phonon data sets do."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, data):
        pos = data.pos if data.pos.requires_grad else data.pos.requires_grad_()
        return -torch.autograd.grad(self.energy(data).sum(), pos, create_graph=True)[0]


class Forces(Energies):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch), batch.forces)


def hessian_columns():
    """A column of each molecule's Hessian, of a network that returns forces."""
    batch = molecules(vs=V, hessian_col=COLUMNS)
    return Atoms(
        Forces(OfForces(messages()), None), batch, DirectionalTeacher("vs", "hessian_col"),
        lambda m: columns(lambda pos: m.net(with_pos(batch, pos)), batch.pos),
        {"module": "net", "wrt": "pos", "groups": "batch"}, "tangent",
    )  # fmt: skip


def schnet():
    """torch-geometric's SchNet; its edges are given, what finds them needs a compiled package."""
    models = pytest.importorskip("torch_geometric.nn.models")

    def neighbours(pos, batch):
        pairs = (batch[:, None] == batch[None]).fill_diagonal_(False).nonzero().T
        return pairs, (pos[pairs[0]] - pos[pairs[1]]).square().sum(-1).sqrt()

    net = models.SchNet(
        hidden_channels=8, num_filters=8, num_interactions=2, num_gaussians=6, cutoff=6.0,
        interaction_graph=neighbours,
    ).double()  # fmt: skip
    batch = molecules()
    return Atoms(
        Energies(net, lambda net, b: net(b.z, b.pos, b.batch)[:, 0]), batch,
        BatchTeacher(forces="forces"),
        lambda m: forces(lambda pos: m.net(batch.z, pos, batch.batch), batch.pos),
        {"module": "net", "wrt": "pos", "groups": "batch"},
    )  # fmt: skip


# matgl


def crystals():
    """Return a batch of three small crystals with matgl's own converter, and their lattices."""
    graphs = pytest.importorskip("matgl.ext.pymatgen")
    pymatgen = pytest.importorskip("pymatgen.core")
    data = pytest.importorskip("torch_geometric.data")
    converter = graphs.Structure2Graph(element_types=("O", "H"), cutoff=3.0)
    drawn, made, lattices = np.random.RandomState(0), [], []
    for size in (2, 3, 1):
        lattice = pymatgen.Lattice(3.2 * np.eye(3) + 0.2 * drawn.randn(3, 3))
        elements = [("O", "H")[number % 2] for number in range(size)]
        graph, cell, _ = converter.get_graph(
            pymatgen.Structure(lattice, elements, drawn.rand(size, 3))
        )
        made.append(graph)
        lattices.append(cell.double())
    batch = data.Batch.from_data_list(made)
    batch.frac_coords, batch.pbc_offset = batch.frac_coords.double(), batch.pbc_offset.double()
    return batch, torch.cat(lattices)


def potential():
    """matgl's PotentialLightningModule around a TensorNet, its batch, and what it is."""
    training = pytest.importorskip("matgl.utils.training")
    models = pytest.importorskip("matgl.models")
    net = models.TensorNet(
        element_types=("O", "H"), units=8, nblocks=1, num_rbf=4, cutoff=3.0, is_intensive=False,
        use_warp=False,
    )  # fmt: skip
    graph, lattice = crystals()
    known = numbers(6, 3, seed=6)
    batch = (graph, lattice, torch.zeros(3, 2), numbers(3), known, torch.zeros(9, 3).double())
    return sgd(training.PotentialLightningModule)(model=net).double(), batch


def potential_forces():
    """Forces of the energies inside; their own label is the batch's fifth element."""
    module, batch = potential()
    graph, lattice = batch[0], batch[1]
    index, inverse = graph.batch, torch.linalg.inv(lattice)

    def energy(m, pos):
        moved = graph.clone()
        moved.frac_coords = torch.einsum("ni,nij->nj", pos, inverse[index])
        return m.model(moved, lattice)[0]

    pos = torch.einsum("ni,nij->nj", graph.frac_coords, lattice[index])
    return Atoms(
        module, batch, BatchTeacher(forces="4"),
        lambda m: forces(lambda p: energy(m, p), pos, batch[4]),
        {"module": "model.model", "wrt": "g.pos", "groups": "g.batch"}, index=index,
    )  # fmt: skip


def potential_columns():
    """Columns of the Hessian beside energies and forces, along fractional coordinates."""
    module, batch = potential()
    graph, lattice = batch[0], batch[1]
    graph.vs, graph.column = torch.zeros(6, 3).double(), numbers(6, 3, seed=7)
    graph.vs[[0, 3, 5], [1, 2, 0]] = 1.0

    def force(m, coords):
        moved = graph.clone()
        moved.frac_coords = coords
        return m.model(moved, lattice)[1]

    return Atoms(
        module, batch, DirectionalTeacher("0.vs", "0.column"),
        lambda m: columns(lambda c: force(m, c), graph.frac_coords, graph.vs, graph.column),
        {"module": "model", "wrt": "g.frac_coords", "output": 1, "groups": "g.batch"}, "tangent",
        graph.batch,
    )  # fmt: skip


# mace and torchani


def mace():
    """MACE as it is called in training, forces inside; its own loader's batch."""
    modules = pytest.importorskip("mace.modules")
    own, e3nn = pytest.importorskip("mace.data"), pytest.importorskip("e3nn.o3")
    tools = pytest.importorskip("mace.tools")
    from mace.tools import torch_geometric

    with _in_double():
        table = tools.AtomicNumberTable([1, 8])
        stop = np.cumsum(SIZES)
        configurations = [
            own.Configuration(
                atomic_numbers=np.array([1, 8] * 2)[:size],
                positions=POS[end - size : end].numpy(),
                properties={"energy": float(end), "forces": FORCES[end - size : end].numpy()},
                property_weights={"energy": 1.0, "forces": 1.0},
            )
            for size, end in zip(SIZES, stop, strict=True)
        ]
        made = [own.AtomicData.from_config(c, z_table=table, cutoff=4.0) for c in configurations]
        batch = next(iter(torch_geometric.dataloader.DataLoader(made, batch_size=3)))
        scalars = e3nn.Irreps("4x0e")
        net = modules.ScaleShiftMACE(
            r_max=4.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=2, num_interactions=1,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_elements=2, hidden_irreps=scalars, MLP_irreps=scalars, correlation=2,
            atomic_energies=np.array([[-1.0, -3.0]]), avg_num_neighbors=3.0, atomic_numbers=[1, 8],
            gate=torch.nn.functional.silu, atomic_inter_scale=1.5, atomic_inter_shift=0.1,
        )  # fmt: skip

    def energies(net, batch):
        return net(batch.to_dict(), training=True)["energy"]

    def moved(m, pos):
        with _in_double():
            return m.net({**batch.to_dict(), "positions": pos}, compute_force=False)["energy"]

    return Atoms(
        Energies(net, energies), batch, BatchTeacher(forces="forces"),
        lambda m: forces(lambda pos: moved(m, pos), batch["positions"]),
        {"module": "net", "wrt": "positions", "groups": "batch", "output": "energy"},
    )  # fmt: skip


class _in_double:
    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *problem):
        torch.set_default_dtype(self.before)


def ani():
    """torchani's ANI on padded molecules, which come as a pair of species and coordinates."""
    arch = pytest.importorskip("torchani.arch")
    net = arch.simple_ani(
        ("H", "C", "O"), lot="none", strategy="pyaev", repulsion=False, self_energies="zero"
    ).double()
    species = torch.tensor([[8, 1, 1, -1], [6, 1, 1, 1], [8, 1, -1, -1]])
    pos, known = 0.9 * numbers(3, 4, 3, seed=8), numbers(3, 4, 3, seed=9)
    batch = SimpleNamespace(species=species, pos=pos, forces=known, energy=numbers(3))
    return Atoms(
        Energies(net, lambda net, b: net((b.species, b.pos)).energies), batch,
        BatchTeacher(forces="forces"),
        lambda m: forces(lambda p: m.net((species, p)).energies, pos, known).sum(-1),
        {"module": "net", "wrt": "species_coordinates.1"}, index=torch.arange(3),
    )  # fmt: skip


ATOMS = {
    "torch-geometric: MessagePassing, forces": message_passing,
    "torch-geometric: MessagePassing of forces, Hessian columns": hessian_columns,
    "torch-geometric: SchNet, forces": schnet,
    "matgl: PotentialLightningModule, forces": potential_forces,
    "matgl: PotentialLightningModule, Hessian columns": potential_columns,
    "mace-torch: ScaleShiftMACE, forces": mace,
    "torchani: ANI, forces": ani,
}
