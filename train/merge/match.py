"""Matches the tensors of several models by their keys, and settles how each is made."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

from schemas import weights
from schemas.errors import SchemaError
from schemas.weights import Place, Weights
from train.merge import heads, inputs, layers, plan, rules
from train.merge.inputs import Input
from train.merge.layers import Layer
from train.merge.plan import Tensor
from train.merge.rules import Rule
from train.merge.vocabulary import Vocabulary

Twins = tuple[tuple[int, Place, Place], ...]

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Types that merged weights can be stored in, and what safetensors calls them."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """All that is known of the models before a number is read.

    Attributes:
      models: the inputs: the models in order, then the base where there is one.
      tensors: of each.
      lead: place of the model whose keys, shapes and vocabulary the merged one has:
        the base, or without one the first.
      has_base: whether the last input is the base.
      vocabulary: what their vocabularies have in common.
    """

    models: Sequence[Input]
    tensors: Sequence[Weights]
    lead: int
    has_base: bool
    vocabulary: Vocabulary

    @property
    def names(self) -> list[str]:
        """Of the models, the base apart."""
        names = [one.name for one in self.models]
        return names[:-1] if self.has_base else names

    def place(self, name: str) -> int:
        """Returns the place of a model among the inputs."""
        return next(p for p, one in enumerate(self.models) if one.name == name)


def match(
    sources: Sources, chosen: Sequence[Rule], dtype: str | None
) -> tuple[list[Tensor], list[str]]:
    """Settles how every tensor of the merged model is made.

    Args:
      sources: the models.
      chosen: the rules.
      dtype: what floats are stored in, as safetensors calls it; None: as in the lead.

    Returns:
      The tensors in the lead's order, and notes on what was taken for what.

    Raises:
      SchemaError: if a tensor is in one model and not in another, or of another shape
        or kind; names model, key and both.
      ValueError: if a rule fits no tensor, or its settings do not fit one.
    """
    dropped = _dropped(sources)
    held = sources.tensors[sources.lead].places
    own = [key for key in held if key not in dropped]
    found = layers.layers_of(own)
    if idle := rules.idle(chosen, found):
        raise ValueError(
            f"every rule must fit a tensor that no rule before it fits, but"
            f" {weights.some(rule.shown for rule in idle)} does not;"
            f" {_why_idle([rule.pattern for rule in idle], dropped)}"
        )
    twins, notes = _twins(sources, own)
    matched = [_Match(sources, key, layer) for key, layer in found.items()]
    if sources.vocabulary.differ and not any(one.is_of_tokens() for one in matched):
        raise SchemaError(
            f"{sources.vocabulary.differ}, so embeddings must be told from other"
            " tensors, but the first dimension of none is the vocab_size of its model's"
            " configuration; mend the configurations"
        )
    tensors = [one.made(chosen, dtype, twins.get(one.key, ())) for one in matched]
    notes += _missing_heads(sources, tensors)
    return tensors, notes


def _dropped(sources: Sources) -> dict[str, str]:
    """Finds the head that the lead stores beside the embedding that it is tied to.

    Whoever loads a model whose configuration ties both takes the embedding for both: a
    head merged by itself would be lost.

    Returns:
      The embedding by the head's key; empty where the lead stores no such head.

    Raises:
      SchemaError: if names do not tell the head from the embedding.
    """
    lead = sources.lead
    one, held = sources.models[lead], sources.tensors[lead].places
    pairs = {
        key: twin for key in held if (twin := _twin_of(sources, lead, key)) is not None
    }
    if not pairs or not inputs.ties_head(one):
        return {}
    named = heads.named(pairs)
    if len(named) != 1:
        raise SchemaError(
            f"{one.name} ({one.model}) must store one matrix for embedding and head, as"
            " its configuration ties them (tie_word_embeddings), but it stores"
            f" {weights.some(sorted({*pairs, *pairs.values()}))}, and their names do"
            " not tell which is the head; load it with transformers and save it with"
            " save_pretrained"
        )
    return {named[0]: pairs[named[0]]}


def _why_idle(patterns: Sequence[str], dropped: Mapping[str, str]) -> str:
    """Says why rules fit no tensor, or where to look."""
    for head, embedding in dropped.items():
        if any(fnmatch.fnmatchcase(head, pattern) for pattern in patterns):
            return (
                f"{head} is tied to {embedding} and stored once, so a rule for both"
                f" names {embedding}"
            )
    return "--show lists the keys"


def _twins(sources: Sources, own: Sequence[str]) -> tuple[dict[str, Twins], list[str]]:
    """Finds what models hold beside the merged one's keys: a head stored twice."""
    twins: dict[str, Twins] = {}
    notes = []
    for place, (one, held) in enumerate(
        zip(sources.models, sources.tensors, strict=True)
    ):
        extra = [key for key in held.places if key not in own]
        tied = [key for key in extra if _twin_of(sources, place, key)]
        if len(tied) != 1 or extra != tied:
            if extra:
                raise _stray(sources, place, extra)
            continue
        key, twin = tied[0], _twin_of(sources, place, tied[0])
        assert twin is not None
        pair = (place, held.places[twin], held.places[key])
        twins[twin] = (*twins.get(twin, ()), pair)
        notes.append(
            f"{one.name} stores {key}, which the merged model has not, as its head is"
            f" {twin}: it must be the same"
        )
    return twins, notes


def _twin_of(sources: Sources, place: int, key: str) -> str | None:
    """Returns the tensor of a model that one can be tied to, as heads are."""
    rows = sources.vocabulary.rows[place]
    return heads.twin_of(sources.tensors[place].places, rows, key)


def _stray(sources: Sources, place: int, keys: Sequence[str]) -> SchemaError:
    lead, one = sources.models[sources.lead], sources.models[place]
    return SchemaError(
        f"all models must have the same tensors, but {one.name} ({one.model}) has"
        f" {weights.some(keys)}, which {lead.name} ({lead.model}) lacks; merge models"
        " of one architecture, or name as base the one with all tensors and take what"
        " others lack by a rule: take = ..."
    )


def _missing_heads(sources: Sources, tensors: Sequence[Tensor]) -> list[str]:
    """Tells which heads were found elsewhere than under their keys."""
    notes = []
    for tensor in tensors:
        for place, where in enumerate(tensor.places):
            held = sources.tensors[place].places
            if where is not None and tensor.key not in held:
                twin = next(key for key, other in held.items() if other == where)
                notes.append(
                    f"{sources.models[place].name} has no {tensor.key}: its head is"
                    f" {twin}"
                )
    return notes


@dataclasses.dataclass(frozen=True)
class _Match:
    """One key of the lead, looked for in all models."""

    sources: Sources
    key: str
    layer: Layer | None

    @property
    def _own(self) -> Place:
        return self.sources.tensors[self.sources.lead].places[self.key]

    def made(self, chosen: Sequence[Rule], dtype: str | None, twins: Twins) -> Tensor:
        """Settles how the tensor is made."""
        rule = rules.rule_for(chosen, self.key, self.layer)
        lead, of_tokens = self.sources.lead, self.is_of_tokens()
        if rule.take is not None:
            place = self.sources.place(rule.take)
            if of_tokens and place != lead:
                raise self._other_rows(place)
            return self._taken(place, dtype, twins)
        if of_tokens and self.sources.vocabulary.ids is None:
            return self._taken(lead, dtype, twins)
        places: tuple[Place | None, ...] = self._find_all(of_tokens)
        if self._own.dtype not in weights.FLOATS:
            return self._tensor(plan.EQUAL, places, self._own.dtype, twins=twins)
        settings = rules.settle(rule, self.sources.names, self.layer, self.key)
        assert rule.method is not None
        with_base = rule.takes_base(self.sources.has_base)
        # Without it the base is read where rows that others lack stay its own.
        if self.sources.has_base and not with_base and not of_tokens:
            places = (*places[:-1], None)
        return self._tensor(
            plan.MERGE,
            places,
            dtype or self._own.dtype,
            method=rule.method,
            settings=settings,
            with_base=with_base,
            by_token=of_tokens,
            twins=twins,
        )

    def _find_all(self, of_tokens: bool) -> tuple[Place, ...]:
        """Returns where the tensor is in every model, all of one shape and kind."""
        places = tuple(map(self._find, range(len(self.sources.models))))
        for place, found in enumerate(places):
            self._check(place, found, of_tokens)
        return places

    def is_of_tokens(self) -> bool:
        """Says whether its rows are of tokens, in vocabularies that differ."""
        sources = self.sources
        if sources.vocabulary.differ is None or self.layer is not None:
            return False
        shapes = [
            (held.places[self.key].shape, sources.vocabulary.rows[place])
            for place, held in enumerate(sources.tensors)
            if self.key in held.places
        ]
        return all(shape[:1] == (rows,) for shape, rows in shapes)

    def _taken(self, place: int, dtype: str | None, twins: Twins) -> Tensor:
        found = self._find(place)
        if found.shape != self._own.shape:
            raise self._misfit(place, found)
        places: list[Place | None] = [None] * len(self.sources.models)
        places[place] = found
        is_float = found.dtype in weights.FLOATS
        stored = (dtype or self._own.dtype) if is_float else found.dtype
        return self._tensor(plan.TAKE, tuple(places), stored, twins=twins)

    def _find(self, place: int) -> Place:
        """Returns where the tensor is in a model; a tied head is the embedding."""
        held = self.sources.tensors[place].places
        if self.key in held:
            return held[self.key]
        one = self.sources.models[place]
        rows = self.sources.vocabulary.rows[self.sources.lead]
        twin = _twin_of(self.sources, place, self.key)
        is_of_tokens = self.layer is None and self._own.shape[:1] == (rows,)
        untied = ""
        if twin is not None and is_of_tokens:
            if inputs.ties_head(one):
                return held[twin]
            untied = (
                f"; if {twin} is its head, say so in {one.name}'s configuration:"
                " tie_word_embeddings = true"
            )
        own = sorted(self.sources.tensors[self.sources.lead].places)
        lead = self.sources.models[self.sources.lead]
        others = [key for key in own if key not in held and key != self.key]
        raise SchemaError(
            f"all models must have the same tensors, but {one.name} ({one.model}) lacks"
            f" {weights.some([self.key, *others])}, which {lead.name} ({lead.model})"
            " has; merge models of one architecture, or take them from one model by a"
            f' rule: take = "{lead.name}"{untied}'
        )

    def _check(self, place: int, found: Place, of_tokens: bool) -> None:
        """Refuses a tensor of another shape or kind than the lead's."""
        rows = found.shape[:1] if of_tokens else self._own.shape[:1]
        if found.shape != (*rows, *self._own.shape[1:]):
            raise self._misfit(place, found)
        kinds = {
            "float" if dtype in weights.FLOATS else dtype
            for dtype in (found.dtype, self._own.dtype)
        }
        if len(kinds) > 1:
            models = self.sources.models
            one, lead = models[place], models[self.sources.lead]
            raise SchemaError(
                f"{self.key} must be of one kind in all models, but is {found.dtype} in"
                f" {one.name} ({one.model}) and {self._own.dtype} in {lead.name}"
                f" ({lead.model}); save both in the same type"
            )

    def _other_rows(self, place: int) -> SchemaError:
        one, lead = self.sources.models[place], self.sources.models[self.sources.lead]
        return SchemaError(
            f"{self.key} of {one.name} has rows of other tokens than {lead.name}, whose"
            f' vocabulary is kept, so it cannot be taken; take = "{lead.name}", or'
            " leave the rule out"
        )

    def _misfit(self, place: int, found: Place) -> SchemaError:
        one, lead = self.sources.models[place], self.sources.models[self.sources.lead]
        return SchemaError(
            f"{self.key} must have one shape in all models, but has {list(found.shape)}"
            f" in {one.name} ({one.model}) and {list(self._own.shape)} in {lead.name}"
            f" ({lead.model}); merge models of one architecture and size, or take it"
            f' from one model by a rule: take = "{lead.name}"'
        )

    def _tensor(
        self, how: str, places: tuple[Place | None, ...], dtype: str, **more: object
    ) -> Tensor:
        if dtype.startswith("F8"):
            raise SchemaError(
                f"{self.key} must be of plain floats, got {dtype}, which goes with"
                " scales that are stored apart; unpack the models with transformers"
                " (dequantize) and save_pretrained"
            )
        return Tensor(
            key=self.key,
            shape=self._own.shape,
            dtype=dtype,
            layer=self.layer.name if self.layer else None,
            how=how,
            places=places,
            **more,  # type: ignore[arg-type]
        )
