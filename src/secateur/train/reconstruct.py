"""One reconstruction stage after any mask: layer by layer, on inputs that the pruned layers before it make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from rich.progress import track
from torch import Tensor, nn

from secateur.core import AllocationLike, CriterionLike, Within, allocate, evidence_needed, lookup
from secateur.core import score as score_units
from secateur.core.solvers import SOLVERS, SolverEntry, damped
from secateur.core.units import parse_unit, unit_name
from secateur.model.batches import LossFunction, StepFunction, check_functions, limited, to_device
from secateur.model.edited import dense_values
from secateur.model.evidence import Source, collect
from secateur.model.evidence.input_sums import warn_of_idle
from secateur.model.evidence.stages import Sequential, find_stages, own_biases, stage_grams, stage_pairs
from secateur.model.graph.trace import tensor_names
from secateur.model.masks import Masks, find_masks
from secateur.model.names import check_state, clean_name, find_parameter, unwrap
from secateur.model.selectors import Selector
from secateur.model.sharding import is_sharded
from secateur.model.targets import find_targets, known_weights
from secateur.train.stages import STAGE_KINDS, Backup, Job, LayerError, kept_so_far, solve
from secateur.types import NM, KeyLayout

__all__ = ["LayerError", "Reconstruction", "reconstruct"]


@final
@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What ``reconstruct`` did.

    Attributes:
        masks: of the model; ``masks.undo()`` takes masks and new weights back.
        layers: in the order in which they were solved.
    """

    masks: Masks
    layers: tuple[LayerError, ...]

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.layers)
        lines = [f"{'layer':<{width}}   kept   error by mask   reconstructed"]
        lines += [f"{one.name:<{width}}  {one.kept:5.1%}  {one.before:14.4f}  {one.after:14.4f}" for one in self.layers]
        return "\n".join(lines)


def reconstruct(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    data: Any = None,
    solver: str = "refit",
    criterion: CriterionLike = "wanda",
    within: Within = "tensor",
    allocation: AllocationLike = "uniform",
    sequential: Sequential = True,
    match: Literal["layer", "dense"] | None = None,
    damping: float = 0.01,
    batches: int = 16,
    dense: Mapping[str, Tensor] | None = None,
    targets: Selector | None = None,
    exclude: Selector | None = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    init: Mapping[str, Tensor] | None = None,
    min_density: float | None = 0.0,
    seed: int = 0,
    undo: bool = True,
    progress: bool = False,
) -> Reconstruction:
    """Let the weights that stay make up for those that go, ``min ||(W - W') X||`` for every layer.

    Without ``sparsity`` the model's masks, of whatever unit and criterion, stay as they are, and their kept weights
    are refitted. With ``sparsity``, or ``within=NM(2, 4)``, weights are chosen too: by the criterion and then
    refitted, or by a solver that chooses itself (``sparsegpt``, ``obc``). Layers are taken in the order in which the
    model runs them; each sees the inputs that the pruned layers before it make. One pass over the data per stage, as
    far as that stage; the grams of one stage are in memory at a time, in float64.

    Args:
        model: any module; wrappers are looked through.
        sparsity: share of weights to remove; None: as the masks or the pattern say.
        data: calibration batches, or one batch; no labels are needed. It has to be given.
        solver: ``"refit"``, ``"sparsegpt"``, ``"obc"``, or ``"none"`` for masks chosen stage by stage alone.
        criterion: what chooses where the solver does not, and what allocations read.
        within: ``"tensor"``, ``"row"`` (not for solvers that choose), or ``NM(keep=2, of=4)``.
        allocation: how many weights each layer keeps.
        sequential: True: layer by layer; ``"block"``: by the first number in the layers' names; False: all at once.
        match: ``"layer"``: the aim is what the dense layer would make of the inputs that it gets now; ``"dense"``:
            what the dense model made there, which also makes up for inputs that are gone, and refits biases (twice
            the passes, four times the memory). None: ``"dense"`` for masks of whole filters or channels.
        damping: share of the gram's mean diagonal that is added to it; holds the kept weights where they were.
        batches: how many to read.
        dense: the weights before pruning, where the masks do not have them any more.
        targets: which of the layers; None: those with masks, or the default targets.
        exclude: what of that to leave alone.
        loss: for criteria that read gradients.
        step: ``step(model, batch)``, for batches of another shape.
        init: state dict before training, for criteria that compare with it.
        min_density: at least this share of each layer's weights stays, as in ``prune``.
        seed: of the noise that random criteria read.
        undo: keep the old values so that ``masks.undo()`` can restore them.
        progress: show a bar of stages.

    Returns:
        The masks, and each layer's relative output error before and after.

    Raises:
        ValueError: for bad choices, inputs that cannot be read, and singular grams; the model is then as it was.

    Example:
        >>> import secateur as sc
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = sc.prune(net, 0.5, within="row")
        >>> done = reconstruct(net, data=torch.randn(64, 8))
        >>> all(layer.after < layer.before for layer in done.layers)
        True

    Reference:
        Hassibi, Stork 1993 (least squares after removal); Frantar, Alistarh 2023, arXiv 2301.00774 (sequential inputs).
    """
    root, before, entry = unwrap(model), find_masks(model), lookup("solver", SOLVERS, solver)
    layout, mask_given = _layout(root, before, sparsity, entry, within, targets, exclude), _is_given(sparsity, within)
    damped(torch.eye(1), damping)  # refuses before anything is changed, as the next line
    check_functions(loss, step)
    read = _read(root, data, batches)
    values = _dense(root, before, layout, dense, strict=mask_given)
    keep, evidence = None, dict[str, dict[str, Tensor]]()
    if not mask_given:
        source = Source(read, loss, step, len(read), init, seed)
        keep, evidence = _counts(root, layout, entry, criterion, allocation, within, sparsity, min_density, source)
    values, biases = _towards_dense(root, before, layout, values, dense, match)
    job = Job(model, layout, values, entry, criterion, within, keep, evidence, damping, before, undo, biases)
    return _run(job, read, step, sequential, progress)


def _read(root: nn.Module, data: Any, batches: int) -> list[Any]:
    """The batches, on the model's device; they are run once per stage."""
    if data is None:
        raise ValueError("layers are reconstructed on calibration inputs: give data= (a loader, or one batch)")
    device = next(root.parameters()).device
    return [to_device(batch, device) for batch in limited([data] if isinstance(data, Tensor) else data, batches)]


def _run(
    job: Job, read: list[Any], step: StepFunction | None, sequential: Sequential, progress: bool
) -> Reconstruction:
    """Stage by stage; back to what it was where something goes wrong."""
    root = unwrap(job.model)
    stages = find_stages(root, job.layout, read[0], step, sequential)
    backup, errors = Backup(root, job.before), list[LayerError]()
    try:
        for stage in track(stages, "reconstructing", disable=not progress):
            if job.biases is None:
                sums, more = stage_grams(root, job.layout, read, step, stage), list[str]()
            else:
                sums = stage_pairs(root, job.layout, read, step, stage, job.dense)
                more = [job.biases[name] for name in stage.names if name in job.biases]
            warn_of_idle(sums, stage.names)
            backup.keep([*stage.names, *more])
            errors += solve(job, sums, stage)
    except BaseException:
        backup.put_back()
        raise
    masks = find_masks(job.model)
    assert masks is not None  # there was at least one layer
    return Reconstruction(masks, tuple(errors))


def _is_given(sparsity: float | None, within: Within) -> bool:
    return sparsity is None and not isinstance(within, NM)


def _layout(
    root: nn.Module,
    before: Masks | None,
    sparsity: float | None,
    entry: SolverEntry,
    within: Within,
    targets: Selector | None,
    exclude: Selector | None,
) -> dict[str, KeyLayout]:
    if _is_given(sparsity, within):
        if before is None or entry.chooses:
            what = "this solver chooses weights itself" if entry.chooses else "this model has no masks"
            raise ValueError(f"{what}: give sparsity= or within=NM(2, 4), or prune first and take solver='refit'")
        known = {n: k for n, k in known_weights(root).items() if n in before and k.kind != "embedding"}
        layout = known if targets is None and exclude is None else find_targets(root, targets, exclude)
        found = {name: key for name, key in layout.items() if name in before}
        if not found:
            raise ValueError(
                f"none of the layers that are masked ({', '.join(before)[:200]}) can be reconstructed with "
                f"targets={targets!r}, exclude={exclude!r}; embeddings never are"
            )
    else:
        if before is not None and unit_name(before.unit) != "weight":
            raise ValueError(
                f"this model has masks of unit {before.unit.spec!r}, and here single weights are chosen: leave "
                "sparsity= out to refit what the masks keep, or undo them"
            )
        found = find_targets(root, targets, exclude)
        if isinstance(within, NM) and sparsity is not None:
            raise ValueError(f"sparsity={sparsity} with {within}: the pattern fixes the sparsity; leave it out")
        if entry.chooses and within == "row":
            raise ValueError("within='row' is for criteria; this solver lets all rows compete: within='tensor' or NM")
    if biases := [name for name, key in found.items() if key.kind == "bias"]:
        raise ValueError(f"{biases[0]!r} is a bias: reconstruction solves for weights; leave biases out of targets=")
    if empty := [name for name, key in found.items() if 0 in key.shape]:
        raise ValueError(f"{empty[0]!r} has no weights, its shape is {found[empty[0]].shape}; exclude={empty!r}")
    if sharded := [name for name in found if is_sharded(find_parameter(root, name))]:
        raise ValueError(f"{sharded[0]!r} is sharded; reconstruct before fully_shard")
    return found


def _dense(
    root: nn.Module,
    before: Masks | None,
    layout: Mapping[str, KeyLayout],
    dense: Mapping[str, Tensor] | None,
    strict: bool,
) -> dict[str, Tensor]:
    if dense is not None:
        check_state(dense, "dense")
        given = {clean_name(name): tensor for name, tensor in dense.items()}
        for name, key in layout.items():
            if name not in given or tuple(given[name].shape) != key.shape:
                raise ValueError(f"dense= has no {name!r} of shape {key.shape}; it has {list(given)[:8]}")
        return {name: given[name].detach() for name in layout}
    if before is not None and (strict or before.edited is not None):
        return dense_values(before, layout)
    return {name: find_parameter(root, name).detach().clone() for name in layout}


def _towards_dense(
    root: nn.Module,
    before: Masks | None,
    layout: Mapping[str, KeyLayout],
    values: Mapping[str, Tensor],
    dense: Mapping[str, Tensor] | None,
    match: Literal["layer", "dense"] | None,
) -> tuple[Mapping[str, Tensor], Mapping[str, str] | None]:
    """Dense values of all that was or will be changed, and each layer's bias; None where the aim is the layer's own."""
    if match not in (None, "layer", "dense"):
        raise ValueError(f"match={match!r}: take 'layer', 'dense', or None")
    if match == "layer" or (match is None and (before is None or unit_name(before.unit) == "weight")):
        return values, None
    tensors = tensor_names(root)
    biases = own_biases(root, layout)
    changed = [*biases.values(), *(() if before is None else before)]
    if before is not None and before.edited is not None:
        return {**dense_values(before, [*changed, *before.edited.names()]), **values}, biases
    given = {clean_name(name): tensor.detach() for name, tensor in (dense or {}).items()}
    now = {name: tensors[name].detach().clone() for name in changed}
    return {**now, **{name: tensor for name, tensor in given.items() if name in tensors}, **values}, biases


def _counts(
    root: nn.Module,
    layout: Mapping[str, KeyLayout],
    entry: SolverEntry,
    criterion: CriterionLike,
    allocation: AllocationLike,
    within: Within,
    sparsity: float | None,
    min_density: float | None,
    source: Source,
) -> tuple[dict[str, int] | None, dict[str, dict[str, Tensor]]]:
    """How many weights each layer keeps, and the evidence that is read once, from the dense model."""
    unit, _ = parse_unit("weight")
    wanted = evidence_needed(criterion)
    if allocation == "uniform":
        once = () if entry.chooses else tuple(kind for kind in wanted if kind not in STAGE_KINDS)
        evidence = collect(root, once, layout, unit, source) if once else {}
        scores = {name: find_parameter(root, name).detach() for name in layout}
    else:
        evidence = collect(root, wanted, layout, unit, source)
        scores = score_units(criterion, evidence, layout, unit)
        evidence = {kind: found for kind, found in evidence.items() if kind not in STAGE_KINDS}
    if isinstance(within, NM):
        return None, evidence
    assert sparsity is not None  # else there is a pattern
    before = find_masks(root)
    previous = None if before is None else {n: kept_so_far(before, n, key) for n, key in layout.items()}
    counts = allocate(
        allocation, sparsity=sparsity, scores=scores, layout=layout, unit=unit, evidence=evidence,
        min_density=min_density, previous=previous,
    )  # fmt: skip
    return counts, evidence
