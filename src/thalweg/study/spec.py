"""What a study is: tasks × schemes × seeds × arms, measurements between arms, and claims fixed beforehand.

A study is one YAML file with plain keys::

    name: paper-resnet
    tasks: [cifar10:resnet20]
    schemes: [w2, w3, w4]
    seeds: [0, 1, 2, 3, 4]
    arms:
      nearest:  {method: nearest}
      adaround: {method: adaround, options: {steps: 500}}
      qat:      {train: {steps: 200}, rates: [0.03, 0.1]}
      latent:   {train: {steps: 200, gradient: latent}}
      float:    {of: latent, then: adaround}
    measures:
      geometry: {failed: nearest, second: adaround, recovered: qat}
    claims: [...]
    profiles:
      small: {seeds: [0, 1, 2], arms: {qat: {train: {steps: 50}}}}

An arm is a rounding ``method`` with ``options`` or a training recipe (``train``: fields of
:class:`thalweg.train.Recipe`). ``rates`` are learning rates tried on the first seed; the one that is best on the frozen
validation data is every seed's. ``of`` takes the latent weights that another arm trained, and ``then`` rounds them with
the method of a third: float training, then rounding. ``batchnorm``: statistics are re-estimated at the end. Arms and
measures take ``schemes`` and ``tasks`` to name where they run, measures ``seeds`` too. ``only: [C8]`` judges some
claims. A profile changes whatever it names and leaves the rest, of which ``keep: {arms: [nearest, qat], measures:
[times]}`` takes the others away first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .. import basin, catalog
from ..claims import Rule
from ..errors import ThalwegError, unknown
from ..optimize import usual_rate
from ..scheme import Scheme
from ..trajectory import Recipe
from .measures import MEASURES

FLOAT = "float model"


@dataclass(frozen=True)
class Arm:
    """One way to a quantized point. ``options`` of the method and ``train``, the fields of a recipe, hold what was left
    out too, so that a cell's key holds all of them."""

    name: str
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] | None = None
    rates: tuple[float, ...] = ()
    of: str | None = None
    then: str | None = None
    begin: str = "nearest"
    batchnorm: bool = False
    schemes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """One measurement, made from the points of arms. ``roles`` names them; ``options`` are the function's, defaults
    too, so that a cell's key holds all of them. ``seeds``: where it is made, every seed unless named (a figure that no
    rule reads needs one)."""

    name: str
    roles: dict[str, str]
    options: dict[str, Any]
    schemes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def latents(self) -> tuple[str, ...]:
        """Roles whose latent weights it reads, where a trained arm plays them."""
        return MEASURES[self.options["measure"]].latents


@dataclass(frozen=True)
class Study:
    """A study as it will be run, its profile applied. ``limits``: most samples of ``test``, ``frozen`` data.
    ``networks``: ``one`` float model, for which the seed draws calibration and training data, or ``each`` seed its own
    (built-in tasks then train that many)."""

    name: str
    tasks: tuple[str, ...]
    schemes: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    measures: dict[str, Measure]
    claims: tuple[dict[str, Any], ...] = ()
    about: str = ""
    fit: str = "mse"
    limits: dict[str, int] = field(default_factory=dict)
    tolerance_nats: float = basin.TOLERANCE
    profile: str = ""
    alpha: float = 0.05
    minimum_seeds: int = 5
    networks: str = "one"

    @property
    def rules(self) -> list[Rule]:
        """The decision rules of all claims; one that names no schemes speaks of each of the study's."""
        found = [rule for claim in self.claims for rule in rules_of(claim)]
        return [replace(rule, schemes=rule.schemes or self.schemes) for rule in found]

    def latent_roles(self, measure: Measure) -> dict[str, str]:
        """Roles of a measurement whose latent weights it reads, with the trained arms that play them."""
        return {r: arm for r, arm in measure.roles.items() if r in measure.latents and self.arms[arm].train is not None}


def parse(found: Mapping[str, Any], profile: str = "") -> Study:
    """A study from plain values; see :func:`thalweg.study.file.read_study`."""
    known = {f.name for f in fields(Study)} - {"profile"} | {"only"}
    for key in found:
        if key not in known:
            raise unknown("key of a study", key, known)
    for key in ("tasks", "schemes", "seeds", "arms"):
        if not found.get(key):
            raise ThalwegError(f"The study {found.get('name')!r} has no {key}. Name at least one.")
    schemes = tuple(map(str, found["schemes"]))
    for text in schemes:
        Scheme.parse(text)
    catalog.get("quantizers", str(found.get("fit", "mse")))
    arms = {name: _arm(name, dict(value or {})) for name, value in found["arms"].items()}
    for arm in arms.values():
        _check_arm(arm, arms)
    measures = {name: _measure(name, dict(value or {}), arms) for name, value in (found.get("measures") or {}).items()}
    seeds = tuple(found["seeds"])
    if not all(isinstance(s, int) and s >= 0 for s in seeds) or len(set(seeds)) != len(seeds):
        raise ThalwegError(f"Seeds {list(seeds)} are not different whole numbers from 0 on. Try [0, 1, 2, 3, 4].")
    tolerance = float(found.get("tolerance_nats") or basin.TOLERANCE)
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ThalwegError(f"A tolerance of {tolerance} nats is not positive. The default is ln 1.05 = 0.0488.")
    for measure in measures.values():
        if not set(measure.seeds) <= set(seeds):
            raise ThalwegError(
                f"The measure {measure.name!r} names seeds {list(measure.seeds)}, the study {list(seeds)}. "
                "Name some of the study's."
            )
    limits = dict(found.get("limits") or {})
    for key in limits:
        if key not in ("test", "frozen"):
            raise unknown("limit", key, ("test", "frozen"))
    result = Study(
        name=str(found["name"]), tasks=tuple(map(str, found["tasks"])), schemes=schemes, seeds=seeds, arms=arms,
        measures=measures, claims=_judged(tuple(found.get("claims") or ()), found.get("only") or ()),
        about=str(found.get("about", "")).strip(),
        fit=str(found.get("fit", "mse")), limits=limits, tolerance_nats=tolerance, profile=profile,
        alpha=float(found.get("alpha", 0.05)), minimum_seeds=int(found.get("minimum_seeds", 5)),
        networks=str(found.get("networks", "one")),
    )  # fmt: skip
    if result.networks not in ("one", "each"):
        raise unknown("value of networks", result.networks, ("one", "each"))
    assert isinstance(result.rules, list)  # reading them checks them
    return result


def rules_of(claim: Mapping[str, Any]) -> list[Rule]:
    """The rules of one claim: ``{claim, text, rules: [{quantity, comparison, threshold, ...}]}``."""
    if not isinstance(claim, Mapping) or not claim.get("claim") or not claim.get("rules"):
        raise ThalwegError(f"A claim needs a name and rules, and {str(claim)[:80]!r} has not. Write claim: and rules:.")
    return [Rule.from_dict({"claim": claim["claim"], **rule}) for rule in claim["rules"]]


def _judged(claims: tuple[Any, ...], only: Collection[str]) -> tuple[Any, ...]:
    """The claims that are named, all where none is."""
    if not only:
        return claims
    known = {rules_of(claim)[0].claim: claim for claim in claims}
    for name in only:
        if name not in known:
            raise unknown("claim", str(name), known)
    return tuple(claim for name, claim in known.items() if name in only)


def _arm(name: str, value: dict[str, Any]) -> Arm:
    known = {f.name for f in fields(Arm)} - {"name"}
    for key in value:
        if key not in known:
            raise unknown(f"key of arm {name!r}", key, known)
    for key in ("rates", "schemes", "tasks"):
        value[key] = tuple(value.get(key) or ())
    arm = Arm(name, **value)
    if sum(part is not None for part in (arm.method, arm.train, arm.of)) != 1 or (arm.of is None) != (arm.then is None):
        raise ThalwegError(f"Arm {name!r} needs a method, or train, or of with then. Write {name}: {{method: gptq}}.")
    if arm.method is not None:
        catalog.get("methods", arm.method)
        catalog.check_options("methods", arm.method, arm.options)
        usual = {k: v for k, v in catalog.options("methods", arm.method).items() if not callable(v)}
        return replace(arm, options={**usual, **arm.options})
    if arm.train is not None:
        return replace(arm, train=_recipe(arm, arm.train))
    return arm


def _recipe(arm: Arm, given: dict[str, Any]) -> dict[str, Any]:
    """All fields of an arm's recipe but those that the study gives."""
    known = {f.name for f in fields(Recipe)}
    for key in given:
        if key not in known:
            raise unknown(f"field of the recipe of arm {arm.name!r}", key, known)
    recipe = Recipe(**{"stop": False, **given})
    recipe.check()
    if recipe.lr is None and not arm.rates:
        recipe = replace(recipe, lr=usual_rate(recipe, catalog.get("estimators", recipe.estimator)()))
    theirs = {"seed", "tolerance_nats", "batchnorm"} - set(given)
    return {k: v for k, v in asdict(recipe).items() if k not in theirs}


def _check_arm(arm: Arm, arms: Mapping[str, Arm]) -> None:
    if arm.train is not None and arm.begin not in arms:
        raise unknown(f"arm to begin {arm.name!r} from", arm.begin, arms)
    if arm.of is not None and (arm.of not in arms or arms[arm.of].train is None):
        raise unknown(f"trained arm of {arm.name!r}", arm.of, [n for n, a in arms.items() if a.train is not None])
    if arm.then is not None and (arm.then not in arms or arms[arm.then].method is None):
        methods = [n for n, a in arms.items() if a.method is not None]
        raise unknown(f"arm whose method rounds the weights of {arm.name!r}", arm.then, methods)


def _measure(name: str, value: dict[str, Any], arms: Mapping[str, Arm]) -> Measure:
    kind = str(value.pop("measure", name))
    if kind not in MEASURES:
        raise unknown("measure", kind, MEASURES)
    where = {key: tuple(value.pop(key, None) or ()) for key in ("schemes", "tasks", "seeds")}
    known = MEASURES[kind]
    roles = {role: str(value.pop(role)) for role in known.roles if role in value}
    for role in known.roles:
        if role not in roles:
            raise ThalwegError(f"The measure {name!r} needs the arm {role}. Write {name}: {{{role}: nearest}}.")
    for role, arm in roles.items():
        if arm not in arms:
            raise unknown(f"arm {role} of measure {name!r}", arm, arms)
    for key in value:
        if key not in known.options:
            raise unknown(f"option of measure {name!r}", key, known.options)
    return Measure(name, roles, {"measure": kind, **known.options, **value}, **where)
