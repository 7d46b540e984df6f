"""Payloads: all that travels between a coordinator and its participants.

=================  ==========  =======================================================================================
record             direction   holds
=================  ==========  =======================================================================================
`Invitation`       down, once  method, resolved options, space, noise key: what both sides derive everything else from
`Broadcast`        down        round, phase, the named vectors of the moment (x, surrogate weights, control variate)
`Contribution`     up          round, phase, weight, the named vectors that the phase asks for, privacy facts
`Update`           down        how x moved in one round: a vector, or coefficients of directions that are only named
=================  ==========  =======================================================================================

A contribution has exactly the vectors that its phase declares, of exactly the declared lengths, so there is no field in
which a queried point, a value or a trajectory could travel. Numbers in contributions and updates are float32. Every
payload is linear: the coordinator only ever needs weighted sums of them, so they can be summed under masks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from blackbox import codec, rng
from blackbox.errors import BlobNotFound, CodecError, FieldError, InvalidContribution, InvalidInput
from blackbox.federation.vectors import Floats, finite, read, written
from blackbox.recipes import digest, slices, weighted_noise_sum
from blackbox.records import JSON, Term, Vector
from blackbox.rng import Key
from blackbox.space import Space
from blackbox.validation import Described, pointer

DIRECTIONS = 1
"""Stream of the shared directions: direction l of round r is `noise(key.stream(DIRECTIONS), r, l, d)`."""
FEATURES = 2
"""Stream of the random features: frequencies are lanes 0 ... M-1 at step 0, phases the uniform numbers at step 1."""
INVITED = 3
"""Stream that decides which participants are invited to a round."""

ClientName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
"""Letters, digits and . _ : @ - behind a letter or digit."""


# -- down: the invitation ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Invitation:
    """The terms that a participant receives once. Both sides derive directions and random features from the key.

    Attributes
    ----------
    method : name in the registry of federated methods.
    options : resolved options, as JSON.
    space : the search space, as JSON.
    key : noise key of the study, hexadecimal. It is shared: nothing private may be drawn from it.
    noise : name of the noise specification, `rng.NAME`.
    """

    method: str
    options: Mapping[str, JSON]
    space: Mapping[str, JSON]
    key: str
    noise: str = rng.NAME

    @property
    def terms(self) -> str:
        """Digest of the invitation, carried by broadcasts and contributions, so that nobody works under other terms."""
        # The order of the parameters lays out x, so a transport that sorts them must not go unnoticed.
        whole = {**self.to_json(), "space": list(self.space.items())}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the invitation as JSON."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "space": dict(self.space),
            "key": self.key,
            "noise": self.noise,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Invitation:
        """Read the invitation that `to_json` wrote.

        Raises
        ------
        InvalidInput
            If a member is missing or unknown, or the noise specification is not ours.
        """
        members = {"method", "options", "space", "key", "noise"}
        if not isinstance(raw, Mapping) or set(raw) != members:
            raise InvalidInput(f"an invitation has the members {', '.join(sorted(members))}, got {raw!r:.200}")
        if raw["noise"] != rng.NAME:
            raise InvalidInput(
                f"the coordinator's noise is {raw['noise']!r}, this participant makes {rng.NAME!r}",
                hint="both sides must derive the same directions; install the coordinator's version",
            )
        return cls(raw["method"], dict(raw["options"]), dict(raw["space"]), raw["key"])


# -- down: every phase -------------------------------------------------------------------------------------------------

Blobs: TypeAlias = "Mapping[str, NDArray[Any]] | Callable[[str], NDArray[Any]]"


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The message that opens a phase for a participant that has the invitation.

    Attributes
    ----------
    terms : digest of the invitation.
    step : phases closed before this one; it grows from broadcast to broadcast.
    round : rounds completed before this one.
    phase : name of the phase; a round has one or two.
    version : updates applied to x.
    vectors : name -> vector: always "x" (d,) float64, and what the method adds as float32: "surrogate" (M,) mean
        weights of the random features, "control" (d,) mean gradient.
    """

    terms: str
    step: int
    round: int
    phase: str
    version: int
    vectors: Mapping[str, NDArray[Any]]

    @property
    def x(self) -> Vector:
        """(d,) float64, the common point."""
        x: Vector = self.vectors["x"]
        return x

    @property
    def nbytes(self) -> int:
        """Bytes of the raw vectors."""
        return sum(vector.nbytes for vector in self.vectors.values())

    def to_json(self) -> dict[str, Any]:
        """Return small JSON: vectors are named by digest, their bytes are in `blobs`."""
        return {
            "terms": self.terms,
            "step": self.step,
            "round": self.round,
            "phase": self.phase,
            "version": self.version,
            "vectors": {
                name: {"sha256": digest(v), "dtype": v.dtype.str, "length": len(v)}
                for name, v in sorted(self.vectors.items())
            },
        }

    def blobs(self) -> dict[str, NDArray[Any]]:
        """Return digest -> vector."""
        return {digest(vector): vector for vector in self.vectors.values()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], blobs: Blobs) -> Broadcast:
        """Read the broadcast that `to_json` wrote, with its vectors from `blobs` (digest -> array, checked here).

        Raises
        ------
        InvalidInput
            If a member is missing, unknown or of the wrong type, or a vector is not what its digest says.
        BlobNotFound
            If a vector is not at hand.
        """
        sent = _BroadcastJson(**_members(raw, "a broadcast"))
        vectors = {}
        for name, ref in sent.vectors.items():
            try:
                vector = blobs(ref.sha256) if callable(blobs) else blobs[ref.sha256]
            except KeyError:
                raise BlobNotFound(f"no vector with sha256 {ref.sha256} is at hand for {name!r}") from None
            if vector.shape != (ref.length,) or vector.dtype.str != ref.dtype or digest(vector) != ref.sha256:
                raise InvalidInput(f"the vector {name!r} is not what its digest {ref.sha256} says; fetch it again")
            vectors[name] = vector
        return cls(sent.terms, sent.step, sent.round, sent.phase, sent.version, vectors)


class _VectorRef(Described):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dtype: Literal["<f4", "<f8"]
    length: int = Field(ge=1)


class _BroadcastJson(Described):
    terms: str
    step: int = Field(ge=0)
    round: int = Field(ge=0)
    phase: str
    version: int = Field(ge=0)
    vectors: dict[str, _VectorRef]


# -- up ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Privacy:
    """Clipping and noise that a participant applied to its vectors before they left.

    Attributes
    ----------
    clip : name -> largest Euclidean norm of that vector.
    noise : standard deviation of the Gaussian noise on each coordinate, in units of the vector's clip.
    """

    clip: Mapping[str, float]
    noise: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """One participant's update. There is no field for points, values or data.

    Attributes
    ----------
    terms : digest of the invitation it was made under.
    client : the participant that made it.
    round, phase : those of the broadcast that it answers.
    weight : share of this participant in means, in any unit that all share (number of examples).
    vectors : name -> (n,) float32, exactly those that the phase declares.
    evaluations : private evaluations spent on it.
    privacy : clipping and noise, or None.
    """

    terms: str
    client: str
    round: int
    phase: str
    weight: float
    vectors: Mapping[str, Floats]
    evaluations: int
    privacy: Privacy | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the raw vectors."""
        return sum(vector.nbytes for vector in self.vectors.values())

    def to_bytes(self) -> bytes:
        """Return canonical bytes (`application/octet-stream`): a JSON header of about 250 bytes and the raw numbers."""
        return codec.encode(self)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Contribution:
        """Read the contribution that `to_bytes` wrote, with every field checked as by `from_json`.

        Raises
        ------
        InvalidContribution
            If they are no contribution, or a field is unfit.
        """
        try:
            decoded = codec.decode(cls, raw)
            vectors = {name: finite(vector, pointer("vectors", name)) for name, vector in decoded.vectors.items()}
            plain = decoded._fields()
        except (CodecError, AttributeError, TypeError) as error:
            raise InvalidContribution(f"these bytes are no contribution: {error}") from None
        return cls._of(ContributionJson(**plain, vectors=dict.fromkeys(vectors, "")), vectors)

    def _fields(self) -> dict[str, Any]:
        privacy = self.privacy
        return {
            "terms": self.terms,
            "client": self.client,
            "round": self.round,
            "phase": self.phase,
            "weight": self.weight,
            "evaluations": self.evaluations,
            "privacy": None if privacy is None else {"clip": dict(privacy.clip), "noise": privacy.noise},
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON; vectors of at most `LISTED` numbers as lists, longer ones as base64 of little-endian float32."""
        return {**self._fields(), "vectors": {name: written(v) for name, v in sorted(self.vectors.items())}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Contribution:
        """Read the contribution that `to_json` wrote. A vector may be a list or base64, whatever its length.

        Raises
        ------
        InvalidContribution
            With a `FieldError` for every missing, unknown or unfit member. What the open phase asks for is checked
            by `Federation.check`.
        """
        sent = ContributionJson(**_members(raw, "a contribution", InvalidContribution))
        return cls._of(sent, {name: read(v, pointer("vectors", name)) for name, v in sent.vectors.items()})

    @classmethod
    def _of(cls, sent: ContributionJson, vectors: dict[str, Floats]) -> Contribution:
        privacy = None if sent.privacy is None else Privacy(dict(sent.privacy.clip), sent.privacy.noise)
        return cls(sent.terms, sent.client, sent.round, sent.phase, sent.weight, vectors, sent.evaluations, privacy)


class PrivacyJson(Described):
    """Wire form of `Privacy`."""

    error_class = InvalidContribution
    clip: dict[str, Annotated[float, Field(gt=0)]]
    """Largest Euclidean norm of each vector."""
    noise: float = Field(ge=0)
    """Standard deviation of the noise per coordinate, in units of the clip."""


class ContributionJson(Described):
    """Wire form of `Contribution`; unknown members are refused."""

    error_class = InvalidContribution
    terms: str = Field(max_length=64)
    """Digest of the invitation."""
    client: ClientName
    """Name of the participant."""
    round: int = Field(ge=0)
    """The round of the broadcast that this answers."""
    phase: str = Field(max_length=64)
    """The phase of the broadcast that this answers."""
    weight: float = Field(gt=0, le=1e12)
    """Share of this participant in means, such as its number of examples."""
    vectors: dict[str, list[float] | str]
    """The vectors that the phase asks for: a list of numbers, or base64 of little-endian float32."""
    evaluations: int = Field(ge=0, le=2**53)
    """Private evaluations spent."""
    privacy: PrivacyJson | None = None
    """Clipping and noise, if any."""


def _members(raw: object, what: str, error: type[InvalidInput] = InvalidInput) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise error(f"{what} is an object, got {type(raw).__name__}")
    return {str(name): value for name, value in raw.items()}


# -- down: how x moved -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Update:
    """The change of x from one version to the next. Exactly one of `move` and `coefficients` is there.

    Attributes
    ----------
    version : version of x after it.
    round : the round it closed; the directions are those of this round.
    move : (d,) float32 added to x.
    coefficients : (L,) float32, of the directions 0 ... L-1 of the round.
    noise : kind of these directions, "normal" or "rademacher".
    """

    version: int
    round: int
    move: Floats | None
    coefficients: Floats | None = None
    noise: str = "normal"

    @property
    def numbers(self) -> Floats:
        """The move or the coefficients, whichever is there."""
        return next(vector for vector in (self.move, self.coefficients) if vector is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of the raw numbers."""
        return int(self.numbers.nbytes)

    def to_json(self) -> dict[str, Any]:
        """Return JSON: {"version", "round", "move"} or {"version", "round", "noise", "stream", "coefficients"}."""
        head, numbers = {"version": self.version, "round": self.round}, written(self.numbers)
        if self.move is not None:
            return {**head, "move": numbers}
        return {**head, "noise": self.noise, "stream": str(DIRECTIONS), "coefficients": numbers}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Update:
        """Read the update that `to_json` wrote.

        Raises
        ------
        InvalidInput
            If a field is missing, unknown or unfit.
        """
        sent = _UpdateJson(**_members(raw, "an update"))
        move = None if sent.move is None else read(sent.move, "/move")
        coefficients = None if sent.coefficients is None else read(sent.coefficients, "/coefficients")
        return cls(sent.version, sent.round, move, coefficients, sent.noise or "normal")


class _UpdateJson(Described):
    version: int = Field(ge=1)
    round: int = Field(ge=0)
    move: tuple[float, ...] | str | None = None
    noise: Literal["normal", "rademacher"] | None = None
    stream: Literal["1"] | None = None
    coefficients: tuple[float, ...] | str | None = None

    def errors(self) -> Iterator[FieldError]:
        if (self.move is None) == (self.coefficients is None):
            yield FieldError("/move", "one_of", "exactly one of move and coefficients must be there")


def apply(x: Vector, update: Update, key: Key, space: Space, slicer: slices.Slicer = slices.WHOLE) -> Vector:
    """Return x after one update, bit for bit the same on every machine: sums in a fixed order, no matrix product.

    Parameters
    ----------
    x : (d,) float64 of version `update.version - 1`.
    key : the study's key.
    space : bounded coordinates are clipped to [0, 1].
    slicer : computes the parts of a large sum.
    """
    if update.move is not None:
        moved = x + update.move
    else:
        terms = [
            Term(DIRECTIONS, update.round, lane, float(c), update.noise)
            for lane, c in enumerate(update.numbers.tolist())
        ]
        moved = x + weighted_noise_sum(terms, key, space.dim, slicer=slicer)
    return project(moved, space)


FARTHEST = 1e15
"""Limit on the size of a coordinate, so that later sums do not overflow in float32."""


def project(x: Vector, space: Space) -> Vector:
    """Return x with its bounded coordinates clipped to [0, 1] and the others to +-FARTHEST."""
    clipped: Vector = np.clip(x, np.maximum(space.lower, -FARTHEST), np.minimum(space.upper, FARTHEST))
    return clipped


def catch_up(x: Vector, version: int, updates: Sequence[Update], key: Key, space: Space) -> tuple[Vector, int]:
    """Return x and its version after the updates that are newer than `version`.

    Parameters
    ----------
    x, version : those of the participant; a newcomer starts at the projected `space.initial`, version 0.
    updates : in any order; older ones are skipped.

    Raises
    ------
    InvalidInput
        If a version in between is missing; compare the digest of the result with the broadcast's for the rest.
    """
    for update in sorted(updates, key=lambda u: u.version):
        if update.version <= version:
            continue
        if update.version != version + 1:
            raise InvalidInput(
                f"the update to version {version + 1} is missing, the next one is {update.version}",
                hint=f"ask for the updates after {version}, or for x itself",
            )
        x, version = apply(x, update, key, space), update.version
    return x, version
