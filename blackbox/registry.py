"""Methods by name: what a class needs to be one, and where its kind is found.

There are two registries, of algorithms (`blackbox.algorithm`) and of methods that work in rounds of participants
(`blackbox.federation`). A study, the limits of a service and the documentation ask both the same few things: `Method`.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Literal, TypeVar

from blackbox.errors import IncompatibleProblem, UnknownAlgorithm, nearest
from blackbox.options import Options, parse_options
from blackbox.recipes.slices import WHOLE, Slicer
from blackbox.space import Space

O = TypeVar("O", bound=Options)  # noqa: E741 -- O is the letter of the design
Kind = Literal["group", "members", "sequential", "rounds"]
"""How steps close and who gets what."""


class Method(Generic[O]):
    """The class of a method, as far as it is asked before anything is computed."""

    name: ClassVar[str]
    """Its name in the registry."""
    kind: ClassVar[Kind]
    revision: ClassVar[int] = 1
    """Raised in the commit that changes what the method computes: see "Adding a method" in the README."""
    Options: ClassVar[type[Options]]
    """What people write."""
    Resolved: ClassVar[type[Any]]
    """What `resolve` makes of it and a study stores: O. A subclass of `Options` in which nothing that was filled in is
    optional; a method that fills in nothing leaves it out, and then it is `Options`."""
    slicer: Slicer = WHOLE
    """Who computes the parts of large sums (`recipes.weighted_noise_sum`); whoever builds a method may set another."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "Options" in vars(cls) and "Resolved" not in vars(cls):
            cls.Resolved = cls.Options

    @classmethod
    def why_not(cls, space: Space, *, maximize: bool = False) -> str | None:
        """What keeps the method from treating this problem, or None."""
        return None

    @classmethod
    def resolve(cls, options: Any, space: Space) -> O:
        """What people wrote (`Options`) with every default that depends on the problem filled in (`Resolved`).

        The result is stored with the study. Resolved options resolve to themselves.
        """
        resolved: O = options
        return resolved

    @classmethod
    def check_options(cls, options: O, space: Space) -> None:
        """Refuse resolved options that are each fine alone.

        Raises
        ------
        InvalidOptions
        """

    @classmethod
    def memory(cls, options: O, space: Space) -> int:
        """Estimate of the bytes that state and one step need; the service refuses what does not fit."""
        return 64 * space.dim

    @classmethod
    def results_per_step(cls, options: O) -> int | None:
        """How many results a step takes, where the resolved options say it."""
        found = getattr(options, "popsize", None)
        return found if isinstance(found, int) else None


M = TypeVar("M", bound=Method[Any])


class Registry(Generic[M]):
    """The methods of one kind: those of a package, and those of installed packages that declare an entry point.

    Parameters
    ----------
    noun : what they are called in messages.
    package : its modules are imported when somebody looks a method up; also the group of the entry points.
    """

    def __init__(self, noun: str, package: str) -> None:
        self.noun, self.package = noun, package
        self.classes: dict[str, type[M]] = {}
        self._loaded = False
        self._loading = threading.RLock()

    def register(self, name: str, cls: type[M], needs: Sequence[str]) -> None:
        """Take a class under a name.

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
        """Every registered method by name, in alphabetical order."""
        with self._loading:  # another thread waits until all are there
            if not self._loaded:
                self._loaded = True
                package = importlib.import_module(self.package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self.package}.{module.name}")
                for entry in entry_points(group=self.package):
                    entry.load()
        return dict(sorted(self.classes.items()))

    def lookup(self, name: str) -> type[M]:
        """The class of that name.

        Raises
        ------
        UnknownAlgorithm
            Naming the nearest known one.
        """
        known = self.all()
        if name not in known:
            raise UnknownAlgorithm(f'there is no {self.noun} "{name}"', hint=nearest(name, known))
        return known[name]

    def resolve_options(self, name: str, space: Space, raw: Mapping[str, Any], *, maximize: bool = False) -> Any:
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
        options = cls.resolve(parse_options(cls.Options, dict(raw)), space)
        cls.check_options(options, space)
        return options
