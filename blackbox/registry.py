"""Methods by name: the interface of their classes, and the registries that find them.

There are two registries, of algorithms (`blackbox.algorithm`) and of methods that work in rounds of participants
(`blackbox.federation`). `Method` is what a study, the limits of a service and the documentation ask of either.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Literal, TypeVar

from blackbox.errors import IncompatibleProblem, UnknownAlgorithm, nearest
from blackbox.options import Options, parse_options
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.space import Space

O = TypeVar("O", bound=Options)  # noqa: E741 -- O is the letter of the design
Kind = Literal["group", "members", "sequential", "rounds"]
"""How steps close and what a worker is given."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of a study, beside its space, when the defaults of a method are filled in.

    Attributes
    ----------
    evaluations : the budget; None: no limit is known.
    workers : evaluations that are made at a time; None: unknown.
    """

    evaluations: int | None = None
    workers: int | None = None

    def popsize(self, default: int, *, even: bool = False) -> int:
        """Return the default population for these workers: at least one result per worker and step.

        With fewer, most of the results that are on their way when a step closes would come too late to be learned from.

        Parameters
        ----------
        default : the population that suits the dimension.
        even : whether points come in pairs.
        """
        popsize = max(default, self.workers or 0)
        return popsize + popsize % 2 if even else popsize


UNKNOWN = Outlook()


class Method(Generic[O]):
    """The class of a method: everything that is known of it before anything is computed."""

    name: ClassVar[str]
    """Its name in the registry."""
    kind: ClassVar[Kind]
    revision: ClassVar[int] = 1
    """Raised in the commit that changes what the method computes: see "Adding a method" in the README."""
    Options: ClassVar[type[Options]]
    """The options as people write them."""
    Resolved: ClassVar[type[Any]]
    """The options as `resolve` returns and a study stores them: O. A subclass of `Options` in which the fields that are
    filled in are not optional. A method that fills in nothing leaves it out; it is then `Options` itself."""
    slicer: Slicer = WHOLE
    """Computes the parts of large sums (`recipes.weighted_noise_sum`); set by whoever builds an instance."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "Options" in vars(cls) and "Resolved" not in vars(cls):
            cls.Resolved = cls.Options

    @classmethod
    def why_not(cls, space: Space, *, maximize: bool = False) -> str | None:
        """Return why the method cannot treat this problem, or None if it can."""
        return None

    @classmethod
    def resolve(cls, options: Any, space: Space, outlook: Outlook = UNKNOWN) -> O:
        """Fill in every default that depends on the problem: `Options`, as people wrote them, become `Resolved`.

        The result is stored with the study. Resolved options resolve to themselves.
        """
        resolved: O = options
        return resolved

    @classmethod
    def check_options(cls, options: O, space: Space) -> None:
        """Check resolved options against each other and the space; each is valid by itself.

        Raises
        ------
        InvalidOptions
            If they do not fit together.
        """

    @classmethod
    def memory(cls, options: O, space: Space) -> int:
        """Estimate the bytes that the state and one step need; the service refuses a study that does not fit."""
        return 64 * space.dim

    @classmethod
    def results_per_step(cls, options: O) -> int | None:
        """Return the results that a step takes: the option `popsize`; None for a method without it.

        A method whose steps close at every result has one `popsize` too: the number of its members, whose results make
        one sweep.
        """
        found = getattr(options, "popsize", None)
        return found if isinstance(found, int) else None


M = TypeVar("M", bound=Method[Any])


class Registry(Generic[M]):
    """The methods of one kind: those of a package, and those of installed packages that declare an entry point.

    Parameters
    ----------
    noun : what a method of this kind is called in messages.
    package : the package whose modules are imported at the first lookup; also the group of the entry points.
    """

    def __init__(self, noun: str, package: str) -> None:
        self.noun, self.package = noun, package
        self.classes: dict[str, type[M]] = {}
        self._loaded = False
        self._loading = threading.RLock()

    def register(self, name: str, cls: type[M], needs: Sequence[str]) -> None:
        """Register a class under a name.

        Parameters
        ----------
        needs : attributes that the class itself must define.

        Raises
        ------
        TypeError
            If it lacks one of the attributes it needs, or a docstring.
        ValueError
            If the name is taken.
        """
        missing = [part for part in needs if part not in vars(cls)]
        if missing or not cls.__doc__:
            raise TypeError(f"{cls.__name__} lacks {', '.join(missing) or 'a docstring that names its source'}")
        taken = self.classes.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise ValueError(f'the name "{name}" is taken by {taken.__qualname__}')
        cls.name = name
        self.classes[name] = cls

    def all(self) -> Mapping[str, type[M]]:
        """Return every registered method by name, in alphabetical order."""
        with self._loading:  # other threads wait until all are imported
            if not self._loaded:
                self._loaded = True
                try:
                    package = importlib.import_module(self.package)
                    for module in pkgutil.iter_modules(package.__path__):
                        importlib.import_module(f"{self.package}.{module.name}")
                    for entry in entry_points(group=self.package):
                        entry.load()
                except BaseException:  # Ctrl-C, say: the next call imports the rest
                    self._loaded = False
                    raise
        return dict(sorted(self.classes.items()))

    def lookup(self, name: str) -> type[M]:
        """Return the class registered under a name.

        Raises
        ------
        UnknownAlgorithm
            With the nearest known name as the hint.
        """
        known = self.all()
        if name not in known:
            raise UnknownAlgorithm(f'there is no {self.noun} "{name}"', hint=nearest(name, known))
        return known[name]

    def resolve_options(
        self,
        name: str,
        space: Space,
        raw: Mapping[str, Any],
        *,
        maximize: bool = False,
        outlook: Outlook = UNKNOWN,
    ) -> Any:
        """Validate `raw` for the method and the problem, and fill in every default.

        Returns
        -------
        The method's `Resolved`.

        Raises
        ------
        UnknownAlgorithm, InvalidOptions
        IncompatibleProblem
            The message names what the method treats and which ones treat this problem.
        """
        cls = self.lookup(name)
        if (obstacle := cls.why_not(space, maximize=maximize)) is not None:
            fitting = [other for other, c in self.all().items() if c.why_not(space, maximize=maximize) is None]
            hint = f"these can: {', '.join(fitting)}" if fitting else f"no {self.noun} can"
            raise IncompatibleProblem(f"{name} cannot treat this problem: {obstacle}", hint=hint)
        options = cls.resolve(parse_options(cls.Options, dict(raw)), space, outlook)
        cls.check_options(options, space)
        return options
