"""The graph of a transcript that may be wrong, and the probability of all its paths.

It is the graph of CTC (Graves et al. 2006) with two kinds of arcs more, after omni-temporal classification (Gao et al.
2023, "Learning from Flawed Data"):

- *bypass*: a word of the transcript is left out, for a penalty. It covers a word that nobody said.
- *star*: between two words, frames are read as any symbols, for a penalty each time. It covers speech that nobody
  transcribed. A star begins and ends with a symbol and may have blanks between, so that one star covers any number of
  words, and frames of silence are never read in two ways.

A wrong word takes both. The emission of a star is the log-sum-exp of all symbols but the blank. Paths are unique: a
bypass is taken at once after the last symbol, before any blank. Without either arc the probability is that of CTC.

Forward and backward recursions are written out, since a graph of 500 frames for autograd costs several times as much.

Shape letters: B clips, T frames, U symbols of a transcript, J places before, between and behind its words, S states, P
arcs into or out of a state, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NEVER = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """What paths pay, in nats; infinity closes the arcs.

    Attributes:
        bypass: For each word that is left out.
        star: For each star.
    """

    bypass: float
    star: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """Arcs of a batch. States: U symbols, U + 1 blanks, J stars, J blanks within stars; then J sums, and one of none.

    Attributes:
        into: States or sums that lead into each state (B, S, P), and `into_cost` what they pay.
        out_of: The same for arcs out of a state.
        last: State of the last symbol before each place (B, J); none before the first.
        resume: States behind each place that a bypass leads to (B, J, 2): a blank, and a star for `star`.
        start: Log-weight of each state at the first frame (B, S).
        end: The same at the last frame.
        skipped: Penalty for leaving out all words before each place (J,); None where none can be left out.
        star: Penalty for a star.
    """

    into: Tensor
    into_cost: Tensor
    out_of: Tensor
    out_cost: Tensor
    last: Tensor
    resume: Tensor
    start: Tensor
    end: Tensor
    skipped: Tensor | None
    star: float


def star_ctc_loss(
    log_probs_BTV: Tensor,
    targets_BU: Tensor,
    input_lengths_B: Tensor,
    target_lengths_B: Tensor,
    begins_BU: Tensor,
    *,
    blank: int,
    penalties: Penalties,
) -> Tensor:
    """Negative log-probability of transcripts some of whose words may be wrong, missing or too many.

    Args:
        log_probs_BTV: Log-probabilities of every frame.
        targets_BU: Symbols; anything behind the last.
        input_lengths_B: Valid frames.
        target_lengths_B: Symbols of each clip.
        begins_BU: Whether a symbol begins a word; the first one does in any case.
        blank: Id of the blank.
        penalties: Of the arcs that CTC has not.

    Returns:
        Loss of each clip (B,), differentiable in the log-probabilities; infinite, with no gradient, where no path fits.
    """
    graph = _graph(targets_BU, target_lengths_B, begins_BU, penalties)
    emissions_BTS = _emissions(log_probs_BTV, targets_BU.clamp_min(0), graph.last.shape[1], blank)
    log_probability_B: Tensor = _PathSum.apply(emissions_BTS, input_lengths_B, graph)  # type: ignore[no-untyped-call]
    return -log_probability_B


def _emissions(log_probs_BTV: Tensor, targets_BU: Tensor, places: int, blank: int) -> Tensor:
    """Emissions of the states (B, T, S)."""
    frames = log_probs_BTV.shape[1]
    symbols_BTU = log_probs_BTV.gather(2, targets_BU.unsqueeze(1).expand(-1, frames, -1))
    blank_BT1 = log_probs_BTV[:, :, blank : blank + 1]
    others_BTV = torch.cat([log_probs_BTV[:, :, :blank], log_probs_BTV[:, :, blank + 1 :]], dim=2)
    star_BT1 = others_BTV.logsumexp(dim=2, keepdim=True)
    return torch.cat(
        [
            symbols_BTU,
            blank_BT1.expand(-1, -1, targets_BU.shape[1] + 1),
            star_BT1.expand(-1, -1, places),
            blank_BT1.expand(-1, -1, places),
        ],
        dim=2,
    )


def _graph(targets_BU: Tensor, lengths_B: Tensor, begins_BU: Tensor, penalties: Penalties) -> _Graph:
    clips, symbols = targets_BU.shape
    device = targets_BU.device
    place_U = torch.arange(symbols, device=device)
    inside_BU = place_U < lengths_B.unsqueeze(1)
    begins_BU = (begins_BU | (place_U == 0)) & inside_BU
    words_B = begins_BU.sum(dim=1)
    places = int(words_B.max()) + 1 if clips else 1
    # Before which symbol each place is: that of the words' beginnings in order, then the end.
    order_BU = begins_BU.cumsum(dim=1) - 1
    at_BJ = lengths_B.unsqueeze(1).expand(-1, places).clone()
    rows_N, columns_N = begins_BU.nonzero(as_tuple=True)
    at_BJ[rows_N, order_BU[rows_N, columns_N]] = columns_N
    place_J = torch.arange(places, device=device)
    there_BJ = place_J <= words_B.unsqueeze(1)

    blanks, stars = symbols, 2 * symbols + 1
    within, states = stars + places, stars + 2 * places
    none = states + places
    u, b = place_U.expand(clips, -1), torch.arange(symbols + 1, device=device).expand(clips, -1)
    j = place_J.expand(clips, -1)

    def only(where: Tensor, state: Tensor) -> Tensor:
        return torch.where(where, state, none)

    # Number of the place before each position 0 to U, and whether there is one.
    number_BB = torch.zeros(clips, symbols + 1, dtype=torch.int64, device=device)
    is_place_BB = torch.zeros(clips, symbols + 1, dtype=torch.bool, device=device)
    rows_N, numbers_N = there_BJ.nonzero(as_tuple=True)
    number_BB[rows_N, at_BJ[rows_N, numbers_N]] = numbers_N
    is_place_BB[rows_N, at_BJ[rows_N, numbers_N]] = True
    valid_BB = b <= lengths_B.unsqueeze(1)
    first_BU = is_place_BB[:, :-1] & inside_BU
    differs_BU = torch.zeros_like(inside_BU)
    differs_BU[:, 1:] = targets_BU[:, 1:] != targets_BU[:, :-1]
    differs_BU &= inside_BU
    before_BU = torch.nn.functional.pad(inside_BU, (1, 0))  # a symbol stands before position 0 to U
    after_BB = torch.nn.functional.pad(inside_BU, (0, 1))
    nothing_BU, nothing_BB, nothing_BJ = (torch.full_like(one, none) for one in (u, b, j))

    star_at_BB = only(is_place_BB & valid_BB, stars + number_BB)
    into = torch.cat(
        [
            torch.stack(
                [
                    only(inside_BU, u),
                    only(inside_BU, blanks + u),
                    only(differs_BU, u - 1),
                    only(first_BU, stars + number_BB[:, :-1]),
                ],
                dim=2,
            ),
            torch.stack(
                [
                    only(valid_BB, blanks + b),
                    only(valid_BB & (is_place_BB | before_BU), torch.where(is_place_BB, states + number_BB, b - 1)),
                    star_at_BB,
                    nothing_BB,
                ],
                dim=2,
            ),
            torch.stack(
                [
                    only(there_BJ, stars + j),
                    only(there_BJ, within + j),
                    only(there_BJ, blanks + at_BJ),
                    only(there_BJ, states + j),
                ],
                dim=2,
            ),
            torch.stack([only(there_BJ, within + j), only(there_BJ, stars + j), nothing_BJ, nothing_BJ], dim=2),
        ],
        dim=1,
    )
    next_differs_BU = torch.zeros_like(inside_BU)
    next_differs_BU[:, :-1] = differs_BU[:, 1:]
    out_of = torch.cat(
        [
            torch.stack(
                [
                    only(inside_BU, u),
                    only(
                        inside_BU,
                        torch.where(is_place_BB[:, 1:], states + number_BB[:, 1:], blanks + u + 1),
                    ),
                    only(next_differs_BU, u + 1),
                    nothing_BU,
                ],
                dim=2,
            ),
            torch.stack([only(valid_BB, blanks + b), only(after_BB, b), star_at_BB, nothing_BB], dim=2),
            torch.stack(
                [
                    only(there_BJ, stars + j),
                    only(there_BJ, within + j),
                    only(there_BJ, blanks + at_BJ),
                    only(there_BJ & (at_BJ < lengths_B.unsqueeze(1)), at_BJ),
                ],
                dim=2,
            ),
            torch.stack([only(there_BJ, within + j), only(there_BJ, stars + j), nothing_BJ, nothing_BJ], dim=2),
        ],
        dim=1,
    )
    # A star is paid for where it begins: from a blank or a symbol, never from itself.
    dtype = torch.get_default_dtype()
    paid = torch.zeros(into.shape, dtype=dtype, device=device)
    paid[:, stars:within, 2:] = -penalties.star
    out_paid = torch.zeros(out_of.shape, dtype=dtype, device=device)
    out_paid[:, blanks:stars, 2] = -penalties.star
    closed = math.isinf(penalties.bypass)
    skipped_J = torch.zeros(places, dtype=dtype, device=device) if closed else place_J.to(dtype) * penalties.bypass
    skip_BJ = torch.where((place_J == 0) | (not closed), -skipped_J, _NEVER).expand(clips, -1)
    skip_BJ = torch.where(there_BJ, skip_BJ, _NEVER)
    last_BJ = only(there_BJ & (at_BJ > 0), at_BJ - 1)
    resume_BJ2 = torch.stack([only(there_BJ, blanks + at_BJ), only(there_BJ, stars + j)], dim=2)

    start_BS = torch.full((clips, none + 1), _NEVER, dtype=dtype, device=device)
    first_symbol_BJ = only(there_BJ & (at_BJ < lengths_B.unsqueeze(1)), at_BJ)
    start_BS.scatter_(1, first_symbol_BJ, skip_BJ)
    start_BS.scatter_(1, resume_BJ2[:, :, 0], skip_BJ)
    start_BS.scatter_(1, resume_BJ2[:, :, 1], skip_BJ - penalties.star)
    end_BS = torch.full_like(start_BS, _NEVER)
    if closed:
        to_end_BJ = torch.where(j == words_B.unsqueeze(1), 0.0, _NEVER).to(dtype)
    else:
        to_end_BJ = skip_BJ.gather(1, words_B.unsqueeze(1)) + skipped_J
    end_BS.scatter_(1, last_BJ, to_end_BJ)
    end_BS.scatter_(1, blanks + lengths_B.unsqueeze(1), 0.0)
    end_BS.scatter_(1, stars + words_B.unsqueeze(1), 0.0)
    for ends in (start_BS, end_BS):
        ends[:, none] = _NEVER
    return _Graph(
        into=into,
        into_cost=paid,
        out_of=out_of,
        out_cost=out_paid,
        last=last_BJ,
        resume=resume_BJ2,
        start=start_BS[:, :states],
        end=end_BS[:, :states],
        skipped=None if closed else skipped_J,
        star=penalties.star,
    )


def _forward(emissions_TBS: Tensor, graph: _Graph) -> Tensor:
    """Log-sums of all paths up to each frame and state (T, B, S)."""
    frames, clips, states = emissions_TBS.shape
    places, arcs = graph.last.shape[1], graph.into.shape[2]
    into, cost = graph.into.reshape(clips, -1), graph.into_cost.to(emissions_TBS).reshape(clips, -1)
    skipped_J = None if graph.skipped is None else graph.skipped.to(emissions_TBS)
    known_BX = emissions_TBS.new_full((clips, states + places + 1), _NEVER)
    sums_TBS = torch.empty_like(emissions_TBS)
    torch.add(graph.start.to(emissions_TBS), emissions_TBS[0], out=sums_TBS[0])
    for frame in range(1, frames):
        known_BX[:, :states] = sums_TBS[frame - 1]
        reached_BJ = known_BX.gather(1, graph.last)
        if skipped_J is not None:  # words left out, one after the other
            reached_BJ = (reached_BJ + skipped_J).logcumsumexp(dim=1) - skipped_J
        known_BX[:, states : states + places] = reached_BJ
        terms_BSP = (known_BX.gather(1, into) + cost).view(clips, states, arcs)
        torch.add(_logsumexp(terms_BSP), emissions_TBS[frame], out=sums_TBS[frame])
    return sums_TBS


def _backward(emissions_TBS: Tensor, lengths_B: Tensor, graph: _Graph) -> Tensor:
    """Log-sums of all paths from each frame and state to the end, its own emission left out (T, B, S)."""
    frames, clips, states = emissions_TBS.shape
    places, arcs = graph.last.shape[1], graph.out_of.shape[2]
    out_of, cost = graph.out_of.reshape(clips, -1), graph.out_cost.to(emissions_TBS).reshape(clips, -1)
    skipped_J = None if graph.skipped is None else graph.skipped.to(emissions_TBS)
    resume = graph.resume.reshape(clips, -1)
    start_paid_2 = emissions_TBS.new_tensor([0.0, -graph.star])
    end_BS = graph.end.to(emissions_TBS)
    known_BX = emissions_TBS.new_full((clips, states + places + 1), _NEVER)
    sums_TBS = torch.full_like(emissions_TBS, _NEVER)
    for frame in range(frames - 1, -1, -1):
        if frame + 1 < frames:
            torch.add(sums_TBS[frame + 1], emissions_TBS[frame + 1], out=known_BX[:, :states])
            behind_BJ = _logsumexp(known_BX.gather(1, resume).view(clips, places, 2) + start_paid_2)
            if skipped_J is not None:
                behind_BJ = (behind_BJ - skipped_J).flip(1).logcumsumexp(dim=1).flip(1) + skipped_J
            known_BX[:, states : states + places] = behind_BJ
            sums_TBS[frame] = _logsumexp((known_BX.gather(1, out_of) + cost).view(clips, states, arcs))
        sums_TBS[frame] = torch.where((lengths_B == frame + 1).unsqueeze(1), end_BS, sums_TBS[frame])
    return sums_TBS


def _logsumexp(terms: Tensor) -> Tensor:
    """Over the last dimension; minus infinity where all terms are."""
    most = terms.amax(dim=-1).clamp_min(torch.finfo(terms.dtype).min)
    return (terms - most.unsqueeze(-1)).exp_().sum(dim=-1).log_().add_(most)


class _PathSum(torch.autograd.Function):
    """Log-probability of all paths (B,); its gradient is how likely each state is at each frame."""

    @staticmethod
    def forward(ctx: Any, emissions_BTS: Tensor, lengths_B: Tensor, graph: _Graph) -> Tensor:
        emissions_TBS = emissions_BTS.detach().transpose(0, 1).contiguous()
        sums_TBS = _forward(emissions_TBS, graph)
        last_BS = sums_TBS[(lengths_B - 1).clamp_min(0), torch.arange(len(lengths_B), device=lengths_B.device)]
        total_B = (last_BS + graph.end.to(last_BS)).logsumexp(dim=1)
        ctx.save_for_backward(emissions_TBS, sums_TBS, lengths_B, total_B)
        ctx.graph = graph
        return total_B

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [gradient_B] = gradients
        emissions_TBS, sums_TBS, lengths_B, total_B = ctx.saved_tensors
        shares_TBS = _backward(emissions_TBS, lengths_B, ctx.graph).add_(sums_TBS)
        finite_B = total_B.isfinite()
        shares_TBS = shares_TBS.sub_(torch.where(finite_B, total_B, 0.0).unsqueeze(1)).exp_()
        within_TB = torch.arange(len(shares_TBS), device=lengths_B.device).unsqueeze(1) < lengths_B
        scale_TB = torch.where(within_TB & finite_B, gradient_B, 0.0)
        return (shares_TBS * scale_TB.unsqueeze(2)).transpose(0, 1), None, None
